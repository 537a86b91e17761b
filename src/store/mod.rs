//! Stores of table rows. A [`Store`] answers lookups; the wrappers add one property each and are stores themselves.

mod bags;
mod cached;
mod clock;
mod counted;
mod counters;
mod dedup;
mod deduped;
mod durations;
mod fallback;
mod gather;
mod keys;
mod layout;
mod memory;
mod narrow;
mod piece;
pub mod pserver;
#[cfg(feature = "redis")]
mod redis;
mod request;
mod rows;
mod sharded;
mod shards;
mod stream;
mod tally;
mod verify;
mod writer;

#[cfg(feature = "redis")]
pub use self::redis::{LoadOptions, Loaded, RedisOptions, RedisUrl, connect_redis, load_redis};
pub use bags::{BagFuture, BagQuery};
pub use cached::Cached;
pub use counted::Counted;
pub use dedup::Dedup;
pub use deduped::Deduped;
pub use durations::{BOUNDS, Durations, Timed};
pub use fallback::Fallback;
pub use memory::Memory;
pub use piece::checksum;
pub use pserver::{
    ConnectOptions, ReloadError, ServeOptions, ServerInfo, ServerWatch, connect, frames_in, reload_servers, serve, serve_shards,
    server_info, stop_server,
};
pub use rows::{RowSource, RowVisitor, TableRows};
pub use shards::{Shards, open_local, read_manifest};
pub use tally::Tally;
pub use verify::Verify;
pub use writer::{piece_file, rewrite_table, write_keyed_table, write_table};

pub use crate::wire::{DEFAULT_MAX_FRAME, Tls};

use crate::tensor::{DType, Shape, Tensor};
use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// A table as a store shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The name of the value that held the table in the original graph.
    pub name: String,
    /// Number of rows.
    pub rows: u64,
    /// Element type.
    pub dtype: DType,
    /// Dims of one row (empty for a table of rank 1).
    pub row_shape: Shape,
    /// Whether ids are keys (any `u64`) and not row numbers.
    pub keyed: bool,
}

/// Ids to look up in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Index into [`Store::tables`].
    pub table: usize,
    /// Row numbers (or keys), in any order, with duplicates; already checked and normalised by the op.
    pub ids: Vec<u64>,
}

/// What a lookup gives: per query a tensor `[ids.len(), row_shape…]`, the rows in the order of the ids.
pub type LookupFuture<'a> = Pin<Box<dyn Future<Output = Result<Vec<Tensor>, StoreError>> + Send + 'a>>;

/// Counters of a store since it was opened. A wrapper adds its own to those of the store within.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs)]
pub struct Stats {
    /// Calls of [`Store::lookup`], and of [`Store::lookup_bags`] that were answered.
    pub lookups: u64,
    /// Ids asked for.
    pub ids: u64,
    /// Ids that were sent on after de-duplication.
    pub unique_ids: u64,
    /// Round trips to servers.
    pub requests: u64,
    /// Bytes of rows received, pooled ones included.
    pub bytes: u64,
    /// Ids that a keyed table did not hold and that got their policy's row.
    pub absent: u64,
    /// Calls that were repeated after a connection was lost.
    pub retries: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
}

/// A source of table rows.
pub trait Store: Send + Sync + fmt::Debug {
    /// The tables, in the order that [`Query::table`] indexes.
    fn tables(&self) -> &[Table];

    /// Answers all queries, in one round trip per server where servers are involved. Idempotent.
    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_>;

    /// As [`Store::lookup`], with the rows pooled by bag where they are held. `None`, where that is not possible or makes no less
    /// travel: whoever asks looks the rows up and pools them, which gives the same bits. Idempotent.
    fn lookup_bags<'a>(&'a self, query: &'a BagQuery) -> BagFuture<'a> {
        let _ = query;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// The counters so far.
    fn stats(&self) -> Stats;
}

/// Why a lookup, or the opening of a store, failed. Absent, unavailable and invalid are kept apart.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The id is no row of the table.
    #[error("table \"{table}\": id {id} at position {position} is out of range, valid 0..{rows}")]
    Invalid {
        /// The table.
        table: String,
        /// The id.
        id: u64,
        /// Where in the query it stands.
        position: usize,
        /// Rows of the table.
        rows: u64,
    },
    /// A keyed table does not hold the key and its policy is to fail.
    #[error("table \"{table}\": key {key} is absent")]
    Absent {
        /// The table.
        table: String,
        /// The key.
        key: u64,
    },
    /// No connection, or it was lost and could not be made again in time.
    #[error("{} is unavailable: {detail}", whom(endpoint))]
    Unavailable {
        /// Its address.
        endpoint: String,
        /// What happened.
        detail: String,
    },
    /// A call ran past its deadline.
    #[error("{} did not answer within {seconds} s", whom(endpoint))]
    Timeout {
        /// Its address.
        endpoint: String,
        /// The deadline, in seconds.
        seconds: f64,
    },
    /// The peer answered, and says no: another plan, another graph, no token, a limit.
    #[error("{} refused: {detail}", whom(endpoint))]
    Refused {
        /// Its address.
        endpoint: String,
        /// Its reason.
        detail: String,
    },
    /// Files that are missing, torn or foreign.
    #[error("{0}")]
    Corrupt(String),
}

/// A server by its endpoint, or a store by its address.
fn whom(endpoint: &str) -> String {
    if endpoint.contains("://") { endpoint.to_owned() } else { format!("pserver {endpoint}") }
}

/// That every query names a table there is.
fn check_tables(tables: &[Table], queries: &[Query]) -> Result<(), StoreError> {
    match queries.iter().find(|q| q.table >= tables.len()) {
        Some(q) => Err(StoreError::Corrupt(format!("table {} of {}", q.table, tables.len()))),
        None => Ok(()),
    }
}
