//! `fold-shapes`
//!
//! *What*: dims that shape inference knows become constants: what Shape and the arithmetic behind it compute, and the target of a
//! Reshape, with 0 for a dim that is kept and -1 for the one that follows.
//! *Why*: exporters take a shape apart and put it together again for each Reshape; then nothing is left to compute, and other
//! passes see the dims.
//! *Before*:
//! ```text
//! graph g(x: float32[n,6]) -> (y, z) {
//!   param zero: int64[1] = [0]
//!   param one: int64[1] = [1]
//!   param rest: int64[2] = [2, 3]
//!   s = Shape(x)
//!   n = Gather(s, zero)
//!   six = Gather(s, one)
//!   t = Concat(n, rest) {axis=0}
//!   y = Reshape(x, t)
//!   z = Expand(one, six)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,6]) -> (y, z) {
//!   param zero: int64[1] = [0]
//!   param one: int64[1] = [1]
//!   param rest: int64[2] = [2, 3]
//!   param six: int64[1] = [6]
//!   param y_shape: int64[3] = [0, 2, 3]
//!   s = Shape(x)
//!   n = Gather(s, zero)
//!   t = Concat(n, rest) {axis=0}
//!   y = Reshape(x, y_shape)
//!   z = Expand(one, six)
//! }
//! ```
//! *Needs*: dims that the interface states or that follow from it. A symbol stands for one number in the whole graph.
//! *Leaves alone*: a Reshape with two dims that are not known, or with one beside dims that may be 0; graph outputs. What is no
//! longer read goes by `dead-code`.

use super::rules::{self, Batch};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Dim, Model, NodeId};
use crate::ops;
use crate::tensor::{DType, Tensor, cast};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct FoldShapes;

impl Pass for FoldShapes {
    fn name(&self) -> &'static str {
        "fold-shapes"
    }

    fn source(&self) -> &'static str {
        include_str!("fold_shapes.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), |b, id| known_dims(b, id).or_else(|| target(b, id)))
    }
}

/// Puts a constant in the place of an integer vector or scalar whose elements are known.
fn known_dims(b: &mut Batch, id: NodeId) -> Option<()> {
    let (node, v) = (b.node(id), id.value(0));
    let op = node.op()?;
    if node.outputs.len() != 1 || op.is("Constant") || b.graph().is_output(v) || !ops::find(op)?.pure {
        return None;
    }
    let fact = b.fact(v)?;
    let ty = fact.ty.as_ref()?;
    let dtype = ty.dtype().filter(|d| matches!(d, DType::I32 | DType::I64))?;
    let values: Vec<i64> = fact.dims.as_ref()?.iter().map(|d| d.known().and_then(|n| i64::try_from(n).ok())).collect::<Option<_>>()?;
    let tensor = match ty.shape()? {
        [] if values.len() == 1 => Tensor::scalar(values[0]),
        [n] if n.known() == Some(values.len()) => Tensor::vector(values),
        _ => return None,
    };
    let tensor = cast(&tensor, dtype).ok()?;
    let name = b.graph().name_of(v).to_owned();
    b.claim(&[id], [])?;
    let param = b.edit.add_param(&name, tensor);
    b.edit.replace_uses(v, param);
    b.edit.remove(id);
    Some(())
}

/// Gives a Reshape a constant target.
fn target(b: &mut Batch, id: NodeId) -> Option<()> {
    if !b.is(id, "Reshape") {
        return None;
    }
    let (x, s) = (b.node(id).input(0)?, b.node(id).input(1)?);
    if b.constant(s).is_some() {
        return None;
    }
    let copies = b.attrs(id).int_or("allowzero", 0).ok()? == 0;
    let from = b.shape(x)?;
    let mut target = Vec::new();
    for (i, dim) in b.fact(s)?.dims.as_ref()?.iter().enumerate() {
        target.push(match dim {
            Dim::Known(n) => i64::try_from(*n).ok()?,
            Dim::Symbol(_) if copies && from.get(i) == Some(dim) => 0,
            _ => -1,
        });
    }
    match target.iter().filter(|&&t| t == -1).count() {
        0 => {}
        1 if !target.contains(&0) => {}
        _ => return None,
    }
    let name = format!("{}_shape", b.graph().name_of(id.value(0)));
    b.claim(&[id], [x])?;
    let param = b.edit.add_param(&name, Tensor::vector(target));
    b.edit.set_operand(id, 1, Some(param));
    Some(())
}
