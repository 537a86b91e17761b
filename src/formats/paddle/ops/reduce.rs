//! Reductions, sorts and sums along an axis.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::{OpDesc, dtype};
use crate::ir::{Attrs, OpName};
use crate::tensor::{DType, Tensor};

#[rustfmt::skip]
pub(super) const OPS: &[(&str, Translate)] = &[
    ("arg_max", |tx, op| arg(tx, op, "ArgMax")),
    ("arg_min", |tx, op| arg(tx, op, "ArgMin")),
    ("argsort", argsort),
    ("cumsum", cumsum),
    ("mean", |tx, op| reduce(tx, op, "ReduceMean", None)),
    ("reduce_all", |tx, op| reduce(tx, op, "ReduceMin", Some(DType::I32))),
    ("reduce_any", |tx, op| reduce(tx, op, "ReduceMax", Some(DType::I32))),
    ("reduce_max", |tx, op| reduce(tx, op, "ReduceMax", None)),
    ("reduce_mean", |tx, op| reduce(tx, op, "ReduceMean", None)),
    ("reduce_min", |tx, op| reduce(tx, op, "ReduceMin", None)),
    ("reduce_prod", |tx, op| reduce(tx, op, "ReduceProd", None)),
    ("reduce_sum", |tx, op| reduce(tx, op, "ReduceSum", None)),
    ("logsumexp", |tx, op| reduce(tx, op, "ReduceLogSumExp", None)),
    ("squared_l2_norm", |tx, op| reduce(tx, op, "ReduceSumSquare", None)),
    ("top_k", top_k),
    ("top_k_v2", top_k),
];

/// Reduces, by way of another dtype where there is one.
fn reduce(tx: &mut Tx, op: &OpDesc, onnx: &str, by: Option<DType>) -> Done {
    let mut x = tx.input(op, "X")?;
    let rank = tx.dims_in(op, "X")?.len();
    let dims = op.ints("dim").or_else(|| op.ints("axis")).unwrap_or_default();
    let whole = matches!(op.r#type(), "mean" | "squared_l2_norm");
    let all = whole || op.flag("reduce_all", false) || dims.is_empty() || dims.len() == rank;
    let keep = !whole && (op.flag("keep_dim", false) || op.flag("keepdim", false));
    if let Some(to) = dtype(op.int("out_dtype", -1) as i32).filter(|_| by.is_none()) {
        x = tx.cast(&x, to);
    }
    if let Some(by) = by {
        x = tx.cast(&x, by);
    }
    let attrs = Attrs::new().with("keepdims", i64::from(keep));
    let axes = if all { String::new() } else { tx.ints(&dims) };
    let inputs: Vec<&str> = if all { vec![&x] } else { vec![&x, &axes] };
    // Older programs have [1] where newer ones have a scalar.
    let out = op.outs("Out").first().map(String::as_str).unwrap_or_default();
    let one = all && !keep && tx.dims(out).is_ok_and(|d| d == [1]);
    if by.is_none() && !one {
        return tx.out(op, "Out", onnx, &inputs, attrs);
    }
    let mut y = tx.node(onnx, &inputs, attrs);
    if by.is_some() && one {
        y = tx.cast(&y, DType::Bool);
    }
    if one {
        let shape = tx.ints(&[1]);
        return tx.out(op, "Out", "Reshape", &[&y, &shape], Attrs::new());
    }
    tx.out(op, "Out", "Cast", &[&y], Attrs::new().with("to", i64::from(DType::Bool.to_onnx())))
}

fn arg(tx: &mut Tx, op: &OpDesc, onnx: &str) -> Done {
    let mut x = tx.input(op, "X")?;
    let mut axis = op.int("axis", -1);
    if op.flag("flatten", false) {
        let flat = tx.ints(&[-1]);
        x = tx.node("Reshape", &[&x, &flat], Attrs::new());
        axis = 0;
    }
    let attrs = Attrs::new().with("axis", axis).with("keepdims", i64::from(op.flag("keepdims", false)));
    match dtype(op.int("dtype", 3) as i32) {
        Some(to) if to != DType::I64 => {
            let y = tx.node(onnx, &[&x], attrs);
            tx.out(op, "Out", "Cast", &[&y], Attrs::new().with("to", i64::from(to.to_onnx())))
        }
        _ => tx.out(op, "Out", onnx, &[&x], attrs),
    }
}

fn top_k(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let k = match tx.opt(op, "K")? {
        Some(k) => {
            let k = tx.cast(&k, DType::I64);
            let one = tx.ints(&[1]);
            tx.node("Reshape", &[&k, &one], Attrs::new())
        }
        None => tx.ints(&[op.int("k", 1)]),
    };
    let attrs = Attrs::new()
        .with("axis", op.int("axis", -1))
        .with("largest", i64::from(op.flag("largest", true)))
        .with("sorted", i64::from(op.flag("sorted", true)));
    tx.outs(op, &["Out", "Indices"], OpName::onnx("TopK"), &[&x, &k], attrs)
}

fn argsort(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let axis = op.int("axis", -1);
    let shape = tx.node("Shape", &[&x], Attrs::new());
    let at = tx.ints(&[axis]);
    let k = tx.node("Gather", &[&shape, &at], Attrs::new());
    let attrs = Attrs::new().with("axis", axis).with("largest", i64::from(op.flag("descending", false)));
    tx.outs(op, &["Out", "Indices"], OpName::onnx("TopK"), &[&x, &k], attrs)
}

fn cumsum(tx: &mut Tx, op: &OpDesc) -> Done {
    let mut x = tx.input(op, "X")?;
    let mut axis = op.int("axis", -1);
    if op.flag("flatten", false) {
        let flat = tx.ints(&[-1]);
        x = tx.node("Reshape", &[&x, &flat], Attrs::new());
        axis = 0;
    }
    let axis = tx.constant("axis", Tensor::scalar(axis));
    let attrs =
        Attrs::new().with("exclusive", i64::from(op.flag("exclusive", false))).with("reverse", i64::from(op.flag("reverse", false)));
    tx.out(op, "Out", "CumSum", &[&x, &axis], attrs)
}
