//! Sequences and optionals.

use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, infer, one};
use crate::invalid;
use crate::ir::{Dim, Type};
use crate::tensor::{DType, Tensor, Value};
use std::sync::Arc;

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Optional", &[15, 28]).inputs(0, 1).attrs(&["type"]).kernel(optional).infer(infer_optional),
    OpDef::new("OptionalGetElement", &[15, 18, 28]).kernel(get_element).infer(infer_get_element),
    OpDef::new("OptionalHasElement", &[15, 18, 28]).inputs(0, 1).kernel(has_element).infer(infer_has_element),
    OpDef::new("SequenceAt", &[11]).inputs(2, 2).kernel(at).infer(infer_at),
    OpDef::new("SequenceConstruct", &[11]).inputs(1, usize::MAX).kernel(construct).infer(infer_construct),
    OpDef::new("SequenceEmpty", &[11]).inputs(0, 0).attrs(&["dtype"]).kernel(empty).infer(infer_empty),
    OpDef::new("SequenceErase", &[11]).inputs(1, 2).kernel(erase).infer(infer::same),
    OpDef::new("SequenceInsert", &[11]).inputs(2, 3).kernel(insert).infer(infer_insert),
    OpDef::new("SequenceLength", &[11]).kernel(length).infer(infer_length),
];

fn sequence(v: Vec<Value>) -> Value {
    Value::Sequence(Arc::new(v))
}

/// The values of a sequence input, not copied if this is its last reader.
fn take_sequence(args: &mut Args) -> Result<Vec<Value>, OpError> {
    args.sequence(0)?;
    match args.take_value(0)? {
        Value::Sequence(s) => Ok(Arc::unwrap_or_clone(s)),
        other => invalid!("input 0: expected a sequence, found {}", other.describe()),
    }
}

/// A position in `-n..n`, or up to `n` itself where something may be put after the last.
fn place(args: &Args, i: usize, n: usize, end: bool) -> Result<Option<usize>, OpError> {
    let at = match args.opt_ints(i)?.as_deref() {
        None => return Ok(None),
        Some([at]) => *at,
        Some(other) => invalid!("position must be one element, found {}", other.len()),
    };
    let len = n as i64;
    let found = if at < 0 { at.checked_add(len) } else { Some(at) };
    match found {
        Some(p) if p >= 0 && (p < len || end && p == len) => Ok(Some(p as usize)),
        _ => invalid!("position {at} is out of range for a sequence of {n}"),
    }
}

fn at(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| {
        let s = args.sequence(0)?;
        match place(&args, 1, s.len(), false)? {
            Some(p) => one(s[p].clone()),
            None => invalid!("input 1 is missing: expected a value, found none"),
        }
    }))
}

fn construct(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| {
        let tensors = args.tensors(0)?;
        if let Some(other) = tensors.iter().find(|t| t.dtype() != tensors[0].dtype()) {
            invalid!("inputs must have one dtype, found {} and {}", tensors[0].dtype(), other.dtype());
        }
        one(sequence(tensors.into_iter().map(|t| t.clone().into()).collect()))
    }))
}

fn empty(cx: &OpCtx) -> Result<Kernel, OpError> {
    empty_dtype(cx)?;
    Ok(Box::new(|_| one(sequence(Vec::new()))))
}

fn empty_dtype(cx: &OpCtx) -> Result<DType, OpError> {
    let d = cx.attrs.int_or("dtype", 1)?;
    match i32::try_from(d).ok().and_then(DType::from_onnx) {
        Some(dtype) => Ok(dtype),
        None => invalid!("dtype {d} is unknown"),
    }
}

fn erase(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args: Args| {
        let mut s = take_sequence(&mut args)?;
        let Some(last) = s.len().checked_sub(1) else { invalid!("an empty sequence has nothing to erase") };
        s.remove(place(&args, 1, s.len(), false)?.unwrap_or(last));
        one(sequence(s))
    }))
}

fn insert(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args: Args| {
        let mut s = take_sequence(&mut args)?;
        let new = args.take(1)?;
        if let Some(Value::Tensor(t)) = s.first()
            && t.dtype() != new.dtype()
        {
            invalid!("the tensor must be {} as the sequence, found {}", t.dtype(), new.dtype());
        }
        let at = place(&args, 2, s.len(), true)?.unwrap_or(s.len());
        s.insert(at, new.into());
        one(sequence(s))
    }))
}

fn length(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| one(Tensor::scalar(args.sequence(0)?.len() as i64))))
}

fn optional(cx: &OpCtx) -> Result<Kernel, OpError> {
    if cx.inputs == 0 && cx.attrs.type_("type")?.is_none() {
        invalid!("neither an input nor the attribute \"type\"");
    }
    Ok(Box::new(|mut args: Args| {
        let value = if args.value(0).is_some() { Some(Arc::new(args.take_value(0)?)) } else { None };
        one(Value::Optional(value))
    }))
}

fn get_element(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args: Args| match args.take_value(0)? {
        Value::Optional(Some(v)) => one(Arc::unwrap_or_clone(v)),
        Value::Optional(None) => invalid!("the optional is empty"),
        value => one(value),
    }))
}

fn has_element(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| one(Tensor::scalar(!matches!(args.value(0), None | Some(Value::Optional(None)))))))
}

/// What is known of values that have either type.
fn either(a: &Type, b: &Type) -> Type {
    match (a, b) {
        (Type::Tensor { dtype: d, shape: s }, Type::Tensor { dtype: e, shape: t }) => {
            let shape = match (s, t) {
                (Some(s), Some(t)) if s.len() == t.len() => {
                    Some(s.iter().zip(t).map(|(x, y)| if x == y { x.clone() } else { Dim::Unknown }).collect())
                }
                _ => None,
            };
            Type::Tensor { dtype: d.or(*e), shape }
        }
        _ => a.clone(),
    }
}

fn infer_at(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![match cx.ty(0) {
        Some(Type::Sequence(t)) => (**t).clone().into(),
        _ => Fact::unknown(),
    }])
}

fn infer_construct(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let types: Option<Vec<&Type>> = (0..cx.facts.len()).map(|i| cx.ty(i)).collect();
    let joined = types.and_then(|t| {
        let (first, rest) = t.split_first()?;
        Some(rest.iter().fold((*first).clone(), |a, b| either(&a, b)))
    });
    Ok(vec![joined.map_or_else(Fact::unknown, |t| Type::Sequence(Box::new(t)).into())])
}

fn infer_empty(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Type::Sequence(Box::new(Type::unranked(empty_dtype(&cx.op)?))).into()])
}

fn infer_insert(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![match (cx.ty(0), cx.ty(1)) {
        (Some(Type::Sequence(a)), Some(b)) => Type::Sequence(Box::new(either(a, b))).into(),
        _ => Fact::unknown(),
    }])
}

fn infer_length(_: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::tensor(DType::I64, [])])
}

fn infer_optional(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let inner = cx.ty(0).cloned().or(cx.op.attrs.type_("type")?.cloned());
    Ok(vec![inner.map_or_else(Fact::unknown, |t| Type::Optional(Box::new(t)).into())])
}

fn infer_get_element(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![match cx.ty(0) {
        Some(Type::Optional(t)) => (**t).clone().into(),
        Some(t) => t.clone().into(),
        None => Fact::unknown(),
    }])
}

fn infer_has_element(_: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::tensor(DType::Bool, [])])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run_values;

    fn run(op: &str, inputs: Vec<Value>) -> Result<Value, OpError> {
        Ok(run_values(op, 18, Attrs::new(), inputs.into_iter().map(Some).collect(), 1)?.remove(0))
    }

    fn number(x: i64) -> Value {
        Tensor::scalar(x).into()
    }

    fn list(v: &[i64]) -> Value {
        sequence(v.iter().map(|&x| number(x)).collect())
    }

    #[test]
    fn places_count_from_either_end() {
        assert_eq!(run("SequenceAt", vec![list(&[1, 2, 3]), number(-1)]).unwrap(), number(3));
        assert_eq!(run("SequenceErase", vec![list(&[1, 2, 3]), number(-3)]).unwrap(), list(&[2, 3]));
        assert_eq!(run("SequenceErase", vec![list(&[1, 2, 3])]).unwrap(), list(&[1, 2]));
        assert_eq!(run("SequenceInsert", vec![list(&[1, 2]), number(9), number(-1)]).unwrap(), list(&[1, 9, 2]));
        assert_eq!(run("SequenceInsert", vec![list(&[1, 2]), number(9), number(2)]).unwrap(), list(&[1, 2, 9]));
        assert_eq!(run("SequenceLength", vec![list(&[])]).unwrap(), number(0));
    }

    #[test]
    fn places_out_of_range_are_errors() {
        for at in [3, -4, i64::MIN, i64::MAX] {
            assert!(run("SequenceAt", vec![list(&[1, 2, 3]), number(at)]).is_err());
        }
        assert!(run("SequenceErase", vec![list(&[])]).is_err());
        assert!(run("SequenceInsert", vec![list(&[1]), Tensor::scalar(1f32).into()]).is_err());
        assert!(run("SequenceAt", vec![number(1), number(0)]).is_err());
    }

    #[test]
    fn optionals_hold_something_or_nothing() {
        let some = Value::Optional(Some(Arc::new(number(4))));
        assert_eq!(run("OptionalGetElement", vec![some.clone()]).unwrap(), number(4));
        assert_eq!(run("OptionalGetElement", vec![number(4)]).unwrap(), number(4));
        assert!(run("OptionalGetElement", vec![Value::Optional(None)]).is_err());
        assert_eq!(run("Optional", vec![number(4)]).unwrap(), some);
        assert_eq!(run("OptionalHasElement", vec![]).unwrap(), Tensor::scalar(false).into());
        assert_eq!(run("OptionalHasElement", vec![number(1)]).unwrap(), Tensor::scalar(true).into());
    }
}
