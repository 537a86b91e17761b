//! Arithmetic on two numpy-broadcast operands.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
