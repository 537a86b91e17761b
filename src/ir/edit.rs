//! Recorded changes to a graph, checked as a whole and then applied as a whole.

use super::attr::{Attr, Attrs};
use super::graph::{Graph, NodeId, ValueId, blank};
use super::model::Names;
use super::node::{Kind, Node, OpName, Output};
use super::types::Type;
use std::collections::{HashMap, HashSet};

/// Ids of nodes that an edit adds start here until they are committed.
const NEW: u32 = 1 << 31;

/// Why an edit was refused; the graph is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{label}: {detail}")]
pub struct EditError {
    /// What the edit was for.
    pub label: String,
    /// What is wrong.
    pub detail: String,
}

/// A set of changes to one graph. Nothing happens before [`Edit::commit`], and then all of it or nothing.
#[derive(Debug)]
pub struct Edit<'g> {
    graph: &'g mut Graph,
    label: String,
    added: Vec<(Node, Option<NodeId>)>,
    replaced: Vec<(ValueId, ValueId)>,
    operands: Vec<(NodeId, usize, Option<ValueId>)>,
    attrs: Vec<(NodeId, String, Option<Attr>)>,
    types: Vec<(ValueId, Type)>,
    outputs: Vec<(usize, ValueId)>,
    dropped: Vec<usize>,
    removed: Vec<NodeId>,
    /// Added nodes whose names are final.
    exact: HashSet<NodeId>,
}

impl Graph {
    /// Starts an edit; `label` says what it is for in messages.
    pub fn edit(&mut self, label: &str) -> Edit<'_> {
        Edit {
            graph: self,
            label: label.to_owned(),
            added: Vec::new(),
            replaced: Vec::new(),
            operands: Vec::new(),
            attrs: Vec::new(),
            types: Vec::new(),
            outputs: Vec::new(),
            dropped: Vec::new(),
            removed: Vec::new(),
            exact: HashSet::new(),
        }
    }
}

impl Edit<'_> {
    /// The graph as it is before the edit.
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty()
            && self.replaced.is_empty()
            && self.operands.is_empty()
            && self.attrs.is_empty()
            && self.types.is_empty()
            && self.outputs.is_empty()
            && self.dropped.is_empty()
            && self.removed.is_empty()
    }

    fn push(&mut self, node: Node, before: Option<NodeId>) -> NodeId {
        self.added.push((node, before));
        NodeId(NEW + self.added.len() as u32 - 1)
    }

    /// Adds an operator before `before` (or last). Output names are hints: a taken one gets a number, and one that
    /// replaces a value of a removed node takes over its name. The id is good within this edit.
    pub fn add(
        &mut self,
        op: OpName,
        name: &str,
        inputs: impl IntoIterator<Item = Option<ValueId>>,
        outputs: impl IntoIterator<Item = Output>,
        attrs: Attrs,
        before: Option<NodeId>,
    ) -> NodeId {
        let node = Node {
            name: name.to_owned(),
            outputs: outputs.into_iter().collect(),
            attrs,
            inputs: inputs.into_iter().collect(),
            ..blank(Kind::Op(op))
        };
        self.push(node, before)
    }

    /// Adds a constant.
    pub fn add_param(&mut self, name: &str, constant: impl Into<super::Constant>) -> ValueId {
        let constant = constant.into();
        let ty = Some(Type::of(constant.tensor.dtype(), constant.tensor.shape()));
        let outputs = vec![Output { name: name.to_owned(), ty, info: None }];
        self.push(Node { outputs, ..blank(Kind::Param(constant)) }, None).value(0)
    }

    /// In a body: the value of that name of an outer graph.
    pub fn add_capture(&mut self, name: &str) -> ValueId {
        if let Some(&c) = self.graph.captures.iter().find(|&&c| self.graph.node(c).outputs[0].name == name) {
            return c.value(0);
        }
        if let Some(i) = self.added.iter().position(|(n, _)| matches!(n.kind, Kind::Capture) && n.outputs[0].name == name) {
            return NodeId(NEW + i as u32).value(0);
        }
        let outputs = vec![Output { name: name.to_owned(), ..Output::default() }];
        let id = self.push(Node { outputs, ..blank(Kind::Capture) }, None);
        self.exact.insert(id);
        id.value(0)
    }

    /// Adds an input at the end.
    pub fn add_input(&mut self, name: &str) -> ValueId {
        let outputs = vec![Output { name: name.to_owned(), ..Output::default() }];
        self.push(Node { outputs, ..blank(Kind::Input(None)) }, None).value(0)
    }

    /// Adds the nodes and constants of `inner` before `before`, its inputs being `inputs` and its captures values of this
    /// graph or of those around it; gives back what its outputs are.
    /// All its values get fresh names, those in its bodies too.
    ///
    /// # Errors
    /// An output or a body reads an input that is not given.
    pub fn splice(
        &mut self,
        mut inner: Graph,
        inputs: &[Option<ValueId>],
        before: NodeId,
        names: &mut Names,
    ) -> Result<Vec<ValueId>, EditError> {
        let formal: Vec<(NodeId, Option<ValueId>)> =
            inner.inputs.iter().enumerate().map(|(i, &id)| (id, inputs.get(i).copied().flatten())).collect();
        for &(id, given) in &formal {
            let old = inner.name_of(id.value(0)).to_owned();
            let readers: Vec<NodeId> = inner.uses(id.value(0)).into_iter().filter(|u| u.operand.is_none()).map(|u| u.node).collect();
            match given.and_then(|v| self.output(v)) {
                Some(o) => readers.into_iter().for_each(|r| inner.rename_captured(r, &old, &o.name)),
                None if !readers.is_empty() => return self.fail(format!("a body reads \"{old}\", which the call leaves out")),
                None => {}
            }
        }
        inner.freshen(names);
        let mut map: HashMap<ValueId, Option<ValueId>> = formal.iter().map(|&(id, given)| (id.value(0), given)).collect();
        for &capture in &inner.captures {
            let name = inner.name_of(capture.value(0));
            let outer = self.graph.value(name).unwrap_or_else(|| self.add_capture(name));
            map.insert(capture.value(0), Some(outer));
        }
        let order = inner.topological().map_err(|e| EditError { label: self.label.clone(), detail: e.0 })?;
        for id in inner.params.iter().copied().chain(order) {
            let node = inner.node(id);
            if matches!(node.kind, Kind::Input(_)) {
                continue;
            }
            let operands = node.inputs.iter().map(|v| v.and_then(|v| map.get(&v).copied().flatten())).collect();
            let new = self.push(Node { inputs: operands, ..node.clone() }, node.op().map(|_| before));
            self.exact.insert(new);
            for slot in 0..node.outputs.len() as u32 {
                map.insert(id.value(slot), Some(new.value(slot)));
            }
        }
        let mut outputs = Vec::with_capacity(inner.outputs.len());
        for o in &inner.outputs {
            match map.get(&o.value).copied().flatten() {
                Some(v) => outputs.push(v),
                None => return self.fail(format!("\"{}\" is an input that the call leaves out", inner.name_of(o.value))),
            }
        }
        Ok(outputs)
    }

    /// Every reader of `old` (bodies and graph outputs too) reads `new` instead.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        self.replaced.push((old, new));
    }

    /// One operand of one node reads `value` instead.
    pub fn set_operand(&mut self, node: NodeId, operand: usize, value: Option<ValueId>) {
        self.operands.push((node, operand, value));
    }

    /// Sets an attribute.
    pub fn set_attr(&mut self, node: NodeId, name: &str, value: impl Into<Attr>) {
        self.attrs.push((node, name.to_owned(), Some(value.into())));
    }

    /// Takes an attribute away.
    pub fn remove_attr(&mut self, node: NodeId, name: &str) {
        self.attrs.push((node, name.to_owned(), None));
    }

    /// States the type of a value.
    pub fn set_type(&mut self, value: ValueId, ty: Type) {
        self.types.push((value, ty));
    }

    /// The graph gives back `value` as its output `index`, under the output's name; other readers of what it gave back so
    /// far are left alone.
    pub fn set_output(&mut self, index: usize, value: ValueId) {
        self.outputs.push((index, value));
    }

    /// In a body: output `index`, as it was counted before the edit, is given back no more.
    pub fn remove_output(&mut self, index: usize) {
        self.dropped.push(index);
    }

    /// Removes a node, whose values nobody may need once the edit is done.
    pub fn remove(&mut self, node: NodeId) {
        if !self.removed.contains(&node) {
            self.removed.push(node);
        }
    }

    fn fail<T>(&self, detail: String) -> Result<T, EditError> {
        Err(EditError { label: self.label.clone(), detail })
    }

    /// A node as it will be, existing or added.
    fn peek(&self, id: NodeId) -> Option<&Node> {
        match id.0.checked_sub(NEW) {
            Some(i) => self.added.get(i as usize).map(|(n, _)| n),
            None => self.graph.contains(id).then(|| self.graph.node(id)),
        }
    }

    fn output(&self, v: ValueId) -> Option<&Output> {
        self.peek(v.node)?.outputs.get(v.slot as usize)
    }

    /// The final operand lists of every node that the edit touches or adds.
    fn final_operands(&self) -> HashMap<NodeId, Vec<Option<ValueId>>> {
        let replace: HashMap<ValueId, ValueId> = self.replaced.iter().copied().collect();
        let mut lists: HashMap<NodeId, Vec<Option<ValueId>>> = HashMap::new();
        for (i, (node, _)) in self.added.iter().enumerate() {
            lists.insert(NodeId(NEW + i as u32), node.inputs.clone());
        }
        for (old, new) in &self.replaced {
            for u in self.graph.uses(*old) {
                let Some(operand) = u.operand else { continue };
                let list = lists.entry(u.node).or_insert_with(|| self.graph.node(u.node).inputs().to_vec());
                list[operand] = Some(*new);
            }
        }
        for &(id, operand, value) in &self.operands {
            let list = lists.entry(id).or_insert_with(|| self.peek(id).map(|n| n.inputs().to_vec()).unwrap_or_default());
            if list.len() <= operand {
                list.resize(operand + 1, None);
            }
            list[operand] = value.map(|v| replace.get(&v).copied().unwrap_or(v));
        }
        lists
    }

    fn check(&self, operands: &HashMap<NodeId, Vec<Option<ValueId>>>) -> Result<(), EditError> {
        let removed: HashSet<NodeId> = self.removed.iter().copied().collect();
        let label = |id: NodeId| self.peek(id).map_or("?", |n| n.label()).to_owned();
        for &(old, new) in &self.replaced {
            let (Some(a), Some(b)) = (self.output(old), self.output(new)) else {
                return self.fail("a replaced value does not exist".into());
            };
            if let (Some(s), Some(t)) = (&a.ty, &b.ty)
                && !s.compatible(t)
            {
                return self.fail(format!("\"{}\" of type {s} would become \"{}\" of type {t}", a.name, b.name));
            }
        }
        for (&id, list) in operands {
            if removed.contains(&id) {
                continue;
            }
            if self.peek(id).is_none() {
                return self.fail("an operand of a node that does not exist".into());
            }
            for v in list.iter().flatten() {
                if self.output(*v).is_none() {
                    return self.fail(format!("node \"{}\" would read a value that does not exist", label(id)));
                }
                if removed.contains(&v.node) {
                    return self.fail(format!(
                        "node \"{}\" would read \"{}\" of a removed node",
                        label(id),
                        self.output(*v).map_or("", |o| &o.name)
                    ));
                }
            }
        }
        let replaced: HashSet<ValueId> = self.replaced.iter().map(|r| r.0).collect();
        for &id in &self.removed {
            for slot in 0..self.graph.node(id).outputs.len() {
                let v = id.value(slot as u32);
                let read = self.graph.uses(v).iter().any(|u| {
                    let kept = !removed.contains(&u.node);
                    kept && match u.operand {
                        Some(o) => operands.get(&u.node).is_none_or(|list| list.get(o).copied().flatten() == Some(v)),
                        None => !replaced.contains(&v),
                    }
                });
                if read || (self.graph.is_output(v) && !replaced.contains(&v)) {
                    return self.fail(format!("\"{}\" is still read", self.graph.name_of(v)));
                }
            }
        }
        self.check_cycles(operands, &removed)
    }

    /// A depth-first walk against the edges from each node whose operands change.
    fn check_cycles(&self, operands: &HashMap<NodeId, Vec<Option<ValueId>>>, removed: &HashSet<NodeId>) -> Result<(), EditError> {
        let replace: HashMap<ValueId, ValueId> = self.replaced.iter().copied().collect();
        let reads = |id: NodeId| -> Vec<NodeId> {
            let mut from: Vec<NodeId> = match operands.get(&id) {
                Some(list) => list.iter().flatten().map(|v| v.node).collect(),
                None => self.peek(id).map(|n| n.inputs().iter().flatten().map(|v| v.node).collect()).unwrap_or_default(),
            };
            if id.0 < NEW {
                from.extend(self.graph.captured_by(id).into_iter().map(|v| replace.get(&v).copied().unwrap_or(v).node));
            }
            from
        };
        let mut state: HashMap<NodeId, bool> = HashMap::new();
        for &start in operands.keys() {
            if removed.contains(&start) || state.contains_key(&start) {
                continue;
            }
            let mut stack = vec![(start, reads(start), 0usize)];
            state.insert(start, false);
            while let Some((id, from, at)) = stack.last_mut() {
                let Some(&next) = from.get(*at) else {
                    state.insert(*id, true);
                    stack.pop();
                    continue;
                };
                *at += 1;
                match state.get(&next) {
                    Some(true) => {}
                    Some(false) => {
                        return self.fail(format!("\"{}\" would wait for itself", self.peek(next).map_or("?", |n| n.label())));
                    }
                    None => {
                        state.insert(next, false);
                        stack.push((next, reads(next), 0));
                    }
                }
            }
        }
        Ok(())
    }

    /// Applies the edit.
    ///
    /// # Errors
    /// Types that do not fit, a removed node that is still read, a value that would depend on itself. Then nothing is changed.
    pub fn commit(mut self, names: &mut Names) -> Result<(), EditError> {
        let operands = self.final_operands();
        self.check(&operands)?;
        let removed: HashSet<NodeId> = self.removed.iter().copied().collect();
        let anchors = self.anchors();
        let take_over = self.names_to_take_over(&removed);
        for &(id, ref name, ref value) in &self.attrs {
            let attrs = match id.0.checked_sub(NEW) {
                Some(i) => &mut self.added[i as usize].0.attrs,
                None => &mut self.graph.node_mut(id).attrs,
            };
            match value {
                Some(v) => attrs.set(name, v.clone()),
                None => drop(attrs.remove(name)),
            }
        }
        let graph = self.graph;
        let mut positions: HashMap<NodeId, usize> = graph.order.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let mut ids = Vec::with_capacity(self.added.len());
        let mut placed: Vec<(usize, NodeId)> = Vec::new();
        for (i, (mut node, _)) in self.added.into_iter().enumerate() {
            node.inputs.clear();
            let is_op = node.op().is_some();
            let exact = self.exact.contains(&NodeId(NEW + i as u32));
            if is_op && !exact && !node.name.is_empty() {
                node.name = names.fresh(&node.name);
            }
            for (slot, o) in node.outputs.iter_mut().enumerate().filter(|(_, o)| !exact && !o.name.is_empty()) {
                // A name that is taken over is still its old owner's; it is given below.
                let later = take_over.contains_key(&NodeId(NEW + i as u32).value(slot as u32));
                o.name = if later { format!("\u{0}{i}.{slot}") } else { names.fresh(&o.name) };
            }
            let id = graph.add_node(node);
            if is_op {
                placed.push((anchors[i].and_then(|a| positions.get(&a).copied()).unwrap_or(usize::MAX), id));
            } else if matches!(graph.node(id).kind, Kind::Capture) {
                graph.captures.push(id);
            } else if matches!(graph.node(id).kind, Kind::Input(_)) {
                graph.inputs.push(id);
            } else {
                graph.params.push(id);
            }
            ids.push(id);
        }
        let real = |v: ValueId| v.node.0.checked_sub(NEW).map_or(v, |i| ids[i as usize].value(v.slot));
        let real_node = |id: NodeId| id.0.checked_sub(NEW).map_or(id, |i| ids[i as usize]);
        let mut lists: Vec<_> = operands.into_iter().filter(|(id, _)| !removed.contains(id)).collect();
        lists.sort_by_key(|(id, _)| *id);
        for (id, list) in lists {
            graph.set_operands(real_node(id), list.into_iter().map(|v| v.map(real)).collect());
        }
        for &id in ids.iter().chain(self.attrs.iter().map(|(id, ..)| id).filter(|id| id.0 < NEW && !removed.contains(id))) {
            if graph.node(id).has_bodies() {
                graph.refresh_captures_only(id);
            }
        }
        for (v, ty) in self.types {
            let v = real(v);
            graph.node_mut(v.node).outputs[v.slot as usize].ty = Some(ty);
        }
        let mut capturing: Vec<NodeId> = Vec::new();
        let mut identities: Vec<(ValueId, String)> = Vec::new();
        for &(old, new) in &self.replaced {
            let v = real(new);
            let old_name = graph.name_of(old).to_owned();
            let readers: Vec<NodeId> = graph.uses(old).into_iter().filter(|u| u.operand.is_none()).map(|u| u.node).collect();
            let takes = take_over.get(&new).is_some_and(|n| *n == old_name);
            if let Some(ty) = graph.type_of(old).cloned()
                && graph.type_of(v).is_none()
            {
                graph.node_mut(v.node).outputs[v.slot as usize].ty = Some(ty);
            }
            if !takes {
                let name = graph.name_of(v).to_owned();
                readers.iter().for_each(|&r| graph.rename_captured(r, &old_name, &name));
            } else {
                let (old_info, listed) = (graph.output(old).info.clone(), graph.value_info.contains(&old_name));
                let output = &mut graph.node_mut(v.node).outputs[v.slot as usize];
                output.info = old_info.or(output.info.take()).filter(|_| listed || output.ty.is_some());
            }
            capturing.extend(readers);
            let is_output = graph.is_output(old);
            if is_output && !takes {
                identities.push((v, old_name.clone()));
            }
            if is_output && takes {
                graph.outputs.iter_mut().filter(|o| o.value == old).for_each(|o| o.value = v);
            }
        }
        // Names move before removal so that `value_info` keeps its order.
        for (new, name) in &take_over {
            let old = graph.value(name);
            if let Some(old) = old {
                graph.node_mut(old.node).outputs[old.slot as usize].name = String::from("\u{0}old");
            }
            let new = real(*new);
            let was = graph.name_of(new).to_owned();
            let readers: Vec<NodeId> = graph.uses(new).into_iter().filter(|u| u.operand.is_none()).map(|u| u.node).collect();
            readers.into_iter().for_each(|r| graph.rename_captured(r, &was, name));
            graph.rename(new, name);
        }
        for (v, name) in identities {
            let old = graph.value(&name);
            let ty = graph.type_of(v).cloned();
            let Some(old) = old else { continue };
            let dies = removed.contains(&old.node);
            if !dies {
                // The old value lives on under a new name; the interface keeps its own.
                let renamed = names.fresh(&name);
                let readers: Vec<NodeId> = graph.uses(old).into_iter().filter(|u| u.operand.is_none()).map(|u| u.node).collect();
                readers.iter().for_each(|&r| graph.rename_captured(r, &name, &renamed));
                graph.rename(old, &renamed);
            } else {
                graph.node_mut(old.node).outputs[old.slot as usize].name = String::from("\u{0}old");
            }
            let node = Node { outputs: vec![Output { name: name.clone(), ty, info: None }], ..blank(Kind::Op(OpName::onnx("Identity"))) };
            let id = graph.add_node(node);
            graph.set_operands(id, vec![Some(v)]);
            placed.push((usize::MAX, id));
            graph.outputs.iter_mut().filter(|o| o.value == old).for_each(|o| o.value = id.value(0));
        }
        for &(index, new) in &self.outputs {
            let (old, new) = (graph.outputs[index].value, real(new));
            let name = graph.name_of(old).to_owned();
            let renamed = names.fresh(&format!("{name}_local"));
            let readers: Vec<NodeId> = graph.uses(old).into_iter().filter(|u| u.operand.is_none()).map(|u| u.node).collect();
            readers.iter().for_each(|&r| graph.rename_captured(r, &name, &renamed));
            graph.rename(old, &renamed);
            graph.rename(new, &name);
            let output = &mut graph.node_mut(old.node).outputs[old.slot as usize];
            // What was stated as the interface's type is from now on stated as the value's.
            output.info = output.info.take().or(output.ty.is_some().then(Default::default));
            graph.outputs[index].value = new;
        }
        self.dropped.sort_unstable();
        self.dropped.dedup();
        self.dropped.iter().rev().for_each(|&index| drop(graph.outputs.remove(index)));
        // New nodes stand before their anchors; a stable sort then repairs what that left out of order.
        let mut order: Vec<(usize, usize, NodeId)> = graph.order.iter().map(|&id| (positions.remove(&id).unwrap_or(0), 1, id)).collect();
        order.extend(placed.into_iter().map(|(at, id)| (at, 0, id)));
        order.sort_by_key(|&(at, new, _)| (at, new));
        graph.order = order.into_iter().map(|(_, _, id)| id).collect();
        graph.remove_nodes(&self.removed);
        capturing.sort();
        capturing.dedup();
        for id in capturing.into_iter().filter(|id| !removed.contains(id)) {
            graph.refresh_captures(id);
        }
        graph.drop_unused_captures();
        if let Ok(sorted) = graph.topological() {
            graph.order = sorted;
        }
        Ok(())
    }

    /// Where each added node stands: before its anchor, else before the maker of the first value that it replaces.
    fn anchors(&self) -> Vec<Option<NodeId>> {
        let mut anchors: Vec<Option<NodeId>> = self.added.iter().map(|(_, before)| *before).collect();
        for &(old, new) in &self.replaced {
            if let Some(i) = new.node.0.checked_sub(NEW) {
                anchors[i as usize] = anchors[i as usize].or(Some(old.node));
            }
        }
        anchors
    }

    /// Which added value takes the name of which removed one.
    fn names_to_take_over(&self, removed: &HashSet<NodeId>) -> HashMap<ValueId, String> {
        let mut taken = HashMap::new();
        for &(old, new) in &self.replaced {
            // A capture is what it captures by its name.
            let capture = self.peek(new.node).is_some_and(|n| matches!(n.kind, Kind::Capture));
            if new.node.0 >= NEW && !capture && removed.contains(&old.node) {
                taken.entry(new).or_insert_with(|| self.graph.name_of(old).to_owned());
            }
        }
        taken
    }
}
