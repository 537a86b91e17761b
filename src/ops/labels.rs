//! Maps between labels: ai.onnx.ml's LabelEncoder and CategoryMapper.

use super::movement::{Take, moved};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, concat, one};
use crate::invalid;
use crate::ir::{Attrs, Dim};
use crate::tensor::{DType, Tensor, cast};
use std::collections::HashMap;

const ML: &str = "ai.onnx.ml";
const CATEGORIES: &[&str] = &["cats_int64s", "cats_strings", "default_int64", "default_string"];
const LABELS: &[&str] = &[
    "classes_strings",
    "default_float",
    "default_int64",
    "default_string",
    "default_tensor",
    "keys_floats",
    "keys_int64s",
    "keys_strings",
    "keys_tensor",
    "values_floats",
    "values_int64s",
    "values_strings",
    "values_tensor",
];

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("CategoryMapper", &[1]).domain(ML).attrs(CATEGORIES).kernel(category_mapper).infer(infer_category_mapper),
    OpDef::new("LabelEncoder", &[1, 2, 4]).domain(ML).attrs(LABELS).kernel(label_encoder).infer(infer_label_encoder),
];

/// What keys and inputs are compared as.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Int(i64),
    /// Bits of a float; all zeros are one, and so are all NaNs.
    Float(u64),
    Text(String),
}

fn keys(t: &Tensor) -> Result<Vec<Key>, OpError> {
    let float = |x: f64| Key::Float(if x.is_nan() { f64::NAN.to_bits() } else { (x + 0.0).to_bits() });
    match t.dtype() {
        DType::String => Ok(t.as_slice::<String>()?.iter().cloned().map(Key::Text).collect()),
        d if d.is_float() => Ok(cast(t, DType::F64)?.into_vec::<f64>()?.into_iter().map(float).collect()),
        _ => Ok(t.to_i64s()?.into_iter().map(Key::Int).collect()),
    }
}

/// A map from the elements of one tensor to those of another.
struct Labels {
    from: DType,
    places: HashMap<Key, usize>,
    /// The values, and the default last.
    values: Tensor,
}

impl Labels {
    fn new(from: &Tensor, to: &Tensor, default: Tensor) -> Result<Self, OpError> {
        if from.len() != to.len() {
            invalid!("{} keys for {} values", from.len(), to.len());
        }
        let n = to.len();
        let values = concat::join(&[&to.clone().reshape([n])?, &default.reshape([1])?], 0)?;
        // Of equal keys the last counts.
        let places = keys(from)?.into_iter().enumerate().map(|(i, k)| (k, i)).collect();
        Ok(Self { from: from.dtype(), places, values })
    }

    fn of(&self, x: &Tensor) -> Result<Tensor, OpError> {
        if x.dtype() != self.from {
            invalid!("expected {} as the keys, found {}", self.from, x.dtype());
        }
        let default = self.values.len() - 1;
        let ids: Vec<usize> = keys(x)?.iter().map(|k| self.places.get(k).copied().unwrap_or(default)).collect();
        moved(&Take { block: 1, dim: self.values.len(), ids: &ids }, &[&self.values], x.shape())
    }
}

fn texts(v: Vec<String>) -> Tensor {
    Tensor::vector(v)
}

/// The keys (or values) of a LabelEncoder.
fn side(a: &Attrs, side: &str) -> Result<Tensor, OpError> {
    let name = |kind: &str| format!("{side}_{kind}");
    let mut found: Vec<Tensor> = Vec::new();
    found.extend(a.strings(&name("strings"))?.filter(|v| !v.is_empty()).map(texts));
    found.extend(a.ints(&name("int64s"))?.filter(|v| !v.is_empty()).map(|v| Tensor::vector(v.to_vec())));
    found.extend(a.floats(&name("floats"))?.filter(|v| !v.is_empty()).map(|v| Tensor::vector(v.to_vec())));
    found.extend(a.tensor(&name("tensor"))?.cloned());
    match found.pop() {
        Some(t) if found.is_empty() => Ok(t),
        Some(_) => invalid!("more than one list of {side}"),
        None => invalid!("no list of {side}"),
    }
}

/// What a key that is not listed maps to, in the dtype of the values.
fn default_of(a: &Attrs, dtype: DType) -> Result<Tensor, OpError> {
    if let Some(t) = a.tensor("default_tensor")? {
        if t.dtype() != dtype || t.len() != 1 {
            invalid!("default_tensor must be one {dtype}, found {}{}", t.dtype(), t.shape());
        }
        return Ok(t.clone());
    }
    match dtype {
        DType::String => Ok(Tensor::scalar(a.string_or("default_string", "_Unused")?.to_owned())),
        d if d.is_float() => Ok(cast(&Tensor::scalar(a.float_or("default_float", -0.0)?), d)?),
        d => Ok(cast(&Tensor::scalar(a.int_or("default_int64", -1)?), d)?),
    }
}

fn label_encoder(cx: &OpCtx) -> Result<Kernel, OpError> {
    let a = cx.attrs;
    if cx.version >= 2 {
        let (keys, values) = (side(a, "keys")?, side(a, "values")?);
        let default = default_of(a, values.dtype())?;
        let labels = Labels::new(&keys, &values, default)?;
        return Ok(Box::new(move |args: Args| one(labels.of(args.tensor(0)?)?)));
    }
    // Version 1 maps either way between strings and their positions.
    let Some(classes) = a.strings("classes_strings")?.map(texts) else { invalid!("attribute \"classes_strings\" is missing") };
    let numbers = Tensor::vector((0..classes.len() as i64).collect());
    two_way(&classes, &numbers, a)
}

/// Maps strings to numbers and numbers to strings, by the input.
fn two_way(names: &Tensor, numbers: &Tensor, a: &Attrs) -> Result<Kernel, OpError> {
    let to_numbers = Labels::new(names, numbers, default_of(a, DType::I64)?)?;
    let to_names = Labels::new(numbers, names, default_of(a, DType::String)?)?;
    Ok(Box::new(move |args: Args| {
        let x = args.tensor(0)?;
        one(if x.dtype() == DType::String { to_numbers.of(x)? } else { to_names.of(x)? })
    }))
}

fn category_mapper(cx: &OpCtx) -> Result<Kernel, OpError> {
    let a = cx.attrs;
    let (Some(names), Some(numbers)) = (a.strings("cats_strings")?, a.ints("cats_int64s")?) else {
        invalid!("both cats_strings and cats_int64s must be given")
    };
    two_way(&texts(names), &Tensor::vector(numbers.to_vec()), a)
}

fn infer_category_mapper(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let other = |d| if d == DType::String { DType::I64 } else { DType::String };
    Ok(vec![Fact::partial(cx.dtype(0).map(other), cx.shape(0).map(<[Dim]>::to_vec))])
}

fn infer_label_encoder(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    if cx.op.version < 2 {
        return infer_category_mapper(cx);
    }
    Ok(vec![Fact::partial(Some(side(cx.op.attrs, "values")?.dtype()), cx.shape(0).map(<[Dim]>::to_vec))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attr;
    use crate::ops::testing::run;

    fn strings(v: &[&str]) -> Vec<String> {
        v.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn categories_map_both_ways() {
        let attrs = Attrs::new().with("cats_strings", strings(&["a", "b"])).with("cats_int64s", vec![7, 8]).with("default_string", "?");
        let of = |x: Tensor| run("ai.onnx.ml::CategoryMapper", 1, attrs.clone(), &[x]).unwrap();
        assert_eq!(of(texts(strings(&["b", "c"]))), Tensor::vector(vec![8i64, -1]));
        assert_eq!(of(Tensor::vector(vec![7i64, 9])), texts(strings(&["a", "?"])));
    }

    #[test]
    fn the_first_label_encoder_numbers_its_classes() {
        let attrs = Attrs::new().with("classes_strings", strings(&["a", "b"]));
        let of = |x: Tensor| run("ai.onnx.ml::LabelEncoder", 1, attrs.clone(), &[x]).unwrap();
        assert_eq!(of(texts(strings(&["b", "c"]))), Tensor::vector(vec![1i64, -1]));
        assert_eq!(of(Tensor::vector(vec![0i64, 2])), texts(strings(&["a", "_Unused"])));
    }

    #[test]
    fn not_a_number_is_a_key_and_the_last_of_equal_keys_counts() {
        let mut attrs = Attrs::new().with("values_int64s", vec![1, 2, 3]);
        attrs.set("keys_floats", Attr::Floats(vec![f32::NAN, 0.5, 0.5]));
        let x = Tensor::vector(vec![0.5f32, -f32::NAN, 1.0]);
        assert_eq!(run("ai.onnx.ml::LabelEncoder", 2, attrs, &[x]).unwrap(), Tensor::vector(vec![3i64, 1, -1]));
    }

    #[test]
    fn tensors_state_keys_and_values_of_other_dtypes() {
        let attrs = Attrs::new()
            .with("keys_tensor", Tensor::vector(strings(&["a"])))
            .with("values_tensor", Tensor::vector(vec![9i16]))
            .with("default_tensor", Tensor::vector(vec![4i16]));
        let out = run("ai.onnx.ml::LabelEncoder", 4, attrs.clone(), &[texts(strings(&["a", "b"]))]).unwrap();
        assert_eq!(out, Tensor::vector(vec![9i16, 4]));
        assert!(run("ai.onnx.ml::LabelEncoder", 4, attrs, &[Tensor::vector(vec![1i64])]).is_err());
    }
}
