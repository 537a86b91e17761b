//! Choosing elements: Where, TopK, Unique, Compress and their kin.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
