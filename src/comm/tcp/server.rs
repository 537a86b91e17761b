//! Rank 0's side: takes the other ranks' connections and brings their contributions to the meeting place.

use super::direct::{Control, Peers};
use super::door::{self, CALLS, Channel, STRANGERS};
use super::shelf::{self, Shelf};
use super::wire::{Answer, Call, OVERHEAD};
use super::{GroupOptions, Worker};
use crate::comm::call::{self, Ask, Output, Reply, Turn};
use crate::comm::member::Carrier;
use crate::comm::rendezvous::Rendezvous;
use crate::comm::{CommError, SILENT};
use crate::wire::{Hello, Role};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// Time that answers have to go out when rank 0 leaves.
const GRACE: Duration = Duration::from_secs(5);
/// Why a second process in the name of a rank is refused.
const TAKEN: &str = "is connected already";

struct Shared {
    options: Arc<GroupOptions>,
    meeting: Arc<Rendezvous>,
    /// What rank 0 itself holds for others.
    shelf: Arc<Shelf>,
    /// Which ranks are there.
    present: watch::Sender<Vec<bool>>,
    stop: watch::Receiver<bool>,
}

/// Rank 0.
pub(super) struct Root {
    meeting: Arc<Rendezvous>,
    shelf: Arc<Shelf>,
    peers: Arc<Peers>,
    direct_from: usize,
    stop: watch::Sender<bool>,
    worker: Worker,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").field("meeting", &self.meeting).finish_non_exhaustive()
    }
}

impl Root {
    /// Starts the group's server; `ready` hears when all ranks are there, or why not.
    pub(super) fn start(
        listener: TcpListener,
        options: GroupOptions,
        ready: oneshot::Sender<Result<(), CommError>>,
    ) -> Result<Self, CommError> {
        let (options, shelf) = (Arc::new(options), Arc::<Shelf>::default());
        let meeting = Arc::new(Rendezvous::new(options.size(), options.timeout, options.direct_from));
        meeting.set_place(0, options.endpoints[0].clone());
        shelf.enter(meeting.group());
        let mut present = vec![false; options.size()];
        present[0] = true;
        let (stop, stopped) = watch::channel(false);
        let shared = Shared {
            options: options.clone(),
            meeting: meeting.clone(),
            shelf: shelf.clone(),
            present: watch::Sender::new(present),
            stop: stopped,
        };
        let worker = Worker::spawn(run(listener, Arc::new(shared), ready))?;
        let (direct_from, peers) = (options.direct_from, Arc::new(Peers::new(options)));
        Ok(Self { meeting, shelf, peers, direct_from, stop, worker })
    }
}

impl Carrier for Root {
    fn submit(&self, turn: Turn, ask: Ask, bytes: Bytes) -> oneshot::Receiver<call::Answer> {
        if ask.bytes().is_none() || self.direct_from == usize::MAX {
            return self.meeting.submit(0, turn, ask, bytes);
        }
        let (sender, receiver) = oneshot::channel();
        let kept = self.shelf.keep(turn, bytes.clone());
        let (peers, control, runtime) = (self.peers.clone(), Control::Here(self.meeting.clone()), self.worker.runtime.clone());
        let (own, asked) = (bytes.clone(), ask.clone());
        // The thread of the group brings the bytes, whether or not the caller waits for them yet.
        let answer = Reply(Box::new(move |answer| match answer {
            Ok(Output::Direct(plan)) => {
                _ = runtime.spawn(async move {
                    _ = sender.send(peers.run(&control, (turn, &asked, &plan), own, kept).await);
                });
            }
            other => _ = sender.send(other),
        }));
        self.meeting.submit_to(0, turn, ask, bytes, answer);
        receiver
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // The others cannot go on without the meeting place.
        self.meeting.leave(0);
        self.stop.send_replace(true);
        self.worker.join();
    }
}

async fn run(listener: TcpListener, shared: Arc<Shared>, ready: oneshot::Sender<Result<(), CommError>>) {
    let o = &shared.options;
    let listener = match listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(e) => {
            _ = ready.send(Err(CommError::Unavailable { endpoint: o.endpoints[0].clone(), detail: format!("cannot listen: {e}") }));
            return;
        }
    };
    let mut tasks = JoinSet::new();
    let (mut stop, mut present) = (shared.stop.clone(), shared.present.subscribe());
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let deadline = Instant::now() + o.connect_timeout;
    let (mut ready, mut forming) = (Some(ready), true);
    if o.late {
        _ = ready.take().map(|waiting| waiting.send(Ok(())));
    }
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            Some(_) = tasks.join_next() => {}
            _ = present.changed() => {}
            now = tick.tick() => shared.meeting.expire(now.into_std()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if tasks.len() < 2 * o.size() + STRANGERS => _ = tasks.spawn(connection(stream, shared.clone())),
                Ok(_) => {}
                Err(e) => {
                    tracing::warn!("cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        if forming {
            let missing = shared.present.borrow().iter().position(|there| !there);
            let outcome = match missing {
                None => Ok(()),
                Some(rank) if Instant::now() >= deadline => {
                    let detail = format!("rank {rank} did not connect within {} s", o.connect_timeout.as_secs_f64());
                    let error = CommError::Unavailable { endpoint: o.endpoints[rank].clone(), detail };
                    shared.meeting.fail(error.clone());
                    Err(error)
                }
                Some(_) => continue,
            };
            forming = false;
            _ = ready.take().map(|waiting| waiting.send(outcome));
        }
    }
    drop(listener);
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tasks.shutdown().await;
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let address = stream.peer_addr();
    if let Err(e) = receive(stream, &shared).await {
        tracing::debug!("connection of {address:?} ended: {e}");
    }
}

async fn receive(stream: TcpStream, shared: &Shared) -> Result<(), String> {
    let address = stream.peer_addr().map_err(|e| e.to_string())?.to_string();
    let (mut channel, id, hello) = door::knock(stream, &shared.options).await?;
    if hello.as_ref().is_ok_and(|hello| hello.role == Role::Peer) {
        let checked = hello.and_then(|hello| hello.check(&shared.options.hello(Role::Peer, 0).identity));
        let group = checked.as_ref().map(|()| shared.meeting.group()).map_err(String::as_str);
        let open = door::open(&mut channel, id, group, &shared.options).await;
        checked?;
        if !open {
            return Ok(());
        }
        // Nobody is done before all have what they need, so that nothing is cut off here.
        let mut stop = shared.stop.clone();
        return tokio::select! {
            served = shelf::serve(&mut channel, &shared.shelf, &shared.options) => served,
            _ = stop.wait_for(|stop| *stop) => Ok(()),
        };
    }
    let rank = greet(&mut channel, id, hello, shared).await?;
    // Where several ranks have the endpoint of the first, none is told from it.
    let endpoint = Some(&shared.options.endpoints[rank]).filter(|e| **e != shared.options.endpoints[0]);
    shared.meeting.set_place(rank, endpoint.cloned().unwrap_or(address));
    let why = match converse(&mut channel, rank, shared).await {
        Ok(()) => "its connection was closed".to_string(),
        Err(e) => e,
    };
    tracing::debug!("rank {rank} ended: {why}");
    lost(rank, &why, shared);
    Ok(())
}

/// Notes that the process of a rank is gone; where another may come, its place is free.
fn lost(rank: usize, why: &str, shared: &Shared) {
    shared.meeting.lost(rank, why);
    if shared.options.rejoin {
        shared.present.send_modify(|present| present[rank] = false);
    }
}

/// The handshake. A rank is taken in once; who comes in its name later is refused, or told to come again by an end without an
/// answer where a process may take the place of another.
async fn greet(channel: &mut Channel, id: u64, hello: Result<Hello, String>, shared: &Shared) -> Result<usize, String> {
    let identity = shared.options.hello(Role::Rank, 0).identity;
    let checked = hello.and_then(|hello| hello.check(&identity).and_then(|()| admit(hello.role, hello.index as usize, shared)));
    if let Ok(rank) = checked
        && !shared.meeting.readmit(rank)
    {
        shared.present.send_modify(|present| present[rank] = false);
        return Err(format!("rank {rank} comes back to a group that has ended"));
    }
    if shared.options.rejoin && checked.as_ref().is_err_and(|why| why.ends_with(TAKEN)) {
        return Err("its place is not free yet".into());
    }
    let group = checked.as_ref().map(|_| shared.meeting.group()).map_err(String::as_str);
    let open = door::open(channel, id, group, &shared.options).await;
    let rank = checked?;
    if !open {
        lost(rank, "its connection was closed", shared);
        return Err("closed in the handshake".into());
    }
    Ok(rank)
}

fn admit(role: Role, rank: usize, shared: &Shared) -> Result<usize, String> {
    if role != Role::Rank {
        return Err("this is a worker, not a pserver".into());
    }
    let mut verdict = Err(format!("rank {rank} of {} workers, of which rank 0 is here", shared.options.size()));
    shared.present.send_if_modified(|present| match present.get_mut(rank) {
        Some(there) if rank > 0 => {
            verdict = if *there { Err(format!("rank {rank} {TAKEN}")) } else { Ok(rank) };
            !std::mem::replace(there, true)
        }
        _ => false,
    });
    verdict
}

/// What is under way in parts on one connection.
#[derive(Default)]
struct Parts {
    up: HashMap<(u64, u64), Vec<u8>>,
    down: HashMap<(u64, u64), Bytes>,
}

async fn converse(channel: &mut Channel, rank: usize, shared: &Shared) -> Result<(), String> {
    let parts = Mutex::new(Parts::default());
    let mut calls = FuturesUnordered::new();
    let mut stop = shared.stop.clone();
    let mut stopping = *stop.borrow_and_update();
    let mut heard = Instant::now();
    let mut tick = tokio::time::interval(shared.options.heartbeat());
    let silence = shared.options.heartbeat_timeout;
    loop {
        if stopping && calls.is_empty() {
            return Ok(());
        }
        tokio::select! {
            next = door::next(channel), if calls.len() < CALLS => {
                let Some(next) = next else { return Ok(()) };
                let request = next?;
                heard = Instant::now();
                let answer = answer(rank, shared, &parts, request.message);
                let id = request.id;
                calls.push(async move { (id, answer.await) });
            }
            Some((request_id, answer)) = calls.next(), if !calls.is_empty() => {
                door::send(channel, request_id, answer, silence).await?;
                // A large answer takes its time, in which nothing is read.
                heard = Instant::now();
            }
            _ = stop.changed() => stopping = true,
            _ = tick.tick() => if heard.elapsed() > silence {
                return Err(format!("{SILENT} for {} s", silence.as_secs_f64()));
            }
        }
    }
}

async fn answer(rank: usize, shared: &Shared, parts: &Mutex<Parts>, call: Call) -> Answer {
    let lock = || parts.lock().unwrap_or_else(PoisonError::into_inner);
    let room = shared.options.max_frame.saturating_sub(OVERHEAD).max(1);
    match call {
        Call::Ping => Answer::Done,
        Call::Hello(_) => Answer::Refused("the handshake is done".into()),
        Call::Form => {
            let (mut present, mut stop) = (shared.present.subscribe(), shared.stop.clone());
            tokio::select! {
                Ok(_) = present.wait_for(|p| p.iter().all(|there| *there)) => Answer::Done,
                _ = stop.wait_for(|stop| *stop) => Answer::Failed(shared.meeting.failure()),
                else => Answer::Failed(shared.meeting.failure()),
            }
        }
        Call::Part(turn, bytes) => {
            lock().up.entry((turn.epoch, turn.seq)).or_default().extend_from_slice(&bytes);
            Answer::Done
        }
        Call::Collective(turn, ask, last) => {
            let before = lock().up.remove(&(turn.epoch, turn.seq));
            let bytes = match before {
                None => last,
                Some(mut whole) => {
                    whole.extend_from_slice(&last);
                    whole.into()
                }
            };
            match shared.meeting.submit(rank, turn, ask, bytes).await {
                Ok(Ok(Output::Tensor(dtype, shape, bytes))) => {
                    let first = bytes.slice(..bytes.len().min(room));
                    let len = bytes.len() as u64;
                    if first.len() < bytes.len() {
                        lock().down.insert((turn.epoch, turn.seq), bytes);
                    }
                    Answer::Tensor(dtype, shape, len, first)
                }
                Ok(Ok(Output::Direct(plan))) => Answer::Direct(plan),
                Ok(Ok(_)) => Answer::Done,
                Ok(Err(e)) => Answer::Failed(e),
                Err(_) => Answer::Failed(shared.meeting.failure()),
            }
        }
        Call::Listen(address) => {
            shared.meeting.set_address(rank, address);
            Answer::Done
        }
        Call::Follow(turn) => match shared.meeting.follow(turn).await {
            Ok(Ok(_)) => Answer::Done,
            Ok(Err(e)) => Answer::Failed(e),
            Err(_) => Answer::Failed(shared.meeting.failure()),
        },
        Call::Finish(turn, error) => {
            shared.meeting.finish(rank, turn, error);
            Answer::Done
        }
        Call::Fetch(_) => Answer::Refused("a rank fetches on a connection of its own".into()),
        Call::More(turn, from) => {
            let mut parts = lock();
            let key = (turn.epoch, turn.seq);
            let Some(bytes) = parts.down.get(&key).cloned() else {
                return Answer::Refused("there is no more of that answer".into());
            };
            let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
            let to = bytes.len().min(from + room);
            if to == bytes.len() {
                parts.down.remove(&key);
            }
            Answer::More(bytes.slice(from..to))
        }
    }
}
