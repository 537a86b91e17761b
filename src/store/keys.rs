//! Ids of both widths, and finding them: the rows of keys in a sorted list, many at a time, and which piece holds a row.

use crate::tensor::prefetch;

/// Searches that run side by side, so that their cache misses overlap.
const LANES: usize = 32;
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

/// Keys of a range of a [`Directory`], on average.
const IN_RANGE: usize = 16;
/// Lists up to this stay in the nearest cache and need no directory.
const SHORT: usize = 1024;

/// Where the keys of each range of high bits begin, in a list of keys that ascend: a key is found with two reads of far
/// memory where keys are spread evenly, as hashes are, and with one for each halving where all are in one range. It takes at
/// most half a byte a key.
#[derive(Debug)]
pub(super) struct Directory {
    least: u64,
    shift: u32,
    starts: Vec<u32>,
}

impl Directory {
    /// The directory of `keys` (ascending); `None` where it is of no use.
    pub(super) fn of(keys: &[u64]) -> Option<Self> {
        let (&least, &greatest) = keys.first().zip(keys.last())?;
        let count = u32::try_from(keys.len()).ok().filter(|n| *n as usize > SHORT)?;
        let bits = (keys.len() / IN_RANGE).ilog2() + 1;
        let span = greatest.saturating_sub(least);
        let shift = (64 - span.leading_zeros()).saturating_sub(bits);
        let ranges = (span >> shift) as usize + 1;
        let mut starts = Vec::with_capacity(ranges + 1);
        for (i, &key) in (0..count).zip(keys) {
            // Keys that do not ascend are not found, and no fault otherwise.
            let range = (key.saturating_sub(least) >> shift) as usize;
            while starts.len() <= range.min(ranges - 1) {
                starts.push(i);
            }
        }
        starts.push(count);
        Some(Self { least, shift, starts })
    }

    /// The places of the keys among which `key` is.
    fn range(&self, key: u64) -> std::ops::Range<usize> {
        let range = key.checked_sub(self.least).map_or(usize::MAX, |d| usize::try_from(d >> self.shift).unwrap_or(usize::MAX));
        match (self.starts.get(range), self.starts.get(range.wrapping_add(1))) {
            (Some(&from), Some(&to)) => from as usize..to as usize,
            _ => 0..0,
        }
    }

    /// As [`find`], in the list that this is the directory of.
    pub(super) fn find(&self, keys: &[u64], wanted: &[u64], found: &mut Vec<u64>) {
        let Some(end) = keys.len().checked_sub(1) else { return find(keys, wanted, found) };
        found.reserve(wanted.len());
        for block in wanted.chunks(LANES) {
            let (mut base, mut len, mut longest) = ([0; LANES], [0; LANES], 0);
            for ((b, l), &w) in base.iter_mut().zip(&mut len).zip(block) {
                let range = self.range(w);
                (*b, *l) = (range.start.min(end), range.len());
                longest = longest.max(*l);
                prefetch(&keys[range]);
            }
            while longest > 1 {
                for ((b, l), &w) in base.iter_mut().zip(&mut len).zip(block) {
                    let half = *l / 2;
                    *b += usize::from(keys[(*b + half.saturating_sub(1)).min(end)] < w) * half;
                    *l -= half;
                }
                longest -= longest / 2;
            }
            found.extend(base.iter().zip(block).map(|(&b, &w)| if keys[b.min(end)] == w { b as u64 } else { ABSENT }));
        }
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
    fn a_directory_finds_what_a_search_finds() {
        let spread = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let lists: [fn(u64) -> u64; 4] =
            [|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15), |i| i * 3, |i| i + (1 << 40), |i| if i == 0 { 0 } else { u64::MAX - i }];
        for list in lists {
            for n in [SHORT as u64 + 1, 5000, 100_000] {
                let mut keys: Vec<u64> = (0..n).map(list).collect();
                keys.sort_unstable();
                let directory = Directory::of(&keys).expect("a directory");
                assert!(directory.starts.len() * 4 <= keys.len() / 2 + 64, "{} of {n}", directory.starts.len());
                let wanted: Vec<u64> = keys.iter().step_by(3).copied().chain((0..1000).map(spread)).chain([0, 1, u64::MAX]).collect();
                let (mut found, mut want) = (Vec::new(), Vec::new());
                directory.find(&keys, &wanted, &mut found);
                find(&keys, &wanted, &mut want);
                assert_eq!(found, want, "{n} keys");
            }
        }
        assert!(Directory::of(&[]).is_none() && Directory::of(&[7; 10]).is_none());
        // Files may be wrong; nothing is out of bounds then.
        let mut keys: Vec<u64> = (0..5000).map(spread).collect();
        (0..2).for_each(|_| {
            Directory::of(&keys).into_iter().for_each(|d| d.find(&keys, &[0, 1, 77, u64::MAX], &mut Vec::new()));
            keys.reverse();
        });
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
