//! Weights quantized in blocks: lookups and products.

use super::op;
use crate::invalid;
use crate::ir::Dim;
use crate::ops::gemm::{Bias, Dims, Epilogue, Matrix, product, transpose};
use crate::ops::matmul::new_out;
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, one, util};
use crate::tensor::{DType, Shape, Tensor, cast, f4e2m1_to_f32, strides};

pub(in crate::ops) const OPS: &[OpDef] = &[
    op("GatherBlockQuantized")
        .inputs(3, 4)
        .attrs(&["bits", "block_size", "gather_axis", "quantize_axis"])
        .infer(infer_gather)
        .kernel(build_gather),
    op("MatMulNBits")
        .inputs(3, 6)
        .attrs(&["K", "N", "accuracy_level", "bits", "block_size", "weight_prepacked"])
        .infer(infer_matmul)
        .kernel(build_matmul),
];

/// The attributes of GatherBlockQuantized.
struct Gather {
    bits: usize,
    block: usize,
    gather: i64,
    quantize: i64,
}

fn gather_spec(cx: &OpCtx) -> Result<Gather, OpError> {
    let (bits, block) = (cx.attrs.int_or("bits", 4)?, cx.attrs.int_or("block_size", 128)?);
    if ![2, 4, 8].contains(&bits) || !(0..=1 << 30).contains(&block) {
        invalid!("bits {bits} or block_size {block} is out of range");
    }
    Ok(Gather {
        bits: bits as usize,
        block: block as usize,
        gather: cx.attrs.int_or("gather_axis", 0)?,
        quantize: cx.attrs.int_or("quantize_axis", 1)?,
    })
}

fn infer_gather(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let spec = gather_spec(&cx.op)?;
    let (Some(data), Some(ids)) = (cx.shape(0), cx.shape(1)) else { return Ok(vec![Fact::partial(cx.dtype(2), None)]) };
    let at = util::axis(spec.gather, data.len())?;
    let mut data = data.to_vec();
    match (cx.dtype(0), data.last_mut()) {
        (Some(DType::U8), Some(d)) => *d = d.known().and_then(|d| d.checked_mul(8 / spec.bits)).map_or(Dim::Unknown, Dim::Known),
        (None, Some(d)) => *d = Dim::Unknown,
        _ => {}
    }
    let shape = data[..at].iter().chain(ids).chain(&data[at + 1..]).cloned().collect();
    Ok(vec![Fact::partial(cx.dtype(2), Some(shape))])
}

fn build_gather(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = gather_spec(cx)?;
    Ok(Box::new(move |args| one(gather(&spec, &args)?)))
}

/// A table of codes, of which single elements are read.
struct Codes<'a> {
    bytes: &'a [u8],
    bits: usize,
    decode: fn(u8) -> f32,
}

impl Codes<'_> {
    fn at(&self, i: usize) -> f32 {
        let per = 8 / self.bits;
        let code = (self.bytes[i / per] >> (i % per * self.bits)) & (0xff >> (8 - self.bits));
        (self.decode)(code)
    }

    fn len(&self) -> usize {
        self.bytes.len() * (8 / self.bits)
    }
}

/// How a dtype's codes are read, packed bytes with `bits` a code among them, and the zero point where none is given.
fn codes(t: &Tensor, bits: usize) -> Result<(Codes<'_>, f32), OpError> {
    use crate::tensor::{F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ};
    let Some(bytes) = t.bytes() else { invalid!("the quantized table is not in the file") };
    let (bits, decode, zero): (usize, fn(u8) -> f32, f32) = match t.dtype() {
        DType::U8 => (bits, f32::from, (1 << (bits - 1)) as f32),
        DType::U4 => (4, f32::from, 0.0),
        DType::I4 => (4, |c| f32::from(((c << 4) as i8) >> 4), 0.0),
        DType::I8 => (8, |c| f32::from(c as i8), 0.0),
        DType::F4E2M1 => (4, f4e2m1_to_f32, 0.0),
        DType::F8E4M3FN => (8, |c| F8E4M3FN(c).to_f32(), 0.0),
        DType::F8E4M3FNUZ => (8, |c| F8E4M3FNUZ(c).to_f32(), 0.0),
        DType::F8E5M2 => (8, |c| F8E5M2(c).to_f32(), 0.0),
        DType::F8E5M2FNUZ => (8, |c| F8E5M2FNUZ(c).to_f32(), 0.0),
        other => invalid!("expected quantized elements, found {other}"),
    };
    Ok((Codes { bytes, bits, decode }, zero))
}

fn gather(spec: &Gather, args: &Args) -> Result<Tensor, OpError> {
    let (data, scales, zeros) = (args.tensor(0)?, args.tensor(2)?, args.opt(3)?);
    let (codes, default_zero) = self::codes(data, spec.bits)?;
    let mut shape = data.shape().clone();
    let rank = shape.len();
    let (at, quantized) = (util::axis(spec.gather, rank)?, util::axis(spec.quantize, rank)?);
    if data.dtype() == DType::U8 {
        if at != 0 || (at == quantized && spec.bits < 8) {
            invalid!("gather_axis {at} and quantize_axis {quantized} do not suit uint8 data");
        }
        shape[rank - 1] *= 8 / spec.bits;
    }
    let block = if spec.block == 0 { shape[quantized].max(1) } else { spec.block };
    if scales.rank() != rank
        || (0..rank).any(|d| {
            let blocks = if d == quantized { shape[d].div_ceil(block) } else { shape[d] };
            scales.shape()[d] != blocks && (d == quantized || scales.shape()[d] != 1)
        })
    {
        invalid!("scales of shape {} do not fit shape {shape} in blocks of {block} along axis {quantized}", scales.shape());
    }
    let zero_codes = zeros.map(|z| self::codes(z, spec.bits)).transpose()?;
    // Packed zero points of uint8 data are padded at the end of each row.
    let zero_row = zeros.map_or(0, |z| z.shape().last().map_or(1, |&d| if data.dtype() == DType::U8 { d * (8 / spec.bits) } else { d }));
    let scale_row = scales.shape().last().copied().unwrap_or(1);
    if let Some(z) = zeros
        && (z.rank() != rank || z.shape()[..rank - 1] != scales.shape()[..rank - 1] || zero_row < scale_row || z.dtype() != data.dtype())
    {
        invalid!("zero points {}{} do not fit {} data and scales of shape {}", z.dtype(), z.shape(), data.dtype(), scales.shape());
    }
    let scale_values = scales.to_f32s()?;
    let grid = util::broadcast_strides(scales.shape(), &shape);
    let own = strides(scales.shape());
    let (dim, inner) = (shape[at], shape[at + 1..].iter().product::<usize>());
    let ids = args.ints(1)?;
    let out_shape: Shape = shape[..at].iter().chain(args.tensor(1)?.shape().iter()).chain(&shape[at + 1..]).copied().collect();
    let mut out = new_out::<f32>(&out_shape)?;
    let position = strides(&shape);
    util::for_each_chunk(&mut out, inner, |r, row| {
        let (o, id) = (r / ids.len(), ids[r % ids.len()]);
        let id = if id < 0 { id + dim as i64 } else { id };
        // An id that names no row gives zeros.
        let Some(id) = usize::try_from(id).ok().filter(|&i| i < dim) else { return };
        let start = (o * dim + id) * inner;
        for (j, x) in row.iter_mut().enumerate() {
            let i = start + j;
            let s: usize = (0..rank)
                .map(|d| {
                    let p = i / position[d] % shape[d];
                    if d == quantized { p / block * own[d] } else { p * grid[d] }
                })
                .sum();
            let zero = zero_codes.as_ref().map_or(default_zero, |(z, _)| z.at(s / scale_row * zero_row + s % scale_row));
            *x = (codes.at(i) - zero) * scale_values[s];
        }
    });
    Ok(cast(&Tensor::new(out_shape, out)?, scales.dtype())?)
}

/// The attributes of MatMulNBits.
#[derive(Clone, Copy)]
struct NBits {
    k: usize,
    n: usize,
    bits: usize,
    block: usize,
}

fn nbits_spec(cx: &OpCtx) -> Result<NBits, OpError> {
    let get = |name: &str, default: Option<i64>| -> Result<usize, OpError> {
        match cx.attrs.int(name)?.or(default).and_then(|x| usize::try_from(x).ok()).filter(|&x| x > 0 && x <= 1 << 31) {
            Some(x) => Ok(x),
            None => invalid!("attribute {name:?} must be above 0"),
        }
    };
    let spec = NBits { k: get("K", None)?, n: get("N", None)?, bits: get("bits", Some(4))?, block: get("block_size", None)? };
    if ![2, 4, 8].contains(&spec.bits) || !(spec.block * spec.bits).is_multiple_of(8) || cx.attrs.int_or("weight_prepacked", 0)? != 0 {
        invalid!("bits {}, block_size {} or a layout of another machine", spec.bits, spec.block);
    }
    Ok(spec)
}

fn infer_matmul(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let spec = nbits_spec(&cx.op)?;
    let shape = cx.shape(0).map(|s| {
        let mut s = s.to_vec();
        if let Some(d) = s.last_mut() {
            *d = Dim::Known(spec.n);
        }
        s
    });
    Ok(vec![Fact::partial(cx.dtype(0), shape)])
}

/// The weights as a row-major `[k, n]`.
fn weights(spec: NBits, b: &Tensor, scales: &Tensor, zeros: Option<&Tensor>, group: Option<&Tensor>) -> Result<Vec<f32>, OpError> {
    let NBits { k, n, bits, block } = spec;
    let blocks = k.div_ceil(block);
    let Some(bytes) = b.bytes().filter(|x| Some(x.len()) == (n * blocks).checked_mul(block * bits / 8)) else {
        invalid!("weights of shape {} do not hold {n} columns of {blocks} blocks", b.shape());
    };
    let scales = scales.to_f32s()?;
    if scales.len() != n * blocks {
        invalid!("expected {} scales, found {}", n * blocks, scales.len());
    }
    let zero_row = (blocks * bits).div_ceil(8) * 8 / bits;
    let packed_zeros =
        zeros.filter(|z| z.dtype() == DType::U8).and_then(Tensor::bytes).map(|bytes| Codes { bytes, bits, decode: f32::from });
    let plain_zeros = zeros.filter(|z| z.dtype() != DType::U8).map(Tensor::to_f32s).transpose()?;
    if packed_zeros.as_ref().is_some_and(|z| z.len() < n * zero_row) || plain_zeros.as_ref().is_some_and(|z| z.len() != n * blocks) {
        invalid!("zero points do not fit {n} columns of {blocks} blocks");
    }
    let group = group.map(Tensor::to_i64s).transpose()?;
    if group.as_ref().is_some_and(|g| g.len() < k || g.iter().any(|&g| g < 0 || g as usize >= blocks)) {
        invalid!("g_idx does not name one of {blocks} blocks for each of {k} rows");
    }
    let codes = Codes { bytes, bits, decode: f32::from };
    let mut out = new_out::<f32>(&Shape::from([n, k]))?;
    util::for_each_chunk(&mut out, k, |col, row| {
        for (i, x) in row.iter_mut().enumerate() {
            let own = i / block;
            let b = group.as_ref().map_or(own, |g| g[i] as usize);
            let zero = match (&packed_zeros, &plain_zeros) {
                (Some(z), _) => z.at(col * zero_row + b),
                (None, Some(z)) => z[col * blocks + b],
                _ => (1 << (bits - 1)) as f32,
            };
            *x = (codes.at((col * blocks + own) * block + i % block) - zero) * scales[col * blocks + b];
        }
    });
    Ok(transpose(&out, n, k))
}

fn build_matmul(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = nbits_spec(cx)?;
    let given = |i: usize| cx.inputs > i;
    let prepared = match (cx.constant(1), cx.constant(2)) {
        (Some(b), Some(s)) if !b.is_empty() && (!given(3) || cx.constant(3).is_some()) && (!given(4) || cx.constant(4).is_some()) => {
            weights(spec, b, s, cx.constant(3), cx.constant(4)).ok()
        }
        _ => None,
    };
    Ok(Box::new(move |args| {
        let (a, bias) = (args.tensor(0)?, args.opt(5)?);
        let NBits { k, n, .. } = spec;
        if a.shape().last() != Some(&k) || bias.is_some_and(|b| b.len() != n) {
            invalid!("an input of shape {} and a bias do not fit K {k} and N {n}", a.shape());
        }
        let mut shape = a.shape().clone();
        let last = shape.len() - 1;
        shape[last] = n;
        let mut out = new_out::<f32>(&shape)?;
        let b = args.tensor(1)?;
        let own;
        let weights = match &prepared {
            Some(w) => w.as_slice(),
            // Weights that were left out count as zeros.
            None if b.is_empty() => {
                own = new_out::<f32>(&Shape::from([k, n]))?;
                &own
            }
            None => {
                own = weights(spec, b, args.tensor(2)?, args.opt(3)?, args.opt(4)?)?;
                &own
            }
        };
        let bias = bias.map(Tensor::to_f32s).transpose()?;
        let epilogue = Epilogue { bias: bias.as_ref().map_or(Bias::None, |b| Bias::Row(b)), activation: Default::default() };
        let x = a.to_f32s()?;
        let dims = Dims { m: x.len() / k, n, k };
        product(dims, 1.0, Matrix::new(&x, k, false), Matrix::new(weights, n, false), &[(0, 0)], &mut out, &epilogue)?;
        one(cast(&Tensor::new(shape, out)?, a.dtype())?)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;

    #[test]
    fn rows_are_gathered_and_scaled_by_block() {
        let data = Tensor::from_vec_as(DType::U4, [2, 32], [0x21u8, 0x43].repeat(16)).unwrap();
        let scales = Tensor::new([2, 2], vec![1f32, 10.0, 2.0, 20.0]).unwrap();
        let zeros = Tensor::from_vec_as(DType::U4, [2, 2], vec![0x10u8, 0x11]).unwrap();
        let attrs = Attrs::new().with("block_size", 16i64);
        let out = run("com.microsoft::GatherBlockQuantized", 1, attrs, &[data, Tensor::vector(vec![1i64, 0, 9]), scales, zeros]).unwrap();
        let out = out.to_f32s().unwrap();
        assert_eq!(out[..4], [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(out[16..20], [0.0, 20.0, 40.0, 60.0]);
        assert_eq!(out[32..36], [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(out[48..52], [0.0, 10.0, 20.0, 30.0]);
        assert_eq!(out[64..], [0.0; 32]);
    }

    #[test]
    fn four_bit_weights_multiply() {
        let attrs = Attrs::new().with("K", 16i64).with("N", 2i64).with("block_size", 16i64);
        let b = Tensor::new([2, 1, 8], [[0x99u8; 8], [0x7au8; 8]].concat()).unwrap();
        let scales = Tensor::vector(vec![1f32, 0.5]);
        let out = run("com.microsoft::MatMulNBits", 1, attrs, &[Tensor::new([1, 16], vec![1f32; 16]).unwrap(), b, scales]).unwrap();
        assert_eq!(out.to_f32s().unwrap(), [16.0, 4.0]);
    }
}
