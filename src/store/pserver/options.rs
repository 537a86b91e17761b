//! How a server serves.

use super::ServerWatch;
use crate::store::Verify;
use crate::wire::{DEFAULT_MAX_FRAME, Tls};
use std::sync::Arc;
use std::time::Duration;

/// How to serve, and the limits that clients are held to.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Number of servers that share the shards.
    pub servers: usize,
    /// Which of them this is.
    pub index: usize,
    /// Threads; 0 means one per core.
    pub threads: usize,
    /// The secret that clients must know.
    pub token: Option<String>,
    /// Certificates: with them all connections are within TLS, and clients need one of the same CA.
    pub tls: Option<Tls>,
    /// The largest frame to send or to read, in bytes.
    pub max_frame: usize,
    /// The most ids in one request; clients split theirs.
    pub max_ids: usize,
    /// Connections at once; more are closed.
    pub max_connections: usize,
    /// Bytes of rows under way to all clients at once; requests wait for their share.
    pub max_in_flight: usize,
    /// Time from the start of a connection to the end of its handshake.
    pub handshake_timeout: Duration,
    /// Time that a client may take over one frame, to send or to take it.
    pub stall_timeout: Duration,
    /// Whether a client may stop the server.
    pub remote_shutdown: bool,
    /// When the files are verified.
    pub verify: Verify,
    /// Whether clients of this machine may come by a Unix socket beside the port, where nothing is encrypted.
    pub local: bool,
    /// Lets this process see what the server does.
    pub watch: Option<Arc<ServerWatch>>,
}

impl ServeOptions {
    /// Whether there is a socket for clients of this machine.
    pub(super) fn is_local(&self) -> bool {
        self.local && self.tls.is_none()
    }
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            servers: 1,
            index: 0,
            threads: 0,
            token: None,
            tls: None,
            max_frame: DEFAULT_MAX_FRAME,
            max_ids: 1 << 20,
            max_connections: 1024,
            max_in_flight: 512 << 20,
            handshake_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            remote_shutdown: false,
            verify: Verify::Auto,
            local: true,
            watch: None,
        }
    }
}
