//! Recurrent networks.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
