//! What flows along an edge when a graph runs: a tensor, or one of ONNX's container types.

use super::{DType, Tensor};
use std::sync::Arc;

/// A run-time value. Cloning shares the elements.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A dense tensor.
    Tensor(Tensor),
    /// A sequence of values of one type.
    Sequence(Arc<Vec<Value>>),
    /// An optional that holds a value or nothing.
    Optional(Option<Arc<Value>>),
    /// A map, as `ai.onnx.ml` has them.
    Map(Arc<Map>),
}

/// The keys of a [`Map`].
#[derive(Debug, Clone, PartialEq)]
pub enum MapKeys {
    /// Integer keys, with their dtype in the file.
    Int(DType, Vec<i64>),
    /// String keys.
    String(Vec<String>),
}

/// A map from integers or strings to values; keys and values stand in the same order.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    /// The keys.
    pub keys: MapKeys,
    /// The values, one per key.
    pub values: Vec<Value>,
}

impl Value {
    /// The tensor, if it is one.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Value::Tensor(t) => Some(t),
            _ => None,
        }
    }

    /// The tensor, if it is one.
    pub fn into_tensor(self) -> Option<Tensor> {
        match self {
            Value::Tensor(t) => Some(t),
            _ => None,
        }
    }

    /// The kind of value, for messages: `float32[2,3]`, `sequence`.
    pub fn describe(&self) -> String {
        match self {
            Value::Tensor(t) => format!("{}{}", t.dtype(), t.shape()),
            Value::Sequence(v) => format!("sequence of {}", v.len()),
            Value::Optional(Some(v)) => format!("optional({})", v.describe()),
            Value::Optional(None) => "empty optional".into(),
            Value::Map(m) => format!("map of {}", m.values.len()),
        }
    }
}

impl From<Tensor> for Value {
    fn from(t: Tensor) -> Self {
        Value::Tensor(t)
    }
}
