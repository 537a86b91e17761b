//! A table that a Loop or Scan carries as a state, changes, and looks up in its body.

use super::source::Source;
use super::{Site, Verdict};
use crate::ir::{Graph, NodeId, Use};

pub(super) fn find(site: &Site, operand: usize, _: &Source) -> Verdict {
    looks_up(site.graph, site.id, operand).then(|| Err("the loop carries it as a state, which each step may change".into()))
}

/// Whether the body of a loop looks up rows of what it is given as an operand.
pub(super) fn looks_up(graph: &Graph, id: NodeId, operand: usize) -> bool {
    let node = graph.node(id);
    let Some(op) = node.op().filter(|o| o.is("Loop") || o.is("Scan")) else { return false };
    let Ok(Some(body)) = node.attrs.graph("body") else { return false };
    if op.is("Scan") && operand + node.attrs.int_or("num_scan_inputs", 0).unwrap_or(0).max(0) as usize >= node.inputs().len() {
        return false;
    }
    let Some(&state) = body.inputs().get(operand) else { return false };
    let reads = |u: &Use| {
        let reader = body.node(u.node).op();
        let lookup = u.operand == Some(0) && ["Gather", "GatherND", "GatherElements"].iter().any(|n| reader.is_some_and(|o| o.is(n)));
        lookup || u.operand.is_some_and(|o| looks_up(body, u.node, o))
    };
    body.uses(state.value(0)).iter().any(reads)
}
