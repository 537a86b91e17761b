//! `standard-ops`
//!
//! *What*: `graphtool::Lookup` becomes `Gather` with a mask for the padding id.
//! *Why*: other runtimes have ONNX's ops alone.
//! *Before*:
//! ```text
//! graph g(i: int64[n]) -> (y) {
//!   param W: float32[2,2] = [0.0, 1.0, 2.0, 3.0]
//!   y = graphtool::Lookup(W, i) {negative=1, padding_idx=0}
//! }
//! ```
//! *After*:
//! ```text
//! graph g(i: int64[n]) -> (y) {
//!   param W: float32[2,2] = [0.0, 1.0, 2.0, 3.0]
//!   param y/padding: int64[] = [0]
//!   param y/first: int64[] = [0]
//!   param y/axes: int64[1] = [-1]
//!   param y/zeros: float32[] = [0.0]
//!   y/cast_1 = Cast(i) {to=7} # y/cast
//!   y/equal_1 = Equal(y/cast_1, y/padding) # y/equal
//!   y/where_1 = Where(y/equal_1, y/first, y/cast_1) # y/where
//!   y/gather_1 = Gather(W, y/where_1) {axis=0} # y/gather
//!   y/unsqueeze_1 = Unsqueeze(y/equal_1, y/axes) # y/unsqueeze
//!   y = Where(y/unsqueeze_1, y/zeros, y/gather_1) # y/where_2
//! }
//! ```
//! *Needs*: a table whose type is known.
//! *Leaves alone*: every other op.

use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Edit, Graph, Model, Names, NodeId, OpName, Output, Scope, Type, ValueId};
use crate::ops::remote::{DOMAIN, Negative, lookup_rules};
use crate::tensor::{DType, Tensor, cast};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct StandardOps;

impl Pass for StandardOps {
    fn name(&self) -> &'static str {
        "standard-ops"
    }

    fn source(&self) -> &'static str {
        include_str!("standard_ops.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let mut names = model.names();
        let mut changed = Changed::No;
        model.visit_mut(&mut |graph, scope| -> Result<(), PassError> {
            changed = changed.or(lower(graph, scope, &mut names)?);
            Ok(())
        })?;
        let own = model.graphs().iter().any(|g| g.ops().iter().any(|&id| g.node(id).op().is_some_and(|op| &*op.domain == DOMAIN)));
        if changed == Changed::Yes && !own {
            model.opset_imports.retain(|o| o.domain != DOMAIN);
        }
        Ok(changed)
    }
}

/// A lookup as it is found.
struct Found {
    id: NodeId,
    table: ValueId,
    ids: ValueId,
    dtype: DType,
    /// Dims of the table.
    dims: Vec<usize>,
}

fn lower(graph: &mut Graph, scope: Option<&Scope>, names: &mut Names) -> Result<Changed, PassError> {
    let mut found = Vec::new();
    for &id in graph.ops() {
        let node = graph.node(id);
        if !node.op().is_some_and(|op| &*op.domain == DOMAIN && &*op.name == "Lookup") {
            continue;
        }
        let (Some(table), Some(ids)) = (node.input(0), node.input(1)) else { continue };
        let outer = || scope?.resolve(graph.name_of(table)).and_then(|(g, v)| g.type_of(v).cloned());
        let Some(Type::Tensor { dtype: Some(dtype), shape: Some(shape) }) = graph.type_of(table).cloned().or_else(outer) else { continue };
        let Some(dims) = shape.iter().map(crate::ir::Dim::known).collect::<Option<Vec<_>>>() else { continue };
        found.push(Found { id, table, ids, dtype, dims });
    }
    let mut edit = graph.edit("standard-ops");
    for f in &found {
        one(&mut edit, f)?;
    }
    if edit.is_empty() {
        return Ok(Changed::No);
    }
    edit.commit(names)?;
    Ok(Changed::Yes)
}

fn one(edit: &mut Edit, f: &Found) -> Result<(), PassError> {
    let node = edit.graph().node(f.id).clone();
    let call = |e: String| PassError::Call(format!("node \"{}\": {e}", node.label()));
    let (negative, padding) = lookup_rules(&node.attrs).map_err(|e| call(e.to_string()))?;
    let name = node.outputs[0].name.clone();
    let add = |edit: &mut Edit, op: &str, inputs: &[ValueId], attrs: Attrs| {
        let output = Output::new(format!("{name}/{}", op.to_lowercase()), None);
        let label = format!("{}/{}", node.label(), op.to_lowercase());
        edit.add(OpName::onnx(op), &label, inputs.iter().map(|&v| Some(v)), [output], attrs, Some(f.id)).value(0)
    };
    let number = |edit: &mut Edit, what: &str, n: i64| edit.add_param(&format!("{name}/{what}"), Tensor::scalar(n));
    let wide = add(edit, "Cast", &[f.ids], Attrs::new().with("to", i64::from(DType::I64.to_onnx())));
    let mut ids = wide;
    if negative == Negative::Error {
        // An id behind the last row is refused by every runtime; one before the first would count from the end.
        let (zero, behind) = (number(edit, "zero", 0), number(edit, "rows", f.dims[0] as i64));
        let below = add(edit, "Less", &[ids, zero], Attrs::new());
        ids = add(edit, "Where", &[below, behind, ids], Attrs::new());
    }
    let Some(padding) = padding else {
        let gather = add(edit, "Gather", &[f.table, ids], Attrs::new().with("axis", 0));
        edit.replace_uses(f.id.value(0), gather);
        edit.remove(f.id);
        return Ok(());
    };
    let (pad, row) = (number(edit, "padding", padding), number(edit, "first", 0));
    let is_pad = add(edit, "Equal", &[wide, pad], Attrs::new());
    let ids = add(edit, "Where", &[is_pad, row, ids], Attrs::new());
    let rows = add(edit, "Gather", &[f.table, ids], Attrs::new().with("axis", 0));
    let mut mask = is_pad;
    if f.dims.len() > 1 {
        let axes: Vec<i64> = (1..f.dims.len() as i64).map(|k| -k).collect();
        let axes = edit.add_param(&format!("{name}/axes"), Tensor::vector(axes));
        mask = add(edit, "Unsqueeze", &[is_pad, axes], Attrs::new());
    }
    let zero = cast(&Tensor::scalar(0f32), f.dtype).map_err(|e| call(e.to_string()))?;
    let zero = edit.add_param(&format!("{name}/zeros"), zero);
    let out = add(edit, "Where", &[mask, zero, rows], Attrs::new());
    edit.replace_uses(f.id.value(0), out);
    edit.remove(f.id);
    Ok(())
}
