//! Arithmetic, products of matrices, activations, comparisons and logic.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::Attrs;
use crate::tensor::DType;

#[rustfmt::skip]
pub(super) const OPS: &[(&str, Translate)] = &[
    ("abs", |tx, op| unary(tx, op, "Abs")),
    ("ceil", |tx, op| unary(tx, op, "Ceil")),
    ("clip", clip),
    ("cos", |tx, op| unary(tx, op, "Cos")),
    ("elementwise_add", |tx, op| binary(tx, op, "Add")),
    ("elementwise_div", |tx, op| binary(tx, op, "Div")),
    ("elementwise_floordiv", floor_div),
    ("elementwise_max", |tx, op| binary(tx, op, "Max")),
    ("elementwise_min", |tx, op| binary(tx, op, "Min")),
    ("elementwise_mod", modulo),
    ("elementwise_mul", |tx, op| binary(tx, op, "Mul")),
    ("elementwise_pow", |tx, op| binary(tx, op, "Pow")),
    ("elementwise_sub", |tx, op| binary(tx, op, "Sub")),
    ("elu", |tx, op| { let a = op.float("alpha", 1.0); with(tx, op, "Elu", Attrs::new().with("alpha", a)) }),
    ("equal", |tx, op| binary(tx, op, "Equal")),
    ("erf", |tx, op| unary(tx, op, "Erf")),
    ("exp", |tx, op| unary(tx, op, "Exp")),
    ("fc", fc),
    ("floor", |tx, op| unary(tx, op, "Floor")),
    ("gelu", |tx, op| { let a = if op.flag("approximate", false) { "tanh" } else { "none" }; with(tx, op, "Gelu", Attrs::new().with("approximate", a)) }),
    ("greater_equal", |tx, op| binary(tx, op, "GreaterOrEqual")),
    ("greater_than", |tx, op| binary(tx, op, "Greater")),
    ("hard_sigmoid", hard_sigmoid),
    ("hard_swish", hard_swish),
    ("increment", increment),
    ("isnan_v2", |tx, op| unary(tx, op, "IsNaN")),
    ("leaky_relu", |tx, op| { let a = op.float("alpha", 0.02); with(tx, op, "LeakyRelu", Attrs::new().with("alpha", a)) }),
    ("less_equal", |tx, op| binary(tx, op, "LessOrEqual")),
    ("less_than", |tx, op| binary(tx, op, "Less")),
    ("log", |tx, op| unary(tx, op, "Log")),
    ("log1p", log1p),
    ("log_softmax", |tx, op| { let a = op.int("axis", -1); with(tx, op, "LogSoftmax", Attrs::new().with("axis", a)) }),
    ("logical_and", |tx, op| binary(tx, op, "And")),
    ("logical_not", |tx, op| unary(tx, op, "Not")),
    ("logical_or", |tx, op| binary(tx, op, "Or")),
    ("logical_xor", |tx, op| binary(tx, op, "Xor")),
    ("logsigmoid", log_sigmoid),
    ("matmul", matmul),
    ("matmul_v2", matmul),
    ("bmm", matmul),
    ("maximum", |tx, op| binary(tx, op, "Max")),
    ("minimum", |tx, op| binary(tx, op, "Min")),
    ("mul", mul),
    ("not_equal", not_equal),
    ("pow", pow),
    ("reciprocal", |tx, op| unary(tx, op, "Reciprocal")),
    ("relu", |tx, op| unary(tx, op, "Relu")),
    ("relu6", relu6),
    ("round", |tx, op| unary(tx, op, "Round")),
    ("rsqrt", |tx, op| { let x = tx.input(op, "X")?; let r = tx.node("Sqrt", &[&x], Attrs::new()); tx.out(op, "Out", "Reciprocal", &[&r], Attrs::new()) }),
    ("scale", scale),
    ("sigmoid", |tx, op| unary(tx, op, "Sigmoid")),
    ("sign", |tx, op| unary(tx, op, "Sign")),
    ("silu", silu),
    ("sin", |tx, op| unary(tx, op, "Sin")),
    ("softmax", |tx, op| { let a = op.int("axis", -1); with(tx, op, "Softmax", Attrs::new().with("axis", a)) }),
    ("softplus", |tx, op| unary(tx, op, "Softplus")),
    ("softsign", |tx, op| unary(tx, op, "Softsign")),
    ("sqrt", |tx, op| unary(tx, op, "Sqrt")),
    ("square", |tx, op| { let x = tx.input(op, "X")?; tx.out(op, "Out", "Mul", &[&x, &x], Attrs::new()) }),
    ("sum", sum),
    ("swish", silu),
    ("tanh", |tx, op| unary(tx, op, "Tanh")),
];

fn with(tx: &mut Tx, op: &OpDesc, onnx: &str, attrs: Attrs) -> Done {
    let x = tx.input(op, "X")?;
    tx.out(op, "Out", onnx, &[&x], attrs)
}

fn unary(tx: &mut Tx, op: &OpDesc, onnx: &str) -> Done {
    with(tx, op, onnx, Attrs::new())
}

/// Both operands, the one of lower rank with dims of 1 behind so that it begins at `axis` of the other.
fn operands(tx: &mut Tx, op: &OpDesc) -> Result<(String, String), String> {
    let (x, y) = (tx.input(op, "X")?, tx.input(op, "Y")?);
    let (a, b) = (tx.dims_in(op, "X")?.len(), tx.dims_in(op, "Y")?.len());
    let axis = op.int("axis", -1);
    if axis < 0 || a == b || a.min(b) == 0 {
        return Ok((x, y));
    }
    let behind = a.max(b) as i64 - axis - a.min(b) as i64;
    if behind <= 0 {
        return Ok((x, y));
    }
    let low = a.min(b) as i64;
    let axes = tx.ints(&(low..low + behind).collect::<Vec<_>>());
    Ok(if b < a { (x, tx.node("Unsqueeze", &[&y, &axes], Attrs::new())) } else { (tx.node("Unsqueeze", &[&x, &axes], Attrs::new()), y) })
}

fn binary(tx: &mut Tx, op: &OpDesc, onnx: &str) -> Done {
    let (x, y) = operands(tx, op)?;
    tx.out(op, "Out", onnx, &[&x, &y], Attrs::new())
}

fn not_equal(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = operands(tx, op)?;
    let same = tx.node("Equal", &[&x, &y], Attrs::new());
    tx.out(op, "Out", "Not", &[&same], Attrs::new())
}

/// The remainder has the sign of the divisor.
fn modulo(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = operands(tx, op)?;
    if tx.dtype_in(op, "X")?.is_int() {
        return tx.out(op, "Out", "Mod", &[&x, &y], Attrs::new());
    }
    let q = tx.node("Div", &[&x, &y], Attrs::new());
    let q = tx.node("Floor", &[&q], Attrs::new());
    let whole = tx.node("Mul", &[&q, &y], Attrs::new());
    tx.out(op, "Out", "Sub", &[&x, &whole], Attrs::new())
}

fn floor_div(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = operands(tx, op)?;
    if tx.dtype_in(op, "X")?.is_int() {
        let rest = tx.node("Mod", &[&x, &y], Attrs::new());
        let whole = tx.node("Sub", &[&x, &rest], Attrs::new());
        return tx.out(op, "Out", "Div", &[&whole, &y], Attrs::new());
    }
    let q = tx.node("Div", &[&x, &y], Attrs::new());
    tx.out(op, "Out", "Floor", &[&q], Attrs::new())
}

fn scale(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let dtype = tx.dtype_in(op, "X")?;
    let by = tx.opt(op, "ScaleTensor")?;
    let (scale, bias) = (f64::from(op.float("scale", 1.0)), f64::from(op.float("bias", 0.0)));
    if by.is_none() && scale == 1.0 && bias == 0.0 {
        return tx.out(op, "Out", "Identity", &[&x], Attrs::new());
    }
    let by = match by {
        Some(by) => by,
        None => tx.number(dtype, scale)?,
    };
    if bias == 0.0 {
        return tx.out(op, "Out", "Mul", &[&x, &by], Attrs::new());
    }
    let bias = tx.number(dtype, bias)?;
    if op.flag("bias_after_scale", true) {
        let x = tx.node("Mul", &[&x, &by], Attrs::new());
        return tx.out(op, "Out", "Add", &[&x, &bias], Attrs::new());
    }
    let x = tx.node("Add", &[&x, &bias], Attrs::new());
    tx.out(op, "Out", "Mul", &[&x, &by], Attrs::new())
}

fn clip(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let dtype = tx.dtype_in(op, "X")?;
    let mut bound = |parameter: &str, attr: &str| -> Result<String, String> {
        match tx.opt(op, parameter)? {
            Some(t) => {
                let scalar = tx.constant("scalar", crate::tensor::Tensor::vector(Vec::<i64>::new()));
                Ok(tx.node("Reshape", &[&t, &scalar], Attrs::new()))
            }
            None => tx.number(dtype, op.float(attr, 0.0).into()),
        }
    };
    let (low, high) = (bound("Min", "min")?, bound("Max", "max")?);
    tx.out(op, "Out", "Clip", &[&x, &low, &high], Attrs::new())
}

fn pow(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let by = match tx.opt(op, "FactorTensor")? {
        Some(by) => by,
        None => {
            let dtype = tx.dtype_in(op, "X")?;
            tx.number(dtype, op.float("factor", 1.0).into())?
        }
    };
    tx.out(op, "Out", "Pow", &[&x, &by], Attrs::new())
}

fn increment(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let dtype = tx.dtype_in(op, "X")?;
    let step = tx.number(dtype, op.float("step", 1.0).into())?;
    tx.out(op, "Out", "Add", &[&x, &step], Attrs::new())
}

fn log1p(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let dtype = tx.dtype_in(op, "X")?;
    let one = tx.number(dtype, 1.0)?;
    let x = tx.node("Add", &[&x, &one], Attrs::new());
    tx.out(op, "Out", "Log", &[&x], Attrs::new())
}

fn relu6(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let dtype = tx.dtype_in(op, "X")?;
    let (low, high) = (tx.number(dtype, 0.0)?, tx.number(dtype, op.float("threshold", 6.0).into())?);
    tx.out(op, "Out", "Clip", &[&x, &low, &high], Attrs::new())
}

fn hard_sigmoid(tx: &mut Tx, op: &OpDesc) -> Done {
    let attrs = Attrs::new().with("alpha", op.float("slope", 0.2)).with("beta", op.float("offset", 0.5));
    with(tx, op, "HardSigmoid", attrs)
}

fn hard_swish(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let attrs = Attrs::new().with("alpha", 1.0 / op.float("scale", 6.0)).with("beta", op.float("offset", 3.0) / op.float("scale", 6.0));
    let gate = tx.node("HardSigmoid", &[&x], attrs);
    tx.out(op, "Out", "Mul", &[&x, &gate], Attrs::new())
}

fn silu(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let beta = f64::from(op.float("beta", 1.0));
    let inner = if beta == 1.0 {
        x.clone()
    } else {
        let dtype = tx.dtype_in(op, "X")?;
        let beta = tx.number(dtype, beta)?;
        tx.node("Mul", &[&x, &beta], Attrs::new())
    };
    let gate = tx.node("Sigmoid", &[&inner], Attrs::new());
    tx.out(op, "Out", "Mul", &[&x, &gate], Attrs::new())
}

fn log_sigmoid(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let x = tx.node("Neg", &[&x], Attrs::new());
    let x = tx.node("Softplus", &[&x], Attrs::new());
    tx.out(op, "Out", "Neg", &[&x], Attrs::new())
}

fn sum(tx: &mut Tx, op: &OpDesc) -> Done {
    let xs = tx.inputs(op, "X")?;
    let xs: Vec<&str> = xs.iter().map(String::as_str).collect();
    // ONNX's Sum has no integers.
    match (xs.as_slice(), tx.dtype_in(op, "X")?.is_float()) {
        (_, true) => tx.out(op, "Out", "Sum", &xs, Attrs::new()),
        ([one], _) => tx.out(op, "Out", "Identity", &[one], Attrs::new()),
        ([first, middle @ .., last], _) => {
            let partial = middle.iter().fold((*first).to_owned(), |a, b| tx.node("Add", &[&a, b], Attrs::new()));
            tx.out(op, "Out", "Add", &[&partial, last], Attrs::new())
        }
        ([], _) => Err("it has no X".into()),
    }
}

/// The product of two operands, each seen as a matrix: the first `at` dims are its rows.
fn flat_product(tx: &mut Tx, op: &OpDesc, names: (&str, &str), at: (i64, i64)) -> Result<(String, Option<String>), String> {
    let (x, y) = (tx.input(op, names.0)?, tx.input(op, names.1)?);
    let (a, b) = (tx.dims_in(op, names.0)?.len() as i64, tx.dims_in(op, names.1)?.len() as i64);
    let flat = |tx: &mut Tx, v: &str, rank: i64, at: i64| {
        if rank == 2 && at == 1 { v.to_owned() } else { tx.node("Flatten", &[v], Attrs::new().with("axis", at)) }
    };
    let (fx, fy) = (flat(tx, &x, a, at.0), flat(tx, &y, b, at.1));
    let product = tx.node("MatMul", &[&fx, &fy], Attrs::new());
    if (a, b, at) == (2, 2, (1, 1)) {
        return Ok((product, None));
    }
    let head = tx.node("Shape", &[&x], Attrs::new().with("end", at.0));
    let tail = tx.node("Shape", &[&y], Attrs::new().with("start", at.1));
    let shape = tx.node("Concat", &[&head, &tail], Attrs::new().with("axis", 0));
    Ok((product, Some(shape)))
}

fn mul(tx: &mut Tx, op: &OpDesc) -> Done {
    let at = (op.int("x_num_col_dims", 1), op.int("y_num_col_dims", 1));
    let (product, shape) = flat_product(tx, op, ("X", "Y"), at)?;
    finish(tx, op, &product, shape)
}

/// The last node of a product is the one that has the output's name.
fn finish(tx: &mut Tx, op: &OpDesc, product: &str, shape: Option<String>) -> Done {
    match shape {
        Some(shape) => tx.out(op, "Out", "Reshape", &[product, &shape], Attrs::new()),
        None => match tx.nodes.pop() {
            Some(node) => {
                let inputs: Vec<&str> = node.inputs.iter().map(String::as_str).collect();
                tx.out(op, "Out", &node.op.name, &inputs, node.attrs.clone())
            }
            None => Err("no product".into()),
        },
    }
}

fn fc(tx: &mut Tx, op: &OpDesc) -> Done {
    if op.flag("padding_weights", false) {
        return Err("padded weights have no translation".into());
    }
    let (mut product, shape) = flat_product(tx, op, ("Input", "W"), (op.int("in_num_col_dims", 1), 1))?;
    if let Some(bias) = tx.opt(op, "Bias")? {
        product = tx.node("Add", &[&product, &bias], Attrs::new());
    }
    match op.text("activation_type", "").as_str() {
        "" => {}
        "relu" => product = tx.node("Relu", &[&product], Attrs::new()),
        other => return Err(format!("activation {other} has no translation")),
    }
    finish(tx, op, &product, shape)
}

fn matmul(tx: &mut Tx, op: &OpDesc) -> Done {
    let (mut x, mut y) = (tx.input(op, "X")?, tx.input(op, "Y")?);
    for (v, parameter, flags) in [(&mut x, "X", ["trans_x", "transpose_X"]), (&mut y, "Y", ["trans_y", "transpose_Y"])] {
        let rank = tx.dims_in(op, parameter)?.len();
        if flags.iter().any(|f| op.flag(f, false)) && rank > 1 {
            let mut perm: Vec<i64> = (0..rank as i64).collect();
            perm.swap(rank - 1, rank - 2);
            *v = tx.node("Transpose", &[v.as_str()], Attrs::new().with("perm", perm));
        }
    }
    let alpha = f64::from(op.float("alpha", 1.0));
    if alpha == 1.0 {
        return tx.out(op, "Out", "MatMul", &[&x, &y], Attrs::new());
    }
    let product = tx.node("MatMul", &[&x, &y], Attrs::new());
    let dtype: DType = tx.dtype_in(op, "X")?;
    let alpha = tx.number(dtype, alpha)?;
    tx.out(op, "Out", "Mul", &[&product, &alpha], Attrs::new())
}
