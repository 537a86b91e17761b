//! placeholder
use crate::ops::OpDef;
pub(in crate::ops) const OPS: &[OpDef] = &[];
