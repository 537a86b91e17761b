//! Values in files of their own: the `input_K.pb` and `output_K.pb` of ONNX's test data, which hold a tensor, a sequence,
//! an optional or a map, and do not say which.

use super::external::ExternalFiles;
use super::proto::sequence_proto::DataType;
use super::proto::{MapProto, OptionalProto, SequenceProto, TensorProto};
use super::sparse::decode_sparse;
use super::tensor::{Encoding, TensorProtoError, decode, encode};
use super::unknown::{self, WireError};
use crate::tensor::{DType, Map, MapKeys, Shape, Tensor, Value};
use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::fmt;
use std::sync::Arc;

/// The number of `raw_data`, the last field that a tensor's file uses.
const RAW_DATA: u32 = 9;

/// What a value file is said to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// A `TensorProto`.
    Tensor,
    /// A `SequenceProto`.
    Sequence,
    /// An `OptionalProto`.
    Optional,
    /// A `MapProto`.
    Map,
}

impl ValueKind {
    const ALL: [ValueKind; 4] = [ValueKind::Tensor, ValueKind::Sequence, ValueKind::Optional, ValueKind::Map];

    /// The kind of a value.
    pub fn of(value: &Value) -> Self {
        match value {
            Value::Tensor(_) => ValueKind::Tensor,
            Value::Sequence(_) => ValueKind::Sequence,
            Value::Optional(_) => ValueKind::Optional,
            Value::Map(_) => ValueKind::Map,
        }
    }
}

impl fmt::Display for ValueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ValueKind::Tensor => "tensor",
            ValueKind::Sequence => "sequence",
            ValueKind::Optional => "optional",
            ValueKind::Map => "map",
        })
    }
}

/// What is wrong with a value file, or with a value that no file can hold.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ValueError {
    /// The bytes are no message of the kind.
    #[error("no {kind}: {error}")]
    Wire {
        /// The kind that was asked for.
        kind: ValueKind,
        /// What is wrong with the bytes.
        error: WireError,
    },
    /// A tensor in the value.
    #[error(transparent)]
    Tensor(#[from] TensorProtoError),
    /// Parts that do not fit together.
    #[error("{0}")]
    Parts(String),
}

/// The name and the value in the bytes of a value file. Without a kind, the first kind that the bytes are a valid message
/// of is taken: tensor, sequence, optional, map. An optional and a sequence of one are the same bytes: say the kind where
/// it is known.
///
/// # Errors
/// Bytes that are no such value; without a kind, the error of the kind that the bytes come closest to.
pub fn decode_value(bytes: &Bytes, kind: Option<ValueKind>) -> Result<(String, Value), ValueError> {
    let Some(kind) = kind else {
        let mut first = None;
        for kind in ValueKind::ALL {
            match decode_value(bytes, Some(kind)) {
                Ok(found) => return Ok(found),
                // A message of the kind with an error inside says more than "no such message".
                Err(e) if first.is_none() || (matches!(first, Some(ValueError::Wire { .. })) && !matches!(e, ValueError::Wire { .. })) => {
                    first = Some(e);
                }
                Err(_) => {}
            }
        }
        return Err(first.unwrap_or_else(|| ValueError::Parts("no value".into())));
    };
    let wire = |error| ValueError::Wire { kind, error };
    Ok(match kind {
        ValueKind::Tensor => {
            let p: TensorProto = unknown::decode(bytes.clone()).map_err(wire)?;
            (p.name().into(), tensor(p)?.into())
        }
        ValueKind::Sequence => {
            let p: SequenceProto = unknown::decode(bytes.clone()).map_err(wire)?;
            (p.name().into(), sequence(p)?)
        }
        ValueKind::Optional => {
            let p: OptionalProto = unknown::decode(bytes.clone()).map_err(wire)?;
            (p.name().into(), optional(p)?)
        }
        ValueKind::Map => {
            let p: MapProto = unknown::decode(bytes.clone()).map_err(wire)?;
            (p.name().into(), map(p)?)
        }
    })
}

fn tensor(mut proto: TensorProto) -> Result<Tensor, ValueError> {
    Ok(decode(&mut proto, &ExternalFiles::none())?.0)
}

/// The lists of a sequence, each with its number; only the one that `elem_type` names may be filled.
fn sequence(p: SequenceProto) -> Result<Value, ValueError> {
    let filled =
        [p.tensor_values.len(), p.sparse_tensor_values.len(), p.sequence_values.len(), p.map_values.len(), p.optional_values.len()];
    let wanted = p.elem_type();
    if !(0..=5).contains(&wanted) {
        return Err(ValueError::Parts(format!("sequence {:?}: elem_type {wanted} is not one of 0 to 5", p.name())));
    }
    if let Some(other) = (0..5).find(|&i| filled[i] > 0 && i as i32 + 1 != wanted) {
        return Err(ValueError::Parts(format!("sequence {:?}: elem_type is {wanted}, found elements of type {}", p.name(), other + 1)));
    }
    let values = match wanted {
        1 => p.tensor_values.into_iter().map(|t| tensor(t).map(Value::Tensor)).collect::<Result<_, _>>()?,
        2 => {
            let one = |t| decode_sparse(t, &ExternalFiles::none()).map(Value::Tensor);
            p.sparse_tensor_values.iter().map(one).collect::<Result<_, _>>()?
        }
        3 => p.sequence_values.into_iter().map(sequence).collect::<Result<_, _>>()?,
        4 => p.map_values.into_iter().map(map).collect::<Result<_, _>>()?,
        5 => p.optional_values.into_iter().map(optional).collect::<Result<_, _>>()?,
        _ => Vec::new(),
    };
    Ok(Value::Sequence(Arc::new(values)))
}

fn optional(p: OptionalProto) -> Result<Value, ValueError> {
    let filled = [
        p.tensor_value.is_some(),
        p.sparse_tensor_value.is_some(),
        p.sequence_value.is_some(),
        p.map_value.is_some(),
        p.optional_value.is_some(),
    ];
    let wanted = p.elem_type();
    if let Some(other) = (0..5).find(|&i| filled[i] && i as i32 + 1 != wanted) {
        return Err(ValueError::Parts(format!("optional {:?}: elem_type is {wanted}, found a value of type {}", p.name(), other + 1)));
    }
    let held = match p {
        OptionalProto { tensor_value: Some(t), .. } => Some(tensor(t)?.into()),
        OptionalProto { sparse_tensor_value: Some(t), .. } => Some(decode_sparse(&t, &ExternalFiles::none())?.into()),
        OptionalProto { sequence_value: Some(s), .. } => Some(sequence(s)?),
        OptionalProto { map_value: Some(m), .. } => Some(map(m)?),
        OptionalProto { optional_value: Some(o), .. } => Some(optional(*o)?),
        _ => None,
    };
    Ok(Value::Optional(held.map(Arc::new)))
}

fn map(p: MapProto) -> Result<Value, ValueError> {
    let fault = |what: String| ValueError::Parts(format!("map {:?}: {what}", p.name()));
    let keys = match DType::from_onnx(p.key_type()) {
        Some(DType::String) if p.keys.is_empty() => {
            let text = |b: &Bytes| String::from_utf8(b.to_vec()).map_err(|_| fault("a key is not UTF-8".into()));
            MapKeys::String(p.string_keys.iter().map(text).collect::<Result<_, _>>()?)
        }
        Some(d) if d.is_int() && p.string_keys.is_empty() => MapKeys::Int(d, p.keys.clone()),
        Some(d) => return Err(fault(format!("keys must be integers or strings as key_type says, which is {d}"))),
        None => return Err(fault(format!("key_type {} is not one of 1 to 26", p.key_type()))),
    };
    let Value::Sequence(values) = p.values.clone().map_or(Ok(Value::Sequence(Arc::default())), sequence)? else {
        return Err(fault("values are no sequence".into()));
    };
    let len = match &keys {
        MapKeys::Int(_, k) => k.len(),
        MapKeys::String(k) => k.len(),
    };
    if len != values.len() {
        return Err(fault(format!("{len} keys, {} values", values.len())));
    }
    Ok(Value::Map(Arc::new(Map { keys, values: Arc::unwrap_or_clone(values) })))
}

/// The bytes of a value file. Tensors are written raw, strings in `string_data`.
///
/// # Errors
/// A sequence of several kinds, or a tensor whose elements were taken out.
pub fn encode_value(name: &str, value: &Value) -> Result<Vec<u8>, ValueError> {
    let name = (!name.is_empty()).then(|| name.to_string());
    Ok(match value {
        Value::Tensor(t) => TensorProto { name, ..tensor_proto(t)? }.encode_to_vec(),
        Value::Sequence(s) => SequenceProto { name, ..sequence_proto(s)? }.encode_to_vec(),
        Value::Optional(o) => OptionalProto { name, ..optional_proto(o.as_deref())? }.encode_to_vec(),
        Value::Map(m) => MapProto { name, ..map_proto(m)? }.encode_to_vec(),
    })
}

/// What stands before the elements in the file of a tensor: the elements follow as `len` raw bytes and end the file.
pub fn tensor_prefix(name: &str, dtype: DType, shape: &Shape, len: usize) -> Vec<u8> {
    let name = (!name.is_empty()).then(|| name.to_string());
    let mut out = TensorProto { name, dims: shape.to_i64s(), data_type: Some(dtype.to_onnx()), ..Default::default() }.encode_to_vec();
    encode_key(RAW_DATA, WireType::LengthDelimited, &mut out);
    encode_varint(len as u64, &mut out);
    out
}

fn tensor_proto(t: &Tensor) -> Result<TensorProto, ValueError> {
    let mut proto = TensorProto::default();
    encode(&mut proto, t, &Encoding::Raw)?;
    Ok(proto)
}

fn data_type(value: &Value) -> DataType {
    match value {
        Value::Tensor(_) => DataType::Tensor,
        Value::Sequence(_) => DataType::Sequence,
        Value::Optional(_) => DataType::Optional,
        Value::Map(_) => DataType::Map,
    }
}

/// An empty sequence is written as one of tensors.
fn sequence_proto(values: &[Value]) -> Result<SequenceProto, ValueError> {
    let kind = values.first().map_or(DataType::Tensor, data_type);
    let mut p = SequenceProto { elem_type: Some(kind.into()), ..Default::default() };
    for value in values {
        if data_type(value) != kind {
            return Err(ValueError::Parts(format!("a sequence of {}s also holds {}", ValueKind::of(&values[0]), value.describe())));
        }
        match value {
            Value::Tensor(t) => p.tensor_values.push(tensor_proto(t)?),
            Value::Sequence(s) => p.sequence_values.push(sequence_proto(s)?),
            Value::Optional(o) => p.optional_values.push(optional_proto(o.as_deref())?),
            Value::Map(m) => p.map_values.push(map_proto(m)?),
        }
    }
    Ok(p)
}

fn optional_proto(held: Option<&Value>) -> Result<OptionalProto, ValueError> {
    let mut p = OptionalProto { elem_type: Some(held.map_or(DataType::Undefined, data_type).into()), ..Default::default() };
    match held {
        None => {}
        Some(Value::Tensor(t)) => p.tensor_value = Some(tensor_proto(t)?),
        Some(Value::Sequence(s)) => p.sequence_value = Some(sequence_proto(s)?),
        Some(Value::Optional(o)) => p.optional_value = Some(Box::new(optional_proto(o.as_deref())?)),
        Some(Value::Map(m)) => p.map_value = Some(map_proto(m)?),
    }
    Ok(p)
}

fn map_proto(m: &Map) -> Result<MapProto, ValueError> {
    let mut p = MapProto { values: Some(sequence_proto(&m.values)?), ..Default::default() };
    match &m.keys {
        MapKeys::Int(dtype, keys) => {
            p.key_type = Some(dtype.to_onnx());
            p.keys.clone_from(keys);
        }
        MapKeys::String(keys) => {
            p.key_type = Some(DType::String.to_onnx());
            p.string_keys = keys.iter().map(|k| Bytes::copy_from_slice(k.as_bytes())).collect();
        }
    }
    Ok(p)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> Bytes {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    /// The bytes of `onnx.numpy_helper` (onnx 1.23.2) are read, and written again as they were.
    fn check(kind: ValueKind, hex: &str, name: &str, want: &str) {
        let bytes = unhex(hex);
        let (found, value) = decode_value(&bytes, Some(kind)).unwrap();
        assert_eq!((found.as_str(), value.describe().as_str()), (name, want));
        assert_eq!(encode_value(name, &value).unwrap(), bytes);
    }

    #[test]
    fn the_files_of_numpy_helper_are_read_and_written() {
        check(ValueKind::Tensor, "080210064201744a080100000002000000", "t", "int32[2]");
        check(ValueKind::Sequence, "0a017310011a0e080210064a0801000000020000001a0c0801080110014a040000003f", "s", "sequence of 2");
        check(ValueKind::Sequence, "0a01731001", "s", "sequence of 0");
        check(ValueKind::Optional, "0a016f10011a0e080210064a080100000002000000", "o", "optional(int32[2])");
        check(ValueKind::Optional, "0a016f1000", "o", "empty optional");
        check(ValueKind::Optional, "0a016f10032a1210011a0e080210064a080100000002000000", "o", "optional(sequence of 1)");
        check(ValueKind::Map, "0a016d1007180318052a1a10011a0a080110014a040000003f1a0a080110014a040000003f", "m", "map of 2");
    }

    #[test]
    fn the_elements_of_a_sequence_and_a_map_are_those_of_the_file() {
        let seq = decode_value(&unhex("0a017310011a0e080210064a0801000000020000001a0c0801080110014a040000003f"), None).unwrap().1;
        let tensors = [Tensor::vector(vec![1i32, 2]).into(), Tensor::new([1, 1], vec![0.5f32]).unwrap().into()];
        assert_eq!(seq, Value::Sequence(Arc::new(tensors.into())));
        let map = decode_value(&unhex("0a016d1007180318052a1a10011a0a080110014a040000003f1a0a080110014a040000003f"), None).unwrap().1;
        let half = Value::from(Tensor::vector(vec![0.5f32]));
        assert_eq!(map, Value::Map(Arc::new(Map { keys: MapKeys::Int(DType::I64, vec![3, 5]), values: vec![half.clone(), half] })));
    }

    #[test]
    fn a_prefix_and_the_elements_are_a_file() {
        let t = Tensor::vector(vec![1i32, 2]);
        let parts = [&tensor_prefix("t", DType::I32, t.shape(), 8)[..], t.bytes().unwrap()].concat();
        assert_eq!(parts, encode_value("t", &t.into()).unwrap());
    }

    #[test]
    fn nested_values_come_back() {
        let text = Value::from(Tensor::vector(vec!["a".to_string()]));
        let map = Value::Map(Arc::new(Map { keys: MapKeys::String(vec!["k".into()]), values: vec![text] }));
        let value = Value::Sequence(Arc::new(vec![Value::Optional(Some(Arc::new(map))), Value::Optional(None)]));
        let bytes = encode_value("x", &value).unwrap().into();
        assert_eq!(decode_value(&bytes, Some(ValueKind::Sequence)).unwrap(), ("x".to_string(), value));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let err = |hex: &str, kind| decode_value(&unhex(hex), kind).unwrap_err().to_string();
        assert_eq!(err("080210064201744a0401000000", None), "tensor \"t\": int32[2] needs 8 bytes, found 4");
        assert_eq!(err("ff", Some(ValueKind::Map)), "no map: broken at byte 0: a varint is cut off");
        assert_eq!(err("10021a02", Some(ValueKind::Sequence)), "no sequence: broken at byte 2: a field goes past the end of its message");
        assert_eq!(err("10021a00", Some(ValueKind::Sequence)), "sequence \"\": elem_type is 2, found elements of type 1");
        assert_eq!(err("10071803", Some(ValueKind::Map)), "map \"\": 1 keys, 0 values");
        let mixed = Value::Sequence(Arc::new(vec![Tensor::scalar(1i64).into(), Value::Optional(None)]));
        assert_eq!(encode_value("", &mixed).unwrap_err().to_string(), "a sequence of tensors also holds empty optional");
    }
}
