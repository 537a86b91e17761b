//! `fuse-batch-normalization`
//!
//! *What*: a BatchNormalization behind a Conv becomes part of the Conv's weights and bias.
//! *Why*: outside training it scales and shifts each channel by constants; the product can do so itself.
//! *Before*:
//! ```text
//! graph g(x: float32[n,1,2,2]) -> (y) {
//!   param w: float32[2,1,1,1] = [1.0, 2.0]
//!   param scale: float32[2] = [2.0, 1.0]
//!   param bias: float32[2] = [0.5, 0.0]
//!   param mean: float32[2] = [1.0, 0.0]
//!   param var: float32[2] = [4.0, 1.0]
//!   t = Conv(x, w)
//!   y = BatchNormalization(t, scale, bias, mean, var) {epsilon=0.0}
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,1,2,2]) -> (y) {
//!   param w: float32[2,1,1,1] = [1.0, 2.0]
//!   param scale: float32[2] = [2.0, 1.0]
//!   param bias: float32[2] = [0.5, 0.0]
//!   param mean: float32[2] = [1.0, 0.0]
//!   param var: float32[2] = [4.0, 1.0]
//!   param y_weight: float32[2,1,1,1] = [1.0, 2.0]
//!   param y_bias: float32[2] = [-0.5, 0.0]
//!   y = Conv(x, y_weight, y_bias)
//! }
//! ```
//! *Needs*: float32 or float64; constants, weights that no other node reads.
//! *Leaves alone*: a BatchNormalization that trains or gives its statistics back, a Conv whose result others read, versions
//! before 9.

use super::rules::{self, Batch};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Model, NodeId, OpName, ValueId};
use crate::tensor::{DType, Tensor, cast};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct FuseBatchNormalization;

impl Pass for FuseBatchNormalization {
    fn name(&self) -> &'static str {
        "fuse-batch-normalization"
    }

    fn source(&self) -> &'static str {
        include_str!("fuse_batch_normalization.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), fuse)
    }
}

/// The numbers of a constant.
fn numbers(b: &Batch, v: ValueId) -> Option<Vec<f64>> {
    cast(b.constant(v)?, DType::F64).ok()?.into_vec().ok()
}

fn fuse(b: &mut Batch, id: NodeId) -> Option<()> {
    let node = b.node(id);
    if !b.is(id, "BatchNormalization") || b.opset < 9 || node.outputs.len() != 1 || node.attrs.int_or("training_mode", 0).ok()? != 0 {
        return None;
    }
    let y = node.input(0)?;
    let conv = b.by(y, "Conv").filter(|_| b.is_sole(y))?;
    let (x, w) = (b.node(conv).input(0)?, b.node(conv).input(1)?);
    let weights = b.constant(w)?;
    let (dtype, shape) = (weights.dtype(), weights.shape().clone());
    let channels = *shape.first()?;
    if !matches!(dtype, DType::F32 | DType::F64) || !b.is_sole(w) || channels == 0 {
        return None;
    }
    let part = |i: usize| numbers(b, node.input(i)?).filter(|p| p.len() == channels);
    let (scale, shift, mean, var) = (part(1)?, part(2)?, part(3)?, part(4)?);
    let bias = match b.node(conv).input(2) {
        Some(v) => numbers(b, v).filter(|p| p.len() == channels)?,
        None => vec![0.0; channels],
    };
    let epsilon = f64::from(node.attrs.float_or("epsilon", 1e-5).ok()?);
    let factors: Vec<f64> = scale.iter().zip(&var).map(|(s, v)| s / (v + epsilon).sqrt()).collect();
    let mut new = numbers(b, w)?;
    let size = new.len() / channels;
    new.iter_mut().enumerate().for_each(|(i, x)| *x *= factors[i / size]);
    let bias: Vec<f64> = (0..channels).map(|c| (bias[c] - mean[c]) * factors[c] + shift[c]).collect();
    if new.iter().chain(&bias).any(|x| !x.is_finite()) {
        return None;
    }
    let tensor = |shape: &[usize], data: Vec<f64>| Tensor::new(shape, data).and_then(|t| cast(&t, dtype)).ok();
    let (new, bias) = (tensor(&shape, new)?, tensor(&[channels], bias)?);
    let (name, attrs) = (b.graph().name_of(id.value(0)).to_owned(), b.attrs(conv).clone());
    b.claim(&[id, conv], [x])?;
    let new = b.edit.add_param(&format!("{name}_weight"), new);
    let bias = b.edit.add_param(&format!("{name}_bias"), bias);
    b.replace_node(id, OpName::onnx("Conv"), &[Some(x), Some(new), Some(bias)], attrs);
    b.edit.remove(conv);
    Some(())
}
