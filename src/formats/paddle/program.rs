//! From a program to the IR: variables that are written again get new names, blocks become bodies, feeds and fetches the
//! interface. LoD is an input of offsets, `NAME.lod`, beside each input that has it.

use super::ops;
use super::proto::{BlockDesc, OpDesc, ProgramDesc, VarDesc};
use crate::ir::{Attr, Attrs, Dim, Graph, GraphError, Kind, Model, NodeParts, OpName, Output, Parts, Type};
use crate::tensor::DType;
use std::collections::{HashMap, HashSet};

/// The ONNX operator set that programs are translated into.
const OPSET: i64 = 20;

/// A program on its way into a graph.
pub(super) struct Tx<'a> {
    pub(super) program: &'a ProgramDesc,
    pub(super) vars: HashMap<&'a str, &'a VarDesc>,
    /// The variables that each block declares.
    pub(super) own: Vec<HashSet<&'a str>>,
    /// The block that is translated.
    pub(super) block: usize,
    /// The blocks that are bodies already.
    bodies: HashSet<usize>,
    /// The value that each variable stands for now.
    pub(super) env: HashMap<String, String>,
    /// The offsets of values with LoD.
    pub(super) lod: HashMap<String, String>,
    /// The dtypes of values whose variables declare another.
    pub(super) real: HashMap<String, DType>,
    /// Whether the op in hand has said what the offsets of its outputs are.
    pub(super) lod_is_set: bool,
    pub(super) taken: HashSet<String>,
    /// The last number behind each name that is taken.
    pub(super) next: HashMap<String, usize>,
    /// The names that variables have given to values.
    pub(super) defined: HashSet<String>,
    /// How often ops are still to write each variable that is fetched: the last has its name.
    pub(super) later: HashMap<String, usize>,
    /// The variables that ops read.
    pub(super) read: HashSet<&'a str>,
    pub(super) params: Vec<(String, Kind)>,
    pub(super) nodes: Vec<NodeParts>,
    labels: HashSet<String>,
    pub(super) domains: HashSet<&'static str>,
}

/// The model of a program with its parameters.
///
/// # Errors
/// All ops that are at fault.
pub(super) fn translate(program: &ProgramDesc, params: Vec<(String, Kind)>) -> Result<Model, Vec<String>> {
    let block = &program.blocks[0];
    let vars: HashMap<&str, &VarDesc> = program.blocks.iter().rev().flat_map(|b| &b.vars).map(|v| (v.name(), v)).collect();
    let mut tx = Tx {
        program,
        env: params.iter().map(|(n, _)| (n.clone(), n.clone())).collect(),
        taken: vars.keys().map(|n| (*n).to_owned()).collect(),
        vars,
        own: program.blocks.iter().map(|b| b.vars.iter().map(VarDesc::name).collect()).collect(),
        block: 0,
        bodies: HashSet::new(),
        lod: HashMap::new(),
        real: HashMap::new(),
        lod_is_set: false,
        next: HashMap::new(),
        defined: params.iter().map(|(n, _)| n.clone()).collect(),
        later: HashMap::new(),
        read: program
            .blocks
            .iter()
            .flat_map(|b| &b.ops)
            .flat_map(|op| op.inputs.iter().flat_map(|p| &p.arguments))
            .map(String::as_str)
            .collect(),
        params,
        nodes: Vec::new(),
        labels: HashSet::new(),
        domains: HashSet::new(),
    };
    let mut inputs = Vec::new();
    let (feeds, fetches) = interface(block, &tx);
    for name in &feeds {
        inputs.push(Output::new(name, tx.type_of(name)));
        tx.env.insert(name.clone(), name.clone());
        tx.defined.insert(name.clone());
        if tx.vars.get(name.as_str()).is_some_and(|v| v.lod_level() > 0) {
            let lod = tx.fresh(&format!("{name}.lod"));
            inputs.push(Output::new(&lod, Some(Type::tensor(DType::I64, [Dim::Unknown]))));
            tx.lod.insert(name.clone(), lod);
        }
    }
    let mut faults = Vec::new();
    let ops = needed(block, &fetches);
    for name in ops.iter().flat_map(|op| op.outputs.iter().flat_map(|p| &p.arguments)).filter(|n| fetches.contains(n)) {
        *tx.later.entry(name.clone()).or_default() += 1;
    }
    for op in ops {
        if let Err(e) = tx.op(op) {
            faults.push(format!("op {} of \"{}\": {e}", op.r#type(), first_output(op)));
        }
    }
    let mut outputs = Vec::new();
    for name in &fetches {
        let Some(mut value) = tx.env.get(name).cloned() else {
            faults.push(format!("fetch \"{name}\": no op makes it"));
            continue;
        };
        // What is fetched is made by an op, once for each place.
        if feeds.contains(&value) || outputs.iter().any(|o: &Output| o.name == value) {
            value = tx.node("Identity", &[&value], Attrs::new());
        }
        outputs.push(Output::new(value, tx.type_of(name)));
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let parts = Parts { name: "program".into(), inputs, params: tx.params, nodes: tx.nodes, outputs, ..Parts::default() };
    let mut model = Model { ir_version: 9, ..Model::default() };
    model.graph = Graph::from_parts(parts, false).map_err(|e| e.into_iter().map(|GraphError(e)| e).collect::<Vec<_>>())?;
    model.import_opset("", OPSET);
    let mut domains: Vec<_> = tx.domains.into_iter().collect();
    domains.sort_unstable();
    domains.into_iter().for_each(|d| model.import_opset(d, 1));
    Ok(model)
}

/// The variables that are fed and fetched, in the order of their columns.
fn interface(block: &BlockDesc, tx: &Tx) -> (Vec<String>, Vec<String>) {
    let column = |kind: &str, of: &dyn Fn(&OpDesc) -> Option<String>| {
        let mut found: Vec<(i64, String)> =
            block.ops.iter().filter(|op| op.r#type() == kind).filter_map(|op| Some((op.int("col", 0), of(op)?))).collect();
        found.sort_by_key(|f| f.0);
        found.into_iter().map(|f| f.1).collect::<Vec<_>>()
    };
    let mut feeds = column("feed", &|op| op.outs("Out").first().cloned());
    let mut fetches = column("fetch", &|op| op.ins("X").first().cloned());
    if feeds.is_empty() {
        feeds = block.vars.iter().filter(|v| v.need_check_feed() && !v.persistable()).map(|v| v.name().to_owned()).collect();
    }
    if fetches.is_empty() {
        let read: HashSet<&String> = block.ops.iter().flat_map(|op| op.inputs.iter().flat_map(|p| &p.arguments)).collect();
        let made = block.ops.iter().filter_map(|op| op.outs("Out").first());
        fetches = made.filter(|n| !read.contains(n) && !tx.env.contains_key(*n)).cloned().collect();
        fetches.dedup();
    }
    (feeds, fetches)
}

/// The ops that the fetches need, in order.
fn needed<'p>(block: &'p BlockDesc, fetches: &[String]) -> Vec<&'p OpDesc> {
    let mut wanted: HashSet<&str> = fetches.iter().map(String::as_str).collect();
    let mut kept = Vec::new();
    for op in block.ops.iter().rev().filter(|op| !matches!(op.r#type(), "feed" | "fetch")) {
        if op.outputs.iter().flat_map(|p| &p.arguments).any(|n| wanted.contains(n.as_str())) {
            wanted.extend(op.inputs.iter().flat_map(|p| &p.arguments).map(String::as_str));
            kept.push(op);
        }
    }
    kept.reverse();
    kept
}

fn first_output(op: &OpDesc) -> &str {
    let named = op.outs("Out").iter().chain(op.outputs.iter().flat_map(|p| &p.arguments));
    named.map(String::as_str).next().unwrap_or("")
}

impl<'a> Tx<'a> {
    /// Translates one op, or carries it.
    fn op(&mut self, op: &'a OpDesc) -> Result<(), String> {
        let before = self.nodes.len();
        let lod = op.inputs.iter().flat_map(|p| &p.arguments).find_map(|n| self.lod.get(n).cloned());
        self.lod_is_set = false;
        match ops::find(op.r#type()) {
            Some(translate) => translate(self, op)?,
            None => self.carry(op)?,
        }
        // Nodes are known by the value that they lead to.
        let label = format!("{}/{}", op.r#type(), first_output(op));
        for (i, node) in self.nodes[before..].iter_mut().enumerate() {
            if node.name.is_empty() {
                let (mut name, mut n) = (if i == 0 { label.clone() } else { format!("{label}/{i}") }, 0);
                while !self.labels.insert(name.clone()) {
                    n += 1;
                    name = format!("{label}/{i}.{n}");
                }
                node.name = name;
            }
        }
        if let (Some(lod), false) = (lod, self.lod_is_set) {
            for name in op.outputs.iter().flat_map(|p| &p.arguments) {
                if self.vars.get(name.as_str()).is_some_and(|v| v.lod_level() > 0) {
                    self.lod.insert(name.clone(), lod.clone());
                }
            }
        }
        Ok(())
    }

    fn carry(&mut self, op: &OpDesc) -> Result<(), String> {
        let mut inputs = Vec::new();
        for name in op.inputs.iter().flat_map(|p| &p.arguments) {
            inputs.push(self.value(name)?);
        }
        let mut outputs = Vec::new();
        for name in op.outputs.iter().flat_map(|p| &p.arguments) {
            outputs.push(self.define(name));
        }
        let mut attrs = Attrs::new();
        for a in op.attrs.iter().filter(|a| !a.name().starts_with("op_")) {
            let value = match a.r#type() {
                0 | 6 | 9 => Attr::Int(op.int(a.name(), 0)),
                1 | 15 => Attr::Float(op.float(a.name(), 0.0)),
                2 => Attr::String(a.s.clone().unwrap_or_default()),
                3 | 11 => Attr::Ints(op.ints(a.name()).unwrap_or_default()),
                4 => Attr::Floats(a.floats.clone()),
                5 => Attr::Strings(a.strings.clone()),
                _ => continue,
            };
            attrs.set(a.name(), value);
        }
        self.domains.insert("paddle");
        self.push(OpName::new("paddle", op.r#type()), inputs, outputs, attrs);
        Ok(())
    }

    /// Translates a block into a body. `inputs` are its own inputs, and `results` gives its outputs once its ops are there.
    pub(super) fn body(
        &mut self,
        name: &str,
        inputs: Vec<Output>,
        block: Option<&'a BlockDesc>,
        results: impl FnOnce(&mut Self) -> Result<Vec<String>, String>,
    ) -> Result<Graph, String> {
        let outer = self.block;
        let index = block.and_then(|b| usize::try_from(b.idx()).ok());
        if let Some(index) = index.filter(|&i| !self.bodies.insert(i)) {
            return Err(format!("block {index} is the body of an op already"));
        }
        let around = std::mem::take(&mut self.nodes);
        self.block = index.unwrap_or(usize::MAX);
        let run = || -> Result<Vec<String>, String> {
            for op in block.map_or(&[][..], |b| &b.ops) {
                self.op(op).map_err(|e| format!("op {} of \"{}\": {e}", op.r#type(), first_output(op)))?;
            }
            results(self)
        };
        let results = run();
        self.block = outer;
        let nodes = std::mem::replace(&mut self.nodes, around);
        let outputs = results?.into_iter().map(|n| Output::new(n, None)).collect();
        let parts = Parts { name: name.into(), inputs, nodes, outputs, ..Parts::default() };
        Graph::from_parts(parts, true).map_err(|e| e.first().map(ToString::to_string).unwrap_or_default())
    }
}
