//! What a model takes and gives, in the protocol's words.

use crate::ir::{Dim, Type};
use crate::tensor::DType;
use serde_json::{Value, json};

/// The dtypes that the protocol has, by their names in it.
const DATATYPES: [(DType, &str); 14] = [
    (DType::Bool, "BOOL"),
    (DType::U8, "UINT8"),
    (DType::U16, "UINT16"),
    (DType::U32, "UINT32"),
    (DType::U64, "UINT64"),
    (DType::I8, "INT8"),
    (DType::I16, "INT16"),
    (DType::I32, "INT32"),
    (DType::I64, "INT64"),
    (DType::F16, "FP16"),
    (DType::BF16, "BF16"),
    (DType::F32, "FP32"),
    (DType::F64, "FP64"),
    (DType::String, "BYTES"),
];

/// The protocol's name of a dtype, if it has one.
pub fn datatype(dtype: DType) -> Option<&'static str> {
    DATATYPES.iter().find(|d| d.0 == dtype).map(|d| d.1)
}

/// The dtype of a name of the protocol.
pub(super) fn dtype(name: &str) -> Option<DType> {
    DATATYPES.iter().find(|d| d.1 == name).map(|d| d.0)
}

/// An input or output.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its type, as far as the model states it.
    pub ty: Option<Type>,
    /// Whether the model has a value of its own for it.
    pub optional: bool,
}

impl Port {
    /// The dtype, if it is stated and a tensor's.
    pub fn dtype(&self) -> Option<DType> {
        self.ty.as_ref().and_then(Type::dtype)
    }

    fn dims(&self) -> Option<&[Dim]> {
        self.ty.as_ref().and_then(Type::shape)
    }

    fn datatype(&self) -> String {
        self.dtype().map_or_else(|| "UNKNOWN".into(), |d| datatype(d).map_or_else(|| d.name().to_uppercase(), str::to_owned))
    }

    /// The dims with -1 for those that are open. A tensor of any rank has one of these.
    fn shape(&self) -> Vec<i64> {
        match self.dims() {
            Some(dims) => dims.iter().map(|d| d.known().map_or(-1, |n| n as i64)).collect(),
            None => vec![-1],
        }
    }

    /// What is expected, for messages.
    pub(super) fn expected(&self) -> String {
        let Some(dims) = self.dims() else { return format!("{} of any shape", self.datatype()) };
        let dims: Vec<String> = dims.iter().map(|d| d.known().map_or_else(|| "-1".into(), |n| n.to_string())).collect();
        format!("{}[{}]", self.datatype(), dims.join(","))
    }

    /// Whether a tensor of this dtype and shape may be given.
    pub(super) fn takes(&self, dtype: DType, shape: &[usize]) -> bool {
        let dims = self
            .dims()
            .is_none_or(|dims| dims.len() == shape.len() && dims.iter().zip(shape).all(|(d, n)| d.known().is_none_or(|known| known == *n)));
        dims && self.dtype().is_none_or(|d| d == dtype)
    }

    fn metadata(&self) -> Value {
        json!({ "name": self.name, "datatype": self.datatype(), "shape": self.shape() })
    }

    /// As Triton's configuration of a model has it: with batches, the first axis is left out.
    fn config(&self, batched: bool) -> Value {
        let kind = match self.datatype().as_str() {
            "BYTES" => "TYPE_STRING".into(),
            other => format!("TYPE_{other}"),
        };
        let dims: Vec<i64> = self.shape().into_iter().skip(usize::from(batched)).collect();
        json!({ "name": self.name, "data_type": kind, "dims": dims, "optional": self.optional })
    }
}

/// A model as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Interface {
    /// Its name in paths.
    pub name: String,
    /// Its only version.
    pub version: String,
    /// Its inputs, in order.
    pub inputs: Vec<Port>,
    /// Its outputs, in order.
    pub outputs: Vec<Port>,
}

impl Interface {
    /// The answer to a question for the model.
    pub fn metadata(&self) -> Value {
        let all = |ports: &[Port]| ports.iter().map(Port::metadata).collect::<Vec<_>>();
        json!({ "name": self.name, "versions": [self.version], "platform": "graphtool", "inputs": all(&self.inputs), "outputs": all(&self.outputs) })
    }

    /// The model in Triton's form of a configuration. `batch` is the most samples of a batch, where samples of several requests are
    /// put into one.
    pub fn config(&self, batch: Option<usize>) -> Value {
        let all = |ports: &[Port]| ports.iter().map(|p| p.config(batch.is_some())).collect::<Vec<_>>();
        let mut config = json!({ "name": self.name, "platform": "graphtool", "backend": "graphtool", "max_batch_size": batch.unwrap_or(0), "input": all(&self.inputs), "output": all(&self.outputs) });
        if batch.is_some() {
            config["dynamic_batching"] = json!({});
        }
        config
    }

    /// Whether the first axis of all inputs and outputs counts the same samples, as far as the model states its dims: none of them
    /// is fixed, and where two have names, these are the same.
    pub fn counts_samples(&self) -> bool {
        let firsts: Option<Vec<&Dim>> = self.inputs.iter().chain(&self.outputs).map(|p| p.dims()?.first()).collect();
        let Some(firsts) = firsts else { return false };
        let mut names = firsts.iter().filter_map(|d| if let Dim::Symbol(s) = d { Some(s) } else { None });
        let first = names.next();
        !self.inputs.is_empty()
            && self.inputs.iter().all(|i| !i.optional)
            && firsts.iter().all(|d| d.known().is_none())
            && names.all(|n| Some(n) == first)
    }
}
