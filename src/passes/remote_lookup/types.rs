//! What is known of the types of a model's values, beyond what the file states.

use crate::ir::{Graph, Model, Type, ValueId};
use crate::passes::{InferShapes, Pass, Report};
use std::collections::HashMap;

/// Inferred types by name; a name that has several types in different bodies has none.
#[derive(Debug, Default)]
pub(in crate::passes) struct Types(HashMap<String, Option<Type>>);

impl Types {
    /// Infers them; the model is left as it is.
    pub(in crate::passes) fn of(model: &Model) -> Self {
        let mut copy = model.clone();
        // Without them, fewer lookups are understood.
        let _ = InferShapes.run(&mut copy, &mut Report::default());
        let mut types = Types::default();
        for graph in copy.graphs() {
            for id in graph.nodes() {
                for o in &graph.node(id).outputs {
                    types.add(&o.name, o.ty.as_ref());
                }
            }
        }
        types
    }

    fn add(&mut self, name: &str, ty: Option<&Type>) {
        let Some(ty) = ty else { return };
        let entry = self.0.entry(name.to_owned()).or_insert_with(|| Some(ty.clone()));
        if entry.as_ref() != Some(ty) {
            *entry = None;
        }
    }

    /// The type of a value: as stated, or as inferred where that says more.
    pub(in crate::passes) fn get<'a>(&'a self, graph: &'a Graph, v: ValueId) -> Option<&'a Type> {
        let stated = graph.type_of(v);
        let whole = stated.and_then(Type::shape).is_some_and(|s| s.iter().all(|d| d.known().is_some()));
        if whole {
            return stated;
        }
        self.0.get(graph.name_of(v)).and_then(Option::as_ref).or(stated)
    }

    /// How many dims a value has.
    pub(in crate::passes) fn rank(&self, graph: &Graph, v: ValueId) -> Option<usize> {
        Some(self.get(graph, v)?.shape()?.len())
    }
}
