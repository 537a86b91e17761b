//! Maps: ZipMap makes them of columns, DictVectorizer and CastMap make tensors of them.

use crate::invalid;
use crate::ir::{Attrs, Dim, Type};
use crate::ops::{Fact, InferCtx, Kernel, OpCtx, OpError, one};
use crate::tensor::{DType, Map, MapKeys, Tensor, Value};
use std::sync::Arc;

/// The keys that attributes give, as strings or as integers.
fn keys(attrs: &Attrs, ints: &str, strings: &str) -> Result<MapKeys, OpError> {
    match (attrs.ints(ints)?.filter(|k| !k.is_empty()), attrs.strings(strings)?.filter(|k| !k.is_empty())) {
        (Some(k), None) => Ok(MapKeys::Int(DType::I64, k.to_vec())),
        (None, Some(k)) => Ok(MapKeys::String(k)),
        _ => invalid!("one of the attributes \"{ints}\" and \"{strings}\" must be given"),
    }
}

fn len(keys: &MapKeys) -> usize {
    match keys {
        MapKeys::Int(_, k) => k.len(),
        MapKeys::String(k) => k.len(),
    }
}

pub(super) fn infer_zip(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let key = match keys(cx.op.attrs, "classlabels_int64s", "classlabels_strings")? {
        MapKeys::Int(..) => DType::I64,
        MapKeys::String(_) => DType::String,
    };
    let map = Type::Map { key, value: Box::new(Type::tensor(DType::F32, [])) };
    Ok(vec![Type::Sequence(Box::new(map)).into()])
}

pub(super) fn build_zip(cx: &OpCtx) -> Result<Kernel, OpError> {
    let keys = keys(cx.attrs, "classlabels_int64s", "classlabels_strings")?;
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        let (rows, columns) = match x.shape()[..] {
            [n] => (1, n),
            [rows, n] => (rows, n),
            _ => invalid!("input 0: expected rank 1 or 2, found {}", x.rank()),
        };
        if columns != len(&keys) {
            invalid!("input 0: expected {} columns, found {columns}", len(&keys));
        }
        let values = args.slice::<f32>(0)?;
        let map = |row: usize| {
            let values = values[row * columns..][..columns].iter().map(|&v| Value::Tensor(Tensor::scalar(v))).collect();
            Value::Map(Arc::new(Map { keys: keys.clone(), values }))
        };
        one(Value::Sequence(Arc::new((0..rows).map(map).collect())))
    }))
}

pub(super) fn infer_dict(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let n = len(&keys(cx.op.attrs, "int64_vocabulary", "string_vocabulary")?);
    let dtype = match cx.ty(0) {
        Some(Type::Map { value, .. }) => value.dtype(),
        _ => return Ok(vec![Fact::unknown()]),
    };
    Ok(vec![Fact::partial(dtype, Some(vec![Dim::Known(n)]))])
}

/// The value of each key of a vocabulary, if the map has it.
fn looked_up<'a>(map: &'a Map, vocabulary: &MapKeys) -> Result<Vec<Option<&'a Value>>, OpError> {
    let at = |i: Option<usize>| i.and_then(|i| map.values.get(i));
    match (&map.keys, vocabulary) {
        (MapKeys::Int(_, have), MapKeys::Int(_, want)) => Ok(want.iter().map(|w| at(have.iter().position(|h| h == w))).collect()),
        (MapKeys::String(have), MapKeys::String(want)) => Ok(want.iter().map(|w| at(have.iter().position(|h| h == w))).collect()),
        _ => invalid!("input 0: the keys of the map are of another type than the vocabulary"),
    }
}

/// The one element of a value of a map.
fn element(v: &Value) -> Result<&Tensor, OpError> {
    match v {
        Value::Tensor(t) if t.len() == 1 => Ok(t),
        other => invalid!("input 0: expected a map to single elements, found one to {}", other.describe()),
    }
}

/// The elements, zero (or empty) where there is none, as a vector.
fn gather(values: &[Option<&Value>]) -> Result<Tensor, OpError> {
    let dtype = match values.iter().flatten().next() {
        Some(v) => element(v)?.dtype(),
        None => DType::F32,
    };
    macro_rules! go {
        ($t:ty) => {{
            let at = |v: &Option<&Value>| -> Result<$t, OpError> { v.map_or(Ok(<$t>::default()), |v| Ok(element(v)?.item::<$t>()?)) };
            Ok(Tensor::vector(values.iter().map(at).collect::<Result<Vec<_>, _>>()?))
        }};
    }
    match dtype {
        DType::F32 => go!(f32),
        DType::F64 => go!(f64),
        DType::I64 => go!(i64),
        DType::String => go!(String),
        other => invalid!("input 0: expected a map to float32, float64, int64 or string, found one to {other}"),
    }
}

pub(super) fn build_dict(cx: &OpCtx) -> Result<Kernel, OpError> {
    let vocabulary = keys(cx.attrs, "int64_vocabulary", "string_vocabulary")?;
    Ok(Box::new(move |args| match args.value(0) {
        Some(Value::Map(map)) => one(gather(&looked_up(map, &vocabulary)?)?),
        Some(other) => invalid!("input 0: expected a map, found {}", other.describe()),
        None => invalid!("input 0 is missing: expected a value, found none"),
    }))
}

/// What the values of a map become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Float,
    Int,
    Text,
}

fn cast_to(attrs: &Attrs) -> Result<To, OpError> {
    Ok(match attrs.string_or("cast_to", "TO_FLOAT")? {
        "TO_FLOAT" => To::Float,
        "TO_INT64" => To::Int,
        "TO_STRING" => To::Text,
        other => invalid!("attribute \"cast_to\": unknown value \"{other}\""),
    })
}

/// The length of the output if it is fixed.
fn sparse_length(attrs: &Attrs) -> Result<Option<usize>, OpError> {
    match (attrs.string_or("map_form", "DENSE")?, attrs.int_or("max_map", 1)?) {
        ("DENSE", _) => Ok(None),
        ("SPARSE", n @ 1..=0x1_0000_0000) => Ok(Some(n as usize)),
        ("SPARSE", n) => invalid!("attribute \"max_map\": {n} is out of range"),
        (other, _) => invalid!("attribute \"map_form\": expected DENSE or SPARSE, found \"{other}\""),
    }
}

pub(super) fn infer_cast(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dtype = match cast_to(cx.op.attrs)? {
        To::Float => DType::F32,
        To::Int => DType::I64,
        To::Text => DType::String,
    };
    Ok(vec![Fact::tensor(dtype, [Dim::Known(1), sparse_length(cx.op.attrs)?.map_or(Dim::Unknown, Dim::Known)])])
}

pub(super) fn build_cast(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (to, fixed) = (cast_to(cx.attrs)?, sparse_length(cx.attrs)?);
    Ok(Box::new(move |args| {
        let map = match args.value(0) {
            Some(Value::Map(map)) => map,
            Some(other) => invalid!("input 0: expected a map, found {}", other.describe()),
            None => invalid!("input 0 is missing: expected a value, found none"),
        };
        let MapKeys::Int(_, keys) = &map.keys else { invalid!("input 0: expected a map from integers, found one from strings") };
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by_key(|&i| keys[i]);
        let length = fixed.unwrap_or(keys.len());
        let mut places: Vec<Option<&Value>> = crate::ops::util::filled(length, None)?;
        for (rank, &i) in order.iter().enumerate() {
            let at = if fixed.is_some() { usize::try_from(keys[i]).ok() } else { Some(rank) };
            match at.and_then(|at| places.get_mut(at)) {
                Some(place) => *place = map.values.get(i),
                None => invalid!("input 0: key {} is not in 0..{length}", keys[i]),
            }
        }
        // Texts are read as numbers, numbers written as texts.
        let texts = |t: &Tensor| -> Result<String, OpError> {
            Ok(match t.dtype() {
                DType::String => t.item::<String>()?,
                _ => t.to_f32s()?.first().map(f32::to_string).unwrap_or_default(),
            })
        };
        let number = |t: &Tensor| -> Result<f64, OpError> {
            let text = texts(t)?;
            match text.trim().parse::<f64>() {
                Ok(x) => Ok(x),
                Err(_) => invalid!("input 0: \"{text}\" is no number"),
            }
        };
        let each = places.iter().map(|v| v.map(element).transpose());
        one(match to {
            To::Text => {
                let v = each.map(|t| t?.map_or(Ok(String::new()), texts)).collect::<Result<Vec<_>, _>>()?;
                Tensor::new([1, length], v)?
            }
            To::Float => {
                let v = each.map(|t| Ok(t?.map_or(Ok(0.0), number)? as f32)).collect::<Result<Vec<f32>, OpError>>()?;
                Tensor::new([1, length], v)?
            }
            To::Int => {
                let v = each.map(|t| Ok(t?.map_or(Ok(0.0), number)? as i64)).collect::<Result<Vec<i64>, OpError>>()?;
                Tensor::new([1, length], v)?
            }
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::run_values;

    fn map(keys: Vec<i64>, values: Vec<f32>) -> Option<Value> {
        let values = values.into_iter().map(|v| Value::Tensor(Tensor::scalar(v))).collect();
        Some(Value::Map(Arc::new(Map { keys: MapKeys::Int(DType::I64, keys), values })))
    }

    fn tensor(op: &str, attrs: Attrs, input: Option<Value>) -> Tensor {
        run_values(&format!("ai.onnx.ml::{op}"), 1, attrs, vec![input], 1).unwrap().remove(0).into_tensor().unwrap()
    }

    #[test]
    fn a_vocabulary_orders_a_map() {
        let y = tensor("DictVectorizer", Attrs::new().with("int64_vocabulary", vec![5i64, 1, 3]), map(vec![1, 5], vec![10.0, 50.0]));
        assert_eq!(y, Tensor::vector(vec![50f32, 10.0, 0.0]));
    }

    #[test]
    fn a_map_is_packed_by_its_keys() {
        let y = tensor("CastMap", Attrs::new().with("cast_to", "TO_INT64"), map(vec![7, 2], vec![1.5, 9.0]));
        assert_eq!(y, Tensor::new([1, 2], vec![9i64, 1]).unwrap());
        let y = tensor("CastMap", Attrs::new().with("map_form", "SPARSE").with("max_map", 4), map(vec![3, 0], vec![1.5, 9.0]));
        assert_eq!(y, Tensor::new([1, 4], vec![9f32, 0.0, 0.0, 1.5]).unwrap());
    }
}
