//! Resampling of images and grids.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
