//! Samples of several requests one behind the other, and apart again.

use crate::data::rows;
use crate::dispatch;
use crate::tensor::{Element, Tensor, Value};
use std::ops::Range;

/// Inputs, or outputs, by name.
pub(super) type Named = Vec<(String, Value)>;

/// How many samples there are: the first dim, if all have the same.
pub(super) fn samples(values: &Named) -> Option<usize> {
    let mut firsts = values.iter().map(|(_, v)| v.as_tensor()?.shape().first().copied());
    let first = firsts.next()??;
    firsts.all(|n| n == Some(first)).then_some(first)
}

/// Whether the samples of two requests can stand one behind the other.
pub(super) fn alike(a: &Named, b: &Named) -> bool {
    a.len() == b.len()
        && a.iter().all(|(name, v)| {
            let other = b.iter().find(|(n, _)| n == name).and_then(|(_, w)| w.as_tensor());
            v.as_tensor().zip(other).is_some_and(|(v, w)| v.dtype() == w.dtype() && v.shape().get(1..) == w.shape().get(1..))
        })
}

/// The samples of all, in order. All are [`alike`].
pub(super) fn join(all: &[&Named]) -> Result<Named, String> {
    let Some(first) = all.first() else { return Ok(Vec::new()) };
    let one = |(name, value): &(String, Value)| {
        let parts: Option<Vec<&Tensor>> =
            all.iter().map(|named| named.iter().find(|(n, _)| n == name).and_then(|(_, v)| v.as_tensor())).collect();
        let (parts, dtype) = parts.zip(value.as_tensor().map(Tensor::dtype)).ok_or("an input is missing")?;
        Ok((name.clone(), dispatch!(dtype, T => join_as::<T>(&parts))?.into()))
    };
    first.iter().map(one).collect()
}

fn join_as<T: Element>(parts: &[&Tensor]) -> Result<Tensor, String> {
    let fault = |e: crate::tensor::TensorError| e.to_string();
    let mut shape = parts[0].shape().clone();
    shape[0] = parts.iter().map(|p| p.shape()[0]).sum();
    let mut data = Vec::<T>::with_capacity(parts.iter().map(|p| p.len()).sum());
    for part in parts {
        data.extend_from_slice(&part.to_slice::<T>().map_err(fault)?);
    }
    Tensor::new(shape, data).map_err(fault)
}

/// Some of the samples.
pub(super) fn part(all: &Named, range: Range<usize>) -> Option<Named> {
    all.iter().map(|(name, v)| Some((name.clone(), rows(v.as_tensor()?, range.clone()).ok()?.into()))).collect()
}

/// Whether outputs differ by no more than rounding does: floats by a thousandth of the largest (halves by a hundredth), all
/// else not at all.
pub(super) fn near(a: &Named, b: &Named) -> bool {
    let one = |a: &Tensor, b: &Tensor| {
        if a.dtype() != b.dtype() || a.shape() != b.shape() || !a.dtype().is_float() {
            return a == b;
        }
        let (Ok(a32), Ok(b32)) = (a.to_f32s(), b.to_f32s()) else { return a == b };
        let largest = a32.iter().filter(|x| x.is_finite()).fold(0f32, |m, x| m.max(x.abs()));
        let tolerance = largest * if a.dtype().bits() > 16 { 1e-3 } else { 1e-2 };
        a32.iter().zip(&b32).all(|(x, y)| x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= tolerance)
    };
    a.len() == b.len() && a.iter().zip(b).all(|((_, a), (_, b))| a.as_tensor().zip(b.as_tensor()).is_some_and(|(a, b)| one(a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(shape: &[usize], data: Vec<i64>) -> Named {
        vec![("x".into(), Tensor::new(shape, data).unwrap().into())]
    }

    #[test]
    fn samples_are_joined_and_taken_apart() {
        let (a, b) = (named(&[1, 2], vec![1, 2]), named(&[2, 2], vec![3, 4, 5, 6]));
        assert!(alike(&a, &b) && !alike(&a, &named(&[1, 3], vec![1, 2, 3])));
        let both = join(&[&a, &b]).unwrap();
        assert_eq!(both, named(&[3, 2], vec![1, 2, 3, 4, 5, 6]));
        assert_eq!((samples(&a), samples(&both)), (Some(1), Some(3)));
        assert_eq!((part(&both, 0..1), part(&both, 1..3)), (Some(a), Some(b)));
        assert_eq!(part(&both, 2..4), None);
        assert_eq!(samples(&vec![("s".into(), Tensor::scalar(1f32).into())]), None);
    }

    #[test]
    fn strings_are_joined_too() {
        let text = |t: &[&str]| -> Named { vec![("x".into(), Tensor::vector(t.iter().map(ToString::to_string).collect()).into())] };
        assert_eq!(join(&[&text(&["a"]), &text(&["b", ""])]).unwrap(), text(&["a", "b", ""]));
    }

    #[test]
    fn near_is_rounding_and_nothing_else() {
        let floats = |x: Vec<f32>| -> Named { vec![("y".into(), Tensor::vector(x).into())] };
        assert!(near(&floats(vec![1.0, f32::NAN]), &floats(vec![1.0001, f32::NAN])));
        assert!(!near(&floats(vec![1.0]), &floats(vec![1.01])) && !near(&floats(vec![1.0]), &floats(vec![1.0, 1.0])));
        assert!(!near(&named(&[1], vec![1]), &named(&[1], vec![2])));
    }
}
