//! Arithmetic and comparisons.

use super::activation::with;
use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::Attrs;

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
    ("equal", |tx, op| binary(tx, op, "Equal")),
    ("erf", |tx, op| unary(tx, op, "Erf")),
    ("exp", |tx, op| unary(tx, op, "Exp")),
    ("floor", |tx, op| unary(tx, op, "Floor")),
    ("grad_add", |tx, op| binary(tx, op, "Add")),
    ("greater_equal", |tx, op| binary(tx, op, "GreaterOrEqual")),
    ("greater_than", |tx, op| binary(tx, op, "Greater")),
    ("increment", increment),
    ("lerp", lerp),
    ("less_equal", |tx, op| binary(tx, op, "LessOrEqual")),
    ("less_than", |tx, op| binary(tx, op, "Less")),
    ("log", |tx, op| unary(tx, op, "Log")),
    ("log1p", log1p),
    ("maximum", |tx, op| binary(tx, op, "Max")),
    ("minimum", |tx, op| binary(tx, op, "Min")),
    ("minus", |tx, op| binary(tx, op, "Sub")),
    ("not_equal", not_equal),
    ("pow", pow),
    ("reciprocal", |tx, op| unary(tx, op, "Reciprocal")),
    ("rsqrt", |tx, op| { let x = tx.input(op, "X")?; let r = tx.node("Sqrt", &[&x], Attrs::new()); tx.out(op, "Out", "Reciprocal", &[&r], Attrs::new()) }),
    ("scale", scale),
    ("sign", |tx, op| unary(tx, op, "Sign")),
    ("sin", |tx, op| unary(tx, op, "Sin")),
    ("sqrt", |tx, op| unary(tx, op, "Sqrt")),
    ("square", |tx, op| { let x = tx.input(op, "X")?; tx.out(op, "Out", "Mul", &[&x, &x], Attrs::new()) }),
    ("sum", sum),
];

fn unary(tx: &mut Tx, op: &OpDesc, onnx: &str) -> Done {
    with(tx, op, onnx, Attrs::new())
}

/// Both operands, the one of lower rank with dims of 1 behind so that it begins at `axis` of the other.
pub(super) fn operands(tx: &mut Tx, op: &OpDesc) -> Result<(String, String), String> {
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

pub(super) fn binary(tx: &mut Tx, op: &OpDesc, onnx: &str) -> Done {
    let (x, y) = operands(tx, op)?;
    tx.out(op, "Out", onnx, &[&x, &y], Attrs::new())
}

fn not_equal(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = operands(tx, op)?;
    let same = tx.node("Equal", &[&x, &y], Attrs::new());
    tx.out(op, "Out", "Not", &[&same], Attrs::new())
}

/// x + w·(y − x).
fn lerp(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y, weight) = (tx.input(op, "X")?, tx.input(op, "Y")?, tx.input(op, "Weight")?);
    let way = tx.plain("Sub", &[&y, &x]);
    let way = tx.plain("Mul", &[&weight, &way]);
    tx.out(op, "Out", "Add", &[&x, &way], Attrs::new())
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
