//! Pservers among clients of which a third misbehave: garbage, silence, frames that never end or claim to be huge, a web
//! client, replayed and unread conversations, ids out of range, connections cut in the middle. The others get every answer
//! right, and the memory of the servers stays within their limits. `GRAPHTOOL_SOAK_SECONDS` says for how long (3); the quiet
//! and the disturbed latencies are printed.

mod support;

use futures::future::join_all;
use graphtool::plan::{Manifest, Sharding};
use graphtool::store::{self, ConnectOptions, Store, StoreError};
use graphtool::tensor::DType;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::contract::{expected, query};
use support::{Source, deploy, source};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CLIENTS: usize = 64;
const ROWS: u64 = 20_000;
/// Bytes of rows under way, as the servers are told.
const IN_FLIGHT: u64 = 32 << 20;
/// What a server may have besides its shards and the rows under way: its program, buffers of connections, the pool of buffers.
const ROOM: u64 = 160 << 20;

/// A server as a process of its own, killed when this is dropped.
struct Process(Child, String);

impl Process {
    fn start(dir: &std::path::Path, index: usize) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
        command.arg("run").arg(dir).args(["--role", "pserver", "--servers", "127.0.0.1:0,127.0.0.1:0", "--index", &index.to_string()]);
        command.args(["--max-in-flight", &IN_FLIGHT.to_string(), "--max-connections", "200", "--max-ids", "65536", "--port", "0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a server");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        let endpoint = line.trim().rsplit(' ').next().expect("an address").to_owned();
        Self(child, endpoint)
    }

    /// The most memory that it had of its own, in bytes; mapped shards are not counted.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        let kib = |name: &str| -> u64 {
            let line = status.lines().find(|l| l.starts_with(name)).expect("a line");
            line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
        };
        kib("RssAnon:") << 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// What a good client says to a server and asks of it, byte for byte, for those who play it again.
async fn record(manifest: &Arc<Manifest>, endpoints: &[String]) -> Vec<u8> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let near = listener.local_addr().expect("an address").to_string();
    let target = endpoints[0].clone();
    let recorder = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("a client");
        let mut server = TcpStream::connect(target).await.expect("a server");
        let ((mut client_in, mut client_out), (mut server_in, mut server_out)) = (client.split(), server.split());
        let mut said = Vec::new();
        let there = async {
            let mut buffer = [0; 65536];
            while let Ok(n @ 1..) = client_in.read(&mut buffer).await {
                said.extend(&buffer[..n]);
                server_out.write_all(&buffer[..n]).await.expect("written");
            }
        };
        tokio::select! { () = there => {}, _ = tokio::io::copy(&mut server_in, &mut client_out) => {} }
        said
    });
    let through = vec![near, endpoints[1].clone()];
    let store = store::connect(manifest.clone(), &through, ConnectOptions::default()).await.expect("connected");
    store.lookup(vec![query(0, &(0..5000).collect::<Vec<_>>())]).await.expect("rows");
    drop(store);
    recorder.await.expect("recorded")
}

/// One visit of a client that misbehaves.
async fn visit(kind: usize, endpoint: &str, recorded: &[u8], seed: u64) -> std::io::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stream = TcpStream::connect(endpoint).await?;
    match kind {
        // Garbage.
        0 => stream.write_all(&(0..5000).map(|_| random.random_range(0..=255u32) as u8).collect::<Vec<_>>()).await?,
        // A browser.
        1 => stream.write_all(b"GET / HTTP/1.1\r\nHost: pserver\r\n\r\n").await?,
        // The greeting, then a frame that claims a gigabyte, and one that claims what is allowed and does not come.
        2 => stream.write_all(&[b"gtw1".as_slice(), &64u32.to_le_bytes(), &(1u32 << 30).to_le_bytes(), &[0; 64]].concat()).await?,
        // Nothing at all.
        3 => tokio::time::sleep(Duration::from_millis(random.random_range(100..2000))).await,
        // One byte now and then.
        4 => {
            for byte in &recorded[..recorded.len().min(40)] {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // A conversation that is cut in the middle.
        5 => stream.write_all(&recorded[..random.random_range(1..recorded.len())]).await?,
        // A conversation that is played twice, whose answers nobody reads.
        6 => {
            let all = [recorded, recorded].concat();
            _ = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&all)).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        // A conversation with bytes that are wrong.
        _ => {
            let mut all = recorded.to_vec();
            for _ in 0..8 {
                let at = random.random_range(0..all.len());
                all[at] ^= 1 << random.random_range(0..8u32);
            }
            stream.write_all(&all).await?;
        }
    }
    let mut answer = vec![0; 1 << 16];
    _ = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut answer)).await;
    Ok(())
}

/// Lookups of one good client until the time is over, each compared; how long each took.
async fn behave(store: Arc<dyn Store>, sources: Arc<[Source; 2]>, seed: u64, end: Instant) -> Vec<Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut times = Vec::new();
    while Instant::now() < end {
        let ids: Vec<u64> = (0..random.random_range(1..200usize)).map(|_| random.random_range(0..ROWS)).collect();
        let start = Instant::now();
        let rows = store.lookup(vec![query(0, &ids), query(1, &ids)]).await.expect("a good client is answered");
        times.push(start.elapsed());
        assert_eq!(rows, [expected(&sources[0].values, &ids), expected(&sources[1].values, &ids)]);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..4))).await;
    }
    times
}

fn percentile(times: &[Duration], p: f64) -> Duration {
    times[((times.len() - 1) as f64 * p) as usize]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_clients_are_served_among_bad_ones() {
    let seconds = std::env::var("GRAPHTOOL_SOAK_SECONDS").map_or(3, |s| s.parse().expect("a number of seconds"));
    let dir = tempfile::tempdir().expect("a directory");
    let sources = Arc::new([
        source("rows", DType::F32, &[ROWS as usize, 16], Sharding::Row, 2),
        source("columns", DType::F32, &[ROWS as usize, 8], Sharding::Column, 2),
    ]);
    let manifest = Arc::new(deploy(dir.path(), &*sources, 4));
    let servers: Vec<Process> = (0..2).map(|index| Process::start(dir.path(), index)).collect();
    let endpoints: Vec<String> = servers.iter().map(|s| s.1.clone()).collect();
    let recorded = Arc::new(record(&manifest, &endpoints).await);
    let good = CLIENTS - CLIENTS / 3;
    let connecting = (0..good).map(|_| store::connect(manifest.clone(), &endpoints, ConnectOptions::default()));
    let stores: Vec<Arc<dyn Store>> = join_all(connecting).await.into_iter().map(|s| s.expect("connected")).collect();
    let mut quiet = Duration::ZERO;
    for disturbed in [false, true] {
        let end = Instant::now() + Duration::from_secs_f64(if disturbed { seconds as f64 } else { (seconds as f64 / 4.0).max(1.0) });
        let visits = Arc::new(AtomicU64::new(0));
        let bad: Vec<_> = (0..if disturbed { CLIENTS / 3 } else { 0 })
            .map(|k| {
                let (endpoints, recorded, visits, manifest) = (endpoints.clone(), recorded.clone(), visits.clone(), manifest.clone());
                tokio::spawn(async move {
                    for turn in 0u64.. {
                        if Instant::now() > end {
                            return;
                        }
                        let seed = (k as u64) << 32 | turn;
                        if k % 9 == 8 {
                            // A client that speaks well and asks for what is not there.
                            let options = ConnectOptions::default();
                            let store = store::connect(manifest.clone(), &endpoints, options).await.expect("connected");
                            let e = store.lookup(vec![query(0, &[1, ROWS + turn])]).await.expect_err("no such row");
                            assert!(matches!(e, StoreError::Invalid { .. }), "{e}");
                        } else {
                            // Whatever becomes of it.
                            _ = visit((k + turn as usize) % 8, &endpoints[turn as usize % 2], &recorded, seed).await;
                        }
                        visits.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        let running: Vec<_> =
            stores.iter().enumerate().map(|(k, s)| tokio::spawn(behave(s.clone(), sources.clone(), k as u64, end))).collect();
        let mut times: Vec<Duration> = Vec::new();
        for client in join_all(running).await {
            times.extend(client.expect("a good client went through"));
        }
        for client in join_all(bad).await {
            client.expect("a bad client got what it should");
        }
        times.sort();
        let (half, most) = (percentile(&times, 0.5), percentile(&times, 0.99));
        let peaks: Vec<u64> = servers.iter().map(|s| s.peak() >> 20).collect();
        println!(
            "{} lookups of {good} clients beside {} visits: p50 {half:?}, p99 {most:?}; servers have {peaks:?} MiB of their own",
            times.len(),
            visits.load(Relaxed)
        );
        if disturbed {
            println!("p99 is {:.2} times that of the quiet run", most.as_secs_f64() / quiet.as_secs_f64());
            assert!(visits.load(Relaxed) >= (CLIENTS / 3) as u64);
        }
        quiet = most;
        assert!(peaks.iter().all(|p| *p < (ROOM + IN_FLIGHT) >> 20), "{peaks:?} MiB");
    }
}
