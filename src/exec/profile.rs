//! Time per op over the runs of a session.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// Time and calls by op; collecting costs two clock reads a step.
#[derive(Debug, Default)]
pub struct Profile(Mutex<BTreeMap<String, (u64, Duration)>>);

impl Profile {
    pub(super) fn add(&self, op: &str, time: Duration) {
        let mut ops = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match ops.get_mut(op) {
            Some(entry) => *entry = (entry.0 + 1, entry.1 + time),
            None => drop(ops.insert(op.to_owned(), (1, time))),
        }
    }

    /// Op, calls and time, the longest first.
    pub fn table(&self) -> Vec<(String, u64, Duration)> {
        let ops = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut rows: Vec<_> = ops.iter().map(|(op, (n, t))| (op.clone(), *n, *t)).collect();
        rows.sort_by(|a, b| b.2.cmp(&a.2).then(a.0.cmp(&b.0)));
        rows
    }
}
