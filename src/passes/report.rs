//! What passes did, and why they did not do more.

use crate::tensor::Tensor;

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
    /// The value that held it.
    pub name: String,
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
    /// Tables that were taken out.
    pub tables: Vec<TableTaken>,
    /// What else is worth saying, by pass.
    pub remarks: Vec<(&'static str, String)>,
    /// Passes that changed something, in the order of their first change.
    pub steps: Vec<Step>,
}

/// What a pass did, over all its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The pass.
    pub pass: &'static str,
    /// Runs that changed something.
    pub runs: usize,
    /// Nodes that it took away (or, below 0, added).
    pub removed: i64,
}

impl Report {
    /// Notes a run of a pass that changed something.
    pub(super) fn step(&mut self, pass: &'static str, before: usize, after: usize) {
        let removed = before as i64 - after as i64;
        match self.steps.iter_mut().find(|s| s.pass == pass) {
            Some(step) => {
                step.runs += 1;
                step.removed += removed;
            }
            None => self.steps.push(Step { pass, runs: 1, removed }),
        }
    }
}
