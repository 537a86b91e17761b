//! What passes did, and why they did not do more.

use crate::ir::Model;
use crate::tensor::{DType, Shape, Tensor};

/// A lookup in a table, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupRemark {
    /// The node.
    pub node: String,
    /// Its op.
    pub op: String,
    /// The table.
    pub table: String,
    /// Why it stayed; `None` if it is remote now.
    pub reason: Option<String>,
}

/// A table whose lookups are all remote: it is no longer part of the graph.
#[derive(Debug, Clone)]
pub struct TableTaken {
    /// The name that it is served by: that of the value that held it, with a number where another table has it.
    pub name: String,
    /// The value that held it.
    pub origin: String,
    /// Its rows.
    pub tensor: Tensor,
    /// Lookups of it.
    pub lookups: usize,
}

/// What the passes of a pipeline report.
#[derive(Debug, Default)]
pub struct Report {
    /// Every lookup that was found, in the order of the graph.
    pub lookups: Vec<LookupRemark>,
    /// Element type and dims of each constant that is looked up or that stands beside one, by name.
    pub shapes: Vec<(String, DType, Shape)>,
    /// Tables that were taken out.
    pub tables: Vec<TableTaken>,
    /// What else is worth saying, by pass.
    pub remarks: Vec<(&'static str, String)>,
    /// Passes that changed something, in the order of their first change.
    pub steps: Vec<Step>,
}

/// Nodes and initializers of a model: operators in the main graph, in bodies and in functions, where a Constant is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Nodes.
    pub nodes: usize,
    /// Initializers.
    pub initializers: usize,
}

impl Size {
    /// That of a model.
    pub fn of(model: &Model) -> Size {
        let mut size = Size::default();
        for g in model.graphs() {
            size.nodes += g.ops().iter().filter(|&&id| !g.node(id).op().is_some_and(|op| op.is("Constant"))).count();
            size.initializers += g.params().len();
        }
        size
    }
}

/// What a pass did, over all its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The pass.
    pub pass: &'static str,
    /// Runs that changed something.
    pub runs: usize,
    /// Nodes that it added, or, below 0, took away.
    pub nodes: i64,
    /// Initializers likewise.
    pub initializers: i64,
}

impl Report {
    /// Notes a run of a pass that changed something.
    pub(super) fn step(&mut self, pass: &'static str, before: Size, after: Size) {
        let (nodes, initializers) = (after.nodes as i64 - before.nodes as i64, after.initializers as i64 - before.initializers as i64);
        match self.steps.iter_mut().find(|s| s.pass == pass) {
            Some(step) => {
                step.runs += 1;
                step.nodes += nodes;
                step.initializers += initializers;
            }
            None => self.steps.push(Step { pass, runs: 1, nodes, initializers }),
        }
    }
}
