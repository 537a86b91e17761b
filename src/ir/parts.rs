//! Graphs before they are connected: what readers, the text parser and builders make.

use super::attr::{Attrs, Residue};
use super::node::{Kind, OpName, Output};

/// A node before its inputs are connected: everything by name.
#[derive(Debug, Clone)]
pub struct NodeParts {
    /// Node name.
    pub name: String,
    /// Operator.
    pub op: OpName,
    /// Names of the values it reads; empty for one that is left out.
    pub inputs: Vec<String>,
    /// Names of the values it makes; empty for one that is not asked for.
    pub outputs: Vec<String>,
    /// Attributes.
    pub attrs: Attrs,
    /// What else the file says of it.
    pub residue: Residue,
}

/// A graph before it is connected, as files and texts have it: everything by name.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// Graph name.
    pub name: String,
    /// Inputs.
    pub inputs: Vec<Output>,
    /// Constants by name, dense ([`Kind::Param`]) or sparse. One that has the name of an input is that input's default.
    pub params: Vec<(String, Kind)>,
    /// Operators, in any order.
    pub nodes: Vec<NodeParts>,
    /// Outputs.
    pub outputs: Vec<Output>,
    /// Stated types of values that are neither inputs nor outputs.
    pub value_info: Vec<Output>,
    /// What else the file says of the graph.
    pub residue: Residue,
}
