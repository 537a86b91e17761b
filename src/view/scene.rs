//! What a picture shows: boxes with a few lines each, the arrows between them, and pictures of bodies inside.

use super::changes::{self, Aligned};
use crate::ir::{Attr, Attrs, Graph, Kind, Model, NodeId, Type, ValueId};
use crate::tensor::Tensor;
use std::collections::{HashMap, HashSet};

/// What became of a box, where two models are drawn as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Change {
    /// It is in both.
    #[default]
    Same,
    /// Only the new model has it.
    Added,
    /// Only the old model has it.
    Removed,
    /// Both have it, with other attributes, operands or elements.
    Changed,
}

/// What a box stands for; it gives shape and colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(super) enum Role {
    Input,
    Output,
    Captured,
    Table,
    Weights,
    RemoteLookup,
    Lookup,
    Collective,
    Product,
    Elements,
    Reduce,
    Shape,
    Control,
    Call,
    Other,
}

/// A box.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) role: Role,
    pub(super) change: Change,
    pub(super) title: String,
    /// Further lines in the box.
    pub(super) lines: Vec<String>,
    /// What a click shows: names and values.
    pub(super) details: Vec<(String, String)>,
    /// Bodies, with the names of the attributes that hold them.
    pub(super) bodies: Vec<Scene>,
}

/// An arrow between boxes, with the name and type of what flows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Arrow {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) label: String,
}

/// What is drawn of one graph.
#[derive(Debug, Clone, Default)]
pub struct Scene {
    pub(super) title: String,
    pub(super) items: Vec<Item>,
    pub(super) arrows: Vec<Arrow>,
}

/// Elements from which on a constant that no lookup reads gets a box of its own.
const BOXED: usize = 1 << 20;
/// Lines that a box has, at most.
const LINES: usize = 14;

impl Scene {
    /// The main graph of a model, then its functions.
    pub fn of(model: &Model) -> Scene {
        let mut scene = Builder::new(&[model]).graph(&model.graph, "");
        add_functions(&mut scene, model, Change::Same);
        scene
    }

    /// Two models as one.
    pub fn of_both(old: &Model, new: &Model) -> Scene {
        let builder = Builder::new(&[old, new]);
        let mut scene = builder.both(&old.graph, &new.graph, "");
        let names = |m: &Model| m.functions.iter().map(|f| f.op()).collect::<HashSet<_>>();
        let (before, after) = (names(old), names(new));
        for f in new.functions.iter().filter(|f| !before.contains(&f.op())) {
            scene.items.push(function(&builder, f, Change::Added));
        }
        for f in old.functions.iter().filter(|f| !after.contains(&f.op())) {
            scene.items.push(function(&builder, f, Change::Removed));
        }
        scene
    }
}

fn add_functions(scene: &mut Scene, model: &Model, change: Change) {
    let builder = Builder::new(&[model]);
    scene.items.extend(model.functions.iter().map(|f| function(&builder, f, change)));
}

fn function(builder: &Builder, f: &crate::ir::Function, change: Change) -> Item {
    let body = builder.graph(&f.graph, "body");
    let title = format!("function {}", f.op());
    let details = vec![("function".into(), f.op().to_string())];
    let mut item = Item { role: Role::Call, change, title, lines: Vec::new(), details, bodies: vec![body] };
    if change != Change::Same {
        item.bodies.iter_mut().for_each(|b| b.items.iter_mut().for_each(|i| i.change = change));
    }
    item
}

struct Builder {
    functions: HashSet<crate::ir::OpName>,
    /// Constants by name: whether one has two dims or more.
    constants: HashMap<String, bool>,
}

impl Builder {
    fn new(models: &[&Model]) -> Self {
        let functions = models.iter().flat_map(|m| m.functions.iter().map(|f| f.op())).collect();
        let mut constants = HashMap::new();
        for graph in models.iter().flat_map(|m| m.graphs()) {
            for id in graph.nodes() {
                if let Some((name, t)) = constant_of(graph, id.value(0)).filter(|(n, _)| !n.is_empty()) {
                    constants.insert(name, t.rank() >= 2);
                }
            }
        }
        Self { functions, constants }
    }
}

/// Constants that have boxes of their own.
type Roles = HashMap<NodeId, Role>;

/// Which box a node became.
type Boxes = HashMap<NodeId, usize>;

impl Builder {
    fn graph(&self, graph: &Graph, title: &str) -> Scene {
        let mut scene = Scene { title: title.to_owned(), ..Scene::default() };
        let boxes = self.add_all(graph, &mut scene, &|_| true, Change::Same);
        for &id in graph.ops() {
            self.connect(graph, id, &mut scene, &boxes);
        }
        self.outputs(graph, &mut scene, &boxes, None);
        scene
    }

    fn both(&self, old: &Graph, new: &Graph, title: &str) -> Scene {
        let aligned = changes::align(old, new);
        let mut scene = Scene { title: title.to_owned(), ..Scene::default() };
        let boxes = self.add_all(new, &mut scene, &|_| true, Change::Same);
        let same: HashMap<NodeId, NodeId> = aligned.pairs.iter().copied().collect();
        let back: HashMap<NodeId, NodeId> = aligned.pairs.iter().map(|&(a, b)| (b, a)).collect();
        self.mark(old, new, &aligned, &back, &boxes, &mut scene);
        let mut before = self.add_all(old, &mut scene, &|id| !same.contains_key(&id), Change::Removed);
        for (a, b) in &same {
            if let Some(&i) = boxes.get(b) {
                before.insert(*a, i);
            }
        }
        new.ops().iter().for_each(|&id| self.connect(new, id, &mut scene, &boxes));
        let gone = old.ops().iter().filter(|id| !same.contains_key(id));
        gone.for_each(|&id| self.connect(old, id, &mut scene, &before));
        self.outputs(new, &mut scene, &boxes, Some(old));
        scene
    }

    fn mark(&self, old: &Graph, new: &Graph, aligned: &Aligned, back: &HashMap<NodeId, NodeId>, boxes: &Boxes, scene: &mut Scene) {
        for id in new.nodes() {
            let Some(&i) = boxes.get(&id) else { continue };
            let Some(&was) = back.get(&id) else {
                scene.items[i].change = Change::Added;
                continue;
            };
            let told = changes::node_changes(old, was, new, id, aligned);
            if !told.is_empty() {
                scene.items[i].change = Change::Changed;
                scene.items[i].details.extend(told.iter().map(|c| ("changed".to_owned(), c.clone())));
                scene.items[i].lines.extend(told.into_iter().take(3).map(|c| short_end(&c, 52)));
            }
            let bodies = |g: &Graph, n: NodeId| -> Vec<(String, Graph)> {
                let attrs = g.node(n).attrs.iter();
                attrs.flat_map(|(name, a)| a.graphs().iter().map(move |b| (name.to_owned(), b.clone()))).collect()
            };
            let pairs = bodies(old, was).into_iter().zip(bodies(new, id));
            scene.items[i].bodies = pairs.map(|((_, a), (name, b))| self.both(&a, &b, &name)).collect();
        }
    }

    fn add_all(&self, graph: &Graph, scene: &mut Scene, wanted: &dyn Fn(NodeId) -> bool, change: Change) -> Boxes {
        let mut boxes = Boxes::new();
        let mut roles = Roles::new();
        for id in graph.nodes() {
            if let Some(role) = constant_of(graph, id.value(0)).and_then(|(_, t)| constant_role(graph, id, t)) {
                roles.insert(id, role);
            }
        }
        for id in graph.nodes().filter(|&id| wanted(id)) {
            let Some(mut item) = self.item(graph, id, &roles) else { continue };
            item.change = change;
            boxes.insert(id, scene.items.len());
            scene.items.push(item);
        }
        boxes
    }

    fn item(&self, graph: &Graph, id: NodeId, roles: &Roles) -> Option<Item> {
        let node = graph.node(id);
        let name = node.outputs.first().map_or("", |o| &o.name);
        let plain = |role, title: &str, lines: Vec<String>, details| {
            Some(Item { role, change: Change::Same, title: short(title, 40), lines, details, bodies: Vec::new() })
        };
        let ty = node.outputs.first().and_then(|o| o.ty.as_ref()).map(Type::to_string);
        let named = |what: &str| {
            let mut details = vec![(what.to_owned(), name.to_owned())];
            details.extend(ty.clone().map(|t| ("type".to_owned(), t)));
            details
        };
        match &node.kind {
            Kind::Input(_) => plain(Role::Input, name, ty.clone().into_iter().collect(), named("input")),
            // Small constants are left out here as they are outside.
            Kind::Capture if self.constants.get(name) == Some(&false) => None,
            Kind::Capture => plain(Role::Captured, name, Vec::new(), named("from outside")),
            Kind::Sparse(s) => plain(Role::Weights, name, vec![format!("sparse {:?}", s.dims)], named("constant")),
            Kind::Param(c) => plain(*roles.get(&id)?, name, vec![size(&c.tensor)], named("constant")),
            Kind::Op(op) if op.is("Constant") => {
                let t = node.attrs.tensor("value").ok().flatten()?;
                plain(*roles.get(&id)?, name, vec![size(t)], named("constant"))
            }
            Kind::Op(op) => {
                let mut item = Item {
                    role: self.role(graph, id),
                    change: Change::Same,
                    title: op.to_string(),
                    lines: Vec::new(),
                    details: details(graph, id),
                    bodies: Vec::new(),
                };
                if !node.label().is_empty() {
                    item.lines.push(short(node.label(), 34));
                }
                item.lines.extend(lines(graph, id, roles));
                if item.lines.len() > LINES {
                    let more = item.lines.len() + 1 - LINES;
                    item.lines.truncate(LINES - 1);
                    item.lines.push(format!("and {more} more"));
                }
                for (attr, value) in node.attrs.iter() {
                    item.bodies.extend(value.graphs().iter().map(|b| self.graph(b, attr)));
                }
                Some(item)
            }
        }
    }

    fn role(&self, graph: &Graph, id: NodeId) -> Role {
        let Some(op) = graph.node(id).op() else { return Role::Other };
        if self.functions.contains(op) {
            return Role::Call;
        }
        let outer = |v: ValueId| matches!(graph.node(v.node).kind, Kind::Capture) && self.constants.get(graph.name_of(v)) == Some(&true);
        let table = |i: usize| graph.node(id).input(i).is_some_and(|v| is_constant(graph, v) || outer(v));
        match (&*op.domain, &*op.name) {
            ("graphtool", "RemoteLookup" | "RemoteLookupBag") => Role::RemoteLookup,
            ("graphtool", "AllReduce" | "AllGather" | "Broadcast" | "ReduceScatter" | "Barrier") => Role::Collective,
            ("graphtool", "Lookup") | ("com.microsoft", "GatherBlockQuantized" | "EmbedLayerNormalization") => Role::Lookup,
            ("", "Gather" | "GatherND" | "GatherElements") if table(0) => Role::Lookup,
            (_, "If" | "Loop" | "Scan" | "SequenceMap") => Role::Control,
            (_, n) if n.contains("MatMul") || n.contains("Gemm") || n.contains("Conv") || n.contains("Attention") || n == "Einsum" => {
                Role::Product
            }
            (_, "LSTM" | "GRU" | "RNN") => Role::Product,
            (_, n)
                if n.starts_with("Reduce") || n.contains("Norm") || n.contains("Pool") || n.contains("Softmax") || n.starts_with("Arg") =>
            {
                Role::Reduce
            }
            ("", n) if SHAPE_OPS.contains(&n) => Role::Shape,
            ("", _) => Role::Elements,
            _ => Role::Other,
        }
    }

    fn connect(&self, graph: &Graph, id: NodeId, scene: &mut Scene, boxes: &Boxes) {
        let Some(&to) = boxes.get(&id) else { return };
        let mut reads: Vec<ValueId> = graph.node(id).inputs().iter().flatten().copied().chain(graph.captured_by(id)).collect();
        reads.sort();
        reads.dedup();
        for v in reads {
            if let Some(&from) = boxes.get(&v.node).filter(|&&f| f != to) {
                scene.arrows.push(Arrow { from, to, label: flow(graph, v) });
            }
        }
    }

    fn outputs(&self, graph: &Graph, scene: &mut Scene, boxes: &Boxes, old: Option<&Graph>) {
        let before: Option<HashSet<&str>> = old.map(|g| g.outputs().iter().map(|o| g.name_of(o.value)).collect());
        for o in graph.outputs() {
            let name = graph.name_of(o.value);
            let ty = o.ty.as_ref().or(graph.type_of(o.value)).map(Type::to_string);
            let mut details = vec![("output".to_owned(), name.to_owned())];
            details.extend(ty.clone().map(|t| ("type".to_owned(), t)));
            let change = if before.as_ref().is_some_and(|b| !b.contains(name)) { Change::Added } else { Change::Same };
            let lines = ty.into_iter().collect();
            let to = scene.items.len();
            scene.items.push(Item { role: Role::Output, change, title: short(name, 40), lines, details, bodies: Vec::new() });
            if let Some(&from) = boxes.get(&o.value.node) {
                scene.arrows.push(Arrow { from, to, label: flow(graph, o.value) });
            }
        }
    }
}

const SHAPE_OPS: &[&str] = &[
    "Cast",
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Pad",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

fn is_constant(graph: &Graph, v: ValueId) -> bool {
    let node = graph.node(v.node);
    matches!(node.kind, Kind::Param(_)) || node.op().is_some_and(|o| o.is("Constant"))
}

/// Tables and large weights have boxes, other constants do not.
fn constant_role(graph: &Graph, id: NodeId, t: &Tensor) -> Option<Role> {
    let v = id.value(0);
    let table = t.rank() >= 2 && is_looked_up(graph, v);
    if table { Some(Role::Table) } else { (!graph.is_unused(v) && t.len() >= BOXED).then_some(Role::Weights) }
}

/// Whether rows of a value are looked up, here or in a body.
fn is_looked_up(graph: &Graph, v: ValueId) -> bool {
    let lookups = ["Gather", "GatherND", "GatherElements", "Lookup", "GatherBlockQuantized", "EmbedLayerNormalization"];
    graph.uses(v).iter().any(|u| {
        let node = graph.node(u.node);
        if u.operand.is_some() {
            let op = node.op().is_some_and(|o| lookups.contains(&&*o.name) && (u.operand == Some(0) || o.name.contains("Embed")));
            return op;
        }
        let bodies = node.attrs.iter().flat_map(|(_, a)| a.graphs());
        bodies.into_iter().any(|b| b.value(graph.name_of(v)).is_some_and(|inner| is_looked_up(b, inner)))
    })
}

fn size(t: &Tensor) -> String {
    let bytes = t.dtype().byte_len(t.shape()).map_or(String::new(), |b| format!(", {}", bytes(b as u64)));
    let dims: Vec<String> = t.shape().iter().map(ToString::to_string).collect();
    format!("{} {}{bytes}", dims.join("×"), t.dtype())
}

/// Bytes as people read them.
pub(super) fn bytes(n: u64) -> String {
    let (mut x, mut unit) = (n as f64, 0);
    while x >= 1024.0 && unit < 4 {
        x /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{x:.1} {}", ["B", "KiB", "MiB", "GiB", "TiB"][unit]) }
}

/// A text of so many characters at most, its end kept, for names differ there.
pub(super) fn short(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    format!("…{}", text.chars().skip(count + 1 - most).collect::<String>())
}

fn flow(graph: &Graph, v: ValueId) -> String {
    match graph.type_of(v) {
        Some(t) => format!("{}: {t}", graph.name_of(v)),
        None => graph.name_of(v).to_owned(),
    }
}

/// What a box of an operator says of it.
fn lines(graph: &Graph, id: NodeId, roles: &Roles) -> Vec<String> {
    let node = graph.node(id);
    if let Some(tables) = remote_tables(&node.attrs) {
        return tables;
    }
    let mut out = Vec::new();
    let attrs: Vec<String> = node.attrs.iter().filter_map(|(n, a)| Some(format!("{n}={}", attr(a)?))).collect();
    if !attrs.is_empty() && !node.op().is_some_and(|o| o.is("Constant")) {
        out.push(short_end(&attrs.join(" "), 44));
    }
    // Those with a box of their own are told there.
    let told = |v: &&ValueId| is_constant(graph, **v) && !roles.contains_key(&v.node);
    let params = node.inputs().iter().flatten().filter(told).filter_map(|v| constant_of(graph, *v));
    out.extend(params.filter(|(_, t)| t.rank() >= 1 && t.len() > 1).map(|(n, t)| format!("{} {}", short(&n, 20), dims(t))));
    let ty = node.outputs.first().and_then(|o| o.ty.as_ref());
    out.extend(ty.map(|t| format!("→ {}", short_end(&t.to_string(), 42))));
    out
}

fn dims(t: &Tensor) -> String {
    t.shape().iter().map(ToString::to_string).collect::<Vec<_>>().join("×")
}

fn constant_of(graph: &Graph, v: ValueId) -> Option<(String, &Tensor)> {
    let node = graph.node(v.node);
    let tensor = match &node.kind {
        Kind::Param(c) => Some(&c.tensor),
        _ => node.attrs.tensor("value").ok().flatten(),
    };
    tensor.map(|t| (graph.name_of(v).to_owned(), t))
}

fn short_end(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_owned() } else { format!("{}…", text.chars().take(most - 1).collect::<String>()) }
}

/// The tables of a remote lookup: name, rows, dims of a row, bytes.
fn remote_tables(attrs: &Attrs) -> Option<Vec<String>> {
    let names = attrs.strings("tables").ok()??;
    let ints = |n: &str| attrs.ints(n).ok().flatten().unwrap_or_default();
    let (rows, ranks, dtypes, mut dims) = (ints("rows"), ints("row_ranks"), ints("dtypes"), ints("row_dims").iter());
    let mut out = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let rank = ranks.get(i).copied().unwrap_or(0).max(0) as usize;
        let row: Vec<i64> = dims.by_ref().take(rank).copied().collect();
        let dtype = dtypes.get(i).and_then(|&d| i32::try_from(d).ok()).and_then(crate::tensor::DType::from_onnx);
        let n = rows.get(i).copied().unwrap_or(0);
        let bits = dtype.map_or(0, crate::tensor::DType::bits) as i64;
        let total = row.iter().try_fold(n, |a, &d| a.checked_mul(d)).and_then(|e| e.checked_mul(bits)).map_or(0, |b| b / 8);
        let shape = std::iter::once(n).chain(row).map(|d| d.to_string()).collect::<Vec<_>>().join("×");
        out.push(format!("{}  {shape} {}, {}", short(name, 26), dtype.map_or("?", |d| d.name()), bytes(total.max(0) as u64)));
    }
    Some(out)
}

/// An attribute in a word; bodies have none.
fn attr(a: &Attr) -> Option<String> {
    Some(match a {
        Attr::Int(x) => x.to_string(),
        Attr::Float(x) => x.to_string(),
        Attr::String(s) => format!("{:?}", String::from_utf8_lossy(s)),
        Attr::Ints(x) => format!("{x:?}"),
        Attr::Floats(x) => format!("{x:?}"),
        Attr::Strings(x) => format!("{} texts", x.len()),
        Attr::Tensor(c) => size(&c.tensor),
        Attr::Ref(n) => format!("@{n}"),
        Attr::Graph(_) | Attr::Graphs(_) => return None,
        other => other.kind().to_owned(),
    })
}

fn details(graph: &Graph, id: NodeId) -> Vec<(String, String)> {
    let node = graph.node(id);
    let mut out = vec![("op".to_owned(), node.op().map(ToString::to_string).unwrap_or_default())];
    if !node.name.is_empty() {
        out.push(("name".into(), node.name.clone()));
    }
    for (name, a) in node.attrs.iter() {
        if let (Attr::Strings(list), true) = (a, name == "tables") {
            out.push((name.to_owned(), list.iter().map(|s| String::from_utf8_lossy(s)).collect::<Vec<_>>().join(", ")));
        } else if let Some(text) = attr(a) {
            out.push((name.to_owned(), short_end(&text, 400)));
        }
    }
    let place = |i: usize, v: &Option<ValueId>| (format!("input {i}"), v.map_or("left out".to_owned(), |v| flow(graph, v)));
    out.extend(node.inputs().iter().enumerate().map(|(i, v)| place(i, v)));
    let made = node.outputs.iter().enumerate().filter(|(_, o)| !o.name.is_empty());
    out.extend(made.map(|(i, _)| (format!("output {i}"), flow(graph, id.value(i as u32)))));
    out.extend(remote_tables(&node.attrs).into_iter().flatten().map(|t| ("table".to_owned(), t)));
    out
}
