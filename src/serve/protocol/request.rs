//! Requests for inference.

use super::Refusal;
use super::elements::{from_json, texts};
use super::interface::{Interface, Port, dtype};
use crate::tensor::{DType, Shape, Tensor, Value, checked_len};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// An output that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Which output of the model.
    pub output: usize,
    /// Whether its elements go as binary data.
    pub binary: bool,
}

/// A request that fits the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What the client calls it, given back.
    pub id: Option<String>,
    /// The inputs, in the order of the request.
    pub inputs: Vec<(String, Value)>,
    /// The outputs, in the order of the answer.
    pub outputs: Vec<Wanted>,
}

type Parameters = serde_json::Map<String, serde_json::Value>;

#[derive(Deserialize)]
struct Head<'a> {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(borrow)]
    inputs: Vec<Input<'a>>,
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Input<'a> {
    name: String,
    #[serde(borrow)]
    shape: &'a RawValue,
    datatype: Cow<'a, str>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// Parameters that would change the answer.
const REFUSED: [&str; 4] = ["classification", "sequence_id", "shared_memory_byte_size", "shared_memory_region"];

fn bad(text: impl Into<String>) -> Refusal {
    Refusal::Bad(text.into())
}

fn refuse(parameters: &Parameters, place: &str) -> Result<(), Refusal> {
    let asks = |v: &serde_json::Value| !(v.is_null() || v == 0 || v == "");
    match REFUSED.iter().find(|r| parameters.get(**r).is_some_and(asks)) {
        Some(name) => Err(bad(format!("{place}the parameter \"{name}\" is not supported"))),
        None => Ok(()),
    }
}

fn flag(parameters: &Parameters, name: &str, place: &str) -> Result<Option<bool>, Refusal> {
    match parameters.get(name) {
        None => Ok(None),
        Some(serde_json::Value::Bool(b)) => Ok(Some(*b)),
        Some(other) => Err(bad(format!("{place}the parameter \"{name}\" is to be true or false, found {other}"))),
    }
}

/// Parses a request: a JSON text, and the bytes behind it.
///
/// # Errors
/// What is wrong with it, with the name of the input or output.
pub fn parse(interface: &Interface, json: &[u8], mut binary: Bytes) -> Result<Request, Refusal> {
    let json = std::str::from_utf8(json).map_err(|e| bad(format!("the request is not UTF-8 from byte {} on", e.valid_up_to())))?;
    let head: Head = serde_json::from_str(json).map_err(|e| bad(format!("the request is none of the protocol: {e}")))?;
    refuse(&head.parameters, "")?;
    let mut inputs: Vec<(String, Value)> = Vec::with_capacity(head.inputs.len());
    for input in head.inputs {
        if inputs.iter().any(|(n, _)| *n == input.name) {
            return Err(bad(format!("input \"{}\" is given twice", input.name)));
        }
        let port = interface.inputs.iter().find(|p| p.name == input.name).ok_or_else(|| {
            let names: Vec<&str> = interface.inputs.iter().map(|p| p.name.as_str()).collect();
            bad(format!("input \"{}\": the model has no such input; it has \"{}\"", input.name, names.join("\", \"")))
        })?;
        refuse(&input.parameters, &format!("input \"{}\": ", input.name))?;
        let tensor = tensor(port, &input, &mut binary).map_err(|e| bad(format!("input \"{}\": {e}", input.name)))?;
        inputs.push((input.name, tensor.into()));
    }
    if !binary.is_empty() {
        return Err(bad(format!("{} bytes of binary data are left that no input has", binary.len())));
    }
    if let Some(missing) = interface.inputs.iter().find(|p| !p.optional && !inputs.iter().any(|(n, _)| *n == p.name)) {
        return Err(bad(format!("input \"{}\": it is missing, expected {}", missing.name, missing.expected())));
    }
    let outputs = wanted(interface, &head.parameters, &head.outputs)?;
    Ok(Request { id: head.id, inputs, outputs })
}

fn tensor(port: &Port, input: &Input, binary: &mut Bytes) -> Result<Tensor, String> {
    let shape: Vec<usize> = serde_json::from_str(input.shape.get())
        .map_err(|_| format!("a shape is a list of numbers from 0 on, found {}", input.shape.get().chars().take(60).collect::<String>()))?;
    let shape = Shape::from(shape);
    let dtype = dtype(&input.datatype).ok_or_else(|| format!("the datatype \"{}\" is none of the protocol", input.datatype))?;
    if !port.takes(dtype, &shape) {
        return Err(format!("expected {}, found {}{shape}", port.expected(), input.datatype));
    }
    let size = match input.parameters.get("binary_data_size") {
        None => None,
        Some(n) => Some(n.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| format!("binary_data_size is {n}"))?),
    };
    let Some(size) = size else {
        let data = input.data.ok_or("it has neither data nor binary_data_size")?;
        return from_json(data.get(), dtype, shape);
    };
    if input.data.is_some() {
        return Err("it has both data and binary_data_size".into());
    }
    if size > binary.len() {
        return Err(format!("expected {size} bytes of binary data, found {}", binary.len()));
    }
    checked_len(&shape).ok_or_else(|| format!("shape {shape} is too large"))?;
    let bytes = binary.split_to(size);
    if dtype == DType::String {
        return texts(&bytes, shape);
    }
    if dtype == DType::Bool
        && let Some(at) = bytes.iter().position(|b| *b > 1)
    {
        return Err(format!("element {at}: a BOOL is a byte 0 or 1, found {}", bytes[at]));
    }
    Tensor::from_bytes(dtype, shape.clone(), bytes).map_err(|_| {
        let need = dtype.byte_len(&shape).map_or_else(|| "too many".into(), |n| n.to_string());
        format!("{}{shape} needs {need} bytes, found {size}", input.datatype)
    })
}

fn wanted(interface: &Interface, parameters: &Parameters, outputs: &[Output]) -> Result<Vec<Wanted>, Refusal> {
    let all = flag(parameters, "binary_data_output", "")?.unwrap_or(false);
    if outputs.is_empty() {
        return Ok((0..interface.outputs.len()).map(|output| Wanted { output, binary: all }).collect());
    }
    let mut wanted = Vec::<Wanted>::with_capacity(outputs.len());
    for asked in outputs {
        let place = format!("output \"{}\": ", asked.name);
        refuse(&asked.parameters, &place)?;
        let binary = flag(&asked.parameters, "binary_data", &place)?.unwrap_or(all);
        let output = interface.outputs.iter().position(|p| p.name == asked.name).ok_or_else(|| {
            let names: Vec<&str> = interface.outputs.iter().map(|p| p.name.as_str()).collect();
            bad(format!("{place}the model has no such output; it has \"{}\"", names.join("\", \"")))
        })?;
        if wanted.iter().any(|w| w.output == output) {
            return Err(bad(format!("{place}it is asked for twice")));
        }
        wanted.push(Wanted { output, binary });
    }
    Ok(wanted)
}
