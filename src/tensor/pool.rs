//! Pooling of rows by bag: the one loop that workers and pservers run, so that where rows are pooled changes no bit.

use super::{Element, Float, Number};

/// How the rows of a bag are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PoolMode {
    Sum,
    Mean,
    Max,
}

/// Bags of rows. The rows are numbered from 0 on in the order in which they are pooled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bags<'a> {
    pub(crate) mode: PoolMode,
    /// The first row of each bag, then the end of the last: ascending.
    pub(crate) bounds: &'a [usize],
    /// A factor for each row, as bytes of the rows' element type.
    pub(crate) weights: Option<&'a [u8]>,
}

impl Bags<'_> {
    /// Number of bags.
    pub(crate) fn count(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }
}

/// Where pooled rows go: from byte `offset` of each `stride` bytes on, `width` bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns {
    pub(crate) stride: usize,
    pub(crate) offset: usize,
    pub(crate) width: usize,
}

/// Pools the rows of `T` that `row` gives as bytes, in their order: an element of a bag is its first row's, to which those of the
/// next rows are added, or the greatest of them, each after its factor, in [`Float::Wide`]. A mean is divided by the number of rows;
/// a bag without rows is zeros. `widen` makes elements of the bytes, in its buffer or in their place: [`widened`] where they are elements
/// of `T`.
///
/// # Errors
/// The first row that is not there or has another width.
pub(crate) fn pool<'a, T: Float>(
    bags: &Bags,
    out: &mut [u8],
    at: Columns,
    mut row: impl FnMut(usize) -> Option<&'a [u8]>,
    mut widen: impl for<'b> FnMut(&'b [u8], &'b mut Vec<T::Wide>) -> Option<&'b [T::Wide]>,
) -> Result<(), usize> {
    let size = size_of::<T>();
    let weights = bags.weights.map(|w| T::vec_from_bytes(w).unwrap_or_default());
    let weight = |i: usize| weights.as_ref().map(|w| w.get(i).copied().unwrap_or(T::ONE).widen());
    let mut total = vec![T::Wide::ZERO; at.width / size];
    let mut wide = Vec::new();
    let places = out.chunks_mut(at.stride.max(1));
    for (bag, place) in bags.bounds.windows(2).zip(places) {
        let (from, to) = (bag[0], bag[1]);
        for i in from..to {
            let bytes = row(i).ok_or(i)?;
            let elements = widen(bytes, &mut wide).filter(|e| e.len() == total.len()).ok_or(i)?;
            take(&mut total, elements, (i == from, bags.mode == PoolMode::Max, weight(i)));
        }
        let place = place.get_mut(at.offset..at.offset + at.width).ok_or(from)?;
        let n = T::Wide::from_f64(to.saturating_sub(from).max(1) as f64);
        for (to_bytes, &x) in place.chunks_exact_mut(size).zip(&total) {
            let x = match (from < to, bags.mode) {
                (false, _) => T::Wide::ZERO,
                (true, PoolMode::Mean) => x / n,
                (true, _) => x,
            };
            to_bytes.copy_from_slice(T::as_bytes(&[T::narrow(x)]).unwrap_or_default());
        }
    }
    Ok(())
}

/// Takes a row into the total of its bag.
#[inline(always)]
fn take<W: Float>(total: &mut [W], row: &[W], (first, max, weight): (bool, bool, Option<W>)) {
    let both = total.iter_mut().zip(row);
    match (first, max, weight) {
        (true, _, None) => both.for_each(|(t, &x)| *t = x),
        (true, _, Some(w)) => both.for_each(|(t, &x)| *t = x.mul(w)),
        (false, false, None) => both.for_each(|(t, &x)| *t = t.add(x)),
        (false, false, Some(w)) => both.for_each(|(t, &x)| *t = t.add(x.mul(w))),
        (false, true, None) => both.for_each(|(t, &x)| *t = t.greater_of(x)),
        (false, true, Some(w)) => both.for_each(|(t, &x)| *t = t.greater_of(x.mul(w))),
    }
}

/// Elements of `T` in their wide type; copied only where they are not so already, or not aligned.
#[inline(always)]
pub(crate) fn widened<'a, T: Float>(bytes: &'a [u8], out: &'a mut Vec<T::Wide>) -> Option<&'a [T::Wide]> {
    if T::DTYPE == <T::Wide as Element>::DTYPE {
        if let Some(elements) = T::Wide::slice_from_bytes(bytes) {
            return Some(elements);
        }
        *out = T::Wide::vec_from_bytes(bytes)?;
        return Some(out);
    }
    match T::slice_from_bytes(bytes) {
        Some(row) => T::widen_all(row, out),
        None => T::widen_all(&T::vec_from_bytes(bytes)?, out),
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::f16;

    /// Rows of two, pooled by `bounds`.
    fn pooled<T: Float>(mode: PoolMode, bounds: &[usize], rows: &[T], weights: Option<&[T]>) -> Vec<T> {
        let bags = Bags { mode, bounds, weights: weights.and_then(T::as_bytes) };
        let (size, bytes) = (size_of::<T>(), T::as_bytes(rows).expect("bytes"));
        let mut out = vec![7u8; bags.count() * 2 * size];
        let at = Columns { stride: 2 * size, offset: 0, width: 2 * size };
        pool::<T>(&bags, &mut out, at, |i| bytes.get(i * 2 * size..(i + 1) * 2 * size), widened::<T>).expect("rows");
        T::vec_from_bytes(&out).expect("elements")
    }

    #[test]
    fn bags_by_hand() {
        let rows = [1f32, -2.0, 3.0, -5.0, 8.0, -13.0];
        let bounds = [0, 2, 2, 3];
        assert_eq!(pooled(PoolMode::Sum, &bounds, &rows, None), [4.0, -7.0, 0.0, 0.0, 8.0, -13.0]);
        assert_eq!(pooled(PoolMode::Mean, &bounds, &rows, None), [2.0, -3.5, 0.0, 0.0, 8.0, -13.0]);
        assert_eq!(pooled(PoolMode::Max, &bounds, &rows, None), [3.0, -2.0, 0.0, 0.0, 8.0, -13.0]);
        let weights = Some(&[2f32, -1.0, 0.5][..]);
        assert_eq!(pooled(PoolMode::Sum, &bounds, &rows, weights), [-1.0, 1.0, 0.0, 0.0, 4.0, -6.5]);
        assert_eq!(pooled(PoolMode::Mean, &bounds, &rows, weights), [-0.5, 0.5, 0.0, 0.0, 4.0, -6.5]);
        assert_eq!(pooled(PoolMode::Max, &bounds, &rows, weights), [2.0, 5.0, 0.0, 0.0, 4.0, -6.5]);
        assert_eq!(pooled::<f32>(PoolMode::Max, &[0], &[], None), [0f32; 0]);
    }

    #[test]
    fn sums_are_made_in_order_in_the_wide_type_and_begin_with_the_first_row() {
        // 2^24 and twice one: one by one they are lost, together they are not.
        assert_eq!(pooled(PoolMode::Sum, &[0, 3], &[16_777_216f32, 1.0, 1.0, 1.0, 1.0, 16_777_216.0], None), [16_777_216.0, 16_777_218.0]);
        // In float16 alone, 2048 and one is 2048.
        let h = [2048.0, 0.0, 1.0, 0.0, 1.0, 0.0].map(f16::from_f32);
        assert_eq!(pooled(PoolMode::Sum, &[0, 3], &h, None)[0], f16::from_f32(2050.0));
        let zeros = pooled(PoolMode::Sum, &[0, 2], &[-0f64, -0.0, -0.0, 0.0], None);
        assert_eq!([zeros[0].is_sign_negative(), zeros[1].is_sign_negative()], [true, false]);
    }

    #[test]
    fn columns_go_to_their_place_and_a_missing_row_is_named() {
        let bags = Bags { mode: PoolMode::Sum, bounds: &[0, 1, 3], weights: None };
        let rows: Vec<[u8; 4]> = [1f32, 2.0, 3.0].iter().map(|x| x.to_le_bytes()).collect();
        let mut out = vec![0u8; 2 * 8];
        let at = Columns { stride: 8, offset: 4, width: 4 };
        pool::<f32>(&bags, &mut out, at, |i| rows.get(i).map(|r| &r[..]), widened::<f32>).expect("rows");
        assert_eq!(f32::vec_from_bytes(&out), Some(vec![0.0, 1.0, 0.0, 5.0]));
        assert_eq!(pool::<f32>(&bags, &mut out, at, |i| rows.get(i).filter(|_| i != 2).map(|r| &r[..]), widened::<f32>), Err(2));
        assert_eq!(pool::<f32>(&bags, &mut out, at, |_| Some(&[0; 8]), widened::<f32>), Err(0));
    }
}
