//! What a kernel is built from and what it is called with.

use super::OpError;
use crate::invalid;
use crate::ir::{Attrs, OpName};
use crate::tensor::{Element, Tensor, Value};
use smallvec::SmallVec;
use std::sync::Arc;

/// What a kernel is built from.
#[derive(Debug, Clone)]
pub struct OpCtx<'a> {
    /// The op.
    pub op: &'a OpName,
    /// Its attributes; references to a function's attributes are resolved.
    pub attrs: &'a Attrs,
    /// The opset version of its domain that the model (or function) imports.
    pub version: i64,
    /// Number of inputs that the node lists.
    pub inputs: usize,
    /// Which outputs the node asks for.
    pub outputs: &'a [bool],
    /// Inputs that are constants, by position.
    pub constants: &'a [Option<&'a Tensor>],
}

impl OpCtx<'_> {
    /// Whether output `slot` is asked for.
    pub fn wants(&self, slot: usize) -> bool {
        self.outputs.get(slot).copied().unwrap_or(false)
    }

    /// The constant at input `i`.
    pub fn constant(&self, i: usize) -> Option<&Tensor> {
        self.constants.get(i).copied().flatten()
    }
}

/// The inputs of one call. A value whose last reader this is arrives unshared, so that [`Args::take`] may give its storage
/// to the result.
#[derive(Debug, Default)]
pub struct Args(SmallVec<[Option<Value>; 4]>);

impl Args {
    /// From values by position; `None` for an optional input that is left out.
    pub fn new(values: impl IntoIterator<Item = Option<Value>>) -> Self {
        Self(values.into_iter().collect())
    }

    /// Number of inputs listed, those left out included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of input `i`, if it is given.
    pub fn value(&self, i: usize) -> Option<&Value> {
        self.0.get(i)?.as_ref()
    }

    /// The value of a required input.
    ///
    /// # Errors
    /// It is left out.
    pub fn take_value(&mut self, i: usize) -> Result<Value, OpError> {
        match self.0.get_mut(i).and_then(Option::take) {
            Some(v) => Ok(v),
            None => invalid!("input {i} is missing: expected a value, found none"),
        }
    }

    /// An optional tensor input.
    ///
    /// # Errors
    /// It is given and no tensor.
    pub fn opt(&self, i: usize) -> Result<Option<&Tensor>, OpError> {
        match self.value(i) {
            None => Ok(None),
            Some(Value::Tensor(t)) => Ok(Some(t)),
            Some(other) => invalid!("input {i}: expected a tensor, found {}", other.describe()),
        }
    }

    /// A required tensor input.
    ///
    /// # Errors
    /// It is left out or no tensor.
    pub fn tensor(&self, i: usize) -> Result<&Tensor, OpError> {
        match self.opt(i)? {
            Some(t) => Ok(t),
            None => invalid!("input {i} is missing: expected a value, found none"),
        }
    }

    /// A required tensor input, taken: unshared if this is its last reader.
    ///
    /// # Errors
    /// It is left out or no tensor.
    pub fn take(&mut self, i: usize) -> Result<Tensor, OpError> {
        match self.take_value(i)? {
            Value::Tensor(t) => Ok(t),
            other => invalid!("input {i}: expected a tensor, found {}", other.describe()),
        }
    }

    /// The elements of a required tensor input of a known dtype.
    ///
    /// # Errors
    /// It is left out, or of another dtype.
    pub fn slice<T: Element>(&self, i: usize) -> Result<&[T], OpError> {
        self.tensor(i)?.as_slice::<T>().map_err(|e| OpError::Invalid(format!("input {i}: {e}")))
    }

    /// A required input of any integer dtype as `int64`s.
    ///
    /// # Errors
    /// It is left out, or no integers.
    pub fn ints(&self, i: usize) -> Result<Vec<i64>, OpError> {
        self.tensor(i)?.to_i64s().map_err(|e| OpError::Invalid(format!("input {i}: {e}")))
    }

    /// An optional input of any integer dtype as `int64`s.
    ///
    /// # Errors
    /// It is given and no integers.
    pub fn opt_ints(&self, i: usize) -> Result<Option<Vec<i64>>, OpError> {
        if self.value(i).is_none() { Ok(None) } else { self.ints(i).map(Some) }
    }

    /// A required sequence input.
    ///
    /// # Errors
    /// It is left out or no sequence.
    pub fn sequence(&self, i: usize) -> Result<&Arc<Vec<Value>>, OpError> {
        match self.value(i) {
            Some(Value::Sequence(s)) => Ok(s),
            Some(other) => invalid!("input {i}: expected a sequence, found {}", other.describe()),
            None => invalid!("input {i} is missing: expected a value, found none"),
        }
    }

    /// All tensor inputs from position `from` on; none may be left out.
    ///
    /// # Errors
    /// One is left out or no tensor.
    pub fn tensors(&self, from: usize) -> Result<Vec<&Tensor>, OpError> {
        (from..self.len()).map(|i| self.tensor(i)).collect()
    }
}
