//! What the local passes share: a rule is tried at each node, knows the types around it, and records what it would do in
//! one edit per graph, in which no two rewritings meet.

use super::{Changed, PassError, infer_shapes};
use crate::ir::{Attrs, Dim, Edit, Graph, Model, Names, Node, NodeId, OpName, Output, ValueId};
use crate::ops::{self, Fact};
use crate::tensor::{DType, Tensor};
use std::collections::{HashMap, HashSet};

/// Rounds after which a pass stops, whatever is left to do.
const ROUNDS: usize = 200;

/// Whether the model's own functions hide ops of this build: then a node's name does not say what it does.
pub(super) fn shadowed(model: &Model) -> bool {
    model.functions.iter().any(|f| ops::find(&f.op()).is_some())
}

/// Records an edit for the main graph and for each body, innermost first, and commits those in which something stands.
///
/// # Errors
/// An edit that is refused; those before it stand.
pub(super) fn edit_each(model: &mut Model, label: &str, mut names: Names, mut record: impl FnMut(&mut Edit)) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    model.visit_mut(&mut |graph, _| -> Result<(), PassError> {
        let mut edit = graph.edit(label);
        record(&mut edit);
        if !edit.is_empty() {
            edit.commit(&mut names)?;
            changed = Changed::Yes;
        }
        Ok(())
    })?;
    Ok(changed)
}

/// Tries a rule at each node of the main graph and of all bodies until nothing changes. What a rule gives back is not
/// looked at: `None` is a rule that does not apply.
pub(super) fn apply(model: &mut Model, label: &'static str, rule: impl Fn(&mut Batch, NodeId) -> Option<()>) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    if shadowed(model) {
        return Ok(changed);
    }
    let mut names = model.names();
    let opset = model.opset("");
    for _ in 0..ROUNDS {
        let mut facts = infer_shapes::facts(model).into_iter();
        let mut again = Changed::No;
        let mut used = HashSet::new();
        model.visit_mut(&mut |graph, _| -> Result<(), PassError> {
            let facts = facts.next().unwrap_or_default();
            let Ok(order) = graph.topological() else { return Ok(()) };
            let edit = graph.edit(label);
            let mut batch = Batch { edit, facts: &facts, opset, gone: HashSet::new(), read: HashSet::new(), domains: HashSet::new() };
            for id in order {
                let _ = rule(&mut batch, id);
            }
            if batch.edit.is_empty() {
                return Ok(());
            }
            used.extend(std::mem::take(&mut batch.domains));
            batch.edit.commit(&mut names)?;
            again = Changed::Yes;
            Ok(())
        })?;
        used.into_iter().for_each(|domain| model.import_opset(domain, 1));
        if again == Changed::No {
            break;
        }
        changed = Changed::Yes;
    }
    Ok(changed)
}

/// One edit of one graph, and what rules need to know for it.
pub(super) struct Batch<'b, 'g> {
    pub edit: Edit<'g>,
    /// The version of ONNX's own ops.
    pub opset: i64,
    facts: &'b HashMap<String, Fact>,
    gone: HashSet<NodeId>,
    read: HashSet<NodeId>,
    domains: HashSet<&'static str>,
}

impl Batch<'_, '_> {
    pub fn graph(&self) -> &Graph {
        self.edit.graph()
    }

    pub fn node(&self, id: NodeId) -> &Node {
        self.graph().node(id)
    }

    pub fn attrs(&self, id: NodeId) -> &Attrs {
        &self.node(id).attrs
    }

    /// Whether a node is ONNX's own op of that name.
    pub fn is(&self, id: NodeId, name: &str) -> bool {
        self.node(id).op().is_some_and(|op| op.is(name))
    }

    /// The name of an op of ONNX's own domain.
    pub fn op(&self, id: NodeId) -> Option<&str> {
        self.node(id).op().filter(|op| op.domain.is_empty()).map(|op| &*op.name)
    }

    /// The node that makes a value, if it is that op.
    pub fn by(&self, v: ValueId, name: &str) -> Option<NodeId> {
        self.is(v.node, name).then_some(v.node)
    }

    /// The only reader of a value that nobody else needs.
    pub fn sole(&self, v: ValueId) -> Option<NodeId> {
        if self.graph().is_output(v) {
            return None;
        }
        match self.graph().uses(v)[..] {
            [u] => u.operand.map(|_| u.node),
            _ => None,
        }
    }

    /// Whether one reader alone needs a value.
    pub fn is_sole(&self, v: ValueId) -> bool {
        self.sole(v).is_some()
    }

    pub fn fact(&self, v: ValueId) -> Option<&Fact> {
        self.facts.get(self.graph().name_of(v))
    }

    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        self.fact(v)?.ty.as_ref()?.dtype()
    }

    pub fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.fact(v)?.ty.as_ref()?.shape()
    }

    pub fn rank(&self, v: ValueId) -> Option<usize> {
        Some(self.shape(v)?.len())
    }

    /// Whether two values have the same dims in every run.
    pub fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        match (self.shape(a), self.shape(b)) {
            (Some(a), Some(b)) => a == b && !a.contains(&Dim::Unknown),
            _ => false,
        }
    }

    /// The constant behind a value: an initializer, a Constant node, or what inference computed.
    pub fn constant(&self, v: ValueId) -> Option<&Tensor> {
        if let Some(c) = self.graph().constant(v) {
            return c.tensor.absent_place().is_none().then_some(&c.tensor);
        }
        let node = self.node(v.node);
        if node.op().is_some_and(|op| op.is("Constant"))
            && let Ok(Some(t)) = node.attrs.tensor("value")
        {
            return Some(t);
        }
        self.fact(v)?.constant.as_ref()
    }

    /// The elements of an integer constant.
    pub fn ints(&self, v: ValueId) -> Option<Vec<i64>> {
        self.constant(v)?.to_i64s().ok()
    }

    /// The integers of an optional input or, in older versions, of an attribute.
    pub fn input_or_attr(&self, id: NodeId, input: usize, attr: &str) -> Option<Vec<i64>> {
        match self.node(id).input(input) {
            Some(v) => self.ints(v),
            None => self.attrs(id).ints(attr).ok()?.map(<[i64]>::to_vec),
        }
    }

    /// The number that a constant of one element is.
    pub fn number(&self, v: ValueId) -> Option<f64> {
        let t = self.constant(v).filter(|t| t.len() == 1)?;
        crate::tensor::cast(t, DType::F64).ok()?.item::<f64>().ok()
    }

    /// The two operands of a node, `v` first.
    pub fn other(&self, id: NodeId, v: ValueId) -> Option<ValueId> {
        match self.node(id).inputs() {
            [Some(a), Some(b)] if *a == v => Some(*b),
            [Some(a), Some(b)] if *b == v => Some(*a),
            _ => None,
        }
    }

    /// The operand that is no such number, and the number: of a node with two operands.
    pub fn with_number(&self, id: NodeId) -> Option<(ValueId, f64)> {
        let (a, b) = (self.node(id).input(0)?, self.node(id).input(1)?);
        self.number(b).map(|n| (a, n)).or_else(|| self.number(a).map(|n| (b, n)))
    }

    /// The number that the other operand of a node is.
    pub fn number_beside(&self, id: NodeId, v: ValueId) -> Option<f64> {
        self.number(self.other(id, v)?)
    }

    /// The model will import ONNX Runtime's domain.
    pub fn domain(&mut self) {
        self.domains.insert(MICROSOFT);
    }

    /// Reserves nodes that are to go or change, and the makers of values that are to be read. Refused where another
    /// rewriting of this edit has its hands on them; the next round tries again.
    pub fn claim(&mut self, gone: &[NodeId], read: impl IntoIterator<Item = ValueId>) -> Option<()> {
        let read: HashSet<NodeId> = read.into_iter().map(|v| v.node).filter(|n| !gone.contains(n)).collect();
        let free = gone.iter().all(|n| !self.gone.contains(n) && !self.read.contains(n)) && read.iter().all(|n| !self.gone.contains(n));
        if !free {
            return None;
        }
        self.gone.extend(gone);
        self.read.extend(read);
        Some(())
    }

    /// Puts another op in the place of a node of one output, whose name the new value takes over. The claim is made before.
    pub fn replace_node(&mut self, old: NodeId, op: OpName, inputs: &[Option<ValueId>], attrs: Attrs) -> ValueId {
        let node = self.node(old);
        let (name, output) = (node.name.clone(), Output { info: None, ..node.outputs[0].clone() });
        if &*op.domain == MICROSOFT {
            self.domains.insert(MICROSOFT);
        }
        let new = self.edit.add(op, &name, inputs.iter().copied(), [output], attrs, Some(old)).value(0);
        self.edit.replace_uses(old.value(0), new);
        self.edit.remove(old);
        new
    }

    /// Removes a node whose first value is always `new`.
    pub fn forward(&mut self, id: NodeId, new: ValueId) -> Option<()> {
        let (graph, old) = (self.graph(), id.value(0));
        let others = (1..graph.node(id).outputs.len()).all(|s| graph.is_unused(id.value(s as u32)));
        if let (Some(a), Some(b)) = (graph.type_of(old), graph.type_of(new))
            && !a.compatible(b)
        {
            return None;
        }
        if !others {
            return None;
        }
        if !graph.is_output(old) {
            self.claim(&[id], [new])?;
            self.edit.replace_uses(old, new);
            self.edit.remove(id);
            return Some(());
        }
        // The interface keeps its name: what makes `new` is to make it under that name.
        let maker = graph.node(new.node).clone();
        let op = maker.op()?.clone();
        let values = || (0..maker.outputs.len()).map(|s| new.node.value(s as u32));
        if maker.has_bodies() || values().any(|v| graph.is_output(v) || graph.uses(v).iter().any(|u| u.operand.is_none())) {
            return None;
        }
        self.claim(&[id, new.node], maker.inputs().iter().flatten().copied())?;
        let outputs = maker.outputs.iter().map(|o| Output { info: None, ..o.clone() });
        let copy = self.edit.add(op, &maker.name, maker.inputs().iter().copied(), outputs, maker.attrs.clone(), Some(new.node));
        self.edit.replace_uses(old, copy.value(new.slot));
        values().for_each(|v| self.edit.replace_uses(v, copy.value(v.slot)));
        self.edit.remove(id);
        self.edit.remove(new.node);
        Some(())
    }
}

/// The domain of ONNX Runtime's own ops.
pub(super) const MICROSOFT: &str = "com.microsoft";

/// One of ONNX Runtime's ops.
pub(super) fn microsoft(name: &str) -> OpName {
    OpName::new(MICROSOFT, name)
}

/// Whether a number is the one a formula needs, as far as a `float32` tells.
pub(super) fn about(found: f64, wanted: f64) -> bool {
    (found - wanted).abs() <= 2e-6 * wanted.abs()
}
