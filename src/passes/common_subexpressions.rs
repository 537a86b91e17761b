//! `common-subexpressions`
//!
//! *What*: nodes of one op, with the same operands and attributes, become one.
//! *Why*: exporters ask for the same shape, or cut the same part out, again and again.
//! *Before*:
//! ```text
//! graph g(x: float32[n,m]) -> (y, z) {
//!   a = Softmax(x)
//!   b = Softmax(x) {axis=-1}
//!   c = Softmax(x) {axis=0}
//!   y = Add(a, b)
//!   z = Add(a, c)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,m]) -> (y, z) {
//!   a = Softmax(x)
//!   c = Softmax(x) {axis=0}
//!   y = Add(a, a)
//!   z = Add(a, c)
//! }
//! ```
//! *Needs*: for an attribute that one node states and the other leaves out, the default of the standard.
//! *Leaves alone*: random numbers, lookups and collectives, ops that this build does not know, nodes with bodies; of two
//! equal nodes that both make graph outputs, both stay.

use super::{Changed, Pass, PassError, Report, rules};
use crate::ir::{Attr, Attrs, Graph, Model, Names, NodeId, OpsetImport, ValueId, digest, opset_version};
use crate::ops;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct CommonSubexpressions;

impl Pass for CommonSubexpressions {
    fn name(&self) -> &'static str {
        "common-subexpressions"
    }

    fn source(&self) -> &'static str {
        include_str!("common_subexpressions.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        if rules::shadowed(model) {
            return Ok(changed);
        }
        let mut names = model.names();
        let opsets = model.opset_imports.clone();
        model.visit_mut(&mut |graph: &mut Graph, _| -> Result<(), PassError> {
            while merge(graph, &opsets, &mut names)? == Changed::Yes {
                changed = Changed::Yes;
            }
            Ok(())
        })?;
        let functions: Vec<_> = model.functions.iter().map(|f| f.opset_imports.clone()).collect();
        for (function, own) in model.functions.iter_mut().zip(functions) {
            let opsets = if own.is_empty() { &opsets } else { &own };
            while merge(&mut function.graph, opsets, &mut names)? == Changed::Yes {
                changed = Changed::Yes;
            }
        }
        Ok(changed)
    }
}

fn merge(graph: &mut Graph, opsets: &[OpsetImport], names: &mut Names) -> Result<Changed, PassError> {
    let Ok(order) = graph.topological() else { return Ok(Changed::No) };
    let mut first: HashMap<String, NodeId> = HashMap::new();
    // What stands for a value, and the nodes that others are merged into.
    let (mut stands, mut targets) = (HashMap::<ValueId, ValueId>::new(), HashSet::new());
    let mut pairs: Vec<(NodeId, NodeId)> = Vec::new();
    for id in order {
        let Some(key) = key(graph, id, opsets, &stands) else { continue };
        let Some(&found) = first.get(&key) else {
            first.insert(key, id);
            continue;
        };
        let gives_back = |id: NodeId| (0..graph.node(id).outputs.len()).any(|s| graph.is_output(id.value(s as u32)));
        let fits = graph.node(id).outputs.iter().zip(&graph.node(found).outputs).all(|(a, b)| match (&a.ty, &b.ty) {
            (Some(a), Some(b)) => a.compatible(b),
            _ => true,
        });
        let (gone, kept) = match (gives_back(id), gives_back(found)) {
            _ if !fits => continue,
            (false, _) => (id, found),
            // A node that others were merged into is left for the next round.
            (true, false) if !targets.contains(&found) => (found, id),
            _ => continue,
        };
        if gone == found {
            first.insert(key, id);
        }
        targets.insert(kept);
        for slot in 0..graph.node(gone).outputs.len() as u32 {
            stands.insert(gone.value(slot), kept.value(slot));
        }
        pairs.push((gone, kept));
    }
    if pairs.is_empty() {
        return Ok(Changed::No);
    }
    let mut edit = graph.edit("common-subexpressions");
    for (gone, kept) in pairs {
        for slot in 0..edit.graph().node(gone).outputs.len() as u32 {
            if !edit.graph().name_of(gone.value(slot)).is_empty() {
                edit.replace_uses(gone.value(slot), kept.value(slot));
            }
        }
        edit.remove(gone);
    }
    edit.commit(names)?;
    Ok(Changed::Yes)
}

/// The text that two nodes share if they compute the same.
fn key(graph: &Graph, id: NodeId, opsets: &[OpsetImport], stands: &HashMap<ValueId, ValueId>) -> Option<String> {
    let node = graph.node(id);
    let op = node.op()?;
    let def = ops::find(op).filter(|d| d.pure && matches!(d.run, ops::Run::Kernel(_)))?;
    let mut text = format!("{op}(");
    let given = node.inputs().iter().rposition(Option::is_some).map_or(0, |i| i + 1);
    for v in &node.inputs()[..given] {
        match v.map(|v| stands.get(&v).copied().unwrap_or(v)) {
            Some(v) => write!(text, "{:?},", v).ok()?,
            None => text.push_str("_,"),
        }
    }
    text.push_str(")->");
    node.outputs.iter().for_each(|o| text.push(if o.name.is_empty() { '_' } else { '*' }));
    let version = match opset_version(opsets, &op.domain) {
        0 => *def.versions.last()?,
        v => v,
    };
    let mut attrs = attributes(&node.attrs, |name, value| ops::default_attr(op, version, name).is_some_and(|d| d.is(value)))?;
    attrs.sort();
    Some(text + &attrs.join(","))
}

/// Each attribute as a text, without those that `is_default`.
fn attributes(attrs: &Attrs, is_default: impl Fn(&str, &Attr) -> bool) -> Option<Vec<String>> {
    let mut all = Vec::with_capacity(attrs.len());
    for (name, value) in attrs.iter().filter(|(n, v)| !matches!(v, Attr::Undefined) && !is_default(n, v)) {
        let value = match value {
            Attr::Float(x) => format!("f{:08x}", x.to_bits()),
            Attr::Floats(x) => format!("f{:?}", x.iter().map(|x| x.to_bits()).collect::<Vec<_>>()),
            Attr::Int(x) => format!("i{x}"),
            Attr::Ints(x) => format!("i{x:?}"),
            Attr::String(x) => format!("s{x:?}"),
            Attr::Strings(x) => format!("s{x:?}"),
            Attr::Type(x) => format!("t{x}"),
            Attr::Tensor(c) if c.tensor.absent_place().is_none() => {
                format!("{}{}{}", c.tensor.dtype(), c.tensor.shape(), digest(&c.tensor))
            }
            Attr::Ref(to) => format!("r{to:?}"),
            _ => return None,
        };
        all.push(format!("{name:?}={value}"));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{parse_model, print_graph, verify};

    fn check(text: &str) -> String {
        let mut model = parse_model(text).unwrap();
        CommonSubexpressions.run(&mut model, &mut Report::default()).unwrap();
        assert_eq!(verify(&model), [""; 0]);
        assert_eq!(CommonSubexpressions.run(&mut model, &mut Report::default()).unwrap(), Changed::No);
        print_graph(&model.graph)
    }

    #[test]
    fn attributes_that_differ_keep_nodes_apart() {
        let text = "graph g(w: float32[2,2], i: int64[1]) -> (y) {\n  a = Gather(w, i) {axis=0}\n  b = Gather(w, i) {axis=1}\n  y = Concat(a, b) {axis=0}\n}";
        assert!(check(text).contains("b = Gather"));
    }

    #[test]
    fn an_attribute_that_states_its_default_is_none() {
        let text = "graph g(w: float32[2,2], i: int64[1]) -> (y) {\n  a = Gather(w, i)\n  b = Gather(w, i) {axis=0}\n  y = Concat(a, b) {axis=0}\n}";
        assert!(check(text).contains("y = Concat(a, a)"));
    }

    #[test]
    fn the_default_is_that_of_the_models_version() {
        let graph = "graph g(x: float32[2,2,2]) -> (y, z) {\n  a = Softmax(x)\n  b = Softmax(x) {axis=-1}\n  y = Neg(a)\n  z = Neg(b)\n}";
        let of = |opset| check(&format!("model ir_version=8 opset=[\"\"={opset}]\n{graph}"));
        assert!(of(11).contains("b = Softmax") && !of(13).contains("b = Softmax"));
    }

    #[test]
    fn random_numbers_are_drawn_each_for_itself() {
        let text = "graph g() -> (y) {\n  a = RandomUniform() {shape=[2]}\n  b = RandomUniform() {shape=[2]}\n  y = Sub(a, b)\n}";
        assert!(check(text).contains("b = RandomUniform"));
    }

    #[test]
    fn the_one_that_is_an_output_stays_under_its_name() {
        let text = "graph g(x: float32[2]) -> (y, z) {\n  a = Neg(x)\n  y = Neg(x)\n  c = Neg(x)\n  t = Add(a, c)\n  z = Add(t, y)\n}";
        insta::assert_snapshot!(check(text), @r"
        graph g(x: float32[2]) -> (y, z) {
          y = Neg(x)
          t = Add(y, y)
          z = Add(t, y)
        }
        ");
    }

    #[test]
    fn chains_are_merged_from_the_operands_on() {
        let text = "graph g(x: float32[2]) -> (y) {\n  a = Neg(x)\n  b = Neg(x)\n  c = Abs(a)\n  d = Abs(b)\n  y = Add(c, d)\n}";
        assert!(check(text).contains("y = Add(c, c)"));
    }
}
