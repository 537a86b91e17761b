//! What a server counts, and its form for Prometheus, for Triton's clients and for the page.

use crate::job::exposition::Exposition;
use crate::store::{BOUNDS, Durations};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

/// The statuses that a request for inference can end with.
const CODES: [u16; 9] = [200, 400, 401, 404, 408, 413, 415, 500, 503];
/// Samples of a run, the upper bounds of all buckets but the last.
const SIZES: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];

/// The counts of a server since it began.
#[derive(Debug)]
pub struct Counts {
    began: Instant,
    codes: [AtomicU64; CODES.len()],
    /// From the head of a request to its answer, of those that were answered with 200.
    latency: Durations,
    runs: AtomicU64,
    samples: AtomicU64,
    sizes: [AtomicU64; SIZES.len() + 1],
    /// Requests that were computed with others.
    joined: AtomicU64,
    queued: AtomicU64,
    waited: AtomicU64,
    computed: AtomicU64,
    last: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            codes: Default::default(),
            latency: Durations::default(),
            runs: AtomicU64::new(0),
            samples: AtomicU64::new(0),
            sizes: Default::default(),
            joined: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            computed: AtomicU64::new(0),
            last: AtomicU64::new(0),
        }
    }
}

fn nanoseconds(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Counts {
    /// Counts the end of a request for inference.
    pub(super) fn answered(&self, status: u16, took: Duration) {
        if let Some(i) = CODES.iter().position(|c| *c == status) {
            self.codes[i].fetch_add(1, Relaxed);
        }
        if status == 200 {
            self.latency.add(took);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.last.store(u64::try_from(now.as_millis()).unwrap_or(0), Relaxed);
        }
    }

    /// Counts a run that succeeded, of this many samples and requests.
    pub(super) fn ran(&self, samples: usize, requests: usize, took: Duration) {
        self.runs.fetch_add(1, Relaxed);
        self.samples.fetch_add(samples as u64, Relaxed);
        self.sizes[SIZES.partition_point(|s| *s < samples as f64)].fetch_add(1, Relaxed);
        self.computed.fetch_add(nanoseconds(took), Relaxed);
        if requests > 1 {
            self.joined.fetch_add(requests as u64, Relaxed);
        }
    }

    /// Counts a request that leaves the queue.
    pub(super) fn waited(&self, wait: Duration) {
        self.queued.fetch_add(1, Relaxed);
        self.waited.fetch_add(nanoseconds(wait), Relaxed);
    }

    /// Requests that were answered with 200, and samples that were computed.
    pub fn served(&self) -> (u64, u64) {
        (self.code(200), self.samples.load(Relaxed))
    }

    fn code(&self, status: u16) -> u64 {
        CODES.iter().position(|c| *c == status).map_or(0, |i| self.codes[i].load(Relaxed))
    }

    /// Adds them to a text for Prometheus.
    pub(super) fn expose(&self, text: &mut Exposition, queue: usize) {
        let codes: Vec<(String, u64)> = CODES.iter().map(|c| (c.to_string(), self.code(*c))).collect();
        text.counters("graphtool_serve_inferences_total", "Requests for inference by the status of their answer.", "code", &codes);
        text.counter("graphtool_serve_samples_total", "Samples that were computed.", self.samples.load(Relaxed));
        let help = "Requests that were computed together with others.";
        text.counter("graphtool_serve_joined_requests_total", help, self.joined.load(Relaxed));
        text.gauge("graphtool_serve_queue", "Requests that wait to be computed.", queue);
        let mut sum = 0;
        let upto = |n: &AtomicU64| {
            sum += n.load(Relaxed);
            sum
        };
        let upto: Vec<u64> = self.sizes.iter().map(upto).collect();
        text.histogram("graphtool_serve_batch_samples", "Samples of a run.", &SIZES, &upto, self.samples.load(Relaxed) as f64);
        let help = "Time from a request for inference to its answer, of those answered with 200.";
        text.histogram("graphtool_serve_duration_seconds", help, &BOUNDS, &self.latency.cumulative(), self.latency.seconds());
    }

    /// In Triton's form.
    pub(super) fn statistics(&self, name: &str, version: &str) -> Value {
        let (good, all) = (self.code(200), CODES.iter().map(|c| self.code(*c)).sum::<u64>());
        let of = |count: u64, ns: u64| json!({ "count": count, "ns": ns });
        let (queued, runs) = (self.queued.load(Relaxed), self.runs.load(Relaxed));
        json!({ "model_stats": [{
            "name": name,
            "version": version,
            "last_inference": self.last.load(Relaxed),
            "inference_count": self.samples.load(Relaxed),
            "execution_count": runs,
            "inference_stats": {
                "success": of(good, (self.latency.seconds() * 1e9) as u64),
                "fail": of(all - good, 0),
                "queue": of(queued, self.waited.load(Relaxed)),
                "compute_input": of(0, 0),
                "compute_infer": of(runs, self.computed.load(Relaxed)),
                "compute_output": of(0, 0),
                "cache_hit": of(0, 0),
                "cache_miss": of(0, 0),
            },
            "batch_stats": [],
        }] })
    }

    /// What the page shows and makes rates of.
    pub(super) fn live(&self, queue: usize) -> Value {
        let all = CODES.iter().map(|c| self.code(*c)).sum::<u64>();
        json!({
            "seconds": self.began.elapsed().as_secs_f64(),
            "requests": all,
            "failed": all - self.code(200),
            "samples": self.samples.load(Relaxed),
            "runs": self.runs.load(Relaxed),
            "queue": queue,
            "latency_seconds": self.latency.seconds(),
            "latency_buckets": self.latency.cumulative(),
            "latency_bounds": BOUNDS,
        })
    }
}
