//! Conversion between dtypes, and the packing of sub-byte elements.

use super::{
    Complex32, Complex64, DType, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, Storage, Tensor, TensorError, bf16, f4e2m1_from_f32,
    f4e2m1_to_f32, f16,
};
use std::sync::Arc;

impl Tensor {
    /// Whether the elements are owned and nobody else holds them: then [`Tensor::into_vec`] copies nothing.
    pub fn is_unique(&self) -> bool {
        matches!(&self.storage, Storage::Owned(buffer) if Arc::strong_count(buffer) == 1)
    }
}

/// Unpacks the `bits`-wide (2 or 4) codes of `len` elements, low bits first.
pub fn unpack_bits(bytes: &[u8], bits: usize, len: usize) -> Vec<u8> {
    let per = 8 / bits;
    let mask = (1u8 << bits) - 1;
    (0..len).map(|i| (bytes[i / per] >> ((i % per) * bits)) & mask).collect()
}

/// Packs `bits`-wide (2 or 4) codes, low bits first; the last byte is padded with zeros.
pub fn pack_bits(codes: &[u8], bits: usize) -> Vec<u8> {
    let per = 8 / bits;
    let mask = (1u8 << bits) - 1;
    codes.chunks(per).map(|c| c.iter().enumerate().fold(0, |b, (i, &x)| b | ((x & mask) << (i * bits)))).collect()
}

/// The tensor in a native type that holds each of its values: sub-byte ints as `int8`/`uint8`, small floats as `float32`.
fn widen(t: &Tensor) -> Result<Tensor, TensorError> {
    let shape = t.shape();
    let codes = |bits| unpack_bits(t.bytes().unwrap_or_default(), bits, t.len());
    let sign = |c: Vec<u8>, bits: u32| c.into_iter().map(|x| ((x << (8 - bits)) as i8) >> (8 - bits)).collect::<Vec<i8>>();
    match t.dtype() {
        DType::U4 => Tensor::new(shape, codes(4)),
        DType::U2 => Tensor::new(shape, codes(2)),
        DType::I4 => Tensor::new(shape, sign(codes(4), 4)),
        DType::I2 => Tensor::new(shape, sign(codes(2), 2)),
        DType::F4E2M1 => Tensor::new(shape, codes(4).into_iter().map(f4e2m1_to_f32).collect()),
        DType::F16 => Tensor::new(shape, t.to_slice::<f16>()?.iter().map(|x| x.to_f32()).collect()),
        DType::BF16 => Tensor::new(shape, t.to_slice::<bf16>()?.iter().map(|x| x.to_f32()).collect()),
        DType::F8E4M3FN => Tensor::new(shape, t.to_slice::<F8E4M3FN>()?.iter().map(|x| x.to_f32()).collect()),
        DType::F8E4M3FNUZ => Tensor::new(shape, t.to_slice::<F8E4M3FNUZ>()?.iter().map(|x| x.to_f32()).collect()),
        DType::F8E5M2 => Tensor::new(shape, t.to_slice::<F8E5M2>()?.iter().map(|x| x.to_f32()).collect()),
        DType::F8E5M2FNUZ => Tensor::new(shape, t.to_slice::<F8E5M2FNUZ>()?.iter().map(|x| x.to_f32()).collect()),
        DType::F8E8M0 => Tensor::new(shape, t.to_slice::<F8E8M0>()?.iter().map(|x| x.to_f32()).collect()),
        DType::Bool => Tensor::new(shape, t.to_slice::<bool>()?.iter().map(|&x| u8::from(x)).collect()),
        _ => Ok(t.clone()),
    }
}

/// `as` from one native type to every other; floats to ints truncate and saturate, ints to narrower ints wrap.
macro_rules! native {
    ($t:expr, $src:ty, $to:expr, $($d:ident $dst:ty),*) => {
        match $to {
            $(DType::$d => Tensor::new($t.shape(), $t.to_slice::<$src>()?.iter().map(|&x| x as $dst).collect::<Vec<$dst>>()),)*
            DType::Bool => Tensor::new($t.shape(), $t.to_slice::<$src>()?.iter().map(|&x| x != (0 as $src)).collect::<Vec<bool>>()),
            other => Err(TensorError::DType { expected: other, found: $t.dtype() }),
        }
    };
}

fn cast_native(t: &Tensor, to: DType) -> Result<Tensor, TensorError> {
    macro_rules! from {
        ($src:ty) => {
            native!(t, $src, to, F32 f32, F64 f64, U8 u8, I8 i8, U16 u16, I16 i16, U32 u32, I32 i32, U64 u64, I64 i64)
        };
    }
    match t.dtype() {
        DType::F32 => from!(f32),
        DType::F64 => from!(f64),
        DType::U8 => from!(u8),
        DType::I8 => from!(i8),
        DType::U16 => from!(u16),
        DType::I16 => from!(i16),
        DType::U32 => from!(u32),
        DType::I32 => from!(i32),
        DType::U64 => from!(u64),
        DType::I64 => from!(i64),
        found => Err(TensorError::DType { expected: to, found }),
    }
}

/// The elements converted to `to`: floats round to nearest even, small floats saturate, floats to ints truncate towards
/// zero and saturate, ints to narrower ints wrap, any number to bool is "not zero". Strings are the Cast op's affair.
///
/// # Errors
/// From or to strings, and from complex to real.
pub fn cast(t: &Tensor, to: DType) -> Result<Tensor, TensorError> {
    if t.dtype() == to {
        return Ok(t.clone());
    }
    let shape = t.shape();
    let wide = widen(t)?;
    let f32s = || -> Result<Vec<f32>, TensorError> { cast_native(&wide, DType::F32)?.into_vec() };
    let packed = |codes: Vec<u8>, bits| Tensor::from_vec_as(to, shape, pack_bits(&codes, bits));
    match to {
        DType::F16 if wide.dtype() == DType::F64 => Tensor::new(shape, wide.to_slice::<f64>()?.iter().map(|&x| f16::from_f64(x)).collect()),
        DType::F16 => Tensor::new(shape, f32s()?.into_iter().map(f16::from_f32).collect()),
        DType::BF16 => Tensor::new(shape, f32s()?.into_iter().map(bf16::from_f32).collect()),
        DType::F8E4M3FN => Tensor::new(shape, f32s()?.into_iter().map(|x| F8E4M3FN::from_f32(x, true)).collect()),
        DType::F8E4M3FNUZ => Tensor::new(shape, f32s()?.into_iter().map(|x| F8E4M3FNUZ::from_f32(x, true)).collect()),
        DType::F8E5M2 => Tensor::new(shape, f32s()?.into_iter().map(|x| F8E5M2::from_f32(x, true)).collect()),
        DType::F8E5M2FNUZ => Tensor::new(shape, f32s()?.into_iter().map(|x| F8E5M2FNUZ::from_f32(x, true)).collect()),
        DType::F4E2M1 => packed(f32s()?.into_iter().map(f4e2m1_from_f32).collect(), 4),
        DType::U4 | DType::I4 => packed(cast_native(&wide, DType::I64)?.into_vec::<i64>()?.into_iter().map(|x| x as u8).collect(), 4),
        DType::U2 | DType::I2 => packed(cast_native(&wide, DType::I64)?.into_vec::<i64>()?.into_iter().map(|x| x as u8).collect(), 2),
        DType::C64 if t.dtype() == DType::C128 => {
            Tensor::new(shape, t.to_slice::<Complex64>()?.iter().map(|x| Complex32::new(x.re as f32, x.im as f32)).collect())
        }
        DType::C128 if t.dtype() == DType::C64 => {
            Tensor::new(shape, t.to_slice::<Complex32>()?.iter().map(|x| Complex64::new(x.re.into(), x.im.into())).collect())
        }
        DType::C64 => Tensor::new(shape, f32s()?.into_iter().map(|x| Complex32::new(x, 0.0)).collect()),
        DType::C128 => {
            let wide: Vec<f64> = cast_native(&wide, DType::F64)?.into_vec()?;
            Tensor::new(shape, wide.into_iter().map(|x| Complex64::new(x, 0.0)).collect())
        }
        _ if wide.dtype() == to => Ok(wide),
        _ => cast_native(&wide, to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_byte_codes_pack_low_bits_first() {
        assert_eq!(pack_bits(&[1, 2, 3], 4), [0x21, 0x03]);
        assert_eq!(unpack_bits(&[0x21, 0x03], 4, 3), [1, 2, 3]);
        assert_eq!(pack_bits(&[1, 2, 3, 0, 1], 2), [0b00_11_10_01, 1]);
    }

    #[test]
    fn int4_is_sign_extended() {
        let t = Tensor::from_vec_as(DType::I4, [3], vec![0xf8u8, 0x07]).unwrap();
        assert_eq!(t.to_i64s().unwrap(), [-8, -1, 7]);
    }

    #[test]
    fn bf16_bytes_decode_as_their_values() {
        let bytes: Vec<u8> = [0x3e80u16, 0x3f00, 0x3f80, 0x4000].iter().flat_map(|x| x.to_le_bytes()).collect();
        let t = Tensor::from_bytes(DType::BF16, [2, 2], bytes).unwrap();
        assert_eq!(t.to_f32s().unwrap(), [0.25, 0.5, 1.0, 2.0]);
    }
}
