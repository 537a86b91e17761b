//! Every form of a lookup that `src/PATTERNS.md` lists, in a small model: what becomes of it is reviewed in
//! `snapshots/patterns`, and its answer is that of the model as it came.

use super::{T, check_with, graph, ints};
use graphtool::ir::print_graph;
use graphtool::passes::Selection;
use graphtool::tensor::Tensor;

/// A form: its name, opset, body, how many of how many lookups become remote.
type Form<'a> = (&'a str, i64, &'a str, (usize, usize));

/// Lookups of ids [1, 3, -4] in what the body calls `v`, or by itself where it makes `y`.
const FORMS: &[Form] = &[
    ("axis-1", 13, "y = Gather(T, short) {axis=1}", (1, 1)),
    (
        "bag-unrolled",
        13,
        "param zero: int64[1] = [0]\n  param one: int64[1] = [1]\n  param three: int64[1] = [3]\n  a = Slice(ids, zero, one, zero)\n  b = Slice(ids, one, three, zero)\n  p = Gather(T, a)\n  q = Gather(T, b)\n  r = ReduceSum(p, zero) {keepdims=1}\n  s = ReduceSum(q, zero) {keepdims=1}\n  y = Concat(r, s) {axis=0}",
        (2, 2),
    ),
    (
        "batch-dims",
        13,
        "param S: float32[3,2,1] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]\n  param zero: int64[1] = [0]\n  k = Clip(ids, low, high)\n  u = Unsqueeze(k, last)\n  param low: int64[] = [-2]\n  param high: int64[] = [1]\n  y = GatherND(S, u) {batch_dims=1}",
        (1, 1),
    ),
    ("cast", 13, "v = Cast(T) {to=11}", (1, 1)),
    (
        "chosen-by-if",
        13,
        "param U: float32[4,2] = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]\n  param yes: bool[] = [true]\n  v = If(yes) {then_branch=graph t() -> (a) {\n    a = Identity(T)\n  }, else_branch=graph e() -> (b) {\n    b = Identity(U)\n  }}",
        (0, 1),
    ),
    ("columns-scaled", 13, "param by: float32[2] = [2.0, 0.5]\n  v = Mul(T, by)", (1, 1)),
    ("concat", 13, "param U: float32[1,2] = [7.0, 6.0]\n  v = Concat(U, T) {axis=0}", (1, 1)),
    (
        "dequantize-blocks",
        21,
        "param Q: int8[4,4] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]\n  param s: float32[4,2] = [0.5, 0.25, 1.0, 2.0, 0.125, 4.0, 0.0625, 8.0]\n  v = DequantizeLinear(Q, s) {axis=1, block_size=2}",
        (2, 2),
    ),
    (
        "dequantize-columns",
        13,
        "param Q: int8[4,2] = [1, 2, 3, 4, 5, 6, 7, 8]\n  param s: float32[2] = [0.5, 0.25]\n  v = DequantizeLinear(Q, s)",
        (1, 1),
    ),
    (
        "dequantize-rows",
        13,
        "param Q: int8[4,2] = [1, 2, 3, 4, 5, 6, 7, 8]\n  param s: float32[4] = [0.5, 0.25, 2.0, 4.0]\n  param z: int8[4] = [1, 0, -1, 2]\n  v = DequantizeLinear(Q, s, z) {axis=0}",
        (2, 2),
    ),
    (
        "gather-elements",
        13,
        "param sh: int64[2] = [1, 2]\n  u = Unsqueeze(ids, last)\n  e = Expand(u, sh)\n  y = GatherElements(T, e)",
        (1, 1),
    ),
    ("gather-elements-any", 13, "param k: int64[1,2] = [3, 0]\n  y = GatherElements(T, k)", (0, 1)),
    ("gather-nd", 13, "u = Unsqueeze(ids, last)\n  y = GatherND(T, u)", (1, 1)),
    (
        "lookup-of-lookup",
        13,
        "param M: float32[4,1] = [3.0, 2.0, 1.0, 0.0]\n  m = Gather(M, ids)\n  i = Cast(m) {to=7}\n  y = Gather(T, i)",
        (2, 2),
    ),
    (
        "loop-state",
        13,
        "param h: float32[2] = [0.0, 0.0]\n  n = Size(ids)\n  w, y = Loop(n, _, T, h) {body=graph b(i: int64[], c: bool[], w1: float32[4,2], h1: float32[2]) -> (c2, w2, h2) {\n    s = Gather(ids, i)\n    r = Gather(w1, s)\n    h2 = Add(h1, r)\n    c2 = Identity(c)\n    w2 = Identity(w1)\n  }}",
        (1, 1),
    ),
    (
        "loop-state-changed",
        13,
        "param two: float32[] = [2.0]\n  n = Size(ids)\n  w, y = Loop(n, _, T) {body=graph b(i: int64[], c: bool[], w1: float32[4,2]) -> (c2, w2, r) {\n    s = Gather(ids, i)\n    r = Gather(w1, s)\n    c2 = Identity(c)\n    w2 = Mul(w1, two)\n  }}",
        (0, 1),
    ),
    (
        "loop-state-computed",
        13,
        "param W: float32[2,4] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]\n  n = Size(ids)\n  v = Transpose(W)\n  w, y = Loop(n, _, v) {body=graph b(i: int64[], c: bool[], w1: float32[4,2]) -> (c2, w1, r) {\n    s = Gather(ids, i)\n    r = Gather(w1, s)\n    c2 = Identity(c)\n  }}",
        (1, 1),
    ),
    (
        "loop-two-lookups",
        13,
        "param U: float32[4,2] = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]\n  param four: int64[] = [4]\n  n = Size(ids)\n  y = Loop(n, _) {body=graph b(i: int64[], c: bool[]) -> (c2, o) {\n    s = Gather(ids, i)\n    t = Mod(s, four)\n    r = Gather(T, t)\n    q = Gather(U, t)\n    o = Add(r, q)\n    c2 = Identity(c)\n  }}",
        (2, 2),
    ),
    (
        "loop-with-casts",
        13,
        "n = Size(ids)\n  small = Cast(ids) {to=6}\n  param minus: int64[] = [-1]\n  y = Loop(n, _) {body=graph b(i: int64[], c: bool[]) -> (c2, r) {\n    s = Gather(small, i)\n    w = Cast(s) {to=7}\n    t = Max(w, minus)\n    r = Gather(T, t)\n    c2 = Identity(c)\n  }}",
        (1, 1),
    ),
    (
        "loops-in-loops",
        13,
        "n = Size(ids)\n  y = Loop(n, _) {body=graph o(i: int64[], c: bool[]) -> (c2, sum) {\n    rows = Loop(n, _) {body=graph b(j: int64[], d: bool[]) -> (d2, r) {\n      s = Gather(ids, j)\n      r = Gather(T, s)\n      d2 = Identity(d)\n    }}\n    sum = ReduceMax(rows) {axes=[0], keepdims=0}\n    c2 = Identity(c)\n  }}",
        (1, 1),
    ),
    ("reshape", 13, "param sh: int64[2] = [-1, 1]\n  v = Reshape(T, sh)", (1, 1)),
    ("scaled", 13, "param by: float32[] = [2.5]\n  v = Mul(by, T)", (1, 1)),
    ("transpose", 13, "param W: float32[2,4] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]\n  v = Transpose(W)", (1, 1)),
    ("two-layouts", 13, "param sh: int64[2] = [2, 4]\n  w = Reshape(T, sh)\n  a = Gather(w, short)\n  y = Gather(T, ids)", (0, 2)),
];

fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../snapshots/patterns");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

fn form(name: &str, opset: i64, body: &str, counts: (usize, usize), selection: &dyn Fn() -> Selection) {
    let end = if body.contains("y = ") || body.contains(", y =") || body.contains("y, mask =") { "" } else { "\n  y = Gather(v, ids)" };
    let text = graph(opset, "(ids: int64[3], short: int64[1]) -> (y)", &format!("{T}\n  param last: int64[1] = [-1]\n  {body}{end}"));
    let opsets = |text: String| text.replacen("]\n", ", \"com.microsoft\"=1]\n", 1);
    let text = if body.contains("com.microsoft") { opsets(text) } else { text };
    let inputs = [("ids", ints(&[3], &[1, 3, -4])), ("short", ints(&[1], &[1]))];
    let done = check_with(&text, &inputs, selection);
    let mut shown = String::new();
    for l in &done.outcome.report.lookups {
        shown.push_str(&format!("{} ({}) in {}: {}\n", l.node, l.op, l.table, l.reason.as_deref().unwrap_or("remote")));
    }
    shown.push_str(&print_graph(&done.model.graph));
    assert_eq!((done.remote(), done.outcome.report.lookups.len()), counts, "{name}: {shown}");
    settings().bind(|| insta::assert_snapshot!(name.to_owned(), shown));
}

#[test]
fn each_form_becomes_what_was_reviewed() {
    for (name, opset, body, counts) in FORMS {
        form(name, *opset, body, *counts, &Selection::default);
    }
}

#[test]
fn lookups_fused_by_onnx_runtime_read_rows_that_were_looked_up() {
    let codes: Vec<String> = (0..64).map(|i| (i * 7 % 16).to_string()).collect();
    let ids = "param four: int64[] = [4]\n  k = Mod(ids, four)";
    let blocks = format!(
        "param Q: uint4[4,16] = [{}]\n  param s: float32[4,1] = [0.5, 2.0, 0.25, 4.0]\n  {ids}\n  \
         y = com.microsoft::GatherBlockQuantized(Q, k, s) {{block_size=16, gather_axis=0, quantize_axis=1}}",
        codes.join(", ")
    );
    form("gather-block-quantized", 21, &blocks, (2, 2), &Selection::default);
    let embed = format!(
        "param zero: int64[1] = [0]\n  param P: float32[3,2] = [0.5, 0.25, 1.0, 2.0, 3.0, 1.5]\n  param g: float32[2] = [1.0, 2.0]\n  \
         param b: float32[2] = [0.0, 1.0]\n  {ids}\n  i = Cast(k) {{to=6}}\n  j = Unsqueeze(i, zero)\n  \
         y, mask = com.microsoft::EmbedLayerNormalization(j, _, T, P, _, g, b) {{epsilon=0.001}}"
    );
    form("embed-layer-normalization", 17, &embed, (1, 2), &Selection::default);
}

#[test]
fn one_hot_products_are_lookups_where_they_are_asked_for() {
    let flag = || Selection { one_hot: true, ..Selection::default() };
    let hot = "param depth: int64[] = [4]\n  param off_on: float32[2] = [0.0, 1.0]\n  param far: int64[] = [3]\n  i = Add(ids, far)\n  h = OneHot(i, depth, off_on)\n  y = MatMul(h, T)";
    form("one-hot", 13, hot, (1, 1), &flag);
    form(
        "one-hot-negative-zeros",
        13,
        &hot.replace("depth: int64[] = [4]", "depth: int64[] = [5]")
            .replace("T)", "T5)")
            .replace("param depth", "param T5: float32[5,2] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -0.0, 9.0]\n  param depth"),
        (0, 1),
        &flag,
    );
}

#[test]
fn tables_of_one_name_in_two_branches_are_two_tables() {
    let branch = |graph: &str, out: &str, table: &str| {
        format!("graph {graph}() -> ({out}) {{\n    param W: float32[2,1] = [{table}]\n    {out} = Gather(W, ids)\n  }}")
    };
    let body = format!("y = If(c) {{then_branch={}, else_branch={}}}", branch("t", "a", "1.0, 2.0"), branch("e", "b", "3.0, 4.0"));
    let text = graph(13, "(c: bool[], ids: int64[n]) -> (y)", &body);
    for (taken, right) in [(true, 2.0), (false, 4.0)] {
        let done = super::check(&text, &[("c", Tensor::scalar(taken)), ("ids", ints(&[1], &[1]))]);
        assert_eq!((done.remote(), done.values.as_slice()), (2, [right].as_slice()));
        let names: Vec<&str> = done.outcome.manifest.tables.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["W", "W_1"]);
    }
}

#[test]
fn a_computed_table_with_another_reader_stays_or_is_served_and_kept() {
    let body = format!("{T}\n  w = Transpose(T)\n  e = Gather(w, ids)\n  y = MatMul(e, T) # head");
    let text = graph(13, "(ids: int64[n]) -> (y)", &body);
    let inputs = [("ids", ints(&[1], &[1]))];
    let stays = super::check(&text, &inputs);
    assert_eq!(stays.reasons(), ["its table is computed by Transpose \"w\", and what that reads is also read by MatMul \"head\""]);
    let kept = check_with(&text, &inputs, &|| Selection { keep_shared: true, ..Selection::default() });
    assert_eq!((kept.remote(), kept.values, stays.values), (1, vec![1460.0, 1524.0], vec![1460.0, 1524.0]));
}
