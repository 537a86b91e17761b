//! De-duplication of ids: whether it pays for a table, and the work itself.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// When ids are de-duplicated before they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dedup {
    /// Where it pays: measured at the first lookup of a table and again from time to time.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Lookups of a table from one measurement to the next.
const MEASURE_EVERY: u32 = 32;
/// Up to this many ids the fixed cost of a call decides, not the ids.
const FEW: usize = 64;
/// Ids that a measurement looks at, about.
const SAMPLE: usize = 1024;

/// What is known of one table.
#[derive(Debug, Default)]
pub(super) struct Habit {
    /// Lookups until the next measurement.
    left: AtomicU32,
    pays: AtomicBool,
}

impl Habit {
    /// Whether to de-duplicate these ids of a table with rows of `width` bytes.
    pub(super) fn wanted(&self, mode: Dedup, ids: &[u64], width: usize, seen: &mut Seen) -> bool {
        match mode {
            Dedup::Always => true,
            Dedup::Never => false,
            Dedup::Auto if ids.len() <= FEW => true,
            Dedup::Auto => {
                if self.left.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_err() {
                    self.left.store(MEASURE_EVERY - 1, Relaxed);
                    self.pays.store(pays(seen.repeated(ids), width), Relaxed);
                }
                self.pays.load(Relaxed)
            }
        }
    }
}

/// How many ids a lookup of these would send, about: all, or the distinct ones. Nothing but the ids decides.
pub(super) fn sent(mode: Dedup, ids: &[u64], width: usize, seen: &mut Seen) -> usize {
    if mode == Dedup::Never {
        return ids.len();
    }
    let repeated = seen.repeated(ids);
    match mode {
        Dedup::Auto if ids.len() > FEW && !pays(repeated, width) => ids.len(),
        _ => (ids.len() as f64 * (1.0 - repeated)).round() as usize,
    }
}

/// Whether it pays where this share of the ids is repeated. In nanoseconds an id: finding it takes 8.5, and putting its row
/// where it belongs what a copy takes; a row that is not sent saves the copy at the server and its way over loopback.
/// A slower network only makes a row dearer.
fn pays(repeated: f64, width: usize) -> bool {
    let width = width as f64;
    repeated * (10.0 + 0.5 * width) > 10.0 + 0.1 * width
}

#[derive(Clone, Copy, Default)]
struct Slot {
    id: u64,
    stamp: u32,
    at: u32,
}

/// A table of ids seen, used again from call to call: a slot counts only if it bears the stamp of this call.
#[derive(Default)]
pub(super) struct Seen {
    slots: Vec<Slot>,
    stamp: u32,
}

impl Seen {
    /// The distinct ids in the order of their first place, and for each id its position among them.
    pub(super) fn unique(&mut self, ids: &[u64]) -> (Vec<u64>, Vec<u32>) {
        let size = (ids.len() * 2).next_power_of_two().max(16);
        if self.slots.len() < size || self.stamp == u32::MAX {
            self.slots = vec![Slot::default(); size];
            self.stamp = 0;
        }
        self.stamp += 1;
        // Only as much of the table as this call needs, so that a small one stays in the nearest cache.
        let (stamp, mask, shift) = (self.stamp, size - 1, 64 - size.trailing_zeros());
        let slots = &mut self.slots[..size];
        let (mut unique, mut inverse) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
        for &id in ids {
            let mut i = (mix(id) >> shift) as usize;
            let at = loop {
                let slot = &mut slots[i & mask];
                if slot.stamp != stamp {
                    *slot = Slot { id, stamp, at: unique.len() as u32 };
                    unique.push(id);
                    break slot.at;
                }
                if slot.id == id {
                    break slot.at;
                }
                i += 1;
            };
            inverse.push(at);
        }
        (unique, inverse)
    }
}

impl Seen {
    /// The share of ids that stand before in the list, estimated from those whose hash falls in some part of its range: an id
    /// is in the sample with all its repetitions or not at all.
    fn repeated(&mut self, ids: &[u64]) -> f64 {
        let bits = (ids.len() / SAMPLE).checked_ilog2().unwrap_or(0);
        let sample: Vec<u64> = match bits {
            0 => ids.to_vec(),
            _ => ids.iter().copied().filter(|id| mix(*id) << 8 >> (64 - bits) == 0).collect(),
        };
        if sample.is_empty() && !ids.is_empty() {
            // So few are distinct that none of them is in the part.
            return 1.0;
        }
        let unique = self.unique(&sample).0.len();
        1.0 - unique.max(1) as f64 / sample.len().max(1) as f64
    }
}

/// Spreads ids over all 64 bits, the high ones best.
fn mix(id: u64) -> u64 {
    id.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} slots", self.slots.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_ids_expand_to_all_again() {
        let mut seen = Seen::default();
        for n in [0usize, 1, 4, 100, 5000, 37] {
            let ids: Vec<u64> = (0..n as u64).map(|i| (i * i) % 97 * (u64::MAX / 97)).collect();
            let (unique, inverse) = seen.unique(&ids);
            assert_eq!(inverse.iter().map(|&i| unique[i as usize]).collect::<Vec<_>>(), ids);
            let distinct: std::collections::HashSet<_> = ids.iter().collect();
            assert_eq!(unique.len(), distinct.len());
        }
        assert_eq!(seen.unique(&[3, 1, 3, 3]), (vec![3, 1], vec![0, 1, 0, 0]));
    }

    #[test]
    fn what_does_not_pay_is_left_until_the_next_measurement() {
        let (habit, mut seen) = (Habit::default(), Seen::default());
        let distinct: Vec<u64> = (0..1000).collect();
        let repeated: Vec<u64> = (0..1000).map(|i| i % 100).collect();
        assert!(!habit.wanted(Dedup::Auto, &distinct, 256, &mut seen));
        for _ in 1..MEASURE_EVERY {
            assert!(!habit.wanted(Dedup::Auto, &repeated, 256, &mut seen));
        }
        for ids in [&repeated; MEASURE_EVERY as usize].into_iter().chain([&repeated]) {
            assert!(habit.wanted(Dedup::Auto, ids, 256, &mut seen));
        }
        assert!(habit.wanted(Dedup::Auto, &[1, 2], 4, &mut seen));
        assert!(!habit.wanted(Dedup::Never, &repeated, 256, &mut seen));
        assert!(habit.wanted(Dedup::Always, &distinct, 256, &mut seen));
    }

    #[test]
    fn what_would_be_sent_is_told_from_the_ids() {
        let mut seen = Seen::default();
        let ids: Vec<u64> = (0..1000).map(|i| i % 10).collect();
        let few = &ids[..40];
        let all =
            [Dedup::Auto, Dedup::Always, Dedup::Never].map(|mode| (sent(mode, &ids, 256, &mut seen), sent(mode, few, 256, &mut seen)));
        assert_eq!(all, [(10, 10), (10, 10), (1000, 40)]);
        // One in a hundred is not worth the search.
        let ids: Vec<u64> = (0..1000).map(|i| i % 990).collect();
        assert_eq!([Dedup::Auto, Dedup::Always].map(|mode| sent(mode, &ids, 4, &mut seen)), [1000, 990]);
    }

    #[test]
    fn a_sample_tells_how_many_are_repeated() {
        let mut seen = Seen::default();
        for (n, each) in [(100_000u64, 1u64), (100_000, 4), (1_000_000, 2), (500, 5)] {
            let ids: Vec<u64> = (0..n).map(|i| i % (n / each)).collect();
            let (found, expected) = (seen.repeated(&ids), 1.0 - 1.0 / each as f64);
            assert!((found - expected).abs() < 0.02, "{n} ids, each {each} times: {found}");
        }
        assert_eq!(seen.repeated(&[]), 0.0);
        // A few ids again and again, whether any of them is in the sample or not.
        (0..50).for_each(|id| assert!(seen.repeated(&[id, id + 1].repeat(50_000)) > 0.99, "{id}"));
    }
}
