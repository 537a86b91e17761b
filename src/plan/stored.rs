//! Narrower storage of float tables: what a shard file holds for a row, and how wide that is.

use crate::tensor::DType;
use serde::{Deserialize, Serialize};

/// The form in which shards keep rows of floats; lookups give the table's own dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreDtype {
    /// `float16`.
    F16,
    /// `bfloat16`.
    BF16,
    /// A signed byte per element, then one `float32` that all elements of the row are multiplied by.
    Int8,
}

impl StoreDtype {
    /// By the name that plans and the command line use.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F16, Self::BF16, Self::Int8].into_iter().find(|s| s.name() == name)
    }

    /// `f16`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Whether rows of this dtype become narrower; others are kept as they are.
    pub fn narrows(self, dtype: DType) -> bool {
        match self {
            Self::F16 | Self::BF16 => matches!(dtype, DType::F32 | DType::F64),
            Self::Int8 => matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16),
        }
    }

    /// The dtype of the elements in the file.
    pub fn element(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::Int8 => DType::I8,
        }
    }

    /// Bytes that follow the elements of a row.
    pub fn tail(self) -> u64 {
        if self == Self::Int8 { 4 } else { 0 }
    }
}

/// How a table is stored, where that is not as it was.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// The form.
    pub dtype: StoreDtype,
    /// The largest absolute difference between an element and what a lookup gives for it.
    pub max_error: f64,
}
