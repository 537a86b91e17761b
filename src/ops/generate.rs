//! Ops that make tensors out of attributes and small inputs.

use super::infer::unknown_dims;
use super::transpose::broadcast_to;
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, one, sparse};
use crate::ir::Dim;
use crate::tensor::{DType, Number, Shape, Tensor, cast, checked_len};
use crate::{dispatch_number, invalid};

const CONSTANT: &[i64] = &[1, 9, 11, 12, 13, 19, 21, 23, 24, 25];
const VALUES: &[&str] =
    &["sparse_value", "value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings"];

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Constant", CONSTANT).inputs(0, 0).attrs(VALUES).kernel(constant).infer(infer_constant),
    OpDef::new("ConstantOfShape", &[9, 20, 21, 23, 24, 25]).attrs(&["value"]).kernel(constant_of_shape).infer(infer_constant_of_shape),
    OpDef::new("EyeLike", &[9, 22]).attrs(&["dtype", "k"]).kernel(eye_like).infer(infer_eye_like),
    OpDef::new("Range", &[11, 27]).inputs(3, 3).attrs(&["stash_type"]).kernel(range).infer(infer_range),
];

/// The tensor that the one attribute of a Constant states.
///
/// # Errors
/// None or several of them.
pub fn constant_value(cx: &OpCtx) -> Result<Tensor, OpError> {
    let a = cx.attrs;
    let mut found = Vec::new();
    found.extend(a.tensor("value")?.cloned());
    if let Some(s) = a.sparse("sparse_value")? {
        found.push(sparse::densify(s)?);
    }
    found.extend(a.float("value_float")?.map(Tensor::scalar));
    found.extend(a.floats("value_floats")?.map(|v| Tensor::vector(v.to_vec())));
    found.extend(a.int("value_int")?.map(Tensor::scalar));
    found.extend(a.ints("value_ints")?.map(|v| Tensor::vector(v.to_vec())));
    found.extend(a.string("value_string")?.map(|s| Tensor::scalar(s.to_owned())));
    found.extend(a.strings("value_strings")?.map(Tensor::vector));
    match found.pop() {
        Some(t) if found.is_empty() => Ok(t),
        Some(_) => invalid!("more than one of the attributes {VALUES:?}"),
        None => invalid!("none of the attributes {VALUES:?}"),
    }
}

fn constant(cx: &OpCtx) -> Result<Kernel, OpError> {
    let value = constant_value(cx)?;
    Ok(Box::new(move |_| one(value.clone())))
}

fn infer_constant(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    // The dense form of a sparse value is left to the kernel.
    if let Some(s) = cx.op.attrs.sparse("sparse_value")? {
        return Ok(vec![Fact::tensor(s.values.tensor.dtype(), s.dims.iter().map(|&d| Dim::Known(d)))]);
    }
    let value = constant_value(&cx.op)?;
    let fact = Fact::tensor(value.dtype(), value.shape().iter().map(|&d| Dim::Known(d)));
    Ok(vec![Fact { constant: Some(value), ..fact }])
}

/// The one element of a ConstantOfShape, as a vector; `float32` zero if it states none.
fn filler(cx: &OpCtx) -> Result<Tensor, OpError> {
    match cx.attrs.tensor("value")? {
        None => Ok(Tensor::vector(vec![0f32])),
        Some(t) if t.len() == 1 => Ok(t.clone().reshape([1])?),
        Some(t) => invalid!("value must be one element, found shape {}", t.shape()),
    }
}

fn constant_of_shape(cx: &OpCtx) -> Result<Kernel, OpError> {
    let value = filler(cx)?;
    Ok(Box::new(move |args: Args| {
        let list = args.ints(0)?;
        let Ok(shape) = list.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>() else {
            invalid!("shape {list:?} has a negative dim: expected 0 or more")
        };
        let value = if shape.is_empty() { value.clone().reshape(Shape::default())? } else { value.clone() };
        one(broadcast_to(&value, &shape)?)
    }))
}

fn infer_constant_of_shape(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let value = filler(&cx.op)?;
    let dims = cx.dims(0).or_else(|| cx.vector_len(0).map(unknown_dims));
    let fact = Fact::partial(Some(value.dtype()), dims.clone());
    // A short vector of a known number, as exporters write them for Expand.
    match (dims.as_deref(), value.to_i64s()) {
        (Some([Dim::Known(n)]), Ok(v)) if *n <= 64 && v[0] >= 0 => Ok(vec![fact.with_dims(vec![Dim::Known(v[0] as usize); *n])]),
        _ => Ok(vec![fact]),
    }
}

/// The number of steps from `start` to `limit`, and whether it can be told.
fn steps(start: f64, limit: f64, delta: f64) -> Option<usize> {
    let n = ((limit - start) / delta).ceil();
    // Past 2^53 a float does not count.
    (n.is_finite() && n < 9e15).then_some(n.max(0.0) as usize)
}

fn int_steps(start: i128, limit: i128, delta: i128) -> Option<usize> {
    if delta == 0 {
        return None;
    }
    let span = if delta > 0 { limit - start } else { start - limit };
    usize::try_from((span.max(0) + delta.abs() - 1) / delta.abs()).ok()
}

fn range_of<T: Number>(start: &Tensor, limit: &Tensor, delta: &Tensor) -> Result<Tensor, OpError> {
    let of = |t: &Tensor| -> Result<T, OpError> { Ok(t.item::<T>()?) };
    let (start, limit, delta) = (of(start)?, of(limit)?, of(delta)?);
    let n = if T::DTYPE.is_int() {
        let wide = |x: T| num_traits::NumCast::from(x).unwrap_or(0i128);
        int_steps(wide(start), wide(limit), wide(delta))
    } else {
        steps(start.to_f64(), limit.to_f64(), delta.to_f64())
    };
    let Some(n) = n else { invalid!("no range from {start:?} to {limit:?} by {delta:?}") };
    let mut out = Tensor::full([n], T::ZERO)?.into_vec::<T>()?;
    if T::DTYPE.is_int() {
        let mut x = start;
        for o in &mut out {
            *o = x;
            x = Number::add(x, delta);
        }
    } else {
        let (start, delta) = (start.to_f64(), delta.to_f64());
        out.iter_mut().enumerate().for_each(|(i, o)| *o = T::from_f64(start + i as f64 * delta));
    }
    Ok(Tensor::vector(out))
}

fn range(cx: &OpCtx) -> Result<Kernel, OpError> {
    let stash = cx.attrs.int_or("stash_type", 1)?;
    if !matches!(stash, 1 | 11) {
        invalid!("stash_type must be 1 (float32) or 11 (float64), found {stash}");
    }
    Ok(Box::new(|args: Args| {
        let (start, limit, delta) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
        one(dispatch_number!(start.dtype(), T => range_of::<T>(start, limit, delta)?, other => invalid!("expected numbers, found {other}")))
    }))
}

fn infer_range(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let number = |i| -> Option<f64> { cast(cx.constant(i)?, DType::F64).ok()?.item::<f64>().ok() };
    let len = match (number(0), number(1), number(2), cx.dtype(0)) {
        (Some(a), Some(b), Some(d), Some(t)) if !t.is_int() => steps(a, b, d),
        _ => match [0, 1, 2].map(|i| cx.known(i).and_then(|v| v.first().copied()).map(i128::from)) {
            [Some(a), Some(b), Some(d)] => int_steps(a, b, d),
            _ => None,
        },
    };
    let dim = match (len, cx.known(0), cx.dims(1), cx.known(2)) {
        (Some(n), ..) => Dim::Known(n),
        // From 0 by 1 to a dim that has a name.
        (None, Some(a), Some(b), Some(d)) if a == [0] && d == [1] => b.first().cloned().unwrap_or(Dim::Unknown),
        _ => Dim::Unknown,
    };
    let dtype = (0..3).find_map(|i| cx.dtype(i));
    Ok(vec![Fact::partial(dtype, Some(vec![dim]))])
}

fn stated_dtype(cx: &OpCtx) -> Result<Option<DType>, OpError> {
    match cx.attrs.int("dtype")? {
        None => Ok(None),
        Some(d) => match i32::try_from(d).ok().and_then(DType::from_onnx) {
            Some(dtype) => Ok(Some(dtype)),
            None => invalid!("dtype {d} is unknown"),
        },
    }
}

fn eye_like(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (dtype, k) = (stated_dtype(cx)?, cx.attrs.int_or("k", 0)?);
    Ok(Box::new(move |args: Args| {
        let like = args.tensor(0)?;
        let [rows, columns] = like.shape()[..] else { invalid!("input 0 must have rank 2, found {}", like.shape()) };
        let mut eye = Tensor::full([rows, columns], 0u8)?.into_vec::<u8>()?;
        if checked_len(like.shape()) != Some(0) {
            for r in 0..rows {
                if let Some(c) = (r as i64).checked_add(k).and_then(|c| usize::try_from(c).ok()).filter(|&c| c < columns) {
                    eye[r * columns + c] = 1;
                }
            }
        }
        one(cast(&Tensor::new([rows, columns], eye)?, dtype.unwrap_or(like.dtype()))?)
    }))
}

fn infer_eye_like(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dims = cx.shape(0).map_or_else(|| unknown_dims(2), <[Dim]>::to_vec);
    Ok(vec![Fact::partial(stated_dtype(&cx.op)?.or(cx.dtype(0)), Some(dims))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;
    use crate::tensor::{Element, bf16};

    fn ints(v: &[i64]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    #[test]
    fn a_constant_is_stated_once() {
        let of = |attrs| run("Constant", 13, attrs, &[]);
        assert_eq!(of(Attrs::new().with("value_ints", vec![1, 2])).unwrap(), ints(&[1, 2]));
        assert_eq!(of(Attrs::new().with("value_string", "a")).unwrap(), Tensor::scalar("a".to_owned()));
        assert!(of(Attrs::new()).is_err());
        assert!(of(Attrs::new().with("value_int", 1).with("value_float", 1.0)).is_err());
    }

    #[test]
    fn a_shape_is_filled_with_any_dtype() {
        let of = |value: Tensor, shape: &[i64]| run("ConstantOfShape", 9, Attrs::new().with("value", value), &[ints(shape)]);
        let nibble = Tensor::from_vec_as(DType::I4, [1], vec![0x0fu8]).unwrap();
        assert_eq!(of(nibble, &[3]).unwrap().to_i64s().unwrap(), [-1, -1, -1]);
        assert_eq!(of(Tensor::vector(vec![true]), &[]).unwrap(), Tensor::scalar(true));
        assert_eq!(of(Tensor::vector(vec![7i32]), &[2, 0]).unwrap().shape().to_i64s(), [2, 0]);
        assert!(of(Tensor::vector(vec![7i32]), &[-1]).is_err());
        assert!(of(Tensor::vector(vec![7i32]), &[1 << 40, 1 << 20]).is_err());
    }

    fn ranged<T: Element>(a: T, b: T, d: T) -> Result<Vec<T>, OpError> {
        Ok(run("Range", 11, Attrs::new(), &[Tensor::scalar(a), Tensor::scalar(b), Tensor::scalar(d)])?.into_vec()?)
    }

    #[test]
    fn ranges_end_before_their_limit() {
        assert_eq!(ranged(3i64, 9, 3).unwrap(), [3, 6]);
        assert_eq!(ranged(10i32, 4, -2).unwrap(), [10, 8, 6]);
        assert_eq!(ranged(1f32, 2.0, 0.5).unwrap(), [1.0, 1.5]);
        assert!(ranged(0i64, -1, 1).unwrap().is_empty());
        let wide = ranged(bf16::ZERO, bf16::from_f32(300.0), bf16::ONE).unwrap();
        assert_eq!(wide[299], bf16::from_f32(299.0));
    }

    #[test]
    fn endless_ranges_are_errors() {
        assert!(ranged(0i64, 1, 0).is_err());
        assert!(ranged(0f32, 1.0, 0.0).is_err());
        assert!(ranged(0f32, f32::NAN, 1.0).is_err());
        assert!(ranged(i64::MIN, i64::MAX, 1).is_err());
    }

    #[test]
    fn the_diagonal_may_lie_outside() {
        let of = |k: i64| run("EyeLike", 22, Attrs::new().with("k", k).with("dtype", 9), &[Tensor::full([2, 3], 0f32).unwrap()]).unwrap();
        assert_eq!(of(1), Tensor::new([2, 3], vec![false, true, false, false, false, true]).unwrap());
        assert_eq!(of(i64::MAX), Tensor::full([2, 3], false).unwrap());
        assert_eq!(of(i64::MIN), Tensor::full([2, 3], false).unwrap());
    }
}
