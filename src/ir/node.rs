//! Nodes: what a graph is made of. Inputs, constants and captured values are nodes too, so that every value has a node.

use super::attr::{Attrs, Constant, Residue, SparseConstant};
use super::graph::{NodeId, ValueId};
use super::types::Type;
use std::fmt;
use std::sync::Arc;

/// The name of an operator. The default domain `ai.onnx` is the empty text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpName {
    /// Domain, `""` for ONNX's own.
    pub domain: Arc<str>,
    /// Name, e.g. `Gather`.
    pub name: Arc<str>,
    /// Overload of a function (IR version 10 and later), mostly `""`.
    pub overload: Arc<str>,
}

impl OpName {
    /// An op of a domain.
    pub fn new(domain: &str, name: &str) -> Self {
        Self { domain: normal_domain(domain).into(), name: name.into(), overload: "".into() }
    }

    /// An op of ONNX's own domain.
    pub fn onnx(name: &str) -> Self {
        Self::new("", name)
    }

    /// Whether it is ONNX's own op of that name.
    pub fn is(&self, name: &str) -> bool {
        self.domain.is_empty() && &*self.name == name
    }
}

/// `ai.onnx` and the empty text are one domain.
pub fn normal_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

impl fmt::Display for OpName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.domain.is_empty() {
            write!(f, "{}::", self.domain)?;
        }
        f.write_str(&self.name)?;
        if !self.overload.is_empty() {
            write!(f, ":{}", self.overload)?;
        }
        Ok(())
    }
}

/// What a node is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// An input of the graph, with a default where an initializer has its name.
    Input(Option<Constant>),
    /// A constant of the graph (an initializer).
    Param(Constant),
    /// A sparse constant of the graph.
    Sparse(Box<SparseConstant>),
    /// In a body: a value of an outer graph, by its name.
    Capture,
    /// An operator.
    Op(OpName),
}

/// One output of a node: a value.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// The value's name; empty for an optional output that is not asked for.
    pub name: String,
    /// Its type, as far as the file or a pass states it.
    pub ty: Option<Type>,
    /// What else the file says of it; `Some` if it has an entry of its own (an input, an output, a `value_info`).
    pub info: Option<Residue>,
}

impl Output {
    /// An output with a name and a stated type.
    pub fn new(name: impl Into<String>, ty: Option<Type>) -> Self {
        Self { name: name.into(), info: ty.is_some().then(Residue::default), ty }
    }
}

/// A node of a graph.
#[derive(Debug, Clone)]
pub struct Node {
    /// The node's own name; may be empty. Inputs, constants and captures have none.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The values it makes, by slot.
    pub outputs: Vec<Output>,
    /// Attributes.
    pub attrs: Attrs,
    /// What else the file says of it.
    pub residue: Residue,
    pub(super) inputs: Vec<Option<ValueId>>,
}

impl Node {
    /// The values it reads, in order; `None` for an optional input that is left out.
    pub fn inputs(&self) -> &[Option<ValueId>] {
        &self.inputs
    }

    /// The value it reads as input `i`, if any.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// The operator, if it is one.
    pub fn op(&self) -> Option<&OpName> {
        match &self.kind {
            Kind::Op(op) => Some(op),
            _ => None,
        }
    }

    /// The constant, if it is one that no caller can override.
    pub fn constant(&self) -> Option<&Constant> {
        match &self.kind {
            Kind::Param(c) => Some(c),
            _ => None,
        }
    }

    /// How messages call it: its name, or else that of its first output that has one.
    pub fn label(&self) -> &str {
        if !self.name.is_empty() {
            return &self.name;
        }
        self.outputs.iter().map(|o| o.name.as_str()).find(|n| !n.is_empty()).unwrap_or("")
    }

    /// Whether some attribute holds a body.
    pub fn has_bodies(&self) -> bool {
        self.attrs.iter().any(|(_, a)| !a.graphs().is_empty())
    }

    /// The output slot of the value of that name.
    pub fn slot(&self, name: &str) -> Option<u32> {
        self.outputs.iter().position(|o| o.name == name).map(|s| s as u32)
    }
}

/// A use of a value: who reads it and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// The reader.
    pub node: NodeId,
    /// The operand position, or `None` where a body of the reader captures the value.
    pub operand: Option<usize>,
}
