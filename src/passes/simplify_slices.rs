//! `simplify-slices`
//!
//! *What*: a Slice of a Slice along other axes becomes one Slice.
//! *Why*: exporters write `x[:, 1:, 2:]` as one Slice per axis; each copies.
//! *Before*:
//! ```text
//! graph g(x: float32[n,8,8]) -> (y) {
//!   param one: int64[1] = [1]
//!   param two: int64[1] = [2]
//!   param end: int64[1] = [7]
//!   a = Slice(x, one, end, one)
//!   b = Slice(a, two, end, two)
//!   y = Neg(b)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,8,8]) -> (y) {
//!   param one: int64[1] = [1]
//!   param two: int64[1] = [2]
//!   param end: int64[1] = [7]
//!   param b_starts: int64[2] = [1, 2]
//!   param b_ends: int64[2] = [7, 7]
//!   param b_axes: int64[2] = [1, 2]
//!   param b_steps: int64[2] = [1, 1]
//!   a = Slice(x, one, end, one)
//!   b = Slice(x, b_starts, b_ends, b_axes, b_steps)
//!   y = Neg(b)
//! }
//! ```
//! *Needs*: starts, ends, axes and steps that are constants; the rank, where an axis is counted from the end.
//! *Leaves alone*: slices along the same axis, a first slice that others read, versions before 10.

use super::rules::{self, Batch};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Model, NodeId};
use crate::ops::util;
use crate::tensor::Tensor;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct SimplifySlices;

impl Pass for SimplifySlices {
    fn name(&self) -> &'static str {
        "simplify-slices"
    }

    fn source(&self) -> &'static str {
        include_str!("simplify_slices.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), merge)
    }
}

/// What a Slice with constant operands cuts: start, end, axis and step of each.
pub(super) fn cuts(b: &Batch, id: NodeId) -> Option<Vec<[i64; 4]>> {
    if !b.is(id, "Slice") || b.opset < 10 {
        return None;
    }
    let node = b.node(id);
    let (starts, ends) = (b.ints(node.input(1)?)?, b.ints(node.input(2)?)?);
    let axes = match node.input(3) {
        Some(v) => b.ints(v)?,
        None => (0..starts.len() as i64).collect(),
    };
    let axes = match b.rank(node.input(0)?) {
        Some(rank) => axes.iter().map(|&a| util::axis(a, rank).ok().map(|a| a as i64)).collect::<Option<Vec<_>>>()?,
        None => axes.iter().all(|&a| a >= 0).then_some(axes)?,
    };
    let steps = match node.input(4) {
        Some(v) => b.ints(v)?,
        None => vec![1; starts.len()],
    };
    if [ends.len(), axes.len(), steps.len()].iter().any(|&n| n != starts.len()) {
        return None;
    }
    Some((0..starts.len()).map(|i| [starts[i], ends[i], axes[i], steps[i]]).collect())
}

fn merge(b: &mut Batch, id: NodeId) -> Option<()> {
    let outer = cuts(b, id)?;
    let middle = b.node(id).input(0)?;
    let mut all = cuts(b, middle.node)?;
    if !b.is_sole(middle) || outer.iter().any(|o| all.iter().any(|i| i[2] == o[2])) {
        return None;
    }
    all.extend(outer);
    let x = b.node(middle.node).input(0)?;
    let name = b.graph().name_of(id.value(0)).to_owned();
    b.claim(&[id], [x])?;
    b.edit.set_operand(id, 0, Some(x));
    for (i, what) in ["starts", "ends", "axes", "steps"].into_iter().enumerate() {
        let param = b.edit.add_param(&format!("{name}_{what}"), Tensor::vector(all.iter().map(|c| c[i]).collect::<Vec<i64>>()));
        b.edit.set_operand(id, i + 1, Some(param));
    }
    Some(())
}
