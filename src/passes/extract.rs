//! A part of a model as a model: what lies between some of its values and others.

use super::{PassError, value_types};
use crate::ir::{Graph, GraphError, Kind, Model, Node, NodeId, NodeParts, OpName, Output, Parts, Type, ValueId};
use std::collections::{BTreeSet, HashMap, HashSet};

/// The part of the main graph that computes `outputs` from `inputs`; without `inputs`, from those of the graph that are needed.
/// What the interface states of the new inputs and outputs is what the model states or what inference finds.
///
/// # Errors
/// A value that does not exist (`Call`, with names that are near), a graph input that is needed but not cut, an input whose
/// type nothing tells.
pub fn extract(model: &Model, inputs: &[String], outputs: &[String]) -> Result<Model, PassError> {
    let graph = &model.graph;
    let find = |name: &String| graph.value(name).ok_or_else(|| unknown(graph, name));
    let cut: Vec<ValueId> = inputs.iter().map(find).collect::<Result<_, _>>()?;
    let wanted: Vec<ValueId> = outputs.iter().map(find).collect::<Result<_, _>>()?;
    for (list, what) in [(inputs, "inputs"), (outputs, "outputs")] {
        if let Some(twice) = list.iter().enumerate().find(|(i, n)| list[..*i].contains(n)) {
            return Err(PassError::Call(format!("--{what}: \"{}\" is named twice", twice.1)));
        }
    }
    let needed = needed(graph, &cut, &wanted);
    let mut names = model.names();
    let (mut parts, types) = (Parts { name: graph.name.clone(), ..Parts::default() }, value_types(model));
    for &v in &cut {
        parts.inputs.push(typed(graph, v, &types, true)?);
    }
    for &id in graph.inputs() {
        let name = graph.name_of(id.value(0));
        match &graph.node(id).kind {
            _ if !needed.contains(&id) => {}
            Kind::Input(None) if inputs.is_empty() => parts.inputs.push(typed(graph, id.value(0), &types, true)?),
            Kind::Input(None) => {
                return Err(PassError::Call(format!(
                    "input \"{name}\" is needed for {} but not among --inputs",
                    needs(graph, id, &cut, &wanted)
                )));
            }
            // A default that nobody overrides is a constant.
            Kind::Input(Some(constant)) => parts.params.push((name.to_owned(), Kind::Param(constant.clone()))),
            _ => {}
        }
    }
    for &id in graph.params().iter().filter(|id| needed.contains(id)) {
        let kind = graph.node(id).kind.clone();
        if !matches!(kind, Kind::Input(_)) {
            parts.params.push((graph.name_of(id.value(0)).to_owned(), kind));
        }
    }
    for &id in graph.ops().iter().filter(|id| needed.contains(id)) {
        let Some(mut node) = node_parts(graph, graph.node(id)) else { continue };
        // A value that is cut is no longer made here, though another of its maker's is needed.
        node.outputs.iter_mut().filter(|o| inputs.contains(o)).for_each(|o| *o = names.fresh(&format!("{o}_uncut")));
        parts.nodes.push(node);
    }
    let makes: HashSet<&str> = needed.iter().flat_map(|&id| graph.node(id).outputs.iter().map(|o| o.name.as_str())).collect();
    for name in graph.value_info().iter().filter(|n| makes.contains(n.as_str()) && !inputs.contains(n) && !outputs.contains(n)) {
        parts.value_info.extend(graph.value(name).map(|v| graph.output(v).clone()));
    }
    for &v in &wanted {
        parts.outputs.push(typed(graph, v, &types, false)?);
    }
    let fault = |e: Vec<GraphError>| PassError::Call(e.into_iter().next().map_or_else(String::new, |e| e.0));
    let graph = Graph::from_parts(parts, false).map_err(fault)?;
    let mut new = Model { graph, functions: Vec::new(), ..model.clone() };
    let mut todo: Vec<OpName> = ops_in(&new.graph);
    while let Some(op) = todo.pop() {
        if let (Some(f), None) = (model.function(&op), new.function(&op)) {
            todo.extend(ops_in(&f.graph));
            new.functions.push(f.clone());
        }
    }
    let place = |f: &crate::ir::Function| model.functions.iter().position(|g| g.op() == f.op());
    new.functions.sort_by_key(place);
    Ok(new)
}

fn unknown(graph: &Graph, name: &str) -> PassError {
    let names: Vec<&str> = graph.nodes().flat_map(|id| graph.node(id).outputs.iter().map(|o| o.name.as_str())).collect();
    PassError::Call(format!("the graph has no value \"{name}\"{}", super::near(name, names)))
}

/// What a part would need that computes `wanted` from values of `cut`: which of those, and which inputs of the graph, each in
/// its order.
pub fn frontier(graph: &Graph, cut: &[String], wanted: &[String]) -> (Vec<String>, Vec<String>) {
    let ids = |names: &[String]| names.iter().filter_map(|n| graph.value(n)).collect::<Vec<_>>();
    let (ends, goals) = (ids(cut), ids(wanted));
    let needed = needed(graph, &ends, &goals);
    let reached: HashSet<ValueId> =
        needed.iter().flat_map(|&id| graph.node(id).inputs().iter().flatten().copied().chain(graph.captured_by(id))).chain(goals).collect();
    let name = |v: ValueId| graph.name_of(v).to_owned();
    let of_graph = graph.inputs().iter().map(|id| id.value(0)).filter(|v| needed.contains(&v.node));
    (ends.iter().copied().filter(|v| reached.contains(v)).map(name).collect(), of_graph.map(name).collect())
}

/// The nodes on the ways back from the wanted values, as far as the cut.
fn needed(graph: &Graph, cut: &[ValueId], wanted: &[ValueId]) -> HashSet<NodeId> {
    let cut: HashSet<ValueId> = cut.iter().copied().collect();
    let mut needed = HashSet::new();
    let mut todo: Vec<ValueId> = wanted.to_vec();
    while let Some(v) = todo.pop() {
        if !cut.contains(&v) && needed.insert(v.node) {
            todo.extend(graph.node(v.node).inputs().iter().flatten().copied().chain(graph.captured_by(v.node)));
        }
    }
    needed
}

/// The wanted values for which an input is needed.
fn needs(graph: &Graph, input: NodeId, cut: &[ValueId], wanted: &[ValueId]) -> String {
    let names = wanted.iter().filter(|v| needed(graph, cut, &[**v]).contains(&input)).map(|&v| format!("\"{}\"", graph.name_of(v)));
    names.collect::<Vec<_>>().join(", ")
}

fn typed(graph: &Graph, v: ValueId, types: &HashMap<String, Type>, required: bool) -> Result<Output, PassError> {
    let name = graph.name_of(v).to_owned();
    let given = graph.outputs().iter().find(|o| o.value == v).and_then(|o| o.ty.clone());
    let found = types.get(&name).cloned().filter(|t| t.dtype().is_some() || !matches!(t, Type::Tensor { .. }));
    let all = [given, found, graph.type_of(v).cloned()];
    // What says dims goes before what says none.
    let ty = all.iter().flatten().find(|t| t.shape().is_some()).or_else(|| all.iter().flatten().next()).cloned();
    if required && ty.is_none() {
        return Err(PassError::Call(format!("the type of \"{name}\" is not known, which an input must state")));
    }
    Ok(Output { name, ty, info: None })
}

/// A node with its operands by name.
fn node_parts(graph: &Graph, node: &Node) -> Option<NodeParts> {
    Some(NodeParts {
        name: node.name.clone(),
        op: node.op()?.clone(),
        inputs: node.inputs().iter().map(|v| v.map_or_else(String::new, |v| graph.name_of(v).to_owned())).collect(),
        outputs: node.outputs.iter().map(|o| o.name.clone()).collect(),
        attrs: node.attrs.clone(),
        residue: node.residue.clone(),
    })
}

fn ops_in(graph: &Graph) -> Vec<OpName> {
    let mut all = BTreeSet::new();
    let mut graphs = vec![graph];
    while let Some(g) = graphs.pop() {
        for &id in g.ops() {
            all.extend(g.node(id).op().cloned());
            graphs.extend(g.node(id).attrs.iter().flat_map(|(_, a)| a.graphs()));
        }
    }
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{parse_model, print_graph, verify};

    const GRAPH: &str = "graph g(x: float32[n,4], z: float32[n,4]) -> (y) {\n  param w: float32[4] = [1.0, 2.0, 3.0, 4.0]\n  a = Mul(x, w)\n  b = Relu(a)\n  c = Add(b, z)\n  y = Neg(c)\n}";

    fn check(inputs: &[&str], outputs: &[&str]) -> Result<String, String> {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let part = extract(&parse_model(GRAPH).unwrap(), &own(inputs), &own(outputs)).map_err(|e| e.to_string())?;
        assert_eq!(verify(&part), [""; 0]);
        Ok(print_graph(&part.graph))
    }

    #[test]
    fn the_part_has_the_types_that_inference_finds() {
        insta::assert_snapshot!(check(&["a"], &["b"]).unwrap(), @r"
        graph g(a: float32[n,4]) -> (b: float32[n,4]) {
          b: float32[n,4] = Relu(a)
        }
        ");
        insta::assert_snapshot!(check(&[], &["b"]).unwrap(), @r"
        graph g(x: float32[n,4]) -> (b: float32[n,4]) {
          param w: float32[4] = [1.0, 2.0, 3.0, 4.0]
          a = Mul(x, w)
          b: float32[n,4] = Relu(a)
        }
        ");
        insta::assert_snapshot!(check(&["w", "x"], &["a"]).unwrap(), @r"
        graph g(w: float32[4], x: float32[n,4]) -> (a: float32[n,4]) {
          a: float32[n,4] = Mul(x, w)
        }
        ");
    }

    #[test]
    fn a_cut_value_whose_maker_is_needed_for_another_is_an_input() {
        let text = "graph g(x: float32[4]) -> (y) {\n  a, b = Split(x) {num_outputs=2}\n  y = Add(a, b)\n}";
        let part = extract(&parse_model(text).unwrap(), &["a".into(), "x".into()], &["y".into()]).unwrap();
        insta::assert_snapshot!(print_graph(&part.graph), @r"
        graph g(a: float32[2], x: float32[4]) -> (y: float32[2]) {
          a_uncut, b = Split(x) {num_outputs=2}
          y: float32[2] = Add(a, b)
        }
        ");
    }

    #[test]
    fn refusals_name_the_value() {
        assert_eq!(check(&["a"], &["y"]).unwrap_err(), "input \"z\" is needed for \"y\" but not among --inputs");
        assert_eq!(check(&["a"], &["bb"]).unwrap_err(), "the graph has no value \"bb\"; near it: b");
        assert_eq!(check(&["a", "a"], &["b"]).unwrap_err(), "--inputs: \"a\" is named twice");
    }
}
