//! Requests of several clients in one run.

use super::*;
use crate::exec::Options;
use crate::ir::parse_model;
use crate::tensor::Tensor;
use futures::FutureExt;
use futures::future::join_all;

/// A queue before a graph that waits until this many samples are there.
fn start(body: &str, samples: usize, queue: usize) -> (Arc<Batcher>, Arc<Counts>) {
    let model = parse_model(&format!("model ir_version=8 opset=[\"\"=13]\n{body}")).unwrap();
    let session = Session::new(&model, Options { threads: 1, ..Options::default() }).unwrap();
    let options = BatchOptions { samples, delay: Duration::from_secs(600), queue, runs: 1 };
    let counts = Arc::<Counts>::default();
    (Batcher::start(session, true, options, counts.clone()).unwrap(), counts)
}

fn ids(data: &[i64]) -> Named {
    vec![("ids".into(), Tensor::vector(data.to_vec()).into())]
}

fn rows(data: &[f32]) -> Named {
    vec![("y".into(), Tensor::new([data.len(), 1], data.to_vec()).unwrap().into())]
}

const LOOKUP: &str = "graph g(ids: int64[n]) -> (y) {\n  param T: float32[4,1] = [10.0, 11.0, 12.0, 13.0]\n  y = Gather(T, ids)\n}";

fn answers(batcher: &Arc<Batcher>, asks: &[Named]) -> Vec<Result<Named, Refusal>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(join_all(asks.iter().map(|a| batcher.run(a.clone()))))
}

fn live(counts: &Counts, name: &str) -> u64 {
    counts.live(0)[name].as_u64().unwrap()
}

#[test]
fn requests_that_wait_are_one_run_and_each_has_its_own_answer() {
    let (batcher, counts) = start(LOOKUP, 6, 8);
    let found = answers(&batcher, &[ids(&[0]), ids(&[3, 2]), ids(&[1, 1, 0])]);
    assert_eq!(found, [Ok(rows(&[10.0])), Ok(rows(&[13.0, 12.0])), Ok(rows(&[11.0, 11.0, 10.0]))]);
    assert_eq!((live(&counts, "runs"), live(&counts, "samples"), batcher.batch()), (1, 6, Some(6)));
}

#[test]
fn a_bad_id_fails_its_own_request_alone() {
    let (batcher, _) = start(LOOKUP, 4, 8);
    let found = answers(&batcher, &[ids(&[0]), ids(&[1, 4]), ids(&[3])]);
    assert_eq!((&found[0], &found[2]), (&Ok(rows(&[10.0])), &Ok(rows(&[13.0]))));
    let refused = found[1].as_ref().unwrap_err();
    assert_eq!(refused.status(), 400);
    assert!(refused.to_string().contains("index 4 at position 1"), "{refused}");
    assert_eq!(batcher.batch(), Some(4));
}

#[test]
fn samples_that_are_not_independent_are_found_out() {
    let x = |data: &[f32]| -> Named { vec![("x".into(), Tensor::new([data.len(), 1], data.to_vec()).unwrap().into())] };
    let (batcher, _) = start("graph g(x: float32[n,1]) -> (y) {\n  y = Softmax(x) {axis=0}\n}", 3, 8);
    let found = answers(&batcher, &[x(&[1.0]), x(&[5.0, 5.0])]);
    assert_eq!(found, [Ok(rows(&[1.0])), Ok(rows(&[0.5, 0.5]))]);
    assert_eq!(batcher.batch(), None);
    // From now on nobody waits for others.
    assert_eq!(answers(&batcher, &[x(&[7.0])]), [Ok(rows(&[1.0]))]);
}

#[test]
fn outputs_that_do_not_count_samples_are_found_out() {
    let sum = "graph g(x: float32[n,1]) -> (y) {\n  y = ReduceSum(x) {keepdims=1}\n}";
    let x = |data: &[f32]| -> Named { vec![("x".into(), Tensor::new([data.len(), 1], data.to_vec()).unwrap().into())] };
    let (batcher, _) = start(sum, 3, 8);
    assert_eq!(answers(&batcher, &[x(&[1.0]), x(&[5.0, 6.0])]), [Ok(rows(&[1.0])), Ok(rows(&[11.0]))]);
    assert_eq!(batcher.batch(), None);
}

#[test]
fn a_queue_is_bounded_and_ends_with_what_it_has() {
    let (batcher, counts) = start(LOOKUP, 100, 2);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut first = batcher.run(ids(&[2])).boxed();
        let mut second = batcher.run(ids(&[1])).boxed();
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        let third = batcher.run(ids(&[0])).await.unwrap_err();
        assert_eq!((third.status(), third.to_string()), (503, "2 requests are waiting already".into()));
        // Whoever no longer waits is not computed, and makes room.
        drop(second);
        let mut fourth = batcher.run(ids(&[3])).boxed();
        assert!((&mut fourth).now_or_never().is_none());
        drop(fourth);
        batcher.close();
        assert_eq!(first.await, Ok(rows(&[12.0])));
        assert_eq!(batcher.run(ids(&[0])).await.unwrap_err().status(), 503);
    });
    assert_eq!((live(&counts, "runs"), live(&counts, "samples")), (1, 1));
}

#[test]
fn requests_of_other_widths_are_not_mixed() {
    let (batcher, counts) = start("graph g(x: float32[n,k]) -> (y) {\n  y = Neg(x)\n}", 2, 8);
    let x = |width: usize, sign: f32| -> Named {
        vec![(if sign > 0.0 { "x" } else { "y" }.into(), Tensor::new([1, width], vec![sign; width]).unwrap().into())]
    };
    let found = answers(&batcher, &[x(2, 1.0), x(3, 1.0), x(2, 1.0), x(3, 1.0)]);
    assert_eq!(found, [2, 3, 2, 3].map(|w| Ok(x(w, -1.0))));
    assert_eq!(live(&counts, "runs"), 2);
}
