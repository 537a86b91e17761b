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
/// Up to this many ids nothing is measured: the fixed cost of a call decides, not the ids.
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
    /// Whether to de-duplicate these ids of a table.
    pub(super) fn wanted(&self, mode: Dedup, ids: &[u64], way: Way, seen: &mut Seen) -> bool {
        match mode {
            Dedup::Always => true,
            Dedup::Never => false,
            Dedup::Auto if ids.len() <= FEW => way.pays(1.0),
            Dedup::Auto => {
                if self.left.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_err() {
                    self.left.store(MEASURE_EVERY - 1, Relaxed);
                    self.pays.store(way.pays(seen.repeated(ids)), Relaxed);
                }
                self.pays.load(Relaxed)
            }
        }
    }
}

/// How many ids a lookup of these would send, about: all, or the distinct ones. Nothing but the ids and their way decides.
pub(super) fn sent(mode: Dedup, ids: &[u64], way: Way, seen: &mut Seen) -> usize {
    if mode == Dedup::Never {
        return ids.len();
    }
    let repeated = seen.repeated(ids);
    let pays = mode == Dedup::Always || way.pays(if ids.len() <= FEW { 1.0 } else { repeated });
    if pays { (ids.len() as f64 * (1.0 - repeated)).round() as usize } else { ids.len() }
}

/// How the rows of a table come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// Bytes of a row.
    pub(super) width: usize,
    /// Whether they come by memory that who asks has too.
    pub(super) near: bool,
    /// Whether each is searched for by its key.
    pub(super) keyed: bool,
}

impl Way {
    /// Whether de-duplication pays where this share of the ids is repeated. In nanoseconds an id: finding it takes 9 or so, and
    /// putting its row where it belongs what a copy takes; a row that is not sent saves its search, the copy at the server and its
    /// way over loopback, of which shared memory leaves nothing. A slower network only makes a row dearer.
    fn pays(self, repeated: f64) -> bool {
        let width = self.width as f64;
        let (saved, cost) = if self.near { (2.0 + 0.05 * width, 9.0 + 0.03 * width) } else { (10.0 + 0.5 * width, 10.0 + 0.1 * width) };
        repeated * (saved + if self.keyed { 50.0 } else { 0.0 }) > cost
    }
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
        let far = Way { width: 256, near: false, keyed: false };
        let distinct: Vec<u64> = (0..1000).collect();
        let repeated: Vec<u64> = (0..1000).map(|i| i % 100).collect();
        assert!(!habit.wanted(Dedup::Auto, &distinct, far, &mut seen));
        for _ in 1..MEASURE_EVERY {
            assert!(!habit.wanted(Dedup::Auto, &repeated, far, &mut seen));
        }
        for ids in [&repeated; MEASURE_EVERY as usize].into_iter().chain([&repeated]) {
            assert!(habit.wanted(Dedup::Auto, ids, far, &mut seen));
        }
        assert!(habit.wanted(Dedup::Auto, &[1, 2], Way { width: 4, ..far }, &mut seen));
        assert!(!habit.wanted(Dedup::Never, &repeated, far, &mut seen));
        assert!(habit.wanted(Dedup::Always, &distinct, far, &mut seen));
    }

    #[test]
    fn rows_in_shared_memory_cost_little_to_send_again() {
        let pays = |width, near, keyed| [0.4, 0.96].map(|repeated| Way { width, near, keyed }.pays(repeated));
        assert_eq!([64, 512].map(|width| pays(width, false, false)), [[true; 2]; 2]);
        assert_eq!([64, 512].map(|width| pays(width, true, false)), [[false; 2], [false, true]]);
        // The search for a key is dearer than that for an id among those of the call.
        assert_eq!(pays(64, true, true), [true; 2]);
        let (habit, mut seen) = (Habit::default(), Seen::default());
        let few = [5; 10];
        assert_eq!(
            [false, true].map(|near| habit.wanted(Dedup::Auto, &few, Way { width: 64, near, keyed: false }, &mut seen)),
            [true, false]
        );
    }

    #[test]
    fn what_would_be_sent_is_told_from_the_ids() {
        let mut seen = Seen::default();
        let ids: Vec<u64> = (0..1000).map(|i| i % 10).collect();
        let few = &ids[..40];
        let far = Way { width: 256, near: false, keyed: false };
        let all =
            [Dedup::Auto, Dedup::Always, Dedup::Never].map(|mode| (sent(mode, &ids, far, &mut seen), sent(mode, few, far, &mut seen)));
        assert_eq!(all, [(10, 10), (10, 10), (1000, 40)]);
        // One in a hundred is not worth the search.
        let ids: Vec<u64> = (0..1000).map(|i| i % 990).collect();
        assert_eq!([Dedup::Auto, Dedup::Always].map(|mode| sent(mode, &ids, Way { width: 4, ..far }, &mut seen)), [1000, 990]);
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
