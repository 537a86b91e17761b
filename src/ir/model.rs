//! A model: the main graph, its functions, the versions of the operator sets, and what the file says besides.

use super::attr::{Attrs, Residue};
use super::graph::{Graph, NodeId, ValueId};
use super::node::{Kind, OpName, normal_domain};
use std::collections::BTreeSet;

/// The version of an operator set that a model or function imports.
#[derive(Debug, Clone)]
pub struct OpsetImport {
    /// Domain; `ai.onnx` and `""` are one.
    pub domain: String,
    /// Version.
    pub version: i64,
    /// What else the file says of it.
    pub residue: Residue,
}

/// A function: a graph that a node calls by domain, name and overload.
#[derive(Debug, Clone, Default)]
pub struct Function {
    /// Domain.
    pub domain: String,
    /// Name.
    pub name: String,
    /// Overload.
    pub overload: String,
    /// Attributes without a default.
    pub attributes: Vec<String>,
    /// Attributes with their defaults.
    pub defaults: Attrs,
    /// Operator sets of the body.
    pub opset_imports: Vec<OpsetImport>,
    /// The body; its inputs and outputs are the formal parameters.
    pub graph: Graph,
    /// What else the file says of it.
    pub residue: Residue,
}

impl Function {
    /// The op by which a node calls it.
    pub fn op(&self) -> OpName {
        OpName { overload: self.overload.as_str().into(), ..OpName::new(&self.domain, &self.name) }
    }

    /// The body with the references to attributes replaced by those of a call, or by their defaults.
    pub fn instantiate(&self, call: &Attrs) -> Graph {
        let mut graph = self.graph.clone();
        graph.resolve_refs(&|name| call.get(name).or_else(|| self.defaults.get(name)).cloned());
        graph
    }
}

/// A model.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Version of the file format that the producer wrote (ONNX: `ir_version`).
    pub ir_version: i64,
    /// Operator sets.
    pub opset_imports: Vec<OpsetImport>,
    /// Free text by key.
    pub metadata: Vec<(String, String)>,
    /// The main graph.
    pub graph: Graph,
    /// Functions, in the order of the file.
    pub functions: Vec<Function>,
    /// Names that parts of the file use which the IR does not model (training info): they are kept alive.
    pub pinned: BTreeSet<String>,
    /// A field of the file that this build does not know; such a model can be run but not written back.
    pub unknown_field: Option<String>,
    /// What else the file says.
    pub residue: Residue,
}

/// The version of a domain among imports; 0 if it is not imported.
pub fn opset_version(imports: &[OpsetImport], domain: &str) -> i64 {
    let domain = normal_domain(domain);
    imports.iter().find(|o| normal_domain(&o.domain) == domain).map_or(0, |o| o.version)
}

impl Model {
    /// The version of a domain that the model imports; 0 if it does not.
    pub fn opset(&self, domain: &str) -> i64 {
        opset_version(&self.opset_imports, domain)
    }

    /// Imports a domain at a version unless it is imported already.
    pub fn import_opset(&mut self, domain: &str, version: i64) {
        if self.opset(domain) == 0 {
            self.opset_imports.push(OpsetImport { domain: domain.to_owned(), version, residue: Residue::default() });
        }
    }

    /// The function of that domain, name and overload.
    pub fn function(&self, op: &super::OpName) -> Option<&Function> {
        self.functions.iter().find(|f| normal_domain(&f.domain) == &*op.domain && f.name == *op.name && f.overload == *op.overload)
    }

    /// All names in use anywhere in the model.
    pub fn names(&self) -> Names {
        let mut taken = BTreeSet::new();
        self.graph.collect_names(&mut taken);
        self.functions.iter().for_each(|f| f.graph.collect_names(&mut taken));
        taken.extend(self.pinned.iter().cloned());
        Names { taken }
    }

    /// Runs `f` on the main graph and on every body in it, innermost first, each with the graphs around it.
    ///
    /// # Errors
    /// The first that `f` gives.
    pub fn visit_mut<E>(&mut self, f: &mut impl FnMut(&mut Graph, Option<&Scope>) -> Result<(), E>) -> Result<(), E> {
        visit(&mut self.graph, None, f)
    }

    /// As [`Model::visit_mut`], for the bodies of the functions.
    ///
    /// # Errors
    /// The first that `f` gives.
    pub fn visit_functions_mut<E>(&mut self, f: &mut impl FnMut(&mut Graph, Option<&Scope>) -> Result<(), E>) -> Result<(), E> {
        self.functions.iter_mut().try_for_each(|function| visit(&mut function.graph, None, f))
    }

    /// Calls `f` on each constant of the model (functions and bodies too) with the name of its value, or no name for a
    /// tensor attribute.
    pub fn map_constants(&mut self, f: &mut dyn FnMut(&str, &mut super::Constant)) {
        self.graph.map_constants(f);
        self.functions.iter_mut().for_each(|function| function.graph.map_constants(f));
    }

    /// Every graph for reading: the main one, the functions' and all bodies.
    pub fn graphs(&self) -> Vec<&Graph> {
        let mut all = Vec::new();
        let mut stack: Vec<&Graph> = std::iter::once(&self.graph).chain(self.functions.iter().map(|f| &f.graph)).collect();
        stack.reverse();
        while let Some(g) = stack.pop() {
            all.push(g);
            let bodies: Vec<&Graph> = g.ops().iter().flat_map(|&id| g.node(id).attrs.iter().flat_map(|(_, a)| a.graphs())).collect();
            stack.extend(bodies.into_iter().rev());
        }
        all
    }
}

fn visit<E>(graph: &mut Graph, outer: Option<&Scope>, f: &mut impl FnMut(&mut Graph, Option<&Scope>) -> Result<(), E>) -> Result<(), E> {
    let with_bodies: Vec<NodeId> = graph.ops().iter().copied().filter(|&id| graph.node(id).has_bodies()).collect();
    for id in with_bodies {
        graph.with_bodies(id, |around, body| visit(body, Some(&Scope { graph: around, outer }), f))?;
    }
    f(graph, outer)
}

/// The graphs around a body.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The next graph outwards.
    pub graph: &'a Graph,
    /// The scope around that one.
    pub outer: Option<&'a Scope<'a>>,
}

impl<'a> Scope<'a> {
    /// The graph and value that a captured name stands for, through captures of captures.
    pub fn resolve(&self, name: &str) -> Option<(&'a Graph, ValueId)> {
        match self.graph.value(name) {
            Some(v) if matches!(self.graph.node(v.node).kind, Kind::Capture) => self.outer?.resolve(name),
            Some(v) => Some((self.graph, v)),
            None => self.outer?.resolve(name),
        }
    }
}

/// Every name that is taken in a model; makes new ones that collide with none, the same in every run.
#[derive(Debug, Clone, Default)]
pub struct Names {
    taken: BTreeSet<String>,
}

impl Names {
    /// `hint` if it is free, else the first of `hint_1`, `hint_2`, … that is; taken from now on.
    pub fn fresh(&mut self, hint: &str) -> String {
        let mut name = hint.to_owned();
        let mut n = 0;
        while self.taken.contains(&name) {
            n += 1;
            name = format!("{hint}_{n}");
        }
        self.taken.insert(name.clone());
        name
    }

    /// Takes what another list of the same model has taken too.
    pub fn absorb(&mut self, other: Names) {
        self.taken.extend(other.taken);
    }
}
