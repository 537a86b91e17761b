//! Bags that are pooled where their rows are: the same bits as by the model in one process, in fewer bytes.

mod support;

use graphtool::deploy::{RewriteOptions, rewrite};
use graphtool::exec::{Options, Session};
use graphtool::ir::parse_model;
use graphtool::plan::{Manifest, Mode, Sharding, StoreDtype};
use graphtool::store::{self, BagQuery, Cached, ConnectOptions, Counted, Dedup, Memory, ServeOptions, Stats, Store, Timed};
use graphtool::tensor::{DType, PoolMode, Tensor, cast};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use support::contract::{bag_queries, expected, options, pooled, query};
use support::{Server, Source, deploy, endpoints, source};

/// A table of numbers whose sums depend on their order.
fn waves(name: &'static str, dtype: DType, shape: &[usize], sharding: Sharding, pieces: usize) -> Source {
    let n: usize = shape.iter().product();
    let numbers = Tensor::new(shape, (0..n).map(|i| (i as f64 * 1.7).sin() * 3.0).collect::<Vec<f64>>()).unwrap();
    Source { values: cast(&numbers, dtype).unwrap(), ..source(name, dtype, shape, sharding, pieces) }
}

/// 200 ids, and bags of them with empty ones at both ends and between, some ids being in none.
fn ids_and_bounds(rows: u64) -> (Vec<u64>, Vec<usize>) {
    ((0..200).map(|i| i * 37 % rows).collect(), vec![3, 3, 50, 51, 51, 51, 180, 190, 190])
}

/// What the store pools, and what it leaves.
async fn some_and_none(store: &dyn Store, sources: &[Source]) -> (usize, usize) {
    let (mut some, mut none) = (0, 0);
    for (t, s) in sources.iter().enumerate() {
        let (ids, bounds) = ids_and_bounds(s.values.shape()[0] as u64);
        for q in bag_queries(t, s.values.dtype(), &ids, &bounds) {
            match store.lookup_bags(&q).await.unwrap() {
                Some(found) => {
                    assert_eq!(found.bytes(), pooled(&s.values, &q).bytes(), "{} {:?}", s.name, q.mode);
                    some += 1;
                }
                None => none += 1,
            }
        }
    }
    (some, none)
}

#[tokio::test]
async fn bits_are_the_same_in_each_dtype_and_placement() {
    let dtypes = [DType::F32, DType::F16, DType::F64, DType::BF16];
    let names = ["f32", "f16", "f64", "bf16"];
    for (sharding, pieces) in [(Sharding::Table, 1), (Sharding::Column, 3), (Sharding::Row, 4), (Sharding::Range, 3)] {
        let dir = tempfile::tempdir().unwrap();
        let sources: Vec<Source> = dtypes.iter().zip(names).map(|(&d, n)| waves(n, d, &[997, 6, 4], sharding, pieces)).collect();
        let manifest = Arc::new(deploy(dir.path(), &sources, 4));
        assert_eq!(some_and_none(&*store::open_local(dir.path()).unwrap(), &sources).await, (24, 0));
        for servers in [1, 3] {
            let running = Server::start_all(dir.path(), servers, ServeOptions::default());
            let store = store::connect(manifest.clone(), &endpoints(&running), options()).await.unwrap();
            // Rows of several peers would be added up in another order.
            let here = servers == 1 || matches!(sharding, Sharding::Table | Sharding::Column);
            assert_eq!(some_and_none(&*store, &sources).await, if here { (24, 0) } else { (0, 24) }, "{sharding:?} on {servers}");
        }
    }
}

#[tokio::test]
async fn bags_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let values = Tensor::new([3, 2], vec![1f32, -2.0, 3.0, 5.0, 10.0, -7.0]).unwrap();
    let manifest = Arc::new(deploy(dir.path(), &[Source { values, ..source("t", DType::F32, &[3, 2], Sharding::Table, 1) }], 1));
    let running = Server::start_all(dir.path(), 1, ServeOptions::default());
    let store = store::connect(manifest, &endpoints(&running), ConnectOptions { dedup: Dedup::Never, ..options() }).await.unwrap();
    let ids = [[2, 1, 0].repeat(20), vec![1, 2]].concat();
    let bag = |mode, weights: Option<Vec<f32>>| BagQuery {
        table: 0,
        ids: ids.clone(),
        bounds: vec![0, 60, 60, 62],
        weights: weights.map(Tensor::vector),
        mode,
    };
    let found = async |q: BagQuery| store.lookup_bags(&q).await.unwrap().unwrap().to_f32s().unwrap();
    // Twenty times 14 and -4; nothing; 13 and -2.
    assert_eq!(found(bag(PoolMode::Sum, None)).await, [280.0, -80.0, 0.0, 0.0, 13.0, -2.0]);
    assert_eq!(found(bag(PoolMode::Mean, None)).await, [280.0 / 60.0, -80.0 / 60.0, 0.0, 0.0, 6.5, -1.0]);
    assert_eq!(found(bag(PoolMode::Max, None)).await, [10.0, 5.0, 0.0, 0.0, 10.0, 5.0]);
    // The second of the two counts twice, and turned round.
    let weights = [vec![1.0; 61], vec![-2.0]].concat();
    assert_eq!(found(bag(PoolMode::Sum, Some(weights.clone()))).await[4..], [-17.0, 19.0]);
    assert_eq!(found(bag(PoolMode::Max, Some(weights))).await[4..], [3.0, 14.0]);
}

#[tokio::test]
async fn long_bags_send_fewer_bytes_and_bags_of_one_id_ask_for_rows() {
    let dir = tempfile::tempdir().unwrap();
    let table = waves("t", DType::F32, &[10_000, 64], Sharding::Table, 1);
    let columns = waves("c", DType::F32, &[10_000, 64], Sharding::Column, 2);
    let manifest = Arc::new(deploy(dir.path(), &[table.clone(), columns], 3));
    let running = Server::start_all(dir.path(), 3, ServeOptions::default());
    // Over TCP each id is sent once.
    let store = store::connect(manifest, &endpoints(&running), ConnectOptions { local: false, ..options() }).await.unwrap();
    let ids: Vec<u64> = (0..2600).map(|i| i * 3 % 10_000).collect();
    let every = |n: usize| (0..=2600).step_by(n).collect::<Vec<_>>();
    let of = |table, bounds: Vec<usize>| BagQuery { table, ids: ids.clone(), bounds, weights: None, mode: PoolMode::Sum };
    store.lookup_bags(&of(0, every(26))).await.unwrap().unwrap();
    let once = Stats { lookups: 1, ids: 2600, unique_ids: 2600, requests: 1, bytes: 100 * 256, ..Stats::default() };
    assert_eq!(store.stats(), once);
    // The same in two halves of the columns.
    store.lookup_bags(&of(1, every(26))).await.unwrap().unwrap();
    let twice = Stats { lookups: 2, ids: 5200, unique_ids: 5200, requests: 3, bytes: 200 * 256, ..Stats::default() };
    assert_eq!(store.stats(), twice);
    // A row for each id is no more than a row for each bag.
    assert_eq!(store.lookup_bags(&of(0, every(1))).await.unwrap(), None);
    assert_eq!(store.stats(), twice);
    // Nor are the few rows that are left of ids that stand there again and again.
    let hot = BagQuery { ids: [7, 8, 9, 7].repeat(650), ..of(0, every(26)) };
    assert_eq!(store.lookup_bags(&hot).await.unwrap(), None);
    assert_eq!(store.lookup(vec![query(0, &hot.ids)]).await.unwrap(), [expected(&table.values, &hot.ids)]);
    assert_eq!(store.stats().bytes, 200 * 256 + 3 * 256);
    // The servers say the same of what they did.
    let said: Vec<Stats> = running.into_iter().map(|s| s.stop().unwrap()).collect();
    assert_eq!(said.iter().map(|s| s.bytes).sum::<u64>(), 203 * 256);
    assert_eq!(said.iter().map(|s| s.lookups).sum::<u64>(), 4);
}

#[tokio::test]
async fn bags_over_the_limits_are_asked_for_in_parts_or_as_rows() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [waves("t", DType::F64, &[997, 6], Sharding::Table, 1), waves("c", DType::F32, &[997, 30], Sharding::Column, 2)];
    let manifest = Arc::new(deploy(dir.path(), &sources, 3));
    // The longest bag has 129 ids.
    for (limits, all) in [
        (ServeOptions { max_ids: 129, ..ServeOptions::default() }, (12, 0)),
        (ServeOptions { max_ids: 128, ..ServeOptions::default() }, (0, 12)),
        (ServeOptions { max_frame: 129 * 60 + 200, ..ServeOptions::default() }, (12, 0)),
        (ServeOptions { max_frame: 2000, ..ServeOptions::default() }, (0, 12)),
        (ServeOptions { max_in_flight: 1, ..ServeOptions::default() }, (12, 0)),
    ] {
        let running = Server::start_all(dir.path(), 3, limits.clone());
        let store = store::connect(manifest.clone(), &endpoints(&running), options()).await.unwrap();
        assert_eq!(some_and_none(&*store, &sources).await, all, "{limits:?}");
    }
}

#[tokio::test]
async fn what_stands_before_a_store_measures_bags_or_wants_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [waves("t", DType::F32, &[97, 6], Sharding::Row, 3)];
    let manifest = deploy(dir.path(), &sources, 3);
    let shards = store::open_local(dir.path()).unwrap();
    let durations = Arc::default();
    assert_eq!(some_and_none(&Timed::new(shards.clone(), Arc::clone(&durations)), &sources).await, (6, 0));
    assert_eq!(durations.cumulative().last(), Some(&6));
    let counted = Counted::new(shards.clone());
    assert_eq!(some_and_none(&counted, &sources).await, (6, 0));
    let counts = counted.counts();
    assert_eq!(counts.total("t"), 6 * 200);
    assert_eq!(some_and_none(&Cached::new(shards, &manifest, 1 << 20).unwrap(), &sources).await, (0, 6));
    let memory = Memory::read(dir.path(), &manifest).unwrap();
    let counted = Counted::new(Arc::new(memory));
    assert_eq!(some_and_none(&counted, &sources).await, (0, 6));
}

const BAGS: &str = "model ir_version=8 opset=[\"\"=18, \"graphtool\"=1]
graph g(ids: int64[n], offsets: int64[b]WEIGHTS) -> (y) {
  y = graphtool::RemoteLookupBag(ids, offsetsARGUMENT) {tables=[\"T\"], rows=[ROWS], dtypes=[DTYPE], row_ranks=[1], row_dims=[COLUMNS], negative=[1], mode=\"MODE\", include_last_offset=LAST}
}
";

/// An EmbeddingBag as the TorchScript exporter writes it, of a table that is an input.
const LOOP: &str = "model ir_version=8 opset=[\"\"=18]
graph g(ids: int64[n], offsets: int64[b]WEIGHTS) -> (y) {
  TABLE
  zero = Constant() {value=int64[1] [0]}
  one = Constant() {value=int64[1] [1]}
  most = Constant() {value=int64[1] [9223372036854775807]}
  yes = Constant() {value=bool[] [true]}
  n = Shape(ids)
  bounds = BOUNDS
  ends = Slice(bounds, one, most, zero)
  bags = Shape(ends)
  trip = Squeeze(bags, zero)
  y = Loop(trip, yes) {body=graph b(i: int64[], c: bool[]) -> (go, pooled) {
    s = Gather(bounds, i)
    e = Gather(ends, i)
    s1 = Unsqueeze(s, zero)
    e1 = Unsqueeze(e, zero)
    part = Slice(ids, s1, e1, zero)
    looked = Gather(T, part)
    SCALE
    pooled = ReduceMODE(rows, zero) {keepdims=0}
    go = Identity(yes)
  }}
}
";

/// Runs a model of bags.
fn run(text: &str, store: Option<Arc<dyn Store>>, runtime: &tokio::runtime::Runtime, inputs: &[(&str, Tensor)]) -> Result<Tensor, String> {
    let model = parse_model(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let options = Options { store, runtime: Some(runtime.handle().clone()), ..Options::default() };
    let session = Session::new(&model, options).map_err(|e| e.to_string())?;
    let outputs = session.run(inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone().into())).collect()).map_err(|e| e.to_string())?;
    Ok(outputs[0].1.as_tensor().expect("a tensor").clone())
}

/// The text of the table `T`.
fn literal(values: &Tensor) -> String {
    let numbers: Vec<String> = match values.dtype() {
        DType::F64 => values.to_slice::<f64>().unwrap().iter().map(|x| format!("{x:?}")).collect(),
        _ => values.to_f32s().unwrap().iter().map(|x| format!("{x:?}")).collect(),
    };
    format!("param T: {}[{},{}] = [{}]", values.dtype(), values.shape()[0], values.shape()[1], numbers.join(", "))
}

fn bags_text(dtype: DType, (rows, columns): (usize, usize), mode: &str, weighted: bool, last: bool) -> String {
    let weights = if weighted { format!(", w: {dtype}[n]") } else { String::new() };
    BAGS.replace("WEIGHTS", &weights)
        .replace("ARGUMENT", if weighted { ", w" } else { "" })
        .replace("ROWS", &rows.to_string())
        .replace("DTYPE", &dtype.to_onnx().to_string())
        .replace("COLUMNS", &columns.to_string())
        .replace("MODE", &mode.to_lowercase())
        .replace("LAST", if last { "1" } else { "0" })
}

#[test]
fn a_model_of_bags_gives_the_bits_of_the_loop_that_it_stands_for() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for dtype in [DType::F32, DType::F64] {
        let ids: Vec<i64> = (0..300).map(|i| i * 31 % 397 - if i % 3 == 0 { 397 } else { 0 }).collect();
        let dir = tempfile::tempdir().unwrap();
        let table = waves("T", dtype, &[397, 12], Sharding::Table, 1);
        for (sharding, pieces, servers) in
            [(Sharding::Table, 1, 1), (Sharding::Column, 3, 2), (Sharding::Row, 4, 2), (Sharding::Range, 2, 1)]
        {
            let out = dir.path().join(format!("{sharding:?}"));
            let manifest = Arc::new(deploy(&out, &[Source { sharding, pieces, ..table.clone() }], 4));
            let running = Server::start_all(&out, servers, ServeOptions::default());
            let remote = runtime.block_on(store::connect(manifest, &endpoints(&running), options())).unwrap();
            let local = store::open_local(&out).unwrap();
            for (mode, last, weighted) in
                ["Sum", "Mean", "Max"].into_iter().flat_map(|m| [(m, false, false), (m, true, true), (m, false, true), (m, true, false)])
            {
                // Of nothing, ReduceSum alone makes zeros.
                let mut offsets: Vec<i64> = if mode == "Sum" { vec![0, 7, 7, 100, 200, 200] } else { vec![0, 7, 100, 199, 200] };
                if last {
                    offsets.push(300);
                }
                let mut inputs = vec![("ids", Tensor::vector(ids.clone())), ("offsets", Tensor::vector(offsets))];
                if weighted {
                    let weights: Vec<f64> = (0..300).map(|i| (f64::from(i) * 0.3).cos()).collect();
                    inputs.push(("w", cast(&Tensor::vector(weights), dtype).unwrap()));
                }
                let scale = "wp = Slice(w, s1, e1, zero)\n    wc = Unsqueeze(wp, one)\n    rows = Mul(looked, wc)";
                let plain = LOOP
                    .replace("WEIGHTS", &if weighted { format!(", w: {dtype}[n]") } else { String::new() })
                    .replace("TABLE", &literal(&table.values))
                    .replace("BOUNDS", if last { "Identity(offsets)" } else { "Concat(offsets, n) {axis=0}" })
                    .replace("SCALE", if weighted { scale } else { "rows = Identity(looked)" })
                    .replace("MODE", mode);
                let right = run(&plain, None, &runtime, &inputs).unwrap();
                let text = bags_text(dtype, (397, 12), mode, weighted, last);
                for store in [&remote, &local] {
                    let found = run(&text, Some(store.clone()), &runtime, &inputs).unwrap();
                    assert_eq!(
                        (found.shape(), found.bytes()),
                        (right.shape(), right.bytes()),
                        "{dtype} {sharding:?} {mode} {last} {weighted}"
                    );
                }
            }
            // Where all rows of a column are on one server, a row per bag came; else one per id.
            let stats = remote.stats();
            let pooled = sharding != Sharding::Row;
            assert_eq!((stats.ids, stats.bytes < 12 * 10 * 12 * 8), (12 * 300, pooled), "{sharding:?} {stats:?}");
        }
    }
}

#[test]
fn narrowed_tables_are_pooled_as_lookups_would_give_their_rows() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let table = waves("T", DType::F32, &[997, 32], Sharding::Table, 1);
    let model = format!(
        "model ir_version=8 opset=[\"\"=18]\ngraph g(ids: int64[n]) -> (y) {{\n  {}\n  y = Gather(T, ids)\n}}\n",
        literal(&table.values)
    );
    let dir = tempfile::tempdir().unwrap();
    for store in [StoreDtype::Int8, StoreDtype::F16, StoreDtype::BF16] {
        for sharding in [Sharding::Table, Sharding::Column, Sharding::Row] {
            let out = dir.path().join(format!("{}-{sharding:?}", store.name()));
            let mode = Mode::All(sharding);
            rewrite(parse_model(&model).unwrap(), &out, RewriteOptions { shards: 2, mode, store: Some(store), ..Default::default() })
                .unwrap();
            let manifest = store::read_manifest(&out).unwrap();
            let rows = Memory::read(&out, &manifest).unwrap();
            let all = runtime.block_on(rows.lookup(vec![query(0, &(0..997).collect::<Vec<_>>())])).unwrap().remove(0);
            assert!(all != table.values);
            let given = Source { values: all, ..table.clone() };
            let served = |servers: usize, manifest: Manifest| {
                let running = Server::start_all(&out, servers, ServeOptions::default());
                let store = runtime.block_on(store::connect(Arc::new(manifest), &endpoints(&running), options())).unwrap();
                runtime.block_on(some_and_none(&*store, std::slice::from_ref(&given)))
            };
            assert_eq!(served(1, manifest.clone()), (6, 0), "{store:?} {sharding:?}");
            assert_eq!(served(2, manifest), if sharding == Sharding::Row { (0, 6) } else { (6, 0) }, "{store:?} {sharding:?}");
            let local = store::open_local(&out).unwrap();
            assert_eq!(runtime.block_on(some_and_none(&*local, std::slice::from_ref(&given))), (6, 0));
        }
    }
}

#[test]
fn padding_and_wrong_ids_are_what_they_are_in_a_lookup() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let table = waves("T", DType::F32, &[97, 12], Sharding::Table, 1);
    let manifest = Arc::new(deploy(dir.path(), std::slice::from_ref(&table), 1));
    let running = Server::start_all(dir.path(), 1, ServeOptions::default());
    let over_tcp = ConnectOptions { local: false, ..options() };
    let store = runtime.block_on(store::connect(manifest, &endpoints(&running), over_tcp)).unwrap();
    let text = bags_text(DType::F32, (97, 12), "Max", false, false);
    let ids = |list: Vec<i64>| [("ids", Tensor::vector(list)), ("offsets", Tensor::vector(vec![0i64, 3]))];
    let said = |text: &str, inputs: &[(&str, Tensor)]| run(text, Some(store.clone()), &runtime, inputs).unwrap_err();
    let node = "node \"y\" (graphtool::RemoteLookupBag): ";
    assert_eq!(said(&text, &ids(vec![0, 97, 1])), format!("{node}table \"T\": id 97 at position 1 is out of range, valid -97..96"));
    let mut wrong = ids(vec![1, 2, 3, 4]);
    wrong[1].1 = Tensor::vector(vec![0i64, 5]);
    assert_eq!(said(&text, &wrong), format!("{node}offsets 0..5 of bag 0 do not lie in 0..4"));
    wrong[1].1 = Tensor::vector(vec![2i64, 1]);
    assert_eq!(said(&text, &wrong), format!("{node}offsets 2..1 of bag 0 do not lie in 0..4"));
    wrong[0].1 = Tensor::new([2, 2], vec![1i64, 2, 3, 4]).unwrap();
    wrong[1].1 = Tensor::vector(vec![0i64]);
    let text_of_two = text.replace("ids: int64[n]", "ids: int64[n,m]");
    assert_eq!(said(&text_of_two, &wrong), format!("{node}table \"T\": ids of bags must be a list, found shape [2,2]"));
    let weighted = bags_text(DType::F32, (97, 12), "Max", true, false).replace("w: float32[n]", "w: float64[n]");
    let inputs = [ids(vec![1, 2, 3]).to_vec(), vec![("w", Tensor::vector(vec![1f64; 3]))]].concat();
    assert_eq!(said(&weighted, &inputs), format!("{node}expected float32, found float64"));
    // Row 5 is padding: zeros, which are less than nothing below zero.
    let padded = text.replace("negative=[1]", "negative=[1], padding_idx=[5]");
    let list: Vec<i64> = (0..60).map(|i| i % 7).collect();
    let before = store.stats().bytes;
    let found = run(&padded, Some(store.clone()), &runtime, &ids(list.clone())).unwrap();
    let mut values = table.values.to_f32s().unwrap();
    values[5 * 12..6 * 12].fill(0.0);
    let q =
        BagQuery { table: 0, ids: list.iter().map(|&i| i as u64).collect(), bounds: vec![0, 3, 60], weights: None, mode: PoolMode::Max };
    assert_eq!(found, pooled(&Tensor::new([97, 12], values).unwrap(), &q));
    assert_eq!(store.stats().bytes - before, 6 * 48);
}

/// A connection that speaks the protocol by hand.
struct Raw(TcpStream);

impl Raw {
    /// Shakes hands as a worker.
    fn connect(endpoint: &str, manifest: &Manifest) -> Self {
        let mut raw = Self(TcpStream::connect(endpoint).unwrap());
        let mut hello = vec![6, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        hello.extend((64u64 << 20).to_le_bytes());
        for text in [&manifest.plan_id, &manifest.fingerprint, ""] {
            hello.extend((text.len() as u32).to_le_bytes());
            hello.extend(text.as_bytes());
        }
        assert_eq!(raw.call(0, &hello, &[]).0[0], 0, "welcome");
        raw
    }

    /// Head and body of the answer to a call.
    fn call(&mut self, kind: u8, fields: &[u8], body: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let head = [&[kind][..], &1u64.to_le_bytes(), &20_000_000u64.to_le_bytes(), fields].concat();
        let sizes = [(head.len() as u32).to_le_bytes(), (body.len() as u32).to_le_bytes()].concat();
        self.0.write_all(&[b"gtw1", &sizes[..], &head, body].concat()).unwrap();
        let mut prefix = [0; 12];
        self.0.read_exact(&mut prefix).unwrap();
        let size = |at: usize| u32::from_le_bytes(prefix[at..at + 4].try_into().unwrap()) as usize;
        let (mut head, mut body) = (vec![0; size(4)], vec![0; size(8)]);
        self.0.read_exact(&mut head).unwrap();
        self.0.read_exact(&mut body).unwrap();
        (head, body)
    }
}

/// A request for pooled rows, and what may be wrong in it.
#[derive(Clone)]
struct Asked {
    parts: Vec<[u32; 4]>,
    wide: u8,
    mode: u8,
    bags: u32,
    factor: u8,
    width: u32,
    body: Vec<u8>,
}

impl Asked {
    fn fields(&self) -> Vec<u8> {
        let mut out = (self.parts.len() as u32).to_le_bytes().to_vec();
        for [table, count, width, group] in &self.parts {
            [table, count, width].iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.push(self.wide);
            out.extend(group.to_le_bytes());
        }
        out.push(self.mode);
        out.extend(self.bags.to_le_bytes());
        out.push(self.factor);
        out.extend(self.width.to_le_bytes());
        out
    }
}

#[test]
fn a_server_believes_nothing_of_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let values = Tensor::new([4, 1], vec![1f32, 2.0, 4.0, 8.0]).unwrap();
    let sources = [
        Source { values, ..source("t", DType::F32, &[4, 1], Sharding::Table, 1) },
        source("whole numbers", DType::I64, &[4, 1], Sharding::Table, 1),
        support::contract::keyed("keys", graphtool::plan::Absent::Zero, 1),
    ];
    let manifest = deploy(dir.path(), &sources, 1);
    let server = Server::start(dir.path(), ServeOptions { max_ids: 100, max_frame: 1 << 16, ..ServeOptions::default() });
    let words = |list: &[u32]| list.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    // Ids 0, 3, 2 and a gap; bags of two and one; weights 1, 1, 10.
    let weights: Vec<u8> = [1f32, 1.0, 10.0].iter().flat_map(|w| w.to_le_bytes()).collect();
    let body = |ids: &[u32], ends: &[u32]| [words(ids), words(ends), weights.clone()].concat();
    let good = Asked { parts: vec![[0, 3, 4, 0]], wide: 0, mode: 0, bags: 2, factor: 4, width: 4, body: body(&[0, 3, 2, 0], &[2, 3]) };
    let mut raw = Raw::connect(&server.endpoint, &manifest);
    let (head, rows) = raw.call(6, &good.fields(), &good.body);
    assert_eq!((head[0], rows), (1, [9f32.to_le_bytes(), 40f32.to_le_bytes()].concat()));
    let part = |part: [u32; 4]| Asked { parts: vec![part], ..good.clone() };
    let cases = [
        (part([7, 3, 4, 0]), "bags of table 7 of 3"),
        (part([1, 3, 8, 0]), "table \"whole numbers\": rows of int64 are not pooled here"),
        (part([2, 3, 8, 0]), "table \"keys\": rows of a keyed table are not pooled here"),
        (part([0, 3, 8, 0]), "table \"t\": rows of 8 bytes, 4 pooled, and weights of 4 were asked for, here are 4, 4 and 4"),
        (part([0, 2, 4, 0]), "36 bytes of ids and bags, which is not what they are said to be"),
        (part([0, 101, 4, 0]), "101 ids in one request, the limit is 100"),
        (part([0, u32::MAX, 4, 0]), "4294967295 ids in one request, the limit is 100"),
        (Asked { parts: vec![[0, 3, 4, 0]; 2], ..good.clone() }, "bags of 2 tables in one request"),
        (Asked { parts: vec![], ..good.clone() }, "bags of 0 tables in one request"),
        (Asked { wide: 1, ..good.clone() }, "36 bytes of ids and bags"),
        (Asked { width: 8, ..good.clone() }, "rows of 4 bytes, 8 pooled"),
        (Asked { factor: 8, ..good.clone() }, "weights of 8 were asked for"),
        (Asked { factor: 0, ..good.clone() }, "36 bytes of ids and bags"),
        (Asked { bags: 101, ..good.clone() }, "101 bags in 404 bytes, the limits are 100 bags and 65536 bytes (--max-frame)"),
        (Asked { bags: 2, width: u32::MAX, ..good.clone() }, "2 bags in 8589934590 bytes, the limits are"),
        (Asked { bags: 0, ..good.clone() }, "36 bytes of ids and bags"),
        (Asked { bags: 0, factor: 0, body: words(&[0, 3, 2, 0]), ..good.clone() }, "bags that are not 3 ids in ascending order"),
        (Asked { body: body(&[0, 3, 2, 0], &[2, 4]), ..good.clone() }, "table \"t\": bags that are not 3 ids in ascending order"),
        (Asked { body: body(&[0, 3, 2, 0], &[1, 2]), ..good.clone() }, "table \"t\": bags that are not 3 ids in ascending order"),
        (Asked { body: body(&[0, 3, 2, 0], &[4, 3]), ..good.clone() }, "table \"t\": bags that are not 3 ids in ascending order"),
        (Asked { body: body(&[0, 3, 2, 0], &[u32::MAX, 3]), ..good.clone() }, "table \"t\": bags that are not 3 ids in ascending order"),
    ];
    for (asked, why) in cases {
        let (head, _) = raw.call(6, &asked.fields(), &asked.body);
        let text = String::from_utf8_lossy(&head[14..]).into_owned();
        assert!(head[0] == 4 && text.contains(why), "{why}: {text}");
    }
    // An id that is no row, by the error that lookups have.
    let asked = Asked { body: body(&[0, 4, 2, 0], &[2, 3]), ..good.clone() };
    let (head, _) = raw.call(6, &asked.fields(), &asked.body);
    assert_eq!((head[0], head[9], &head[14..15]), (4, 2, &b"t"[..]));
    // The connection is none the worse for it; an unknown mode, and one that ends early, end it.
    assert_eq!(raw.call(6, &good.fields(), &good.body).1.len(), 8);
    for fields in [Asked { mode: 3, ..good.clone() }.fields(), good.fields()[..20].to_vec()] {
        let mut raw = Raw::connect(&server.endpoint, &manifest);
        let head = [&[6u8][..], &[0; 16], &fields].concat();
        let sizes = [(head.len() as u32).to_le_bytes(), [0; 4]].concat();
        raw.0.write_all(&[b"gtw1", &sizes[..], &head].concat()).unwrap();
        let mut rest = Vec::new();
        assert!(raw.0.read_to_end(&mut rest).is_ok() && rest.is_empty());
    }
    assert_eq!(server.stop().unwrap().lookups, 2);
}
