//! De-duplication of ids: whether it pays for a table, and the work itself.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

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

/// Lookups of a table from one measurement to the next while de-duplication does not pay.
const MEASURE_EVERY: u32 = 32;
/// Below this many ids the fixed cost of a call decides, not the ids.
const FEW: usize = 64;

/// What is known of one table.
#[derive(Debug, Default)]
pub(super) struct Habit {
    /// Lookups until the next measurement; 0 means de-duplicate now.
    skip: AtomicU32,
}

impl Habit {
    /// Whether to de-duplicate this time.
    pub(super) fn wanted(&self, mode: Dedup) -> bool {
        match mode {
            Dedup::Always => true,
            Dedup::Never => false,
            Dedup::Auto => self.skip.fetch_update(Relaxed, Relaxed, |s| s.checked_sub(1)).is_err(),
        }
    }

    /// Takes note of how many of `ids` were distinct, in a table with rows of `width` bytes.
    pub(super) fn learn(&self, ids: usize, unique: usize, width: usize) {
        // Cost of the work and of a row over loopback, in nanoseconds an id: 12 against 12 and half a nanosecond a byte.
        // A slower network only makes a row dearer.
        let saved = (ids - unique) as f64 * (12.0 + width as f64 * 0.5);
        if ids >= FEW && saved < ids as f64 * 12.0 {
            self.skip.store(MEASURE_EVERY - 1, Relaxed);
        }
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
            let mut i = (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift) as usize;
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
        let habit = Habit::default();
        assert!(habit.wanted(Dedup::Auto));
        habit.learn(1000, 500, 256);
        assert!(habit.wanted(Dedup::Auto));
        habit.learn(1000, 1000, 256);
        for _ in 1..MEASURE_EVERY {
            assert!(!habit.wanted(Dedup::Auto));
        }
        assert!(habit.wanted(Dedup::Auto));
        assert!(!habit.wanted(Dedup::Never));
        habit.learn(1000, 1000, 256);
        assert!(habit.wanted(Dedup::Always));
    }
}
