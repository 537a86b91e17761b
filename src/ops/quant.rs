//! Linear quantization: per tensor, along an axis, and in blocks.

use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, one, rows, util};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{DType, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, Shape, Tensor, bf16, cast, f4e2m1_from_f32, f16, pack_bits};

const VERSIONS: &[i64] = &[10, 13, 19, 21, 23, 24, 25];
const QUANTIZE: OpDef = OpDef::new("QuantizeLinear", VERSIONS)
    .inputs(2, 3)
    .attrs(&["axis", "block_size", "output_dtype", "precision", "saturate"])
    .infer(infer_quantize)
    .kernel(build_quantize);
const DEQUANTIZE: OpDef = OpDef::new("DequantizeLinear", VERSIONS)
    .inputs(2, 3)
    .attrs(&["axis", "block_size", "output_dtype"])
    .infer(infer_dequantize)
    .kernel(build_dequantize);

pub(super) const OPS: &[OpDef] = &[
    DEQUANTIZE,
    OpDef { versions: &[1], ..DEQUANTIZE.domain("com.microsoft") },
    OpDef::new("DynamicQuantizeLinear", &[11]).outputs(3, 3).infer(infer_dynamic).kernel(build_dynamic),
    QUANTIZE,
    OpDef { versions: &[1], ..QUANTIZE.domain("com.microsoft") },
];

/// Which scale and zero point apply to which elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Grid {
    /// One for all.
    Tensor,
    /// One per position of the middle axis of `[outer, dim, inner]`.
    Axis { dim: usize, inner: usize },
    /// One per `block` positions of the middle axis, of which there are `blocks`, for each outer and inner position.
    Block { dim: usize, inner: usize, block: usize, blocks: usize },
}

impl Grid {
    /// From the shapes of the elements and of the scales.
    pub fn new(x: &Shape, scale: &Shape, axis: i64, block: usize) -> Result<Self, OpError> {
        if scale.iter().product::<usize>() == 1 {
            return Ok(Grid::Tensor);
        }
        let at = util::axis(axis, x.len())?;
        let (dim, inner) = (x[at], x[at + 1..].iter().product());
        if block == 0 {
            if **scale != [dim] {
                invalid!("expected {dim} scales along axis {at}, found shape {scale}");
            }
            return Ok(Grid::Axis { dim, inner });
        }
        let blocks = dim.div_ceil(block);
        if scale.len() != x.len() || scale.iter().zip(x.iter()).enumerate().any(|(i, (&s, &d))| s != if i == at { blocks } else { d }) {
            invalid!("scales of shape {scale} do not fit shape {x} in blocks of {block} along axis {at}");
        }
        Ok(Grid::Block { dim, inner, block, blocks })
    }

    /// Calls `f(start, len, param, step)` for runs of elements: element `start + i` has parameter `param + i * step`.
    pub fn runs(self, total: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
        match self {
            Grid::Tensor => f(0, total, 0, 0),
            Grid::Axis { dim, inner: 1 } => (0..total / dim.max(1)).for_each(|o| f(o * dim, dim, 0, 1)),
            Grid::Axis { dim, inner } => (0..total / inner.max(1)).for_each(|r| f(r * inner, inner, r % dim, 0)),
            Grid::Block { dim, inner, block, blocks } => {
                for r in 0..(total / inner.max(1)).div_ceil(dim.max(1)) * blocks {
                    let (o, b) = (r / blocks, r % blocks);
                    let (from, to) = (b * block, dim.min((b + 1) * block));
                    if inner == 1 {
                        f(o * dim + from, to - from, r, 0);
                    } else {
                        (from..to).for_each(|i| f((o * dim + i) * inner, inner, r * inner, 1));
                    }
                }
            }
        }
    }
}

/// Rounds to the nearest integer, ties to even, for the range that quantized types have; far values come out clipped.
#[inline(always)]
pub(super) fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x.clamp(-1e6, 1e6) + SHIFT) - SHIFT
}

/// Least and greatest value of an integer type that tensors are quantized to.
pub(super) fn range(dtype: DType) -> Option<(f32, f32)> {
    Some(match dtype {
        DType::U8 => (0.0, 255.0),
        DType::I8 => (-128.0, 127.0),
        DType::U16 => (0.0, 65535.0),
        DType::I16 => (-32768.0, 32767.0),
        DType::U4 => (0.0, 15.0),
        DType::I4 => (-8.0, 7.0),
        DType::U2 => (0.0, 3.0),
        DType::I2 => (-2.0, 1.0),
        _ => return None,
    })
}

/// Integer values (already rounded and clipped) as a tensor of an integer type.
pub(super) fn pack(dtype: DType, shape: &Shape, values: &[f32]) -> Result<Tensor, OpError> {
    fn to<T: crate::tensor::Element>(shape: &Shape, values: &[f32], f: impl Fn(f32) -> T) -> Result<Tensor, OpError> {
        Ok(Tensor::new(shape, values.iter().map(|&v| f(v)).collect())?)
    }
    match dtype {
        DType::U8 => to(shape, values, |v| v as u8),
        DType::I8 => to(shape, values, |v| v as i8),
        DType::U16 => to(shape, values, |v| v as u16),
        DType::I16 => to(shape, values, |v| v as i16),
        DType::I32 => to(shape, values, |v| v as i32),
        DType::U4 | DType::I4 | DType::U2 | DType::I2 => {
            let codes: Vec<u8> = values.iter().map(|&v| v as i8 as u8).collect();
            Ok(Tensor::from_vec_as(dtype, shape, pack_bits(&codes, dtype.bits()))?)
        }
        other => invalid!("expected a quantized integer type, found {other}"),
    }
}

/// How values become quantized ones.
struct Quantize {
    axis: i64,
    block: usize,
    saturate: bool,
    output: Option<DType>,
    precision: Option<DType>,
}

fn dtype_attr(cx: &OpCtx, name: &str) -> Result<Option<DType>, OpError> {
    match cx.attrs.int_or(name, 0)? {
        0 => Ok(None),
        code => match i32::try_from(code).ok().and_then(DType::from_onnx) {
            None => invalid!("{name} {code} is no element type"),
            d => Ok(d),
        },
    }
}

fn block_size(cx: &OpCtx) -> Result<usize, OpError> {
    let block = cx.attrs.int_or("block_size", 0)?;
    usize::try_from(block).map_err(|_| OpError::Invalid(format!("block_size must not be negative, found {block}")))
}

fn infer_quantize(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dtype = match dtype_attr(&cx.op, "output_dtype")? {
        Some(d) => Some(d),
        None if cx.has(2) => cx.dtype(2),
        None => Some(DType::U8),
    };
    Ok(vec![Fact::partial(dtype, cx.shape(0).map(<[Dim]>::to_vec))])
}

fn build_quantize(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = Quantize {
        axis: cx.attrs.int_or("axis", 1)?,
        block: block_size(cx)?,
        saturate: cx.attrs.int_or("saturate", 1)? != 0,
        output: dtype_attr(cx, "output_dtype")?,
        precision: dtype_attr(cx, "precision")?,
    };
    Ok(Box::new(move |args| one(quantize(&spec, args.tensor(0)?, args.tensor(1)?, args.opt(2)?)?)))
}

/// The zero points as `f32`, if there are any and they have the shape of the scales.
fn zeros(zero: Option<&Tensor>, scale: &Tensor) -> Result<Option<Vec<f32>>, OpError> {
    let Some(zero) = zero else { return Ok(None) };
    if zero.len() != scale.len() {
        invalid!("zero point {} and scale {} differ in shape", zero.shape(), scale.shape());
    }
    Ok(Some(zero.to_f32s()?))
}

fn quantize(spec: &Quantize, x: &Tensor, scale: &Tensor, zero: Option<&Tensor>) -> Result<Tensor, OpError> {
    let dtype = match (spec.output, zero.map(Tensor::dtype)) {
        (Some(a), Some(b)) if a != b => invalid!("output_dtype {a} and zero point {b} differ"),
        (a, b) => b.or(a).unwrap_or(DType::U8),
    };
    if !(x.dtype().is_float() || x.dtype() == DType::I32) {
        invalid!("expected floats or int32, found {}", x.dtype());
    }
    let grid = Grid::new(x.shape(), scale.shape(), spec.axis, spec.block)?;
    let (zeros, scales) = (zeros(zero, scale)?, scale.to_f32s()?);
    let precision = spec.precision.unwrap_or(scale.dtype());
    let mut data = x.to_f32s()?;
    let divide = |x: f32, s: f32| match precision {
        DType::F16 => f16::from_f32(x / s).to_f32(),
        DType::BF16 => bf16::from_f32(x / s).to_f32(),
        _ => x / s,
    };
    let total = data.len();
    if let Some((low, high)) = range(dtype) {
        grid.runs(total, |start, len, p, step| {
            let run = &mut data[start..start + len];
            if step == 0 {
                let (s, z) = (scales[p], zeros.as_ref().map_or(0.0, |z| z[p]));
                if matches!(precision, DType::F16 | DType::BF16) {
                    run.iter_mut().for_each(|v| *v = (round(divide(*v, s)) + z).clamp(low, high));
                } else {
                    run.iter_mut().for_each(|v| *v = (round(*v / s) + z).clamp(low, high));
                }
            } else {
                for (i, v) in run.iter_mut().enumerate() {
                    let z = zeros.as_ref().map_or(0.0, |z| z[p + i]);
                    *v = (round(divide(*v, scales[p + i])) + z).clamp(low, high);
                }
            }
        });
        return pack(dtype, x.shape(), &data);
    }
    grid.runs(total, |start, len, p, step| {
        for (i, v) in data[start..start + len].iter_mut().enumerate() {
            *v = divide(*v, scales[p + i * step]);
        }
    });
    let (shape, sat) = (x.shape(), spec.saturate);
    Ok(match dtype {
        DType::F8E4M3FN => Tensor::new(shape, data.iter().map(|&v| F8E4M3FN::from_f32(v, sat)).collect())?,
        DType::F8E4M3FNUZ => Tensor::new(shape, data.iter().map(|&v| F8E4M3FNUZ::from_f32(v, sat)).collect())?,
        DType::F8E5M2 => Tensor::new(shape, data.iter().map(|&v| F8E5M2::from_f32(v, sat)).collect())?,
        DType::F8E5M2FNUZ => Tensor::new(shape, data.iter().map(|&v| F8E5M2FNUZ::from_f32(v, sat)).collect())?,
        DType::F4E2M1 => {
            if let Some(zeros) = &zeros {
                grid.runs(total, |start, len, p, step| {
                    data[start..start + len].iter_mut().enumerate().for_each(|(i, v)| *v += zeros[p + i * step]);
                });
            }
            let codes: Vec<u8> = data.iter().map(|&v| f4e2m1_from_f32(v)).collect();
            Tensor::from_vec_as(dtype, shape, pack_bits(&codes, 4))?
        }
        other => invalid!("the quantized dtype must be an integer or float8 one, found {other}"),
    })
}

fn infer_dequantize(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dtype = match dtype_attr(&cx.op, "output_dtype")? {
        None => cx.dtype(1).map(|d| if d == DType::F8E8M0 { DType::F32 } else { d }),
        d => d,
    };
    Ok(vec![Fact::partial(dtype, cx.shape(0).map(<[Dim]>::to_vec))])
}

fn build_dequantize(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (axis, block, output) = (cx.attrs.int_or("axis", 1)?, block_size(cx)?, dtype_attr(cx, "output_dtype")?);
    Ok(Box::new(move |args| {
        let (x, scale, zero) = (args.tensor(0)?, args.tensor(1)?, args.opt(2)?);
        let fallback = if scale.dtype() == DType::F8E8M0 { DType::F32 } else { scale.dtype() };
        one(cast(&dequantize(x, scale, zero, axis, block)?, output.unwrap_or(fallback))?)
    }))
}

/// `(x - zero) * scale` in `float32`.
pub(super) fn dequantize(x: &Tensor, scale: &Tensor, zero: Option<&Tensor>, axis: i64, block: usize) -> Result<Tensor, OpError> {
    if zero.is_some_and(|z| z.dtype() != x.dtype()) {
        invalid!("the zero point must be {} as the elements, found {}", x.dtype(), zero.map_or(x.dtype(), Tensor::dtype));
    }
    let grid = Grid::new(x.shape(), scale.shape(), axis, block)?;
    let (zeros, scales) = (zeros(zero, scale)?, scale.to_f32s()?);
    let mut data = x.to_f32s()?;
    grid.runs(data.len(), |start, len, p, step| {
        let run = &mut data[start..start + len];
        if step == 0 {
            let (s, z) = (scales[p], zeros.as_ref().map_or(0.0, |z| z[p]));
            run.iter_mut().for_each(|v| *v = (*v - z) * s);
        } else {
            for (i, v) in run.iter_mut().enumerate() {
                *v = (*v - zeros.as_ref().map_or(0.0, |z| z[p + i])) * scales[p + i];
            }
        }
    });
    Ok(Tensor::new(x.shape(), data)?)
}

fn infer_dynamic(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(Some(DType::U8), cx.shape(0).map(<[Dim]>::to_vec)), Fact::tensor(DType::F32, []), Fact::tensor(DType::U8, [])])
}

/// `uint8` values of `x`, with the scale and zero point that its range gives.
pub(super) fn dynamic_quantize(x: &[f32]) -> (Vec<f32>, f32, f32) {
    let high = rows::max(x).max(0.0);
    let low = rows::fold(x, f32::INFINITY, |v| v, f32::min).min(0.0);
    let scale = if high == low { 1.0 } else { (high - low) / 255.0 };
    let zero = round((0.0 - low / scale).clamp(0.0, 255.0));
    (util::map(x, |&v| (round(v / scale) + zero).clamp(0.0, 255.0)), scale, zero)
}

fn build_dynamic(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| {
        let x = args.tensor(0)?;
        let (values, scale, zero) = dynamic_quantize(args.slice::<f32>(0)?);
        let y = pack(DType::U8, x.shape(), &values)?;
        Ok(Outputs::from_iter([y.into(), Tensor::scalar(scale).into(), Tensor::scalar(zero as u8).into()]))
    }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{run, run_values};
    use super::*;
    use crate::ir::Attrs;

    fn f(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::new(shape, data.to_vec()).unwrap()
    }

    #[test]
    fn rounds_half_to_even_and_saturates() {
        let x = f(&[7], &[0.5, 1.5, 2.5, -0.5, 1000.0, -1000.0, 3.0]);
        let out = run("QuantizeLinear", 13, Attrs::new(), &[x, Tensor::scalar(1f32), Tensor::scalar(1u8)]).unwrap();
        assert_eq!(out, Tensor::vector(vec![1u8, 3, 3, 1, 255, 0, 4]));
    }

    #[test]
    fn along_an_axis_and_in_blocks() {
        let x = f(&[2, 2], &[2.0, 4.0, 6.0, 9.0]);
        let attrs = Attrs::new().with("axis", 0i64);
        let out = run("QuantizeLinear", 13, attrs, &[x.clone(), f(&[2], &[2.0, 3.0]), Tensor::vector(vec![0i8, 1])]).unwrap();
        assert_eq!(out, Tensor::new([2, 2], vec![1i8, 2, 3, 4]).unwrap());
        let attrs = Attrs::new().with("axis", 1i64).with("block_size", 2i64);
        let q = Tensor::new([2, 3], vec![1i8, 2, 3, 4, 5, 6]).unwrap();
        let out = run("DequantizeLinear", 21, attrs, &[q.clone(), f(&[2, 2], &[1.0, 10.0, 100.0, 1000.0])]).unwrap();
        assert_eq!(out, f(&[2, 3], &[1.0, 2.0, 30.0, 400.0, 500.0, 6000.0]));
        let attrs = Attrs::new().with("axis", 0i64).with("block_size", 2i64);
        let out = run("DequantizeLinear", 21, attrs.clone(), &[q.clone(), f(&[1, 3], &[1.0, 2.0, 3.0])]).unwrap();
        assert_eq!(out, f(&[2, 3], &[1.0, 4.0, 9.0, 4.0, 10.0, 18.0]));
        assert!(run("DequantizeLinear", 21, attrs, &[q, f(&[2, 2], &[1.0; 4])]).is_err());
    }

    #[test]
    fn int4_is_packed() {
        let attrs = Attrs::new().with("output_dtype", i64::from(DType::I4.to_onnx()));
        let out = run("QuantizeLinear", 21, attrs, &[f(&[3], &[-9.0, 7.4, -1.0]), Tensor::scalar(1f32)]).unwrap();
        assert_eq!((out.dtype(), out.to_i64s().unwrap()), (DType::I4, vec![-8, 7, -1]));
    }

    #[test]
    fn the_range_gives_scale_and_zero_point() {
        let out = run_values("DynamicQuantizeLinear", 11, Attrs::new(), vec![Some(f(&[3], &[-1.0, 0.0, 1.55]).into())], 3).unwrap();
        assert_eq!(out[1], Tensor::scalar(0.01f32).into());
        assert_eq!(out[2], Tensor::scalar(100u8).into());
        assert_eq!(out[0], Tensor::vector(vec![0u8, 100, 255]).into());
    }
}
