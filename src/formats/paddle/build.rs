//! What translations are built with: names, values, nodes and constants of a program on its way into a graph.

use super::program::Tx;
use super::proto::{BlockDesc, OpDesc, TensorDesc, dtype};
use crate::ir::{Attrs, Constant, Dim, Kind, NodeParts, OpName, Residue, Type};
use crate::tensor::{DType, Tensor};

impl<'a> Tx<'a> {
    pub(super) fn push(&mut self, op: OpName, inputs: Vec<String>, outputs: Vec<String>, attrs: Attrs) {
        if let (true, Some(&real)) = (op.is("Identity"), inputs.first().and_then(|i| self.real.get(i))) {
            self.real.insert(outputs[0].clone(), real);
        }
        self.nodes.push(NodeParts { name: String::new(), op, inputs, outputs, attrs, residue: Residue::default() });
    }

    /// A name that no value has.
    pub(super) fn fresh(&mut self, hint: &str) -> String {
        let mut name = hint.to_owned();
        // What was found taken once stays so.
        let n = self.next.entry(name.clone()).or_default();
        while !self.taken.insert(name.clone()) {
            *n += 1;
            name = format!("{hint}.{n}");
        }
        name
    }

    /// A new value for a variable: under the variable's name the first time, under a fresh one when it is written again.
    pub(super) fn define(&mut self, var: &str) -> String {
        // In a body the variables of other blocks are not its own: they get another name, for each name is made once.
        let own = self.own.get(self.block).is_some_and(|vars| vars.contains(var));
        let again = self.later.get_mut(var).filter(|_| self.block == 0).is_some_and(|n| {
            *n = n.saturating_sub(1);
            *n > 0
        });
        let name = if own && !again && self.defined.insert(var.to_owned()) { var.to_owned() } else { self.fresh(var) };
        self.env.insert(var.to_owned(), name.clone());
        self.lod.remove(var);
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

    /// Adds a node of ONNX's without attributes; gives the name of its one output.
    pub(super) fn plain(&mut self, op: &str, inputs: &[&str]) -> String {
        self.node(op, inputs, Attrs::new())
    }

    /// A node that makes one output per name.
    pub(super) fn several(&mut self, op: &str, inputs: &[&str], count: usize, attrs: Attrs) -> Vec<String> {
        let outputs: Vec<String> = (0..count).map(|_| self.fresh(&format!("{}#", inputs.first().unwrap_or(&op)))).collect();
        self.push(OpName::onnx(op), owned(inputs), outputs.clone(), attrs);
        outputs
    }

    /// Says that an output variable has a value that is there.
    pub(super) fn give(&mut self, op: &OpDesc, parameter: &str, value: &str) -> Result<(), String> {
        match op.outs(parameter).first() {
            Some(_) => self.out(op, parameter, "Identity", &[value], Attrs::new()),
            None => Ok(()),
        }
    }

    /// Whether anything reads an output parameter.
    pub(super) fn is_read(&self, op: &OpDesc, parameter: &str) -> bool {
        op.outs(parameter).first().is_some_and(|v| self.read.contains(v.as_str()))
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

    /// Adds the node that makes a variable.
    pub(super) fn out_var(&mut self, var: &str, op: &str, inputs: &[&str], attrs: Attrs) {
        let name = self.define(var);
        self.push(OpName::onnx(op), owned(inputs), vec![name], attrs);
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

    /// A number of the dtype of an input parameter.
    pub(super) fn like(&mut self, op: &OpDesc, parameter: &str, value: f64) -> Result<String, String> {
        let dtype = self.dtype_in(op, parameter)?;
        self.number(dtype, value)
    }

    /// Two attributes as numbers of the dtype of X.
    pub(super) fn two(&mut self, op: &OpDesc, a: (&str, f32), b: (&str, f32)) -> Result<(String, String), String> {
        Ok((self.like(op, "X", op.float(a.0, a.1).into())?, self.like(op, "X", op.float(b.0, b.1).into())?))
    }

    /// The offsets of the outputs of an op.
    pub(super) fn keep_lod(&mut self, op: &OpDesc, lod: String) {
        self.lod_is_set = true;
        op.outputs.iter().flat_map(|p| &p.arguments).for_each(|n| {
            self.lod.insert(n.clone(), lod.clone());
        });
    }

    /// The outputs of an op have no offsets.
    pub(super) fn forget_lod(&mut self, op: &OpDesc) {
        self.lod_is_set = true;
        op.outputs.iter().flat_map(|p| &p.arguments).for_each(|n| {
            self.lod.remove(n);
        });
    }

    /// The integers of a variable that the program itself fills.
    pub(super) fn known(&self, var: &str) -> Option<Vec<i64>> {
        let ops = self.program.blocks.iter().flat_map(|b| &b.ops);
        let mut makers = ops.filter(|op| op.outputs.iter().any(|p| p.arguments.iter().any(|n| n == var)));
        let maker = makers.next().filter(|_| makers.next().is_none())?;
        match maker.r#type() {
            "fill_constant" if maker.ins("ValueTensor").is_empty() && maker.ins("ShapeTensor").is_empty() => {
                let count = maker.ints("shape").unwrap_or_default().iter().try_fold(1i64, |n, &d| n.checked_mul(d))?;
                let text = maker.text("str_value", "");
                let value = text.parse::<i64>().unwrap_or_else(|_| maker.float("value", 0.0) as i64);
                (0..=64).contains(&count).then(|| vec![value; count.max(1) as usize])
            }
            "assign_value" => ["int32_values", "int64_values"].iter().find_map(|n| maker.ints(n).filter(|v| !v.is_empty())),
            _ => None,
        }
    }

    /// An integer that is an attribute, or a tensor that the program itself fills.
    pub(super) fn int_or_tensor(&self, op: &OpDesc, tensor: &str, attr: &str, default: i64) -> Result<i64, String> {
        let Some(var) = op.ins(tensor).first() else { return Ok(op.int(attr, default)) };
        let value = self.known(var).and_then(|v| v.first().copied());
        value.ok_or_else(|| format!("{tensor} \"{var}\" is computed, which has no translation"))
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
        if let Some(&real) = self.env.get(var).and_then(|value| self.real.get(value)) {
            return Ok(real);
        }
        let t = self.tensor_of(var).ok_or_else(|| format!("variable \"{var}\" states no dtype"))?;
        dtype(t.data_type()).ok_or_else(|| format!("variable \"{var}\": dtype {} does not exist", t.data_type()))
    }

    pub(super) fn type_of(&self, var: &str) -> Option<Type> {
        let dims = self.tensor_of(var)?.dims.iter().map(|&d| usize::try_from(d).map_or(Dim::Unknown, Dim::Known));
        Some(Type::tensor(self.dtype(var).ok()?, dims))
    }

    /// Whether a variable is a list of tensors.
    pub(super) fn is_array(&self, var: &str) -> bool {
        self.vars.get(var).and_then(|v| v.r#type.as_ref()).is_some_and(|t| t.r#type() == 13)
    }

    /// An output whose dtype is not the one that its variable declares.
    pub(super) fn is_really(&mut self, op: &OpDesc, parameter: &str, dtype: DType) {
        if let Some(value) = op.outs(parameter).first().and_then(|v| self.env.get(v)) {
            self.real.insert(value.clone(), dtype);
        }
    }

    /// The block that an attribute names.
    pub(super) fn block(&self, op: &OpDesc) -> Result<&'a BlockDesc, String> {
        let index = op.int("sub_block", -1);
        let block = usize::try_from(index).ok().and_then(|i| self.program.blocks.get(i));
        block.filter(|b| b.idx() > 0).ok_or_else(|| format!("block {index} does not exist"))
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}
