//! Fourier transforms and windows.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
