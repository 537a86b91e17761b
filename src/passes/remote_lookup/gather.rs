//! `Gather` on any axis of a table.

use super::source::Source;
use super::{Found, How, Site, Verdict, whole_bytes};
use crate::ops::remote::Negative;

pub(super) fn find(site: &Site, operand: usize, source: &Source) -> Verdict {
    let node = site.graph.node(site.id);
    if !node.op()?.is("Gather") || operand != 0 {
        return None;
    }
    let (ids, rank) = (node.input(1)?, source.tensor.rank());
    let axis = node.attrs.int_or("axis", 0).ok()?;
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|&a| a < rank)?;
    let found = Found { ids, axis, keys: 1, how: How::Rows, negative: Negative::Wrap, together: false, padding: None };
    if axis == 0 {
        return Some(Ok(found));
    }
    let dtype = source.tensor.dtype();
    let known = site.types.rank(site.graph, ids);
    Some(match known {
        _ if !whole_bytes(dtype, &[1]) || dtype.bits() < 8 => {
            Err(format!("it reads axis {axis} of elements of {dtype}, which are no whole bytes"))
        }
        Some(rank) => Ok(Found { how: How::Moved { at: axis, rank }, ..found }),
        None => Err(format!("it reads axis {axis}, and the rank of its ids is not known")),
    })
}
