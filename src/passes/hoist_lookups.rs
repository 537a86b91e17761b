//! `hoist-lookups`
//!
//! *What*: a remote lookup in the body of a Loop or Scan whose ids are a part of ids from outside is made once, before the
//! loop, for all of those ids; the body takes the same part of the rows.
//! *Why*: an EmbeddingBag exported as a loop would ask once per bag, a recurrent model once per step.
//! *Before*:
//! ```text
//! graph g(ids: int64[n], starts: int64[m], steps: int64[], go: bool[]) -> (y) {
//!   y = Loop(steps, go) {body=graph b(i: int64[], c: bool[]) -> (c2, sum) {
//!     param axes: int64[1] = [0]
//!     c2 = Identity(c)
//!     start = Gather(starts, i)
//!     from = Unsqueeze(start, axes)
//!     one = Constant() {value=int64[1] [1]}
//!     to = Add(from, one)
//!     part = Slice(ids, from, to, axes)
//!     rows = graphtool::RemoteLookup(part) {tables=["W"], rows=[4], dtypes=[1], row_ranks=[1], row_dims=[2], negative=[1], padding_idx=[-1]}
//!     sum = ReduceSum(rows, axes)
//!   }}
//! }
//! ```
//! *After*:
//! ```text
//! graph g(ids: int64[n], starts: int64[m], steps: int64[], go: bool[]) -> (y) {
//!   rows_all = graphtool::RemoteLookup(ids) {tables=["W"], rows=[4], dtypes=[1], row_ranks=[1], row_dims=[2], negative=[1], padding_idx=[-1]}
//!   y = Loop(steps, go) {body=graph b(i: int64[], c: bool[]) -> (c2, sum) {
//!       param axes: int64[1] = [0]
//!       c2 = Identity(c)
//!       start = Gather(starts, i)
//!       from = Unsqueeze(start, axes)
//!       one = Constant() {value=int64[1] [1]}
//!       to = Add(from, one)
//!       rows = Slice(rows_all, from, to, axes)
//!       sum = ReduceSum(rows, axes)
//!     }}
//! }
//! ```
//! *Needs*: ids that the body cuts out of one outer value by Slice and Gather on known axes, or that it is given one step
//! of by Scan; between may be casts and arithmetic with one number from outside, which are then done to all ids.
//! *Leaves alone*: ids that the body computes, branches of If (one that is not taken must not ask). An id out of range is an
//! error even where no step reads it.

use super::remote_lookup::{Types, const_ints, constant};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attr, Attrs, Graph, Kind, Model, Names, NodeId, OpName, Output, Scope, ValueId};
use crate::ops::remote::DOMAIN;
use crate::tensor::Tensor;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct HoistLookups;

impl Pass for HoistLookups {
    fn name(&self) -> &'static str {
        "hoist-lookups"
    }

    fn source(&self) -> &'static str {
        include_str!("hoist_lookups.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let mut names = model.names();
        let mut changed = Changed::No;
        let types = Types::of(model);
        model.visit_mut(&mut |graph, scope| -> Result<(), PassError> {
            while hoist_one(graph, scope, &types, &mut names)? {
                changed = Changed::Yes;
            }
            Ok(())
        })?;
        Ok(changed)
    }
}

/// A lookup in a body, whose ids come from outside through `cuts`.
struct Found {
    looped: NodeId,
    lookup: NodeId,
    /// The name of all ids in the graph around, or the number of the loop's operand that has them.
    from: From,
    /// What happens to the ids on the way, the first first.
    steps: Vec<Step>,
}

enum From {
    Captured(String),
    Scanned(usize),
}

enum Step {
    /// Cuts a part out in these axes; whether the node counts some from the end.
    Cut(NodeId, Vec<i64>, bool),
    /// Changes each id by itself.
    Each(NodeId),
}

impl Step {
    fn node(&self) -> NodeId {
        match self {
            Step::Cut(id, ..) | Step::Each(id) => *id,
        }
    }
}

fn hoist_one(graph: &mut Graph, scope: Option<&Scope>, types: &Types, names: &mut Names) -> Result<bool, PassError> {
    let loops = graph.ops().iter().copied().filter(|&id| graph.node(id).op().is_some_and(|o| o.is("Loop") || o.is("Scan")));
    let Some(found) = loops.into_iter().find_map(|id| find(graph, scope, types, id)) else { return Ok(false) };
    let Ok(Some(body)) = graph.node(found.looped).attrs.graph("body").map(|b| b.cloned()) else { return Ok(false) };
    let mut body = body;
    let lookup = body.node(found.lookup);
    let (name, attrs, hint) = (lookup.name.clone(), lookup.attrs.clone(), format!("{}_all", body.name_of(found.lookup.value(0))));
    let ids = match &found.from {
        From::Captured(ids) => graph.value(ids),
        From::Scanned(operand) => graph.node(found.looped).input(*operand),
    };
    let Some(ids) = ids else { return Ok(false) };
    let op = OpName::new(DOMAIN, "RemoteLookup");
    let mut edit = graph.edit("hoist-lookups");
    let ids = each(&mut edit, &body, &found, ids);
    // The commit takes the same name, for no other of this edit begins like it.
    let rows_name = names.clone().fresh(&hint);
    let rows = edit.add(op, &name, [Some(ids)], [Output::new(hint, None)], attrs, Some(found.looped)).value(0);
    let mut inner_names = names.clone();
    let _ = inner_names.fresh(&rows_name);
    let _ = inner_names.fresh(&name);
    if let From::Scanned(_) = found.from {
        let looped = edit.graph().node(found.looped);
        let scanned = looped.attrs.int_or("num_scan_inputs", 1).unwrap_or(1);
        let at = looped.inputs().len();
        edit.set_operand(found.looped, at, Some(rows));
        edit.set_attr(found.looped, "num_scan_inputs", scanned + 1);
        // The rows are walked through as the ids are: their own dims come last.
        let states = at - scanned.max(0) as usize;
        for list in ["scan_input_directions", "scan_input_axes"] {
            if let Ok(Some(values)) = edit.graph().node(found.looped).attrs.ints(list) {
                let From::Scanned(ids) = &found.from else { continue };
                let mut longer: Vec<i64> = values.to_vec();
                longer.resize(at - states, 0);
                longer.push(longer.get(ids - states).copied().unwrap_or(0));
                edit.set_attr(found.looped, list, longer);
            }
        }
        let mut inside = body.edit("hoist-lookups");
        let part = inside.add_input(&format!("{rows_name}_step"));
        take_over(&mut inside, &found, part);
        inside.commit(&mut inner_names)?;
    } else {
        let mut inside = body.edit("hoist-lookups");
        let part = inside.add_capture(&rows_name);
        take_over(&mut inside, &found, part);
        inside.commit(&mut inner_names)?;
    }
    edit.set_attr(found.looped, "body", Attr::Graph(Box::new(body)));
    edit.commit(names)?;
    names.absorb(inner_names);
    Ok(true)
}

/// Does to all ids what the body does to each id.
fn each(edit: &mut crate::ir::Edit, body: &Graph, found: &Found, mut ids: ValueId) -> ValueId {
    for id in found.steps.iter().filter_map(|s| if let Step::Each(id) = s { Some(*id) } else { None }) {
        let node = body.node(id);
        let Some(op) = node.op().cloned() else { continue };
        let mut inputs = Vec::with_capacity(node.inputs().len());
        for (i, v) in node.inputs().iter().enumerate() {
            let Some(v) = v.filter(|_| i > 0) else {
                inputs.push(Some(ids));
                continue;
            };
            let name = body.name_of(v);
            inputs.push(Some(match &body.node(v.node).kind {
                Kind::Param(c) => edit.add_param(name, c.tensor.clone()),
                _ => match edit.graph().value(name) {
                    Some(outer) => outer,
                    None => edit.add_capture(name),
                },
            }));
        }
        let output = Output::new(format!("all_{}", node.outputs[0].name), None);
        ids = edit.add(op, &node.name, inputs, [output], node.attrs.clone(), Some(found.looped)).value(0);
    }
    ids
}

/// The same part of the rows takes the place of the lookup's result; steps of ids that nobody reads any more go.
fn take_over(edit: &mut crate::ir::Edit, found: &Found, rows: ValueId) {
    let mut value = rows;
    let hint = edit.graph().name_of(found.lookup.value(0)).to_owned();
    for step in &found.steps {
        let Step::Cut(id, axes, from_end) = step else { continue };
        let node = edit.graph().node(*id).clone();
        let Some(op) = node.op().cloned() else { continue };
        let mut inputs = node.inputs().to_vec();
        inputs[0] = Some(value);
        let mut attrs: Attrs = node.attrs.clone();
        if op.is("Gather") {
            attrs.set("axis", Attr::Int(axes[0]));
        } else if *from_end && inputs.len() > 3 {
            inputs[3] = Some(edit.add_param(&format!("{hint}_axes"), Tensor::vector(axes.clone())));
        } else if *from_end {
            attrs.set("axes", Attr::Ints(axes.clone()));
        }
        value = edit.add(op, &node.name, inputs, [Output::new(hint.clone(), None)], attrs, Some(found.lookup)).value(0);
    }
    edit.replace_uses(found.lookup.value(0), value);
    edit.remove(found.lookup);
    let mut reader = found.lookup;
    for id in found.steps.iter().rev().map(Step::node) {
        let v = id.value(0);
        if edit.graph().is_output(v) || edit.graph().uses(v).iter().any(|u| u.node != reader) {
            break;
        }
        edit.remove(id);
        reader = id;
    }
}

fn find(graph: &Graph, scope: Option<&Scope>, types: &Types, looped: NodeId) -> Option<Found> {
    let node = graph.node(looped);
    let body = node.attrs.graph("body").ok()??;
    let inside = Scope { graph, outer: scope };
    let wanted = OpName::new(DOMAIN, "RemoteLookup");
    body.ops().iter().copied().filter(|&id| body.node(id).op() == Some(&wanted) && body.node(id).inputs().len() == 1).find_map(|lookup| {
        let mut steps = Vec::new();
        let mut at = body.node(lookup).input(0)?;
        loop {
            let maker = body.node(at.node);
            let from = match &maker.kind {
                Kind::Capture => Some(From::Captured(body.name_of(at).to_owned())),
                Kind::Input(None) => Some(From::Scanned(scanned(node, body, at.node)?)),
                _ => None,
            };
            if let Some(from) = from {
                steps.reverse();
                // Row numbers are made of the last dim: only cuts of the first can be made afterwards.
                let of_rows = |s: &Step| matches!(s, Step::Each(id) if is_row_ids(body, *id));
                let first = |s: &Step| !matches!(s, Step::Cut(_, axes, _) if axes.iter().any(|&a| a != 0));
                if steps.iter().any(of_rows) && !steps.iter().all(first) {
                    return None;
                }
                return Some(Found { looped, lookup, from, steps });
            }
            steps.push(match cut_axes(body, &inside, types, at.node) {
                Some((axes, from_end)) => Step::Cut(at.node, axes, from_end),
                None if is_each(body, &inside, types, at.node) => Step::Each(at.node),
                None => return None,
            });
            at = maker.input(0)?;
        }
    })
}

/// Whether a node makes row numbers of indices, without batch dims.
fn is_row_ids(body: &Graph, id: NodeId) -> bool {
    let node = body.node(id);
    node.op() == Some(&OpName::new(DOMAIN, "RowIds")) && node.attrs.get("batch_dims").is_none()
}

/// Whether a node changes each element by itself, by one number that is the same in each step.
fn is_each(body: &Graph, scope: &Scope, types: &Types, id: NodeId) -> bool {
    let node = body.node(id);
    let Some(op) = node.op() else { return false };
    if op.is("Cast") || op.is("Identity") || is_row_ids(body, id) {
        return true;
    }
    let number = |v: ValueId| {
        let constant = constant(body, Some(scope), v);
        let rank_0 = types.get(body, v).and_then(crate::ir::Type::shape).is_some_and(<[_]>::is_empty);
        constant.is_some_and(|t| t.rank() == 0 && t.len() == 1)
            || (rank_0 && matches!(body.node(v.node).kind, Kind::Capture | Kind::Param(_)))
    };
    let known = ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min"].iter().any(|n| op.is(n));
    known && node.inputs().len() == 2 && node.inputs()[1].is_some_and(|v| number(v) && !matches!(body.node(v.node).kind, Kind::Op(_)))
}

/// The axes in which a node cuts a part out, all counted from the front.
fn cut_axes(body: &Graph, scope: &Scope, types: &Types, id: NodeId) -> Option<(Vec<i64>, bool)> {
    let node = body.node(id);
    let op = node.op()?;
    let axes = if op.is("Gather") {
        vec![node.attrs.int_or("axis", 0).ok()?]
    } else if op.is("Slice") {
        match node.input(3) {
            Some(axes) => const_ints(body, Some(scope), axes)?,
            None => node.attrs.ints("axes").ok().flatten().map(<[i64]>::to_vec).unwrap_or_default(),
        }
    } else {
        return None;
    };
    if axes.iter().all(|&a| a >= 0) {
        return Some((axes, false));
    }
    let rank = types.rank(body, node.input(0)?)? as i64;
    let front: Vec<i64> = axes.iter().map(|&a| if a < 0 { a + rank } else { a }).collect();
    front.iter().all(|&a| a >= 0).then_some((front, true))
}

/// The operand of a Scan of which a body's input is one step.
fn scanned(node: &crate::ir::Node, body: &Graph, input: NodeId) -> Option<usize> {
    if !node.op()?.is("Scan") {
        return None;
    }
    let index = body.inputs().iter().position(|&i| i == input)?;
    let count = usize::try_from(node.attrs.int("num_scan_inputs").ok()??).ok()?;
    let states = node.inputs().len().checked_sub(count)?;
    let k = index.checked_sub(states)?;
    // An axis from the end would be another one of the rows.
    let front = node.attrs.ints("scan_input_axes").ok()?.is_none_or(|l| l.get(k).is_none_or(|&x| x >= 0));
    (body.inputs().len() == node.inputs().len() && front).then_some(index)
}
