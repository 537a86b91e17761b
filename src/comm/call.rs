//! What ranks say to the place where their group meets, and what it answers.

use super::{CommError, ReduceOp};
use crate::tensor::{DType, Shape};
use bytes::Bytes;
use std::fmt;
use tokio::sync::oneshot;

/// A collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    AllReduce(ReduceOp),
    AllGather(usize),
    ReduceScatter(ReduceOp),
    Broadcast(usize),
    Barrier,
    Join,
    GatherBytes,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reduce = |op: &ReduceOp| format!("{op:?}").to_lowercase();
        match self {
            Op::AllReduce(op) => write!(f, "all_reduce({})", reduce(op)),
            Op::AllGather(axis) => write!(f, "all_gather(axis {axis})"),
            Op::ReduceScatter(op) => write!(f, "reduce_scatter({})", reduce(op)),
            Op::Broadcast(root) => write!(f, "broadcast(root {root})"),
            Op::Barrier => f.write_str("barrier"),
            Op::Join => f.write_str("join"),
            Op::GatherBytes => f.write_str("gather_bytes"),
        }
    }
}

/// What a rank says about its contribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) op: Op,
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Shape,
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.op, self.name)?;
        if matches!(self.op, Op::Barrier | Op::Join | Op::GatherBytes) {
            return Ok(());
        }
        write!(f, " {}{}", self.dtype, self.shape)
    }
}

impl Ask {
    /// The bytes of a tensor of its dtype and shape, where a tensor is what is asked with.
    pub(super) fn bytes(&self) -> Option<usize> {
        let tensor = !matches!(self.op, Op::Barrier | Op::Join | Op::GatherBytes) && self.dtype.size().is_some();
        self.dtype.byte_len(&self.shape).filter(|_| tensor)
    }

    /// Whether its bytes stay with the rank until all have agreed.
    pub(super) fn waits(&self, direct_from: usize) -> bool {
        self.bytes().is_some_and(|n| n >= direct_from)
    }

    pub(super) fn agrees(&self, other: &Self) -> bool {
        if (self.op, &self.name, self.dtype) != (other.op, &other.name, other.dtype) {
            return false;
        }
        match self.op {
            Op::GatherBytes => true,
            Op::AllGather(axis) => {
                let rest = |s: &Shape| s.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, &d)| d).collect::<Vec<_>>();
                self.shape.len() == other.shape.len() && rest(&self.shape) == rest(&other.shape)
            }
            _ => self.shape == other.shape,
        }
    }
}

/// Which collective of a group: joins end an epoch, and numbers begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) epoch: u64,
    pub(super) seq: u64,
}

/// What a rank gets.
#[derive(Debug, Clone)]
pub(super) enum Output {
    Nothing,
    Tensor(DType, Shape, Bytes),
    Payloads(Vec<Bytes>),
    /// The ranks have agreed; the bytes go from rank to rank.
    Direct(Plan),
}

/// Who takes part in a collective whose bytes go from rank to rank, in rank order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Tells this group from one that the same processes formed before or form later.
    pub(super) group: u64,
    pub(super) members: Vec<Party>,
}

/// One who takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Party {
    pub(super) rank: usize,
    /// The length of its tensor along the axis of an all_gather.
    pub(super) along: usize,
    /// Where it listens; empty for rank 0, whose endpoint is known to all.
    pub(super) address: String,
}

pub(super) type Answer = Result<Output, CommError>;

/// Where an answer goes. It may be called under the lock of the meeting place: it hands the answer on and does no more.
pub(super) struct Reply(pub(super) Box<dyn FnOnce(Answer) + Send>);

impl Reply {
    pub(super) fn channel() -> (Self, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Box::new(|answer| _ = sender.send(answer))), receiver)
    }

    pub(super) fn send(self, answer: Answer) {
        (self.0)(answer);
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}
