//! Mathematical functions of one operand.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
