//! A look at a server from its own process.

use super::ServerInfo;
use super::server::{Shared, describe};
use crate::store::Durations;
use std::sync::{OnceLock, Weak};

/// Filled by the one server that it is given to in [`super::ServeOptions::watch`], as soon as its shards are open.
#[derive(Debug, Default)]
pub struct ServerWatch {
    pub(super) server: OnceLock<Weak<Shared>>,
    pub(super) durations: Durations,
}

impl ServerWatch {
    /// What the server says of itself; `None` until it can answer, and after its end.
    pub fn info(&self) -> Option<ServerInfo> {
        self.server.get().and_then(Weak::upgrade).map(|shared| describe(&shared))
    }

    /// How long it takes from a request to its rows, without sending them.
    pub fn durations(&self) -> &Durations {
        &self.durations
    }
}
