//! Types of values as a graph states them: element type and dims, where a dim may be a symbol or unknown.

use crate::tensor::{DType, Shape, Value};
use std::fmt;
use std::sync::Arc;

/// One dim of a stated shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A number.
    Known(usize),
    /// A name that stands for the same number everywhere in the graph.
    Symbol(Arc<str>),
    /// Nothing is known.
    Unknown,
}

impl Dim {
    /// The number, if it is one.
    pub fn known(&self) -> Option<usize> {
        match self {
            Dim::Known(n) => Some(*n),
            _ => None,
        }
    }

    /// Whether both can be the same number.
    pub fn compatible(&self, other: &Dim) -> bool {
        !matches!((self, other), (Dim::Known(a), Dim::Known(b)) if a != b)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Symbol(s) if is_bare(s) => f.write_str(s),
            Dim::Symbol(s) => write!(f, "{s:?}"),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// Whether a text can stand without quotes in the text form.
pub(super) fn is_bare(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && s.chars().all(|c| c.is_ascii_alphanumeric() || "_.:/-".contains(c))
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Type {
    /// A dense tensor; `None` where the element type, or the rank, is not stated.
    Tensor {
        /// Element type.
        dtype: Option<DType>,
        /// Dims, outermost first.
        shape: Option<Vec<Dim>>,
    },
    /// A sparse tensor.
    Sparse {
        /// Element type.
        dtype: Option<DType>,
        /// Dims of the dense form.
        shape: Option<Vec<Dim>>,
    },
    /// A sequence of one type.
    Sequence(Box<Type>),
    /// An optional of one type.
    Optional(Box<Type>),
    /// A map.
    Map {
        /// Key type: an integer or string.
        key: DType,
        /// Value type.
        value: Box<Type>,
    },
    /// A type that only its domain knows.
    Opaque {
        /// Domain.
        domain: String,
        /// Name.
        name: String,
    },
}

impl Type {
    /// A tensor type with stated element type and dims.
    pub fn tensor(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> Type {
        Type::Tensor { dtype: Some(dtype), shape: Some(shape.into_iter().collect()) }
    }

    /// A tensor type whose rank is not known.
    pub fn unranked(dtype: DType) -> Type {
        Type::Tensor { dtype: Some(dtype), shape: None }
    }

    /// The type of a tensor with these dims.
    pub fn of(dtype: DType, shape: &Shape) -> Type {
        Type::tensor(dtype, shape.iter().map(|&d| Dim::Known(d)))
    }

    /// Element type of a tensor.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Type::Tensor { dtype, .. } | Type::Sparse { dtype, .. } => *dtype,
            _ => None,
        }
    }

    /// Dims of a tensor.
    pub fn shape(&self) -> Option<&[Dim]> {
        match self {
            Type::Tensor { shape, .. } | Type::Sparse { shape, .. } => shape.as_deref(),
            _ => None,
        }
    }

    /// Whether a value can have both types.
    pub fn compatible(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Tensor { dtype: a, shape: s }, Type::Tensor { dtype: b, shape: t })
            | (Type::Sparse { dtype: a, shape: s }, Type::Sparse { dtype: b, shape: t }) => {
                let dtypes = a.is_none() || b.is_none() || a == b;
                let shapes = match (s, t) {
                    (Some(s), Some(t)) => s.len() == t.len() && s.iter().zip(t).all(|(x, y)| x.compatible(y)),
                    _ => true,
                };
                dtypes && shapes
            }
            (Type::Sequence(a), Type::Sequence(b)) | (Type::Optional(a), Type::Optional(b)) => a.compatible(b),
            (Type::Map { key: a, value: v }, Type::Map { key: b, value: w }) => a == b && v.compatible(w),
            (a, b) => a == b,
        }
    }

    /// Whether a run-time value has this type (symbols match any number).
    pub fn admits(&self, value: &Value) -> bool {
        match (self, value) {
            (Type::Tensor { .. }, Value::Tensor(t)) => self.compatible(&Type::of(t.dtype(), t.shape())),
            (Type::Sequence(t), Value::Sequence(v)) => v.iter().all(|x| t.admits(x)),
            (Type::Optional(t), Value::Optional(v)) => v.as_ref().is_none_or(|x| t.admits(x)),
            (Type::Optional(t), v) => t.admits(v),
            (Type::Map { .. }, Value::Map(_)) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor { dtype, shape } | Type::Sparse { dtype, shape } => {
                if matches!(self, Type::Sparse { .. }) {
                    f.write_str("sparse ")?;
                }
                f.write_str(dtype.map_or("?", DType::name))?;
                let Some(shape) = shape else { return Ok(()) };
                let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
                write!(f, "[{}]", dims.join(","))
            }
            Type::Sequence(t) => write!(f, "sequence({t})"),
            Type::Optional(t) => write!(f, "optional({t})"),
            Type::Map { key, value } => write!(f, "map({key},{value})"),
            Type::Opaque { domain, name } => write!(f, "opaque({domain:?},{name:?})"),
        }
    }
}
