//! Where the ranks of a group meet: takes their contributions to each collective, sees that they agree, and gives each
//! its result. It neither waits nor does IO; `local` and `tcp` bring the contributions.
//!
//! Large contributions may stay where they are: then the ranks get a [`Plan`] as soon as they agree, bring the bytes to each
//! other, and say here that they are done; nobody is done before all are.

use super::CommError;
use super::call::{Answer, Ask, Op, Output, Party, Plan, Reply, Turn};
use super::reduce::{concat, reduce};
use crate::tensor::{Shape, checked_len};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

#[derive(Debug)]
struct Contribution {
    ask: Ask,
    bytes: Bytes,
    answer: Reply,
}

#[derive(Debug)]
struct Slot {
    turn: Turn,
    since: Instant,
    from: Vec<Option<Contribution>>,
}

/// A collective whose bytes go from rank to rank.
#[derive(Debug)]
struct Transfer {
    since: Instant,
    name: String,
    /// Who takes part: each is needed until all are done. And who is not done.
    members: Vec<usize>,
    pending: Vec<usize>,
    followers: Vec<Reply>,
}

#[derive(Debug, Default)]
struct State {
    epoch: u64,
    /// Whether a rank has asked for anything yet.
    started: bool,
    failed: Option<CommError>,
    /// The turn from which on a rank contributes the neutral element, and who waits for all to join.
    joined: Vec<Option<u64>>,
    joining: Vec<Reply>,
    gone: Vec<Option<String>>,
    slots: BTreeMap<u64, Slot>,
    /// By epoch and number.
    transfers: BTreeMap<(u64, u64), Transfer>,
    /// Where the ranks are, as errors say it, and where they listen for each other.
    places: Vec<String>,
    addresses: Vec<String>,
}

/// The meeting place of `size` ranks.
#[derive(Debug)]
pub(super) struct Rendezvous {
    size: usize,
    timeout: Duration,
    direct_from: usize,
    group: u64,
    state: Mutex<State>,
}

impl Rendezvous {
    /// A group whose collectives may take `timeout` from the first contribution to the last. Contributions of `direct_from` bytes
    /// and more go from rank to rank.
    pub(super) fn new(size: usize, timeout: Duration, direct_from: usize) -> Self {
        let state = State {
            joined: vec![None; size],
            gone: vec![None; size],
            places: vec![String::new(); size],
            addresses: vec![String::new(); size],
            ..State::default()
        };
        Self { size, timeout, direct_from, group: RandomState::new().build_hasher().finish(), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells this group from others.
    pub(super) fn group(&self) -> u64 {
        self.group
    }

    /// Notes where a rank is, for errors.
    pub(super) fn set_place(&self, rank: usize, place: String) {
        self.lock().places[rank] = place;
    }

    /// Notes where a rank listens for the others.
    pub(super) fn set_address(&self, rank: usize, address: String) {
        self.lock().addresses[rank] = address;
    }

    /// Takes the contribution of `rank` to its collective number `turn`.
    pub(super) fn submit(&self, rank: usize, turn: Turn, ask: Ask, bytes: Bytes) -> oneshot::Receiver<Answer> {
        let (reply, receiver) = Reply::channel();
        self.submit_to(rank, turn, ask, bytes, reply);
        receiver
    }

    /// As [`Rendezvous::submit`], with the answer to go to `answer`.
    pub(super) fn submit_to(&self, rank: usize, turn: Turn, ask: Ask, bytes: Bytes, answer: Reply) {
        let mut done = Vec::new();
        {
            let mut state = self.lock();
            if let Some(e) = &state.failed {
                return answer.send(Err(e.clone()));
            }
            if turn.epoch != state.epoch || rank >= self.size || state.joined[rank].is_some_and(|j| j <= turn.seq) {
                let what = format!(
                    "rank {rank} asks for {ask} as collective {} of round {}, the group is in round {}",
                    turn.seq, turn.epoch, state.epoch
                );
                let error = state.fail(CommError::Mismatch(what));
                return answer.send(Err(error));
            }
            state.started = true;
            if ask.op == Op::Join {
                state.joined[rank] = Some(turn.seq);
                state.joining.push(answer);
            } else {
                self.contribute(&mut state, rank, turn, Contribution { ask, bytes, answer });
            }
            state.settle(&mut done);
        }
        // Arithmetic is done without the lock.
        done.into_iter().for_each(|slot| self.complete(slot));
    }

    /// Hears how a collective ends whose bytes go from rank to rank: when all are done, or when the group ends.
    pub(super) fn follow(&self, turn: Turn) -> oneshot::Receiver<Answer> {
        let (reply, receiver) = Reply::channel();
        let mut state = self.lock();
        if let Some(e) = &state.failed {
            reply.send(Err(e.clone()));
        } else {
            match state.transfers.get_mut(&(turn.epoch, turn.seq)) {
                Some(transfer) => transfer.followers.push(reply),
                // All were done before this rank asked.
                None => reply.send(Ok(Output::Nothing)),
            }
        }
        receiver
    }

    /// Notes that `rank` has all that it needs of such a collective, or why it cannot have it.
    pub(super) fn finish(&self, rank: usize, turn: Turn, error: Option<CommError>) {
        let mut state = self.lock();
        if let Some(e) = error {
            state.fail(e);
            return;
        }
        let key = (turn.epoch, turn.seq);
        let Some(transfer) = state.transfers.get_mut(&key) else { return };
        transfer.pending.retain(|&r| r != rank);
        if transfer.pending.is_empty() {
            let followers = state.transfers.remove(&key).map(|t| t.followers);
            followers.into_iter().flatten().for_each(|f| f.send(Ok(Output::Nothing)));
        }
    }

    fn contribute(&self, state: &mut State, rank: usize, turn: Turn, c: Contribution) {
        let seq = turn.seq;
        let empty = || Slot { turn, since: Instant::now(), from: (0..self.size).map(|_| None).collect() };
        let slot = state.slots.entry(seq).or_insert_with(empty);
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
            return c.answer.send(Err(error));
        }
        slot.from[rank] = Some(c);
    }

    /// Notes that `rank` will say nothing more; collectives that need it end.
    pub(super) fn lost(&self, rank: usize, detail: &str) {
        let mut state = self.lock();
        if rank < self.size && state.gone[rank].is_none() {
            state.gone[rank] = Some(format!("{detail}{}", super::place(&state.places[rank])));
            // What is complete without the rank was completed when its last contribution came.
            state.settle(&mut Vec::new());
        }
    }

    /// Takes a rank in again that was lost. False if that cannot be: then the group ends, for the newcomer knows nothing of
    /// the collectives before it.
    pub(super) fn readmit(&self, rank: usize) -> bool {
        let mut state = self.lock();
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
        self.lock().fail(error);
    }

    /// Ends everything, for a rank without which the group cannot be leaves it.
    pub(super) fn leave(&self, rank: usize) {
        let mut state = self.lock();
        let detail = format!("it has left the group{}", super::place(&state.places[rank]));
        state.fail(CommError::Lost { rank, detail });
    }

    /// Why the group has ended.
    pub(super) fn failure(&self) -> CommError {
        let failed = self.lock().failed.clone();
        failed.unwrap_or_else(|| CommError::Lost { rank: 0, detail: "the group has ended".into() })
    }

    /// Ends the group if a collective has waited too long.
    pub(super) fn expire(&self, now: Instant) {
        let mut state = self.lock();
        let late = |since: Instant| now.saturating_duration_since(since) > self.timeout;
        let (rank, name) = if let Some((&seq, slot)) = state.slots.iter().find(|(_, slot)| late(slot.since)) {
            let rank = (0..self.size).find(|&r| slot.from[r].is_none() && state.joined[r].is_none_or(|j| j > seq));
            (rank, slot.from.iter().flatten().next().map(|c| c.ask.name.clone()).unwrap_or_default())
        } else if let Some(transfer) = state.transfers.values().find(|t| late(t.since)) {
            (transfer.pending.first().copied(), transfer.name.clone())
        } else {
            return;
        };
        let (rank, seconds) = (rank.unwrap_or(0), self.timeout.as_secs_f64());
        let endpoint = state.places[rank].clone();
        state.fail(CommError::Timeout { rank, endpoint, name, seconds });
    }

    fn complete(&self, slot: Slot) {
        let (turn, since) = (slot.turn, slot.since);
        let present: Vec<(usize, Contribution)> = slot.from.into_iter().enumerate().filter_map(|(r, c)| Some((r, c?))).collect();
        let outputs = self.judge(&present).and_then(|direct| match direct {
            true => self.begin(turn, since, &present),
            false => self.outputs(&present),
        });
        for (i, (_, c)) in present.into_iter().enumerate() {
            c.answer.send(match &outputs {
                Ok(outputs) => Ok(outputs.get(i).or(outputs.last()).cloned().unwrap_or(Output::Nothing)),
                Err(e) => Err(e.clone()),
            });
        }
    }

    /// Sees that what was asked can be done; gives whether the bytes go from rank to rank. The ranks' lengths may differ, so that
    /// only here is it known for all.
    fn judge(&self, present: &[(usize, Contribution)]) -> Result<bool, CommError> {
        let Some((_, first)) = present.first() else { return Ok(false) };
        let Ask { op, name, dtype, shape } = &first.ask;
        let invalid = |what: String| Err(CommError::Invalid(format!("{op} \"{name}\": {what}")));
        if matches!(op, Op::Barrier | Op::Join | Op::GatherBytes) {
            return Ok(false);
        }
        let all: usize = present.iter().filter_map(|(_, c)| c.ask.bytes()).fold(0, usize::saturating_add);
        let direct = match op {
            Op::AllGather(_) => all >= self.direct_from,
            _ => first.ask.waits(self.direct_from),
        };
        for (rank, c) in present {
            let sends = !matches!(op, Op::Broadcast(root) if root != rank);
            let held = c.bytes.is_empty() && c.ask.waits(self.direct_from);
            if sends && (dtype.size().is_none() || !held && dtype.byte_len(&c.ask.shape) != Some(c.bytes.len())) {
                return invalid(format!("{dtype}{} in {} bytes", c.ask.shape, c.bytes.len()));
            }
        }
        match op {
            Op::AllReduce(reduction) => _ = reduce(*dtype, *reduction, &[])?,
            Op::ReduceScatter(reduction) => {
                if !shape.first().is_some_and(|rows| rows.is_multiple_of(self.size)) {
                    return invalid(format!("axis 0 of {dtype}{shape} does not divide among {} ranks", self.size));
                }
                reduce(*dtype, *reduction, &[])?;
            }
            Op::Broadcast(root) if !present.iter().any(|(r, _)| r == root) => {
                return invalid(format!("rank {root} has joined, or is none of {} ranks", self.size));
            }
            Op::AllGather(axis) if *axis >= shape.len() => return invalid(format!("{dtype}{shape} has no axis {axis}")),
            Op::AllGather(axis) => {
                let whole = gathered(shape, *axis, present);
                if dtype.byte_len(&whole).is_none() {
                    return invalid(format!("{dtype}{whole} is too large"));
                }
            }
            _ => {}
        }
        Ok(direct)
    }

    /// Lets the ranks bring the bytes to each other.
    fn begin(&self, turn: Turn, since: Instant, present: &[(usize, Contribution)]) -> Result<Vec<Output>, CommError> {
        let mut state = self.lock();
        if let Some(e) = &state.failed {
            return Err(e.clone());
        }
        let party = |(rank, c): &(usize, Contribution)| {
            let along = if let Op::AllGather(axis) = c.ask.op { c.ask.shape[axis] } else { 0 };
            Party { rank: *rank, along, address: state.addresses[*rank].clone() }
        };
        let plan = Plan { group: self.group, members: present.iter().map(party).collect() };
        let name = present.first().map(|(_, c)| c.ask.name.clone());
        let members: Vec<usize> = present.iter().map(|(r, _)| *r).collect();
        let transfer = Transfer { since, name: name.unwrap_or_default(), pending: members.clone(), members, followers: Vec::new() };
        state.transfers.insert((turn.epoch, turn.seq), transfer);
        // A rank may have been lost since its contribution was taken out.
        match state.miss() {
            Some(e) => Err(e),
            None => Ok(vec![Output::Direct(plan)]),
        }
    }

    /// One output for all, or one for each of those present.
    fn outputs(&self, present: &[(usize, Contribution)]) -> Result<Vec<Output>, CommError> {
        let Some((_, first)) = present.first() else { return Ok(Vec::new()) };
        let Ask { op, dtype, shape, .. } = &first.ask;
        let bytes = || present.iter().map(|(_, c)| c.bytes.clone()).collect::<Vec<_>>();
        match op {
            Op::Barrier | Op::Join => Ok(vec![Output::Nothing]),
            Op::AllReduce(reduction) => Ok(vec![Output::Tensor(*dtype, shape.clone(), reduce(*dtype, *reduction, &bytes())?)]),
            Op::ReduceScatter(reduction) => {
                let sum = reduce(*dtype, *reduction, &bytes())?;
                let (part, len) = (scattered(shape, self.size), sum.len() / self.size);
                Ok(present.iter().map(|(r, _)| Output::Tensor(*dtype, part.clone(), sum.slice(r * len..(r + 1) * len))).collect())
            }
            Op::Broadcast(root) => {
                let sent = present.iter().find(|(r, _)| r == root).map(|(_, c)| c.bytes.clone()).unwrap_or_default();
                Ok(vec![Output::Tensor(*dtype, shape.clone(), sent)])
            }
            Op::AllGather(axis) => {
                let parts: Vec<(usize, Bytes)> = present.iter().map(|(_, c)| (c.ask.shape[*axis], c.bytes.clone())).collect();
                let inner = checked_len(&shape[axis + 1..]).unwrap_or(0) * dtype.size().unwrap_or(0);
                let whole = gathered(shape, *axis, present);
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

/// The shape of what is gathered along an axis.
fn gathered(shape: &Shape, axis: usize, present: &[(usize, Contribution)]) -> Shape {
    let mut whole = shape.clone();
    whole[axis] = present.iter().map(|(_, c)| c.ask.shape[axis]).fold(0, usize::saturating_add);
    whole
}

/// The shape of a rank's part of a tensor.
pub(super) fn scattered(shape: &Shape, size: usize) -> Shape {
    let rows = shape.first().map(|rows| rows / size);
    Shape::from_dims(rows.into_iter().chain(shape.iter().skip(1).copied()))
}

impl State {
    /// Ends all that is pending with `error`, and all that comes; the first error stays.
    fn fail(&mut self, error: CommError) -> CommError {
        let error = self.failed.get_or_insert(error).clone();
        for c in std::mem::take(&mut self.slots).into_values().flat_map(|s| s.from).flatten() {
            c.answer.send(Err(error.clone()));
        }
        let followers = std::mem::take(&mut self.transfers).into_values().flat_map(|t| t.followers);
        followers.chain(self.joining.drain(..)).for_each(|answer| answer.send(Err(error.clone())));
        error
    }

    /// Whether a collective that is under way waits for a rank.
    fn missing(&self, rank: usize, seq: u64) -> bool {
        self.joined[rank].is_none_or(|j| j > seq)
    }

    /// Takes out the collectives to which nobody is missing; ends the group if somebody is missing who is gone.
    fn settle(&mut self, done: &mut Vec<Slot>) {
        if self.failed.is_some() {
            return;
        }
        let absent = |seq: u64, slot: &Slot| slot.from.iter().enumerate().any(|(r, c)| c.is_none() && self.missing(r, seq));
        let full: Vec<u64> = self.slots.iter().filter(|(seq, slot)| !absent(**seq, slot)).map(|(&seq, _)| seq).collect();
        done.extend(full.iter().filter_map(|seq| self.slots.remove(seq)));
        if self.miss().is_none() && self.joined.iter().all(Option::is_some) {
            self.epoch += 1;
            self.joined.fill(None);
            for answer in self.joining.drain(..) {
                answer.send(Ok(Output::Nothing));
            }
        }
    }

    /// Ends the group if what is pending needs a rank that is gone.
    fn miss(&mut self) -> Option<CommError> {
        let gone = |r: &usize| self.gone[*r].is_some();
        let ranks = || 0..self.gone.len();
        let in_slots =
            || self.slots.iter().find_map(|(&seq, slot)| ranks().find(|r| gone(r) && slot.from[*r].is_none() && self.missing(*r, seq)));
        let in_transfers = || self.transfers.values().find_map(|t| t.members.iter().copied().find(gone));
        let in_joins = || ranks().find(|r| !self.joining.is_empty() && gone(r) && self.joined[*r].is_none());
        let rank = in_slots().or_else(in_transfers).or_else(in_joins)?;
        let detail = self.gone[rank].clone().unwrap_or_default();
        Some(self.fail(CommError::Lost { rank, detail }))
    }
}
