//! The canonical text form of graphs and models: what `dump` prints, snapshots hold and fingerprints are taken of.
//!
//! Constants of up to eight plain numbers are written out; others as the XXH3-128 of their bytes. What a file says
//! besides (doc strings, annotations) is not part of the text.

use super::attr::{Attr, Attrs, Constant};
use super::graph::{Graph, NodeId};
use super::model::{Function, Model, OpsetImport};
use super::node::{Kind, Output};
use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use std::fmt::{self, Write};

/// Elements up to which a constant is written out.
const INLINE: usize = 8;

/// Whether a name can stand without quotes.
pub(super) fn is_bare_name(s: &str) -> bool {
    !s.is_empty() && s != "_" && s.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.:/-".contains(&c))
}

fn name(s: &str) -> String {
    match s {
        "" => "_".into(),
        s if is_bare_name(s) => s.into(),
        s => format!("{s:?}"),
    }
}

fn bytes_text(b: &Bytes) -> String {
    match std::str::from_utf8(b) {
        Ok(s) => format!("{s:?}"),
        Err(_) => format!("bytes\"{}\"", b.iter().map(|x| format!("{x:02x}")).collect::<String>()),
    }
}

/// The XXH3-128 of a tensor's bytes (strings: of the texts, each with its length), in hexadecimal.
pub fn digest(t: &Tensor) -> String {
    use twox_hash::XxHash3_128;
    let hash = match t.bytes() {
        Some(b) => XxHash3_128::oneshot(b),
        None => {
            let mut all = Vec::new();
            for s in t.as_slice::<String>().unwrap_or_default() {
                all.extend((s.len() as u64).to_le_bytes());
                all.extend(s.as_bytes());
            }
            XxHash3_128::oneshot(&all)
        }
    };
    format!("{hash:032x}")
}

fn elements(t: &Tensor) -> String {
    fn list<T: fmt::Debug>(v: &[T]) -> String {
        format!("{v:?}")
    }
    if let Some(place) = t.absent_place() {
        return if place.starts_with('#') { place.to_owned() } else { format!("@{place:?}") };
    }
    let inline = t.len() <= INLINE;
    match t.dtype() {
        DType::F32 if inline => t.to_slice::<f32>().map(|v| list(&v)).ok().filter(|s| !s.contains("NaN")),
        DType::F64 if inline => t.to_slice::<f64>().map(|v| list(&v)).ok().filter(|s| !s.contains("NaN")),
        DType::Bool if inline => t.to_slice::<bool>().map(|v| list(&v)).ok(),
        DType::String if inline => t.to_slice::<String>().map(|v| list(&v)).ok(),
        DType::U64 if inline => t.to_slice::<u64>().map(|v| list(&v)).ok(),
        d if inline && d.is_int() && d.bits() >= 8 => t.to_i64s().map(|v| list(&v)).ok(),
        _ => None,
    }
    .unwrap_or_else(|| format!("#{}", digest(t)))
}

fn tensor(t: &Tensor) -> String {
    format!("{}{} {}", t.dtype(), t.shape(), elements(t))
}

fn typed(o: &Output) -> String {
    match &o.ty {
        Some(t) => format!("{}: {t}", name(&o.name)),
        None => name(&o.name),
    }
}

fn joined(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().collect::<Vec<_>>().join(", ")
}

struct Printer {
    out: String,
    depth: usize,
}

impl Printer {
    fn line(&mut self, text: &str) {
        for _ in 0..self.depth {
            self.out.push_str("  ");
        }
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn attr(&mut self, a: &Attr) -> String {
        match a {
            Attr::Float(x) => format!("{x:?}"),
            Attr::Int(x) => x.to_string(),
            Attr::String(s) => bytes_text(s),
            Attr::Tensor(c) => tensor(&c.tensor),
            Attr::Graph(g) => self.nested(g),
            Attr::Sparse(s) => format!("sparse {:?} {} at {}", s.dims, tensor(&s.values.tensor), tensor(&s.indices.tensor)),
            Attr::Type(t) => format!("type {t}"),
            Attr::Floats(x) if x.is_empty() => "floats[]".into(),
            Attr::Floats(x) => format!("{x:?}"),
            Attr::Ints(x) if x.is_empty() => "ints[]".into(),
            Attr::Ints(x) => format!("{x:?}"),
            Attr::Strings(x) if x.is_empty() => "strings[]".into(),
            Attr::Strings(x) => format!("[{}]", joined(x.iter().map(bytes_text))),
            Attr::Tensors(x) => format!("tensors[{}]", joined(x.iter().map(|c| tensor(&c.tensor)))),
            Attr::Graphs(x) => format!("graphs[{}]", x.iter().map(|g| self.nested(g)).collect::<Vec<_>>().join(", ")),
            Attr::Sparses(x) => {
                let all = x.iter().map(|s| format!("{:?} {} at {}", s.dims, tensor(&s.values.tensor), tensor(&s.indices.tensor)));
                format!("sparses[{}]", joined(all))
            }
            Attr::Types(x) => format!("types[{}]", joined(x.iter().map(|t| t.to_string()))),
            Attr::Ref(to) => format!("${}", name(to)),
            Attr::Undefined => "undefined".into(),
        }
    }

    /// A body inside an attribute, indented under its node.
    fn nested(&mut self, g: &Graph) -> String {
        let mut inner = Printer { out: String::new(), depth: self.depth + 1 };
        inner.graph("graph", g);
        inner.out.trim().to_owned()
    }

    fn attrs(&mut self, attrs: &Attrs) -> String {
        let all: Vec<String> = attrs.iter().map(|(n, a)| format!("{}={}", name(n), self.attr(a))).collect();
        all.join(", ")
    }

    fn graph(&mut self, keyword: &str, g: &Graph) {
        let input = |id: &NodeId| {
            let node = g.node(*id);
            match &node.kind {
                Kind::Input(Some(c)) => format!("{} = {}", typed(&node.outputs[0]), elements(&c.tensor)),
                _ => typed(&node.outputs[0]),
            }
        };
        let inputs = joined(g.inputs().iter().map(input));
        let output = |o: &super::GraphOutput| typed(&Output { name: g.name_of(o.value).to_owned(), ty: o.ty.clone(), info: None });
        let outputs = joined(g.outputs().iter().map(output));
        self.line(&format!("{keyword} {}({inputs}) -> ({outputs}) {{", name(&g.name)));
        self.depth += 1;
        for &id in g.params() {
            let node = g.node(id);
            match &node.kind {
                Kind::Param(Constant { tensor, .. }) => {
                    let text =
                        format!("param {}: {}{} = {}", name(&node.outputs[0].name), tensor.dtype(), tensor.shape(), elements(tensor));
                    self.line(&text);
                }
                Kind::Sparse(s) => {
                    let text = self.attr(&Attr::Sparse(s.clone()));
                    self.line(&format!("param {} = {text}", name(&node.outputs[0].name)));
                }
                _ => {}
            }
        }
        for &id in g.ops() {
            self.node(g, id);
        }
        self.depth -= 1;
        self.line("}");
    }

    fn node(&mut self, g: &Graph, id: NodeId) {
        let n = g.node(id);
        let Some(op) = n.op() else { return };
        let inputs = joined(n.inputs().iter().map(|v| v.map_or("_".into(), |v| name(g.name_of(v)))));
        let mut text = joined(n.outputs.iter().map(typed));
        if !text.is_empty() {
            text.push_str(" = ");
        }
        let _ = write!(text, "{}({inputs})", name(&op.to_string()));
        if !n.attrs.is_empty() {
            let attrs = self.attrs(&n.attrs);
            let _ = write!(text, " {{{attrs}}}");
        }
        if !n.name.is_empty() {
            let _ = write!(text, " # {}", name(&n.name));
        }
        self.line(&text);
    }

    fn opsets(list: &[OpsetImport]) -> String {
        joined(list.iter().map(|o| format!("{:?}={}", super::normal_domain(&o.domain), o.version)))
    }

    fn function(&mut self, f: &Function) {
        let defaults = self.attrs(&f.defaults);
        let attrs = joined(f.attributes.iter().map(|a| name(a)));
        let overload = if f.overload.is_empty() { String::new() } else { format!(" overload={:?}", f.overload) };
        let head = format!(
            "function domain={:?}{overload} opset=[{}] attributes=[{attrs}] defaults={{{defaults}}}",
            f.domain,
            Self::opsets(&f.opset_imports)
        );
        self.graph(&head, &f.graph);
    }
}

/// The text of a graph.
pub fn print_graph(g: &Graph) -> String {
    let mut p = Printer { out: String::new(), depth: 0 };
    p.graph("graph", g);
    p.out
}

/// The text of a model.
pub fn print_model(m: &Model) -> String {
    let mut p = Printer { out: String::new(), depth: 0 };
    p.line(&format!("model ir_version={} opset=[{}]", m.ir_version, Printer::opsets(&m.opset_imports)));
    for (k, v) in &m.metadata {
        p.line(&format!("metadata {k:?}={v:?}"));
    }
    m.functions.iter().for_each(|f| p.function(f));
    p.graph("graph", &m.graph);
    p.out
}

/// The XXH3-128 of a model's text, in hexadecimal: two models with the same fingerprint compute the same.
pub fn fingerprint(m: &Model) -> String {
    format!("{:032x}", twox_hash::XxHash3_128::oneshot(print_model(m).as_bytes()))
}
