//! `infer-shapes`
//!
//! *What*: states the type of each value that has none, or a less exact one, as far as the ops and their constants tell it.
//! *Why*: other passes, readers of the file and `check` see element types and dims without a run.
//! *Before*:
//! ```text
//! graph g(x: float32[n,4]) -> (y: float32[n,2]) {
//!   param w: float32[4,2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
//!   t = MatMul(x, w)
//!   y: float32[n,2] = Relu(t)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,4]) -> (y: float32[n,2]) {
//!   param w: float32[4,2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
//!   t: float32[n,2] = MatMul(x, w)
//!   y: float32[n,2] = Relu(t)
//! }
//! ```
//! *Needs*: the types of the graph's inputs.
//! *Leaves alone*: what the interface states, values of ops that this build does not know, bodies of functions (their
//! types depend on the call, and are followed there).

use super::rules::edit_each;
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Dim, Graph, Kind, Model, Names, NodeId, OpName, OpsetImport, Type, ValueId, opset_version};
use crate::ops::{self, Args, Fact, InferCtx, OpCtx, OpDef, Run};
use crate::tensor::{DType, Tensor, Value};
use std::collections::HashMap;

/// Elements up to which a constant is computed with.
const SMALL: usize = 4096;
/// Nodes in functions that are followed; the values of further calls stay unknown.
const MAX_CALLED: usize = 100_000;

/// What symbols begin with that inference gives, and no file does.
const OWN: char = '\u{0}';

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct InferShapes;

impl Pass for InferShapes {
    fn name(&self) -> &'static str {
        "infer-shapes"
    }

    fn source(&self) -> &'static str {
        include_str!("infer_shapes.rs")
    }

    fn run(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError> {
        let (types, faults) = infer(model);
        report.remarks.extend(faults.into_iter().map(|f| ("infer-shapes", f)));
        // The lists are in the order in which the graphs are visited. Types alone need no names.
        let mut types = types.into_iter();
        edit_each(model, "infer-shapes", Names::default(), |edit| {
            types.next().unwrap_or_default().into_iter().for_each(|(value, ty)| edit.set_type(value, ty));
        })
    }
}

/// What inference finds wrong in the main graph and in the functions that it calls, each fault with its node. Faults in
/// bodies are none: a branch that cannot run may be one that never does.
pub fn shape_faults(model: &Model) -> Vec<String> {
    infer(model).1
}

/// The inferred types of the outputs of the main graph, in order; the statements of the interface are not looked at.
pub fn output_types(model: &Model) -> Vec<Option<Type>> {
    let mut walk = Walk::new(model);
    let inputs = interface(&model.graph);
    let found = walk.graph(&model.graph, &model.opset_imports, inputs, &|_| Fact::unknown(), true);
    found.outputs.into_iter().map(|f| f.ty).collect()
}

/// The inferred types of the values of the main graph, by name.
pub fn value_types(model: &Model) -> HashMap<String, Type> {
    let main = facts(model).pop().unwrap_or_default();
    let plain = |ty: Type| match ty {
        Type::Tensor { dtype, shape: Some(dims) } => {
            let dims = dims.into_iter().map(|d| if is_unknown(&d) { Dim::Unknown } else { d });
            Type::Tensor { dtype, shape: Some(dims.collect()) }
        }
        other => other,
    };
    main.into_iter().filter_map(|(name, fact)| Some((name, plain(fact.ty?)))).collect()
}

type Types = Vec<(ValueId, Type)>;

fn infer(model: &Model) -> (Vec<Types>, Vec<String>) {
    let (found, faults) = follow(model, false);
    (found.into_iter().map(|f| f.types).collect(), faults)
}

/// What is known of each value by its name, for each graph in the order in which `Model::visit_mut` goes.
pub(super) fn facts(model: &Model) -> Vec<HashMap<String, Fact>> {
    follow(model, true).0.into_iter().map(|f| f.facts).collect()
}

fn follow(model: &Model, keep: bool) -> (Vec<Found>, Vec<String>) {
    let mut walk = Walk { keep, ..Walk::new(model) };
    let inputs = interface(&model.graph);
    let found = walk.graph(&model.graph, &model.opset_imports, inputs, &|_| Fact::unknown(), true);
    let mut all = Vec::new();
    flatten(&model.graph, found, &mut all);
    (all, walk.faults)
}

fn interface(graph: &Graph) -> Vec<Fact> {
    graph.inputs().iter().map(|&id| Fact { ty: graph.type_of(id.value(0)).cloned(), ..Fact::default() }).collect()
}

/// What is found by graph, bodies before the graph around them, as `Model::visit_mut` goes.
fn flatten(graph: &Graph, mut found: Found, out: &mut Vec<Found>) {
    for &id in graph.ops() {
        let mut bodies = found.bodies.remove(&id).unwrap_or_default().into_iter();
        for body in graph.node(id).attrs.iter().flat_map(|(_, a)| a.graphs()) {
            flatten(body, bodies.next().unwrap_or_default(), out);
        }
    }
    out.push(found);
}

/// What is found of a graph.
#[derive(Default)]
struct Found {
    /// Types more exact than the stated ones.
    types: Types,
    outputs: Vec<Fact>,
    /// By name, where they are asked for.
    facts: HashMap<String, Fact>,
    /// By node, the bodies in the order of its attributes.
    bodies: HashMap<NodeId, Vec<Found>>,
}

struct Walk<'m> {
    functions: HashMap<OpName, &'m crate::ir::Function>,
    faults: Vec<String>,
    called: usize,
    depth: usize,
    /// Whether the facts of each value are given back.
    keep: bool,
    /// Symbols given to dims that are not known.
    symbols: usize,
}

type Around<'a> = &'a dyn Fn(&str) -> Fact;

impl<'m> Walk<'m> {
    fn new(model: &'m Model) -> Self {
        // Calls without end are the verifier's to name.
        let sound = crate::ir::function_faults(model).is_none();
        let functions = model.functions.iter().rev().filter(|_| sound).map(|f| (f.op(), f)).collect();
        Self { functions, faults: Vec::new(), called: 0, depth: 0, keep: false, symbols: 0 }
    }

    /// Follows a graph whose inputs are known as said. `certain`: its nodes run whenever the model does.
    fn graph(&mut self, graph: &Graph, opsets: &[OpsetImport], inputs: Vec<Fact>, around: Around, certain: bool) -> Found {
        let mut found = Found::default();
        let mut facts: HashMap<ValueId, Fact> = HashMap::new();
        let mut given = inputs.into_iter();
        for &id in graph.inputs() {
            let mut fact = given.next().unwrap_or_default();
            fact.ty = exact(fact.ty, graph.type_of(id.value(0)));
            self.tell_apart(&mut fact);
            facts.insert(id.value(0), fact);
        }
        for &id in graph.captures() {
            facts.insert(id.value(0), around(graph.name_of(id.value(0))));
        }
        for &id in graph.params() {
            match &graph.node(id).kind {
                Kind::Param(c) => drop(facts.insert(id.value(0), of_tensor(&c.tensor))),
                Kind::Sparse(s) => {
                    let dims = s.dims.iter().map(|&d| Dim::Known(d));
                    facts.insert(id.value(0), Fact::tensor(s.values.tensor.dtype(), dims));
                }
                _ => {}
            }
        }
        let Ok(order) = graph.topological() else { return found };
        for id in order {
            let node = graph.node(id);
            let Some(op) = node.op() else { continue };
            let operands: Vec<Option<Fact>> = node.inputs().iter().map(|v| v.map(|v| facts.get(&v).cloned().unwrap_or_default())).collect();
            let outputs = match self.node(graph, id, opsets, &operands, &facts, around, certain, &mut found.bodies) {
                Ok(outputs) => outputs,
                Err(detail) => {
                    if certain {
                        self.faults.push(format!("node \"{}\" ({op}): {detail}", node.label()));
                    }
                    Vec::new()
                }
            };
            let known = ops::find(op).is_some() || self.functions.contains_key(op);
            let mut outputs = outputs.into_iter();
            for (slot, output) in node.outputs.iter().enumerate() {
                let mut fact = outputs.next().unwrap_or_default();
                let value = id.value(slot as u32);
                if !known {
                    fact.ty = output.ty.clone();
                }
                self.tell_apart(&mut fact);
                if let Some(ty) = &fact.ty
                    && !output.name.is_empty()
                    && output.ty.as_ref() != Some(ty)
                    && output.ty.as_ref().is_none_or(|stated| refines(ty, stated))
                    && !graph.is_output(value)
                {
                    found.types.push((value, ty.clone()));
                }
                facts.insert(value, fact);
            }
        }
        found.outputs = graph.outputs().iter().map(|o| facts.get(&o.value).cloned().unwrap_or_default()).collect();
        if self.keep && self.depth == 0 {
            found.facts = facts.into_iter().map(|(v, fact)| (graph.name_of(v).to_owned(), fact)).collect();
        }
        found
    }

    /// Where facts are kept, each dim that is not known gets a symbol of its own, so that it is seen where it comes back.
    fn tell_apart(&mut self, fact: &mut Fact) {
        let Some(Type::Tensor { shape: Some(dims), .. }) = fact.ty.as_mut().filter(|_| self.keep) else { return };
        for dim in dims.iter_mut().filter(|d| **d == Dim::Unknown) {
            self.symbols += 1;
            *dim = Dim::Symbol(format!("{OWN}{}", self.symbols).into());
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn node(
        &mut self,
        graph: &Graph,
        id: NodeId,
        opsets: &[OpsetImport],
        operands: &[Option<Fact>],
        facts: &HashMap<ValueId, Fact>,
        around: Around,
        certain: bool,
        bodies: &mut HashMap<NodeId, Vec<Found>>,
    ) -> Result<Vec<Fact>, String> {
        let node = graph.node(id);
        let Some(op) = node.op() else { return Ok(Vec::new()) };
        if let Some(&function) = self.functions.get(op) {
            return Ok(self.call(function, &node.attrs, opsets, operands, certain));
        }
        let Some(def) = ops::find(op) else { return Ok(Vec::new()) };
        def.check_arity(node.inputs().len(), node.outputs.len())?;
        if matches!(def.run, Run::Control) {
            let inner = |name: &str| match graph.value(name) {
                Some(v) => facts.get(&v).cloned().unwrap_or_default(),
                None => around(name),
            };
            let mut list = Vec::new();
            let outputs = self.control(&op.name, &node.attrs, opsets, operands, &inner, &mut list);
            bodies.insert(id, list);
            return Ok(outputs);
        }
        let version = opset_version(opsets, &op.domain);
        let version = if version == 0 { *def.versions.last().unwrap_or(&1) } else { version };
        let wanted: Vec<bool> = node.outputs.iter().map(|o| !o.name.is_empty()).collect();
        node_facts(def, op, &node.attrs, version, &wanted, operands)
    }

    fn call(
        &mut self,
        f: &crate::ir::Function,
        attrs: &Attrs,
        opsets: &[OpsetImport],
        operands: &[Option<Fact>],
        certain: bool,
    ) -> Vec<Fact> {
        self.called += f.graph.ops().len();
        if self.called > MAX_CALLED || self.depth > 100 {
            return Vec::new();
        }
        self.depth += 1;
        let body = f.instantiate(attrs);
        let opsets = if f.opset_imports.is_empty() { opsets } else { &f.opset_imports };
        let inputs = operands.iter().map(|o| o.clone().unwrap_or_default()).collect();
        // An operand that is left out is not one that is not known.
        let whole = certain && operands.len() == f.graph.inputs().len() && operands.iter().all(Option::is_some);
        let found = self.graph(&body, opsets, inputs, &|_| Fact::unknown(), whole);
        self.depth -= 1;
        if operands.iter().any(Option::is_none) || operands.len() < f.graph.inputs().len() { Vec::new() } else { found.outputs }
    }

    fn control(
        &mut self,
        op: &str,
        attrs: &Attrs,
        opsets: &[OpsetImport],
        operands: &[Option<Fact>],
        around: Around,
        bodies: &mut Vec<Found>,
    ) -> Vec<Fact> {
        let ty = |i: usize| operands.get(i).and_then(|f| f.as_ref()?.ty.clone());
        let scanned = attrs.int_or("num_scan_inputs", 0).unwrap_or(0).max(0) as usize;
        let states = operands.len().saturating_sub(scanned);
        let axes = |name: &str, k: usize| attrs.ints(name).ok().flatten().and_then(|a| a.get(k).copied()).unwrap_or(0);
        let mut length = Dim::Unknown;
        let inputs: Vec<Fact> = match op {
            // The dims of a carried value may change from one iteration to the next.
            "Loop" => {
                let head = [Fact::tensor(DType::I64, []), Fact::tensor(DType::Bool, [])];
                head.into_iter()
                    .chain((2..operands.len()).map(|i| ty(i).map(|t| loose(&t)).map_or_else(Fact::unknown, Fact::from)))
                    .collect()
            }
            "Scan" if opset_version(opsets, "") >= 9 => (0..operands.len())
                .map(|i| match ty(i) {
                    Some(t) if i < states => loose(&t).into(),
                    Some(Type::Tensor { dtype, shape: Some(mut dims) }) => {
                        let Ok(axis) = ops::util::axis(axes("scan_input_axes", i - states), dims.len()) else { return Fact::unknown() };
                        length = dims.remove(axis);
                        Fact::partial(dtype, Some(dims))
                    }
                    Some(t) => loose(&t).into(),
                    None => Fact::unknown(),
                })
                .collect(),
            "SequenceMap" => (0..operands.len())
                .map(|i| match ty(i) {
                    Some(Type::Sequence(t)) => (*t).into(),
                    Some(t) => t.into(),
                    None => Fact::unknown(),
                })
                .collect(),
            _ => Vec::new(),
        };
        let mut outputs: Vec<Vec<Fact>> = Vec::new();
        for (_, attr) in attrs.iter() {
            for g in attr.graphs() {
                let found = self.graph(g, opsets, inputs.clone(), around, false);
                outputs.push(found.outputs.clone());
                bodies.push(found);
            }
        }
        let stacked = |f: &Fact, dim: &Dim, axis: i64| match &f.ty {
            Some(Type::Tensor { dtype, shape: Some(dims) }) => match ops::util::axis(axis, dims.len() + 1) {
                Ok(at) => Fact::partial(*dtype, Some([&dims[..at], std::slice::from_ref(dim), &dims[at..]].concat())),
                Err(_) => Fact::partial(*dtype, None),
            },
            Some(t) => loose(t).into(),
            None => Fact::unknown(),
        };
        match (op, &outputs[..]) {
            ("If", [a, b]) => a.iter().zip(b).map(|(a, b)| joined(a.ty.as_ref(), b.ty.as_ref())).collect(),
            ("Loop", [body]) => {
                let carried = operands.len().saturating_sub(2);
                let one = |(i, f): (usize, &Fact)| match i {
                    i if i < carried => joined(f.ty.as_ref(), ty(i + 2).as_ref()),
                    _ => stacked(f, &Dim::Unknown, 0),
                };
                body.iter().skip(1).enumerate().map(one).collect()
            }
            ("Scan", [body]) if opset_version(opsets, "") >= 9 => {
                let one = |(i, f): (usize, &Fact)| match i {
                    i if i < states => joined(f.ty.as_ref(), ty(i).as_ref()),
                    _ => stacked(f, &length, axes("scan_output_axes", i - states)),
                };
                body.iter().enumerate().map(one).collect()
            }
            ("SequenceMap", [body]) => {
                let one = |f: &Fact| f.ty.clone().map_or_else(Fact::unknown, |t| Type::Sequence(Box::new(loose(&t))).into());
                body.iter().map(one).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// What the record says of a node's outputs; computed, where all operands are small constants.
fn node_facts(
    def: &OpDef,
    op: &OpName,
    attrs: &Attrs,
    version: i64,
    wanted: &[bool],
    operands: &[Option<Fact>],
) -> Result<Vec<Fact>, String> {
    let constants: Vec<Option<&Tensor>> = operands.iter().map(|f| f.as_ref()?.constant.as_ref()).collect();
    let cx = OpCtx { op, attrs, version, inputs: operands.len(), outputs: wanted, constants: &constants };
    let mut facts = match (def.infer)(&InferCtx { op: cx.clone(), facts: operands }) {
        Ok(facts) => facts,
        Err(ops::OpError::Invalid(e)) => return Err(e),
        Err(ops::OpError::Unsupported(_)) => return Ok(Vec::new()),
    };
    let small = |f: &Fact| match f.ty.as_ref().and_then(Type::shape) {
        Some(dims) => dims.iter().try_fold(1usize, |n, d| n.checked_mul(d.known()?)).is_none_or(|n| n <= SMALL),
        None => true,
    };
    let foldable = def.pure && operands.iter().zip(&constants).all(|(f, c)| f.is_none() || c.is_some());
    if let (true, Run::Kernel(build)) = (foldable && (!operands.is_empty() || op.is("Constant")), def.run) {
        if let Some(ty) = facts.iter().find(|f| !small(f)).and_then(|f| f.ty.as_ref()) {
            let fits = bytes(ty).is_none_or(crate::tensor::fits_memory);
            return if fits { Ok(facts) } else { Err(format!("its result {ty} does not fit memory")) };
        }
        let values = Args::new(constants.iter().map(|c| c.map(|t| Value::Tensor(t.clone().aligned()))));
        let run = || build(&cx).and_then(|kernel| kernel(values));
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).map_err(|_| "internal error".to_owned())?;
        match made {
            Ok(values) => facts = values.iter().map(|v| v.as_tensor().map_or_else(Fact::unknown, of_tensor)).collect(),
            Err(ops::OpError::Invalid(e)) => return Err(e),
            Err(ops::OpError::Unsupported(_)) => {}
        }
    }
    Ok(facts)
}

/// Bytes of a tensor type with known dims.
fn bytes(t: &Type) -> Option<usize> {
    let dims: Option<Vec<usize>> = t.shape()?.iter().map(Dim::known).collect();
    Some(t.dtype()?.byte_len(&dims?).unwrap_or(usize::MAX))
}

fn of_tensor(t: &Tensor) -> Fact {
    let constant = (t.len() <= SMALL && (t.bytes().is_some() || t.dtype() == DType::String)).then(|| t.clone());
    Fact { constant, ..Type::of(t.dtype(), t.shape()).into() }
}

/// The type without what an iteration may change.
fn loose(t: &Type) -> Type {
    match t {
        Type::Tensor { dtype, .. } => Type::Tensor { dtype: *dtype, shape: None },
        other => other.clone(),
    }
}

/// What holds for a value that has one type or the other.
fn joined(a: Option<&Type>, b: Option<&Type>) -> Fact {
    let (Some(a), Some(b)) = (a, b) else { return Fact::unknown() };
    match (a, b) {
        (a, b) if a == b => a.clone().into(),
        (Type::Tensor { dtype: d, shape: s }, Type::Tensor { dtype: e, shape: t }) => {
            let dims = match (s, t) {
                (Some(s), Some(t)) if s.len() == t.len() => {
                    Some(s.iter().zip(t).map(|(x, y)| if x == y { x.clone() } else { Dim::Unknown }).collect())
                }
                _ => None,
            };
            Fact::partial(d.filter(|_| d == e), dims)
        }
        _ => Fact::unknown(),
    }
}

/// What is known of an input: what the caller knows, made more exact by what the graph states.
fn exact(found: Option<Type>, stated: Option<&Type>) -> Option<Type> {
    match (found, stated) {
        (Some(f), Some(s)) if refines(s, &f) => Some(s.clone()),
        (None, s) => s.cloned(),
        (f, _) => f,
    }
}

/// Whether nothing is known of a dim but where else it is.
fn is_unknown(d: &Dim) -> bool {
    match d {
        Dim::Unknown => true,
        Dim::Symbol(s) => s.starts_with(OWN),
        Dim::Known(_) => false,
    }
}

/// Whether `a` says the same as `b`, and more.
fn refines(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Tensor { dtype: d, shape: s }, Type::Tensor { dtype: e, shape: t }) => {
            let dtypes = e.is_none() || d == e;
            let dims = match (s, t) {
                (Some(s), Some(t)) => s.len() == t.len() && s.iter().zip(t).all(|(x, y)| x == y || is_unknown(y)),
                (_, None) => true,
                (None, Some(_)) => false,
            };
            dtypes && dims && a != b
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::parse_model;

    #[test]
    fn types_follow_from_ops_and_constants() {
        let text =
            "graph g(x: float32[n,4]) -> (y) {\n  param s: int64[2] = [2, -1]\n  t = Add(x, x)\n  u = Reshape(t, s)\n  y = Relu(u)\n}";
        let mut model = parse_model(text).unwrap();
        let mut report = Report::default();
        assert_eq!(InferShapes.run(&mut model, &mut report).unwrap(), Changed::Yes);
        assert_eq!(InferShapes.run(&mut model, &mut report).unwrap(), Changed::No);
        assert!(report.remarks.is_empty(), "{:?}", report.remarks);
        let of = |name: &str| model.graph.value(name).and_then(|v| model.graph.type_of(v)).map(Type::to_string);
        assert_eq!(of("t").as_deref(), Some("float32[n,4]"));
        assert_eq!(of("u").as_deref(), Some("float32[2,?]"));
        assert_eq!(of("y"), None);
    }

    #[test]
    fn faults_name_the_node() {
        let text = "graph g(x: float32[4]) -> (y) {\n  param i: int64[1] = [7]\n  y = Gather(x, i)\n}";
        assert_eq!(shape_faults(&parse_model(text).unwrap()), ["node \"y\" (Gather): index 7 is out of range for 4 positions"]);
    }
}
