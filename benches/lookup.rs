//! The lookup path beside blocking TCP that moves the same bytes, in processes of their own on loopback.
//!
//! `cargo bench --bench lookup [-- ROUNDS]` prints, for each number of ids and width, the rows per second (or the median
//! time of a call) of all three and the ratios, as min/median/max over interleaved rounds. The first raw server sends a
//! buffer that stays in the cache; the second copies the rows of the ids from a table, one by one.

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

/// Answers each request, whose first 12 bytes are its size, the width of a row and whether to look the rows up: the rows of
/// its ids, copied one by one from a table in memory, or as many bytes from a buffer that stays in the cache.
fn serve_raw() {
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
                table.resize(ROWS * width, 1);
                for (row, id) in rows.chunks_exact_mut(width).zip(ids.chunks_exact(4)) {
                    let id = u32::from_le_bytes(id.try_into().unwrap()) as usize;
                    row.copy_from_slice(&table[id * width..(id + 1) * width]);
                }
            }
            stream.write_all(&rows).unwrap();
        }
    }
}

/// Random ids, other ones each time.
fn random_ids(n: usize) -> impl FnMut() -> Vec<u64> {
    let mut state = 12345u64;
    move || {
        let next = |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % ROWS as u64
        };
        (0..n).map(next).collect()
    }
}

fn raw_calls(stream: &mut TcpStream, ids: usize, dim: usize, look_up: bool, calls: usize) -> Vec<f64> {
    let mut random = random_ids(ids);
    let (mut request, mut rows) = (Vec::new(), vec![0u8; ids * dim * 4]);
    let call = |_| {
        let ids = random();
        let start = Instant::now();
        request.clear();
        for word in [12 + ids.len() * 4, dim * 4, usize::from(look_up)] {
            request.extend_from_slice(&(word as u32).to_le_bytes());
        }
        ids.iter().for_each(|&id| request.extend_from_slice(&(id as u32).to_le_bytes()));
        stream.write_all(&request).unwrap();
        stream.read_exact(&mut rows).unwrap();
        start.elapsed().as_secs_f64()
    };
    (0..calls).map(call).collect()
}

fn our_calls(runtime: &tokio::runtime::Runtime, store: &dyn Store, ids: usize, calls: usize) -> Vec<f64> {
    let mut random = random_ids(ids);
    let queries: Vec<Vec<u64>> = (0..calls).map(|_| random()).collect();
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
    println!("   ids  dim pieces          lookup        raw TCP  ratio min/median/max       raw, rows looked up  ratio min/median/max");
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
            let (mut ours, mut raw, mut naive) = (Vec::new(), Vec::new(), Vec::new());
            // The first round warms up.
            for round in 0..=rounds {
                let now = [
                    median(raw_calls(&mut stream, ids, dim, false, calls)).1,
                    median(raw_calls(&mut stream, ids, dim, true, calls)).1,
                    median(our_calls(&runtime, &*store, ids, calls)).1,
                ];
                if round > 0 {
                    raw.push(now[0]);
                    naive.push(now[1]);
                    ours.push(now[2]);
                }
            }
            let show = |v: &[f64]| {
                let t = median(v.to_vec()).1;
                if ids > 100 { format!("{:.2} Mrows/s", ids as f64 / t / 1e6) } else { format!("{:.1} us", t * 1e6) }
            };
            let ratio = |v: &[f64]| {
                let (min, mid, max) = median(v.iter().zip(&ours).map(|(v, o)| v / o).collect());
                format!("{min:.2} / {mid:.2} / {max:.2}")
            };
            let (o, r, n) = (show(&ours), show(&raw), show(&naive));
            println!("{ids:>6} {dim:>4} {pieces:>6}  {o:>14} {r:>14}  {}  {n:>24}  {}", ratio(&raw), ratio(&naive));
        }
        drop(store);
        server.kill().unwrap();
        raw.kill().unwrap();
        _ = (server.wait(), raw.wait());
    }
}
