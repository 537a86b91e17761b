//! Replaces the lookups that were found.

use super::source::{Operand, Source, Step, source};
use super::survey::Table;
use super::{Found, How, Key, Layout, Site, Types, verdict};
use crate::ir::{Attrs, Dim, Edit, Graph, Names, NodeId, OpName, Output, Scope, Type, ValueId};
use crate::ops::remote::{DOMAIN, LookupSpec, TableSpec};
use crate::passes::PassError;
use crate::tensor::Tensor;
use std::collections::HashMap;

/// A lookup that is to be replaced.
struct Job {
    id: NodeId,
    operand: usize,
    found: Found,
    spec: TableSpec,
    after: Vec<Step>,
}

impl Job {
    /// Reads what takes the place of the values that it reads.
    fn follow(&mut self, replaced: &HashMap<ValueId, ValueId>) {
        let follow = |v: &mut ValueId| *v = replaced.get(v).copied().unwrap_or(*v);
        follow(&mut self.found.ids);
        match &mut self.found.how {
            How::Expanded { shape } | How::Column { shape: Some(shape) } => follow(shape),
            _ => {}
        }
    }
}

/// What the lookups of a model are rewritten by.
pub(super) struct Rewriter<'t> {
    pub(super) tables: &'t HashMap<Key, Table>,
    pub(super) types: &'t Types,
    pub(super) one_hot: bool,
}

impl Rewriter<'_> {
    pub(super) fn graph(&self, graph: &mut Graph, scope: Option<&Scope>, names: &mut Names) -> Result<(), PassError> {
        let jobs = self.jobs(graph, scope);
        replace(graph, jobs, names)
    }

    fn jobs(&self, graph: &Graph, scope: Option<&Scope>) -> Vec<Job> {
        let mut jobs = Vec::new();
        for &id in graph.topological().as_deref().unwrap_or(graph.ops()) {
            for (operand, v) in graph.node(id).inputs().iter().enumerate() {
                let Some(source) = v.and_then(|v| source(graph, scope, v)) else { continue };
                let Some(table) = self.tables.get(&source.key) else { continue };
                let site = Site { graph, scope, id, types: self.types, one_hot: self.one_hot };
                let Some(Ok(found)) = verdict(&site, operand, &source) else { continue };
                let Source { tensor, after, .. } = source;
                let layout = Layout::new(&found, tensor.shape());
                if table.layout.as_ref() != Some(&layout) {
                    continue;
                }
                let spec = TableSpec {
                    name: table.name.clone(),
                    rows: layout.rows as u64,
                    dtype: tensor.dtype(),
                    row_shape: layout.row.as_slice().into(),
                    negative: found.negative,
                    padding: found.padding,
                };
                jobs.push(Job { id, operand, found, spec, after });
            }
        }
        jobs
    }
}

fn replace(graph: &mut Graph, jobs: Vec<Job>, names: &mut Names) -> Result<(), PassError> {
    let mut edit = graph.edit("remote-lookup");
    let mut compact: HashMap<(NodeId, usize), (ValueId, ValueId)> = HashMap::new();
    // A lookup may read what another one gives: jobs are in the order of the graph.
    let mut replaced: HashMap<ValueId, ValueId> = HashMap::new();
    for mut job in jobs {
        job.follow(&replaced);
        match job.found.how {
            How::Compact { ids } => {
                let (flat, places) = *compact.entry((job.id, ids)).or_insert_with(|| positions(&mut edit, &job));
                let rows = rows(&mut edit, &job, flat, None);
                edit.set_operand(job.id, job.operand, Some(rows));
                edit.set_operand(job.id, ids, Some(places));
            }
            _ => {
                let value = replacement(&mut edit, &job);
                replaced.insert(job.id.value(0), value);
                edit.replace_uses(job.id.value(0), value);
                edit.remove(job.id);
            }
        }
    }
    if !edit.is_empty() {
        edit.commit(names)?;
    }
    Ok(())
}

/// An op with one output, named after the node that it is for.
fn step(edit: &mut Edit, id: NodeId, op: OpName, suffix: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
    let name = format!("{}_{suffix}", edit.graph().name_of(id.value(0)));
    let output = Output::new(name.clone(), None);
    edit.add(op, &format!("{name}/node"), inputs.iter().map(|v| Some(*v)), [output], attrs, Some(id)).value(0)
}

/// All ids in one row, and the places of their rows in their shape.
fn positions(edit: &mut Edit, job: &Job) -> (ValueId, ValueId) {
    let all = edit.add_param(&format!("{}_flat", edit.graph().name_of(job.id.value(0))), Tensor::vector(vec![-1i64]));
    let flat = step(edit, job.id, OpName::onnx("Reshape"), "ids", &[job.found.ids, all], Attrs::new());
    (flat, step(edit, job.id, OpName::new(DOMAIN, "Positions"), "places", &[job.found.ids], Attrs::new()))
}

/// The lookup, then what happened to the elements of the table before.
fn rows(edit: &mut Edit, job: &Job, ids: ValueId, ty: Option<Type>) -> ValueId {
    let graph = edit.graph();
    let compact = matches!(job.found.how, How::Compact { .. });
    let name = if compact { format!("{}_{}", graph.node(job.id).name, job.operand) } else { graph.node(job.id).name.clone() };
    let hint = if compact { format!("{}_rows", job.spec.name) } else { graph.name_of(job.id.value(0)).to_owned() };
    let attrs = LookupSpec { tables: vec![job.spec.clone()] }.attrs();
    let op = OpName::new(DOMAIN, "RemoteLookup");
    let mut value = edit.add(op, &name, [Some(ids)], [Output::new(hint, ty)], attrs, Some(job.id)).value(0);
    for after in &job.after {
        let mut inputs = Vec::with_capacity(after.operands.len());
        for (i, operand) in after.operands.iter().enumerate() {
            inputs.push(match operand {
                _ if i == after.table => Some(value),
                None => None,
                Some(Operand::Here(v)) => Some(*v),
                Some(Operand::Outer(name)) => Some(edit.add_capture(name)),
            });
        }
        let hint = format!("{}_rows", after.output);
        value = edit.add(after.op.clone(), &after.name, inputs, [Output::new(hint, None)], after.attrs.clone(), Some(job.id)).value(0);
    }
    value
}

/// The value that takes the place of the node's.
fn replacement(edit: &mut Edit, job: &Job) -> ValueId {
    let (id, ids, row_rank) = (job.id, job.found.ids, job.spec.row_shape.len());
    match &job.found.how {
        How::Stacked { dims, batch } => {
            let mut attrs = Attrs::new().with("dims", dims.clone());
            if *batch > 0 {
                attrs = attrs.with("batch_dims", *batch as i64);
            }
            let flat = step(edit, id, OpName::new(DOMAIN, "RowIds"), "ids", &[ids], attrs);
            let ty = result_type(edit.graph(), job, None);
            rows(edit, job, flat, ty)
        }
        How::Moved { at, rank } => {
            let rows = rows(edit, job, ids, None);
            let perm = (*rank..rank + at).chain(0..*rank).chain(rank + at..rank + row_rank).map(|d| d as i64).collect::<Vec<_>>();
            step(edit, id, OpName::onnx("Transpose"), "moved", &[rows], Attrs::new().with("perm", perm))
        }
        How::Expanded { shape } => {
            let rows = rows(edit, job, ids, None);
            step(edit, id, OpName::onnx("Expand"), "expanded", &[rows, *shape], Attrs::new())
        }
        How::Column { shape } => {
            let all = edit.add_param(&format!("{}_list", edit.graph().name_of(id.value(0))), Tensor::vector(vec![-1i64]));
            let list = step(edit, id, OpName::onnx("Reshape"), "ids", &[ids, all], Attrs::new());
            let rows = rows(edit, job, list, None);
            match shape {
                Some(shape) => step(edit, id, OpName::onnx("Expand"), "expanded", &[rows, *shape], Attrs::new()),
                None => rows,
            }
        }
        How::OneHot { lowest } => {
            let ids = in_range(edit, job, *lowest);
            rows(edit, job, ids, None)
        }
        How::Rows | How::Compact { .. } => {
            let ty = result_type(edit.graph(), job, Some(ids));
            rows(edit, job, ids, ty)
        }
    }
}

/// The ids of a product with one-hot rows; those that name no row become the padding id, which gives zeros.
fn in_range(edit: &mut Edit, job: &Job, lowest: i64) -> ValueId {
    let (id, rows) = (job.id, job.spec.rows as i64);
    let onnx = OpName::onnx;
    let number = |edit: &mut Edit, what: &str, n: i64| {
        let name = format!("{}_{what}", edit.graph().name_of(id.value(0)));
        edit.add_param(&name, Tensor::scalar(n))
    };
    let to = Attrs::new().with("to", i64::from(crate::tensor::DType::I64.to_onnx()));
    let wide = step(edit, id, onnx("Cast"), "ids", &[job.found.ids], to);
    let (least, end) = (number(edit, "lowest", lowest), number(edit, "rows", rows));
    let below = step(edit, id, onnx("Less"), "below", &[wide, least], Attrs::new());
    let inside = step(edit, id, onnx("Less"), "inside", &[wide, end], Attrs::new());
    let capped = step(edit, id, onnx("Where"), "capped", &[inside, wide, end], Attrs::new());
    step(edit, id, onnx("Where"), "places", &[below, end, capped], Attrs::new())
}

/// The stated type of the result, or what the ids tell of it, where the rows are the result.
fn result_type(graph: &Graph, job: &Job, ids: Option<ValueId>) -> Option<Type> {
    if !job.after.is_empty() {
        return None;
    }
    let result = job.id.value(0);
    graph.type_of(result).cloned().or_else(|| {
        // The interface states what it states.
        let ids = ids.filter(|_| !graph.is_output(result));
        let ids = graph.type_of(ids?)?.shape()?;
        let row = job.spec.row_shape.iter().map(|&d| Dim::Known(d));
        Some(Type::tensor(job.spec.dtype, ids.iter().cloned().chain(row)))
    })
}
