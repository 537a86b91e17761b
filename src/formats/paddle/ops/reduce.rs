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
    ("cumprod", cumprod),
    ("cumsum", cumsum),
    ("isinf", |tx, op| any(tx, op, "IsInf")),
    ("isnan", |tx, op| any(tx, op, "IsNaN")),
    ("kthvalue", kth_value),
    ("mean", |tx, op| reduce(tx, op, "ReduceMean", None)),
    ("reduce_all", |tx, op| reduce(tx, op, "ReduceMin", Some(DType::I32))),
    ("reduce_amax", |tx, op| reduce(tx, op, "ReduceMax", None)),
    ("reduce_amin", |tx, op| reduce(tx, op, "ReduceMin", None)),
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
pub(super) fn reduce(tx: &mut Tx, op: &OpDesc, onnx: &str, by: Option<DType>) -> Done {
    let mut x = tx.input(op, "X")?;
    let rank = tx.dims_in(op, "X")?.len();
    let dims = op.ints("dim").or_else(|| op.ints("axis")).unwrap_or_default();
    let whole = matches!(op.r#type(), "mean" | "squared_l2_norm");
    let all = whole || op.flag("reduce_all", false) || dims.is_empty() || dims.len() == rank;
    let keep = !whole && (op.flag("keep_dim", false) || op.flag("keepdim", false));
    // Sums of truth values are counts, and those of small integers may be declared wider.
    let (from, out) = (tx.dtype_in(op, "X")?, op.outs("Out").first().and_then(|v| tx.dtype(v).ok()));
    let counted = match (onnx, from) {
        ("ReduceSum", DType::Bool) => Some(DType::I64),
        ("ReduceSum" | "ReduceProd", _) if from.is_int() => out.filter(|o| o.is_int() && *o != from),
        _ => None,
    };
    if let Some(to) = dtype(op.int("out_dtype", -1) as i32).filter(|_| by.is_none()).or(counted) {
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
    let keep = op.flag("keepdims", false);
    if op.flag("flatten", false) {
        let flat = tx.ints(&[-1]);
        let rank = tx.dims_in(op, "X")?.len();
        x = tx.node("Reshape", &[&x, &flat], Attrs::new());
        axis = 0;
        if keep {
            let y = tx.node(onnx, &[&x], Attrs::new().with("axis", 0).with("keepdims", 1));
            let to = dtype(op.int("dtype", 3) as i32).unwrap_or(DType::I64);
            let y = tx.cast(&y, to);
            let ones = tx.ints(&vec![1; rank]);
            return tx.out(op, "Out", "Reshape", &[&y, &ones], Attrs::new());
        }
    }
    let attrs = Attrs::new().with("axis", axis).with("keepdims", i64::from(keep));
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
    tx.outs(op, &["Out", "Indices"], OpName::onnx("TopK"), &[&x, &k], attrs)?;
    tx.is_really(op, "Indices", DType::I64);
    Ok(())
}

fn argsort(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let axis = op.int("axis", -1);
    let shape = tx.node("Shape", &[&x], Attrs::new());
    let at = tx.ints(&[axis]);
    let k = tx.node("Gather", &[&shape, &at], Attrs::new());
    let attrs = Attrs::new().with("axis", axis).with("largest", i64::from(op.flag("descending", false)));
    tx.outs(op, &["Out", "Indices"], OpName::onnx("TopK"), &[&x, &k], attrs)?;
    tx.is_really(op, "Indices", DType::I64);
    Ok(())
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

/// Products along an axis: of the numbers up to each place, by a mask.
fn cumprod(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let dims = tx.dims_in(op, "X")?;
    let rank = dims.len() as i64;
    let axis = op.int("dim", -1);
    let axis = if axis < 0 { axis + rank } else { axis };
    let size = usize::try_from(axis).ok().and_then(|a| dims.get(a)).copied().filter(|d| (1..=4096).contains(d));
    let size = size.ok_or("products along an open or long dim have no translation")?;
    // x as [.., 1, size, ..] against a lower triangle [size, size, 1 ..]: ones where a number comes later.
    let lower: Vec<bool> = (0..size * size).map(|i| i % size <= i / size).collect();
    let tail = std::iter::repeat_n(1usize, (rank - axis - 1) as usize);
    let shape: Vec<usize> = [size as usize, size as usize].into_iter().chain(tail).collect();
    let mask = Tensor::new(shape, lower).map_err(|e| e.to_string())?;
    let mask = tx.constant("lower", mask);
    let at = tx.ints(&[axis]);
    let x = tx.plain("Unsqueeze", &[&x, &at]);
    let one = tx.like(op, "X", 1.0)?;
    let all = tx.plain("Where", &[&mask, &x, &one]);
    let along = tx.ints(&[axis + 1]);
    tx.out(op, "Out", "ReduceProd", &[&all, &along], Attrs::new().with("keepdims", 0))
}

/// Whether any number is as `test` says.
fn any(tx: &mut Tx, op: &OpDesc, test: &str) -> Done {
    let x = tx.input(op, "X")?;
    let found = tx.plain(test, &[&x]);
    let found = tx.cast(&found, DType::I32);
    let found = tx.node("ReduceMax", &[&found], Attrs::new().with("keepdims", 0));
    let dims = tx.dims(op.outs("Out").first().map_or("", String::as_str))?;
    let shape = tx.ints(dims);
    let found = tx.plain("Reshape", &[&found, &shape]);
    tx.out(op, "Out", "Cast", &[&found], Attrs::new().with("to", i64::from(DType::Bool.to_onnx())))
}

/// The k-th smallest along an axis, and where it is.
fn kth_value(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let (k, axis) = (tx.ints(&[op.int("k", 1)]), op.int("axis", -1));
    let found = tx.several("TopK", &[&x, &k], 2, Attrs::new().with("axis", axis).with("largest", 0).with("sorted", 1));
    let (from, to, axes) = (tx.ints(&[op.int("k", 1).saturating_sub(1)]), tx.ints(&[op.int("k", 1)]), tx.ints(&[axis]));
    for (parameter, all) in ["Out", "Indices"].into_iter().zip(&found) {
        let one = tx.plain("Slice", &[all, &from, &to, &axes]);
        if op.outs(parameter).is_empty() {
            continue;
        }
        if op.flag("keepdim", false) {
            tx.give(op, parameter, &one)?;
        } else {
            tx.out(op, parameter, "Squeeze", &[&one, &axes], Attrs::new())?;
        }
    }
    tx.is_really(op, "Indices", DType::I64);
    Ok(())
}
