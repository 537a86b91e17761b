//! The side of the other ranks: one connection to rank 0, for as long as the group lasts, and what goes past it.

use super::direct::{Control, Peers};
use super::link::{Greeting, Link, UNEXPECTED, gone};
use super::shelf::{self, Shelf};
use super::wire::{Answer, Call};
use super::{GroupOptions, Worker};
use crate::comm::call::{self, Ask, Output, Turn};
use crate::comm::member::Carrier;
use crate::comm::{CommError, SILENT};
use crate::wire::{Backoff, Pooled, Role};
use bytes::Bytes;
use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tarpc::client::RpcError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

struct Command {
    turn: Turn,
    ask: Ask,
    bytes: Bytes,
    answer: oneshot::Sender<call::Answer>,
}

/// A rank other than 0.
#[derive(Debug)]
pub(super) struct Branch {
    commands: Option<mpsc::UnboundedSender<Command>>,
    worker: Worker,
}

impl Branch {
    /// Starts to connect; `ready` hears when all ranks are there, or why not.
    pub(super) fn start(
        options: GroupOptions,
        listener: Option<TcpListener>,
        ready: oneshot::Sender<Result<(), CommError>>,
    ) -> Result<Self, CommError> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let worker = Worker::spawn(run(options, listener, receiver, ready))?;
        Ok(Self { commands: Some(commands), worker })
    }
}

impl Carrier for Branch {
    fn submit(&self, turn: Turn, ask: Ask, bytes: Bytes) -> oneshot::Receiver<call::Answer> {
        let (answer, receiver) = oneshot::channel();
        if let Some(commands) = &self.commands {
            // If the thread has ended, the answer is dropped with the command, which the receiver hears.
            _ = commands.send(Command { turn, ask, bytes, answer });
        }
        receiver
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        drop(self.commands.take());
        self.worker.join();
    }
}

/// What a rank has in its group: the connection to rank 0, those to others, and what they may fetch.
struct Seat {
    link: Link,
    peers: Peers,
    shelf: Arc<Shelf>,
    listening: Option<AbortHandle>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(listening) = &self.listening {
            listening.abort();
        }
    }
}

async fn run(
    mut options: GroupOptions,
    listener: Option<TcpListener>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    ready: oneshot::Sender<Result<(), CommError>>,
) {
    let mut early = VecDeque::new();
    let (mut ready, mut unused) = (Some(ready), true);
    let lost = loop {
        let seat = match formed((&options, &listener), &mut commands, &mut early, ready.is_none()).await {
            Some(Ok(seat)) => Arc::new(seat),
            Some(Err(e)) => match ready.take() {
                Some(ready) => {
                    _ = ready.send(Err(e));
                    return;
                }
                None => break e,
            },
            None => return,
        };
        _ = ready.take().map(|ready| ready.send(Ok(())));
        let Some(lost) = serve(&seat, &mut commands, &mut early, &mut unused).await else { return };
        // Rank 0 may be back, and it has missed nothing.
        if !(options.rejoin && unused) {
            break lost;
        }
        options.late = true;
    };
    for c in early {
        _ = c.answer.send(Err(lost.clone()));
    }
    while let Some(c) = commands.recv().await {
        _ = c.answer.send(Err(lost.clone()));
    }
}

/// Forms the group. What is asked for in the meantime waits in `early`; nothing, if nobody asks any more.
async fn formed(
    (options, listener): (&GroupOptions, &Option<TcpListener>),
    commands: &mut mpsc::UnboundedReceiver<Command>,
    early: &mut VecDeque<Command>,
    again: bool,
) -> Option<Result<Seat, CommError>> {
    let mut form = std::pin::pin!(form(options.clone(), listener));
    loop {
        tokio::select! {
            formed = &mut form => return Some(formed),
            // No command comes before the group is first formed; the channel closes if nobody waits for that any more.
            command = commands.recv() => match command {
                Some(c) if again => early.push_back(c),
                _ => return None,
            }
        }
    }
}

/// Runs collectives until the connection is lost, or nobody asks any more (nothing then).
async fn serve(
    seat: &Arc<Seat>,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    early: &mut VecDeque<Command>,
    unused: &mut bool,
) -> Option<CommError> {
    let mut tasks = JoinSet::new();
    let ended = watch::Sender::new(None::<CommError>);
    let mut heart = std::pin::pin!(beat(&seat.link));
    let lost = loop {
        let next = async {
            match early.pop_front() {
                Some(c) => Some(c),
                None => commands.recv().await,
            }
        };
        tokio::select! {
            Some(_) = tasks.join_next() => {}
            detail = &mut heart => break seat.link.lost(&detail),
            command = next => {
                let c = command?;
                *unused = false;
                let (seat, mut ended) = (seat.clone(), ended.subscribe());
                tasks.spawn(async move {
                    // An answer that is there counts, even if the connection ended after it.
                    let answer = tokio::select! {
                        biased;
                        answer = seat.collective(c.turn, c.ask, c.bytes) => answer,
                        Ok(e) = async { ended.wait_for(Option::is_some).await.map(|e| e.clone()) } => e.map_or(Ok(Output::Nothing), Err),
                    };
                    _ = c.answer.send(answer);
                });
            }
        }
    };
    // Calls that are under way end with what ended the connection; those that come get the same answer.
    ended.send_replace(Some(lost.clone()));
    while tasks.join_next().await.is_some() {}
    Some(lost)
}

/// Says that this rank is alive, until rank 0 does not answer any more; gives what was seen.
async fn beat(link: &Link) -> String {
    let silence = link.options.heartbeat_timeout;
    loop {
        tokio::time::sleep(link.options.heartbeat()).await;
        match link.call(Call::Ping, silence).await {
            Ok(_) => {}
            Err(RpcError::DeadlineExceeded) => return format!("{SILENT} for {} s", silence.as_secs_f64()),
            Err(e) => return gone(&e),
        }
    }
}

async fn form(options: GroupOptions, listener: &Option<TcpListener>) -> Result<Seat, CommError> {
    let endpoint = options.endpoints[0].clone();
    let (started, timeout) = (Instant::now(), options.connect_timeout);
    let deadline = started + timeout;
    let options = Arc::new(options);
    let mut backoff = Backoff::new();
    let mut detail = "no answer".into();
    let link = loop {
        let greeting = Link::greet(&endpoint, (Role::Rank, options.rank), &options);
        match tokio::time::timeout_at(deadline.into(), greeting).await {
            Ok(Ok(link)) => break link,
            Ok(Err(Greeting::Refused(detail))) => return Err(CommError::Refused { endpoint, detail }),
            Ok(Err(Greeting::Again(now))) => detail = now,
            Err(_) => {}
        }
        if !backoff.wait(deadline).await {
            let detail = format!("rank 0 did not answer within {} s: {detail}", timeout.as_secs_f64());
            return Err(CommError::Unavailable { endpoint, detail });
        }
    };
    let seat = Seat::take(link, listener).await?;
    if options.late {
        return Ok(seat);
    }
    // Rank 0 gives up first, and says which rank was missing.
    match seat.link.call(Call::Form, timeout * 2 + Duration::from_secs(1)).await {
        Ok(Answer::Done) => Ok(seat),
        Ok(Answer::Failed(e)) => Err(e),
        Ok(Answer::Refused(detail)) => Err(CommError::Unavailable { endpoint, detail }),
        Ok(_) => Err(CommError::Refused { endpoint, detail: UNEXPECTED.into() }),
        Err(e) => Err(seat.link.lost(&gone(&e))),
    }
}

impl Link {
    /// That rank 0 is lost.
    fn lost(&self, what: &str) -> CommError {
        CommError::Lost { rank: 0, detail: format!("{what} ({})", self.options.endpoints[0]) }
    }

    /// As [`Link::call`], for a call of rank 0 within a collective.
    pub(super) async fn exchange(&self, call: Call) -> Result<Answer, CommError> {
        // Rank 0 watches the time of a collective; this deadline is for a rank 0 that does not.
        let timeout = self.options.timeout.saturating_add(Duration::from_secs(30)).min(Duration::from_secs(7 * 24 * 3600));
        match self.call(call, timeout).await {
            Ok(Answer::Failed(e)) => Err(e),
            Ok(Answer::Refused(detail)) => Err(CommError::Refused { endpoint: self.options.endpoints[0].clone(), detail }),
            Ok(answer) => Ok(answer),
            Err(e) => Err(self.lost(&gone(&e))),
        }
    }
}

impl Seat {
    /// Opens this rank to the others, if bytes are to go from rank to rank.
    async fn take(link: Link, listener: &Option<TcpListener>) -> Result<Self, CommError> {
        let (options, shelf) = (link.options.clone(), Arc::<Shelf>::default());
        shelf.enter(link.welcome.group);
        let mut listening = None;
        if link.welcome.direct_from < u64::MAX {
            let failed = |e: std::io::Error| CommError::Invalid(format!("rank {} cannot listen for the others: {e}", options.rank));
            let (listener, address) = open(&link, listener).map_err(failed)?;
            listening = Some(tokio::spawn(shelf::listen(listener, shelf.clone(), options.clone())).abort_handle());
            link.exchange(Call::Listen(address)).await?;
        }
        Ok(Self { peers: Peers::new(options), link, shelf, listening })
    }

    async fn collective(&self, turn: Turn, ask: Ask, bytes: Bytes) -> call::Answer {
        let direct_from = usize::try_from(self.link.welcome.direct_from).unwrap_or(usize::MAX);
        let kept = self.shelf.keep(turn, bytes.clone());
        let sent = if ask.waits(direct_from) { Bytes::new() } else { bytes.clone() };
        let (dtype, shape, len, first) = match self.ask(turn, ask.clone(), sent).await? {
            Answer::Tensor(dtype, shape, len, first) => (dtype, shape, len, first),
            Answer::Direct(plan) => {
                let control = Control::There(self.link.clone());
                return self.peers.run(&control, (turn, &ask, &plan), bytes, kept).await;
            }
            _ => return Ok(Output::Nothing),
        };
        if dtype.byte_len(&shape).map(|n| n as u64) != Some(len) {
            return Err(CommError::Invalid(format!("{dtype}{shape} in {len} bytes from rank 0")));
        }
        if first.len() as u64 == len {
            return Ok(Output::Tensor(dtype, shape, first));
        }
        let mut whole = Pooled::take(len as usize);
        let mut at = first.len().min(whole.len());
        whole[..at].copy_from_slice(&first[..at]);
        while at < whole.len() {
            let Answer::More(part) = self.link.exchange(Call::More(turn, at as u64)).await? else { return Ok(Output::Nothing) };
            let n = part.len().min(whole.len() - at);
            if n == 0 {
                return Err(CommError::Invalid("rank 0 sent less than it said".into()));
            }
            whole[at..at + n].copy_from_slice(&part[..n]);
            at += n;
        }
        Ok(Output::Tensor(dtype, shape, whole.freeze()))
    }

    /// Hands a contribution to rank 0, in parts if it is over the limit of a frame.
    async fn ask(&self, turn: Turn, ask: Ask, mut bytes: Bytes) -> Result<Answer, CommError> {
        let dims = ask.shape.len() * 8 + ask.name.len();
        let room = self.link.room.saturating_sub(dims).max(1);
        while bytes.len() > room {
            self.link.exchange(Call::Part(turn, bytes.split_to(room))).await?;
        }
        self.link.exchange(Call::Collective(turn, ask, bytes)).await
    }
}

/// Where this rank listens: on what it was given, known to the others as its endpoint; else on a port of the system's choice, at
/// the address by which it reaches rank 0.
fn open(link: &Link, given: &Option<TcpListener>) -> std::io::Result<(tokio::net::TcpListener, String)> {
    let (listener, address) = match (given, link.local) {
        (Some(listener), _) => (listener.try_clone()?, link.options.endpoints[link.options.rank].clone()),
        (None, Some(local)) => {
            let listener = TcpListener::bind((local.ip(), 0))?;
            let address = listener.local_addr()?.to_string();
            (listener, address)
        }
        (None, None) => return Err(std::io::ErrorKind::NotConnected.into()),
    };
    listener.set_nonblocking(true)?;
    Ok((tokio::net::TcpListener::from_std(listener)?, address))
}
