//! Conversion between dtypes, and the packing of sub-byte elements.

use super::{
    Complex32, Complex64, DType, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, Rounding, Storage, Tensor, TensorError, bf16,
    f4e2m1_from_f32, f4e2m1_to_f32, f16,
};
use half::slice::HalfFloatSliceExt;
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
        DType::F16 => Tensor::new(shape, t.to_slice::<f16>()?.to_f32_vec()),
        DType::BF16 => Tensor::new(shape, t.to_slice::<bf16>()?.to_f32_vec()),
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

/// How a value that the target does not hold is converted; only the 8-bit floats care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CastMode {
    /// Past the greatest value: that value, rather than infinity or NaN.
    pub saturate: bool,
    /// Rounding to `float8e8m0`.
    pub rounding: Rounding,
}

/// Saturates; `float8e8m0` rounds up.
impl Default for CastMode {
    fn default() -> Self {
        Self { saturate: true, rounding: Rounding::Up }
    }
}

/// [`cast_with`] in the default mode.
///
/// # Errors
/// From or to strings, and from complex to real.
pub fn cast(t: &Tensor, to: DType) -> Result<Tensor, TensorError> {
    cast_with(t, to, CastMode::default())
}

/// An `f32` that rounds to any narrower float as `x` does: what does not fit is remembered in the last bit.
fn round_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let exact = f64::from(nearest);
    let bits = nearest.to_bits();
    if exact == x || x.is_nan() || bits & 1 == 1 {
        return nearest;
    }
    f32::from_bits(if exact.abs() < x.abs() { bits + 1 } else { bits - 1 })
}

/// The elements converted to `to`: floats round to nearest even, floats to ints truncate towards zero and saturate (to
/// ints of less than a byte they wrap), ints to narrower ints wrap, any number to bool is "not zero". Strings are the Cast
/// op's affair.
///
/// # Errors
/// From or to strings, and from complex to real.
pub fn cast_with(t: &Tensor, to: DType, mode: CastMode) -> Result<Tensor, TensorError> {
    if t.dtype() == to {
        return Ok(t.clone());
    }
    let shape = t.shape();
    let wide = widen(t)?;
    let f32s = || -> Result<Vec<f32>, TensorError> { cast_native(&wide, DType::F32)?.into_vec() };
    let f64s = || -> Result<Vec<f64>, TensorError> { cast_native(&wide, DType::F64)?.into_vec() };
    // What is to be rounded once more: exact where `f32` holds it, else in a way that this does no harm.
    let halves = || match wide.dtype() {
        DType::F64 | DType::I32 | DType::U32 | DType::I64 | DType::U64 => Ok(f64s()?.into_iter().map(round_to_odd).collect()),
        _ => f32s(),
    };
    let ints = |bits| -> Result<Tensor, TensorError> {
        let codes: Vec<u8> = cast_native(&wide, DType::I64)?.into_vec::<i64>()?.into_iter().map(|x| x as u8).collect();
        Tensor::from_vec_as(to, shape, pack_bits(&codes, bits))
    };
    let saturate = mode.saturate;
    match to {
        DType::F16 => Tensor::new(shape, halves()?.into_iter().map(f16::from_f32).collect()),
        DType::BF16 => Tensor::new(shape, halves()?.into_iter().map(bf16::from_f32).collect()),
        DType::F8E4M3FN => Tensor::new(shape, f64s()?.into_iter().map(|x| F8E4M3FN::from_f64(x, saturate)).collect()),
        DType::F8E4M3FNUZ => Tensor::new(shape, f64s()?.into_iter().map(|x| F8E4M3FNUZ::from_f64(x, saturate)).collect()),
        DType::F8E5M2 => Tensor::new(shape, f64s()?.into_iter().map(|x| F8E5M2::from_f64(x, saturate)).collect()),
        DType::F8E5M2FNUZ => Tensor::new(shape, f64s()?.into_iter().map(|x| F8E5M2FNUZ::from_f64(x, saturate)).collect()),
        DType::F8E8M0 => Tensor::new(shape, f64s()?.into_iter().map(|x| F8E8M0::from_f64(x, saturate, mode.rounding)).collect()),
        DType::F4E2M1 => {
            let codes: Vec<u8> = halves()?.into_iter().map(f4e2m1_from_f32).collect();
            Tensor::from_vec_as(to, shape, pack_bits(&codes, 4))
        }
        DType::U4 | DType::I4 => ints(4),
        DType::U2 | DType::I2 => ints(2),
        DType::C64 if t.dtype() == DType::C128 => {
            Tensor::new(shape, t.to_slice::<Complex64>()?.iter().map(|x| Complex32::new(x.re as f32, x.im as f32)).collect())
        }
        DType::C128 if t.dtype() == DType::C64 => {
            Tensor::new(shape, t.to_slice::<Complex32>()?.iter().map(|x| Complex64::new(x.re.into(), x.im.into())).collect())
        }
        DType::C64 => Tensor::new(shape, f32s()?.into_iter().map(|x| Complex32::new(x, 0.0)).collect()),
        DType::C128 => Tensor::new(shape, f64s()?.into_iter().map(|x| Complex64::new(x, 0.0)).collect()),
        // Only bool is widened to another type's values: of bytes, these are 0 and 1.
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

    #[test]
    fn doubles_are_rounded_to_halves_once() {
        // Just above the middle of two halves; in f32 it would be the middle, and then even.
        let x = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        let half = cast(&Tensor::scalar(x), DType::F16).unwrap();
        assert_eq!(half.item::<f16>().unwrap().to_f64(), 1.0 + 2f64.powi(-10));
        let big = cast(&Tensor::scalar((1i64 << 40) + (1 << 32) + 1), DType::BF16).unwrap();
        assert_eq!(big.item::<bf16>().unwrap().to_f64(), 2f64.powi(40) + 2f64.powi(33));
    }

    #[test]
    fn numbers_out_of_range_saturate_or_wrap() {
        let x = Tensor::vector(vec![-9f32, 300.0, f32::NAN]);
        let to = |d| cast(&x, d).unwrap().to_i64s().unwrap();
        assert_eq!(to(DType::U8), [0, 255, 0]);
        assert_eq!(to(DType::I4), [7, -4, 0]);
        assert_eq!(to(DType::U2), [3, 0, 0]);
        assert_eq!(to(DType::Bool), [1, 1, 1]);
        assert_eq!(cast(&Tensor::scalar(200i16), DType::I8).unwrap().item::<i8>().unwrap(), -56);
    }
}
