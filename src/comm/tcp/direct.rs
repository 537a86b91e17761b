//! Collectives whose bytes go from rank to rank: each rank fetches what it needs from who has it, so that no rank moves more
//! than about twice the payload, and rank 0 no more than any other.
//!
//! A reduction is a reduce-scatter (each rank fetches its share of all contributions and combines them in rank order) and then
//! a gather of the shares; a broadcast is a scatter of the root's tensor and then the same gather. What is fetched is put in
//! its place block by block: a rank holds its contribution, the result, its share, and a few blocks.

use super::GroupOptions;
use super::link::{Greeting, Link, UNEXPECTED, gone};
use super::shelf::{CONTRIBUTION, Kept, SHARE};
use super::wire::{Answer, Call, Fetch};
use crate::comm::CommError;
use crate::comm::call::{self, Ask, Op, Output, Party, Plan, Turn};
use crate::comm::reduce::reduce;
use crate::comm::rendezvous::{Rendezvous, scattered};
use crate::tensor::{Shape, checked_len};
use crate::wire::{Backoff, Pooled, Role};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tarpc::client::RpcError;

/// Bytes that are fetched from one peer at once, and how many such blocks are under way: enough to keep a connection busy,
/// little to hold.
const BLOCK: Range<usize> = 64 << 10..1 << 20;
const AHEAD: usize = 2;
/// Blocks of all peers together take about so much.
const WINDOW: usize = 4 << 20;
/// How long a rank that cannot be connected to is tried again: rank 0 hears of one that is dead before that.
const RETRY: Duration = Duration::from_secs(3);

/// How a rank speaks with rank 0 about a collective that is under way.
#[derive(Clone)]
pub(super) enum Control {
    /// It is rank 0.
    Here(Arc<Rendezvous>),
    There(Link),
}

impl Control {
    async fn follow(&self, turn: Turn) -> Result<(), CommError> {
        match self {
            Self::Here(meeting) => match meeting.follow(turn).await {
                Ok(answer) => answer.map(drop),
                Err(_) => Err(meeting.failure()),
            },
            Self::There(link) => link.exchange(Call::Follow(turn)).await.map(drop),
        }
    }

    async fn finish(&self, turn: Turn, error: Option<CommError>) -> Result<(), CommError> {
        match self {
            Self::Here(meeting) => {
                meeting.finish(0, turn, error);
                Ok(())
            }
            Self::There(link) => link.exchange(Call::Finish(turn, error)).await.map(drop),
        }
    }
}

/// The connections of this rank to others.
pub(super) struct Peers {
    options: Arc<GroupOptions>,
    links: Mutex<HashMap<usize, Arc<tokio::sync::OnceCell<Link>>>>,
}

/// One collective of this rank.
struct Transfer<'a> {
    peers: &'a Peers,
    turn: Turn,
    ask: &'a Ask,
    plan: &'a Plan,
    /// Which of the members this rank is.
    me: usize,
    /// What it contributes.
    own: Bytes,
    kept: &'a Kept,
}

impl Peers {
    pub(super) fn new(options: Arc<GroupOptions>) -> Self {
        Self { options, links: Mutex::default() }
    }

    /// Carries out what the ranks have agreed on. It ends well when all are done, and for all with the same error otherwise.
    pub(super) async fn run(&self, control: &Control, (turn, ask, plan): (Turn, &Ask, &Plan), own: Bytes, kept: Kept) -> call::Answer {
        let Some(me) = plan.members.iter().position(|m| m.rank == self.options.rank) else {
            return Err(CommError::Invalid(format!("rank 0 did not expect rank {} in {ask}", self.options.rank)));
        };
        let transfer = Transfer { peers: self, turn, ask, plan, me, own, kept: &kept };
        let mut end = std::pin::pin!(control.follow(turn));
        let result = tokio::select! {
            biased;
            ended = &mut end => return ended.and(Err(CommError::Invalid(format!("{ask} has ended without this rank")))),
            result = transfer.run() => result,
        };
        control.finish(turn, result.as_ref().err().cloned()).await?;
        end.await?;
        result
    }

    fn address<'a>(&'a self, to: &'a Party) -> &'a str {
        if to.rank == 0 { &self.options.endpoints[0] } else { &to.address }
    }

    fn lost(&self, to: &Party, what: &str) -> CommError {
        CommError::Lost { rank: to.rank, detail: format!("{what} ({}, as seen by rank {})", self.address(to), self.options.rank) }
    }

    /// The connection to a rank, made if there is none.
    async fn link(&self, to: &Party) -> Result<Link, CommError> {
        let cell = self.links.lock().unwrap_or_else(PoisonError::into_inner).entry(to.rank).or_default().clone();
        cell.get_or_try_init(|| self.connect(to)).await.cloned()
    }

    fn forget(&self, to: &Party) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(&to.rank);
    }

    async fn connect(&self, to: &Party) -> Result<Link, CommError> {
        let (started, endpoint) = (Instant::now(), self.address(to));
        // Whoever hangs is noticed by rank 0 first.
        let deadline = started + self.options.heartbeat_timeout + RETRY;
        let mut backoff = Backoff::new();
        loop {
            let greeting = Link::greet(endpoint, (Role::Peer, to.rank), &self.options);
            let detail = match tokio::time::timeout_at(deadline.into(), greeting).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(Greeting::Refused(detail))) => return Err(CommError::Refused { endpoint: endpoint.into(), detail }),
                Ok(Err(Greeting::Again(detail))) => detail,
                Err(_) => "no answer".into(),
            };
            if !backoff.wait(deadline.min(started + RETRY)).await {
                let detail = format!("rank {} cannot connect to rank {} there: {detail}", self.options.rank, to.rank);
                return Err(CommError::Unavailable { endpoint: endpoint.into(), detail });
            }
        }
    }
}

impl Transfer<'_> {
    async fn run(&self) -> call::Answer {
        let Ask { op, dtype, shape, .. } = self.ask;
        let whole = self.ask.bytes().unwrap_or_default();
        let (shape, bytes) = match *op {
            Op::ReduceScatter(_) => {
                let (size, rank) = (self.peers.options.size(), self.plan.members[self.me].rank);
                let part = whole / size;
                (scattered(shape, size), self.reduce(rank * part..(rank + 1) * part).await?.freeze())
            }
            Op::AllReduce(_) => {
                let share = self.reduce(self.share(whole, self.me)).await?.freeze();
                (shape.clone(), self.shares(whole, share).await?)
            }
            Op::Broadcast(root) => (shape.clone(), self.broadcast(root, whole).await?),
            Op::AllGather(axis) => self.gather(axis).await?,
            Op::Barrier | Op::Join | Op::GatherBytes => return Ok(Output::Nothing),
        };
        Ok(Output::Tensor(*dtype, shape, bytes))
    }

    /// Which bytes of `whole` are the share of a member: whole elements, about as many for each.
    fn share(&self, whole: usize, member: usize) -> Range<usize> {
        let width = self.ask.dtype.size().unwrap_or(1);
        let (elements, parts) = (whole / width, self.plan.members.len());
        let start = |i: usize| (elements / parts * i + i.min(elements % parts)) * width;
        start(member)..start(member + 1)
    }

    /// A range in blocks that fit a frame and hold whole elements.
    fn blocks(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let room = self.peers.options.max_frame.saturating_sub(super::wire::OVERHEAD);
        let step = (WINDOW / self.plan.members.len()).clamp(BLOCK.start, BLOCK.end).min(room);
        let step = (step / 16 * 16).max(16);
        range.clone().step_by(step).map(move |start| start..range.end.min(start + step))
    }

    /// Bytes that a member holds.
    async fn fetch(&self, member: usize, stage: u8, range: Range<usize>) -> Result<Bytes, CommError> {
        let room = self.peers.link(&self.plan.members[member]).await?.room;
        if range.len() <= room {
            return self.fetch_once(member, stage, range).await;
        }
        // Its frames are smaller than ours.
        let (mut whole, mut at) = (Pooled::take(range.len()), 0);
        while at < whole.len() {
            let from = range.start + at;
            let part = self.fetch_once(member, stage, from..range.end.min(from + room)).await?;
            whole[at..at + part.len()].copy_from_slice(&part);
            at += part.len();
        }
        Ok(whole.freeze())
    }

    async fn fetch_once(&self, member: usize, stage: u8, range: Range<usize>) -> Result<Bytes, CommError> {
        let (to, peers) = (&self.plan.members[member], self.peers);
        let fetch = Fetch { group: self.plan.group, turn: self.turn, stage, from: range.start as u64, len: range.len() as u64 };
        let patience = peers.options.heartbeat_timeout.max(Duration::from_secs(30));
        let mut again = true;
        loop {
            let link = peers.link(to).await?;
            match link.call(Call::Fetch(fetch), patience).await {
                Ok(Answer::More(bytes)) if bytes.len() == range.len() => return Ok(bytes),
                Ok(Answer::Later) => {}
                Ok(Answer::Refused(detail)) => return Err(CommError::Refused { endpoint: peers.address(to).into(), detail }),
                Ok(_) => return Err(CommError::Refused { endpoint: peers.address(to).into(), detail: UNEXPECTED.into() }),
                Err(RpcError::DeadlineExceeded) => return Err(peers.lost(to, &format!("no answer within {} s", patience.as_secs_f64()))),
                // To fetch does no harm when it is done twice. If the rank itself is gone, rank 0 hears of it soon.
                Err(_) if again => {
                    peers.forget(to);
                    again = false;
                }
                Err(e) => return Err(peers.lost(to, &gone(&e))),
            }
        }
    }

    /// Combines a range of all contributions, in rank order.
    async fn reduce(&self, range: Range<usize>) -> Result<Pooled, CommError> {
        let (Op::AllReduce(op) | Op::ReduceScatter(op)) = self.ask.op else { return Ok(Pooled::default()) };
        let start = range.start;
        let mut sum = Pooled::take(range.len());
        let one = async |member: usize, block: Range<usize>| {
            if member == self.me { Ok(self.own.slice(block)) } else { self.fetch(member, CONTRIBUTION, block).await }
        };
        let one = &one;
        let all = |block: Range<usize>| async move {
            let parts = futures::future::try_join_all(self.members().map(|m| one(m, block.clone()))).await?;
            Ok((block, parts))
        };
        let mut blocks = std::pin::pin!(stream::iter(self.blocks(range)).map(all).buffered(AHEAD));
        while let Some((block, parts)) = blocks.try_next().await? {
            sum[block.start - start..block.end - start].copy_from_slice(&reduce(self.ask.dtype, op, &parts)?);
            // Signs of life and what others fetch go on between the blocks.
            tokio::task::yield_now().await;
        }
        Ok(sum)
    }

    /// Fetches ranges of what members hold, each block to be put where it belongs.
    async fn collect(
        &self,
        stage: u8,
        wanted: impl Iterator<Item = (usize, Range<usize>)>,
        mut put: impl FnMut(usize, usize, &[u8]),
    ) -> Result<(), CommError> {
        let one = |(member, range): (usize, Range<usize>)| {
            let block = move |block: Range<usize>| async move {
                let start = block.start;
                Ok((member, start, self.fetch(member, stage, block).await?))
            };
            stream::iter(self.blocks(range)).map(block).buffered(AHEAD).boxed()
        };
        let mut all = stream::select_all(wanted.filter(|(member, _)| *member != self.me).map(one));
        while let Some((member, start, bytes)) = all.try_next().await? {
            put(member, start, &bytes);
        }
        Ok(())
    }

    fn members(&self) -> Range<usize> {
        0..self.plan.members.len()
    }

    /// Gives the share of this rank to the others and puts all together.
    async fn shares(&self, whole: usize, own: Bytes) -> Result<Bytes, CommError> {
        if self.plan.members.len() == 1 {
            return Ok(own);
        }
        self.kept.share(own.clone());
        let mut result = Pooled::take(whole);
        result[self.share(whole, self.me)].copy_from_slice(&own);
        drop(own);
        let wanted = self.members().map(|m| (m, 0..self.share(whole, m).len()));
        self.collect(SHARE, wanted, |member, start, bytes| {
            let at = self.share(whole, member).start + start;
            result[at..at + bytes.len()].copy_from_slice(bytes);
        })
        .await?;
        Ok(result.freeze())
    }

    async fn broadcast(&self, root: usize, whole: usize) -> Result<Bytes, CommError> {
        let own = self.share(whole, self.me);
        if self.plan.members[self.me].rank == root {
            self.kept.share(self.own.slice(own));
            return Ok(self.own.clone());
        }
        let root = self.plan.members.iter().position(|m| m.rank == root).unwrap_or_default();
        let (start, mut share) = (own.start, Pooled::take(own.len()));
        self.collect(CONTRIBUTION, std::iter::once((root, own)), |_, at, bytes| {
            share[at - start..at - start + bytes.len()].copy_from_slice(bytes);
        })
        .await?;
        self.shares(whole, share.freeze()).await
    }

    async fn gather(&self, axis: usize) -> Result<(Shape, Bytes), CommError> {
        let along: Vec<usize> = self.plan.members.iter().map(|m| m.along).collect();
        let mut shape = self.ask.shape.clone();
        let outer: usize = shape[..axis].iter().product();
        let step = checked_len(&shape[axis + 1..]).unwrap_or(0) * self.ask.dtype.size().unwrap_or(0);
        let whole = along.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)).unwrap_or(usize::MAX);
        let own = std::mem::replace(&mut shape[axis], whole);
        if along[self.me] != own || self.ask.dtype.byte_len(&shape).is_none() {
            return Err(CommError::Invalid(format!("{}: rank 0 says that it is {shape} in all", self.ask)));
        }
        if let [_] = along[..] {
            return Ok((shape, self.own.clone()));
        }
        let row = shape[axis] * step;
        let before: Vec<usize> = along.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n * step))).collect();
        let mut result = Pooled::take(outer * row);
        // A block may begin and end within the run of a member.
        let mut put = |member: usize, mut at: usize, mut bytes: &[u8]| {
            let run = along[member] * step;
            while !bytes.is_empty() {
                let (o, within) = (at / run, at % run);
                let (now, rest) = bytes.split_at(bytes.len().min(run - within));
                let to = o * row + before[member] + within;
                result[to..to + now.len()].copy_from_slice(now);
                (at, bytes) = (at + now.len(), rest);
            }
        };
        put(self.me, 0, &self.own);
        let wanted = self.members().map(|m| (m, 0..outer * along[m] * step));
        self.collect(CONTRIBUTION, wanted, put).await?;
        Ok((shape, result.freeze()))
    }
}
