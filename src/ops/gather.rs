//! Reading elements and rows by index.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
