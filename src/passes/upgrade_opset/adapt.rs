//! What changed from one version of an op to the next, op by op.

use crate::ir::{Attr, Attrs, Edit, NodeId, OpName, Output, ValueId};
use crate::ops::{Fact, util};
use crate::tensor::{DType, Tensor, cast};
use std::collections::HashMap;

type Refusal = Result<(), String>;

/// A node on its way to a later version.
struct Work<'w, 'g> {
    edit: &'w mut Edit<'g>,
    facts: &'w HashMap<String, Fact>,
    id: NodeId,
    op: String,
    label: String,
    attrs: Attrs,
    inputs: Vec<Option<ValueId>>,
    outputs: usize,
    from: i64,
    to: i64,
}

/// Brings a node of version `from` to version `to`.
///
/// # Errors
/// Why its meaning cannot be kept.
pub(super) fn node(edit: &mut Edit, id: NodeId, facts: &HashMap<String, Fact>, (from, to): (i64, i64)) -> Refusal {
    let n = edit.graph().node(id).clone();
    let Some(op) = n.op() else { return Ok(()) };
    let label = n.outputs.first().map_or_else(String::new, |o| o.name.clone());
    let (inputs, outputs) = (n.inputs().to_vec(), n.outputs.iter().filter(|o| !o.name.is_empty()).count());
    let mut w = Work { edit, facts, id, op: op.name.to_string(), label, attrs: n.attrs, inputs, outputs, from, to };
    w.first_versions()?;
    w.attributes_to_inputs()?;
    w.meanings()?;
    w.write()
}

impl Work<'_, '_> {
    /// Whether a version lies between the old and the new.
    fn crosses(&self, version: i64) -> bool {
        self.from < version && version <= self.to
    }

    fn is(&self, ops: &[&str]) -> bool {
        ops.contains(&self.op.as_str())
    }

    fn rank(&self, i: usize) -> Option<usize> {
        let v = (*self.inputs.get(i)?)?;
        Some(self.facts.get(self.edit.graph().name_of(v))?.ty.as_ref()?.shape()?.len())
    }

    fn dtype(&self, i: usize) -> Option<DType> {
        let v = (*self.inputs.get(i)?)?;
        self.facts.get(self.edit.graph().name_of(v))?.ty.as_ref()?.dtype()
    }

    fn int(&self, name: &str, default: i64) -> Result<i64, String> {
        self.attrs.int_or(name, default).map_err(|e| e.to_string())
    }

    fn take_ints(&mut self, name: &str) -> Option<Vec<i64>> {
        match self.attrs.remove(name)? {
            Attr::Ints(x) => Some(x),
            Attr::Int(x) => Some(vec![x]),
            _ => None,
        }
    }

    fn add(&mut self, op: &str, hint: &str, inputs: &[Option<ValueId>], attrs: Attrs) -> ValueId {
        let name = format!("{}_{hint}", self.label);
        self.edit.add(OpName::onnx(op), &name, inputs.iter().copied(), [Output::new(name.clone(), None)], attrs, Some(self.id)).value(0)
    }

    /// A Constant node: functions can have no initializers.
    fn constant(&mut self, hint: &str, tensor: Tensor) -> ValueId {
        self.add("Constant", hint, &[], Attrs::new().with("value", tensor))
    }

    fn set_input(&mut self, at: usize, value: ValueId) {
        if self.inputs.len() <= at {
            self.inputs.resize(at + 1, None);
        }
        self.inputs[at] = Some(value);
    }

    /// A list in an attribute becomes an input.
    fn list_to_input(&mut self, attr: &str, at: usize) {
        if let Some(list) = self.take_ints(attr) {
            let v = self.constant(attr, Tensor::vector(list));
            self.set_input(at, v);
        }
    }

    /// A number becomes an input of the type of input 0.
    fn number_to_input(&mut self, attr: &str, at: usize) -> Refusal {
        let Some(Attr::Float(x)) = self.attrs.remove(attr) else { return Ok(()) };
        let v = match self.dtype(0) {
            Some(dtype) => {
                let tensor = cast(&Tensor::scalar(x), dtype).map_err(|e| e.to_string())?;
                self.constant(attr, tensor)
            }
            None if self.to >= 15 => {
                let plain = self.constant(attr, Tensor::scalar(x));
                let like = self.inputs[0];
                self.add("CastLike", &format!("{attr}_like"), &[Some(plain), like], Attrs::new())
            }
            None => return Err(format!("the type of its input is not known, which \"{attr}\" must have")),
        };
        self.set_input(at, v);
        Ok(())
    }

    /// Versions 1 to 9.
    fn first_versions(&mut self) -> Refusal {
        if self.crosses(6) {
            self.attrs.remove("consumed_inputs");
        }
        if self.crosses(4) && self.op == "Concat" && self.attrs.get("axis").is_none() {
            self.attrs.set("axis", Attr::Int(1));
        }
        if self.crosses(5) && self.op == "Reshape" {
            self.list_to_input("shape", 1);
        }
        if self.crosses(6) && self.op == "Cast" {
            self.cast_name()?;
        }
        if self.crosses(6) && self.op == "Selu" {
            for (name, old) in [("alpha", 1.6732f32), ("gamma", 1.0507)] {
                if self.attrs.get(name).is_none() {
                    self.attrs.set(name, Attr::Float(old));
                }
            }
        }
        if self.crosses(7) {
            self.broadcast()?;
        }
        let gone = [(6, "Tile"), (7, "RNN"), (7, "GRU"), (7, "LSTM"), (2, "LpPool"), (2, "GlobalLpPool"), (2, "Split"), (9, "Scan")];
        match gone.iter().find(|(v, op)| self.crosses(*v) && self.op == *op) {
            Some((v, _)) => Err(format!("its inputs or attributes mean other things from version {v} on")),
            None => Ok(()),
        }
    }

    fn cast_name(&mut self) -> Refusal {
        const NAMES: [&str; 13] =
            ["FLOAT", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "STRING", "BOOL", "FLOAT16", "DOUBLE", "UINT32", "UINT64"];
        let Ok(Some(name)) = self.attrs.string("to") else { return Ok(()) };
        match NAMES.iter().position(|n| *n == name) {
            Some(at) => self.attrs.set("to", Attr::Int(at as i64 + 1)),
            None => return Err(format!("type \"{name}\" is not known")),
        }
        Ok(())
    }

    /// Before version 7, `broadcast` and `axis` say how the second operand fits the first.
    fn broadcast(&mut self) -> Refusal {
        if self.op == "PRelu" {
            // A slope per channel stands on axis 1.
            return match (self.rank(0), self.rank(1)) {
                (Some(a), Some(1)) if a >= 2 => self.widen(1, a - 2),
                _ => Err("its slope broadcasts otherwise from version 7 on, and the ranks are not known".into()),
            };
        }
        if !self.is(&["Add", "And", "Div", "Equal", "Gemm", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor"]) {
            return Ok(());
        }
        self.attrs.remove("broadcast");
        let Some(Attr::Int(axis)) = self.attrs.remove("axis") else { return Ok(()) };
        let (Some(a), Some(b)) = (self.rank(0), self.rank(1)) else {
            return Err("attribute \"axis\" needs operands of known rank".into());
        };
        let behind = util::axis(axis, a).ok().and_then(|at| (a - at).checked_sub(b));
        let Some(behind) = behind else { return Err(format!("attribute \"axis\" is {axis} for ranks {a} and {b}")) };
        self.widen(b, behind)
    }

    /// Gives the second operand, of rank `rank`, `behind` further dims of 1.
    fn widen(&mut self, rank: usize, behind: usize) -> Refusal {
        if behind == 0 {
            return Ok(());
        }
        let axes: Vec<i64> = (rank as i64..(rank + behind) as i64).collect();
        let second = self.inputs[1];
        let wider = if self.to >= 13 {
            let list = self.constant("axes", Tensor::vector(axes));
            self.add("Unsqueeze", "wider", &[second, Some(list)], Attrs::new())
        } else {
            self.add("Unsqueeze", "wider", &[second], Attrs::new().with("axes", axes))
        };
        self.inputs[1] = Some(wider);
        Ok(())
    }

    fn attributes_to_inputs(&mut self) -> Refusal {
        const REDUCTIONS: [&str; 9] = [
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSumSquare",
        ];
        if self.crosses(10) && self.op == "Slice" {
            for (i, name) in ["starts", "ends", "axes"].into_iter().enumerate() {
                self.list_to_input(name, i + 1);
            }
        }
        if self.crosses(10) && self.op == "TopK" {
            self.list_to_input("k", 1);
        }
        if self.op == "Pad"
            && self.crosses(2)
            && let Some(old) = self.attrs.remove("paddings")
        {
            self.attrs.set("pads", old);
        }
        if self.crosses(11) && self.op == "Pad" {
            self.list_to_input("pads", 1);
            if self.attrs.float_or("value", 0.0).is_ok_and(|v| v == 0.0) {
                self.attrs.remove("value");
            }
            self.number_to_input("value", 2)?;
        }
        if self.crosses(11) && self.op == "Clip" {
            self.number_to_input("min", 1)?;
            self.number_to_input("max", 2)?;
        }
        if self.crosses(12)
            && self.op == "Dropout"
            && let Some(Attr::Float(ratio)) = self.attrs.remove("ratio")
        {
            let v = self.constant("ratio", Tensor::scalar(ratio));
            self.set_input(1, v);
        }
        if self.crosses(13) && self.is(&["ReduceSum", "Squeeze", "Unsqueeze"]) {
            self.list_to_input("axes", 1);
        }
        if self.crosses(13) && self.op == "Split" {
            self.list_to_input("split", 1);
        }
        if self.crosses(18) && self.op == "Split" && self.inputs.get(1).copied().flatten().is_none() {
            self.attrs.set("num_outputs", Attr::Int(self.outputs as i64));
        }
        if self.crosses(18) && self.is(&REDUCTIONS) {
            self.list_to_input("axes", 1);
        }
        if self.crosses(20) && self.op == "DFT" {
            let axis = self.int("axis", 1)?;
            self.attrs.remove("axis");
            let v = self.constant("axis", Tensor::scalar(axis));
            self.set_input(2, v);
        }
        Ok(())
    }

    /// Ops and defaults that mean something else.
    fn meanings(&mut self) -> Refusal {
        match self.op.as_str() {
            "BatchNormalization" => self.batch_normalization()?,
            "Dropout" => self.dropout()?,
            "GridSample" if self.crosses(20) => {
                let mode = self.attrs.string_or("mode", "bilinear").map_err(|e| e.to_string())?;
                let new = mode.trim_start_matches("bi").to_owned();
                self.attrs.set("mode", Attr::from(new.as_str()));
            }
            "GroupNormalization" if self.crosses(21) => return Err("its scale is per channel, no longer per group".into()),
            "Hardmax" | "LogSoftmax" | "Softmax" if self.crosses(13) => self.softmax()?,
            "Resize" if self.from == 10 && self.crosses(11) => self.resize(),
            "RoiAlign" if self.crosses(16) && self.attrs.get("coordinate_transformation_mode").is_none() => {
                self.attrs.set("coordinate_transformation_mode", Attr::from("output_half_pixel"));
            }
            "Scatter" if self.crosses(11) => self.op = "ScatterElements".into(),
            "Upsample" if self.crosses(10) => self.upsample()?,
            _ => {}
        }
        Ok(())
    }

    fn batch_normalization(&mut self) -> Refusal {
        if self.outputs > 1 && (self.crosses(9) || self.crosses(14)) {
            return Err("its further outputs mean other things".into());
        }
        if self.crosses(9) && self.attrs.remove("spatial").is_some_and(|a| matches!(a, Attr::Int(0))) {
            return Err("attribute \"spatial\" of 0 is no more".into());
        }
        if self.crosses(7) {
            self.attrs.remove("is_test");
        }
        Ok(())
    }

    fn dropout(&mut self) -> Refusal {
        if self.crosses(7) && self.int("is_test", 0)? == 0 {
            return Err("it trains".into());
        }
        if self.crosses(7) {
            self.attrs.remove("is_test");
        }
        if self.crosses(10) && self.outputs > 1 && !self.edit.graph().is_unused(self.id.value(1)) {
            return Err("its mask has another type".into());
        }
        Ok(())
    }

    fn resize(&mut self) {
        let scales = self.inputs.get(1).copied().flatten();
        self.inputs.truncate(1);
        self.inputs.extend([None, scales]);
        self.attrs.set("coordinate_transformation_mode", Attr::from("asymmetric"));
        self.attrs.set("nearest_mode", Attr::from("floor"));
    }

    fn upsample(&mut self) -> Refusal {
        if self.from < 7 {
            return Err("its scales have other names".into());
        }
        if self.from < 9 {
            let Some(Attr::Floats(scales)) = self.attrs.remove("scales") else { return Err("it has no scales".into()) };
            let v = self.constant("scales", Tensor::vector(scales));
            self.set_input(1, v);
        }
        self.op = "Resize".into();
        if self.to >= 11 {
            self.resize();
        }
        Ok(())
    }

    /// Before version 13 the dims from the axis on are one.
    fn softmax(&mut self) -> Refusal {
        let axis = self.int("axis", 1)?;
        if self.rank(0).is_some_and(|r| util::axis(axis, r) == Ok(r.wrapping_sub(1))) {
            self.attrs.set("axis", Attr::Int(-1));
            return Ok(());
        }
        let x = self.inputs[0];
        let shape = self.add("Shape", "shape", &[x], Attrs::new());
        let flat = self.add("Flatten", "flat", &[x], Attrs::new().with("axis", axis));
        let op = self.op.clone();
        let rows = self.add(&op, "rows", &[Some(flat)], Attrs::new().with("axis", -1i64));
        self.op = "Reshape".into();
        self.attrs = if self.to >= 14 { Attrs::new().with("allowzero", 1i64) } else { Attrs::new() };
        self.inputs = vec![Some(rows), Some(shape)];
        Ok(())
    }

    /// Records what changed.
    fn write(&mut self) -> Refusal {
        let node = self.edit.graph().node(self.id).clone();
        if node.op().is_some_and(|op| *op.name != *self.op) {
            let outputs = node.outputs.iter().map(|o| Output { info: None, ..o.clone() });
            let inputs = std::mem::take(&mut self.inputs);
            let new = self.edit.add(OpName::onnx(&self.op), &node.name, inputs, outputs, self.attrs.clone(), Some(self.id));
            for slot in 0..node.outputs.len() as u32 {
                self.edit.replace_uses(self.id.value(slot), new.value(slot));
            }
            self.edit.remove(self.id);
            return Ok(());
        }
        for (name, _) in node.attrs.iter().filter(|(n, _)| self.attrs.get(n).is_none()) {
            self.edit.remove_attr(self.id, name);
        }
        for (name, value) in self.attrs.iter() {
            let same = match (node.attrs.get(name), value) {
                (Some(Attr::Int(a)), Attr::Int(b)) => a == b,
                (Some(Attr::String(a)), Attr::String(b)) => a == b,
                // Values of other kinds are only moved under another name.
                (old, Attr::Int(_) | Attr::String(_)) => matches!(old, Some(Attr::Ref(_))),
                (old, _) => old.is_some(),
            };
            if !same {
                self.edit.set_attr(self.id, name, value.clone());
            }
        }
        for i in 0..self.inputs.len() {
            if node.input(i) != self.inputs[i] || (i >= node.inputs().len() && self.inputs[i].is_some()) {
                self.edit.set_operand(self.id, i, self.inputs[i]);
            }
        }
        Ok(())
    }
}
