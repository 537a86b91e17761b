//! The order of a plan's steps.

use super::ExecError;
use crate::ir::{Graph, NodeId};
use crate::ops::{self, Run};
use std::collections::HashMap;

/// Operators in the order in which they start: those that lookups wait for and the lookups, then those that wait for no
/// lookup, then the rest; each group as in the file.
pub(super) fn schedule(graph: &Graph) -> Result<Vec<NodeId>, ExecError> {
    let order = graph.topological().map_err(|e| ExecError::Model(e.0))?;
    let is_host = |id: NodeId| graph.node(id).op().and_then(ops::find).is_some_and(|d| matches!(d.run, Run::Host));
    if !order.iter().any(|&id| is_host(id)) {
        return Ok(order);
    }
    let reads =
        |id: NodeId| graph.node(id).inputs().iter().flatten().copied().chain(graph.captured_by(id)).map(|v| v.node).collect::<Vec<_>>();
    let mut after: HashMap<NodeId, bool> = HashMap::new();
    for &id in &order {
        let depends = reads(id).iter().any(|r| is_host(*r) || after.get(r).copied().unwrap_or(false));
        after.insert(id, depends);
    }
    let mut needed: HashMap<NodeId, bool> = HashMap::new();
    for &id in order.iter().rev() {
        let need = is_host(id) || needed.get(&id).copied().unwrap_or(false);
        if need {
            reads(id).into_iter().for_each(|r| {
                needed.insert(r, true);
            });
        }
        needed.insert(id, need);
    }
    // A lookup that waits for another comes after it all the same: the groups are closed under "reads".
    let group = |id: &NodeId| match (after[id], needed[id]) {
        (false, true) => 0,
        (false, false) => 1,
        (true, _) => 2,
    };
    let mut sorted = order.clone();
    sorted.sort_by_key(group);
    Ok(sorted)
}
