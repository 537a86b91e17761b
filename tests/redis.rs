//! Rows in a Redis Cluster that this test starts: the contract of stores, jobs, failover, versions, and what is said of faults.
//! It needs redis-server, 7 or later, and fails without it.

#[path = "support/redis.rs"]
mod servers;
mod support;

use graphtool::plan::{Absent, Manifest, Sharding};
use graphtool::store::{self, Cached, Deduped, LoadOptions, Loaded, RedisOptions, RedisUrl, Store, StoreError};
use graphtool::tensor::DType;
use servers::{Cluster, Node, wait_for};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::contract::{contract, expected, keyed, keyed_contract, keyed_sources, query, sources};
use support::{deploy, source};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn options() -> RedisOptions {
    RedisOptions { connect_timeout: SECONDS(20), rpc_timeout: SECONDS(20), ..RedisOptions::default() }
}

async fn load(dir: &Path, url: &str, keep_versions: usize) -> Result<Loaded, StoreError> {
    let options = LoadOptions { connect_timeout: SECONDS(20), rpc_timeout: SECONDS(20), keep_versions };
    store::load_redis(dir, &RedisUrl::parse(url).unwrap(), &options, &|_| ()).await
}

async fn connect(manifest: &Manifest, url: &str) -> Result<Arc<dyn Store>, StoreError> {
    store::connect_redis(manifest, &RedisUrl::parse(url).unwrap(), &options()).await
}

fn graphtool(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    command.current_dir(dir).args(line.split_whitespace()).env_remove("GRAPHTOOL_STORE");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ok(dir: &Path, line: &str) -> String {
    let out = graphtool(dir, line).output().unwrap();
    assert!(out.status.success(), "{line}: {}", text(&out.stderr));
    text(&out.stdout)
}

/// The one line that a call ends with, and its exit code.
fn fails(dir: &Path, line: &str) -> (i32, String) {
    let Output { status, stderr, stdout } = graphtool(dir, line).output().unwrap();
    let error = text(&stderr);
    assert!(stdout.is_empty() && error.lines().count() == 1, "{line}: {error}");
    (status.code().unwrap(), error.trim_end().trim_start_matches("error: ").to_owned())
}

/// A deployment of the model of clicks, and the end of a line that runs it.
fn clicks(dir: &Path) -> String {
    let model = root().join("models/widedeep_ts11/model.onnx");
    ok(dir, &format!("rewrite {} -o w.dist --min-bytes 0 --shards 3", model.display()));
    format!("--input {} --bind dense=I1..I5 --bind sparse=C1..C4 --label click", root().join("models/clicks.csv").display())
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_the_contract() {
    let (cluster, alone) = (Cluster::start(3, 0, &[]), Node::start(&[]));
    for url in [cluster.url("t"), format!("redis://127.0.0.1:{}/t", alone.port)] {
        let dir = tempfile::tempdir().unwrap();
        let sources = sources();
        let manifest = deploy(dir.path(), &sources, 5);
        let loaded = load(dir.path(), &url, 9).await.unwrap();
        assert_eq!((loaded.tables, loaded.before, loaded.plan_id.as_str()), (sources.len(), 0, manifest.plan_id.as_str()));
        let store = connect(&manifest, &url).await.unwrap();
        contract(&*store, &sources).await;
        contract(&Cached::new(store.clone(), &manifest, 20_000).unwrap(), &sources).await;
        contract(&Deduped::new(store), &sources).await;
        for pieces in 1..=2 {
            let dir = tempfile::tempdir().unwrap();
            let manifest = deploy(dir.path(), &keyed_sources(pieces), 3);
            load(dir.path(), &url, 9).await.unwrap();
            let store = connect(&manifest, &url).await.unwrap();
            keyed_contract(&*store).await;
            keyed_contract(&Cached::new(connect(&manifest, &url).await.unwrap(), &manifest, 1 << 20).unwrap()).await;
            // Every version is there still.
            assert!(store.lookup(vec![query(0, &[5])]).await.is_ok());
        }
    }
}

#[test]
fn a_job_has_the_answers_of_one_process_and_survives_the_loss_of_a_master() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let data = clicks(dir);
    // Narrow rows too, cut by columns.
    let model = root().join("models/widedeep_ts11/model.onnx");
    for store in ["f16", "int8"] {
        ok(dir, &format!("rewrite {} -o {store}.dist --min-bytes 0 --shards 2 --sharding column --store-dtype {store}", model.display()));
    }
    let mut cluster = Cluster::start(3, 1, &[]);
    let url = cluster.url("clicks");
    let bytes = |name: &str| std::fs::read(dir.join(name)).unwrap();
    for dist in ["f16.dist", "int8.dist", "w.dist"] {
        assert!(ok(dir, &format!("load {dist} --store {url} --keep-versions 5")).contains(&format!(" are in {url}; version ")));
        let shown = ok(dir, &format!("run {dist} {data} --output local.npz"));
        let metrics = |out: &str| out.lines().find(|l| l.starts_with("logloss")).unwrap().to_owned();
        for (line, out) in [
            (format!("run {dist} --store {url}"), "a.npz"),
            (format!("run {dist} --role worker --store cache:64KiB,dedup,{url}"), "b.npz"),
            (format!("launch {dist} --worker_num 2 --store {url}"), "c.npz"),
            (format!("launch {dist} --worker_num 1 --server_num 0 --store memory"), "d.npz"),
        ] {
            assert_eq!(metrics(&ok(dir, &format!("{line} {data} --output {out}"))), metrics(&shown), "{line}");
            assert!(bytes(out) == bytes("local.npz"), "{line}");
        }
    }
    let small = format!("{data} --batch-size 8");
    ok(dir, &format!("run w.dist {small} --output small.npz"));
    // A master dies, then another hangs; the replica of each takes its place.
    for (master, replica, dies) in [(1, 4, true), (2, 5, false)] {
        let mut job = graphtool(dir, &format!("run w.dist --role worker --store {url} {small} --output lost.npz --rpc-timeout 30"));
        let mut job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let parts = dir.join("lost.npz.parts");
        let size = |f: std::fs::DirEntry| f.metadata().map_or(0, |m| m.len());
        let done = || -> u64 { std::fs::read_dir(&parts).into_iter().flatten().flatten().map(size).sum() };
        wait_for("a tenth of the job", || done() > 20_000 || job.try_wait().unwrap().is_some());
        assert!(job.try_wait().unwrap().is_none(), "the job was over before a master was lost");
        if dies {
            cluster.nodes[master].kill()
        } else {
            cluster.nodes[master].signal("STOP")
        }
        let out = job.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        assert!(bytes("lost.npz") == bytes("small.npz"));
        assert!(cluster.nodes[replica].say(&["ROLE"]).starts_with("master"));
    }
}

/// A deployment that takes a while.
fn large(dir: &Path, rows: usize) -> Manifest {
    let mut keyed = keyed("keyed", Absent::Zero, 2);
    keyed.default_row = None;
    deploy(dir, &[source("large", DType::F32, &[rows, 32], Sharding::Row, 3), keyed], 3)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filling_that_is_killed_goes_on_where_it_was() {
    const ROWS: usize = 300_000;
    let tmp = tempfile::tempdir().unwrap();
    let manifest = large(&tmp.path().join("l.dist"), ROWS);
    let cluster = Cluster::start(3, 0, &[]);
    let url = cluster.url("big");
    let mut filling = graphtool(tmp.path(), &format!("load l.dist --store {url}")).stdout(Stdio::piped()).spawn().unwrap();
    let progress = format!("big:{}:progress", manifest.plan_id);
    let there = || cluster.say(&progress, &["HGET", &progress, "0"]).split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    wait_for("two batches", || there() > 40_000);
    filling.kill().unwrap();
    filling.wait().unwrap();
    let before = there();
    assert!((40_000..ROWS as u64).contains(&before), "{before} rows were there when it was killed");
    let error = connect(&manifest, &url).await.unwrap_err().to_string();
    let half = format!("{url} refused: version {} is filled in part only; fill it by: graphtool load DIR --store URL", manifest.plan_id);
    assert_eq!(error, half);
    cluster.nodes.iter().for_each(|n| assert_eq!(n.say(&["CONFIG", "RESETSTAT"]), "OK"));
    let said = ok(tmp.path(), &format!("load l.dist --store {url}"));
    assert!(said.contains(&format!("{} were there", before)), "{said}");
    // As the servers see it: a command for each bucket of each batch that was left, and for the number of keys in each.
    let calls = |n: &Node| {
        n.say(&["INFO", "commandstats"]).lines().find_map(|l| l.strip_prefix("cmdstat_hset:calls=")?.split(',').next()?.parse::<u64>().ok())
    };
    let calls: u64 = cluster.nodes.iter().filter_map(calls).sum();
    let batches = (ROWS as u64 - before).div_ceil((4 << 20) / 132);
    assert!(calls > 256 && calls < (batches + 2) * 260, "{calls} calls for {batches} batches");
    let store = connect(&manifest, &url).await.unwrap();
    let table = source("large", DType::F32, &[ROWS, 32], Sharding::Row, 3).values;
    let ids: Vec<u64> = (0..ROWS as u64).rev().collect();
    assert!(store.lookup(vec![query(0, &ids)]).await.unwrap() == [expected(&table, &ids)]);
    // Once more: nothing is sent; and what is lost is found and sent again.
    assert_eq!(load(&tmp.path().join("l.dist"), &url, 0).await.unwrap().before, ROWS as u64 + 3);
    let keys: Vec<String> =
        cluster.nodes.iter().flat_map(|n| n.say(&["KEYS", "big:*:0"]).lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    assert_eq!(keys.len(), 256);
    assert_eq!(cluster.say(&keys[7], &["DEL", &keys[7]]), "1");
    let error = store.lookup(vec![query(0, &ids)]).await.unwrap_err().to_string();
    let lost = error.starts_with(&format!("{url}: table \"large\": row "))
        && error.ends_with(" is lost, or was evicted; fill it again by: graphtool load DIR --store URL");
    assert!(lost, "{error}");
    let again = load(&tmp.path().join("l.dist"), &url, 0).await.unwrap();
    assert!((1_000..1_400).contains(&(ROWS as u64 + 3 - again.before)), "{again:?}");
    assert!(store.lookup(vec![query(0, &ids)]).await.unwrap() == [expected(&table, &ids)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_is_filled_while_workers_run_on_the_old_one() {
    let tmp = tempfile::tempdir().unwrap();
    let (old, new) = (tmp.path().join("old"), tmp.path().join("new"));
    let (first, second) = (large(&old, 3000), large(&new, 4000));
    let cluster = Cluster::start(3, 0, &[]);
    let url = cluster.url("v");
    load(&old, &url, 0).await.unwrap();
    let on_old = connect(&first, &url).await.unwrap();
    let table = source("large", DType::F32, &[4000, 32], Sharding::Row, 3).values;
    let ids: Vec<u64> = (0..3000).collect();
    let asking = async {
        for _ in 0..20 {
            assert!(on_old.lookup(vec![query(0, &ids)]).await.unwrap() == [expected(&table, &ids)]);
        }
    };
    let (loaded, ()) = futures::join!(load(&new, &url, 1), asking);
    assert_eq!(loaded.unwrap().removed, [""; 0]);
    let current = || cluster.say("v:current", &["GET", "v:current"]);
    assert_eq!(current(), second.plan_id);
    let on_new = connect(&second, &url).await.unwrap();
    assert!(on_new.lookup(vec![query(0, &[3999, 0])]).await.unwrap() == [expected(&table, &[3999, 0])]);
    assert!(connect(&first, &url).await.is_ok());
    // Nobody is to run on the old one any more.
    assert_eq!(load(&new, &url, 0).await.unwrap().removed, [first.plan_id.clone()]);
    for (table, what) in [(0, "row 1"), (1, "a bucket of its keys")] {
        let error = on_old.lookup(vec![query(table, &[1])]).await.unwrap_err().to_string();
        let gone = format!("{what} is gone: version {} was removed, {} is current; fill it again by: ", first.plan_id, second.plan_id);
        assert!(error.contains(&gone), "{error}");
    }
    let error = connect(&first, &url).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("refused: version {} is not there, {} is current; fill it by: ", first.plan_id, second.plan_id)),
        "{error}"
    );
    let left: usize = cluster.nodes.iter().map(|n| n.say(&["KEYS", &format!("v:{}:*", first.plan_id)]).len()).sum();
    assert_eq!(left, 0);
}

#[test]
fn faults_are_one_line_without_the_password() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let data = clicks(dir);
    let alone = Node::start(&["--requirepass", "sesame"]);
    let at = |scheme: &str, login: &str| format!("{scheme}://{login}127.0.0.1:{}/t", alone.port);
    let (good, shown) = (at("redis", ":sesame@"), at("redis", ":***@"));
    let wrong = |line: &str, code: i32, why: &str| {
        let (exit, error) = fails(dir, line);
        assert!(exit == code && error.starts_with(why), "{line}: {exit} {error}");
        assert!(!error.contains("sesame") && !error.contains("wrong@"), "{error}");
    };
    wrong(&format!("load w.dist --store {}", at("redis", ":wrong@")), 1, &format!("{shown} refused: WRONGPASS "));
    wrong(&format!("load w.dist --store {}", at("redis", "")), 1, &format!("{} refused: NOAUTH ", at("redis", "")));
    let cluster = at("redis+cluster", ":***@");
    let mode =
        "ERR This instance has cluster support disabled: the server is not in cluster mode: take redis:// in place of redis+cluster://";
    wrong(&format!("load w.dist --store {}", at("redis+cluster", ":sesame@")), 1, &format!("{cluster} refused: {mode}"));
    let tls = format!("load w.dist --connect-timeout 1 --store {}", at("rediss", ":sesame@"));
    wrong(&tls, 1, &format!("{} is unavailable: no answer to a handshake of TLS", at("rediss", ":***@")));
    let fill = format!("fill it by: graphtool load w.dist --store {shown}");
    let (code, error) = fails(dir, &format!("run w.dist {data} --store {good}"));
    assert!(code == 1 && error.starts_with(&format!("{shown} refused: version ")) && error.ends_with(&fill), "{error}");
    for (line, why) in [
        ("load w.dist --store shards".to_owned(), "--store: load fills redis:// and redis+cluster://, found another store"),
        (format!("load w.dist --store dedup,{good}"), "--store: load takes the address alone, found a chain of stores"),
        (format!("run w.dist {data} --cache 1KiB --store {good}"), "--cache stands for --store cache:SIZE,…; give one of them"),
        (format!("run w.dist {data} --servers h:1 --store {good}"), "--servers stands for --store pserver://…; give one of them"),
        (format!("run w.dist --role pserver --store {good}"), "--store is for a run in this process or a worker"),
        (format!("launch w.dist {data} --server_num 1 --store {good}"), "--server_num 1 starts pservers, whose rows --store does not take"),
        (format!("run w.dist {data} --store redis://:sesame@h:x/t"), "--store: redis://: \"h:x\" is no HOST:PORT"),
    ] {
        wrong(&line, 2, why);
    }
    // The variable stands for the flag; children have it too.
    ok(dir, &format!("run w.dist {data} --output local.npz"));
    let with = |line: &str| graphtool(dir, line).env("GRAPHTOOL_STORE", &good).output().unwrap();
    for line in ["load w.dist".to_owned(), format!("launch w.dist {data} --output l.npz"), format!("lookup w.dist {data}")] {
        let out = with(&line);
        let refused = line.starts_with("lookup");
        assert!(out.status.success() || refused, "{line}: {}", text(&out.stderr));
    }
    assert!(std::fs::read(dir.join("l.npz")).unwrap() == std::fs::read(dir.join("local.npz")).unwrap());
    // A server that hangs is told of in time, and is no default row unless that is wanted.
    alone.signal("STOP");
    let started = Instant::now();
    wrong(&format!("run w.dist {data} --connect-timeout 2 --rpc-timeout 2 --store {good}"), 1, &shown);
    assert!(started.elapsed() < SECONDS(30));
    alone.signal("CONT");
    assert_eq!(alone.say(&["PING"]), "-NOAUTH Authentication required.");
    // A server without memory.
    let full = Node::start(&["--maxmemory", "1mb"]);
    let url = format!("redis://127.0.0.1:{}/t", full.port);
    let why = "OOM command not allowed when used memory > 'maxmemory': raise maxmemory, or remove an older version";
    assert_eq!(fails(dir, &format!("load w.dist --store {url}")), (1, format!("{url} refused: {why}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_lost_is_unavailable_and_comes_back() {
    let tmp = tempfile::tempdir().unwrap();
    let manifest = deploy(tmp.path(), &[source("T", DType::F32, &[1000, 4], Sharding::Row, 2)], 2);
    let node = Node::start(&[]);
    let url = format!("redis://127.0.0.1:{}/t", node.port);
    load(tmp.path(), &url, 0).await.unwrap();
    let short = RedisOptions { rpc_timeout: Duration::from_millis(600), ..options() };
    let store = store::connect_redis(&manifest, &RedisUrl::parse(&url).unwrap(), &short).await.unwrap();
    let fallback = store::Fallback::new(store.clone(), &manifest).unwrap();
    let good = store.lookup(vec![query(0, &[7, 7])]).await.unwrap();
    node.signal("STOP");
    let error = store.lookup(vec![query(0, &[7])]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. } | StoreError::Timeout { .. }), "{error}");
    assert!(error.to_string().starts_with(&url), "{error}");
    let rows = fallback.lookup(vec![query(0, &[7])]).await.unwrap();
    assert_eq!((rows[0].as_slice::<f32>().unwrap(), fallback.defaulted()), (&[0f32; 4][..], 1));
    node.signal("CONT");
    assert_eq!(store.lookup(vec![query(0, &[7, 7])]).await.unwrap(), good);
    assert!(store.stats().retries > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_within_tls_are_those_without() {
    let file = |name: &str| -> PathBuf { root().join("tests/tls").join(name) };
    let path = |name: &str| file(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (path("here.pem"), path("here.key"), path("ca.pem"));
    let tls = ["--port", "0", "--tls-port", "PORT", "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let node = Node::start(&[&tls[..], &["--requirepass", "sesame"]].concat());
    let tmp = tempfile::tempdir().unwrap();
    let sources = [source("T", DType::F32, &[1000, 4], Sharding::Row, 2)];
    let manifest = deploy(tmp.path(), &sources, 2);
    let url = |more: &str| format!("rediss://:sesame@localhost:{}/t?{more}", node.port);
    let whole = url(&format!("ca={ca}&cert={cert}&key={key}"));
    load(tmp.path(), &whole, 0).await.unwrap();
    let store = connect(&manifest, &whole).await.unwrap();
    assert_eq!(store.lookup(vec![query(0, &[9, 1])]).await.unwrap(), [expected(&sources[0].values, &[9, 1])]);
    let error = connect(&manifest, &url(&format!("ca={}&cert={cert}&key={key}", path("other-ca.pem")))).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }) && error.to_string().contains("certificate"), "{error}");
    let error = connect(&manifest, &url("ca=/no/such/file")).await.unwrap_err().to_string();
    assert!(error.starts_with("/no/such/file: "), "{error}");
}
