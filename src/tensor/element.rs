//! The Rust types that stand for dtypes, and the macros that pick one at run time.

use super::{Complex32, Complex64, DType, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, bf16, f16};
use half::slice::HalfFloatSliceExt;
use std::fmt::Debug;

/// A Rust type that is the element of some dtype.
pub trait Element: Clone + Default + PartialEq + Debug + Send + Sync + 'static {
    /// The dtype that it is the element of.
    const DTYPE: DType;
    /// The bytes of a slice; `None` for strings.
    fn as_bytes(slice: &[Self]) -> Option<&[u8]>;
    /// A slice over bytes; `None` if they are not aligned, not whole or not valid.
    fn slice_from_bytes(bytes: &[u8]) -> Option<&[Self]>;
    /// A copy out of bytes on any alignment; `None` if they are not whole or not valid.
    fn vec_from_bytes(bytes: &[u8]) -> Option<Vec<Self>>;
    /// A vector of another type as these elements, re-used where width and alignment are the same; `None` if the bytes are
    /// not whole or not valid.
    fn vec_from_words<W: bytemuck::NoUninit>(words: Vec<W>) -> Option<Vec<Self>> {
        Self::vec_from_bytes(bytemuck::cast_slice(&words))
    }
}

macro_rules! elements {
    ($($t:ty => $d:ident),* $(,)?) => {$(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn as_bytes(slice: &[Self]) -> Option<&[u8]> {
                Some(bytemuck::cast_slice(slice))
            }
            fn slice_from_bytes(bytes: &[u8]) -> Option<&[Self]> {
                bytemuck::checked::try_cast_slice(bytes).ok()
            }
            fn vec_from_bytes(bytes: &[u8]) -> Option<Vec<Self>> {
                if bytes.len() % size_of::<Self>() != 0 {
                    return None;
                }
                bytes.chunks_exact(size_of::<Self>()).map(|c| bytemuck::checked::try_pod_read_unaligned(c).ok()).collect()
            }
            fn vec_from_words<W: bytemuck::NoUninit>(words: Vec<W>) -> Option<Vec<Self>> {
                bytemuck::allocation::try_cast_vec(words).or_else(|(_, w)| Self::vec_from_bytes(bytemuck::cast_slice(&w)).ok_or(())).ok()
            }
        }
    )*};
}
elements!(
    f32 => F32, u8 => U8, i8 => I8, u16 => U16, i16 => I16, i32 => I32, i64 => I64, f16 => F16, f64 => F64,
    u32 => U32, u64 => U64, Complex32 => C64, Complex64 => C128, bf16 => BF16, F8E4M3FN => F8E4M3FN,
    F8E4M3FNUZ => F8E4M3FNUZ, F8E5M2 => F8E5M2, F8E5M2FNUZ => F8E5M2FNUZ, F8E8M0 => F8E8M0,
);

impl Element for bool {
    const DTYPE: DType = DType::Bool;
    fn as_bytes(slice: &[Self]) -> Option<&[u8]> {
        Some(bytemuck::cast_slice(slice))
    }
    fn slice_from_bytes(bytes: &[u8]) -> Option<&[Self]> {
        bytemuck::checked::try_cast_slice(bytes).ok()
    }
    fn vec_from_bytes(bytes: &[u8]) -> Option<Vec<Self>> {
        bytes.iter().all(|&b| b <= 1).then(|| bytes.iter().map(|&b| b != 0).collect())
    }
}

impl Element for String {
    const DTYPE: DType = DType::String;
    fn as_bytes(_: &[Self]) -> Option<&[u8]> {
        None
    }
    fn slice_from_bytes(_: &[u8]) -> Option<&[Self]> {
        None
    }
    fn vec_from_bytes(_: &[u8]) -> Option<Vec<Self>> {
        None
    }
}

/// An element with arithmetic: the integers of whole bytes and the floats from 16 bits up.
pub trait Number: Element + Copy + PartialOrd + num_traits::NumCast {
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Sum; integers wrap.
    fn add(self, other: Self) -> Self;
    /// Difference; integers wrap.
    fn sub(self, other: Self) -> Self;
    /// Product; integers wrap.
    fn mul(self, other: Self) -> Self;
    /// Quotient; integers truncate towards zero. `None` for an integer division by zero; MIN / -1 wraps.
    fn div(self, other: Self) -> Option<Self>;
    /// As `f64`.
    fn to_f64(self) -> f64;
    /// From `f64`: floats round to nearest, integers truncate and saturate.
    fn from_f64(x: f64) -> Self;
    /// The lesser of two; NaN if either is.
    fn lesser_of(self, other: Self) -> Self;
    /// The greater of two; NaN if either is.
    fn greater_of(self, other: Self) -> Self;
    /// The least value (negative infinity for floats).
    fn lowest() -> Self;
    /// The greatest value (infinity for floats).
    fn highest() -> Self;
}

/// A [`Number`] that is an integer.
pub trait Int: Number + Ord + std::hash::Hash {
    /// As `i64`; `uint64` wraps.
    fn to_i64(self) -> i64;
    /// From the low bits of an `i64`.
    fn from_i64(x: i64) -> Self;
}

/// A [`Number`] that is a float; sums and functions are computed in [`Float::Wide`].
pub trait Float: Number {
    /// The type in which results are computed before they are rounded: `f32` for halves, else the type itself.
    type Wide: Float<Wide = Self::Wide> + num_traits::Float + std::iter::Sum;
    /// Exact.
    fn widen(self) -> Self::Wide;
    /// Rounded to nearest, ties to even.
    fn narrow(x: Self::Wide) -> Self;
    /// [`Float::widen`] of each, in place of what is in `out`.
    fn widen_all(row: &[Self], out: &mut Vec<Self::Wide>);
}

macro_rules! ints {
    ($($t:ty),*) => {$(
        impl Number for $t {
            const ZERO: Self = 0;
            const ONE: Self = 1;
            #[inline] fn add(self, o: Self) -> Self { self.wrapping_add(o) }
            #[inline] fn sub(self, o: Self) -> Self { self.wrapping_sub(o) }
            #[inline] fn mul(self, o: Self) -> Self { self.wrapping_mul(o) }
            #[inline] fn div(self, o: Self) -> Option<Self> { if o == 0 { None } else { Some(self.wrapping_div(o)) } }
            #[inline] fn to_f64(self) -> f64 { self as f64 }
            #[inline] fn from_f64(x: f64) -> Self { x as $t }
            #[inline] fn lesser_of(self, o: Self) -> Self { Ord::min(self, o) }
            #[inline] fn greater_of(self, o: Self) -> Self { Ord::max(self, o) }
            #[inline] fn lowest() -> Self { <$t>::MIN }
            #[inline] fn highest() -> Self { <$t>::MAX }
        }
        impl Int for $t {
            #[inline] fn to_i64(self) -> i64 { self as i64 }
            #[inline] fn from_i64(x: i64) -> Self { x as $t }
        }
    )*};
}
ints!(u8, i8, u16, i16, u32, i32, u64, i64);

macro_rules! floats {
    ($($t:ty, $wide:ty, $zero:expr, $one:expr, $widen:expr, $narrow:expr, $all:expr;)*) => {$(
        impl Number for $t {
            const ZERO: Self = $zero;
            const ONE: Self = $one;
            #[inline] fn add(self, o: Self) -> Self { self + o }
            #[inline] fn sub(self, o: Self) -> Self { self - o }
            #[inline] fn mul(self, o: Self) -> Self { self * o }
            #[inline] fn div(self, o: Self) -> Option<Self> { Some(self / o) }
            #[inline] fn to_f64(self) -> f64 { self.into() }
            #[inline] fn from_f64(x: f64) -> Self { num_traits::NumCast::from(x).unwrap_or(<$t>::NAN) }
            #[inline] fn lesser_of(self, o: Self) -> Self { if self.is_nan() || self < o { self } else { o } }
            #[inline] fn greater_of(self, o: Self) -> Self { if self.is_nan() || self > o { self } else { o } }
            #[inline] fn lowest() -> Self { <$t>::NEG_INFINITY }
            #[inline] fn highest() -> Self { <$t>::INFINITY }
        }
        impl Float for $t {
            type Wide = $wide;
            #[inline] fn widen(self) -> $wide { ($widen)(self) }
            #[inline] fn narrow(x: $wide) -> Self { ($narrow)(x) }
            fn widen_all(row: &[Self], out: &mut Vec<$wide>) { ($all)(row, out) }
        }
    )*};
}
floats!(
    f32, f32, 0.0, 1.0, |x| x, |x| x, <[f32]>::clone_into;
    f64, f64, 0.0, 1.0, |x| x, |x| x, <[f64]>::clone_into;
    f16, f32, f16::ZERO, f16::ONE, f16::to_f32, f16::from_f32, halves;
    bf16, f32, bf16::ZERO, bf16::ONE, bf16::to_f32, bf16::from_f32, halves;
);

/// 16-bit floats as `f32`, many at a time.
fn halves<T>(row: &[T], out: &mut Vec<f32>)
where
    [T]: HalfFloatSliceExt,
{
    out.resize(row.len(), 0.0);
    row.convert_to_f32_slice(out);
}

/// Runs an expression with `$t` bound to the element type of a dtype that fills whole bytes (strings included).
/// A packed sub-byte dtype is bound to `u8`, the type of its packed bytes.
#[macro_export]
macro_rules! dispatch {
    ($dtype:expr, $t:ident => $body:expr) => {{
        use $crate::tensor::DType as D;
        macro_rules! go {
            ($x:ty) => {{
                type $t = $x;
                $body
            }};
        }
        match $dtype {
            D::F32 => go!(f32),
            D::U8 | D::U4 | D::I4 | D::F4E2M1 | D::U2 | D::I2 => go!(u8),
            D::I8 => go!(i8),
            D::U16 => go!(u16),
            D::I16 => go!(i16),
            D::I32 => go!(i32),
            D::I64 => go!(i64),
            D::String => go!(String),
            D::Bool => go!(bool),
            D::F16 => go!($crate::tensor::f16),
            D::F64 => go!(f64),
            D::U32 => go!(u32),
            D::U64 => go!(u64),
            D::C64 => go!($crate::tensor::Complex32),
            D::C128 => go!($crate::tensor::Complex64),
            D::BF16 => go!($crate::tensor::bf16),
            D::F8E4M3FN => go!($crate::tensor::F8E4M3FN),
            D::F8E4M3FNUZ => go!($crate::tensor::F8E4M3FNUZ),
            D::F8E5M2 => go!($crate::tensor::F8E5M2),
            D::F8E5M2FNUZ => go!($crate::tensor::F8E5M2FNUZ),
            D::F8E8M0 => go!($crate::tensor::F8E8M0),
        }
    }};
}

/// Runs an expression with `$t` bound to the [`Number`] type of a dtype; `$other` runs for any dtype that is none.
#[macro_export]
macro_rules! dispatch_number {
    ($dtype:expr, $t:ident => $body:expr, $other:ident => $else:expr) => {{
        use $crate::tensor::DType as D;
        macro_rules! go {
            ($x:ty) => {{
                type $t = $x;
                $body
            }};
        }
        match $dtype {
            D::F32 => go!(f32),
            D::U8 => go!(u8),
            D::I8 => go!(i8),
            D::U16 => go!(u16),
            D::I16 => go!(i16),
            D::I32 => go!(i32),
            D::I64 => go!(i64),
            D::F16 => go!($crate::tensor::f16),
            D::F64 => go!(f64),
            D::U32 => go!(u32),
            D::U64 => go!(u64),
            D::BF16 => go!($crate::tensor::bf16),
            $other => $else,
        }
    }};
}

/// As [`dispatch_number!`](crate::dispatch_number), for the [`Float`] types alone.
#[macro_export]
macro_rules! dispatch_float {
    ($dtype:expr, $t:ident => $body:expr, $other:ident => $else:expr) => {{
        use $crate::tensor::DType as D;
        macro_rules! go {
            ($x:ty) => {{
                type $t = $x;
                $body
            }};
        }
        match $dtype {
            D::F32 => go!(f32),
            D::F16 => go!($crate::tensor::f16),
            D::F64 => go!(f64),
            D::BF16 => go!($crate::tensor::bf16),
            $other => $else,
        }
    }};
}

/// As [`dispatch_number!`](crate::dispatch_number), for the [`Int`] types alone.
#[macro_export]
macro_rules! dispatch_int {
    ($dtype:expr, $t:ident => $body:expr, $other:ident => $else:expr) => {{
        use $crate::tensor::DType as D;
        macro_rules! go {
            ($x:ty) => {{
                type $t = $x;
                $body
            }};
        }
        match $dtype {
            D::U8 => go!(u8),
            D::I8 => go!(i8),
            D::U16 => go!(u16),
            D::I16 => go!(i16),
            D::I32 => go!(i32),
            D::I64 => go!(i64),
            D::U32 => go!(u32),
            D::U64 => go!(u64),
            $other => $else,
        }
    }};
}
