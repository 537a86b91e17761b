//! Losses, for programs that end in one.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::{Attrs, OpName};
use crate::tensor::DType;

pub(super) const OPS: &[(&str, Translate)] = &[
    ("bce_loss", bce_loss),
    ("cross_entropy", |tx, op| cross_entropy(tx, op, "Y")),
    ("cross_entropy2", |tx, op| cross_entropy(tx, op, "Y")),
    ("huber_loss", huber),
    ("kldiv_loss", kl_divergence),
    ("label_smooth", label_smooth),
    ("log_loss", log_loss),
    ("nll_loss", nll_loss),
    ("rank_loss", rank_loss),
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
    if !op.flag("use_softmax", true) {
        // What it is given is a softmax already.
        tx.give(op, "Softmax", &x)?;
        let logs = tx.plain("Log", &[&x]);
        return at_label(tx, op, &logs, axis, "Loss");
    }
    if !op.outs("Softmax").is_empty() {
        tx.outs(op, &["Softmax"], OpName::onnx("Softmax"), &[&x], Attrs::new().with("axis", axis))?;
    }
    let logs = tx.node("LogSoftmax", &[&x], Attrs::new().with("axis", axis));
    at_label(tx, op, &logs, axis, "Loss")
}

/// max(x, 0) − x·label + log(1 + exp(−|x|)).
fn sigmoid_cross_entropy(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, label) = (tx.input(op, "X")?, tx.input(op, "Label")?);
    let above = tx.node("Relu", &[&x], Attrs::new());
    let product = tx.node("Mul", &[&x, &label], Attrs::new());
    let first = tx.node("Sub", &[&above, &product], Attrs::new());
    let size = tx.node("Abs", &[&x], Attrs::new());
    let size = tx.node("Neg", &[&size], Attrs::new());
    let rest = tx.node("Softplus", &[&size], Attrs::new());
    let loss = tx.plain("Add", &[&first, &rest]);
    let (ignore, zero) = (tx.like(op, "X", op.int("ignore_index", -100) as f64)?, tx.like(op, "X", 0.0)?);
    let ignored = tx.plain("Equal", &[&label, &ignore]);
    if !op.flag("normalize", false) {
        return tx.out(op, "Out", "Where", &[&ignored, &zero, &loss], Attrs::new());
    }
    let loss = tx.plain("Where", &[&ignored, &zero, &loss]);
    let dtype = tx.dtype_in(op, "X")?;
    let counted = tx.plain("Not", &[&ignored]);
    let counted = tx.cast(&counted, dtype);
    let count = tx.node("ReduceSum", &[&counted], Attrs::new().with("keepdims", 0));
    let least = tx.like(op, "X", 1e-5)?;
    let count = tx.plain("Max", &[&count, &least]);
    tx.out(op, "Out", "Div", &[&loss, &count], Attrs::new())
}

/// −(l·log p + (1 − l)·log(1 − p)), with logarithms of at least −100.
fn bce_loss(tx: &mut Tx, op: &OpDesc) -> Done {
    let (p, label) = (tx.input(op, "X")?, tx.input(op, "Label")?);
    let (least, one) = (tx.like(op, "X", -100.0)?, tx.like(op, "X", 1.0)?);
    let term = |tx: &mut Tx, p: &str, label: &str| {
        let p = tx.plain("Log", &[p]);
        let p = tx.plain("Max", &[&p, &least]);
        tx.plain("Mul", &[label, &p])
    };
    let hit = term(tx, &p, &label);
    let (q, rest) = (tx.plain("Sub", &[&one, &p]), tx.plain("Sub", &[&one, &label]));
    let miss = term(tx, &q, &rest);
    let sum = tx.plain("Add", &[&hit, &miss]);
    tx.out(op, "Out", "Neg", &[&sum], Attrs::new())
}

fn nll_loss(tx: &mut Tx, op: &OpDesc) -> Done {
    if tx.is_read(op, "Total_weight") {
        return Err("its Total_weight has no translation".into());
    }
    let (x, label) = (tx.input(op, "X")?, tx.input(op, "Label")?);
    let mut inputs = vec![x, label];
    inputs.extend(tx.opt(op, "Weight")?);
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let attrs = Attrs::new().with("reduction", op.text("reduction", "mean").as_str()).with("ignore_index", op.int("ignore_index", -100));
    tx.out(op, "Out", "NegativeLogLikelihoodLoss", &inputs, attrs)
}

/// Half the square near zero, a line outside.
fn huber(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = (tx.input(op, "X")?, tx.input(op, "Y")?);
    let delta = f64::from(op.float("delta", 1.0));
    let (d, half, shift) = (tx.like(op, "X", delta)?, tx.like(op, "X", 0.5)?, tx.like(op, "X", 0.5 * delta)?);
    let rest = tx.plain("Sub", &[&y, &x]);
    let size = tx.plain("Abs", &[&rest]);
    let near = tx.plain("LessOrEqual", &[&size, &d]);
    let square = tx.plain("Mul", &[&rest, &rest]);
    let square = tx.plain("Mul", &[&square, &half]);
    let line = tx.plain("Sub", &[&size, &shift]);
    let line = tx.plain("Mul", &[&line, &d]);
    tx.out(op, "Out", "Where", &[&near, &square, &line], Attrs::new())?;
    if tx.is_read(op, "Residual") { tx.give(op, "Residual", &rest) } else { Ok(()) }
}

/// t·(log t − x), zero where there is no t.
fn kl_divergence(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, target) = (tx.input(op, "X")?, tx.input(op, "Target")?);
    let (zero, one) = (tx.like(op, "X", 0.0)?, tx.like(op, "X", 1.0)?);
    let there = tx.plain("Greater", &[&target, &zero]);
    let safe = tx.plain("Where", &[&there, &target, &one]);
    let rest = tx.plain("Log", &[&safe]);
    let rest = tx.plain("Sub", &[&rest, &x]);
    let loss = tx.plain("Mul", &[&target, &rest]);
    let loss = tx.plain("Where", &[&there, &loss, &zero]);
    let whole = Attrs::new().with("keepdims", 0);
    match op.text("reduction", "mean").as_str() {
        "none" => tx.outs(op, &["Loss"], OpName::onnx("Identity"), &[&loss], Attrs::new()),
        "sum" => tx.outs(op, &["Loss"], OpName::onnx("ReduceSum"), &[&loss], whole),
        "mean" => tx.outs(op, &["Loss"], OpName::onnx("ReduceMean"), &[&loss], whole),
        "batchmean" => {
            let sum = tx.node("ReduceSum", &[&loss], whole);
            let scalar = tx.constant("scalar", crate::tensor::Tensor::vector(Vec::<i64>::new()));
            let rows = tx.node("Shape", &[&x], Attrs::new().with("start", 0).with("end", 1));
            let rows = tx.plain("Reshape", &[&rows, &scalar]);
            let dtype = tx.dtype_in(op, "X")?;
            let rows = tx.cast(&rows, dtype);
            tx.outs(op, &["Loss"], OpName::onnx("Div"), &[&sum, &rows], Attrs::new())
        }
        other => Err(format!("reduction {other} does not exist")),
    }
}

fn label_smooth(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let e = f64::from(op.float("epsilon", 0.0));
    let keep = tx.like(op, "X", 1.0 - e)?;
    let kept = tx.plain("Mul", &[&x, &keep]);
    let dtype = tx.dtype_in(op, "X")?;
    let prior = match tx.opt(op, "PriorDist")? {
        Some(p) => {
            let e = tx.number(dtype, e)?;
            tx.plain("Mul", &[&p, &e])
        }
        None => {
            let classes = tx.node("Shape", &[&x], Attrs::new().with("start", -1));
            let classes = tx.cast(&classes, dtype);
            let e = tx.number(dtype, e)?;
            tx.plain("Div", &[&e, &classes])
        }
    };
    tx.out(op, "Out", "Add", &[&kept, &prior], Attrs::new())
}

/// log(1 + exp(left − right)) − label·(left − right).
fn rank_loss(tx: &mut Tx, op: &OpDesc) -> Done {
    let (label, left, right) = (tx.input(op, "Label")?, tx.input(op, "Left")?, tx.input(op, "Right")?);
    let rest = tx.plain("Sub", &[&left, &right]);
    let soft = tx.plain("Softplus", &[&rest]);
    let taken = tx.plain("Mul", &[&label, &rest]);
    tx.out(op, "Out", "Sub", &[&soft, &taken], Attrs::new())
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
