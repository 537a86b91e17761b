//! Ops on 8-bit tensors with a scale and a zero point: read as numbers, computed, rounded back.

use super::op;
use crate::ir::{Dim, OpName};
use crate::ops::gemm::sigmoid;
use crate::ops::matmul::infer_matmul;
use crate::ops::matmul_integer::integer_product;
use crate::ops::quant::{dynamic_quantize, pack, range, round};
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Run, broadcast_dims, find, infer, one, util};
use crate::tensor::{DType, Shape, Tensor, Value, cast};
use crate::{invalid, unsupported};

pub(in crate::ops) const OPS: &[OpDef] = &[
    op("DynamicQuantizeMatMul")
        .inputs(3, 5)
        .infer(|cx| infer_matmul(cx, 0, 1, Some(DType::F32)))
        .kernel(|_| Ok(Box::new(|args| one(dynamic_matmul(&args)?)))),
    op("MatMulIntegerToFloat")
        .inputs(4, 7)
        .infer(|cx| infer_matmul(cx, 0, 1, cx.dtype(2)))
        .kernel(|_| Ok(Box::new(|args| one(integer_to_float(&args)?)))),
    op("QGemm").inputs(6, 9).attrs(&["alpha", "transA", "transB"]).infer(infer_qgemm).kernel(build_qgemm),
    op("QLinearAdd").inputs(7, 8).infer(infer_binary).kernel(|_| Ok(Box::new(|args| one(binary(&args, |a, b| a + b)?)))),
    op("QLinearAveragePool")
        .inputs(4, 5)
        .attrs(&["auto_pad", "ceil_mode", "channels_last", "count_include_pad", "kernel_shape", "pads", "strides"])
        .infer(infer_average_pool)
        .kernel(build_average_pool),
    op("QLinearConcat").inputs(5, usize::MAX).attrs(&["axis"]).infer(infer_concat).kernel(build_concat),
    op("QLinearGlobalAveragePool").inputs(5, 5).attrs(&["channels_last"]).infer(infer_global_pool).kernel(build_global_pool),
    op("QLinearLeakyRelu").inputs(4, 5).attrs(&["alpha"]).infer(infer::same).kernel(build_leaky_relu),
    op("QLinearMul").inputs(7, 8).infer(infer_binary).kernel(|_| Ok(Box::new(|args| one(multiply(&args)?)))),
    op("QLinearSigmoid").inputs(4, 5).infer(infer::same).kernel(|_| Ok(Box::new(|args| one(unary(&args, sigmoid)?)))),
];

/// A scale and a zero point for a whole tensor.
#[derive(Clone, Copy)]
struct Scale {
    scale: f32,
    zero: f32,
}

impl Scale {
    fn new(scale: &Tensor, zero: Option<&Tensor>) -> Result<Self, OpError> {
        let first = |t: &Tensor| -> Result<f32, OpError> {
            match t.to_f32s()?[..] {
                [x] => Ok(x),
                _ => invalid!("expected one scale or zero point, found shape {}", t.shape()),
            }
        };
        Ok(Self { scale: first(scale)?, zero: zero.map_or(Ok(0.0), first)? })
    }

    fn read(self, x: &Tensor) -> Result<Vec<f32>, OpError> {
        bounds(x.dtype())?;
        let mut data = x.to_f32s()?;
        data.iter_mut().for_each(|v| *v = (*v - self.zero) * self.scale);
        Ok(data)
    }

    fn write(self, x: f32, (low, high): (f32, f32)) -> f32 {
        (round(x / self.scale) + self.zero).clamp(low, high)
    }

    /// As [`Scale::write`], but the zero point is added before rounding: where that is odd, halves go the other way. So
    /// ONNX Runtime does in sums, products and windows.
    fn write_shifted(self, x: f32, (low, high): (f32, f32)) -> f32 {
        round(x / self.scale + self.zero).clamp(low, high)
    }
}

fn bounds(dtype: DType) -> Result<(f32, f32), OpError> {
    match range(dtype) {
        Some(r) => Ok(r),
        None => invalid!("expected quantized integers, found {dtype}"),
    }
}

/// `quantize(f(dequantize(x)))`: inputs `x, x_scale, x_zero, y_scale, y_zero`.
fn unary(args: &Args, f: impl Fn(f32) -> f32 + Sync + Send) -> Result<Tensor, OpError> {
    let x = args.tensor(0)?;
    let (from, to) = (Scale::new(args.tensor(1)?, args.opt(2)?)?, Scale::new(args.tensor(3)?, args.opt(4)?)?);
    let bounds = bounds(x.dtype())?;
    let mut data = from.read(x)?;
    util::map_in_place(&mut data, |v| *v = to.write(f(*v), bounds));
    pack(x.dtype(), x.shape(), &data)
}

fn build_leaky_relu(cx: &OpCtx) -> Result<Kernel, OpError> {
    let alpha = cx.attrs.float_or("alpha", 0.01)?;
    Ok(Box::new(move |args| one(unary(&args, |v| if v < 0.0 { v * alpha } else { v })?)))
}

fn infer_binary(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let shape = match (cx.shape(0), cx.shape(3)) {
        (Some(a), Some(b)) => Some(broadcast_dims(a, b)?),
        _ => None,
    };
    Ok(vec![Fact::partial(cx.dtype(0), shape)])
}

/// Inputs `a, a_scale, a_zero, b, b_scale, b_zero, c_scale, c_zero`; `f` gives what is divided by the scale of `c`.
fn binary(args: &Args, f: impl Fn(f32, f32) -> f32) -> Result<Tensor, OpError> {
    let (a, b) = (args.tensor(0)?, args.tensor(3)?);
    let to = Scale::new(args.tensor(6)?, args.opt(7)?)?;
    let (x, y) = (Scale::new(args.tensor(1)?, args.opt(2)?)?.read(a)?, Scale::new(args.tensor(4)?, args.opt(5)?)?.read(b)?);
    let bounds = bounds(a.dtype())?;
    let out = broadcast_map(a, b, &x, &y, |a, b| to.write_shifted(f(a, b), bounds))?;
    pack(a.dtype(), &out.0, &out.1)
}

/// The factors are multiplied as integers and scaled once.
fn multiply(args: &Args) -> Result<Tensor, OpError> {
    let (a, b) = (args.tensor(0)?, args.tensor(3)?);
    let (sa, sb, to) = (
        Scale::new(args.tensor(1)?, args.opt(2)?)?,
        Scale::new(args.tensor(4)?, args.opt(5)?)?,
        Scale::new(args.tensor(6)?, args.opt(7)?)?,
    );
    let (x, y) = (Scale { scale: 1.0, ..sa }.read(a)?, Scale { scale: 1.0, ..sb }.read(b)?);
    let (low, high) = bounds(a.dtype())?;
    let factor = sa.scale * sb.scale / to.scale;
    let out = broadcast_map(a, b, &x, &y, |a, b| round(a * b * factor + to.zero).clamp(low, high))?;
    pack(a.dtype(), &out.0, &out.1)
}

fn broadcast_map(a: &Tensor, b: &Tensor, x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> Result<(Shape, Vec<f32>), OpError> {
    if a.dtype() != b.dtype() {
        invalid!("expected operands of one type, found {} and {}", a.dtype(), b.dtype());
    }
    let shape = util::broadcast(&[a.shape(), b.shape()])?;
    let operands = [util::broadcast_strides(a.shape(), &shape), util::broadcast_strides(b.shape(), &shape)];
    let (last, steps) = (shape.last().copied().unwrap_or(1), operands.clone().map(|s| s.last().copied().unwrap_or(0)));
    let mut out = Vec::new();
    util::for_each_row(&shape, &operands, |_, at| {
        out.extend((0..last).map(|i| f(x[at[0] + i * steps[0]], y[at[1] + i * steps[1]])));
    });
    Ok((shape, out))
}

fn infer_concat(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let axis = cx.op.attrs.int_or("axis", 0)?;
    let parts: Option<Vec<&[Dim]>> = (2..cx.facts.len()).step_by(3).map(|i| cx.shape(i)).collect();
    let Some([first, rest @ ..]) = parts.as_deref() else { return Ok(vec![Fact::partial(cx.dtype(1), None)]) };
    let at = util::axis(axis, first.len())?;
    let mut shape = first.to_vec();
    for part in rest {
        if part.len() != shape.len() {
            invalid!("expected parts of one rank, found {} and {}", shape.len(), part.len());
        }
        shape[at] = match (shape[at].known(), part[at].known()) {
            (Some(a), Some(b)) => a.checked_add(b).map_or(Dim::Unknown, Dim::Known),
            _ => Dim::Unknown,
        };
    }
    Ok(vec![Fact::partial(cx.dtype(1), Some(shape))])
}

fn build_concat(cx: &OpCtx) -> Result<Kernel, OpError> {
    let Some(axis) = cx.attrs.int("axis")? else { invalid!("attribute \"axis\" is missing") };
    Ok(Box::new(move |args| {
        if args.len() < 5 || !(args.len() - 2).is_multiple_of(3) {
            invalid!("expected a scale, a zero point and triples, found {} inputs", args.len());
        }
        let (to, dtype) = (Scale::new(args.tensor(0)?, args.opt(1)?)?, args.tensor(1)?.dtype());
        let bounds = bounds(dtype)?;
        let mut parts = Vec::new();
        for i in (2..args.len()).step_by(3) {
            let x = args.tensor(i)?;
            let from = Scale::new(args.tensor(i + 1)?, args.opt(i + 2)?)?;
            let mut data = from.read(x)?;
            if from.scale == to.scale && from.zero == to.zero && x.dtype() == dtype {
                data = x.to_f32s()?;
            } else {
                data.iter_mut().for_each(|v| *v = to.write(*v, bounds));
            }
            parts.push((x.shape(), data));
        }
        let mut shape = parts[0].0.clone();
        let at = util::axis(axis, shape.len())?;
        let outer: usize = shape[..at].iter().product();
        let mut total = 0;
        for (s, _) in &parts {
            if s.len() != shape.len() || (0..s.len()).any(|d| d != at && s[d] != shape[d]) {
                invalid!("shapes {shape} and {s} do not join along axis {at}");
            }
            total += s[at];
        }
        shape[at] = total;
        let mut out = Vec::new();
        for o in 0..outer {
            for (s, data) in &parts {
                let run: usize = s[at..].iter().product();
                out.extend_from_slice(&data[o * run..][..run]);
            }
        }
        one(pack(dtype, &shape, &out)?)
    }))
}

/// The record of the pooling of floats, and its name.
fn average_pool() -> Result<(&'static OpDef, OpName), OpError> {
    let name = OpName::new("", "AveragePool");
    match find(&name) {
        Some(def) => Ok((def, name)),
        None => unsupported!("this build has no {name}"),
    }
}

/// The opset whose AveragePool is meant.
const POOL_OPSET: i64 = 19;

fn infer_average_pool(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let (def, name) = average_pool()?;
    (def.infer)(&InferCtx { op: OpCtx { op: &name, version: POOL_OPSET, inputs: 1, ..cx.op.clone() }, facts: &cx.facts[..1] })
}

fn build_average_pool(cx: &OpCtx) -> Result<Kernel, OpError> {
    if cx.attrs.int_or("channels_last", 0)? != 0 {
        unsupported!("channels_last is not supported");
    }
    let (def, name) = average_pool()?;
    let Run::Kernel(build) = def.run else { unsupported!("this build has no kernel for {name}") };
    let pool = build(&OpCtx { op: &name, version: POOL_OPSET, inputs: 1, constants: &[], ..cx.clone() })?;
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        let (from, to) = (Scale::new(args.tensor(1)?, args.opt(2)?)?, Scale::new(args.tensor(3)?, args.opt(4)?)?);
        let bounds = bounds(x.dtype())?;
        let real = Tensor::new(x.shape(), from.read(x)?)?;
        let Some(pooled) = pool(Args::new([Some(real.into())]))?.into_iter().next().and_then(Value::into_tensor) else {
            invalid!("{name} gives no tensor")
        };
        let data: Vec<f32> = pooled.as_slice::<f32>()?.iter().map(|&v| to.write_shifted(v, bounds)).collect();
        one(pack(x.dtype(), pooled.shape(), &data)?)
    }))
}

fn infer_global_pool(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let last = cx.op.attrs.int_or("channels_last", 0)? != 0;
    let shape = cx.shape(0).map(|s| {
        let channel = if last { s.len().saturating_sub(1) } else { 1 };
        s.iter().enumerate().map(|(i, d)| if i == 0 || i == channel { d.clone() } else { Dim::Known(1) }).collect()
    });
    Ok(vec![Fact::partial(cx.dtype(0), shape)])
}

fn build_global_pool(cx: &OpCtx) -> Result<Kernel, OpError> {
    let last = cx.attrs.int_or("channels_last", 0)? != 0;
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        let (from, to) = (Scale::new(args.tensor(1)?, args.opt(2)?)?, Scale::new(args.tensor(3)?, args.opt(4)?)?);
        let bounds = bounds(x.dtype())?;
        if x.rank() < 2 {
            invalid!("expected rank 2 or more, found shape {}", x.shape());
        }
        let channel = if last { x.rank() - 1 } else { 1 };
        let (batch, channels) = (x.shape()[0], x.shape()[channel]);
        let spatial = x.len().checked_div(batch * channels).unwrap_or(0);
        let data = x.to_f32s()?;
        let mut out = Vec::with_capacity(batch * channels);
        for b in 0..batch {
            for c in 0..channels {
                let at = |p: usize| if last { (b * spatial + p) * channels + c } else { (b * channels + c) * spatial + p };
                let sum: f32 = (0..spatial).map(|p| data[at(p)] - from.zero).sum();
                out.push(to.write(sum * from.scale / spatial as f32, bounds));
            }
        }
        let shape = Shape::from_dims(x.shape().iter().enumerate().map(|(i, &d)| if i == 0 || i == channel { d } else { 1 }));
        one(pack(x.dtype(), &shape, &out)?)
    }))
}

fn turned(t: &Tensor, flip: bool) -> Result<Tensor, OpError> {
    let [rows, cols] = t.shape()[..] else { invalid!("expected a matrix, found shape {}", t.shape()) };
    if !flip {
        return Ok(t.clone());
    }
    let bytes = match t.bytes() {
        Some(b) if t.dtype().bits() == 8 => b,
        _ => invalid!("expected 8-bit elements, found {}", t.dtype()),
    };
    Ok(Tensor::from_bytes(t.dtype(), [cols, rows], crate::ops::gemm::transpose(bytes, rows, cols))?)
}

fn infer_qgemm(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let side = |i: usize, name: &str, at: usize| -> Result<Dim, OpError> {
        let flip = usize::from(cx.op.attrs.int_or(name, 0)? != 0);
        Ok(cx.shape(i).filter(|s| s.len() == 2).map_or(Dim::Unknown, |s| s[at ^ flip].clone()))
    };
    let dtype = match (cx.has(7), cx.has(8)) {
        (false, _) => Some(DType::F32),
        (true, false) => cx.dtype(0),
        (true, true) => cx.dtype(8),
    };
    Ok(vec![Fact::partial(dtype, Some(vec![side(0, "transA", 0)?, side(3, "transB", 1)?]))])
}

fn build_qgemm(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (alpha, ta, tb) = (cx.attrs.float_or("alpha", 1.0)?, cx.attrs.int_or("transA", 0)? != 0, cx.attrs.int_or("transB", 0)? != 0);
    Ok(Box::new(move |args| {
        let (a, b) = (turned(args.tensor(0)?, ta)?, turned(args.tensor(3)?, tb)?);
        let (shape, mut sums) = integer_product(&a, &b, args.opt(2)?, args.opt(5)?)?;
        let (sa, sb) = (Scale::new(args.tensor(1)?, None)?.scale, args.tensor(4)?.to_f32s()?);
        let cols = shape[1];
        if sb.len() != 1 && sb.len() != cols {
            invalid!("expected 1 or {cols} scales, found {}", sb.len());
        }
        if let Some(c) = args.opt(6)? {
            if *util::broadcast(&[c.shape(), &shape])? != *shape {
                invalid!("shape {} of C does not broadcast to {shape}", c.shape());
            }
            let (data, s) = (c.to_slice::<i32>()?, util::broadcast_strides(c.shape(), &shape));
            sums.iter_mut().enumerate().for_each(|(i, x)| *x = x.wrapping_add(data[i / cols * s[0] + i % cols * s[1]]));
        }
        let factor = |i: usize| alpha * sa * sb[if sb.len() == 1 { 0 } else { i % cols }];
        let Some(y_scale) = args.opt(7)? else {
            return one(Tensor::new(shape, sums.iter().enumerate().map(|(i, &x)| x as f32 * factor(i)).collect())?);
        };
        let to = Scale::new(y_scale, args.opt(8)?)?;
        let dtype = args.opt(8)?.map_or(a.dtype(), Tensor::dtype);
        let (low, high) = bounds(dtype)?;
        let out: Vec<f32> =
            sums.iter().enumerate().map(|(i, &x)| (round(x as f32 * (factor(i) / to.scale)) + to.zero).clamp(low, high)).collect();
        one(pack(dtype, &shape, &out)?)
    }))
}

/// Scales sums by `scale` and one number for all or per column, and adds a bias of the last axis.
fn scaled(shape: &Shape, sums: &[i32], scale: impl Fn(usize, usize) -> f32, bias: Option<&Tensor>) -> Result<Vec<f32>, OpError> {
    let cols = shape.last().copied().unwrap_or(1).max(1);
    let bias = bias.map(Tensor::to_f32s).transpose()?;
    if bias.as_ref().is_some_and(|b| b.len() != cols) {
        invalid!("expected a bias of {cols} elements");
    }
    Ok(sums.iter().enumerate().map(|(i, &x)| x as f32 * scale(i / cols, i % cols) + bias.as_ref().map_or(0.0, |b| b[i % cols])).collect())
}

fn integer_to_float(args: &Args) -> Result<Tensor, OpError> {
    let (a, b) = (args.tensor(0)?, args.tensor(1)?);
    let (shape, sums) = integer_product(a, b, args.opt(4)?, args.opt(5)?)?;
    let (sa, sb) = (args.tensor(2)?.to_f32s()?, args.tensor(3)?.to_f32s()?);
    let (rows, cols) = (sums.len() / shape.last().copied().unwrap_or(1).max(1), shape.last().copied().unwrap_or(1));
    if ![1, rows].contains(&sa.len()) || ![1, cols].contains(&sb.len()) {
        invalid!("{} and {} scales do not fit shape {shape}", sa.len(), sb.len());
    }
    let out = scaled(&shape, &sums, |r, c| sa[if sa.len() == 1 { 0 } else { r }] * sb[if sb.len() == 1 { 0 } else { c }], args.opt(6)?)?;
    Ok(cast(&Tensor::new(shape, out)?, args.tensor(2)?.dtype())?)
}

fn dynamic_matmul(args: &Args) -> Result<Tensor, OpError> {
    let (a, b) = (args.tensor(0)?, args.tensor(1)?);
    let (values, scale, zero) = dynamic_quantize(&a.to_f32s()?);
    let quantized = pack(DType::U8, a.shape(), &values)?;
    let (shape, sums) = integer_product(&quantized, b, Some(&Tensor::scalar(zero as u8)), args.opt(3)?)?;
    let (sb, cols) = (args.tensor(2)?.to_f32s()?, shape.last().copied().unwrap_or(1));
    if ![1, cols].contains(&sb.len()) {
        invalid!("{} scales do not fit shape {shape}", sb.len());
    }
    let out = scaled(&shape, &sums, |_, c| scale * sb[if sb.len() == 1 { 0 } else { c }], args.opt(4)?)?;
    Ok(Tensor::new(shape, out)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;

    fn s(x: f32) -> Tensor {
        Tensor::scalar(x)
    }

    fn z(x: u8) -> Tensor {
        Tensor::scalar(x)
    }

    #[test]
    fn gemm_gives_bytes_or_floats() {
        let a = Tensor::new([2, 2], vec![1u8, 200, 3, 40]).unwrap();
        let b = Tensor::new([2, 2], vec![5u8, 100, 70, 8]).unwrap();
        let mut inputs = vec![a, s(0.1), z(3), b, s(0.2), z(9), Tensor::vector(vec![10i32, -20])];
        let out = run("com.microsoft::QGemm", 1, Attrs::new().with("transB", 1i64).with("alpha", 2f32), &inputs).unwrap();
        let want = [717.8, -13.56, 135.08, -2.28];
        assert!(out.to_f32s().unwrap().iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-3), "{out:?}");
        inputs.extend([s(0.7), z(4)]);
        let out = run("com.microsoft::QGemm", 1, Attrs::new().with("transB", 1i64), &inputs).unwrap();
        assert_eq!(out, Tensor::new([2, 2], vec![255u8, 0, 100, 2]).unwrap());
    }

    #[test]
    fn element_wise() {
        let x = Tensor::vector(vec![128u8, 138]);
        let out = run("com.microsoft::QLinearSigmoid", 1, Attrs::new(), &[x.clone(), s(0.1), z(128), s(1.0 / 256.0), z(0)]).unwrap();
        assert_eq!(out, Tensor::vector(vec![128u8, 187]));
        let inputs = [x.clone(), s(1.0), z(128), x.clone(), s(0.5), z(128), s(1.0), z(1)];
        assert_eq!(run("com.microsoft::QLinearAdd", 1, Attrs::new(), &inputs).unwrap(), Tensor::vector(vec![1u8, 16]));
        assert_eq!(run("com.microsoft::QLinearMul", 1, Attrs::new(), &inputs).unwrap(), Tensor::vector(vec![1u8, 51]));
        let inputs = [s(1.0), z(0), x.clone(), s(1.0), z(128), x, s(1.0), z(0)];
        let out = run("com.microsoft::QLinearConcat", 1, Attrs::new().with("axis", 0i64), &inputs).unwrap();
        assert_eq!(out, Tensor::vector(vec![0u8, 10, 128, 138]));
    }
}
