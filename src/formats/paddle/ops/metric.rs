//! Metrics that programs carry: of the batch in hand, with what the program has stored.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::Attrs;
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[(&str, Translate)] = &[("accuracy", accuracy), ("auc", auc), ("cvm", cvm)];

/// The share of samples whose label is among the best.
fn accuracy(tx: &mut Tx, op: &OpDesc) -> Done {
    let (found, label) = (tx.input(op, "Indices")?, tx.input(op, "Label")?);
    let (found, label) = (tx.cast(&found, DType::I64), tx.cast(&label, DType::I64));
    let (last, one) = (tx.ints(&[1]), tx.ints(&[1]));
    let hits = tx.plain("Equal", &[&found, &label]);
    let hits = tx.cast(&hits, DType::I32);
    let hits = tx.node("ReduceMax", &[&hits, &last], Attrs::new().with("keepdims", 0));
    let correct = tx.node("ReduceSum", &[&hits], Attrs::new().with("keepdims", 0));
    let total = tx.node("Shape", &[&found], Attrs::new().with("start", 0).with("end", 1));
    let scalar = tx.constant("scalar", Tensor::vector(Vec::<i64>::new()));
    let total = tx.plain("Reshape", &[&total, &scalar]);
    let (a, b) = (tx.cast(&correct, DType::F32), tx.cast(&total, DType::F32));
    let share = tx.plain("Div", &[&a, &b]);
    let total = tx.cast(&total, DType::I32);
    for (parameter, value) in [("Accuracy", share), ("Correct", correct), ("Total", total)] {
        let Some(var) = op.outs(parameter).first() else { continue };
        // Older programs have [1] where newer ones have a scalar.
        match tx.dims(var)?.len() {
            0 => tx.give(op, parameter, &value)?,
            _ => tx.out(op, parameter, "Reshape", &[&value, &one], Attrs::new())?,
        }
    }
    Ok(())
}

/// The area under the curve by buckets of the score. What a trainer has counted is counted as well.
fn auc(tx: &mut Tx, op: &OpDesc) -> Done {
    if op.text("curve", "ROC") != "ROC" || !(0..=1).contains(&op.int("slide_steps", 1)) {
        return Err("curves but ROC, and windows of several batches, have no translation".into());
    }
    let (scores, label) = (tx.input(op, "Predict")?, tx.input(op, "Label")?);
    let buckets = op.int("num_thresholds", 4095);
    if !(1..1 << 24).contains(&buckets) {
        return Err(format!("num_thresholds must be 1 to 2^24, found {buckets}"));
    }
    let (flat, size) = (tx.ints(&[-1]), tx.ints(&[buckets + 1]));
    let (last, ahead, axis) = (tx.ints(&[-1]), tx.ints(&[i64::MAX]), tx.ints(&[1]));
    let scores = tx.plain("Slice", &[&scores, &last, &ahead, &axis]);
    let scores = tx.plain("Reshape", &[&scores, &flat]);
    let steps = tx.like(op, "Predict", buckets as f64)?;
    let at = tx.plain("Mul", &[&scores, &steps]);
    let at = tx.cast(&at, DType::I64);
    let at = tx.plain("Unsqueeze", &[&at, &axis]);
    let label = tx.plain("Reshape", &[&label, &flat]);
    let label = tx.cast(&label, DType::I64);
    let (one, zero) = (tx.constant("one", Tensor::scalar(1i64)), tx.constant("zero", Tensor::scalar(0i64)));
    let other = tx.plain("Sub", &[&one, &label]);
    let mut counts = Vec::new();
    for (stored, kept, hits) in [("StatPos", "StatPosOut", &label), ("StatNeg", "StatNegOut", &other)] {
        let none = tx.plain("Expand", &[&zero, &size]);
        let mut count = tx.node("ScatterND", &[&none, &at, hits], Attrs::new().with("reduction", "add"));
        if op.int("slide_steps", 1) == 0 {
            let before = tx.input(op, stored)?;
            let before = tx.plain("Reshape", &[&before, &size]);
            count = tx.plain("Add", &[&count, &before]);
            let shape = tx.ints(tx.dims_in(op, stored)?);
            if tx.is_read(op, kept) && op.outs(kept) != op.ins(stored) {
                tx.out(op, kept, "Reshape", &[&count, &shape], Attrs::new())?;
            }
        }
        counts.push(tx.cast(&count, DType::F64));
    }
    // From the highest bucket down: each negative stands below the positives above it, and half of those beside it.
    let (first, half) = (tx.constant("axis", Tensor::scalar(0i64)), tx.constant("half", Tensor::scalar(0.5f64)));
    let above = tx.node("CumSum", &[&counts[0], &first], Attrs::new().with("exclusive", 1).with("reverse", 1));
    let beside = tx.plain("Mul", &[&counts[0], &half]);
    let higher = tx.plain("Add", &[&above, &beside]);
    let area = tx.plain("Mul", &[&higher, &counts[1]]);
    let keep = Attrs::new().with("keepdims", 0);
    let area = tx.node("ReduceSum", &[&area], keep.clone());
    let (pos, neg) = (tx.node("ReduceSum", &[&counts[0]], keep.clone()), tx.node("ReduceSum", &[&counts[1]], keep));
    let all = tx.plain("Mul", &[&pos, &neg]);
    let (unit, nothing) = (tx.constant("unit", Tensor::scalar(1f64)), tx.constant("nothing", Tensor::scalar(0f64)));
    let any = tx.plain("Greater", &[&all, &nothing]);
    let safe = tx.plain("Where", &[&any, &all, &unit]);
    let value = tx.plain("Div", &[&area, &safe]);
    let value = tx.plain("Where", &[&any, &value, &nothing]);
    let var = op.outs("AUC").first().ok_or("it has no AUC")?;
    let shape = tx.ints(tx.dims(var)?);
    tx.out(op, "AUC", "Reshape", &[&value, &shape], Attrs::new())?;
    // It is a double, whatever the variable says.
    tx.is_really(op, "AUC", DType::F64);
    Ok(())
}

/// The first two numbers of a row are shows and clicks: their logarithms, or nothing.
fn cvm(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let (axis, zero, one, two, ahead) = (tx.ints(&[1]), tx.ints(&[0]), tx.ints(&[1]), tx.ints(&[2]), tx.ints(&[i64::MAX]));
    let rest = tx.plain("Slice", &[&x, &two, &ahead, &axis]);
    let value = if op.flag("use_cvm", true) {
        let unit = tx.like(op, "X", 1.0)?;
        let mut logs = Vec::new();
        for (from, to) in [(&zero, &one), (&one, &two)] {
            let column = tx.plain("Slice", &[&x, from, to, &axis]);
            let column = tx.plain("Add", &[&column, &unit]);
            logs.push(tx.plain("Log", &[&column]));
        }
        let clicks = tx.plain("Sub", &[&logs[1], &logs[0]]);
        tx.node("Concat", &[&logs[0], &clicks, &rest], Attrs::new().with("axis", 1))
    } else {
        rest
    };
    tx.give(op, "Y", &value)
}
