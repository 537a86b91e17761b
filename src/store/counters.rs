//! The counters behind [`Stats`], for threads to add to.

use super::Stats;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One atomic for each field of [`Stats`] that stores count themselves.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    lookups: AtomicU64,
    ids: AtomicU64,
    unique_ids: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    absent: AtomicU64,
}

impl Counters {
    /// Adds what one lookup did.
    pub(crate) fn add(&self, s: &Stats) {
        self.lookups.fetch_add(s.lookups, Relaxed);
        self.ids.fetch_add(s.ids, Relaxed);
        self.unique_ids.fetch_add(s.unique_ids, Relaxed);
        self.requests.fetch_add(s.requests, Relaxed);
        self.bytes.fetch_add(s.bytes, Relaxed);
        self.absent.fetch_add(s.absent, Relaxed);
    }

    /// Adds what a lookup that somebody awaits did, to that asker's tally too.
    pub(crate) fn add_asked(&self, s: &Stats) {
        self.add(s);
        super::tally::absent(s.absent);
    }

    /// The sums so far.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            lookups: self.lookups.load(Relaxed),
            ids: self.ids.load(Relaxed),
            unique_ids: self.unique_ids.load(Relaxed),
            requests: self.requests.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            absent: self.absent.load(Relaxed),
            ..Stats::default()
        }
    }
}
