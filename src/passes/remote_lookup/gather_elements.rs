//! `GatherElements` that reads whole rows: its index is a column of ids, expanded over the dims of a row.

use super::source::{Source, const_ints};
use super::{Found, How, Site, Verdict};
use crate::ops::remote::Negative;

pub(super) fn find(site: &Site, operand: usize, source: &Source) -> Verdict {
    let node = site.graph.node(site.id);
    if !node.op()?.is("GatherElements") || operand != 0 {
        return None;
    }
    Some(rows(site, source).ok_or_else(|| "its index is not a column of ids expanded over whole rows".into()))
}

fn rows(site: &Site, source: &Source) -> Option<Found> {
    let (graph, node) = (site.graph, site.graph.node(site.id));
    let [_, width] = source.tensor.shape()[..] else { return None };
    let axis = node.attrs.int_or("axis", 0).ok()?;
    let expand = graph.node(node.input(1)?.node);
    let shape = expand.op()?.is("Expand").then(|| expand.input(1))??;
    let column = graph.node(expand.input(0)?.node);
    let axes = match column.op()?.is("Unsqueeze").then(|| column.input(1))? {
        Some(a) => const_ints(graph, site.scope, a)?,
        None => column.attrs.ints("axes").ok()??.to_vec(),
    };
    // The index has the dims of the result.
    let known = |v| graph.type_of(v).and_then(|t| t.shape()).and_then(|s| s.last()?.known());
    let whole = const_ints(graph, site.scope, shape).and_then(|s| s.last().copied()) == Some(width as i64)
        || known(node.input(1)?) == Some(width)
        || known(site.id.value(0)) == Some(width);
    if (axis != 0 && axis != -2) || (axes != [1] && axes != [-1]) || !whole {
        return None;
    }
    let ids = column.input(0)?;
    Some(Found { ids, axis: 0, keys: 1, how: How::Expanded { shape }, negative: Negative::Wrap, together: false, padding: None })
}
