//! `constant-branches`
//!
//! *What*: an If whose condition is a constant becomes the branch that is taken.
//! *Why*: exporters guard a Squeeze by a test of dims that are known; the other branch never runs.
//! *Before*:
//! ```text
//! graph g(x: float32[n,1]) -> (y) {
//!   param yes: bool[] = [true]
//!   param one: int64[1] = [1]
//!   y = If(yes) {then_branch=graph t() -> (u) {
//!     u = Squeeze(x, one)
//!   }, else_branch=graph e() -> (v) {
//!     v = Identity(x)
//!   }}
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,1]) -> (y) {
//!   param yes: bool[] = [true]
//!   param one: int64[1] = [1]
//!   y = Squeeze(x, one)
//! }
//! ```
//! *Needs*: a condition that is an initializer, or that shape inference computes.
//! *Leaves alone*: a branch that gives back the same value twice, or one of the graph around it as a graph output.

use super::rules::{self, Batch};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Kind, Model, NodeId};
use std::collections::HashSet;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct ConstantBranches;

impl Pass for ConstantBranches {
    fn name(&self) -> &'static str {
        "constant-branches"
    }

    fn source(&self) -> &'static str {
        include_str!("constant_branches.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let names = std::cell::RefCell::new(model.names());
        rules::apply(model, self.name(), |b, id| take(b, id, &mut names.borrow_mut()))
    }
}

fn take(b: &mut Batch, id: NodeId, names: &mut crate::ir::Names) -> Option<()> {
    if !b.is(id, "If") || !b.edit.is_empty() {
        return None;
    }
    let node = b.node(id);
    let condition = b.constant(node.input(0)?)?.item::<bool>().ok()?;
    let body = node.attrs.graph(if condition { "then_branch" } else { "else_branch" }).ok()??.clone();
    let count = node.outputs.len();
    if !body.inputs().is_empty() || body.outputs().len() != count {
        return None;
    }
    let mut seen = HashSet::new();
    for (slot, o) in body.outputs().iter().enumerate() {
        let outside = matches!(body.node(o.value.node).kind, Kind::Capture);
        if !seen.insert(o.value) || (outside && b.graph().is_output(id.value(slot as u32))) {
            return None;
        }
    }
    b.claim(&[id], [])?;
    let results = b.edit.splice(body, &[], id, names).ok()?;
    for (slot, value) in results.into_iter().enumerate() {
        b.edit.replace_uses(id.value(slot as u32), value);
    }
    b.edit.remove(id);
    Some(())
}
