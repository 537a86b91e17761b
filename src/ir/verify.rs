//! The verifier. A valid model is one in which
//!
//! * every value has a name, or is an output that nobody asked for and nobody reads; names are unique in their graph;
//! * every operand exists, and the nodes can be put in an order in which each follows what it reads;
//! * what a body captures is made by a graph around it; the main graph and functions capture nothing;
//! * an attribute that refers to a function's attribute stands in a function;
//! * a graph output is a value of its graph.

use super::attr::Attr;
use super::graph::Graph;
use super::model::Model;
use super::node::Kind;
use std::collections::HashSet;

/// Every fault of a model's structure, each on a line of its own; empty for a valid one.
pub fn verify(model: &Model) -> Vec<String> {
    let mut faults = Vec::new();
    graph(&model.graph, "", false, &HashSet::new(), &mut faults);
    for f in &model.functions {
        graph(&f.graph, &format!("function \"{}\": ", f.name), true, &HashSet::new(), &mut faults);
    }
    faults
}

fn graph(g: &Graph, place: &str, in_function: bool, around: &HashSet<&str>, faults: &mut Vec<String>) {
    let mut names: HashSet<&str> = HashSet::new();
    for id in g.nodes() {
        let node = g.node(id);
        for (slot, o) in node.outputs.iter().enumerate() {
            let v = id.value(slot as u32);
            if o.name.is_empty() {
                if !g.uses(v).is_empty() || g.is_output(v) {
                    faults.push(format!("{place}node \"{}\": a value without a name is read", node.label()));
                }
            } else if !names.insert(&o.name) {
                faults.push(format!("{place}value \"{}\" is made twice", o.name));
            } else if g.value(&o.name) != Some(v) {
                faults.push(format!("{place}value \"{}\" is not found under its name", o.name));
            }
        }
        for v in node.inputs().iter().flatten() {
            if !g.contains(v.node) || v.slot as usize >= g.node(v.node).outputs.len() {
                faults.push(format!("{place}node \"{}\": an operand does not exist", node.label()));
            }
        }
        if matches!(node.kind, Kind::Capture) && !around.contains(node.outputs[0].name.as_str()) {
            faults.push(format!("{place}\"{}\" is read, but made by nobody", node.outputs[0].name));
        }
    }
    for o in g.outputs() {
        if !g.contains(o.value.node) || o.value.slot as usize >= g.node(o.value.node).outputs.len() {
            faults.push(format!("{place}a graph output does not exist"));
        }
    }
    if let Err(e) = g.topological() {
        faults.push(format!("{place}{e}"));
    }
    let visible: HashSet<&str> = around.iter().copied().chain(names).collect();
    for &id in g.ops() {
        let node = g.node(id);
        for (name, attr) in node.attrs.iter() {
            if matches!(attr, Attr::Ref(_)) && !in_function {
                faults.push(format!("{place}node \"{}\": attribute \"{name}\" refers to a function's, but is in none", node.label()));
            }
            for body in attr.graphs() {
                graph(body, &format!("{place}node \"{}\", {name}: ", node.label()), in_function, &visible, faults);
            }
        }
    }
}
