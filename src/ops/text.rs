//! Ops on strings.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
