//! Shards on several pservers: whichever is lost is not missed, until none is left.

mod support;

use graphtool::plan::{Manifest, Sharding};
use graphtool::store::{self, ConnectOptions, Dedup, ServeOptions, StoreError};
use graphtool::tensor::DType;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::contract::{contract, expected, options, proxy, query, sources};
use support::{Server, Source, deploy, endpoints, source};

/// As [`deploy`], with each shard on `replicas` servers.
fn replicated(dir: &std::path::Path, sources: &[Source], shards: u32, replicas: u32) -> Arc<Manifest> {
    let mut manifest = Manifest { replicas, ..deploy(dir, sources, shards) };
    manifest.seal();
    std::fs::write(dir.join("manifest.json"), manifest.print()).unwrap();
    Arc::new(manifest)
}

#[tokio::test]
async fn replicas_keep_the_contract_whichever_server_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources();
    let manifest = replicated(dir.path(), &sources, 5, 2);
    for servers in 1..=3 {
        let running = Server::start_all(dir.path(), servers, ServeOptions::default());
        let store = store::connect(manifest.clone(), &endpoints(&running), options()).await.unwrap();
        contract(&*store, &sources).await;
    }
    for gone in 0..3 {
        let mut running = Server::start_all(dir.path(), 3, ServeOptions::default());
        let endpoints = endpoints(&running);
        let store = store::connect(manifest.clone(), &endpoints, options()).await.unwrap();
        store.lookup(vec![query(0, &[1])]).await.unwrap();
        running.remove(gone).stop().unwrap();
        contract(&*store, &sources).await;
        // Nor is it missed at the start.
        let short = ConnectOptions { connect_timeout: Duration::from_millis(500), ..options() };
        contract(&*store::connect(manifest.clone(), &endpoints, short).await.unwrap(), &sources).await;
    }
}

#[tokio::test]
async fn each_shard_is_on_as_many_servers_as_there_are_replicas() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = replicated(dir.path(), &[source("T", DType::F32, &[100, 4], Sharding::Row, 5)], 5, 2);
    let running = Server::start_all(dir.path(), 3, ServeOptions::default());
    let mut held = Vec::new();
    for (server, endpoint) in endpoints(&running).iter().enumerate() {
        let info = store::server_info(endpoint, &options()).await.unwrap();
        assert!((0..5).all(|s| info.shards.contains(&s) == manifest.placement(3).holds(server, manifest.placement(3).group(s))));
        held.extend(info.shards);
    }
    held.sort_unstable();
    assert_eq!(held, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
}

#[tokio::test]
async fn without_any_replica_the_shards_and_servers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = replicated(dir.path(), &[source("T", DType::F32, &[100, 4], Sharding::Row, 3)], 3, 2);
    let mut running = Server::start_all(dir.path(), 3, ServeOptions::default());
    let endpoints = endpoints(&running);
    let short = ConnectOptions { rpc_timeout: Duration::from_millis(400), ..options() };
    let store = store::connect(manifest, &endpoints, short).await.unwrap();
    // Group 1 is on servers 1 and 2.
    running.pop().unwrap().stop().unwrap();
    running.pop().unwrap().stop().unwrap();
    let error = store.lookup(vec![query(0, &[1])]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    let (a, b) = (&endpoints[1], &endpoints[2]);
    let text = error.to_string();
    assert!(text.starts_with(&format!("pserver {a}, {b} is unavailable: no replica of shards 1 is left: {a}: ")), "{text}");
    // The rows of the others are there.
    store.lookup(vec![query(0, &[0, 2, 3])]).await.unwrap();
}

#[tokio::test]
async fn a_replica_that_hangs_costs_one_wait_and_the_next_lookup_asks_another() {
    let dir = tempfile::tempdir().unwrap();
    let table = source("T", DType::F32, &[100, 4], Sharding::Row, 2);
    let manifest = replicated(dir.path(), std::slice::from_ref(&table), 2, 2);
    let running = Server::start_all(dir.path(), 2, ServeOptions::default());
    let (endpoint, stalled) = proxy(running[0].endpoint.clone());
    let endpoints = [endpoint, running[1].endpoint.clone()];
    let short = ConnectOptions { rpc_timeout: Duration::from_secs(2), dedup: Dedup::Never, ..options() };
    let store = store::connect(manifest, &endpoints, short).await.unwrap();
    let ids: Vec<u64> = (0..100).collect();
    assert_eq!(store.lookup(vec![query(0, &ids)]).await.unwrap(), [expected(&table.values, &ids)]);
    stalled.store(true, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(store.lookup(vec![query(0, &ids)]).await.unwrap(), [expected(&table.values, &ids)]);
    }
    // At most one attempt of each group hung; from then on nobody asked that server.
    assert!((1..=2).contains(&store.stats().retries), "{}", store.stats().retries);
}

#[tokio::test]
async fn replicas_share_the_load() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = replicated(dir.path(), &[source("T", DType::F32, &[100, 4], Sharding::Table, 1)], 1, 3);
    let running = Server::start_all(dir.path(), 3, ServeOptions::default());
    let store = store::connect(manifest, &endpoints(&running), options()).await.unwrap();
    for i in 0..30 {
        store.lookup(vec![query(0, &[i])]).await.unwrap();
    }
    drop(store);
    let lookups: Vec<u64> = running.into_iter().map(|s| s.stop().unwrap().lookups).collect();
    assert_eq!(lookups, [10, 10, 10]);
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn graphtool(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    command.current_dir(dir).stdin(Stdio::null()).args(args);
    command
}

fn ok(out: Output) {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// A pserver, killed when it is dropped.
struct Pserver {
    child: Child,
    endpoint: String,
}

impl Pserver {
    fn start(dir: &Path, index: usize, of: usize) -> Self {
        let list = vec!["127.0.0.1:0"; of].join(",");
        let index = index.to_string();
        let args = ["run", "w.dist", "--role", "pserver", "--servers", &list, "--index", &index, "--port", "0", "--threads", "1"];
        let mut child = graphtool(dir, &args).stdout(Stdio::piped()).spawn().expect("a pserver");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        let endpoint = line.trim().rsplit(' ').next().expect("an address").to_owned();
        Self { child, endpoint }
    }
}

impl Drop for Pserver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_pserver_that_is_killed_is_not_missed_and_the_last_replica_is() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let wide = models().join("widedeep_ts11/model.onnx");
    let log = std::fs::read_to_string(models().join("clicks.csv")).expect("the log");
    std::fs::write(dir.join("log.csv"), log.lines().take(1001).collect::<Vec<_>>().join("\n") + "\n").expect("written");
    let job = |model: &str, out: &str, more: &[&str]| {
        let mut args = vec!["run", model, "--input", "log.csv", "--output", out, "--batch-size", "4"];
        args.extend(["--bind", "dense=I1..I5", "--bind", "sparse=C1..C4"]);
        args.extend(more);
        let mut command = graphtool(dir, &args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let wide = wide.to_str().expect("a path");
    ok(job(wide, "local.npz", &[]).output().expect("a run"));
    let expected = std::fs::read(dir.join("local.npz")).expect("outputs");
    let cut = ["rewrite", wide, "-o", "w.dist", "--shards", "4", "--sharding", "row", "--min-bytes", "0", "--replicas", "2"];
    ok(graphtool(dir, &cut).output().expect("a rewrite"));
    let mut servers: Vec<Pserver> = (0..3).map(|i| Pserver::start(dir, i, 3)).collect();
    let list = servers.iter().map(|s| s.endpoint.clone()).collect::<Vec<_>>().join(",");
    let worker = ["--role", "worker", "--servers", &list, "--rpc-timeout", "2", "--connect-timeout", "2"];
    ok(job("w.dist", "all.npz", &worker).output().expect("a run"));
    assert!(std::fs::read(dir.join("all.npz")).expect("outputs") == expected);
    // Killed while the job runs, and gone before it starts: the answers are the same.
    let running = job("w.dist", "killed.npz", &worker).spawn().expect("a worker");
    drop(servers.remove(1));
    ok(running.wait_with_output().expect("it ends"));
    assert!(std::fs::read(dir.join("killed.npz")).expect("outputs") == expected);
    ok(job("w.dist", "gone.npz", &worker).output().expect("a run"));
    assert!(std::fs::read(dir.join("gone.npz")).expect("outputs") == expected);
    // Servers 1 and 2 were those of one group of shards.
    let lost = servers.remove(1).endpoint.clone();
    let out = job("w.dist", "none.npz", &worker).output().expect("a run");
    let error = String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or_default().to_owned();
    assert_eq!(out.status.code(), Some(1), "{error}");
    let first = list.split(',').nth(1).expect("three endpoints");
    assert!(error.contains(&format!("pserver {first}, {lost} is unavailable: no replica of shards 1 is there: ")), "{error}");
    assert!(!dir.join("none.npz").exists());
}
