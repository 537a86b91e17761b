//! Unique: equal elements or slices found by sorting.

use super::infer::{quotient, unknown_dims};
use super::movement::{Take, moved};
use super::select::total;
use super::util::{axis, product};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs};
use crate::ir::Dim;
use crate::tensor::{Complex32, Complex64, DType, Element, Shape, Tensor, Value, cast, fits_memory};
use crate::{dispatch_number, invalid};
use std::cmp::Ordering;

pub(super) const OPS: &[OpDef] =
    &[OpDef::new("Unique", &[11, 28]).outputs(1, 4).attrs(&["axis", "sorted"]).kernel(unique).infer(infer_unique)];

/// Positions along an axis, gathered by equal slices; groups in the order of their slices, positions ascending in each.
struct Groups(Vec<Vec<usize>>);

/// Groups the `n` positions of an axis, whose slices have `inner` elements at each outer position.
fn group<T: Element>(t: &Tensor, n: usize, inner: usize, cmp: impl Fn(&T, &T) -> Ordering) -> Result<Groups, OpError> {
    let x = t.to_slice::<T>()?;
    let outer = if x.is_empty() { 0 } else { x.len() / (n * inner) };
    let order = |a: &usize, b: &usize| {
        for o in 0..outer {
            let slice = |j: usize| &x[(o * n + j) * inner..][..inner];
            for (p, q) in slice(*a).iter().zip(slice(*b)) {
                match cmp(p, q) {
                    Ordering::Equal => {}
                    other => return other,
                }
            }
        }
        Ordering::Equal
    };
    let mut sorted: Vec<usize> = (0..n).collect();
    sorted.sort_by(order);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for j in sorted {
        match groups.last_mut() {
            Some(g) if order(&g[0], &j) == Ordering::Equal => g.push(j),
            _ => groups.push(vec![j]),
        }
    }
    Ok(Groups(groups))
}

fn groups(t: &Tensor, n: usize, inner: usize) -> Result<Groups, OpError> {
    let complex = |a: (f64, f64), b: (f64, f64)| total(&a.0, &b.0).then(total(&a.1, &b.1));
    match t.dtype() {
        DType::String => group::<String>(t, n, inner, String::cmp),
        DType::Bool => group::<bool>(t, n, inner, bool::cmp),
        DType::C64 => group::<Complex32>(t, n, inner, |a, b| complex((a.re.into(), a.im.into()), (b.re.into(), b.im.into()))),
        DType::C128 => group::<Complex64>(t, n, inner, |a, b| complex((a.re, a.im), (b.re, b.im))),
        d => {
            // Small dtypes are compared by their values.
            let wide = if d.bits() > 8 || matches!(d, DType::U8 | DType::I8) { t.clone() } else { cast(t, DType::F32)? };
            dispatch_number!(wide.dtype(), T => group::<T>(&wide, n, inner, total), other => invalid!("input 0 must be numbers or strings, found {other}"))
        }
    }
}

fn unique(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (at, sorted) = (cx.attrs.int("axis")?, cx.attrs.int_or("sorted", 1)? != 0);
    let outputs = cx.outputs.len();
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let (at, mut shape) = match at {
            Some(at) => (axis(at, data.rank())?, data.shape().clone()),
            None => (0, Shape::from([data.len()])),
        };
        let (n, inner) = (shape[at], product(&shape[at + 1..]));
        if !fits_memory(n.saturating_mul(size_of::<Vec<usize>>())) {
            invalid!("a dim of {n} does not fit memory");
        }
        let Groups(mut groups) = groups(data, n, inner)?;
        if !sorted {
            groups.sort_by_key(|g| g[0]);
        }
        let first: Vec<usize> = groups.iter().map(|g| g[0]).collect();
        shape[at] = first.len();
        let mut inverse = vec![0i64; n];
        for (i, g) in groups.iter().enumerate() {
            g.iter().for_each(|&j| inverse[j] = i as i64);
        }
        let y = moved(&Take { block: inner, dim: n, ids: &first }, &[data], shape)?;
        let mut out = Outputs::from_iter([Value::Tensor(y)]);
        out.push(Tensor::vector(first.iter().map(|&j| j as i64).collect()).into());
        out.push(Tensor::vector(inverse).into());
        out.push(Tensor::vector(groups.iter().map(|g| g.len() as i64).collect()).into());
        out.truncate(outputs);
        Ok(out)
    }))
}

fn infer_unique(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dims = match (cx.op.attrs.int("axis")?, cx.shape(0)) {
        (None, _) => Some(unknown_dims(1)),
        (Some(at), Some(s)) => {
            let mut dims = s.to_vec();
            dims[axis(at, s.len())?] = Dim::Unknown;
            Some(dims)
        }
        _ => None,
    };
    let mut out = vec![Fact::partial(cx.dtype(0), dims)];
    out.resize(cx.op.outputs.len().max(1), Fact::tensor(DType::I64, [Dim::Unknown]));
    // Each position along the axis has its place in the output.
    if let (Some(inverse), Some(shape)) = (out.get_mut(2), cx.shape(0)) {
        let positions = match cx.op.attrs.int("axis")? {
            Some(at) => shape[axis(at, shape.len())?].clone(),
            None => quotient(shape, &[]),
        };
        *inverse = Fact::tensor(DType::I64, [positions]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run_values;

    fn all(attrs: Attrs, x: Tensor) -> Vec<Tensor> {
        run_values("Unique", 11, attrs, vec![Some(x.into())], 4).unwrap().into_iter().map(|v| v.into_tensor().unwrap()).collect()
    }

    fn ints(v: &[i64]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    #[test]
    fn elements_come_sorted_or_as_they_first_occur() {
        let x = ints(&[2, 1, 1, 3, 4, 3]);
        let sorted = all(Attrs::new(), x.clone());
        assert_eq!(sorted, [ints(&[1, 2, 3, 4]), ints(&[1, 0, 3, 4]), ints(&[1, 0, 0, 2, 3, 2]), ints(&[2, 1, 2, 1])]);
        let first = all(Attrs::new().with("sorted", 0), x);
        assert_eq!(first, [ints(&[2, 1, 3, 4]), ints(&[0, 1, 3, 4]), ints(&[0, 1, 1, 2, 3, 2]), ints(&[1, 2, 2, 1])]);
    }

    #[test]
    fn slices_along_an_axis_are_compared_whole() {
        let x = Tensor::new([1, 4, 2], vec![1.0f32, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0]).unwrap();
        let out = all(Attrs::new().with("axis", 1), x);
        assert_eq!(out[0], Tensor::new([1, 3, 2], vec![0.0f32, 1.0, 1.0, 1.0, 2.0, 1.0]).unwrap());
        assert_eq!(out[2], ints(&[1, 0, 2, 0]));
    }

    #[test]
    fn texts_and_not_a_numbers_have_an_order() {
        let texts = Tensor::vector(["b", "a", "b"].map(str::to_owned).to_vec());
        assert_eq!(all(Attrs::new(), texts)[3], ints(&[1, 2]));
        assert_eq!(all(Attrs::new(), Tensor::vector(vec![f32::NAN, 1.0, f32::NAN]))[1], ints(&[1, 0]));
    }
}
