//! Parameter servers: a process that holds some shards of a deployment and answers lookups over TCP, and the client that
//! is to a router what local shards are. The protocol is in `wire`.

mod bag_chunks;
mod chunks;
mod client;
mod frames;
mod options;
mod reload;
mod replicas;
mod server;
mod versions;
mod watch;
mod wire;

pub use client::{ConnectOptions, connect, server_info, stop_server};
pub use frames::frames_in;
pub use options::ServeOptions;
pub use reload::{ReloadError, reload_servers};
pub use server::{serve, serve_shards};
pub use watch::ServerWatch;

use super::Stats;
use serde::{Deserialize, Serialize};

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// [`crate::plan::Manifest::plan_id`] of the deployment that it serves.
    pub plan_id: String,
    /// [`crate::plan::Manifest::fingerprint`] of it.
    pub fingerprint: String,
    /// Number of servers that share the shards.
    pub servers: usize,
    /// Which of them it is.
    pub index: usize,
    /// The shards that it holds.
    pub shards: Vec<u32>,
    /// Bytes of their files.
    pub bytes: u64,
    /// Tables of which it holds a part, by name.
    pub tables: Vec<String>,
    /// Connections that are open.
    pub connections: usize,
    /// Its counters: requests answered are `lookups`.
    pub stats: Stats,
}
