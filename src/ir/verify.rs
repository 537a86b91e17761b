//! The verifier. A valid model is one in which
//!
//! * every value has a name, or is an output that nobody asked for and nobody reads; names are unique in their graph;
//! * every operand exists, and the nodes can be put in an order in which each follows what it reads;
//! * what a body captures is made by a graph around it; the main graph and functions capture nothing;
//! * an attribute that refers to a function's attribute stands in a function;
//! * a graph output is a value of its graph;
//! * the version of the format is one that can be, and each domain has one version of its operators;
//! * no function is defined twice or calls itself, and all calls together stand for a number of nodes that can be run.

use super::attr::Attr;
use super::graph::Graph;
use super::model::{Function, Model, OpsetImport};
use super::node::{Kind, OpName, normal_domain};
use std::collections::{HashMap, HashSet};

/// Nodes that the calls of functions may stand for.
pub const MAX_EXPANSION: u64 = 2_000_000;

/// The versions of a file format that there may be.
pub const IR_VERSIONS: std::ops::RangeInclusive<i64> = 1..=1000;
/// The versions of operators that there may be.
const OPSET_VERSIONS: std::ops::RangeInclusive<i64> = 0..=1_000_000;

/// What is wrong with the versions of operators that a model or a function imports.
pub fn opset_fault(imports: &[OpsetImport]) -> Option<String> {
    let mut seen = HashSet::new();
    imports.iter().find_map(|import| {
        let OpsetImport { domain, version, .. } = import;
        if !OPSET_VERSIONS.contains(version) {
            return Some(format!("opset version {version} of domain \"{domain}\" is not one that exists"));
        }
        (!seen.insert(normal_domain(domain))).then(|| format!("opset of domain \"{domain}\" is imported twice"))
    })
}

/// A function that is there twice.
pub fn defined_twice(functions: &[Function]) -> Option<String> {
    let mut seen = HashSet::new();
    let twice = functions.iter().find(|f| !seen.insert(f.op()))?;
    Some(format!("function \"{}\" of domain \"{}\" is defined twice", twice.name, twice.domain))
}

/// Every fault of a model's structure, each on a line of its own; empty for a valid one.
pub fn verify(model: &Model) -> Vec<String> {
    let mut faults = Vec::new();
    if !IR_VERSIONS.contains(&model.ir_version) {
        faults.push(format!("ir_version {} is not one that exists", model.ir_version));
    }
    faults.extend(opset_fault(&model.opset_imports));
    faults.extend(defined_twice(&model.functions));
    for f in &model.functions {
        faults.extend(opset_fault(&f.opset_imports).map(|fault| format!("function \"{}\": {fault}", f.name)));
    }
    graph(&model.graph, "", false, &HashSet::new(), &mut faults);
    for f in &model.functions {
        graph(&f.graph, &format!("function \"{}\": ", f.name), true, &HashSet::new(), &mut faults);
    }
    faults.extend(function_faults(model));
    faults
}

/// The functions that a graph calls, its bodies included, and its other nodes.
fn called(g: &Graph, index: &HashMap<OpName, usize>) -> (Vec<usize>, u64) {
    let (mut calls, mut own) = (Vec::new(), 0);
    let mut graphs = vec![g];
    while let Some(g) = graphs.pop() {
        for &id in g.ops() {
            let node = g.node(id);
            match node.op().and_then(|op| index.get(op)) {
                Some(&f) => calls.push(f),
                None => own += 1,
            }
            graphs.extend(node.attrs.iter().flat_map(|(_, a)| a.graphs()));
        }
    }
    (calls, own)
}

/// A function that calls itself, or calls that stand for too many nodes.
pub fn function_faults(model: &Model) -> Option<String> {
    if model.functions.is_empty() {
        return None;
    }
    let index: HashMap<OpName, usize> = model.functions.iter().map(Function::op).enumerate().map(|(i, op)| (op, i)).collect();
    let bodies: Vec<(Vec<usize>, u64)> = model.functions.iter().map(|f| called(&f.graph, &index)).collect();
    let mut callers: Vec<Vec<usize>> = vec![Vec::new(); bodies.len()];
    let mut waiting: Vec<usize> = bodies.iter().map(|b| b.0.len()).collect();
    for (f, (calls, _)) in bodies.iter().enumerate() {
        calls.iter().for_each(|&c| callers[c].push(f));
    }
    let mut sizes = vec![0u64; bodies.len()];
    let mut ready: Vec<usize> = (0..bodies.len()).filter(|&f| waiting[f] == 0).collect();
    while let Some(f) = ready.pop() {
        sizes[f] = bodies[f].0.iter().fold(bodies[f].1, |n, &c| n.saturating_add(sizes[c]));
        for &caller in &callers[f] {
            waiting[caller] -= 1;
            if waiting[caller] == 0 {
                ready.push(caller);
            }
        }
    }
    if let Some(f) = (0..bodies.len()).find(|&f| waiting[f] > 0 && reaches(f, &bodies)) {
        return Some(format!("function \"{}\" calls itself", model.functions[f].name));
    }
    let (main, own) = called(&model.graph, &index);
    if main.iter().fold(own, |n, &c| n.saturating_add(sizes[c])) > MAX_EXPANSION {
        let name = (0..bodies.len()).find(|&f| sizes[f] > MAX_EXPANSION).map(|f| model.functions[f].name.as_str());
        let place = name.map_or_else(|| "the graph".to_owned(), |n| format!("function \"{n}\""));
        return Some(format!("{place}: its calls of functions stand for more than {MAX_EXPANSION} nodes"));
    }
    None
}

/// Whether a function calls itself, through others or not.
fn reaches(from: usize, bodies: &[(Vec<usize>, u64)]) -> bool {
    let mut seen = vec![false; bodies.len()];
    let mut stack = bodies[from].0.clone();
    while let Some(f) = stack.pop() {
        if f == from {
            return true;
        }
        if !std::mem::replace(&mut seen[f], true) {
            stack.extend(&bodies[f].0);
        }
    }
    false
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

#[cfg(test)]
mod tests {
    use super::super::parse_model;
    use super::verify;

    #[test]
    fn versions_and_functions_are_there_once_and_exist() {
        let faults = |head: &str| verify(&parse_model(&format!("{head}\ngraph g(x: float32[1]) -> (y) {{\n  y = Neg(x)\n}}")).unwrap());
        let function =
            |opset: &str| format!("function domain=\"my\" opset=[{opset}] attributes=[] defaults={{}} F(x) -> (y) {{\n  y = Neg(x)\n}}");
        assert_eq!(faults("model ir_version=8 opset=[\"\"=17]"), [""; 0]);
        assert_eq!(faults("model ir_version=0 opset=[\"\"=17]"), ["ir_version 0 is not one that exists"]);
        assert_eq!(faults("model ir_version=8 opset=[\"\"=-1]"), ["opset version -1 of domain \"\" is not one that exists"]);
        assert_eq!(faults("model ir_version=8 opset=[\"\"=17, \"ai.onnx\"=18]"), ["opset of domain \"ai.onnx\" is imported twice"]);
        let twice = format!("model ir_version=8 opset=[\"\"=17]\n{}\n{}", function("\"\"=17"), function("\"\"=17, \"\"=17"));
        let expected = ["function \"F\" of domain \"my\" is defined twice", "function \"F\": opset of domain \"\" is imported twice"];
        assert_eq!(faults(&twice), expected);
    }
}
