//! Element types, with ONNX's numbers for them (TensorProto.DataType, IR version 14).

use super::shape::checked_len;
use std::fmt;

/// The type of a tensor's elements. The discriminant is ONNX's `TensorProto.DataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum DType {
    F32 = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    I32 = 6,
    I64 = 7,
    String = 8,
    Bool = 9,
    F16 = 10,
    F64 = 11,
    U32 = 12,
    U64 = 13,
    C64 = 14,
    C128 = 15,
    BF16 = 16,
    F8E4M3FN = 17,
    F8E4M3FNUZ = 18,
    F8E5M2 = 19,
    F8E5M2FNUZ = 20,
    U4 = 21,
    I4 = 22,
    F4E2M1 = 23,
    F8E8M0 = 24,
    U2 = 25,
    I2 = 26,
}

/// Every dtype with its name and its width in bits (strings: 0), in ONNX's order.
const ALL: [(DType, &str, u32); 26] = [
    (DType::F32, "float32", 32),
    (DType::U8, "uint8", 8),
    (DType::I8, "int8", 8),
    (DType::U16, "uint16", 16),
    (DType::I16, "int16", 16),
    (DType::I32, "int32", 32),
    (DType::I64, "int64", 64),
    (DType::String, "string", 0),
    (DType::Bool, "bool", 8),
    (DType::F16, "float16", 16),
    (DType::F64, "float64", 64),
    (DType::U32, "uint32", 32),
    (DType::U64, "uint64", 64),
    (DType::C64, "complex64", 64),
    (DType::C128, "complex128", 128),
    (DType::BF16, "bfloat16", 16),
    (DType::F8E4M3FN, "float8e4m3fn", 8),
    (DType::F8E4M3FNUZ, "float8e4m3fnuz", 8),
    (DType::F8E5M2, "float8e5m2", 8),
    (DType::F8E5M2FNUZ, "float8e5m2fnuz", 8),
    (DType::U4, "uint4", 4),
    (DType::I4, "int4", 4),
    (DType::F4E2M1, "float4e2m1", 4),
    (DType::F8E8M0, "float8e8m0", 8),
    (DType::U2, "uint2", 2),
    (DType::I2, "int2", 2),
];

impl DType {
    /// Every dtype, in ONNX's order.
    pub fn all() -> impl Iterator<Item = DType> {
        ALL.iter().map(|r| r.0)
    }

    /// From ONNX's number.
    pub fn from_onnx(code: i32) -> Option<DType> {
        ALL.get(usize::try_from(code).ok()?.checked_sub(1)?).map(|r| r.0)
    }

    /// ONNX's number.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// The name, as ONNX and numpy spell it in lower case (`float32`).
    pub fn name(self) -> &'static str {
        ALL[self as usize - 1].1
    }

    /// From its [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<DType> {
        ALL.iter().find(|r| r.1 == name).map(|r| r.0)
    }

    /// Bits of an element; 0 for strings.
    pub fn bits(self) -> usize {
        ALL[self as usize - 1].2 as usize
    }

    /// Bytes of an element, if it fills whole bytes.
    pub fn size(self) -> Option<usize> {
        let bits = self.bits();
        (bits >= 8).then_some(bits / 8)
    }

    /// The alignment that a slice of the elements needs, in bytes.
    pub fn alignment(self) -> usize {
        match self {
            DType::C64 => 4,
            DType::C128 => 8,
            d => d.size().unwrap_or(1),
        }
    }

    /// Bytes of a tensor with these dims; `None` for strings or where it does not fit.
    pub fn byte_len(self, dims: &[usize]) -> Option<usize> {
        if self == DType::String {
            return None;
        }
        Some(checked_len(dims)?.checked_mul(self.bits())?.div_ceil(8))
    }

    /// Integers of any width, signed or not (bool is none).
    pub fn is_int(self) -> bool {
        self.is_signed_int() || matches!(self, DType::U8 | DType::U16 | DType::U32 | DType::U64 | DType::U4 | DType::U2)
    }

    /// Signed integers.
    pub fn is_signed_int(self) -> bool {
        matches!(self, DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::I4 | DType::I2)
    }

    /// Real floating-point numbers of any width.
    pub fn is_float(self) -> bool {
        !self.is_int() && !matches!(self, DType::String | DType::Bool | DType::C64 | DType::C128)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
