//! Max, Min, Sum and Mean over any number of operands.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
