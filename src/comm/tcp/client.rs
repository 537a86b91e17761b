//! The side of the other ranks: one connection to rank 0, for as long as the group lasts.

use super::wire::{Answer, Call, OVERHEAD, RankCodec};
use super::{GroupOptions, Worker};
use crate::comm::member::Carrier;
use crate::comm::rendezvous::{self, Ask, Output, Turn};
use crate::comm::{CommError, SILENT};
use crate::wire::{Backoff, Framed, Pooled, causes, dial};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tarpc::client::{Channel, Config, NewClient, RpcError};
use tarpc::context::{self, Context};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

struct Command {
    turn: Turn,
    ask: Ask,
    bytes: Bytes,
    answer: oneshot::Sender<rendezvous::Answer>,
}

/// A rank other than 0.
#[derive(Debug)]
pub(super) struct Branch {
    commands: Option<mpsc::UnboundedSender<Command>>,
    worker: Worker,
}

impl Branch {
    /// Starts to connect; `ready` hears when all ranks are there, or why not.
    pub(super) fn start(options: GroupOptions, ready: oneshot::Sender<Result<(), CommError>>) -> Result<Self, CommError> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let worker = Worker::spawn(run(options, receiver, ready))?;
        Ok(Self { commands: Some(commands), worker })
    }
}

impl Carrier for Branch {
    fn submit(&self, turn: Turn, ask: Ask, bytes: Bytes) -> oneshot::Receiver<rendezvous::Answer> {
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

/// The connection, and what its calls need.
#[derive(Clone)]
struct Link {
    channel: Channel<Call, Answer>,
    context: Context,
    options: Arc<GroupOptions>,
    /// Bytes of a body that fit a frame.
    room: usize,
}

async fn run(mut options: GroupOptions, mut commands: mpsc::UnboundedReceiver<Command>, ready: oneshot::Sender<Result<(), CommError>>) {
    let mut early = VecDeque::new();
    let (mut ready, mut unused) = (Some(ready), true);
    let lost = loop {
        let link = match formed(&options, &mut commands, &mut early, ready.is_none()).await {
            Some(Ok(link)) => link,
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
        let Some(lost) = serve(&link, &mut commands, &mut early, &mut unused).await else { return };
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
    options: &GroupOptions,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    early: &mut VecDeque<Command>,
    again: bool,
) -> Option<Result<Link, CommError>> {
    let mut form = std::pin::pin!(form(options.clone()));
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
    link: &Link,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    early: &mut VecDeque<Command>,
    unused: &mut bool,
) -> Option<CommError> {
    let mut tasks = JoinSet::new();
    let ended = watch::Sender::new(None::<CommError>);
    let mut heart = std::pin::pin!(beat(link));
    let lost = loop {
        let next = async {
            match early.pop_front() {
                Some(c) => Some(c),
                None => commands.recv().await,
            }
        };
        tokio::select! {
            Some(_) = tasks.join_next() => {}
            detail = &mut heart => break CommError::Lost { rank: 0, detail },
            command = next => {
                let c = command?;
                *unused = false;
                let (link, mut ended) = (link.clone(), ended.subscribe());
                tasks.spawn(async move {
                    // An answer that is there counts, even if the connection ended after it.
                    let answer = tokio::select! {
                        biased;
                        answer = link.collective(c.turn, c.ask, c.bytes) => answer,
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

fn gone(error: &RpcError) -> String {
    match error {
        RpcError::Shutdown => "its connection was closed".into(),
        other => causes(other),
    }
}

async fn form(options: GroupOptions) -> Result<Link, CommError> {
    let endpoint = options.endpoints[0].clone();
    let (started, timeout) = (Instant::now(), options.connect_timeout);
    let deadline = started + timeout;
    let options = Arc::new(options);
    let mut backoff = Backoff::new();
    let link = loop {
        let detail = match tokio::time::timeout_at(deadline.into(), greet(&options)).await {
            Ok(Ok(link)) => break link,
            Ok(Err(Greeting::Refused(detail))) => return Err(CommError::Refused { endpoint, detail }),
            Ok(Err(Greeting::Again(detail))) => detail,
            Err(_) => "no answer".into(),
        };
        if !backoff.wait(deadline).await {
            let detail = format!("rank 0 did not answer within {} s: {detail}", timeout.as_secs_f64());
            return Err(CommError::Unavailable { endpoint, detail });
        }
    };
    if options.late {
        return Ok(link);
    }
    // Rank 0 gives up first, and says which rank was missing.
    match link.call(Call::Form, timeout * 2 + Duration::from_secs(1)).await {
        Ok(Answer::Done) => Ok(link),
        Ok(Answer::Failed(e)) => Err(e),
        Ok(Answer::Refused(detail)) => Err(CommError::Unavailable { endpoint, detail }),
        Ok(_) => Err(CommError::Refused { endpoint, detail: "it sent an answer of another kind than was asked for".into() }),
        Err(e) => Err(CommError::Lost { rank: 0, detail: gone(&e) }),
    }
}

enum Greeting {
    Refused(String),
    Again(String),
}

async fn greet(options: &Arc<GroupOptions>) -> Result<Link, Greeting> {
    let stream = dial(&options.endpoints[0]).await.map_err(|e| Greeting::Again(e.to_string()))?;
    let transport = Framed::new(stream, RankCodec, options.max_frame);
    let NewClient { client: channel, dispatch } = tarpc::client::new(Config::default(), transport);
    tokio::spawn(async move {
        if let Err(e) = dispatch.await {
            tracing::debug!("connection to rank 0 ended: {}", causes(&e));
        }
    });
    let mut link = Link { channel, context: context::current(), options: options.clone(), room: 0 };
    match link.call(Call::Hello(options.hello()), options.connect_timeout).await {
        Ok(Answer::Welcome(max_frame)) => {
            let limit = usize::try_from(max_frame).unwrap_or(usize::MAX).min(options.max_frame);
            link.room = limit.saturating_sub(OVERHEAD).max(1);
            Ok(link)
        }
        Ok(Answer::Refused(detail)) => Err(Greeting::Refused(detail)),
        Ok(_) => Err(Greeting::Refused("it sent an answer of another kind than was asked for".into())),
        Err(e) => Err(Greeting::Again(gone(&e))),
    }
}

impl Link {
    async fn call(&self, call: Call, timeout: Duration) -> Result<Answer, RpcError> {
        let mut context = self.context;
        context.deadline = Instant::now() + timeout;
        self.channel.call(context, call).await
    }

    /// As [`Link::call`], for a call within a collective.
    async fn exchange(&self, call: Call) -> Result<Answer, CommError> {
        // Rank 0 watches the time of a collective; this deadline is for a rank 0 that does not.
        let timeout = self.options.timeout.saturating_add(Duration::from_secs(30)).min(Duration::from_secs(7 * 24 * 3600));
        match self.call(call, timeout).await {
            Ok(Answer::Failed(e)) => Err(e),
            Ok(Answer::Refused(detail)) => Err(CommError::Refused { endpoint: self.options.endpoints[0].clone(), detail }),
            Ok(answer) => Ok(answer),
            Err(e) => Err(CommError::Lost { rank: 0, detail: gone(&e) }),
        }
    }

    async fn collective(&self, turn: Turn, ask: Ask, mut bytes: Bytes) -> rendezvous::Answer {
        let dims = ask.shape.len() * 8 + ask.name.len();
        let room = self.room.saturating_sub(dims).max(1);
        while bytes.len() > room {
            self.exchange(Call::Part(turn, bytes.split_to(room))).await?;
        }
        let (dtype, shape, len, first) = match self.exchange(Call::Collective(turn, ask, bytes)).await? {
            Answer::Tensor(dtype, shape, len, first) => (dtype, shape, len, first),
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
            let Answer::More(part) = self.exchange(Call::More(turn, at as u64)).await? else { return Ok(Output::Nothing) };
            let n = part.len().min(whole.len() - at);
            if n == 0 {
                return Err(CommError::Invalid("rank 0 sent less than it said".into()));
            }
            whole[at..at + n].copy_from_slice(&part[..n]);
            at += n;
        }
        Ok(Output::Tensor(dtype, shape, whole.freeze()))
    }
}
