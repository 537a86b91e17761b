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
//! of by Scan.
//! *Leaves alone*: ids that the body computes, branches of If (one that is not taken must not ask). An id out of range is an
//! error even where no step reads it.

use super::remote_lookup::const_ints;
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attr, Attrs, Graph, Kind, Model, Names, NodeId, OpName, Output, Scope, ValueId};
use crate::ops::remote::DOMAIN;

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
        model.visit_mut(&mut |graph, scope| -> Result<(), PassError> {
            while hoist_one(graph, scope, &mut names)? {
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
    /// What cuts the part out, outermost first, with the axes in which it does.
    cuts: Vec<(NodeId, Vec<i64>)>,
}

enum From {
    Captured(String),
    Scanned(usize),
}

fn hoist_one(graph: &mut Graph, scope: Option<&Scope>, names: &mut Names) -> Result<bool, PassError> {
    let loops = graph.ops().iter().copied().filter(|&id| graph.node(id).op().is_some_and(|o| o.is("Loop") || o.is("Scan")));
    let Some(found) = loops.into_iter().find_map(|id| find(graph, scope, id)) else { return Ok(false) };
    let Ok(Some(body)) = graph.node(found.looped).attrs.graph("body").map(|b| b.cloned()) else { return Ok(false) };
    let mut body = body;
    let lookup = body.node(found.lookup);
    let (name, attrs, hint) = (lookup.name.clone(), lookup.attrs.clone(), format!("{}_all", body.name_of(found.lookup.value(0))));
    let ids = match &found.from {
        From::Captured(ids) => graph.value(ids),
        From::Scanned(operand) => graph.node(found.looped).input(*operand),
    };
    let Some(ids) = ids else { return Ok(false) };
    // The edit below takes the same name, for it is the first that asks for it.
    let rows_name = names.clone().fresh(&hint);
    let op = OpName::new(DOMAIN, "RemoteLookup");
    let mut edit = graph.edit("hoist-lookups");
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
        for list in ["scan_input_directions", "scan_input_axes"] {
            if let Ok(Some(values)) = edit.graph().node(found.looped).attrs.ints(list) {
                let longer: Vec<i64> = values.iter().copied().chain([0]).collect();
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
    *names = inner_names;
    Ok(true)
}

/// The same part of the rows takes the place of the lookup's result; cuts of ids that nobody reads any more go.
fn take_over(edit: &mut crate::ir::Edit, found: &Found, rows: ValueId) {
    let mut value = rows;
    let hint = edit.graph().name_of(found.lookup.value(0)).to_owned();
    for (id, axes) in &found.cuts {
        let node = edit.graph().node(*id).clone();
        let Some(op) = node.op().cloned() else { continue };
        let mut inputs = node.inputs().to_vec();
        inputs[0] = Some(value);
        let mut attrs: Attrs = node.attrs.clone();
        if op.is("Gather") {
            attrs.set("axis", Attr::Int(axes[0]));
        }
        value = edit.add(op, &node.name, inputs, [Output::new(hint.clone(), None)], attrs, Some(found.lookup)).value(0);
    }
    edit.replace_uses(found.lookup.value(0), value);
    edit.remove(found.lookup);
    let mut reader = found.lookup;
    for (id, _) in found.cuts.iter().rev() {
        let v = id.value(0);
        if edit.graph().is_output(v) || edit.graph().uses(v).iter().any(|u| u.node != reader) {
            break;
        }
        edit.remove(*id);
        reader = *id;
    }
}

fn find(graph: &Graph, scope: Option<&Scope>, looped: NodeId) -> Option<Found> {
    let node = graph.node(looped);
    let body = node.attrs.graph("body").ok()??;
    let inside = Scope { graph, outer: scope };
    let wanted = OpName::new(DOMAIN, "RemoteLookup");
    body.ops().iter().copied().filter(|&id| body.node(id).op() == Some(&wanted) && body.node(id).inputs().len() == 1).find_map(|lookup| {
        let mut cuts = Vec::new();
        let mut at = body.node(lookup).input(0)?;
        loop {
            let maker = body.node(at.node);
            match &maker.kind {
                Kind::Capture => {
                    cuts.reverse();
                    return Some(Found { looped, lookup, from: From::Captured(body.name_of(at).to_owned()), cuts });
                }
                Kind::Input(None) => {
                    cuts.reverse();
                    return Some(Found { looped, lookup, from: From::Scanned(scanned(node, body, at.node)?), cuts });
                }
                _ => {}
            }
            let axes = cut_axes(body, &inside, at.node)?;
            cuts.push((at.node, axes));
            at = maker.input(0)?;
        }
    })
}

/// The axes in which a node cuts a part out, all counted from the front.
fn cut_axes(body: &Graph, scope: &Scope, id: NodeId) -> Option<Vec<i64>> {
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
    axes.iter().all(|&a| a >= 0).then_some(axes)
}

/// The operand of a Scan of which a body's input is one step, along the outermost dim.
fn scanned(node: &crate::ir::Node, body: &Graph, input: NodeId) -> Option<usize> {
    if !node.op()?.is("Scan") {
        return None;
    }
    let index = body.inputs().iter().position(|&i| i == input)?;
    let count = usize::try_from(node.attrs.int("num_scan_inputs").ok()??).ok()?;
    let states = node.inputs().len().checked_sub(count)?;
    let k = index.checked_sub(states)?;
    let plain = |list: &str| node.attrs.ints(list).ok().flatten().is_none_or(|l| l.get(k).is_none_or(|&x| x == 0));
    (body.inputs().len() == node.inputs().len() && plain("scan_input_axes") && plain("scan_input_directions")).then_some(index)
}
