//! Steps of several nodes give the bits of the nodes, and their errors: each graph runs with and without them.

use graphtool::exec::{ExecError, Options, Session};
use graphtool::ir::parse_model;
use graphtool::tensor::{DType, Tensor, Value, cast};

fn numbers(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>() as u32;
    let value = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 22) as f32 - 2.0;
    Tensor::new(shape, (0..n).map(value).collect()).unwrap()
}

fn ids(shape: &[usize], data: &[i64]) -> Tensor {
    Tensor::new(shape, data.to_vec()).unwrap()
}

type Outcome = Result<Vec<(String, Value)>, ExecError>;

fn run(text: &str, inputs: &[(&str, Tensor)], unfused: bool) -> Outcome {
    let model = parse_model(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let session = Session::new(&model, Options { unfused, threads: 2, ..Options::default() })?;
    session.run(inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone().into())).collect())
}

/// Runs both ways; the results are the same, and the outputs those of `want` if it is given.
fn check(body: &str, inputs: &[(&str, Tensor)]) -> Outcome {
    let (fused, plain) = (run(body, inputs, false), run(body, inputs, true));
    match (&fused, &plain) {
        (Ok(fused), Ok(plain)) => assert_eq!(fused, plain, "{body}"),
        (Err(ExecError::Node { detail: fused, .. }), Err(ExecError::Node { node, op, detail })) => {
            assert!(fused == detail || *fused == format!("in node \"{node}\" ({op}): {detail}"), "{fused} is not {detail}");
        }
        (fused, plain) => panic!("{fused:?} is not {plain:?}\n{body}"),
    }
    fused
}

/// A graph of opset 17.
fn graph(interface: &str, body: &str) -> String {
    format!("model ir_version=9 opset=[\"\"=17]\ngraph g{interface} {{\n{body}\n}}\n")
}

fn list(t: &Tensor) -> String {
    format!("{:?}", t.to_f32s().unwrap())
}

#[test]
fn products_take_transposes_bias_and_relu_with_them() {
    for (dims, perm) in
        [([2, 3, 4, 5], "0, 2, 1, 3"), ([2, 4, 3, 5], "0, 1, 2, 3"), ([4, 2, 5, 3], "1, 3, 0, 2"), ([3, 2, 4, 5], "1, 0, 2, 3")]
    {
        let body = format!(
            "  a = Transpose(x) {{perm=[{perm}]}}\n  b = Transpose(y) {{perm=[{perm}]}}\n  t = Transpose(b) {{perm=[0, 1, 3, 2]}}\n  \
             z = MatMul(a, t)"
        );
        check(&graph("(x: float32, y: float32) -> (z)", &body), &[("x", numbers(&dims)), ("y", numbers(&dims))]).unwrap();
    }
    for (dtype, k, n) in [(DType::F32, 7, 20), (DType::F32, 40, 3), (DType::F32, 33, 64), (DType::F64, 5, 6)] {
        let (w, b) = (list(&numbers(&[k, n])), list(&numbers(&[n])));
        let body =
            format!("  param w: {dtype}[{k},{n}] = {w}\n  param b: {dtype}[{n}] = {b}\n  y = MatMul(x, w)\n  z = Add(b, y)\n  r = Relu(z)");
        let text = graph(&format!("(x: {dtype}) -> (r)"), &body);
        for shape in [[1, 1, k], [3, 5, k], [0, 2, k], [2, 100, k]] {
            check(&text, &[("x", cast(&numbers(&shape), dtype).unwrap())]).unwrap();
        }
        let error = check(&text, &[("x", cast(&numbers(&[2, k + 1]), dtype).unwrap())]).unwrap_err().to_string();
        assert!(error.contains("do not multiply"), "{error}");
    }
}

#[test]
fn gemms_that_follow_each_other_are_one_step() {
    let param = |name: &str, shape: &[usize], dtype| {
        let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
        format!("  param {name}: {dtype}[{}] = {}\n", dims.join(","), list(&numbers(shape)))
    };
    let tower = |dtype: DType, last: &str| {
        let weights: String =
            [("a", vec![70, 13]), ("b", vec![70, 33]), ("c", vec![1, 33]), ("p", vec![70]), ("q", vec![33]), ("r", vec![1])]
                .map(|(name, shape)| param(name, &shape, dtype))
                .concat();
        let body = format!(
            "{weights}  x1 = Gemm(x, a, p) {{transB=1}}\n  x2 = Relu(x1)\n  x3 = Gemm(x2, b, q)\n  x4 = Relu(x3)\n  y = Gemm(x4, c{last}"
        );
        graph(&format!("(x: {dtype}) -> (y)"), &body)
    };
    for (dtype, last) in [
        (DType::F32, ", r) {transB=1}"),
        (DType::F32, ") {transB=1}"),
        (DType::F32, ", r) {transB=1, alpha=0.5}"),
        (DType::F32, ", r) {transB=1, beta=2.0}"),
        (DType::F64, ", r) {transB=1}"),
    ] {
        for m in [0, 1, 2, 5, 64, 97, 1000] {
            check(&tower(dtype, last), &[("x", cast(&numbers(&[m, 13]), dtype).unwrap())]).unwrap();
        }
    }
    for (x, fault) in [(vec![2, 12], "multiply"), (vec![13], "matrices")] {
        let error = check(&tower(DType::F32, ", r) {transB=1}"), &[("x", numbers(&x))]).unwrap_err().to_string();
        assert!(error.contains(fault), "{error}");
    }
    let error = check(&tower(DType::F32, ", r)"), &[("x", numbers(&[2, 13]))]).unwrap_err().to_string();
    assert!(error.contains("multiply") && error.contains("\"y\""), "{error}");
}

#[test]
fn one_row_is_taken_before_what_works_row_by_row() {
    let (w, v, g) = (list(&numbers(&[20, 33])), list(&numbers(&[33, 20])), list(&numbers(&[20])));
    let text = |index: &str, types: [&str; 2]| {
        let body = format!(
            "  param w: float32[20,33] = {w}\n  param v: float32[33,20] = {v}\n  param g: float32[20] = {g}\n  \
             param i: int64{index}\n  s = Add(x, z)\n  n = LayerNormalization(s, g, g) {{axis=-1}}\n  a = MatMul(n, w)\n  b = Relu(a)\n  \
             c = MatMul(b, v)\n  d = Add(g, c)\n  e = Add(d, n)\n  f = Gather(e, i) {{axis=1}}\n  y = Tanh(f)"
        );
        graph(&format!("(x: float32{}, z: float32{}) -> (y)", types[0], types[1]), &body)
    };
    let three = ["[a,b,20]"; 2];
    let pair = |x: &[usize], z: &[usize]| [("x", numbers(x)), ("z", numbers(z))];
    for index in ["[] = [0]", "[] = [-1]", "[1] = [2]", "[] = [4]"] {
        check(&text(index, three), &pair(&[3, 5, 20], &[3, 5, 20])).unwrap();
        check(&text(index, ["[a,b,20]", "[c,b,20]"]), &pair(&[3, 5, 20], &[1, 5, 20])).unwrap();
        check(&text(index, ["[a,b,20]", "[b,20]"]), &pair(&[2, 5, 20], &[5, 20])).unwrap();
        check(&text(index, ["", ""]), &pair(&[5, 20], &[5, 20])).unwrap();
    }
    let y = check(&text("[] = [-1]", three), &pair(&[3, 5, 20], &[3, 5, 20])).unwrap();
    assert_eq!(y[0].1.as_tensor().unwrap().shape()[..], [3, 20]);
    let error = check(&text("[] = [5]", three), &pair(&[3, 5, 20], &[3, 5, 20])).unwrap_err().to_string();
    assert!(error.contains("index 5"), "{error}");
}

#[test]
fn arithmetic_goes_in_one_walk() {
    let body = "  param c: float32[] = [1.4142135]\n  param one: float32[] = [1.0]\n  param half: float32[1] = [0.5]\n  s = Add(x, b)\n  \
                d = Div(s, c)\n  e = Erf(d)\n  f = Add(e, one)\n  g = Mul(s, f)\n  h = Mul(g, half)";
    let gelu = graph("(x: float32, b: float32) -> (h)", body);
    for (x, b) in [
        (vec![3, 700], vec![700]),
        (vec![2, 3, 5], vec![3, 5]),
        (vec![40, 1000], vec![40, 1000]),
        (vec![4, 6], vec![4, 1]),
        (vec![4, 1], vec![1, 6]),
        (vec![], vec![]),
        (vec![0, 3], vec![3]),
        (vec![1], vec![2, 2, 2]),
    ] {
        check(&gelu, &[("x", numbers(&x)), ("b", numbers(&b))]).unwrap();
    }
    let error = check(&gelu, &[("x", numbers(&[2, 3])), ("b", numbers(&[4]))]).unwrap_err().to_string();
    assert!(error.contains("[2,3]") && error.contains("[4]"), "{error}");
}

#[test]
fn a_value_that_others_read_stays() {
    let body = "  a = Add(x, y)\n  b = Mul(a, x)\n  c = Sub(b, a)\n  d = Tanh(c)";
    let text = graph("(x: float32[4], y: float32[4]) -> (a, d, b)", body);
    check(&text, &[("x", numbers(&[4])), ("y", numbers(&[4]))]).unwrap();
}

#[test]
fn rows_that_are_looked_up_are_joined_at_once() {
    let text = |unsqueeze: bool| {
        let joined = if unsqueeze {
            "  u0 = Unsqueeze(r0, one)\n  u1 = Unsqueeze(r1, one)\n  y = Concat(d, u0, u1) {axis=1}"
        } else {
            "  y = Concat(d, r0, r1) {axis=1}"
        };
        let body = format!(
            "  param T: float32[4,2] = [0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0]\n  \
             param S: float32[3,2] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]\n  param first: int64[] = [0]\n  param last: int64[] = [-1]\n  \
             param one: int64[1] = [1]\n  c0 = Gather(ids, first) {{axis=1}}\n  c1 = Gather(ids, last) {{axis=1}}\n  r0 = Gather(T, c0)\n  \
             r1 = Gather(S, c1)\n{joined}"
        );
        graph("(d: float32, ids: int64[n,3]) -> (y)", &body)
    };
    let inputs = |data: &[i64], unsqueeze: bool| {
        let n = data.len() / 3;
        [("d", numbers(&if unsqueeze { vec![n, 1, 2] } else { vec![n, 2] })), ("ids", ids(&[n, 3], data))]
    };
    let y = check(&text(false), &inputs(&[3, 0, -1, -4, 0, 0], false)).unwrap();
    let y = y[0].1.as_tensor().unwrap().to_f32s().unwrap();
    assert_eq!((&y[2..6], &y[8..12]), (&[30.0, 31.0, 4.0, 5.0][..], &[0.0, 1.0, 0.0, 1.0][..]));
    check(&text(true), &inputs(&[3, 0, -1, -4, 0, 0], true)).unwrap();
    check(&text(true), &inputs(&[], true)).unwrap();
    let many: Vec<i64> = (0..3 * 20_000).map(|i| i % 3).collect();
    check(&text(true), &inputs(&many, true)).unwrap();
    let error = check(&text(false), &inputs(&[0, 0, 0, 1, 1, 3], false)).unwrap_err().to_string();
    assert!(error.contains("index 3") && error.contains("r1"), "{error}");
}
