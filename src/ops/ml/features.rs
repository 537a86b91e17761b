//! Feature encoders: ArrayFeatureExtractor, Binarizer, FeatureVectorizer, Imputer, Normalizer, OneHotEncoder, Scaler.

use crate::ir::{Attrs, Dim};
use crate::ops::util::{checked_product, filled, for_each_chunk, map};
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpError, Outputs, one};
use crate::tensor::{DType, Element, Number, Shape, Tensor, cast};
use crate::{dispatch, dispatch_number, invalid, unsupported};
use std::collections::HashMap;

/// A float result of the dims of input 0.
pub(super) fn infer_float(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(Some(DType::F32), cx.shape(0).map(<[Dim]>::to_vec))])
}

pub(super) fn infer_extractor(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let picked = cx.shape(1).and_then(|s| s.iter().try_fold(1usize, |n, d| n.checked_mul(d.known()?))).map_or(Dim::Unknown, Dim::Known);
    let shape = cx.shape(0).map(|x| match x {
        [] | [_] => vec![Dim::Known(1), picked],
        [front @ .., _] => front.iter().cloned().chain([picked]).collect(),
    });
    Ok(vec![Fact::partial(cx.dtype(0), shape)])
}

pub(super) fn build_extractor(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args| {
        let x = args.tensor(0)?;
        let indices = args.ints(1)?;
        let Some((&columns, front)) = x.shape().split_last() else { invalid!("input 0: expected rank 1 or more, found 0") };
        if let Some(i) = indices.iter().find(|&&i| usize::try_from(i).map_or(true, |i| i >= columns)) {
            invalid!("index {i} is out of range for {columns} columns");
        }
        let mut shape = if front.is_empty() { Shape::from([1]) } else { Shape::from(front) };
        shape.push(indices.len());
        if x.dtype().bits() % 8 != 0 {
            unsupported!("input 0 must be numbers or strings, found {}", x.dtype());
        }
        dispatch!(x.dtype(), T => one(extract::<T>(x, columns, &indices, shape)?))
    }))
}

fn extract<T: Element>(x: &Tensor, columns: usize, indices: &[i64], shape: Shape) -> Result<Tensor, OpError> {
    let mut y = filled(checked_product(&shape)?, T::default())?;
    let xs = x.to_slice::<T>()?;
    for_each_chunk(&mut y, indices.len(), |row, out| {
        out.iter_mut().zip(indices).for_each(|(y, &i)| *y = xs[row * columns + i as usize].clone());
    });
    Ok(Tensor::new(shape, y)?)
}

pub(super) fn build_binarizer(cx: &OpCtx) -> Result<Kernel, OpError> {
    let threshold = f64::from(cx.attrs.float_or("threshold", 0.0)?);
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        let above = |over: bool| if over { 1.0 } else { 0.0 };
        dispatch_number!(x.dtype(), T => {
            let y = map(&x.to_slice::<T>()?, |v| T::from_f64(above(v.to_f64() > threshold)));
            one(Tensor::new(x.shape(), y)?)
        }, other => invalid!("input 0: expected numbers, found {other}"))
    }))
}

/// How many columns each input of FeatureVectorizer gives.
fn widths(attrs: &Attrs) -> Result<Option<Vec<usize>>, OpError> {
    let Some(list) = attrs.ints("inputdimensions")? else { return Ok(None) };
    match list.iter().find(|&&n| !(0..=1 << 40).contains(&n)) {
        Some(n) => invalid!("attribute \"inputdimensions\": {n} is out of range"),
        None => Ok(Some(list.iter().map(|&n| n as usize).collect())),
    }
}

pub(super) fn infer_vectorizer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let columns = widths(cx.op.attrs)?.and_then(|w| w.iter().try_fold(0usize, |n, &w| n.checked_add(w))).map_or(Dim::Unknown, Dim::Known);
    let rows = match cx.shape(0) {
        Some([_]) => Dim::Known(1),
        Some([rows, _]) => rows.clone(),
        _ => Dim::Unknown,
    };
    Ok(vec![Fact::tensor(DType::F32, [rows, columns])])
}

pub(super) fn build_vectorizer(cx: &OpCtx) -> Result<Kernel, OpError> {
    let widths = widths(cx.attrs)?;
    if let Some(w) = widths.as_ref().filter(|w| w.len() != cx.inputs) {
        invalid!("attribute \"inputdimensions\": expected {} values, found {}", cx.inputs, w.len());
    }
    Ok(Box::new(move |args| {
        let mut parts = Vec::new();
        for (i, t) in args.tensors(0)?.into_iter().enumerate() {
            let (rows, columns) = match t.shape()[..] {
                [n] => (1, n),
                [rows, n] => (rows, n),
                _ => invalid!("input {i}: expected rank 1 or 2, found {}", t.rank()),
            };
            parts.push((rows, columns, widths.as_ref().map_or(columns, |w| w[i]), t.to_f32s()?));
        }
        let rows = parts.first().map_or(0, |p| p.0);
        if let Some(p) = parts.iter().find(|p| p.0 != rows) {
            invalid!("inputs have {rows} and {} rows", p.0);
        }
        let Some(width) = parts.iter().try_fold(0usize, |n, p| n.checked_add(p.2)) else { invalid!("the result is too large") };
        // An input with other columns than stated is cut, or filled up with zeros.
        let mut y = filled(checked_product(&[rows, width])?, 0f32)?;
        let mut from = 0;
        for (_, columns, wanted, values) in &parts {
            let n = *columns.min(wanted);
            for row in 0..rows {
                y[row * width + from..][..n].copy_from_slice(&values[row * columns..][..n]);
            }
            from += wanted;
        }
        one(Tensor::new([rows, width], y)?)
    }))
}

pub(super) fn build_imputer(cx: &OpCtx) -> Result<Kernel, OpError> {
    let floats: Vec<f64> = cx.attrs.floats("imputed_value_floats")?.unwrap_or_default().iter().map(|&x| x.into()).collect();
    let ints: Vec<i64> = cx.attrs.ints("imputed_value_int64s")?.unwrap_or_default().to_vec();
    let replaced = f64::from(cx.attrs.float_or("replaced_value_float", 0.0)?);
    let replaced_int = cx.attrs.int_or("replaced_value_int64", 0)?;
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        let columns = x.shape().last().copied().unwrap_or(1);
        let check = |n: usize| match n {
            n if n == 1 || n == columns => Ok(()),
            n => invalid!("expected 1 or {columns} imputed values, found {n}"),
        };
        let at = |n: usize, i: usize| if n == 1 { 0 } else { i % columns };
        match x.dtype() {
            DType::I64 | DType::I32 => {
                check(ints.len())?;
                let values = x.to_i64s()?;
                let y = values.iter().enumerate().map(|(i, &v)| if v == replaced_int { ints[at(ints.len(), i)] } else { v });
                one(cast(&Tensor::new(x.shape(), y.collect::<Vec<i64>>())?, x.dtype())?)
            }
            DType::F32 | DType::F64 => {
                check(floats.len())?;
                let values: Vec<f64> = cast(x, DType::F64)?.into_vec()?;
                let is_replaced = |v: f64| v == replaced || (v.is_nan() && replaced.is_nan());
                let y = values.iter().enumerate().map(|(i, &v)| if is_replaced(v) { floats[at(floats.len(), i)] } else { v });
                one(cast(&Tensor::new(x.shape(), y.collect::<Vec<f64>>())?, x.dtype())?)
            }
            other => invalid!("input 0: expected float32, float64, int32 or int64, found {other}"),
        }
    }))
}

/// Input 0 as rows along its last axis, in `float64`.
fn rows(args: &Args) -> Result<(Shape, usize, Vec<f64>), OpError> {
    let x = args.tensor(0)?;
    let Some(&columns) = x.shape().last() else { invalid!("input 0: expected rank 1 or more, found 0") };
    if !(x.dtype().is_float() || x.dtype().is_int()) {
        invalid!("input 0: expected numbers, found {}", x.dtype());
    }
    Ok((x.shape().clone(), columns, cast(x, DType::F64)?.into_vec()?))
}

/// The values as a `float32` tensor.
fn floats(shape: Shape, values: &[f64]) -> Result<Outputs, OpError> {
    one(Tensor::new(shape, map(values, |&v| v as f32))?)
}

pub(super) fn build_normalizer(cx: &OpCtx) -> Result<Kernel, OpError> {
    let divisor: fn(&[f64]) -> f64 = match cx.attrs.string_or("norm", "MAX")? {
        "MAX" => |row| row.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        "L1" => |row| row.iter().map(|v| v.abs()).sum(),
        "L2" => |row| row.iter().map(|v| v * v).sum::<f64>().sqrt(),
        other => invalid!("attribute \"norm\": expected MAX, L1 or L2, found \"{other}\""),
    };
    Ok(Box::new(move |args| {
        let (shape, columns, mut values) = rows(&args)?;
        for_each_chunk(&mut values, columns, |_, row| {
            let d = divisor(row);
            if d != 0.0 {
                row.iter_mut().for_each(|v| *v /= d);
            }
        });
        floats(shape, &values)
    }))
}

pub(super) fn build_scaler(cx: &OpCtx) -> Result<Kernel, OpError> {
    let list = |name: &str, default: f64| -> Result<Vec<f64>, OpError> {
        let list: Vec<f64> = cx.attrs.floats(name)?.unwrap_or_default().iter().map(|&x| x.into()).collect();
        Ok(if list.is_empty() { vec![default] } else { list })
    };
    let (offset, scale) = (list("offset", 0.0)?, list("scale", 1.0)?);
    Ok(Box::new(move |args| {
        let (shape, columns, mut values) = rows(&args)?;
        for (name, list) in [("offset", &offset), ("scale", &scale)] {
            if list.len() != 1 && list.len() != columns {
                invalid!("attribute \"{name}\": expected 1 or {columns} values, found {}", list.len());
            }
        }
        let at = |list: &[f64], i: usize| if list.len() == 1 { list[0] } else { list[i] };
        for_each_chunk(&mut values, columns, |_, row| {
            row.iter_mut().enumerate().for_each(|(i, v)| *v = (*v - at(&offset, i)) * at(&scale, i));
        });
        floats(shape, &values)
    }))
}

/// The categories of OneHotEncoder.
enum Categories {
    Ints(Vec<i64>),
    Strings(Vec<String>),
}

impl Categories {
    fn read(attrs: &Attrs) -> Result<Self, OpError> {
        match (attrs.ints("cats_int64s")?.filter(|c| !c.is_empty()), attrs.strings("cats_strings")?.filter(|c| !c.is_empty())) {
            (Some(c), None) => Ok(Categories::Ints(c.to_vec())),
            (None, Some(c)) => Ok(Categories::Strings(c)),
            _ => invalid!("one of the attributes \"cats_int64s\" and \"cats_strings\" must be given"),
        }
    }

    fn len(&self) -> usize {
        match self {
            Categories::Ints(c) => c.len(),
            Categories::Strings(c) => c.len(),
        }
    }

    /// The category of each element.
    fn find(&self, x: &Tensor) -> Result<Vec<Option<usize>>, OpError> {
        match (self, x.dtype()) {
            (Categories::Strings(c), DType::String) => {
                let places: HashMap<&String, usize> = c.iter().enumerate().map(|(i, c)| (c, i)).collect();
                Ok(x.to_slice::<String>()?.iter().map(|v| places.get(v).copied()).collect())
            }
            (Categories::Ints(c), DType::F32 | DType::F64 | DType::I32 | DType::I64) => {
                let places: HashMap<i64, usize> = c.iter().enumerate().map(|(i, &c)| (c, i)).collect();
                Ok(cast(x, DType::I64)?.to_slice::<i64>()?.iter().map(|v| places.get(v).copied()).collect())
            }
            (Categories::Strings(_), other) => invalid!("input 0: expected string, found {other}"),
            (Categories::Ints(_), other) => invalid!("input 0: expected float32, float64, int32 or int64, found {other}"),
        }
    }
}

pub(super) fn infer_one_hot(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let n = Dim::Known(Categories::read(cx.op.attrs)?.len());
    Ok(vec![Fact::partial(Some(DType::F32), cx.shape(0).map(|x| x.iter().cloned().chain([n]).collect()))])
}

pub(super) fn build_one_hot(cx: &OpCtx) -> Result<Kernel, OpError> {
    let categories = Categories::read(cx.attrs)?;
    let zeros = cx.attrs.int_or("zeros", 1)? != 0;
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        let n = categories.len();
        let mut shape = x.shape().clone();
        shape.push(n);
        let mut y = filled(checked_product(&shape)?, 0f32)?;
        for (i, found) in categories.find(x)?.into_iter().enumerate() {
            match found {
                Some(c) => y[i * n + c] = 1.0,
                None if zeros => {}
                None => invalid!("input 0: element {i} is of no category"),
            }
        }
        one(Tensor::new(shape, y)?)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::run;

    #[test]
    fn an_unknown_category_is_zeros_or_an_error() {
        let x = Tensor::vector(vec![3i64, 9]);
        let attrs = || Attrs::new().with("cats_int64s", vec![2i64, 3]);
        let y = run("ai.onnx.ml::OneHotEncoder", 1, attrs(), &[x.clone()]).unwrap();
        assert_eq!(y, Tensor::new([2, 2], vec![0f32, 1.0, 0.0, 0.0]).unwrap());
        assert!(run("ai.onnx.ml::OneHotEncoder", 1, attrs().with("zeros", 0), &[x]).is_err());
    }

    #[test]
    fn integers_are_imputed_exactly() {
        let x = Tensor::new([1, 2], vec![i64::MAX, -1]).unwrap();
        let attrs = Attrs::new().with("imputed_value_int64s", vec![i64::MAX - 1]).with("replaced_value_int64", -1);
        let y = run("ai.onnx.ml::Imputer", 1, attrs, &[x]).unwrap();
        assert_eq!(y.to_i64s().unwrap(), [i64::MAX, i64::MAX - 1]);
    }
}
