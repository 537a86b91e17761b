//! Where a value comes from: a constant, through ops that only rename, reshape or convert its elements one by one.

use super::Key;
use crate::ir::{Graph, Kind, NodeId, Scope, ValueId};
use crate::tensor::Tensor;

/// A constant, and what happens to it on the way.
pub(in crate::passes) struct Source {
    /// Its name.
    pub(super) key: Key,
    /// Its elements, in the dims that the reader sees.
    pub(super) tensor: Tensor,
    /// Ops on single elements (Cast, DequantizeLinear), the first first.
    pub(super) after: Vec<NodeId>,
    /// Some of these are in an outer graph.
    pub(super) foreign: bool,
}

fn depth(scope: Option<&Scope>) -> usize {
    scope.map_or(0, |s| 1 + depth(s.outer))
}

/// Ops between a table and its reader, at most: more than any exporter writes.
const MAX_VIEWS: usize = 64;

/// The constant behind a value, if there is one.
pub(super) fn source<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, v: ValueId) -> Option<Source> {
    within(graph, scope, v, MAX_VIEWS)
}

fn within<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, v: ValueId, views: usize) -> Option<Source> {
    let node = graph.node(v.node);
    let constant =
        |t: &Tensor| Source { key: (depth(scope), graph.name_of(v).to_owned()), tensor: t.clone(), after: Vec::new(), foreign: false };
    match &node.kind {
        Kind::Param(c) | Kind::Input(Some(c)) => return Some(constant(&c.tensor)),
        Kind::Capture => {
            let mut around = scope;
            while let Some(s) = around {
                match s.graph.value(&node.outputs[0].name) {
                    Some(v) if !matches!(s.graph.node(v.node).kind, Kind::Capture) => {
                        let found = within(s.graph, s.outer, v, views)?;
                        return Some(Source { foreign: found.foreign || !found.after.is_empty(), after: Vec::new(), ..found });
                    }
                    _ => around = s.outer,
                }
            }
            return None;
        }
        Kind::Op(op) if op.is("Constant") => return node.attrs.tensor("value").ok().flatten().map(constant),
        _ => {}
    }
    let mut from = view_of(graph, v).and_then(|v| within(graph, scope, v, views.checked_sub(1)?))?;
    match &*node.op()?.name {
        "Identity" => {}
        "Flatten" => {
            let shape = from.tensor.shape();
            let axis = node.attrs.int_or("axis", 1).ok()?;
            let at = usize::try_from(if axis < 0 { axis + shape.len() as i64 } else { axis }).ok().filter(|&a| a <= shape.len())?;
            let dims: [usize; 2] = [shape[..at].iter().product(), shape[at..].iter().product()];
            from.tensor = from.tensor.reshape(dims.as_slice()).ok()?;
        }
        "Reshape" => {
            let wanted = match node.input(1) {
                Some(s) => const_ints(graph, scope, s)?,
                None => node.attrs.ints("shape").ok()??.to_vec(),
            };
            if node.attrs.int_or("allowzero", 0).ok()? != 0 && wanted.contains(&0) {
                return None;
            }
            from.tensor = reshaped(from.tensor, &wanted)?;
        }
        "DequantizeLinear" => {
            // One scale for all: then each element is converted by itself.
            let single = |i: usize| node.input(i).is_none_or(|v| source(graph, scope, v).is_some_and(|s| s.tensor.rank() == 0));
            if !single(1) || !single(2) || node.attrs.int_or("block_size", 0).ok()? != 0 {
                return None;
            }
            from.after.push(v.node);
        }
        _ => from.after.push(v.node),
    }
    Some(from)
}

fn reshaped(t: Tensor, wanted: &[i64]) -> Option<Tensor> {
    let mut dims = Vec::with_capacity(wanted.len());
    for (i, &d) in wanted.iter().enumerate() {
        dims.push(match d {
            0 => *t.shape().get(i)?,
            -1 => 1,
            d => usize::try_from(d).ok()?,
        });
    }
    if let Some(i) = wanted.iter().position(|&d| d == -1) {
        let others: usize = dims.iter().product();
        dims[i] = t.len().checked_div(others)?;
    }
    t.reshape(dims).ok()
}

/// What a value is a view of: the operand of an op that keeps elements in their order, each converted by itself.
pub(in crate::passes) fn view_of(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let node = graph.node(v.node);
    let op = node.op().filter(|o| o.domain.is_empty())?;
    matches!(&*op.name, "Cast" | "DequantizeLinear" | "Flatten" | "Identity" | "Reshape").then(|| node.input(0)).flatten()
}

/// The integers of a small constant, through ops that only change its dims.
pub(in crate::passes) fn const_ints<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, v: ValueId) -> Option<Vec<i64>> {
    ints_within(graph, scope, v, MAX_VIEWS)
}

fn ints_within<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, v: ValueId, views: usize) -> Option<Vec<i64>> {
    let node = graph.node(v.node);
    match &node.kind {
        Kind::Param(c) if c.tensor.len() <= 64 => c.tensor.to_i64s().ok(),
        Kind::Capture => {
            let (g, v, s) = outer_value(scope, &node.outputs[0].name)?;
            ints_within(g, s, v, views)
        }
        Kind::Op(op) if op.is("Constant") => match node.attrs.iter().next()? {
            ("value_ints", crate::ir::Attr::Ints(x)) => Some(x.clone()),
            ("value_int", crate::ir::Attr::Int(x)) => Some(vec![*x]),
            _ => node.attrs.tensor("value").ok()??.to_i64s().ok(),
        },
        Kind::Op(op) if ["Unsqueeze", "Squeeze", "Identity"].iter().any(|n| op.is(n)) => {
            ints_within(graph, scope, node.input(0)?, views.checked_sub(1)?)
        }
        _ => None,
    }
}

fn outer_value<'g>(scope: Option<&Scope<'g>>, name: &str) -> Option<(&'g Graph, ValueId, Option<&'g Scope<'g>>)> {
    let s = scope?;
    match s.graph.value(name) {
        Some(v) if !matches!(s.graph.node(v.node).kind, Kind::Capture) => Some((s.graph, v, s.outer)),
        _ => outer_value(s.outer, name),
    }
}
