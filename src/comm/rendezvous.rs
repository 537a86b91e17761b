//! Where the ranks of a group meet: takes their contributions to each collective, sees that they agree, and gives each
//! its result. It neither waits nor does IO; `local` and `tcp` bring the contributions.

use super::reduce::{concat, reduce};
use super::{CommError, ReduceOp};
use crate::tensor::{DType, Shape, checked_len};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
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
    fn agrees(&self, other: &Self) -> bool {
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
}

pub(super) type Answer = Result<Output, CommError>;

#[derive(Debug)]
struct Contribution {
    ask: Ask,
    bytes: Bytes,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
struct Slot {
    since: Instant,
    from: Vec<Option<Contribution>>,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    /// Whether a rank has asked for anything yet.
    started: bool,
    failed: Option<CommError>,
    /// The turn from which on a rank contributes the neutral element, and who waits for all to join.
    joined: Vec<Option<u64>>,
    joining: Vec<oneshot::Sender<Answer>>,
    gone: Vec<Option<String>>,
    slots: BTreeMap<u64, Slot>,
}

/// The meeting place of `size` ranks.
#[derive(Debug)]
pub(super) struct Rendezvous {
    size: usize,
    timeout: Duration,
    state: Mutex<State>,
}

impl Rendezvous {
    /// A group whose collectives may take `timeout` from the first contribution to the last.
    pub(super) fn new(size: usize, timeout: Duration) -> Self {
        let state = State { joined: vec![None; size], gone: vec![None; size], ..State::default() };
        Self { size, timeout, state: Mutex::new(state) }
    }

    /// Takes the contribution of `rank` to its collective number `turn`.
    pub(super) fn submit(&self, rank: usize, turn: Turn, ask: Ask, bytes: Bytes) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        let mut done = Vec::new();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(e) = &state.failed {
                _ = answer.send(Err(e.clone()));
                return receiver;
            }
            if turn.epoch != state.epoch || rank >= self.size || state.joined[rank].is_some_and(|j| j <= turn.seq) {
                let what = format!(
                    "rank {rank} asks for {ask} as collective {} of round {}, the group is in round {}",
                    turn.seq, turn.epoch, state.epoch
                );
                let error = state.fail(CommError::Mismatch(what));
                _ = answer.send(Err(error));
                return receiver;
            }
            state.started = true;
            if ask.op == Op::Join {
                state.joined[rank] = Some(turn.seq);
                state.joining.push(answer);
            } else {
                self.contribute(&mut state, rank, turn.seq, Contribution { ask, bytes, answer });
            }
            state.settle(&mut done);
        }
        // Arithmetic is done without the lock.
        done.into_iter().for_each(|slot| self.complete(slot));
        receiver
    }

    fn contribute(&self, state: &mut State, rank: usize, seq: u64, c: Contribution) {
        let slot = state.slots.entry(seq).or_insert_with(|| Slot { since: Instant::now(), from: (0..self.size).map(|_| None).collect() });
        let other = slot.from.iter().enumerate().find_map(|(r, o)| o.as_ref().filter(|o| !o.ask.agrees(&c.ask)).map(|o| (r, o)));
        let error = match other {
            Some((r, o)) => {
                let (low, high) = if r < rank { ((r, &o.ask), (rank, &c.ask)) } else { ((rank, &c.ask), (r, &o.ask)) };
                Some(format!("collective {seq}: rank {} runs {}, rank {} runs {}", low.0, low.1, high.0, high.1))
            }
            None if slot.from[rank].is_some() => Some(format!("collective {seq}: rank {rank} contributed twice")),
            None => None,
        };
        if let Some(text) = error {
            let error = state.fail(CommError::Mismatch(text));
            _ = c.answer.send(Err(error));
            return;
        }
        slot.from[rank] = Some(c);
    }

    /// Notes that `rank` will say nothing more; collectives that need it end.
    pub(super) fn lost(&self, rank: usize, detail: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if rank < self.size && state.gone[rank].is_none() {
            state.gone[rank] = Some(detail.into());
            // What is complete without the rank was completed when its last contribution came.
            state.settle(&mut Vec::new());
        }
    }

    /// Takes a rank in again that was lost. False if that cannot be: then the group ends, for the newcomer knows nothing of
    /// the collectives before it.
    pub(super) fn readmit(&self, rank: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failed.is_some() {
            return false;
        }
        let Some(detail) = state.gone[rank].take() else { return true };
        if state.started {
            state.fail(CommError::Lost { rank, detail });
        }
        !state.started
    }

    /// Ends everything with an error, for ever.
    pub(super) fn fail(&self, error: CommError) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).fail(error);
    }

    /// Why the group has ended.
    pub(super) fn failure(&self) -> CommError {
        let failed = self.state.lock().unwrap_or_else(PoisonError::into_inner).failed.clone();
        failed.unwrap_or_else(|| CommError::Lost { rank: 0, detail: "the group has ended".into() })
    }

    /// Ends the group if a collective has waited too long.
    pub(super) fn expire(&self, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let late = |slot: &&Slot| now.saturating_duration_since(slot.since) > self.timeout;
        let Some((&seq, slot)) = state.slots.iter().find(|(_, slot)| late(slot)) else { return };
        let rank = (0..self.size).find(|&r| slot.from[r].is_none() && state.joined[r].is_none_or(|j| j > seq)).unwrap_or(0);
        let name = slot.from.iter().flatten().next().map(|c| c.ask.name.clone()).unwrap_or_default();
        let seconds = self.timeout.as_secs_f64();
        state.fail(CommError::Timeout { rank, name, seconds });
    }

    fn complete(&self, slot: Slot) {
        let present: Vec<(usize, Contribution)> = slot.from.into_iter().enumerate().filter_map(|(r, c)| Some((r, c?))).collect();
        let outputs = self.outputs(&present);
        for (i, (_, c)) in present.into_iter().enumerate() {
            _ = c.answer.send(match &outputs {
                Ok(outputs) => Ok(outputs.get(i).or(outputs.last()).cloned().unwrap_or(Output::Nothing)),
                Err(e) => Err(e.clone()),
            });
        }
    }

    /// One output for all, or one for each of those present.
    fn outputs(&self, present: &[(usize, Contribution)]) -> Result<Vec<Output>, CommError> {
        let Some((_, first)) = present.first() else { return Ok(Vec::new()) };
        let Ask { op, name, dtype, shape } = &first.ask;
        let invalid = |what: String| Err(CommError::Invalid(format!("{op} \"{name}\": {what}")));
        let bytes = || present.iter().map(|(_, c)| c.bytes.clone()).collect::<Vec<_>>();
        for (rank, c) in present.iter().filter(|_| !matches!(op, Op::Barrier | Op::GatherBytes)) {
            let sends = !matches!(op, Op::Broadcast(root) if root != rank);
            if sends && (dtype.size().is_none() || dtype.byte_len(&c.ask.shape) != Some(c.bytes.len())) {
                return invalid(format!("{dtype}{} in {} bytes", c.ask.shape, c.bytes.len()));
            }
        }
        match op {
            Op::Barrier | Op::Join => Ok(vec![Output::Nothing]),
            Op::AllReduce(reduction) => Ok(vec![Output::Tensor(*dtype, shape.clone(), reduce(*dtype, *reduction, &bytes())?)]),
            Op::ReduceScatter(reduction) => {
                let Some((&rows, rest)) = shape.split_first().filter(|(rows, _)| rows.is_multiple_of(self.size)) else {
                    return invalid(format!("axis 0 of {dtype}{shape} does not divide among {} ranks", self.size));
                };
                let sum = reduce(*dtype, *reduction, &bytes())?;
                let (part, len) = (Shape::from_dims([rows / self.size].into_iter().chain(rest.iter().copied())), sum.len() / self.size);
                Ok(present.iter().map(|(r, _)| Output::Tensor(*dtype, part.clone(), sum.slice(r * len..(r + 1) * len))).collect())
            }
            Op::Broadcast(root) => match present.iter().find(|(r, _)| r == root) {
                Some((_, c)) => Ok(vec![Output::Tensor(*dtype, shape.clone(), c.bytes.clone())]),
                None => invalid(format!("rank {root} has joined, or is none of {} ranks", self.size)),
            },
            Op::AllGather(axis) => {
                if *axis >= shape.len() {
                    return invalid(format!("{dtype}{shape} has no axis {axis}"));
                }
                let parts: Vec<(usize, Bytes)> = present.iter().map(|(_, c)| (c.ask.shape[*axis], c.bytes.clone())).collect();
                let mut whole = shape.clone();
                whole[*axis] = parts.iter().map(|p| p.0).sum();
                let inner = checked_len(&shape[axis + 1..]).unwrap_or(0) * dtype.size().unwrap_or(0);
                if dtype.byte_len(&whole).is_none() {
                    return invalid(format!("{dtype}{whole} is too large"));
                }
                Ok(vec![Output::Tensor(*dtype, whole, concat(shape[..*axis].iter().product(), inner, &parts))])
            }
            Op::GatherBytes => {
                let mut all = vec![Bytes::new(); self.size];
                present.iter().for_each(|(r, c)| all[*r] = c.bytes.clone());
                let output = |(rank, _): &(usize, _)| if *rank == 0 { Output::Payloads(all.clone()) } else { Output::Nothing };
                Ok(present.iter().map(output).collect())
            }
        }
    }
}

impl State {
    /// Ends all that is pending with `error`, and all that comes; the first error stays.
    fn fail(&mut self, error: CommError) -> CommError {
        let error = self.failed.get_or_insert(error).clone();
        for c in std::mem::take(&mut self.slots).into_values().flat_map(|s| s.from).flatten() {
            _ = c.answer.send(Err(error.clone()));
        }
        for answer in self.joining.drain(..) {
            _ = answer.send(Err(error.clone()));
        }
        error
    }

    /// Takes out the collectives to which nobody is missing; ends the group if somebody is missing who is gone.
    fn settle(&mut self, done: &mut Vec<Slot>) {
        if self.failed.is_some() {
            return;
        }
        let missing = |state: &Self, r: usize, seq: u64| state.joined[r].is_none_or(|j| j > seq);
        let (mut full, mut lost) = (Vec::new(), None);
        for (&seq, slot) in &self.slots {
            let mut absent = slot.from.iter().enumerate().filter(|(r, c)| c.is_none() && missing(self, *r, seq)).map(|(r, _)| r).peekable();
            if absent.peek().is_none() {
                full.push(seq);
            }
            lost = lost.or(absent.find(|&r| self.gone[r].is_some()));
        }
        done.extend(full.iter().filter_map(|seq| self.slots.remove(seq)));
        if !self.joining.is_empty() {
            lost = lost.or((0..self.gone.len()).find(|&r| self.gone[r].is_some() && self.joined[r].is_none()));
        }
        if let Some(rank) = lost {
            let detail = self.gone[rank].clone().unwrap_or_default();
            self.fail(CommError::Lost { rank, detail });
        } else if self.joined.iter().all(Option::is_some) {
            self.epoch += 1;
            self.joined.fill(None);
            for answer in self.joining.drain(..) {
                _ = answer.send(Ok(Output::Nothing));
            }
        }
    }
}
