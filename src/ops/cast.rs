//! Conversion between element types.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
