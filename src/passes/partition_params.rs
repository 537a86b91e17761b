//! `partition-params`
//!
//! *What*: takes the tables whose lookups are all remote out of the graph.
//! *Why*: a worker never holds a table.
//! *Before*:
//! ```text
//! graph g(i: int64[n]) -> (y) {
//!   param W: float32[2,2] = [0.0, 1.0, 2.0, 3.0]
//!   y = graphtool::RemoteLookup(i) {tables=["W"], rows=[2], dtypes=[1], row_ranks=[1], row_dims=[2], negative=[1], padding_idx=[-1]}
//! }
//! ```
//! *After*:
//! ```text
//! graph g(i: int64[n]) -> (y) {
//!   y = graphtool::RemoteLookup(i) {tables=["W"], rows=[2], dtypes=[1], row_ranks=[1], row_dims=[2], negative=[1], padding_idx=[-1]}
//! }
//! ```
//! *Leaves alone*: constants that anything still reads.

use super::remote_lookup::source;
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Graph, Kind, Model};
use std::collections::HashSet;

/// The pass; it works on the tables that `remote-lookup` reported.
#[derive(Debug, Clone, Copy)]
pub struct PartitionParams;

impl Pass for PartitionParams {
    fn name(&self) -> &'static str {
        "partition-params"
    }

    fn source(&self) -> &'static str {
        include_str!("partition_params.rs")
    }

    fn run(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError> {
        let tables: HashSet<&str> = report.tables.iter().map(|t| t.origin.as_str()).collect();
        let mut names = model.names();
        let mut changed = Changed::No;
        model.visit_mut(&mut |graph: &mut Graph, scope| -> Result<(), PassError> {
            // Views of a table, then the table.
            loop {
                let unused = |id: &crate::ir::NodeId| graph.is_unused(id.value(0));
                let view = |id: &crate::ir::NodeId| source(graph, scope, id.value(0)).is_some_and(|s| tables.contains(s.key.1.as_str()));
                let params = graph.params().iter().copied().filter(|&p| {
                    let node = graph.node(p);
                    matches!(node.kind, Kind::Param(_) | Kind::Input(Some(_))) && tables.contains(node.outputs[0].name.as_str())
                });
                let ops = graph.ops().iter().copied().filter(|&id| graph.node(id).outputs.len() == 1);
                let gone: Vec<_> = ops.chain(params).filter(unused).filter(|id| graph.node(*id).op().is_none() || view(id)).collect();
                if gone.is_empty() {
                    return Ok(());
                }
                changed = Changed::Yes;
                let mut edit = graph.edit("partition-params");
                gone.into_iter().for_each(|id| edit.remove(id));
                edit.commit(&mut names)?;
            }
        })?;
        Ok(changed)
    }
}
