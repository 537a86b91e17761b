//! Reductions along axes.

use super::gemm::Real;
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, one, rows, util};
use crate::ir::Dim;
use crate::tensor::{DType, Element, Number, Shape, Tensor, cast, fits_memory};
use crate::{dispatch_number, dispatch_wide, invalid};

const ATTRS: &[&str] = &["axes", "keepdims", "noop_with_empty_axes"];

const fn op(name: &'static str, versions: &'static [i64]) -> OpDef {
    OpDef::new(name, versions).inputs(1, 2).attrs(ATTRS).infer(infer)
}

pub(super) const OPS: &[OpDef] = &[
    op("ReduceL1", &[1, 11, 13, 18]).kernel(|cx| build(cx, How::L1)),
    op("ReduceL2", &[1, 11, 13, 18]).kernel(|cx| build(cx, How::L2)),
    op("ReduceLogSum", &[1, 11, 13, 18]).kernel(|cx| build(cx, How::LogSum)),
    op("ReduceLogSumExp", &[1, 11, 13, 18]).kernel(|cx| build(cx, How::LogSumExp)),
    op("ReduceMax", &[1, 11, 12, 13, 18, 20]).kernel(|cx| build(cx, How::Max)),
    op("ReduceMean", &[1, 11, 13, 18]).kernel(|cx| build(cx, How::Mean)),
    op("ReduceMin", &[1, 11, 12, 13, 18, 20]).kernel(|cx| build(cx, How::Min)),
    op("ReduceProd", &[1, 11, 13, 18]).kernel(|cx| build(cx, How::Prod)),
    op("ReduceSum", &[1, 11, 13]).kernel(|cx| build(cx, How::Sum)),
    op("ReduceSumSquare", &[1, 11, 13, 18]).kernel(|cx| build(cx, How::SumSquare)),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    L1,
    L2,
    LogSum,
    LogSumExp,
    Max,
    Mean,
    Min,
    Prod,
    Sum,
    SumSquare,
}

/// The attributes of a reduction.
struct Spec {
    how: How,
    /// Axes, where they are an attribute.
    axes: Option<Vec<i64>>,
    keepdims: bool,
    noop: bool,
}

/// Whether the axes are an input: since some version, or because one is there.
fn axes_are_input(cx: &OpCtx) -> bool {
    cx.inputs > 1 || cx.version >= if &*cx.op.name == "ReduceSum" { 13 } else { 18 }
}

fn build(cx: &OpCtx, how: How) -> Result<Kernel, OpError> {
    let axes = if axes_are_input(cx) { None } else { cx.attrs.ints("axes")?.map(<[i64]>::to_vec) };
    let spec = Spec { how, axes, keepdims: cx.attrs.int_or("keepdims", 1)? != 0, noop: cx.attrs.int_or("noop_with_empty_axes", 0)? != 0 };
    Ok(Box::new(move |args| one(run(&spec, &args)?)))
}

/// The axes to reduce: none listed means all, or with `noop` none.
fn resolve(axes: Option<&[i64]>, noop: bool, rank: usize) -> Result<Vec<usize>, OpError> {
    match axes {
        Some(list) if !list.is_empty() => util::axes(list, rank),
        _ if noop => Ok(Vec::new()),
        _ => Ok((0..rank).collect()),
    }
}

fn infer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let keep = cx.op.attrs.int_or("keepdims", 1)? != 0;
    let noop = cx.op.attrs.int_or("noop_with_empty_axes", 0)? != 0;
    let input = axes_are_input(&cx.op);
    let axes = match (input, cx.has(1)) {
        (false, _) => cx.op.attrs.ints("axes")?.map(<[i64]>::to_vec),
        (true, false) => None,
        (true, true) => match cx.ints(1) {
            Some(axes) => Some(axes),
            None => {
                let shape = cx.shape(0).filter(|_| keep).map(|s| vec![Dim::Unknown; s.len()]);
                return Ok(vec![Fact::partial(cx.dtype(0), shape)]);
            }
        },
    };
    let Some(shape) = cx.shape(0) else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    let axes = resolve(axes.as_deref(), noop, shape.len())?;
    let dims = shape.iter().enumerate().filter_map(|(i, d)| match axes.contains(&i) {
        false => Some(d.clone()),
        true => keep.then_some(Dim::Known(1)),
    });
    Ok(vec![Fact::partial(cx.dtype(0), Some(dims.collect()))])
}

fn run(spec: &Spec, args: &Args) -> Result<Tensor, OpError> {
    let x = args.tensor(0)?;
    let given = match &spec.axes {
        Some(axes) => Some(axes.clone()),
        None => args.opt_ints(1)?,
    };
    let axes = resolve(given.as_deref(), spec.noop, x.rank())?;
    let out = reduce(x, &axes, spec.how)?;
    let dims = x.shape().iter().enumerate().filter_map(|(i, &d)| match axes.contains(&i) {
        false => Some(d),
        true => spec.keepdims.then_some(1),
    });
    Ok(out.reshape(Shape::from_dims(dims))?)
}

/// A tensor as `[outer, reduced, inner]`.
struct Lanes {
    data: Tensor,
    outer: usize,
    len: usize,
    inner: usize,
}

/// Brings the reduced axes together; most layouts need no copy.
fn lanes(x: &Tensor, axes: &[usize]) -> Result<Lanes, OpError> {
    let shape = x.shape();
    let size = |r: std::ops::Range<usize>| util::product(&shape[r]);
    // Axes of size 1 may count as either kind.
    let reduced: Vec<usize> = axes.iter().copied().filter(|&a| shape[a] != 1).collect();
    let (Some(&first), Some(&end)) = (reduced.first(), reduced.last()) else {
        return Ok(Lanes { data: x.clone(), outer: x.len(), len: 1, inner: 1 });
    };
    if (first..=end).all(|d| shape[d] == 1 || reduced.contains(&d)) {
        return Ok(Lanes { data: x.clone(), outer: size(0..first), len: size(first..end + 1), inner: size(end + 1..x.rank()) });
    }
    let mut order: Vec<usize> = (0..x.rank()).filter(|d| !axes.contains(d)).collect();
    let picked = |axes: &[usize]| util::product(&axes.iter().map(|&d| shape[d]).collect::<Vec<_>>());
    let (outer, len) = (picked(&order), picked(axes));
    order.extend(axes);
    let data = dispatch_number!(x.dtype(), T => permute::<T>(x, &order)?, other => invalid!("expected numbers, found {other}"));
    Ok(Lanes { data, outer, len, inner: 1 })
}

fn permute<T: Element>(x: &Tensor, order: &[usize]) -> Result<Tensor, OpError> {
    let view = x.view::<T>()?;
    Ok(Tensor::from_array(view.permuted_axes(order.to_vec()).as_standard_layout().into_owned()))
}

fn reduce(x: &Tensor, axes: &[usize], how: How) -> Result<Tensor, OpError> {
    let dtype = x.dtype();
    if dtype == DType::Bool {
        if !matches!(how, How::Max | How::Min) {
            invalid!("expected numbers, found bool");
        }
        return Ok(cast(&reduce(&cast(x, DType::U8)?, axes, how)?, DType::Bool)?);
    }
    // Halves are computed in float32, and roots and logarithms of integers in float64.
    let rooted = matches!(how, How::L2 | How::LogSum | How::LogSumExp);
    let wide = if rooted && dtype.is_int() { cast(x, DType::F64)? } else { util::widen(x)? };
    let lanes = lanes(&wide, axes)?;
    // An input without elements may have an output of any size.
    let bytes = lanes.outer.checked_mul(lanes.inner).and_then(|n| n.checked_mul(wide.dtype().size().unwrap_or(1)));
    if !bytes.is_some_and(fits_memory) {
        invalid!("the output of {} without axes {axes:?} does not fit memory", x.shape());
    }
    let out = match how {
        How::L2 | How::LogSum | How::LogSumExp => dispatch_wide!(wide.dtype(), T => rooted_reduce::<T>(&lanes, how)?),
        _ => dispatch_number!(wide.dtype(), T => plain::<T>(&lanes, how)?, other => invalid!("expected numbers, found {other}")),
    };
    Ok(cast(&out, dtype)?)
}

fn plain<T: Number>(lanes: &Lanes, how: How) -> Result<Tensor, OpError> {
    let x = lanes.data.as_slice::<T>()?;
    let abs = |v: T| if v < T::ZERO { T::ZERO.sub(v) } else { v };
    let out = match how {
        How::L1 => fold(x, lanes, T::ZERO, abs, T::add),
        How::SumSquare => fold(x, lanes, T::ZERO, |v| v.mul(v), T::add),
        How::Prod => fold(x, lanes, T::ONE, |v| v, T::mul),
        How::Max => fold(x, lanes, T::lowest(), |v| v, T::greater_of),
        How::Min => fold(x, lanes, T::highest(), |v| v, T::lesser_of),
        How::Mean => {
            let n = T::from_f64(lanes.len as f64);
            let mut sums = fold(x, lanes, T::ZERO, |v| v, T::add);
            sums.iter_mut().for_each(|s| *s = s.div(n).unwrap_or(T::ZERO));
            sums
        }
        _ => fold(x, lanes, T::ZERO, |v| v, T::add),
    };
    Ok(Tensor::vector(out))
}

fn rooted_reduce<T: Real>(lanes: &Lanes, how: How) -> Result<Tensor, OpError> {
    let x = lanes.data.as_slice::<T>()?;
    let out: Vec<T> = match how {
        How::L2 => fold(x, lanes, T::ZERO, |v| v * v, <T as Number>::add).into_iter().map(|s| s.sqrt()).collect(),
        How::LogSum => fold(x, lanes, T::ZERO, |v| v, <T as Number>::add).into_iter().map(|s| s.ln()).collect(),
        _ => {
            let tops: Vec<T> =
                fold(x, lanes, T::lowest(), |v| v, T::greater_of).into_iter().map(|t| if t.is_infinite() { T::ZERO } else { t }).collect();
            let block = lanes.len * lanes.inner;
            let mut shifted = x.to_vec();
            util::for_each_chunk(&mut shifted, lanes.inner, |i, row| {
                let tops = &tops[i * lanes.inner / block.max(1) * lanes.inner..];
                row.iter_mut().zip(tops).for_each(|(v, t)| *v = (*v - *t).exp());
            });
            let sums = fold(&shifted, lanes, T::ZERO, |v| v, <T as Number>::add);
            sums.into_iter().zip(tops).map(|(s, t)| s.ln() + t).collect()
        }
    };
    Ok(Tensor::vector(out))
}

/// Columns that one task folds when the reduced axis is not the last.
const COLUMNS: usize = 1024;
/// Rows that are folded before they are merged into the total.
const ROWS: usize = 128;
/// Elements of one long row that one task folds.
const PIECE: usize = 64 * 1024;

fn fold<T: Number>(
    x: &[T],
    lanes: &Lanes,
    init: T,
    map: impl Fn(T) -> T + Sync + Send + Copy,
    combine: impl Fn(T, T) -> T + Sync + Send + Copy,
) -> Vec<T> {
    let Lanes { outer, len, inner, .. } = *lanes;
    let mut out = vec![init; outer * inner];
    if out.is_empty() || len == 0 {
        return out;
    }
    let large = x.len() >= 4 * util::GRAIN;
    if inner == 1 {
        let row = |i: usize, o: &mut T| {
            let row = &x[i * len..][..len];
            *o = if len <= PIECE {
                rows::simd(|| rows::fold(row, init, map, combine))
            } else {
                let mut parts = vec![init; len.div_ceil(PIECE)];
                util::chunks_in_parallel(&mut parts, 1, 1, &|p, o| {
                    o[0] = rows::simd(|| rows::fold(&row[p * PIECE..len.min((p + 1) * PIECE)], init, map, combine))
                });
                parts.into_iter().fold(init, combine)
            }
        };
        if large {
            util::chunks_in_parallel(&mut out, 1, (util::GRAIN / len).max(1), &|i, o| row(i, &mut o[0]));
        } else {
            out.iter_mut().enumerate().for_each(|(i, o)| row(i, o));
        }
        return out;
    }
    let columns = |block: usize, at: usize, out: &mut [T]| {
        let width = out.len();
        let mut part = vec![init; width];
        for from in (0..len).step_by(ROWS) {
            part.fill(init);
            for r in from..len.min(from + ROWS) {
                let row = &x[(block * len + r) * inner + at..][..width];
                rows::simd(|| part.iter_mut().zip(row).for_each(|(p, &v)| *p = combine(*p, map(v))));
            }
            out.iter_mut().zip(&part).for_each(|(o, &p)| *o = combine(*o, p));
        }
    };
    if large {
        let least = (util::GRAIN / (len * inner)).max(1);
        util::chunks_in_parallel(&mut out, inner, least, &|i, row| {
            util::chunks_in_parallel(row, COLUMNS, 1, &|c, cols| columns(i, c * COLUMNS, cols));
        });
    } else {
        out.chunks_mut(inner).enumerate().for_each(|(i, row)| columns(i, 0, row));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::testing::run;
    use super::*;
    use crate::ir::Attrs;

    fn t<T: Element>(shape: &[usize], data: Vec<T>) -> Tensor {
        Tensor::new(shape, data).unwrap()
    }

    fn check(op: &str, axes: Vec<i64>, want: Tensor) {
        let x = t(&[2, 3, 2], (0..12).map(|i| i as f32).collect());
        let out = run(op, 13, Attrs::new().with("axes", axes.clone()).with("keepdims", 0i64), &[x.clone()]);
        let out = if op == "ReduceSum" { run(op, 13, Attrs::new().with("keepdims", 0i64), &[x, Tensor::vector(axes)]) } else { out };
        assert_eq!(out.unwrap(), want, "{op}");
    }

    #[test]
    fn each_layout_reduces() {
        check("ReduceSum", vec![2], t(&[2, 3], vec![1f32, 5.0, 9.0, 13.0, 17.0, 21.0]));
        check("ReduceSum", vec![1], t(&[2, 2], vec![6f32, 9.0, 24.0, 27.0]));
        check("ReduceSum", vec![0, -1], t(&[3], vec![14f32, 22.0, 30.0]));
        check("ReduceMean", vec![0], t(&[3, 2], vec![3f32, 4.0, 5.0, 6.0, 7.0, 8.0]));
        check("ReduceMax", vec![0, 1, 2], t(&[], vec![11f32]));
        check("ReduceProd", vec![1, 2], t(&[2], vec![0f32, 332_640.0]));
    }

    #[test]
    fn empty_sets_give_the_identity() {
        let x = t::<f32>(&[2, 0, 2], vec![]);
        let attrs = Attrs::new().with("keepdims", 1i64);
        let axes = Tensor::vector(vec![1i64]);
        for (op, want) in [("ReduceSum", 0.0), ("ReduceProd", 1.0), ("ReduceMax", f32::NEG_INFINITY), ("ReduceLogSum", f32::NEG_INFINITY)] {
            assert_eq!(run(op, 18, attrs.clone(), &[x.clone(), axes.clone()]).unwrap(), t(&[2, 1, 2], vec![want; 4]), "{op}");
        }
    }

    #[test]
    fn noop_with_empty_axes_leaves_the_shape() {
        let x = t(&[2, 1], vec![1i32, 2]);
        let attrs = Attrs::new().with("noop_with_empty_axes", 1i64);
        assert_eq!(run("ReduceSum", 13, attrs, &[x.clone()]).unwrap(), x);
    }

    #[test]
    fn log_sum_exp_does_not_overflow() {
        let x = t(&[2, 2], vec![1000f32, 1000.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        let out = run("ReduceLogSumExp", 18, Attrs::new(), &[x, Tensor::vector(vec![1i64])]).unwrap();
        assert_eq!(out, t(&[2, 1], vec![1000.0 + std::f32::consts::LN_2, f32::NEG_INFINITY]));
    }

    #[test]
    fn long_rows_are_cut_at_fixed_places() {
        let x = t(&[1, 300_000], vec![1i64; 300_000]);
        assert_eq!(run("ReduceSum", 13, Attrs::new(), &[x]).unwrap().to_i64s().unwrap(), [300_000]);
        assert!(run("ReduceSum", 13, Attrs::new(), &[t(&[1], vec![1f32]), Tensor::vector(vec![3i64])]).is_err());
    }
}
