//! `split-slices`
//!
//! *What*: Slices that cut different parts out of one value, along one axis, become one Split.
//! *Why*: exporters cut each column of a table of features out by itself; one node does it in one go.
//! *Before*:
//! ```text
//! graph g(x: float32[n,4]) -> (y, z) {
//!   param zero: int64[1] = [0]
//!   param one: int64[1] = [1]
//!   param three: int64[1] = [3]
//!   y = Slice(x, zero, one, one)
//!   z = Slice(x, one, three, one)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,4]) -> (y, z) {
//!   param zero: int64[1] = [0]
//!   param one: int64[1] = [1]
//!   param three: int64[1] = [3]
//!   param x_split: int64[3] = [1, 2, 1]
//!   y, z, x_rest_2 = Split(x, x_split) {axis=1} # x_split_1
//! }
//! ```
//! *Needs*: constant bounds, and the length of the axis.
//! *Leaves alone*: parts that meet or are empty, steps other than 1. A part that nobody cuts out becomes an output that nobody reads.

use super::rules::{self, Batch};
use super::simplify_slices::cuts;
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Model, NodeId, OpName, Output};
use crate::tensor::Tensor;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct SplitSlices;

impl Pass for SplitSlices {
    fn name(&self) -> &'static str {
        "split-slices"
    }

    fn source(&self) -> &'static str {
        include_str!("split_slices.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), split)
    }
}

/// The axis along which a Slice cuts, and the part.
fn part(b: &Batch, id: NodeId) -> Option<(usize, usize, usize)> {
    let [[start, end, axis, 1]] = cuts(b, id)?[..] else { return None };
    let axis = usize::try_from(axis).ok()?;
    let n = b.shape(b.node(id).input(0)?)?.get(axis)?.known()? as i64;
    let clamp = |i: i64| if i < 0 { i.saturating_add(n).max(0) } else { i.min(n) } as usize;
    let (start, end) = (clamp(start), clamp(end));
    (start < end).then_some((axis, start, end))
}

fn split(b: &mut Batch, id: NodeId) -> Option<()> {
    let (axis, ..) = part(b, id)?;
    let x = b.node(id).input(0)?;
    let n = b.shape(x)?[axis].known()?;
    let mut parts: Vec<(usize, usize, NodeId)> = Vec::new();
    for u in b.graph().uses(x) {
        if u.operand == Some(0)
            && let Some((a, start, end)) = part(b, u.node)
            && a == axis
        {
            parts.push((start, end, u.node));
        }
    }
    parts.sort_unstable();
    if parts.len() < 2 || parts.windows(2).any(|w| w[0].1 > w[1].0) {
        return None;
    }
    let slices: Vec<NodeId> = parts.iter().map(|p| p.2).collect();
    let first = *b.graph().ops().iter().find(|o| slices.contains(o))?;
    let name = b.graph().name_of(x).to_owned();
    let (mut sizes, mut outputs, mut slots, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let gap = |k: usize| Output::new(format!("{name}_rest_{k}"), None);
    for (start, end, slice) in parts {
        if start > at {
            sizes.push((start - at) as i64);
            outputs.push(gap(outputs.len()));
        }
        slots.push((slice, outputs.len() as u32));
        outputs.push(Output { info: None, ..b.node(slice).outputs[0].clone() });
        sizes.push((end - start) as i64);
        at = end;
    }
    if at < n {
        sizes.push((n - at) as i64);
        outputs.push(gap(outputs.len()));
    }
    b.claim(&slices, [x])?;
    let (mut inputs, mut attrs) = (vec![Some(x)], Attrs::new().with("axis", axis as i64));
    if b.opset >= 13 {
        inputs.push(Some(b.edit.add_param(&format!("{name}_split"), Tensor::vector(sizes))));
    } else {
        attrs = attrs.with("split", sizes);
    }
    let new = b.edit.add(OpName::onnx("Split"), &format!("{name}_split"), inputs, outputs, attrs, Some(first));
    for (slice, slot) in slots {
        b.edit.replace_uses(slice.value(0), new.value(slot));
        b.edit.remove(slice);
    }
    Some(())
}
