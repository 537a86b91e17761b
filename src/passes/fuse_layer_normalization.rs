//! `fuse-layer-normalization`
//!
//! *What*: a layer normalization in its parts (mean, difference, variance, root, quotient, scale, bias) becomes
//! LayerNormalization.
//! *Why*: exporters for older versions write ten nodes, each of which passes over memory.
//! *Before*:
//! ```text
//! graph g(x: float32[n,4]) -> (y) {
//!   param gamma: float32[4] = [1.0, 2.0, 3.0, 4.0]
//!   param beta: float32[4] = [0.0, 0.0, 1.0, 1.0]
//!   param two: float32[] = [2.0]
//!   param eps: float32[] = [1e-5]
//!   param last: int64[1] = [-1]
//!   mean = ReduceMean(x, last)
//!   d = Sub(x, mean)
//!   square = Pow(d, two)
//!   var = ReduceMean(square, last)
//!   shifted = Add(var, eps)
//!   root = Sqrt(shifted)
//!   normal = Div(d, root)
//!   scaled = Mul(normal, gamma)
//!   y = Add(scaled, beta)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,4]) -> (y) {
//!   param gamma: float32[4] = [1.0, 2.0, 3.0, 4.0]
//!   param beta: float32[4] = [0.0, 0.0, 1.0, 1.0]
//!   param two: float32[] = [2.0]
//!   param eps: float32[] = [1e-5]
//!   param last: int64[1] = [-1]
//!   mean = ReduceMean(x, last)
//!   d = Sub(x, mean)
//!   square = Pow(d, two)
//!   var = ReduceMean(square, last)
//!   shifted = Add(var, eps)
//!   root = Sqrt(shifted)
//!   y = LayerNormalization(x, gamma, beta) {axis=-1, epsilon=1e-5}
//! }
//! ```
//! *Needs*: version 17 of ONNX's ops, where LayerNormalization begins; float32 or float64.
//! *Leaves alone*: halves, which the parts round and the op does not; a scale that is no constant of the normalized dims.

use super::rules::{self, Batch};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Model, NodeId, OpName, ValueId};
use crate::ops::util;
use crate::tensor::DType;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct FuseLayerNormalization;

impl Pass for FuseLayerNormalization {
    fn name(&self) -> &'static str {
        "fuse-layer-normalization"
    }

    fn source(&self) -> &'static str {
        include_str!("fuse_layer_normalization.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        if model.opset("") < 17 {
            return Ok(Changed::No);
        }
        rules::apply(model, self.name(), fuse)
    }
}

/// What a ReduceMean that keeps its dims reduces, and over how many of the last axes.
fn mean_of(b: &Batch, v: ValueId) -> Option<(ValueId, usize)> {
    let id = b.by(v, "ReduceMean")?;
    let x = b.node(id).input(0)?;
    if b.attrs(id).int_or("keepdims", 1).ok()? != 1 {
        return None;
    }
    let axes = b.input_or_attr(id, 1, "axes")?;
    if axes == [-1] {
        return Some((x, 1));
    }
    let rank = b.rank(x)?;
    let axes = util::axes(&axes, rank).ok()?;
    let count = axes.len();
    (count > 0 && axes.iter().copied().eq(rank - count..rank)).then_some((x, count))
}

/// The operand of which a value is the square.
fn root_of(b: &Batch, v: ValueId) -> Option<ValueId> {
    let node = b.node(v.node);
    let (p, q) = (node.input(0)?, node.input(1)?);
    match b.op(v.node)? {
        "Mul" if p == q => Some(p),
        "Pow" if b.number(q) == Some(2.0) => Some(p),
        _ => None,
    }
}

/// Whether a value is a constant whose dims are the last of those that are normalized.
fn parameter(b: &Batch, v: ValueId, axes: usize, x: ValueId) -> bool {
    let (Some(t), Some(shape)) = (b.constant(v), b.shape(x)) else { return false };
    t.rank() == axes && t.shape().iter().zip(&shape[shape.len() - axes.min(shape.len())..]).all(|(d, s)| s.known() == Some(*d))
}

fn fuse(b: &mut Batch, id: NodeId) -> Option<()> {
    if !b.is(id, "Div") {
        return None;
    }
    let (d, root) = (b.node(id).input(0)?, b.node(id).input(1)?);
    let difference = b.by(d, "Sub")?;
    let (x, mean) = (b.node(difference).input(0)?, b.node(difference).input(1)?);
    let (of, axes) = mean_of(b, mean)?;
    let shifted = b.node(b.by(root, "Sqrt")?).input(0)?;
    let (variance, epsilon) = b.with_number(b.by(shifted, "Add")?)?;
    let (square, over) = mean_of(b, variance)?;
    if of != x || over != axes || root_of(b, square)? != d || !matches!(b.dtype(x)?, DType::F32 | DType::F64) {
        return None;
    }
    let scaled = b.sole(id.value(0)).filter(|&m| b.is(m, "Mul"))?;
    let gamma = b.other(scaled, id.value(0)).filter(|&v| parameter(b, v, axes, x))?;
    let shifted = b.sole(scaled.value(0)).filter(|&a| b.is(a, "Add"));
    let beta = shifted.and_then(|a| Some((a, b.other(a, scaled.value(0)).filter(|&v| parameter(b, v, axes, x))?)));
    let mut gone = vec![id, scaled];
    gone.extend(beta.map(|(a, _)| a));
    let last = *gone.last()?;
    let beta = beta.map(|(_, v)| v);
    let inputs: Vec<Option<ValueId>> = [Some(x), Some(gamma), beta].into_iter().take(2 + usize::from(beta.is_some())).collect();
    b.claim(&gone, inputs.iter().flatten().copied())?;
    let attrs = Attrs::new().with("axis", -(axes as i64)).with("epsilon", epsilon as f32);
    b.replace_node(last, OpName::onnx("LayerNormalization"), &inputs, attrs);
    gone.iter().filter(|&&n| n != last).for_each(|&n| b.edit.remove(n));
    Some(())
}
