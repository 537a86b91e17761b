//! Bags pooled by a pserver, which is a process of its own on loopback, beside the same bags whose rows come to the worker.
//!
//!     cargo bench --bench bags [-- --rounds N] [--bags 1000] [--ids 26] [--dim 64] [--store int8]
//!
//! It prints for each way the median run of a model of one `RemoteLookupBag` and the CPU time of worker and server together, then
//! their ratios as min / median / max over rounds that take turns: above 1 pooling by the server is better.

mod support;

use graphtool::exec::{Options, Session};
use graphtool::ir::parse_model;
use graphtool::plan::{FORMAT_VERSION, Manifest, Sharding, StoreDtype, TableLayout};
use graphtool::store::{self, ConnectOptions, LookupFuture, Query, ServeOptions, Stats, Store, Table};
use graphtool::tensor::Tensor;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use support::{cpu, spawn, spread};

const ROWS: usize = 1_000_000;

/// A store that gives rows alone.
#[derive(Debug)]
struct Rows(Arc<dyn Store>);

impl Store for Rows {
    fn tables(&self) -> &[Table] {
        self.0.tables()
    }

    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
        self.0.lookup(queries)
    }

    fn stats(&self) -> Stats {
        self.0.stats()
    }
}

fn deploy(dir: &Path, dim: usize, store: Option<StoreDtype>) -> Manifest {
    let values = Tensor::new([ROWS, dim], (0..ROWS * dim).map(|i| i as f32 * 1e-6).collect()).unwrap();
    let layout = TableLayout { name: "T".into(), sharding: Sharding::Table, shards: vec![0], starts: None, store };
    let tables = vec![store::write_table(dir, "T", &values, &layout).unwrap()];
    let (plan_id, fingerprint, files, dense_inputs) = (String::new(), "graph".into(), Default::default(), Vec::new());
    let mut manifest =
        Manifest { format_version: FORMAT_VERSION, plan_id, fingerprint, shards: 1, replicas: 1, files, tables, dense_inputs };
    manifest.seal();
    std::fs::write(dir.join("manifest.json"), manifest.print()).unwrap();
    manifest
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|a| a == "serve") {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        println!("{}", listener.local_addr().unwrap());
        store::serve(listener, Path::new(&args[at + 1]), ServeOptions::default(), std::future::pending()).unwrap();
        return;
    }
    let option = |name: &str, default: usize| -> usize {
        args.iter().position(|a| a == name).map_or(default, |i| args[i + 1].parse().expect("a number"))
    };
    let (rounds, bags, ids, dim) = (option("--rounds", 15), option("--bags", 1000), option("--ids", 26), option("--dim", 64));
    // Runs of a round.
    let runs = (1_600_000 / (bags * ids).max(1)).clamp(60, 3000);
    let stored = args.iter().position(|a| a == "--store").and_then(|i| StoreDtype::from_name(&args[i + 1]));
    let dir = tempfile::tempdir().unwrap();
    let manifest = Arc::new(deploy(dir.path(), dim, stored));
    let (server, endpoint) = spawn(&["serve", dir.path().to_str().unwrap()]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = runtime.block_on(store::connect(manifest, &[endpoint], ConnectOptions::default())).unwrap();
    let text = format!(
        "model ir_version=8 opset=[\"\"=18, \"graphtool\"=1]\ngraph g(ids: int64[n], offsets: int64[b]) -> (y) {{\n  \
         y = graphtool::RemoteLookupBag(ids, offsets) {{tables=[\"T\"], rows=[{ROWS}], dtypes=[1], row_ranks=[1], row_dims=[{dim}], negative=[1]}}\n}}\n"
    );
    let model = parse_model(&text).unwrap();
    let session = |store| {
        Session::new(&model, Options { store: Some(store), runtime: Some(runtime.handle().clone()), ..Options::default() }).unwrap()
    };
    let sessions = [session(store.clone()), session(Arc::new(Rows(store.clone())))];
    let offsets = Tensor::vector((0..bags).map(|b| (b * ids) as i64).collect::<Vec<_>>());
    let mut state = 12345u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % ROWS as u64) as i64
    };
    let used = || cpu(server.0.id()) + cpu(std::process::id());
    let mut rows: [Vec<(f64, f64, f64)>; 2] = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        let inputs: Vec<Tensor> = (0..runs).map(|_| Tensor::vector((0..bags * ids).map(|_| random()).collect::<Vec<_>>())).collect();
        let mut first = Vec::new();
        for (way, session) in sessions.iter().enumerate() {
            let (before, bytes, mut walls) = (used(), store.stats().bytes, Vec::new());
            for input in &inputs {
                let start = Instant::now();
                let out = session.run(vec![("ids".into(), input.clone().into()), ("offsets".into(), offsets.clone().into())]).unwrap();
                walls.push(start.elapsed().as_secs_f64());
                if walls.len() == 1 {
                    first.push(out[0].1.as_tensor().unwrap().bytes().unwrap().to_vec());
                }
            }
            let (used, bytes) = ((used() - before) / runs as f64, (store.stats().bytes - bytes) as f64 / runs as f64);
            // The first round warms up.
            if round > 0 {
                rows[way].push((spread(walls).1, used, bytes));
            }
        }
        assert!(first[0] == first[1], "the two ways differ");
    }
    for (name, rows) in ["pooled by the pserver", "pooled by the worker"].iter().zip(&rows) {
        let of = |f: fn(&(f64, f64, f64)) -> f64| spread(rows.iter().map(f).collect()).1;
        println!("{name}: {:.0} µs, {:.0} µs CPU, {:.0} bytes", of(|r| r.0) * 1e6, of(|r| r.1) * 1e6, of(|r| r.2));
    }
    for (name, of) in [("wall", (|r| r.0) as fn(&(f64, f64, f64)) -> f64), ("CPU", |r| r.1), ("bytes", |r| r.2)] {
        let ratios = rows[1].iter().zip(&rows[0]).map(|(rows, pooled)| of(rows) / of(pooled)).collect();
        let (min, median, max) = spread(ratios);
        println!("{name}, {bags} bags of {ids} ids, dim {dim}: {min:.2} / {median:.2} / {max:.2}");
    }
}
