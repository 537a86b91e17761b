//! CausalConvWithState: each channel is convolved along time with what came before, which is carried from call to call.

use super::{bias, real};
use crate::invalid;
use crate::ir::Dim;
use crate::ops::util::{Real, checked_product, filled, for_each_chunk, real_dtype};
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpError, Outputs};
use crate::tensor::{DType, Tensor, Value, cast};

pub(super) fn infer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let x = cx.shape(0).map(<[Dim]>::to_vec);
    let state = x.as_ref().filter(|x| x.len() == 3).map(|x| {
        let taps = cx.shape(1).filter(|w| w.len() == 3).and_then(|w| w[2].known());
        vec![x[0].clone(), x[1].clone(), taps.and_then(|k| k.checked_sub(1)).map_or(Dim::Unknown, Dim::Known)]
    });
    Ok(vec![Fact::partial(cx.dtype(0), x), Fact::partial(cx.dtype(0), state)])
}

pub(super) fn build(cx: &OpCtx) -> Result<Kernel, OpError> {
    let silu = match cx.attrs.string_or("activation", "none")? {
        "none" => false,
        "silu" | "swish" => true,
        other => invalid!("attribute \"activation\": expected none, silu or swish, found \"{other}\""),
    };
    Ok(Box::new(move |args| match real_dtype(args.tensor(0)?.dtype())? {
        DType::F64 => run::<f64>(silu, &args),
        _ => run::<f32>(silu, &args),
    }))
}

fn run<T: Real>(silu: bool, args: &Args) -> Result<Outputs, OpError> {
    let dtype = args.tensor(0)?.dtype();
    let (x, w) = (real::<T>(args, 0, dtype)?, real::<T>(args, 1, dtype)?);
    let (&[batch, channels, time], &[rows, one, taps]) = (&**x.shape(), &**w.shape()) else {
        invalid!("expected input [batch, channels, time] and weights [channels, 1, k], found {} and {}", x.shape(), w.shape());
    };
    if rows != channels || one != 1 || taps == 0 {
        invalid!("input 1: expected shape [{channels},1,k], found {}", w.shape());
    }
    let bias = bias::<T>(args, 2, dtype, channels)?;
    let carried = taps - 1;
    let past = args.opt(3)?.map(|_| real::<T>(args, 3, dtype)).transpose()?;
    if let Some(p) = past.as_ref().filter(|p| p.shape()[..] != [batch, channels, carried]) {
        invalid!("input 3: expected shape [{batch},{channels},{carried}], found {}", p.shape());
    }
    let length = carried + time;
    let mut padded = filled(checked_product(&[batch, channels, length])?, T::zero())?;
    let (xs, ws) = (x.as_slice::<T>()?, w.as_slice::<T>()?);
    let past = past.as_ref().map(|p| p.as_slice::<T>()).transpose()?;
    for (i, row) in padded.chunks_mut(length.max(1)).enumerate() {
        row[carried..].copy_from_slice(&xs[i * time..][..time]);
        if let Some(p) = past {
            row[..carried].copy_from_slice(&p[i * carried..][..carried]);
        }
    }
    let mut y = filled(xs.len(), T::zero())?;
    for_each_chunk(&mut y, time, |i, out| {
        let c = i % channels;
        let (row, weights) = (&padded[i * length..][..length], &ws[c * taps..][..taps]);
        for (t, y) in out.iter_mut().enumerate() {
            let sum: T = row[t..][..taps].iter().zip(weights).map(|(&x, &w)| x * w).sum();
            *y = sum + bias.as_ref().map_or(T::zero(), |b| b[c]);
        }
    });
    let mut y = cast(&Tensor::new(x.shape(), y)?, dtype)?;
    if silu {
        // The unfused form rounds to the dtype before the activation.
        let wide: Vec<T> = cast(&y, T::DTYPE)?.into_vec()?;
        y = cast(&Tensor::new(x.shape(), wide.into_iter().map(|x| x * (T::one() / (T::one() + (-x).exp()))).collect())?, dtype)?;
    }
    let state: Vec<T> = padded.chunks(length.max(1)).flat_map(|row| row[length - carried..].iter().copied()).collect();
    let state = cast(&Tensor::new([batch, channels, carried], state)?, dtype)?;
    Ok(Outputs::from_iter([Value::Tensor(y), Value::Tensor(state)]))
}
