//! `graphtool::Lookup`: a lookup with rules of its own for negative ids and the padding id.

use super::source::Source;
use super::{Found, How, Site, Verdict};
use crate::ops::remote::{DOMAIN, lookup_rules};

pub(super) fn find(site: &Site, operand: usize, _: &Source) -> Verdict {
    let node = site.graph.node(site.id);
    let op = node.op()?;
    if &*op.domain != DOMAIN || &*op.name != "Lookup" || operand != 0 {
        return None;
    }
    let ids = node.input(1)?;
    Some(match lookup_rules(&node.attrs) {
        Ok((negative, padding)) => Ok(Found { ids, axis: 0, keys: 1, how: How::Rows, negative, together: false, padding }),
        Err(e) => Err(e.to_string()),
    })
}
