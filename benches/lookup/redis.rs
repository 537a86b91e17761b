//! Redis with a row under each id, asked by `MGET`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub struct Redis {
    child: Child,
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
    rows: Vec<u8>,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Redis {
    /// A server that holds `rows` rows; `None` if there is no Redis here.
    pub fn start(rows: usize, dim: usize) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no", "--port"]).arg(port.to_string());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let stream = (0..200).find_map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            TcpStream::connect(("127.0.0.1", port)).ok()
        })?;
        stream.set_nodelay(true).unwrap();
        let stream = BufReader::with_capacity(1 << 16, stream);
        let mut redis = Self { child, stream, request: Vec::new(), rows: Vec::new() };
        let value = vec![1u8; dim * 4];
        for first in (0..rows).step_by(1000) {
            redis.request.clear();
            let last = rows.min(first + 1000);
            write!(redis.request, "*{}\r\n$4\r\nMSET\r\n", 1 + 2 * (last - first)).unwrap();
            for id in first..last {
                redis.key(id as u64);
                write!(redis.request, "${}\r\n", value.len()).unwrap();
                redis.request.extend_from_slice(&value);
                redis.request.extend_from_slice(b"\r\n");
            }
            redis.stream.get_mut().write_all(&redis.request).unwrap();
            assert_eq!(redis.header(), "+OK");
        }
        Some(redis)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn key(&mut self, id: u64) {
        let digits = id.checked_ilog10().unwrap_or(0) + 1;
        write!(self.request, "${digits}\r\n{id}\r\n").unwrap();
    }

    fn header(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().into()
    }

    /// Reads a number after its mark, without a copy of the line.
    fn number(&mut self, mark: u8) -> usize {
        let mut n = 0;
        let mut first = true;
        loop {
            let buffer = self.stream.fill_buf().unwrap();
            for (i, &byte) in buffer.iter().enumerate() {
                match byte {
                    b'\n' => {
                        self.stream.consume(i + 1);
                        return n;
                    }
                    b'0'..=b'9' => n = n * 10 + usize::from(byte - b'0'),
                    b'\r' => {}
                    other => assert!(first && other == mark, "Redis said {other}"),
                }
                first = false;
            }
            let all = buffer.len();
            self.stream.consume(all);
        }
    }

    pub fn call(&mut self, ids: &[u64], dim: usize) {
        self.request.clear();
        write!(self.request, "*{}\r\n$4\r\nMGET\r\n", 1 + ids.len()).unwrap();
        ids.iter().for_each(|&id| self.key(id));
        let mut rows = std::mem::take(&mut self.rows);
        rows.resize(ids.len() * dim * 4, 0);
        self.stream.get_mut().write_all(&self.request).unwrap();
        assert_eq!(self.number(b'*'), ids.len());
        for row in rows.chunks_exact_mut(dim * 4) {
            assert_eq!(self.number(b'$'), row.len());
            self.stream.read_exact(row).unwrap();
            self.stream.consume_end();
        }
        self.rows = rows;
    }
}

trait End {
    fn consume_end(&mut self);
}

impl End for BufReader<TcpStream> {
    /// The two bytes after a value.
    fn consume_end(&mut self) {
        let mut end = [0; 2];
        self.read_exact(&mut end).unwrap();
    }
}
