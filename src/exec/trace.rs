//! What runs did and when: one event for each step, lookup, wait and batch, in the form that chrome://tracing and Perfetto
//! show. Lookups have rows of their own, for they overlap the steps.

use crate::tensor::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Events that are kept; what comes later is counted.
const MOST: usize = 1 << 20;

/// The row on which an event stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Row {
    /// Whole runs.
    Batches,
    /// Steps, one after the other.
    Steps,
    /// Where steps wait for a lookup or a collective.
    Waits,
    /// A lookup or a collective, by its node.
    Host(String),
}

/// Something that took time.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) row: Row,
    pub(super) name: String,
    pub(super) op: String,
    /// Which run of the session it belongs to.
    pub(super) batch: u64,
    pub(super) start: Instant,
    pub(super) end: Instant,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
}

/// Events of all runs of a session; collecting takes a few clock reads and the text of shapes for each step.
#[derive(Debug)]
pub struct Trace {
    start: Instant,
    batches: AtomicU64,
    events: Mutex<Vec<Event>>,
    left_out: AtomicU64,
}

impl Default for Trace {
    fn default() -> Self {
        Self { start: Instant::now(), batches: AtomicU64::new(0), events: Mutex::default(), left_out: AtomicU64::new(0) }
    }
}

/// Dtype and dims of values.
pub(super) fn describe<'v>(values: impl IntoIterator<Item = Option<&'v Value>>) -> Vec<String> {
    values.into_iter().map(|v| v.map(Value::describe).unwrap_or_default()).collect()
}

impl Trace {
    /// The number of the run that begins.
    pub(super) fn batch(&self) -> u64 {
        self.batches.fetch_add(1, Relaxed)
    }

    /// A run is done.
    pub(super) fn batch_done(&self, batch: u64, start: Instant, inputs: Vec<String>, made: &[Value]) {
        let (name, op, outputs) = (format!("batch {batch}"), String::from("run"), describe(made.iter().map(Some)));
        self.add(Event { row: Row::Batches, name, op, batch, start, end: Instant::now(), inputs, outputs });
    }

    pub(super) fn add(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if events.len() < MOST {
            events.push(event);
        } else {
            self.left_out.fetch_add(1, Relaxed);
        }
    }

    /// The events as JSON; `process` names what ran, `pid` is its number among others of the job.
    pub fn json(&self, process: &str, pid: usize) -> String {
        let events = self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut rows: BTreeMap<&Row, usize> = events.iter().map(|e| (&e.row, 0)).collect();
        rows.values_mut().enumerate().for_each(|(i, tid)| *tid = i + 1);
        let named = |kind: &str, tid: usize, name: &str| serde_json::json!({"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}});
        let mut lines = vec![named("process_name", 0, process)];
        for (row, tid) in &rows {
            let name = match row {
                Row::Batches => "batches",
                Row::Steps => "steps",
                Row::Waits => "waits",
                Row::Host(node) => node,
            };
            lines.push(named("thread_name", *tid, name));
        }
        let micros = |at: Instant, from: Instant| at.saturating_duration_since(from).as_nanos() as f64 / 1e3;
        lines.extend(events.iter().map(|e| {
            serde_json::json!({
                "name": e.name, "cat": e.op, "ph": "X", "pid": pid, "tid": rows[&e.row],
                "ts": micros(e.start, self.start), "dur": micros(e.end, e.start),
                "args": {"op": e.op, "batch": e.batch, "inputs": e.inputs, "outputs": e.outputs},
            })
        }));
        let mut text = String::from("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
        for (i, line) in lines.iter().enumerate() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{line}{}", if i + 1 < lines.len() { "," } else { "" });
        }
        let _ = writeln!(text, "],\"otherData\":{{\"events left out\":\"{}\"}}}}", self.left_out.load(Relaxed));
        text
    }
}
