//! Parts of tensors.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
