//! What became of the ids of one asker, apart from the counters of the store that all askers share.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

tokio::task_local! {
    static TALLY: Arc<Tally>;
}

/// Counts of the lookups that were awaited within [`Tally::of`].
#[derive(Debug, Default)]
pub struct Tally {
    absent: AtomicU64,
    unavailable: AtomicU64,
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
}

impl Tally {
    /// Awaits `lookups` and counts what becomes of their ids.
    pub async fn of<F: Future>(self: Arc<Self>, lookups: F) -> F::Output {
        TALLY.scope(self, lookups).await
    }

    /// Ids that their keyed table did not hold and that got its row for absent ids.
    pub fn absent(&self) -> u64 {
        self.absent.load(Relaxed)
    }

    /// Ids that got a default row because a server was unavailable.
    pub fn unavailable(&self) -> u64 {
        self.unavailable.load(Relaxed)
    }

    /// Ids whose row a cache had.
    pub fn cache_hits(&self) -> u64 {
        self.cache_hits.load(Relaxed)
    }

    /// Ids whose row a cache did not have.
    pub fn cache_misses(&self) -> u64 {
        self.cache_misses.load(Relaxed)
    }
}

fn add(n: u64, to: impl Fn(&Tally) -> &AtomicU64) {
    // Whoever does not count has no tally.
    let _ = TALLY.try_with(|t| to(t).fetch_add(n, Relaxed));
}

pub(super) fn absent(n: u64) {
    add(n, |t| &t.absent);
}

pub(super) fn unavailable(n: u64) {
    add(n, |t| &t.unavailable);
}

pub(super) fn cached(hits: u64, misses: u64) {
    add(hits, |t| &t.cache_hits);
    add(misses, |t| &t.cache_misses);
}
