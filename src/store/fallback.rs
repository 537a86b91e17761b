//! Rows to go on with when pservers cannot be reached: a choice that the caller makes in so many words, with a counter of its
//! own. Without this wrapper an unavailable server is an error.

use super::layout::Filling;
use super::{LookupFuture, Query, Stats, Store, StoreError, Table};
use crate::plan::{Absent, Manifest};
use crate::tensor::{Shape, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A [`Store`] whose lookups give default rows (zeros where a table has none) where the one within is unavailable or runs past
/// its deadline. All rows of such a lookup are defaults. Other errors stay errors.
#[derive(Debug)]
pub struct Fallback {
    inner: Arc<dyn Store>,
    rows: Vec<Vec<u8>>,
    defaulted: AtomicU64,
}

impl Fallback {
    /// Wraps the store over the tables of `manifest`.
    ///
    /// # Errors
    /// A default row that does not fit its table.
    pub fn new(inner: Arc<dyn Store>, manifest: &Manifest) -> Result<Self, StoreError> {
        let row = |t: &crate::plan::TableEntry| {
            let policy = if t.default_row.is_some() { Absent::Default } else { Absent::Zero };
            let filling = Filling::new(&t.name, t.dtype, &t.row_shape, policy, t.default_row.as_deref())?;
            Ok(filling.row(&t.name, 0)?.to_vec())
        };
        let rows = manifest.tables.iter().map(row).collect::<Result<Vec<_>, StoreError>>()?;
        Ok(Self { inner, rows, defaulted: AtomicU64::new(0) })
    }

    /// Ids that got a default row because a server was unavailable.
    pub fn defaulted(&self) -> u64 {
        self.defaulted.load(Relaxed)
    }

    fn defaults(&self, queries: &[Query]) -> Result<Vec<Tensor>, StoreError> {
        let one = |q: &Query| {
            let table = &self.tables()[q.table];
            let shape = Shape::from_dims([q.ids.len()].into_iter().chain(table.row_shape.iter().copied()));
            let bytes = self.rows[q.table].repeat(q.ids.len());
            self.defaulted.fetch_add(q.ids.len() as u64, Relaxed);
            super::tally::unavailable(q.ids.len() as u64);
            Tensor::from_bytes(table.dtype, shape, bytes).map_err(|e| StoreError::Corrupt(format!("table \"{}\": {e}", table.name)))
        };
        queries.iter().map(one).collect()
    }
}

impl Store for Fallback {
    fn tables(&self) -> &[Table] {
        self.inner.tables()
    }

    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
        Box::pin(async move {
            match self.inner.lookup(queries.clone()).await {
                Err(e @ (StoreError::Unavailable { .. } | StoreError::Timeout { .. })) => {
                    tracing::warn!("{e}: its lookup gets default rows");
                    self.defaults(&queries)
                }
                done => done,
            }
        })
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}
