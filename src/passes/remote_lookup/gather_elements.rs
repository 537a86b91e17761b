//! `GatherElements` that reads whole rows: its index is a column of ids, repeated over the dims of a row.

use super::source::{Source, const_ints};
use super::{Found, How, Site, Verdict};
use crate::ir::{Dim, Type, ValueId};
use crate::ops::remote::Negative;

pub(super) fn find(site: &Site, operand: usize, source: &Source) -> Verdict {
    let node = site.graph.node(site.id);
    if !node.op()?.is("GatherElements") || operand != 0 {
        return None;
    }
    let single = |ids| Found { ids, axis: 0, keys: 1, how: How::Rows, negative: Negative::Wrap, together: false, padding: None };
    if source.tensor.rank() == 1 {
        return Some(Ok(single(node.input(1)?)));
    }
    Some(rows(site, source).ok_or_else(|| "its index is not a column of ids expanded over whole rows".into()))
}

fn rows(site: &Site, source: &Source) -> Option<Found> {
    let (graph, node) = (site.graph, site.graph.node(site.id));
    let [_, width] = source.tensor.shape()[..] else { return None };
    let axis = node.attrs.int_or("axis", 0).ok()?;
    let index = node.input(1)?;
    let repeat = graph.node(index.node);
    let op = repeat.op().filter(|o| o.is("Expand") || o.is("Tile"))?;
    let (column, shape) = (repeat.input(0)?, repeat.input(1)?);
    if !is_column(site, column) || (axis != 0 && axis != -2) {
        return None;
    }
    let given = const_ints(graph, site.scope, shape);
    // The index has the dims of the result.
    let known = |v| site.types.get(graph, v).and_then(Type::shape).and_then(|s| s.last()?.known());
    let whole = given.as_ref().and_then(|s| s.last().copied()) == Some(width as i64) || known(index) == Some(width);
    let whole = whole || known(site.id.value(0)) == Some(width);
    // Tile repeats the column as often as a row is wide, and no row.
    let how = match (op.is("Tile"), given) {
        (false, _) if whole => How::Expanded { shape },
        (true, Some(g)) if g == [1, width as i64] => How::Rows,
        _ => return None,
    };
    // Rows of a column of ids have a dim too many.
    let found = Found { ids: column, axis: 0, keys: 1, how, negative: Negative::Wrap, together: false, padding: None };
    match list_of(site, column) {
        Some(ids) => Some(Found { ids, ..found }),
        None => Some(Found { how: How::Column { shape: matches!(found.how, How::Expanded { .. }).then_some(shape) }, ..found }),
    }
}

/// Whether a value has two dims, the last of them 1.
fn is_column(site: &Site, v: ValueId) -> bool {
    let by_type = site.types.get(site.graph, v).and_then(Type::shape).is_some_and(|s| matches!(s, [_, Dim::Known(1)]));
    by_type || list_of(site, v).is_some()
}

/// The list of ids that a column was made of.
fn list_of(site: &Site, column: ValueId) -> Option<ValueId> {
    let (graph, node) = (site.graph, site.graph.node(column.node));
    let op = node.op()?;
    let ids = node.input(0)?;
    let listed = |name: &str| match node.input(1) {
        Some(a) => const_ints(graph, site.scope, a),
        None => node.attrs.ints(name).ok()?.map(<[i64]>::to_vec),
    };
    if op.is("Unsqueeze") {
        let axes = listed("axes")?;
        return (axes == [1] || axes == [-1]).then_some(ids);
    }
    (op.is("Reshape") && listed("shape")? == [-1, 1] && site.types.rank(graph, ids) == Some(1)).then_some(ids)
}
