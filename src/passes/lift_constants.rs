//! `lift-constants`
//!
//! *What*: Constant nodes become initializers.
//! *Why*: an initializer is no node: it is not run, and equal ones can be merged.
//! *Before*:
//! ```text
//! graph g(x: float32[n]) -> (y) {
//!   c = Constant() {value=float32[] [2.0]}
//!   y = Mul(x, c)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n]) -> (y) {
//!   param c: float32[] = [2.0]
//!   y = Mul(x, c)
//! }
//! ```
//! *Leaves alone*: bodies of functions, which can have no initializers; sparse constants; constants that the graph gives back.

use super::rules::edit_each;
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attr, Attrs, Constant, Graph, Model, NodeId};
use crate::tensor::Tensor;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct LiftConstants;

impl Pass for LiftConstants {
    fn name(&self) -> &'static str {
        "lift-constants"
    }

    fn source(&self) -> &'static str {
        include_str!("lift_constants.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        let names = model.names();
        edit_each(model, "lift-constants", names, |edit| {
            let graph = edit.graph();
            let constants: Vec<(NodeId, Constant)> = graph.ops().iter().filter_map(|&id| Some((id, lifted(graph, id)?))).collect();
            for (id, constant) in constants {
                let name = edit.graph().name_of(id.value(0)).to_owned();
                let param = edit.add_param(&name, constant);
                edit.replace_uses(id.value(0), param);
                edit.remove(id);
            }
        })
    }
}

fn lifted(graph: &Graph, id: NodeId) -> Option<Constant> {
    let (node, v) = (graph.node(id), id.value(0));
    if !node.op()?.is("Constant") || graph.is_output(v) || node.outputs.len() != 1 {
        return None;
    }
    let constant = constant_of(&node.attrs)?;
    let ty = crate::ir::Type::of(constant.tensor.dtype(), constant.tensor.shape());
    graph.type_of(v).is_none_or(|t| t.compatible(&ty)).then_some(constant)
}

/// The constant that the attributes of a Constant node state.
fn constant_of(attrs: &Attrs) -> Option<Constant> {
    let mut stated = attrs.iter().filter(|(_, a)| !matches!(a, Attr::Undefined));
    let (Some((name, attr)), None) = (stated.next(), stated.next()) else { return None };
    Some(match (name, attr) {
        ("value", Attr::Tensor(c)) => Constant { tensor: c.tensor.clone(), encoding: c.encoding.clone(), residue: Default::default() },
        ("value_float", Attr::Float(x)) => Tensor::scalar(*x).into(),
        ("value_floats", Attr::Floats(x)) => Tensor::vector(x.clone()).into(),
        ("value_int", Attr::Int(x)) => Tensor::scalar(*x).into(),
        ("value_ints", Attr::Ints(x)) => Tensor::vector(x.clone()).into(),
        _ => return None,
    })
}
