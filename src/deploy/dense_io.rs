//! A rewritten graph in two: `lookups.onnx` gives the rows of all lookups, `dense.onnx` is the rest, whose inputs they are. The
//! dense part has standard ops alone, so that another runtime can run it.

use super::DeployError;
use crate::ir::{Model, Node};
use crate::passes::{DOMAIN, PassError, extract, frontier};
use crate::plan::DenseInput;
use crate::tensor::DType;
use std::collections::HashMap;

/// The two parts, and the inputs of the second that take rows.
pub(super) struct Parts {
    pub(super) lookups: Model,
    pub(super) dense: Model,
    pub(super) inputs: Vec<DenseInput>,
}

/// The parts of a rewritten graph. Each output of a lookup that the rest needs is an input of the dense part, under its name.
///
/// # Errors
/// A lookup in a body or a function, a collective, another op of graphtool's own after a lookup: no other runtime has it, and no
/// input can stand for it.
pub(super) fn split(model: &Model) -> Result<Parts, DeployError> {
    let graph = &model.graph;
    let tables: HashMap<String, String> = graph.ops().iter().flat_map(|&id| rows_of(graph.node(id))).collect();
    let outputs: Vec<String> = graph.outputs().iter().map(|o| graph.name_of(o.value).to_owned()).collect();
    let made = graph.ops().iter().flat_map(|&id| graph.node(id).outputs.iter().map(|o| o.name.clone()));
    let cut: Vec<String> = made.filter(|name| tables.contains_key(name)).collect();
    let (rows, rest) = frontier(graph, &cut, &outputs);
    let mut dense = extract(model, &[rest, rows.clone()].concat(), &outputs)?;
    if let Some(what) = own_op(&dense) {
        return Err(DeployError::Pass(PassError::Call(format!("--dense-io: {what}, which no other runtime has"))));
    }
    dense.opset_imports.retain(|i| i.domain != DOMAIN);
    let inputs = rows.iter().map(|name| input(&dense, name, &tables[name])).collect();
    // It takes the data of the whole model, the inputs too that it has no use for.
    let all: Vec<String> = graph.inputs().iter().map(|id| graph.name_of(id.value(0)).to_owned()).collect();
    Ok(Parts { lookups: extract(model, &all, &rows)?, dense, inputs })
}

/// The outputs of a lookup, each with its table.
fn rows_of(node: &Node) -> Vec<(String, String)> {
    if !node.op().is_some_and(|op| *op.domain == *DOMAIN && *op.name == *"RemoteLookup") {
        return Vec::new();
    }
    let tables = node.attrs.strings("tables").ok().flatten().unwrap_or_default();
    node.outputs.iter().zip(tables).filter(|(o, _)| !o.name.is_empty()).map(|(o, t)| (o.name.clone(), t)).collect()
}

/// A node that is not standard, wherever it is.
fn own_op(model: &Model) -> Option<String> {
    model.graphs().into_iter().find_map(|g| {
        let node = g.ops().iter().map(|&id| g.node(id)).find(|n| n.op().is_some_and(|op| *op.domain == *DOMAIN))?;
        Some(format!("node \"{}\" of graph \"{}\" is a {}", node.name, g.name, node.op()?))
    })
}

fn input(dense: &Model, name: &str, table: &str) -> DenseInput {
    let ty = dense.graph.value(name).and_then(|v| dense.graph.type_of(v));
    let dims = ty.and_then(|t| t.shape()).map(|dims| dims.iter().map(ToString::to_string).collect());
    DenseInput { name: name.into(), table: table.into(), dtype: ty.and_then(|t| t.dtype()).unwrap_or(DType::F32), dims }
}
