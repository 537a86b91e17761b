//! Ids of both widths, and finding them: the rows of keys in a sorted list, many at a time, and which piece holds a row.

/// Searches that run side by side, so that their cache misses overlap.
const LANES: usize = 16;
/// What [`find`] writes for a key that is not there.
pub(super) const ABSENT: u64 = u64::MAX;

/// Appends to `found` the position of each wanted key in `keys` (ascending), or [`ABSENT`].
pub(super) fn find(keys: &[u64], wanted: &[u64], found: &mut Vec<u64>) {
    found.reserve(wanted.len());
    if keys.is_empty() {
        found.resize(found.len() + wanted.len(), ABSENT);
        return;
    }
    for block in wanted.chunks(LANES) {
        let mut base = [0usize; LANES];
        let mut len = keys.len();
        while len > 1 {
            let half = len / 2;
            for (b, &w) in base.iter_mut().zip(block) {
                *b += usize::from(keys[*b + half - 1] < w) * half;
            }
            len -= half;
        }
        found.extend(base.iter().zip(block).map(|(&b, &w)| if keys[b] == w { b as u64 } else { ABSENT }));
    }
}

/// Division by a number of pieces that is known early: a product instead of a quotient for ids of 32 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Divisor {
    n: u64,
    magic: u64,
}

impl Divisor {
    /// Division by `n`, at least 1 and below 2^32.
    pub(super) fn new(n: usize) -> Self {
        let n = n.max(1) as u64;
        Self { n, magic: (u64::MAX / n).wrapping_add(1) }
    }

    /// Quotient and remainder.
    #[inline(always)]
    pub(super) fn div_rem(self, x: u64) -> (u64, usize) {
        let q = if self.n == 1 {
            x
        } else if x >> 32 == 0 {
            ((u128::from(self.magic) * u128::from(x)) >> 64) as u64
        } else {
            x / self.n
        };
        (q, (x - q * self.n) as usize)
    }
}

/// The piece of row `id` where piece `p` starts at `starts[p]`.
#[inline(always)]
pub(super) fn range_of(starts: &[u64], id: u64) -> usize {
    starts.partition_point(|&s| s <= id).saturating_sub(1)
}

/// An id, as it is in a query or on the wire.
pub(super) trait Id: bytemuck::AnyBitPattern {
    fn wide(&self) -> u64;
}

impl Id for u32 {
    #[inline(always)]
    fn wide(&self) -> u64 {
        u64::from(*self)
    }
}

impl Id for u64 {
    #[inline(always)]
    fn wide(&self) -> u64 {
        *self
    }
}

/// The ids of a block; copied only if it is not aligned, which buffers from the pool always are.
pub(super) fn cast_ids<I: Id>(bytes: &[u8]) -> std::borrow::Cow<'_, [I]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(ids) => ids.into(),
        Err(_) => bytes.chunks_exact(size_of::<I>()).map(bytemuck::pod_read_unaligned).collect::<Vec<I>>().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_or_absent() {
        for n in 0..40u64 {
            let keys: Vec<u64> = (0..n).map(|i| i * 3 + 1).collect();
            let wanted: Vec<u64> = (0..130).chain([u64::MAX, 0]).collect();
            let mut found = Vec::new();
            find(&keys, &wanted, &mut found);
            let want: Vec<u64> = wanted.iter().map(|w| keys.binary_search(w).map_or(ABSENT, |i| i as u64)).collect();
            assert_eq!(found, want, "{n} keys");
        }
    }

    #[test]
    fn division_is_exact() {
        let xs = [0, 1, 2, 6, 7, 41, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, u64::MAX - 1, u64::MAX];
        for n in (1..70).chain([255, 256, 1000, 65_535, 4_000_000_000]) {
            for x in xs.into_iter().chain((0..1000).map(|i| i * 4_294_967)) {
                assert_eq!(Divisor::new(n).div_rem(x), (x / n as u64, (x % n as u64) as usize), "{x} / {n}");
            }
        }
    }

    #[test]
    fn a_row_belongs_to_the_last_range_that_starts_before_it() {
        // The second of the pieces is empty.
        let starts = [0, 4, 4, 9];
        assert_eq!([0, 3, 4, 8, 9].map(|id| range_of(&starts, id)), [0, 0, 2, 2, 3]);
    }
}
