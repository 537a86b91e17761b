//! ConvInteger and QLinearConv, summed exactly in `f64`: a product of two 9-bit numbers leaves room for 2^35 of them.

use super::forward::convolve;
use super::{Sizes, Spec, infer_conv};
use crate::invalid;
use crate::ops::util::map;
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpError, one};
use crate::tensor::{DType, Tensor, cast};

pub(super) fn infer_integer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    infer_conv(cx, 1, Some(DType::I32))
}

pub(super) fn infer_qlinear(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    infer_conv(cx, 3, cx.dtype(7))
}

/// The elements of an 8-bit input less its zero point: one, or one per slice along the first axis.
fn centred(args: &Args, i: usize, zero: usize) -> Result<(Tensor, Vec<f64>), OpError> {
    let t = args.tensor(i)?;
    if !matches!(t.dtype(), DType::I8 | DType::U8) {
        invalid!("input {i}: expected int8 or uint8, found {}", t.dtype());
    }
    let mut values: Vec<f64> = cast(t, DType::F64)?.into_vec()?;
    let Some(z) = args.opt(zero)? else { return Ok((t.clone(), values)) };
    if z.dtype() != t.dtype() {
        invalid!("input {zero}: expected {}, found {}", t.dtype(), z.dtype());
    }
    let zeros: Vec<f64> = cast(z, DType::F64)?.into_vec()?;
    let slices = t.shape().first().copied().unwrap_or(1);
    match zeros.len() {
        1 => values.iter_mut().for_each(|x| *x -= zeros[0]),
        n if n == slices => {
            let len = (values.len() / slices.max(1)).max(1);
            values.chunks_mut(len).zip(&zeros).for_each(|(c, z)| c.iter_mut().for_each(|x| *x -= z));
        }
        n => invalid!("input {zero}: expected 1 or {slices} zero points, found {n}"),
    }
    Ok((t.clone(), values))
}

pub(super) fn build_integer(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = Spec::read(cx.attrs)?;
    Ok(Box::new(move |args| {
        let ((x, xs), (w, ws)) = (centred(&args, 0, 2)?, centred(&args, 1, 3)?);
        let sizes = Sizes::new(&spec, x.shape(), w.shape())?;
        let y = convolve(&sizes, &xs, &ws, None)?;
        one(Tensor::new(sizes.shape(), map(&y, |&y| y as i64 as i32))?)
    }))
}

/// The elements of a float input: one, or one per output channel.
fn scales(args: &Args, i: usize, channels: usize) -> Result<Vec<f32>, OpError> {
    let s: Vec<f32> = args.tensor(i)?.clone().into_vec().map_err(|e| OpError::Invalid(format!("input {i}: {e}")))?;
    match s.len() {
        1 => Ok(s),
        n if n == channels => Ok(s),
        n => invalid!("input {i}: expected 1 or {channels} scales, found {n}"),
    }
}

pub(super) fn build_qlinear(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = Spec::read(cx.attrs)?;
    Ok(Box::new(move |args| {
        let ((x, xs), (w, ws)) = (centred(&args, 0, 2)?, centred(&args, 3, 5)?);
        let sizes = Sizes::new(&spec, x.shape(), w.shape())?;
        let channels = sizes.groups * sizes.outputs;
        let bias = args.opt(8)?.map(|_| args.slice::<i32>(8)).transpose()?;
        if let Some(b) = bias.filter(|b| b.len() != channels) {
            invalid!("input 8: expected {channels} values, found {}", b.len());
        }
        let bias: Option<Vec<f64>> = bias.map(|b| b.iter().map(|&b| b.into()).collect());
        let (x_scale, w_scale, y_scale) = (scales(&args, 1, 1)?[0], scales(&args, 4, channels)?, scales(&args, 6, 1)?[0]);
        let zero = args.tensor(7)?;
        let (low, high) = match zero.dtype() {
            DType::I8 => (-128.0, 127.0),
            DType::U8 => (0.0, 255.0),
            other => invalid!("input 7: expected int8 or uint8, found {other}"),
        };
        let Some(&zero_point) = zero.to_f32s()?.first() else { invalid!("input 7: expected one zero point, found none") };
        let mut y = convolve(&sizes, &xs, &ws, bias.as_deref())?;
        let positions = sizes.positions().max(1);
        for (i, plane) in y.chunks_mut(positions).enumerate() {
            let scale = f64::from(x_scale * w_scale[i % channels % w_scale.len()] / y_scale);
            plane.iter_mut().for_each(|y| *y = ((*y * scale).round_ties_even() + f64::from(zero_point)).clamp(low, high));
        }
        one(cast(&Tensor::new(sizes.shape(), y)?, zero.dtype())?)
    }))
}
