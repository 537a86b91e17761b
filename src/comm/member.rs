//! One rank's side of a group, whatever carries its contributions: numbers the calls and turns tensors into bytes and back.

use super::call::{Answer, Ask, Op, Output, Turn};
use super::{Comm, CommError, CommFuture, ReduceOp};
use crate::tensor::{DType, Shape, Tensor};
use bytes::Bytes;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use tokio::sync::oneshot;

/// Carries contributions to where the group meets.
pub(super) trait Carrier: Send + Sync + fmt::Debug {
    /// Hands over a contribution. The receiver gets the answer, or nothing if the group has ended.
    fn submit(&self, turn: Turn, ask: Ask, bytes: Bytes) -> oneshot::Receiver<Answer>;
}

/// A rank.
#[derive(Debug)]
pub(super) struct Member<C> {
    rank: usize,
    size: usize,
    carrier: C,
    turn: Mutex<Turn>,
}

impl<C: Carrier> Member<C> {
    pub(super) fn new(rank: usize, size: usize, carrier: C) -> Self {
        Self { rank, size, carrier, turn: Mutex::new(Turn { epoch: 0, seq: 0 }) }
    }

    /// Numbered when it is called, not when it is first polled: the order of calls is the order of the group.
    fn submit(&self, ask: Ask, bytes: Bytes) -> oneshot::Receiver<Answer> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let this = *turn;
        turn.seq += 1;
        self.carrier.submit(this, ask, bytes)
    }

    fn tensor(&self, op: Op, name: &str, x: &Tensor, sends: bool) -> CommFuture<'_, Tensor> {
        let Some(bytes) = x.shared_bytes() else {
            let error = CommError::Invalid(format!("{op} \"{name}\": a tensor of {} has no bytes to send", x.dtype()));
            return Box::pin(async { Err(error) });
        };
        let ask = Ask { op, name: name.into(), dtype: x.dtype(), shape: x.shape().clone() };
        let answer = self.submit(ask, if sends { bytes } else { Bytes::new() });
        Box::pin(async move {
            match ended(answer.await)? {
                Output::Tensor(dtype, shape, bytes) => {
                    let tensor = Tensor::from_bytes(dtype, shape, bytes).map_err(|e| CommError::Invalid(e.to_string()))?;
                    Ok(tensor.aligned())
                }
                _ => Err(unexpected()),
            }
        })
    }

    fn plain(&self, op: Op, name: &str, bytes: Bytes) -> oneshot::Receiver<Answer> {
        self.submit(Ask { op, name: name.into(), dtype: DType::U8, shape: Shape::default() }, bytes)
    }
}

fn ended(answer: Result<Answer, oneshot::error::RecvError>) -> Answer {
    answer.unwrap_or_else(|_| Err(CommError::Lost { rank: 0, detail: "the group has ended".into() }))
}

fn unexpected() -> CommError {
    CommError::Invalid("an answer of another kind than was asked for".into())
}

impl<C: Carrier> Comm for Member<C> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce(&self, name: &str, x: Tensor, op: ReduceOp) -> CommFuture<'_, Tensor> {
        self.tensor(Op::AllReduce(op), name, &x, true)
    }

    fn all_gather(&self, name: &str, x: Tensor, axis: usize) -> CommFuture<'_, Tensor> {
        self.tensor(Op::AllGather(axis), name, &x, true)
    }

    fn reduce_scatter(&self, name: &str, x: Tensor, op: ReduceOp) -> CommFuture<'_, Tensor> {
        self.tensor(Op::ReduceScatter(op), name, &x, true)
    }

    fn broadcast(&self, name: &str, x: Tensor, root: usize) -> CommFuture<'_, Tensor> {
        self.tensor(Op::Broadcast(root), name, &x, root == self.rank)
    }

    fn barrier(&self, name: &str) -> CommFuture<'_, ()> {
        let answer = self.plain(Op::Barrier, name, Bytes::new());
        Box::pin(async { ended(answer.await).map(|_| ()) })
    }

    fn gather_bytes(&self, name: &str, payload: Bytes) -> CommFuture<'_, Option<Vec<Bytes>>> {
        let answer = self.plain(Op::GatherBytes, name, payload);
        Box::pin(async {
            match ended(answer.await)? {
                Output::Payloads(all) => Ok(Some(all)),
                _ => Ok(None),
            }
        })
    }

    fn join(&self) -> CommFuture<'_, ()> {
        let answer = self.plain(Op::Join, "join", Bytes::new());
        Box::pin(async {
            ended(answer.await)?;
            let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            *turn = Turn { epoch: turn.epoch + 1, seq: 0 };
            Ok(())
        })
    }
}
