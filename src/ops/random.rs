//! Random numbers, seeded.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
