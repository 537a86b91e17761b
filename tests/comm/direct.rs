//! Large tensors, whose bytes go from rank to rank: the same bits as by way of rank 0, and one error for all when a rank is
//! lost on the way.

use super::{Group, all, plan};
use futures::future::join_all;
use graphtool::comm::{self, Comm, CommError, CommFuture, GroupOptions, ReduceOp, local_group};
use graphtool::tensor::{DType, Tensor};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use tokio::sync::Notify;

const FROM: usize = 4096;

/// The options of all ranks, each with a listener that the others know by its endpoint.
fn open(size: usize) -> (Vec<GroupOptions>, Vec<TcpListener>) {
    let (mut options, first) = plan(size);
    let listeners: Vec<_> = std::iter::once(first).chain((1..size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap())).collect();
    let endpoints: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    options.iter_mut().for_each(|o| (o.endpoints, o.direct_from) = (endpoints.clone(), FROM));
    (options, listeners)
}

async fn form(options: &[GroupOptions], listeners: &[TcpListener]) -> Vec<Option<Arc<dyn Comm>>> {
    let ranks = options.iter().zip(listeners).map(|(o, l)| comm::connect(o.clone(), Some(l.try_clone().unwrap())));
    join_all(ranks).await.into_iter().map(|c| Some(c.unwrap())).collect()
}

fn whole(group: Vec<Option<Arc<dyn Comm>>>) -> Group {
    group.into_iter().flatten().collect()
}

/// Elements of any bits, NaN among them: other ones for each rank and each seed.
fn noise(dtype: DType, shape: &[usize], rank: usize, seed: usize) -> Tensor {
    let mut state = (rank as u64) << 32 | seed as u64;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as u8
    };
    let bytes: Vec<u8> = (0..dtype.byte_len(shape).unwrap()).map(|_| byte()).collect();
    Tensor::from_bytes(dtype, shape, bytes).unwrap().aligned()
}

fn bits(tensors: &[Tensor]) -> Vec<(DType, Vec<usize>, Vec<u8>)> {
    tensors.iter().map(|t| (t.dtype(), t.shape().to_vec(), t.shared_bytes().unwrap().to_vec())).collect()
}

/// Runs a collective in a group over TCP and in one where it never leaves the process; the bits are to be equal.
async fn same<'a>(direct: &'a Group, here: &'a Group, what: &str, call: impl Fn(&'a dyn Comm) -> CommFuture<'a, Tensor>) {
    let (got, want) = futures::join!(all(direct, &call), all(here, &call));
    assert!(bits(&got) == bits(&want), "{what} over {} ranks", direct.len());
}

#[tokio::test]
async fn every_size_gives_the_bits_of_the_way_by_rank_0() {
    for size in 1..=5 {
        let (options, listeners) = open(size);
        let (direct, here) = (whole(form(&options, &listeners).await), local_group(size).unwrap());
        let numbers = DType::all().filter(|d| d.bits() >= 16 && (d.is_float() || d.is_int()) || matches!(d, DType::U8 | DType::I8));
        for dtype in numbers {
            let edge = FROM / dtype.size().unwrap();
            for n in [0, 1, edge - 1, edge, edge + 1, 2 * edge + 3] {
                for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min] {
                    let what = format!("{op:?} of {n} {dtype}");
                    same(&direct, &here, &what, |c| c.all_reduce("x", noise(dtype, &[n], c.rank(), n), op)).await;
                }
                // Of axis 0 each rank gets a part; about as many bytes.
                let rows = n.div_ceil(size) * size;
                let scatter = |c: &'static str| format!("{c} of {rows} {dtype}");
                same(&direct, &here, &scatter("reduce_scatter"), |c| {
                    c.reduce_scatter("x", noise(dtype, &[rows], c.rank(), n), ReduceOp::Sum)
                })
                .await;
                let root = n % size;
                same(&direct, &here, &format!("broadcast of {n} {dtype}"), |c| c.broadcast("x", noise(dtype, &[n], c.rank(), n), root))
                    .await;
            }
        }
    }
}

#[tokio::test]
async fn a_fold_by_hand_gives_the_same_bits() {
    let (options, listeners) = open(3);
    let group = whole(form(&options, &listeners).await);
    // In any other order the sum rounds differently.
    let x = |r: usize| (0..5000).map(|i| [1e8f32, -1e8, 0.25][(i + r) % 3] * (1.0 + i as f32 / 7.0)).collect::<Vec<_>>();
    let (a, b, c) = (x(0), x(1), x(2));
    let want: Vec<f32> = (0..5000).map(|i| (a[i] + b[i]) + c[i]).collect();
    assert_ne!(want, (0..5000).map(|i| a[i] + (b[i] + c[i])).collect::<Vec<_>>());
    for got in all(&group, |c| c.all_reduce("x", Tensor::vector(x(c.rank())), ReduceOp::Sum)).await {
        assert_eq!(got, Tensor::vector(want.clone()));
    }
}

#[tokio::test]
async fn tensors_of_unequal_length_are_gathered_along_any_axis() {
    // Below and above the limit, and where only the whole is above it; ranks without rows among them.
    let lengths: [&[usize]; 6] = [&[5], &[0, 3000], &[900, 0, 700], &[1, 2, 3, 4000], &[300, 300, 300, 300, 300], &[0, 0, 0]];
    for along in lengths {
        let size = along.len();
        let (options, listeners) = open(size);
        let (direct, here) = (whole(form(&options, &listeners).await), local_group(size).unwrap());
        for dtype in [DType::F32, DType::U8, DType::I64, DType::Bool, DType::F16] {
            for axis in 0..3 {
                let shape = |r: usize| {
                    let mut shape = [2, 3, 2];
                    shape[axis] = along[r];
                    shape
                };
                let x = |c: &dyn Comm| match dtype {
                    DType::Bool => Tensor::full(shape(c.rank()), c.rank().is_multiple_of(2)).unwrap(),
                    _ => noise(dtype, &shape(c.rank()), c.rank(), axis),
                };
                same(&direct, &here, &format!("{dtype} of {along:?} along {axis}"), |c| c.all_gather("g", x(c), axis)).await;
            }
        }
    }
}

#[tokio::test]
async fn ranks_that_have_joined_are_not_asked() {
    let (options, listeners) = open(3);
    let group = whole(form(&options, &listeners).await);
    let x = |rank: usize| noise(DType::F32, &[3 * FROM], rank, 1);
    // One rank goes on alone, two go on without the first.
    for stay in [&[1usize][..], &[1, 2]] {
        let work = group.iter().map(async |c| {
            let mut got = Vec::new();
            if stay.contains(&c.rank()) {
                got.push(c.all_reduce("x", x(c.rank()), ReduceOp::Sum).await?);
                got.push(c.all_reduce("x", x(c.rank()), ReduceOp::Mean).await?);
                got.push(c.all_gather("x", x(c.rank()), 0).await?);
                got.push(c.reduce_scatter("x", x(c.rank()), ReduceOp::Max).await?);
                got.push(c.broadcast("x", x(c.rank()), 1).await?);
                let error = c.broadcast("x", x(c.rank()), 0).await.unwrap_err();
                assert!(error.to_string().contains("rank 0 has joined"), "{error}");
            }
            c.join().await?;
            Ok::<_, CommError>(got)
        });
        let direct: Vec<Vec<Tensor>> = join_all(work).await.into_iter().map(|r| r.unwrap()).collect();
        let fold = |f: fn(f32, f32) -> f32| {
            let sum = stay.iter().map(|&r| x(r).into_vec::<f32>().unwrap()).reduce(|a, b| a.iter().zip(b).map(|(a, b)| f(*a, b)).collect());
            sum.unwrap()
        };
        for &rank in stay {
            let got = &direct[rank];
            let plain = |i: usize| got[i].as_slice::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let sum = fold(|a, b| a + b);
            assert_eq!(plain(0), sum.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            assert_eq!(plain(1), sum.iter().map(|x| (x / stay.len() as f32).to_bits()).collect::<Vec<_>>());
            assert_eq!(got[2].shape()[..], [stay.len() * 3 * FROM]);
            assert_eq!(got[3].shape()[..], [FROM]);
            assert_eq!(bits(&got[4..]), bits(&[x(1)]));
        }
    }
}

#[tokio::test]
async fn large_collectives_that_overlap_keep_the_order_of_the_calls() {
    let (options, listeners) = open(4);
    let group = whole(form(&options, &listeners).await);
    let runs = group.iter().map(|c| {
        // Every second one is small.
        let n = |k: usize| if k.is_multiple_of(2) { 3 * FROM } else { 3 };
        let mut calls: Vec<_> =
            (0..30).map(|k| c.all_reduce("x", Tensor::full([n(k)], (c.rank() + k) as i64).unwrap(), ReduceOp::Sum)).collect();
        calls.reverse();
        join_all(calls)
    });
    for results in join_all(runs).await {
        for (k, r) in results.into_iter().rev().enumerate() {
            assert!(r.unwrap().as_slice::<i64>().unwrap().iter().all(|&x| x == 6 + 4 * k as i64));
        }
    }
}

#[tokio::test]
async fn ranks_that_disagree_on_large_tensors_all_see_both_sides() {
    let (options, listeners) = open(3);
    let group = whole(form(&options, &listeners).await);
    let x = |n: usize| Tensor::vector(vec![1f32; n]);
    let results = futures::join!(
        group[0].all_reduce("x", x(2 * FROM), ReduceOp::Sum),
        group[1].all_reduce("x", x(2 * FROM), ReduceOp::Sum),
        group[2].all_reduce("x", x(3), ReduceOp::Sum)
    );
    for r in [results.0, results.1, results.2] {
        let text = r.unwrap_err().to_string();
        let (a, b) = (r#"rank 0 runs all_reduce(sum) "x" float32[8192]"#, r#"rank 1 runs all_reduce(sum) "x" float32[8192]"#);
        assert!(text.starts_with("ranks disagree: collective 0: ") && (text.contains(a) || text.contains(b)), "{text}");
        assert!(text.ends_with(r#"rank 2 runs all_reduce(sum) "x" float32[3]"#), "{text}");
    }
}

/// Passes bytes on to an address and counts them; after so many it stops, but takes note of ends.
struct Proxy {
    address: String,
    moved: Arc<AtomicU64>,
    stalled: Arc<AtomicBool>,
    full: Arc<Notify>,
}

impl Proxy {
    fn before(to: &str, limit: u64) -> Self {
        let front = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy =
            Self { address: front.local_addr().unwrap().to_string(), moved: Arc::default(), stalled: Arc::default(), full: Arc::default() };
        let (to, moved, stalled, full) = (to.to_owned(), proxy.moved.clone(), proxy.stalled.clone(), proxy.full.clone());
        std::thread::spawn(move || {
            for client in front.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&to).unwrap());
                for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                    let (moved, stalled, full) = (moved.clone(), stalled.clone(), full.clone());
                    std::thread::spawn(move || {
                        let mut buffer = [0; 16 << 10];
                        while let Ok(n @ 1..) = from.read(&mut buffer) {
                            if moved.fetch_add(n as u64, SeqCst) + n as u64 >= limit {
                                stalled.store(true, SeqCst);
                                full.notify_one();
                            }
                            if !stalled.load(SeqCst) && to.write_all(&buffer[..n]).is_err() {
                                break;
                            }
                        }
                        _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        proxy
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rank_moves_many_times_the_payload() {
    let size = 5;
    let (mut options, listeners) = open(size);
    let proxies: Vec<Proxy> = options[0].endpoints.iter().map(|e| Proxy::before(e, u64::MAX)).collect();
    let fronts: Vec<String> = proxies.iter().map(|p| p.address.clone()).collect();
    options.iter_mut().for_each(|o| o.endpoints = fronts.clone());
    let group = whole(form(&options, &listeners).await);
    let n = 1 << 20;
    let moved = || proxies.iter().map(|p| p.moved.swap(0, SeqCst)).collect::<Vec<_>>();
    let x = |c: &dyn Comm| noise(DType::F32, &[n / 4], c.rank(), 0);
    // All that a rank gives goes through its proxy, what others and it say to rank 0 through rank 0's. By way of rank 0 that would be
    // 8 times the payload.
    moved();
    let small = |bytes: u64, share: f64| assert!((bytes as f64) < share * n as f64 + 64e3, "{bytes} bytes of {n}");
    all(&group, |c| c.all_reduce("x", x(c), ReduceOp::Sum)).await;
    moved().into_iter().for_each(|bytes| small(bytes, 1.6));
    all(&group, |c| c.reduce_scatter("x", noise(DType::F32, &[size, n / 4 / size], c.rank(), 0), ReduceOp::Sum)).await;
    moved().into_iter().for_each(|bytes| small(bytes, 0.8));
    all(&group, |c| c.broadcast("x", x(c), 3)).await;
    for (rank, bytes) in moved().into_iter().enumerate() {
        small(bytes, if rank == 3 { 1.6 } else { 0.8 });
    }
    all(&group, |c| c.all_gather("x", x(c), 0)).await;
    moved().into_iter().for_each(|bytes| small(bytes, 4.0));
}

const MIB: usize = 1 << 20;

/// Three ranks that add up 3 MiB, of which rank `victim` is lost once it has given about `after` bytes to the others.
async fn cut(victim: usize, after: usize, hangs: bool) -> (String, Vec<CommError>) {
    let (mut options, listeners) = open(3);
    let proxy = Proxy::before(&options[0].endpoints[victim], after as u64);
    options.iter_mut().for_each(|o| o.endpoints[victim] = proxy.address.clone());
    let mut second = None;
    if hangs {
        options.iter_mut().for_each(|o| o.heartbeat_timeout = Duration::from_secs(2));
        if victim > 0 {
            // What it says to rank 0, too.
            let star = Proxy::before(&options[0].endpoints[0], u64::MAX);
            options[victim].endpoints[0] = star.address.clone();
            second = Some(star);
        }
    }
    let mut group = form(&options, &listeners).await;
    let pending: Vec<_> = group.iter().flatten().cloned().collect();
    let run = |c: Arc<dyn Comm>| async move {
        let x = noise(DType::F32, &[3 * MIB / 4], c.rank(), 0);
        c.all_reduce("x", x, ReduceOp::Sum).await
    };
    let mut tasks: Vec<_> = pending.into_iter().enumerate().map(|(r, c)| (r, tokio::spawn(run(c)))).collect();
    tokio::select! {
        () = proxy.full.notified() => {}
        early = &mut tasks[victim].1 => panic!("ended early: {:?}", early.map(|r| r.err())),
    }
    if let Some(star) = &second {
        star.stalled.store(true, SeqCst);
    }
    if !hangs {
        // Its call still holds it.
        tasks[victim].1.abort();
        tokio::task::spawn_blocking({
            let gone = group[victim].take();
            move || drop(gone)
        })
        .await
        .unwrap();
    }
    let mut errors = Vec::new();
    for (rank, task) in tasks {
        if rank != victim {
            errors.push(task.await.unwrap().unwrap_err());
        }
    }
    // Nothing works any more.
    for (rank, c) in group.iter().enumerate().filter(|(rank, _)| *rank != victim) {
        let later = c.as_ref().unwrap().barrier("later").await.unwrap_err();
        let first = &errors[if rank < victim { rank } else { rank - 1 }];
        if hangs && victim == 0 {
            // Two connections lead to it: one may have been closed by it when the other's silence was noticed.
            assert!(matches!(&later, CommError::Lost { rank: 0, .. }) && later.to_string().contains(&proxy.address), "{later}, {first}");
        } else {
            assert_eq!(later.to_string(), first.to_string());
        }
    }
    (proxy.address, errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_dies_on_the_way_is_named_with_its_address() {
    // In the first phase, between the two, in the second: each rank gives 2 MiB in each.
    for after in [100 << 10, 2 * MIB + 2000, 3 * MIB] {
        for victim in [2, 1] {
            let (address, errors) = cut(victim, after, false).await;
            for e in errors {
                assert!(matches!(e, CommError::Lost { rank, .. } if rank == victim) && e.to_string().contains(&address), "{e} ({address})");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rank_0_that_dies_on_the_way_is_named_with_its_address() {
    for after in [100 << 10, 2 * MIB + 2000, 3 * MIB] {
        let (address, errors) = cut(0, after, false).await;
        for e in errors {
            assert!(matches!(e, CommError::Lost { rank: 0, .. }) && e.to_string().contains(&address), "{e} ({address})");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_hangs_on_the_way_is_named_with_its_address() {
    for (victim, after) in [(0, 100 << 10), (1, 100 << 10), (2, 3 * MIB), (0, 3 * MIB)] {
        let (address, errors) = cut(victim, after, true).await;
        for e in errors {
            // Cut off from the others, it may give up first, and then it is the end of its connections that they see.
            assert!(matches!(e, CommError::Lost { rank, .. } if rank == victim) && e.to_string().contains(&address), "{e} ({address})");
        }
    }
}

#[tokio::test]
async fn a_rank_that_others_cannot_connect_to_is_named_with_its_address() {
    let (mut options, listeners) = open(3);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    options.iter_mut().for_each(|o| o.endpoints[1] = closed.clone());
    let group = whole(form(&options, &listeners).await);
    let errors = join_all(group.iter().map(|c| c.all_reduce("x", noise(DType::F32, &[FROM], c.rank(), 0), ReduceOp::Sum))).await;
    let errors: Vec<String> = errors.into_iter().map(|e| e.unwrap_err().to_string()).collect();
    assert!(errors[0].starts_with(&format!("worker {closed} is unavailable: rank ")), "{}", errors[0]);
    assert!(errors[0].contains(" cannot connect to rank 1 there: Connection refused"), "{}", errors[0]);
    assert!(errors.iter().all(|e| *e == errors[0]), "{errors:?}");
}

#[tokio::test]
async fn a_rank_that_does_not_come_to_a_large_collective_is_named() {
    let (mut options, listeners) = open(3);
    options.iter_mut().for_each(|o| o.timeout = Duration::from_millis(300));
    let group = whole(form(&options, &listeners).await);
    let run = |r: usize| group[r].all_reduce("x", noise(DType::F32, &[FROM], r, 0), ReduceOp::Sum);
    let errors = futures::join!(run(0), run(1));
    let want = format!("rank 2 did not take part in \"x\" within 0.3 s ({})", options[0].endpoints[2]);
    assert_eq!(errors.0.unwrap_err().to_string(), want);
    assert_eq!(errors.1.unwrap_err().to_string(), want);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_may_leave_as_soon_as_its_large_collective_is_done() {
    for _ in 0..5 {
        let (options, listeners) = open(3);
        let leave = async |c: Arc<dyn Comm>| c.all_reduce("x", noise(DType::F32, &[MIB / 4], c.rank(), 0), ReduceOp::Max).await;
        let results = join_all(whole(form(&options, &listeners).await).into_iter().map(leave)).await;
        let results: Vec<Tensor> = results.into_iter().map(|r| r.unwrap()).collect();
        assert!(bits(&results[..1]) == bits(&results[1..2]) && bits(&results[..1]) == bits(&results[2..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_formed_anew_on_the_same_addresses_moves_large_tensors() {
    let (mut options, listeners) = open(3);
    options.iter_mut().for_each(|o| o.rejoin = true);
    for round in 0..4 {
        let group = form(&options, &listeners).await;
        for result in join_all(group.iter().flatten().map(|c| c.all_reduce("x", Tensor::full([FROM], 1f32).unwrap(), ReduceOp::Sum))).await
        {
            assert_eq!(result.unwrap(), Tensor::full([FROM], 3f32).unwrap());
        }
        // One is lost, and the others leave.
        let mut group = group;
        group[round % 3] = None;
        for c in group.iter().flatten() {
            let lost = c.all_reduce("x", Tensor::full([FROM], 1f32).unwrap(), ReduceOp::Sum).await.unwrap_err();
            assert!(matches!(lost, CommError::Lost { rank, .. } if rank == round % 3), "{lost}");
        }
    }
}

#[tokio::test]
async fn ranks_other_than_0_let_nobody_in_who_does_not_belong_there() {
    type Change = fn(&mut GroupOptions);
    let changes: [(Change, &str); 4] = [
        (|o| o.token = Some("guess".into()), "a token is required, another one was sent"),
        (|o| o.token = None, "a token is required, none was sent"),
        (|o| o.plan_id = "plan-b".into(), "plan id plan-a here, plan-b at the peer"),
        (|_| {}, "this is rank 1; are the endpoints in the same order everywhere?"),
    ];
    let (mut options, listeners) = open(2);
    options.iter_mut().for_each(|o| o.token = Some("secret".into()));
    let group = whole(form(&options, &listeners).await);
    for (change, text) in changes {
        let mut wrong = options[1].clone();
        wrong.endpoints[0] = wrong.endpoints[1].clone();
        change(&mut wrong);
        let error = comm::connect(wrong, None).await.unwrap_err();
        assert!(matches!(error, CommError::Refused { .. }) && error.to_string().ends_with(text), "{error}");
    }
    // Bytes that are no handshake do no harm.
    let mut stranger = TcpStream::connect(&options[0].endpoints[1]).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(stranger.read(&mut [0; 16]).unwrap_or(0), 0);
    all(&group, |c| c.all_reduce("x", noise(DType::F32, &[FROM], c.rank(), 0), ReduceOp::Sum)).await;
}
