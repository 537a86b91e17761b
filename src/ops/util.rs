//! Small helpers that kernels share: axes, broadcasting iteration, parallel loops of fixed grain.

use super::OpError;
use crate::invalid;
use crate::tensor::{Element, Shape, broadcast_shapes, checked_len, strides};
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
pub fn map<T: Sync, U: Send>(x: &[T], f: impl Fn(&T) -> U + Sync + Send) -> Vec<U> {
    if x.len() < 2 * GRAIN { x.iter().map(f).collect() } else { x.par_iter().with_min_len(GRAIN).map(f).collect() }
}

/// Changes a vector in place, in parallel where it is long.
pub fn map_in_place<T: Send>(x: &mut [T], f: impl Fn(&mut T) + Sync + Send) {
    if x.len() < 2 * GRAIN { x.iter_mut().for_each(f) } else { x.par_iter_mut().with_min_len(GRAIN).for_each(f) }
}

/// Fills `out` in chunks of `chunk` elements, in parallel where it is long: `f(index of the chunk, chunk)`.
pub fn for_each_chunk<T: Send>(out: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    if chunk == 0 || out.is_empty() {
        return;
    }
    if out.len() < 2 * GRAIN {
        out.chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c));
    } else {
        out.par_chunks_mut(chunk).with_min_len(GRAIN.div_ceil(chunk)).enumerate().for_each(|(i, c)| f(i, c));
    }
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
