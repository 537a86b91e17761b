//! The server: a runtime of one thread per core, each with its share of the connections. Nothing that a client sends is
//! trusted, and what one client does wrong is answered to that client alone.

use super::reload::Held;
use super::versions::{Version, Versions};
use super::wire::{Answer, Call, Failure, Limits, ServerCodec};
use super::{ServeOptions, ServerInfo};
use crate::store::request::{Reply, Request, row_blocks};
use crate::store::shards::PoolJob;
use crate::store::stream::{Means, RowStream, fill};
use crate::store::{Shards, Stats, StoreError, read_manifest};
use crate::wire::{Door, Framed, HANDSHAKE_FRAME, Hello, MAX_HEAD, PREFIX, Parked, Role, Socket, Stream, causes};
use futures::{SinkExt, StreamExt};
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tarpc::Response;
use tarpc::server::{BaseChannel, Config};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

/// Time that connections have to end by themselves when the server stops.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Shared {
    versions: Arc<Versions>,
    options: ServeOptions,
    /// That serve connections.
    threads: usize,
    connections: AtomicUsize,
    /// [`ServeOptions::max_in_flight`] in units of 1 KiB.
    in_flight: Semaphore,
    stop: watch::Sender<bool>,
}

/// Serves the shards of `dir` that are this server's, until `shutdown` resolves or a client stops the server. Blocks, with a
/// thread per core. Clients that connect while the shards are being opened wait in the listener's queue.
///
/// # Errors
/// Shards that are missing, torn or foreign, and errors of the system before the first connection.
pub fn serve(
    listener: TcpListener,
    dir: &Path,
    options: ServeOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Stats, StoreError> {
    let door = Door::new(listener, options.is_local()).map_err(system)?;
    let manifest = read_manifest(dir)?;
    if options.index >= options.servers {
        let what = format!("pserver index {} of {} servers", options.index, options.servers);
        return Err(StoreError::Corrupt(what));
    }
    let shards = Arc::new(Shards::of_server(dir, Arc::new(manifest), options.servers, options.index)?);
    serve_from(door, shards, Some(dir.into()), options, shutdown)
}

/// As [`serve`], for shards that are open already.
///
/// # Errors
/// As [`serve`].
pub fn serve_shards(
    listener: TcpListener,
    shards: Arc<Shards>,
    options: ServeOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Stats, StoreError> {
    serve_from(Door::new(listener, options.is_local()).map_err(system)?, shards, None, options, shutdown)
}

fn system(e: io::Error) -> StoreError {
    StoreError::Corrupt(format!("cannot serve: {e}"))
}

fn serve_from(
    door: Door,
    shards: Arc<Shards>,
    dir: Option<PathBuf>,
    options: ServeOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Stats, StoreError> {
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let runtimes = (0..threads).map(|_| tokio::runtime::Builder::new_current_thread().enable_all().build());
    let mut runtimes = runtimes.collect::<io::Result<Vec<_>>>().map_err(system)?;
    let Some(first) = runtimes.pop() else { return Ok(shards.stats()) };
    let shared = Shared {
        versions: Arc::new(Versions::new(shards.clone(), dir, &options)?),
        connections: AtomicUsize::new(0),
        in_flight: Semaphore::new((options.max_in_flight / 1024).clamp(1, Semaphore::MAX_PERMITS)),
        stop: watch::Sender::new(false),
        options,
        threads,
    };
    let shared = Arc::new(shared);
    if let Some(watch) = &shared.options.watch {
        let _ = watch.server.set(Arc::downgrade(&shared));
    }
    std::thread::scope(|scope| {
        let mut queues = Vec::new();
        for runtime in runtimes {
            let (send, receive) = mpsc::unbounded_channel();
            let shared = shared.clone();
            scope.spawn(move || runtime.block_on(take_connections(receive, shared)));
            queues.push(send);
        }
        first.block_on(accept(door, queues, shared.clone(), shutdown)).map_err(system)
    })?;
    Ok(shards.stats())
}

/// Accepts connections and deals them out to the threads in turn, this one included.
async fn accept(
    door: Door,
    queues: Vec<mpsc::UnboundedSender<Parked>>,
    shared: Arc<Shared>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = door.open()?;
    let mut shutdown = pin!(shutdown);
    let mut stop = shared.stop.subscribe();
    let mut tasks = JoinSet::new();
    let mut turn = 0;
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = stop.changed() => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => {
                let stream = match accepted {
                    Ok(stream) => stream,
                    Err(e) => {
                        // Out of descriptors, or the client is gone already: neither ends the server.
                        tracing::warn!("cannot accept a connection: {e}");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                };
                if shared.connections.fetch_add(1, Relaxed) >= shared.options.max_connections {
                    shared.connections.fetch_sub(1, Relaxed);
                    tracing::warn!("connection refused: {} are open", shared.options.max_connections);
                    continue;
                }
                turn = (turn + 1) % (queues.len() + 1);
                match queues.get(turn) {
                    Some(queue) => match stream.park().map(|s| queue.send(s)) {
                        Ok(Ok(())) => {}
                        _ => _ = shared.connections.fetch_sub(1, Relaxed),
                    },
                    None => _ = tasks.spawn(connection(stream, shared.clone())),
                }
            }
        }
    }
    shared.stop.send_replace(true);
    drop(queues);
    finish(tasks).await;
    Ok(())
}

/// Serves the connections that are dealt to this thread.
async fn take_connections(mut queue: mpsc::UnboundedReceiver<Parked>, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = tasks.join_next() => {}
            stream = queue.recv() => match stream.map(Parked::resume) {
                Some(Ok(stream)) => _ = tasks.spawn(connection(stream, shared.clone())),
                Some(Err(_)) => _ = shared.connections.fetch_sub(1, Relaxed),
                None => break,
            }
        }
    }
    finish(tasks).await;
}

async fn finish(mut tasks: JoinSet<()>) {
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        tasks.shutdown().await;
    }
}

/// Counts a connection down however it ends.
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

async fn connection(stream: Socket, shared: Arc<Shared>) {
    let counted = Counted(shared);
    let peer = stream.peer();
    if let Err(e) = converse(stream, &counted.0).await {
        tracing::debug!("connection of {peer} ended: {e}");
    }
}

type Channel = BaseChannel<Call, Answer, Framed<Stream, ServerCodec>>;

/// The whole of one connection: a handshake, then one request after the other. A client's next request waits in its
/// socket while the present one is answered, so that a connection holds one frame of memory in each direction.
async fn converse(stream: Socket, shared: &Shared) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + shared.options.handshake_timeout;
    let local = stream.is_local();
    let window = match tokio::time::timeout_at(deadline, stream.offered()).await {
        Err(_) => return Err("no handshake in time".into()),
        Ok(window) => window.map_err(|e| e.to_string())?,
    };
    let means = Means { shared: shared.threads > 1, local, window: window.as_ref() };
    let stream = match tokio::time::timeout_at(deadline, Stream::accept(stream, shared.options.tls.as_ref())).await {
        Err(_) => return Err("no handshake in time".into()),
        Ok(stream) => stream.map_err(|e| e.to_string())?,
    };
    let transport = Framed::new(stream, ServerCodec::new(), HANDSHAKE_FRAME).doubting();
    let mut channel: Channel = BaseChannel::new(Config::default(), transport);
    let hello = match tokio::time::timeout_at(deadline, channel.next()).await {
        Err(_) => return Err("no handshake in time".into()),
        Ok(None) => return Ok(()),
        Ok(Some(first)) => first.map_err(|e| causes(&e))?.request,
    };
    let version = shared.versions.present();
    let (role, answer) = greet(&hello.message, shared, &version);
    reply(&mut channel, shared, hello.id, answer).await?;
    let Some(role) = role else { return Err("refused".into()) };
    let o = &shared.options;
    let largest_request = (PREFIX + MAX_HEAD).saturating_add(o.max_ids.saturating_mul(8));
    std::pin::Pin::new(&mut channel).get_pin_ref().set_limits(o.max_frame.min(largest_request), o.max_frame);
    let mut stop = shared.stop.subscribe();
    if *stop.borrow_and_update() {
        return Ok(());
    }
    let mut tick = tokio::time::interval(o.stall_timeout.max(Duration::from_millis(1)));
    let (mut partial, mut held) = (None, Held::default());
    loop {
        tokio::select! {
            biased;
            next = channel.next() => {
                let Some(next) = next else { return Ok(()) };
                let request = next.map_err(|e| causes(&e))?.request;
                answer_one(&mut channel, shared, (role, &version, means), &mut held, request).await?;
            }
            _ = stop.changed() => return Ok(()),
            _ = tick.tick() => {
                held.expire();
                // The same frame still under way at the second tick has had its time.
                let now = std::pin::Pin::new(&mut channel).get_pin_ref().partial();
                if now.is_some() && now == partial {
                    return Err("a frame did not end in time".into());
                }
                partial = now;
            }
        }
    }
}

fn greet(call: &Call, shared: &Shared, version: &Version) -> (Option<Role>, Answer) {
    let Call::Hello(hello) = call else {
        return (None, Answer::Failed(Failure::Refused("the first call of a connection is the handshake".into())));
    };
    if let Err(differs) = hello.check(&version.identity).and_then(|()| check_index(hello, shared)) {
        return (None, Answer::Failed(Failure::Refused(differs)));
    }
    let limits = Limits { max_frame: shared.options.max_frame as u64, max_ids: shared.options.max_ids as u64 };
    (Some(hello.role), Answer::Welcome(limits))
}

fn check_index(hello: &Hello, shared: &Shared) -> Result<(), String> {
    let (ours, theirs) = (shared.options.index as u32, hello.index);
    match hello.role {
        Role::Control => Ok(()),
        Role::Worker if ours == theirs => Ok(()),
        Role::Worker => Err(format!("pserver index {ours} here, {theirs} at the peer; are the endpoints in the same order everywhere?")),
        Role::Rank | Role::Peer => Err("this is a pserver, not a worker".into()),
    }
}

async fn answer_one(
    channel: &mut Channel,
    shared: &Shared,
    (role, version, means): (Role, &Version, Means<'_>),
    held: &mut Held,
    request: tarpc::Request<Call>,
) -> Result<(), String> {
    let id = request.id;
    match request.message {
        Call::Fetch(fetch, place) if role == Role::Worker => {
            // The share is held until the answer is written.
            let start = Instant::now();
            let (share, answer) = match fetch_rows((&fetch, place), means, shared, &version.shards, request.context.deadline).await {
                Ok((share, answer)) => (Some(share), answer),
                Err(failure) => (None, Answer::Failed(failure)),
            };
            if let (Some(watch), Some(_)) = (&shared.options.watch, &share) {
                watch.durations.add(start.elapsed());
            }
            drop(fetch);
            let sent = reply(channel, shared, id, answer).await;
            drop(share);
            sent
        }
        Call::Info => reply(channel, shared, id, Answer::Info(info(shared))).await,
        Call::Shutdown if role == Role::Control && shared.options.remote_shutdown => {
            reply(channel, shared, id, Answer::Done).await?;
            shared.stop.send_replace(true);
            Ok(())
        }
        call @ (Call::Prepare { .. } | Call::Commit(_)) if role == Role::Control => {
            let answer = held.answer(call, &shared.versions, &shared.options).await;
            reply(channel, shared, id, answer).await
        }
        Call::Prepare { .. } | Call::Commit(_) => reply(channel, shared, id, refuse("only a control connection reloads")).await,
        Call::Shutdown => reply(channel, shared, id, refuse("this server does not let its clients stop it")).await,
        Call::Fetch(..) => reply(channel, shared, id, refuse("a control connection looks nothing up")).await,
        Call::Hello(_) => reply(channel, shared, id, refuse("the handshake is done")).await,
    }
}

fn refuse(why: &str) -> Answer {
    Answer::Failed(Failure::Refused(why.into()))
}

async fn fetch_rows<'a>(
    (request, place): (&Request, Option<u64>),
    means: Means<'_>,
    shared: &'a Shared,
    shards: &Arc<Shards>,
    deadline: Instant,
) -> Result<(tokio::sync::SemaphorePermit<'a>, Answer), Failure> {
    let o = &shared.options;
    let ids: u64 = request.parts.iter().map(|p| u64::from(p.count)).sum();
    if ids > o.max_ids as u64 {
        return Err(Failure::Refused(format!("{ids} ids in one request, the limit is {}", o.max_ids)));
    }
    let rows = row_blocks(&request.parts).map_or(usize::MAX, |b| b.1);
    if rows.saturating_add(PREFIX) > o.max_frame {
        return Err(Failure::Refused(format!("an answer of {rows} bytes is over the frame limit of {} bytes (--max-frame)", o.max_frame)));
    }
    let pooled = request.pooling.map(|p| (p.bags, p.len().unwrap_or(usize::MAX)));
    if let Some((bags, len)) = pooled.filter(|&(bags, len)| bags as usize > o.max_ids || len.saturating_add(PREFIX) > o.max_frame) {
        let (ids, frame) = (o.max_ids, o.max_frame);
        return Err(Failure::Refused(format!("{bags} bags in {len} bytes, the limits are {ids} bags and {frame} bytes (--max-frame)")));
    }
    let place = match place.zip(means.window) {
        Some((at, window)) if pooled.is_none() => {
            let place = window.place(at, rows);
            Some(place.ok_or_else(|| Failure::Refused(format!("{rows} bytes at {at} are no place in the memory that is shared")))?)
        }
        _ => None,
    };
    let stream = if pooled.is_some() || place.is_some() { None } else { RowStream::new(shards, request, rows, means)? };
    let held = stream.as_ref().map_or(pooled.map_or(rows, |p| p.1), RowStream::held);
    let units = (held / 1024).clamp(1, o.max_in_flight / 1024 + 1).min((o.max_in_flight / 1024).max(1)) as u32;
    let share = match shared.in_flight.try_acquire_many(units) {
        Ok(share) => share,
        Err(_) => match tokio::time::timeout_at(deadline.into(), shared.in_flight.acquire_many(units)).await {
            Ok(Ok(share)) => share,
            _ => return Err(Failure::Busy(format!("{} bytes of answers are under way", o.max_in_flight))),
        },
    };
    Ok((
        share,
        match (stream, request.pooling) {
            (Some(rows), _) => Answer::Rows(rows),
            (None, Some(pooling)) => {
                let mut job = PoolJob::new(shards, request, pooling)?;
                while job.step()? {
                    // Other connections of this thread go on meanwhile.
                    tokio::task::yield_now().await;
                }
                Answer::Reply(job.reply())
            }
            (None, None) => Answer::Reply(match place {
                Some(place) if !request.parts.iter().any(|p| shards.keyed(p)) => {
                    Reply { rows: fill(shards, request, place).await?, ..Reply::default() }
                }
                place => shards.answer_in(request, place)?,
            }),
        },
    ))
}

async fn reply(channel: &mut Channel, shared: &Shared, request_id: u64, answer: Answer) -> Result<(), String> {
    let sent = channel.send(Response { request_id, message: Ok(answer) });
    match tokio::time::timeout(shared.options.stall_timeout, sent).await {
        Ok(sent) => sent.map_err(|e| causes(&e)),
        Err(_) => Err("the client did not take its answer in time".into()),
    }
}

fn info(shared: &Shared) -> String {
    serde_json::to_string(&describe(shared)).unwrap_or_default()
}

/// What a server says of itself.
pub(super) fn describe(shared: &Shared) -> ServerInfo {
    let version = shared.versions.present();
    let (shards, manifest) = (&version.shards, version.shards.manifest());
    let numbers = shards.numbers();
    let here = |t: &&crate::plan::TableEntry| t.pieces.iter().any(|p| numbers.contains(&p.shard));
    ServerInfo {
        plan_id: manifest.plan_id.clone(),
        fingerprint: manifest.fingerprint.clone(),
        servers: shared.options.servers,
        index: shared.options.index,
        bytes: shards.bytes(),
        tables: manifest.tables.iter().filter(here).map(|t| t.name.clone()).collect(),
        shards: numbers,
        connections: shared.connections.load(Relaxed),
        stats: shards.stats(),
    }
}
