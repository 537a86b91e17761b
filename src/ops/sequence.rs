//! Sequences and optionals.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
