//! Tensors of ONNX files: from each of the forms in which a file may hold elements, and back into the same one.

use super::external::{ExternalFiles, ExternalPlace};
use super::proto::tensor_proto::DataLocation;
use super::proto::{StringStringEntryProto, TensorProto};
use crate::tensor::{Complex32, Complex64, DType, Shape, Tensor, bf16, f16};
use bytes::Bytes;

/// What is wrong with a tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor {name:?}: {what}")]
pub struct TensorProtoError {
    /// The tensor's name; often empty for the value of an attribute.
    pub name: String,
    /// What was found and what was expected.
    pub what: String,
}

/// The form in which a file holds a tensor's elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    /// Little-endian bytes in `raw_data`.
    Raw,
    /// Numbers or strings in the list that the dtype calls for.
    Typed,
    /// Bytes in another file.
    External(ExternalPlace),
}

/// The typed list that holds the elements of a dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Float,
    Int32,
    Text,
    Int64,
    Double,
    Uint64,
}

impl List {
    fn of(dtype: DType) -> List {
        match dtype {
            DType::F32 | DType::C64 => List::Float,
            DType::F64 | DType::C128 => List::Double,
            DType::I64 => List::Int64,
            DType::U32 | DType::U64 => List::Uint64,
            DType::String => List::Text,
            _ => List::Int32,
        }
    }

    fn name(self) -> &'static str {
        match self {
            List::Float => "float_data",
            List::Int32 => "int32_data",
            List::Text => "string_data",
            List::Int64 => "int64_data",
            List::Double => "double_data",
            List::Uint64 => "uint64_data",
        }
    }
}

/// Takes the elements out of a message, together with the form that they were in. What remains of the message (name, doc
/// string, metadata) is a shell that [`encode`] fills again. Raw and external elements stay views on their file.
///
/// # Errors
/// Names the tensor, and what was found and expected; the message is then of no further use.
pub fn decode(proto: &mut TensorProto, files: &ExternalFiles) -> Result<(Tensor, Encoding), TensorProtoError> {
    take(proto, files).map_err(|what| TensorProtoError { name: proto.name().into(), what })
}

/// The dtype and dims that a message declares.
///
/// # Errors
/// An unknown dtype, a negative dim, or a size that does not fit.
pub fn declared(proto: &TensorProto) -> Result<(DType, Shape), TensorProtoError> {
    header(proto).map_err(|what| TensorProtoError { name: proto.name().into(), what })
}

fn header(proto: &TensorProto) -> Result<(DType, Shape), String> {
    let code = proto.data_type.unwrap_or(0);
    let dtype = DType::from_onnx(code).ok_or_else(|| format!("data_type {code} is not one of 1 to 26"))?;
    let shape = dims_of(&proto.dims)?;
    let size = if dtype == DType::String { crate::tensor::checked_len(&shape) } else { dtype.byte_len(&shape) };
    if size.is_none_or(|n| n > isize::MAX as usize) {
        return Err(format!("the size of {dtype}{shape} does not fit 63 bits"));
    }
    Ok((dtype, shape))
}

/// Dims as ONNX writes them.
pub(super) fn dims_of(dims: &[i64]) -> Result<Shape, String> {
    dims.iter()
        .enumerate()
        .map(|(i, &d)| usize::try_from(d).map_err(|_| format!("dim {i} of {dims:?} is negative")))
        .collect::<Result<Vec<_>, _>>()
        .map(Shape::from)
}

fn take(proto: &mut TensorProto, files: &ExternalFiles) -> Result<(Tensor, Encoding), String> {
    let (dtype, shape) = header(proto)?;
    if proto.segment.is_some() {
        return Err("a segment of a larger tensor, which is not supported".into());
    }
    let filled = filled_lists(proto);
    if let [first, second, ..] = filled[..] {
        return Err(format!("elements in both {} and {}", first.name(), second.name()));
    }
    let external = match proto.data_location.unwrap_or(0) {
        0 => false,
        1 => true,
        other => return Err(format!("data_location {other} is not 0 or 1")),
    };
    let place = match (external, filled.first(), proto.raw_data.is_some()) {
        (true, Some(list), _) => return Err(format!("elements in both {} and external data", list.name())),
        (true, None, true) => return Err("elements in both raw_data and external data".into()),
        (false, Some(list), true) => return Err(format!("elements in both {} and raw_data", list.name())),
        (true, None, false) => {
            let entries = std::mem::take(&mut proto.external_data);
            proto.data_location = None;
            let pairs = entries.into_iter().map(|e| (e.key.unwrap_or_default(), e.value.unwrap_or_default()));
            Some(ExternalPlace::parse(pairs.collect())?)
        }
        _ => None,
    };
    if dtype == DType::String && (place.is_some() || proto.raw_data.is_some()) {
        return Err("strings must be in string_data, found them in raw or external data".into());
    }
    if let Some(place) = place {
        let need = dtype.byte_len(&shape).unwrap_or(0);
        let tensor = from_bytes(dtype, shape, files.view(&place, need)?)?;
        return Ok((tensor, Encoding::External(place)));
    }
    if let Some(raw) = proto.raw_data.take() {
        return Ok((from_bytes(dtype, shape, raw)?, Encoding::Raw));
    }
    let list = List::of(dtype);
    if let Some(found) = filled.first().filter(|&&l| l != list) {
        return Err(format!("elements of {dtype} must be in {}, found them in {}", list.name(), found.name()));
    }
    Ok((from_list(proto, dtype, shape)?, Encoding::Typed))
}

fn filled_lists(proto: &TensorProto) -> Vec<List> {
    let lists = [
        (List::Float, proto.float_data.is_empty()),
        (List::Int32, proto.int32_data.is_empty()),
        (List::Text, proto.string_data.is_empty()),
        (List::Int64, proto.int64_data.is_empty()),
        (List::Double, proto.double_data.is_empty()),
        (List::Uint64, proto.uint64_data.is_empty()),
    ];
    lists.into_iter().filter(|(_, empty)| !empty).map(|(l, _)| l).collect()
}

/// A tensor over bytes of a file, none copied.
fn from_bytes(dtype: DType, shape: Shape, bytes: Bytes) -> Result<Tensor, String> {
    if dtype == DType::Bool
        && let Some(i) = bytes.iter().position(|&b| b > 1)
    {
        return Err(format!("element {i} of bool must be 0 or 1, found {}", bytes[i]));
    }
    Tensor::from_bytes(dtype, shape, bytes).map_err(|e| e.to_string())
}

fn from_list(proto: &mut TensorProto, dtype: DType, shape: Shape) -> Result<Tensor, String> {
    let (list, len) = (List::of(dtype), crate::tensor::checked_len(&shape).unwrap_or(usize::MAX));
    let need = match dtype {
        DType::C64 | DType::C128 => len.saturating_mul(2),
        d if d.bits() == 4 || d.bits() == 2 => dtype.byte_len(&shape).unwrap_or(usize::MAX),
        _ => len,
    };
    let found = match list {
        List::Float => proto.float_data.len(),
        List::Int32 => proto.int32_data.len(),
        List::Text => proto.string_data.len(),
        List::Int64 => proto.int64_data.len(),
        List::Double => proto.double_data.len(),
        List::Uint64 => proto.uint64_data.len(),
    };
    if found != need {
        return Err(format!("{dtype}{shape} needs {need} entries in {}, found {found}", list.name()));
    }
    let tensor = match dtype {
        DType::F32 => Tensor::new(shape, std::mem::take(&mut proto.float_data)),
        DType::F64 => Tensor::new(shape, std::mem::take(&mut proto.double_data)),
        DType::I64 => Tensor::new(shape, std::mem::take(&mut proto.int64_data)),
        DType::U64 => Tensor::new(shape, std::mem::take(&mut proto.uint64_data)),
        DType::I32 => Tensor::new(shape, std::mem::take(&mut proto.int32_data)),
        DType::C64 => Tensor::new(shape, pairs(&std::mem::take(&mut proto.float_data)).map(|(re, im)| Complex32::new(re, im)).collect()),
        DType::C128 => Tensor::new(shape, pairs(&std::mem::take(&mut proto.double_data)).map(|(re, im)| Complex64::new(re, im)).collect()),
        DType::U32 => Tensor::new(shape, narrow::<u64, u32>(std::mem::take(&mut proto.uint64_data), dtype, list)?),
        DType::String => Tensor::new(shape, texts(std::mem::take(&mut proto.string_data))?),
        _ => {
            let codes = std::mem::take(&mut proto.int32_data);
            match dtype {
                DType::I8 => Tensor::new(shape, narrow::<i32, i8>(codes, dtype, list)?),
                DType::I16 => Tensor::new(shape, narrow::<i32, i16>(codes, dtype, list)?),
                DType::U16 => Tensor::new(shape, narrow::<i32, u16>(codes, dtype, list)?),
                DType::F16 => Tensor::new(shape, narrow::<i32, u16>(codes, dtype, list)?.into_iter().map(f16::from_bits).collect()),
                DType::BF16 => Tensor::new(shape, narrow::<i32, u16>(codes, dtype, list)?.into_iter().map(bf16::from_bits).collect()),
                DType::Bool => match codes.iter().position(|&x| !(0..=1).contains(&x)) {
                    Some(i) => return Err(format!("int32_data[{i}] of bool must be 0 or 1, found {}", codes[i])),
                    None => Tensor::new(shape, codes.into_iter().map(|x| x == 1).collect()),
                },
                _ => Tensor::from_vec_as(dtype, shape, narrow::<i32, u8>(codes, dtype, list)?),
            }
        }
    };
    tensor.map_err(|e| e.to_string())
}

fn pairs<T: Copy>(flat: &[T]) -> impl Iterator<Item = (T, T)> + '_ {
    flat.chunks_exact(2).map(|c| (c[0], c[1]))
}

fn narrow<S: Copy + std::fmt::Display, D: TryFrom<S>>(list: Vec<S>, dtype: DType, field: List) -> Result<Vec<D>, String> {
    let one = |(i, x): (usize, S)| D::try_from(x).map_err(|_| format!("{}[{i}] = {x} is no {dtype}", field.name()));
    list.into_iter().enumerate().map(one).collect()
}

fn texts(list: Vec<Bytes>) -> Result<Vec<String>, String> {
    let one = |(i, b): (usize, Bytes)| String::from_utf8(b.into()).map_err(|_| format!("string_data[{i}] is not UTF-8"));
    list.into_iter().enumerate().map(one).collect()
}

/// Puts elements into a message in the given form: dims, data type and the data fields; the rest is left as it is. For
/// [`Encoding::External`] only the place is written, the bytes are the caller's affair. Strings are always typed.
///
/// # Errors
/// A tensor whose elements were taken out, other than in external form.
pub fn encode(proto: &mut TensorProto, tensor: &Tensor, encoding: &Encoding) -> Result<(), TensorProtoError> {
    proto.dims = tensor.shape().to_i64s();
    proto.data_type = Some(tensor.dtype().to_onnx());
    let done = match encoding {
        Encoding::External(place) => {
            let pair = |(k, v): &(String, String)| StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) };
            proto.external_data = place.entries.iter().map(pair).collect();
            proto.data_location = Some(DataLocation::External.into());
            Ok(())
        }
        Encoding::Raw if tensor.dtype() != DType::String => match tensor.shared_bytes() {
            Some(bytes) => {
                proto.raw_data = Some(bytes);
                Ok(())
            }
            None => Err("its elements are not in the file".to_string()),
        },
        _ => to_list(proto, tensor).map_err(|e| e.to_string()),
    };
    done.map_err(|what| TensorProtoError { name: proto.name().into(), what })
}

fn to_list(proto: &mut TensorProto, t: &Tensor) -> Result<(), crate::tensor::TensorError> {
    fn codes<T: Copy + Into<i32>>(list: &[T]) -> Vec<i32> {
        list.iter().map(|&x| x.into()).collect()
    }
    match t.dtype() {
        DType::F32 => proto.float_data = t.to_slice::<f32>()?.into_owned(),
        DType::F64 => proto.double_data = t.to_slice::<f64>()?.into_owned(),
        DType::I64 => proto.int64_data = t.to_slice::<i64>()?.into_owned(),
        DType::U64 => proto.uint64_data = t.to_slice::<u64>()?.into_owned(),
        DType::I32 => proto.int32_data = t.to_slice::<i32>()?.into_owned(),
        DType::U32 => proto.uint64_data = t.to_slice::<u32>()?.iter().map(|&x| x.into()).collect(),
        DType::C64 => proto.float_data = t.to_slice::<Complex32>()?.iter().flat_map(|x| [x.re, x.im]).collect(),
        DType::C128 => proto.double_data = t.to_slice::<Complex64>()?.iter().flat_map(|x| [x.re, x.im]).collect(),
        DType::String => proto.string_data = t.as_slice::<String>()?.iter().map(|s| Bytes::copy_from_slice(s.as_bytes())).collect(),
        DType::I8 => proto.int32_data = codes(&t.to_slice::<i8>()?),
        DType::I16 => proto.int32_data = codes(&t.to_slice::<i16>()?),
        DType::U16 => proto.int32_data = codes(&t.to_slice::<u16>()?),
        DType::F16 => proto.int32_data = t.to_slice::<f16>()?.iter().map(|x| x.to_bits().into()).collect(),
        DType::BF16 => proto.int32_data = t.to_slice::<bf16>()?.iter().map(|x| x.to_bits().into()).collect(),
        _ => proto.int32_data = codes(t.bytes().ok_or(crate::tensor::TensorError::Absent)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
