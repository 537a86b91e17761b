//! DeformConv: each element of the kernel is moved by an offset and read by linear interpolation.

use super::forward::start;
use super::{Sizes, Spec, add_mul, bias, count, real, view, view_mut};
use crate::invalid;
use crate::ops::util::{Real, checked_product, filled, real_dtype, run_all, tiles};
use crate::ops::window::{advance, unravel};
use crate::ops::{Args, Kernel, OpCtx, OpError, Outputs, one};
use crate::tensor::{DType, Tensor, cast};

pub(super) fn build(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = Spec::read(cx.attrs)?;
    let offset_groups = count(cx.attrs, "offset_group")?;
    Ok(Box::new(move |args| match real_dtype(args.tensor(0)?.dtype())? {
        DType::F64 => run::<f64>(&spec, offset_groups, &args),
        _ => run::<f32>(&spec, offset_groups, &args),
    }))
}

fn run<T: Real>(spec: &Spec, offset_groups: usize, args: &Args) -> Result<Outputs, OpError> {
    let dtype = args.tensor(0)?.dtype();
    let (x, w, offset) = (real::<T>(args, 0, dtype)?, real::<T>(args, 1, dtype)?, real::<T>(args, 2, dtype)?);
    let sizes = Sizes::new(spec, x.shape(), w.shape())?;
    let channels = sizes.groups * sizes.inputs;
    if !channels.is_multiple_of(offset_groups) {
        invalid!("{channels} channels do not split into {offset_groups} offset groups");
    }
    let (rank, taps, positions, plane) = (sizes.axes.len(), sizes.taps(), sizes.positions(), sizes.plane());
    let expect = |i: usize, t: &Tensor, per_tap: usize| {
        let mut shape = vec![sizes.batch, checked_product(&[offset_groups, taps, per_tap])?];
        shape.extend(&sizes.shape()[2..]);
        if **t.shape() != *shape {
            invalid!("input {i}: expected shape {shape:?}, found {}", t.shape());
        }
        Ok(())
    };
    expect(2, &offset, rank)?;
    let mask = args.opt(4)?.map(|_| real::<T>(args, 4, dtype)).transpose()?;
    mask.as_ref().map_or(Ok(()), |m| expect(4, m, 1))?;
    let bias = bias::<T>(args, 3, dtype, sizes.groups * sizes.outputs)?;
    let mut y = start(&sizes, bias.as_deref())?;
    if y.is_empty() || channels == 0 {
        return one(cast(&Tensor::new(sizes.shape(), y)?, dtype)?);
    }
    let (xs, ws, offsets) = (x.as_slice::<T>()?, w.as_slice::<T>()?, offset.as_slice::<T>()?);
    let mask = mask.as_ref().map(|m| m.as_slice::<T>()).transpose()?;
    let (indices, dims, strides) = (sizes.tap_indices(), sizes.input_dims(), sizes.input_strides());
    let out_dims = sizes.shape()[2..].to_vec();
    let mut tasks = Vec::new();
    for (i, part) in y.chunks_mut(sizes.outputs * positions).enumerate() {
        let columns = (256 * 1024 / (sizes.inputs * taps)).clamp(16, 4096);
        tasks.extend(tiles(view_mut((sizes.outputs, positions), part)?, sizes.outputs, columns).into_iter().map(|t| (i, t)));
    }
    run_all(tasks, |(i, (_, column, mut out))| {
        let (n, group, width) = (i / sizes.groups, i % sizes.groups, out.ncols());
        let depth = sizes.inputs * taps;
        let mut block = filled(checked_product(&[depth, width])?, T::zero())?;
        let mut place = vec![T::zero(); rank];
        for c in 0..sizes.inputs {
            let channel = group * sizes.inputs + c;
            let plane = &xs[(n * channels + channel) * plane..][..plane];
            let at_group = n * offset_groups + channel / (channels / offset_groups);
            for (t, k) in indices.iter().enumerate() {
                let row = &mut block[(c * taps + t) * width..][..width];
                let mut index = unravel(column, &out_dims);
                for (j, value) in row.iter_mut().enumerate() {
                    for (d, a) in sizes.axes.iter().enumerate() {
                        let moved = offsets[((at_group * taps + t) * rank + d) * positions + column + j];
                        place[d] = T::of((a.start(index[d]) + (k[d] * a.dilation) as i64) as f64) + moved;
                    }
                    let weight = mask.map_or(T::one(), |m| m[(at_group * taps + t) * positions + column + j]);
                    *value = weight * linear(plane, &dims, &strides, &place);
                    advance(&mut index, &out_dims);
                }
            }
        }
        let weights = view((sizes.outputs, depth), &ws[group * sizes.outputs * depth..][..sizes.outputs * depth])?;
        add_mul(&weights, &view((depth, width), &block)?, &mut out);
        Ok(())
    })?;
    one(cast(&Tensor::new(sizes.shape(), y)?, dtype)?)
}

/// The value at a place between elements; outside there are zeros.
fn linear<T: Real>(plane: &[T], dims: &[usize], strides: &[usize], place: &[T]) -> T {
    let mut sum = T::zero();
    for corner in 0..1usize << dims.len().min(16) {
        let (mut weight, mut at) = (T::one(), Some(0));
        for (d, &p) in place.iter().enumerate() {
            let up = corner >> d & 1 == 1;
            let low = p.floor();
            let position = (if up { low + T::one() } else { low }).wide();
            weight = weight * if up { p - low } else { low + T::one() - p };
            // NaN is inside nothing.
            let inside = position >= 0.0 && position < dims[d] as f64;
            at = at.filter(|_| inside).map(|at| at + position as usize * strides[d]);
        }
        if let Some(at) = at {
            sum = sum + weight * plane[at];
        }
    }
    sum
}
