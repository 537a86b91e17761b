//! The store that a process asks for rows: which one, and what stands before it.

use super::chain::{Chain, Source, Wrapper};
use super::monitor::Ids;
use super::store_args::StoreArgs;
use super::usage;
use crate::plan::Manifest;
use crate::store::{self, Cached, Deduped, Durations, Fallback, Memory, Shards, Store, StoreError, Timed, Verify};
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// What `--store` says, or `servers`, `--cache` and `--on-unavailable`, which are short for it.
///
/// # Errors
/// A chain that is none, or beside flags that say the same.
pub(super) fn chain(args: &StoreArgs, servers: &[String]) -> anyhow::Result<Chain> {
    let mut chain = match &args.store {
        Some(_) if !servers.is_empty() => return Err(usage("--servers stands for --store pserver://…; give one of them")),
        Some(_) if args.cache.is_some() => return Err(usage("--cache stands for --store cache:SIZE,…; give one of them")),
        Some(text) => Chain::parse(text).map_err(|e| usage(format!("--store: {e}")))?,
        None => Chain {
            wrappers: args.cache.map(Wrapper::Cache).into_iter().collect(),
            source: if servers.is_empty() { Source::Shards(None) } else { Source::Pservers(servers.to_vec()) },
        },
    };
    if args.on_unavailable == "default" && !chain.wrappers.contains(&Wrapper::Default) {
        // Around the cache, which is to keep no row that is not its id's.
        chain.wrappers.insert(0, Wrapper::Default);
    }
    Ok(chain)
}

/// That nothing is said of tables, for a model that has its own.
///
/// # Errors
/// Names the flag.
pub(super) fn no_tables(args: &StoreArgs, servers: &[String]) -> anyhow::Result<()> {
    let given = [("--servers", !servers.is_empty()), ("--store", args.store.is_some()), ("--cache", args.cache.is_some())];
    match given.into_iter().find(|g| g.1) {
        Some((flag, _)) => Err(usage(format!("{flag} is for the tables of a deployment directory; this is a model file"))),
        None => Ok(()),
    }
}

/// Opens the store over the tables of the deployment in `dir` that [`chain`] says: without any flag, its shards in this process.
/// Lookups that were answered are measured in `durations`, where they are wanted.
pub(super) fn open(
    dir: &Path,
    mut manifest: Manifest,
    args: &StoreArgs,
    servers: &[String],
    durations: Option<Arc<Durations>>,
    runtime: &Runtime,
) -> anyhow::Result<Ids> {
    let chain = chain(args, servers)?;
    args.policies(&mut manifest);
    let manifest = Arc::new(manifest);
    let mut ids = Ids::default();
    let local = matches!(chain.source, Source::Memory | Source::Shards(_));
    let mut store = source(dir, &manifest, args, &chain.source, runtime)?;
    for wrapper in chain.wrappers.iter().rev() {
        match wrapper {
            Wrapper::Cache(size) => {
                let cache = Arc::new(Cached::new(store, &manifest, *size)?);
                ids.cache = Some(cache.clone());
                store = cache;
            }
            Wrapper::Dedup => store = Arc::new(Deduped::new(store)),
            // What is in this process is never out of reach.
            Wrapper::Default if local => {}
            Wrapper::Default => {
                let fallback = Arc::new(Fallback::new(store, &manifest)?);
                ids.fallback = Some(fallback.clone());
                store = fallback;
            }
        }
    }
    if let Some(durations) = durations {
        store = Arc::new(Timed::new(store, durations));
    }
    ids.store = Some(store);
    Ok(ids)
}

fn source(dir: &Path, manifest: &Arc<Manifest>, args: &StoreArgs, source: &Source, runtime: &Runtime) -> anyhow::Result<Arc<dyn Store>> {
    Ok(match source {
        Source::Memory => {
            if args.verify() != Verify::Off {
                Shards::open(dir, manifest.clone(), |_| true)?.verify()?;
            }
            Arc::new(Memory::read(dir, manifest)?)
        }
        Source::Pservers(endpoints) => runtime.block_on(store::connect(manifest.clone(), endpoints, args.connect_options()?))?,
        #[cfg(feature = "redis")]
        Source::Redis(url) => {
            let of = args.connect_options()?;
            let options = store::RedisOptions {
                connect_timeout: of.connect_timeout,
                rpc_timeout: of.rpc_timeout,
                dedup: of.dedup,
                hint: format!("graphtool load {} --store {url}", dir.display()),
            };
            runtime.block_on(store::connect_redis(manifest, url, &options))?
        }
        Source::Shards(other) => {
            let other = other.as_deref().unwrap_or(dir);
            let found = store::read_manifest(other)?.plan_id;
            if found != manifest.plan_id {
                let (here, there, plan) = (dir.display(), other.display(), &manifest.plan_id);
                return Err(StoreError::Corrupt(format!("{there}: its plan id is {found}, that of {here} is {plan}")).into());
            }
            let shards = Arc::new(Shards::open(other, manifest.clone(), |_| true)?);
            shards.clone().verify_when(args.verify())?;
            shards
        }
    })
}
