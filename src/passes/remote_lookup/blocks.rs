//! `com.microsoft::GatherBlockQuantized`: the scales and zero points of a row go with its codes.

use super::source::Source;
use super::{Found, How, Site, Verdict};
use crate::ops::remote::Negative;

pub(super) fn find(site: &Site, operand: usize, source: &Source) -> Verdict {
    let node = site.graph.node(site.id);
    let op = node.op()?;
    if &*op.domain != "com.microsoft" || &*op.name != "GatherBlockQuantized" || operand == 1 {
        return None;
    }
    let rank = source.tensor.rank() as i64;
    let axis = |name: &str, default: i64| Some(node.attrs.int_or(name, default).ok()?.rem_euclid(rank.max(1)));
    if axis("gather_axis", 0)? != 0 || axis("quantize_axis", 1)? == 0 {
        return Some(Err("its blocks do not lie within rows".into()));
    }
    let table = super::source::source(site.graph, site.scope, node.input(0)?)?;
    if source.tensor.shape().first() != table.tensor.shape().first() {
        return Some(Err("it has no entry for each row of the codes".into()));
    }
    let how = How::Compact { ids: 1 };
    Some(Ok(Found { ids: node.input(1)?, axis: 0, keys: 1, how, negative: Negative::Wrap, together: true, padding: None }))
}
