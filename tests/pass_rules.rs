//! Rules of single passes: what only looks alike is left alone, other forms are fused, later opsets keep the answers.

#[path = "support/passes.rs"]
mod support;

use graphtool::ir::{parse_model, print_graph, print_model};
use graphtool::passes::{self, Changed, Pass, Report, UpgradeOpset, catalogue};
use support::{apply, same_answers};

fn changes(pass: &str, text: &str) -> (Changed, String) {
    let mut model = parse_model(text).unwrap_or_else(|e| panic!("{pass}: {e}\n{text}"));
    let pass = catalogue().into_iter().find(|p| p.name() == pass).expect("a pass");
    let did = pass.run(&mut model, &mut Report::default()).expect("a run");
    (did, print_graph(&model.graph))
}

/// `(pass, inputs, lines)`: graphs that look like what a pass is for, and are not.
const LEFT_ALONE: &[(&str, &str, &str)] = &[
    (
        "constant-branches",
        "c: bool[], x: float32[2]",
        "y = If(c) {then_branch=graph t() -> (u) {u = Neg(x)}, else_branch=graph e() -> (v) {v = Abs(x)}}",
    ),
    (
        "fold-shapes",
        "x: float32[a,b]",
        "s = Shape(x)\n f = Flatten(s) {axis=0}\n m: int64[1] = Constant() {value=int64[1] [-1]}\n t = Concat(m, s) {axis=0}\n y = Reshape(x, t)",
    ),
    ("fuse-activations", "x: float32[2,2], w: float32[2,2]", "t = Gemm(x, w)\n u = Relu(t)\n y = Add(t, u)"),
    ("fuse-activations", "x: float64[2,2], w: float64[2,2]", "t = Gemm(x, w)\n y = Relu(t)"),
    (
        "fuse-gelu",
        "x: float32[2]",
        "r = Constant() {value=float32[] [1.5]}\n o = Constant() {value=float32[] [1.0]}\n h = Constant() {value=float32[] [0.5]}\n a = Div(x, r)\n b = Erf(a)\n c = Add(b, o)\n d = Mul(x, c)\n y = Mul(d, h)",
    ),
    (
        "fuse-gelu",
        "x: float16[2]",
        "r = Constant() {value=float32[] [1.4142135]}\n rh = Cast(r) {to=10}\n o = Constant() {value=float32[] [1.0]}\n oh = Cast(o) {to=10}\n h = Constant() {value=float32[] [0.5]}\n hh = Cast(h) {to=10}\n a = Div(x, rh)\n b = Erf(a)\n c = Add(b, oh)\n d = Mul(x, c)\n y = Mul(d, hh)",
    ),
    (
        "fuse-layer-normalization",
        "x: float32[2,4], gamma: float32[4]",
        "l = Constant() {value=int64[1] [-1]}\n e = Constant() {value=float32[] [1e-5]}\n m = ReduceMean(x, l)\n d = Sub(x, m)\n q = Mul(d, d)\n v = ReduceMean(q, l)\n s = Add(v, e)\n r = Sqrt(s)\n n = Div(d, r)\n y = Mul(n, gamma)",
    ),
    (
        "fuse-layer-normalization",
        "x: float32[2,2]",
        "l = Constant() {value=int64[1] [-1]}\n f = Constant() {value=int64[1] [0]}\n gamma = Constant() {value=float32[2] [1.0, 2.0]}\n e = Constant() {value=float32[] [1e-5]}\n m = ReduceMean(x, l)\n d = Sub(x, m)\n q = Mul(d, d)\n v = ReduceMean(q, f)\n s = Add(v, e)\n r = Sqrt(s)\n n = Div(d, r)\n y = Mul(n, gamma)",
    ),
    ("fuse-matmul", "x: float32[1,2], w: float32[2,3], c: float32[4,3]", "t = MatMul(x, w)\n y = Add(t, c)"),
    ("fuse-matmul", "x: float32[n,2], w: float32[2,3], c: float32[m,3]", "t = MatMul(x, w)\n y = Add(t, c)"),
    ("fuse-matmul", "x: float16[2,2], w: float16[2,2], c: float16[2]", "t = MatMul(x, w)\n y = Add(t, c)"),
    ("fuse-matmul", "x: float32[4,2,3], w: float32[4,2,3]", "t = Transpose(w) {perm=[2, 1, 0]}\n y = MatMul(x, t)"),
    (
        "fuse-skip-layer-normalization",
        "x: float32[2,3,2], s: float32[2]",
        "g = Constant() {value=float32[2] [1.0, 2.0]}\n t = Add(x, s)\n y = LayerNormalization(t, g)",
    ),
    ("merge-initializers", "x: float32[1]", "param a: float32[1] = [0.0]\n param b: float32[1] = [-0.0]\n t = Add(x, a)\n y = Add(t, b)"),
    ("reshape-chains", "x: float32[a,b,c]", "m = Constant() {value=int64[1] [0]}\n u = Flatten(x) {axis=2}\n y = Unsqueeze(u, m)"),
    (
        "simplify-slices",
        "x: float32[8]",
        "a = Constant() {value=int64[1] [1]}\n e = Constant() {value=int64[1] [7]}\n z = Constant() {value=int64[1] [0]}\n u = Slice(x, a, e, z)\n y = Slice(u, a, e, z)",
    ),
    (
        "split-slices",
        "x: float32[8]",
        "a = Constant() {value=int64[1] [1]}\n b = Constant() {value=int64[1] [3]}\n c = Constant() {value=int64[1] [5]}\n z = Constant() {value=int64[1] [0]}\n u = Slice(x, z, b, z)\n v = Slice(x, a, c, z)\n y = Concat(u, v) {axis=0}",
    ),
];

#[test]
fn what_only_looks_alike_is_left_alone() {
    for (pass, inputs, lines) in LEFT_ALONE {
        let text = format!("graph g({inputs}) -> (y) {{\n {lines}\n}}");
        let (did, found) = changes(pass, &text);
        assert_eq!(did, Changed::No, "{pass}: {found}");
    }
}

/// `(opset, pass, inputs, lines, the ops that are left)`: other forms in which exporters write what a pass fuses.
const FUSED: &[(i64, &str, &str, &str, &str)] = &[
    (
        17,
        "fuse-gelu",
        "x: float32[2,3]",
        "r = Constant() {value=float32[] [0.70710677]}\n o = Constant() {value=float32[] [1.0]}\n h = Constant() {value=float32[] [0.5]}\n a = Mul(r, x)\n b = Erf(a)\n c = Add(o, b)\n d = Mul(h, c)\n y = Mul(x, d)",
        "com.microsoft::Gelu",
    ),
    (
        20,
        "fuse-gelu",
        "x: float64[2,3]",
        "r = Constant() {value=float64[] [1.4142135623730951]}\n o = Constant() {value=float64[] [1.0]}\n h = Constant() {value=float64[] [0.5]}\n a = Div(x, r)\n b = Erf(a)\n c = Add(b, o)\n d = Mul(x, h)\n y = Mul(d, c)",
        "Gelu",
    ),
    (
        17,
        "fuse-gelu",
        "x: float32[2,3]",
        "three = Constant() {value=float32[] [3.0]}\n k = Constant() {value=float32[] [0.044715]}\n s = Constant() {value=float32[] [0.7978846]}\n o = Constant() {value=float32[] [1.0]}\n h = Constant() {value=float32[] [0.5]}\n p = Pow(x, three)\n q = Mul(k, p)\n t = Add(x, q)\n u = Mul(s, t)\n v = Tanh(u)\n w = Add(o, v)\n d = Mul(x, h)\n y = Mul(d, w)",
        "com.microsoft::FastGelu",
    ),
    (
        20,
        "fuse-gelu",
        "x: float32[2,3]",
        "k = Constant() {value=float32[] [0.044715]}\n s = Constant() {value=float32[] [0.7978846]}\n o = Constant() {value=float32[] [1.0]}\n h = Constant() {value=float32[] [0.5]}\n p2 = Mul(x, x)\n p = Mul(x, p2)\n q = Mul(p, k)\n t = Add(q, x)\n u = Mul(t, s)\n v = Tanh(u)\n w = Add(v, o)\n d = Mul(x, w)\n y = Mul(d, h)",
        "Gelu",
    ),
    (
        20,
        "fuse-gelu",
        "x: float32[2,3]",
        "b = Constant() {value=float32[3] [0.5, 1.0, -1.0]}\n t = Add(b, x)\n y = Gelu(t)",
        "com.microsoft::BiasGelu",
    ),
    (
        17,
        "fuse-layer-normalization",
        "x: float32[n,2,3]",
        "g = Constant() {value=float32[2,3] [1.0, 2.0, 3.0, 1.0, 1.0, 1.0]}\n e = Constant() {value=float32[] [0.001]}\n m = ReduceMean(x) {axes=[1, 2]}\n d = Sub(x, m)\n q = Mul(d, d)\n v = ReduceMean(q) {axes=[-2, -1]}\n s = Add(e, v)\n r = Sqrt(s)\n z = Div(d, r)\n y = Mul(g, z)",
        "LayerNormalization",
    ),
    (
        18,
        "fuse-layer-normalization",
        "x: float64[n,4]",
        "a = Constant() {value=int64[1] [1]}\n g = Constant() {value=float64[4] [1.0, 2.0, 3.0, 1.0]}\n h = Constant() {value=float64[4] [1.0, 2.0, 3.0, 1.0]}\n two = Constant() {value=float64[] [2.0]}\n e = Constant() {value=float64[] [0.001]}\n m = ReduceMean(x, a)\n d = Sub(x, m)\n q = Pow(d, two)\n v = ReduceMean(q, a)\n s = Add(v, e)\n r = Sqrt(s)\n z = Div(d, r)\n w = Mul(z, g)\n y = Add(h, w)",
        "LayerNormalization",
    ),
    (
        17,
        "fuse-attention",
        "q: float32[n,m,4], k: float32[n,l,4], v: float32[n,l,6]",
        "hq = Constant() {value=int64[4] [0, 0, 2, 2]}\n hv = Constant() {value=int64[4] [0, 0, 2, 3]}\n j = Constant() {value=int64[3] [0, 0, 6]}\n s = Constant() {value=float32[] [1.4142135]}\n a = Reshape(q, hq)\n b = Transpose(a) {perm=[0, 2, 1, 3]}\n c = Reshape(k, hq)\n d0 = Transpose(c) {perm=[0, 2, 1, 3]}\n d = Transpose(d0) {perm=[0, 1, 3, 2]}\n e = Reshape(v, hv)\n f = Transpose(e) {perm=[0, 2, 1, 3]}\n g0 = MatMul(b, d)\n g1 = Div(g0, s)\n p = Softmax(g1) {axis=3}\n o = MatMul(p, f)\n t = Transpose(o) {perm=[0, 2, 1, 3]}\n y = Reshape(t, j)",
        "com.microsoft::MultiHeadAttention",
    ),
    (
        23,
        "fuse-attention",
        "q: float32[n,2,4], k: float32[n,2,4], v: float32[n,2,4]",
        "h = Constant() {value=int64[4] [0, 0, 2, 2]}\n j = Constant() {value=int64[3] [0, 0, 4]}\n s = Constant() {value=float32[] [0.8]}\n w = Constant() {value=float32[1,2,2] [0.0, -inf, -1.0, 0.5]}\n a = Reshape(q, h)\n b0 = Transpose(a) {perm=[0, 2, 1, 3]}\n b = Mul(b0, s)\n c = Reshape(k, h)\n d0 = Transpose(c) {perm=[0, 2, 3, 1]}\n d = Mul(s, d0)\n e = Reshape(v, h)\n f = Transpose(e) {perm=[0, 2, 1, 3]}\n g0 = MatMul(b, d)\n g1 = Add(w, g0)\n p = Softmax(g1) {axis=-1}\n o = MatMul(p, f)\n t = Transpose(o) {perm=[0, 2, 1, 3]}\n y = Reshape(t, j)",
        "Attention",
    ),
    (
        17,
        "fuse-matmul",
        "x: float32[n,3,2], w: float32[n,3,4]",
        "s = Constant() {value=float32[1] [4.0]}\n t = Transpose(x) {perm=[0, 2, 1]}\n u = Div(w, s)\n y = MatMul(t, u)",
        "com.microsoft::FusedMatMul",
    ),
    (
        17,
        "fuse-matmul",
        "x: float64[3,n], w: float64[3,2], c: float64[n,1]",
        "s = Constant() {value=float64[] [4.0]}\n t = Transpose(x)\n u = MatMul(t, w)\n v = Mul(s, u)\n y = Add(c, v)",
        "Gemm",
    ),
    (
        17,
        "fuse-matmul",
        "x: float32[3,2], w: float32[4,3], c: float32[2,4]",
        "t = Transpose(w)\n y = Gemm(x, t, c) {transA=1, alpha=0.5, beta=2.0}",
        "Gemm",
    ),
    (
        17,
        "fuse-activations",
        "x: float32[3,2], w: float32[2,4]",
        "t = Gemm(x, w) {alpha=2.0}\n y = LeakyRelu(t) {alpha=0.3}",
        "com.microsoft::FusedGemm",
    ),
    (
        17,
        "fuse-skip-layer-normalization",
        "x: float32[2,3,2], s: float32[2,3,2]",
        "g = Constant() {value=float32[2] [1.0, 2.0]}\n t = Add(x, s)\n y = LayerNormalization(t, g) {axis=2}",
        "com.microsoft::SkipLayerNormalization",
    ),
];

#[test]
fn other_forms_are_fused_and_answer_alike() {
    for (opset, pass, inputs, lines, left) in FUSED {
        let plain =
            parse_model(&format!("model ir_version=8 opset=[\"\"={opset}]\ngraph g({inputs}) -> (y) {{\n {lines}\n}}")).expect(lines);
        let pass = catalogue().into_iter().find(|p| p.name() == *pass).expect("a pass");
        let (mut new, _) = apply(&|m| pass.run(m, &mut Report::default()), &plain).unwrap_or_else(|e| panic!("{lines}: {e}"));
        passes::parse_passes("lift-constants,dead-code").expect("passes").run(&mut new, &mut Report::default()).expect("a run");
        let ops: Vec<String> = new.graph.ops().iter().filter_map(|&id| Some(new.graph.node(id).op()?.to_string())).collect();
        assert_eq!(ops.join(" "), *left, "{}", print_model(&new));
        same_answers(pass.name(), &plain, &new).unwrap_or_else(|e| panic!("{e}\n{}", print_model(&new)));
    }
}

/// `(opset, inputs, lines)`: ops whose attributes, inputs or defaults changed in a later version.
const OLD: &[(i64, &str, &str)] = &[
    (3, "x: float32[2,3]", "y = Concat(x, x)"),
    (4, "x: float32[2,3]", "y = Reshape(x) {shape=[3, -1]}"),
    (5, "x: float32[2,3]", "y = Selu(x)"),
    (6, "x: float32[2,3,4], b: float32[3]", "y = Add(x, b) {broadcast=1, axis=1}"),
    (6, "x: float32[2,3,4], b: float32[4]", "y = Mul(x, b) {broadcast=1}"),
    (6, "x: float32[2,3,4], s: float32[3]", "y = PRelu(x, s)"),
    (9, "x: float32[2,3]", "y, m = Dropout(x)"),
    (6, "x: float32[2,3]", "y = Dropout(x) {is_test=1, ratio=0.3}"),
    (
        6,
        "x: float32[2,3,4], s: float32[3], b: float32[3], m: float32[3], v: float32[3]",
        "w = Abs(v)\n y = BatchNormalization(x, s, b, m, w) {is_test=1}",
    ),
    (9, "x: float32[4,5]", "y = Slice(x) {starts=[1, -3], ends=[3, 100], axes=[0, 1]}"),
    (9, "x: float32[4,5]", "y, i = TopK(x) {k=2, axis=1}"),
    (9, "x: float32[1,1,2,3]", "s = Constant() {value=float32[4] [1.0, 1.0, 2.0, 2.0]}\n y = Upsample(x, s) {mode=\"nearest\"}"),
    (9, "x: float32[1,1,2,3]", "s = Constant() {value=float32[4] [1.0, 1.0, 2.0, 3.0]}\n y = Upsample(x, s) {mode=\"linear\"}"),
    (7, "x: float32[1,1,2,3]", "y = Upsample(x) {mode=\"nearest\", scales=[1.0, 1.0, 2.0, 2.0]}"),
    (9, "x: float32[2,2], u: float32[1,2]", "i = Constant() {value=int64[1,2] [1, 0]}\n y = Scatter(x, i, u)"),
    (10, "x: float32[1,1,3,3]", "s = Constant() {value=float32[4] [1.0, 1.0, 0.6, 2.0]}\n y = Resize(x, s) {mode=\"nearest\"}"),
    (10, "x: float64[2,3]", "y = Pad(x) {pads=[0, 1, 1, 0], value=0.5}"),
    (10, "x: float64[2,3]", "y = Clip(x) {min=-0.5, max=0.25}"),
    (11, "x: float32[2,3]", "y = Dropout(x) {ratio=0.25}"),
    (12, "x: float32[2,3,4]", "y = Softmax(x)"),
    (12, "x: float32[2,3,4]", "y = LogSoftmax(x) {axis=-1}"),
    (12, "x: float32[2,3,4]", "y = Hardmax(x) {axis=0}"),
    (12, "x: float32[2,1,4]", "t = Squeeze(x) {axes=[1]}\n u = Unsqueeze(t) {axes=[0]}\n y = ReduceSum(u) {axes=[1], keepdims=0}"),
    (12, "x: float32[4,3]", "y, z = Split(x) {axis=0, split=[1, 3]}"),
    (12, "x: float32[4,3]", "y, z = Split(x)"),
    (17, "x: float32[2,3,4]", "t = ReduceMean(x) {axes=[-1]}\n y = ReduceL2(t) {axes=[0], keepdims=0}"),
    (17, "x: float32[1,4,1]", "y = DFT(x) {axis=1}"),
    (
        15,
        "x: float32[1,1,4,4], r: float32[1,4]",
        "b = Constant() {value=int64[1] [0]}\n q = Abs(r)\n y = RoiAlign(x, q, b) {output_height=2, output_width=2}",
    ),
    (19, "x: float32[1,1,3,3], g: float32[1,2,2,2]", "y = GridSample(x, g)"),
    (19, "x: float32[1,1,3,3], g: float32[1,2,2,2]", "y = GridSample(x, g) {mode=\"bicubic\"}"),
];

#[test]
fn a_later_opset_keeps_the_answers() {
    for (opset, inputs, lines) in OLD {
        let plain =
            parse_model(&format!("model ir_version=4 opset=[\"\"={opset}]\ngraph g({inputs}) -> (y) {{\n {lines}\n}}")).expect(lines);
        for to in [7, 10, 11, 13, 14, 18, 20, 24].into_iter().filter(|to| to > opset) {
            let pass = UpgradeOpset { to };
            let (new, _) = apply(&|m| pass.run(m, &mut Report::default()), &plain).unwrap_or_else(|e| panic!("{lines} to {to}: {e}"));
            same_answers("dead-code", &plain, &new).unwrap_or_else(|e| panic!("{lines} from {opset} to {to}: {e}\n{}", print_model(&new)));
        }
    }
}

#[test]
fn what_a_later_opset_cannot_say_is_refused_by_name() {
    let cases = [
        (
            6,
            "t = Tile(x, x, x)",
            "node \"t\" (Tile) cannot be written in opset 13: its inputs or attributes mean other things from version 6 on",
        ),
        (6, "t = Dropout(x)", "node \"t\" (Dropout) cannot be written in opset 13: it trains"),
        (9, "t, m = Dropout(x)", "node \"t\" (Dropout) cannot be written in opset 13: its mask has another type"),
        (9, "t = Mystery(x)", "node \"t\" (Mystery) cannot be written in opset 13: this build does not know the op"),
    ];
    for (opset, line, message) in cases {
        let text = format!(
            "model ir_version=4 opset=[\"\"={}]\ngraph g(x: float32[2]) -> ({}) {{\n {line}\n}}",
            if line.contains("Tile") { 5 } else { opset },
            line.split(" =").next().unwrap_or_default()
        );
        let mut model = parse_model(&text).expect("a model");
        let error = UpgradeOpset { to: 13 }.run(&mut model, &mut Report::default()).expect_err(line).to_string();
        assert_eq!(error, message);
        assert_eq!(print_model(&model), print_model(&parse_model(&text).expect("a model")), "{line}: it is left as it was");
    }
    let mut model = parse_model("model ir_version=8 opset=[\"\"=17]\ngraph g(x: float32[2]) -> (y) {\n y = Neg(x)\n}").expect("a model");
    let mut to = |to| UpgradeOpset { to }.run(&mut model, &mut Report::default()).expect_err("refused").to_string();
    assert_eq!(to(13), "the model is of opset 17; only a later one can be written, not 13");
    assert!(to(1000).starts_with("opset 1000 is not known; the latest is "), "{}", to(1000));
}

#[test]
fn functions_are_upgraded_with_the_model_and_kept() {
    let text = r#"
    model ir_version=8 opset=[""=12, "my"=1]
    function domain="my" opset=[""=12] attributes=[axes] defaults={} Sum(a) -> (b) {
      t = Unsqueeze(a) {axes=[0]}
      b = ReduceSum(t) {axes=[0], keepdims=0}
    }
    graph g(x: float32[2,3]) -> (y) {
      u = my::Sum(x)
      y = my::Sum(u)
    }"#;
    let plain = parse_model(text).expect("a model");
    let pass = UpgradeOpset { to: 17 };
    let (new, _) = apply(&|m| pass.run(m, &mut Report::default()), &plain).expect("an upgrade");
    assert_eq!((new.functions.len(), new.functions[0].opset_imports[0].version), (1, 17));
    assert!(new.functions[0].graph.params().is_empty(), "a function has no initializers");
    same_answers("dead-code", &plain, &new).expect("equal answers");
}
