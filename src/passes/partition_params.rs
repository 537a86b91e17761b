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

use super::remote_lookup::view_of;
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
        let tables: HashSet<&str> = report.tables.iter().map(|t| t.name.as_str()).collect();
        let mut names = model.names();
        let mut changed = Changed::No;
        model.visit_mut(&mut |graph: &mut Graph, _| -> Result<(), PassError> {
            // Views of a table, then the table.
            loop {
                let unused = |id: &crate::ir::NodeId| graph.is_unused(id.value(0));
                let view = |id: &crate::ir::NodeId| {
                    let (node, mut v) = (graph.node(*id), id.value(0));
                    while let Some(of) = view_of(graph, v) {
                        v = of;
                    }
                    let constant = node.op().is_some_and(|o| o.is("Constant")) && tables.contains(node.outputs[0].name.as_str());
                    constant || (v.node != *id && tables.contains(graph.name_of(v)))
                };
                let params = graph.params().iter().copied().filter(|&p| {
                    let node = graph.node(p);
                    matches!(node.kind, Kind::Param(_) | Kind::Input(Some(_))) && tables.contains(node.outputs[0].name.as_str())
                });
                let gone: Vec<_> = graph.ops().iter().copied().filter(view).chain(params).filter(unused).collect();
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
