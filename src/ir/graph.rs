//! The graph: the one user of petgraph. It is read through [`Graph`] and changed through [`Edit`](super::Edit).
//!
//! A value is (node, slot). Its name is its identity: unique in its graph, kept by edits, and what bodies capture it by.
//! Ids are petgraph's and are re-used after a removal, so none may be kept across a commit.

use super::attr::{Attr, Attrs, Constant, Residue};
use super::model::Names;
use super::node::{Kind, Node, OpName, Output, Use};
use super::parts::Parts;
use super::types::Type;
use petgraph::Direction::{Incoming, Outgoing};
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};

/// A node of one graph; dies at the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(super) u32);

/// A value of one graph: an output slot of a node; dies at the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId {
    /// The node that makes it.
    pub node: NodeId,
    /// Which of its outputs.
    pub slot: u32,
}

impl NodeId {
    /// The node's output `slot`.
    pub fn value(self, slot: u32) -> ValueId {
        ValueId { node: self, slot }
    }

    fn index(self) -> NodeIndex {
        NodeIndex::new(self.0 as usize)
    }
}

/// Which slot flows to which operand (`None`: into a body of the reader).
#[derive(Debug, Clone, Copy)]
struct Edge {
    slot: u32,
    operand: Option<u32>,
}

/// A value that the graph gives back.
#[derive(Debug, Clone)]
pub struct GraphOutput {
    /// The value.
    pub value: ValueId,
    /// Its type, as the interface states it.
    pub ty: Option<Type>,
    /// What else the file says of it.
    pub residue: Residue,
}

/// A graph of nodes. Subgraphs (bodies of If, Loop, Scan) are graphs in attributes; what they capture is a use here.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// The graph's name.
    pub name: String,
    /// What else the file says of it.
    pub residue: Residue,
    g: StableDiGraph<Node, Edge>,
    pub(super) inputs: Vec<NodeId>,
    pub(super) params: Vec<NodeId>,
    pub(super) captures: Vec<NodeId>,
    pub(super) order: Vec<NodeId>,
    pub(super) outputs: Vec<GraphOutput>,
    names: HashMap<String, ValueId>,
    pub(super) value_info: Vec<String>,
}

/// What is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GraphError(pub String);

impl Graph {
    /// Connects the parts. A `body` may name values of outer graphs: they become captures.
    ///
    /// # Errors
    /// All faults found: values made twice, read but never made, outputs that do not exist, empty names.
    pub fn from_parts(parts: Parts, body: bool) -> Result<Graph, Vec<GraphError>> {
        let mut graph = Graph { name: parts.name, residue: parts.residue, ..Graph::default() };
        let mut faults = Vec::new();
        for input in parts.inputs {
            if input.name.is_empty() {
                faults.push(GraphError("a graph input has no name".into()));
            }
            let id = graph.insert(Node { outputs: vec![input], ..blank(Kind::Input(None)) }, &mut faults);
            graph.inputs.push(id);
        }
        let inputs: HashMap<String, NodeId> = graph.inputs.iter().map(|&id| (graph.node(id).outputs[0].name.clone(), id)).collect();
        for (name, kind) in parts.params {
            match (inputs.get(&name), kind) {
                (Some(&id), Kind::Param(constant)) => {
                    let node = graph.node_mut(id);
                    if matches!(node.kind, Kind::Input(Some(_))) {
                        faults.push(GraphError(format!("initializer \"{name}\" is given twice")));
                    }
                    node.kind = Kind::Input(Some(constant));
                    graph.params.push(id);
                }
                (_, kind) => {
                    if name.is_empty() {
                        faults.push(GraphError("an initializer has no name".into()));
                    }
                    let ty = match &kind {
                        Kind::Param(c) => Some(Type::of(c.tensor.dtype(), c.tensor.shape())),
                        _ => None,
                    };
                    let output = Output { name, ty, info: None };
                    let id = graph.insert(Node { outputs: vec![output], ..blank(kind) }, &mut faults);
                    graph.params.push(id);
                }
            }
        }
        let mut operands = Vec::with_capacity(parts.nodes.len());
        for n in parts.nodes {
            let outputs = n.outputs.into_iter().map(|name| Output { name, ..Output::default() }).collect();
            let node = Node { name: n.name, kind: Kind::Op(n.op), outputs, attrs: n.attrs, residue: n.residue, inputs: Vec::new() };
            let id = graph.insert(node, &mut faults);
            graph.order.push(id);
            operands.push((id, n.inputs));
        }
        for (id, names) in operands {
            for name in names {
                let value = if name.is_empty() { None } else { graph.resolve(&name, body) };
                if value.is_none() && !name.is_empty() {
                    let node = graph.node(id);
                    let op = node.op().map(OpName::to_string).unwrap_or_default();
                    faults.push(GraphError(format!("node \"{}\" ({op}): input \"{name}\" is made by nobody", node.label())));
                }
                graph.push_operand(id, value);
            }
            if let Err(missing) = graph.connect_captures(id, body) {
                let label = graph.node(id).label();
                faults.extend(
                    missing.into_iter().map(|n| GraphError(format!("node \"{label}\": its body reads \"{n}\", which is made by nobody"))),
                );
            }
        }
        for info in parts.value_info {
            graph.state(&info.name, info.ty, info.info, true);
        }
        for output in parts.outputs {
            match graph.resolve(&output.name, body) {
                Some(value) => {
                    graph.state(&output.name, output.ty.clone(), None, false);
                    graph.outputs.push(GraphOutput { value, ty: output.ty, residue: output.info.unwrap_or_default() });
                }
                None => faults.push(GraphError(format!("graph output \"{}\" is made by nobody", output.name))),
            }
        }
        if faults.is_empty() { Ok(graph) } else { Err(faults) }
    }

    fn state(&mut self, name: &str, ty: Option<Type>, info: Option<Residue>, listed: bool) {
        if listed {
            self.value_info.push(name.to_owned());
        }
        let Some(&value) = self.names.get(name) else { return };
        let output = &mut self.node_mut(value.node).outputs[value.slot as usize];
        output.ty = output.ty.take().or(ty);
        if info.is_some() {
            output.info = info;
        }
    }

    fn insert(&mut self, node: Node, faults: &mut Vec<GraphError>) -> NodeId {
        let id = NodeId(self.g.node_count() as u32);
        for (slot, output) in node.outputs.iter().enumerate() {
            if !output.name.is_empty() && self.names.insert(output.name.clone(), id.value(slot as u32)).is_some() {
                faults.push(GraphError(format!("value \"{}\" is made twice", output.name)));
            }
        }
        let found = self.g.add_node(node);
        debug_assert_eq!(found, id.index());
        id
    }

    /// The value of that name; in a body, a captured one where the graph does not make it.
    fn resolve(&mut self, name: &str, body: bool) -> Option<ValueId> {
        if let Some(&v) = self.names.get(name) {
            return Some(v);
        }
        body.then(|| self.add_capture(name).value(0))
    }

    pub(super) fn add_capture(&mut self, name: &str) -> NodeId {
        let output = Output { name: name.to_owned(), ..Output::default() };
        let id = self.add_node(Node { outputs: vec![output], ..blank(Kind::Capture) });
        self.captures.push(id);
        id
    }

    fn push_operand(&mut self, id: NodeId, value: Option<ValueId>) {
        let operand = self.node(id).inputs.len() as u32;
        if let Some(v) = value {
            self.g.add_edge(v.node.index(), id.index(), Edge { slot: v.slot, operand: Some(operand) });
        }
        self.node_mut(id).inputs.push(value);
    }

    /// Makes the captures of a node's bodies uses of this graph's values.
    fn connect_captures(&mut self, id: NodeId, body: bool) -> Result<(), Vec<String>> {
        let mut missing = Vec::new();
        for name in captured_names(self.node(id)) {
            match self.resolve(&name, body) {
                Some(v) => {
                    self.g.add_edge(v.node.index(), id.index(), Edge { slot: v.slot, operand: None });
                }
                None => missing.push(name),
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }

    /// A node.
    ///
    /// # Panics
    /// When the id is not of this graph, or died at a commit.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.g[id.index()]
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.g[id.index()]
    }

    /// Whether the id is a node of this graph now.
    pub fn contains(&self, id: NodeId) -> bool {
        self.g.contains_node(id.index())
    }

    /// Input nodes, in order.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// Constants (and inputs with a default), in the order of the file.
    pub fn params(&self) -> &[NodeId] {
        &self.params
    }

    /// In a body: the values of outer graphs that it reads.
    pub fn captures(&self) -> &[NodeId] {
        &self.captures
    }

    /// Operators, in the order of the file.
    pub fn ops(&self) -> &[NodeId] {
        &self.order
    }

    /// Every node: inputs, constants, captures, operators.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        let params = self.params.iter().copied().filter(|&p| !matches!(self.node(p).kind, Kind::Input(_)));
        self.inputs.iter().copied().chain(params).chain(self.captures.iter().copied()).chain(self.order.iter().copied())
    }

    /// What the graph gives back, in order.
    pub fn outputs(&self) -> &[GraphOutput] {
        &self.outputs
    }

    /// Names with an entry of their own for their type, in the order of the file; some may name no value.
    pub fn value_info(&self) -> &[String] {
        &self.value_info
    }

    /// The value of that name.
    pub fn value(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// The output record of a value.
    pub fn output(&self, v: ValueId) -> &Output {
        &self.node(v.node).outputs[v.slot as usize]
    }

    /// The name of a value.
    pub fn name_of(&self, v: ValueId) -> &str {
        &self.output(v).name
    }

    /// The stated type of a value.
    pub fn type_of(&self, v: ValueId) -> Option<&Type> {
        self.output(v).ty.as_ref()
    }

    /// The constant behind a value, if it is one that no caller can override.
    pub fn constant(&self, v: ValueId) -> Option<&Constant> {
        self.node(v.node).constant()
    }

    /// Who reads a value, by node and operand; each capture by a body counts once per node. Graph outputs are not uses.
    pub fn uses(&self, v: ValueId) -> Vec<Use> {
        let mut uses: Vec<Use> = self
            .g
            .edges_directed(v.node.index(), Outgoing)
            .filter(|e| e.weight().slot == v.slot)
            .map(|e| Use { node: NodeId(e.target().index() as u32), operand: e.weight().operand.map(|o| o as usize) })
            .collect();
        uses.sort_by_key(|u| (u.node, u.operand.map_or(usize::MAX, |o| o)));
        uses.dedup();
        uses
    }

    /// Whether the graph gives a value back.
    pub fn is_output(&self, v: ValueId) -> bool {
        self.outputs.iter().any(|o| o.value == v)
    }

    /// Whether nobody needs a value.
    pub fn is_unused(&self, v: ValueId) -> bool {
        !self.is_output(v) && !self.g.edges_directed(v.node.index(), Outgoing).any(|e| e.weight().slot == v.slot)
    }

    /// The values that a node reads through its bodies.
    pub fn captured_by(&self, id: NodeId) -> Vec<ValueId> {
        let mut values: Vec<ValueId> = self
            .g
            .edges_directed(id.index(), Incoming)
            .filter(|e| e.weight().operand.is_none())
            .map(|e| NodeId(e.source().index() as u32).value(e.weight().slot))
            .collect();
        values.sort();
        values.dedup();
        values
    }

    /// Operators so that each follows what it reads; where the file's order allows, it is kept.
    ///
    /// # Errors
    /// A cycle: the names of the values on it, sorted.
    pub fn topological(&self) -> Result<Vec<NodeId>, GraphError> {
        let position: HashMap<NodeId, usize> = self.order.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let mut waiting = vec![0usize; self.order.len()];
        for (i, id) in self.order.iter().enumerate() {
            waiting[i] =
                self.g.edges_directed(id.index(), Incoming).filter(|e| position.contains_key(&NodeId(e.source().index() as u32))).count();
        }
        let mut ready: BinaryHeap<Reverse<usize>> = (0..waiting.len()).filter(|&i| waiting[i] == 0).map(Reverse).collect();
        let mut sorted = Vec::with_capacity(self.order.len());
        while let Some(Reverse(i)) = ready.pop() {
            sorted.push(self.order[i]);
            for e in self.g.edges_directed(self.order[i].index(), Outgoing) {
                let j = position[&NodeId(e.target().index() as u32)];
                waiting[j] -= 1;
                if waiting[j] == 0 {
                    ready.push(Reverse(j));
                }
            }
        }
        if sorted.len() == self.order.len() {
            return Ok(sorted);
        }
        let mut stuck: Vec<&str> = (0..waiting.len()).filter(|&i| waiting[i] > 0).map(|i| self.node(self.order[i]).label()).collect();
        stuck.sort_unstable();
        stuck.truncate(8);
        Err(GraphError(format!("the nodes \"{}\" wait for each other (a cycle)", stuck.join("\", \""))))
    }

    /// All names in use here and in the bodies within.
    pub fn collect_names(&self, into: &mut BTreeSet<String>) {
        into.extend(self.names.keys().cloned());
        for &id in &self.order {
            let node = self.node(id);
            into.insert(node.name.clone());
            for (_, attr) in node.attrs.iter() {
                attr.graphs().iter().for_each(|g| g.collect_names(into));
            }
        }
    }

    /// Runs `f` on each body of a node, then makes their captures uses of this graph again.
    ///
    /// # Errors
    /// The first that `f` gives.
    pub(super) fn with_bodies<E>(&mut self, id: NodeId, mut f: impl FnMut(&Graph, &mut Graph) -> Result<(), E>) -> Result<(), E> {
        let mut attrs = std::mem::take(&mut self.node_mut(id).attrs);
        let mut result = Ok(());
        for (_, attr) in attrs.iter_mut() {
            for body in attr.graphs_mut() {
                if result.is_ok() {
                    result = f(self, body);
                }
            }
        }
        self.node_mut(id).attrs = attrs;
        self.refresh_captures(id);
        result
    }

    pub(super) fn refresh_captures(&mut self, id: NodeId) {
        self.refresh_captures_only(id);
        self.drop_unused_captures();
    }

    /// As [`Graph::refresh_captures`]; captures that nobody reads any more are left.
    pub(super) fn refresh_captures_only(&mut self, id: NodeId) {
        let stale: Vec<_> = self.g.edges_directed(id.index(), Incoming).filter(|e| e.weight().operand.is_none()).map(|e| e.id()).collect();
        for e in stale {
            self.g.remove_edge(e);
        }
        // A body of the main graph that reads a name nobody makes is refused before an edit gets here.
        let _ = self.connect_captures(id, true);
    }

    /// Gives every value and node here and in the bodies within a name that nobody has; inputs and captures of this graph
    /// keep theirs.
    pub(super) fn freshen(&mut self, names: &mut Names) {
        let listed: Vec<NodeId> = self.params.iter().chain(&self.order).copied().collect();
        for id in listed {
            if matches!(self.node(id).kind, Kind::Input(_)) {
                continue;
            }
            for slot in 0..self.node(id).outputs.len() as u32 {
                self.rename_everywhere(id.value(slot), names);
            }
            let node = self.node_mut(id);
            if !node.name.is_empty() {
                node.name = names.fresh(&node.name);
            }
            for (_, attr) in node.attrs.iter_mut() {
                for body in attr.graphs_mut() {
                    for input in body.inputs.clone() {
                        body.rename_everywhere(input.value(0), names);
                    }
                    body.freshen(names);
                }
            }
        }
    }

    fn rename_everywhere(&mut self, v: ValueId, names: &mut Names) {
        let old = self.name_of(v).to_owned();
        if old.is_empty() {
            return;
        }
        let new = names.fresh(&old);
        let readers: Vec<NodeId> = self.uses(v).into_iter().filter(|u| u.operand.is_none()).map(|u| u.node).collect();
        readers.into_iter().for_each(|r| self.rename_captured(r, &old, &new));
        self.rename(v, &new);
    }

    pub(super) fn drop_unused_captures(&mut self) {
        let unused: Vec<NodeId> = self.captures.iter().copied().filter(|&c| self.is_unused(c.value(0))).collect();
        if !unused.is_empty() {
            self.remove_nodes(&unused);
        }
    }

    // What follows is for `Edit` alone: it keeps names, edges and operand lists together.

    pub(super) fn add_node(&mut self, node: Node) -> NodeId {
        let outputs: Vec<String> = node.outputs.iter().map(|o| o.name.clone()).collect();
        let id = NodeId(self.g.add_node(node).index() as u32);
        for (slot, name) in outputs.into_iter().enumerate().filter(|(_, n)| !n.is_empty()) {
            self.names.insert(name, id.value(slot as u32));
        }
        id
    }

    pub(super) fn set_operands(&mut self, id: NodeId, values: Vec<Option<ValueId>>) {
        let stale: Vec<_> = self.g.edges_directed(id.index(), Incoming).filter(|e| e.weight().operand.is_some()).map(|e| e.id()).collect();
        for e in stale {
            self.g.remove_edge(e);
        }
        self.node_mut(id).inputs.clear();
        for v in values {
            self.push_operand(id, v);
        }
    }

    pub(super) fn remove_nodes(&mut self, ids: &[NodeId]) {
        let mut gone = HashSet::new();
        for &id in ids {
            let Some(node) = self.g.remove_node(id.index()) else { continue };
            for output in node.outputs {
                if self.names.get(&output.name).is_some_and(|v| v.node == id) {
                    self.names.remove(&output.name);
                }
                gone.insert(output.name);
            }
        }
        let names = &self.names;
        self.value_info.retain(|n| names.contains_key(n) || !gone.contains(n));
        for list in [&mut self.inputs, &mut self.params, &mut self.captures, &mut self.order] {
            list.retain(|n| self.g.contains_node(n.index()));
        }
    }

    pub(super) fn rename(&mut self, v: ValueId, name: &str) {
        let old = std::mem::replace(&mut self.node_mut(v.node).outputs[v.slot as usize].name, name.to_owned());
        if self.names.get(&old) == Some(&v) {
            self.names.remove(&old);
        }
        self.names.insert(name.to_owned(), v);
        for listed in self.value_info.iter_mut().filter(|n| **n == old) {
            *listed = name.to_owned();
        }
    }

    /// Calls `f` on each constant here and in bodies with the name of its value: initializers, defaults of inputs, tensors
    /// of Constant nodes; other tensor attributes have no name.
    pub(super) fn map_constants(&mut self, f: &mut dyn FnMut(&str, &mut Constant)) {
        for id in self.params.clone().into_iter().chain(self.order.clone()) {
            let node = self.node_mut(id);
            let name = node.outputs.first().map(|o| o.name.clone()).unwrap_or_default();
            if let Kind::Param(c) | Kind::Input(Some(c)) = &mut node.kind {
                f(&name, c);
            }
            let is_constant = node.op().is_some_and(|o| o.is("Constant"));
            for (_, attr) in node.attrs.iter_mut() {
                match attr {
                    Attr::Tensor(c) => f(if is_constant { &name } else { "" }, c),
                    Attr::Tensors(list) => list.iter_mut().for_each(|c| f("", c)),
                    _ => attr.graphs_mut().iter_mut().for_each(|g| g.map_constants(f)),
                }
            }
        }
    }

    /// Replaces attribute references here and in bodies; one that stands for nothing is taken away.
    pub(super) fn resolve_refs(&mut self, get: &dyn Fn(&str) -> Option<Attr>) {
        for id in self.order.clone() {
            let attrs = &mut self.node_mut(id).attrs;
            let mut gone = Vec::new();
            for (name, value) in attrs.iter_mut() {
                if let Attr::Ref(to) = value {
                    match get(to) {
                        Some(v) => *value = v,
                        None => gone.push(name.to_owned()),
                    }
                }
                value.graphs_mut().iter_mut().for_each(|g| g.resolve_refs(get));
            }
            gone.iter().for_each(|name| drop(attrs.remove(name)));
        }
    }

    /// Renames what the bodies of a node capture.
    pub(super) fn rename_captured(&mut self, id: NodeId, old: &str, new: &str) {
        for (_, attr) in self.node_mut(id).attrs.iter_mut() {
            attr.graphs_mut().iter_mut().for_each(|g| g.rename_capture(old, new));
        }
    }

    fn rename_capture(&mut self, old: &str, new: &str) {
        let Some(&capture) = self.captures.iter().find(|&&c| self.node(c).outputs[0].name == old) else { return };
        let readers: Vec<NodeId> = self.uses(capture.value(0)).iter().filter(|u| u.operand.is_none()).map(|u| u.node).collect();
        self.rename(capture.value(0), new);
        readers.into_iter().for_each(|r| self.rename_captured(r, old, new));
    }
}

pub(super) fn blank(kind: Kind) -> Node {
    Node { name: String::new(), kind, outputs: Vec::new(), attrs: Attrs::new(), residue: Residue::default(), inputs: Vec::new() }
}

/// The names that a node's bodies capture, each once, in order.
pub(super) fn captured_names(node: &Node) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let bodies = node.attrs.iter().flat_map(|(_, a): (&str, &Attr)| a.graphs());
    for name in bodies.flat_map(|b| b.captures.iter().map(|&c| b.node(c).outputs[0].name.clone())) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
