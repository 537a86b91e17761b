//! Finds what one step of a plan computes together: a product with the transposes before it and the bias and activation
//! behind it, lookups whose rows are joined, and arithmetic that goes element by element. The bits are those of the nodes on
//! their own.

use crate::ir::{Graph, NodeId, OpName, ValueId};
use crate::ops::fused::{Around, Op, Operand, Part, Program, Source, can_prepare};
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
    /// Gemms one after the other, each with the Relu behind it if there is one; the first input goes into the first.
    Chain { layers: Vec<Layer>, inputs: Vec<ValueId>, output: ValueId },
    /// Elementwise arithmetic.
    Pointwise { group: Group, program: Program },
    /// Gather of one row, and what works row by row before it.
    Early { group: Group, index: i64, keep: bool, varied: Vec<bool> },
    /// Concat, and lookups before it.
    LookupConcat { group: Group, parts: Vec<Part> },
}

/// A Gemm of a chain.
pub(super) struct Layer {
    pub(super) gemm: NodeId,
    pub(super) relu: bool,
    /// Which inputs of the step are its `B` and `C`.
    pub(super) operands: (usize, Option<usize>),
}

/// The position of each node in the order in which they run.
pub(super) type Order = HashMap<NodeId, usize>;

/// Nodes in their order, of which the last gives the result.
pub(super) struct Group {
    pub(super) nodes: Vec<NodeId>,
    /// Where each node finds its operands.
    pub(super) operands: Vec<Vec<Operand>>,
    /// The values that are made elsewhere.
    pub(super) inputs: Vec<ValueId>,
}

/// The nodes from `root` back, about `most` of them, of which `fits` takes each and whose values only each other read.
pub(super) fn grow(graph: &Graph, root: NodeId, most: usize, fits: impl Fn(&HashSet<NodeId>, NodeId) -> bool) -> HashSet<NodeId> {
    let mut nodes = HashSet::from([root]);
    let mut grown = true;
    while grown && nodes.len() < most {
        grown = false;
        let mut next: Vec<NodeId> = nodes.iter().flat_map(|&n| graph.node(n).inputs().iter().flatten().map(|v| v.node)).collect();
        next.sort_unstable();
        for id in next {
            let inside =
                !graph.is_output(id.value(0)) && graph.uses(id.value(0)).iter().all(|u| u.operand.is_some() && nodes.contains(&u.node));
            if inside && !nodes.contains(&id) && fits(&nodes, id) {
                nodes.insert(id);
                grown = true;
            }
        }
    }
    nodes
}

impl Group {
    /// The nodes of a set; each has one output.
    pub(super) fn of(graph: &Graph, order: &Order, set: &HashSet<NodeId>) -> Self {
        let mut nodes: Vec<NodeId> = set.iter().copied().collect();
        nodes.sort_unstable_by_key(|n| order.get(n));
        let (mut inputs, mut operands) = (Vec::new(), Vec::new());
        for &id in &nodes {
            let own = graph.node(id).inputs().iter().map(|v| match v {
                None => Operand::None,
                Some(v) => match nodes.iter().position(|n| *n == v.node) {
                    Some(step) => Operand::Step(step),
                    None => Operand::Input(place(&mut inputs, *v)),
                },
            });
            operands.push(own.collect());
        }
        Self { nodes, operands, inputs }
    }
}

/// The number of a value in a list, to which it is added if it is not there.
fn place(list: &mut Vec<ValueId>, v: ValueId) -> usize {
    list.iter().position(|i| *i == v).unwrap_or_else(|| {
        list.push(v);
        list.len() - 1
    })
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
        let positions: Order = order.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        found.earlies(graph, order, &positions, &plain);
        for &id in order.iter() {
            if found.absorbed.contains(&id) {
                continue;
            }
            if plain(id, "MatMul") {
                found.product(graph, id, &plain);
            } else if plain(id, "Gemm") {
                found.chain(graph, id, &plain);
            }
        }
        found.lookup_concats(graph, order, &positions, &plain);
        for &id in order.iter().rev() {
            found.pointwise(graph, id, &positions, &is_plain);
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
            let free = |r: &NodeId| !self.absorbed.contains(r);
            let add = only_reader(graph, output).filter(|&r| plain(r, "Add")).filter(free);
            if let Some((add, bias)) = add.and_then(|add| Some((add, bias_of(graph, add, output, columns)?))) {
                self.absorbed.insert(add);
                around.bias = Some(bias);
                output = add.value(0);
            }
            if let Some(relu) = only_reader(graph, output).filter(|r| plain(*r, "Relu") && !self.absorbed.contains(r)) {
                self.absorbed.insert(relu);
                around.relu = true;
                output = relu.value(0);
            }
        }
        if !around.is_bare() {
            self.at.insert(id, Fusion::Product { inputs, around, output });
        }
    }

    /// The Gemms from `first` on whose other operands are constants, if they and the Relus are more than one node.
    fn chain(&mut self, graph: &Graph, first: NodeId, plain: &impl Fn(NodeId, &str) -> bool) {
        let Some(Some(x)) = graph.node(first).inputs().first() else { return };
        let (mut inputs, mut layers, mut nodes) = (vec![*x], Vec::new(), Vec::new());
        let (mut output, mut next) = (*x, Some(first));
        while let Some(gemm) = next.filter(|&n| plain(n, "Gemm") && graph.node(n).inputs()[0] == Some(output) && reads_weights(graph, n)) {
            let mut operand = |i: usize| graph.node(gemm).inputs().get(i).copied().flatten().map(|v| place(&mut inputs, v));
            let (Some(b), c) = (operand(1), operand(2)) else { break };
            output = gemm.value(0);
            let relu = only_reader(graph, output).filter(|&r| plain(r, "Relu"));
            layers.push(Layer { gemm, relu: relu.is_some(), operands: (b, c) });
            nodes.extend([gemm].into_iter().chain(relu));
            output = relu.map_or(output, |r| r.value(0));
            next = only_reader(graph, output);
        }
        if nodes.len() > 1 {
            self.absorbed.extend(&nodes[1..]);
            self.at.insert(first, Fusion::Chain { layers, inputs, output });
        }
    }

    /// The walk that ends at a node, if it has more than one.
    fn pointwise(&mut self, graph: &Graph, root: NodeId, order: &Order, is_plain: &impl Fn(&OpName) -> bool) {
        let is_free = |found: &Self, id: NodeId| {
            let node = graph.node(id);
            let op = node.op().filter(|op| is_plain(op)).and_then(Op::of);
            let arity = node.inputs().iter().flatten().count();
            op.is_some() && arity == node.inputs().len() && node.attrs.is_empty() && !found.absorbed.contains(&id)
        };
        if !is_free(self, root) {
            return;
        }
        let nodes = grow(graph, root, MOST, |nodes, id| nodes.len() < MOST && is_free(self, id));
        if nodes.len() < 2 {
            return;
        }
        let group = Group::of(graph, order, &nodes);
        // A walk of constants alone is folded node by node.
        if group.inputs.len() > MOST_INPUTS || group.inputs.iter().all(|v| tensor(graph, *v).is_some()) {
            return;
        }
        let ops = group.nodes.iter().filter_map(|&id| graph.node(id).op().and_then(Op::of));
        let program = Program { steps: ops.zip(group.operands.iter().cloned()).collect() };
        self.absorbed.extend(nodes.iter().filter(|n| **n != root));
        self.at.insert(root, Fusion::Pointwise { group, program });
    }

    /// Every Concat along axis 1 of rows that are looked up, at least two of them.
    fn lookup_concats(&mut self, graph: &Graph, order: &[NodeId], positions: &Order, plain: &impl Fn(NodeId, &str) -> bool) {
        let mut columns = HashSet::new();
        for &id in order.iter().filter(|&&id| plain(id, "Concat") && graph.node(id).attrs.int("axis") == Ok(Some(1))) {
            let found: Option<Vec<Found>> = graph.node(id).inputs().iter().map(|v| Some(Found::behind(graph, id, (*v)?, plain))).collect();
            let Some(found) = found.filter(|f| f.iter().filter(|f| f.lookup.is_some()).count() > 1) else { continue };
            let set: HashSet<NodeId> = found.iter().flat_map(|f| f.nodes.iter().chain(&f.column).copied()).chain([id]).collect();
            let mut group = Group::of(graph, positions, &set);
            let parts = found.iter().map(|f| {
                let source = match f.lookup {
                    None => Source::Plain(place(&mut group.inputs, f.value)),
                    Some((table, ids)) => {
                        Source::Lookup { table: place(&mut group.inputs, table), ids: place(&mut group.inputs, ids), column: f.at }
                    }
                };
                Part { source, unsqueezed: f.unsqueezed }
            });
            let parts = parts.collect();
            self.absorbed.extend(found.iter().flat_map(|f| &f.nodes));
            columns.extend(found.iter().filter_map(|f| f.column));
            self.at.insert(id, Fusion::LookupConcat { group, parts });
        }
        // A column that others read too is still made for them.
        let unread = |c: &&NodeId| {
            let v = c.value(0);
            !graph.is_output(v) && graph.uses(v).iter().all(|u| u.operand.is_some() && self.absorbed.contains(&u.node))
        };
        let unread: Vec<NodeId> = columns.iter().filter(unread).copied().collect();
        self.absorbed.extend(unread);
    }
}

/// What a Concat joins, followed back to a lookup if there is one.
struct Found {
    /// What is joined if it is no lookup.
    value: ValueId,
    /// The table, and the ids or the matrix that has them as a column.
    lookup: Option<(ValueId, ValueId)>,
    at: Option<i64>,
    unsqueezed: bool,
    /// Nodes that nobody else needs.
    nodes: Vec<NodeId>,
    /// The node that takes the column.
    column: Option<NodeId>,
}

impl Found {
    fn behind(graph: &Graph, concat: NodeId, v: ValueId, plain: &impl Fn(NodeId, &str) -> bool) -> Self {
        let mut found = Self { value: v, lookup: None, at: None, unsqueezed: false, nodes: Vec::new(), column: None };
        let mut reader = concat;
        let node = graph.node(v.node);
        if plain(v.node, "Unsqueeze") && only_reader(graph, v) == Some(concat) && axes(graph, v.node) == Some(vec![1]) {
            let Some(Some(from)) = node.inputs().first() else { return found };
            (found.value, found.unsqueezed) = (*from, true);
            found.nodes.push(v.node);
            reader = v.node;
        }
        let gather = graph.node(found.value.node);
        let along = gather.attrs.int_or("axis", 0);
        if !plain(found.value.node, "Gather") || along != Ok(0) || only_reader(graph, found.value) != Some(reader) {
            return found;
        }
        let [Some(table), Some(mut ids)] = *gather.inputs() else { return found };
        if graph.constant(table).is_none_or(|c| c.tensor.rank() != 2 || c.tensor.dtype() != DType::F32) {
            return found;
        }
        found.nodes.push(found.value.node);
        let column = graph.node(ids.node);
        if let (true, Ok(Some(1)), [Some(from), Some(at)]) = (plain(ids.node, "Gather"), column.attrs.int("axis"), column.inputs())
            && let Some(at) = tensor(graph, *at).filter(|t| t.rank() == 0).and_then(|t| t.to_i64s().ok()?.first().copied())
        {
            (found.at, found.column) = (Some(at), Some(ids.node));
            ids = *from;
        }
        found.lookup = Some((table, ids));
        found
    }
}

/// The axes of an Unsqueeze of any version, if they are constant.
fn axes(graph: &Graph, id: NodeId) -> Option<Vec<i64>> {
    let node = graph.node(id);
    match node.inputs() {
        [_, Some(axes)] => tensor(graph, *axes)?.to_i64s().ok(),
        _ => node.attrs.ints("axes").ok()?.map(<[i64]>::to_vec),
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
pub(super) fn tensor(graph: &Graph, v: ValueId) -> Option<&Tensor> {
    let constant = graph.constant(v).map(|c| &c.tensor);
    constant
        .or_else(|| graph.node(v.node).op().filter(|op| op.is("Constant")).and_then(|_| graph.node(v.node).attrs.tensor("value").ok()?))
}

/// Whether the second operand of a Gemm is a constant of floats, and the third a constant or not there.
fn reads_weights(graph: &Graph, id: NodeId) -> bool {
    let operand = |i: usize| graph.node(id).inputs().get(i).copied().flatten();
    operand(1).and_then(|b| tensor(graph, b)).is_some_and(|b| b.dtype().is_float()) && operand(2).is_none_or(|c| tensor(graph, c).is_some())
}

/// What an Add puts to each row of `product`: its other operand, if that is one `f32` for each column.
fn bias_of(graph: &Graph, add: NodeId, product: ValueId, columns: usize) -> Option<Tensor> {
    let [Some(x), Some(y)] = graph.node(add).inputs() else { return None };
    let other = if *x == product { *y } else { *x };
    let bias = tensor(graph, other).filter(|t| t.dtype() == DType::F32 && t.shape()[..] == [columns])?;
    graph.node(add).attrs.is_empty().then(|| bias.clone().aligned())
}
