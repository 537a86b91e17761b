//! `merge-lookups`
//!
//! *What*: lookups that do not wait for each other become one node.
//! *Why*: one node is one round trip to each server.
//! *Before*:
//! ```text
//! graph g(i: int64[n], j: int64[n]) -> (y) {
//!   a = graphtool::RemoteLookup(i) {tables=["A"], rows=[4], dtypes=[1], row_ranks=[1], row_dims=[2], negative=[1], padding_idx=[-1]}
//!   b = graphtool::RemoteLookup(j) {tables=["B"], rows=[6], dtypes=[1], row_ranks=[1], row_dims=[2], negative=[1], padding_idx=[-1]}
//!   y = Add(a, b)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(i: int64[n], j: int64[n]) -> (y) {
//!   a, b = graphtool::RemoteLookup(i, j) {tables=["A", "B"], rows=[4, 6], dtypes=[1, 1], row_ranks=[1, 1], row_dims=[2, 2], negative=[1, 1]} # remote_lookup
//!   y = Add(a, b)
//! }
//! ```
//! *Leaves alone*: lookups in different graphs (a branch that is not taken must not ask).

use super::{Changed, Pass, PassError, Report};
use crate::ir::{Graph, Model, Names, NodeId, OpName, Output};
use crate::ops::remote::{DOMAIN, LookupSpec};
use std::collections::{BTreeMap, HashMap};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct MergeLookups;

impl Pass for MergeLookups {
    fn name(&self) -> &'static str {
        "merge-lookups"
    }

    fn source(&self) -> &'static str {
        include_str!("merge_lookups.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let mut names = model.names();
        let mut changed = Changed::No;
        model.visit_mut(&mut |graph, _| -> Result<(), PassError> {
            changed = changed.or(merge(graph, &mut names)?);
            Ok(())
        })?;
        Ok(changed)
    }
}

fn merge(graph: &mut Graph, names: &mut Names) -> Result<Changed, PassError> {
    let op = OpName::new(DOMAIN, "RemoteLookup");
    let is_lookup = |graph: &Graph, id: NodeId| graph.node(id).op() == Some(&op);
    let Ok(order) = graph.topological() else { return Ok(Changed::No) };
    // How many lookups lie on the longest way to a node: lookups of one depth cannot wait for each other.
    let mut depth: HashMap<NodeId, usize> = HashMap::new();
    let mut groups: BTreeMap<usize, Vec<NodeId>> = BTreeMap::new();
    for &id in &order {
        let node = graph.node(id);
        let reads = node.inputs().iter().flatten().copied().chain(graph.captured_by(id));
        let before = reads.map(|v| depth.get(&v.node).copied().unwrap_or(0) + usize::from(is_lookup(graph, v.node))).max().unwrap_or(0);
        depth.insert(id, before);
        if is_lookup(graph, id) {
            groups.entry(before).or_default().push(id);
        }
    }
    let mut edit = graph.edit("merge-lookups");
    for group in groups.into_values().filter(|g| g.len() > 1) {
        let (mut spec, mut inputs, mut outputs, mut old) = (LookupSpec::default(), Vec::new(), Vec::new(), Vec::new());
        for &id in &group {
            let node = edit.graph().node(id);
            let part = LookupSpec::read(&node.attrs, node.inputs().len()).map_err(|e| PassError::Call(e.to_string()))?;
            spec.tables.extend(part.tables);
            inputs.extend_from_slice(node.inputs());
            for (slot, o) in node.outputs.iter().enumerate() {
                outputs.push(Output::new(o.name.clone(), o.ty.clone()));
                old.push(id.value(slot as u32));
            }
        }
        let new = edit.add(op.clone(), "remote_lookup", inputs, outputs, spec.attrs(), group.first().copied());
        for (slot, value) in old.into_iter().enumerate() {
            edit.replace_uses(value, new.value(slot as u32));
        }
        group.into_iter().for_each(|id| edit.remove(id));
    }
    if edit.is_empty() {
        return Ok(Changed::No);
    }
    edit.commit(names)?;
    Ok(Changed::Yes)
}
