//! One contract, run by every store; and what pservers do when something is wrong.

mod support;

use graphtool::plan::{Absent, Manifest, Sharding};
use graphtool::store::{
    self, Cached, ConnectOptions, Counted, Dedup, Deduped, Fallback, Memory, ServeOptions, Shards, Store, StoreError, Timed, Verify,
};
use graphtool::tensor::{DType, Tensor};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::contract::{contract, expected, keyed, keyed_contract, keyed_sources, options, proxy, query, sources};
use support::{Server, Source, deploy, endpoints, source};

#[tokio::test]
async fn memory_keeps_the_contract() {
    let sources = sources();
    let mut memory = Memory::new();
    for s in &sources {
        memory.add(s.name, &s.values).unwrap();
    }
    contract(&memory, &sources).await;
}

#[tokio::test]
async fn local_shards_keep_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources();
    deploy(dir.path(), &sources, 5);
    contract(&*store::open_local(dir.path()).unwrap(), &sources).await;
}

#[tokio::test]
async fn shards_in_memory_and_what_stands_before_a_store_keep_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources();
    let manifest = deploy(dir.path(), &sources, 5);
    contract(&Memory::read(dir.path(), &manifest).unwrap(), &sources).await;
    let shards = store::open_local(dir.path()).unwrap();
    let deduped = Deduped::new(shards.clone());
    contract(&deduped, &sources).await;
    assert_eq!(deduped.lookup(vec![query(0, &[3, 1, 3, 3])]).await.unwrap(), [expected(&sources[0].values, &[3, 1, 3, 3])]);
    assert!(shards.stats().ids < deduped.stats().ids);
    contract(&Fallback::new(shards.clone(), &manifest).unwrap(), &sources).await;
    contract(&Timed::new(shards.clone(), Arc::default()), &sources).await;
    contract(&Counted::new(shards), &sources).await;
}

#[tokio::test]
async fn a_cache_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources();
    let manifest = deploy(dir.path(), &sources, 5);
    for capacity in [0, 5000, 20_000, 1 << 30] {
        let cached = Cached::new(store::open_local(dir.path()).unwrap(), &manifest, capacity).unwrap();
        contract(&cached, &sources).await;
        contract(&cached, &sources).await;
        let stats = cached.stats();
        assert_eq!(stats.cache_hits + stats.cache_misses, stats.ids);
        assert!(cached.bytes() <= capacity && (capacity == 0) == (stats.cache_hits == 0), "{stats:?} in {}", cached.bytes());
    }
}

#[tokio::test]
async fn a_cache_changes_no_answer_and_no_count_of_absent_ids() {
    let sources = [
        source("plain", DType::BF16, &[1000, 7], Sharding::Row, 3),
        keyed("zero", Absent::Zero, 2),
        keyed("default", Absent::Default, 2),
        source("columns", DType::F32, &[300, 12], Sharding::Column, 3),
    ];
    let dir = tempfile::tempdir().unwrap();
    let manifest = Arc::new(deploy(dir.path(), &sources, 3));
    let plain = store::open_local(dir.path()).unwrap();
    let running = Server::start_all(dir.path(), 2, ServeOptions::default());
    let remote = store::connect(manifest.clone(), &endpoints(&running), options()).await.unwrap();
    let cached = Cached::new(remote, &manifest, 6000).unwrap();
    let mut x = 7u64;
    let mut next = |below: u64| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The product of two makes small ids the frequent ones.
        let (a, b) = ((x >> 44) % below, (x >> 20) % below);
        a * b / below
    };
    for round in 0..300u64 {
        let mut queries = Vec::new();
        for (table, below) in [(0, 1000), (1, 12), (2, 12), (3, 300), (0, 1000)] {
            queries.push(query(table, &(0..round % 70).map(|_| next(below)).collect::<Vec<_>>()));
        }
        assert_eq!(cached.lookup(queries.clone()).await.unwrap(), plain.lookup(queries).await.unwrap(), "round {round}");
        assert_eq!(cached.stats().absent, plain.stats().absent, "round {round}");
    }
    let stats = cached.stats();
    assert_eq!((stats.lookups, stats.ids), (plain.stats().lookups, plain.stats().ids));
    assert!(stats.cache_hits > (stats.ids - stats.absent) / 4 && stats.unique_ids < stats.cache_misses, "{stats:?}");
    // Rows that are kept are not asked for again.
    let before = cached.stats().requests;
    for _ in 0..3 {
        cached.lookup(vec![query(1, &[5, 4, 5])]).await.unwrap();
    }
    assert!(cached.stats().requests <= before + 1);
}

#[tokio::test]
async fn pservers_keep_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources();
    let manifest = Arc::new(deploy(dir.path(), &sources, 5));
    for servers in 1..=3 {
        let running = Server::start_all(dir.path(), servers, ServeOptions::default());
        for dedup in [Dedup::Auto, Dedup::Always, Dedup::Never] {
            let store = store::connect(manifest.clone(), &endpoints(&running), ConnectOptions { dedup, ..options() }).await.unwrap();
            contract(&*store, &sources).await;
        }
    }
}

/// Connections by the Unix socket beside the port at `endpoint`, as the system lists them.
#[cfg(target_os = "linux")]
fn beside(endpoint: &str) -> usize {
    let name = format!("@{endpoint}");
    let all = std::fs::read_to_string("/proc/net/unix").unwrap();
    // That of the listener itself has another state.
    all.lines().filter(|l| l.ends_with(&name) && l.split_whitespace().nth(5) == Some("03")).count()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn pservers_of_this_machine_are_reached_beside_their_port() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources();
    let manifest = Arc::new(deploy(dir.path(), &sources, 5));
    let connect = async |endpoint: &str, local| {
        let options = ConnectOptions { local, ..options() };
        store::connect(manifest.clone(), &[endpoint.to_owned()], options).await.unwrap()
    };
    for (theirs, ours) in [(true, true), (true, false), (false, true)] {
        let server = Server::start(dir.path(), ServeOptions { local: theirs, ..ServeOptions::default() });
        let store = connect(&server.endpoint, ours).await;
        contract(&*store, &sources).await;
        assert_eq!(beside(&server.endpoint), usize::from(theirs && ours));
    }
    // A port that is open before its server is there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let start = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Server::on(listener, dir.path(), ServeOptions::default())
    };
    let (store, server) = tokio::join!(connect(&endpoint, true), start);
    contract(&*store, &sources).await;
    assert_eq!(beside(&endpoint), 1);
    drop(store);
    // What stands between the two is not passed by.
    let (between, _stalled) = proxy(server.endpoint.clone());
    let store = connect(&between, true).await;
    contract(&*store, &sources).await;
    assert_eq!(beside(&endpoint) + beside(&between), 0);
}

/// Answers of this machine's pservers lie in memory that both sides have, if it has room for them.
#[tokio::test]
async fn large_answers_are_the_rows_wherever_they_lie() {
    let (dir, sources) = (tempfile::tempdir().unwrap(), sources());
    let manifest = Arc::new(deploy(dir.path(), &sources, 5));
    let server = Server::start(dir.path(), ServeOptions::default());
    let options = ConnectOptions { dedup: Dedup::Never, ..options() };
    let store = store::connect(manifest.clone(), std::slice::from_ref(&server.endpoint), options).await.unwrap();
    let ids = |n: usize, table: usize| -> Vec<u64> {
        let rows = sources[table].values.shape()[0] as u64;
        (0..n as u64).map(|i| i * 7919 % rows).collect()
    };
    // Answers that nobody waits for: what becomes of their places is not known.
    for _ in 0..20 {
        let queries = (0..6).map(|t| query(t, &ids(9000, t))).collect();
        _ = tokio::time::timeout(Duration::from_micros(300), store.lookup(queries)).await;
    }
    // All that came before stays as it is.
    let mut all = Vec::new();
    for n in [90, 700, 8000, 40_000, 8000, 150_000, 700] {
        let queries: Vec<_> = (0..sources.len()).map(|t| query(t, &ids(n, t))).collect();
        all.push((n, store.lookup(queries).await.unwrap()));
        let alone = n % sources.len();
        assert_eq!(store.lookup(vec![query(alone, &ids(n, alone))]).await.unwrap()[0], expected(&sources[alone].values, &ids(n, alone)));
    }
    for (n, answers) in all {
        for (t, answer) in answers.iter().enumerate() {
            assert_eq!(*answer, expected(&sources[t].values, &ids(n, t)), "{n} rows of \"{}\"", sources[t].name);
        }
    }
}

#[tokio::test]
async fn many_absent_keys_come_with_rows_in_shared_memory() {
    let (dir, sources) = (tempfile::tempdir().unwrap(), keyed_sources(2));
    let manifest = Arc::new(deploy(dir.path(), &sources, 2));
    let server = Server::start(dir.path(), ServeOptions::default());
    let local = store::open_local(dir.path()).unwrap();
    for use_local in [true, false] {
        let options = ConnectOptions { local: use_local, dedup: Dedup::Never, ..options() };
        let store = store::connect(manifest.clone(), std::slice::from_ref(&server.endpoint), options).await.unwrap();
        for n in [50u64, 5000, 150_000] {
            let keys: Vec<u64> = (0..n).map(|i| i * 31 % 1000).collect();
            let queries = || vec![query(0, &keys), query(1, &keys)];
            assert_eq!(store.lookup(queries()).await.unwrap(), local.lookup(queries()).await.unwrap(), "{n} keys");
        }
        assert!(store.stats().absent > 1 << 16);
    }
}

#[tokio::test]
async fn pservers_with_small_limits_keep_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let sources = sources();
    let manifest = Arc::new(deploy(dir.path(), &sources, 5));
    for limits in [
        ServeOptions { max_ids: 7, ..ServeOptions::default() },
        ServeOptions { max_frame: 1500, ..ServeOptions::default() },
        ServeOptions { max_in_flight: 1, ..ServeOptions::default() },
    ] {
        let running = Server::start_all(dir.path(), 2, limits);
        let store = store::connect(manifest.clone(), &endpoints(&running), options()).await.unwrap();
        contract(&*store, &sources).await;
    }
    let running = Server::start_all(dir.path(), 2, ServeOptions::default());
    let store = store::connect(manifest.clone(), &endpoints(&running), ConnectOptions { max_frame: 1000, ..options() }).await.unwrap();
    contract(&*store, &sources).await;
}

#[tokio::test]
async fn absent_keys_follow_their_policy() {
    for pieces in 1..=3 {
        let sources = keyed_sources(pieces);
        let mut memory = Memory::new();
        for s in &sources {
            memory.add_keyed(s.name, s.keys.as_deref().unwrap(), &s.values, s.absent, s.default_row.as_deref()).unwrap();
        }
        keyed_contract(&memory).await;
        let dir = tempfile::tempdir().unwrap();
        let manifest = Arc::new(deploy(dir.path(), &sources, 3));
        keyed_contract(&*store::open_local(dir.path()).unwrap()).await;
        keyed_contract(&Memory::read(dir.path(), &manifest).unwrap()).await;
        keyed_contract(&Cached::new(store::open_local(dir.path()).unwrap(), &manifest, 1 << 20).unwrap()).await;
        keyed_contract(&Deduped::new(store::open_local(dir.path()).unwrap())).await;
        for (servers, max_frame) in [(1, 1 << 20), (2, 1 << 20), (2, 300)] {
            let running = Server::start_all(dir.path(), servers, ServeOptions::default());
            let options = ConnectOptions { max_frame, ..options() };
            keyed_contract(&*store::connect(manifest.clone(), &endpoints(&running), options).await.unwrap()).await;
        }
    }
}

#[tokio::test]
async fn many_absent_keys_fit_their_answer() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = Arc::new(deploy(dir.path(), &[keyed("default", Absent::Default, 1)], 1));
    let running = Server::start_all(dir.path(), 1, ServeOptions::default());
    let store = store::connect(manifest, &endpoints(&running), options()).await.unwrap();
    let ids: Vec<u64> = (0..200_000).collect();
    let rows = store.lookup(vec![query(0, &ids)]).await.unwrap().remove(0);
    assert_eq!(store.stats().absent, 199_997);
    assert_eq!(rows.as_slice::<f32>().unwrap()[8..14], [3., 3., 1., 1., 9., 9.]);
}

fn plain(rows: usize, columns: usize, pieces: usize) -> (tempfile::TempDir, Arc<Manifest>, Source) {
    let dir = tempfile::tempdir().unwrap();
    let table = source("T", DType::F32, &[rows, columns], Sharding::Row, pieces);
    let manifest = deploy(dir.path(), std::slice::from_ref(&table), pieces as u32);
    (dir, Arc::new(manifest), table)
}

#[tokio::test]
async fn duplicates_are_sent_once_and_expanded() {
    let (dir, manifest, table) = plain(4, 2, 2);
    let running = Server::start_all(dir.path(), 2, ServeOptions::default());
    let store = store::connect(manifest, &endpoints(&running), ConnectOptions { local: false, ..options() }).await.unwrap();
    let rows = store.lookup(vec![query(0, &[3, 1, 3, 3])]).await.unwrap();
    assert_eq!(rows, [expected(&table.values, &[3, 1, 3, 3])]);
    let stats = store.stats();
    assert_eq!((stats.ids, stats.unique_ids, stats.requests, stats.bytes), (4, 2, 1, 16));
    // Queries without ids put nothing on the wire.
    store.lookup(vec![query(0, &[])]).await.unwrap();
    assert_eq!(store.stats().requests, 1);
    drop(store);
    let sent: u64 = running.into_iter().map(|s| s.stop().unwrap().ids).sum();
    assert_eq!(sent, 2);
}

#[tokio::test]
async fn requests_and_answers_over_the_frame_limit_are_split() {
    let (dir, manifest, table) = plain(100_000, 64, 1);
    let running = Server::start_all(dir.path(), 1, ServeOptions { max_frame: 8 << 20, ..ServeOptions::default() });
    let connect = ConnectOptions { dedup: Dedup::Never, max_frame: 8 << 20, ..options() };
    let store = store::connect(manifest, &endpoints(&running), connect).await.unwrap();
    let ids: Vec<u64> = (0..70_000).map(|i| (i * 31) % 100_000).collect();
    assert_eq!(store.lookup(vec![query(0, &ids)]).await.unwrap(), [expected(&table.values, &ids)]);
    let ids: Vec<u64> = (0..1_100_000).map(|i| (i * 31) % 100_000).collect();
    let rows = store.lookup(vec![query(0, &ids)]).await.unwrap().remove(0);
    assert_eq!(rows.shape()[0], ids.len());
    let (rows, table) = (rows.as_slice::<f32>().unwrap(), table.values.as_slice::<f32>().unwrap());
    for (i, &id) in ids.iter().enumerate().step_by(997) {
        assert_eq!(rows[i * 64..][..64], table[id as usize * 64..][..64]);
    }
}

#[tokio::test]
async fn answers_that_are_made_while_they_are_sent_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [
        source("odd", DType::U8, &[300, 3], Sharding::Row, 7),
        source("wide", DType::F32, &[5, 40_000], Sharding::Range, 3),
        source("columns", DType::F16, &[100, 33], Sharding::Column, 4),
        source("half", DType::BF16, &[1000, 7], Sharding::Row, 4),
    ];
    let manifest = Arc::new(deploy(dir.path(), &sources, 4));
    for servers in 1..=3 {
        let running = Server::start_all(dir.path(), servers, ServeOptions::default());
        let connect = ConnectOptions { dedup: Dedup::Never, ..options() };
        let store = store::connect(manifest.clone(), &endpoints(&running), connect).await.unwrap();
        let ids = |table: usize, n: u64| (0..n).map(|i| (i * 17 + i / 300) % store.tables()[table].rows).collect::<Vec<u64>>();
        let queries = [(0, 700_001), (1, 19), (2, 25_003), (3, 120_001), (0, 1)].map(|(t, n)| query(t, &ids(t, n)));
        let rows = store.lookup(queries.to_vec()).await.unwrap();
        for (q, r) in queries.iter().zip(rows) {
            assert!(r == expected(&sources[q.table].values, &q.ids), "{} over {servers}", sources[q.table].name);
        }
    }
}

#[tokio::test]
async fn a_row_wider_than_the_frame_limit_names_size_limit_and_option() {
    let (dir, manifest, _) = plain(4, 20_000, 1);
    let running = Server::start_all(dir.path(), 1, ServeOptions { max_frame: 64 << 10, ..ServeOptions::default() });
    let store = store::connect(manifest, &endpoints(&running), options()).await.unwrap();
    let error = store.lookup(vec![query(0, &[1])]).await.unwrap_err().to_string();
    for part in ["\"T\"", "80157 bytes", "65536 bytes", "--max-frame"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_starts_late_is_waited_for() {
    let (dir, manifest, table) = plain(10, 2, 3);
    // The port is known, but nothing listens on it until a first attempt has failed.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap();
    drop(listener);
    let endpoints = [endpoint.to_string()];
    let connecting = store::connect(manifest, &endpoints, options());
    let starting = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Server::on(TcpListener::bind(endpoint).unwrap(), dir.path(), ServeOptions::default())
    };
    let (store, _server) = futures::join!(connecting, starting);
    assert_eq!(store.unwrap().lookup(vec![query(0, &[9])]).await.unwrap(), [expected(&table.values, &[9])]);
}

#[tokio::test]
async fn a_server_that_never_starts_is_named() {
    let (_dir, manifest, _) = plain(10, 2, 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    drop(listener);
    let started = Instant::now();
    let short = ConnectOptions { connect_timeout: Duration::from_millis(300), ..options() };
    let error = store::connect(manifest, std::slice::from_ref(&endpoint), short).await.unwrap_err();
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(matches!(error, StoreError::Unavailable { .. }));
    assert!(error.to_string().contains(&endpoint), "{error}");
}

#[tokio::test]
async fn another_deployment_is_refused_with_both_values() {
    let (dir, manifest, _) = plain(10, 2, 2);
    let running = Server::start_all(dir.path(), 2, ServeOptions { token: Some("secret".into()), ..ServeOptions::default() });
    let endpoints = endpoints(&running);
    let options = ConnectOptions { token: Some("secret".into()), ..options() };
    assert!(store::connect(manifest.clone(), &endpoints, options.clone()).await.is_ok());
    let refusal = async |change: fn(&mut Manifest, &mut Vec<String>, &mut ConnectOptions)| {
        let (mut m, mut e, mut o) = ((*manifest).clone(), endpoints.clone(), options.clone());
        change(&mut m, &mut e, &mut o);
        let error = store::connect(Arc::new(m), &e, o).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        error.to_string()
    };
    let text = refusal(|m, _, _| m.plan_id = "plan-b".into()).await;
    assert!(text.ends_with(&format!("refused: plan id {} here, plan-b at the peer", manifest.plan_id)), "{text}");
    let text = refusal(|m, _, _| m.fingerprint = "graph-b".into()).await;
    assert!(text.ends_with("refused: graph fingerprint graph-a here, graph-b at the peer"), "{text}");
    let text = refusal(|_, _, o| o.token = None).await;
    assert!(text.ends_with("refused: a token is required, none was sent"), "{text}");
    let text = refusal(|_, _, o| o.token = Some("sekret".into())).await;
    assert!(text.ends_with("refused: a token is required, another one was sent"), "{text}");
    let text = refusal(|_, e, _| e.truncate(1)).await;
    assert!(text.ends_with("number of pservers 2 here, 1 at the peer"), "{text}");
    let text = refusal(|_, e, _| e.swap(0, 1)).await;
    assert!(text.contains("pserver index"), "{text}");
}

#[tokio::test]
async fn a_server_that_comes_back_is_found_again() {
    let (dir, manifest, table) = plain(10, 2, 1);
    let server = Server::start(dir.path(), ServeOptions::default());
    let endpoint = server.endpoint.clone();
    let store = store::connect(manifest, std::slice::from_ref(&endpoint), options()).await.unwrap();
    store.lookup(vec![query(0, &[1])]).await.unwrap();
    server.stop().unwrap();
    let lookup = store.lookup(vec![query(0, &[2])]);
    let restart = async {
        let mut listener = TcpListener::bind(&endpoint);
        while listener.is_err() {
            tokio::task::yield_now().await;
            listener = TcpListener::bind(&endpoint);
        }
        Server::on(listener.unwrap(), dir.path(), ServeOptions::default())
    };
    let (rows, _server) = futures::join!(lookup, restart);
    assert_eq!(rows.unwrap(), [expected(&table.values, &[2])]);
    assert!(store.stats().retries > 0);
}

#[tokio::test]
async fn a_server_that_is_gone_is_unavailable() {
    let (dir, manifest, _) = plain(10, 2, 1);
    let server = Server::start(dir.path(), ServeOptions::default());
    let endpoint = server.endpoint.clone();
    let short = ConnectOptions { rpc_timeout: Duration::from_millis(200), ..options() };
    let store = store::connect(manifest, std::slice::from_ref(&endpoint), short).await.unwrap();
    server.stop().unwrap();
    let error = store.lookup(vec![query(0, &[2])]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains(&endpoint), "{error}");
}

#[tokio::test]
async fn a_server_that_hangs_is_a_timeout_and_never_a_default_row() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = Arc::new(deploy(dir.path(), &[keyed("zero", Absent::Zero, 1)], 1));
    let server = Server::start(dir.path(), ServeOptions::default());
    let (endpoint, stalled) = proxy(server.endpoint.clone());
    let short = ConnectOptions { rpc_timeout: Duration::from_millis(500), ..options() };
    let store = store::connect(manifest, std::slice::from_ref(&endpoint), short).await.unwrap();
    store.lookup(vec![query(0, &[5])]).await.unwrap();
    stalled.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = store.lookup(vec![query(0, &[5, 7])]).await.unwrap_err();
    assert!(matches!(error, StoreError::Timeout { .. }), "{error}");
    assert_eq!(error.to_string(), format!("pserver {endpoint} did not answer within 0.5 s"));
    assert_eq!(store.stats().absent, 0);
    stalled.store(false, std::sync::atomic::Ordering::SeqCst);
    store.lookup(vec![query(0, &[5])]).await.unwrap();
}

#[tokio::test]
async fn clients_that_misbehave_harm_nobody_else() {
    let (dir, manifest, table) = plain(1000, 64, 1);
    let limits = ServeOptions {
        threads: 2,
        max_connections: 40,
        handshake_timeout: Duration::from_millis(300),
        stall_timeout: Duration::from_millis(300),
        ..ServeOptions::default()
    };
    let server = Server::start(dir.path(), limits);
    let connect = async || store::connect(manifest.clone(), std::slice::from_ref(&server.endpoint), options()).await.unwrap();
    let store = connect().await;
    let garbage: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0xff; 5000],
        b"",
        // Huge and half frames, and a call before the handshake.
        b"gtw1\xff\xff\xff\xff\xff\xff\xff\xff",
        b"gtw1\x20\0\0\0\0\0\0\0abc",
        b"gtw1\x11\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\0\x40\x42\x0f\0\0\0\0\0",
    ];
    let mut open = Vec::new();
    for round in 0..30 {
        let mut stream = TcpStream::connect(&server.endpoint).unwrap();
        stream.write_all(garbage[round % garbage.len()]).unwrap();
        open.push(stream);
        let ids = [round as u64, 999];
        assert_eq!(store.lookup(vec![query(0, &ids)]).await.unwrap(), [expected(&table.values, &ids)]);
    }
    // Each of them is let go, whether it speaks or not.
    for mut stream in open {
        let mut rest = Vec::new();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    assert_eq!(connect().await.lookup(vec![query(0, &[7])]).await.unwrap(), [expected(&table.values, &[7])]);
}

#[tokio::test]
async fn a_server_tells_of_itself_and_stops_when_told() {
    let (dir, manifest, _) = plain(10, 2, 4);
    let locked = Server::start(dir.path(), ServeOptions { threads: 2, ..ServeOptions::default() });
    let error = store::stop_server(&locked.endpoint, &options()).await.unwrap_err().to_string();
    assert!(error.contains("does not let its clients stop it"), "{error}");
    let mut running = Server::start_all(dir.path(), 2, ServeOptions { remote_shutdown: true, ..ServeOptions::default() });
    let store = store::connect(manifest.clone(), &endpoints(&running), options()).await.unwrap();
    store.lookup(vec![query(0, &[0, 1, 2])]).await.unwrap();
    let info = store::server_info(&running[1].endpoint, &options()).await.unwrap();
    assert_eq!((info.plan_id.as_str(), info.servers, info.index), (manifest.plan_id.as_str(), 2, 1));
    assert_eq!((info.shards.len(), info.tables.as_slice()), (2, &["T".to_string()][..]));
    assert_eq!(info.stats.lookups, 1);
    let last = running.pop().unwrap();
    store::stop_server(&last.endpoint, &options()).await.unwrap();
    assert_eq!(last.wait().unwrap().lookups, 1);
}

#[test]
fn torn_and_foreign_files_are_named_before_serving() {
    let (dir, manifest, _) = plain(10, 2, 2);
    let file = dir.path().join(&manifest.tables[0].pieces[1].file);
    let whole = std::fs::read(&file).unwrap();
    let open = || store::serve(TcpListener::bind("127.0.0.1:0").unwrap(), dir.path(), ServeOptions::default(), async {});
    assert!(open().is_ok());
    std::fs::write(&file, &whole[..whole.len() - 8]).unwrap();
    let n = whole.len();
    let error = open().unwrap_err().to_string();
    let name = "table \"T\": shard file \"shards/T-00001-of-00002.safetensors\"";
    assert_eq!(error, format!("{name}: expected {n} bytes, found {}", n - 8));
    let mut other = whole.clone();
    other[n - 1] ^= 1;
    std::fs::write(&file, &other).unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains("00001-of-00002.safetensors\": expected checksum ") && error.contains(", found "), "{error}");
    other = whole.clone();
    other[3] = 0xff;
    std::fs::write(&file, &other).unwrap();
    assert!(open().unwrap_err().to_string().starts_with(&format!("{name}: not a safetensors file: ")));
    std::fs::remove_file(&file).unwrap();
    assert!(open().unwrap_err().to_string().starts_with(name));
}

#[tokio::test]
async fn damage_that_is_found_while_serving_ends_the_lookups() {
    let (dir, manifest, _) = plain(10, 2, 1);
    let file = dir.path().join(&manifest.tables[0].pieces[0].file);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let server = Server::start(dir.path(), ServeOptions { verify: Verify::Background, ..ServeOptions::default() });
    let store = store::connect(manifest, std::slice::from_ref(&server.endpoint), options()).await.unwrap();
    let error = loop {
        if let Err(e) = store.lookup(vec![query(0, &[1])]).await {
            break e.to_string();
        }
    };
    assert!(error.contains("expected checksum"), "{error}");
}

#[tokio::test]
async fn a_large_sparse_table_is_read_at_64_bit_offsets() {
    // 262,144 rows of 35,840 bytes: 9.4 GB that take no room.
    let dir = tempfile::tempdir().unwrap();
    let (rows, columns) = (262_144u64, 8960u64);
    let header = format!(r#"{{"values":{{"dtype":"F32","shape":[{rows},{columns}],"data_offsets":[0,{}]}}}}"#, rows * columns * 4);
    let header = format!("{header:<120}");
    std::fs::create_dir(dir.path().join("shards")).unwrap();
    let mut file = std::fs::File::create(dir.path().join("shards/big")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let bytes = 128 + rows * columns * 4;
    file.set_len(bytes).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &7f32.to_le_bytes(), 128 + 239_674 * columns * 4).unwrap();
    let manifest = format!(
        r#"{{"format_version":1,"plan_id":"p","fingerprint":"f","shards":1,"tables":[{{"name":"big","rows":{rows},"row_shape":[{columns}],
        "dtype":"float32","sharding":"table","pieces":[{{"file":"shards/big","shard":0,"rows":{rows},"columns":{columns},"bytes":{bytes},"checksum":""}}]}}]}}"#
    );
    let shards = Shards::open(dir.path(), Arc::new(Manifest::parse(&manifest).unwrap()), |_| true).unwrap();
    let rows = shards.lookup(vec![query(0, &[239_674, 262_143])]).await.unwrap().remove(0);
    let rows = rows.as_slice::<f32>().unwrap();
    assert_eq!((rows[0], rows[1], rows[8960]), (7.0, 0.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn default_rows_for_a_server_that_is_gone_are_counted_apart() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [source("T", DType::F32, &[4, 2], Sharding::Row, 2), keyed("default", Absent::Default, 1)];
    let manifest = Arc::new(deploy(dir.path(), &sources, 2));
    let running = Server::start_all(dir.path(), 1, ServeOptions::default());
    let connect = ConnectOptions { rpc_timeout: Duration::from_millis(300), ..options() };
    let inner = store::connect(manifest.clone(), &endpoints(&running), connect).await.unwrap();
    let store = store::Fallback::new(inner, &manifest).unwrap();
    let ask = || store.lookup(vec![query(0, &[3, 1]), query(1, &[7, 5, 7])]);
    let before = ask().await.unwrap();
    assert_eq!(before[0], expected(&sources[0].values, &[3, 1]));
    assert_eq!((store.defaulted(), store.stats().absent), (0, 2));
    drop(running);
    let after = ask().await.unwrap();
    assert_eq!(after[0], Tensor::new([2, 2], vec![0.0f32; 4]).unwrap());
    assert_eq!(after[1], Tensor::new([3, 2], vec![9.0f32; 6]).unwrap());
    assert_eq!((store.defaulted(), store.stats().absent), (5, 2));
    // What is wrong with the call stays an error.
    assert!(matches!(store.lookup(vec![query(0, &[4])]).await.unwrap_err(), StoreError::Invalid { id: 4, .. }));
}
