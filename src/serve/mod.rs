//! A model behind HTTP: the Open Inference Protocol, version 2, with Triton's binary extension (`protocol`), the requests of
//! several clients in one run (`batch`), what is answered at which path (`routes`), and a page that shows it (`page`).
//!
//! An answer has the bits of the run that it was computed in. A request that is computed by itself has those of `graphtool run` on
//! the same samples as one batch; of several in one run, matrix products may round differently, as for any other size of a batch.

mod batch;
mod body;
mod counts;
mod guard;
mod page;
pub mod protocol;
mod routes;
mod stack;

pub use batch::{BatchOptions, Batcher};
pub use counts::Counts;
pub use guard::Guard;
pub use page::about;

use crate::http::Router;
use crate::job::exposition::Exposition;
use body::Memory;
use protocol::Interface;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Bodies under way, in the largest that is taken.
const BODIES: usize = 8;

/// What a server is made of.
pub struct Parts {
    /// The model as clients see it.
    pub interface: Interface,
    /// The queue before its session.
    pub batcher: Arc<Batcher>,
    /// The counts that the queue adds to.
    pub counts: Arc<Counts>,
    /// Bytes of a body, packed and unpacked.
    pub limit: usize,
    /// The secret that clients have to send.
    pub token: Option<String>,
    /// Tells whether pservers are away.
    pub guard: Option<Arc<Guard>>,
    /// The picture of the graph.
    pub picture: String,
    /// What the page shows besides, of [`about`].
    pub about: String,
    /// Adds what is counted elsewhere.
    pub more: Box<dyn Fn(&mut Exposition) + Send + Sync>,
}

/// A model that is served.
pub struct Service {
    interface: Interface,
    batcher: Arc<Batcher>,
    counts: Arc<Counts>,
    limit: usize,
    memory: Memory,
    token: Option<String>,
    guard: Option<Arc<Guard>>,
    picture: String,
    about: String,
    more: Box<dyn Fn(&mut Exposition) + Send + Sync>,
    /// 0 while it serves, 1 when it is to end, 2 when it answers no more.
    stage: AtomicU8,
}

impl Service {
    /// A service of these parts.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { interface, batcher, counts, limit, token, guard, picture, about, more } = parts;
        let memory = Memory::new(limit.saturating_mul(BODIES));
        Arc::new(Self { interface, batcher, counts, limit, memory, token, guard, picture, about, more, stage: AtomicU8::new(0) })
    }

    /// What it answers, for [`crate::http::serve`].
    pub fn routes(self: &Arc<Self>) -> Router {
        routes::routes(self.clone())
    }

    /// Says to those who ask that it is no longer ready, and answers all the same.
    pub fn leave(&self) {
        self.stage.fetch_max(1, Relaxed);
    }

    /// Answers no more requests for inference but those that are there.
    pub fn end(&self) {
        self.stage.fetch_max(2, Relaxed);
    }

    fn ended(&self) -> bool {
        self.stage.load(Relaxed) > 1
    }

    /// Whether requests are answered, as far as is known.
    fn ready(&self) -> bool {
        self.stage.load(Relaxed) == 0 && self.guard.as_ref().is_none_or(|g| g.lost().is_none())
    }

    fn statistics(&self) -> serde_json::Value {
        self.counts.statistics(&self.interface.name, &self.interface.version)
    }
}
