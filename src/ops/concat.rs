//! Joining, splitting and repeating tensors.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
