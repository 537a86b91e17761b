//! Conv: blocks of the input as columns, times the weights; few output channels per group are summed directly.

use super::{Sizes, Spec, add_mul, bias, infer_conv, real, view, view_mut};
use crate::ops::util::{Real, checked_product, filled, real_dtype, run_all, tiles};
use crate::ops::window::for_each_run;
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpError, Outputs, one};
use crate::tensor::{DType, Tensor, cast};
use ndarray::s;

/// Rows of the weights in one task, and elements of one block of columns. Fixed, so that threads never change a result.
const ROWS: usize = 128;
const BLOCK: usize = 256 * 1024;

pub(super) fn infer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    infer_conv(cx, 1, cx.dtype(0))
}

pub(super) fn build(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = Spec::read(cx.attrs)?;
    Ok(Box::new(move |args| match real_dtype(args.tensor(0)?.dtype())? {
        DType::F64 => run::<f64>(&spec, &args),
        _ => run::<f32>(&spec, &args),
    }))
}

fn run<T: Real>(spec: &Spec, args: &Args) -> Result<Outputs, OpError> {
    let dtype = args.tensor(0)?.dtype();
    let (x, w) = (real::<T>(args, 0, dtype)?, real::<T>(args, 1, dtype)?);
    let sizes = Sizes::new(spec, x.shape(), w.shape())?;
    let bias = bias::<T>(args, 2, dtype, sizes.groups * sizes.outputs)?;
    let y = convolve(&sizes, x.as_slice::<T>()?, w.as_slice::<T>()?, bias.as_deref())?;
    one(cast(&Tensor::new(sizes.shape(), y)?, dtype)?)
}

/// An output that holds the bias, or zeros.
pub(super) fn start<T: Real>(sizes: &Sizes, bias: Option<&[T]>) -> Result<Vec<T>, OpError> {
    let mut y = filled(checked_product(&sizes.shape())?, T::zero())?;
    let positions = sizes.positions();
    if let (Some(bias), 1..) = (bias, positions) {
        for (i, plane) in y.chunks_mut(positions).enumerate() {
            plane.fill(bias[i % bias.len()]);
        }
    }
    Ok(y)
}

/// The convolution of `x` with `w`.
pub(super) fn convolve<T: Real>(sizes: &Sizes, x: &[T], w: &[T], bias: Option<&[T]>) -> Result<Vec<T>, OpError> {
    let mut y = start(sizes, bias)?;
    let (positions, plane, taps) = (sizes.positions(), sizes.plane(), sizes.taps());
    let (strides, indices) = (sizes.input_strides(), sizes.tap_indices());
    let depth = sizes.inputs * taps;
    if y.is_empty() || depth == 0 {
        return Ok(y);
    }
    let pointwise = taps == 1 && sizes.axes.iter().all(|a| a.stride == 1 && a.head == 0 && a.tail == 0);
    let direct = sizes.outputs <= 2 && !pointwise;
    let columns = if direct { positions } else { (BLOCK / depth).clamp(64, 4096) };
    let rows = if direct { 1 } else { ROWS };
    let step = sizes.axes.last().map_or(1, |a| a.stride);
    let mut tasks = Vec::new();
    for (i, part) in y.chunks_mut(sizes.outputs * positions).enumerate() {
        tasks.extend(tiles(view_mut((sizes.outputs, positions), part)?, rows, columns).into_iter().map(|t| (i, t)));
    }
    run_all(tasks, |(i, (row, column, mut out))| {
        let planes = &x[i * sizes.inputs * plane..][..sizes.inputs * plane];
        let weights = &w[((i % sizes.groups) * sizes.outputs + row) * depth..][..out.nrows() * depth];
        let range = column..column + out.ncols();
        if let (true, Some(out)) = (direct, out.as_slice_mut()) {
            for (c, plane) in planes.chunks(plane.max(1)).enumerate() {
                for (t, k) in indices.iter().enumerate() {
                    let weight = weights[c * taps + t];
                    for_each_run(&sizes.axes, &strides, k, range.clone(), |o, n, from| {
                        for (y, &x) in out[o - column..][..n].iter_mut().zip(plane[from..].iter().step_by(step)) {
                            *y = *y + weight * x;
                        }
                    });
                }
            }
            return Ok(());
        }
        let weights = view((out.nrows(), depth), weights)?;
        if pointwise {
            add_mul(&weights, &view((depth, plane), planes)?.slice(s![.., range]), &mut out);
            return Ok(());
        }
        let width = out.ncols();
        let mut block = filled(checked_product(&[depth, width])?, T::zero())?;
        for (r, row) in block.chunks_mut(width).enumerate() {
            let plane = &planes[r / taps * plane..][..plane];
            for_each_run(&sizes.axes, &strides, &indices[r % taps], range.clone(), |o, n, from| {
                let row = &mut row[o - column..][..n];
                if step == 1 {
                    row.copy_from_slice(&plane[from..][..n]);
                } else {
                    row.iter_mut().zip(plane[from..].iter().step_by(step)).for_each(|(y, &x)| *y = x);
                }
            });
        }
        add_mul(&weights, &view((depth, width), &block)?, &mut out);
        Ok(())
    })?;
    Ok(y)
}
