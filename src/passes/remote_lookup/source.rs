//! Where a value comes from: a constant, through ops that only rename, reshape or convert its elements one by one.

use super::Key;
use crate::ir::{Attr, Attrs, Graph, Kind, NodeId, OpName, Scope, ValueId};
use crate::tensor::Tensor;

/// A constant, and what happens to it on the way.
pub(in crate::passes) struct Source {
    /// Its graph and name.
    pub(in crate::passes) key: Key,
    /// Its elements, in the dims that the reader sees.
    pub(super) tensor: Tensor,
    /// Ops on single elements, the first first.
    pub(super) after: Vec<Step>,
    /// Some of these need the last dim to be the last dim of a row.
    pub(super) by_column: bool,
}

/// An op on the elements of a table, to be done to its rows instead.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) op: OpName,
    pub(super) attrs: Attrs,
    /// Its operands; the one that is the table is left out.
    pub(super) operands: Vec<Option<Operand>>,
    /// Which operand is the table.
    pub(super) table: usize,
    /// The name of its result.
    pub(super) output: String,
}

/// A further operand of a step.
#[derive(Debug, Clone)]
pub(super) enum Operand {
    /// A value of the reader's graph.
    Here(ValueId),
    /// A value of an outer graph.
    Outer(String),
}

/// Ops between a table and its reader, at most: more than any exporter writes.
pub(super) const MAX_VIEWS: usize = 64;

/// What tells graphs apart while none of them moves.
pub(super) fn place(graph: &Graph) -> usize {
    std::ptr::from_ref(graph).addr()
}

/// The constant behind a value, if there is one.
pub(in crate::passes) fn source<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, v: ValueId) -> Option<Source> {
    within(graph, scope, v, MAX_VIEWS)
}

fn within<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, v: ValueId, views: usize) -> Option<Source> {
    let node = graph.node(v.node);
    if let Some(t) = tensor_of(graph, v) {
        let key = (place(graph), graph.name_of(v).to_owned());
        return Some(Source { key, tensor: t.clone(), after: Vec::new(), by_column: false });
    }
    if matches!(node.kind, Kind::Capture) {
        let (outer, v, around) = outer_value(scope, &node.outputs[0].name)?;
        let mut found = within(outer, around, v, views)?;
        for operand in found.after.iter_mut().flat_map(|s| s.operands.iter_mut().flatten()) {
            if let Operand::Here(v) = operand {
                *operand = Operand::Outer(outer.name_of(*v).to_owned());
            }
        }
        return Some(found);
    }
    let view = view(graph, scope, v.node)?;
    let mut from = within(graph, scope, node.input(view.operand)?, views.checked_sub(1)?)?;
    let last = from.tensor.shape().last().copied();
    match view.what {
        What::Same => {}
        What::Shape => {
            from.tensor = reshaped(graph, scope, v.node, from.tensor)?;
            if from.by_column && from.tensor.shape().last().copied() != last {
                return None;
            }
        }
        What::Elements(further) => {
            let mut attrs = node.attrs.clone();
            if !matches!(further, Further::Number) {
                if from.tensor.rank() < 2 {
                    return None;
                }
                from.by_column = true;
            }
            if let Further::Columns(n) = further {
                if last != Some(n) {
                    return None;
                }
                if &*node.op()?.name == "DequantizeLinear" {
                    let axis = node.attrs.int_or("axis", 1).ok()?;
                    let rank = from.tensor.rank() as i64;
                    if axis.rem_euclid(rank.max(1)) != rank - 1 || !(-rank..rank).contains(&axis) {
                        return None;
                    }
                    attrs.set("axis", Attr::Int(-1));
                }
            }
            let operands = node.inputs().iter().enumerate();
            let operands = operands.map(|(i, v)| v.filter(|_| i != view.operand).map(Operand::Here)).collect();
            from.after.push(Step {
                name: node.name.clone(),
                op: node.op()?.clone(),
                attrs,
                operands,
                table: view.operand,
                output: node.outputs[0].name.clone(),
            });
        }
    }
    Some(from)
}

/// The elements of a constant of this graph.
fn tensor_of(graph: &Graph, v: ValueId) -> Option<&Tensor> {
    let node = graph.node(v.node);
    match &node.kind {
        Kind::Param(c) | Kind::Input(Some(c)) => Some(&c.tensor),
        Kind::Op(op) if op.is("Constant") => node.attrs.tensor("value").ok().flatten(),
        _ => None,
    }
}

/// The elements of a constant of this graph or of one around it.
pub(in crate::passes) fn constant<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, v: ValueId) -> Option<&'g Tensor> {
    match graph.node(v.node).kind {
        Kind::Capture => outer_value(scope, graph.name_of(v)).and_then(|(g, v, _)| tensor_of(g, v)),
        _ => tensor_of(graph, v),
    }
}

/// An op that passes a table on: the operand that is the table, and what becomes of it.
pub(super) struct View {
    pub(super) operand: usize,
    what: What,
}

enum What {
    Same,
    Shape,
    /// Each element by itself.
    Elements(Further),
}

/// The further operand of an op on elements.
enum Further {
    /// None, or a number.
    Number,
    /// A list of one number: the result has a dim at least.
    One,
    /// A number per position of the last dim.
    Columns(usize),
}

const UNARY: &[&str] = &[
    "Abs",
    "Cast",
    "Ceil",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "LeakyRelu",
    "Log",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tanh",
];

/// Whether an op passes a table on whatever its further operands are.
pub(super) fn is_plain(op: &OpName) -> bool {
    let shape = ["DequantizeLinear", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"];
    shape.contains(&&*op.name) || UNARY.contains(&&*op.name)
}

/// Whether a node passes a table on, and how. What it needs besides must be a constant right behind it.
pub(super) fn view<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, id: NodeId) -> Option<View> {
    let node = graph.node(id);
    let op = node.op().filter(|o| o.domain.is_empty() || (&*o.domain == "com.microsoft" && &*o.name == "DequantizeLinear"))?;
    let further = |i: usize| node.input(i).and_then(|v| constant(graph, scope, v));
    let of = |what: What| Some(View { operand: 0, what });
    match &*op.name {
        "Identity" => of(What::Same),
        "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => of(What::Shape),
        name if UNARY.contains(&name) => of(What::Elements(Further::Number)),
        "DequantizeLinear" => {
            if node.attrs.int_or("block_size", 0).ok()? != 0 {
                return None;
            }
            let given = |i: usize| node.input(i).is_some();
            let (scale, zero) = (further(1)?, further(2));
            let further = match (scale.len(), zero.map(Tensor::len)) {
                (1, None | Some(1)) => Further::Number,
                (n, z) if scale.rank() == 1 && z.is_none_or(|z| z == n) => Further::Columns(n),
                _ => return None,
            };
            if given(2) && zero.is_none() { None } else { of(What::Elements(further)) }
        }
        "Clip" => {
            let single = |i: usize| node.input(i).is_none() || further(i).is_some_and(|t| t.len() == 1 && t.rank() == 0);
            if single(1) && single(2) { of(What::Elements(Further::Number)) } else { None }
        }
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" if node.attrs.is_empty() && node.inputs().len() == 2 => {
            let (a, b) = (further(0), further(1));
            let size = |t: Option<&Tensor>| t.map_or(usize::MAX, Tensor::len);
            let (operand, other) = if size(a) >= size(b) { (0, b?) } else { (1, a?) };
            let further = match other.shape()[..] {
                [] => Further::Number,
                [1] => Further::One,
                [n] => Further::Columns(n),
                _ => return None,
            };
            Some(View { operand, what: What::Elements(further) })
        }
        _ => None,
    }
}

fn reshaped<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, id: NodeId, t: Tensor) -> Option<Tensor> {
    let node = graph.node(id);
    let listed = |name: &str| match node.input(1) {
        Some(v) => const_ints(graph, scope, v).map(Some),
        None => node.attrs.ints(name).ok().map(|x| x.map(<[i64]>::to_vec)),
    };
    let shape = t.shape();
    let within = |axis: i64, rank: usize| usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|&a| a < rank);
    let dims: Vec<usize> = match &*node.op()?.name {
        "Flatten" => {
            let axis = node.attrs.int_or("axis", 1).ok()?;
            let from_front = if axis < 0 { axis + shape.len() as i64 } else { axis };
            let at = usize::try_from(from_front).ok().filter(|&a| a <= shape.len())?;
            vec![shape[..at].iter().product(), shape[at..].iter().product()]
        }
        "Squeeze" => {
            let axes = listed("axes")?;
            let axes = match axes {
                Some(a) => Some(a.into_iter().map(|a| within(a, shape.len())).collect::<Option<Vec<_>>>()?),
                None => None,
            };
            let gone = |i: usize| axes.as_ref().map_or(shape[i] == 1, |a| a.contains(&i));
            if (0..shape.len()).any(|i| gone(i) && shape[i] != 1) {
                return None;
            }
            (0..shape.len()).filter(|&i| !gone(i)).map(|i| shape[i]).collect()
        }
        "Unsqueeze" => {
            let axes = listed("axes")??;
            let rank = shape.len() + axes.len();
            let axes = axes.into_iter().map(|a| within(a, rank)).collect::<Option<Vec<_>>>()?;
            let mut rest = shape.iter();
            let dims = (0..rank).map(|i| if axes.contains(&i) { Some(1) } else { rest.next().copied() });
            dims.collect::<Option<Vec<_>>>()?
        }
        _ => {
            let wanted = listed("shape")??;
            if node.attrs.int_or("allowzero", 0).ok()? != 0 && wanted.contains(&0) {
                return None;
            }
            let mut dims = Vec::with_capacity(wanted.len());
            for (i, &d) in wanted.iter().enumerate() {
                dims.push(match d {
                    0 => *shape.get(i)?,
                    -1 => 1,
                    d => usize::try_from(d).ok()?,
                });
            }
            if let Some(i) = wanted.iter().position(|&d| d == -1) {
                let others = crate::tensor::Shape::from(dims.as_slice());
                dims[i] = t.len().checked_div(others.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?)?;
            }
            dims
        }
    };
    t.reshape(dims).ok()
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
            ("value_ints", Attr::Ints(x)) => Some(x.clone()),
            ("value_int", Attr::Int(x)) => Some(vec![*x]),
            _ => node.attrs.tensor("value").ok()??.to_i64s().ok(),
        },
        Kind::Op(op) if ["Unsqueeze", "Squeeze", "Identity"].iter().any(|n| op.is(n)) => {
            ints_within(graph, scope, node.input(0)?, views.checked_sub(1)?)
        }
        _ => None,
    }
}

/// Where a captured value is made: its graph, and what is around that.
pub(super) fn outer_value<'g>(scope: Option<&Scope<'g>>, name: &str) -> Option<(&'g Graph, ValueId, Option<&'g Scope<'g>>)> {
    let s = scope?;
    match s.graph.value(name) {
        Some(v) if !matches!(s.graph.node(v.node).kind, Kind::Capture) => Some((s.graph, v, s.outer)),
        _ => outer_value(s.outer, name),
    }
}
