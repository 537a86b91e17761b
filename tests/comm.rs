//! One contract, run by every kind of group; and what groups do when a rank is late, lost or elsewhere.

#[path = "comm/direct.rs"]
mod direct;

use bytes::Bytes;
use futures::future::join_all;
use graphtool::comm::{self, Comm, CommError, GroupOptions, ReduceOp, local_group, solo};
use graphtool::tensor::{DType, Tensor, bf16, cast, f16};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

type Group = Vec<Arc<dyn Comm>>;

/// The options of all ranks of a group on this machine, and rank 0's listener.
fn plan(size: usize) -> (Vec<GroupOptions>, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut endpoints = vec![listener.local_addr().unwrap().to_string()];
    endpoints.extend((1..size).map(|r| format!("worker-{r}:0")));
    let options = |rank| GroupOptions {
        plan_id: "plan-a".into(),
        fingerprint: "graph-a".into(),
        connect_timeout: Duration::from_secs(20),
        timeout: Duration::from_secs(20),
        ..GroupOptions::new(rank, endpoints.clone())
    };
    ((0..size).map(options).collect(), listener)
}

async fn form(options: Vec<GroupOptions>, listener: TcpListener) -> Vec<Result<Arc<dyn Comm>, CommError>> {
    let mut listener = Some(listener);
    let ranks: Vec<_> = options.into_iter().map(|o| (if o.rank == 0 { listener.take() } else { None }, o)).collect();
    join_all(ranks.into_iter().map(|(listener, o)| comm::connect(o, listener))).await
}

async fn tcp(size: usize, change: impl Fn(&mut GroupOptions)) -> Group {
    let (mut options, listener) = plan(size);
    options.iter_mut().for_each(change);
    form(options, listener).await.into_iter().map(|c| c.unwrap()).collect()
}

/// Groups of every kind and 1 to 5 ranks; some cut what they send into small parts, and in some all bytes go from rank to rank.
async fn groups() -> Vec<Group> {
    let mut groups = vec![vec![solo()]];
    for size in 1..=5 {
        groups.push(local_group(size).unwrap());
        groups.push(tcp(size, |_| {}).await);
        groups.push(tcp(size, |o| o.direct_from = 1).await);
    }
    groups.push(tcp(3, |o| o.max_frame = 1000).await);
    groups.push(tcp(4, |o| (o.max_frame, o.direct_from) = (1000, 1)).await);
    groups
}

/// Runs `f` on all ranks at once; gives what each got.
async fn all<'a, F, T>(group: &'a Group, f: impl Fn(&'a dyn Comm) -> F) -> Vec<T>
where
    F: Future<Output = Result<T, CommError>>,
{
    join_all(group.iter().map(|c| f(&**c))).await.into_iter().map(|r| r.unwrap()).collect()
}

fn t(x: &[f32]) -> Tensor {
    Tensor::vector(x.to_vec())
}

#[tokio::test]
async fn reductions_combine_all_ranks() {
    for group in groups().await {
        let n = group.len() as f32;
        let ranks = || (0..group.len()).map(|r| r as f32 + 1.0);
        let want = |op| match op {
            ReduceOp::Sum => ranks().sum::<f32>(),
            ReduceOp::Mean => ranks().sum::<f32>() / n,
            ReduceOp::Max => n,
            ReduceOp::Min => 1.0,
        };
        let numbers = DType::all().filter(|d| d.bits() >= 16 && (d.is_float() || d.is_int()) || matches!(d, DType::U8 | DType::I8));
        for dtype in numbers {
            for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min] {
                let x = |c: &dyn Comm| cast(&Tensor::full([2, 3], c.rank() as f32 + 1.0).unwrap(), dtype).unwrap();
                let got = all(&group, |c| c.all_reduce("loss", x(c), op)).await;
                let want = cast(&Tensor::full([2, 3], want(op)).unwrap(), dtype).unwrap();
                assert!(got.iter().all(|g| *g == want), "{op:?} of {dtype} over {n}: {got:?}");
            }
        }
    }
}

#[tokio::test]
async fn ranks_are_combined_in_their_order() {
    // In any other order, or in another precision, the bits differ.
    let parts = [1e8f32, 1.0, -1e8, 0.25, 3.0];
    let halves = [2048.0f32, 1.0, 1.0, 1.0, 1.0];
    for group in groups().await {
        let want = parts[..group.len()].iter().fold(0.0, |a, b| a + b);
        for got in all(&group, |c| c.all_reduce("x", t(&parts[c.rank()..=c.rank()]), ReduceOp::Sum)).await {
            assert_eq!(got.item::<f32>().unwrap().to_bits(), want.to_bits());
        }
        let sum: f32 = halves[..group.len()].iter().sum();
        let half = |c: &dyn Comm| Tensor::vector(vec![f16::from_f32(halves[c.rank()])]);
        let got = all(&group, |c| c.all_reduce("h", half(c), ReduceOp::Sum)).await;
        assert_eq!(got[0], Tensor::vector(vec![f16::from_f32(sum)]));
        let half = |c: &dyn Comm| Tensor::vector(vec![bf16::from_f32(halves[c.rank()])]);
        let got = all(&group, |c| c.all_reduce("b", half(c), ReduceOp::Sum)).await;
        assert_eq!(got[0], Tensor::vector(vec![bf16::from_f32(sum)]));
    }
}

#[tokio::test]
async fn gathers_scatters_and_broadcasts() {
    for group in groups().await {
        let n = group.len();
        // Rank r has r rows, so rank 0 has none.
        let rows = |c: &dyn Comm| Tensor::full([c.rank(), 2], c.rank() as i64).unwrap();
        let want: Vec<i64> = (0..n).flat_map(|r| vec![r as i64; 2 * r]).collect();
        for got in all(&group, |c| c.all_gather("g", rows(c), 0)).await {
            assert_eq!(got, Tensor::new([want.len() / 2, 2], want.clone()).unwrap());
        }
        let columns = |c: &dyn Comm| Tensor::new([2, 1], vec![c.rank() as u8, c.rank() as u8 + 10]).unwrap();
        let want: Vec<u8> = (0..n as u8).chain(10..10 + n as u8).collect();
        for got in all(&group, |c| c.all_gather("g", columns(c), 1)).await {
            assert_eq!(got, Tensor::new([2, n], want.clone()).unwrap());
        }
        let whole = |_: &dyn Comm| Tensor::new([n, 2], (0..2 * n).map(|i| i as f32).collect()).unwrap();
        for (r, got) in all(&group, |c| c.reduce_scatter("s", whole(c), ReduceOp::Sum)).await.into_iter().enumerate() {
            let (a, b) = ((2 * r * n) as f32, ((2 * r + 1) * n) as f32);
            assert_eq!(got, Tensor::new([1, 2], vec![a, b]).unwrap());
        }
        for root in 0..n {
            let x = |c: &dyn Comm| Tensor::vector(vec![c.rank() as i32; 3]);
            for got in all(&group, |c| c.broadcast("b", x(c), root)).await {
                assert_eq!(got, Tensor::vector(vec![root as i32; 3]));
            }
        }
        all(&group, |c| c.barrier("wait")).await;
        for (r, got) in
            all(&group, |c| c.gather_bytes("p", Bytes::from(vec![c.rank() as u8; 3000 * c.rank()]))).await.into_iter().enumerate()
        {
            assert_eq!(got.is_some(), r == 0);
            for (rank, payload) in got.into_iter().flatten().enumerate() {
                assert_eq!(payload, vec![rank as u8; 3000 * rank]);
            }
        }
    }
}

#[tokio::test]
async fn tensors_without_elements_take_part() {
    for group in groups().await {
        let empty = |_: &dyn Comm| Tensor::new([0, 2], Vec::<f32>::new()).unwrap();
        for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min] {
            let got = all(&group, |c| c.all_reduce("x", empty(c), op)).await;
            assert!(got.iter().all(|g| g.shape()[..] == [0, 2]));
        }
        let got = all(&group, |c| c.all_gather("x", empty(c), 0)).await;
        assert!(got.iter().all(|g| g.shape()[..] == [0, 2]));
        let got = all(&group, |c| c.broadcast("x", empty(c), 0)).await;
        assert!(got.iter().all(|g| g.shape()[..] == [0, 2]));
    }
}

#[tokio::test]
async fn tensors_over_the_frame_limit_are_split() {
    let group = tcp(3, |o| o.max_frame = 64 << 10).await;
    let x = |c: &dyn Comm| Tensor::full([1000, 50], c.rank() as f32).unwrap();
    let got = all(&group, |c| c.all_reduce("x", x(c), ReduceOp::Sum)).await;
    assert!(got.iter().all(|g| *g == Tensor::full([1000, 50], 3f32).unwrap()));
    let got = all(&group, |c| c.all_gather("x", x(c), 0)).await;
    assert!(got.iter().all(|g| g.shape()[..] == [3000, 50] && g.as_slice::<f32>().unwrap()[149_999] == 2.0));
}

#[tokio::test]
async fn collectives_that_overlap_keep_the_order_of_the_calls() {
    for group in groups().await {
        let n = group.len();
        let runs = group.iter().map(|c| {
            let calls = (0..50).map(|k| c.all_reduce("x", Tensor::scalar((c.rank() + k) as i64), ReduceOp::Sum));
            // Called in order, polled in the opposite one.
            let mut calls: Vec<_> = calls.collect();
            calls.reverse();
            join_all(calls)
        });
        for results in join_all(runs).await {
            for (k, r) in results.into_iter().rev().enumerate() {
                assert_eq!(r.unwrap().item::<i64>().unwrap(), (n * (n - 1) / 2 + n * k) as i64);
            }
        }
    }
}

/// Each rank counts its batches with an all_reduce per batch, then joins; gives the sum that rank 0 saw of all batches.
async fn count(group: &Group, batches: &[usize], op: ReduceOp) -> Vec<Vec<f32>> {
    let run = async |c: &dyn Comm| {
        let mut seen = Vec::new();
        for _ in 0..batches[c.rank()] {
            seen.push(c.all_reduce("count", t(&[c.rank() as f32 + 1.0]), op).await?.item::<f32>().unwrap());
        }
        c.join().await?;
        Ok::<_, CommError>(seen)
    };
    let ranks = join_all(group.iter().map(|c| run(&**c))).await;
    ranks.into_iter().map(|r| r.unwrap()).collect()
}

#[tokio::test]
async fn ranks_without_batches_left_have_joined() {
    for group in [local_group(2).unwrap(), tcp(2, |_| {}).await, tcp(2, |o| o.direct_from = 1).await] {
        // Twice, for a group goes on after all have joined.
        for _ in 0..2 {
            let seen = count(&group, &[5, 3], ReduceOp::Sum).await;
            assert_eq!(seen, [vec![3.0, 3.0, 3.0, 1.0, 1.0], vec![3.0; 3]]);
            assert_eq!(count(&group, &[5, 0], ReduceOp::Sum).await, [vec![1.0; 5], vec![]]);
            assert_eq!(count(&group, &[0, 2], ReduceOp::Mean).await, [vec![], vec![2.0; 2]]);
            assert_eq!(count(&group, &[3, 1], ReduceOp::Mean).await[0], [1.5, 1.0, 1.0]);
            assert_eq!(count(&group, &[1, 2], ReduceOp::Max).await[1], [2.0, 2.0]);
            assert_eq!(count(&group, &[0, 0], ReduceOp::Sum).await, vec![Vec::<f32>::new(); 2]);
        }
        // What the others do while a rank has joined.
        let (a, b) = (&group[0], &group[1]);
        let work = async {
            a.barrier("alone").await.unwrap();
            assert_eq!(a.all_gather("g", t(&[1.0]), 0).await.unwrap(), t(&[1.0]));
            assert_eq!(a.gather_bytes("p", Bytes::from_static(b"x")).await.unwrap().unwrap(), ["x", ""]);
            let error = a.broadcast("b", t(&[1.0]), 1).await.unwrap_err();
            assert_eq!(error.to_string(), "broadcast(root 1) \"b\": rank 1 has joined, or is none of 2 ranks");
            a.join().await.unwrap();
        };
        futures::join!(work, async { b.join().await.unwrap() });
    }
}

#[tokio::test]
async fn what_cannot_be_reduced_is_the_same_error_for_all() {
    for group in groups().await {
        let bools = |_: &dyn Comm| Tensor::vector(vec![true]);
        let errors = join_all(group.iter().map(|c| c.all_reduce("x", bools(&**c), ReduceOp::Sum))).await;
        assert!(errors.into_iter().all(|e| matches!(e, Err(CommError::Invalid(_)))));
        if group.len() > 1 {
            let errors = join_all(group.iter().map(|c| c.reduce_scatter("x", t(&[1.0]), ReduceOp::Sum))).await;
            assert!(errors.into_iter().all(|e| e.unwrap_err().to_string().contains("does not divide among")));
        }
        // The group lives on.
        all(&group, |c| c.barrier("after")).await;
    }
}

#[tokio::test]
async fn ranks_that_disagree_all_see_both_sides() {
    type Call = fn(&dyn Comm) -> comm::CommFuture<'_, Tensor>;
    let a: Call = |c| c.all_reduce("a", t(&[1.0, 2.0]), ReduceOp::Sum);
    let others: [(Call, &str); 5] = [
        (|c| c.all_gather("g", t(&[1.0, 2.0]), 0), "all_gather(axis 0) \"g\" float32[2]"),
        (|c| c.all_reduce("a", t(&[1.0, 2.0, 3.0]), ReduceOp::Sum), "all_reduce(sum) \"a\" float32[3]"),
        (|c| c.all_reduce("a", t(&[1.0, 2.0]), ReduceOp::Max), "all_reduce(max) \"a\" float32[2]"),
        (|c| c.all_reduce("b", t(&[1.0, 2.0]), ReduceOp::Sum), "all_reduce(sum) \"b\" float32[2]"),
        (|c| c.all_reduce("a", Tensor::vector(vec![1i64, 2]), ReduceOp::Sum), "all_reduce(sum) \"a\" int64[2]"),
    ];
    for (b, text) in others {
        for group in [local_group(3).unwrap(), tcp(3, |_| {}).await, tcp(3, |o| o.direct_from = 1).await] {
            let want = format!("ranks disagree: collective 0: rank 0 runs all_reduce(sum) \"a\" float32[2], rank 2 runs {text}");
            let errors = futures::join!(a(&*group[0]), b(&*group[2]));
            assert_eq!(errors.0.unwrap_err().to_string(), want);
            assert_eq!(errors.1.unwrap_err().to_string(), want);
            assert_eq!(a(&*group[1]).await.unwrap_err().to_string(), want);
            assert_eq!(group[0].barrier("later").await.unwrap_err().to_string(), want);
        }
    }
}

#[tokio::test]
async fn a_lost_rank_ends_what_needs_it() {
    for lost in 0..3 {
        for group in [local_group(3).unwrap(), tcp(3, |_| {}).await, tcp(3, |o| o.direct_from = 1).await] {
            let mut group: Vec<Option<Arc<dyn Comm>>> = group.into_iter().map(Some).collect();
            let gone = group[lost].take();
            let rest: Vec<_> = group.into_iter().flatten().collect();
            let pending = join_all(rest.iter().map(|c| c.all_reduce("x", t(&[1.0]), ReduceOp::Sum)));
            let (results, ()) = futures::join!(pending, async { drop(gone) });
            for r in results {
                let error = r.unwrap_err();
                assert!(matches!(error, CommError::Lost { rank, .. } if rank == lost), "{error}");
            }
            // It stays lost.
            for c in &rest {
                assert!(c.join().await.unwrap_err().to_string().starts_with(&format!("rank {lost} lost: ")));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_is_lost_while_it_waits_itself_is_noticed_at_once() {
    for direct_from in [usize::MAX, 1] {
        // Nobody is silent for so long: it is the end of the connection that tells.
        let group = tcp(3, |o| (o.heartbeat_timeout, o.direct_from) = (Duration::from_secs(3600), direct_from)).await;
        let mut group: Vec<Option<Arc<dyn Comm>>> = group.into_iter().map(Some).collect();
        let gone = group[1].take().unwrap();
        let mut waits = gone.all_reduce("x", t(&[1.0]), ReduceOp::Sum);
        assert!(futures::poll!(&mut waits).is_pending());
        drop(waits);
        tokio::task::spawn_blocking(move || drop(gone)).await.unwrap();
        // The first needs it no more; the second cannot be without it.
        let root = group[0].as_ref().unwrap();
        let both = [root.all_reduce("x", t(&[1.0]), ReduceOp::Sum), root.all_reduce("y", t(&[1.0]), ReduceOp::Sum)];
        for result in join_all(both).await {
            let error = result.unwrap_err();
            assert!(matches!(error, CommError::Lost { rank: 1, .. }), "{error}");
        }
    }
}

#[tokio::test]
async fn a_rank_that_leaves_after_the_last_join_is_not_missed() {
    for _ in 0..10 {
        let group = tcp(3, |_| {}).await;
        // Each leaves as soon as its own join is answered, rank 0 among them.
        let leave = async |c: Arc<dyn Comm>| c.join().await;
        for r in join_all(group.into_iter().map(leave)).await {
            r.unwrap();
        }
    }
}

#[tokio::test]
async fn a_rank_that_does_not_take_part_is_named_in_time() {
    let group = tcp(3, |o| o.timeout = Duration::from_millis(300)).await;
    let errors = futures::join!(group[0].barrier("b"), group[1].barrier("b"));
    assert_eq!(errors.0.unwrap_err().to_string(), "rank 2 did not take part in \"b\" within 0.3 s (worker-2:0)");
    assert!(matches!(errors.1, Err(CommError::Timeout { rank: 2, .. })));
}

#[tokio::test]
async fn a_rank_that_never_comes_is_named() {
    let (mut options, listener) = plan(3);
    options.iter_mut().for_each(|o| o.connect_timeout = Duration::from_millis(500));
    options[1].connect_timeout = Duration::from_secs(20);
    options.pop();
    for r in form(options, listener).await {
        assert_eq!(r.unwrap_err().to_string(), "worker worker-2:0 is unavailable: rank 2 did not connect within 0.5 s");
    }
    let (mut options, listener) = plan(2);
    drop(listener);
    options[1].connect_timeout = Duration::from_millis(300);
    let error = comm::connect(options.pop().unwrap(), None).await.unwrap_err();
    assert!(matches!(error, CommError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains(&options[0].endpoints[0]), "{error}");
}

#[tokio::test]
async fn rank_0_may_start_last() {
    let (mut options, listener) = plan(3);
    let address = listener.local_addr().unwrap();
    drop(listener);
    let root = options.remove(0);
    let others = join_all(options.into_iter().map(|o| comm::connect(o, None)));
    let root = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        comm::connect(root, Some(TcpListener::bind(address).unwrap())).await.unwrap()
    };
    let (others, root) = futures::join!(others, root);
    let group: Group = std::iter::once(root).chain(others.into_iter().map(|o| o.unwrap())).collect();
    all(&group, |c| c.barrier("x")).await;
}

#[tokio::test]
async fn ranks_of_another_deployment_are_refused() {
    type Change = fn(&mut GroupOptions);
    let changes: [(Change, &str); 4] = [
        (|o| o.plan_id = "plan-b".into(), "plan id plan-a here, plan-b at the peer"),
        (|o| o.fingerprint = "graph-b".into(), "graph fingerprint graph-a here, graph-b at the peer"),
        (|o| o.token = Some("guess".into()), "a token is required, another one was sent"),
        (|o| o.endpoints.push("more:1".into()), "number of workers 2 here, 3 at the peer"),
    ];
    for (change, text) in changes {
        let (mut options, listener) = plan(2);
        options.iter_mut().for_each(|o| o.token = Some("secret".into()));
        options[0].connect_timeout = Duration::from_millis(500);
        change(&mut options[1]);
        let results = form(options, listener).await;
        let error = results[1].as_ref().err().unwrap();
        assert!(matches!(error, CommError::Refused { .. }), "{error}");
        assert!(error.to_string().ends_with(text), "{error}");
        assert!(matches!(results[0], Err(CommError::Unavailable { .. })));
    }
}

#[tokio::test]
async fn a_silent_rank_is_lost() {
    use std::io::{Read, Write};
    // A proxy that stops passing bytes on, as a host does that is cut off.
    let (mut options, listener) = plan(2);
    options.iter_mut().for_each(|o| o.heartbeat_timeout = Duration::from_millis(500));
    let to = listener.local_addr().unwrap();
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let front_address = front.local_addr().unwrap().to_string();
    options[1].endpoints[0] = front_address.clone();
    let stalled = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = stalled.clone();
    std::thread::spawn(move || {
        let client = front.accept().unwrap().0;
        let server = std::net::TcpStream::connect(to).unwrap();
        for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
            let flag = flag.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n) = from.read(&mut buffer) {
                    if n == 0 || (!flag.load(std::sync::atomic::Ordering::SeqCst) && to.write_all(&buffer[..n]).is_err()) {
                        return;
                    }
                }
            });
        }
    });
    let group: Group = form(options, listener).await.into_iter().map(|c| c.unwrap()).collect();
    all(&group, |c| c.barrier("x")).await;
    stalled.store(true, std::sync::atomic::Ordering::SeqCst);
    let (a, b) = futures::join!(group[0].barrier("y"), group[1].barrier("y"));
    assert_eq!(a.unwrap_err().to_string(), "rank 1 lost: nothing was heard of it for 0.5 s (worker-1:0)");
    assert_eq!(b.unwrap_err().to_string(), format!("rank 0 lost: nothing was heard of it for 0.5 s ({front_address})"));
}

/// A group in which places may be taken again, with one rank per vector entry.
async fn rejoining(size: usize) -> (Vec<GroupOptions>, TcpListener, Vec<Option<Arc<dyn Comm>>>) {
    let (mut options, listener) = plan(size);
    options.iter_mut().for_each(|o| o.rejoin = true);
    let group = form(options.clone(), listener.try_clone().unwrap()).await.into_iter().map(|c| Some(c.unwrap())).collect();
    (options, listener, group)
}

fn late(o: &GroupOptions) -> GroupOptions {
    GroupOptions { late: true, ..o.clone() }
}

async fn sum(group: &[Option<Arc<dyn Comm>>]) -> Vec<Result<Tensor, CommError>> {
    join_all(group.iter().flatten().map(|c| c.all_reduce("x", t(&[1.0]), ReduceOp::Sum))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_comes_back_before_the_first_collective_is_taken_in() {
    let (options, _listener, mut group) = rejoining(3).await;
    group[1] = None;
    group[1] = Some(comm::connect(late(&options[1]), None).await.unwrap());
    for result in sum(&group).await {
        assert_eq!(result.unwrap(), t(&[3.0]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rank_0_that_comes_back_is_found_by_the_others() {
    let (options, listener, mut group) = rejoining(3).await;
    group[0] = None;
    let root = comm::connect(late(&options[0]), Some(listener)).await.unwrap();
    // Who asks before it has noticed is told of the loss, and comes again.
    let others = group.drain(1..).zip(&options[1..]).map(|(comm, o)| async move {
        let mut comm = comm.unwrap();
        loop {
            match comm.all_reduce("x", t(&[1.0]), ReduceOp::Sum).await {
                Err(CommError::Lost { rank: 0, .. }) => comm = comm::connect(late(o), None).await.unwrap(),
                done => break done.unwrap(),
            }
        }
    });
    let (sum, others) = futures::join!(root.all_reduce("x", t(&[1.0]), ReduceOp::Sum), join_all(others));
    assert_eq!(sum.unwrap(), t(&[3.0]));
    assert_eq!(others, [t(&[3.0]), t(&[3.0])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_comes_back_later_ends_the_group_for_a_new_one() {
    let (options, listener, mut group) = rejoining(2).await;
    for result in sum(&group).await {
        result.unwrap();
    }
    // Rank 1 knows nothing of the sum: the group ends, and what the two form next is whole again.
    group[1] = None;
    let back = tokio::spawn(comm::connect(late(&options[1]), None));
    let lost = group[0].as_ref().unwrap().barrier("b").await.unwrap_err();
    assert!(matches!(lost, CommError::Lost { rank: 1, .. }), "{lost}");
    group[0] = None;
    group[0] = Some(comm::connect(late(&options[0]), Some(listener)).await.unwrap());
    group[1] = Some(back.await.unwrap().unwrap());
    for result in sum(&group).await {
        assert_eq!(result.unwrap(), t(&[2.0]));
    }
}
