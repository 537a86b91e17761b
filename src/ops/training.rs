//! The training previews: optimisers as ops.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
