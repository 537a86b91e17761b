//! Counts how often each id is looked up, on the way to another store.

use super::{BagFuture, BagQuery, LookupFuture, Query, Stats, Store, Table};
use crate::plan::IdStats;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A store that counts ids.
#[derive(Debug)]
pub struct Counted {
    store: Arc<dyn Store>,
    counts: Mutex<Vec<HashMap<u64, u64>>>,
}

impl Counted {
    /// Counts the ids that go to `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        let counts = Mutex::new(vec![HashMap::new(); store.tables().len()]);
        Self { store, counts }
    }

    fn count(&self, table: usize, ids: &[u64]) {
        if let Some(of_table) = self.counts.lock().unwrap_or_else(PoisonError::into_inner).get_mut(table) {
            ids.iter().for_each(|&id| *of_table.entry(id).or_default() += 1);
        }
    }

    /// The counts so far, of all tables.
    pub fn counts(&self) -> IdStats {
        let mut stats = IdStats::default();
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        self.store.tables().iter().zip(counts.iter()).for_each(|(t, ids)| stats.insert(t.name.clone(), ids.iter().map(|(&i, &n)| (i, n))));
        stats
    }
}

impl Store for Counted {
    fn tables(&self) -> &[Table] {
        self.store.tables()
    }

    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
        queries.iter().for_each(|q| self.count(q.table, &q.ids));
        self.store.lookup(queries)
    }

    fn lookup_bags<'a>(&'a self, query: &'a BagQuery) -> BagFuture<'a> {
        Box::pin(async move {
            let pooled = self.store.lookup_bags(query).await;
            // Without an answer the rows are looked up next.
            if !matches!(pooled, Ok(None)) {
                self.count(query.table, &query.ids);
            }
            pooled
        })
    }

    fn stats(&self) -> Stats {
        self.store.stats()
    }
}
