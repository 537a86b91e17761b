//! Losses, for programs that end in one.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::{Attrs, OpName};
use crate::tensor::DType;

pub(super) const OPS: &[(&str, Translate)] = &[
    ("cross_entropy", |tx, op| cross_entropy(tx, op, "Y")),
    ("cross_entropy2", |tx, op| cross_entropy(tx, op, "Y")),
    ("log_loss", log_loss),
    ("sigmoid_cross_entropy_with_logits", sigmoid_cross_entropy),
    ("softmax_with_cross_entropy", softmax_cross_entropy),
];

/// The negative of the logarithm at the label, zero where the label is `ignore_index`.
fn at_label(tx: &mut Tx, op: &OpDesc, logs: &str, axis: i64, out: &str) -> Done {
    let label = tx.input(op, "Label")?;
    if op.flag("soft_label", false) {
        let all = tx.node("Mul", &[logs, &label], Attrs::new());
        let axes = tx.ints(&[axis]);
        let sum = tx.node("ReduceSum", &[&all, &axes], Attrs::new().with("keepdims", 1));
        return tx.outs(op, &[out], OpName::onnx("Neg"), &[&sum], Attrs::new());
    }
    let label = tx.cast(&label, DType::I64);
    let (ignore, zero) = (tx.number(DType::I64, op.int("ignore_index", -100) as f64)?, tx.number(DType::I64, 0.0)?);
    let ignored = tx.node("Equal", &[&label, &ignore], Attrs::new());
    let label = tx.node("Where", &[&ignored, &zero, &label], Attrs::new());
    let picked = tx.node("GatherElements", &[logs, &label], Attrs::new().with("axis", axis));
    let picked = tx.node("Neg", &[&picked], Attrs::new());
    let parameter = if op.ins("X").is_empty() { "Logits" } else { "X" };
    let dtype = tx.dtype_in(op, parameter)?;
    let nothing = tx.number(dtype, 0.0)?;
    tx.outs(op, &[out], OpName::onnx("Where"), &[&ignored, &nothing, &picked], Attrs::new())
}

fn cross_entropy(tx: &mut Tx, op: &OpDesc, out: &str) -> Done {
    let x = tx.input(op, "X")?;
    let logs = tx.node("Log", &[&x], Attrs::new());
    at_label(tx, op, &logs, -1, out)
}

fn softmax_cross_entropy(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "Logits")?;
    let axis = op.int("axis", -1);
    if !op.outs("Softmax").is_empty() {
        tx.outs(op, &["Softmax"], OpName::onnx("Softmax"), &[&x], Attrs::new().with("axis", axis))?;
    }
    let logs = tx.node("LogSoftmax", &[&x], Attrs::new().with("axis", axis));
    at_label(tx, op, &logs, axis, "Loss")
}

/// max(x, 0) − x·label + log(1 + exp(−|x|)).
fn sigmoid_cross_entropy(tx: &mut Tx, op: &OpDesc) -> Done {
    if op.flag("normalize", false) || op.int("ignore_index", -100) != -100 {
        return Err("normalize and ignore_index have no translation".into());
    }
    let (x, label) = (tx.input(op, "X")?, tx.input(op, "Label")?);
    let above = tx.node("Relu", &[&x], Attrs::new());
    let product = tx.node("Mul", &[&x, &label], Attrs::new());
    let first = tx.node("Sub", &[&above, &product], Attrs::new());
    let size = tx.node("Abs", &[&x], Attrs::new());
    let size = tx.node("Neg", &[&size], Attrs::new());
    let rest = tx.node("Softplus", &[&size], Attrs::new());
    tx.out(op, "Out", "Add", &[&first, &rest], Attrs::new())
}

fn log_loss(tx: &mut Tx, op: &OpDesc) -> Done {
    let (p, label) = (tx.input(op, "Predicted")?, tx.input(op, "Labels")?);
    let dtype = tx.dtype_in(op, "Predicted")?;
    let (e, one) = (tx.number(dtype, op.float("epsilon", 1e-4).into())?, tx.number(dtype, 1.0)?);
    let hit = tx.node("Add", &[&p, &e], Attrs::new());
    let hit = tx.node("Log", &[&hit], Attrs::new());
    let hit = tx.node("Mul", &[&label, &hit], Attrs::new());
    let q = tx.node("Sub", &[&one, &p], Attrs::new());
    let miss = tx.node("Add", &[&q, &e], Attrs::new());
    let miss = tx.node("Log", &[&miss], Attrs::new());
    let rest = tx.node("Sub", &[&one, &label], Attrs::new());
    let miss = tx.node("Mul", &[&rest, &miss], Attrs::new());
    let sum = tx.node("Add", &[&hit, &miss], Attrs::new());
    tx.outs(op, &["Loss"], OpName::onnx("Neg"), &[&sum], Attrs::new())
}
