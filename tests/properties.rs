//! Random graphs, tables and ids from fixed seeds: what holds for all of them. A pass, and all of `optimize`, keep a graph
//! valid and its outputs; a rewritten graph gives the same bits over shards; a lookup over servers gives the rows of the table.
//! `GRAPHTOOL_PROPERTIES` says how many of each are tried, `GRAPHTOOL_PROPERTY` runs and prints one.

#[path = "support/passes.rs"]
mod passes_support;
mod support;

use graphtool::deploy::{self, RewriteOptions};
use graphtool::exec::{Options, Session};
use graphtool::ir::{Model, parse_model, print_model, verify};
use graphtool::passes::{self, Report, Selection, catalogue};
use graphtool::plan::{Absent, Sharding};
use graphtool::store::{self, Dedup, ServeOptions, StoreError};
use graphtool::tensor::{DType, Tensor, Value};
use passes_support::{bits, interface, near, same_answers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fmt::Write;
use support::contract::{expected, options, query};
use support::{Server, Source, deploy, endpoints, source};

/// The numbers of the examples to try.
fn numbers(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    match number("GRAPHTOOL_PROPERTY") {
        Some(n) => n..n + 1,
        None => 0..number("GRAPHTOOL_PROPERTIES").unwrap_or(default),
    }
}

/// A float32 value of the graph that is being made: its name, and its dims, of which the first is the batch.
#[derive(Clone)]
struct Made {
    name: String,
    dims: Vec<usize>,
}

/// A graph in its text form, node by node.
struct Maker {
    random: StdRng,
    params: String,
    text: String,
    values: Vec<Made>,
    next: usize,
    tables: usize,
}

const BATCH: usize = 3;

impl Maker {
    fn name(&mut self) -> String {
        self.next += 1;
        format!("v{}", self.next)
    }

    fn pick(&mut self) -> Made {
        // Late values more often, so that graphs are deep as well as wide.
        let n = self.values.len();
        let (a, b) = (self.random.random_range(0..n), self.random.random_range(0..n));
        self.values[a.max(b)].clone()
    }

    fn matrix(&mut self) -> Made {
        loop {
            let v = self.pick();
            if v.dims.len() == 2 {
                return v;
            }
            let len = v.dims[1..].iter().product();
            let flat = self.node("Flatten", &[&v.name], "axis=1", &[BATCH, len]);
            if len > 0 {
                return flat;
            }
        }
    }

    fn node(&mut self, op: &str, inputs: &[&str], attrs: &str, dims: &[usize]) -> Made {
        let name = self.name();
        let attrs = if attrs.is_empty() { String::new() } else { format!(" {{{attrs}}}") };
        writeln!(self.text, "  {name} = {op}({}){attrs}", inputs.join(", ")).expect("written");
        let made = Made { name, dims: dims.to_vec() };
        self.values.push(made.clone());
        made
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let name = self.name();
        writeln!(self.text, "  {name} = Constant() {{value=int64[{}] {values:?}}}", values.len()).expect("written");
        name
    }

    /// A parameter of numbers between -1 and 1 with few digits.
    fn param(&mut self, dims: &[usize]) -> String {
        let name = format!("w{}", self.next);
        self.next += 1;
        let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|_| self.random.random_range(-64..65i32) as f32 / 64.0).collect();
        let dims = dims.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        writeln!(self.params, "  param {name}: float32[{dims}] = {values:?}").expect("written");
        name
    }

    fn step(&mut self) {
        let kind = self.random.random_range(0..22u32);
        let v = if (8..12).contains(&kind) { self.matrix() } else { self.pick() };
        let (x, dims) = (v.name.as_str(), v.dims.as_slice());
        let last = dims[dims.len() - 1];
        match kind {
            0..=2 => {
                let op = ["Neg", "Abs", "Relu", "Sigmoid", "Tanh", "Identity", "Erf", "Softplus", "Dropout", "LeakyRelu"]
                    [self.random.random_range(0..10usize)];
                self.node(op, &[x], "", dims);
            }
            3 | 4 => {
                let others: Vec<Made> = self.values.iter().filter(|o| o.dims == v.dims).cloned().collect();
                let other = others[self.random.random_range(0..others.len())].clone();
                let op = ["Add", "Sub", "Mul", "Max", "Min"][self.random.random_range(0..5usize)];
                self.node(op, &[x, &other.name], "", dims);
            }
            5 | 6 => {
                let shape = [vec![], vec![last], vec![1, last]][self.random.random_range(0..3usize)].clone();
                let w = self.param(&shape);
                let op = ["Add", "Mul", "Sub", "Div"][self.random.random_range(0..3usize)];
                let both = if self.random.random_bool(0.5) { [x, w.as_str()] } else { [w.as_str(), x] };
                self.node(op, &both, "", dims);
            }
            7 => {
                let axis = if self.random.random_bool(0.5) { -1 } else { dims.len() as i64 - 1 };
                let op = if self.random.random_bool(0.7) { "Softmax" } else { "LogSoftmax" };
                self.node(op, &[x], &format!("axis={axis}"), dims);
            }
            8 => {
                let k = self.random.random_range(1..6usize);
                let w = self.param(&[last, k]);
                let product = self.node("MatMul", &[x, &w], "", &[BATCH, k]);
                if self.random.random_bool(0.6) {
                    let b = self.param(&[k]);
                    let sum = self.node("Add", &[&product.name, &b], "", &[BATCH, k]);
                    self.node("Relu", &[&sum.name], "", &[BATCH, k]);
                }
            }
            9 => {
                let k = self.random.random_range(1..6usize);
                let (w, b) = (self.param(&[k, last]), self.param(&[k]));
                self.node("Gemm", &[x, &w, &b], "transB=1", &[BATCH, k]);
            }
            10 => {
                let t = self.name();
                writeln!(self.text, "  {t} = Transpose({x}) {{perm=[1, 0]}}").expect("written");
                self.node("Transpose", &[&t], "perm=[1, 0]", dims);
            }
            11 => {
                let other = self.matrix();
                let (a, b) = if self.random.random_bool(0.5) { (v.clone(), other) } else { (other, v.clone()) };
                self.node("Concat", &[&a.name, &b.name], "axis=1", &[BATCH, a.dims[1] + b.dims[1]]);
            }
            12 if last > 1 => {
                let from = self.random.random_range(0..last - 1);
                let to = self.random.random_range(from + 1..=last);
                let axis = dims.len() as i64 - 1;
                let (s, e, a) = (self.ints(&[from as i64]), self.ints(&[to as i64]), self.ints(&[axis]));
                let cut = [&dims[..dims.len() - 1], &[to - from]].concat();
                self.node("Slice", &[x, &s, &e, &a], "", &cut);
            }
            13 => {
                let n = self.random.random_range(1..4usize);
                let at: Vec<i64> = (0..n).map(|_| self.random.random_range(-(last as i64)..last as i64)).collect();
                let at = self.ints(&at);
                self.node("Gather", &[x, &at], &format!("axis={}", dims.len() - 1), &[&dims[..dims.len() - 1], &[n]].concat());
            }
            14 if dims.len() < 4 => {
                let axis = self.random.random_range(1..=dims.len());
                let at = self.ints(&[axis as i64]);
                let mut wide = dims.to_vec();
                wide.insert(axis, 1);
                let u = self.node("Unsqueeze", &[x, &at], "", &wide);
                if self.random.random_bool(0.5) {
                    self.node("Squeeze", &[&u.name, &at], "", dims);
                }
            }
            15 => {
                let axis = dims.len() as i64 - 1;
                let op = ["ReduceMean", "ReduceMax", "ReduceMin"][self.random.random_range(0..3usize)];
                self.node(op, &[x], &format!("axes=[{axis}], keepdims=1"), &[&dims[..dims.len() - 1], &[1]].concat());
            }
            16 => {
                // What exporters write for a flattening: the batch from the shape.
                let (s, zero, rest) = (self.name(), self.ints(&[0]), self.ints(&[-1]));
                writeln!(self.text, "  {s} = Shape({x})").expect("written");
                let (b, t) = (self.name(), self.name());
                writeln!(self.text, "  {b} = Gather({s}, {zero}) {{axis=0}}\n  {t} = Concat({b}, {rest}) {{axis=0}}").expect("written");
                self.node("Reshape", &[x, &t], "", &[BATCH, dims[1..].iter().product()]);
            }
            17 => {
                let n = self.name();
                writeln!(self.text, "  {n} = Cast({x}) {{to=11}}").expect("written");
                self.node("Cast", &[&n], "to=1", dims);
            }
            18 if last > 1 => {
                let (a, b) = (self.name(), self.name());
                let cut = self.random.random_range(1..last);
                let sizes = self.ints(&[cut as i64, (last - cut) as i64]);
                writeln!(self.text, "  {a}, {b} = Split({x}, {sizes}) {{axis={}}}", dims.len() - 1).expect("written");
                let part = |n: usize| [&dims[..dims.len() - 1], &[n]].concat();
                self.values.push(Made { name: a, dims: part(cut) });
                self.values.push(Made { name: b, dims: part(last - cut) });
            }
            _ => {
                // A lookup: of a slot, of a bag that is summed, or in a table that two share.
                let (rows, columns) = (self.random.random_range(8..20usize), self.random.random_range(1..5usize));
                let table = self.param(&[rows, columns]);
                self.tables += 1;
                if self.random.random_bool(0.4) {
                    let e = self.node("Gather", &[&table, "bag"], "axis=0", &[BATCH, 4, columns]);
                    let axis = self.ints(&[1]);
                    self.node("ReduceSum", &[&e.name, &axis], "keepdims=0", &[BATCH, columns]);
                } else {
                    self.node("Gather", &[&table, "ids"], "axis=0", &[BATCH, columns]);
                    if self.random.random_bool(0.3) {
                        self.node("Gather", &[&table, "ids"], "axis=0", &[BATCH, columns]);
                    }
                }
            }
        }
    }
}

/// A random graph; ids are between -8 and 8, rows of its tables from either end.
fn graph(number: u64) -> (String, usize) {
    let random = StdRng::seed_from_u64(number);
    let values = vec![Made { name: "x".into(), dims: vec![BATCH, 4] }, Made { name: "y".into(), dims: vec![BATCH, 2, 3] }];
    let mut maker = Maker { random, params: String::new(), text: String::new(), values, next: 0, tables: 0 };
    for _ in 0..maker.random.random_range(3..25u32) {
        maker.step();
    }
    let mut outputs: Vec<String> =
        (0..maker.random.random_range(1..4u32)).map(|_| maker.pick().name).filter(|n| n.starts_with('v')).collect();
    outputs.sort();
    outputs.dedup();
    if outputs.is_empty() {
        outputs.push(maker.node("Neg", &["x"], "", &[BATCH, 4]).name);
    }
    let outputs = outputs.join(", ");
    let inputs = "x: float32[n,4], y: float32[n,2,3], ids: int64[n], bag: int64[n,4]";
    (format!("model ir_version=8 opset=[\"\"=13]\ngraph g({inputs}) -> ({outputs}) {{\n{}{}}}\n", maker.params, maker.text), maker.tables)
}

fn inputs(model: &Model) -> Vec<Value> {
    model.graph.inputs().iter().enumerate().map(|(k, &i)| passes_support::made(k, model.graph.type_of(i.value(0)))).collect()
}

#[test]
fn passes_keep_random_graphs_valid_and_their_outputs() {
    let (mut changed, mut nodes) = (std::collections::BTreeMap::<String, usize>::new(), 0);
    for number in numbers(120) {
        let (text, _) = graph(number);
        let plain = parse_model(&text).unwrap_or_else(|e| panic!("graph {number}: {e}\n{text}"));
        assert!(verify(&plain).is_empty(), "graph {number}: {:?}\n{text}", verify(&plain));
        nodes += plain.graph.ops().len();
        let held = |name: &str, model: &Model| {
            let fault = |what: String| panic!("graph {number}, {name}: {what}\n{text}\nbecame\n{}", print_model(model));
            if !verify(model).is_empty() {
                fault(format!("{:?}", verify(model)));
            }
            if interface(model) != interface(&plain) {
                fault("another interface".into());
            }
            if let Err(e) = same_answers(name, &plain, model) {
                fault(e);
            }
        };
        for pass in catalogue() {
            let mut model = plain.clone();
            pass.run(&mut model, &mut Report::default()).unwrap_or_else(|e| panic!("graph {number}, {}: {e}\n{text}", pass.name()));
            held(pass.name(), &model);
            *changed.entry(pass.name().into()).or_default() += usize::from(print_model(&model) != print_model(&plain));
        }
        let mut model = plain.clone();
        passes::optimize(&mut model, "", &mut Report::default()).unwrap_or_else(|e| panic!("graph {number}: {e}\n{text}"));
        held("fuse-matmul", &model);
        let once = print_model(&model);
        passes::optimize(&mut model, "", &mut Report::default()).expect("optimised again");
        assert_eq!(print_model(&model), once, "graph {number}: optimised twice\n{text}");
    }
    println!("{nodes} nodes; changed: {changed:?}");
    let idle = changed.values().filter(|n| **n == 0).count();
    assert!(changed.len() < 2 || nodes < 500 || changed.len() - idle > 10, "few passes had anything to do: {changed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_graphs_give_the_same_bits_over_shards() {
    let mut remote = 0;
    for number in numbers(60) {
        let (text, tables) = graph(number);
        let model = parse_model(&text).expect("a graph");
        let inputs = inputs(&model);
        let plain = passes_support::run(&model, &inputs).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("d.dist");
        let selection = Selection { min_bytes: 0, ..Selection::default() };
        let shards = 1 + (number % 4) as u32;
        deploy::rewrite(model, &dir, RewriteOptions { shards, selection, ..RewriteOptions::default() }).expect("rewritten");
        let (manifest, worker) = deploy::open(&dir).expect("opened");
        remote += manifest.tables.len();
        assert!(manifest.tables.len() <= tables, "graph {number}");
        let servers = Server::start_all(&dir, 1 + (number % 3) as usize, ServeOptions::default());
        let store = store::connect(manifest.into(), &endpoints(&servers), options()).await.expect("connected");
        let handle = tokio::runtime::Handle::current();
        let found = tokio::task::block_in_place(|| {
            let options = Options { store: Some(store), runtime: Some(handle), ..Options::default() };
            let session = Session::new(&worker, options).map_err(|e| e.to_string())?;
            let names: Vec<String> = session.inputs().iter().map(|i| i.0.to_owned()).collect();
            session.run(names.into_iter().zip(inputs.iter().cloned()).collect()).map_err(|e| e.to_string())
        });
        let found = found.unwrap_or_else(|e| panic!("graph {number}: {e}\n{text}"));
        for (a, b) in found.iter().zip(&plain) {
            assert_eq!((&a.0, bits(&a.1)), (&b.0, bits(&b.1)), "graph {number}\n{text}");
        }
    }
    assert!(remote > 0 || numbers(60).count() == 1, "no table was moved");
}

/// A random table and how it is spread.
fn table(random: &mut StdRng, name: &'static str) -> Source {
    let dtypes = [DType::F32, DType::F64, DType::F16, DType::BF16, DType::I64, DType::I8, DType::Bool];
    let rows = [1, 2, 7, 100, 3000][random.random_range(0..5usize)];
    let shape: Vec<usize> = match random.random_range(0..4u32) {
        0 => vec![rows],
        1 => vec![rows, random.random_range(1..4usize), random.random_range(1..6usize)],
        _ => vec![rows, random.random_range(1..40usize)],
    };
    let width: usize = shape[1..].iter().product();
    let (sharding, most) = match random.random_range(0..4u32) {
        0 => (Sharding::Table, 1),
        1 => (Sharding::Range, rows),
        2 => (Sharding::Column, width),
        _ => (Sharding::Row, rows),
    };
    let dtype = dtypes[random.random_range(0..dtypes.len())];
    let mut source = source(name, dtype, &shape, sharding, random.random_range(1..=most.min(5)));
    if matches!(sharding, Sharding::Row) && random.random_bool(0.5) {
        // Keys from all of u64, each once.
        let mut keys: Vec<u64> = (0..rows as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ random.random_range(0..2u64)).collect();
        keys.sort();
        keys.dedup();
        if keys.len() == rows {
            source.keys = Some(keys);
            source.absent = [Absent::Error, Absent::Zero][random.random_range(0..2usize)];
        }
    }
    source
}

/// Ids of a table, and the rows that they stand for (none for keys that are absent).
fn ids(random: &mut StdRng, source: &Source) -> (Vec<u64>, Vec<Option<u64>>) {
    let rows = source.values.shape()[0] as u64;
    let n = [0, 1, 5, 200, 2000][random.random_range(0..5usize)];
    // Few different ones give many duplicates.
    let below = if random.random_bool(0.5) { rows.min(3) } else { rows };
    (0..n)
        .map(|_| {
            let row = random.random_range(0..below);
            match &source.keys {
                None => (row, Some(row)),
                Some(_) if matches!(source.absent, Absent::Zero) && random.random_bool(0.1) => {
                    let key = random.random_range(0..u64::MAX);
                    let at = source.keys.as_ref().and_then(|k| k.iter().position(|k| *k == key));
                    (key, at.map(|r| r as u64))
                }
                Some(keys) => (keys[row as usize], Some(row)),
            }
        })
        .unzip()
}

fn rows(source: &Source, at: &[Option<u64>]) -> Tensor {
    let known: Vec<u64> = at.iter().map(|r| r.unwrap_or(0)).collect();
    let plain = expected(&source.values, &known);
    let mut bytes = plain.bytes().expect("bytes").to_vec();
    let width = bytes.len().checked_div(at.len()).unwrap_or(0);
    for (i, _) in at.iter().enumerate().filter(|(_, r)| r.is_none()) {
        bytes[i * width..(i + 1) * width].fill(0);
    }
    Tensor::from_bytes(plain.dtype(), plain.shape().clone(), bytes).expect("a tensor")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_over_servers_give_the_rows_of_random_tables() {
    for number in numbers(60) {
        let mut random = StdRng::seed_from_u64(number);
        let names = ["one", "two", "three", "four", "five"];
        let sources: Vec<Source> = names[..random.random_range(1..=5usize)].iter().map(|n| table(&mut random, n)).collect();
        let dir = tempfile::tempdir().expect("a directory");
        let manifest = std::sync::Arc::new(deploy(dir.path(), &sources, random.random_range(1..6u32)));
        let servers = Server::start_all(dir.path(), random.random_range(1..4usize), ServeOptions::default());
        let dedup = [Dedup::Auto, Dedup::Always, Dedup::Never][random.random_range(0..3usize)];
        let max_frame = [1 << 16, 64 << 20][random.random_range(0..2usize)];
        let options = store::ConnectOptions { dedup, max_frame, ..options() };
        let remote = store::connect(manifest.clone(), &endpoints(&servers), options).await.expect("connected");
        let local = store::open_local(dir.path()).expect("opened");
        for round in 0..6 {
            let (mut queries, mut right) = (Vec::new(), Vec::new());
            for _ in 0..random.random_range(1..5usize) {
                let t = random.random_range(0..sources.len());
                let (ids, at) = ids(&mut random, &sources[t]);
                queries.push(query(t, &ids));
                right.push(rows(&sources[t], &at));
            }
            for (which, store) in [("servers", &remote), ("local", &local)] {
                let found = store.lookup(queries.clone()).await.unwrap_or_else(|e| panic!("tables {number}, round {round}, {which}: {e}"));
                assert_eq!(found, right, "tables {number}, round {round}, {which}");
            }
            // An id past the end, or negative as a graph gives it, among good ones.
            let t = random.random_range(0..sources.len());
            if sources[t].keys.is_none() {
                let rows = sources[t].values.shape()[0] as u64;
                let bad = if random.random_bool(0.5) { rows } else { (-1 - rows as i64) as u64 };
                let e = remote.lookup(vec![query(t, &[0, bad, 0])]).await.expect_err("no such row");
                assert!(matches!(&e, StoreError::Invalid { id, position: 1, .. } if *id == bad), "tables {number}: {e}");
            }
        }
    }
    let same = Value::Tensor(Tensor::vector(vec![1f32]));
    assert!(near(&same, &same).is_ok());
}
