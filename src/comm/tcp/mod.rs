//! Groups over TCP. Rank 0 is where the group meets: it runs the server, the other ranks are its clients. Each process
//! gives its side a thread with a runtime of its own, so that a rank that computes still says that it is alive.
//!
//! Small tensors go to rank 0 and come back combined. Of large ones rank 0 hears only what they are; when all ranks agree, the
//! bytes go from rank to rank ([`GroupOptions::direct_from`]). The bits are the same either way.

mod client;
mod direct;
mod door;
mod frames;
mod link;
mod server;
mod shelf;
mod wire;

pub use frames::frames_in;

use super::member::Member;
use super::{Comm, CommError, solo};
use crate::wire::{DEFAULT_MAX_FRAME, Hello, Identity, Role, Tls};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// [`GroupOptions::direct_from`] unless the caller says otherwise. From rank to rank takes some more messages, 0.6 to 0.9 ms by
/// `benches/collectives.rs`; by way of rank 0, its link carries the tensor `2 (ranks - 1)` times, which among four ranks and at
/// 10 Gbit/s takes as long for about this size.
const DIRECT_FROM: usize = 256 << 10;

/// How a rank finds its group.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// This rank, below the number of endpoints.
    pub rank: usize,
    /// Addresses (`host:port`) of all ranks, in their order; rank 0's is the one that is connected to.
    pub endpoints: Vec<String>,
    /// [`crate::plan::Manifest::plan_id`] of the deployment.
    pub plan_id: String,
    /// [`crate::plan::Manifest::fingerprint`] of it.
    pub fingerprint: String,
    /// The secret that all ranks share.
    pub token: Option<String>,
    /// Certificates: with them all connections are within TLS, and every rank needs one of the same CA, for the host at which it
    /// listens.
    pub tls: Option<Tls>,
    /// How long ranks wait for each other when the group is formed.
    pub connect_timeout: Duration,
    /// How long a collective may take from the first rank to the last.
    pub timeout: Duration,
    /// A rank of which nothing is heard for so long is lost.
    pub heartbeat_timeout: Duration,
    /// The largest frame, in bytes; larger tensors and payloads are split.
    pub max_frame: usize,
    /// Tensors of so many bytes go from rank to rank instead of to rank 0 and back; what rank 0 has here counts for all. With
    /// `usize::MAX` none does, and ranks other than 0 listen nowhere.
    pub direct_from: usize,
    /// Whether a process may take the place of a rank that was lost. It is taken in as long as no collective has begun; after
    /// that the group ends with [`CommError::Lost`], and whoever gets this forms a new one.
    pub rejoin: bool,
    /// Whether this process comes to a group that may be formed already: it does not wait for the others.
    pub late: bool,
}

impl GroupOptions {
    /// Rank `rank` of the workers at `endpoints`, with default limits.
    pub fn new(rank: usize, endpoints: Vec<String>) -> Self {
        Self {
            rank,
            endpoints,
            plan_id: String::new(),
            fingerprint: String::new(),
            token: None,
            tls: None,
            connect_timeout: Duration::from_secs(60),
            timeout: Duration::from_secs(600),
            heartbeat_timeout: Duration::from_secs(10),
            max_frame: DEFAULT_MAX_FRAME,
            direct_from: DIRECT_FROM,
            rejoin: false,
            late: false,
        }
    }

    fn size(&self) -> usize {
        self.endpoints.len()
    }

    fn hello(&self, role: Role, index: usize) -> Hello {
        let identity = Identity {
            plan_id: self.plan_id.clone(),
            fingerprint: self.fingerprint.clone(),
            token: self.token.clone(),
            size: self.size() as u32,
        };
        Hello::new(role, identity, index as u32, self.max_frame)
    }

    /// Time from one sign of life to the next.
    fn heartbeat(&self) -> Duration {
        (self.heartbeat_timeout / 5).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }
}

/// Forms the group and returns when all ranks are there, in whatever order they start. Rank 0 listens on `listener`, or on
/// its endpoint if there is none. The others listen for each other on theirs, which is known as their endpoint; without one on a
/// port of the system's choice, at the address by which they reach rank 0. A group of one rank opens no port.
///
/// # Errors
/// A rank that is not there within the time, or has another deployment.
pub async fn connect(options: GroupOptions, listener: Option<TcpListener>) -> Result<Arc<dyn Comm>, CommError> {
    let (rank, size) = (options.rank, options.size());
    if rank >= size {
        return Err(CommError::Invalid(format!("rank {rank} of {size} workers")));
    }
    if size == 1 {
        return Ok(solo());
    }
    let (ready, formed) = oneshot::channel();
    let ended = || CommError::Lost { rank: 0, detail: "the group ended while it was formed".into() };
    if rank == 0 {
        let listener = match listener {
            Some(listener) => listener,
            None => TcpListener::bind(&options.endpoints[0])
                .map_err(|e| CommError::Unavailable { endpoint: options.endpoints[0].clone(), detail: format!("cannot listen: {e}") })?,
        };
        let root = server::Root::start(listener, options, ready)?;
        formed.await.unwrap_or_else(|_| Err(ended()))?;
        return Ok(Arc::new(Member::new(rank, size, root)));
    }
    let branch = client::Branch::start(options, listener, ready)?;
    formed.await.unwrap_or_else(|_| Err(ended()))?;
    Ok(Arc::new(Member::new(rank, size, branch)))
}

/// A thread of a group, joined when the last handle is dropped.
#[derive(Debug)]
struct Worker {
    thread: Option<std::thread::JoinHandle<()>>,
    runtime: tokio::runtime::Handle,
}

impl Worker {
    fn spawn(run: impl Future<Output = ()> + Send + 'static) -> Result<Self, CommError> {
        let system = |e: std::io::Error| CommError::Invalid(format!("cannot start the thread of the group: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
        let builder = std::thread::Builder::new().name("graphtool-comm".into());
        let handle = runtime.handle().clone();
        Ok(Self { thread: Some(builder.spawn(move || runtime.block_on(run)).map_err(system)?), runtime: handle })
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}
