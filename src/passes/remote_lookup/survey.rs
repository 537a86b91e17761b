//! What a model does with its constants: which are looked up, and what else reads them.

use super::compute::{Left, base, looked_up};
use super::source::{Source, place, source, view};
use super::{How, Key, Layout, Site, Types, verdict};
use crate::ir::{Graph, Kind, Model, NodeId, Scope, ValueId};
use crate::tensor::Tensor;
use std::collections::{BTreeSet, HashMap};

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
    /// Some lookup of it is a product with one-hot rows.
    pub(super) one_hot: bool,
    /// Its place among all, and the name that it is served by.
    pub(super) order: usize,
    pub(super) name: String,
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

pub(super) struct Survey<'t> {
    pub(super) tables: HashMap<Key, Table>,
    pub(super) lookups: Vec<Lookup>,
    /// Tables that move together or not at all.
    pub(super) groups: Vec<Vec<Key>>,
    types: &'t Types,
    one_hot: bool,
    left: Left,
    names: BTreeSet<String>,
}

/// Whether a constant can be a table: two dims or more, or a list that is no shape.
pub(super) fn is_table(t: &Tensor) -> bool {
    t.rank() >= 2 || (t.rank() == 1 && (t.dtype().is_float() || t.len() > 64))
}

impl<'t> Survey<'t> {
    pub(super) fn new(types: &'t Types, one_hot: bool, left: Left) -> Self {
        let (tables, lookups, groups, names) = (HashMap::new(), Vec::new(), Vec::new(), BTreeSet::new());
        Self { tables, lookups, groups, types, one_hot, left, names }
    }

    pub(super) fn graph<'g>(&mut self, graph: &'g Graph, scope: Option<&Scope<'g>>, overridable: bool) {
        for &id in graph.ops() {
            let node = graph.node(id);
            let site = Site { graph, scope, id, types: self.types, one_hot: self.one_hot };
            let mut group = Vec::new();
            for (operand, v) in node.inputs().iter().enumerate() {
                let Some(source) = v.and_then(|v| source(graph, scope, v)).filter(|s| is_table(&s.tensor)) else { continue };
                // What only passes a table on is no reader; whoever reads it then is.
                let passed = view(graph, scope, id).is_some_and(|w| w.operand == operand)
                    && super::source::source(graph, scope, id.value(0)).is_some();
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

    fn table_behind<'g>(&mut self, graph: &'g Graph, scope: Option<&Scope<'g>>, v: crate::ir::ValueId) -> Option<&mut Table> {
        let key = source(graph, scope, v)?.key;
        self.tables.get_mut(&key)
    }

    /// Counts lookups of tables that were made of constants, and could not be computed.
    fn computed(&mut self, site: &Site) {
        let node = site.graph.node(site.id);
        let before = self.lookups.len();
        for v in looked_up(site.graph, site.id) {
            let of = base(site.graph, site.scope, v);
            let (graph, of) = match site.graph.node(of.node).kind {
                Kind::Capture => match super::source::outer_value(site.scope, site.graph.name_of(of)) {
                    Some((g, v, s)) => (g, base(g, s, v)),
                    None => continue,
                },
                _ => (site.graph, of),
            };
            let table = graph.name_of(of).to_owned();
            if let Some(why) = self.left.get(&(place(graph), table.clone())) {
                let op = node.op().map(ToString::to_string).unwrap_or_default();
                self.lookups.push(Lookup { node: node.label().to_owned(), op, table, key: None, reason: Some(why.clone()) });
            }
        }
        // An op that is nothing but a lookup is one even where its table is computed from inputs.
        let own = node.op().filter(|op| &*op.domain == crate::ops::remote::DOMAIN && &*op.name == "Lookup");
        if let (true, Some(op), Some(table)) = (self.lookups.len() == before, own, node.input(0))
            && source(site.graph, site.scope, table).is_none()
        {
            let maker = site.graph.node(table.node);
            let by = maker.op().map_or(String::new(), |op| format!(" by {} \"{}\"", op.name, maker.label()));
            let (node, op, table) = (node.label().to_owned(), op.to_string(), site.graph.name_of(table).to_owned());
            self.lookups.push(Lookup { node, op, table, key: None, reason: Some(format!("it is computed{by}")) });
        }
    }

    /// The name by which a table is served: its own, or with a number where another has that.
    fn name(&mut self, own: &str) -> String {
        let names = (0..).map(|n| if n == 0 { own.to_owned() } else { format!("{own}_{n}") });
        let name = names.into_iter().find(|n| !self.names.contains(n)).unwrap_or_default();
        self.names.insert(name.clone());
        name
    }

    /// Counts a reader of a constant; the constant's name if it is one of several that a lookup reads together.
    fn reader(&mut self, site: &Site, operand: usize, source: Source) -> Option<Key> {
        let node = site.graph.node(site.id);
        let op = node.op()?;
        let label = node.label().to_owned();
        let verdict = verdict(site, operand, &source);
        let Source { key, tensor, .. } = source;
        if !self.tables.contains_key(&key) {
            let table = Table {
                tensor: tensor.clone(),
                layout: None,
                lookups: 0,
                reason: None,
                shared: None,
                goes_along: false,
                one_hot: false,
                order: self.tables.len(),
                name: self.name(&key.1),
            };
            self.tables.insert(key.clone(), table);
        }
        let table = self.tables.get_mut(&key)?;
        let mut found = Lookup { node: label.clone(), op: op.to_string(), table: table.name.clone(), key: None, reason: None };
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
                table.one_hot |= matches!(f.how, How::OneHot { .. });
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

/// Lookups of a function in what it is called with, or in what it holds; with those in its bodies.
fn argument_lookups(graph: &Graph) -> Vec<NodeId> {
    graph.ops().iter().copied().filter(|&id| looked_up(graph, id).into_iter().any(|v| of_caller(graph, v))).collect()
}

/// Ops that make tables of tables, besides those that pass them on.
const MADE_BY: &[&str] = &["Add", "Concat", "Div", "Mul", "Pad", "Slice", "Sub", "Transpose", "Where"];

/// Whether a value is an argument, or made of arguments and constants alone.
fn of_caller(graph: &Graph, v: ValueId) -> bool {
    let mut todo = vec![v];
    let mut seen = BTreeSet::new();
    while let Some(v) = todo.pop() {
        if !seen.insert(v) || seen.len() > 64 {
            continue;
        }
        let node = graph.node(v.node);
        match &node.kind {
            Kind::Input(_) | Kind::Param(_) | Kind::Capture => return true,
            Kind::Op(op) if op.is("Constant") => return true,
            // What a table is made by; shapes and activations are none.
            Kind::Op(op) if super::source::is_plain(op) || MADE_BY.contains(&&*op.name) => todo.extend(node.inputs().iter().flatten()),
            _ => {}
        }
    }
    false
}

/// Whether some function looks up rows of what it is called with, or of what it holds.
pub fn hidden_in_functions(model: &Model) -> bool {
    fn any(graph: &Graph) -> bool {
        let bodies = graph.ops().iter().flat_map(|&id| graph.node(id).attrs.iter().flat_map(|(_, a)| a.graphs()));
        !argument_lookups(graph).is_empty() || bodies.into_iter().any(any)
    }
    model.functions.iter().any(|f| any(&f.graph))
}
