//! Ops that change or read dims and move elements without changing them.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
