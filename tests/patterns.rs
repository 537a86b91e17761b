//! Lookups as exporters write them, each with its right values: by itself, and rewritten, bit for bit.

#[path = "patterns/forms.rs"]
mod forms;

use graphtool::deploy::{self, Outcome, RewriteOptions, rewrite};
use graphtool::exec::{Options, Session};
use graphtool::ir::{Model, parse_model, print_graph, print_model, verify};
use graphtool::passes::Selection;
use graphtool::store::{self, Stats};
use graphtool::tensor::{Tensor, Value};

/// Four rows: `[10i, 10i + 1]`.
const T: &str = "param T: float32[4,2] = [0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0]";

type Inputs<'a> = &'a [(&'a str, Tensor)];

fn ints(shape: &[usize], data: &[i64]) -> Tensor {
    Tensor::new(shape, data.to_vec()).expect("a tensor")
}

fn run(session: &Session, inputs: Inputs) -> Vec<(String, Value)> {
    session.run(inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone().into())).collect()).expect("a run")
}

struct Done {
    outcome: Outcome,
    model: Model,
    /// The first output.
    values: Vec<f32>,
    shape: Vec<usize>,
    stats: Stats,
}

impl Done {
    fn remote(&self) -> usize {
        self.outcome.report.lookups.iter().filter(|l| l.reason.is_none()).count()
    }

    fn reasons(&self) -> Vec<String> {
        self.outcome.report.lookups.iter().filter_map(|l| l.reason.clone()).collect()
    }
}

/// Rewrites in one, two and three shards; each time the answer is that of the model by itself, and the merged model is the
/// original. Gives back what two shards gave.
fn check_with(text: &str, inputs: Inputs, selection: &dyn Fn() -> Selection) -> Done {
    let model = parse_model(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let plain = run(&Session::new(&model, Options::default()).expect("a session"), inputs);
    let dir = tempfile::tempdir().expect("a directory");
    let mut done = None;
    for shards in [1, 3, 2] {
        let out = dir.path().join(format!("{shards}.dist"));
        let options = || RewriteOptions { shards, selection: selection(), ..Default::default() };
        let outcome = rewrite(model.clone(), &out, options()).expect("a rewrite");
        let first = std::fs::read(out.join("worker.onnx")).expect("bytes");
        rewrite(model.clone(), &out, options()).expect("a rewrite");
        assert!(std::fs::read(out.join("worker.onnx")).expect("bytes") == first, "two runs differ");
        let (_, rewritten) = deploy::open(&out).expect("a deployment");
        assert_eq!(verify(&rewritten), Vec::<String>::new());
        let store = store::open_local(&out).expect("a store");
        let session = Session::new(&rewritten, Options { store: Some(store.clone()), ..Options::default() }).expect("a session");
        let found = run(&session, inputs);
        assert_eq!(found, plain, "{shards} shards: {}", print_graph(&rewritten.graph));
        let merged = dir.path().join("merged.onnx");
        deploy::merge(&out, &merged).expect("a merge");
        assert_eq!(print_model(&graphtool::formats::load(&merged).expect("a model")), print_model(&model));
        let tensor = found[0].1.as_tensor().expect("a tensor").clone();
        let (values, shape) = (tensor.to_f32s().expect("numbers"), tensor.shape().to_vec());
        done = Some(Done { outcome, model: rewritten, values, shape, stats: store.stats() });
    }
    done.expect("three runs")
}

fn check(text: &str, inputs: Inputs) -> Done {
    check_with(text, inputs, &Selection::default)
}

fn graph(opset: i64, interface: &str, body: &str) -> String {
    format!("model ir_version=8 opset=[\"\"={opset}]\ngraph g{interface} {{\n{body}\n}}\n")
}

/// An EmbeddingBag as the TorchScript exporter writes it.
fn bag_in_loop(reduce: &str) -> String {
    let body = format!(
        "{T}
  param one: int64[1] = [1]
  param zero: int64[1] = [0]
  param most: int64[1] = [9223372036854775807]
  param yes: bool[] = [true]
  n = Shape(ids)
  bounds = Concat(offsets, n) {{axis=0}}
  ends = Slice(bounds, one, most, zero)
  bags = Shape(ends)
  trip = Squeeze(bags, zero)
  y = Loop(trip, yes) {{body=graph b(i: int64[], c: bool[]) -> (go, pooled) {{
    s = Gather(bounds, i) {{axis=0}}
    e = Gather(ends, i) {{axis=0}}
    s1 = Unsqueeze(s, zero)
    e1 = Unsqueeze(e, zero)
    part = Slice(ids, s1, e1, zero)
    rows = Gather(T, part) {{axis=0}}
    pooled = {reduce}
    go = Cast(yes) {{to=9}}
  }}}}"
    );
    graph(13, "(ids: int64[n], offsets: int64[b]) -> (y)", &body)
}

// P01, shape B
#[test]
fn a_bag_in_a_loop_asks_once_and_empty_bags_are_what_the_graph_makes_of_them() {
    let inputs = [("ids", ints(&[4], &[0, 1, 2, 3])), ("offsets", ints(&[3], &[0, 2, 2]))];
    let reduces = [
        ("ReduceSum(rows, zero) {keepdims=0}", [10.0, 12.0, 0.0, 0.0, 50.0, 52.0]),
        ("ReduceMax(rows) {axes=[0], keepdims=0}", [10.0, 11.0, f32::NEG_INFINITY, f32::NEG_INFINITY, 30.0, 31.0]),
    ];
    for (reduce, right) in reduces {
        let done = check(&bag_in_loop(reduce), &inputs);
        assert_eq!((done.remote(), done.values.as_slice()), (1, right.as_slice()), "{reduce}");
        assert_eq!((done.stats.lookups, done.stats.ids), (1, 4), "{reduce}");
    }
}

// P01, shape C
#[test]
fn a_bag_looked_up_before_its_loop_takes_zeros_for_an_empty_bag() {
    let modes = [
        ("Sum", [10.0, 12.0, 0.0, 0.0, 50.0, 52.0]),
        ("Mean", [5.0, 6.0, 0.0, 0.0, 25.0, 26.0]),
        ("Max", [10.0, 11.0, 0.0, 0.0, 30.0, 31.0]),
    ];
    for (mode, right) in modes {
        let body = format!(
            "{T}
  param zero: int64[1] = [0]
  param one: int64[1] = [1]
  param none: float32[2] = [0.0, 0.0]
  param yes: bool[] = [true]
  rows = Gather(T, ids)
  n = Shape(ids)
  bounds = Concat(offsets, n) {{axis=0}}
  bags = Shape(offsets)
  trip = Squeeze(bags, zero)
  y = Loop(trip, yes) {{body=graph b(i: int64[], c: bool[]) -> (go, pooled) {{
    s = Unsqueeze(i, zero)
    t = Add(s, one)
    start = Gather(bounds, s)
    end = Gather(bounds, t)
    empty = Equal(start, end)
    is_empty = Squeeze(empty, zero)
    pooled = If(is_empty) {{then_branch=graph t() -> (z) {{
      z = Identity(none)
    }}, else_branch=graph e() -> (p) {{
      part = Slice(rows, start, end, zero)
      p = Reduce{mode}(part, zero) {{keepdims=0}}
    }}}}
    go = Identity(yes)
  }}}}"
        );
        let inputs = [("ids", ints(&[4], &[0, 1, 2, 3])), ("offsets", ints(&[3], &[0, 2, 2]))];
        let done = check(&graph(18, "(ids: int64[n], offsets: int64[b]) -> (y)", &body), &inputs);
        assert_eq!((done.remote(), done.values.as_slice()), (1, right.as_slice()), "{mode}");
        assert_eq!(done.stats.lookups, 1, "{mode}");
    }
}

// P03
#[test]
fn negative_ids_count_from_the_end() {
    let body = format!("{T}\n  y = Gather(T, ids) {{axis=0}}");
    let done = check(&graph(13, "(ids: int64[n]) -> (y)", &body), &[("ids", ints(&[2], &[-1, 0]))]);
    assert_eq!((done.remote(), done.values), (1, vec![30.0, 31.0, 0.0, 1.0]));
}

// P05
#[test]
fn rows_of_repeated_ids_come_back_in_their_places() {
    let text = graph(13, "(ids) -> (y)", &format!("{T}\n  y = Gather(T, ids)"));
    for shape in [vec![4], vec![2, 2]] {
        let done = check(&text, &[("ids", ints(&shape, &[3, 1, 3, 3]))]);
        assert_eq!(done.values, [30.0, 31.0, 10.0, 11.0, 30.0, 31.0, 30.0, 31.0]);
        assert_eq!(done.stats.lookups, 1);
        assert_eq!(done.shape, [shape.as_slice(), &[2]].concat());
    }
}

// P07
#[test]
fn several_tables_with_several_lookups_each_are_one_question() {
    let body = format!(
        "{T}
  param B: float32[6,3] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0]
  a = Gather(T, i)
  b = Gather(B, i)
  c = Gather(T, j)
  d = Gather(B, j)
  y = Concat(a, b, c, d) {{axis=1}}"
    );
    let inputs = [("i", ints(&[1], &[1])), ("j", ints(&[1], &[2]))];
    let done = check(&graph(13, "(i: int64[n], j: int64[n]) -> (y)", &body), &inputs);
    assert_eq!((done.remote(), done.outcome.manifest.tables.len(), done.stats.lookups), (4, 2, 1));
    assert_eq!(done.values, [10.0, 11.0, 3.0, 4.0, 5.0, 20.0, 21.0, 6.0, 7.0, 8.0]);
}

// P21
#[test]
fn names_that_are_taken_are_left_to_their_owners() {
    let text = |extra: &str, outputs: &str| {
        let body = format!("{T}\n{extra}  a = Gather(T, i) {{axis=1}} # look\n  b = GatherND(T, k)\n  p = Transpose(a)\n  y = Add(p, b)");
        graph(13, &format!("(i: int64[n], k: int64[n,1]) -> (y{outputs})"), &body)
            .replace("(T, i)", "(U, i)")
            .replace("param T", "param U: float32[2,4] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]\n  param T")
    };
    let inputs = [("i", ints(&[2], &[1, 3])), ("k", ints(&[2, 1], &[3, -4]))];
    let first = check(&text("", ""), &inputs);
    assert_eq!((first.remote(), first.values.as_slice()), (2, [31.0, 36.0, 3.0, 8.0].as_slice()));
    let old = parse_model(&text("", "")).expect("a model");
    let mut new: Vec<String> = Vec::new();
    for &id in first.model.graph.ops() {
        let node = first.model.graph.node(id);
        new.extend(node.outputs.iter().map(|o| o.name.clone()).chain([node.name.clone()]));
    }
    new.retain(|n| !n.is_empty() && old.graph.value(n).is_none() && n != "look");
    new.sort();
    new.dedup();
    assert!(new.len() >= 4, "{new:?}");
    let extra: String = new.iter().map(|n| format!("  {n:?} = Neg(i)\n")).collect();
    let outputs: String = new.iter().map(|n| format!(", {n:?}")).collect();
    let second = check(&text(&extra, &outputs), &inputs);
    assert_eq!((second.remote(), second.values), (2, first.values));
}

// P22
#[test]
fn only_the_branch_that_is_taken_asks() {
    let body = format!(
        "{T}
  param one: int64[1] = [1]
  param four: int64[1] = [4]
  y = If(c) {{then_branch=graph t() -> (a) {{
    a = Gather(T, ids)
  }}, else_branch=graph e() -> (b) {{
    next = Add(ids, one)
    wrapped = Mod(next, four)
    b = Gather(T, wrapped)
  }}}}"
    );
    let text = graph(13, "(c: bool[], ids: int64[n]) -> (y)", &body);
    for (taken, right) in [(true, [30.0, 31.0]), (false, [0.0, 1.0])] {
        let done = check(&text, &[("c", Tensor::scalar(taken)), ("ids", ints(&[1], &[3]))]);
        assert_eq!((done.remote(), done.values.as_slice(), done.stats.lookups), (2, right.as_slice(), 1));
    }
}

// P23
#[test]
fn a_function_called_with_two_tables_is_two_lookups() {
    let text = format!(
        "model ir_version=8 opset=[\"\"=13, \"my\"=1]
function domain=\"my\" opset=[\"\"=13] attributes=[] defaults={{}} Emb(W, i) -> (o) {{
  o = Gather(W, i)
}}
graph g(i: int64[n]) -> (y) {{
  {T}
  param B: float32[4,1] = [5.0, 6.0, 7.0, 8.0]
  a = my::Emb(T, i)
  b = my::Emb(B, i)
  y = Concat(a, b) {{axis=1}}
}}"
    );
    let done = check(&text, &[("i", ints(&[2], &[3, 1]))]);
    assert_eq!((done.remote(), done.outcome.manifest.tables.len()), (2, 2));
    assert_eq!(done.values, [30.0, 31.0, 8.0, 10.0, 11.0, 6.0]);
    assert!(done.model.functions.is_empty());
}

// P25
#[test]
fn tied_weights_stay_with_their_reason_or_are_served_and_kept() {
    let body = format!("{T}\n  e = Gather(T, ids)\n  w = Transpose(T) # head\n  y = MatMul(e, w)");
    let text = graph(13, "(ids: int64[n]) -> (y)", &body);
    let inputs = [("ids", ints(&[1], &[1]))];
    let stays = check(&text, &inputs);
    assert_eq!(stays.reasons(), ["it is also read by Transpose \"head\""]);
    let kept = check_with(&text, &inputs, &|| Selection { keep_shared: true, ..Selection::default() });
    assert_eq!((kept.remote(), kept.values.as_slice()), (1, [11.0, 221.0, 431.0, 641.0].as_slice()));
}

// S2, for ONNX's ops
#[test]
fn each_lookup_of_a_table_keeps_its_own_meaning() {
    let body = format!("{T}\n  a = Gather(T, i)\n  u = GatherND(T, k)\n  y = Add(a, u)\n  z = Gather(T, j)");
    let inputs = [("i", ints(&[1], &[0])), ("k", ints(&[1, 1], &[-1])), ("j", ints(&[2, 1], &[2, 1]))];
    let done = check(&graph(13, "(i: int64[n], k: int64[n,1], j: int64[m,1]) -> (y, z)", &body), &inputs);
    assert_eq!((done.remote(), done.values), (3, vec![30.0, 32.0]));
}

#[test]
fn stacked_tables_are_addressed_by_field_and_id() {
    let body = "param S: float32[2,2,1] = [1.0, 2.0, 3.0, 4.0]\n  y = GatherND(S, k)";
    let done = check(&graph(13, "(k: int64[n,2]) -> (y)", body), &[("k", ints(&[3, 2], &[1, 0, 0, -1, -1, -2]))]);
    assert_eq!((done.remote(), done.values), (1, vec![3.0, 2.0, 3.0]));
}

#[test]
fn a_quantized_table_goes_as_codes() {
    let body = "param Q: int8[3,2] = [1, 2, 3, 4, 5, 6]
  param scale: float32[] = [0.1]
  param zero: int8[] = [1]
  w = DequantizeLinear(Q, scale, zero)
  c = Cast(w) {to=11}
  y = Gather(c, ids)";
    let done = check(&graph(13, "(ids: int64[n]) -> (y)", body), &[("ids", ints(&[1], &[2]))]);
    assert_eq!((done.remote(), done.outcome.manifest.tables[0].dtype.to_string().as_str()), (1, "int8"));
}

#[test]
fn a_step_of_a_scan_and_a_column_in_a_loop_are_asked_for_once() {
    let scan = format!(
        "{T}
  last, y = Scan(start, ids) {{num_scan_inputs=1, body=graph b(h, id) -> (h2, o) {{
    r = Gather(T, id)
    h2 = Add(h, r)
    o = Identity(h2)
  }}}}
  z = Identity(last)"
    );
    let inputs = [("start", Tensor::new([2], vec![0f32, 0.0]).expect("a tensor")), ("ids", ints(&[3], &[1, 2, 1]))];
    let done = check(&graph(16, "(start: float32[2], ids: int64[n]) -> (y, z)", &scan), &inputs);
    assert_eq!((done.remote(), done.stats.lookups, done.values), (1, 1, vec![10.0, 11.0, 30.0, 32.0, 40.0, 43.0]));
}

#[test]
fn one_hot_products_stay_with_their_reason() {
    let body = format!(
        "{T}
  param depth: int64[] = [4]
  param off_on: float32[2] = [0.0, 1.0]
  h = OneHot(ids, depth, off_on)
  y = MatMul(h, T)"
    );
    let done = check(&graph(13, "(ids: int64[n]) -> (y)", &body), &[("ids", ints(&[2], &[3, 7]))]);
    assert_eq!(done.values, [30.0, 31.0, 0.0, 0.0]);
    assert_eq!(done.reasons(), ["it is a product with one-hot rows: an id out of range is no error there, but a row of zeros"]);
}
