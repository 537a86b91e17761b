//! The lookup path beside blocking TCP that moves the same bytes, in processes of their own on loopback.
//!
//! `cargo bench --bench lookup [-- ROUNDS]` prints, for each number of ids and width, the rows per second (or the median
//! time of a call) of both and the ratio, as min/median/max over interleaved rounds.

#[path = "../tests/support/mod.rs"]
mod support;

use graphtool::plan::{Manifest, Sharding};
use graphtool::store::{self, ConnectOptions, Query, ServeOptions, Store};
use graphtool::tensor::DType;
use std::io::{BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

const ROWS: usize = 1_000_000;

/// This program again, as a server; gives its address.
fn spawn(args: &[&str]) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap()).args(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().to_string())
}

fn serve(dir: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    store::serve(listener, Path::new(dir), ServeOptions { threads: 1, ..ServeOptions::default() }, std::future::pending()).unwrap();
}

/// Answers each request, whose first 8 bytes are the sizes of request and answer, with as many bytes as it says.
fn serve_raw() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut buffer = vec![1u8; 64 << 20];
        loop {
            let mut sizes = [0u8; 8];
            if stream.read_exact(&mut sizes).is_err() {
                break;
            }
            let size = |i: usize| u32::from_le_bytes(sizes[i..i + 4].try_into().unwrap()) as usize;
            stream.read_exact(&mut buffer[..size(0) - 8]).unwrap();
            stream.write_all(&buffer[..size(4)]).unwrap();
        }
    }
}

fn raw_calls(stream: &mut TcpStream, ids: usize, dim: usize, calls: usize) -> Vec<f64> {
    let (ask, answer) = ((8 + ids * 4) as u32, (ids * dim * 4) as u32);
    let mut request = vec![0u8; ask as usize];
    request[..4].copy_from_slice(&ask.to_le_bytes());
    request[4..8].copy_from_slice(&answer.to_le_bytes());
    let mut rows = vec![0u8; answer as usize];
    let call = |_| {
        let start = Instant::now();
        stream.write_all(&request).unwrap();
        stream.read_exact(&mut rows).unwrap();
        start.elapsed().as_secs_f64()
    };
    (0..calls).map(call).collect()
}

fn our_calls(runtime: &tokio::runtime::Runtime, store: &dyn Store, ids: usize, calls: usize) -> Vec<f64> {
    let mut state = 12345u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % ROWS as u64
    };
    let queries: Vec<Vec<u64>> = (0..calls).map(|_| (0..ids).map(|_| next()).collect()).collect();
    runtime.block_on(async {
        let mut times = Vec::new();
        for ids in queries {
            let start = Instant::now();
            std::hint::black_box(store.lookup(vec![Query { table: 0, ids }]).await.unwrap());
            times.push(start.elapsed().as_secs_f64());
        }
        times
    })
}

fn median(mut v: Vec<f64>) -> (f64, f64, f64) {
    v.sort_by(f64::total_cmp);
    (v[0], v[v.len() / 2], v[v.len() - 1])
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", dir] => return serve(dir),
        ["raw"] => return serve_raw(),
        _ => {}
    }
    let rounds = args.first().and_then(|r| r.parse().ok()).unwrap_or(9);
    println!("{:>6} {:>4} {:>6}  {:>14} {:>14}   ratio min/median/max", "ids", "dim", "pieces", "raw TCP", "lookup");
    for (dim, pieces) in [(16, 1), (16, 4), (64, 1), (64, 4)] {
        let dir = tempfile::tempdir().unwrap();
        let table = support::source("T", DType::F32, &[ROWS, dim], Sharding::Row, pieces);
        let manifest: Arc<Manifest> = Arc::new(support::deploy(dir.path(), &[table], pieces as u32));
        let (mut server, endpoint) = spawn(&["serve", dir.path().to_str().unwrap()]);
        let (mut raw, raw_endpoint) = spawn(&["raw"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = runtime.block_on(store::connect(manifest, &[endpoint], ConnectOptions::default())).unwrap();
        let mut stream = TcpStream::connect(raw_endpoint).unwrap();
        stream.set_nodelay(true).unwrap();
        for (ids, calls) in [(26_000, 40), (1_000, 400), (26, 3000)] {
            let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..=rounds {
                let theirs_now = median(raw_calls(&mut stream, ids, dim, calls)).1;
                let ours_now = median(our_calls(&runtime, &*store, ids, calls)).1;
                theirs.push(theirs_now);
                ours.push(ours_now);
                ratios.push(theirs_now / ours_now);
            }
            // The first round warms up.
            let show = |v: Vec<f64>| {
                let t = median(v[1..].to_vec()).1;
                if ids > 100 { format!("{:.2} Mrows/s", ids as f64 / t / 1e6) } else { format!("{:.1} us", t * 1e6) }
            };
            let (min, mid, max) = median(ratios[1..].to_vec());
            println!("{ids:>6} {dim:>4} {pieces:>6}  {:>14} {:>14}   {min:.2} / {mid:.2} / {max:.2}", show(theirs), show(ours));
        }
        drop(store);
        server.kill().unwrap();
        raw.kill().unwrap();
        _ = (server.wait(), raw.wait());
    }
}
