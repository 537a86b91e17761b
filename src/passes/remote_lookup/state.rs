//! A table that a Loop or Scan hands from step to step unchanged becomes one that its body reads from outside.

use super::source::{MAX_VIEWS, source};
use crate::ir::{Attr, Edit, Graph, Model, Names, NodeId, Output, Scope, ValueId};
use crate::passes::{Changed, PassError};

/// Does that everywhere, from the outside in.
pub(super) fn capture(model: &mut Model) -> Result<Changed, PassError> {
    if !super::has_op(model, |op| op.is("Loop") || op.is("Scan")) {
        return Ok(Changed::No);
    }
    let mut names = model.names();
    let mut changed = Changed::No;
    let scans = model.opset("") >= 9;
    // Bodies are visited before the graph around them, which has to be done first.
    for _ in 0..MAX_VIEWS {
        let mut again = false;
        model.visit_mut(&mut |graph, scope| -> Result<(), PassError> {
            while let Some((looped, state)) = find(graph, scope, scans) {
                take_out(graph, looped, state, &mut names)?;
                again = true;
            }
            Ok(())
        })?;
        if !again {
            break;
        }
        changed = Changed::Yes;
    }
    Ok(changed)
}

/// A state: the operand of the node, the input and the output of the body, the slot of the node.
#[derive(Clone, Copy)]
struct State {
    operand: usize,
    input: usize,
    output: usize,
    slot: usize,
}

fn states(graph: &Graph, id: NodeId, scans: bool) -> Vec<State> {
    let node = graph.node(id);
    let count = node.inputs().len();
    match node.op() {
        Some(op) if op.is("Loop") => {
            (0..count.saturating_sub(2)).map(|k| State { operand: k + 2, input: k + 2, output: k + 1, slot: k }).collect()
        }
        Some(op) if op.is("Scan") && scans => {
            let scanned = node.attrs.int_or("num_scan_inputs", 0).unwrap_or(0).max(0) as usize;
            (0..count.saturating_sub(scanned)).map(|k| State { operand: k, input: k, output: k, slot: k }).collect()
        }
        _ => Vec::new(),
    }
}

fn find(graph: &Graph, scope: Option<&Scope>, scans: bool) -> Option<(NodeId, State)> {
    graph.ops().iter().find_map(|&id| {
        let body = graph.node(id).attrs.graph("body").ok()??;
        let table = |s: &State| {
            let of = graph.node(id).input(s.operand).and_then(|v| source(graph, scope, v));
            of.is_some_and(|t| super::survey::is_table(&t.tensor)) || super::loop_state::looks_up(graph, id, s.operand)
        };
        let state = states(graph, id, scans).into_iter().find(|s| table(s) && unchanged(body, *s, scans, MAX_VIEWS))?;
        Some((id, state))
    })
}

/// Whether a body gives a state back as it got it.
fn unchanged(body: &Graph, s: State, scans: bool, views: usize) -> bool {
    let (Some(&input), Some(output)) = (body.inputs().get(s.input), body.outputs().get(s.output)) else { return false };
    origin(body, output.value, scans, views) == Some(input.value(0))
}

/// What a value is, through Identity and the unchanged states of loops.
fn origin(graph: &Graph, v: ValueId, scans: bool, views: usize) -> Option<ValueId> {
    let node = graph.node(v.node);
    let Some(op) = node.op() else { return Some(v) };
    let views = views.checked_sub(1)?;
    if op.is("Identity") {
        return origin(graph, node.input(0)?, scans, views);
    }
    let body = node.attrs.graph("body").ok().flatten();
    let state = states(graph, v.node, scans).into_iter().find(|s| s.slot == v.slot as usize);
    match (body, state) {
        (Some(body), Some(s)) if unchanged(body, s, scans, views) => origin(graph, node.input(s.operand)?, scans, views),
        _ => Some(v),
    }
}

fn take_out(graph: &mut Graph, looped: NodeId, s: State, names: &mut Names) -> Result<(), PassError> {
    let node = graph.node(looped).clone();
    let (Some(op), Some(table), Ok(Some(body))) = (node.op().cloned(), node.input(s.operand), node.attrs.graph("body")) else {
        return Ok(());
    };
    let mut body = body.clone();
    let input = body.inputs()[s.input];
    let mut inside = body.edit("remote-lookup");
    let outer = inside.add_capture(graph.name_of(table));
    inside.replace_uses(input.value(0), outer);
    inside.remove_output(s.output);
    inside.remove(input);
    inside.commit(names)?;
    let mut attrs = node.attrs.clone();
    attrs.set("body", Attr::Graph(Box::new(body)));
    let inputs: Vec<Option<ValueId>> = node.inputs().iter().enumerate().filter(|(i, _)| *i != s.operand).map(|(_, v)| *v).collect();
    let outputs: Vec<Output> = node.outputs.iter().enumerate().filter(|(i, _)| *i != s.slot).map(|(_, o)| o.clone()).collect();
    let mut edit: Edit = graph.edit("remote-lookup");
    let new = edit.add(op, &node.name, inputs, outputs, attrs, Some(looped));
    for slot in (0..node.outputs.len()).filter(|&i| !node.outputs[i].name.is_empty()) {
        let old = looped.value(slot as u32);
        let value = if slot == s.slot { table } else { new.value((slot - usize::from(slot > s.slot)) as u32) };
        edit.replace_uses(old, value);
    }
    edit.remove(looped);
    edit.commit(names)?;
    Ok(())
}
