//! Rank 0's side: takes the other ranks' connections and brings their contributions to the meeting place.

use super::wire::{Answer, Call, OVERHEAD, RootCodec};
use super::{GroupOptions, Worker};
use crate::comm::member::Carrier;
use crate::comm::rendezvous::{self, Ask, Output, Rendezvous, Turn};
use crate::comm::{CommError, SILENT};
use crate::wire::{Framed, HANDSHAKE_FRAME, Role, causes};
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{SinkExt, StreamExt};
use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tarpc::Response;
use tarpc::server::{BaseChannel, Config};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// Time from the start of a connection to the end of its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time that answers have to go out when rank 0 leaves.
const GRACE: Duration = Duration::from_secs(5);
/// Why a second process in the name of a rank is refused.
const TAKEN: &str = "is connected already";
/// Calls of one rank under way at once.
const CALLS: usize = 256;
/// Connections that have not shaken hands, at once.
const STRANGERS: usize = 256;

struct Shared {
    options: GroupOptions,
    meeting: Arc<Rendezvous>,
    /// Which ranks are there.
    present: watch::Sender<Vec<bool>>,
    stop: watch::Receiver<bool>,
}

/// Rank 0.
#[derive(Debug)]
pub(super) struct Root {
    meeting: Arc<Rendezvous>,
    stop: watch::Sender<bool>,
    worker: Worker,
}

impl Root {
    /// Starts the group's server; `ready` hears when all ranks are there, or why not.
    pub(super) fn start(
        listener: TcpListener,
        options: GroupOptions,
        ready: oneshot::Sender<Result<(), CommError>>,
    ) -> Result<Self, CommError> {
        let meeting = Arc::new(Rendezvous::new(options.size(), options.timeout));
        let mut present = vec![false; options.size()];
        present[0] = true;
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared { options, meeting: meeting.clone(), present: watch::Sender::new(present), stop: stopped });
        let worker = Worker::spawn(run(listener, shared, ready))?;
        Ok(Self { meeting, stop, worker })
    }
}

impl Carrier for Root {
    fn submit(&self, turn: Turn, ask: Ask, bytes: Bytes) -> oneshot::Receiver<rendezvous::Answer> {
        self.meeting.submit(0, turn, ask, bytes)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // The others cannot go on without the meeting place.
        self.meeting.fail(CommError::Lost { rank: 0, detail: "it has left the group".into() });
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
                Ok((stream, _)) if tasks.len() < o.size() + STRANGERS => _ = tasks.spawn(connection(stream, shared.clone())),
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

type Channel = BaseChannel<Call, Answer, Framed<TcpStream, RootCodec>>;

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let peer = stream.peer_addr();
    let (mut channel, rank) = match greet(stream, &shared).await {
        Ok(greeted) => greeted,
        Err(e) => return tracing::debug!("connection of {peer:?} ended: {e}"),
    };
    let why = match converse(&mut channel, rank, &shared).await {
        Ok(()) => "its connection was closed".to_string(),
        Err(e) => e,
    };
    tracing::debug!("rank {rank} ended: {why}");
    lost(rank, &why, &shared);
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
async fn greet(stream: TcpStream, shared: &Shared) -> Result<(Channel, usize), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let mut channel: Channel = BaseChannel::new(Config::default(), Framed::new(stream, RootCodec::new(), HANDSHAKE_FRAME));
    let first = match tokio::time::timeout(HANDSHAKE, channel.next()).await {
        Ok(Some(first)) => first.map_err(|e| causes(&e))?.request,
        Ok(None) => return Err("closed before the handshake".into()),
        Err(_) => return Err("no handshake in time".into()),
    };
    let checked = match &first.message {
        Call::Hello(hello) => hello.check(&shared.options.hello().identity).and_then(|()| admit(hello.role, hello.index as usize, shared)),
        _ => Err("the first call of a connection is the handshake".into()),
    };
    if let Ok(rank) = checked
        && !shared.meeting.readmit(rank)
    {
        shared.present.send_modify(|present| present[rank] = false);
        return Err(format!("rank {rank} comes back to a group that has ended"));
    }
    if shared.options.rejoin && checked.as_ref().is_err_and(|why| why.ends_with(TAKEN)) {
        return Err("its place is not free yet".into());
    }
    let answer = match &checked {
        Ok(_) => Answer::Welcome(shared.options.max_frame as u64),
        Err(why) => Answer::Refused(why.clone()),
    };
    let sent = channel.send(Response { request_id: first.id, message: Ok(answer) });
    match (checked, tokio::time::timeout(HANDSHAKE, sent).await) {
        (Err(why), _) => Err(why),
        (Ok(rank), Ok(Ok(()))) => {
            let max = shared.options.max_frame;
            std::pin::Pin::new(&mut channel).get_pin_ref().set_limits(max, max);
            Ok((channel, rank))
        }
        (Ok(rank), _) => {
            lost(rank, "its connection was closed", shared);
            Err("closed in the handshake".into())
        }
    }
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
            next = channel.next(), if calls.len() < CALLS => {
                let Some(next) = next else { return Ok(()) };
                let request = next.map_err(|e| causes(&e))?.request;
                heard = Instant::now();
                let answer = answer(rank, shared, &parts, request.message);
                let id = request.id;
                calls.push(async move { (id, answer.await) });
            }
            Some((request_id, answer)) = calls.next(), if !calls.is_empty() => {
                let sent = channel.send(Response { request_id, message: Ok(answer) });
                match tokio::time::timeout(silence.max(Duration::from_secs(30)), sent).await {
                    Ok(sent) => sent.map_err(|e| causes(&e))?,
                    Err(_) => return Err("it did not take its answer in time".into()),
                }
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
                Ok(Ok(_)) => Answer::Done,
                Ok(Err(e)) => Answer::Failed(e),
                Err(_) => Answer::Failed(shared.meeting.failure()),
            }
        }
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
