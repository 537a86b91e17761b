//! Random schedules of faults between clients and servers: frames that are late, lost, doubled or out of order, connections
//! that are cut, links that are silent for a while. Each schedule follows from its number: what happens to the n-th frame of the
//! m-th connection in one direction. A lookup gives the right rows or an error by its deadline; ranks of a group agree, or the
//! group ends for all.
//!
//! `GRAPHTOOL_SCHEDULES` says how many are tried, `GRAPHTOOL_SCHEDULE` runs one alone and prints what it does.

mod support;

use futures::future::join_all;
use graphtool::comm::{self, Comm, CommError, GroupOptions, ReduceOp};
use graphtool::plan::Sharding;
use graphtool::store::{self, ConnectOptions, ServeOptions, StoreError};
use graphtool::tensor::{DType, Tensor};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::contract::{expected, query};
use support::{Server, deploy, endpoints, source};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// What a busy machine may add to any deadline.
const SLACK: Duration = Duration::from_secs(20);

/// What happens to a frame.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    /// It is late by so many milliseconds, and all after it.
    Late(u64),
    Lost,
    Doubled,
    /// It comes after the next one.
    Swapped,
    /// The connection is gone, after so many bytes of the frame.
    Cut(usize),
    /// Nothing goes through any connection for so many milliseconds.
    Silent(u64),
}

/// The faults of one schedule.
struct Schedule {
    number: u64,
    /// The probability of a fault.
    rate: f64,
    start: Instant,
    silent_until: AtomicU64,
    connections: AtomicU64,
    said: Mutex<Vec<String>>,
}

impl Schedule {
    fn new(number: u64) -> Arc<Self> {
        let rate = [0.02, 0.08, 0.25, 0.5][(number % 4) as usize];
        let (silent_until, connections) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { number, rate, start: Instant::now(), silent_until, connections, said: Mutex::default() })
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// The source of one direction's faults.
    fn random(&self, connection: u64, back: bool) -> StdRng {
        StdRng::seed_from_u64(self.number.wrapping_mul(1_000_003) + connection * 2 + u64::from(back))
    }

    fn fault(&self, r: &mut StdRng) -> Fault {
        if !r.random_bool(self.rate) {
            return Fault::None;
        }
        match r.random_range(0..6u32) {
            0 => Fault::Late(r.random_range(1..120)),
            1 => Fault::Lost,
            2 => Fault::Doubled,
            3 => Fault::Swapped,
            4 => Fault::Cut(r.random_range(0..40)),
            _ => Fault::Silent(r.random_range(1..300)),
        }
    }

    /// A link to `target` with the faults of this schedule.
    async fn link(self: &Arc<Self>, target: &str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = listener.local_addr().expect("an address").to_string();
        let (schedule, target) = (self.clone(), target.to_owned());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&target).await else { continue };
                let connection = schedule.connections.fetch_add(1, Relaxed);
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                let there = pump(schedule.clone(), connection, false, near_in, far_out);
                let back = pump(schedule.clone(), connection, true, far_in, near_out);
                // One side that ends ends the other.
                tokio::spawn(async move {
                    tokio::select! { _ = there => {}, _ = back => {} }
                });
            }
        });
        endpoint
    }
}

/// A frame as it is on the wire: 12 bytes (magic, bytes of head, bytes of body), head, body.
async fn frame(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 12];
    from.read_exact(&mut bytes).await?;
    let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]) as usize;
    let len = word(4) + word(8);
    bytes.resize(12 + len, 0);
    from.read_exact(&mut bytes[12..]).await?;
    Ok(bytes)
}

async fn pump(
    schedule: Arc<Schedule>,
    connection: u64,
    back: bool,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
) -> std::io::Result<()> {
    let mut random = schedule.random(connection, back);
    let mut held: Option<Vec<u8>> = None;
    for k in 0u64.. {
        let bytes = frame(&mut from).await?;
        let fault = schedule.fault(&mut random);
        if !matches!(fault, Fault::None) {
            let way = if back { "answer" } else { "request" };
            schedule.said.lock().expect("no panic").push(format!("{} ms: connection {connection}, {way} {k}: {fault:?}", schedule.now()));
        }
        match fault {
            Fault::Late(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Fault::Silent(ms) => drop(schedule.silent_until.fetch_max(schedule.now() + ms, Relaxed)),
            _ => {}
        }
        let left = schedule.silent_until.load(Relaxed).saturating_sub(schedule.now());
        tokio::time::sleep(Duration::from_millis(left)).await;
        match fault {
            Fault::Lost => continue,
            Fault::Swapped if held.is_none() => {
                held = Some(bytes);
                continue;
            }
            Fault::Cut(n) => {
                to.write_all(&bytes[..n.min(bytes.len())]).await?;
                return Ok(());
            }
            Fault::Doubled => to.write_all(&[bytes.clone(), bytes].concat()).await?,
            _ => to.write_all(&bytes).await?,
        }
        if let Some(late) = held.take() {
            to.write_all(&late).await?;
        }
    }
    Ok(())
}

/// Runs `one` for each number, so many at once, and prints the schedule that did not hold.
async fn try_all<F: Future<Output = Result<bool, String>> + Send + 'static>(
    default: u64,
    at_once: usize,
    one: impl Fn(Arc<Schedule>) -> F + Clone + Send + 'static,
) {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let (from, count) = match number("GRAPHTOOL_SCHEDULE") {
        Some(n) => (n, 1),
        None => (0, number("GRAPHTOOL_SCHEDULES").unwrap_or(default)),
    };
    let next = Arc::new(AtomicU64::new(from));
    let results = join_all((0..at_once).map(|_| {
        let (next, one) = (next.clone(), one.clone());
        tokio::spawn(async move {
            let (mut good, mut bad) = (0u64, 0u64);
            loop {
                let n = next.fetch_add(1, Relaxed);
                if n >= from + count {
                    return (good, bad);
                }
                let schedule = Schedule::new(n);
                let result = one(schedule.clone()).await;
                let said = schedule.said.lock().expect("no panic").join("\n");
                match result {
                    Ok(undisturbed) => {
                        good += u64::from(undisturbed);
                        bad += u64::from(!undisturbed);
                    }
                    Err(e) => panic!("schedule {n}: {e}\n{said}"),
                }
                if count == 1 {
                    println!("{said}");
                }
            }
        })
    }))
    .await;
    let (good, bad) = results.into_iter().map(|r| r.expect("a schedule held")).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!("{count} schedules: {good} with right answers alone, {bad} with errors");
    assert!(count == 1 || (good > count / 20 && bad > count / 20), "{good} and {bad}: the faults are not as meant");
}

/// Whether an error speaks of the connection and not of the data. A greeting that comes twice is refused.
fn of_the_link(e: &StoreError) -> bool {
    matches!(e, StoreError::Unavailable { .. } | StoreError::Timeout { .. } | StoreError::Refused { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_gives_the_right_rows_or_an_error_by_its_deadline() {
    let dir = tempfile::tempdir().expect("a directory");
    let sources = Arc::new([
        source("rows", DType::F32, &[500, 8], Sharding::Row, 3),
        source("columns", DType::F32, &[300, 12], Sharding::Column, 2),
        source("whole", DType::I64, &[50, 2], Sharding::Table, 1),
    ]);
    let manifest = Arc::new(deploy(dir.path(), &*sources, 4));
    let servers = Server::start_all(dir.path(), 2, ServeOptions::default());
    let targets = endpoints(&servers);
    let one = move |schedule: Arc<Schedule>| {
        let (manifest, sources, targets) = (manifest.clone(), sources.clone(), targets.clone());
        async move {
            let links = join_all(targets.iter().map(|t| schedule.link(t))).await;
            let (connect, rpc) = (Duration::from_millis(1500), Duration::from_millis(250));
            let options = ConnectOptions { connect_timeout: connect, rpc_timeout: rpc, ..ConnectOptions::default() };
            let start = Instant::now();
            let store = match store::connect(manifest, &links, options).await {
                Ok(store) => store,
                Err(e) if of_the_link(&e) => {
                    return if start.elapsed() < connect + SLACK { Ok(false) } else { Err(format!("late: {e}")) };
                }
                Err(e) => return Err(format!("connect: {e}")),
            };
            let mut undisturbed = true;
            let mut random = StdRng::seed_from_u64(schedule.number);
            for round in 0..4 {
                let mut lookups = Vec::new();
                for _ in 0..=round % 2 {
                    let queries: Vec<_> = [(0, 500), (1, 300), (2, 50)]
                        .into_iter()
                        .map(|(table, rows)| {
                            let n = random.random_range(0..40usize);
                            (table, (0..n).map(|_| random.random_range(0..rows)).collect::<Vec<u64>>())
                        })
                        .collect();
                    lookups.push(queries);
                }
                let start = Instant::now();
                let answers = join_all(lookups.iter().map(|l| store.lookup(l.iter().map(|(t, ids)| query(*t, ids)).collect()))).await;
                if start.elapsed() > rpc + SLACK {
                    return Err(format!("round {round} took {:?}", start.elapsed()));
                }
                for (lookup, answer) in lookups.iter().zip(answers) {
                    match answer {
                        Ok(rows) => {
                            let right: Vec<Tensor> = lookup.iter().map(|(t, ids)| expected(&sources[*t].values, ids)).collect();
                            if rows != right {
                                return Err(format!("round {round}: wrong rows"));
                            }
                        }
                        Err(e) if of_the_link(&e) => undisturbed = false,
                        Err(e) => return Err(format!("round {round}: {e}")),
                    }
                }
            }
            Ok(undisturbed)
        }
    };
    try_all(1000, 64, one).await;
}

/// What a rank got from its collectives, until one failed.
async fn collectives(group: &dyn Comm) -> (Vec<Tensor>, Option<CommError>) {
    let mut got = Vec::new();
    let x = |k: usize| Tensor::vector(vec![(group.rank() * 10 + k) as f32; 5]);
    for k in 0..4 {
        let name = format!("node {k}");
        let result = match k {
            0 | 3 => group.all_reduce(&name, x(k), ReduceOp::Sum).await,
            1 => group.all_gather(&name, Tensor::vector(vec![group.rank() as f32; group.rank()]), 0).await,
            _ => group.barrier(&name).await.map(|()| Tensor::vector(vec![0f32])),
        };
        match result {
            Ok(t) => got.push(t),
            Err(e) => return (got, Some(e)),
        }
    }
    (got, None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_agree_or_the_group_ends_for_all() {
    const SIZE: usize = 3;
    let one = |schedule: Arc<Schedule>| async move {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = listener.local_addr().expect("an address").to_string();
        let link = schedule.link(&target).await;
        let (connect, timeout) = (Duration::from_millis(1500), Duration::from_millis(500));
        let options = |rank: usize| {
            let first = if rank == 0 { target.clone() } else { link.clone() };
            let endpoints = std::iter::once(first).chain((1..SIZE).map(|r| format!("worker-{r}:0"))).collect();
            GroupOptions {
                plan_id: "plan".into(),
                fingerprint: "graph".into(),
                connect_timeout: connect,
                timeout,
                heartbeat_timeout: timeout,
                ..GroupOptions::new(rank, endpoints)
            }
        };
        let mut listener = Some(listener);
        let start = Instant::now();
        let forming = (0..SIZE).map(|r| comm::connect(options(r), if r == 0 { listener.take() } else { None }));
        let ranks = join_all(forming.map(|forming| async {
            let group = forming.await?;
            Ok::<_, CommError>(collectives(&*group).await)
        }))
        .await;
        if start.elapsed() > connect + 8 * timeout + SLACK {
            return Err(format!("it took {:?}", start.elapsed()));
        }
        let sum = |k: usize| Tensor::vector(vec![(30 + 3 * k) as f32; 5]);
        let right = [sum(0), Tensor::vector(vec![1f32, 2.0, 2.0]), Tensor::vector(vec![0f32]), sum(3)];
        let (mut fewest, mut most) = (right.len(), 0);
        for (r, rank) in ranks.iter().enumerate() {
            let got = rank.as_ref().map_or(&[][..], |(got, _)| got);
            if *got != right[..got.len()] {
                return Err(format!("rank {r} got {got:?}"));
            }
            if let Ok((_, Some(e @ (CommError::Mismatch { .. } | CommError::Invalid { .. })))) = rank {
                return Err(format!("rank {r}: {e}"));
            }
            (fewest, most) = (fewest.min(got.len()), most.max(got.len()));
        }
        // An answer that was lost is missed by one rank; nobody goes on without that one.
        if most > fewest + 1 {
            return Err(format!("one rank went on to collective {most}, another ended in {fewest}"));
        }
        Ok(fewest == right.len())
    };
    try_all(1000, 24, one).await;
}
