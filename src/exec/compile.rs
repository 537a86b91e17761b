//! Compiling a graph into a plan.

use super::ExecError;
use super::fuse::{Fusion, Fusions, Group, Layer};
use super::host;
use super::order::schedule;
use super::plan::{Action, Body, Plan, Source, Step};
use crate::ir::{self, Attr, Attrs, Function, Graph, Kind, Model, NodeId, OpName, OpsetImport, ValueId, opset_version};
use crate::ops::fused::{Node, Operand, Sequence};
use crate::ops::{self, Args, Kernel, OpCtx, OpDef, Run};
use crate::tensor::{Tensor, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// Nodes of functions that may be compiled, each call with other attributes anew.
const MAX_COMPILED: usize = 200_000;
/// Bytes of constants that are folded when a plan is compiled.
const FOLD_BYTES: usize = 1 << 26;

pub(super) struct Compiler<'m> {
    model: &'m Model,
    /// Functions being compiled, to find one that calls itself.
    stack: Vec<(String, String, String)>,
    /// Plans of functions by the attributes of the call, where those are short.
    functions: HashMap<(OpName, String), Arc<Plan>>,
    defined: HashMap<OpName, &'m Function>,
    /// Nodes compiled in functions so far.
    compiled: usize,
    /// Whether each node becomes a step of its own.
    unfused: bool,
}

fn node_error(graph: &Graph, id: NodeId, detail: impl ToString) -> ExecError {
    let node = graph.node(id);
    ExecError::Node { node: node.label().to_owned(), op: node.op().map(OpName::to_string).unwrap_or_default(), detail: detail.to_string() }
}

impl<'m> Compiler<'m> {
    pub(super) fn new(model: &'m Model, unfused: bool) -> Self {
        let defined = model.functions.iter().rev().map(|f| (f.op(), f)).collect();
        Self { model, stack: Vec::new(), functions: HashMap::new(), defined, compiled: 0, unfused }
    }

    pub(super) fn main(&mut self) -> Result<Plan, ExecError> {
        if let Some(fault) = ir::function_faults(self.model) {
            return Err(ExecError::Model(fault));
        }
        self.graph(&self.model.graph, &self.model.opset_imports)
    }

    fn graph(&mut self, graph: &Graph, opsets: &[OpsetImport]) -> Result<Plan, ExecError> {
        let order = schedule(graph)?;
        let mut plan = Plan::default();
        let mut sources: HashMap<ValueId, Source> = HashMap::new();
        for &id in graph.inputs().iter().chain(graph.captures()) {
            let node = graph.node(id);
            let default = match &node.kind {
                Kind::Input(Some(c)) => Some(Value::Tensor(c.tensor.clone().aligned())),
                _ => None,
            };
            sources.insert(id.value(0), Source::Slot(plan.slots));
            plan.inputs.push(plan.slots);
            plan.slots += 1;
            plan.input_names.push(node.outputs[0].name.clone());
            plan.input_types.push(node.outputs[0].ty.clone());
            plan.defaults.push(default);
        }
        for &id in graph.params() {
            let node = graph.node(id);
            let tensor = match &node.kind {
                Kind::Param(c) => c.tensor.clone(),
                Kind::Sparse(s) => crate::ops::densify(s).map_err(|e| ExecError::Model(format!("tensor \"{}\": {e}", node.label())))?,
                _ => continue,
            };
            let as_it_lies = only_by_bytes(graph, id);
            plan.tables.extend(as_it_lies.then_some(plan.constants.len()));
            let aligned = if as_it_lies { tensor } else { tensor.aligned() };
            sources.insert(id.value(0), Source::Const(plan.constants.len()));
            plan.constants.push(Value::Tensor(aligned));
        }
        let is_plain = |op: &OpName| !self.defined.contains_key(op);
        let mut fusions = if self.unfused { Fusions::default() } else { Fusions::find(graph, &order, opset_version(opsets, ""), is_plain) };
        for id in order.into_iter().filter(|id| !fusions.absorbed.contains(id)) {
            match fusions.at.remove(&id) {
                Some(fusion) => self.fused(graph, id, fusion, opsets, &mut plan, &mut sources)?,
                None => self.node(graph, id, opsets, &mut plan, &mut sources)?,
            }
        }
        for output in graph.outputs() {
            plan.outputs.push(sources[&output.value]);
            plan.output_names.push(graph.name_of(output.value).to_owned());
            plan.output_types.push(output.ty.clone());
        }
        plan.mark_last_uses();
        plan.mark_ahead();
        Ok(plan)
    }

    fn node(
        &mut self,
        graph: &Graph,
        id: NodeId,
        opsets: &[OpsetImport],
        plan: &mut Plan,
        sources: &mut HashMap<ValueId, Source>,
    ) -> Result<(), ExecError> {
        let node = graph.node(id);
        let Some(op) = node.op() else { return Ok(()) };
        let inputs: Vec<Option<Source>> = node.inputs().iter().map(|v| v.map(|v| sources[&v])).collect();
        let wanted: Vec<bool> = node.outputs.iter().map(|o| !o.name.is_empty()).collect();
        let (action, waits) = if self.defined.contains_key(op) {
            let called = self.function(op, &node.attrs).map_err(|e| within(graph, id, e))?;
            if called.inputs.len() < inputs.len() || called.outputs.len() < node.outputs.len() {
                let detail = format!("the function takes {} inputs and {} outputs", called.inputs.len(), called.outputs.len());
                return Err(node_error(graph, id, detail));
            }
            (Action::Call(called.clone()), called.waits)
        } else {
            let def = ops::find(op).ok_or_else(|| node_error(graph, id, "this build has no kernel for the op"))?;
            let version = self.version(def, op, opsets).map_err(|d| node_error(graph, id, d))?;
            def.check_arity(node.inputs().len(), node.outputs.len()).map_err(|d| node_error(graph, id, d))?;
            match def.run {
                Run::Control => self.control(graph, id, opsets, version, sources)?,
                Run::Host => (Action::Host(host::build(op, &node.attrs, inputs.len()).map_err(|e| node_error(graph, id, e))?), true),
                Run::Kernel(build) => {
                    let constants: Vec<Option<&Tensor>> = inputs.iter().map(|s| constant(plan, *s)).collect();
                    let cx = OpCtx { op, attrs: &node.attrs, version, inputs: inputs.len(), outputs: &wanted, constants: &constants };
                    let kernel = build(&cx).map_err(|e| node_error(graph, id, e))?;
                    if def.pure
                        && let Some(values) = fold(&kernel, plan, &inputs)
                        && values.len() >= node.outputs.len()
                    {
                        for (slot, mut value) in values.into_iter().enumerate().take(node.outputs.len()) {
                            if let (Value::Tensor(t), false) = (&mut value, only_by_bytes(graph, id)) {
                                *t = std::mem::take(t).aligned();
                            }
                            sources.insert(id.value(slot as u32), Source::Const(plan.constants.len()));
                            plan.constants.push(value);
                        }
                        return Ok(());
                    }
                    (Action::Kernel(kernel), false)
                }
            }
        };
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for (slot, wanted) in wanted.iter().enumerate() {
            outputs.push(wanted.then(|| {
                sources.insert(id.value(slot as u32), Source::Slot(plan.slots));
                plan.slots += 1;
                plan.slots - 1
            }));
        }
        plan.waits |= waits;
        plan.push(Step::new(action, node.label(), op.clone(), inputs, outputs));
        Ok(())
    }

    /// The step of several nodes, in the place of `id`.
    fn fused(
        &mut self,
        graph: &Graph,
        id: NodeId,
        fusion: Fusion,
        opsets: &[OpsetImport],
        plan: &mut Plan,
        sources: &mut HashMap<ValueId, Source>,
    ) -> Result<(), ExecError> {
        let kernel_of = |node: NodeId, inputs: &[Option<Source>], plan: &Plan, build: &dyn Fn(&OpCtx) -> Result<Kernel, ops::OpError>| {
            self.with_context(graph, node, inputs, plan, opsets, build)
        };
        let sequence = |group: &Group, plan: &Plan| -> Result<(Sequence, Vec<Option<Source>>), ExecError> {
            let inputs: Vec<Option<Source>> = group.inputs.iter().map(|v| Some(sources[v])).collect();
            let mut nodes = Vec::with_capacity(group.nodes.len());
            for (&node, operands) in group.nodes.iter().zip(&group.operands) {
                let own: Vec<Option<Source>> = operands.iter().map(|o| if let Operand::Input(i) = o { inputs[*i] } else { None }).collect();
                let op = graph.node(node).op().map(OpName::to_string).unwrap_or_default();
                let Some(Run::Kernel(build)) = graph.node(node).op().and_then(ops::find).map(|d| d.run) else {
                    return Err(node_error(graph, node, "this build has no kernel for the op"));
                };
                let label = format!("node \"{}\" ({op})", graph.node(node).label());
                nodes.push(Node { kernel: kernel_of(node, &own, plan, &build)?, operands: operands.clone(), label });
            }
            Ok((Sequence(nodes), inputs))
        };
        let (kernel, inputs, output) = match fusion {
            Fusion::Product { inputs, around, output } => {
                let inputs: Vec<Option<Source>> = inputs.iter().map(|v| Some(sources[v])).collect();
                let around = std::cell::RefCell::new(Some(around));
                let build = |cx: &OpCtx| ops::fused::build_product(cx, around.take().unwrap_or_default());
                (kernel_of(id, &inputs, plan, &build)?, inputs, output)
            }
            Fusion::Chain { layers, inputs, output } => {
                let inputs: Vec<Option<Source>> = inputs.iter().map(|v| Some(sources[v])).collect();
                let mut built = Vec::with_capacity(layers.len());
                for Layer { gemm, relu, operands } in layers {
                    let own = [None, inputs[operands.0], operands.1.and_then(|c| inputs[c])];
                    let label = format!("node \"{}\" (Gemm)", graph.node(gemm).label());
                    built.push(self.with_context(graph, gemm, &own, plan, opsets, |cx| ops::fused::layer(cx, relu, operands, label))?);
                }
                (ops::fused::build_chain(built), inputs, output)
            }
            Fusion::Pointwise { group, program } => {
                let (nodes, inputs) = sequence(&group, plan)?;
                (program.kernel(nodes), inputs, id.value(0))
            }
            Fusion::Early { group, index, keep, varied } => {
                let (nodes, inputs) = sequence(&group, plan)?;
                (ops::fused::build_early(nodes, index, keep, varied), inputs, id.value(0))
            }
            Fusion::LookupConcat { group, parts } => {
                let (nodes, inputs) = sequence(&group, plan)?;
                (ops::fused::build_lookup_concat(parts, nodes), inputs, id.value(0))
            }
        };
        sources.insert(output, Source::Slot(plan.slots));
        let node = graph.node(id);
        let Some(op) = node.op().cloned() else { return Ok(()) };
        let outputs = vec![Some(plan.slots)];
        plan.slots += 1;
        plan.push(Step::new(Action::Kernel(kernel), node.label(), op, inputs, outputs));
        Ok(())
    }

    /// Builds from a node's attributes, and those of its inputs that are constants, what runs it.
    fn with_context<T>(
        &self,
        graph: &Graph,
        node: NodeId,
        inputs: &[Option<Source>],
        plan: &Plan,
        opsets: &[OpsetImport],
        build: impl FnOnce(&OpCtx) -> Result<T, ops::OpError>,
    ) -> Result<T, ExecError> {
        let found = graph.node(node);
        let Some(op) = found.op() else { return Err(node_error(graph, node, "it is no operator")) };
        let def = ops::find(op).ok_or_else(|| node_error(graph, node, "this build has no kernel for the op"))?;
        let version = self.version(def, op, opsets).map_err(|d| node_error(graph, node, d))?;
        def.check_arity(found.inputs().len(), found.outputs.len()).map_err(|d| node_error(graph, node, d))?;
        let constants: Vec<Option<&Tensor>> = inputs.iter().map(|s| constant(plan, *s)).collect();
        let cx = OpCtx { op, attrs: &found.attrs, version, inputs: inputs.len(), outputs: &[true], constants: &constants };
        build(&cx).map_err(|e| node_error(graph, node, e))
    }

    fn version(&self, def: &OpDef, op: &OpName, opsets: &[OpsetImport]) -> Result<i64, String> {
        let version = match opset_version(opsets, &op.domain) {
            0 if op.domain.is_empty() => return Err("the model imports no opset of domain \"\"".into()),
            0 => *def.versions.last().unwrap_or(&1),
            v => v,
        };
        match def.versions.first() {
            Some(&first) if version < first => Err(format!("the op exists since opset {first}, the model imports {version}")),
            _ => Ok(version),
        }
    }

    fn function(&mut self, op: &OpName, attrs: &Attrs) -> Result<Arc<Plan>, ExecError> {
        let short = |a: &Attr| matches!(a, Attr::Int(_) | Attr::Float(_) | Attr::String(_) | Attr::Ints(_) | Attr::Floats(_));
        let call = attrs.iter().all(|(_, a)| short(a)).then(|| (op.clone(), format!("{attrs:?}")));
        if let Some(plan) = call.as_ref().and_then(|c| self.functions.get(c)) {
            return Ok(plan.clone());
        }
        let Some(function) = self.defined.get(op).copied() else { return Err(ExecError::Model(format!("no function {op}"))) };
        let key = (function.domain.clone(), function.name.clone(), function.overload.clone());
        if self.stack.contains(&key) {
            return Err(ExecError::Model(format!("function \"{}\" calls itself", function.name)));
        }
        if self.stack.len() > 100 {
            return Err(ExecError::Model("functions call each other more than 100 deep".into()));
        }
        self.compiled += function.graph.ops().len();
        if self.compiled > MAX_COMPILED {
            return Err(ExecError::Model(format!(
                "calls of functions with other attributes each time stand for more than {MAX_COMPILED} nodes"
            )));
        }
        self.stack.push(key);
        let body = function.instantiate(attrs);
        let opsets = if function.opset_imports.is_empty() { &self.model.opset_imports } else { &function.opset_imports };
        let plan = self.graph(&body, opsets);
        self.stack.pop();
        let plan = Arc::new(plan?);
        if let Some(call) = call {
            self.functions.insert(call, plan.clone());
        }
        Ok(plan)
    }

    fn control(
        &mut self,
        graph: &Graph,
        id: NodeId,
        opsets: &[OpsetImport],
        version: i64,
        sources: &HashMap<ValueId, Source>,
    ) -> Result<(Action, bool), ExecError> {
        let node = graph.node(id);
        let mut waits = false;
        let mut body = |name: &str| -> Result<Body, ExecError> {
            let g = node.attrs.graph(name).map_err(|e| node_error(graph, id, e))?;
            let g = g.ok_or_else(|| node_error(graph, id, format!("attribute \"{name}\" is missing")))?;
            let inner = self.graph(g, opsets).map_err(|e| within(graph, id, e))?;
            let captures = g.captures().iter().map(|&c| {
                let name = &g.node(c).outputs[0].name;
                graph
                    .value(name)
                    .and_then(|v| sources.get(&v).copied())
                    .ok_or_else(|| node_error(graph, id, format!("its body reads \"{name}\", which is made by nobody")))
            });
            let captures = captures.collect::<Result<Vec<_>, _>>()?;
            waits |= inner.waits;
            Ok(Body { plan: inner, captures })
        };
        let action = match &*node.op().map_or("".into(), |o| o.name.clone()) {
            "If" => {
                let (then_branch, else_branch) = (body("then_branch")?, body("else_branch")?);
                let want = node.outputs.len();
                for (name, b) in [("then_branch", &then_branch), ("else_branch", &else_branch)] {
                    let found = b.plan.outputs.len();
                    if found < want {
                        return Err(node_error(graph, id, format!("{name} has {found} outputs, the node {want}")));
                    }
                }
                Action::If { then_branch, else_branch }
            }
            "Loop" => Action::Loop(body("body")?),
            "Scan" => {
                let b = body("body")?;
                let attrs = super::control::ScanAttrs::read(&node.attrs, version).map_err(|e| node_error(graph, id, e))?;
                Action::Scan { body: b, attrs }
            }
            "SequenceMap" => Action::SequenceMap(body("body")?),
            other => return Err(node_error(graph, id, format!("no executor for {other}"))),
        };
        Ok((action, waits))
    }
}

fn within(graph: &Graph, id: NodeId, e: ExecError) -> ExecError {
    match e {
        ExecError::Model(detail) => node_error(graph, id, detail),
        other => other,
    }
}

fn constant(plan: &Plan, source: Option<Source>) -> Option<&Tensor> {
    match source? {
        Source::Const(c) => plan.constants[c].as_tensor(),
        Source::Slot(_) => None,
    }
}

/// The results of a pure step whose inputs are all constants and small; `None` if it is left for the run.
fn fold(kernel: &Kernel, plan: &Plan, inputs: &[Option<Source>]) -> Option<ops::Outputs> {
    let mut bytes = 0;
    let mut values = Vec::with_capacity(inputs.len());
    for source in inputs {
        values.push(match source {
            Some(Source::Const(c)) => {
                let value = plan.constants[*c].clone();
                bytes += value.as_tensor().and_then(Tensor::bytes).map_or(0, <[u8]>::len);
                Some(value)
            }
            Some(Source::Slot(_)) => return None,
            None => None,
        });
    }
    if bytes > FOLD_BYTES {
        return None;
    }
    // A step that fails, fails again when it is run, and then says where.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| kernel(Args::new(values)))).ok()?.ok()
}

/// Whether all readers of a constant read its bytes as they lie, so that a mapped table is never copied.
fn only_by_bytes(graph: &Graph, id: NodeId) -> bool {
    let uses = graph.uses(id.value(0));
    let lookup = |op: &OpName| op.is("Gather") || (&*op.domain == ops::remote::DOMAIN && &*op.name == "Lookup");
    !uses.is_empty() && uses.iter().all(|u| u.operand == Some(0) && graph.node(u.node).op().is_some_and(lookup))
}
