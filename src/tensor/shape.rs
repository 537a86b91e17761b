//! Dims, and the checked arithmetic on them that every reader of a foreign file needs.

use smallvec::SmallVec;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// The dims of a tensor, outermost first. Rank 0 is a scalar.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(SmallVec<[usize; 6]>);

impl Shape {
    /// The dims of `iter`.
    pub fn from_dims(iter: impl IntoIterator<Item = usize>) -> Self {
        Self(iter.into_iter().collect())
    }

    /// The dims as the `int64` that ONNX uses.
    pub fn to_i64s(&self) -> Vec<i64> {
        self.0.iter().map(|&d| d as i64).collect()
    }

    /// Adds a dim at the end.
    pub fn push(&mut self, dim: usize) {
        self.0.push(dim);
    }

    /// Puts a dim before position `at`.
    pub fn insert(&mut self, at: usize, dim: usize) {
        self.0.insert(at, dim);
    }

    /// Takes out the dim at position `at`.
    pub fn remove(&mut self, at: usize) -> usize {
        self.0.remove(at)
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl DerefMut for Shape {
    fn deref_mut(&mut self) -> &mut [usize] {
        &mut self.0
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Self(SmallVec::from_slice(dims))
    }
}

impl From<Vec<usize>> for Shape {
    fn from(dims: Vec<usize>) -> Self {
        Self(SmallVec::from_vec(dims))
    }
}

impl From<&Shape> for Shape {
    fn from(shape: &Shape) -> Self {
        shape.clone()
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self(SmallVec::from_slice(&dims))
    }
}

impl FromIterator<usize> for Shape {
    fn from_iter<I: IntoIterator<Item = usize>>(iter: I) -> Self {
        Self::from_dims(iter)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { "," } else { "" })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The product of the dims, or `None` where it does not fit. Beside a zero the others have to fit all the same, so that the
/// product of any of the dims of a tensor fits.
pub fn checked_len(dims: &[usize]) -> Option<usize> {
    let others = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1))).filter(|&n| n <= isize::MAX as usize)?;
    Some(if dims.contains(&0) { 0 } else { others })
}

/// The byte offset of row `row` in a table with rows of `row_bytes` bytes, in 64 bits.
pub fn checked_offset(row: u64, row_bytes: u64) -> Option<u64> {
    row.checked_mul(row_bytes)
}

/// Row-major strides, in elements. They may wrap where a dim is 0, for then there is no element to reach.
pub fn strides(dims: &[usize]) -> Vec<usize> {
    let mut out = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        out[i - 1] = usize::wrapping_mul(out[i], dims[i]);
    }
    out
}

/// The shape that numpy's rules broadcast `a` and `b` to; `None` if they do not fit.
pub fn broadcast_shapes(a: &[usize], b: &[usize]) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect::<Option<SmallVec<_>>>()
        .map(Shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_need_64_bits() {
        assert_eq!(checked_offset(239_674, 8960 * 4), Some(8_589_916_160));
        assert_eq!(checked_offset(u64::MAX, 2), None);
    }

    #[test]
    fn a_product_that_wraps_is_none() {
        assert_eq!(checked_len(&[1 << 32, 1 << 32]), None);
        assert_eq!(checked_len(&[1 << 62, 8, 0]), None);
        assert_eq!(checked_len(&[1 << 60, 0, 4]), Some(0));
        assert_eq!(checked_len(&[]), Some(1));
    }

    #[test]
    fn broadcast_follows_numpy() {
        assert_eq!(broadcast_shapes(&[3, 1], &[4]), Some(Shape::from([3, 4])));
        assert_eq!(broadcast_shapes(&[0], &[1]), Some(Shape::from([0])));
        assert_eq!(broadcast_shapes(&[2], &[3]), None);
    }
}
