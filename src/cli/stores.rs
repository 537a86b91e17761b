//! The store that a process asks for rows: which one, and what stands before it.

use super::job::JobArgs;
use super::monitor::Ids;
use crate::plan::Manifest;
use crate::store::{self, Cached, Durations, Fallback, Shards, Store, Timed};
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Opens the store over the tables of the deployment in `dir`: its shards in this process, or pservers where `servers` names some.
/// Lookups that were answered are measured in `durations`, where they are wanted.
pub(super) fn open(
    dir: &Path,
    mut manifest: Manifest,
    job: &JobArgs,
    servers: &[String],
    durations: Option<Arc<Durations>>,
    runtime: &Runtime,
) -> anyhow::Result<Ids> {
    job.policies(&mut manifest);
    let manifest = Arc::new(manifest);
    let mut ids = Ids::default();
    let mut store: Arc<dyn Store> = if servers.is_empty() {
        let shards = Arc::new(Shards::open(dir, manifest.clone(), |_| true)?);
        shards.clone().verify_when(job.verify())?;
        shards
    } else {
        runtime.block_on(store::connect(manifest.clone(), servers, job.connect_options()?))?
    };
    if let Some(size) = job.cache {
        let cache = Arc::new(Cached::new(store, &manifest, size)?);
        ids.cache = Some(cache.clone());
        store = cache;
    }
    if !servers.is_empty() && job.on_unavailable == "default" {
        // Around the cache, which is to keep no row that is not its id's.
        let fallback = Arc::new(Fallback::new(store, &manifest)?);
        ids.fallback = Some(fallback.clone());
        store = fallback;
    }
    if let Some(durations) = durations {
        store = Arc::new(Timed::new(store, durations));
    }
    ids.store = Some(store);
    Ok(ids)
}
