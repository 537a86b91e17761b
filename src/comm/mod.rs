//! Collectives between the workers of a job.

mod call;
mod local;
mod member;
mod reduce;
mod rendezvous;
mod tcp;

pub use crate::wire::Tls;
pub use local::{local_group, solo};
pub use tcp::{GroupOptions, connect, frames_in};

use crate::tensor::Tensor;
use bytes::Bytes;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// How [`Comm::all_reduce`] combines the ranks' elements. Ranks are combined in their order, so every run gives the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// The sum; the neutral element is 0. Integers wrap.
    Sum,
    /// The sum over the ranks that contributed, divided by their number; that of integers truncates towards zero.
    Mean,
    /// The greatest; NaN wins.
    Max,
    /// The least; NaN wins.
    Min,
}

/// The result of a collective.
pub type CommFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, CommError>> + Send + 'a>>;

/// A group of ranks that run the same collectives in the same order.
///
/// `name` is the name of the node that asks; ranks agree on sequence number, op, name, dtype and shape, or all get an
/// error that shows both sides. A rank that called [`Comm::join`] contributes the neutral element to each later collective.
/// The order is that of the calls, not of the first polls. After an error other than [`CommError::Invalid`] the group has
/// ended, and every call gives that error.
pub trait Comm: Send + Sync + fmt::Debug {
    /// This rank, below [`Comm::size`].
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn size(&self) -> usize;

    /// Combines the ranks' tensors (equal dtype and shape) element by element; all ranks get the result.
    fn all_reduce(&self, name: &str, x: Tensor, op: ReduceOp) -> CommFuture<'_, Tensor>;

    /// Concatenates the ranks' tensors along `axis`, in rank order; the lengths along `axis` may differ.
    fn all_gather(&self, name: &str, x: Tensor, axis: usize) -> CommFuture<'_, Tensor>;

    /// Reduces, then gives each rank its part of axis 0 (whose length must be a multiple of the size).
    fn reduce_scatter(&self, name: &str, x: Tensor, op: ReduceOp) -> CommFuture<'_, Tensor>;

    /// All ranks get the root's tensor; the others' `x` only states dtype and shape.
    fn broadcast(&self, name: &str, x: Tensor, root: usize) -> CommFuture<'_, Tensor>;

    /// Returns when every rank that has not joined has called it.
    fn barrier(&self, name: &str) -> CommFuture<'_, ()>;

    /// Brings the ranks' payloads, of any size each, to rank 0, which gets them in rank order (an empty one for each rank
    /// that has joined); the others get `None`.
    fn gather_bytes(&self, name: &str, payload: Bytes) -> CommFuture<'_, Option<Vec<Bytes>>>;

    /// Says that this rank has no work left. Returns when every rank has joined; then the group may go on anew.
    fn join(&self) -> CommFuture<'_, ()>;
}

/// How the detail of a loss begins where a rank may still be there, but gives no sign of life.
pub const SILENT: &str = "nothing was heard of it";

fn place(endpoint: &str) -> String {
    if endpoint.is_empty() { String::new() } else { format!(" ({endpoint})") }
}

/// Why a collective failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommError {
    /// The ranks do not run the same collective.
    #[error("ranks disagree: {0}")]
    Mismatch(String),
    /// A rank is gone; every pending collective ends with this.
    #[error("rank {rank} lost: {detail}")]
    Lost {
        /// The rank.
        rank: usize,
        /// What was seen.
        detail: String,
    },
    /// A collective ran past its deadline.
    #[error("rank {rank} did not take part in \"{name}\" within {seconds} s{}", place(endpoint))]
    Timeout {
        /// The rank that was waited for.
        rank: usize,
        /// Where it is, if that is known.
        endpoint: String,
        /// The collective's name.
        name: String,
        /// The deadline, in seconds.
        seconds: f64,
    },
    /// A rank could not be reached when the group was formed.
    #[error("worker {endpoint} is unavailable: {detail}")]
    Unavailable {
        /// Its address.
        endpoint: String,
        /// What happened.
        detail: String,
    },
    /// The peer says no: another plan, another graph, no token, a limit.
    #[error("worker {endpoint} refused: {detail}")]
    Refused {
        /// Its address.
        endpoint: String,
        /// Its reason.
        detail: String,
    },
    /// The tensor cannot take part (a dtype without arithmetic, a length that does not divide).
    #[error("{0}")]
    Invalid(String),
}
