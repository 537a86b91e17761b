//! How long lookups take: a histogram that threads add to, and a store that measures the one within.

use super::{BagFuture, BagQuery, LookupFuture, Query, Stats, Store, Table};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The upper bounds of all buckets but the last, which has none, in seconds.
pub const BOUNDS: [f64; 16] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// Durations, counted in buckets.
#[derive(Debug, Default)]
pub struct Durations {
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Durations {
    /// Counts one.
    pub fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.counts[BOUNDS.partition_point(|&b| b < seconds)].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Durations up to each bound, then all of them.
    pub fn cumulative(&self) -> Vec<u64> {
        let mut sum = 0;
        let upto = |n: &AtomicU64| {
            sum += n.load(Relaxed);
            sum
        };
        self.counts.iter().map(upto).collect()
    }

    /// The sum of all, in seconds.
    pub fn seconds(&self) -> f64 {
        self.nanoseconds.load(Relaxed) as f64 / 1e9
    }
}

/// A store that measures the lookups of another that were answered.
#[derive(Debug)]
pub struct Timed {
    store: Arc<dyn Store>,
    durations: Arc<Durations>,
}

impl Timed {
    /// Adds to `durations` what lookups of `store` take.
    pub fn new(store: Arc<dyn Store>, durations: Arc<Durations>) -> Self {
        Self { store, durations }
    }
}

impl Store for Timed {
    fn tables(&self) -> &[Table] {
        self.store.tables()
    }

    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
        Box::pin(async move {
            let start = Instant::now();
            let rows = self.store.lookup(queries).await?;
            self.durations.add(start.elapsed());
            Ok(rows)
        })
    }

    fn lookup_bags<'a>(&'a self, query: &'a BagQuery) -> BagFuture<'a> {
        Box::pin(async move {
            let start = Instant::now();
            let pooled = self.store.lookup_bags(query).await?;
            if pooled.is_some() {
                self.durations.add(start.elapsed());
            }
            Ok(pooled)
        })
    }

    fn stats(&self) -> Stats {
        self.store.stats()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_that_it_does_not_exceed() {
        let durations = Durations::default();
        for micros in [0, 100, 101, 1000, 29_000_000, 31_000_000] {
            durations.add(Duration::from_micros(micros));
        }
        let upto = durations.cumulative();
        assert_eq!((upto[0], upto[1], upto[2], upto[3], upto[14], upto[15], upto[16]), (2, 3, 3, 4, 4, 5, 6));
        assert!((durations.seconds() - 60.001_201).abs() < 1e-9);
    }
}
