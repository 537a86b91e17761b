//! Ops that make tensors from attributes and shapes.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
