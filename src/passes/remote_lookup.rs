//! `remote-lookup`
//!
//! *What*: a lookup in a constant table becomes `graphtool::RemoteLookup`.
//! *Why*: the table can then live on servers.
//! *Needs*: `Gather` on axis 0, or `graphtool::Lookup`, of an initializer, a Constant or an Identity of one, in the main graph or in any body.
//! *Leaves alone*: tables that anything else reads, that are given back, that a caller can override, or that the selection
//! does not name; each lookup that stays is reported with its reason.

use super::report::{LookupRemark, TableTaken};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Graph, Kind, Model, Names, NodeId, OpName, Output, Scope, Type, ValueId};
use crate::ops::remote::{DOMAIN, LookupSpec, Negative, TableSpec, lookup_rules};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// Whether the table of a name is meant.
pub type NameFilter = Box<dyn Fn(&str) -> bool>;

/// Which tables may move.
#[derive(Default)]
pub struct Selection {
    /// Tables of fewer bytes stay.
    pub min_bytes: u64,
    /// Whether the table of that name may move; all may without it.
    pub names: Option<NameFilter>,
}

/// The pass.
#[derive(Default)]
pub struct RemoteLookup {
    /// Which tables may move.
    pub selection: Selection,
}

/// A constant by the depth of its graph (0: main) and its name.
type Key = (usize, String);

/// What is known of a constant that some lookup reads.
struct Table {
    tensor: Tensor,
    lookups: usize,
    /// The first reason for which it stays.
    reason: Option<String>,
}

impl Pass for RemoteLookup {
    fn name(&self) -> &'static str {
        "remote-lookup"
    }

    fn run(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError> {
        let mut survey = Survey::default();
        let overridable = model.ir_version >= 4;
        survey.graph(&model.graph, None, overridable);
        for f in &model.functions {
            survey.function(&f.graph, &f.name);
        }
        let Survey { mut tables, lookups, .. } = survey;
        let mut seen: HashMap<String, Key> = HashMap::new();
        let mut keys: Vec<&Key> = tables.keys().collect();
        keys.sort();
        let clash: Vec<Key> = keys.into_iter().filter(|k| seen.insert(k.1.clone(), (*k).clone()).is_some()).cloned().collect();
        for (key, table) in &mut tables {
            if clash.contains(key) {
                table.reason.get_or_insert_with(|| "another table has its name".into());
            }
            table.reason = table.reason.take().or_else(|| self.selection.refuses(&key.1, &table.tensor));
        }
        for l in &lookups {
            let reason = match &l.key {
                Some(key) => tables[key].reason.clone(),
                None => l.reason.clone(),
            };
            report.lookups.push(LookupRemark { node: l.node.clone(), op: l.op.clone(), table: l.table.clone(), reason });
        }
        tables.retain(|_, t| t.reason.is_none() && t.lookups > 0);
        if tables.is_empty() {
            return Ok(Changed::No);
        }
        let mut names = model.names();
        model.visit_mut(&mut |graph, scope| rewrite(graph, scope, &tables, &mut names))?;
        model.import_opset(DOMAIN, 1);
        let mut taken: Vec<TableTaken> =
            tables.into_iter().map(|(key, t)| TableTaken { name: key.1, tensor: t.tensor, lookups: t.lookups }).collect();
        let place = |name: &str| report.lookups.iter().position(|l| l.table == name);
        taken.sort_by_key(|t| place(&t.name));
        report.tables.extend(taken);
        Ok(Changed::Yes)
    }
}

impl Selection {
    fn refuses(&self, name: &str, tensor: &Tensor) -> Option<String> {
        let Some(bytes) = tensor.dtype().byte_len(tensor.shape()) else { return Some("its rows are strings".into()) };
        if tensor
            .dtype()
            .byte_len(&tensor.shape()[1..])
            .is_none_or(|b| b * 8 != tensor.dtype().bits() * tensor.shape()[1..].iter().product::<usize>())
        {
            return Some(format!("its rows of {} do not fill whole bytes", tensor.dtype()));
        }
        if self.names.as_ref().is_some_and(|f| !f(name)) {
            return Some("--tables does not name it".into());
        }
        if (bytes as u64) < self.min_bytes {
            return Some(format!("its {bytes} bytes are below --min-bytes {}", self.min_bytes));
        }
        None
    }
}

/// A lookup that was found.
struct Lookup {
    node: String,
    op: String,
    table: String,
    /// The table, if the lookup itself can become remote.
    key: Option<Key>,
    reason: Option<String>,
}

#[derive(Default)]
struct Survey {
    tables: HashMap<Key, Table>,
    lookups: Vec<Lookup>,
}

/// Where a value comes from, through Identities and captures: a constant by its key.
fn constant_behind<'g>(graph: &'g Graph, scope: Option<&Scope<'g>>, v: ValueId) -> Option<(Key, &'g Tensor)> {
    let depth = |s: Option<&Scope>| {
        let mut n = 0;
        let mut at = s;
        while let Some(x) = at {
            n += 1;
            at = x.outer;
        }
        n
    };
    let node = graph.node(v.node);
    let name = || graph.name_of(v).to_owned();
    match &node.kind {
        Kind::Param(c) => Some(((depth(scope), name()), &c.tensor)),
        Kind::Input(Some(c)) => Some(((depth(scope), name()), &c.tensor)),
        Kind::Capture => {
            let mut around = scope;
            while let Some(s) = around {
                match s.graph.value(&node.outputs[0].name) {
                    Some(v) if !matches!(s.graph.node(v.node).kind, Kind::Capture) => return constant_behind(s.graph, s.outer, v),
                    _ => around = s.outer,
                }
            }
            None
        }
        Kind::Op(op) if op.is("Identity") => constant_behind(graph, scope, node.input(0)?),
        Kind::Op(op) if op.is("Constant") => Some(((depth(scope), name()), node.attrs.tensor("value").ok().flatten()?)),
        _ => None,
    }
}

/// Whether it is a lookup by rules of its own.
fn is_local(op: &OpName) -> bool {
    &*op.domain == DOMAIN && &*op.name == "Lookup"
}

/// Whether a constant can be a table: two dims or more, or numbers that are no shape.
fn is_table(t: &Tensor) -> bool {
    t.rank() >= 2 || (t.rank() == 1 && t.dtype().is_float())
}

impl Survey {
    fn graph<'g>(&mut self, graph: &'g Graph, scope: Option<&Scope<'g>>, overridable: bool) {
        for &id in graph.ops() {
            let node = graph.node(id);
            let Some(op) = node.op() else { continue };
            for (operand, v) in node.inputs().iter().enumerate() {
                let Some((key, tensor)) = v.and_then(|v| constant_behind(graph, scope, v)) else { continue };
                if !is_table(tensor) || op.is("Identity") {
                    continue;
                }
                self.reader(graph, id, operand, key, tensor);
            }
            for body in node.attrs.iter().flat_map(|(_, a)| a.graphs()) {
                self.graph(body, Some(&Scope { graph, outer: scope }), overridable);
            }
        }
        for &id in graph.inputs() {
            let node = graph.node(id);
            if overridable
                && matches!(node.kind, Kind::Input(Some(_)))
                && let Some((key, _)) = constant_behind(graph, scope, id.value(0))
            {
                self.stays(&key, "a caller can override it: it is also a graph input".into());
            }
        }
        for o in graph.outputs() {
            if let Some((key, _)) = constant_behind(graph, scope, o.value) {
                self.stays(&key, format!("it is also the graph output \"{}\"", graph.name_of(o.value)));
            }
        }
    }

    fn table(&mut self, key: &Key, tensor: &Tensor) -> &mut Table {
        self.tables.entry(key.clone()).or_insert_with(|| Table { tensor: tensor.clone(), lookups: 0, reason: None })
    }

    fn stays(&mut self, key: &Key, reason: String) {
        if let Some(table) = self.tables.get_mut(key) {
            table.reason.get_or_insert(reason);
        }
    }

    fn reader(&mut self, graph: &Graph, id: NodeId, operand: usize, key: Key, tensor: &Tensor) {
        let node = graph.node(id);
        let Some(op) = node.op() else { return };
        let (label, table_name) = (node.label().to_owned(), key.1.clone());
        let table = self.table(&key, tensor);
        let mut found = Lookup { node: label.clone(), op: op.to_string(), table: table_name, key: None, reason: None };
        let lookup_op = matches!(&*op.name, "Gather" | "GatherND" | "GatherElements" | "GatherBlockQuantized" | "EmbedLayerNormalization");
        if is_local(op) && operand == 0 {
            table.lookups += 1;
            found.key = Some(key);
            self.lookups.push(found);
            return;
        }
        if op.is("Gather") && operand == 0 {
            let axis = node.attrs.int_or("axis", 0).unwrap_or(0);
            if axis == 0 || axis == -(tensor.rank() as i64) {
                table.lookups += 1;
                found.key = Some(key);
                self.lookups.push(found);
                return;
            }
            found.reason = Some(format!("it reads axis {axis}, not rows"));
        } else if lookup_op && (operand == 0 || &*op.name == "EmbedLayerNormalization") {
            found.reason = Some(format!("lookups by {op} are not rewritten"));
        }
        table.reason.get_or_insert_with(|| format!("it is also read by {} \"{label}\"", op.name));
        if found.reason.is_some() {
            self.lookups.push(found);
        }
    }

    /// Lookups in a function stay: its tables come with each call.
    fn function(&mut self, graph: &Graph, name: &str) {
        for &id in graph.ops() {
            let node = graph.node(id);
            let Some(op) = node.op().filter(|o| o.is("Gather")) else { continue };
            let Some(data) = node.input(0) else { continue };
            if matches!(graph.node(data.node).kind, Kind::Input(_)) {
                let reason = Some(format!("it is inside function \"{name}\", whose table comes with each call"));
                let table = graph.name_of(data).to_owned();
                self.lookups.push(Lookup { node: node.label().to_owned(), op: op.to_string(), table, key: None, reason });
            }
        }
    }
}

fn rewrite(graph: &mut Graph, scope: Option<&Scope>, tables: &HashMap<Key, Table>, names: &mut Names) -> Result<(), PassError> {
    let mut found = Vec::new();
    for &id in graph.ops() {
        let node = graph.node(id);
        let Some(data) = node.op().filter(|op| op.is("Gather") || is_local(op)).and_then(|_| node.input(0)) else { continue };
        let Some((key, tensor)) = constant_behind(graph, scope, data) else { continue };
        let (Some(ids), true) = (node.input(1), tables.contains_key(&key)) else { continue };
        let local = node.op().is_some_and(is_local);
        let rules = if local { lookup_rules(&node.attrs) } else { Ok((Negative::Wrap, None)) };
        let (negative, padding) = rules.map_err(|e| PassError::Call(format!("node \"{}\": {e}", node.label())))?;
        let spec = TableSpec {
            name: key.1,
            rows: tensor.shape()[0] as u64,
            dtype: tensor.dtype(),
            row_shape: tensor.shape()[1..].into(),
            negative,
            padding,
        };
        let ty = graph.type_of(id.value(0)).cloned().or_else(|| {
            let ids = graph.type_of(ids)?.shape()?;
            let row = spec.row_shape.iter().map(|&d| crate::ir::Dim::Known(d));
            Some(Type::tensor(spec.dtype, ids.iter().cloned().chain(row)))
        });
        found.push((id, ids, spec, ty));
    }
    let mut edit = graph.edit("remote-lookup");
    for (id, ids, spec, ty) in found {
        let name = edit.graph().node(id).name.clone();
        let hint = edit.graph().name_of(id.value(0)).to_owned();
        let attrs = LookupSpec { tables: vec![spec] }.attrs();
        let new = edit.add(OpName::new(DOMAIN, "RemoteLookup"), &name, [Some(ids)], [Output::new(hint, ty)], attrs, Some(id));
        edit.replace_uses(id.value(0), new.value(0));
        edit.remove(id);
    }
    if !edit.is_empty() {
        edit.commit(names)?;
    }
    Ok(())
}
