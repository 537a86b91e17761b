//! `fuse-skip-layer-normalization`
//!
//! *What*: a LayerNormalization of a sum of two values of the same dims becomes SkipLayerNormalization, which gives the sum back
//! too where others read it; a bias that was added first is taken in.
//! *Why*: each block of a transformer ends so; the sum need not be written and read again.
//! *Before*:
//! ```text
//! graph g(x: float32[n,3,2], skip: float32[n,3,2]) -> (y, s) {
//!   param bias: float32[2] = [0.5, 0.25]
//!   param gamma: float32[2] = [1.0, 2.0]
//!   param beta: float32[2] = [0.0, 1.0]
//!   a = Add(x, bias)
//!   t = Add(a, skip)
//!   y = LayerNormalization(t, gamma, beta) {epsilon=0.001}
//!   s = Neg(t)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,3,2], skip: float32[n,3,2]) -> (y, s) {
//!   param bias: float32[2] = [0.5, 0.25]
//!   param gamma: float32[2] = [1.0, 2.0]
//!   param beta: float32[2] = [0.0, 1.0]
//!   y, _, _, t = com.microsoft::SkipLayerNormalization(x, skip, gamma, beta, bias) {epsilon=0.001}
//!   s = Neg(t)
//! }
//! ```
//! *Needs*: float32, rank 3, constant scale and bias of the last axis.
//! *Leaves alone*: sums that broadcast, normalizations over more axes, those whose mean is read.

use super::rules::{self, Batch, microsoft};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Model, NodeId, Output, ValueId};
use crate::tensor::DType;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct FuseSkipLayerNormalization;

impl Pass for FuseSkipLayerNormalization {
    fn name(&self) -> &'static str {
        "fuse-skip-layer-normalization"
    }

    fn source(&self) -> &'static str {
        include_str!("fuse_skip_layer_normalization.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), fuse)
    }
}

/// A value as a sum with a constant vector of the last axis: the other operand and the vector.
fn biased(b: &Batch, v: ValueId, width: usize) -> Option<(NodeId, ValueId, ValueId)> {
    let add = b.by(v, "Add").filter(|_| b.is_sole(v))?;
    let (p, q) = (b.node(add).input(0)?, b.node(add).input(1)?);
    let is_bias = |c: ValueId, x: ValueId| b.constant(c).is_some_and(|t| **t.shape() == [width]) && b.same_shape(x, v);
    if is_bias(q, p) {
        return Some((add, p, q));
    }
    is_bias(p, q).then_some((add, q, p))
}

fn fuse(b: &mut Batch, id: NodeId) -> Option<()> {
    if !b.is(id, "LayerNormalization") || b.node(id).outputs.len() != 1 {
        return None;
    }
    let sum = b.node(id).input(0)?;
    let add = b.by(sum, "Add")?;
    let (mut x, mut skip) = (b.node(add).input(0)?, b.node(add).input(1)?);
    let (gamma, beta) = (b.node(id).input(1)?, b.node(id).input(2));
    let axis = b.attrs(id).int_or("axis", -1).ok()?;
    let width = b.shape(sum)?.last()?.known()?;
    let vector = |v: ValueId| b.constant(v).is_some_and(|t| **t.shape() == [width] && t.dtype() == DType::F32);
    if b.rank(sum)? != 3 || ![-1, 2].contains(&axis) || b.dtype(sum)? != DType::F32 || !vector(gamma) || !beta.is_none_or(vector) {
        return None;
    }
    if !b.same_shape(x, sum) || !b.same_shape(skip, sum) || b.graph().uses(sum).iter().any(|u| u.operand.is_none()) {
        return None;
    }
    let mut gone = vec![id, add];
    let mut inputs = vec![Some(x), Some(skip), Some(gamma)];
    inputs.extend(beta.map(Some));
    if let Some((bias, of, by)) = biased(b, x, width) {
        x = of;
        gone.push(bias);
        inputs.resize(4, None);
        inputs.push(Some(by));
    } else if let Some((bias, of, by)) = biased(b, skip, width) {
        (x, skip) = (of, x);
        gone.push(bias);
        inputs.resize(4, None);
        inputs.push(Some(by));
    }
    inputs[0] = Some(x);
    inputs[1] = Some(skip);
    b.claim(&gone, inputs.iter().flatten().copied())?;
    let epsilon = b.attrs(id).float_or("epsilon", 1e-5).ok()?;
    let others = b.graph().is_output(sum) || b.graph().uses(sum).iter().any(|u| u.node != id);
    let output = |v: ValueId| Output { info: None, ..b.graph().output(v).clone() };
    let mut outputs = vec![output(id.value(0))];
    if others {
        outputs.extend([Output::default(), Output::default(), output(sum)]);
    }
    let name = b.node(id).name.clone();
    b.domain();
    let attrs = Attrs::new().with("epsilon", epsilon);
    // Readers of the sum may stand before the normalization.
    let new = b.edit.add(microsoft("SkipLayerNormalization"), &name, inputs, outputs, attrs, Some(add));
    b.edit.replace_uses(id.value(0), new.value(0));
    if others {
        b.edit.replace_uses(sum, new.value(3));
    }
    gone.into_iter().for_each(|n| b.edit.remove(n));
    Some(())
}
