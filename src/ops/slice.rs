//! Ops that cut tensors: slices, splits, rows by a mask.

use super::infer::unknown_dims;
use super::movement::{Take, moved, signed_strides, strided};
use super::util::{axis, product};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, one};
use crate::invalid;
use crate::ir::{Dim, Type};
use crate::tensor::{Shape, Tensor, Value, fits_memory};
use std::sync::Arc;

const SPLIT: &[i64] = &[1, 2, 11, 13, 18];

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Compress", &[9, 11, 28]).inputs(2, 2).attrs(&["axis"]).kernel(compress).infer(infer_compress),
    OpDef::new("Slice", &[1, 10, 11, 13]).inputs(1, 5).attrs(&["axes", "ends", "starts"]).kernel(slice).infer(infer_slice),
    OpDef::new("Split", SPLIT).inputs(1, 2).outputs(1, usize::MAX).attrs(&["axis", "num_outputs", "split"]).kernel(split).infer(infer_split),
    OpDef::new("SplitToSequence", &[11, 24]).inputs(1, 2).attrs(&["axis", "keepdims"]).kernel(split_to_sequence).infer(infer_split_to_sequence),
];

/// The first position and the number of positions that `start..end` by `step` has in a dim, as in numpy.
fn span(dim: usize, start: i64, end: i64, step: i64) -> Result<(usize, usize), OpError> {
    let (n, step) = (dim as i128, i128::from(step));
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let clamp = |x: i64| (if x < 0 { i128::from(x) + n } else { i128::from(x) }).clamp(low, high);
    let (start, end) = (clamp(start), clamp(end));
    let count = match step {
        0 => invalid!("a step is 0"),
        s if s > 0 => (end - start + s - 1).div_euclid(s),
        s => (start - end - s - 1).div_euclid(-s),
    };
    let count = count.max(0) as usize;
    Ok((if count == 0 { 0 } else { start as usize }, count))
}

/// Where a Slice cuts: starts, ends, axes, steps, of one length.
struct Cuts {
    starts: Vec<i64>,
    ends: Vec<i64>,
    axes: Option<Vec<i64>>,
    steps: Option<Vec<i64>>,
}

impl Cuts {
    /// For each axis that is cut: the axis, start, end and step.
    fn by_axis(&self, rank: usize) -> Result<Vec<(usize, i64, i64, i64)>, OpError> {
        let n = self.starts.len();
        let fits = |v: &Option<Vec<i64>>| v.as_ref().is_none_or(|v| v.len() == n);
        if self.ends.len() != n || !fits(&self.axes) || !fits(&self.steps) {
            invalid!("starts, ends, axes and steps must be of one length, found {n} starts and {} ends", self.ends.len());
        }
        let mut cut = vec![false; rank];
        let mut out = Vec::with_capacity(n);
        for i in 0..n {
            let at = axis(self.axes.as_ref().map_or(i as i64, |a| a[i]), rank)?;
            if std::mem::replace(&mut cut[at], true) {
                invalid!("axis {at} is cut twice");
            }
            out.push((at, self.starts[i], self.ends[i], self.steps.as_ref().map_or(1, |s| s[i])));
        }
        Ok(out)
    }
}

/// The cuts that the attributes of a Slice before version 10 state.
fn attr_cuts(cx: &OpCtx) -> Result<Option<Cuts>, OpError> {
    let list = |name| -> Result<Option<Vec<i64>>, OpError> { Ok(cx.attrs.ints(name)?.map(<[i64]>::to_vec)) };
    match (list("starts")?, list("ends")?) {
        (Some(starts), Some(ends)) => Ok(Some(Cuts { starts, ends, axes: list("axes")?, steps: None })),
        _ => Ok(None),
    }
}

fn slice(cx: &OpCtx) -> Result<Kernel, OpError> {
    let fixed = attr_cuts(cx)?;
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let given;
        let cuts = match &fixed {
            Some(cuts) if args.len() < 2 => cuts,
            _ => {
                given = Cuts { starts: args.ints(1)?, ends: args.ints(2)?, axes: args.opt_ints(3)?, steps: args.opt_ints(4)? };
                &given
            }
        };
        let (mut shape, mut by) = (data.shape().to_vec(), signed_strides(data.shape()));
        let mut first = 0;
        for (at, start, end, step) in cuts.by_axis(data.rank())? {
            let (from, count) = span(shape[at], start, end, step)?;
            first = usize::wrapping_add(first, from.wrapping_mul(by[at] as usize));
            shape[at] = count;
            // With one position or none the step may be any number.
            by[at] = if count > 1 { by[at].wrapping_mul(step as isize) } else { 0 };
        }
        one(strided(data, first, &shape, &by)?)
    }))
}

fn infer_slice(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let Some(shape) = cx.shape(0) else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    let unknown = |dims: Vec<Dim>| Ok(vec![Fact::partial(cx.dtype(0), Some(dims))]);
    let fixed = if cx.has(1) { None } else { attr_cuts(&cx.op)? };
    let optional = |i| if cx.has(i) { cx.known(i).map(Some) } else { Some(None) };
    let (Some(axes), Some(steps)) = (optional(3), optional(4)) else { return unknown(unknown_dims(shape.len())) };
    let cuts = match (fixed, cx.known(1), cx.known(2)) {
        (Some(cuts), ..) => cuts,
        (None, Some(starts), Some(ends)) => Cuts { starts, ends, axes, steps },
        (None, starts, ends) => {
            // Ends that are not known leave the axes that are not cut.
            let n = axes.as_ref().or(starts.as_ref()).or(ends.as_ref()).map(Vec::len).or_else(|| cx.vector_len(1));
            let Some(n) = n else { return unknown(unknown_dims(shape.len())) };
            let mut dims = shape.to_vec();
            for a in axes.unwrap_or_else(|| (0..n as i64).collect()) {
                dims[axis(a, shape.len())?] = Dim::Unknown;
            }
            return unknown(dims);
        }
    };
    let mut dims = shape.to_vec();
    for (at, start, end, step) in cuts.by_axis(shape.len())? {
        dims[at] = match (&shape[at], start, end, step) {
            (Dim::Known(d), ..) => Dim::Known(span(*d, start, end, step)?.1),
            (d, 0, i64::MAX, 1) | (d, 0, 0x7fff_ffff, 1) => d.clone(),
            (d, -1, e, -1) if e <= -0x7fff_ffff => d.clone(),
            // From the back, a start that lies inside or is clamped: the length is not known.
            _ => Dim::Unknown,
        };
    }
    let fact = Fact::partial(cx.dtype(0), Some(dims));
    match (cx.dims(0), &cuts.by_axis(shape.len())?[..]) {
        (Some(elements), [(_, start, end, step)]) if shape.len() == 1 => {
            let (first, count) = span(elements.len(), *start, *end, *step)?;
            let at = |i: usize| (first as i64 + i as i64 * if count > 1 { *step } else { 0 }) as usize;
            Ok(vec![fact.with_dims((0..count).map(|i| elements[at(i)].clone()).collect())])
        }
        _ => Ok(vec![fact]),
    }
}

/// The part of `t` that holds `len` positions of axis `at` from `from` on.
pub(super) fn part(t: &Tensor, at: usize, from: usize, len: usize) -> Result<Tensor, OpError> {
    let by = signed_strides(t.shape());
    let mut shape = t.shape().to_vec();
    shape[at] = len;
    strided(t, from.wrapping_mul(by[at] as usize), &shape, &by)
}

/// Checks lengths of parts against the dim that they split.
fn check_parts(parts: &[i64], dim: usize) -> Result<Vec<usize>, OpError> {
    let sum = parts.iter().try_fold(0usize, |sum, &p| sum.checked_add(usize::try_from(p).ok()?));
    if sum == Some(dim) { Ok(parts.iter().map(|&p| p as usize).collect()) } else { invalid!("parts {parts:?} do not split a dim of {dim}") }
}

/// A dim in `n` parts; the last may be smaller from version 18 on.
fn equal_parts(dim: usize, n: usize, version: i64) -> Result<Vec<usize>, OpError> {
    if n == 0 {
        invalid!("num_outputs must be positive");
    }
    if !dim.is_multiple_of(n) && version < 18 {
        invalid!("a dim of {dim} does not split into {n} equal parts");
    }
    let size = dim.div_ceil(n);
    match dim.checked_sub(size.saturating_mul(n - 1)) {
        Some(last) => Ok((0..n).map(|i| if i + 1 == n { last } else { size }).collect()),
        None => invalid!("a dim of {dim} does not split into {n} parts of {size} but the last"),
    }
}

/// The number of parts of a Split: stated, or the outputs that the node lists.
fn number_of_parts(cx: &OpCtx) -> Result<usize, OpError> {
    let n = cx.attrs.int("num_outputs")?.unwrap_or(cx.outputs.len() as i64);
    match usize::try_from(n) {
        // A node may leave out the last outputs.
        Ok(n) if n >= cx.outputs.len() && n <= 1 << 20 => Ok(n),
        _ => invalid!("num_outputs is {n}, but the node has {} outputs", cx.outputs.len()),
    }
}

fn split(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (at, version, outputs) = (cx.attrs.int_or("axis", 0)?, cx.version, cx.outputs.len());
    let fixed = cx.attrs.ints("split")?.map(<[i64]>::to_vec);
    let n = number_of_parts(cx)?;
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let at = axis(at, data.rank())?;
        let parts = match args.opt_ints(1)?.as_ref().or(fixed.as_ref()) {
            Some(parts) => check_parts(parts, data.shape()[at])?,
            None => equal_parts(data.shape()[at], n, version)?,
        };
        if parts.len() < outputs {
            invalid!("{} parts for {outputs} outputs", parts.len());
        }
        let mut from = 0;
        let cut = |&len: &usize| {
            let t = part(data, at, from, len)?;
            from += len;
            Ok(Value::Tensor(t))
        };
        parts.iter().take(outputs).map(cut).collect::<Result<Outputs, OpError>>()
    }))
}

fn infer_split(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let n = cx.op.outputs.len();
    let Some(shape) = cx.shape(0) else { return Ok(vec![Fact::partial(cx.dtype(0), None); n]) };
    let at = axis(cx.op.attrs.int_or("axis", 0)?, shape.len())?;
    let stated = if cx.has(1) { cx.dims(1) } else { None };
    let parts: Option<Vec<Dim>> = match (stated, cx.op.attrs.ints("split")?) {
        (Some(dims), _) => Some(dims),
        (None, Some(list)) if !cx.has(1) => Some(list.iter().map(|&d| usize::try_from(d).map_or(Dim::Unknown, Dim::Known)).collect()),
        (None, _) if cx.has(1) => None,
        _ => match shape[at].known() {
            Some(d) => Some(equal_parts(d, number_of_parts(&cx.op)?, cx.op.version)?.into_iter().map(Dim::Known).collect()),
            None => None,
        },
    };
    let parts = parts.unwrap_or_else(|| unknown_dims(n));
    if parts.len() < n {
        invalid!("{} parts for {n} outputs", parts.len());
    }
    let of = |d: Dim| {
        let mut dims = shape.to_vec();
        dims[at] = d;
        Fact::partial(cx.dtype(0), Some(dims))
    };
    Ok(parts.into_iter().take(n).map(of).collect())
}

fn split_to_sequence(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (at, keep) = (cx.attrs.int_or("axis", 0)?, cx.attrs.int_or("keepdims", 1)? != 0);
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let at = axis(at, data.rank())?;
        let dim = data.shape()[at];
        if data.is_empty() && !fits_memory(dim.saturating_mul(size_of::<Value>())) {
            invalid!("a sequence of {dim} does not fit memory");
        }
        let chunks = |size: usize| (0..dim.div_ceil(size)).map(|i| size.min(dim - i * size)).collect::<Vec<_>>();
        let parts = match args.opt(1)? {
            None => chunks(1),
            Some(s) if s.rank() == 0 => match args.ints(1)?[0] {
                size if size > 0 => chunks(size as usize),
                size => invalid!("split must be positive, found {size}"),
            },
            Some(_) => check_parts(&args.ints(1)?, dim)?,
        };
        let drop_axis = !keep && args.opt(1)?.is_none();
        let mut from = 0;
        let mut out = Vec::with_capacity(parts.len());
        for len in parts {
            let mut t = part(data, at, from, len)?;
            from += len;
            if drop_axis {
                let mut shape: Shape = t.shape().clone();
                shape.remove(at);
                t = t.reshape(shape)?;
            }
            out.push(Value::Tensor(t));
        }
        one(Value::Sequence(Arc::new(out)))
    }))
}

fn infer_split_to_sequence(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let mut dims = cx.shape(0).map(<[Dim]>::to_vec);
    if let Some(dims) = &mut dims {
        let at = axis(cx.op.attrs.int_or("axis", 0)?, dims.len())?;
        if cx.has(1) {
            dims[at] = Dim::Unknown;
        } else if cx.op.attrs.int_or("keepdims", 1)? != 0 {
            dims[at] = Dim::Known(1);
        } else {
            dims.remove(at);
        }
    }
    Ok(vec![Type::Sequence(Box::new(Type::Tensor { dtype: cx.dtype(0), shape: dims })).into()])
}

fn compress(cx: &OpCtx) -> Result<Kernel, OpError> {
    let at = cx.attrs.int("axis")?;
    Ok(Box::new(move |args: Args| {
        let (data, mask) = (args.tensor(0)?, args.tensor(1)?.to_slice::<bool>()?);
        let (at, mut shape) = match at {
            Some(at) => (axis(at, data.rank())?, data.shape().clone()),
            None => (0, Shape::from([data.len()])),
        };
        let (dim, block) = (shape[at], product(&shape[at + 1..]));
        if mask.len() > dim {
            invalid!("a condition of {} elements is longer than the dim of {dim}", mask.len());
        }
        let ids: Vec<usize> = mask.iter().enumerate().filter(|(_, keep)| **keep).map(|(i, _)| i).collect();
        shape[at] = ids.len();
        one(moved(&Take { block, dim, ids: &ids }, &[data], shape)?)
    }))
}

fn infer_compress(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let count = match cx.constant(1).and_then(|c| c.to_slice::<bool>().ok().map(|m| m.iter().filter(|k| **k).count())) {
        Some(n) => Dim::Known(n),
        None => Dim::Unknown,
    };
    let dims = match (cx.op.attrs.int("axis")?, cx.shape(0)) {
        (None, _) => Some(vec![count]),
        (Some(at), Some(s)) => {
            let mut dims = s.to_vec();
            dims[axis(at, s.len())?] = count;
            Some(dims)
        }
        _ => None,
    };
    Ok(vec![Fact::partial(cx.dtype(0), dims)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::{run, run_values};

    fn ints(v: &[i64]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    #[test]
    fn spans_follow_numpy() {
        assert_eq!(span(5, 1, 4, 2).unwrap(), (1, 2));
        assert_eq!(span(5, -1, i64::MIN, -1).unwrap(), (4, 5));
        assert_eq!(span(5, i64::MIN, i64::MAX, i64::MAX).unwrap(), (0, 1));
        assert_eq!(span(5, i64::MAX, i64::MIN, i64::MIN).unwrap(), (4, 1));
        assert_eq!(span(5, 4, 1, 1).unwrap(), (0, 0));
        assert_eq!(span(0, 0, 3, -1).unwrap(), (0, 0));
        assert!(span(5, 0, 5, 0).is_err());
    }

    #[test]
    fn slice_cuts_by_attributes_or_inputs() {
        let t = Tensor::new([2, 4], (0..8i64).collect()).unwrap();
        let old = Attrs::new().with("starts", vec![0, 1]).with("ends", vec![-1, 1000]);
        assert_eq!(run("Slice", 1, old, std::slice::from_ref(&t)).unwrap(), Tensor::new([1, 3], vec![1i64, 2, 3]).unwrap());
        let new = [t, ints(&[3]), ints(&[i64::MIN]), ints(&[-1]), ints(&[-2])];
        assert_eq!(run("Slice", 13, Attrs::new(), &new).unwrap(), Tensor::new([2, 2], vec![3i64, 1, 7, 5]).unwrap());
    }

    #[test]
    fn split_makes_equal_parts_but_the_last() {
        let parts = |n: i64, version, outputs| {
            let attrs = if n > 0 { Attrs::new().with("num_outputs", n) } else { Attrs::new() };
            let out = run_values("Split", version, attrs, vec![Some(ints(&[1, 2, 3, 4, 5, 6, 7]).into())], outputs)?;
            Ok::<_, OpError>(out.into_iter().map(|v| v.into_tensor().unwrap().len()).collect::<Vec<_>>())
        };
        assert_eq!(parts(4, 18, 4).unwrap(), [2, 2, 2, 1]);
        assert_eq!(parts(0, 13, 7).unwrap(), [1; 7]);
        assert!(parts(0, 13, 2).is_err());
        assert!(parts(6, 18, 6).is_err());
        assert!(parts(i64::MAX, 18, 2).is_err());
    }

    #[test]
    fn a_sequence_of_parts_may_drop_the_axis() {
        let t = Tensor::new([2, 2], vec![1i64, 2, 3, 4]).unwrap();
        let out = run_values("SplitToSequence", 11, Attrs::new().with("keepdims", 0), vec![Some(t.into())], 1).unwrap();
        assert_eq!(out[0], Value::Sequence(Arc::new(vec![ints(&[1, 2]).into(), ints(&[3, 4]).into()])));
    }

    #[test]
    fn compress_takes_what_the_mask_marks() {
        let t = Tensor::new([3, 2], (1..7i64).collect()).unwrap();
        let mask = Tensor::vector(vec![false, true, true]);
        let rows = run("Compress", 11, Attrs::new().with("axis", 0), &[t.clone(), mask.clone()]).unwrap();
        assert_eq!(rows, Tensor::new([2, 2], vec![3i64, 4, 5, 6]).unwrap());
        assert_eq!(run("Compress", 11, Attrs::new(), &[t, mask]).unwrap(), ints(&[2, 3]));
    }
}
