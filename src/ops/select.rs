//! Ops that choose elements by a condition or by the order of their values.

use super::gather::take_elements;
use super::movement::{Cell, Movement, Walk, moved, rows_per_chunk};
use super::util::{axis, broadcast, broadcast_strides, for_each_chunk, product};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, infer, one};
use crate::ir::Dim;
use crate::tensor::{DType, Element, Float, Number, Tensor, cast};
use crate::{dispatch, dispatch_float, dispatch_number, invalid, unsupported};
use std::cmp::Ordering;

const ARG: &[&str] = &["axis", "keepdims", "select_last_index"];

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("ArgMax", &[1, 11, 12, 13]).attrs(ARG).kernel(arg_max).infer(infer_arg),
    OpDef::new("ArgMin", &[1, 11, 12, 13]).attrs(ARG).kernel(arg_min).infer(infer_arg),
    OpDef::new("Hardmax", &[1, 11, 13]).attrs(&["axis"]).kernel(hardmax).infer(infer::same),
    OpDef::new("NonZero", &[9, 13]).kernel(non_zero).infer(infer_non_zero),
    OpDef::new("TopK", &[1, 10, 11, 24]).inputs(1, 2).outputs(2, 2).attrs(&["axis", "k", "largest", "sorted"]).kernel(top_k).infer(infer_top_k),
    OpDef::new("Where", &[9, 16]).inputs(3, 3).kernel(choose).infer(infer_choose),
];

/// The first source where the condition holds, else the second; each broadcast by its strides.
struct Choose<'a> {
    condition: &'a [bool],
    /// Sizes of the output's axes with the strides of condition, first and second.
    axes: Vec<(usize, [isize; 3])>,
}

impl Movement for Choose<'_> {
    fn run<T: Cell>(&self, src: &[&[T]], out: &mut [T]) {
        let (len, [c, x, y], outer) = match self.axes.split_last() {
            Some((&(len, by), outer)) => (len, by, outer),
            None => (1, [0; 3], &[][..]),
        };
        let rows = rows_per_chunk(len);
        for_each_chunk(out, rows * len, |chunk, out| {
            let mut walk = Walk::new(outer, [0; 3], chunk * rows);
            for row in out.chunks_mut(len) {
                let [mut i, mut j, mut k] = walk.at;
                for o in row {
                    *o = if self.condition[i as usize] { src[0][j as usize].clone() } else { src[1][k as usize].clone() };
                    (i, j, k) = (i + c, j + x, k + y);
                }
                walk.step();
            }
        });
    }
}

fn choose(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| {
        let (condition, x, y) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
        let shape = broadcast(&[condition.shape(), x.shape(), y.shape()])?;
        let by = [condition, x, y].map(|t| broadcast_strides(t.shape(), &shape));
        let mut axes: Vec<(usize, [isize; 3])> = Vec::new();
        for (d, &n) in shape.iter().enumerate().filter(|(_, n)| **n != 1) {
            let stride = [0, 1, 2].map(|k: usize| by[k][d] as isize);
            match axes.last_mut() {
                Some((m, s)) if (0..3).all(|k| s[k] == stride[k].wrapping_mul(n as isize)) => (*m, *s) = (m.wrapping_mul(n), stride),
                _ => axes.push((n, stride)),
            }
        }
        let condition = condition.to_slice::<bool>()?;
        one(moved(&Choose { condition: &condition, axes }, &[x, y], shape)?)
    }))
}

fn infer_choose(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dtype = cx.dtype(1).or(cx.dtype(2));
    let fact = Fact::partial(dtype, infer::broadcast_all(cx)?);
    // Choices between dims, as exporters write them for Expand and Reshape.
    let short = (0..3).all(|i| cx.rank(i).is_some_and(|r| r < 2)) && dtype.is_some_and(|d| d.is_int());
    let mask = cx.constant(0).and_then(|c| c.to_slice::<bool>().ok());
    if let (true, Some(mask), Some(x), Some(y)) = (short, mask, cx.dims(1), cx.dims(2)) {
        let n = [mask.len(), x.len(), y.len()].into_iter().find(|&n| n != 1).unwrap_or(1);
        if [mask.len(), x.len(), y.len()].iter().all(|&m| m == n || m == 1) {
            let at = |v: &[Dim], i: usize| v[if v.len() == 1 { 0 } else { i }].clone();
            let pick = |i| if mask[if mask.len() == 1 { 0 } else { i }] { at(&x, i) } else { at(&y, i) };
            return Ok(vec![fact.with_dims((0..n).map(pick).collect())]);
        }
    }
    Ok(vec![fact])
}

/// The order of numbers in which NaN is the greatest and equals itself.
pub(super) fn total<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    a.partial_cmp(b).unwrap_or_else(|| {
        let nan = |x: &T| x.partial_cmp(x).is_none();
        nan(a).cmp(&nan(b))
    })
}

/// A dim cut in three: outer positions, length along the axis, inner positions.
fn lanes(shape: &[usize], at: usize) -> (usize, usize, usize) {
    (product(&shape[..at]), shape[at], product(&shape[at + 1..]))
}

fn top_k(cx: &OpCtx) -> Result<Kernel, OpError> {
    let at = cx.attrs.int_or("axis", -1)?;
    let (fixed, largest) = (cx.attrs.int("k")?, cx.attrs.int_or("largest", 1)? != 0);
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let at = axis(at, data.rank())?;
        let k = match (args.opt_ints(1)?.as_deref(), fixed) {
            (Some([k]), _) => *k,
            (Some(other), _) => invalid!("k must be one element, found {}", other.len()),
            (None, Some(k)) => k,
            (None, None) => invalid!("input 1 is missing: expected a value, found none"),
        };
        let k = match usize::try_from(k) {
            Ok(k) if k <= data.shape()[at] => k,
            _ => invalid!("k is {k}, but axis {at} of {} has {}", data.shape(), data.shape()[at]),
        };
        let indices = dispatch_number!(data.dtype(), T => top_indices::<T>(data, at, k, largest)?, other => unsupported!("input 0 must be numbers, found {other}"));
        let values = take_elements(data, &indices, at as i64)?;
        Ok(Outputs::from_iter([values.into(), indices.into()]))
    }))
}

/// Positions of the `k` greatest (least) elements of each lane, in order; of equal ones the first come first.
fn top_indices<T: Number>(data: &Tensor, at: usize, k: usize, largest: bool) -> Result<Tensor, OpError> {
    let (_, n, inner) = lanes(data.shape(), at);
    let mut shape = data.shape().clone();
    shape[at] = k;
    let mut out = vec![0i64; crate::tensor::checked_len(&shape).unwrap_or(0)];
    let x = data.to_slice::<T>()?;
    if out.is_empty() {
        return Ok(Tensor::new(shape, out)?);
    }
    for_each_chunk(&mut out, k * inner, |o, out| {
        let mut order: Vec<usize> = Vec::with_capacity(n);
        for i in 0..inner {
            let value = |j: usize| &x[(o * n + j) * inner + i];
            let before = |a: &usize, b: &usize| {
                let by_value = total(value(*a), value(*b));
                if largest { by_value.reverse() } else { by_value }.then(a.cmp(b))
            };
            order.clear();
            order.extend(0..n);
            if k < n {
                order.select_nth_unstable_by(k, before);
                order.truncate(k);
            }
            order.sort_unstable_by(before);
            for (j, &p) in order.iter().enumerate() {
                out[j * inner + i] = p as i64;
            }
        }
    });
    Ok(Tensor::new(shape, out)?)
}

fn infer_top_k(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let k = match cx.op.attrs.int("k")? {
        Some(k) if !cx.has(1) => usize::try_from(k).map_or(Dim::Unknown, Dim::Known),
        _ => cx.dims(1).and_then(|d| d.first().cloned()).unwrap_or(Dim::Unknown),
    };
    let dims = match cx.shape(0) {
        Some(s) => {
            let mut dims = s.to_vec();
            dims[axis(cx.op.attrs.int_or("axis", -1)?, s.len())?] = k;
            Some(dims)
        }
        None => None,
    };
    Ok(vec![Fact::partial(cx.dtype(0), dims.clone()), Fact::partial(Some(DType::I64), dims)])
}

fn arg_max(cx: &OpCtx) -> Result<Kernel, OpError> {
    arg(cx, Ordering::Greater)
}

fn arg_min(cx: &OpCtx) -> Result<Kernel, OpError> {
    arg(cx, Ordering::Less)
}

fn arg(cx: &OpCtx, better: Ordering) -> Result<Kernel, OpError> {
    let at = cx.attrs.int_or("axis", 0)?;
    let (keep, last) = (cx.attrs.int_or("keepdims", 1)? != 0, cx.attrs.int_or("select_last_index", 0)? != 0);
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        // A scalar is a vector of one element.
        let at = if data.rank() == 0 && (at == 0 || at == -1) { None } else { Some(axis(at, data.rank())?) };
        let mut shape = data.shape().clone();
        let Some(at) = at else { return one(Tensor::scalar(0i64)) };
        shape[at] = 1;
        if data.shape()[at] == 0 && crate::tensor::checked_len(&shape) != Some(0) {
            invalid!("axis {at} of {} is empty", data.shape());
        }
        let (_, n, inner) = lanes(data.shape(), at);
        let found = dispatch_number!(data.dtype(), T => arg_indices::<T>(data, n, inner, better, last)?, other => unsupported!("input 0 must be numbers, found {other}"));
        if !keep {
            shape.remove(at);
        }
        one(Tensor::new(shape, found)?)
    }))
}

/// The position of the extreme of each lane; NaN counts as the extreme, as in numpy.
fn arg_indices<T: Number>(data: &Tensor, n: usize, inner: usize, better: Ordering, last: bool) -> Result<Vec<i64>, OpError> {
    let x = data.to_slice::<T>()?;
    if x.is_empty() {
        return Ok(Vec::new());
    }
    let wins = |new: &T, best: &T| match new.partial_cmp(best) {
        Some(Ordering::Equal) => last,
        Some(o) => o == better,
        None => new.partial_cmp(new).is_none() && (last || best.partial_cmp(best).is_some()),
    };
    let mut out = vec![0i64; x.len() / n];
    // Chunks of whole outer positions that hold enough elements.
    let outer = rows_per_chunk(n * inner);
    for_each_chunk(&mut out, outer * inner, |c, out| {
        for (o, out) in out.chunks_mut(inner).enumerate() {
            let lane = &x[(c * outer + o) * n * inner..][..n * inner];
            let mut best = lane[..inner].to_vec();
            for (j, row) in lane.chunks(inner).enumerate().skip(1) {
                for ((b, new), at) in best.iter_mut().zip(row).zip(out.iter_mut()) {
                    if wins(new, b) {
                        (*b, *at) = (*new, j as i64);
                    }
                }
            }
        }
    });
    Ok(out)
}

fn infer_arg(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dims = match cx.shape(0) {
        Some([]) => Some(Vec::new()),
        Some(s) => {
            let mut dims = s.to_vec();
            let at = axis(cx.op.attrs.int_or("axis", 0)?, s.len())?;
            dims[at] = Dim::Known(1);
            if cx.op.attrs.int_or("keepdims", 1)? == 0 {
                dims.remove(at);
            }
            Some(dims)
        }
        None => None,
    };
    Ok(vec![Fact::partial(Some(DType::I64), dims)])
}

fn hardmax(cx: &OpCtx) -> Result<Kernel, OpError> {
    let flat = cx.version < 13;
    let at = cx.attrs.int_or("axis", if flat { 1 } else { -1 })?;
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let (n, inner) = if flat {
            let at = if at == data.rank() as i64 { data.rank() } else { axis(at, data.rank())? };
            (product(&data.shape()[at..]), 1)
        } else {
            let (_, n, inner) = lanes(data.shape(), axis(at, data.rank())?);
            (n, inner)
        };
        one(dispatch_float!(data.dtype(), T => hot::<T>(data, n, inner)?, other => invalid!("expected floats, found {other}")))
    }))
}

fn hot<T: Float>(data: &Tensor, n: usize, inner: usize) -> Result<Tensor, OpError> {
    let found = arg_indices::<T>(data, n, inner, Ordering::Greater, false)?;
    let mut out = vec![T::ZERO; data.len()];
    for (lane, &j) in found.iter().enumerate() {
        out[(lane / inner * n + j as usize) * inner + lane % inner] = T::ONE;
    }
    Ok(Tensor::new(data.shape(), out)?)
}

/// Which elements are not zero (or not empty).
fn marks(t: &Tensor) -> Result<Vec<bool>, OpError> {
    fn differ<T: Element>(t: &Tensor) -> Result<Vec<bool>, OpError> {
        let zero = T::default();
        Ok(t.to_slice::<T>()?.iter().map(|x| *x != zero).collect())
    }
    match t.dtype() {
        d if d.bits() < 8 && d != DType::String => differ::<f32>(&cast(t, DType::F32)?),
        // The small floats have two zeros, and none of theirs is the default byte of E8M0.
        d if d.size() == Some(1) && d.is_float() => differ::<f32>(&cast(t, DType::F32)?),
        d => dispatch!(d, T => differ::<T>(t)),
    }
}

fn non_zero(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| {
        let data = args.tensor(0)?;
        let places: Vec<usize> = marks(data)?.iter().enumerate().filter(|(_, m)| **m).map(|(i, _)| i).collect();
        let by = crate::tensor::strides(data.shape());
        let mut out = Vec::with_capacity(places.len() * data.rank());
        for (d, n) in data.shape().iter().enumerate() {
            out.extend(places.iter().map(|p| (p / by[d] % n) as i64));
        }
        one(Tensor::new([data.rank(), places.len()], out)?)
    }))
}

fn infer_non_zero(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::tensor(DType::I64, [cx.rank(0).map_or(Dim::Unknown, Dim::Known), Dim::Unknown])])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::{run, run_values};

    fn floats(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    fn ints(v: &[i64]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    #[test]
    fn where_broadcasts_all_three() {
        let c = Tensor::new([2, 1], vec![true, false]).unwrap();
        let x = Tensor::vector(["a", "b"].map(str::to_owned).to_vec());
        let out = run("Where", 16, Attrs::new(), &[c, x, Tensor::scalar("c".to_owned())]).unwrap();
        assert_eq!(out, Tensor::new([2, 2], ["a", "b", "c", "c"].map(str::to_owned).to_vec()).unwrap());
    }

    #[test]
    fn where_picks_by_element_in_long_rows() {
        let n = 100_000;
        let c = Tensor::vector((0..n).map(|i| i % 3 == 0).collect());
        let x = Tensor::vector((0..n).collect::<Vec<i32>>());
        let out = run("Where", 16, Attrs::new(), &[c, x, Tensor::scalar(-1i32)]).unwrap().into_vec::<i32>().unwrap();
        assert!(out.iter().enumerate().all(|(i, &v)| v == if i % 3 == 0 { i as i32 } else { -1 }));
    }

    #[test]
    fn top_k_orders_and_breaks_ties_by_position() {
        let top = |largest: i64, k: i64| {
            let x = floats(&[5], &[1.0, f32::NAN, 3.0, 1.0, 3.0]);
            let attrs = Attrs::new().with("largest", largest);
            let out = run_values("TopK", 11, attrs, vec![Some(x.into()), Some(ints(&[k]).into())], 2)?;
            Ok::<_, OpError>(out[1].as_tensor().unwrap().clone())
        };
        assert_eq!(top(1, 4).unwrap(), ints(&[1, 2, 4, 0]));
        assert_eq!(top(0, 3).unwrap(), ints(&[0, 3, 2]));
        assert_eq!(top(1, 0).unwrap(), ints(&[]));
        assert!(top(1, 6).is_err());
        assert!(top(1, -1).is_err());
    }

    #[test]
    fn top_k_runs_along_any_axis() {
        let x = floats(&[3, 2], &[1.0, 6.0, 5.0, 2.0, 3.0, 4.0]);
        let out = run_values("TopK", 1, Attrs::new().with("axis", 0).with("k", 2), vec![Some(x.into())], 2).unwrap();
        assert_eq!(out[0], floats(&[2, 2], &[5.0, 6.0, 3.0, 4.0]).into());
    }

    #[test]
    fn arg_max_takes_the_first_or_last_of_equals() {
        let x = floats(&[2, 3], &[2.0, 2.0, 1.0, 0.0, f32::NAN, 9.0]);
        let of = |op: &str, last: i64| {
            let attrs = Attrs::new().with("axis", 1).with("keepdims", 0).with("select_last_index", last);
            run(op, 12, attrs, std::slice::from_ref(&x)).unwrap()
        };
        assert_eq!(of("ArgMax", 0), ints(&[0, 1]));
        assert_eq!(of("ArgMax", 1), ints(&[1, 1]));
        assert_eq!(of("ArgMin", 0), ints(&[2, 1]));
        assert!(run("ArgMax", 13, Attrs::new(), &[floats(&[0, 2], &[])]).is_err());
    }

    #[test]
    fn hardmax_marks_the_first_maximum() {
        let x = floats(&[2, 2], &[1.0, 1.0, 0.0, 2.0]);
        assert_eq!(run("Hardmax", 13, Attrs::new(), std::slice::from_ref(&x)).unwrap(), floats(&[2, 2], &[1.0, 0.0, 0.0, 1.0]));
        assert_eq!(run("Hardmax", 11, Attrs::new().with("axis", 0), &[x]).unwrap(), floats(&[2, 2], &[0.0, 0.0, 0.0, 1.0]));
    }

    #[test]
    fn non_zero_lists_coordinates_by_axis() {
        let x = Tensor::new([2, 2], vec![true, false, true, true]).unwrap();
        assert_eq!(run("NonZero", 13, Attrs::new(), &[x]).unwrap(), Tensor::new([2, 3], vec![0i64, 1, 1, 0, 0, 1]).unwrap());
        assert_eq!(run("NonZero", 13, Attrs::new(), &[Tensor::scalar(5f32)]).unwrap().shape().to_i64s(), [0, 1]);
    }
}
