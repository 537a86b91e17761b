//! The lookup path beside blocking TCP that moves the same bytes and beside Redis, each server a process of its own on loopback.
//!
//!     cargo bench --bench lookup [-- --rounds N] [--readme benches/README.md] [--dims 16,64] [--pieces 1,4] [--ids 26000,1000,26] [--keyed yes] [--tcp yes]
//!
//! For each number of ids and width it prints the median call of all and their time divided by ours, as min / median / max over
//! interleaved rounds: above 1 we are faster. *buffer* is a raw server that sends as many bytes from one place; *rows* is
//! one that copies the rows of the ids from a table, one by one; *Redis* answers `MGET`, if `redis-server` is
//! installed. CPU is that of client and server together. `--readme` writes the table between the marks of that file.
//!
//!     cargo bench --bench lookup -- curves benches/lookup.svg
//!
//! draws how rows per second change with rows, servers, tables and the batch.

#[path = "lookup/curves.rs"]
mod curves;
#[path = "lookup/raw.rs"]
mod raw;
#[path = "lookup/redis.rs"]
mod redis;
mod support;

use graphtool::plan::{Absent, FORMAT_VERSION, Manifest, Sharding, TableEntry, TableLayout};
use graphtool::store::{self, ConnectOptions, Query, ServeOptions, Store};
use graphtool::tensor::Tensor;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use support::{Server, cpu, spawn, spread};

const ROWS: usize = 1_000_000;

fn serve(dir: &str, servers: &str, index: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let options = ServeOptions { servers: servers.parse().unwrap(), index: index.parse().unwrap(), ..ServeOptions::default() };
    store::serve(listener, Path::new(dir), options, std::future::pending()).unwrap();
}

/// Random ids, other ones each time.
fn random_ids(n: usize, rows: usize) -> impl FnMut() -> Vec<u64> {
    let mut state = 12345u64;
    move || {
        let next = |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % rows as u64
        };
        (0..n).map(next).collect()
    }
}

/// The median of calls in seconds, and CPU seconds of both sides per call.
#[derive(Clone, Copy)]
struct Round {
    wall: f64,
    cpu: f64,
}

/// Times `call` on ids below `rows` that it has not seen.
async fn round(servers: Vec<u32>, (ids, rows): (usize, usize), calls: usize, mut call: impl AsyncFnMut(Vec<u64>)) -> Round {
    let mut random = random_ids(ids, rows);
    let all: Vec<Vec<u64>> = (0..calls).map(|_| random()).collect();
    let used = || servers.iter().copied().chain([std::process::id()]).map(cpu).sum::<f64>();
    let before = used();
    let mut times = Vec::with_capacity(calls);
    for ids in all {
        let start = Instant::now();
        call(ids).await;
        times.push(start.elapsed().as_secs_f64());
    }
    Round { cpu: (used() - before) / calls as f64, wall: spread(times).1 }
}

/// Calls of a round.
fn calls(ids: usize) -> usize {
    (400_000 / ids).clamp(20, 3000)
}

/// The medians over rounds, after one that warms up.
async fn median_round(servers: Vec<u32>, ids: (usize, usize), rounds: usize, mut call: impl AsyncFnMut(Vec<u64>)) -> Round {
    let mut all = Vec::new();
    for _ in 0..=rounds {
        all.push(round(servers.clone(), ids, calls(ids.0), &mut call).await);
    }
    let median = |f: fn(&Round) -> f64| spread(all[1..].iter().map(f).collect()).1;
    Round { wall: median(|r| r.wall), cpu: median(|r| r.cpu) }
}

struct Options {
    rounds: usize,
    readme: Option<String>,
    dims: Vec<usize>,
    pieces: Vec<usize>,
    ids: Vec<usize>,
    keyed: bool,
    tcp: bool,
}

fn options(args: &[String]) -> Options {
    let mut o =
        Options { rounds: 9, readme: None, dims: vec![16, 64], pieces: vec![1, 4], ids: vec![26_000, 1_000, 26], keyed: false, tcp: false };
    let list = |text: &str| text.split(',').map(|n| n.parse().unwrap()).collect();
    for pair in args.chunks(2) {
        let [flag, value] = pair else { panic!("{pair:?} without a value") };
        match flag.as_str() {
            "--rounds" => o.rounds = value.parse().unwrap(),
            "--readme" => o.readme = Some(value.clone()),
            "--dims" => o.dims = list(value),
            "--pieces" => o.pieces = list(value),
            "--ids" => o.ids = list(value),
            "--keyed" => o.keyed = value == "yes",
            "--tcp" => o.tcp = value == "yes",
            other => panic!("unknown option {other}"),
        }
    }
    o
}

fn line(ids: usize, dim: usize, pieces: usize, rounds: &[Vec<Round>]) -> String {
    let median = |k: usize, f: fn(&Round) -> f64| spread(rounds.iter().map(|r| f(&r[k])).collect()).1;
    let ratio = |k: usize, f: fn(&Round) -> f64| {
        let (min, mid, max) = spread(rounds.iter().map(|r| f(&r[k]) / f(&r[0])).collect());
        format!("{min:.2} / **{mid:.2}** / {max:.2}")
    };
    let mut text =
        format!("| {ids} | {dim} | {pieces} | {:.0} µs | {:.0} ns |", median(0, |r| r.wall) * 1e6, median(0, |r| r.cpu) * 1e9 / ids as f64);
    for k in 1..4 {
        match rounds[0].get(k) {
            Some(_) => write!(text, " {} | {} |", ratio(k, |r| r.wall), ratio(k, |r| r.cpu)).unwrap(),
            None => text.push_str(" not installed | |"),
        }
    }
    text
}

/// A deployment of tables of `rows` rows, each in `pieces` pieces.
fn deploy(dir: &Path, tables: usize, rows: usize, dim: usize, pieces: usize) -> Manifest {
    // Zeros take no place on the disk; in memory they do.
    let values = Tensor::new([rows, dim], vec![0f32; rows * dim]).unwrap();
    let sharding = if pieces == 1 { Sharding::Table } else { Sharding::Row };
    let shards: Vec<u32> = (0..pieces as u32).collect();
    let table = |i: usize| {
        let layout = TableLayout { name: format!("T{i}"), sharding, shards: shards.clone(), starts: None, store: None };
        store::write_table(dir, &layout.name, &values, &layout).unwrap()
    };
    manifest(dir, (0..tables).map(table).collect(), pieces)
}

/// The key of row `id` where rows have keys.
fn key(id: u64) -> u64 {
    id.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A deployment of one table whose rows have keys.
fn deploy_keyed(dir: &Path, dim: usize, pieces: usize) -> Manifest {
    let mut keys: Vec<u64> = (0..ROWS as u64).map(key).collect();
    keys.sort_unstable();
    let shards = (0..pieces as u32).collect();
    let layout = TableLayout { name: "T0".into(), sharding: Sharding::Row, shards, starts: None, store: None };
    let table = store::write_keyed_table(dir, &layout, &[dim], &keys, &vec![1f32; ROWS * dim], Absent::Error).unwrap();
    manifest(dir, vec![table], pieces)
}

fn manifest(dir: &Path, tables: Vec<TableEntry>, pieces: usize) -> Manifest {
    let mut manifest = Manifest {
        format_version: FORMAT_VERSION,
        plan_id: String::new(),
        fingerprint: "graph".into(),
        shards: pieces as u32,
        replicas: 1,
        files: Default::default(),
        tables,
        dense_inputs: Vec::new(),
    };
    manifest.seal();
    std::fs::write(dir.join("manifest.json"), manifest.print()).unwrap();
    manifest
}

fn measure(o: &Options, dim: usize, pieces: usize, print: &mut dyn FnMut(String)) {
    let dir = tempfile::tempdir().unwrap();
    let manifest = Arc::new(if o.keyed { deploy_keyed(dir.path(), dim, pieces) } else { deploy(dir.path(), 1, ROWS, dim, pieces) });
    let (server, endpoint) = spawn(&["serve", dir.path().to_str().unwrap(), "1", "0"]);
    let (raw_server, raw_endpoint) = spawn(&["raw"]);
    let mut redis = redis::Redis::start(ROWS, dim);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store: Arc<dyn Store> =
        runtime.block_on(store::connect(manifest, &[endpoint], ConnectOptions { local: !o.tcp, ..ConnectOptions::default() })).unwrap();
    let mut raw = raw::Client::connect(&raw_endpoint);
    for &ids in &o.ids {
        let (calls, all) = (calls(ids), (ids, ROWS));
        let mut rounds = Vec::new();
        // The first round warms up.
        for n in 0..=o.rounds {
            // A task, as lookups are in a job.
            let (store, server) = (store.clone(), server.0.id());
            let keyed = o.keyed;
            let ours = async move |mut ids: Vec<u64>| {
                if keyed {
                    ids.iter_mut().for_each(|id| *id = key(*id));
                }
                let answer = store.lookup(vec![Query { table: 0, ids }]).await.unwrap();
                std::hint::black_box(answer);
            };
            let ours = runtime.block_on(runtime.spawn(round(vec![server], all, calls, ours))).unwrap();
            let buffer = runtime.block_on(round(vec![raw_server.0.id()], all, calls, async |ids| raw.call(&ids, dim, false)));
            let rows = runtime.block_on(round(vec![raw_server.0.id()], all, calls, async |ids| raw.call(&ids, dim, true)));
            let mut now = vec![ours, buffer, rows];
            if let Some(redis) = &mut redis {
                now.push(runtime.block_on(round(vec![redis.pid()], all, calls.min(400), async |ids| redis.call(&ids, dim))));
            }
            if n > 0 {
                rounds.push(now);
            }
        }
        print(line(ids, dim, pieces, &rounds));
    }
}

/// Puts `table` between the marks of a file.
fn put(path: &str, table: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    let (from, to) = ("<!-- lookup: begin -->\n", "<!-- lookup: end -->");
    let (before, rest) = text.split_once(from).unwrap_or_else(|| panic!("{path} has no mark {from}"));
    let (_, after) = rest.split_once(to).unwrap_or_else(|| panic!("{path} has no mark {to}"));
    std::fs::write(path, format!("{before}{from}{table}{to}{after}")).unwrap();
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", dir, servers, index] => return serve(dir, servers, index),
        ["raw"] => return raw::serve(ROWS),
        ["curves", path] => return curves::draw(path, 7),
        _ => {}
    }
    let o = options(&args);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut table = format!(
        "{} rounds, load {} before, {} cores\n\n",
        o.rounds,
        load.split(' ').next().unwrap_or("unknown"),
        std::thread::available_parallelism().map_or(1, |n| n.get())
    );
    table.push_str("| ids | dim | pieces | our call | our CPU per row | buffer, wall | CPU | rows, wall | CPU | Redis, wall | CPU |\n");
    table.push_str("|---|---|---|---|---|---|---|---|---|---|---|\n");
    print!("{table}");
    for &dim in &o.dims {
        for &pieces in &o.pieces {
            measure(&o, dim, pieces, &mut |line| {
                println!("{line}");
                table.push_str(&line);
                table.push('\n');
            });
        }
    }
    if let Some(readme) = &o.readme {
        put(readme, &table);
    }
}
