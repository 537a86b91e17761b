//! Small helpers that kernels share: axes, broadcasting iteration, parallel loops of fixed grain.

use super::{OpError, threads};
use crate::invalid;
use crate::tensor::{DType, Element, Shape, Tensor, broadcast_shapes, cast, checked_len, fits_memory, room as recycled, strides};
use ndarray::{ArrayViewMut2, Axis};
use rayon::prelude::*;

/// Elements below which a loop is not worth a second thread. Fixed, so that the thread count never changes a result.
pub const GRAIN: usize = 16 * 1024;

/// An axis in `-rank..rank` as a position.
///
/// # Errors
/// An axis out of range.
pub fn axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let r = rank as i64;
    if (-r..r).contains(&axis) {
        Ok(if axis < 0 { axis + r } else { axis } as usize)
    } else {
        invalid!("axis {axis} is out of range for rank {rank}")
    }
}

/// Axes as sorted positions.
///
/// # Errors
/// One out of range, or the same twice.
pub fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    let mut out = list.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    out.sort_unstable();
    if out.windows(2).any(|w| w[0] == w[1]) {
        invalid!("an axis is repeated in {list:?}");
    }
    Ok(out)
}

/// An index in `-n..n` as a position.
pub fn position(index: i64, n: usize) -> Option<usize> {
    let n = n as i64;
    (-n..n).contains(&index).then_some(if index < 0 { index + n } else { index } as usize)
}

/// The number of positions of some dims of a tensor. It may wrap where another dim is 0, for then there are no elements.
pub fn product(dims: &[usize]) -> usize {
    dims.iter().fold(1, |n, &d| usize::wrapping_mul(n, d))
}

/// The shape that all broadcast to.
///
/// # Errors
/// Shapes that do not fit.
pub fn broadcast(shapes: &[&[usize]]) -> Result<Shape, OpError> {
    let mut out = Shape::default();
    for s in shapes {
        match broadcast_shapes(&out, s) {
            Some(x) => out = x,
            None => invalid!("shapes {} and {} do not broadcast", out, Shape::from(*s)),
        }
    }
    Ok(out)
}

/// Strides with which a tensor of shape `from` is read as if it had shape `to`: 0 along broadcast axes.
pub fn broadcast_strides(from: &[usize], to: &[usize]) -> Vec<usize> {
    let s = strides(from);
    let pad = to.len() - from.len();
    (0..to.len()).map(|i| if i < pad || from[i - pad] == 1 { 0 } else { s[i - pad] }).collect()
}

/// Calls `f(offsets)` for each position of `shape` but the last axis, in row-major order, where `offsets[k]` is the
/// position in the operand whose strides are `strides[k]`.
pub fn for_each_row(shape: &[usize], operand_strides: &[Vec<usize>], mut f: impl FnMut(usize, &[usize])) {
    let outer = &shape[..shape.len().saturating_sub(1)];
    let rows: usize = outer.iter().product();
    let mut index = vec![0usize; outer.len()];
    let mut offsets = vec![0usize; operand_strides.len()];
    for row in 0..rows {
        f(row, &offsets);
        for d in (0..outer.len()).rev() {
            index[d] += 1;
            for (o, s) in offsets.iter_mut().zip(operand_strides) {
                *o += s[d];
            }
            if index[d] < outer[d] {
                break;
            }
            for (o, s) in offsets.iter_mut().zip(operand_strides) {
                *o -= s[d] * outer[d];
            }
            index[d] = 0;
        }
    }
}

/// Maps a slice, in parallel where it is long.
pub fn map<T: Sync, U: Send + Clone + Default>(x: &[T], f: impl Fn(&T) -> U + Sync + Send) -> Vec<U> {
    if x.len() < 2 * GRAIN {
        return x.iter().map(f).collect();
    }
    let mut out = vec![U::default(); x.len()];
    for_each_chunk(&mut out, GRAIN, |i, part| part.iter_mut().zip(&x[i * GRAIN..]).for_each(|(o, x)| *o = f(x)));
    out
}

/// Changes a vector in place, in parallel where it is long.
pub fn map_in_place<T: Send>(x: &mut [T], f: impl Fn(&mut T) + Sync + Send) {
    for_each_chunk(x, GRAIN, |_, part| part.iter_mut().for_each(&f));
}

/// Fills `out` in chunks of `chunk` elements, in parallel where it is long: `f(index of the chunk, chunk)`.
pub fn for_each_chunk<T: Send>(out: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    if chunk == 0 || out.is_empty() {
        return;
    }
    if out.len() < 2 * GRAIN {
        out.chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c));
    } else {
        chunks_in_parallel(out, chunk, GRAIN.div_ceil(chunk), &f);
    }
}

/// The parallel loop over chunks, at least `least` to a task. It is compiled once per element type and not once per
/// caller: the machinery of the pool is large.
pub fn chunks_in_parallel<T: Send>(out: &mut [T], chunk: usize, least: usize, f: &(dyn Fn(usize, &mut [T]) + Sync + Send)) {
    if !threads::shared() {
        return out.chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c));
    }
    out.par_chunks_mut(chunk).with_min_len(least).enumerate().for_each(|(i, c)| f(i, c));
}

/// Zeros (or empty strings) for a tensor of `shape`; memory that is not to be had is an error, not an abort.
///
/// # Errors
/// A size that fits no memory.
pub fn zeros<T: Element>(shape: &[usize]) -> Result<Vec<T>, OpError> {
    let Some(len) = checked_len(shape) else { invalid!("shape {} is too large", Shape::from(shape)) };
    // The reservation only asks; the vector itself then comes zeroed from the system.
    if Vec::<T>::new().try_reserve_exact(len).is_err() {
        invalid!("shape {} does not fit memory", Shape::from(shape));
    }
    Ok(vec![T::default(); len])
}

/// Elements of any value for a tensor of `shape`, all of which the caller writes.
///
/// # Errors
/// A size that fits no memory.
pub fn room<T: Element>(shape: &[usize]) -> Result<Vec<T>, OpError> {
    match checked_len(shape).and_then(recycled) {
        Some(found) => Ok(found),
        None => zeros(shape),
    }
}

/// The tensor in the type in which floats are computed: halves as `float32`, the others as they are.
///
/// # Errors
/// The tensor is a stand-in.
pub fn widen(t: &Tensor) -> Result<Tensor, OpError> {
    match t.dtype() {
        DType::F16 | DType::BF16 => Ok(cast(t, DType::F32)?),
        _ => Ok(t.clone().aligned()),
    }
}

/// Runs an expression with `$t` bound to `f32` or `f64`: for kernels whose halves are widened (see [`widen`]).
#[macro_export]
macro_rules! dispatch_wide {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::tensor::DType::F64 => {
                type $t = f64;
                $body
            }
            other => $crate::invalid!("expected floating-point elements, found {other}"),
        }
    };
}

/// The floats that are computed in: `f32` for itself and the halves, `f64` for itself. Tensors are cast on the way in and out.
pub trait Real: crate::tensor::Element + num_traits::Float + std::iter::Sum + ndarray::LinalgScalar {
    /// The nearest value.
    fn of(x: f64) -> Self;
    /// As `f64`.
    fn wide(self) -> f64;
}

impl Real for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }
    fn wide(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn wide(self) -> f64 {
        self
    }
}

/// The dtype of the [`Real`] that a float dtype is computed in.
///
/// # Errors
/// No float of 16 bits or more.
pub fn real_dtype(dtype: DType) -> Result<DType, OpError> {
    match dtype {
        DType::F16 | DType::BF16 | DType::F32 => Ok(DType::F32),
        DType::F64 => Ok(DType::F64),
        other => invalid!("expected float16, bfloat16, float32 or float64, found {other}"),
    }
}

/// A vector of `len` values; memory that is not there is an error.
///
/// # Errors
/// It does not fit.
pub fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>, OpError> {
    let bytes = len.checked_mul(size_of::<T>());
    if !bytes.is_some_and(fits_memory) {
        invalid!("{len} elements do not fit memory");
    }
    Ok(vec![value; len])
}

/// The product of dims as a length.
///
/// # Errors
/// It does not fit the address space.
pub fn checked_product(dims: &[usize]) -> Result<usize, OpError> {
    match checked_len(dims) {
        Some(n) => Ok(n),
        None => invalid!("shape {} is too large", Shape::from(dims)),
    }
}

/// `[rows, columns]` cut into tiles of at most `m` rows and `n` columns, each with its first row and column.
pub fn tiles<T>(mut whole: ArrayViewMut2<T>, m: usize, n: usize) -> Vec<(usize, usize, ArrayViewMut2<T>)> {
    let mut out = Vec::new();
    let mut row = 0;
    while whole.nrows() > 0 && whole.ncols() > 0 {
        let height = m.min(whole.nrows());
        let (mut top, rest) = whole.split_at(Axis(0), height);
        let mut column = 0;
        while top.ncols() > 0 {
            let width = n.min(top.ncols());
            let (left, right) = top.split_at(Axis(1), width);
            out.push((row, column, left));
            column += width;
            top = right;
        }
        row += height;
        whole = rest;
    }
    out
}

/// Runs tasks in parallel, one alone in place.
///
/// # Errors
/// That of a task.
pub fn run_all<T: Send>(mut tasks: Vec<T>, f: impl Fn(T) -> Result<(), OpError> + Sync + Send) -> Result<(), OpError> {
    match tasks.pop() {
        None => Ok(()),
        Some(only) if tasks.is_empty() => f(only),
        Some(last) => {
            tasks.push(last);
            if !threads::shared() {
                return tasks.into_iter().try_for_each(f);
            }
            tasks.into_par_iter().try_for_each(f)
        }
    }
}
