//! `inline-functions`
//!
//! *What*: a call of a local function becomes the function's body, with the attributes of the call.
//! *Why*: what a function does with its arguments (a lookup in a table, say) is then seen by the other passes.
//! *Before*:
//! ```text
//! model ir_version=8 opset=[""=17, "my"=1]
//! function domain="my" opset=[""=17] attributes=["alpha"] defaults={} Act(a) -> (b) {
//!   b = LeakyRelu(a) {alpha=$alpha}
//! }
//! graph g(x: float32[2]) -> (y) {
//!   y = my::Act(x) {alpha=0.5}
//! }
//! ```
//! *After*:
//! ```text
//! model ir_version=8 opset=[""=17, "my"=1]
//! graph g(x: float32[2]) -> (y) {
//!   y = LeakyRelu(x) {alpha=0.5}
//! }
//! ```
//! *Leaves alone*: functions that call themselves, functions of other operator sets in which some op of theirs is another;
//! each is remarked. All calls stay where they stand for more than 20,000 nodes.

use super::{Changed, Pass, PassError, Report};
use crate::ir::{Function, Graph, Model, Names, NodeId, OpName, normal_domain};
use crate::ops;
use std::collections::{BTreeSet, HashMap};

/// Nodes that all calls may stand for.
const MAX_INLINED: u64 = 20_000;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct InlineFunctions;

impl Pass for InlineFunctions {
    fn name(&self) -> &'static str {
        "inline-functions"
    }

    fn source(&self) -> &'static str {
        include_str!("inline_functions.rs")
    }

    fn run(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError> {
        let mut names = model.names();
        let mut changed = Changed::No;
        let mut usable: Vec<Function> = Vec::new();
        for f in &model.functions {
            match refusal(model, f) {
                Some(why) => report.remarks.push((self.name(), format!("calls of function \"{}\" stay: {why}", f.name))),
                None => usable.push(f.clone()),
            }
        }
        if usable.is_empty() {
            return Ok(Changed::No);
        }
        let nodes = expansion(model);
        if nodes > MAX_INLINED {
            report.remarks.push((self.name(), format!("calls of functions stay: they stand for {nodes} nodes, more than {MAX_INLINED}")));
            return Ok(Changed::No);
        }
        model.visit_mut(&mut |graph, _| -> Result<(), PassError> {
            while inline(graph, &usable, &mut names)? {
                changed = Changed::Yes;
            }
            Ok(())
        })?;
        if changed == Changed::No {
            return Ok(changed);
        }
        for import in usable.iter().flat_map(|f| &f.opset_imports) {
            model.import_opset(&import.domain, import.version);
        }
        drop_uncalled(model);
        Ok(changed)
    }
}

/// Nodes of the main graph once all calls are replaced, as far as they can be counted.
fn expansion(model: &Model) -> u64 {
    let mut sizes: HashMap<OpName, u64> = HashMap::new();
    // A function stands for what those that it calls stand for; a few rounds settle it, for none that is replaced calls itself.
    for _ in 0..=model.functions.len().min(64) {
        let next = model.functions.iter().map(|f| (name_of(f), size(&f.graph, &sizes))).collect();
        if next == sizes {
            break;
        }
        sizes = next;
    }
    size(&model.graph, &sizes)
}

fn size(graph: &Graph, sizes: &HashMap<OpName, u64>) -> u64 {
    let each = |&id: &NodeId| {
        let node = graph.node(id);
        let own = node.op().and_then(|op| sizes.get(op)).copied().unwrap_or(1);
        node.attrs.iter().flat_map(|(_, a)| a.graphs()).fold(own, |n, g| n.saturating_add(size(g, sizes)))
    };
    graph.ops().iter().map(each).fold(0, u64::saturating_add)
}

fn name_of(f: &Function) -> OpName {
    OpName { overload: f.overload.as_str().into(), ..OpName::new(&f.domain, &f.name) }
}

/// Every op that a graph or a body in it names.
fn ops_in(graph: &Graph, into: &mut BTreeSet<OpName>) {
    for &id in graph.ops() {
        let node = graph.node(id);
        into.extend(node.op().cloned());
        node.attrs.iter().flat_map(|(_, a)| a.graphs()).for_each(|g| ops_in(g, into));
    }
}

/// Whether the ops of a domain that a graph has are the same in two versions of it.
fn same_ops(graph: &Graph, domain: &str, a: i64, b: i64) -> bool {
    let mut found = BTreeSet::new();
    ops_in(graph, &mut found);
    let since = |d: &ops::OpDef, version: i64| d.versions.iter().copied().filter(|&v| v <= version).max();
    let own = found.iter().filter(|op| &*op.domain == normal_domain(domain));
    own.into_iter().all(|op| ops::find(op).is_some_and(|d| since(d, a).is_some() && since(d, a) == since(d, b)))
}

/// Why calls of a function cannot be replaced.
fn refusal(model: &Model, f: &Function) -> Option<String> {
    for import in &f.opset_imports {
        let found = model.opset(&import.domain);
        if found != 0 && found != import.version && !same_ops(&f.graph, &import.domain, import.version, found) {
            let domain = if normal_domain(&import.domain).is_empty() { "ai.onnx" } else { &import.domain };
            return Some(format!("its body is of opset {} of {domain}, the model of {found}", import.version));
        }
    }
    let mut reached = BTreeSet::new();
    let mut todo = vec![f];
    while let Some(g) = todo.pop() {
        let mut ops = BTreeSet::new();
        ops_in(&g.graph, &mut ops);
        for op in ops {
            if op == name_of(f) {
                return Some("it calls itself".into());
            }
            if reached.insert(op.clone())
                && let Some(next) = model.function(&op)
            {
                todo.push(next);
            }
        }
    }
    None
}

fn inline(graph: &mut Graph, functions: &[Function], names: &mut Names) -> Result<bool, PassError> {
    let find = |graph: &Graph, id: NodeId| functions.iter().find(|f| graph.node(id).op() == Some(&name_of(f)));
    let calls: Vec<(NodeId, &Function)> = graph.ops().iter().filter_map(|&id| Some((id, find(graph, id)?))).collect();
    // One at a time: the result of a call may be the argument of the next.
    let Some(&(id, f)) = calls.first() else { return Ok(false) };
    let node = graph.node(id);
    let (body, inputs, outputs) = (f.instantiate(&node.attrs), node.inputs().to_vec(), node.outputs.len());
    let mut edit = graph.edit("inline-functions");
    let results = edit.splice(body, &inputs, id, names)?;
    for (slot, value) in results.into_iter().enumerate().take(outputs) {
        edit.replace_uses(id.value(slot as u32), value);
    }
    edit.remove(id);
    edit.commit(names)?;
    Ok(true)
}

/// Takes away functions that nothing calls any more.
fn drop_uncalled(model: &mut Model) {
    let mut called = BTreeSet::new();
    ops_in(&model.graph, &mut called);
    loop {
        let before = called.len();
        for f in &model.functions {
            if called.contains(&name_of(f)) {
                ops_in(&f.graph, &mut called);
            }
        }
        if called.len() == before {
            break;
        }
    }
    model.functions.retain(|f| called.contains(&name_of(f)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{parse_model, print_model};

    fn check(text: &str) -> (String, Vec<String>) {
        let mut model = parse_model(text).unwrap();
        let mut report = Report::default();
        InlineFunctions.run(&mut model, &mut report).unwrap();
        // A function that calls itself is a fault of the model; the pass adds none.
        let faults: Vec<String> = crate::ir::verify(&model).into_iter().filter(|f| !f.ends_with("calls itself")).collect();
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(InlineFunctions.run(&mut model, &mut Report::default()).unwrap(), Changed::No);
        (print_model(&model), report.remarks.into_iter().map(|r| r.1).collect())
    }

    #[test]
    fn each_call_gets_names_of_its_own() {
        let text = r#"
        model ir_version=8 opset=[""=17, "my"=1]
        function domain="my" opset=[""=17] attributes=[] defaults={} Emb(W, i) -> (o) {
          t = Gather(W, i)
          o = Relu(t)
        }
        graph g(i: int64[2], c: bool[]) -> (y, z) {
          param A: float32[2,1] = [1.0, 2.0]
          param B: float32[2,1] = [3.0, 4.0]
          y = my::Emb(A, i)
          z = If(c) {then_branch=graph t() -> (u) {
            u = my::Emb(B, i)
          }, else_branch=graph e() -> (v) {
            v = my::Emb(A, i)
          }}
        }"#;
        let (text, remarks) = check(text);
        assert_eq!(remarks, Vec::<String>::new());
        insta::assert_snapshot!(text, @r#"
        model ir_version=8 opset=[""=17, "my"=1]
        graph g(i: int64[2], c: bool[]) -> (y, z) {
          param A: float32[2,1] = [1.0, 2.0]
          param B: float32[2,1] = [3.0, 4.0]
          t_3 = Gather(A, i)
          y = Relu(t_3)
          z = If(c) {then_branch=graph t() -> (u) {
              t_1 = Gather(B, i)
              u = Relu(t_1)
            }, else_branch=graph e() -> (v) {
              t_2 = Gather(A, i)
              v = Relu(t_2)
            }}
        }
        "#);
    }

    #[test]
    fn a_function_that_calls_itself_or_is_of_another_opset_stays() {
        let text = r#"
        model ir_version=8 opset=[""=17, "my"=1]
        function domain="my" opset=[""=17, "my"=1] attributes=[] defaults={} F(x) -> (o) {
          o = my::F(x)
        }
        function domain="my" opset=[""=13] attributes=[] defaults={} G(x) -> (o) {
          o = Relu(x)
        }
        graph g(x: float32[2]) -> (y) {
          t = my::G(x)
          y = my::F(t)
        }"#;
        insta::assert_debug_snapshot!(check(text).1, @r#"
        [
            "calls of function \"F\" stay: it calls itself",
            "calls of function \"G\" stay: its body is of opset 13 of ai.onnx, the model of 17",
        ]
        "#);
    }
}
