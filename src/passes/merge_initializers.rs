//! `merge-initializers`
//!
//! *What*: initializers of one type, dims and value become one.
//! *Why*: exporters write the same small shape or scale again and again, and some copy whole weights.
//! *Before*:
//! ```text
//! graph g(x: float32[n]) -> (y) {
//!   param a: float32[] = [2.0]
//!   param b: float32[] = [2.0]
//!   param c: float64[] = [2.0]
//!   t = Mul(x, a)
//!   y = Add(t, b)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n]) -> (y) {
//!   param a: float32[] = [2.0]
//!   param c: float64[] = [2.0]
//!   t = Mul(x, a)
//!   y = Add(t, a)
//! }
//! ```
//! *Leaves alone*: defaults of inputs, which a caller may override; values that differ in a bit (0 and -0); names that the
//! training information uses. `rewrite` does not run it: equal tables stay tables of their own.

use super::rules::edit_each;
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Graph, Kind, Model, NodeId, Type, digest};
use crate::tensor::DType;
use std::collections::{BTreeSet, HashMap};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct MergeInitializers;

impl Pass for MergeInitializers {
    fn name(&self) -> &'static str {
        "merge-initializers"
    }

    fn source(&self) -> &'static str {
        include_str!("merge_initializers.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let (names, pinned) = (model.names(), model.pinned.clone());
        edit_each(model, "merge-initializers", names, |edit| {
            for (copy, first) in equal(edit.graph(), &pinned) {
                edit.replace_uses(copy.value(0), first.value(0));
                edit.remove(copy);
            }
        })
    }
}

/// Initializers to remove, each with the one that stands for it.
fn equal(graph: &Graph, pinned: &BTreeSet<String>) -> Vec<(NodeId, NodeId)> {
    let tensor = |id: NodeId| match &graph.node(id).kind {
        Kind::Param(c) if c.tensor.absent_place().is_none() => Some(&c.tensor),
        _ => None,
    };
    let mut alike: HashMap<(DType, Vec<usize>), Vec<NodeId>> = HashMap::new();
    for &id in graph.params() {
        if let Some(t) = tensor(id) {
            alike.entry((t.dtype(), t.shape().to_vec())).or_default().push(id);
        }
    }
    let mut pairs = Vec::new();
    for group in alike.into_values().filter(|g| g.len() > 1) {
        let mut by_value: HashMap<String, Vec<NodeId>> = HashMap::new();
        for id in group {
            by_value.entry(tensor(id).map(digest).unwrap_or_default()).or_default().push(id);
        }
        for same in by_value.into_values() {
            let kept = |id: &NodeId| graph.is_output(id.value(0)) || pinned.contains(graph.name_of(id.value(0)));
            let first = same.iter().copied().find(kept).unwrap_or(same[0]);
            let fits = |id: NodeId| match (graph.type_of(id.value(0)), graph.type_of(first.value(0))) {
                (Some(a), Some(b)) => Type::compatible(a, b),
                _ => true,
            };
            pairs.extend(same.iter().copied().filter(|id| *id != first && !kept(id) && fits(*id)).map(|id| (id, first)));
        }
    }
    pairs.sort();
    pairs
}
