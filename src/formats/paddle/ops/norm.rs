//! Normalisation, and norms.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::{Attrs, OpName};

#[rustfmt::skip]
pub(super) const OPS: &[(&str, Translate)] = &[
    ("affine_channel", affine_channel),
    ("batch_norm", batch_norm),
    ("data_norm", data_norm),
    ("dist", dist),
    ("frobenius_norm", |tx, op| super::reduce::reduce(tx, op, "ReduceL2", None)),
    ("group_norm", group_norm),
    ("instance_norm", instance_norm),
    ("layer_norm", layer_norm),
    ("norm", norm),
    ("p_norm", p_norm),
    ("squared_l2_distance", squared_distance),
    ("sync_batch_norm", batch_norm),
];

/// The permutation that brings the channels behind the samples, and the one back; none where they are there.
pub(super) fn to_planes(tx: &Tx, op: &OpDesc, parameter: &str) -> Result<Option<[Vec<i64>; 2]>, String> {
    let layout = ["data_layout", "data_format"].iter().map(|n| op.text(n, "NCHW")).find(|l| l.ends_with('C'));
    let rank = tx.dims_in(op, parameter)?.len() as i64;
    if layout.is_none() || rank < 3 {
        return Ok(None);
    }
    let there = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let back = std::iter::once(0).chain(2..rank).chain([1]).collect();
    Ok(Some([there, back]))
}

fn per_channel(tx: &mut Tx, op: &OpDesc, parameter: &str, value: &str) -> Result<String, String> {
    let rank = tx.dims_in(op, parameter)?.len();
    let mut shape = vec![1i64; rank.saturating_sub(1)];
    shape.iter_mut().take(1).for_each(|d| *d = -1);
    let shape = tx.ints(&shape);
    Ok(tx.plain("Reshape", &[value, &shape]))
}

fn affine_channel(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, scale, bias) = (tx.input(op, "X")?, tx.input(op, "Scale")?, tx.input(op, "Bias")?);
    if to_planes(tx, op, "X")?.is_some() {
        let x = tx.plain("Mul", &[&x, &scale]);
        return tx.out(op, "Out", "Add", &[&x, &bias], Attrs::new());
    }
    let (scale, bias) = (per_channel(tx, op, "X", &scale)?, per_channel(tx, op, "X", &bias)?);
    let x = tx.plain("Mul", &[&x, &scale]);
    tx.out(op, "Out", "Add", &[&x, &bias], Attrs::new())
}

fn batch_norm(tx: &mut Tx, op: &OpDesc) -> Done {
    let mut x = tx.input(op, "X")?;
    let rest = [tx.input(op, "Scale")?, tx.input(op, "Bias")?, tx.input(op, "Mean")?, tx.input(op, "Variance")?];
    let attrs = Attrs::new().with("epsilon", op.float("epsilon", 1e-5));
    let planes = to_planes(tx, op, "X")?;
    if let Some([there, _]) = &planes {
        x = tx.node("Transpose", &[&x], Attrs::new().with("perm", there.clone()));
    }
    let inputs = [&x, &rest[0], &rest[1], &rest[2], &rest[3]].map(String::as_str);
    let Some([_, back]) = planes else { return tx.outs(op, &["Y"], OpName::onnx("BatchNormalization"), &inputs, attrs) };
    let y = tx.node("BatchNormalization", &inputs, attrs);
    tx.outs(op, &["Y"], OpName::onnx("Transpose"), &[&y], Attrs::new().with("perm", back))
}

/// A normalisation by what a table of features has summed up: count, sum and sum of squares.
fn data_norm(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let (count, sum, squares) = (tx.input(op, "BatchSize")?, tx.input(op, "BatchSum")?, tx.input(op, "BatchSquareSum")?);
    let means = tx.plain("Div", &[&sum, &count]);
    let scales = tx.plain("Div", &[&count, &squares]);
    let scales = tx.plain("Sqrt", &[&scales]);
    let y = tx.plain("Sub", &[&x, &means]);
    let mut y = tx.plain("Mul", &[&y, &scales]);
    if op.flag("enable_scale_and_shift", false) {
        let (scale, bias) = (tx.input(op, "scale_w")?, tx.input(op, "bias")?);
        y = tx.plain("Mul", &[&y, &scale]);
        y = tx.plain("Add", &[&y, &bias]);
    }
    let slot = op.int("slot_dim", -1);
    if slot > 0 {
        // A slot that has not been shown is zero.
        let dims = tx.ints(&[0, -1, slot]);
        let shape = tx.plain("Shape", &[&x]);
        let (first, axis, one) = (tx.ints(&[0]), tx.ints(&[2]), tx.ints(&[1]));
        let slots = tx.plain("Reshape", &[&x, &dims]);
        let shows = tx.plain("Slice", &[&slots, &first, &one, &axis]);
        let shows = tx.plain("Abs", &[&shows]);
        let (least, zero) = (tx.like(op, "X", 1e-7)?, tx.like(op, "X", 0.0)?);
        let hidden = tx.plain("Less", &[&shows, &least]);
        y = tx.plain("Reshape", &[&y, &dims]);
        y = tx.plain("Where", &[&hidden, &zero, &y]);
        y = tx.plain("Reshape", &[&y, &shape]);
    }
    tx.give(op, "Y", &y)?;
    for (parameter, value) in [("Means", means), ("Scales", scales)] {
        if tx.is_read(op, parameter) {
            tx.give(op, parameter, &value)?;
        }
    }
    Ok(())
}

/// Scale and bias of an input's channels, ones and zeros where they are left out.
fn channel_weights(tx: &mut Tx, op: &OpDesc) -> Result<[String; 2], String> {
    let x = tx.input(op, "X")?;
    let mut out = Vec::new();
    for (parameter, default) in [("Scale", 1.0), ("Bias", 0.0)] {
        out.push(match tx.opt(op, parameter)? {
            Some(w) => w,
            None => {
                let channels = tx.node("Shape", &[&x], Attrs::new().with("start", 1).with("end", 2));
                let n = tx.like(op, "X", default)?;
                tx.plain("Expand", &[&n, &channels])
            }
        });
    }
    out.try_into().map_err(|_| "no weights".to_owned())
}

fn instance_norm(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let [scale, bias] = channel_weights(tx, op)?;
    let attrs = Attrs::new().with("epsilon", op.float("epsilon", 1e-5));
    tx.outs(op, &["Y"], OpName::onnx("InstanceNormalization"), &[&x, &scale, &bias], attrs)
}

/// Each group of channels has its own mean and deviation.
fn group_norm(tx: &mut Tx, op: &OpDesc) -> Done {
    if to_planes(tx, op, "X")?.is_some() {
        return Err("channels behind have no translation".into());
    }
    let x = tx.input(op, "X")?;
    let groups = op.int("groups", 1).max(1);
    let shape = tx.plain("Shape", &[&x]);
    let grouped = tx.ints(&[0, groups, -1]);
    let flat = tx.plain("Reshape", &[&x, &grouped]);
    let (one, zero) = (tx.like(op, "X", 1.0)?, tx.like(op, "X", 0.0)?);
    let each = tx.ints(&[groups]);
    let (ones, zeros) = (tx.plain("Expand", &[&one, &each]), tx.plain("Expand", &[&zero, &each]));
    let attrs = Attrs::new().with("epsilon", op.float("epsilon", 1e-5));
    let y = tx.node("InstanceNormalization", &[&flat, &ones, &zeros], attrs);
    let mut y = tx.plain("Reshape", &[&y, &shape]);
    for (parameter, onnx) in [("Scale", "Mul"), ("Bias", "Add")] {
        if let Some(w) = tx.opt(op, parameter)? {
            let w = per_channel(tx, op, "X", &w)?;
            y = tx.plain(onnx, &[&y, &w]);
        }
    }
    tx.give(op, "Y", &y)
}

fn layer_norm(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let begin = op.int("begin_norm_axis", 1);
    let rank = tx.dims_in(op, "X")?.len() as i64;
    let dims = tx.node("Shape", &[&x], Attrs::new().with("start", begin));
    let mut weights = Vec::new();
    for (parameter, default) in [("Scale", 1.0), ("Bias", 0.0)] {
        weights.push(match tx.opt(op, parameter)? {
            Some(w) if begin == rank - 1 => w,
            Some(w) => tx.plain("Reshape", &[&w, &dims]),
            None => {
                let n = tx.like(op, "X", default)?;
                tx.plain("Expand", &[&n, &dims])
            }
        });
    }
    if tx.is_read(op, "Mean") || tx.is_read(op, "Variance") {
        let flat = tx.node("Flatten", &[&x], Attrs::new().with("axis", begin));
        let (last, none) = (tx.ints(&[1]), Attrs::new().with("keepdims", 1));
        let mean = tx.node("ReduceMean", &[&flat, &last], none.clone());
        let rest = tx.plain("Sub", &[&flat, &mean]);
        let squares = tx.plain("Mul", &[&rest, &rest]);
        let variance = tx.node("ReduceMean", &[&squares, &last], none);
        for (parameter, value) in [("Mean", mean), ("Variance", variance)] {
            if !op.outs(parameter).is_empty() {
                tx.out(op, parameter, "Squeeze", &[&value, &last], Attrs::new())?;
            }
        }
    }
    let attrs = Attrs::new().with("axis", begin).with("epsilon", op.float("epsilon", 1e-5));
    tx.outs(op, &["Y"], OpName::onnx("LayerNormalization"), &[&x, &weights[0], &weights[1]], attrs)
}

/// x over its length along an axis.
fn norm(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let epsilon = tx.like(op, "X", op.float("epsilon", 1e-10).into())?;
    let axis = tx.ints(&[op.int("axis", -1)]);
    let squares = tx.node("ReduceSumSquare", &[&x, &axis], Attrs::new().with("keepdims", 1));
    let squares = tx.plain("Add", &[&squares, &epsilon]);
    let length = tx.plain("Sqrt", &[&squares]);
    tx.out(op, "Out", "Div", &[&x, &length], Attrs::new())?;
    if tx.is_read(op, "Norm") { tx.give(op, "Norm", &length) } else { Ok(()) }
}

/// The norm of order `p` along the axes, of all elements where there are none.
fn order(tx: &mut Tx, op: &OpDesc, x: &str, p: f64, axes: Option<i64>, keep: bool) -> Result<String, String> {
    let attrs = Attrs::new().with("keepdims", i64::from(keep));
    let axes = axes.map(|a| tx.ints(&[a]));
    let reduce = |tx: &mut Tx, onnx: &str, x: &str| {
        let inputs: Vec<&str> = std::iter::once(x).chain(axes.as_deref()).collect();
        tx.node(onnx, &inputs, attrs.clone())
    };
    if p == 1.0 || p == 2.0 {
        return Ok(reduce(tx, if p == 1.0 { "ReduceL1" } else { "ReduceL2" }, x));
    }
    let size = tx.plain("Abs", &[x]);
    if p.is_infinite() {
        return Ok(reduce(tx, if p > 0.0 { "ReduceMax" } else { "ReduceMin" }, &size));
    }
    let dtype = tx.dtype_in(op, "X")?;
    if p == 0.0 {
        let zero = tx.number(dtype, 0.0)?;
        let there = tx.plain("Greater", &[&size, &zero]);
        let there = tx.cast(&there, dtype);
        return Ok(reduce(tx, "ReduceSum", &there));
    }
    let (by, root) = (tx.number(dtype, p)?, tx.number(dtype, 1.0 / p)?);
    let powers = tx.plain("Pow", &[&size, &by]);
    let sum = reduce(tx, "ReduceSum", &powers);
    Ok(tx.plain("Pow", &[&sum, &root]))
}

fn p_norm(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let axis = (!op.flag("asvector", false)).then(|| op.int("axis", -1));
    let y = order(tx, op, &x, op.float("porder", 2.0).into(), axis, op.flag("keepdim", false))?;
    tx.give(op, "Out", &y)
}

fn dist(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = (tx.input(op, "X")?, tx.input(op, "Y")?);
    let rest = tx.plain("Sub", &[&x, &y]);
    let y = order(tx, op, &rest, op.float("p", 2.0).into(), None, false)?;
    tx.give(op, "Out", &y)
}

/// The square of the distance between rows.
fn squared_distance(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = (tx.input(op, "X")?, tx.input(op, "Y")?);
    let rest = tx.plain("Sub", &[&x, &y]);
    if tx.is_read(op, "sub_result") {
        tx.give(op, "sub_result", &rest)?;
    }
    let last = tx.ints(&[1]);
    tx.out(op, "Out", "ReduceSumSquare", &[&rest, &last], Attrs::new().with("keepdims", 1))
}
