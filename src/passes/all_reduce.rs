//! `all-reduce`
//!
//! *What*: a graph output is combined over all workers before it is given back.
//! *Why*: totals and means over a batch are meant over all workers' samples.
//! *Before*:
//! ```text
//! graph g(x: float32[n]) -> (total) {
//!   total = ReduceSum(x) {keepdims=0}
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n]) -> (total) {
//!   total_local = ReduceSum(x) {keepdims=0}
//!   total = graphtool::AllReduce(total_local) {op="sum"} # all_reduce_total
//! }
//! ```
//! *Needs*: the output's name and the operation (`sum`, `mean`, `max`, `min`).
//! *Leaves alone*: other readers of the value, which see the worker's own.

use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Model, OpName, Output};
use crate::ops::remote::DOMAIN;

/// The pass, with the outputs to combine.
#[derive(Debug, Clone, Default)]
pub struct AllReduce {
    /// Output name and operation.
    pub outputs: Vec<(String, String)>,
}

impl Pass for AllReduce {
    fn name(&self) -> &'static str {
        "all-reduce"
    }

    fn source(&self) -> &'static str {
        include_str!("all_reduce.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let mut names = model.names();
        let op = OpName::new(DOMAIN, "AllReduce");
        let graph = &mut model.graph;
        let mut changed = Changed::No;
        for (name, how) in &self.outputs {
            if !["sum", "mean", "max", "min"].contains(&how.as_str()) {
                return Err(PassError::Call(format!("--all-reduce {name}={how}: expected sum, mean, max or min")));
            }
            let Some(index) = graph.outputs().iter().position(|o| graph.name_of(o.value) == name) else {
                let known: Vec<&str> = graph.outputs().iter().map(|o| graph.name_of(o.value)).collect();
                return Err(PassError::Call(format!("--all-reduce {name}: no such output; there are {}", known.join(", "))));
            };
            let value = graph.outputs()[index].value;
            if graph.node(value.node).op() == Some(&op) {
                continue;
            }
            let ty = graph.outputs()[index].ty.clone();
            let mut edit = graph.edit("all-reduce");
            let attrs = Attrs::new().with("op", how.as_str());
            let new =
                edit.add(op.clone(), &format!("all_reduce_{name}"), [Some(value)], [Output::new(format!("{name}_all"), ty)], attrs, None);
            edit.set_output(index, new.value(0));
            edit.commit(&mut names)?;
            changed = Changed::Yes;
        }
        if changed == Changed::Yes {
            model.import_opset(DOMAIN, 1);
        }
        Ok(changed)
    }
}
