//! Finds what one step of a plan computes together: a product with the transposes before it and the bias and activation
//! behind it, and arithmetic that goes element by element. The bits are those of the nodes on their own.

use crate::ir::{Graph, NodeId, OpName, ValueId};
use crate::ops::fused::{Around, Op, Operand, Program, can_prepare};
use crate::tensor::{DType, Tensor};
use std::collections::{HashMap, HashSet};

/// Nodes of one walk over elements at most.
const MOST: usize = 16;
/// Inputs of it at most.
const MOST_INPUTS: usize = 8;

/// Several nodes as one step, in the place of one of them.
pub(super) enum Fusion {
    /// MatMul.
    Product { inputs: [ValueId; 2], around: Around, output: ValueId },
    /// Gemm and Relu.
    Gemm { output: ValueId },
    /// Elementwise arithmetic: the nodes in their order.
    Pointwise { nodes: Vec<NodeId>, inputs: Vec<ValueId>, program: Program },
}

/// The fusions of a graph.
#[derive(Default)]
pub(super) struct Fusions {
    /// By the node in whose place the step stands.
    pub(super) at: HashMap<NodeId, Fusion>,
    /// Nodes that have become part of another's step.
    pub(super) absorbed: HashSet<NodeId>,
}

impl Fusions {
    /// Of a graph whose nodes run in `order`; `is_plain` says that an op is the standard's and no function of the model.
    pub(super) fn find(graph: &Graph, order: &[NodeId], version: i64, is_plain: impl Fn(&OpName) -> bool) -> Self {
        let mut found = Self::default();
        // Before, elementwise ops broadcast in another way, and Gemm was another op.
        if version < 7 {
            return found;
        }
        let plain = |id: NodeId, name: &str| graph.node(id).op().is_some_and(|op| op.is(name) && is_plain(op));
        for &id in order {
            if plain(id, "MatMul") {
                found.product(graph, id, &plain);
            } else if plain(id, "Gemm") && reads_weights(graph, id) {
                if let Some(relu) = only_reader(graph, id.value(0)).filter(|&r| plain(r, "Relu")) {
                    found.absorbed.insert(relu);
                    found.at.insert(id, Fusion::Gemm { output: relu.value(0) });
                }
            }
        }
        for &id in order.iter().rev() {
            found.pointwise(graph, id, order, &is_plain);
        }
        found
    }

    fn product(&mut self, graph: &Graph, id: NodeId, plain: &impl Fn(NodeId, &str) -> bool) {
        let [Some(a), Some(b)] = graph.node(id).inputs() else { return };
        if tensor(graph, *a).is_some() {
            return;
        }
        let mut inputs = [*a, *b];
        let mut around = Around::default();
        for (i, v) in inputs.iter_mut().enumerate() {
            let node = graph.node(v.node);
            let perm = node.attrs.ints("perm").ok().flatten();
            if let (true, Some(perm), [Some(from)]) = (plain(v.node, "Transpose") && a != b, perm, node.inputs())
                && only_reader(graph, *v) == Some(id)
                && tensor(graph, *from).is_none()
            {
                around.perms[i] = Some(perm.to_vec());
                self.absorbed.insert(v.node);
                *v = *from;
            }
        }
        let mut output = id.value(0);
        let columns = tensor(graph, *b).filter(|b| can_prepare(b)).map(|b| b.shape()[1]);
        if let Some(columns) = columns {
            let add = only_reader(graph, output).filter(|&r| plain(r, "Add"));
            if let Some((add, bias)) = add.and_then(|add| Some((add, bias_of(graph, add, output, columns)?))) {
                self.absorbed.insert(add);
                around.bias = Some(bias);
                output = add.value(0);
            }
            if let Some(relu) = only_reader(graph, output).filter(|&r| plain(r, "Relu")) {
                self.absorbed.insert(relu);
                around.relu = true;
                output = relu.value(0);
            }
        }
        if !around.is_bare() {
            self.at.insert(id, Fusion::Product { inputs, around, output });
        }
    }

    /// The walk that ends at a node, if it has more than one.
    fn pointwise(&mut self, graph: &Graph, root: NodeId, order: &[NodeId], is_plain: &impl Fn(&OpName) -> bool) {
        let is_free = |found: &Self, id: NodeId| {
            let node = graph.node(id);
            let op = node.op().filter(|op| is_plain(op)).and_then(Op::of);
            let arity = node.inputs().iter().flatten().count();
            op.is_some() && arity == node.inputs().len() && node.attrs.is_empty() && !found.absorbed.contains(&id)
        };
        if !is_free(self, root) {
            return;
        }
        let mut nodes = HashSet::from([root]);
        let mut grown = true;
        while grown && nodes.len() < MOST {
            grown = false;
            let mut next: Vec<NodeId> = nodes.iter().flat_map(|&n| graph.node(n).inputs().iter().flatten().map(|v| v.node)).collect();
            next.sort_unstable();
            for id in next {
                let inside =
                    !graph.is_output(id.value(0)) && graph.uses(id.value(0)).iter().all(|u| u.operand.is_some() && nodes.contains(&u.node));
                if nodes.len() < MOST && !nodes.contains(&id) && is_free(self, id) && inside {
                    nodes.insert(id);
                    grown = true;
                }
            }
        }
        if nodes.len() < 2 {
            return;
        }
        let nodes: Vec<NodeId> = order.iter().copied().filter(|n| nodes.contains(n)).collect();
        let (mut inputs, mut program) = (Vec::new(), Program::default());
        for &id in &nodes {
            let node = graph.node(id);
            let operand = |v: &ValueId| match nodes.iter().position(|n| *n == v.node) {
                Some(step) => Operand::Step(step),
                None => Operand::Input(inputs.iter().position(|i| i == v).unwrap_or_else(|| {
                    inputs.push(*v);
                    inputs.len() - 1
                })),
            };
            let operands = node.inputs().iter().flatten().map(operand).collect();
            program.steps.extend(node.op().and_then(Op::of).map(|op| (op, operands)));
        }
        // A walk of constants alone is folded node by node.
        if inputs.len() > MOST_INPUTS || inputs.iter().all(|v| tensor(graph, *v).is_some()) {
            return;
        }
        self.absorbed.extend(nodes.iter().filter(|n| **n != root));
        self.at.insert(root, Fusion::Pointwise { nodes, inputs, program });
    }
}

/// The one node that reads a value, by one operand; nobody else does, and it is no output.
fn only_reader(graph: &Graph, v: ValueId) -> Option<NodeId> {
    match graph.uses(v)[..] {
        [u] if u.operand.is_some() && !graph.is_output(v) => Some(u.node),
        _ => None,
    }
}

/// A constant: a parameter, or what a Constant holds.
fn tensor(graph: &Graph, v: ValueId) -> Option<&Tensor> {
    let constant = graph.constant(v).map(|c| &c.tensor);
    constant
        .or_else(|| graph.node(v.node).op().filter(|op| op.is("Constant")).and_then(|_| graph.node(v.node).attrs.tensor("value").ok()?))
}

/// Whether the second operand of a Gemm is a constant of floats.
fn reads_weights(graph: &Graph, id: NodeId) -> bool {
    graph.node(id).inputs().get(1).copied().flatten().and_then(|b| tensor(graph, b)).is_some_and(|b| b.dtype().is_float())
}

/// What an Add puts to each row of `product`: its other operand, if that is one `f32` for each column.
fn bias_of(graph: &Graph, add: NodeId, product: ValueId, columns: usize) -> Option<Tensor> {
    let [Some(x), Some(y)] = graph.node(add).inputs() else { return None };
    let other = if *x == product { *y } else { *x };
    let bias = tensor(graph, other).filter(|t| t.dtype() == DType::F32 && t.shape()[..] == [columns])?;
    graph.node(add).attrs.is_empty().then(|| bias.clone().aligned())
}
