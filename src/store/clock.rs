//! The rows of one table that a cache keeps, in a bounded number of slots. Which row gives way is found by a hand that goes
//! round: each time it passes a row that was used since, the row loses one use, and the first without any goes. A row begins
//! without uses, so what is asked for once gives way to what is asked for again.

use std::collections::TryReserveError;

/// Uses beyond this do not count.
const MOST_USES: u8 = 3;
/// Bytes that a slot takes beside its row: the id and the uses.
const BESIDE: u64 = 9;

/// Slots, and where the row of an id is.
#[derive(Debug)]
pub(super) struct Slots {
    width: usize,
    capacity: usize,
    /// Open addressing: a slot plus one; 0 is free.
    index: Vec<u32>,
    ids: Vec<u64>,
    uses: Vec<u8>,
    rows: Vec<u8>,
    hand: usize,
}

/// Entries of the index of that many slots: at most three of four are taken.
fn index_len(capacity: u64) -> u64 {
    (capacity + capacity / 3 + 1).next_power_of_two()
}

impl Slots {
    /// The most slots of a table.
    pub(super) const MOST: u64 = 1 << 31;

    /// Bytes that `capacity` slots of rows of `width` bytes take when all are full.
    pub(super) fn cost(capacity: u64, width: usize) -> u64 {
        if capacity == 0 { 0 } else { index_len(capacity) * 4 + capacity.saturating_mul(width as u64 + BESIDE) }
    }

    /// Empty slots; the memory of the rows is touched when they come.
    ///
    /// # Errors
    /// Memory that there is not.
    pub(super) fn new(capacity: usize, width: usize) -> Result<Self, TryReserveError> {
        let (mut index, mut ids, mut uses, mut rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let entries = index_len(capacity as u64) as usize;
        index.try_reserve_exact(entries)?;
        index.resize(entries, 0);
        ids.try_reserve_exact(capacity)?;
        uses.try_reserve_exact(capacity)?;
        rows.try_reserve_exact(capacity.saturating_mul(width))?;
        Ok(Self { width, capacity, index, ids, uses, rows, hand: 0 })
    }

    /// Bytes in use, the index included.
    pub(super) fn bytes(&self) -> u64 {
        self.index.len() as u64 * 4 + self.ids.len() as u64 * (self.width as u64 + BESIDE)
    }

    /// Where the search for `id` begins.
    fn home(&self, id: u64) -> usize {
        (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.index.len() - 1)
    }

    /// The slot of `id`, or the free entry of the index where the search ended.
    fn find(&self, id: u64) -> Result<usize, usize> {
        let mut at = self.home(id);
        while let Some(slot) = self.index[at].checked_sub(1) {
            if self.ids[slot as usize] == id {
                return Ok(slot as usize);
            }
            at = (at + 1) & (self.index.len() - 1);
        }
        Err(at)
    }

    /// The slot of `id`, which counts as a use.
    pub(super) fn take(&mut self, id: u64) -> Option<usize> {
        let slot = self.find(id).ok()?;
        self.uses[slot] = (self.uses[slot] + 1).min(MOST_USES);
        Some(slot)
    }

    /// The row in a slot.
    pub(super) fn row(&self, slot: usize) -> &[u8] {
        &self.rows[slot * self.width..(slot + 1) * self.width]
    }

    /// Keeps the row of `id`, in the place of another if all slots are full.
    pub(super) fn insert(&mut self, id: u64, row: &[u8]) {
        if self.capacity == 0 || row.len() != self.width || self.find(id).is_ok() {
            return;
        }
        let slot = if self.ids.len() < self.capacity {
            self.ids.push(id);
            self.uses.push(0);
            self.rows.extend_from_slice(row);
            self.ids.len() - 1
        } else {
            let slot = self.give_way();
            self.ids[slot] = id;
            self.rows[slot * self.width..(slot + 1) * self.width].copy_from_slice(row);
            slot
        };
        // Where the search ended before may have moved.
        let mut at = self.home(id);
        while self.index[at] != 0 {
            at = (at + 1) & (self.index.len() - 1);
        }
        self.index[at] = slot as u32 + 1;
    }

    /// Frees the slot whose row gives way.
    fn give_way(&mut self) -> usize {
        while self.uses[self.hand] > 0 {
            self.uses[self.hand] -= 1;
            self.hand = (self.hand + 1) % self.capacity;
        }
        let slot = self.hand;
        self.hand = (slot + 1) % self.capacity;
        self.unlink(slot);
        slot
    }

    /// Takes a slot out of the index; entries that were put further on because of it move up.
    fn unlink(&mut self, slot: usize) {
        let mask = self.index.len() - 1;
        let mut hole = self.home(self.ids[slot]);
        while self.index[hole] as usize != slot + 1 {
            hole = (hole + 1) & mask;
        }
        let mut next = (hole + 1) & mask;
        while let Some(other) = self.index[next].checked_sub(1) {
            let from_home = next.wrapping_sub(self.home(self.ids[other as usize])) & mask;
            if from_home >= next.wrapping_sub(hole) & mask {
                self.index[hole] = self.index[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.index[hole] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64) -> [u8; 8] {
        (id ^ 0x55).to_le_bytes()
    }

    #[test]
    fn a_row_is_found_as_long_as_it_is_kept_and_is_its_own() {
        for capacity in [1, 2, 3, 7, 64, 100] {
            let mut slots = Slots::new(capacity, 8).unwrap();
            let mut x = 1u64;
            for step in 0..20_000u64 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Ids that meet in the index as well: multiples of 2^32 begin at few places.
                let id = if step % 3 == 0 { (x >> 57) << 32 } else { (x >> 33) % 200 };
                match slots.take(id) {
                    Some(slot) => assert_eq!(slots.row(slot), row(id)),
                    None => {
                        slots.insert(id, &row(id));
                        let slot = slots.take(id).unwrap();
                        assert_eq!(slots.row(slot), row(id));
                    }
                }
                assert!(slots.bytes() <= Slots::cost(capacity as u64, 8));
            }
            // Each slot is in the index once.
            let mut linked: Vec<u32> = slots.index.iter().copied().filter(|&s| s > 0).collect();
            linked.sort_unstable();
            assert_eq!(linked, (1..=capacity as u32).collect::<Vec<_>>());
            assert!(slots.ids.iter().enumerate().all(|(slot, &id)| slots.find(id) == Ok(slot)));
        }
    }

    #[test]
    fn what_is_asked_for_once_gives_way_to_what_is_asked_for_again() {
        let mut slots = Slots::new(10, 8).unwrap();
        (0..10).for_each(|id| slots.insert(id, &row(id)));
        for once in 100..1000 {
            // The first five are hot.
            (0..5).for_each(|id| assert!(slots.take(id).is_some(), "{id} at {once}"));
            slots.insert(once, &row(once));
        }
        assert!((5..10).all(|id| slots.take(id).is_none()));
    }
}
