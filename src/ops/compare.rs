//! Comparisons, logic and bitwise ops.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
