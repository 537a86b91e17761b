//! Images: resizing, padding, channels in and out of planes.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::Attrs;
use crate::tensor::DType;

#[rustfmt::skip]
pub(super) const OPS: &[(&str, Translate)] = &[
    ("bicubic_interp_v2", |tx, op| resize(tx, op, "cubic")),
    ("bilinear_interp", |tx, op| resize(tx, op, "linear")),
    ("bilinear_interp_v2", |tx, op| resize(tx, op, "linear")),
    ("linear_interp_v2", |tx, op| resize(tx, op, "linear")),
    ("nearest_interp", |tx, op| resize(tx, op, "nearest")),
    ("nearest_interp_v2", |tx, op| resize(tx, op, "nearest")),
    ("pad", pad),
    ("pad2d", pad_planes),
    ("pad3d", pad_planes),
    ("pixel_shuffle", pixel_shuffle),
    ("pixel_unshuffle", pixel_unshuffle),
    ("shuffle_channel", shuffle_channel),
    ("trilinear_interp_v2", |tx, op| resize(tx, op, "linear")),
];

fn planes_first(op: &OpDesc) -> Done {
    match ["data_layout", "data_format"].iter().map(|n| op.text(n, "NCHW")).find(|l| l.ends_with('C')) {
        Some(layout) => Err(format!("layout {layout} has no translation")),
        None => Ok(()),
    }
}

fn resize(tx: &mut Tx, op: &OpDesc, mode: &str) -> Done {
    planes_first(op)?;
    let x = tx.input(op, "X")?;
    let places = tx.dims_in(op, "X")?.len().saturating_sub(2);
    let corners = op.flag("align_corners", true);
    let rule = match (mode, corners, op.int("align_mode", 1)) {
        (_, true, _) => "align_corners",
        ("nearest", ..) | ("linear", _, 1) => "asymmetric",
        _ => "half_pixel",
    };
    let mut attrs = Attrs::new().with("mode", mode).with("coordinate_transformation_mode", rule);
    if mode == "nearest" {
        attrs.set("nearest_mode", if corners { "round_prefer_ceil" } else { "floor" }.into());
    }
    if mode == "cubic" {
        attrs.set("cubic_coeff_a", (-0.75f32).into());
    }
    let sizes = sizes(tx, op, places)?;
    match sizes {
        Ok(sizes) => {
            let head = tx.node("Shape", &[&x], Attrs::new().with("start", 0).with("end", 2));
            let sizes = tx.node("Concat", &[&head, &sizes], Attrs::new().with("axis", 0));
            tx.out(op, "Out", "Resize", &[&x, "", "", &sizes], attrs)
        }
        Err(scales) => tx.out(op, "Out", "Resize", &[&x, "", &scales], attrs),
    }
}

/// The sizes of the places, or scales of all dims.
fn sizes(tx: &mut Tx, op: &OpDesc, places: usize) -> Result<Result<String, String>, String> {
    if let Some(t) = tx.opt(op, "OutSize")? {
        return Ok(Ok(tx.cast(&t, DType::I64)));
    }
    let parts = tx.inputs(op, "SizeTensor")?;
    if !parts.is_empty() {
        let one = tx.ints(&[1]);
        let mut joined = Vec::new();
        for p in parts {
            let p = tx.cast(&p, DType::I64);
            joined.push(tx.plain("Reshape", &[&p, &one]));
        }
        let joined: Vec<&str> = joined.iter().map(String::as_str).collect();
        return Ok(Ok(tx.node("Concat", &joined, Attrs::new().with("axis", 0))));
    }
    if !op.ins("Scale").is_empty() {
        return Err("a scale that is a tensor has no translation".into());
    }
    let by = op
        .attrs
        .iter()
        .find(|a| a.name() == "scale")
        .map(|a| if a.floats.is_empty() { a.f.into_iter().collect() } else { a.floats.clone() });
    let by: Vec<f32> = by.unwrap_or_default().into_iter().filter(|&s| s > 0.0).collect();
    if !by.is_empty() {
        let each = (0..places).map(|i| by[i.min(by.len() - 1)]);
        let scales: Vec<f32> = [1.0, 1.0].into_iter().chain(each).collect();
        return Ok(Err(tx.constant("scales", crate::tensor::Tensor::vector(scales))));
    }
    let all = ["out_d", "out_h", "out_w"].map(|n| op.int(n, -1));
    let sizes = &all[3usize.saturating_sub(places)..];
    if sizes.iter().any(|&s| s < 1) {
        return Err(format!("its sizes must be positive, found {sizes:?}"));
    }
    Ok(Ok(tx.ints(sizes)))
}

/// Beginnings and ends in turn, for each dim.
fn pad(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let pairs = op.ints("paddings").unwrap_or_default();
    let ends = pairs.iter().skip(1).step_by(2);
    let pads: Vec<i64> = pairs.iter().step_by(2).chain(ends).copied().collect();
    let pads = tx.ints(&pads);
    let value = tx.like(op, "X", op.float("pad_value", 0.0).into())?;
    tx.out(op, "Out", "Pad", &[&x, &pads, &value], Attrs::new())
}

/// `pad2d` says top, bottom, left, right; `pad3d` left, right, top, bottom, front, back.
fn pad_planes(tx: &mut Tx, op: &OpDesc) -> Done {
    planes_first(op)?;
    let x = tx.input(op, "X")?;
    let two = op.r#type() == "pad2d";
    let p = match op.ins("Paddings").first() {
        None => op.ints("paddings").unwrap_or_default(),
        Some(var) => tx.known(var).ok_or("paddings that are computed have no translation")?,
    };
    let pads = match (two, p.as_slice()) {
        (true, &[top, bottom, left, right]) => vec![0, 0, top, left, 0, 0, bottom, right],
        (false, &[left, right, top, bottom, front, back]) => vec![0, 0, front, top, left, 0, 0, back, bottom, right],
        (_, other) => return Err(format!("paddings must have {} entries, found {}", if two { 4 } else { 6 }, other.len())),
    };
    let pads = tx.ints(&pads);
    let value = tx.like(op, "X", op.float(if two { "pad_value" } else { "value" }, 0.0).into())?;
    let mode = op.text("mode", "constant");
    let mode = match mode.as_str() {
        "constant" | "reflect" => mode.as_str(),
        "edge" | "replicate" => "edge",
        "circular" => "wrap",
        other => return Err(format!("mode {other} has no translation")),
    };
    let inputs: &[&str] = if mode == "constant" { &[&x, &pads, &value] } else { &[&x, &pads] };
    tx.out(op, "Out", "Pad", inputs, Attrs::new().with("mode", mode))
}

fn pixel_shuffle(tx: &mut Tx, op: &OpDesc) -> Done {
    planes_first(op)?;
    let x = tx.input(op, "X")?;
    tx.out(op, "Out", "DepthToSpace", &[&x], Attrs::new().with("blocksize", op.int("upscale_factor", 1)).with("mode", "CRD"))
}

fn shuffle_channel(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let shape = tx.plain("Shape", &[&x]);
    let groups = tx.ints(&[0, op.int("group", 1), -1]);
    let tail = tx.node("Shape", &[&x], Attrs::new().with("start", 2));
    let split = tx.node("Concat", &[&groups, &tail], Attrs::new().with("axis", 0));
    let x = tx.plain("Reshape", &[&x, &split]);
    let x = tx.node("Transpose", &[&x], Attrs::new().with("perm", vec![0, 2, 1, 3, 4]));
    tx.out(op, "Out", "Reshape", &[&x, &shape], Attrs::new())
}

/// Each block of places becomes channels, beside each other for each channel.
fn pixel_unshuffle(tx: &mut Tx, op: &OpDesc) -> Done {
    planes_first(op)?;
    let x = tx.input(op, "X")?;
    let by = op.int("downscale_factor", 1);
    let dims = tx.dims_in(op, "X")?;
    let &[_, c, h, w] = dims else { return Err(format!("expected 4 dims, found {}", dims.len())) };
    if [c, h, w].iter().any(|d| !(1..=1 << 20).contains(d)) || by < 1 || h % by != 0 || w % by != 0 {
        return Err(format!("planes of {dims:?} do not divide by {by}"));
    }
    let split = tx.ints(&[-1, c, h / by, by, w / by, by]);
    let x = tx.plain("Reshape", &[&x, &split]);
    let x = tx.node("Transpose", &[&x], Attrs::new().with("perm", vec![0, 1, 3, 5, 2, 4]));
    let joined = tx.ints(&[-1, c * by * by, h / by, w / by]);
    tx.out(op, "Out", "Reshape", &[&x, &joined], Attrs::new())
}
