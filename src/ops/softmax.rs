//! Softmax and its kin.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
