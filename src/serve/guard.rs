//! A store that answers at once while pservers are known to be away, rather than letting each request wait for its deadline.

use crate::store::{BagFuture, BagQuery, LookupFuture, Query, Stats, Store, StoreError, Table};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// Ids of each query that are asked for again until they are answered.
const KEPT: usize = 256;
/// Time between two such lookups.
const EVERY: Duration = Duration::from_millis(200);

/// A [`Store`] whose lookups fail at once from the first unavailable server, or passed deadline, on, until some of the same ids
/// are answered again; these are asked for meanwhile.
#[derive(Debug)]
pub struct Guard {
    inner: Arc<dyn Store>,
    lost: Arc<Mutex<Option<StoreError>>>,
    runtime: Handle,
}

fn away(e: &StoreError) -> bool {
    matches!(e, StoreError::Unavailable { .. } | StoreError::Timeout { .. })
}

impl Guard {
    /// Guards `inner`; lookups are repeated on `runtime`.
    pub fn new(inner: Arc<dyn Store>, runtime: Handle) -> Self {
        Self { inner, lost: Arc::default(), runtime }
    }

    /// Why lookups fail at present.
    pub fn lost(&self) -> Option<StoreError> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lose(&self, error: &StoreError, kept: Vec<Query>) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.replace(error.clone()).is_some() {
            return;
        }
        tracing::warn!("{error}");
        let (inner, lost) = (self.inner.clone(), self.lost.clone());
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                if !inner.lookup(kept.clone()).await.is_err_and(|e| away(&e)) {
                    break;
                }
            }
            *lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
            tracing::warn!("lookups are answered again");
        });
    }
}

impl Store for Guard {
    fn tables(&self) -> &[Table] {
        self.inner.tables()
    }

    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
        if let Some(e) = self.lost() {
            return Box::pin(std::future::ready(Err(e)));
        }
        let kept = queries.iter().map(|q| Query { table: q.table, ids: q.ids.iter().take(KEPT).copied().collect() }).collect();
        Box::pin(async move {
            let rows = self.inner.lookup(queries).await;
            if let Err(e) = &rows
                && away(e)
            {
                self.lose(e, kept);
            }
            rows
        })
    }

    fn lookup_bags<'a>(&'a self, query: &'a BagQuery) -> BagFuture<'a> {
        if let Some(e) = self.lost() {
            return Box::pin(std::future::ready(Err(e)));
        }
        Box::pin(async move {
            let pooled = self.inner.lookup_bags(query).await;
            if let Err(e) = &pooled
                && away(e)
            {
                self.lose(e, vec![Query { table: query.table, ids: query.ids.iter().take(KEPT).copied().collect() }]);
            }
            pooled
        })
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{PoolMode, Tensor};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    #[derive(Debug, Default)]
    struct Weak {
        there: AtomicBool,
        asked: AtomicUsize,
        /// Of the last query.
        ids: AtomicUsize,
    }

    impl Store for Weak {
        fn tables(&self) -> &[Table] {
            &[]
        }

        fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
            self.asked.fetch_add(1, SeqCst);
            self.ids.store(queries[0].ids.len(), SeqCst);
            let there = self.there.load(SeqCst);
            let error = StoreError::Unavailable { endpoint: "a:1".into(), detail: "gone".into() };
            Box::pin(async move { if there { Ok(vec![Tensor::default()]) } else { Err(error) } })
        }

        fn lookup_bags<'a>(&'a self, query: &'a BagQuery) -> BagFuture<'a> {
            let rows = self.lookup(vec![Query { table: query.table, ids: query.ids.clone() }]);
            Box::pin(async move { rows.await.map(|mut rows| rows.pop()) })
        }

        fn stats(&self) -> Stats {
            Stats::default()
        }
    }

    #[tokio::test]
    async fn what_is_lost_is_told_at_once_until_it_is_back() {
        let weak = Arc::new(Weak::default());
        let guard = Guard::new(weak.clone(), Handle::current());
        let query = || vec![Query { table: 0, ids: vec![1; 2 * KEPT] }];
        assert!(guard.lookup(query()).await.is_err() && guard.lost().is_some());
        let asked = weak.asked.load(SeqCst);
        assert!(guard.lookup(query()).await.is_err());
        assert_eq!(weak.asked.load(SeqCst), asked);
        weak.there.store(true, SeqCst);
        while guard.lost().is_some() {
            tokio::time::sleep(EVERY).await;
        }
        // It was found by a few of the ids.
        assert_eq!(weak.ids.load(SeqCst), KEPT);
        assert!(guard.lookup(query()).await.is_ok());
    }

    #[tokio::test]
    async fn bags_that_are_lost_are_told_at_once_too() {
        let weak = Arc::new(Weak::default());
        let guard = Guard::new(weak.clone(), Handle::current());
        let bags = BagQuery { table: 0, ids: vec![1; 2 * KEPT], bounds: vec![0, 2 * KEPT], weights: None, mode: PoolMode::Sum };
        assert!(guard.lookup_bags(&bags).await.is_err() && guard.lost().is_some());
        let asked = weak.asked.load(SeqCst);
        assert!(guard.lookup_bags(&bags).await.is_err());
        assert_eq!(weak.asked.load(SeqCst), asked);
        weak.there.store(true, SeqCst);
        while guard.lost().is_some() {
            tokio::time::sleep(EVERY).await;
        }
        assert_eq!(weak.ids.load(SeqCst), KEPT);
        assert!(guard.lookup_bags(&bags).await.is_ok_and(|pooled| pooled.is_some()));
    }
}
