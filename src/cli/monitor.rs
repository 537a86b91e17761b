//! What `run --metrics-addr` shows of a pserver or a worker.

use super::process::{is_loopback, listen};
use super::{output, usage};
use crate::job::exposition::Exposition;
use crate::job::monitor::{Monitor, monitor};
use crate::store::{BOUNDS, Cached, Durations, Fallback, ServerWatch, Store};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// What a worker lets others see while it works.
#[derive(Default)]
pub(super) struct WorkerWatch {
    /// Where it asks for rows, once it is connected.
    pub(super) ids: OnceLock<Ids>,
    /// How long lookups take.
    pub(super) durations: Arc<Durations>,
    /// Samples that are done.
    pub(super) samples: AtomicU64,
}

/// Where a process asks for rows, and the wrappers whose counts it ends with.
#[derive(Default, Clone)]
pub(super) struct Ids {
    pub(super) store: Option<Arc<dyn Store>>,
    pub(super) cache: Option<Arc<Cached>>,
    pub(super) fallback: Option<Arc<Fallback>>,
}

/// Serves at `address` and says where, on stderr.
fn serve(
    address: &str,
    open: bool,
    ready: impl Fn() -> bool + Send + Sync + 'static,
    text: impl Fn() -> String + Send + Sync + 'static,
) -> anyhow::Result<SocketAddr> {
    if !open && !is_loopback(address)? {
        return Err(usage(format!(
            "{address} is not loopback, and metrics are plain HTTP: give --token-file, or --insecure to serve anybody"
        )));
    }
    let listener = listen(address, true)?;
    let bound = listener.local_addr()?;
    monitor(listener, Monitor { ready: Box::new(ready), metrics: Box::new(text) })?;
    output::note(format_args!("metrics at http://{bound}/metrics"));
    Ok(bound)
}

/// The time now, in seconds.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// The start of each text: what the process is.
pub(super) fn about(role: &str, index: usize, plan_id: &str, start: f64) -> Exposition {
    let mut text = Exposition::default();
    text.info("graphtool_info", "What this process is.", &[("role", role), ("index", &index.to_string()), ("plan_id", plan_id)]);
    text.gauge("graphtool_process_start_time_seconds", "When this process began, since 1970.", start);
    text
}

const ABSENT: (&str, &str) = ("graphtool_absent_ids_total", "Ids that a keyed table did not hold and that got its row for absent ids.");

fn durations(text: &mut Exposition, help: &str, d: &Durations) {
    text.histogram("graphtool_lookup_duration_seconds", help, &BOUNDS, &d.cumulative(), d.seconds());
}

/// What became of the ids of a process.
pub(super) fn of_ids(text: &mut Exposition, role: &str, ids: &Ids, took: &Durations) {
    if let Some(store) = &ids.store {
        let s = store.stats();
        let mut counter = |name: &str, help: &str, value| text.counter(&format!("graphtool_{role}_{name}_total"), help, value);
        counter("lookups", "Lookups of the graph.", s.lookups);
        counter("ids", "Ids that were looked up.", s.ids);
        counter("requests", "Round trips to pservers.", s.requests);
        counter("received_bytes", "Bytes of rows that came from pservers.", s.bytes);
        counter("retries", "Calls that were repeated after a connection was lost.", s.retries);
        text.counter(ABSENT.0, ABSENT.1, s.absent);
        durations(text, "Time of lookups that were answered.", took);
    }
    if let Some(cache) = &ids.cache {
        let s = cache.stats();
        text.counter("graphtool_cache_hits_total", "Ids whose row the cache had.", s.cache_hits);
        text.counter("graphtool_cache_misses_total", "Ids whose row the cache did not have.", s.cache_misses);
        text.gauge("graphtool_cache_bytes", "Bytes that the cache takes.", cache.bytes());
        text.gauge("graphtool_cache_capacity_bytes", "Bytes that the cache may take.", cache.capacity());
    }
    if let Some(fallback) = &ids.fallback {
        let help = "Ids that got default rows because a server was unavailable.";
        text.counter("graphtool_unavailable_ids_total", help, fallback.defaulted());
    }
}

/// Shows a pserver.
pub(super) fn pserver(address: &str, open: bool, (index, plan_id): (usize, String), watch: Arc<ServerWatch>) -> anyhow::Result<SocketAddr> {
    let (start, seen) = (now(), watch.clone());
    serve(
        address,
        open,
        move || seen.info().is_some(),
        move || {
            let Some(info) = watch.info() else { return about("pserver", index, &plan_id, start).finish() };
            let mut text = about("pserver", index, &info.plan_id, start);
            let s = info.stats;
            text.counter("graphtool_pserver_lookups_total", "Requests that were answered.", s.lookups);
            text.counter("graphtool_pserver_ids_total", "Ids that were asked for.", s.ids);
            text.counter("graphtool_pserver_response_bytes_total", "Bytes of rows that were answered.", s.bytes);
            text.gauge("graphtool_pserver_connections", "Connections that are open.", info.connections);
            text.gauge("graphtool_pserver_shard_bytes", "Bytes of the shard files that are served.", info.bytes);
            text.counter(ABSENT.0, ABSENT.1, s.absent);
            durations(&mut text, "Time from a request to its rows, without sending them.", watch.durations());
            text.finish()
        },
    )
}

/// Shows a worker whose batches have `batch` samples.
pub(super) fn worker(
    address: &str,
    open: bool,
    (rank, plan_id): (usize, String),
    batch: usize,
    watch: Arc<WorkerWatch>,
) -> anyhow::Result<SocketAddr> {
    let (start, seen) = (now(), watch.clone());
    serve(
        address,
        open,
        move || seen.ids.get().is_some(),
        move || {
            let mut text = about("worker", rank, &plan_id, start);
            let samples = watch.samples.load(Relaxed);
            text.counter("graphtool_worker_samples_total", "Samples that are done, those of an earlier run of the job included.", samples);
            text.counter("graphtool_worker_batches_total", "Batches that are done, likewise.", samples.div_ceil(batch.max(1) as u64));
            let Some(ids) = watch.ids.get() else { return text.finish() };
            of_ids(&mut text, "worker", ids, &watch.durations);
            text.finish()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Absent, Manifest};
    use crate::store::{Memory, Query, Timed};
    use crate::tensor::Tensor;
    use std::io::{Read, Write};

    fn get(address: SocketAddr, page: &str) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {page} HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_worker_is_ready_once_it_is_connected_and_its_counters_grow() {
        let watch = Arc::new(WorkerWatch::default());
        let address = worker("127.0.0.1:0", false, (3, "plan".into()), 10, watch.clone()).unwrap();
        assert!(get(address, "/readyz").starts_with("HTTP/1.1 503 "));
        let text = get(address, "/metrics");
        assert!(text.contains("\ngraphtool_info{role=\"worker\",index=\"3\",plan_id=\"plan\"} 1\n") && !text.contains("lookups"), "{text}");
        let mut memory = Memory::new();
        let values = Tensor::new([2, 1], vec![1f32, 2.0]).unwrap();
        memory.add_keyed("t", &[5, 9], &values, Absent::Zero, None).unwrap();
        let manifest = Manifest::parse(
            r#"{"format_version":1,"plan_id":"p","fingerprint":"f","shards":1,"tables":[
            {"name":"t","rows":2,"row_shape":[1],"dtype":"float32","sharding":"table","keyed":true,"absent":"zero","pieces":[
            {"file":"x","shard":0,"rows":2,"first_row":0,"first_column":0,"columns":1,"bytes":8,"checksum":"xxh3:0000000000000000"}]}]}"#,
        )
        .unwrap();
        let cache = Arc::new(Cached::new(Arc::new(memory), &manifest, 1 << 20).unwrap());
        let store: Arc<dyn Store> = Arc::new(Timed::new(cache.clone(), watch.durations.clone()));
        watch.ids.set(Ids { store: Some(store.clone()), cache: Some(cache), fallback: None }).ok().unwrap();
        watch.samples.store(21, Relaxed);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..2 {
            runtime.block_on(store.lookup(vec![Query { table: 0, ids: vec![9, 7] }])).unwrap();
        }
        assert!(get(address, "/readyz").starts_with("HTTP/1.1 200 "));
        let text = get(address, "/metrics");
        for line in [
            "graphtool_worker_samples_total 21",
            "graphtool_worker_batches_total 3",
            "graphtool_worker_lookups_total 2",
            "graphtool_worker_ids_total 4",
            "graphtool_absent_ids_total 2",
            "graphtool_cache_hits_total 1",
            "graphtool_cache_misses_total 3",
            "graphtool_lookup_duration_seconds_count 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
