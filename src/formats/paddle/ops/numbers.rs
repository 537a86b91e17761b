//! Element by element: trigonometry, rounding, bits, truth values, numbers that are none.

use super::activation::with;
use super::math::{binary, operands};
use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::Attrs;
use crate::tensor::DType;

#[rustfmt::skip]
pub(super) const OPS: &[(&str, Translate)] = &[
    ("acos", |tx, op| unary(tx, op, "Acos")),
    ("acosh", |tx, op| unary(tx, op, "Acosh")),
    ("asin", |tx, op| unary(tx, op, "Asin")),
    ("asinh", |tx, op| unary(tx, op, "Asinh")),
    ("atan", |tx, op| unary(tx, op, "Atan")),
    ("atanh", |tx, op| unary(tx, op, "Atanh")),
    ("bitwise_and", |tx, op| bitwise(tx, op, "And")),
    ("bitwise_not", |tx, op| { let whole = tx.dtype_in(op, "X")? != DType::Bool; unary(tx, op, if whole { "BitwiseNot" } else { "Not" }) }),
    ("bitwise_or", |tx, op| bitwise(tx, op, "Or")),
    ("bitwise_xor", |tx, op| bitwise(tx, op, "Xor")),
    ("clip_by_norm", clip_by_norm),
    ("cos_sim", cos_sim),
    ("cosh", |tx, op| unary(tx, op, "Cosh")),
    ("elementwise_fmax", |tx, op| without_nan(tx, op, "Max")),
    ("elementwise_fmin", |tx, op| without_nan(tx, op, "Min")),
    ("elementwise_heaviside", heaviside),
    ("equal_all", equal_all),
    ("expm1", |tx, op| { let x = tx.input(op, "X")?; let (e, one) = (tx.plain("Exp", &[&x]), tx.like(op, "X", 1.0)?); tx.out(op, "Out", "Sub", &[&e, &one], Attrs::new()) }),
    ("isfinite_v2", |tx, op| finite(tx, op, true)),
    ("isinf_v2", |tx, op| infinite(tx, op)),
    ("isnan_v2", |tx, op| finite(tx, op, false)),
    ("log10", |tx, op| log(tx, op, 10.0)),
    ("log2", |tx, op| log(tx, op, 2.0)),
    ("logical_and", |tx, op| logical(tx, op, "And")),
    ("logical_not", not),
    ("logical_or", |tx, op| logical(tx, op, "Or")),
    ("logical_xor", |tx, op| logical(tx, op, "Xor")),
    ("round", round),
    ("sinh", |tx, op| unary(tx, op, "Sinh")),
    ("tan", |tx, op| unary(tx, op, "Tan")),
    ("trunc", trunc),
];

fn unary(tx: &mut Tx, op: &OpDesc, onnx: &str) -> Done {
    with(tx, op, onnx, Attrs::new())
}

/// And, Or or Xor of the bits, or of truth values.
fn bitwise(tx: &mut Tx, op: &OpDesc, onnx: &str) -> Done {
    let whole = tx.dtype_in(op, "X")? != DType::Bool;
    binary(tx, op, &format!("{}{onnx}", if whole { "Bitwise" } else { "" }))
}

/// Numbers of any dtype count as true where they are not zero.
fn logical(tx: &mut Tx, op: &OpDesc, onnx: &str) -> Done {
    let (mut x, mut y) = operands(tx, op)?;
    for (v, parameter) in [(&mut x, "X"), (&mut y, "Y")] {
        if tx.dtype_in(op, parameter)? != DType::Bool {
            *v = tx.cast(v, DType::Bool);
        }
    }
    tx.out(op, "Out", onnx, &[&x, &y], Attrs::new())
}

fn not(tx: &mut Tx, op: &OpDesc) -> Done {
    let mut x = tx.input(op, "X")?;
    if tx.dtype_in(op, "X")? != DType::Bool {
        x = tx.cast(&x, DType::Bool);
    }
    tx.out(op, "Out", "Not", &[&x], Attrs::new())
}

/// Max or Min, of the other operand where one is no number.
fn without_nan(tx: &mut Tx, op: &OpDesc, onnx: &str) -> Done {
    if !tx.dtype_in(op, "X")?.is_float() {
        return binary(tx, op, onnx);
    }
    let (x, y) = operands(tx, op)?;
    let best = tx.plain(onnx, &[&x, &y]);
    let (no_x, no_y) = (tx.plain("IsNaN", &[&x]), tx.plain("IsNaN", &[&y]));
    let best = tx.plain("Where", &[&no_y, &x, &best]);
    tx.out(op, "Out", "Where", &[&no_x, &y, &best], Attrs::new())
}

/// 0 below zero, 1 above, the other operand at zero.
fn heaviside(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = operands(tx, op)?;
    let dtype = tx.dtype_in(op, "X")?;
    let zero = tx.number(dtype, 0.0)?;
    let (at, above) = (tx.plain("Equal", &[&x, &zero]), tx.plain("Greater", &[&x, &zero]));
    let above = tx.cast(&above, dtype);
    tx.out(op, "Out", "Where", &[&at, &y, &above], Attrs::new())
}

fn equal_all(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = (tx.input(op, "X")?, tx.input(op, "Y")?);
    let same = tx.plain("Equal", &[&x, &y]);
    let same = tx.cast(&same, DType::I32);
    let all = tx.node("ReduceMin", &[&same], Attrs::new().with("keepdims", 0));
    tx.out(op, "Out", "Cast", &[&all], Attrs::new().with("to", i64::from(DType::Bool.to_onnx())))
}

fn infinite(tx: &mut Tx, op: &OpDesc) -> Done {
    if tx.dtype_in(op, "X")?.is_float() { unary(tx, op, "IsInf") } else { finite(tx, op, false) }
}

/// Whether a number is finite, or is none.
fn finite(tx: &mut Tx, op: &OpDesc, finite: bool) -> Done {
    let x = tx.input(op, "X")?;
    if finite {
        // An infinity less itself is no number, and what is none differs from itself.
        let rest = tx.plain("Sub", &[&x, &x]);
        return tx.out(op, "Out", "Equal", &[&rest, &rest], Attrs::new());
    }
    let same = tx.plain("Equal", &[&x, &x]);
    tx.out(op, "Out", "Not", &[&same], Attrs::new())
}

fn log(tx: &mut Tx, op: &OpDesc, base: f64) -> Done {
    let x = tx.input(op, "X")?;
    let base = tx.like(op, "X", base.ln())?;
    let x = tx.plain("Log", &[&x]);
    tx.out(op, "Out", "Div", &[&x, &base], Attrs::new())
}

/// To the nearest integer, halves away from zero.
fn round(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let half = tx.like(op, "X", 0.5)?;
    let dtype = tx.dtype_in(op, "X")?;
    let (size, sign) = (tx.plain("Abs", &[&x]), tx.plain("Sign", &[&x]));
    let whole = tx.plain("Floor", &[&size]);
    let rest = tx.plain("Sub", &[&size, &whole]);
    let up = tx.plain("GreaterOrEqual", &[&rest, &half]);
    let up = tx.cast(&up, dtype);
    let whole = tx.plain("Add", &[&whole, &up]);
    tx.out(op, "Out", "Mul", &[&whole, &sign], Attrs::new())
}

fn trunc(tx: &mut Tx, op: &OpDesc) -> Done {
    if !tx.dtype_in(op, "X")?.is_float() {
        return unary(tx, op, "Identity");
    }
    let x = tx.input(op, "X")?;
    let (size, sign) = (tx.plain("Abs", &[&x]), tx.plain("Sign", &[&x]));
    let whole = tx.plain("Floor", &[&size]);
    tx.out(op, "Out", "Mul", &[&whole, &sign], Attrs::new())
}

fn length(tx: &mut Tx, x: &str) -> String {
    let last = tx.ints(&[-1]);
    tx.node("ReduceL2", &[x, &last], Attrs::new().with("keepdims", 1))
}

fn cos_sim(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = (tx.input(op, "X")?, tx.input(op, "Y")?);
    let (a, b) = (length(tx, &x), length(tx, &y));
    let product = tx.plain("Mul", &[&x, &y]);
    let last = tx.ints(&[-1]);
    let sum = tx.node("ReduceSum", &[&product, &last], Attrs::new().with("keepdims", 1));
    let sum = tx.plain("Div", &[&sum, &a]);
    tx.out(op, "Out", "Div", &[&sum, &b], Attrs::new())
}

fn clip_by_norm(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let most = tx.like(op, "X", op.float("max_norm", 1.0).into())?;
    let norm = tx.node("ReduceL2", &[&x], Attrs::new().with("keepdims", 0));
    let above = tx.plain("Max", &[&norm, &most]);
    let by = tx.plain("Div", &[&most, &above]);
    tx.out(op, "Out", "Mul", &[&x, &by], Attrs::new())
}
