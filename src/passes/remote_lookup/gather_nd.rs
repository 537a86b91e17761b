//! `GatherND` whose indices name rows of a table, or of tables that are stacked.

use super::source::{Source, const_ints};
use super::{Found, How, Site, Verdict};
use crate::ir::{Type, ValueId};
use crate::ops::remote::Negative;

pub(super) fn find(site: &Site, operand: usize, source: &Source) -> Verdict {
    let node = site.graph.node(site.id);
    if !node.op()?.is("GatherND") || operand != 0 {
        return None;
    }
    let ids = node.input(1)?;
    let batch = usize::try_from(node.attrs.int_or("batch_dims", 0).ok()?).ok()?;
    let Some(parts) = last_dim(site, ids) else {
        return Some(Err("the last dim of its indices is not known".into()));
    };
    let shape = source.tensor.shape();
    // The first dims count with where an index stands.
    let keys = batch + parts;
    if parts == 0 || keys > shape.len() {
        return Some(Err(format!("its indices have {parts} parts after {batch} batch dims, the table {} dims", shape.len())));
    }
    let dims = shape[..keys].iter().map(|&d| d as i64).collect();
    let how = How::Stacked { dims, batch };
    Some(Ok(Found { ids, axis: 0, keys, how, negative: Negative::Wrap, together: false, padding: None }))
}

/// The last dim of a value, from its type or from the op that makes it.
fn last_dim(site: &Site, v: ValueId) -> Option<usize> {
    let graph = site.graph;
    if let Some(n) = site.types.get(graph, v).and_then(Type::shape).and_then(|s| s.last()?.known()) {
        return Some(n);
    }
    let node = graph.node(v.node);
    let op = node.op().filter(|o| o.domain.is_empty())?;
    match &*op.name {
        "Cast" | "Identity" => last_dim(site, node.input(0)?),
        "Unsqueeze" => {
            let axes = match node.input(1) {
                Some(a) => const_ints(graph, site.scope, a)?,
                None => node.attrs.ints("axes").ok()??.to_vec(),
            };
            (axes == [-1]).then_some(1)
        }
        "Concat" if node.attrs.int("axis").ok()? == Some(-1) => node.inputs().iter().map(|v| last_dim(site, (*v)?)).sum(),
        _ => None,
    }
}
