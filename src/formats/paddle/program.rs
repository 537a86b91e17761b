//! From a program to the IR: variables that are written again get new names, blocks become bodies, feeds and fetches the
//! interface. LoD is an input of offsets, `NAME.lod`, beside each input that has it.

use super::ops;
use super::proto::{BlockDesc, OpDesc, ProgramDesc, TensorDesc, VarDesc, dtype};
use crate::ir::{Attr, Attrs, Constant, Dim, Graph, GraphError, Kind, Model, NodeParts, OpName, Output, Parts, Residue, Type};
use crate::tensor::{DType, Tensor};
use std::collections::{HashMap, HashSet};

/// The ONNX operator set that programs are translated into.
const OPSET: i64 = 20;

/// A program on its way into a graph.
pub(super) struct Tx<'a> {
    program: &'a ProgramDesc,
    vars: HashMap<&'a str, &'a VarDesc>,
    /// The value that each variable stands for now.
    pub(super) env: HashMap<String, String>,
    /// The offsets of values with LoD.
    pub(super) lod: HashMap<String, String>,
    taken: HashSet<String>,
    params: Vec<(String, Kind)>,
    pub(super) nodes: Vec<NodeParts>,
    domains: HashSet<&'static str>,
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
        lod: HashMap::new(),
        params,
        nodes: Vec::new(),
        domains: HashSet::new(),
    };
    let mut inputs = Vec::new();
    let (feeds, fetches) = interface(block, &tx);
    for name in &feeds {
        inputs.push(Output::new(name, tx.type_of(name)));
        tx.env.insert(name.clone(), name.clone());
        if tx.vars.get(name.as_str()).is_some_and(|v| v.lod_level() > 0) {
            let lod = tx.fresh(&format!("{name}.lod"));
            inputs.push(Output::new(&lod, Some(Type::tensor(DType::I64, [Dim::Unknown]))));
            tx.lod.insert(name.clone(), lod);
        }
    }
    let mut faults = Vec::new();
    for op in needed(block, &fetches) {
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
        match ops::find(op.r#type()) {
            Some(translate) => translate(self, op)?,
            None => self.carry(op)?,
        }
        // Nodes are known by the value that they lead to.
        let label = format!("{}/{}", op.r#type(), first_output(op));
        for (i, node) in self.nodes[before..].iter_mut().enumerate() {
            if node.name.is_empty() {
                node.name = if i == 0 { label.clone() } else { format!("{label}/{i}") };
            }
        }
        let lod = op.inputs.iter().flat_map(|p| &p.arguments).find_map(|n| self.lod.get(n).cloned());
        if let Some(lod) = lod {
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

    fn push(&mut self, op: OpName, inputs: Vec<String>, outputs: Vec<String>, attrs: Attrs) {
        self.nodes.push(NodeParts { name: String::new(), op, inputs, outputs, attrs, residue: Residue::default() });
    }

    /// A name that no value has.
    pub(super) fn fresh(&mut self, hint: &str) -> String {
        let mut name = hint.to_owned();
        let mut n = 0;
        while !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{hint}.{n}");
        }
        name
    }

    /// A new value for a variable: under the variable's name the first time, under a fresh one when it is written again.
    pub(super) fn define(&mut self, var: &str) -> String {
        let used = self.env.values().any(|v| v == var) || self.nodes.iter().any(|n| n.outputs.iter().any(|o| o == var));
        let name = if used || !self.vars.contains_key(var) { self.fresh(var) } else { var.to_owned() };
        self.env.insert(var.to_owned(), name.clone());
        name
    }

    /// The value of a variable.
    pub(super) fn value(&self, var: &str) -> Result<String, String> {
        self.env.get(var).cloned().ok_or_else(|| format!("variable \"{var}\" is read before anything makes it"))
    }

    /// The value of the one variable of an input parameter.
    pub(super) fn input(&self, op: &OpDesc, parameter: &str) -> Result<String, String> {
        match op.ins(parameter) {
            [one] => self.value(one),
            other => Err(format!("expected one variable as {parameter}, found {}", other.len())),
        }
    }

    /// The value of an input parameter that may be left out.
    pub(super) fn opt(&self, op: &OpDesc, parameter: &str) -> Result<Option<String>, String> {
        op.ins(parameter).first().map(|v| self.value(v)).transpose()
    }

    /// The values of all variables of an input parameter.
    pub(super) fn inputs(&self, op: &OpDesc, parameter: &str) -> Result<Vec<String>, String> {
        op.ins(parameter).iter().map(|v| self.value(v)).collect()
    }

    /// Adds a node of ONNX's; gives the name of its one output.
    pub(super) fn node(&mut self, op: &str, inputs: &[&str], attrs: Attrs) -> String {
        let out = self.fresh(&format!("{}#", inputs.iter().find(|i| !i.is_empty()).unwrap_or(&op)));
        self.push(OpName::onnx(op), owned(inputs), vec![out.clone()], attrs);
        out
    }

    /// Adds the node of ONNX's that makes an output parameter of `of`.
    pub(super) fn out(&mut self, of: &OpDesc, parameter: &str, op: &str, inputs: &[&str], attrs: Attrs) -> Result<(), String> {
        self.outs(of, &[parameter], OpName::onnx(op), inputs, attrs)
    }

    /// Adds the node that makes several outputs, one of each parameter; a parameter without a variable is left out.
    pub(super) fn outs(&mut self, of: &OpDesc, parameters: &[&str], op: OpName, inputs: &[&str], attrs: Attrs) -> Result<(), String> {
        let mut names = Vec::new();
        for p in parameters {
            names.push(match of.outs(p).first() {
                Some(var) => self.define(var),
                None => String::new(),
            });
        }
        if !op.domain.is_empty() {
            self.domains.insert("graphtool");
        }
        self.push(op, owned(inputs), names, attrs);
        Ok(())
    }

    /// Adds the node that makes all variables of an output parameter.
    pub(super) fn out_all(&mut self, of: &OpDesc, parameter: &str, op: &str, inputs: &[&str], attrs: Attrs) {
        let names = of.outs(parameter).iter().map(|v| self.define(v)).collect();
        self.push(OpName::onnx(op), owned(inputs), names, attrs);
    }

    /// A constant.
    pub(super) fn constant(&mut self, hint: &str, tensor: Tensor) -> String {
        let name = self.fresh(hint);
        self.params.push((name.clone(), Kind::Param(Constant::from(tensor))));
        name
    }

    /// Integers as a constant vector.
    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        self.constant("ints", Tensor::vector(values.to_vec()))
    }

    /// A number as a scalar constant of a dtype.
    pub(super) fn number(&mut self, dtype: DType, value: f64) -> Result<String, String> {
        let scalar = if value.fract() == 0.0 && dtype.is_int() { Tensor::scalar(value as i64) } else { Tensor::scalar(value) };
        let tensor = crate::tensor::cast(&scalar, dtype).map_err(|e| e.to_string())?;
        Ok(self.constant("number", tensor))
    }

    pub(super) fn cast(&mut self, value: &str, to: DType) -> String {
        self.node("Cast", &[value], Attrs::new().with("to", i64::from(to.to_onnx())))
    }

    fn tensor_of(&self, var: &str) -> Option<&'a TensorDesc> {
        self.vars.get(var)?.tensor()
    }

    /// The dims that a variable declares; −1 where one is open.
    pub(super) fn dims(&self, var: &str) -> Result<&'a [i64], String> {
        self.tensor_of(var).map(|t| t.dims.as_slice()).ok_or_else(|| format!("variable \"{var}\" states no shape"))
    }

    /// The dims of the first variable of an input parameter.
    pub(super) fn dims_in(&self, op: &OpDesc, parameter: &str) -> Result<&'a [i64], String> {
        self.dims(op.ins(parameter).first().map_or("", String::as_str))
    }

    /// The dtype that a variable declares.
    pub(super) fn dtype_in(&self, op: &OpDesc, parameter: &str) -> Result<DType, String> {
        let var = op.ins(parameter).first().map_or("", String::as_str);
        self.dtype(var)
    }

    pub(super) fn dtype(&self, var: &str) -> Result<DType, String> {
        let t = self.tensor_of(var).ok_or_else(|| format!("variable \"{var}\" states no dtype"))?;
        dtype(t.data_type()).ok_or_else(|| format!("variable \"{var}\": dtype {} does not exist", t.data_type()))
    }

    fn type_of(&self, var: &str) -> Option<Type> {
        let dims = self.tensor_of(var)?.dims.iter().map(|&d| usize::try_from(d).map_or(Dim::Unknown, Dim::Known));
        Some(Type::tensor(self.dtype(var).ok()?, dims))
    }

    /// The block that an attribute names.
    pub(super) fn block(&self, op: &OpDesc) -> Result<&'a BlockDesc, String> {
        let index = op.int("sub_block", -1);
        let block = usize::try_from(index).ok().and_then(|i| self.program.blocks.get(i));
        block.filter(|b| b.idx() > 0).ok_or_else(|| format!("block {index} does not exist"))
    }

    /// Translates a block into a body. `inputs` are its own inputs, and `results` gives its outputs once its ops are there.
    pub(super) fn body(
        &mut self,
        name: &str,
        inputs: Vec<Output>,
        ops: &'a [OpDesc],
        results: impl FnOnce(&mut Self) -> Result<Vec<String>, String>,
    ) -> Result<Graph, String> {
        let around = std::mem::take(&mut self.nodes);
        let run = || -> Result<Vec<String>, String> {
            for op in ops {
                self.op(op).map_err(|e| format!("op {} of \"{}\": {e}", op.r#type(), first_output(op)))?;
            }
            results(self)
        };
        let results = run();
        let nodes = std::mem::replace(&mut self.nodes, around);
        let outputs = results?.into_iter().map(|n| Output::new(n, None)).collect();
        let parts = Parts { name: name.into(), inputs, nodes, outputs, ..Parts::default() };
        Graph::from_parts(parts, true).map_err(|e| e.first().map(ToString::to_string).unwrap_or_default())
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}
