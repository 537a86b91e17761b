//! Dropout, convolution and pooling.

use super::norm::to_planes;
use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::{Attrs, OpName};
use crate::tensor::DType;

pub(super) const OPS: &[(&str, Translate)] = &[
    ("conv2d", conv),
    ("conv2d_transpose", conv_transpose),
    ("conv3d", conv),
    ("depthwise_conv2d", conv),
    ("depthwise_conv2d_transpose", conv_transpose),
    ("dropout", dropout),
    ("max_pool2d_with_index", pool_with_index),
    ("pool2d", pool),
    ("pool3d", pool),
];

fn dropout(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    if op.text("dropout_implementation", "downgrade_in_infer") == "upscale_in_train" {
        return tx.out(op, "Out", "Identity", &[&x], Attrs::new());
    }
    let dtype = tx.dtype_in(op, "X")?;
    let kept = tx.number(dtype, f64::from(1.0 - op.float("dropout_prob", 0.5)))?;
    tx.out(op, "Out", "Mul", &[&x, &kept], Attrs::new())
}

/// Paddings as ONNX has them: all beginnings, then all ends.
fn pads(op: &OpDesc, places: usize) -> Result<Attrs, String> {
    let p = op.ints("paddings").unwrap_or_else(|| vec![0; places]);
    let attrs = Attrs::new();
    Ok(match op.text("padding_algorithm", "EXPLICIT").as_str() {
        "SAME" => attrs.with("auto_pad", "SAME_UPPER"),
        "VALID" => attrs.with("pads", vec![0; 2 * places]),
        _ if p.len() == places => attrs.with("pads", [p.as_slice(), &p].concat()),
        _ if p.len() == 2 * places => {
            let ends = p.iter().skip(1).step_by(2);
            attrs.with("pads", p.iter().step_by(2).chain(ends).copied().collect::<Vec<i64>>())
        }
        _ => return Err(format!("paddings must have {places} or {} entries, found {}", 2 * places, p.len())),
    })
}

fn places(tx: &Tx, op: &OpDesc, parameter: &str) -> Result<usize, String> {
    tx.dims_in(op, parameter)?.len().checked_sub(2).filter(|&n| n > 0).ok_or_else(|| "expected planes".into())
}

/// A node over planes: where the channels are behind they are brought before, and back.
fn over_planes(tx: &mut Tx, op: &OpDesc, names: (&str, &str), onnx: &str, rest: &[String], attrs: Attrs) -> Done {
    let mut x = tx.input(op, names.0)?;
    let planes = to_planes(tx, op, names.0)?;
    if let Some([there, _]) = &planes {
        x = tx.node("Transpose", &[&x], Attrs::new().with("perm", there.clone()));
    }
    let inputs: Vec<&str> = std::iter::once(x.as_str()).chain(rest.iter().map(String::as_str)).collect();
    let Some([_, back]) = planes else { return tx.outs(op, &[names.1], OpName::onnx(onnx), &inputs, attrs) };
    let y = tx.node(onnx, &inputs, attrs);
    tx.outs(op, &[names.1], OpName::onnx("Transpose"), &[&y], Attrs::new().with("perm", back))
}

fn conv(tx: &mut Tx, op: &OpDesc) -> Done {
    let n = places(tx, op, "Input")?;
    let rest: Vec<String> = std::iter::once(tx.input(op, "Filter")?).chain(tx.opt(op, "Bias")?).collect();
    // Padding to the same size leaves dilations out.
    let same = op.text("padding_algorithm", "EXPLICIT") == "SAME";
    let dilations = op.ints("dilations").filter(|_| !same).unwrap_or_else(|| vec![1; n]);
    let attrs = pads(op, n)?.with("strides", op.ints("strides").unwrap_or_else(|| vec![1; n]));
    let attrs = attrs.with("dilations", dilations).with("group", op.int("groups", 1));
    over_planes(tx, op, ("Input", "Output"), "Conv", &rest, attrs)
}

fn conv_transpose(tx: &mut Tx, op: &OpDesc) -> Done {
    let n = places(tx, op, "Input")?;
    let rest: Vec<String> = std::iter::once(tx.input(op, "Filter")?).chain(tx.opt(op, "Bias")?).collect();
    let same = op.text("padding_algorithm", "EXPLICIT") == "SAME";
    let dilations = op.ints("dilations").filter(|_| !same).unwrap_or_else(|| vec![1; n]);
    let strides = op.ints("strides").unwrap_or_else(|| vec![1; n]);
    let kernel = tx.dims_in(op, "Filter")?.get(2..).unwrap_or_default().to_vec();
    let dims = tx.dims_in(op, "Input")?;
    let sized = op.ints("output_size").unwrap_or_default();
    let mut extra = op.ints("output_padding").unwrap_or_default();
    let mut attrs = pads(op, n)?;
    if same {
        // It pads as a convolution of its input does, the smaller half before.
        let mut total = Vec::new();
        for i in 0..n {
            let size =
                dims.get(i + 2).copied().filter(|d| (1..=1 << 30).contains(d)).ok_or("the same size over open dims has no translation")?;
            let (k, s) = (kernel.get(i).copied().unwrap_or(1).clamp(1, 1 << 30), strides.get(i).copied().unwrap_or(1).clamp(1, 1 << 30));
            total.push((((size + s - 1) / s - 1) * s + k - size).max(0));
        }
        let pads: Vec<i64> = total.iter().map(|t| t / 2).chain(total.iter().map(|t| t - t / 2)).collect();
        attrs = Attrs::new().with("pads", pads);
    }
    if !sized.is_empty() && !op.ins("OutputSizeTensor").is_empty() {
        return Err("an output_size that is a tensor has no translation".into());
    }
    let whole = |v: &[i64]| v.len() == n && v.iter().all(|d| (1..=1 << 30).contains(d));
    if !whole(&strides) || !whole(&dilations) {
        return Err(format!("expected {n} strides and dilations, found {strides:?} and {dilations:?}"));
    }
    if sized.len() == n && !same {
        let p = op.ints("paddings").unwrap_or_else(|| vec![0; n]);
        let around = |i: usize| if p.len() == 2 * n { p[2 * i] + p[2 * i + 1] } else { 2 * p.get(i).copied().unwrap_or(0) };
        let small = |v: &[i64]| v.iter().all(|d| (0..=1 << 30).contains(d));
        if !dims.get(2..).is_some_and(whole) || !whole(&kernel) || !small(&p) || !small(&sized) {
            return Err("an output_size over open dims has no translation".into());
        }
        extra = (0..n).map(|i| sized[i] - ((dims[i + 2] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - around(i))).collect();
    }
    if !extra.is_empty() {
        attrs = attrs.with("output_padding", extra);
    }
    let attrs = attrs.with("strides", strides).with("dilations", dilations).with("group", op.int("groups", 1));
    over_planes(tx, op, ("Input", "Output"), "ConvTranspose", &rest, attrs)
}

fn pool(tx: &mut Tx, op: &OpDesc) -> Done {
    let n = places(tx, op, "X")?;
    let max = op.r#type() == "max_pool2d_with_index" || op.text("pooling_type", "max") == "max";
    let ksize = op.ints("ksize").unwrap_or_default();
    let adaptive = op.flag("adaptive", false);
    if op.flag("global_pooling", false) || (adaptive && ksize.iter().all(|&k| k == 1)) {
        return over_planes(tx, op, ("X", "Out"), if max { "GlobalMaxPool" } else { "GlobalAveragePool" }, &[], Attrs::new());
    }
    if adaptive {
        return adaptive_pool(tx, op, max, &ksize);
    }
    let attrs = pads(op, n)?.with("strides", op.ints("strides").unwrap_or_else(|| vec![1; n]));
    let attrs = attrs.with("kernel_shape", ksize).with("ceil_mode", i64::from(op.flag("ceil_mode", false)));
    if max {
        return over_planes(tx, op, ("X", "Out"), "MaxPool", &[], attrs);
    }
    let attrs = attrs.with("count_include_pad", i64::from(!op.flag("exclusive", true)));
    over_planes(tx, op, ("X", "Out"), "AveragePool", &[], attrs)
}

/// The greatest of each window, and where it is in its plane.
fn pool_with_index(tx: &mut Tx, op: &OpDesc) -> Done {
    if !tx.is_read(op, "Mask") {
        return pool(tx, op);
    }
    let n = places(tx, op, "X")?;
    let x = tx.input(op, "X")?;
    let mut kernel = op.ints("ksize").unwrap_or_default();
    if op.flag("adaptive", false) {
        return Err("adaptive pooling with its Mask has no translation".into());
    }
    let mut attrs = pads(op, n)?.with("strides", op.ints("strides").unwrap_or_else(|| vec![1; n]));
    if op.flag("global_pooling", false) {
        kernel = tx.dims_in(op, "X")?.get(2..).unwrap_or_default().to_vec();
        attrs = Attrs::new();
    }
    if kernel.len() != n || kernel.iter().any(|&k| k < 1) {
        return Err(format!("expected {n} sizes of its window, found {kernel:?}"));
    }
    let made = tx.several("MaxPool", &[&x], 2, attrs.with("kernel_shape", kernel));
    tx.give(op, "Out", &made[0])?;
    let sizes = tx.node("Shape", &[&x], Attrs::new().with("start", 2));
    let plane = tx.node("ReduceProd", &[&sizes], Attrs::new().with("keepdims", 0));
    let within = tx.node("Mod", &[&made[1], &plane], Attrs::new());
    tx.out(op, "Mask", "Cast", &[&within], Attrs::new().with("to", i64::from(DType::I32.to_onnx())))?;
    tx.is_really(op, "Mask", DType::I32);
    Ok(())
}

/// Pools to a number of windows: window i of n reaches from ⌊i·d/n⌋ to ⌈(i+1)·d/n⌉. One axis after the other gives the same.
fn adaptive_pool(tx: &mut Tx, op: &OpDesc, max: bool, wanted: &[i64]) -> Done {
    if to_planes(tx, op, "X")?.is_some() {
        return Err("adaptive pooling with channels behind has no translation".into());
    }
    let mut x = tx.input(op, "X")?;
    let dims = tx.dims_in(op, "X")?;
    let onnx = if max { "ReduceMax" } else { "ReduceMean" };
    for (i, &n) in wanted.iter().enumerate() {
        let axis = i as i64 + 2;
        let size = dims.get(i + 2).copied().filter(|d| (1..=1 << 30).contains(d));
        let size = size.ok_or("adaptive pooling over an open dim has no translation")?;
        if !(1..=1024).contains(&n) {
            return Err(format!("adaptive pooling to {n} has no translation"));
        }
        if n == size {
            continue;
        }
        let axes = tx.ints(&[axis]);
        let mut windows = Vec::new();
        for k in 0..n {
            let (from, to) = (tx.ints(&[k * size / n]), tx.ints(&[((k + 1) * size + n - 1) / n]));
            let part = tx.node("Slice", &[&x, &from, &to, &axes], Attrs::new());
            windows.push(tx.node(onnx, &[&part, &axes], Attrs::new().with("keepdims", 1)));
        }
        let windows: Vec<&str> = windows.iter().map(String::as_str).collect();
        x = tx.node("Concat", &windows, Attrs::new().with("axis", axis));
    }
    tx.give(op, "Out", &x)
}
