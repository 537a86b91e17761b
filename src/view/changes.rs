//! What differs between two models. Nodes are aligned by structure: what computes the same of the same is the same node,
//! whatever its name and place; what is left is aligned by names, and then by its neighbours.

use crate::ir::{Attr, Attrs, Function, Graph, Kind, Model, Node, NodeId, Type};
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// How the nodes of two graphs correspond.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    /// Old and new.
    pub(super) pairs: BTreeSet<(NodeId, NodeId)>,
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `opset`, `metadata`, `function`, `input`, `output`, `parameter` or `node`.
    pub kind: &'static str,
    /// Where: the bodies and functions that it lies in, then its name.
    pub name: String,
    /// As the old model has it; nothing where that has not.
    pub old: Option<String>,
    /// As the new model has it.
    pub new: Option<String>,
    /// What changed, where both have it.
    pub changes: Vec<String>,
}

/// What differs between two models.
#[derive(Debug, Default)]
pub struct Differences {
    /// All differences but names.
    pub list: Vec<Difference>,
    /// Nodes and constants that are the same under another name: the old and the new one.
    pub renamed: Vec<(String, String)>,
}

/// Compares two models.
pub fn differences(old: &Model, new: &Model) -> Differences {
    let mut out = Differences::default();
    let opsets = |m: &Model| -> BTreeMap<String, String> {
        let domain = |d: &str| if d.is_empty() { "ai.onnx".to_owned() } else { d.to_owned() };
        m.opset_imports.iter().map(|o| (domain(&o.domain), o.version.to_string())).collect()
    };
    texts("opset", &opsets(old), &opsets(new), &mut out);
    let metadata = |m: &Model| m.metadata.iter().cloned().collect();
    texts("metadata", &metadata(old), &metadata(new), &mut out);
    graphs(&old.graph, &new.graph, "", &mut out);
    for f in &old.functions {
        match new.functions.iter().find(|g| g.op() == f.op()) {
            Some(g) => graphs(&f.graph, &g.graph, &format!("{}/", f.op()), &mut out),
            None => out.list.push(whole_function(f, true)),
        }
    }
    let added = new.functions.iter().filter(|f| old.functions.iter().all(|g| g.op() != f.op()));
    out.list.extend(added.map(|f| whole_function(f, false)));
    out
}

fn whole_function(f: &Function, old: bool) -> Difference {
    let text = Some(format!("{} nodes", f.graph.ops().len()));
    let (old, new) = if old { (text, None) } else { (None, text) };
    Difference { kind: "function", name: f.op().to_string(), old, new, changes: Vec::new() }
}

fn texts(kind: &'static str, old: &BTreeMap<String, String>, new: &BTreeMap<String, String>, out: &mut Differences) {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in keys {
        let (a, b) = (old.get(name).cloned(), new.get(name).cloned());
        if a != b {
            out.list.push(Difference { kind, name: name.clone(), old: a, new: b, changes: Vec::new() });
        }
    }
}

fn graphs(old: &Graph, new: &Graph, place: &str, out: &mut Differences) {
    interface(old, new, place, out);
    let aligned = align(old, new);
    let back: HashMap<NodeId, NodeId> = aligned.pairs.iter().map(|&(a, b)| (b, a)).collect();
    let there: HashSet<NodeId> = aligned.pairs.iter().map(|p| p.0).collect();
    for gone in old.nodes().filter(|id| !there.contains(id) && counts(old, *id)) {
        let (kind, name) = (kind(old.node(gone)), format!("{place}{}", old.node(gone).label()));
        out.list.push(Difference { kind, name, old: Some(text(old, gone)), new: None, changes: Vec::new() });
    }
    for id in new.nodes().filter(|&id| counts(new, id)) {
        let name = format!("{place}{}", new.node(id).label());
        let Some(&was) = back.get(&id) else {
            out.list.push(Difference { kind: kind(new.node(id)), name, old: None, new: Some(text(new, id)), changes: Vec::new() });
            continue;
        };
        let changes = node_changes(old, was, new, id, &aligned);
        if !changes.is_empty() {
            let kind = kind(new.node(id));
            out.list.push(Difference { kind, name: name.clone(), old: Some(text(old, was)), new: Some(text(new, id)), changes });
        }
        let (a, b) = (old.node(was).label(), new.node(id).label());
        if a != b {
            out.renamed.push((format!("{place}{a}"), format!("{place}{b}")));
        }
        let bodies = |g: &'_ Graph, n: NodeId| -> Vec<(String, Graph)> {
            g.node(n).attrs.iter().flat_map(|(k, v)| v.graphs().iter().map(move |b| (k.to_owned(), b.clone()))).collect()
        };
        for ((_, a), (attr, b)) in bodies(old, was).into_iter().zip(bodies(new, id)) {
            graphs(&a, &b, &format!("{name}.{attr}/"), out);
        }
    }
}

fn interface(old: &Graph, new: &Graph, place: &str, out: &mut Differences) {
    let ty = |t: Option<&Type>| t.map_or_else(|| "?".to_owned(), ToString::to_string);
    let inputs = |g: &Graph| -> Vec<(String, String)> {
        g.inputs().iter().map(|&i| (g.name_of(i.value(0)).to_owned(), ty(g.type_of(i.value(0))))).collect()
    };
    let outputs =
        |g: &Graph| -> Vec<(String, String)> { g.outputs().iter().map(|o| (g.name_of(o.value).to_owned(), ty(o.ty.as_ref()))).collect() };
    // What bodies are called with has no names that count.
    for (kind, a, b) in [("input", inputs(old), inputs(new)), ("output", outputs(old), outputs(new))] {
        if !place.is_empty() {
            if a.len() != b.len() {
                let count = |n: usize| Some(format!("{n} {kind}s"));
                let (old, new) = (count(a.len()), count(b.len()));
                out.list.push(Difference { kind, name: place.to_owned(), old, new, changes: Vec::new() });
            }
            continue;
        }
        let order = |l: &[(String, String)]| l.iter().map(|x| x.0.clone()).collect::<Vec<_>>();
        let (names, now) = (order(&a), order(&b));
        texts(kind, &a.into_iter().collect(), &b.into_iter().collect(), out);
        let sorted = |mut l: Vec<String>| {
            l.sort();
            l
        };
        if names != now && sorted(names.clone()) == sorted(now.clone()) {
            let (old, new) = (Some(names.join(", ")), Some(now.join(", ")));
            out.list.push(Difference { kind, name: "order".into(), old, new, changes: Vec::new() });
        }
    }
}

/// Nodes that are compared: operators and constants; the interface is compared by itself, captures are names.
fn counts(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.node(id).kind, Kind::Op(_) | Kind::Param(_) | Kind::Sparse(_))
}

fn kind(node: &Node) -> &'static str {
    let constant = matches!(node.kind, Kind::Param(_) | Kind::Sparse(_)) || node.op().is_some_and(|o| o.is("Constant"));
    if constant { "parameter" } else { "node" }
}

/// A node in a line.
fn text(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    if let Some(t) = tensor(node) {
        return format!("{}{}", t.dtype(), t.shape());
    }
    let operands: Vec<&str> = node.inputs().iter().map(|v| v.map_or("_", |v| graph.name_of(v))).collect();
    let outputs: Vec<&str> = node.outputs.iter().map(|o| o.name.as_str()).collect();
    let attrs: Vec<String> = node.attrs.iter().map(|(n, a)| format!("{n}={}", value(a))).collect();
    let attrs = if attrs.is_empty() { String::new() } else { format!(" {{{}}}", attrs.join(", ")) };
    let op = node.op().map(ToString::to_string).unwrap_or_default();
    format!("{} = {op}({}){attrs}", outputs.join(", "), operands.join(", "))
}

fn tensor(node: &Node) -> Option<&Tensor> {
    match &node.kind {
        Kind::Param(c) => Some(&c.tensor),
        Kind::Op(op) if op.is("Constant") => node.attrs.tensor("value").ok().flatten(),
        _ => None,
    }
}

fn value(a: &Attr) -> String {
    match a {
        Attr::Int(x) => x.to_string(),
        Attr::Float(x) => format!("{x:?}"),
        Attr::String(s) => format!("{:?}", String::from_utf8_lossy(s)),
        Attr::Ints(x) => format!("{x:?}"),
        Attr::Floats(x) => format!("{x:?}"),
        Attr::Strings(x) => format!("{:?}", x.iter().map(|s| String::from_utf8_lossy(s)).collect::<Vec<_>>()),
        Attr::Tensor(c) => format!("{}{}", c.tensor.dtype(), c.tensor.shape()),
        Attr::Type(t) => t.to_string(),
        Attr::Ref(n) => format!("@{n}"),
        Attr::Graph(g) => format!("graph of {} nodes", g.ops().len()),
        other => other.kind().to_owned(),
    }
}

/// What two attributes that may hold bodies and tensors hash and compare by.
fn attr_key(a: &Attr) -> String {
    match a {
        Attr::Tensor(c) => tensor_key(&c.tensor),
        Attr::Tensors(list) => list.iter().map(|c| tensor_key(&c.tensor)).collect::<Vec<_>>().join(","),
        // Bodies are compared node by node.
        Attr::Graph(_) | Attr::Graphs(_) => "graph".into(),
        Attr::Sparse(s) => format!("{:?} {} {}", s.dims, tensor_key(&s.values.tensor), tensor_key(&s.indices.tensor)),
        other => value(other),
    }
}

fn tensor_key(t: &Tensor) -> String {
    let mut hasher = DefaultHasher::new();
    match t.bytes() {
        Some(bytes) => bytes.hash(&mut hasher),
        None => (t.absent_place(), t.as_slice::<String>().ok()).hash(&mut hasher),
    }
    format!("{}{} {:x}", t.dtype(), t.shape(), hasher.finish())
}

/// What changed of a node that both graphs have.
pub(super) fn node_changes(old: &Graph, was: NodeId, new: &Graph, is: NodeId, aligned: &Aligned) -> Vec<String> {
    let (a, b) = (old.node(was), new.node(is));
    let mut out = Vec::new();
    if let (Some(s), Some(t)) = (tensor(a), tensor(b)) {
        out.extend(elements(s, t));
        return out;
    }
    if a.op() != b.op() {
        out.push(format!("op {} is now {}", name(a), name(b)));
    }
    out.extend(attributes(&a.attrs, &b.attrs));
    for i in 0..a.inputs().len().max(b.inputs().len()) {
        let same = match (a.input(i), b.input(i)) {
            (None, None) => true,
            (Some(v), Some(w)) => v.slot == w.slot && aligned.pairs.contains(&(v.node, w.node)),
            _ => false,
        };
        if !same {
            let name = |g: &Graph, v: Option<crate::ir::ValueId>| v.map_or("nothing".to_owned(), |v| format!("\"{}\"", g.name_of(v)));
            let (before, now) = (name(old, a.input(i)), name(new, b.input(i)));
            out.push(match before == now {
                true => format!("input {i}: {now} is made otherwise"),
                false => format!("input {i}: {before} is now {now}"),
            });
        }
    }
    if a.outputs.len() != b.outputs.len() {
        out.push(format!("{} outputs, now {}", a.outputs.len(), b.outputs.len()));
    }
    out
}

fn name(n: &Node) -> String {
    n.op().map(ToString::to_string).unwrap_or_default()
}

fn elements(a: &Tensor, b: &Tensor) -> Option<String> {
    if (a.dtype(), a.shape()) != (b.dtype(), b.shape()) {
        return Some(format!("{}{} is now {}{}", a.dtype(), a.shape(), b.dtype(), b.shape()));
    }
    if tensor_key(a) == tensor_key(b) {
        return None;
    }
    let (Ok(x), Ok(y)) = (a.to_f32s(), b.to_f32s()) else { return Some("other elements".into()) };
    let differ = x.iter().zip(&y).filter(|(p, q)| p.to_bits() != q.to_bits()).count();
    let most = x.iter().zip(&y).map(|(p, q)| (p - q).abs()).fold(0f32, f32::max);
    Some(format!("{differ} of {} elements differ, by {most} at most", x.len()))
}

fn attributes(a: &Attrs, b: &Attrs) -> Vec<String> {
    let names: BTreeSet<&str> = a.iter().chain(b.iter()).map(|(n, _)| n).collect();
    let mut out = Vec::new();
    for n in names {
        match (a.get(n), b.get(n)) {
            (Some(x), None) => out.push(format!("attribute {n}={} is gone", value(x))),
            (None, Some(y)) => out.push(format!("attribute {n}={} is new", value(y))),
            (Some(x), Some(y)) if attr_key(x) != attr_key(y) => out.push(format!("attribute {n}: {} is now {}", value(x), value(y))),
            _ => {}
        }
    }
    out
}

/// Aligns the nodes of two graphs.
pub(super) fn align(old: &Graph, new: &Graph) -> Aligned {
    let mut m = Matching { old, new, to: HashMap::new(), from: HashMap::new() };
    // Inputs, captures: by name; bodies' inputs by place.
    for (i, &a) in old.inputs().iter().enumerate() {
        let named = new.inputs().iter().copied().find(|&b| new.name_of(b.value(0)) == old.name_of(a.value(0)));
        let placed = new.inputs().get(i).copied().filter(|b| old.value(new.name_of(b.value(0))).is_none());
        named.or(placed).into_iter().for_each(|b| m.pair(a, b));
    }
    for &a in old.captures() {
        let named = new.captures().iter().copied().find(|&b| new.name_of(b.value(0)) == old.name_of(a.value(0)));
        named.into_iter().for_each(|b| m.pair(a, b));
    }
    m.by_structure();
    m.by_name();
    m.by_neighbours();
    Aligned { pairs: m.to.into_iter().collect() }
}

struct Matching<'g> {
    old: &'g Graph,
    new: &'g Graph,
    to: HashMap<NodeId, NodeId>,
    from: HashMap<NodeId, NodeId>,
}

impl<'g> Matching<'g> {
    fn pair(&mut self, a: NodeId, b: NodeId) {
        if !self.to.contains_key(&a) && !self.from.contains_key(&b) {
            self.to.insert(a, b);
            self.from.insert(b, a);
        }
    }

    /// Nodes that compute the same of the same inputs and constants; of several, those of one name first.
    fn by_structure(&mut self) {
        let (a, b) = (signatures(self.old), signatures(self.new));
        let mut named: HashMap<(u64, &str), VecDeque<NodeId>> = HashMap::new();
        let (old, new): (&'g Graph, &'g Graph) = (self.old, self.new);
        for id in new.nodes().filter(|&id| counts(new, id)) {
            named.entry((b[&id], new.node(id).label())).or_default().push_back(id);
        }
        for id in old.nodes().filter(|&id| counts(old, id)) {
            if let Some(b) = named.get_mut(&(a[&id], old.node(id).label())).and_then(VecDeque::pop_front) {
                self.pair(id, b);
            }
        }
        let mut rest: HashMap<u64, VecDeque<NodeId>> = HashMap::new();
        for id in new.nodes().filter(|&id| counts(new, id) && !self.from.contains_key(&id)) {
            rest.entry(b[&id]).or_default().push_back(id);
        }
        for id in old.nodes().filter(|&id| counts(old, id)).collect::<Vec<_>>() {
            if !self.to.contains_key(&id)
                && let Some(b) = rest.get_mut(&a[&id]).and_then(VecDeque::pop_front)
            {
                self.pair(id, b);
            }
        }
    }

    /// What is left: the same op, or a constant, of the same name.
    fn by_name(&mut self) {
        let value = |node: &Node| node.outputs.first().map(|o| o.name.clone()).unwrap_or_default();
        let mut names: HashMap<(String, String), NodeId> = HashMap::new();
        for id in self.new.nodes().filter(|&id| counts(self.new, id) && !self.from.contains_key(&id)) {
            names.insert((name(self.new.node(id)), value(self.new.node(id))), id);
        }
        for id in self.old.nodes().filter(|&id| counts(self.old, id)) {
            if !self.to.contains_key(&id)
                && let Some(&b) = names.get(&(name(self.old.node(id)), value(self.old.node(id))))
            {
                self.pair(id, b);
            }
        }
    }

    /// What is left: the same op between nodes that are aligned.
    fn by_neighbours(&mut self) {
        let outputs =
            |g: &Graph| -> HashMap<String, NodeId> { g.outputs().iter().map(|o| (g.name_of(o.value).to_owned(), o.value.node)).collect() };
        let theirs = outputs(self.new);
        let mut mine: Vec<(String, NodeId)> = outputs(self.old).into_iter().collect();
        mine.sort();
        for (name, a) in mine {
            if let Some(&b) = theirs.get(&name) {
                self.alike(a, b);
            }
        }
        let mut todo: VecDeque<(NodeId, NodeId)> = self.to.iter().map(|(&a, &b)| (a, b)).collect();
        todo.make_contiguous().sort_unstable();
        while let Some((a, b)) = todo.pop_front() {
            let (x, y) = (self.old.node(a).inputs().to_vec(), self.new.node(b).inputs().to_vec());
            for (v, w) in x.into_iter().zip(y) {
                if let (Some(v), Some(w)) = (v, w)
                    && self.alike(v.node, w.node)
                {
                    todo.push_back((v.node, w.node));
                }
            }
            let slots = self.old.node(a).outputs.len().min(self.new.node(b).outputs.len());
            for slot in 0..slots as u32 {
                let readers = self.old.uses(a.value(slot));
                for (u, w) in readers.into_iter().zip(self.new.uses(b.value(slot))) {
                    if self.alike(u.node, w.node) {
                        todo.push_back((u.node, w.node));
                    }
                }
            }
        }
    }

    /// Pairs two nodes that are of one kind and free; whether it did.
    fn alike(&mut self, a: NodeId, b: NodeId) -> bool {
        let (x, y) = (self.old.node(a), self.new.node(b));
        let constants = || match (tensor(x), tensor(y)) {
            (Some(s), Some(t)) => (s.dtype(), s.shape()) == (t.dtype(), t.shape()),
            _ => false,
        };
        let same = counts(self.old, a) && counts(self.new, b) && x.op() == y.op() && (x.op().is_some() || constants());
        let free = !self.to.contains_key(&a) && !self.from.contains_key(&b);
        if same && free {
            self.pair(a, b);
        }
        same && free
    }
}

/// A number for each node: equal where op, attributes, bodies and all that is read are equal.
fn signatures(graph: &Graph) -> HashMap<NodeId, u64> {
    let mut found: HashMap<NodeId, u64> = HashMap::new();
    let order = graph.topological().unwrap_or_else(|_| graph.ops().to_vec());
    let others = graph.nodes().filter(|&id| graph.node(id).op().is_none());
    for id in others.collect::<Vec<_>>().into_iter().chain(order) {
        let node = graph.node(id);
        let mut h = DefaultHasher::new();
        match (&node.kind, tensor(node)) {
            (_, Some(t)) => ("constant", tensor_key(t)).hash(&mut h),
            (Kind::Sparse(s), _) => format!("{s:?}").hash(&mut h),
            (Kind::Input(_), _) => match graph.inputs().iter().position(|&i| i == id) {
                // Inputs of the main graph count by name, those of bodies by place.
                Some(at) if !graph.captures().is_empty() => ("input", at).hash(&mut h),
                _ => ("input", graph.name_of(id.value(0))).hash(&mut h),
            },
            (Kind::Capture, _) => ("outer", graph.name_of(id.value(0))).hash(&mut h),
            _ => {
                node.op().hash(&mut h);
                let mut attrs: Vec<(String, String)> = node.attrs.iter().map(|(n, a)| (n.to_owned(), attr_key(a))).collect();
                attrs.sort();
                attrs.hash(&mut h);
                let reads = node.inputs().iter().copied().chain(graph.captured_by(id).into_iter().map(Some));
                for v in reads {
                    v.map(|v| (found.get(&v.node).copied().unwrap_or(0), v.slot)).hash(&mut h);
                }
                for body in node.attrs.iter().flat_map(|(_, a)| a.graphs()) {
                    let inner = signatures(body);
                    body.outputs().iter().for_each(|o| (inner.get(&o.value.node).copied(), o.value.slot).hash(&mut h));
                }
            }
        }
        found.insert(id, h.finish());
    }
    found
}
