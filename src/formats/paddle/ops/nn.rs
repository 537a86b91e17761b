//! Normalisation, dropout, convolution and pooling.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::{Attrs, OpName};

pub(super) const OPS: &[(&str, Translate)] = &[
    ("batch_norm", batch_norm),
    ("conv2d", conv),
    ("depthwise_conv2d", conv),
    ("dropout", dropout),
    ("layer_norm", layer_norm),
    ("pool2d", pool),
];

fn planes_first(op: &OpDesc) -> Done {
    for name in ["data_layout", "data_format"] {
        let layout = op.text(name, "NCHW");
        if !matches!(layout.as_str(), "NCHW" | "AnyLayout" | "") {
            return Err(format!("{name} must be NCHW, found {layout}"));
        }
    }
    Ok(())
}

fn batch_norm(tx: &mut Tx, op: &OpDesc) -> Done {
    planes_first(op)?;
    let inputs = [tx.input(op, "X")?, tx.input(op, "Scale")?, tx.input(op, "Bias")?, tx.input(op, "Mean")?, tx.input(op, "Variance")?];
    let inputs = inputs.each_ref().map(String::as_str);
    let attrs = Attrs::new().with("epsilon", op.float("epsilon", 1e-5));
    tx.outs(op, &["Y"], OpName::onnx("BatchNormalization"), &inputs, attrs)
}

fn dropout(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    if op.text("dropout_implementation", "downgrade_in_infer") == "upscale_in_train" {
        return tx.out(op, "Out", "Identity", &[&x], Attrs::new());
    }
    let dtype = tx.dtype_in(op, "X")?;
    let kept = tx.number(dtype, f64::from(1.0 - op.float("dropout_prob", 0.5)))?;
    tx.out(op, "Out", "Mul", &[&x, &kept], Attrs::new())
}

fn layer_norm(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let begin = op.int("begin_norm_axis", 1);
    let rank = tx.dims_in(op, "X")?.len() as i64;
    let dtype = tx.dtype_in(op, "X")?;
    let dims = tx.node("Shape", &[&x], Attrs::new().with("start", begin));
    let mut weights = Vec::new();
    for (parameter, default) in [("Scale", 1.0), ("Bias", 0.0)] {
        weights.push(match tx.opt(op, parameter)? {
            Some(w) if begin == rank - 1 => w,
            Some(w) => tx.node("Reshape", &[&w, &dims], Attrs::new()),
            None => {
                let n = tx.number(dtype, default)?;
                tx.node("Expand", &[&n, &dims], Attrs::new())
            }
        });
    }
    let attrs = Attrs::new().with("axis", begin).with("epsilon", op.float("epsilon", 1e-5));
    tx.outs(op, &["Y"], OpName::onnx("LayerNormalization"), &[&x, &weights[0], &weights[1]], attrs)
}

/// Paddings as ONNX has them: all beginnings, then all ends.
fn pads(op: &OpDesc) -> Result<(Option<&'static str>, Vec<i64>), String> {
    let p = op.ints("paddings").unwrap_or_else(|| vec![0, 0]);
    Ok(match (op.text("padding_algorithm", "EXPLICIT").as_str(), p.as_slice()) {
        ("SAME", _) => (Some("SAME_UPPER"), vec![]),
        ("VALID", _) => (None, vec![0; 4]),
        (_, &[h, w]) => (None, vec![h, w, h, w]),
        (_, &[top, bottom, left, right]) => (None, vec![top, left, bottom, right]),
        (_, other) => return Err(format!("paddings must have 2 or 4 entries, found {}", other.len())),
    })
}

fn window(op: &OpDesc) -> Result<Attrs, String> {
    let attrs = Attrs::new().with("strides", op.ints("strides").unwrap_or_else(|| vec![1, 1]));
    Ok(match pads(op)? {
        (Some(auto), _) => attrs.with("auto_pad", auto),
        (None, pads) => attrs.with("pads", pads),
    })
}

fn conv(tx: &mut Tx, op: &OpDesc) -> Done {
    planes_first(op)?;
    let (x, w) = (tx.input(op, "Input")?, tx.input(op, "Filter")?);
    let attrs = window(op)?.with("dilations", op.ints("dilations").unwrap_or_else(|| vec![1, 1])).with("group", op.int("groups", 1));
    match tx.opt(op, "Bias")? {
        Some(b) => tx.outs(op, &["Output"], OpName::onnx("Conv"), &[&x, &w, &b], attrs),
        None => tx.outs(op, &["Output"], OpName::onnx("Conv"), &[&x, &w], attrs),
    }
}

fn pool(tx: &mut Tx, op: &OpDesc) -> Done {
    planes_first(op)?;
    let x = tx.input(op, "X")?;
    let max = op.text("pooling_type", "max") == "max";
    let ksize = op.ints("ksize").unwrap_or_default();
    let adaptive = op.flag("adaptive", false);
    if op.flag("global_pooling", false) || (adaptive && ksize == [1, 1]) {
        return tx.out(op, "Out", if max { "GlobalMaxPool" } else { "GlobalAveragePool" }, &[&x], Attrs::new());
    }
    if adaptive {
        return Err(format!("adaptive pooling to {ksize:?} has no translation"));
    }
    let attrs = window(op)?.with("kernel_shape", ksize).with("ceil_mode", i64::from(op.flag("ceil_mode", false)));
    if max {
        return tx.out(op, "Out", "MaxPool", &[&x], attrs);
    }
    tx.out(op, "Out", "AveragePool", &[&x], attrs.with("count_include_pad", i64::from(!op.flag("exclusive", true))))
}
