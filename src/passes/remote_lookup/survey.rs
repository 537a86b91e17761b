//! What a model does with its constants: which are looked up, and what else reads them.

use super::source::{Source, source, view_of};
use super::{Key, Layout, Site, verdict};
use crate::ir::{Graph, Kind, Model, NodeId, Scope};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// What is known of a constant that some op reads.
pub(super) struct Table {
    /// Its elements, in the dims that its lookups see.
    pub(super) tensor: Tensor,
    pub(super) layout: Option<Layout>,
    pub(super) lookups: usize,
    /// The first reason for which it stays.
    pub(super) reason: Option<String>,
    /// Who else reads it: then it stays unless it is to be kept too.
    pub(super) shared: Option<String>,
    /// It is only looked up beside other tables.
    pub(super) goes_along: bool,
}

/// A lookup that was found.
pub(super) struct Lookup {
    pub(super) node: String,
    pub(super) op: String,
    pub(super) table: String,
    /// The table, if the lookup itself can become remote.
    pub(super) key: Option<Key>,
    pub(super) reason: Option<String>,
}

#[derive(Default)]
pub(super) struct Survey {
    pub(super) tables: HashMap<Key, Table>,
    pub(super) lookups: Vec<Lookup>,
    /// Tables that move together or not at all.
    pub(super) groups: Vec<Vec<Key>>,
}

/// Whether a constant can be a table: two dims or more, or numbers that are no shape.
fn is_table(t: &Tensor) -> bool {
    t.rank() >= 2 || (t.rank() == 1 && t.dtype().is_float())
}

impl Survey {
    pub(super) fn graph<'g>(&mut self, graph: &'g Graph, scope: Option<&Scope<'g>>, overridable: bool) {
        for &id in graph.ops() {
            let node = graph.node(id);
            let site = Site { graph, scope, id };
            let mut group = Vec::new();
            for (operand, v) in node.inputs().iter().enumerate() {
                let Some(source) = v.and_then(|v| source(graph, scope, v)).filter(|s| is_table(&s.tensor)) else { continue };
                // What only passes a table on is no reader; whoever reads it then is.
                let passed =
                    operand == 0 && view_of(graph, id.value(0)).is_some() && super::source::source(graph, scope, id.value(0)).is_some();
                if !passed && let Some(key) = self.reader(&site, operand, source) {
                    group.push(key);
                }
            }
            self.computed(&site);
            if group.len() > 1 {
                group[1..].iter().for_each(|k| self.tables.get_mut(k).into_iter().for_each(|t| t.goes_along = t.lookups == 1));
                self.groups.push(group);
            }
            for body in node.attrs.iter().flat_map(|(_, a)| a.graphs()) {
                self.graph(body, Some(&Scope { graph, outer: scope }), overridable);
            }
        }
        for &id in graph.inputs() {
            if overridable
                && matches!(graph.node(id).kind, Kind::Input(Some(_)))
                && let Some(table) = self.table_behind(graph, scope, id.value(0))
            {
                table.reason.get_or_insert_with(|| "a caller can override it: it is also a graph input".into());
            }
        }
        for o in graph.outputs() {
            if let Some(table) = self.table_behind(graph, scope, o.value) {
                table.shared.get_or_insert_with(|| format!("it is also the graph output \"{}\"", graph.name_of(o.value)));
            }
        }
    }

    /// A lookup whose table is computed stays.
    fn computed(&mut self, site: &Site) {
        let node = site.graph.node(site.id);
        let own = node.op().filter(|op| &*op.domain == crate::ops::remote::DOMAIN && &*op.name == "Lookup");
        let (Some(op), Some(table)) = (own, node.input(0)) else { return };
        if source(site.graph, site.scope, table).is_none() {
            let maker = site.graph.node(table.node);
            let by = maker.op().map_or(String::new(), |op| format!(" by {} \"{}\"", op.name, maker.label()));
            let (node, op, table) = (node.label().to_owned(), op.to_string(), site.graph.name_of(table).to_owned());
            self.lookups.push(Lookup { node, op, table, key: None, reason: Some(format!("it is computed{by}")) });
        }
    }

    fn table_behind<'g>(&mut self, graph: &'g Graph, scope: Option<&Scope<'g>>, v: crate::ir::ValueId) -> Option<&mut Table> {
        let key = source(graph, scope, v)?.key;
        self.tables.get_mut(&key)
    }

    /// Counts a reader of a constant; the constant's name if it is one of several that a lookup reads together.
    fn reader(&mut self, site: &Site, operand: usize, source: Source) -> Option<Key> {
        let node = site.graph.node(site.id);
        let op = node.op()?;
        let label = node.label().to_owned();
        let verdict = verdict(site, operand, &source);
        let Source { key, tensor, .. } = source;
        let table = self.tables.entry(key.clone()).or_insert_with(|| Table {
            tensor: tensor.clone(),
            layout: None,
            lookups: 0,
            reason: None,
            shared: None,
            goes_along: false,
        });
        let mut found = Lookup { node: label.clone(), op: op.to_string(), table: key.1.clone(), key: None, reason: None };
        let verdict = verdict.map(|v| {
            let f = v?;
            let layout = Layout::new(&f, tensor.shape());
            match &table.layout {
                Some(l) if *l != layout => Err(format!("another lookup reads the table as {} rows of {:?}", l.rows, l.row)),
                _ => {
                    table.tensor = tensor;
                    table.layout = Some(layout);
                    Ok(f)
                }
            }
        });
        match verdict {
            Some(Ok(f)) => {
                table.lookups += 1;
                table.goes_along &= f.together;
                found.key = Some(key.clone());
                self.lookups.push(found);
                return f.together.then_some(key);
            }
            Some(Err(reason)) => {
                found.reason = Some(reason);
                self.lookups.push(found);
            }
            None => {}
        }
        table.shared.get_or_insert_with(|| format!("it is also read by {} \"{label}\"", op.name));
        None
    }

    /// Lookups in a function stay: its tables come with each call.
    pub(super) fn function(&mut self, graph: &Graph, name: &str) {
        for id in argument_lookups(graph) {
            let node = graph.node(id);
            let reason = Some(format!("it is inside function \"{name}\", whose table comes with each call"));
            let table = node.input(0).map(|v| graph.name_of(v).to_owned()).unwrap_or_default();
            let op = node.op().map(ToString::to_string).unwrap_or_default();
            self.lookups.push(Lookup { node: node.label().to_owned(), op, table, key: None, reason });
        }
    }
}

/// Lookups in what a function is called with.
fn argument_lookups(graph: &Graph) -> Vec<NodeId> {
    let argument = |mut v| {
        while let Some(of) = view_of(graph, v) {
            v = of;
        }
        matches!(graph.node(v.node).kind, Kind::Input(_))
    };
    let ops = ["Gather", "GatherND", "GatherElements", "GatherBlockQuantized", "EmbedLayerNormalization"];
    let is_lookup = |id: &NodeId| {
        let node = graph.node(*id);
        let at = if node.op().is_some_and(|o| &*o.name == "EmbedLayerNormalization") { 2 } else { 0 };
        node.op().is_some_and(|o| ops.contains(&&*o.name)) && node.input(at).is_some_and(argument)
    };
    graph.ops().iter().copied().filter(is_lookup).collect()
}

/// Whether some function looks up rows of what it is called with.
pub fn hidden_in_functions(model: &Model) -> bool {
    fn any(graph: &Graph) -> bool {
        let bodies = graph.ops().iter().flat_map(|&id| graph.node(id).attrs.iter().flat_map(|(_, a)| a.graphs()));
        !argument_lookups(graph).is_empty() || bodies.into_iter().any(any)
    }
    model.functions.iter().any(|f| any(&f.graph))
}
