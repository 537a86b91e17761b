//! Pooling.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
