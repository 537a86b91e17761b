//! `fuse-activations`
//!
//! *What*: a Gemm and the Relu, LeakyRelu, Sigmoid or Tanh behind it become FusedGemm.
//! *Why*: the activation is applied while the product is still near at hand.
//! *Before*:
//! ```text
//! graph g(x: float32[n,2], w: float32[2,2]) -> (y) {
//!   param c: float32[2] = [0.5, 1.0]
//!   t = Gemm(x, w, c) {transB=1}
//!   y = Relu(t)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,2], w: float32[2,2]) -> (y) {
//!   param c: float32[2] = [0.5, 1.0]
//!   y = com.microsoft::FusedGemm(x, w, c) {transB=1, activation="Relu"}
//! }
//! ```
//! *Needs*: float32; ONNX Runtime's ops (the model imports `com.microsoft`).
//! *Leaves alone*: a Gemm whose result others read.

use super::rules::{self, Batch, microsoft};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Model, NodeId, ValueId};
use crate::tensor::DType;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct FuseActivations;

impl Pass for FuseActivations {
    fn name(&self) -> &'static str {
        "fuse-activations"
    }

    fn source(&self) -> &'static str {
        include_str!("fuse_activations.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), fuse)
    }
}

fn fuse(b: &mut Batch, id: NodeId) -> Option<()> {
    if !b.is(id, "Gemm") || b.opset < 7 || b.dtype(b.node(id).input(0)?)? != DType::F32 {
        return None;
    }
    let reader = b.sole(id.value(0))?;
    let activation = b.op(reader).filter(|op| matches!(*op, "LeakyRelu" | "Relu" | "Sigmoid" | "Tanh"))?.to_owned();
    let mut attrs = b.attrs(id).clone().with("activation", activation.as_str());
    if activation == "LeakyRelu" {
        attrs = attrs.with("activation_alpha", b.attrs(reader).float_or("alpha", 0.01).ok()?);
    }
    let inputs: Vec<Option<ValueId>> = b.node(id).inputs().to_vec();
    b.claim(&[id, reader], inputs.iter().flatten().copied())?;
    b.replace_node(reader, microsoft("FusedGemm"), &inputs, attrs);
    b.edit.remove(id);
    Some(())
}
