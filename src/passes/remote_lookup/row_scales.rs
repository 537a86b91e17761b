//! `Gather` of a table that `DequantizeLinear` makes with a scale per row, or per block of a row: codes, scales and zero
//! points of the ids are looked up, and then dequantized.

use super::source::{constant, source};
use crate::ir::{Attrs, Edit, Graph, Model, NodeId, OpName, Output, Scope, ValueId};
use crate::passes::{Changed, PassError};
use crate::tensor::{DType, Tensor};

pub(super) fn look_up(model: &mut Model) -> Result<Changed, PassError> {
    // Unsqueeze takes its axes as an operand from 13 on.
    if model.opset("") < 13 || !super::has_op(model, |op| op.is("DequantizeLinear")) {
        return Ok(Changed::No);
    }
    let mut names = model.names();
    let mut changed = Changed::No;
    model.visit_mut(&mut |graph, scope| -> Result<(), PassError> {
        let found: Vec<Found> = graph.ops().iter().filter_map(|&id| find(graph, scope, id)).collect();
        if found.is_empty() {
            return Ok(());
        }
        let mut edit = graph.edit("remote-lookup");
        for f in &found {
            rewrite(&mut edit, f);
        }
        for f in &found {
            // What made the table goes with its last Gather.
            let last = f.casts.last().copied().unwrap_or(f.dequantize);
            let uses = edit.graph().uses(last.value(0));
            if uses.iter().all(|u| found.iter().any(|g| g.gather == u.node)) {
                f.casts.iter().chain([&f.dequantize]).for_each(|&id| edit.remove(id));
            }
        }
        edit.commit(&mut names)?;
        changed = Changed::Yes;
        Ok(())
    })?;
    Ok(changed)
}

struct Found {
    gather: NodeId,
    dequantize: NodeId,
    codes: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    ids: ValueId,
    /// Casts of the table, the first first.
    casts: Vec<NodeId>,
    /// Blocks within rows; else one scale for a row.
    blocks: bool,
    /// Dims of a row.
    row_rank: usize,
    /// Of the scales.
    dtype: DType,
}

fn find(graph: &Graph, scope: Option<&Scope>, gather: NodeId) -> Option<Found> {
    let node = graph.node(gather);
    if !node.op()?.is("Gather") || node.attrs.int_or("axis", 0).ok()? != 0 {
        return None;
    }
    let (mut data, ids) = (node.input(0)?, node.input(1)?);
    // Casts in between are done to the rows.
    let mut casts = Vec::new();
    let only_gathered = |v: ValueId| {
        let gathers = |u: &crate::ir::Use| u.operand == Some(0) && graph.node(u.node).op().is_some_and(|o| o.is("Gather"));
        !graph.is_output(v) && graph.uses(v).iter().all(gathers)
    };
    while graph.node(data.node).op()?.is("Cast") && casts.len() < 8 {
        if !casts.is_empty() && graph.uses(data).len() != 1 || casts.is_empty() && !only_gathered(data) {
            return None;
        }
        casts.insert(0, data.node);
        data = graph.node(data.node).input(0)?;
    }
    let dequantize = data.node;
    let d = graph.node(dequantize);
    let op = d.op().filter(|o| &*o.name == "DequantizeLinear" && matches!(&*o.domain, "" | "com.microsoft"))?;
    let only = if casts.is_empty() { only_gathered(data) } else { graph.uses(data).len() == 1 && !graph.is_output(data) };
    if !only || d.attrs.get("output_dtype").is_some() {
        return None;
    }
    let (codes, scale, zero) = (d.input(0)?, d.input(1)?, d.input(2));
    let table = source(graph, scope, codes)?;
    let (scales, zeros) = (constant(graph, scope, scale)?, zero.map(|z| constant(graph, scope, z)));
    let zeros = match zeros {
        Some(z) => Some(z?),
        None => None,
    };
    let (rank, rows) = (table.tensor.rank(), *table.tensor.shape().first()?);
    let axis = d.attrs.int_or("axis", 1).ok()?;
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|&a| a < rank)?;
    let block = d.attrs.int_or("block_size", 0).ok()?;
    if rank < 2 || scales.len() <= 1 || zeros.is_some_and(|z| z.shape() != scales.shape()) || !table.tensor.dtype().is_int() {
        return None;
    }
    let blocks = block > 0 && op.domain.is_empty() && axis > 0 && scales.rank() == rank && scales.shape().first() == Some(&rows);
    let by_row = block == 0 && axis == 0 && scales.shape()[..] == [rows];
    if !blocks && !by_row || table.tensor.dtype() == DType::I32 {
        return None;
    }
    let row_rank = rank - 1;
    Some(Found { gather, dequantize, codes, scale, zero, ids, casts, blocks, row_rank, dtype: scales.dtype() })
}

fn rewrite(edit: &mut Edit, f: &Found) {
    let hint = edit.graph().name_of(f.gather.value(0)).to_owned();
    let label = edit.graph().node(f.gather).name.clone();
    let add = |edit: &mut Edit, op: &str, suffix: &str, inputs: Vec<ValueId>, attrs: Attrs| {
        let name = if label.is_empty() { String::new() } else { format!("{label}{suffix}") };
        let output = Output::new(format!("{hint}{suffix}"), None);
        edit.add(OpName::onnx(op), &name, inputs.into_iter().map(Some), [output], attrs, Some(f.gather)).value(0)
    };
    let rows = |edit: &mut Edit, v: ValueId, suffix: &str| add(edit, "Gather", suffix, vec![v, f.ids], Attrs::new().with("axis", 0));
    let codes = rows(edit, f.codes, "_codes");
    let scale = rows(edit, f.scale, "_scale");
    let zero = f.zero.map(|z| rows(edit, z, "_zero"));
    let mut value = if f.blocks {
        let node = edit.graph().node(f.dequantize).clone();
        let axis = node.attrs.int_or("axis", 1).unwrap_or(1);
        let axis = if axis < 0 { axis } else { axis - f.row_rank as i64 - 1 };
        let mut attrs = node.attrs.clone();
        attrs.set("axis", axis.into());
        let inputs = [Some(codes), Some(scale), zero].into_iter().take(2 + usize::from(zero.is_some()));
        let op = OpName::onnx("DequantizeLinear");
        edit.add(op, &node.name, inputs, [Output::new(hint.clone(), None)], attrs, Some(f.gather)).value(0)
    } else {
        let to = || Attrs::new().with("to", i64::from(f.dtype.to_onnx()));
        let axes: Vec<i64> = (1..=f.row_rank as i64).map(|k| -k).rev().collect();
        let axes = edit.add_param(&format!("{hint}_axes"), Tensor::vector(axes));
        let mut x = add(edit, "Cast", "_real", vec![codes], to());
        if let Some(z) = zero {
            let z = add(edit, "Cast", "_zero_real", vec![z], to());
            let z = add(edit, "Unsqueeze", "_zero_row", vec![z, axes], Attrs::new());
            x = add(edit, "Sub", "_centred", vec![x, z], Attrs::new());
        }
        let scale = add(edit, "Unsqueeze", "_scale_row", vec![scale, axes], Attrs::new());
        add(edit, "Mul", "", vec![x, scale], Attrs::new())
    };
    for &id in &f.casts {
        let node = edit.graph().node(id).clone();
        let output = Output::new(format!("{}_rows", node.outputs[0].name), None);
        value = edit.add(OpName::onnx("Cast"), &node.name, [Some(value)], [output], node.attrs, Some(f.gather)).value(0);
    }
    edit.replace_uses(f.gather.value(0), value);
    edit.remove(f.gather);
}
