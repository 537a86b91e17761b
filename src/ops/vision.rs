//! Regions, boxes and images.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
