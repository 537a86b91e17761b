//! The connections to a Redis store: made when they are needed, made again when they are lost, and each request repeated until
//! its time is over.

use super::errors::{Fault, fault};
use super::keys::slot;
use super::url::RedisUrl;
use crate::store::StoreError;
use crate::wire::Backoff;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion,
    RedisConnectionInfo, RedisError, TlsCertificates, Value,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::time::timeout_at;

#[derive(Clone)]
enum Made {
    Cluster(ClusterConnection),
    Server(MultiplexedConnection),
}

/// The connection, how many there were, and whether another is to take its place.
#[derive(Default)]
struct State {
    made: Option<Made>,
    number: u64,
    stale: bool,
}

/// The way to a store.
pub(super) struct Link {
    pub(super) url: RedisUrl,
    certificates: Option<TlsCertificates>,
    rpc_timeout: Duration,
    made: Mutex<State>,
    owners: Mutex<Option<Arc<Owners>>>,
    retries: AtomicU64,
}

/// The first slot of each range of slots, and the number of the node that has it.
struct Owners(Vec<(u16, usize)>);

impl Owners {
    /// By the answer to `CLUSTER SLOTS`: lists of first slot, last slot, and nodes, of which the first is the master.
    fn of(answers: Vec<Value>) -> Self {
        let (mut ranges, mut nodes) = (Vec::new(), Vec::new());
        for range in answers.into_iter().filter_map(|a| a.into_sequence().ok()).flatten() {
            let Ok(range) = range.into_sequence() else { continue };
            let (Some(Value::Int(first)), Some(node)) = (range.first(), range.get(2)) else { continue };
            let node = format!("{node:?}");
            let number = nodes.iter().position(|n| *n == node).unwrap_or_else(|| {
                nodes.push(node);
                nodes.len() - 1
            });
            ranges.push((*first as u16, number));
        }
        ranges.sort_unstable();
        Self(ranges)
    }

    /// The number of the node that has a slot; of one that is not known, one of its own.
    fn of_slot(&self, slot: u16) -> usize {
        let at = self.0.partition_point(|&(first, _)| first <= slot);
        at.checked_sub(1).map_or(usize::MAX - usize::from(slot), |at| self.0[at].1)
    }
}

fn pem(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|e| StoreError::Corrupt(format!("{}: {e}", path.display())))
}

impl Link {
    /// Connects; waits until `deadline` for servers that are not there yet.
    pub(super) async fn connect(url: &RedisUrl, deadline: Instant, rpc_timeout: Duration) -> Result<Self, StoreError> {
        let mut certificates = None;
        if url.ca.is_some() || url.own.is_some() {
            let client_tls = match &url.own {
                Some((cert, key)) => Some(ClientTlsConfig { client_cert: pem(cert)?, client_key: pem(key)? }),
                None => None,
            };
            certificates = Some(TlsCertificates { client_tls, root_cert: url.ca.as_deref().map(pem).transpose()? });
        }
        let link = Self {
            url: url.clone(),
            certificates,
            rpc_timeout,
            made: Mutex::default(),
            owners: Mutex::default(),
            retries: AtomicU64::new(0),
        };
        let mut patience = link.patience(deadline);
        if url.tls {
            patience.silent = "no answer to a handshake of TLS, or none at all";
        }
        loop {
            let attempt = timeout_at(deadline.into(), link.made()).await.ok();
            if let Some(made) = patience.judge(&link, attempt).await {
                made?;
                return Ok(link);
            }
        }
    }

    /// Requests that were repeated.
    pub(super) fn retries(&self) -> u64 {
        self.retries.load(Relaxed)
    }

    /// The answers to a pipeline of keys of one slot, which is repeated until `deadline`.
    async fn ask(&self, slot: u16, pipeline: &Pipeline, deadline: Instant) -> Result<Vec<Value>, StoreError> {
        let mut patience = self.patience(deadline);
        loop {
            let attempt = self.once(slot, pipeline.clone(), patience.limit()).await;
            if let Some(done) = patience.judge(self, attempt).await {
                return done;
            }
        }
    }

    /// The answers to pipelines of keys of one slot each. Those for one node go to it as one; where that fails, for nodes are lost
    /// and slots move, each goes its own way.
    pub(super) async fn ask_all(&self, pipelines: &[(u16, Pipeline)]) -> Result<Vec<Vec<Value>>, StoreError> {
        let deadline = Instant::now() + self.rpc_timeout;
        let owners = self.owners(deadline).await;
        let mut groups = BTreeMap::<usize, Vec<usize>>::new();
        for (i, (slot, _)) in pipelines.iter().enumerate().filter(|(_, p)| !p.1.is_empty()) {
            groups.entry(owners.of_slot(*slot)).or_default().push(i);
        }
        let asked = groups.into_values().map(|group| self.ask_group(pipelines, group, deadline));
        let mut answers: Vec<Vec<Value>> = pipelines.iter().map(|_| Vec::new()).collect();
        for (i, answer) in futures::future::try_join_all(asked).await?.into_iter().flatten() {
            answers[i] = answer;
        }
        Ok(answers)
    }

    async fn ask_group(
        &self,
        pipelines: &[(u16, Pipeline)],
        group: Vec<usize>,
        deadline: Instant,
    ) -> Result<Vec<(usize, Vec<Value>)>, StoreError> {
        let mut all = Pipeline::with_capacity(group.iter().map(|&i| pipelines[i].1.len()).sum());
        group.iter().flat_map(|&i| pipelines[i].1.cmd_iter()).for_each(|cmd| _ = all.add_command(cmd.clone()));
        let slot = pipelines[group[0]].0;
        let answers = match self.url.cluster && group.len() > 1 {
            false => self.ask(slot, &all, deadline).await?,
            true => match self.once(slot, all, self.patience(deadline).limit()).await {
                Some(Ok(answers)) => answers,
                _ => {
                    self.retries.fetch_add(1, Relaxed);
                    *self.owners.lock().await = None;
                    let each = group.iter().map(|&i| self.ask(pipelines[i].0, &pipelines[i].1, deadline));
                    return Ok(group.iter().copied().zip(futures::future::try_join_all(each).await?).collect());
                }
            },
        };
        let mut answers = answers.into_iter();
        Ok(group.into_iter().map(|i| (i, answers.by_ref().take(pipelines[i].1.len()).collect())).collect())
    }

    /// Which node has which slots; without knowing it, each slot is taken for a node.
    async fn owners(&self, deadline: Instant) -> Arc<Owners> {
        if !self.url.cluster {
            return Arc::new(Owners(vec![(0, 0)]));
        }
        let mut owners = self.owners.lock().await;
        if let Some(owners) = owners.as_ref() {
            return owners.clone();
        }
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.cmd("CLUSTER").arg("SLOTS");
        match self.once(0, pipeline, self.patience(deadline).limit()).await {
            Some(Ok(answers)) => owners.insert(Arc::new(Owners::of(answers))).clone(),
            _ => Arc::new(Owners(Vec::new())),
        }
    }

    /// The answer to a command on one key.
    pub(super) async fn command(&self, key: &str, cmd: &Cmd) -> Result<Value, StoreError> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(cmd.clone());
        let answers = self.ask(slot(key), &pipeline, Instant::now() + self.rpc_timeout).await?;
        Ok(answers.into_iter().next().unwrap_or_default())
    }

    pub(super) fn refused(&self, detail: String) -> StoreError {
        StoreError::Refused { endpoint: self.url.to_string(), detail }
    }

    pub(super) fn corrupt(&self, detail: &str) -> StoreError {
        StoreError::Corrupt(format!("{}: {detail}", self.url))
    }

    /// One attempt, which has until `limit`.
    async fn once(&self, slot: u16, pipeline: Pipeline, limit: Instant) -> Option<Result<Vec<Value>, RedisError>> {
        let (made, number) = match timeout_at(limit.into(), self.made()).await.ok()? {
            Ok(made) => made,
            Err(e) => return Some(Err(e)),
        };
        let (count, cluster) = (pipeline.len(), self.url.cluster);
        let sent = async {
            match made {
                Made::Cluster(mut c) => {
                    let route = SingleNodeRoutingInfo::SpecificNode(Route::new(slot, SlotAddr::Master));
                    c.route_pipeline(pipeline, 0, count, route).await
                }
                Made::Server(mut s) => s.send_packed_commands(&pipeline, 0, count).await,
            }
        };
        let answers = timeout_at(limit.into(), sent).await.ok();
        // A cluster's connections are made anew by themselves where they are lost, but not where a node hangs.
        if answers.as_ref().is_none_or(|a| !cluster && a.as_ref().is_err_and(RedisError::is_io_error)) {
            let mut state = self.made.lock().await;
            // Another request may have made a new one.
            if state.number == number {
                state.stale = true;
            }
        }
        Some(answers?.and_then(|a| a.into_iter().map(Value::extract_error).collect()))
    }

    /// The connection, made if there is none or only one that is stale, which stays if there can be no other.
    async fn made(&self) -> Result<(Made, u64), RedisError> {
        let mut state = self.made.lock().await;
        if let Some(made) = state.made.clone().filter(|_| !state.stale) {
            return Ok((made, state.number));
        }
        let new = if self.url.cluster { self.cluster().await } else { self.server().await };
        match (new, state.made.take()) {
            (Ok(new), _) => *state = State { made: Some(new.clone()), number: state.number + 1, stale: false },
            (Err(_), Some(old)) if self.url.cluster => state.made = Some(old),
            (Err(e), _) => return Err(e),
        }
        let number = state.number;
        state.made.clone().map(|made| (made, number)).ok_or_else(|| (redis::ErrorKind::Io, "no connection").into())
    }

    fn patience(&self, deadline: Instant) -> Patience {
        let first = (self.rpc_timeout / 6).clamp(Duration::from_millis(100), Duration::from_secs(5));
        Patience { deadline, started: Instant::now(), next: first, backoff: Backoff::new(), detail: String::new(), silent: "" }
    }

    /// Time for a connection to one node: two that hang are to fit into the first attempt.
    fn connect_timeout(&self) -> Duration {
        (self.rpc_timeout / 24).clamp(Duration::from_millis(250), Duration::from_secs(5))
    }

    fn login(&self) -> RedisConnectionInfo {
        let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if let Some(user) = &self.url.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.url.password {
            login = login.set_password(password);
        }
        login
    }

    fn address(&self, host: &str, port: u16) -> ConnectionAddr {
        match self.url.tls {
            true => ConnectionAddr::TcpTls { host: host.into(), port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host.into(), port),
        }
    }

    async fn cluster(&self) -> Result<Made, RedisError> {
        let infos = self.url.endpoints.iter().map(|(host, port)| {
            let info = self.address(host, *port).into_connection_info()?;
            Ok(info.set_redis_settings(self.login()))
        });
        let mut builder = ClusterClientBuilder::new(infos.collect::<Result<Vec<_>, RedisError>>()?)
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(self.connect_timeout())
            .response_timeout(self.rpc_timeout)
            .overall_response_timeout(None)
            .retries(2)
            .min_retry_wait(10)
            .max_retry_wait(200);
        if let Some(certificates) = &self.certificates {
            builder = builder.certs(certificates.clone());
        }
        Ok(Made::Cluster(builder.build()?.get_async_connection().await?))
    }

    async fn server(&self) -> Result<Made, RedisError> {
        let (host, port) = &self.url.endpoints[0];
        let info = self.address(host, *port).into_connection_info()?.set_redis_settings(self.login());
        let client = match &self.certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone())?,
            None => Client::open(info)?,
        };
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(self.connect_timeout())).set_response_timeout(Some(self.rpc_timeout));
        Ok(Made::Server(client.get_multiplexed_async_connection_with_config(&config).await?))
    }
}

/// What is known while attempts are repeated.
struct Patience {
    deadline: Instant,
    started: Instant,
    /// Time for the next attempt: little at first, for a node may hang while another takes its place; then more, for it may be slow.
    next: Duration,
    backoff: Backoff,
    detail: String,
    /// What is said where there was no error but no answer either.
    silent: &'static str,
}

impl Patience {
    /// The end of the next attempt.
    fn limit(&self) -> Instant {
        self.deadline.min(Instant::now() + self.next)
    }

    /// What comes of an attempt; `None` is another one, after a pause. An attempt that ran out of time is none.
    async fn judge<T>(&mut self, link: &Link, attempt: Option<Result<T, RedisError>>) -> Option<Result<T, StoreError>> {
        match attempt {
            Some(Ok(done)) => return Some(Ok(done)),
            Some(Err(e)) => match fault(&e, link.url.cluster) {
                Fault::Refused(why) => return Some(Err(link.refused(why))),
                Fault::Again(why) => self.detail = why,
            },
            None => self.next *= 2,
        }
        if self.backoff.wait(self.deadline).await {
            link.retries.fetch_add(1, Relaxed);
            return None;
        }
        let (endpoint, detail) = (link.url.to_string(), if self.detail.is_empty() { self.silent } else { &self.detail });
        let seconds = (self.started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        Some(Err(match detail.is_empty() {
            true => StoreError::Timeout { endpoint, seconds },
            false => StoreError::Unavailable { endpoint, detail: format!("{detail} (tried for {seconds} s)") },
        }))
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.url)
    }
}
