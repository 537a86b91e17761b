//! Finds where one row of each sample is taken behind steps that work row by row, as classifiers and recommenders over sequences
//! do: those steps then compute that row alone.

use super::fuse::{Fusion, Fusions, Group, Order, grow, tensor};
use crate::ir::{Graph, NodeId, Type, ValueId};
use crate::ops::fused::{Op, can_slice};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// Nodes behind a row that is taken early at most.
const MOST_EARLY: usize = 64;

/// The ranks that are known without shapes.
type Ranks = HashMap<ValueId, usize>;

impl Fusions {
    /// Every Gather of one row behind a product.
    pub(super) fn earlies(&mut self, graph: &Graph, order: &[NodeId], positions: &Order, plain: &impl Fn(NodeId, &str) -> bool) {
        let gathers = |id: &&NodeId| plain(**id, "Gather") && graph.node(**id).attrs.int("axis") == Ok(Some(1));
        if !can_slice() || !order.iter().any(|id| gathers(&id)) {
            return;
        }
        let ranks = ranks(graph, order, plain);
        for &id in order.iter().rev().filter(gathers) {
            self.early(graph, id, positions, &ranks, plain);
        }
    }

    /// The nodes before a Gather of one row that make each row of that row alone; at least a product is among them.
    fn early(&mut self, graph: &Graph, gather: NodeId, order: &Order, ranks: &Ranks, plain: &impl Fn(NodeId, &str) -> bool) {
        let node = graph.node(gather);
        let [Some(_), Some(index)] = node.inputs() else { return };
        let Some(at) = tensor(graph, *index).filter(|t| t.rank() < 2 && t.len() == 1) else { return };
        let (Ok(Some(1)), Some(index)) = (node.attrs.int("axis"), at.to_i64s().ok().and_then(|i| i.first().copied())) else { return };
        if self.absorbed.contains(&gather) {
            return;
        }
        let nodes = grow(graph, gather, MOST_EARLY, |_, id| !self.absorbed.contains(&id) && row_by_row(graph, id, plain));
        if !nodes.iter().any(|&n| plain(n, "MatMul")) {
            return;
        }
        let group = Group::of(graph, order, &nodes);
        let varied: Vec<bool> = group.inputs.iter().map(|v| tensor(graph, *v).is_none()).collect();
        if group.inputs.iter().zip(&varied).any(|(v, varied)| *varied && ranks.get(v) != Some(&3)) {
            return;
        }
        let keep = at.rank() == 1;
        self.absorbed.extend(nodes.iter().filter(|n| **n != gather));
        self.at.insert(gather, Fusion::Early { group, index, keep, varied });
    }
}

/// Whether a node makes each row of `[samples, rows, width]` of the same row of its operands: constants among them are the same for
/// all rows.
fn row_by_row(graph: &Graph, id: NodeId, plain: &impl Fn(NodeId, &str) -> bool) -> bool {
    let node = graph.node(id);
    let Some(op) = node.op().filter(|op| plain(id, &op.name)) else { return false };
    let rank = |i: usize| node.inputs().get(i).copied().flatten().map(|v| tensor(graph, v).map(Tensor::rank));
    if node.outputs.len() != 1 {
        return false;
    }
    match &*op.name {
        "MatMul" => rank(0) == Some(None) && rank(1) == Some(Some(2)),
        "LayerNormalization" => {
            let last = node.attrs.int_or("axis", -1) == Ok(-1);
            last && rank(0) == Some(None) && rank(1) == Some(Some(1)) && matches!(rank(2), None | Some(Some(1)))
        }
        _ => {
            let operands = (0..node.inputs().len()).map(rank);
            let fits = |r: Option<Option<usize>>| r.is_some_and(|r| r.is_none_or(|r| r < 2));
            Op::of(op).is_some() && node.attrs.is_empty() && operands.clone().all(fits) && operands.clone().any(|r| r == Some(None))
        }
    }
}

/// The ranks of values, as far as ops and stated types tell.
fn ranks(graph: &Graph, order: &[NodeId], plain: &impl Fn(NodeId, &str) -> bool) -> Ranks {
    let mut ranks = Ranks::new();
    for &id in graph.inputs().iter().chain(graph.captures()).chain(order) {
        let node = graph.node(id);
        let rank = |i: usize| {
            let v = node.inputs().get(i).copied().flatten()?;
            tensor(graph, v).map(Tensor::rank).or_else(|| ranks.get(&v).copied())
        };
        let stated = match node.outputs.first().and_then(|o| o.ty.as_ref()) {
            Some(Type::Tensor { shape: Some(dims), .. }) => Some(dims.len()),
            _ => None,
        };
        let made = || {
            let op = node.op().filter(|op| plain(id, &op.name))?;
            match &*op.name {
                "Reshape" => Some(tensor(graph, node.inputs().get(1).copied().flatten()?)?.len()),
                "Transpose" | "LayerNormalization" | "Softmax" | "Cast" | "Identity" | "Dropout" => rank(0),
                "Gather" => (rank(0)? + rank(1)?).checked_sub(1),
                "MatMul" => Some(rank(0)?.max(rank(1)?)).filter(|_| rank(0) >= Some(2) && rank(1) >= Some(2)),
                _ => Op::of(op).and_then(|_| (0..node.inputs().len()).map(rank).try_fold(0, |most, r| Some(most.max(r?)))),
            }
        };
        if let Some(rank) = stated.or_else(made) {
            ranks.insert(id.value(0), rank);
        }
    }
    ranks
}
