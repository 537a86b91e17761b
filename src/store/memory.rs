//! Tables in memory, for tests and small local runs.

use super::counters::Counters;
use super::gather::gather;
use super::keys::{ABSENT, find};
use super::layout::{self, Filling};
use super::{LookupFuture, Query, Stats, Store, StoreError, Table, TableRows};
use crate::plan::{Absent, Manifest};
use crate::tensor::{Shape, Tensor};
use crate::wire::Pooled;
use bytes::Bytes;
use std::path::Path;

#[derive(Debug)]
struct Rows {
    width: usize,
    values: Bytes,
    /// The keys in ascending order and the row of each; for keyed tables.
    keys: Option<(Vec<u64>, Vec<u64>)>,
    filling: Filling,
}

/// Tables held in memory, as tensors whose first axis is the rows.
#[derive(Debug, Default)]
pub struct Memory {
    tables: Vec<Table>,
    rows: Vec<Rows>,
    counters: Counters,
}

impl Memory {
    /// A store of no tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a table whose ids are row numbers; gives its index.
    ///
    /// # Errors
    /// A tensor without rows of whole bytes.
    pub fn add(&mut self, name: &str, values: &Tensor) -> Result<usize, StoreError> {
        self.push(name, values, None, Filling::Refuse)
    }

    /// Adds a table whose row `i` belongs to `keys[i]`; gives its index.
    ///
    /// # Errors
    /// As [`Memory::add`]; keys that are not one per row or not distinct; a default row that does not fit.
    pub fn add_keyed(
        &mut self,
        name: &str,
        keys: &[u64],
        values: &Tensor,
        absent: Absent,
        default_row: Option<&[f64]>,
    ) -> Result<usize, StoreError> {
        let mut order: Vec<u64> = (0..keys.len() as u64).collect();
        order.sort_by_key(|&i| keys[i as usize]);
        let sorted: Vec<u64> = order.iter().map(|&i| keys[i as usize]).collect();
        if let Some(pair) = sorted.windows(2).find(|w| w[0] == w[1]) {
            return Err(StoreError::Corrupt(format!("table \"{name}\": key {} is there twice", pair[0])));
        }
        let filling = Filling::new(name, values.dtype(), values.shape().get(1..).unwrap_or_default(), absent, default_row)?;
        self.push(name, values, Some((sorted, order)), filling)
    }

    /// Reads all rows of the deployment in `dir` into memory, as lookups give them.
    ///
    /// # Errors
    /// Shards that are not what the manifest says.
    pub fn read(dir: &Path, manifest: &Manifest) -> Result<Self, StoreError> {
        let mut memory = Self::new();
        for (t, table) in manifest.tables.iter().zip(layout::tables(manifest)) {
            let fail = |e: std::io::Error| StoreError::Corrupt(format!("table \"{}\": {e}", t.name));
            let (mut bytes, mut keys) = (Vec::new(), Vec::new());
            let mut take = |id: u64, row: &[u8]| {
                keys.push(id);
                bytes.extend_from_slice(row);
                Ok(())
            };
            TableRows::open(dir, t)?.visit_wide(&mut take).map_err(fail)?;
            let values = layout::rows_tensor(&table, t.rows as usize, bytes.into())?;
            let (keys, filling) = match t.keyed {
                true => (Some((keys, (0..t.rows).collect())), Filling::wide(t, &table)?),
                false => (None, Filling::Refuse),
            };
            memory.push(&t.name, &values, keys, filling)?;
        }
        Ok(memory)
    }

    fn push(&mut self, name: &str, values: &Tensor, keys: Option<(Vec<u64>, Vec<u64>)>, filling: Filling) -> Result<usize, StoreError> {
        let fail = |what: String| Err(StoreError::Corrupt(format!("table \"{name}\": {what}")));
        let Some((&rows, row_shape)) = values.shape().split_first() else {
            return fail("a table needs an axis of rows, found a scalar".into());
        };
        if let Some((keys, _)) = keys.as_ref().filter(|k| k.0.len() != rows) {
            return fail(format!("expected {rows} keys, found {}", keys.len()));
        }
        let width = layout::width(name, values.dtype(), row_shape.iter().product::<usize>() as u64)?;
        let Some(bytes) = values.shared_bytes() else {
            return fail("its elements are not in memory".into());
        };
        let row_shape = Shape::from(row_shape);
        self.tables.push(Table { name: name.into(), rows: rows as u64, dtype: values.dtype(), row_shape, keyed: keys.is_some() });
        self.rows.push(Rows { width, values: bytes, keys, filling });
        Ok(self.tables.len() - 1)
    }

    fn answer(&self, query: &Query, stats: &mut Stats) -> Result<Tensor, StoreError> {
        let (table, rows) = (&self.tables[query.table], &self.rows[query.table]);
        layout::check_range(table, &query.ids)?;
        let n = query.ids.len();
        let mut out = Pooled::take(n * rows.width);
        let mut found = Vec::new();
        let at = match &rows.keys {
            None => &query.ids,
            Some((keys, order)) => {
                find(keys, &query.ids, &mut found);
                found.iter_mut().filter(|i| **i != ABSENT).for_each(|i| *i = order[*i as usize]);
                &found
            }
        };
        if let Some(i) = at.iter().position(|&i| i == ABSENT) {
            rows.filling.row(&table.name, query.ids[i])?;
        }
        stats.absent += at.iter().filter(|&&i| i == ABSENT).count() as u64;
        let filling = rows.filling.row(&table.name, 0).unwrap_or_default();
        let width = rows.width;
        gather(&mut out, (width, 0, width), n, |i| match at[i] {
            ABSENT => Some(filling),
            row => rows.values.get(row as usize * width..(row as usize + 1) * width),
        })
        .map_err(|i| StoreError::Corrupt(format!("table \"{}\": row {} is not in memory", table.name, at[i])))?;
        stats.ids += n as u64;
        stats.unique_ids += n as u64;
        stats.bytes += out.len() as u64;
        layout::rows_tensor(table, n, out.freeze())
    }
}

impl Store for Memory {
    fn tables(&self) -> &[Table] {
        &self.tables
    }

    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
        Box::pin(async move {
            let mut stats = Stats { lookups: 1, ..Stats::default() };
            super::check_tables(&self.tables, &queries)?;
            let rows = queries.iter().map(|q| self.answer(q, &mut stats)).collect();
            self.counters.add_asked(&stats);
            rows
        })
    }

    fn stats(&self) -> Stats {
        self.counters.stats()
    }
}
