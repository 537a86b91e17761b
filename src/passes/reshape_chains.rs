//! `reshape-chains`
//!
//! *What*: Reshape, Flatten, Squeeze and Unsqueeze one after another become one of them, or none where the last gives the first
//! dims back.
//! *Why*: the elements stay where they are; only the last dims count.
//! *Before*:
//! ```text
//! graph g(x: float32[n,2,3]) -> (y, z, w) {
//!   param one: int64[1] = [1]
//!   param two: int64[1] = [2]
//!   param six: int64[2] = [-1, 6]
//!   a = Reshape(x, six)
//!   b = Unsqueeze(a, one)
//!   y = Neg(b)
//!   c = Unsqueeze(x, one)
//!   d = Squeeze(c, one)
//!   z = Neg(d)
//!   e = Unsqueeze(x, one)
//!   f = Unsqueeze(e, two)
//!   w = Neg(f)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,2,3]) -> (y, z, w) {
//!   param one: int64[1] = [1]
//!   param two: int64[1] = [2]
//!   param six: int64[2] = [-1, 6]
//!   param b_shape: int64[3] = [-1, 1, 6]
//!   param f_axes: int64[2] = [1, 2]
//!   a = Reshape(x, six)
//!   b = Reshape(x, b_shape)
//!   y = Neg(b)
//!   c = Unsqueeze(x, one)
//!   z = Neg(x)
//!   e = Unsqueeze(x, one)
//!   f = Unsqueeze(x, f_axes)
//!   w = Neg(f)
//! }
//! ```
//! *Needs*: dims of which all but one are numbers, or the first and last the same.
//! *Leaves alone*: a first one that others read too, unless that costs no node more. Nodes that nobody reads go by `dead-code`.

use super::rules::{self, Batch};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Dim, Model, NodeId, OpName, ValueId};
use crate::ops::util;
use crate::tensor::Tensor;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct ReshapeChains;

impl Pass for ReshapeChains {
    fn name(&self) -> &'static str {
        "reshape-chains"
    }

    fn source(&self) -> &'static str {
        include_str!("reshape_chains.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), |b, id| {
            let middle = reshaped(b, id)?;
            let x = reshaped(b, middle.node)?;
            cancel(b, id, x).or_else(|| rewire(b, id, middle, x)).or_else(|| unsqueeze(b, id, middle, x)).or_else(|| one(b, id, middle, x))
        })
    }
}

/// The operand of a node that only gives other dims to it.
fn reshaped(b: &Batch, id: NodeId) -> Option<ValueId> {
    matches!(b.op(id)?, "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze").then(|| b.node(id).input(0)).flatten()
}

fn cancel(b: &mut Batch, id: NodeId, x: ValueId) -> Option<()> {
    b.same_shape(x, id.value(0)).then_some(())?;
    b.forward(id, x)
}

/// A Reshape to a constant target reads the first operand.
fn rewire(b: &mut Batch, id: NodeId, middle: ValueId, x: ValueId) -> Option<()> {
    if !b.is(id, "Reshape") {
        return None;
    }
    let s = b.node(id).input(1)?;
    let mut target = b.ints(s)?;
    if b.attrs(id).int_or("allowzero", 0).ok()? == 0 && target.contains(&0) {
        // A 0 copies a dim of what is between.
        let between = b.shape(middle)?.to_vec();
        let first = b.shape(x)?.to_vec();
        for (i, t) in target.iter_mut().enumerate().filter(|(_, t)| **t == 0) {
            match between.get(i)? {
                Dim::Known(n) if *n > 0 => *t = i64::try_from(*n).ok()?,
                dim if *dim != Dim::Unknown && first.get(i) == Some(dim) => {}
                _ => return None,
            }
        }
        let name = format!("{}_shape", b.graph().name_of(id.value(0)));
        let changed = b.ints(s)? != target;
        b.claim(&[id], [x])?;
        if changed {
            let param = b.edit.add_param(&name, Tensor::vector(target));
            b.edit.set_operand(id, 1, Some(param));
        }
    } else {
        b.claim(&[id], [x])?;
    }
    b.edit.set_operand(id, 0, Some(x));
    Some(())
}

/// The axes that an Unsqueeze adds, as positions in its result.
fn added(b: &Batch, id: NodeId) -> Option<Vec<usize>> {
    let rank = b.rank(id.value(0))?;
    util::axes(&b.input_or_attr(id, 1, "axes")?, rank).ok()
}

/// Two Unsqueezes are one with both lists of axes.
fn unsqueeze(b: &mut Batch, id: NodeId, middle: ValueId, x: ValueId) -> Option<()> {
    if !b.is(id, "Unsqueeze") || !b.is(middle.node, "Unsqueeze") || !b.is_sole(middle) {
        return None;
    }
    let (outer, inner) = (added(b, id)?, added(b, middle.node)?);
    let kept: Vec<usize> = (0..b.rank(id.value(0))?).filter(|i| !outer.contains(i)).collect();
    let mut axes: Vec<i64> = outer.iter().map(|&a| a as i64).collect();
    for i in inner {
        axes.push(*kept.get(i)? as i64);
    }
    axes.sort_unstable();
    let name = format!("{}_axes", b.graph().name_of(id.value(0)));
    b.claim(&[id], [x])?;
    b.edit.set_operand(id, 0, Some(x));
    if b.opset >= 13 {
        let param = b.edit.add_param(&name, Tensor::vector(axes));
        b.edit.set_operand(id, 1, Some(param));
    } else {
        b.edit.set_attr(id, "axes", axes);
    }
    Some(())
}

/// Two become a Reshape to dims of which at most one is no number.
fn one(b: &mut Batch, id: NodeId, middle: ValueId, x: ValueId) -> Option<()> {
    if b.opset < 5 || !b.is_sole(middle) {
        return None;
    }
    let mut target = Vec::new();
    for dim in b.shape(id.value(0))? {
        target.push(dim.known().map_or(Some(-1), |n| i64::try_from(n).ok())?);
    }
    if target.iter().filter(|&&t| t == -1).count() > 1 || target.contains(&0) {
        return None;
    }
    let name = format!("{}_shape", b.graph().name_of(id.value(0)));
    b.claim(&[id], [x])?;
    let param = b.edit.add_param(&name, Tensor::vector(target));
    b.replace_node(id, OpName::onnx("Reshape"), &[Some(x), Some(param)], Attrs::new());
    Some(())
}
