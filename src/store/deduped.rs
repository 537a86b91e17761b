//! Each id of a lookup once, on the way to a store that does not see to it itself.

use super::dedup::Seen;
use super::gather::gather;
use super::layout;
use super::{LookupFuture, Query, Stats, Store, StoreError, Table};
use crate::tensor::Tensor;
use crate::wire::Pooled;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// A [`Store`] that asks the one within for each id of a table of row numbers once. Keys go on as they are: the store within counts
/// each that is absent.
#[derive(Debug)]
pub struct Deduped {
    inner: Arc<dyn Store>,
    seen: Mutex<Vec<Seen>>,
    lookups: AtomicU64,
    ids: AtomicU64,
}

impl Deduped {
    /// Wraps a store.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, seen: Mutex::default(), lookups: AtomicU64::new(0), ids: AtomicU64::new(0) }
    }

    /// The rows of a query from those of its distinct ids.
    fn expand(&self, query: &Query, inverse: &[u32], answer: &Tensor) -> Result<Tensor, StoreError> {
        let (table, n) = (&self.tables()[query.table], query.ids.len());
        let width = table.dtype.byte_len(&table.row_shape).unwrap_or(0);
        let rows = answer.bytes().unwrap_or_default();
        let mut out = Pooled::take(n * width);
        gather(&mut out, (width, 0, width), n, |i| rows.get(inverse[i] as usize * width..(inverse[i] as usize + 1) * width))
            .map_err(|i| StoreError::Corrupt(format!("table \"{}\": no row came for id {}", table.name, query.ids[i])))?;
        layout::rows_tensor(table, n, out.freeze())
    }
}

impl Store for Deduped {
    fn tables(&self) -> &[Table] {
        self.inner.tables()
    }

    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
        Box::pin(async move {
            super::check_tables(self.tables(), &queries)?;
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            let (mut asked, mut inverses) = (Vec::with_capacity(queries.len()), Vec::with_capacity(queries.len()));
            for q in &queries {
                let table = &self.tables()[q.table];
                // Positions in errors are those of the whole query.
                layout::check_range(table, &q.ids)?;
                let pays = !table.keyed && q.ids.len() > 1 && u32::try_from(q.ids.len()).is_ok() && !table.row_shape.contains(&0);
                let unique = pays.then(|| seen.unique(&q.ids)).filter(|(unique, _)| unique.len() < q.ids.len());
                let (ids, inverse) = unique.map_or_else(|| (q.ids.clone(), None), |(unique, inverse)| (unique, Some(inverse)));
                asked.push(Query { table: q.table, ids });
                inverses.push(inverse);
            }
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
            self.lookups.fetch_add(1, Relaxed);
            self.ids.fetch_add(queries.iter().map(|q| q.ids.len() as u64).sum(), Relaxed);
            let answers = self.inner.lookup(asked).await?;
            let all = queries.iter().zip(inverses).zip(answers);
            all.map(|((q, inverse), answer)| inverse.map_or_else(|| Ok(answer.clone()), |i| self.expand(q, &i, &answer))).collect()
        })
    }

    fn stats(&self) -> Stats {
        Stats { lookups: self.lookups.load(Relaxed), ids: self.ids.load(Relaxed), ..self.inner.stats() }
    }
}
