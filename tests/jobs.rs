//! Jobs of several workers in one process: uneven batches, collectives in the graph, metrics over all workers.

use graphtool::comm::{Comm, local_group};
use graphtool::data::{self, InputSpec, npz};
use graphtool::deploy::{self, RewriteOptions};
use graphtool::exec::{Options, Session};
use graphtool::ir::parse_model;
use graphtool::job::{Job, Summary, predict};
use graphtool::plan::Absent;
use graphtool::store::{self, Memory, Store};
use graphtool::tensor::{DType, Tensor};
use std::path::Path;
use std::sync::Arc;

/// Rows of the table summed per sample, and the number of samples in the batch, combined over all workers.
const MODEL: &str = "graph g(ids: int64[b]) -> (p: float32[b], n: float32[]) {
  param table: float32[4,2] = [0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0]
  param axis: int64[1] = [1]
  rows = Gather(table, ids)
  p = ReduceSum(rows, axis) {keepdims=0}
  shape = Shape(ids)
  count = Cast(shape) {to=1}
  n = ReduceSum(count) {keepdims=0}
}";

fn run(
    dir: &Path,
    (workers, collectives): (usize, bool),
    batch: usize,
    input: &Path,
    label: Option<&str>,
) -> (Vec<(String, Tensor)>, Summary) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let output = dir.join(format!("{workers}.npz"));
    let handles: Vec<_> = local_group(workers)
        .expect("a group")
        .into_iter()
        .map(|comm: Arc<dyn Comm>| {
            let (dir, input, output, handle, label) =
                (dir.join("m.dist"), input.to_owned(), output.clone(), runtime.handle().clone(), label.map(str::to_owned));
            std::thread::spawn(move || {
                let (_, model) = deploy::open(&dir).expect("a deployment");
                let store = Some(store::open_local(&dir).expect("a store"));
                let session =
                    Session::new(&model, Options { store, comm: Some(comm.clone()), runtime: Some(handle.clone()), ..Options::default() });
                let session = session.expect("a session");
                let specs = [InputSpec::tensor("ids", DType::I64, Some(vec![None]))];
                let source = data::open(&input, &specs, &data::Options::default()).expect("samples");
                let sink = (comm.rank() == 0).then(|| data::create(&output).expect("a file"));
                let comm = Some((comm.as_ref(), handle));
                predict(&Job { batch, comm, collectives, label, ..Job::new(&session, source.as_ref()) }, sink)
            })
        })
        .collect();
    let mut summaries: Vec<Summary> = handles.into_iter().map(|h| h.join().expect("no panic").expect("a job")).collect();
    let file = npz::Npz::open(&output).expect("outputs");
    let outputs = ["p", "n"].map(|n| (n.to_owned(), file.get(n).expect("an output"))).to_vec();
    (outputs, summaries.remove(0))
}

#[test]
fn a_worker_without_a_batch_counts_as_joined() {
    let tmp = tempfile::tempdir().expect("a directory");
    let all_reduce = vec![("n".to_owned(), "sum".to_owned())];
    let model = parse_model(MODEL).expect("a model");
    deploy::rewrite(model, &tmp.path().join("m.dist"), RewriteOptions { shards: 2, all_reduce, ..Default::default() }).expect("a rewrite");
    let input = tmp.path().join("in.npz");
    // 15 samples in batches of 2: 8 batches, the last of one sample.
    let ids: Vec<i64> = (0..15).map(|i| i % 4).collect();
    npz::write_npz(&input, &[("ids".into(), Tensor::vector(ids.clone()))]).expect("written");
    let expected: Vec<f32> = ids.iter().map(|&i| 20.0 * i as f32 + 1.0).collect();
    for (workers, totals) in [
        (1, [2.0f32, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0]),
        // Rounds of three batches: 6 samples, 6 samples, then 2 + 1 with the third worker joined.
        (3, [6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 3.0, 3.0]),
        // Five, then three; and with ten workers two never have a batch.
        (5, [10.0, 10.0, 10.0, 10.0, 10.0, 5.0, 5.0, 5.0]),
        (10, [15.0; 8]),
    ] {
        let (outputs, summary) = run(tmp.path(), (workers, true), 2, &input, None);
        assert_eq!(outputs[0].1, Tensor::vector(expected.clone()), "{workers} workers");
        assert_eq!(outputs[1].1, Tensor::vector(totals.to_vec()), "{workers} workers");
        assert_eq!(summary.samples, 15);
    }
}

#[test]
fn metrics_are_those_of_all_samples_each_once() {
    let tmp = tempfile::tempdir().expect("a directory");
    let model = parse_model(
        "graph g(ids: int64[b]) -> (p, n) {\n  param table: float32[4,1] = [0.9, 0.8, 0.3, 0.2]\n  param axis: int64[1] = [1]\n  rows = Gather(table, ids)\n  p = Squeeze(rows, axis)\n  n = Size(ids)\n}",
    );
    deploy::rewrite(model.expect("a model"), &tmp.path().join("m.dist"), RewriteOptions { shards: 2, ..Default::default() })
        .expect("a rewrite");
    let input = tmp.path().join("in.npz");
    // Worker 0 sees (1, .9) and (0, .8), worker 1 (1, .3) and (0, .2): 1.0 each by itself, 0.75 over all.
    let arrays = [("ids".to_owned(), Tensor::vector(vec![0i64, 1, 2, 3])), ("y".to_owned(), Tensor::vector(vec![1i64, 0, 1, 0]))];
    npz::write_npz(&input, &arrays).expect("written");
    for workers in [1, 2, 3] {
        let metrics = run(tmp.path(), (workers, false), 2, &input, Some("y")).1.metrics.expect("metrics");
        assert_eq!((metrics.count, metrics.auc.value()), (4, Some(0.75)), "{workers} workers");
    }
}

#[test]
fn no_sample_is_counted_twice_or_padded() {
    let tmp = tempfile::tempdir().expect("a directory");
    deploy::rewrite(parse_model(MODEL).expect("a model"), &tmp.path().join("m.dist"), RewriteOptions { shards: 2, ..Default::default() })
        .expect("a rewrite");
    let input = tmp.path().join("in.npz");
    let write = |ids: Vec<i64>, labels: Vec<i64>| {
        npz::write_npz(&input, &[("ids".into(), Tensor::vector(ids)), ("y".into(), Tensor::vector(labels))]).expect("written");
    };
    // Five samples in batches of two: the second worker has one batch, the first two, of which one is of one sample.
    write(vec![0, 1, 2, 3, 1], vec![0, 0, 1, 1, 1]);
    for workers in [1, 2, 3] {
        let (outputs, summary) = run(tmp.path(), (workers, false), 2, &input, Some("y"));
        assert_eq!(outputs[0].1, Tensor::vector(vec![1.0f32, 21.0, 41.0, 61.0, 21.0]), "{workers} workers");
        let metrics = summary.metrics.expect("metrics");
        assert_eq!((summary.samples, metrics.count), (5, 5), "{workers} workers");
        // |1-0| + |21-0| + |41-1| + |61-1| + |21-1| over five.
        assert_eq!(metrics.mae.value(), Some(142.0 / 5.0), "{workers} workers");
    }
    // Two samples are one batch: the second worker has none at all; and no sample at all is an empty output.
    write(vec![3, 0], vec![1, 0]);
    assert_eq!(run(tmp.path(), (2, false), 2, &input, None).0[0].1, Tensor::vector(vec![61.0f32, 1.0]));
    write(Vec::new(), Vec::new());
    for workers in [1, 2] {
        let (outputs, summary) = run(tmp.path(), (workers, false), 2, &input, Some("y"));
        assert_eq!((outputs[0].1.shape().to_vec(), summary.samples), (vec![0], 0));
        assert_eq!(summary.metrics.expect("metrics").auc.to_string(), "undefined (no samples)");
    }
}

#[test]
fn the_auc_of_two_workers_is_two_thirds_where_each_has_one_half() {
    let tmp = tempfile::tempdir().expect("a directory");
    let model = parse_model(
        "graph g(ids: int64[b]) -> (p, n) {\n  param table: float32[6,1] = [0.6, 0.7, 0.1, 0.9, 0.2, 0.5]\n  param axis: int64[1] = [1]\n  rows = Gather(table, ids)\n  p = Squeeze(rows, axis)\n  n = Size(ids)\n}",
    );
    deploy::rewrite(model.expect("a model"), &tmp.path().join("m.dist"), RewriteOptions { shards: 2, ..Default::default() })
        .expect("a rewrite");
    let input = tmp.path().join("in.npz");
    let labels = Tensor::vector(vec![1i64, 0, 0, 1, 1, 0]);
    npz::write_npz(&input, &[("ids".into(), Tensor::vector((0..6i64).collect::<Vec<_>>())), ("y".into(), labels)]).expect("written");
    for workers in [1, 2] {
        let metrics = run(tmp.path(), (workers, false), 3, &input, Some("y")).1.metrics.expect("metrics");
        assert_eq!(metrics.auc.to_string(), "0.666667", "{workers} workers");
    }
}

/// A session over a table in memory that has rows for the keys 1 and 3, and zeros for all others.
fn keyed_session() -> (Session, Arc<Memory>) {
    let mut memory = Memory::new();
    let values = Tensor::new([2, 1], vec![10f32, 30.0]).expect("a tensor");
    memory.add_keyed("T", &[1, 3], &values, Absent::Zero, None).expect("a table");
    let store = Arc::new(memory);
    let model = parse_model(
        "graph g(ids: int64[b]) -> (p: float32[b]) {
  param axis: int64[1] = [1]
  rows = graphtool::RemoteLookup(ids) {tables=[\"T\"], rows=[2], dtypes=[1], row_ranks=[1], row_dims=[1], negative=[0]}
  p = Squeeze(rows, axis)
}",
    );
    let options = Options { store: Some(store.clone()), ..Options::default() };
    (Session::new(&model.expect("a model"), options).expect("a session"), store)
}

#[test]
fn runs_that_are_begun_have_sent_their_ids_and_count_their_own() {
    let (session, store) = keyed_session();
    let begin = |ids: Vec<i64>| session.begin(vec![("ids".into(), Tensor::vector(ids).into())]).expect("a run");
    let (first, second) = (begin(vec![3, 5, 1]), begin(vec![7, 8, 9, 1]));
    assert_eq!(store.stats().lookups, 2);
    let tallies = [first.tally(), second.tally()];
    let outputs = [second, first].map(|run| run.finish().expect("outputs").remove(0).1.into_tensor().expect("a tensor"));
    assert_eq!(outputs, [Tensor::vector(vec![0f32, 0.0, 0.0, 10.0]), Tensor::vector(vec![30f32, 0.0, 10.0])]);
    assert_eq!(tallies.map(|t| t.absent()), [1, 3]);
}

#[test]
fn ids_that_are_sent_ahead_change_no_answer_and_are_counted_once() {
    let tmp = tempfile::tempdir().expect("a directory");
    let input = tmp.path().join("in.npz");
    // A third of the ids are there; what is wrong in one batch is said after those before it.
    npz::write_npz(&input, &[("ids".into(), Tensor::vector((0..100i64).map(|i| i % 6).collect::<Vec<_>>()))]).expect("written");
    let (session, _) = keyed_session();
    let specs = [InputSpec::tensor("ids", DType::I64, Some(vec![None]))];
    let source = data::open(&input, &specs, &data::Options::default()).expect("samples");
    let expected: Vec<f32> = (0..100)
        .map(|i| {
            if i % 6 == 1 {
                10.0
            } else if i % 6 == 3 {
                30.0
            } else {
                0.0
            }
        })
        .collect();
    for prefetch in [0, 1, 2, 100] {
        let output = tmp.path().join(format!("{prefetch}.npz"));
        let sink = data::create(&output).expect("a file");
        let job = Job { batch: 7, prefetch, ..Job::new(&session, source.as_ref()) };
        let summary = predict(&job, Some(sink)).expect("a job");
        assert_eq!((summary.samples, summary.filled.absent), (100, 66), "{prefetch} ahead");
        assert_eq!(npz::Npz::open(&output).expect("outputs").get("p").expect("an output"), Tensor::vector(expected.clone()));
    }
}
