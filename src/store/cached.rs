//! Keeps the rows that are asked for most in bounded memory, on the way to another store. Answers are the same to the last bit.

use super::clock::Slots;
use super::layout::{self, Filling};
use super::{LookupFuture, Query, Stats, Store, StoreError, Table};
use crate::plan::{Manifest, TableEntry};
use crate::tensor::Tensor;
use crate::wire::Pooled;
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A table's part of the cache.
#[derive(Debug)]
struct Kept {
    slots: Mutex<Slots>,
    width: usize,
    /// The row for absent keys. Rows that are equal to it are not kept, so that the store within sees each absent key and counts it.
    filling: Option<Bytes>,
}

/// A [`Store`] that keeps rows in memory. The tables share the memory: each gets the same number of slots, except that no table
/// gets more than it has rows.
#[derive(Debug)]
pub struct Cached {
    inner: Arc<dyn Store>,
    /// By table; `None` where nothing is kept.
    kept: Vec<Option<Kept>>,
    capacity: u64,
    lookups: AtomicU64,
    ids: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// What the cache has of a query.
struct Found {
    /// The rows, where they are not all missing; those that are, are still to come.
    rows: Option<Pooled>,
    /// The ids to ask for, and their positions in the query; without positions it is the whole query.
    missing: Vec<u64>,
    positions: Option<Vec<u32>>,
}

impl Cached {
    /// Keeps rows of the tables of `manifest`, which are those of `inner`, in at most `capacity` bytes, the index included.
    ///
    /// # Errors
    /// Memory that there is not; a default row that does not fit its table.
    pub fn new(inner: Arc<dyn Store>, manifest: &Manifest, capacity: u64) -> Result<Self, StoreError> {
        let tables = inner.tables();
        if tables.len() != manifest.tables.len() {
            return Err(StoreError::Corrupt(format!("cache: {} tables, {} in the manifest", tables.len(), manifest.tables.len())));
        }
        let widths: Vec<usize> = tables.iter().map(|t| t.dtype.byte_len(&t.row_shape).unwrap_or(0)).collect();
        let slots = shares(tables, &widths, capacity);
        let kept = |((table, entry), (&width, n)): ((&Table, &TableEntry), (&usize, u64))| {
            if n == 0 {
                return Ok(None);
            }
            let slots = Slots::new(n as usize, width)
                .map_err(|e| StoreError::Corrupt(format!("cache: {n} rows of {width} bytes of table \"{}\": {e}", table.name)))?;
            Ok(Some(Kept { slots: Mutex::new(slots), width, filling: filling(table, entry)? }))
        };
        let kept = tables.iter().zip(&manifest.tables).zip(widths.iter().zip(slots)).map(kept).collect::<Result<_, StoreError>>()?;
        let zero = AtomicU64::default;
        Ok(Self { inner, kept, capacity, lookups: zero(), ids: zero(), hits: zero(), misses: zero() })
    }

    /// The most bytes that it may take.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes in use now.
    pub fn bytes(&self) -> u64 {
        self.kept.iter().flatten().map(|k| k.slots().bytes()).sum()
    }

    fn probe(&self, query: &Query) -> Found {
        let n = query.ids.len();
        self.ids.fetch_add(n as u64, Relaxed);
        let Some(kept) = &self.kept[query.table] else {
            self.misses.fetch_add(n as u64, Relaxed);
            super::tally::cached(0, n as u64);
            return Found { rows: None, missing: query.ids.clone(), positions: None };
        };
        let found = kept.probe(&query.ids);
        self.misses.fetch_add(found.missing.len() as u64, Relaxed);
        self.hits.fetch_add((n - found.missing.len()) as u64, Relaxed);
        super::tally::cached((n - found.missing.len()) as u64, found.missing.len() as u64);
        found
    }

    /// The answer to a query from what was found and, if something was missing, what the store within gave for it.
    fn complete(&self, query: &Query, found: Found, answers: &mut impl Iterator<Item = Tensor>) -> Result<Tensor, StoreError> {
        let table = &self.tables()[query.table];
        let fail = |what: &str| StoreError::Corrupt(format!("table \"{}\": {what}", table.name));
        let answer = if found.asks() { Some(answers.next().ok_or_else(|| fail("no answer"))?) } else { None };
        if let (Some(kept), Some(answer)) = (&self.kept[query.table], &answer) {
            let bytes = answer.bytes().filter(|b| b.len() == found.missing.len() * kept.width);
            kept.keep(&found.missing, bytes.ok_or_else(|| fail("an answer that is not what was asked for"))?);
        }
        let (Some(mut rows), Some(kept)) = (found.rows, &self.kept[query.table]) else {
            return answer.ok_or_else(|| fail("no answer"));
        };
        if let (Some(answer), Some(positions)) = (&answer, &found.positions) {
            let new = answer.bytes().unwrap_or_default().chunks_exact(kept.width);
            for (&at, row) in positions.iter().zip(new) {
                rows[at as usize * kept.width..][..kept.width].copy_from_slice(row);
            }
        }
        layout::rows_tensor(table, query.ids.len(), rows.freeze())
    }
}

impl Found {
    /// Whether the store within is asked; a query without ids is answered there too.
    fn asks(&self) -> bool {
        !self.missing.is_empty() || self.rows.is_none()
    }
}

impl Kept {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn probe(&self, ids: &[u64]) -> Found {
        let mut slots = self.slots();
        let at: Vec<Option<usize>> = ids.iter().map(|&id| slots.take(id)).collect();
        if at.iter().all(Option::is_none) {
            return Found { rows: None, missing: ids.to_vec(), positions: None };
        }
        let mut rows = Pooled::take(ids.len() * self.width);
        let (mut missing, mut positions) = (Vec::new(), Vec::new());
        for (i, (slot, row)) in at.into_iter().zip(rows.chunks_exact_mut(self.width)).enumerate() {
            match slot {
                Some(slot) => row.copy_from_slice(slots.row(slot)),
                None => {
                    missing.push(ids[i]);
                    positions.push(i as u32);
                }
            }
        }
        Found { rows: Some(rows), missing, positions: Some(positions) }
    }

    fn keep(&self, ids: &[u64], rows: &[u8]) {
        let mut slots = self.slots();
        for (&id, row) in ids.iter().zip(rows.chunks_exact(self.width)) {
            if self.filling.as_ref().is_none_or(|f| **f != *row) {
                slots.insert(id, row);
            }
        }
    }
}

/// The row for absent keys, as it comes out of the store; `None` where they are errors.
fn filling(table: &Table, entry: &TableEntry) -> Result<Option<Bytes>, StoreError> {
    match Filling::wide(entry, table)? {
        Filling::Refuse => Ok(None),
        Filling::Row(row) => Ok(Some(row.into())),
    }
}

/// Slots of each table.
fn shares(tables: &[Table], widths: &[usize], capacity: u64) -> Vec<u64> {
    let of = |n: u64| tables.iter().zip(widths).map(move |(t, &w)| if w == 0 { 0 } else { t.rows.min(n) });
    let fits = |n: u64| of(n).zip(widths).fold(0u64, |sum, (n, &w)| sum.saturating_add(Slots::cost(n, w))) <= capacity;
    let (mut low, mut high) = (0, Slots::MOST + 1);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    of(low).collect()
}

impl Store for Cached {
    fn tables(&self) -> &[Table] {
        self.inner.tables()
    }

    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
        Box::pin(async move {
            super::check_tables(self.tables(), &queries)?;
            for q in &queries {
                // Positions in errors are those of the whole query.
                layout::check_range(&self.tables()[q.table], &q.ids)?;
                if u32::try_from(q.ids.len()).is_err() {
                    return Err(StoreError::Corrupt(format!(
                        "table \"{}\": {} ids in one lookup",
                        self.tables()[q.table].name,
                        q.ids.len()
                    )));
                }
            }
            self.lookups.fetch_add(1, Relaxed);
            let found: Vec<Found> = queries.iter().map(|q| self.probe(q)).collect();
            let ask = |(q, f): (&Query, &Found)| f.asks().then(|| Query { table: q.table, ids: f.missing.clone() });
            let asked: Vec<Query> = queries.iter().zip(&found).filter_map(ask).collect();
            let mut answers = if asked.is_empty() { Vec::new() } else { self.inner.lookup(asked).await? }.into_iter();
            queries.iter().zip(found).map(|(q, f)| self.complete(q, f, &mut answers)).collect()
        })
    }

    fn stats(&self) -> Stats {
        let of = |n: &AtomicU64| n.load(Relaxed);
        let (lookups, ids, cache_hits, cache_misses) = (of(&self.lookups), of(&self.ids), of(&self.hits), of(&self.misses));
        Stats { lookups, ids, cache_hits, cache_misses, ..self.inner.stats() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Shape};

    #[test]
    fn small_tables_are_held_whole_and_leave_the_rest_to_the_others() {
        let table = |rows| Table { name: "t".into(), rows, dtype: DType::F32, row_shape: Shape::from(&[4][..]), keyed: false };
        let tables = [table(10), table(1_000_000), table(1_000_000), table(5)];
        let widths = [16, 16, 16, 0];
        let slots = shares(&tables, &widths, 1 << 20);
        assert_eq!((slots[0], slots[1], slots[3]), (10, slots[2], 0));
        let cost = |n: u64| Slots::cost(10, 16) + 2 * Slots::cost(n, 16);
        assert!(cost(slots[1]) <= 1 << 20 && cost(slots[1] + 1) > 1 << 20, "{slots:?}");
        assert_eq!(shares(&tables, &widths, 8), [0; 4]);
        assert_eq!(shares(&tables, &widths, u64::MAX), [10, 1_000_000, 1_000_000, 0]);
    }
}
