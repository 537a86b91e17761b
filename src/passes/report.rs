//! What passes did, and why they did not do more.

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
    /// Passes that changed something.
    pub changed: Vec<&'static str>,
}
