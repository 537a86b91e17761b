//! Ops that read or change dims and leave the elements in their order.

use super::infer::{quotient, unknown_dims};
use super::util::{axes, axis};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, one};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{Shape, Tensor, checked_len};

const IDENTITY: &[i64] = &[1, 13, 14, 16, 19, 21, 23, 24, 25];
const SHAPE: &[i64] = &[1, 13, 15, 19, 21, 23, 24, 25];
const SIZE: &[i64] = &[1, 13, 19, 21, 23, 24, 25];
const RESHAPE: &[i64] = &[1, 5, 13, 14, 19, 21, 23, 24, 25];
const FLATTEN: &[i64] = &[1, 9, 11, 13, 21, 23, 24, 25];
const SQUEEZE: &[i64] = &[1, 11, 13, 21, 23, 24, 25];

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Flatten", FLATTEN).attrs(&["axis"]).kernel(flatten).infer(infer_flatten),
    OpDef::new("Identity", IDENTITY).kernel(identity).infer(infer_identity),
    OpDef::new("Reshape", RESHAPE).inputs(1, 2).attrs(&["allowzero", "consumed_inputs", "shape"]).kernel(reshape).infer(infer_reshape),
    OpDef::new("Shape", SHAPE).attrs(&["end", "start"]).kernel(shape).infer(infer_shape),
    OpDef::new("Size", SIZE).kernel(size).infer(infer_size),
    OpDef::new("Squeeze", SQUEEZE).inputs(1, 2).attrs(&["axes"]).kernel(squeeze).infer(infer_squeeze),
    OpDef::new("Unsqueeze", SQUEEZE).inputs(1, 2).attrs(&["axes"]).kernel(unsqueeze).infer(infer_unsqueeze),
];

fn identity(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args: Args| one(args.take_value(0)?)))
}

fn infer_identity(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![cx.fact(0).cloned().unwrap_or_default()])
}

/// The part `start..end` of `rank` dims, both clamped.
fn dims_range(rank: usize, start: i64, end: Option<i64>) -> std::ops::Range<usize> {
    let clamp = |x: i64| (if x < 0 { x.saturating_add(rank as i64) } else { x }).clamp(0, rank as i64) as usize;
    let start = clamp(start);
    start..end.map_or(rank, clamp).max(start)
}

fn shape(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (start, end) = (cx.attrs.int_or("start", 0)?, cx.attrs.int("end")?);
    Ok(Box::new(move |args: Args| {
        let dims = args.tensor(0)?.shape().to_i64s();
        one(Tensor::vector(dims[dims_range(dims.len(), start, end)].to_vec()))
    }))
}

fn infer_shape(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    use crate::tensor::DType::I64;
    let Some(dims) = cx.shape(0) else { return Ok(vec![Fact::tensor(I64, [Dim::Unknown])]) };
    let dims = dims[dims_range(dims.len(), cx.op.attrs.int_or("start", 0)?, cx.op.attrs.int("end")?)].to_vec();
    Ok(vec![Fact::tensor(I64, [Dim::Known(dims.len())]).with_dims(dims)])
}

fn size(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| one(Tensor::scalar(args.tensor(0)?.len() as i64))))
}

fn infer_size(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let fact = Fact::tensor(crate::tensor::DType::I64, []);
    Ok(vec![match cx.shape(0).map(|s| quotient(s, &[])) {
        None | Some(Dim::Unknown) => fact,
        Some(n) => fact.with_dims(vec![n]),
    }])
}

/// The shape that a Reshape's target means.
fn resolve(from: &[usize], target: &[i64], allow_zero: bool) -> Result<Shape, OpError> {
    let mut out = Shape::default();
    let mut free = None;
    for (i, &d) in target.iter().enumerate() {
        match d {
            0 if !allow_zero => match from.get(i) {
                Some(&n) => out.push(n),
                None => invalid!("shape {target:?} keeps dim {i}, but the input has rank {}", from.len()),
            },
            -1 if free.is_none() => {
                free = Some(i);
                out.push(1);
            }
            -1 => invalid!("shape {target:?} has more than one -1"),
            d if d < 0 => invalid!("shape {target:?} has a negative dim: expected 0 or more"),
            d => out.push(d as usize),
        }
    }
    let (len, rest) = (checked_len(from).unwrap_or(0), checked_len(&out));
    match (free, rest) {
        (Some(i), Some(rest)) if rest > 0 && len % rest == 0 => out[i] = len / rest,
        (None, Some(rest)) if rest == len => {}
        _ => invalid!("cannot reshape {} to {target:?}", Shape::from(from)),
    }
    Ok(out)
}

fn reshape(cx: &OpCtx) -> Result<Kernel, OpError> {
    let allow_zero = cx.attrs.int_or("allowzero", 0)? != 0;
    let fixed = cx.attrs.ints("shape")?.map(<[i64]>::to_vec);
    Ok(Box::new(move |mut args: Args| {
        let target = match (&fixed, args.opt_ints(1)?) {
            (_, Some(input)) => input,
            (Some(fixed), None) => fixed.clone(),
            (None, None) => invalid!("input 1 is missing: expected a value, found none"),
        };
        let data = args.take(0)?;
        let shape = resolve(data.shape(), &target, allow_zero)?;
        one(data.reshape(shape)?)
    }))
}

/// The elements that a reshape passes on, where the result is still a scalar or vector.
fn pass_elements(cx: &InferCtx, fact: Fact) -> Fact {
    let short = fact.ty.as_ref().and_then(|t| t.shape()).is_some_and(|s| s.len() < 2);
    match (short, cx.dims(0)) {
        (true, Some(dims)) => fact.with_dims(dims),
        _ => fact,
    }
}

fn infer_reshape(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let allow_zero = cx.op.attrs.int_or("allowzero", 0)? != 0;
    let from = cx.shape(0);
    let exact = if cx.has(1) { cx.ints(1) } else { cx.op.attrs.ints("shape")?.map(<[i64]>::to_vec) };
    let target: Option<Vec<Dim>> = match exact {
        Some(t) => {
            let known: Option<Vec<usize>> = from.and_then(|f| f.iter().map(Dim::known).collect());
            if let Some(known) = known {
                let dims = resolve(&known, &t, allow_zero)?.iter().map(|&d| Dim::Known(d)).collect();
                return Ok(vec![pass_elements(cx, Fact::partial(cx.dtype(0), Some(dims)))]);
            }
            if t.iter().any(|&d| d < -1) || t.iter().filter(|&&d| d == -1).count() > 1 {
                invalid!("shape {t:?} has a negative dim: expected 0 or more");
            }
            Some(t.into_iter().map(|d| usize::try_from(d).map_or(Dim::Unknown, Dim::Known)).collect())
        }
        None => cx.dims(1).or_else(|| cx.vector_len(1).map(unknown_dims)),
    };
    let Some(mut dims) = target else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    if !allow_zero {
        for (i, d) in dims.iter_mut().enumerate().filter(|(_, d)| **d == Dim::Known(0)) {
            *d = from.and_then(|f| f.get(i).cloned()).unwrap_or(Dim::Unknown);
        }
    }
    if let (Some(from), 1) = (from, dims.iter().filter(|d| **d == Dim::Unknown).count()) {
        let at = dims.iter().position(|d| *d == Dim::Unknown).unwrap_or(0);
        let rest: Vec<Dim> = dims.iter().filter(|d| **d != Dim::Unknown).cloned().collect();
        dims[at] = quotient(from, &rest);
    }
    Ok(vec![pass_elements(cx, Fact::partial(cx.dtype(0), Some(dims)))])
}

/// Where Flatten cuts: `axis` in `-rank..=rank`.
fn flatten_axis(at: i64, rank: usize) -> Result<usize, OpError> {
    if at == rank as i64 { Ok(rank) } else { axis(at, rank) }
}

fn flatten(cx: &OpCtx) -> Result<Kernel, OpError> {
    let at = cx.attrs.int_or("axis", 1)?;
    Ok(Box::new(move |mut args: Args| {
        let data = args.take(0)?;
        let at = flatten_axis(at, data.rank())?;
        let (Some(a), Some(b)) = (checked_len(&data.shape()[..at]), checked_len(&data.shape()[at..])) else {
            invalid!("the dims of {} do not fit", data.shape())
        };
        one(data.reshape([a, b])?)
    }))
}

fn infer_flatten(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dims = match cx.shape(0) {
        Some(s) => {
            let at = flatten_axis(cx.op.attrs.int_or("axis", 1)?, s.len())?;
            vec![quotient(&s[..at], &[]), quotient(&s[at..], &[])]
        }
        None => unknown_dims(2),
    };
    Ok(vec![Fact::partial(cx.dtype(0), Some(dims))])
}

/// Axes from the attribute or, where given, from input 1.
fn given_axes(fixed: Option<&[i64]>, args: &Args) -> Result<Option<Vec<i64>>, OpError> {
    Ok(args.opt_ints(1)?.or_else(|| fixed.map(<[i64]>::to_vec)))
}

fn squeeze(cx: &OpCtx) -> Result<Kernel, OpError> {
    let fixed = cx.attrs.ints("axes")?.map(<[i64]>::to_vec);
    Ok(Box::new(move |mut args: Args| {
        let list = given_axes(fixed.as_deref(), &args)?;
        let data = args.take(0)?;
        let mut shape = data.shape().clone();
        match list {
            Some(list) => {
                for a in axes(&list, data.rank())?.into_iter().rev() {
                    let n = shape.remove(a);
                    if n != 1 {
                        invalid!("axis {a} of {} is {n}, only 1 can be squeezed", data.shape());
                    }
                }
            }
            None => shape = shape.iter().copied().filter(|&d| d != 1).collect(),
        }
        one(data.reshape(shape)?)
    }))
}

fn infer_squeeze(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let given = cx.has(1) || cx.op.attrs.get("axes").is_some();
    let list = if cx.has(1) { cx.known(1) } else { cx.op.attrs.ints("axes")?.map(<[i64]>::to_vec) };
    let dims = match (cx.shape(0), list) {
        (Some(s), Some(list)) => {
            let mut out = s.to_vec();
            for a in axes(&list, s.len())?.into_iter().rev() {
                if let Dim::Known(n) = out.remove(a)
                    && n != 1
                {
                    invalid!("axis {a} is {n}, only 1 can be squeezed");
                }
            }
            Some(out)
        }
        (Some(s), None) if given => cx.vector_len(1).and_then(|n| s.len().checked_sub(n)).map(unknown_dims),
        // A symbol may stand for 1 as well.
        (Some(s), None) if s.iter().all(|d| d.known().is_some()) => Some(s.iter().filter(|d| **d != Dim::Known(1)).cloned().collect()),
        _ => None,
    };
    Ok(vec![pass_elements(cx, Fact::partial(cx.dtype(0), dims))])
}

fn unsqueeze(cx: &OpCtx) -> Result<Kernel, OpError> {
    let fixed = cx.attrs.ints("axes")?.map(<[i64]>::to_vec);
    Ok(Box::new(move |mut args: Args| {
        let Some(list) = given_axes(fixed.as_deref(), &args)? else { invalid!("input 1 is missing: expected a value, found none") };
        let data = args.take(0)?;
        let mut shape = data.shape().clone();
        for a in axes(&list, data.rank() + list.len())? {
            shape.insert(a, 1);
        }
        one(data.reshape(shape)?)
    }))
}

fn infer_unsqueeze(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let list = if cx.has(1) { cx.known(1) } else { cx.op.attrs.ints("axes")?.map(<[i64]>::to_vec) };
    let dims = match (cx.shape(0), list) {
        (Some(s), Some(list)) => {
            let mut out = s.to_vec();
            for a in axes(&list, s.len() + list.len())? {
                out.insert(a, Dim::Known(1));
            }
            Some(out)
        }
        (Some(s), None) => cx.vector_len(1).map(|n| unknown_dims(s.len() + n)),
        _ => None,
    };
    Ok(vec![pass_elements(cx, Fact::partial(cx.dtype(0), dims))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;

    fn ints(v: &[i64]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    fn reshaped(from: &[usize], target: &[i64], allow_zero: i64) -> Result<Vec<i64>, OpError> {
        let t = Tensor::full(from, 0f32).unwrap();
        Ok(run("Reshape", 14, Attrs::new().with("allowzero", allow_zero), &[t, ints(target)])?.shape().to_i64s())
    }

    #[test]
    fn reshape_infers_and_keeps_dims() {
        assert_eq!(reshaped(&[2, 3, 4], &[0, -1], 0).unwrap(), [2, 12]);
        assert_eq!(reshaped(&[0, 3], &[3, 0], 1).unwrap(), [3, 0]);
        assert!(reshaped(&[2, 3], &[-1, -1], 0).is_err());
        assert!(reshaped(&[2, 3], &[4, -1], 0).is_err());
        assert!(reshaped(&[2, 3], &[i64::MIN, 3], 0).is_err());
        assert!(reshaped(&[2, 3], &[1 << 62, 1 << 62], 0).is_err());
    }

    #[test]
    fn shape_takes_a_part_of_the_dims() {
        let t = Tensor::full([2, 3, 4], 0u8).unwrap();
        let part = |s: i64, e: i64| run("Shape", 15, Attrs::new().with("start", s).with("end", e), std::slice::from_ref(&t)).unwrap();
        assert_eq!(part(-2, 3), ints(&[3, 4]));
        assert_eq!(part(2, 1), ints(&[]));
        assert_eq!(part(i64::MIN, i64::MAX), ints(&[2, 3, 4]));
    }

    #[test]
    fn axes_come_from_the_attribute_or_the_input() {
        let t = Tensor::full([1, 3, 1], 0f32).unwrap();
        let by_attr = run("Squeeze", 11, Attrs::new().with("axes", vec![-1]), std::slice::from_ref(&t)).unwrap();
        assert_eq!(by_attr.shape().to_i64s(), [1, 3]);
        let by_input = run("Unsqueeze", 13, Attrs::new(), &[t.clone(), ints(&[4, 0])]).unwrap();
        assert_eq!(by_input.shape().to_i64s(), [1, 1, 3, 1, 1]);
        assert!(run("Squeeze", 13, Attrs::new(), &[t, ints(&[1])]).is_err());
    }

    #[test]
    fn symbols_cancel_in_a_reshape() {
        let n = Dim::Symbol("n".into());
        assert_eq!(quotient(&[n.clone(), Dim::Known(3), Dim::Known(4)], &[Dim::Known(12)]), n);
        assert_eq!(quotient(&[n.clone(), Dim::Known(12)], &[n.clone(), Dim::Known(4)]), Dim::Known(3));
        assert_eq!(quotient(&[n], &[Dim::Symbol("m".into())]), Dim::Unknown);
    }
}
