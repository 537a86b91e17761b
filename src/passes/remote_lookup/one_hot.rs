//! A product of one-hot rows and a table: a lookup in all but name, for which an id out of range is a row of zeros.

use super::source::Source;
use super::{Site, Verdict};
use crate::ir::ValueId;

pub(super) fn find(site: &Site, operand: usize, _: &Source) -> Verdict {
    let node = site.graph.node(site.id);
    let op = node.op()?;
    if !(op.is("MatMul") || op.is("Gemm")) || operand != 1 || !is_one_hot(site, node.input(0)?) {
        return None;
    }
    Some(Err("it is a product with one-hot rows: an id out of range is no error there, but a row of zeros".into()))
}

fn is_one_hot(site: &Site, v: ValueId) -> bool {
    let node = site.graph.node(v.node);
    let Some(op) = node.op() else { return false };
    op.is("OneHot")
        || (["Cast", "Identity", "Reshape", "Flatten"].iter().any(|n| op.is(n)) && node.input(0).is_some_and(|v| is_one_hot(site, v)))
}
