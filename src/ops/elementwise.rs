//! Loops over elements: of one tensor, or of two that broadcast. Storage that nobody else holds is re-used, and long
//! loops run in parallel in pieces whose sizes do not depend on the number of threads.

use super::infer::{InferCtx, broadcast_all};
use super::util::{self, GRAIN, broadcast_strides, room};
use super::{Fact, Kernel, OpCtx, OpError, one, rows};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{DType, Element, Shape, Tensor};

/// A tensor of the same dtype with `f` of each element.
pub fn map<T: Element + Copy>(t: Tensor, f: impl Fn(T) -> T + Sync + Send) -> Result<Tensor, OpError> {
    if !t.is_unique() {
        return map_to(&t, f);
    }
    let shape = t.shape().clone();
    let mut data = t.into_vec::<T>()?;
    util::for_each_chunk(&mut data, GRAIN, |_, part| rows::simd(|| part.iter_mut().for_each(|x| *x = f(*x))));
    Ok(Tensor::new(shape, data)?)
}

/// A tensor of another dtype with `f` of each element.
pub fn map_to<T: Element + Copy, U: Element>(t: &Tensor, f: impl Fn(T) -> U + Sync + Send) -> Result<Tensor, OpError> {
    let data = t.to_slice::<T>()?;
    let mut out = room::<U>(t.shape())?;
    util::for_each_chunk(&mut out, GRAIN, |i, part| {
        rows::simd(|| part.iter_mut().zip(&data[i * GRAIN..]).for_each(|(o, x)| *o = f(*x)));
    });
    Ok(Tensor::new(t.shape(), out)?)
}

/// `f` of each pair of elements; the operands broadcast.
pub fn zip<T: Element + Copy>(a: Tensor, b: Tensor, f: impl Fn(T, T) -> T + Sync + Send) -> Result<Tensor, OpError> {
    let shape = util::broadcast(&[a.shape(), b.shape()])?;
    if *a.shape() == shape && a.is_unique() {
        let mut out = a.into_vec::<T>()?;
        fold(&mut out, &shape, &b, f)?;
        return Ok(Tensor::new(shape, out)?);
    }
    if *b.shape() == shape && b.is_unique() {
        let mut out = b.into_vec::<T>()?;
        fold(&mut out, &shape, &a, |y, x| f(x, y))?;
        return Ok(Tensor::new(shape, out)?);
    }
    zip_to(&a, &b, |x: &T, y: &T| f(*x, *y))
}

/// `f` of each pair of elements, as another dtype; the operands broadcast.
pub fn zip_to<T: Element, U: Element + Copy>(a: &Tensor, b: &Tensor, f: impl Fn(&T, &T) -> U + Sync + Send) -> Result<Tensor, OpError> {
    let shape = util::broadcast(&[a.shape(), b.shape()])?;
    let (x, y) = (a.to_slice::<T>()?, b.to_slice::<T>()?);
    let mut out = room::<U>(&shape)?;
    let walk = Walk::new(&shape, [a.shape(), b.shape()]);
    let [step_x, step_y] = walk.steps();
    walk.rows(&mut out, |row, [i, j]| match (step_x, step_y) {
        (1, 1) => row.iter_mut().zip(&x[i..]).zip(&y[j..]).for_each(|((o, x), y)| *o = f(x, y)),
        (1, _) => row.iter_mut().zip(&x[i..]).for_each(|(o, x)| *o = f(x, &y[j])),
        (_, 1) => row.iter_mut().zip(&y[j..]).for_each(|(o, y)| *o = f(&x[i], y)),
        _ => row.fill(f(&x[i], &y[j])),
    });
    Ok(Tensor::new(shape, out)?)
}

/// `f` of each element of `out` and `b`, in place; `b` broadcasts to `shape`.
fn fold<T: Element + Copy>(out: &mut [T], shape: &Shape, b: &Tensor, f: impl Fn(T, T) -> T + Sync + Send) -> Result<(), OpError> {
    let y = b.to_slice::<T>()?;
    let walk = Walk::new(shape, [b.shape()]);
    let [step] = walk.steps();
    walk.rows(out, |row, [j]| {
        if step == 1 {
            row.iter_mut().zip(&y[j..]).for_each(|(o, y)| *o = f(*o, *y));
        } else {
            let y = y[j];
            row.iter_mut().for_each(|o| *o = f(*o, y));
        }
    });
    Ok(())
}

/// How operands that broadcast are read along with a dense output. Neighbouring dims along which every operand keeps its
/// pace are merged, so equal shapes are one row.
struct Walk<const N: usize> {
    dims: Vec<usize>,
    strides: Vec<[usize; N]>,
}

impl<const N: usize> Walk<N> {
    fn new(shape: &[usize], operands: [&[usize]; N]) -> Self {
        let each = operands.map(|o| broadcast_strides(o, shape));
        let mut walk = Self { dims: Vec::new(), strides: Vec::new() };
        for (d, &dim) in shape.iter().enumerate().filter(|(_, dim)| **dim != 1) {
            let stride: [usize; N] = std::array::from_fn(|k| each[k][d]);
            match (walk.dims.last_mut(), walk.strides.last_mut()) {
                // An empty output is not walked, so a product that wraps is of no account.
                (Some(last), Some(outer)) if (0..N).all(|k| outer[k] == stride[k].wrapping_mul(dim)) => {
                    *last = last.wrapping_mul(dim);
                    *outer = stride;
                }
                _ => {
                    walk.dims.push(dim);
                    walk.strides.push(stride);
                }
            }
        }
        walk
    }

    /// How far each operand moves from one element of a row to the next: 0 or 1.
    fn steps(&self) -> [usize; N] {
        self.strides.last().copied().unwrap_or([0; N])
    }

    /// Calls `f(part of a row, positions of the operands at its start)` until `out` is filled.
    fn rows<U: Send>(&self, out: &mut [U], f: impl Fn(&mut [U], [usize; N]) + Sync + Send) {
        if out.is_empty() {
            return;
        }
        let Some((&inner, outer)) = self.dims.split_last() else { return f(out, [0; N]) };
        let steps = self.steps();
        if outer.is_empty() {
            util::for_each_chunk(out, GRAIN, |i, part| f(part, steps.map(|s| i * GRAIN * s)));
            return;
        }
        let rows = (GRAIN / inner).max(1);
        util::for_each_chunk(out, rows * inner, |i, block| {
            let (mut index, mut at) = self.position(i * rows);
            for row in block.chunks_mut(inner) {
                f(row, at);
                self.advance(&mut index, &mut at);
            }
        });
    }

    /// Index and operand positions of row `row`.
    fn position(&self, mut row: usize) -> (Vec<usize>, [usize; N]) {
        let mut index = vec![0; self.dims.len() - 1];
        let mut at = [0; N];
        for d in (0..index.len()).rev() {
            index[d] = row % self.dims[d];
            row /= self.dims[d];
            at = std::array::from_fn(|k| at[k] + index[d] * self.strides[d][k]);
        }
        (index, at)
    }

    /// On to the next row.
    fn advance(&self, index: &mut [usize], at: &mut [usize; N]) {
        for d in (0..index.len()).rev() {
            index[d] += 1;
            *at = std::array::from_fn(|k| at[k] + self.strides[d][k]);
            if index[d] < self.dims[d] {
                return;
            }
            *at = std::array::from_fn(|k| at[k] - self.strides[d][k] * self.dims[d]);
            index[d] = 0;
        }
    }
}

/// The kernel of a binary op; before opset 7, `broadcast` and `axis` place the second operand.
pub fn binary(cx: &OpCtx, f: impl Fn(Tensor, Tensor) -> Result<Tensor, OpError> + Send + Sync + 'static) -> Result<Kernel, OpError> {
    let legacy = legacy_broadcast(cx)?;
    let axis = cx.attrs.int("axis")?;
    Ok(Box::new(move |mut args| {
        let (a, mut b) = (args.take(0)?, args.take(1)?);
        if legacy {
            b = place(b, a.rank(), axis)?;
            if util::broadcast(&[a.shape(), b.shape()])? != *a.shape() {
                invalid!("{} does not broadcast to {}", b.shape(), a.shape());
            }
        }
        one(f(a, b)?)
    }))
}

/// Whether the op broadcasts in the way that was before opset 7.
fn legacy_broadcast(cx: &OpCtx) -> Result<bool, OpError> {
    Ok(cx.version < 7 && cx.attrs.int_or("broadcast", 0)? != 0)
}

/// `b` with dims of 1 behind its own, so that these stand at `axis` of an operand of rank `rank`.
fn place(b: Tensor, rank: usize, axis: Option<i64>) -> Result<Tensor, OpError> {
    if b.len() == 1 {
        return Ok(b.reshape(Shape::default())?);
    }
    let Some(axis) = axis else { return Ok(b) };
    let axis = util::axis(axis, rank)?;
    if axis + b.rank() > rank {
        invalid!("dims {} do not fit behind axis {axis} of rank {rank}", b.shape());
    }
    let shape = Shape::from_dims(b.shape().iter().copied().chain(std::iter::repeat_n(1, rank - axis - b.rank())));
    Ok(b.reshape(shape)?)
}

/// The broadcast shape of both inputs of a binary op of any version.
fn pair_shape(cx: &InferCtx) -> Result<Option<Vec<Dim>>, OpError> {
    if legacy_broadcast(&cx.op)? { Ok(cx.shape(0).map(<[Dim]>::to_vec)) } else { broadcast_all(cx) }
}

/// A binary op has the dtype of its first input, and both inputs' broadcast shape.
pub fn infer_binary(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(cx.dtype(0), pair_shape(cx)?)])
}

/// A comparison is bool, in both inputs' broadcast shape.
pub fn infer_compare(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(Some(DType::Bool), pair_shape(cx)?)])
}

/// The dtype of both operands.
///
/// # Errors
/// They differ.
pub fn same_dtype(a: &Tensor, b: &Tensor) -> Result<DType, OpError> {
    if a.dtype() == b.dtype() { Ok(a.dtype()) } else { invalid!("inputs must have one dtype, found {} and {}", a.dtype(), b.dtype()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds by `zip`, with and without storage that may be re-used, and compares with an index by index sum.
    fn check(a: &[usize], b: &[usize]) {
        let make = |shape: &[usize], from: i64| {
            let len = shape.iter().product::<usize>() as i64;
            Tensor::new(shape, (from..from + len).collect::<Vec<i64>>()).unwrap()
        };
        let (x, y) = (make(a, 0), make(b, 1000));
        let expected = (&x.view::<i64>().unwrap() * 7 + y.view::<i64>().unwrap()).into_dyn();
        let expected = Tensor::from_array(expected);
        let f = |p: i64, q: i64| p * 7 + q;
        assert_eq!(zip(x.clone(), y.clone(), f).unwrap(), expected, "{a:?} {b:?} shared");
        assert_eq!(zip(make(a, 0), y, f).unwrap(), expected, "{a:?} {b:?} left");
        assert_eq!(zip(x, make(b, 1000), f).unwrap(), expected, "{a:?} {b:?} right");
    }

    #[test]
    fn operands_broadcast_in_every_way() {
        check(&[], &[]);
        check(&[2, 3], &[2, 3]);
        check(&[2, 3], &[]);
        check(&[2, 3], &[3]);
        check(&[2, 3, 4], &[3, 1]);
        check(&[1, 3, 1], &[4]);
        check(&[2, 1, 4], &[2, 3, 1]);
        check(&[2, 0, 3], &[1]);
        check(&[3, 1, 5, 1], &[2, 1, 4]);
        check(&[300, 200], &[200]);
        check(&[300, 200], &[300, 1]);
        check(&[70_000], &[70_000]);
        check(&[70_000], &[1]);
        check(&[2, 50_000], &[2, 1]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (a, b) = (Tensor::vector(vec![1i64, 2]), Tensor::vector(vec![1i64, 2, 3]));
        let found = zip(a, b, |x: i64, _| x).unwrap_err().to_string();
        assert_eq!(found, "shapes [2] and [3] do not broadcast");
    }

    #[test]
    fn an_output_that_fits_no_memory_is_refused() {
        let a = Tensor::full([1 << 20, 1], 0u8).unwrap();
        let b = Tensor::full([1 << 20], 0u8).unwrap();
        let (a, b) = (a.reshape([1 << 20, 1, 1]).unwrap(), b.reshape([1 << 20, 1]).unwrap());
        let c = zip_to(&a, &b, |_: &u8, _: &u8| crate::tensor::Complex64::default());
        assert!(c.is_err() || cfg!(not(target_os = "linux")));
    }
}
