//! `partition-params`
//!
//! *What*: takes the tables whose lookups are all remote out of the graph.
//! *Why*: a worker never holds a table.
//! *Leaves alone*: constants that anything still reads.

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

    fn run(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError> {
        let tables: HashSet<&str> = report.tables.iter().map(|t| t.name.as_str()).collect();
        let mut names = model.names();
        let mut changed = Changed::No;
        model.visit_mut(&mut |graph: &mut Graph, _| -> Result<(), PassError> {
            // Identities of a table, then the table.
            loop {
                let unused = |id: &crate::ir::NodeId| graph.is_unused(id.value(0));
                let identity = |id: &crate::ir::NodeId| {
                    let node = graph.node(*id);
                    let of_table = || {
                        node.input(0)
                            .is_some_and(|v| tables.contains(graph.name_of(v)) || graph.node(v.node).op().is_some_and(|o| o.is("Identity")))
                    };
                    let table = node.op().is_some_and(|o| o.is("Constant")) && tables.contains(node.outputs[0].name.as_str());
                    table || (node.op().is_some_and(|o| o.is("Identity")) && of_table())
                };
                let params = graph.params().iter().copied().filter(|&p| {
                    let node = graph.node(p);
                    matches!(node.kind, Kind::Param(_) | Kind::Input(Some(_))) && tables.contains(node.outputs[0].name.as_str())
                });
                let gone: Vec<_> = graph.ops().iter().copied().filter(identity).chain(params).filter(unused).collect();
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
