//! `fold-constants`
//!
//! *What*: computes operators whose operands are all constants, once.
//! *Why*: exporters leave shape arithmetic and transposed weights to be computed in each run.
//! *Before*:
//! ```text
//! graph g(x: float32[2]) -> (y) {
//!   param a: float32[2] = [1.0, 2.0]
//!   param b: float32[] = [3.0]
//!   t = Mul(a, b)
//!   y = Add(x, t)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[2]) -> (y) {
//!   param a: float32[2] = [1.0, 2.0]
//!   param b: float32[] = [3.0]
//!   param t: float32[2] = [3.0, 6.0]
//!   y = Add(x, t)
//! }
//! ```
//! *Leaves alone*: operands or results above the size budget (so a table is never copied), ops with effects, graph outputs.

use super::{Changed, Pass, PassError, Report};
use crate::ir::{Graph, Model, Names, NodeId, OpsetImport, opset_version};
use crate::ops::{self, Args, OpCtx, Run};
use crate::tensor::{Tensor, Value};

/// The pass, with its size budget.
#[derive(Debug, Clone, Copy)]
pub struct FoldConstants {
    /// Bytes of all operands of a node, and of its results, above which it is left.
    pub budget: usize,
}

impl Default for FoldConstants {
    fn default() -> Self {
        Self { budget: 1 << 20 }
    }
}

impl Pass for FoldConstants {
    fn name(&self) -> &'static str {
        "fold-constants"
    }

    fn source(&self) -> &'static str {
        include_str!("fold_constants.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let mut names = model.names();
        let opsets = model.opset_imports.clone();
        let mut changed = Changed::No;
        model.visit_mut(&mut |graph, _| -> Result<(), PassError> {
            // Each commit may make further nodes constant.
            while self.fold(graph, &opsets, &mut names)? == Changed::Yes {
                changed = Changed::Yes;
            }
            Ok(())
        })?;
        Ok(changed)
    }
}

/// The constant behind a value: an initializer or a Constant node's tensor.
fn constant(graph: &Graph, v: crate::ir::ValueId) -> Option<&Tensor> {
    let node = graph.node(v.node);
    match node.op() {
        None => graph.constant(v).map(|c| &c.tensor),
        Some(op) if op.is("Constant") => node.attrs.tensor("value").ok().flatten(),
        Some(_) => None,
    }
}

impl FoldConstants {
    fn fold(&self, graph: &mut Graph, opsets: &[OpsetImport], names: &mut Names) -> Result<Changed, PassError> {
        let found: Vec<(NodeId, Vec<Tensor>)> =
            graph.ops().iter().filter_map(|&id| Some((id, self.evaluate(graph, id, opsets)?))).collect();
        if found.is_empty() {
            return Ok(Changed::No);
        }
        let mut edit = graph.edit("fold-constants");
        for (id, tensors) in found {
            let outputs: Vec<String> = edit.graph().node(id).outputs.iter().map(|o| o.name.clone()).collect();
            for (slot, (name, tensor)) in outputs.iter().zip(tensors).enumerate().filter(|(_, (n, _))| !n.is_empty()) {
                let new = edit.add_param(name, tensor);
                edit.replace_uses(id.value(slot as u32), new);
            }
            edit.remove(id);
        }
        edit.commit(names)?;
        Ok(Changed::Yes)
    }

    fn evaluate(&self, graph: &Graph, id: NodeId, opsets: &[OpsetImport]) -> Option<Vec<Tensor>> {
        let node = graph.node(id);
        let op = node.op()?;
        let def = ops::find(op).filter(|d| d.pure)?;
        let Run::Kernel(build) = def.run else { return None };
        if op.is("Constant") || node.inputs().is_empty() || (0..node.outputs.len()).any(|s| graph.is_output(id.value(s as u32))) {
            return None;
        }
        let mut operands = Vec::with_capacity(node.inputs().len());
        for v in node.inputs() {
            operands.push(match v {
                Some(v) => Some(constant(graph, *v)?),
                None => None,
            });
        }
        let size = |t: &Tensor| t.bytes().map_or(usize::MAX, <[u8]>::len);
        if operands.iter().flatten().map(|t| size(t)).fold(0, usize::saturating_add) > self.budget {
            return None;
        }
        let wanted: Vec<bool> = node.outputs.iter().map(|o| !o.name.is_empty()).collect();
        let version = opset_version(opsets, &op.domain);
        let cx = OpCtx { op, attrs: &node.attrs, version, inputs: operands.len(), outputs: &wanted, constants: &operands };
        let args = Args::new(operands.iter().map(|t| t.map(|t| Value::Tensor(t.clone().aligned()))));
        // A node that fails is left, and fails when it is run, where the message can say more.
        let values = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| build(&cx).and_then(|k| k(args)))).ok()?.ok()?;
        let tensors = values.into_iter().map(Value::into_tensor).collect::<Option<Vec<_>>>()?;
        (tensors.len() >= node.outputs.len() && tensors.iter().map(size).fold(0, usize::saturating_add) <= self.budget).then_some(tensors)
    }
}
