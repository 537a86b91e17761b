//! `upgrade-opset`
//!
//! *What*: writes the model in a later version of ONNX's ops: attributes that became inputs, defaults that changed, ops that
//! were replaced.
//! *Why*: fused ops and other tools need one; ONNX Runtime's newest kernels do too.
//! *Before*:
//! ```text
//! model ir_version=6 opset=[""=11]
//! graph g(x: float32[n,2,3]) -> (y, z) {
//!   a = Unsqueeze(x) {axes=[0]}
//!   b = ReduceSum(a) {axes=[0], keepdims=0}
//!   y = Softmax(b) {axis=2}
//!   z = Clip(x, _, _)
//! }
//! ```
//! *After*:
//! ```text
//! model ir_version=7 opset=[""=13]
//! graph g(x: float32[n,2,3]) -> (y, z) {
//!   a_axes_1 = Constant() {value=int64[1] [0]} # a_axes
//!   a = Unsqueeze(x, a_axes_1)
//!   b_axes_1 = Constant() {value=int64[1] [0]} # b_axes
//!   b = ReduceSum(a, b_axes_1) {keepdims=0}
//!   y = Softmax(b) {axis=-1}
//!   z = Clip(x, _, _)
//! }
//! ```
//! *Needs*: the version (`graphtool convert --opset N`).
//! *Leaves alone*: other domains. A node whose meaning cannot be kept is named and nothing is changed; so is an older version.

mod adapt;

use super::{Changed, Pass, PassError, Report, infer_shapes};
use crate::ir::{Graph, Model, Names, OpName, OpsetImport, normal_domain, opset_version};
use crate::ops::{self, Fact};
use std::collections::{BTreeSet, HashMap};

/// The pass, with the version to reach.
#[derive(Debug, Clone, Copy)]
pub struct UpgradeOpset {
    /// The version of ONNX's own ops.
    pub to: i64,
}

/// The format version in which a version of ONNX's ops came out.
const IR_VERSIONS: [(i64, i64); 11] = [(1, 3), (9, 4), (10, 5), (11, 6), (12, 7), (15, 8), (19, 9), (21, 10), (23, 11), (24, 12), (25, 13)];

impl Pass for UpgradeOpset {
    fn name(&self) -> &'static str {
        "upgrade-opset"
    }

    fn source(&self) -> &'static str {
        include_str!("mod.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let latest = ops::all().iter().filter(|d| d.domain.is_empty()).flat_map(|d| d.versions).max().copied().unwrap_or(1);
        let from = model.opset("");
        if self.to > latest {
            return Err(PassError::Call(format!("opset {} is not known; the latest is {latest}", self.to)));
        }
        let own = |f: &crate::ir::Function| opset_version(&f.opset_imports, "");
        let highest = model.functions.iter().map(own).max().unwrap_or(0).max(from);
        if self.to < highest {
            return Err(PassError::Call(format!("the model is of opset {highest}; only a later one can be written, not {}", self.to)));
        }
        if from == self.to && model.functions.iter().all(|f| own(f) == 0 || own(f) == self.to) {
            return Ok(Changed::No);
        }
        // What is refused leaves the model as it was.
        let mut new = model.clone();
        let mut names = new.names();
        let functions: BTreeSet<OpName> = new.functions.iter().map(crate::ir::Function::op).collect();
        let mut facts = infer_shapes::facts(&new).into_iter();
        let to = self.to;
        if from > 0 {
            new.visit_mut(&mut |graph, _| upgrade(graph, &facts.next().unwrap_or_default(), &functions, (from, to), &mut names))?;
        }
        let versions: Vec<i64> = new.functions.iter().map(own).collect();
        for (f, from) in versions.into_iter().enumerate() {
            let from = if from == 0 { new.opset("") } else { from };
            // One function at a time, with its own version.
            let mut alone = Model { functions: vec![std::mem::take(&mut new.functions[f])], ..Model::default() };
            alone.visit_functions_mut(&mut |graph, _| upgrade(graph, &HashMap::new(), &functions, (from, to), &mut names))?;
            new.functions[f] = alone.functions.remove(0);
            set_version(&mut new.functions[f].opset_imports, to);
        }
        set_version(&mut new.opset_imports, to);
        let needed = IR_VERSIONS.iter().rev().find(|(opset, _)| *opset <= to).map_or(3, |r| r.1);
        new.ir_version = new.ir_version.max(needed);
        *model = new;
        Ok(Changed::Yes)
    }
}

fn set_version(imports: &mut [OpsetImport], to: i64) {
    imports.iter_mut().filter(|o| normal_domain(&o.domain).is_empty()).for_each(|o| o.version = to);
}

type Span = (i64, i64);

fn upgrade(
    graph: &mut Graph,
    facts: &HashMap<String, Fact>,
    functions: &BTreeSet<OpName>,
    span: Span,
    names: &mut Names,
) -> Result<(), PassError> {
    let nodes = graph.ops().to_vec();
    let mut edit = graph.edit("upgrade-opset");
    for id in nodes {
        let node = edit.graph().node(id).clone();
        let Some(op) = node.op().filter(|op| op.domain.is_empty() && !functions.contains(op)).cloned() else { continue };
        let refuse =
            |why: String| PassError::Call(format!("node \"{}\" ({op}) cannot be written in opset {}: {why}", node.label(), span.1));
        if ops::find(&op).is_none() {
            return Err(refuse("this build does not know the op".into()));
        }
        adapt::node(&mut edit, id, facts, span).map_err(refuse)?;
    }
    if !edit.is_empty() {
        edit.commit(names)?;
    }
    Ok(())
}
