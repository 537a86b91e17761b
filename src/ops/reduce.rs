//! Reductions along axes.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
