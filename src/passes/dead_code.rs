//! `dead-code`
//!
//! *What*: removes operators and constants whose values nobody needs.
//! *Why*: other passes leave them behind; they cost time and, for constants, space.
//! *Before*:
//! ```text
//! graph g(x: float32[2]) -> (y) {
//!   param a: float32[] = [1.0]
//!   t = Add(x, a)
//!   u = Exp(t)
//!   y = Neg(x)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[2]) -> (y) {
//!   y = Neg(x)
//! }
//! ```
//! *Leaves alone*: ops that this build does not know, ops with effects (collectives, random numbers), graph inputs, names
//! that the training information uses.

use super::{Changed, Pass, PassError, Report};
use crate::ir::{Graph, Kind, Model, Names, NodeId};
use crate::ops;
use std::collections::{BTreeSet, HashSet};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct DeadCode;

impl Pass for DeadCode {
    fn name(&self) -> &'static str {
        "dead-code"
    }

    fn source(&self) -> &'static str {
        include_str!("dead_code.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let mut names = model.names();
        let pinned = model.pinned.clone();
        let mut changed = Changed::No;
        let mut clean = |graph: &mut Graph, _: Option<&crate::ir::Scope>| -> Result<(), PassError> {
            changed = changed.or(sweep(graph, &pinned, &mut names)?);
            Ok(())
        };
        model.visit_mut(&mut clean)?;
        model.visit_functions_mut(&mut clean)?;
        Ok(changed)
    }
}

fn sweep(graph: &mut Graph, pinned: &BTreeSet<String>, names: &mut Names) -> Result<Changed, PassError> {
    let mut dead: HashSet<NodeId> = HashSet::new();
    let is_dead = |graph: &Graph, dead: &HashSet<NodeId>, id: NodeId| {
        let node = graph.node(id);
        let free = node.outputs.iter().enumerate().all(|(slot, o)| {
            let v = id.value(slot as u32);
            !graph.is_output(v) && !pinned.contains(&o.name) && graph.uses(v).iter().all(|u| dead.contains(&u.node))
        });
        free && match &node.kind {
            Kind::Op(op) => ops::find(op).is_some_and(|d| d.pure),
            Kind::Param(_) | Kind::Sparse(_) => true,
            _ => false,
        }
    };
    let Ok(order) = graph.topological() else { return Ok(Changed::No) };
    for &id in order.iter().rev().chain(graph.params()) {
        if is_dead(graph, &dead, id) {
            dead.insert(id);
        }
    }
    if dead.is_empty() {
        return Ok(Changed::No);
    }
    let mut edit = graph.edit("dead-code");
    let mut dead: Vec<NodeId> = dead.into_iter().collect();
    dead.sort();
    dead.into_iter().for_each(|id| edit.remove(id));
    edit.commit(names)?;
    Ok(Changed::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{parse_model, print_graph};

    #[test]
    fn what_nobody_needs_goes_and_the_rest_stays() {
        let text = "graph g(x: float32[2]) -> (y) {\n  param a: float32[1] = [1.0]\n  param b: float32[1] = [2.0]\n  t = Add(x, a)\n  u = Add(t, b)\n  z = Foo(u)\n  w = Add(u, u)\n  y = Add(x, x)\n}";
        let mut model = parse_model(text).unwrap();
        assert_eq!(DeadCode.run(&mut model, &mut Report::default()).unwrap(), Changed::Yes);
        assert_eq!(DeadCode.run(&mut model, &mut Report::default()).unwrap(), Changed::No);
        insta::assert_snapshot!(print_graph(&model.graph), @r"
        graph g(x: float32[2]) -> (y) {
          param a: float32[1] = [1.0]
          param b: float32[1] = [2.0]
          t = Add(x, a)
          u = Add(t, b)
          z = Foo(u)
          y = Add(x, x)
        }
        ");
    }
}
