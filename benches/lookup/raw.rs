//! Blocking TCP without a protocol: what the bytes cost by themselves.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// Answers each request, whose first 12 bytes are its size, the width of a row and whether to look the rows up: the rows of
/// its ids, copied one by one from a table in memory, or as many bytes as they lie in the buffer.
pub fn serve(table_rows: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let mut table = Vec::new();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut ids, mut rows) = (Vec::new(), Vec::new());
        loop {
            let mut head = [0u8; 12];
            if stream.read_exact(&mut head).is_err() {
                break;
            }
            let word = |i: usize| u32::from_le_bytes(head[i..i + 4].try_into().unwrap()) as usize;
            let (size, width, look_up) = (word(0) - 12, word(4), word(8) == 1);
            ids.resize(size, 0);
            stream.read_exact(&mut ids).unwrap();
            rows.resize(size / 4 * width, 1);
            if look_up {
                table.resize(table_rows * width, 1);
                for (row, id) in rows.chunks_exact_mut(width).zip(ids.as_chunks().0) {
                    let id = u32::from_le_bytes(*id) as usize;
                    row.copy_from_slice(&table[id * width..(id + 1) * width]);
                }
            }
            stream.write_all(&rows).unwrap();
        }
    }
}

/// A client of [`serve`], whose buffers are used again.
pub struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    rows: Vec<u8>,
}

impl Client {
    pub fn connect(endpoint: &str) -> Self {
        let stream = TcpStream::connect(endpoint).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, request: Vec::new(), rows: Vec::new() }
    }

    pub fn call(&mut self, ids: &[u64], dim: usize, look_up: bool) {
        self.request.clear();
        for word in [12 + ids.len() * 4, dim * 4, usize::from(look_up)] {
            self.request.extend_from_slice(&(word as u32).to_le_bytes());
        }
        ids.iter().for_each(|&id| self.request.extend_from_slice(&(id as u32).to_le_bytes()));
        self.rows.resize(ids.len() * dim * 4, 0);
        self.stream.write_all(&self.request).unwrap();
        self.stream.read_exact(&mut self.rows).unwrap();
    }
}
