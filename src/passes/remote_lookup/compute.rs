//! Tables that a model makes of its constants (two joined, one transposed, a sum) are computed once, here.

use super::Selection;
use super::source::{constant, outer_value, place, source, view};
use super::types::Types;
use crate::ir::{Graph, Kind, Model, NodeId, OpName, OpsetImport, Scope, ValueId, opset_version};
use crate::ops::{self, Args, OpCtx, Run};
use crate::passes::{Changed, PassError};
use crate::tensor::{Tensor, Value};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Bytes of all values on the way to a table, above which it is not computed.
const BUDGET: usize = 512 << 20;
/// Ops on the way, at most.
const MAX_OPS: usize = 256;

/// Why lookups stay whose tables are made of constants and were not computed, by graph and value.
pub(super) type Left = HashMap<(usize, String), String>;

/// Ops that look up rows of an operand.
const LOOKUPS: &[(&str, &[usize])] = &[
    ("EmbedLayerNormalization", &[2, 3, 4]),
    ("Gather", &[0]),
    ("GatherBlockQuantized", &[0, 2, 3]),
    ("GatherElements", &[0]),
    ("GatherND", &[0]),
    ("Lookup", &[0]),
    ("QEmbedLayerNormalization", &[2, 4]),
];

/// The values of a node that are looked up.
pub(super) fn looked_up(graph: &Graph, id: NodeId) -> Vec<ValueId> {
    let node = graph.node(id);
    node.op().map_or(&[][..], operands).iter().filter_map(|&i| node.input(i)).collect()
}

fn operands(op: &OpName) -> &'static [usize] {
    let ours = matches!(&*op.domain, "" | "com.microsoft" | "graphtool");
    LOOKUPS.iter().find(|(name, _)| ours && *name == &*op.name).map_or(&[][..], |(_, o)| o)
}

/// Whether an op looks something up.
pub(super) fn is_lookup(op: &OpName) -> bool {
    !operands(op).is_empty()
}

/// What a value is a view of, down to what is none.
pub(super) fn base<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, mut v: ValueId) -> ValueId {
    for _ in 0..super::source::MAX_VIEWS {
        let Some(next) = view(graph, scope, v.node).and_then(|w| graph.node(v.node).input(w.operand)) else { break };
        // A view by its op alone, of a table that has other dims than that needs.
        if source(graph, scope, next).is_some() && source(graph, scope, v).is_none() {
            break;
        }
        v = next;
    }
    v
}

pub(super) fn tables(model: &mut Model, selection: &Selection, types: &Types) -> Result<(Changed, Left), PassError> {
    let (mut changed, mut left) = (Changed::No, Left::new());
    if !super::has_op(model, is_lookup) {
        return Ok((changed, left));
    }
    let mut names = model.names();
    let opsets = model.opset_imports.clone();
    model.visit_mut(&mut |graph, scope| -> Result<(), PassError> {
        let mut made: Vec<(ValueId, Tensor)> = Vec::new();
        for v in wanted(graph, scope) {
            let job = Job { graph, scope, selection, types, opsets: &opsets };
            match job.compute(v) {
                None => {}
                Some(Ok(t)) => made.push((v, t)),
                Some(Err(why)) => drop(left.insert((place(graph), graph.name_of(v).to_owned()), why)),
            }
        }
        if made.is_empty() {
            return Ok(());
        }
        let mut edit = graph.edit("remote-lookup");
        for (v, tensor) in made {
            let name = edit.graph().name_of(v).to_owned();
            let new = edit.add_param(&name, tensor);
            edit.replace_uses(v, new);
            if edit.graph().node(v.node).outputs.len() == 1 {
                edit.remove(v.node);
            }
        }
        edit.commit(&mut names)?;
        changed = Changed::Yes;
        Ok(())
    })?;
    Ok((changed, left))
}

/// Values of a graph that are looked up, here or in a body, and are made by an op.
fn wanted(graph: &Graph, scope: Option<&Scope>) -> Vec<ValueId> {
    let mut found = Vec::new();
    let mut names = Vec::new();
    captured(graph, scope, &mut found, &mut names);
    found.retain(|v| graph.node(v.node).op().is_some());
    found.sort();
    found.dedup();
    found
}

/// What a graph looks up: its own values, and the names of those that it captures.
fn captured(graph: &Graph, scope: Option<&Scope>, own: &mut Vec<ValueId>, outer: &mut Vec<String>) {
    let mut add = |v: ValueId| match graph.node(v.node).kind {
        Kind::Capture => outer.push(graph.name_of(v).to_owned()),
        _ => own.push(v),
    };
    for &id in graph.ops() {
        looked_up(graph, id).into_iter().map(|v| base(graph, scope, v)).for_each(&mut add);
        for body in graph.node(id).attrs.iter().flat_map(|(_, a)| a.graphs()) {
            let (mut theirs, mut names) = (Vec::new(), Vec::new());
            let inside = Scope { graph, outer: scope };
            captured(body, Some(&inside), &mut theirs, &mut names);
            names.iter().filter_map(|n| graph.value(n)).map(|v| base(graph, scope, v)).for_each(&mut add);
        }
    }
}

struct Job<'g, 's> {
    graph: &'g Graph,
    scope: Option<&'s Scope<'g>>,
    selection: &'s Selection,
    types: &'s Types,
    opsets: &'s [OpsetImport],
}

impl Job<'_, '_> {
    /// The elements of a value, or why its lookups stay; `None` if it is not made of constants.
    fn compute(&self, v: ValueId) -> Option<Result<Tensor, String>> {
        if source(self.graph, self.scope, v).is_some() {
            return None;
        }
        if let Some(why) = self.chosen(v) {
            return Some(Err(why));
        }
        let mut nodes = Vec::new();
        self.collect(v.node, &mut nodes, &mut HashSet::new())?;
        let op = |id: NodeId| self.graph.node(id).op().map_or("", |o| &*o.name);
        let label = |id: NodeId| format!("{} \"{}\"", op(id), self.graph.node(id).label());
        let made = label(v.node);
        if let Some(reader) = self.other_reader(v, &nodes).filter(|_| !self.selection.keep_shared) {
            return Some(Err(format!("its table is computed by {made}, and what that reads is also read by {reader}")));
        }
        let bytes = nodes.iter().try_fold(0usize, |n, &id| n.checked_add(self.bytes(id)?));
        if bytes.is_none_or(|n| n > BUDGET) {
            return Some(Err(format!("its table is computed by {made}, for which more than {} MiB would be needed", BUDGET >> 20)));
        }
        match self.run(v, &nodes) {
            Err(why) => Some(Err(format!("its table is computed by {made}: {why}"))),
            Ok(t) => match self.selection.refuses(self.graph.name_of(v), &t, false) {
                Some(why) if super::survey::is_table(&t) => Some(Err(why)),
                Some(_) => None,
                None => Some(Ok(t)),
            },
        }
    }

    /// Ops between constants and a node, each after those that it reads.
    fn collect(&self, id: NodeId, nodes: &mut Vec<NodeId>, seen: &mut HashSet<NodeId>) -> Option<()> {
        if nodes.contains(&id) || constant(self.graph, self.scope, id.value(0)).is_some() {
            return self.is_fixed(id).then_some(());
        }
        let node = self.graph.node(id);
        let def = node.op().and_then(ops::find).filter(|d| d.pure && matches!(d.run, Run::Kernel(_)))?;
        if !seen.insert(id) || seen.len() > MAX_OPS || (node.inputs().is_empty() && def.name != "Constant") {
            return None;
        }
        node.inputs().iter().flatten().try_for_each(|v| self.collect(v.node, nodes, seen))?;
        nodes.push(id);
        Some(())
    }

    /// Whether no caller can override what a node holds.
    fn is_fixed(&self, id: NodeId) -> bool {
        match self.graph.node(id).kind {
            Kind::Input(_) => false,
            Kind::Capture => outer_value(self.scope, self.graph.name_of(id.value(0)))
                .is_some_and(|(g, v, _)| !matches!(g.node(v.node).kind, Kind::Input(_))),
            _ => true,
        }
    }

    /// Who reads a table, or what is made of one, on the way to a value that is looked up, besides.
    fn other_reader(&self, v: ValueId, nodes: &[NodeId]) -> Option<String> {
        let mut on_the_way: Vec<ValueId> = Vec::new();
        for &id in nodes {
            let node = self.graph.node(id);
            let tables = node.inputs().iter().flatten().filter(|v| {
                constant(self.graph, self.scope, **v)
                    .is_none_or(|t| t.rank() >= 2 || (t.rank() == 1 && t.dtype().is_float() && t.len() > 64))
            });
            on_the_way.extend(tables);
            on_the_way.extend((0..node.outputs.len() as u32).map(|s| id.value(s)));
        }
        on_the_way.sort();
        on_the_way.dedup();
        for of in on_the_way {
            if self.graph.is_output(of) {
                return Some(format!("the graph's output \"{}\"", self.graph.name_of(of)));
            }
            let reads = |u: &&crate::ir::Use| {
                let inside = nodes.contains(&u.node);
                let lookup = of == v && (u.operand.is_none() || self.leads_to_lookups(u.node, v));
                !inside && !lookup && !self.only_looked_up(u.node, of, super::source::MAX_VIEWS)
            };
            let uses = self.graph.uses(of);
            if let Some(u) = uses.iter().find(reads) {
                let node = self.graph.node(u.node);
                return Some(format!("{} \"{}\"", node.op().map_or("", |o| &*o.name), node.label()));
            }
        }
        None
    }

    /// Whether a reader of a table looks it up, or is a view that is only looked up.
    fn leads_to_lookups(&self, id: NodeId, v: ValueId) -> bool {
        if looked_up(self.graph, id).iter().any(|&d| base(self.graph, self.scope, d) == v) {
            return true;
        }
        let passes = view(self.graph, self.scope, id).is_some() && !self.graph.is_output(id.value(0));
        passes && self.graph.uses(id.value(0)).iter().all(|u| u.operand.is_none() || self.leads_to_lookups(u.node, v))
    }

    /// Whether a node looks up a value, or makes something of it that is only looked up.
    fn only_looked_up(&self, id: NodeId, v: ValueId, depth: usize) -> bool {
        if looked_up(self.graph, id).contains(&v) {
            return true;
        }
        let node = self.graph.node(id);
        let pure = node.op().and_then(ops::find).is_some_and(|d| d.pure && matches!(d.run, Run::Kernel(_)));
        // Of a branching way, only a short one is followed.
        let depth = depth.checked_sub(1 + node.outputs.len());
        pure && depth.is_some_and(|depth| {
            (0..node.outputs.len() as u32).map(|s| id.value(s)).all(|o| {
                let uses = self.graph.uses(o);
                let next = depth / uses.len().max(1);
                !self.graph.is_output(o)
                    && !uses.is_empty()
                    && uses.iter().all(|u| u.operand.is_some() && self.only_looked_up(u.node, o, next))
            })
        })
    }

    /// What the outputs of a node take.
    fn bytes(&self, id: NodeId) -> Option<usize> {
        let size = |slot: usize| {
            let ty = self.types.get(self.graph, id.value(slot as u32))?;
            let dims = ty.shape()?.iter().map(crate::ir::Dim::known).collect::<Option<Vec<_>>>()?;
            ty.dtype()?.byte_len(&dims)
        };
        let outputs = &self.graph.node(id).outputs;
        (0..outputs.len()).filter(|&s| !outputs[s].name.is_empty()).try_fold(0usize, |n, slot| n.checked_add(size(slot)?))
    }

    fn run(&self, v: ValueId, nodes: &[NodeId]) -> Result<Tensor, String> {
        let mut values: BTreeMap<ValueId, Tensor> = BTreeMap::new();
        for &id in nodes {
            let node = self.graph.node(id);
            let op = node.op().ok_or("no op")?;
            let Some(Run::Kernel(build)) = ops::find(op).map(|d| d.run) else { return Err(format!("{op} has no kernel")) };
            let tensor = |v: ValueId| values.get(&v).or_else(|| constant(self.graph, self.scope, v));
            let operands: Vec<Option<&Tensor>> = node.inputs().iter().map(|v| v.and_then(tensor)).collect();
            let wanted: Vec<bool> = node.outputs.iter().map(|o| !o.name.is_empty()).collect();
            let version = opset_version(self.opsets, &op.domain);
            let cx = OpCtx { op, attrs: &node.attrs, version, inputs: operands.len(), outputs: &wanted, constants: &operands };
            let args = Args::new(operands.iter().map(|t| t.map(|t| Value::Tensor(t.clone().aligned()))));
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| build(&cx).and_then(|k| k(args))));
            let made = made.map_err(|_| "internal error".to_owned())?.map_err(|e| e.to_string())?;
            for (slot, value) in made.into_iter().enumerate() {
                values.insert(id.value(slot as u32), value.into_tensor().ok_or("it is no tensor")?);
            }
        }
        values.remove(&v).ok_or_else(|| "it gives nothing".to_owned())
    }

    /// Why a value that is one of several tables is looked up here.
    fn chosen(&self, v: ValueId) -> Option<String> {
        let node = self.graph.node(v.node);
        let op = node.op()?;
        let label = node.label();
        let inside = Scope { graph: self.graph, outer: self.scope };
        fn is_table(graph: &Graph, scope: Option<&Scope>, v: ValueId) -> bool {
            source(graph, scope, v).is_some_and(|t| super::survey::is_table(&t.tensor))
        }
        if op.is("If") {
            let bodies: Vec<&Graph> = node.attrs.iter().flat_map(|(_, a)| a.graphs()).collect();
            let given = |b: &&Graph| b.outputs().get(v.slot as usize).is_some_and(|o| is_table(b, Some(&inside), o.value));
            return (bodies.len() == 2 && bodies.iter().all(given)).then(|| format!("its table is one of two, chosen by If \"{label}\""));
        }
        if op.is("Where") {
            let here = |i: usize| node.input(i).is_some_and(|v| is_table(self.graph, self.scope, v));
            let fixed = node.input(0).is_some_and(|c| constant(self.graph, self.scope, c).is_some());
            return (here(1) && here(2) && !fixed).then(|| format!("its table is mixed of two by Where \"{label}\""));
        }
        if op.is("Loop") || op.is("Scan") {
            let state = node.input(v.slot as usize + if op.is("Loop") { 2 } else { 0 })?;
            let table = is_table(self.graph, self.scope, state);
            return table.then(|| format!("its table is what {} \"{label}\" made of one", op.name));
        }
        None
    }
}
