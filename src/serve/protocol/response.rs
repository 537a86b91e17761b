//! Answers to requests for inference.

use super::Refusal;
use super::elements::{text_bytes, to_json};
use super::interface::{Interface, datatype};
use super::request::Request;
use crate::tensor::{DType, Tensor, Value};
use bytes::Bytes;

/// A body, and how much of it is JSON where binary data stands behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The whole body.
    pub body: Bytes,
    /// Bytes of JSON; `None` where it is all.
    pub json: Option<usize>,
}

/// Prints the outputs that a request wants.
///
/// # Errors
/// An output that the protocol has no form for.
pub fn print(interface: &Interface, request: &Request, outputs: &[(String, Value)]) -> Result<Answer, Refusal> {
    let mut out = Vec::with_capacity(256);
    out.extend(b"{");
    if let Some(id) = &request.id {
        member(&mut out, "id", id);
    }
    member(&mut out, "model_name", &interface.name);
    member(&mut out, "model_version", &interface.version);
    out.extend(b"\"outputs\":[");
    let mut behind: Vec<Bytes> = Vec::new();
    for (i, wanted) in request.outputs.iter().enumerate() {
        let (name, value) = outputs.get(wanted.output).ok_or_else(|| Refusal::Ours("an output was not made".into()))?;
        let fault = |what: String| Refusal::Bad(format!("output \"{name}\": {what}"));
        let tensor =
            value.as_tensor().ok_or_else(|| fault(format!("{} is no tensor, and the protocol has nothing else", value.describe())))?;
        let kind = datatype(tensor.dtype()).ok_or_else(|| fault(format!("the protocol has no {}", tensor.dtype())))?;
        out.extend(if i > 0 { &b",{"[..] } else { b"{" });
        member(&mut out, "name", name);
        member(&mut out, "datatype", kind);
        out.extend(format!("\"shape\":[{}],", dims(tensor)).bytes());
        if wanted.binary {
            let bytes = binary(tensor).map_err(fault)?;
            out.extend(format!("\"parameters\":{{\"binary_data_size\":{}}}}}", bytes.len()).bytes());
            behind.push(bytes);
        } else {
            out.extend(b"\"data\":");
            to_json(tensor, &mut out).map_err(fault)?;
            out.push(b'}');
        }
    }
    out.extend(b"]}");
    let json = (!behind.is_empty()).then_some(out.len());
    out.reserve_exact(behind.iter().map(Bytes::len).sum());
    behind.iter().for_each(|b| out.extend_from_slice(b));
    Ok(Answer { body: out.into(), json })
}

fn member(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend(format!("\"{name}\":{},", serde_json::Value::from(value)).bytes());
}

fn dims(tensor: &Tensor) -> String {
    tensor.shape().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn binary(tensor: &Tensor) -> Result<Bytes, String> {
    if tensor.dtype() == DType::String {
        return text_bytes(tensor.as_slice::<String>().map_err(|e| e.to_string())?).map(Bytes::from);
    }
    tensor.shared_bytes().ok_or_else(|| "its elements are not there".into())
}
