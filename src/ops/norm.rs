//! Normalizations: by batch, instance, group, layer, root mean square, Lp, mean and variance, and across channels.

use super::gemm::Real;
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, infer, one, rows, threads, util};
use crate::ir::Dim;
use crate::tensor::{DType, Number, Shape, Tensor, Value, cast, fits_memory, strides};
use crate::{dispatch_wide, invalid};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("BatchNormalization", &[1, 6, 7, 9, 14, 15])
        .inputs(5, 5)
        .outputs(1, 5)
        .attrs(&["consumed_inputs", "epsilon", "is_test", "momentum", "spatial", "training_mode"])
        .infer(infer_batch)
        .kernel(build_batch),
    OpDef::new("GroupNormalization", &[18, 21])
        .inputs(3, 3)
        .attrs(&["epsilon", "num_groups", "stash_type"])
        .infer(infer::same)
        .kernel(build_group),
    OpDef::new("InstanceNormalization", &[1, 6, 22])
        .inputs(3, 3)
        .attrs(&["consumed_inputs", "epsilon"])
        .infer(infer::same)
        .kernel(build_group),
    OpDef::new("LRN", &[1, 13]).attrs(&["alpha", "beta", "bias", "size"]).infer(infer::same).kernel(build_lrn),
    OpDef::new("LayerNormalization", &[1, 17])
        .inputs(2, 3)
        .outputs(1, 3)
        .attrs(&["axis", "epsilon", "stash_type"])
        .infer(infer_layer)
        .kernel(|cx| build_layer(cx, false)),
    OpDef::new("LpNormalization", &[1, 22]).attrs(&["axis", "p"]).infer(infer::same).kernel(build_lp),
    OpDef::new("MeanVarianceNormalization", &[9, 13]).attrs(&["axes"]).infer(infer::same).kernel(build_mean_variance),
    OpDef::new("RMSNormalization", &[23])
        .inputs(2, 2)
        .attrs(&["axis", "epsilon", "stash_type"])
        .infer(infer_rms)
        .kernel(|cx| build_layer(cx, true)),
    OpDef::new("SimplifiedLayerNormalization", &[1])
        .inputs(2, 2)
        .outputs(1, 2)
        .attrs(&["axis", "epsilon", "stash_type"])
        .infer(infer_simplified)
        .kernel(build_simplified),
];

fn infer_batch(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let mut out = infer::same(cx)?;
    out.resize(cx.op.outputs.len().max(1), Fact { ty: cx.ty(3).cloned(), ..Fact::default() });
    Ok(out)
}

/// `X`'s shape with ones from `axis` on, of the stash type.
fn stash_fact(cx: &InferCtx) -> Result<Fact, OpError> {
    let dtype = stash_type(&cx.op)?;
    let Some(shape) = cx.shape(0) else { return Ok(Fact::partial(Some(dtype), None)) };
    let at = util::axis(cx.op.attrs.int_or("axis", -1)?, shape.len())?;
    Ok(Fact::partial(Some(dtype), Some(shape.iter().enumerate().map(|(i, d)| if i < at { d.clone() } else { Dim::Known(1) }).collect())))
}

fn infer_layer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let mut out = infer::same(cx)?;
    out.resize(cx.op.outputs.len().max(1), stash_fact(cx)?);
    Ok(out)
}

fn infer_rms(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(cx.dtype(1), cx.shape(0).map(<[Dim]>::to_vec))])
}

fn infer_simplified(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let mut out = infer_rms(cx)?;
    out.resize(cx.op.outputs.len().max(1), stash_fact(cx)?);
    Ok(out)
}

fn stash_type(cx: &OpCtx) -> Result<DType, OpError> {
    let code = cx.attrs.int_or("stash_type", 1)?;
    match i32::try_from(code).ok().and_then(DType::from_onnx).filter(|d| d.is_float() && d.bits() >= 16) {
        Some(d) => Ok(d),
        None => invalid!("stash_type {code} is no float type"),
    }
}

/// A parameter as `T`, whatever float it is.
pub(super) fn param<T: Real>(t: &Tensor) -> Result<Vec<T>, OpError> {
    Ok(cast(t, T::DTYPE)?.into_vec()?)
}

fn epsilon(cx: &OpCtx) -> Result<f32, OpError> {
    Ok(cx.attrs.float_or("epsilon", 1e-5)?)
}

/// Elements of an input of a known rank at least.
fn at_least(x: &Tensor, rank: usize) -> Result<(), OpError> {
    if x.rank() < rank { invalid!("expected rank {rank} or more, found shape {}", x.shape()) } else { Ok(()) }
}

/// A scale or bias as it applies to each row of `len` elements, or `None` where it differs from row to row.
fn per_row<T: Real>(p: &[T], shape: &[usize], x: &[usize], len: usize) -> Option<Vec<T>> {
    let axis = (0..=x.len()).find(|&i| x[i..].iter().product::<usize>() == len).unwrap_or(x.len());
    let trimmed: Vec<usize> = shape.iter().copied().skip_while(|&d| d == 1).collect();
    if trimmed.len() > x.len() - axis {
        return None;
    }
    if p.len() == len {
        return Some(p.to_vec());
    }
    Some(broadcast_to(p, &trimmed, &x[axis..]))
}

/// A parameter read as if it had shape `to`.
fn broadcast_to<T: Copy>(p: &[T], from: &[usize], to: &[usize]) -> Vec<T> {
    let s = util::broadcast_strides(from, to);
    let at = strides(to);
    (0..to.iter().product::<usize>()).map(|i| p[(0..to.len()).map(|d| i / at[d] % to[d] * s[d]).sum::<usize>()]).collect()
}

/// A parameter for each element of a row, or for each element at all.
pub(super) enum Param<T> {
    None,
    Row(Vec<T>),
    All(Vec<T>),
}

impl<T: Real> Param<T> {
    pub fn new(t: Option<&Tensor>, x: &Shape, len: usize) -> Result<Self, OpError> {
        let Some(t) = t else { return Ok(Param::None) };
        if *util::broadcast(&[t.shape(), x])? != **x {
            invalid!("shape {} does not broadcast to {x}", t.shape());
        }
        let p = param::<T>(t)?;
        Ok(match per_row(&p, t.shape(), x, len) {
            Some(row) => Param::Row(row),
            None => Param::All(broadcast_to(&p, t.shape(), x)),
        })
    }

    fn row(&self, i: usize, len: usize) -> Option<&[T]> {
        match self {
            Param::None => None,
            Param::Row(p) => Some(p),
            Param::All(p) => Some(&p[i * len..][..len]),
        }
    }
}

/// One row to be normalized.
struct Normalize<'a, T> {
    row: &'a mut [T],
    epsilon: T,
    rms: bool,
    scale: Option<&'a [T]>,
    bias: Option<&'a [T]>,
}

impl<T: Real> rows::Body for Normalize<'_, T> {
    /// Mean (zero for `rms`) and inverse deviation.
    type Output = (T, T);

    #[inline(always)]
    fn run(self) -> (T, T) {
        let Self { row, epsilon, rms, scale, bias } = self;
        let n = T::from_f64(row.len() as f64);
        let (mean, var) = if rms { (T::ZERO, rows::sum_by(row, |v| v * v) / n) } else { rows::moments(row) };
        let inv = T::ONE / (var + epsilon).sqrt();
        match (scale, bias) {
            (Some(s), Some(b)) => row.iter_mut().zip(s).zip(b).for_each(|((v, &s), &b)| *v = (*v - mean) * inv * s + b),
            (Some(s), None) => row.iter_mut().zip(s).for_each(|(v, &s)| *v = (*v - mean) * inv * s),
            (None, _) => row.iter_mut().for_each(|v| *v = (*v - mean) * inv),
        }
        (mean, inv)
    }
}

/// Normalizes rows of `len` elements in place and gives back mean (zeros for `rms`) and inverse deviation of each.
pub(super) fn normalize_rows<T: Real>(
    x: &mut [T],
    len: usize,
    epsilon: T,
    rms: bool,
    scale: &Param<T>,
    bias: &Param<T>,
) -> (Vec<T>, Vec<T>) {
    let count = x.len().checked_div(len).unwrap_or(0);
    let mut stats = vec![(T::ZERO, T::ZERO); count];
    let each = |i: usize, row: &mut [T], stat: &mut (T, T)| {
        *stat = rows::simd_run(Normalize { row, epsilon, rms, scale: scale.row(i, len), bias: bias.row(i, len) });
    };
    if x.len() < 2 * util::GRAIN || !threads::shared() {
        x.chunks_mut(len.max(1)).zip(&mut stats).enumerate().for_each(|(i, (row, s))| each(i, row, s));
    } else {
        use rayon::prelude::*;
        x.par_chunks_mut(len).zip(&mut stats).with_min_len(util::GRAIN.div_ceil(len)).enumerate().for_each(|(i, (row, s))| each(i, row, s));
    }
    stats.into_iter().unzip()
}

fn build_layer(cx: &OpCtx, rms: bool) -> Result<Kernel, OpError> {
    let (axis, epsilon, stash) = (cx.attrs.int_or("axis", -1)?, epsilon(cx)?, stash_type(cx)?);
    let outputs = cx.outputs.len().max(1);
    Ok(Box::new(move |mut args| {
        let x = args.take(0)?;
        let (y, mean, inv) = layer(x, args.tensor(1)?, args.opt(2)?, axis, epsilon, rms)?;
        let mut out = Outputs::new();
        out.push(if rms { cast(&y, args.tensor(1)?.dtype())? } else { y }.into());
        if outputs > 1 {
            out.push(cast(&mean, stash)?.into());
            out.push(cast(&inv, stash)?.into());
        }
        out.truncate(outputs);
        Ok(out)
    }))
}

fn build_simplified(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (axis, epsilon, stash) = (cx.attrs.int_or("axis", -1)?, epsilon(cx)?, stash_type(cx)?);
    let outputs = cx.outputs.len().max(1);
    Ok(Box::new(move |mut args| {
        let x = args.take(0)?;
        let (y, _, inv) = layer(x, args.tensor(1)?, None, axis, epsilon, true)?;
        let mut out: Outputs = [Value::Tensor(cast(&y, args.tensor(1)?.dtype())?), Value::Tensor(cast(&inv, stash)?)].into_iter().collect();
        out.truncate(outputs);
        Ok(out)
    }))
}

/// Layer or root-mean-square normalization over the axes from `axis` on: result, mean and inverse deviation.
pub(super) fn layer(
    x: Tensor,
    scale: &Tensor,
    bias: Option<&Tensor>,
    axis: i64,
    epsilon: f32,
    rms: bool,
) -> Result<(Tensor, Tensor, Tensor), OpError> {
    let (dtype, shape) = (x.dtype(), x.shape().clone());
    let at = util::axis(axis, shape.len())?;
    let (len, count) = (util::product(&shape[at..]), util::product(&shape[..at]));
    if !fits_memory(count.saturating_mul(16)) {
        invalid!("the statistics of {count} rows do not fit memory");
    }
    let stats = Shape::from_dims(shape.iter().enumerate().map(|(i, &d)| if i < at { d } else { 1 }));
    let wide = if dtype.bits() == 16 { util::widen(&x)? } else { x };
    let (y, mean, inv) = dispatch_wide!(wide.dtype(), T => {
        let (scale, bias) = (Param::new(Some(scale), &shape, len)?, Param::new(bias, &shape, len)?);
        let mut data = wide.into_vec::<T>()?;
        let (mut mean, mut inv) = normalize_rows(&mut data, len, T::from_f64(epsilon.into()), rms, &scale, &bias);
        // Rows of no elements have no statistics.
        mean.resize(count, T::NAN);
        inv.resize(count, T::NAN);
        (Tensor::new(shape, data)?, Tensor::new(&stats, mean)?, Tensor::new(&stats, inv)?)
    });
    Ok((cast(&y, dtype)?, mean, inv))
}

/// Group normalization; instance normalization is that with one group per channel.
fn build_group(cx: &OpCtx) -> Result<Kernel, OpError> {
    let epsilon = epsilon(cx)?;
    let per_group = cx.version < 21;
    let groups = cx.attrs.int("num_groups")?;
    if &*cx.op.name == "GroupNormalization" && groups.is_none_or(|g| g < 1) {
        invalid!("num_groups must be at least 1, found {groups:?}");
    }
    Ok(Box::new(move |mut args| {
        let x = args.take(0)?;
        at_least(&x, 2)?;
        let channels = x.shape()[1];
        let groups = groups.map_or(channels, |g| g as usize);
        if groups > 0 && !channels.is_multiple_of(groups) {
            invalid!("{channels} channels do not split into {groups} groups");
        }
        let (scale, bias) = (args.tensor(1)?, args.tensor(2)?);
        let expect = if per_group { groups } else { channels };
        if scale.len() != expect || bias.len() != expect {
            invalid!("expected {expect} scales and biases, found {} and {}", scale.len(), bias.len());
        }
        let (dtype, shape) = (x.dtype(), x.shape().clone());
        let wide = if dtype.bits() == 16 { util::widen(&x)? } else { x };
        let y = dispatch_wide!(wide.dtype(), T => {
            let (scale, bias) = (param::<T>(scale)?, param::<T>(bias)?);
            let mut data = wide.into_vec::<T>()?;
            let spatial: usize = shape[2..].iter().product();
            let len = channels.checked_div(groups).unwrap_or(0) * spatial;
            normalize_rows(&mut data, len, T::from_f64(epsilon.into()), false, &Param::None, &Param::None);
            util::for_each_chunk(&mut data, spatial, |i, row| {
                let c = i % channels * expect / channels;
                row.iter_mut().for_each(|v| *v = *v * scale[c] + bias[c]);
            });
            Tensor::new(shape, data)?
        });
        one(cast(&y, dtype)?)
    }))
}

/// The attributes of batch normalization.
struct Batch {
    epsilon: f32,
    momentum: f32,
    training: bool,
    /// Before version 9: one statistic per feature, not per channel.
    per_feature: bool,
    outputs: usize,
}

fn build_batch(cx: &OpCtx) -> Result<Kernel, OpError> {
    let training = match cx.version {
        14.. => cx.attrs.int_or("training_mode", 0)? != 0,
        7.. => cx.wants(1),
        _ => cx.wants(1) && cx.attrs.int_or("is_test", 0)? == 0,
    };
    let batch = Batch {
        epsilon: epsilon(cx)?,
        momentum: cx.attrs.float_or("momentum", 0.9)?,
        training,
        per_feature: cx.version < 9 && cx.attrs.int_or("spatial", 1)? == 0,
        outputs: cx.outputs.len().max(1),
    };
    if cx.version >= 14 && !training && batch.outputs > 1 {
        invalid!("outputs beyond the first need training_mode");
    }
    Ok(Box::new(move |args| run_batch(&batch, args)))
}

fn run_batch(batch: &Batch, mut args: Args) -> Result<Outputs, OpError> {
    let x = args.take(0)?;
    at_least(&x, 1)?;
    let (dtype, shape) = (x.dtype(), x.shape().clone());
    let (channels, spatial) = match &shape[..] {
        [_] => (1, 1),
        [_, rest @ ..] if batch.per_feature => (rest.iter().product(), 1),
        [_, c, rest @ ..] => (*c, rest.iter().product()),
        [] => (1, 1),
    };
    let params = args.tensors(1)?;
    if let Some(bad) = params.iter().find(|p| p.len() != channels) {
        invalid!("expected {channels} parameters, found shape {}", bad.shape());
    }
    let wide = if dtype.bits() == 16 { util::widen(&x)? } else { x };
    dispatch_wide!(wide.dtype(), T => {
        let p = params.iter().map(|p| param::<T>(p)).collect::<Result<Vec<_>, _>>()?;
        let mut data = wide.into_vec::<T>()?;
        let (scale, bias, mut mean, mut var) = (&p[0], &p[1], p[2].clone(), p[3].clone());
        let mut extra = Vec::new();
        if batch.training {
            let keep = T::from_f64(batch.momentum.into());
            let (m, v): (Vec<T>, Vec<T>) = (0..channels).map(|c| channel_moments(&data, c, channels, spatial)).unzip();
            let blend = |old: &[T], new: &[T]| old.iter().zip(new).map(|(&o, &n)| o * keep + n * (T::ONE - keep)).collect::<Vec<T>>();
            extra = vec![blend(&mean, &m), blend(&var, &v), m.clone(), v.clone()];
            (mean, var) = (m, v);
        }
        let epsilon = T::from_f64(batch.epsilon.into());
        let gain: Vec<T> = scale.iter().zip(&var).map(|(&s, &v)| s / (v + epsilon).sqrt()).collect();
        if spatial == 1 {
            util::for_each_chunk(&mut data, channels, |_, row| {
                for (c, v) in row.iter_mut().enumerate() {
                    *v = (*v - mean[c]) * gain[c] + bias[c];
                }
            });
        } else {
            util::for_each_chunk(&mut data, spatial, |i, row| {
                let c = i % channels;
                let (m, g, b) = (mean[c], gain[c], bias[c]);
                row.iter_mut().for_each(|v| *v = (*v - m) * g + b);
            });
        }
        let mut out = Outputs::new();
        out.push(cast(&Tensor::new(shape, data)?, dtype)?.into());
        for stat in extra {
            out.push(cast(&Tensor::new(params[2].shape(), stat)?, params[2].dtype())?.into());
        }
        out.truncate(batch.outputs);
        Ok(out)
    })
}

fn channel_moments<T: Real>(x: &[T], channel: usize, channels: usize, spatial: usize) -> (T, T) {
    if spatial == 0 {
        return (T::nan(), T::nan());
    }
    let parts = || x.chunks(spatial).skip(channel).step_by(channels);
    let n = T::from_f64((x.len() / channels) as f64);
    let mean = parts().fold(T::ZERO, |s, p| s + rows::sum(p)) / n;
    let var = parts().fold(T::ZERO, |s, p| s + rows::sum_by(p, |v| (v - mean) * (v - mean))) / n;
    (mean, var)
}

fn build_lp(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (axis, p) = (cx.attrs.int_or("axis", -1)?, cx.attrs.int_or("p", 2)?);
    if !(p == 1 || p == 2) {
        invalid!("p must be 1 or 2, found {p}");
    }
    Ok(Box::new(move |mut args| {
        let x = args.take(0)?;
        let at = util::axis(axis, x.rank())?;
        let (dtype, shape) = (x.dtype(), x.shape().clone());
        let (len, inner) = (shape[at], shape[at + 1..].iter().product::<usize>());
        let wide = if dtype.bits() == 16 { util::widen(&x)? } else { x };
        let y = dispatch_wide!(wide.dtype(), T => {
            let mut data = wide.into_vec::<T>()?;
            util::for_each_chunk(&mut data, len * inner, |_, block| {
                let mut norm = vec![T::ZERO; inner];
                for row in block.chunks(inner) {
                    norm.iter_mut().zip(row).for_each(|(n, &v)| *n += if p == 1 { v.abs() } else { v * v });
                }
                if p == 2 {
                    norm.iter_mut().for_each(|n| *n = n.sqrt());
                }
                for row in block.chunks_mut(inner) {
                    row.iter_mut().zip(&norm).for_each(|(v, &n)| *v = if n == T::ZERO { T::ZERO } else { *v / n });
                }
            });
            Tensor::new(shape, data)?
        });
        one(cast(&y, dtype)?)
    }))
}

fn build_mean_variance(cx: &OpCtx) -> Result<Kernel, OpError> {
    let axes = cx.attrs.ints("axes")?.unwrap_or(&[0, 2, 3]).to_vec();
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        let axes = util::axes(&axes, x.rank())?;
        let mut order: Vec<usize> = (0..x.rank()).filter(|d| !axes.contains(d)).collect();
        order.extend(&axes);
        let len: usize = axes.iter().map(|&d| x.shape()[d]).product();
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(i, &d)| back[d] = i);
        let wide = util::widen(x)?;
        let y = dispatch_wide!(wide.dtype(), T => {
            let mut data = wide.view::<T>()?.permuted_axes(order).as_standard_layout().into_owned();
            let shape = data.raw_dim();
            let mut flat: Vec<T> = data.iter().copied().collect();
            for row in flat.chunks_mut(len.max(1)) {
                let (mean, var) = rows::moments(row);
                let deviation = var.sqrt() + T::from_f64(1e-9);
                row.iter_mut().for_each(|v| *v = (*v - mean) / deviation);
            }
            data = ndarray::ArrayD::from_shape_vec(shape, flat).map_err(|e| OpError::Invalid(e.to_string()))?;
            Tensor::from_array(data.permuted_axes(back).as_standard_layout().into_owned())
        });
        one(cast(&y, x.dtype())?)
    }))
}

fn build_lrn(cx: &OpCtx) -> Result<Kernel, OpError> {
    let Some(size) = cx.attrs.int("size")?.filter(|&s| s > 0) else { invalid!("attribute \"size\" must be above 0") };
    let (alpha, beta, bias) = (cx.attrs.float_or("alpha", 1e-4)?, cx.attrs.float_or("beta", 0.75)?, cx.attrs.float_or("bias", 1.0)?);
    let size = size as usize;
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        at_least(x, 2)?;
        let (channels, spatial) = (x.shape()[1], x.shape()[2..].iter().product::<usize>());
        let wide = util::widen(x)?;
        let y = dispatch_wide!(wide.dtype(), T => {
            let (alpha, beta, bias) = (T::from_f64(f64::from(alpha) / size as f64), T::from_f64(beta.into()), T::from_f64(bias.into()));
            let data = wide.as_slice::<T>()?;
            let mut out = data.to_vec();
            util::for_each_chunk(&mut out, spatial, |i, row| {
                let (first, c) = (i / channels * channels, i % channels);
                let window = c.saturating_sub((size - 1) / 2)..channels.min(c + size.div_ceil(2) + usize::from(size.is_multiple_of(2)));
                for (p, v) in row.iter_mut().enumerate() {
                    let squares = window.clone().map(|k| data[(first + k) * spatial + p]).fold(T::ZERO, |s, v| s + v * v);
                    *v /= (bias + alpha * squares).powf(beta);
                }
            });
            Tensor::new(x.shape(), out)?
        });
        one(cast(&y, x.dtype())?)
    }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{run, run_values};
    use super::*;
    use crate::ir::Attrs;

    fn t(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::new(shape, data.to_vec()).unwrap()
    }

    fn close(found: &Tensor, want: &[f32]) {
        let found = found.to_f32s().unwrap();
        assert!(found.len() == want.len() && found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?}, expected {want:?}");
    }

    #[test]
    fn layer_normalization_gives_its_statistics() {
        let inputs = [t(&[2, 2], &[1.0, 3.0, 0.0, 4.0]), t(&[2], &[1.0, 2.0]), t(&[2], &[0.0, 1.0])];
        let out = run_values("LayerNormalization", 17, Attrs::new(), inputs.into_iter().map(|t| Some(t.into())).collect(), 3).unwrap();
        let out: Vec<Tensor> = out.into_iter().filter_map(Value::into_tensor).collect();
        close(&out[0], &[-1.0, 3.0, -1.0, 3.0]);
        close(&out[1], &[2.0, 2.0]);
        close(&out[2], &[1.0, 0.5]);
        assert_eq!(**out[1].shape(), [2, 1]);
    }

    #[test]
    fn a_scale_may_differ_from_row_to_row() {
        let out = run("LayerNormalization", 17, Attrs::new(), &[t(&[2, 2], &[1.0, 3.0, 0.0, 4.0]), t(&[2, 1], &[1.0, 2.0])]).unwrap();
        close(&out, &[-1.0, 1.0, -2.0, 2.0]);
    }

    #[test]
    fn batch_normalization_trains() {
        let inputs = [t(&[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]), t(&[1], &[1.0]), t(&[1], &[0.0]), t(&[1], &[0.0]), t(&[1], &[1.0])];
        let run = |attrs, n| run_values("BatchNormalization", 15, attrs, inputs.iter().cloned().map(|t| Some(t.into())).collect(), n);
        let out = run(Attrs::new().with("training_mode", 1i64), 3).unwrap();
        close(out[0].as_tensor().unwrap(), &[-1.34164, -0.44721, 0.44721, 1.34164]);
        close(out[1].as_tensor().unwrap(), &[0.25]);
        close(out[2].as_tensor().unwrap(), &[1.025]);
        close(run(Attrs::new(), 1).unwrap()[0].as_tensor().unwrap(), &[1.0, 2.0, 3.0, 4.0]);
        assert!(run(Attrs::new(), 3).is_err());
    }

    #[test]
    fn groups_scale_per_group_then_per_channel() {
        let x = t(&[1, 2, 2], &[1.0, 3.0, 5.0, 7.0]);
        let attrs = Attrs::new().with("num_groups", 2i64);
        let out = run("GroupNormalization", 21, attrs.clone(), &[x.clone(), t(&[2], &[1.0, 2.0]), t(&[2], &[0.0, 1.0])]).unwrap();
        close(&out, &[-1.0, 1.0, -1.0, 3.0]);
        assert!(run("GroupNormalization", 21, attrs, &[x, t(&[1], &[1.0]), t(&[2], &[0.0, 1.0])]).is_err());
    }

    #[test]
    fn lrn_and_lp() {
        let out =
            run("LRN", 13, Attrs::new().with("size", 3i64).with("alpha", 3f32).with("beta", 1f32), &[t(&[1, 3, 1], &[1.0, 2.0, 3.0])])
                .unwrap();
        close(&out, &[1.0 / 6.0, 2.0 / 15.0, 3.0 / 14.0]);
        let out = run("LpNormalization", 22, Attrs::new().with("p", 1i64), &[t(&[2, 2], &[1.0, -3.0, 0.0, 0.0])]).unwrap();
        close(&out, &[0.25, -0.75, 0.0, 0.0]);
    }
}
