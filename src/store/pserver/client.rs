//! The client: one connection to one server, made again when it is lost; and the store over all servers of a job.

use super::ServerInfo;
use super::bag_chunks;
use super::chunks::Chunks;
use super::replicas::{Replicas, reach};
use super::wire::{Answer, Call, ClientCodec, Failure, Limits};
use crate::plan::{Manifest, Placement};
use crate::store::request::{Peer, Reply, ReplyFuture, Request, row_blocks};
use crate::store::sharded::Sharded;
use crate::store::{Dedup, Store, StoreError};
use crate::wire::{
    Backoff, DEFAULT_MAX_FRAME, Framed, Hello, Identity, Lent, MAX_HEAD, Role, Room, Stream, Tls, Unreached, causes, refusal,
};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tarpc::client::{Channel, Config, NewClient, RpcError};
use tarpc::context::{self, Context};
use tokio::task::AbortHandle;
use tokio::time::timeout_at;

/// How to reach the servers of a job.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// How long [`connect`] waits for servers that are not there yet.
    pub connect_timeout: Duration,
    /// The deadline of a lookup, reconnects included. Replicas share the time: of two, the first has half of it to answer.
    pub rpc_timeout: Duration,
    /// The largest frame to send or to read, in bytes; larger requests are split.
    pub max_frame: usize,
    /// The secret that the servers ask for.
    pub token: Option<String>,
    /// Certificates: with them all connections are within TLS, and servers need one of the same CA, for the host of their endpoint.
    pub tls: Option<Tls>,
    /// Whether a server of this machine is reached by a Unix socket beside its port, where nothing is encrypted.
    pub local: bool,
    /// Whether ids are de-duplicated before they are sent.
    pub dedup: Dedup,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        let (connect_timeout, rpc_timeout) = (Duration::from_secs(60), Duration::from_secs(30));
        Self { connect_timeout, rpc_timeout, max_frame: DEFAULT_MAX_FRAME, token: None, tls: None, local: true, dedup: Dedup::Auto }
    }
}

/// A store over the pservers at `endpoints` (`host:port`), in their order: server `i` holds the shards that
/// [`Manifest::placement`] gives to it. Waits until all have answered; where shards have replicas, a little longer than until
/// each has answered from somewhere. Lookups run on the runtime that calls this.
///
/// # Errors
/// A server that is not there within the time while no other holds the same shards; one that refuses.
pub async fn connect(manifest: Arc<Manifest>, endpoints: &[String], options: ConnectOptions) -> Result<Arc<dyn Store>, StoreError> {
    if endpoints.is_empty() {
        return Err(StoreError::Unavailable { endpoint: "(none)".into(), detail: "no pserver endpoints were given".into() });
    }
    let keyed: Arc<[bool]> = manifest.tables.iter().map(|t| t.keyed).collect();
    let names: Arc<[String]> = manifest.tables.iter().map(|t| t.name.clone()).collect();
    let client = |(index, endpoint): (usize, &String)| {
        let identity = Identity {
            plan_id: manifest.plan_id.clone(),
            fingerprint: manifest.fingerprint.clone(),
            token: options.token.clone(),
            size: endpoints.len() as u32,
        };
        let hello = Hello::new(Role::Worker, identity, index as u32, options.max_frame);
        Arc::new(Client::new(endpoint, hello, &options, keyed.clone(), names.clone()))
    };
    let clients: Vec<Arc<Client>> = endpoints.iter().enumerate().map(client).collect();
    let placement: Placement = manifest.placement(endpoints.len());
    if manifest.replicas as usize > endpoints.len() {
        tracing::warn!("each shard is to be on {} servers, there are {}", manifest.replicas, endpoints.len());
    }
    reach(&clients, &placement, Instant::now() + options.connect_timeout).await?;
    let peer = |group: usize| -> Arc<dyn Peer> {
        let holders: Vec<Arc<Client>> = placement.holders(group).map(|s| clients[s].clone()).collect();
        match holders.as_slice() {
            [one] => one.clone(),
            _ => Arc::new(Replicas::new(holders, placement.shards(group).collect(), options.rpc_timeout)),
        }
    };
    let peers = (0..placement.servers()).map(peer).collect();
    Ok(Arc::new(Sharded::new(&manifest, peers, options.dedup)?))
}

/// What the server at `endpoint` says of itself.
///
/// # Errors
/// A server that is not there within the time, or refuses.
pub async fn server_info(endpoint: &str, options: &ConnectOptions) -> Result<ServerInfo, StoreError> {
    let client = Client::control(endpoint, options);
    match client.ask(Call::Info).await? {
        Answer::Info(text) => serde_json::from_str(&text).map_err(|e| client.unavailable(e.to_string())),
        other => Err(client.unexpected(other)),
    }
}

/// Stops the server at `endpoint`, if it was started with [`super::ServeOptions::remote_shutdown`].
///
/// # Errors
/// A server that is not there within the time, or refuses.
pub async fn stop_server(endpoint: &str, options: &ConnectOptions) -> Result<(), StoreError> {
    let client = Client::control(endpoint, options);
    match client.ask(Call::Shutdown).await? {
        Answer::Done => Ok(()),
        other => Err(client.unexpected(other)),
    }
}

/// What is seen of a server that is silent.
const NO_ANSWER: &str = "no answer";

/// A connection that has shaken hands.
#[derive(Debug)]
pub(super) struct Connection {
    channel: Channel<Call, Answer>,
    /// Memory that the server of this machine writes answers to.
    room: Option<Arc<Room>>,
    limits: Limits,
    context: Context,
    dispatch: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.dispatch.abort();
    }
}

/// Why a call on one connection gave nothing.
pub(super) enum Gone {
    /// The connection is lost; another may do.
    Lost(String),
    /// The server is busy; later may do.
    Busy(String),
    /// Nothing will do.
    Final(StoreError),
}

/// The client of one server.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) endpoint: String,
    hello: Hello,
    tls: Option<Tls>,
    local: bool,
    rpc_timeout: Duration,
    connect_timeout: Duration,
    connection: Mutex<Option<Arc<Connection>>>,
    keyed: Arc<[bool]>,
    names: Arc<[String]>,
    retries: AtomicU64,
    /// Requests under way.
    pub(super) in_flight: AtomicUsize,
    /// Until when other replicas are asked first.
    pub(super) resting: Mutex<Option<Instant>>,
}

impl Client {
    fn new(endpoint: &str, hello: Hello, options: &ConnectOptions, keyed: Arc<[bool]>, names: Arc<[String]>) -> Self {
        Self {
            endpoint: endpoint.into(),
            hello,
            tls: options.tls.clone(),
            local: options.local,
            rpc_timeout: options.rpc_timeout,
            connect_timeout: options.connect_timeout,
            connection: Mutex::new(None),
            keyed,
            names,
            retries: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            resting: Mutex::new(None),
        }
    }

    /// Of the server itself, whatever it serves.
    pub(super) fn control(endpoint: &str, options: &ConnectOptions) -> Self {
        let identity = Identity { plan_id: String::new(), fingerprint: String::new(), token: options.token.clone(), size: 0 };
        Self::new(endpoint, Hello::new(Role::Control, identity, 0, options.max_frame), options, Arc::new([]), Arc::new([]))
    }

    /// One call of the control set, on the connection that there is.
    pub(super) async fn ask(&self, call: Call) -> Result<Answer, StoreError> {
        let connection = self.connection(Instant::now() + self.connect_timeout).await?;
        self.call(&connection, call, Instant::now() + self.rpc_timeout).await.map_err(|gone| self.last(gone))
    }

    fn unavailable(&self, detail: String) -> StoreError {
        StoreError::Unavailable { endpoint: self.endpoint.clone(), detail }
    }

    fn refused(&self, detail: String) -> StoreError {
        StoreError::Refused { endpoint: self.endpoint.clone(), detail }
    }

    fn timeout(&self) -> StoreError {
        StoreError::Timeout { endpoint: self.endpoint.clone(), seconds: self.rpc_timeout.as_secs_f64() }
    }

    pub(super) fn unexpected(&self, answer: Answer) -> StoreError {
        match answer {
            Answer::Failed(Failure::Refused(detail)) => self.refused(detail),
            Answer::Failed(Failure::Busy(detail)) => self.unavailable(detail),
            Answer::Failed(Failure::Corrupt(text)) => StoreError::Corrupt(format!("pserver {}: {text}", self.endpoint)),
            Answer::Failed(Failure::Invalid { table, id, position, rows }) => {
                StoreError::Invalid { table, id, position: position as usize, rows }
            }
            _ => self.refused("it sent an answer of another kind than was asked for".into()),
        }
    }

    pub(super) fn last(&self, gone: Gone) -> StoreError {
        match gone {
            Gone::Lost(detail) | Gone::Busy(detail) => self.unavailable(detail),
            Gone::Final(e) => e,
        }
    }

    /// The connection, made if there is none; one attempt. Two calls that find none make one each; the later is kept.
    async fn connect_once(&self, deadline: Instant) -> Result<Arc<Connection>, Gone> {
        if let Some(c) = self.connection.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            return Ok(c.clone());
        }
        let connection = match timeout_at(deadline.into(), self.establish(deadline)).await {
            Ok(connection) => connection?,
            Err(_) => return Err(Gone::Lost(NO_ANSWER.into())),
        };
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
        Ok(connection)
    }

    /// The connection, made until `deadline` if there is none.
    pub(super) async fn connection(&self, deadline: Instant) -> Result<Arc<Connection>, StoreError> {
        let started = Instant::now();
        let mut backoff = Backoff::new();
        let mut detail = String::new();
        loop {
            match self.connect_once(deadline).await {
                Ok(connection) => return Ok(connection),
                Err(Gone::Final(e)) => return Err(e),
                // The end of the time cuts the last attempt short: what an earlier one has seen says more.
                Err(Gone::Lost(now)) if now == NO_ANSWER && !detail.is_empty() => {}
                Err(Gone::Lost(now) | Gone::Busy(now)) => detail = now,
            }
            if !backoff.wait(deadline).await {
                let seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
                return Err(self.unavailable(format!("{detail} (tried for {seconds} s)")));
            }
        }
    }

    async fn establish(&self, deadline: Instant) -> Result<Arc<Connection>, Gone> {
        if let Some((stream, room)) = self.beside().await {
            return self.greet(stream, room, deadline).await;
        }
        let stream = match Stream::dial(&self.endpoint, self.tls.as_ref()).await {
            Ok(stream) => stream,
            Err(Unreached::Again(detail)) => return Err(Gone::Lost(detail)),
            Err(Unreached::Refused(detail)) => return Err(Gone::Final(self.refused(detail))),
        };
        let connection = self.greet(stream, None, deadline).await?;
        // The port may have been open before its server was there.
        match self.beside().await {
            Some((stream, room)) => self.greet(stream, room, deadline).await.or(Ok(connection)),
            None => Ok(connection),
        }
    }

    /// A connection without TCP, if there can be one, and memory that the server has too.
    async fn beside(&self) -> Option<(Stream, Option<Arc<Room>>)> {
        if self.local && self.tls.is_none() { Stream::beside(&self.endpoint).await } else { None }
    }

    /// Shakes hands.
    async fn greet(&self, stream: Stream, room: Option<Arc<Room>>, deadline: Instant) -> Result<Arc<Connection>, Gone> {
        let transport = Framed::new(stream, ClientCodec, self.hello.max_frame as usize);
        let NewClient { client: channel, dispatch } = tarpc::client::new(Config::default(), transport);
        let dispatch = tokio::spawn(async move {
            if let Err(e) = dispatch.await {
                tracing::debug!("connection to a pserver ended: {}", causes(&e));
            }
        });
        let limits = Limits { max_frame: 0, max_ids: 0 };
        let mut connection = Connection { channel, room, limits, context: context::current(), dispatch: dispatch.abort_handle() };
        // A hello is answered at once or not at all: a server that is stopped must not use up the time for another attempt.
        let soon = deadline.min(Instant::now() + Duration::from_secs(5).max(self.connect_timeout / 4));
        let welcome = match self.call(&connection, Call::Hello(self.hello.clone()), soon).await {
            Err(Gone::Final(StoreError::Timeout { .. })) => return Err(Gone::Lost("it did not answer the handshake".into())),
            other => other?,
        };
        connection.limits = match welcome {
            Answer::Welcome(l) => Limits { max_frame: l.max_frame.min(self.hello.max_frame), max_ids: l.max_ids },
            other => return Err(Gone::Final(self.unexpected(other))),
        };
        Ok(Arc::new(connection))
    }

    async fn call(&self, connection: &Connection, call: Call, deadline: Instant) -> Result<Answer, Gone> {
        let mut context = connection.context;
        context.deadline = deadline;
        match connection.channel.call(context, call).await {
            Ok(Answer::Failed(Failure::Busy(detail))) => Err(Gone::Busy(detail)),
            Ok(answer) => Ok(answer),
            Err(RpcError::DeadlineExceeded) => Err(Gone::Final(self.timeout())),
            Err(RpcError::Shutdown) => Err(Gone::Lost("the connection was closed".into())),
            Err(e @ RpcError::Channel(_)) => {
                let text = causes(&e);
                Err(refusal(&text).map_or(Gone::Lost(text), |refusal| Gone::Final(self.refused(refusal))))
            }
            Err(e) => Err(Gone::Final(self.refused(causes(&e)))),
        }
    }

    /// One call, whose rows come by shared memory if there is a place for them.
    async fn fetch_part(&self, connection: &Connection, request: Request, deadline: Instant) -> Result<Reply, Gone> {
        let len = row_blocks(&request.parts).filter(|_| request.pooling.is_none()).map_or(0, |b| b.1);
        let lent = connection.room.as_ref().and_then(|room| room.lend(len));
        let answer = self.call(connection, Call::Fetch(request, lent.as_ref().map(Lent::at)), deadline).await;
        // A server that has not answered may still write there.
        let place = lent.filter(|_| matches!(answer, Ok(_) | Err(Gone::Busy(_)))).map(Lent::back);
        match (answer?, place) {
            (Answer::Reply(reply), _) => Ok(reply),
            (Answer::Placed { len, absent }, Some(rows)) if rows.len() as u64 == len => Ok(Reply { absent, rows, ..Reply::default() }),
            (other, _) => Err(Gone::Final(self.unexpected(other))),
        }
    }

    async fn fetch_once(&self, connection: &Connection, request: &Request, deadline: Instant) -> Result<Reply, Gone> {
        let is_keyed = |t: u32| self.keyed.get(t as usize).copied().unwrap_or(true);
        let name = |t: u32| self.names.get(t as usize).cloned().unwrap_or_default();
        let one = async |request: Request| self.fetch_part(connection, request, deadline).await;
        if let Some(pooling) = request.pooling {
            let Some(requests) = bag_chunks::cut(request, pooling, connection.limits) else {
                return Ok(Reply { over_limit: true, ..Reply::default() });
            };
            let mut replies = Vec::with_capacity(requests.len());
            for request in requests {
                replies.push(one(request).await?);
            }
            return Ok(bag_chunks::join(replies));
        }
        let cut = Chunks::cut(request, connection.limits, is_keyed, name).map_err(|e| Gone::Final(self.refused(e)))?;
        let Some(chunks) = cut else {
            return one(request.clone()).await;
        };
        let mut whole = chunks.reply();
        for i in 0..chunks.len() {
            let reply = one(chunks.request(i)).await?;
            if !chunks.put(i, &reply, &mut whole) {
                return Err(Gone::Final(self.refused("it sent another number of rows than was asked for".into())));
            }
        }
        Ok(whole)
    }

    fn forget(&self, connection: &Arc<Connection>) {
        let mut held = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(|c| Arc::ptr_eq(c, connection)) {
            *held = None;
        }
    }

    async fn fetch_on(&self, connection: Arc<Connection>, request: &Request, deadline: Instant) -> Result<Reply, Gone> {
        let result = self.fetch_once(&connection, request, deadline).await;
        // Whoever does not answer may be half gone: the next call tries another connection.
        if let Err(Gone::Lost(_) | Gone::Final(StoreError::Timeout { .. })) = &result {
            self.forget(&connection);
        }
        result
    }

    /// One attempt, on the connection that there is or on a new one.
    pub(super) async fn attempt(&self, request: &Request, deadline: Instant) -> Result<Reply, Gone> {
        let connection = self.connect_once(deadline).await?;
        self.fetch_on(connection, request, deadline).await
    }

    async fn fetch_until(&self, request: Request, deadline: Instant) -> Result<Reply, StoreError> {
        let mut backoff = Backoff::new();
        loop {
            let connection = self.connection(deadline).await?;
            let gone = match self.fetch_on(connection, &request, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(gone) => gone,
            };
            if matches!(gone, Gone::Final(_)) || !backoff.wait(deadline).await {
                return Err(self.last(gone));
            }
            self.retries.fetch_add(1, Relaxed);
        }
    }
}

impl Peer for Client {
    fn fetch(&self, request: Request) -> ReplyFuture<'_> {
        let deadline = Instant::now() + self.rpc_timeout;
        Box::pin(self.fetch_until(request, deadline))
    }

    fn pools(&self) -> bool {
        true
    }

    fn near(&self) -> bool {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|c| c.room.is_some())
    }

    fn retries(&self) -> u64 {
        self.retries.load(Relaxed)
    }
}

const _: () = assert!(MAX_HEAD < DEFAULT_MAX_FRAME);
