//! Control flow: the records of If, Loop and Scan, whose bodies the executor runs.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
