//! Sequences: rows with the offsets of the samples (LoD) beside them.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::{OpDesc, dtype};
use crate::ir::{Attrs, OpName};
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[(&str, Translate)] = &[
    ("lod_reset", reset),
    ("row_conv", row_conv),
    ("sequence_concat", concat),
    ("sequence_conv", conv),
    ("sequence_enumerate", enumerate),
    ("sequence_expand", expand),
    ("sequence_expand_as", expand),
    ("sequence_mask", mask),
    ("sequence_pad", pad),
    ("sequence_pool", pool),
    ("sequence_reshape", reshape),
    ("sequence_reverse", reverse),
    ("sequence_softmax", softmax),
    ("sequence_unpad", unpad),
];

/// What the offsets of a variable say, as values.
pub(super) struct Offsets {
    /// All offsets: of samples + 1.
    pub lod: String,
    /// The first row of each sample.
    pub starts: String,
    /// The row behind the last of each sample.
    pub ends: String,
    /// The rows of each sample.
    pub lengths: String,
}

pub(super) fn offsets(tx: &mut Tx, var: &str) -> Result<Offsets, String> {
    let lod = tx.lod.get(var).cloned().ok_or_else(|| format!("variable \"{var}\" has no LoD"))?;
    Ok(parts(tx, lod))
}

fn parts(tx: &mut Tx, lod: String) -> Offsets {
    let (zero, one, last, ahead) = (tx.ints(&[0]), tx.ints(&[1]), tx.ints(&[-1]), tx.ints(&[i64::MAX]));
    let starts = tx.plain("Slice", &[&lod, &zero, &last]);
    let ends = tx.plain("Slice", &[&lod, &one, &ahead]);
    let lengths = tx.plain("Sub", &[&ends, &starts]);
    Offsets { lod, starts, ends, lengths }
}

/// The offsets of samples of these lengths.
fn from_lengths(tx: &mut Tx, lengths: &str) -> String {
    let (zero, axis) = (tx.ints(&[0]), tx.constant("axis", Tensor::scalar(0i64)));
    let ends = tx.plain("CumSum", &[lengths, &axis]);
    tx.node("Concat", &[&zero, &ends], Attrs::new().with("axis", 0))
}

/// The number of each row.
pub(super) fn row_numbers(tx: &mut Tx, of: &Offsets) -> String {
    let last = tx.constant("last", Tensor::scalar(-1i64));
    let count = tx.node("Gather", &[&of.lod, &last], Attrs::new().with("axis", 0));
    let (zero, one) = (tx.constant("zero", Tensor::scalar(0i64)), tx.constant("one", Tensor::scalar(1i64)));
    tx.plain("Range", &[&zero, &count, &one])
}

/// The sample of each row: the number of ends at or before it.
pub(super) fn samples(tx: &mut Tx, of: &Offsets) -> String {
    let (zero, one, last) = (tx.ints(&[0]), tx.ints(&[1]), tx.ints(&[-1]));
    let ahead = tx.ints(&[i64::MAX]);
    let rows = tx.plain("Slice", &[&of.lod, &last, &ahead]);
    let places = tx.plain("Add", &[&rows, &one]);
    let none = tx.constant("none", Tensor::scalar(0i64));
    let marks = tx.plain("Expand", &[&none, &places]);
    let count = tx.plain("Shape", &[&of.ends]);
    let unit = tx.constant("unit", Tensor::scalar(1i64));
    let ones = tx.plain("Expand", &[&unit, &count]);
    let at = tx.plain("Unsqueeze", &[&of.ends, &one]);
    let marks = tx.node("ScatterND", &[&marks, &at, &ones], Attrs::new().with("reduction", "add"));
    let axis = tx.constant("axis", Tensor::scalar(0i64));
    let samples = tx.plain("CumSum", &[&marks, &axis]);
    tx.plain("Slice", &[&samples, &zero, &rows])
}

pub(super) fn at(tx: &mut Tx, data: &str, index: &str) -> String {
    tx.node("Gather", &[data, index], Attrs::new().with("axis", 0))
}

/// A value per row as a column that spreads over rows of this rank.
fn column(tx: &mut Tx, value: &str, rank: usize) -> String {
    let shape: Vec<i64> = std::iter::once(-1).chain(std::iter::repeat_n(1, rank.saturating_sub(1))).collect();
    let shape = tx.ints(&shape);
    tx.plain("Reshape", &[value, &shape])
}

fn x_of(op: &OpDesc) -> Result<&str, String> {
    op.ins("X").first().map(String::as_str).ok_or_else(|| "it has no X".into())
}

/// Pools the rows between the offsets of each sample; a sample without rows gives `pad_value`.
fn pool(tx: &mut Tx, op: &OpDesc) -> Done {
    let var = x_of(op)?;
    let x = tx.input(op, "X")?;
    let of = offsets(tx, var)?;
    let (rank, dtype) = (tx.dims(var)?.len(), tx.dtype(var)?);
    let (zero, one) = (tx.ints(&[0]), tx.ints(&[1]));
    let pad = tx.number(dtype, op.float("pad_value", 0.0).into())?;
    let lengths = column(tx, &of.lengths, rank);
    let empty = tx.plain("Equal", &[&lengths, &zero]);
    let kind = op.text("pooltype", "AVERAGE").to_ascii_uppercase();
    let pooled = match kind.as_str() {
        "FIRST" | "LAST" => {
            // One row of padding behind all lets a sample without rows point at something.
            let row = if kind == "FIRST" { of.starts } else { tx.plain("Sub", &[&of.ends, &one]) };
            let row = tx.plain("Max", &[&row, &zero]);
            let tail = tx.node("Shape", &[&x], Attrs::new().with("start", 1));
            let behind = tx.node("Concat", &[&one, &tail], Attrs::new().with("axis", 0));
            let behind = tx.plain("Expand", &[&pad, &behind]);
            let longer = tx.node("Concat", &[&x, &behind], Attrs::new().with("axis", 0));
            at(tx, &longer, &row)
        }
        "SUM" => reduce(tx, &x, &of, dtype, false)?,
        "MAX" => reduce(tx, &x, &of, dtype, true)?,
        "AVERAGE" | "SQRT" => {
            let summed = reduce(tx, &x, &of, dtype, false)?;
            let n = tx.plain("Max", &[&lengths, &one]);
            let n = tx.cast(&n, dtype);
            let n = if kind == "SQRT" { tx.plain("Sqrt", &[&n]) } else { n };
            tx.plain("Div", &[&summed, &n])
        }
        other => return Err(format!("pooltype must be SUM, AVERAGE, SQRT, MAX, FIRST or LAST, found {other}")),
    };
    tx.out(op, "Out", "Where", &[&empty, &pad, &pooled], Attrs::new())?;
    tx.forget_lod(op);
    Ok(())
}

/// The sum or greatest of the rows of each sample.
pub(super) fn reduce(tx: &mut Tx, x: &str, of: &Offsets, dtype: DType, max: bool) -> Result<String, String> {
    let samples = samples(tx, of);
    let last_axis = tx.ints(&[1]);
    let samples = tx.plain("Unsqueeze", &[&samples, &last_axis]);
    let start = tx.number(dtype, if max { f64::from(f32::MIN) } else { 0.0 })?;
    let (count, tail) = (tx.plain("Shape", &[&of.ends]), tx.node("Shape", &[x], Attrs::new().with("start", 1)));
    let dims = tx.node("Concat", &[&count, &tail], Attrs::new().with("axis", 0));
    let start = tx.plain("Expand", &[&start, &dims]);
    Ok(tx.node("ScatterND", &[&start, &samples, x], Attrs::new().with("reduction", if max { "max" } else { "add" })))
}

/// A softmax over the rows of each sample.
fn softmax(tx: &mut Tx, op: &OpDesc) -> Done {
    let var = x_of(op)?;
    let x = tx.input(op, "X")?;
    let of = offsets(tx, var)?;
    let dtype = tx.dtype(var)?;
    let rows = samples(tx, &of);
    let greatest = reduce(tx, &x, &of, dtype, true)?;
    let greatest = at(tx, &greatest, &rows);
    let x = tx.plain("Sub", &[&x, &greatest]);
    let x = tx.plain("Exp", &[&x]);
    let sum = reduce(tx, &x, &of, dtype, false)?;
    let sum = at(tx, &sum, &rows);
    tx.out(op, "Out", "Div", &[&x, &sum], Attrs::new())
}

/// Repeats each sample of X as often as the sample of Y has rows.
fn expand(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let y = op.ins("Y").first().ok_or("it has no Y")?;
    if !matches!(op.int("ref_level", -1), -1 | 0) {
        return Err("a ref_level past 0 has no translation".into());
    }
    let of = offsets(tx, y)?;
    let times = samples(tx, &of);
    let own = if op.r#type() == "sequence_expand" { tx.lod.get(x_of(op)?).cloned() } else { None };
    let (index, lod) = match own {
        None => (times, of.lod),
        Some(own) => {
            let own = parts(tx, own);
            let lengths = at(tx, &own.lengths, &times);
            let lod = from_lengths(tx, &lengths);
            let made = parts(tx, lod);
            let piece = samples(tx, &made);
            let (row, first) = (row_numbers(tx, &made), at(tx, &made.starts, &piece));
            let within = tx.plain("Sub", &[&row, &first]);
            let starts = at(tx, &own.starts, &times);
            let starts = at(tx, &starts, &piece);
            (tx.plain("Add", &[&starts, &within]), made.lod)
        }
    };
    tx.out(op, "Out", "Gather", &[&x, &index], Attrs::new().with("axis", 0))?;
    tx.keep_lod(op, lod);
    Ok(())
}

/// The rows at a distance within each sample; `otherwise` where the sample has none there.
fn shifted(tx: &mut Tx, x: &str, rank: usize, of: &Offsets, by: i64, otherwise: &str) -> String {
    let (rows, samples) = (row_numbers(tx, of), samples(tx, of));
    let (distance, zero) = (tx.constant("distance", Tensor::scalar(by)), tx.constant("zero", Tensor::scalar(0i64)));
    let wanted = tx.plain("Add", &[&rows, &distance]);
    let (starts, ends) = (at(tx, &of.starts, &samples), at(tx, &of.ends, &samples));
    let (behind, before) = (tx.plain("GreaterOrEqual", &[&wanted, &starts]), tx.plain("Less", &[&wanted, &ends]));
    let there = tx.plain("And", &[&behind, &before]);
    let safe = tx.plain("Where", &[&there, &wanted, &zero]);
    let found = at(tx, x, &safe);
    let there = column(tx, &there, rank);
    tx.plain("Where", &[&there, &found, otherwise])
}

/// A convolution over the rows of each sample, with zeros around it.
fn conv(tx: &mut Tx, op: &OpDesc) -> Done {
    if op.flag("paddingTrainable", false) || op.int("contextStride", 1) != 1 {
        return Err("trained padding and strides have no translation".into());
    }
    let var = x_of(op)?;
    let (x, filter) = (tx.input(op, "X")?, tx.input(op, "Filter")?);
    let of = offsets(tx, var)?;
    let zero = tx.like(op, "X", 0.0)?;
    let (length, start) = (op.int("contextLength", 1), op.int("contextStart", 0));
    if !(1..=1024).contains(&length) {
        return Err(format!("contextLength must be 1 to 1024, found {length}"));
    }
    let parts: Vec<String> = (0..length).map(|k| shifted(tx, &x, 2, &of, start.saturating_add(k), &zero)).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let wide = tx.node("Concat", &parts, Attrs::new().with("axis", 1));
    tx.out(op, "Out", "MatMul", &[&wide, &filter], Attrs::new())
}

/// Each row with those ahead of it, each times a row of the filter.
fn row_conv(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, filter) = (tx.input(op, "X")?, tx.input(op, "Filter")?);
    let of = offsets(tx, x_of(op)?)?;
    let zero = tx.like(op, "X", 0.0)?;
    let ahead =
        tx.dims_in(op, "Filter")?.first().copied().filter(|n| (1..=1024).contains(n)).ok_or("its filter must have 1 to 1024 rows")?;
    let mut sum: Option<String> = None;
    for k in 0..ahead {
        let rows = shifted(tx, &x, 2, &of, k, &zero);
        let place = tx.constant("place", Tensor::scalar(k));
        let weight = at(tx, &filter, &place);
        let term = tx.plain("Mul", &[&rows, &weight]);
        sum = Some(match sum {
            Some(sum) => tx.plain("Add", &[&sum, &term]),
            None => term,
        });
    }
    tx.give(op, "Out", &sum.unwrap_or(x))
}

/// Windows of ids, each from its row on.
fn enumerate(tx: &mut Tx, op: &OpDesc) -> Done {
    let var = x_of(op)?;
    let x = tx.input(op, "X")?;
    let of = offsets(tx, var)?;
    let pad = tx.like(op, "X", op.int("pad_value", 0) as f64)?;
    let size = op.int("win_size", 1);
    if !(1..=1024).contains(&size) {
        return Err(format!("win_size must be 1 to 1024, found {size}"));
    }
    let flat = tx.ints(&[-1, 1]);
    let x = tx.plain("Reshape", &[&x, &flat]);
    let parts: Vec<String> = (0..size).map(|k| shifted(tx, &x, 2, &of, k, &pad)).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    tx.out(op, "Out", "Concat", &parts, Attrs::new().with("axis", 1))
}

/// Joins the samples of several inputs one by one.
fn concat(tx: &mut Tx, op: &OpDesc) -> Done {
    let xs = tx.inputs(op, "X")?;
    let all: Vec<Offsets> = op.ins("X").iter().map(|v| offsets(tx, v)).collect::<Result<_, _>>()?;
    let Some((first, rest)) = all.split_first() else { return Err("it has no X".into()) };
    let total = rest.iter().fold(first.lod.clone(), |sum, of| tx.plain("Add", &[&sum, &of.lod]));
    let (mut place, mut places) = (parts(tx, total.clone()).starts, Vec::new());
    for of in &all {
        let (rows, samples) = (row_numbers(tx, of), samples(tx, of));
        let (to, from) = (at(tx, &place, &samples), at(tx, &of.starts, &samples));
        let to = tx.plain("Sub", &[&to, &from]);
        places.push(tx.plain("Add", &[&to, &rows]));
        place = tx.plain("Add", &[&place, &of.lengths]);
    }
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let places = tx.node("Concat", &places, Attrs::new().with("axis", 0));
    let last = tx.ints(&[1]);
    let places = tx.plain("Unsqueeze", &[&places, &last]);
    let xs: Vec<&str> = xs.iter().map(String::as_str).collect();
    let rows = tx.node("Concat", &xs, Attrs::new().with("axis", 0));
    tx.out(op, "Out", "ScatterND", &[&rows, &places, &rows], Attrs::new())?;
    tx.keep_lod(op, total);
    Ok(())
}

/// Samples side by side, the shorter ones padded.
fn pad(tx: &mut Tx, op: &OpDesc) -> Done {
    let var = x_of(op)?;
    let (x, pad) = (tx.input(op, "X")?, tx.input(op, "PadValue")?);
    let of = offsets(tx, var)?;
    let zero = tx.ints(&[0]);
    let long = match op.int("padded_length", -1) {
        n if n > 0 => tx.ints(&[n]),
        _ => tx.node("ReduceMax", &[&of.lengths, &zero], Attrs::new().with("keepdims", 1)),
    };
    let (rows, samples) = (row_numbers(tx, &of), samples(tx, &of));
    let from = at(tx, &of.starts, &samples);
    let within = tx.plain("Sub", &[&rows, &from]);
    let place = tx.plain("Mul", &[&samples, &long]);
    let place = tx.plain("Add", &[&place, &within]);
    let last = tx.ints(&[1]);
    let place = tx.plain("Unsqueeze", &[&place, &last]);
    let (count, tail) = (tx.plain("Shape", &[&of.lengths]), tx.node("Shape", &[&x], Attrs::new().with("start", 1)));
    let all = tx.plain("Mul", &[&count, &long]);
    let flat = tx.node("Concat", &[&all, &tail], Attrs::new().with("axis", 0));
    let padding = tx.plain("Expand", &[&pad, &flat]);
    let filled = tx.plain("ScatterND", &[&padding, &place, &x]);
    let shape = tx.node("Concat", &[&count, &long, &tail], Attrs::new().with("axis", 0));
    tx.out(op, "Out", "Reshape", &[&filled, &shape], Attrs::new())?;
    if !op.outs("Length").is_empty() {
        tx.out(op, "Length", "Identity", &[&of.lengths], Attrs::new())?;
    }
    tx.forget_lod(op);
    Ok(())
}

/// The rows of each sample up to its length, in a row.
fn unpad(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, lengths) = (tx.input(op, "X")?, tx.input(op, "Length")?);
    let (flat, long) = (tx.ints(&[-1]), tx.node("Shape", &[&x], Attrs::new().with("start", 1).with("end", 2)));
    let lengths = tx.cast(&lengths, DType::I64);
    let lengths = tx.plain("Reshape", &[&lengths, &flat]);
    let there = below(tx, &lengths, &long);
    let there = tx.plain("Reshape", &[&there, &flat]);
    let tail = tx.node("Shape", &[&x], Attrs::new().with("start", 2));
    let shape = tx.node("Concat", &[&flat, &tail], Attrs::new().with("axis", 0));
    let rows = tx.plain("Reshape", &[&x, &shape]);
    tx.out(op, "Out", "Compress", &[&rows, &there], Attrs::new().with("axis", 0))?;
    let lod = from_lengths(tx, &lengths);
    tx.keep_lod(op, lod);
    Ok(())
}

/// For each length a row of `long` truth values: whether a place is below it.
fn below(tx: &mut Tx, lengths: &str, long: &str) -> String {
    let scalar = tx.constant("scalar", Tensor::vector(Vec::<i64>::new()));
    let long = tx.plain("Reshape", &[long, &scalar]);
    let (zero, one) = (tx.constant("zero", Tensor::scalar(0i64)), tx.constant("one", Tensor::scalar(1i64)));
    let places = tx.plain("Range", &[&zero, &long, &one]);
    let last = tx.ints(&[-1]);
    let lengths = tx.plain("Unsqueeze", &[lengths, &last]);
    tx.plain("Less", &[&places, &lengths])
}

fn mask(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let x = tx.cast(&x, DType::I64);
    let long = match (tx.opt(op, "MaxLenTensor")?, op.int("maxlen", -1)) {
        (Some(t), _) => tx.cast(&t, DType::I64),
        (None, n) if n >= 0 => tx.ints(&[n]),
        _ => tx.node("ReduceMax", &[&x], Attrs::new().with("keepdims", 0)),
    };
    let there = below(tx, &x, &long);
    let code = op.int("out_dtype", 3) as i32;
    let to = dtype(code).ok_or_else(|| format!("dtype {code} does not exist"))?;
    tx.outs(op, &["Y"], OpName::onnx("Cast"), &[&there], Attrs::new().with("to", i64::from(to.to_onnx())))
}

fn reverse(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let of = offsets(tx, x_of(op)?)?;
    let (rows, samples) = (row_numbers(tx, &of), samples(tx, &of));
    let one = tx.constant("one", Tensor::scalar(1i64));
    let (starts, ends) = (at(tx, &of.starts, &samples), at(tx, &of.ends, &samples));
    let index = tx.plain("Add", &[&starts, &ends]);
    let index = tx.plain("Sub", &[&index, &one]);
    let index = tx.plain("Sub", &[&index, &rows]);
    tx.outs(op, &["Y"], OpName::onnx("Gather"), &[&x, &index], Attrs::new().with("axis", 0))
}

/// Rows of another width; the offsets follow.
fn reshape(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let of = offsets(tx, x_of(op)?)?;
    let (width, wanted) = (tx.dims_in(op, "X")?.get(1).copied().unwrap_or(1), op.int("new_dim", 1));
    if width < 1 || wanted < 1 {
        return Err(format!("its widths must be known, found {width} and {wanted}"));
    }
    let shape = tx.ints(&[-1, wanted]);
    tx.out(op, "Out", "Reshape", &[&x, &shape], Attrs::new())?;
    let (width, wanted) = (tx.ints(&[width]), tx.ints(&[wanted]));
    let lod = tx.plain("Mul", &[&of.lod, &width]);
    let lod = tx.plain("Div", &[&lod, &wanted]);
    tx.keep_lod(op, lod);
    Ok(())
}

fn reset(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let lod = match op.ins("Y").first() {
        Some(y) => match tx.lod.get(y) {
            Some(lod) => lod.clone(),
            None => {
                let y = tx.value(y)?;
                tx.cast(&y, DType::I64)
            }
        },
        None => tx.ints(&op.ints("target_lod").unwrap_or_default()),
    };
    tx.out(op, "Out", "Identity", &[&x], Attrs::new())?;
    tx.keep_lod(op, lod);
    Ok(())
}
