//! Ops that put tensors together along an axis.

use super::infer::{same_dim, unknown_dims};
use super::movement::{Join, moved};
use super::util::{axis, product};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, one};
use crate::invalid;
use crate::ir::{Dim, Type};
use crate::tensor::{Tensor, Value};

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Concat", &[1, 4, 11, 13]).inputs(1, usize::MAX).attrs(&["axis"]).kernel(concat).infer(infer_concat),
    OpDef::new("ConcatFromSequence", &[11]).attrs(&["axis", "new_axis"]).kernel(concat_from_sequence).infer(infer_concat_from_sequence),
];

/// Tensors joined along an axis; their other dims are equal.
///
/// # Errors
/// No tensor, other dtypes or dims, an axis out of range.
pub fn join(tensors: &[&Tensor], at: i64) -> Result<Tensor, OpError> {
    let Some(first) = tensors.first() else { invalid!("nothing to join") };
    let at = axis(at, first.rank())?;
    let mut shape = first.shape().clone();
    for (i, t) in tensors.iter().enumerate().skip(1) {
        let fits = t.rank() == shape.len() && t.shape().iter().zip(&shape[..]).enumerate().all(|(d, (a, b))| d == at || a == b);
        if !fits {
            invalid!("input {i} of shape {} does not join {} along axis {at}", t.shape(), first.shape());
        }
        match shape[at].checked_add(t.shape()[at]) {
            Some(n) => shape[at] = n,
            None => invalid!("the dims along axis {at} are too large"),
        }
    }
    if let [only] = tensors {
        return Ok((*only).clone());
    }
    let runs = tensors.iter().map(|t| product(&t.shape()[at..])).collect();
    moved(&Join { runs }, tensors, shape)
}

fn stated_axis(cx: &OpCtx) -> Result<i64, OpError> {
    match cx.attrs.int("axis")? {
        Some(at) => Ok(at),
        None if cx.version < 4 => Ok(1),
        None => invalid!("attribute \"axis\" is missing"),
    }
}

fn concat(cx: &OpCtx) -> Result<Kernel, OpError> {
    let at = stated_axis(cx)?;
    Ok(Box::new(move |args: Args| one(join(&args.tensors(0)?, at)?)))
}

fn infer_concat(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let n = cx.facts.len();
    let dtype = (0..n).find_map(|i| cx.dtype(i));
    let Some(rank) = (0..n).find_map(|i| cx.rank(i)) else { return Ok(vec![Fact::partial(dtype, None)]) };
    let at = axis(stated_axis(&cx.op)?, rank)?;
    let mut dims = unknown_dims(rank);
    let mut sum = Some(Dim::Known(0));
    for i in 0..n {
        let Some(shape) = cx.shape(i) else {
            sum = None;
            continue;
        };
        if shape.len() != rank {
            invalid!("input {i} must have rank {rank}, found {}", shape.len());
        }
        for (d, (a, b)) in dims.iter_mut().zip(shape).enumerate() {
            if d != at {
                *a = same_dim(a, b)?;
            }
        }
        sum = match (sum, &shape[at]) {
            (Some(Dim::Known(a)), Dim::Known(b)) => a.checked_add(*b).map(Dim::Known),
            (Some(Dim::Known(0)), b) => Some(b.clone()),
            (Some(a), Dim::Known(0)) => Some(a),
            _ => None,
        };
    }
    dims[at] = sum.unwrap_or(Dim::Unknown);
    let fact = Fact::partial(dtype, Some(dims));
    // Elements of vectors; one whose length alone is known gives unknown elements.
    let elements = |i| cx.dims(i).or_else(|| cx.vector_len(i).filter(|&n| n <= 64).map(unknown_dims));
    let integer = dtype.is_some_and(|d| d.is_int());
    match (0..n).map(elements).collect::<Option<Vec<_>>>() {
        Some(all) if rank == 1 && integer => Ok(vec![fact.with_dims(all.concat())]),
        _ => Ok(vec![fact]),
    }
}

fn concat_from_sequence(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (at, new) = (stated_axis(cx)?, cx.attrs.int_or("new_axis", 0)? != 0);
    Ok(Box::new(move |args: Args| {
        let mut tensors = Vec::new();
        for v in args.sequence(0)?.iter() {
            match v {
                Value::Tensor(t) if new => {
                    let at = axis(at, t.rank() + 1)?;
                    let mut shape = t.shape().clone();
                    shape.insert(at, 1);
                    tensors.push(t.clone().reshape(shape)?);
                }
                Value::Tensor(t) => tensors.push(t.clone()),
                other => invalid!("expected a sequence of tensors, found {}", other.describe()),
            }
        }
        one(join(&tensors.iter().collect::<Vec<_>>(), at)?)
    }))
}

fn infer_concat_from_sequence(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let Some(Type::Sequence(element)) = cx.ty(0) else { return Ok(vec![Fact::unknown()]) };
    let dims = match element.shape() {
        Some(s) if cx.op.attrs.int_or("new_axis", 0)? != 0 => {
            let mut dims = s.to_vec();
            dims.insert(axis(stated_axis(&cx.op)?, s.len() + 1)?, Dim::Unknown);
            Some(dims)
        }
        Some(s) => {
            let mut dims = s.to_vec();
            dims[axis(stated_axis(&cx.op)?, s.len())?] = Dim::Unknown;
            Some(dims)
        }
        None => None,
    };
    Ok(vec![Fact::partial(element.dtype(), dims)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::{run, run_values};
    use crate::tensor::DType;
    use std::sync::Arc;

    #[test]
    fn concat_joins_along_any_axis_of_any_dtype() {
        let a = Tensor::new([2, 1], vec!["a".to_owned(), "b".to_owned()]).unwrap();
        let b = Tensor::new([2, 2], ["c", "d", "e", "f"].map(str::to_owned).to_vec()).unwrap();
        let joined = run("Concat", 1, Attrs::new(), &[a, b]).unwrap();
        assert_eq!(joined, Tensor::new([2, 3], ["a", "c", "d", "b", "e", "f"].map(str::to_owned).to_vec()).unwrap());
        let nibbles = |bytes: &[u8], n: usize| Tensor::from_vec_as(DType::I4, [n], bytes.to_vec()).unwrap();
        let joined = run("Concat", 13, Attrs::new().with("axis", 0), &[nibbles(&[0x01], 1), nibbles(&[0x32], 2)]).unwrap();
        assert_eq!(joined.to_i64s().unwrap(), [1, 2, 3]);
    }

    #[test]
    fn concat_names_the_input_that_does_not_fit() {
        let of = |shape: &[usize]| Tensor::full(shape, 0f32).unwrap();
        let e = run("Concat", 13, Attrs::new().with("axis", 0), &[of(&[1, 2]), of(&[1, 3])]).unwrap_err();
        assert_eq!(e.to_string(), "input 1 of shape [1,3] does not join [1,2] along axis 0");
        assert!(run("Concat", 13, Attrs::new().with("axis", 2), &[of(&[1, 2])]).is_err());
        assert!(run("Concat", 13, Attrs::new().with("axis", 0), &[of(&[2]), Tensor::vector(vec![1i64])]).is_err());
    }

    #[test]
    fn a_sequence_joins_along_a_new_axis() {
        let s = Value::Sequence(Arc::new(vec![Tensor::vector(vec![1, 2]).into(), Tensor::vector(vec![3, 4]).into()]));
        let attrs = Attrs::new().with("axis", -1).with("new_axis", 1);
        let out = run_values("ConcatFromSequence", 11, attrs, vec![Some(s)], 1).unwrap();
        assert_eq!(out[0], Tensor::new([2, 2], vec![1, 3, 2, 4]).unwrap().into());
    }
}
