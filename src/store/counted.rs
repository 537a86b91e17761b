//! Counts how often each id is looked up, on the way to another store.

use super::{LookupFuture, Query, Stats, Store, Table};
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
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for q in &queries {
            if let Some(of_table) = counts.get_mut(q.table) {
                q.ids.iter().for_each(|&id| *of_table.entry(id).or_default() += 1);
            }
        }
        drop(counts);
        self.store.lookup(queries)
    }

    fn stats(&self) -> Stats {
        self.store.stats()
    }
}
