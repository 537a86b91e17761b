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
//! *Leaves alone*: operands or results above the size budget (so a table is never copied), ops with effects, graph outputs; in
//! `optimize`, what would stand as a copy beside a weight that others read too.

use super::{Changed, Pass, PassError, Report};
use crate::ir::{Graph, Model, Names, NodeId, OpsetImport, opset_version};
use crate::ops::{self, Args, OpCtx, Run};
use crate::tensor::{Tensor, Value};

/// The pass, with its size budget.
#[derive(Debug, Clone, Copy)]
pub struct FoldConstants {
    /// Bytes of all operands of a node, and of its results, above which it is left.
    pub budget: usize,
    /// Whether a large result may stand beside a large operand that others read too: the file grows by it.
    pub copies: bool,
}

impl Default for FoldConstants {
    fn default() -> Self {
        Self { budget: 1 << 20, copies: true }
    }
}

/// Bytes up to which a copy does not count.
const SMALL: usize = 4096;

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
        if !self.copies && grows(graph, id, &operands, tensors.iter().map(size).max().unwrap_or(0)) {
            return None;
        }
        (tensors.len() >= node.outputs.len() && tensors.iter().map(size).fold(0, usize::saturating_add) <= self.budget).then_some(tensors)
    }
}

/// Whether a large result would stand beside what it is computed from, or is the same weight in a wider type.
fn grows(graph: &Graph, id: NodeId, operands: &[Option<&Tensor>], result: usize) -> bool {
    let node = graph.node(id);
    let large = |t: &Tensor| t.bytes().is_some_and(|b| b.len() > SMALL);
    let shared = node
        .inputs()
        .iter()
        .flatten()
        .zip(operands.iter().flatten())
        .any(|(&v, t)| large(t) && (graph.uses(v).len() > 1 || graph.is_output(v)));
    let widens = node.op().is_some_and(|op| matches!(&*op.name, "Cast" | "DequantizeLinear"));
    let given: usize = operands.iter().flatten().filter_map(|t| t.bytes()).map(<[u8]>::len).sum();
    result > SMALL && (shared || (widens && result > given + SMALL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Names, parse_model, print_graph};

    #[test]
    fn a_weight_that_others_read_is_not_copied_unless_asked() {
        let text = "graph g(i: int64[2], x: float32[2,32], W: float32[64,32]) -> (y, z) {\n  t = Transpose(W) {perm=[1, 0]}\n  y = MatMul(x, t)\n  z = Gather(W, i)\n}";
        let run = |pass: FoldConstants| {
            let mut model = parse_model(text).unwrap();
            let given = model.graph.value("W").unwrap();
            let mut edit = model.graph.edit("test");
            let table = edit.add_param("V", Tensor::new([64, 32], (0..2048).map(|i| i as f32).collect()).unwrap());
            edit.replace_uses(given, table);
            edit.commit(&mut Names::default()).unwrap();
            pass.run(&mut model, &mut Report::default()).unwrap();
            print_graph(&model.graph)
        };
        assert!(!run(FoldConstants::default()).contains("Transpose"));
        assert!(run(FoldConstants { copies: false, ..FoldConstants::default() }).contains("Transpose"));
    }
}
