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
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::time::timeout_at;

#[derive(Clone)]
enum Made {
    Cluster(ClusterConnection),
    Server(MultiplexedConnection),
}

/// The way to a store.
pub(super) struct Link {
    pub(super) url: RedisUrl,
    certificates: Option<TlsCertificates>,
    rpc_timeout: Duration,
    /// The connection, and how many were made before it.
    made: Mutex<(Option<Made>, u64)>,
    retries: AtomicU64,
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
        let link = Self { url: url.clone(), certificates, rpc_timeout, made: Mutex::default(), retries: AtomicU64::new(0) };
        let mut patience = Patience::until(deadline);
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

    /// The answers to a pipeline of keys of one slot.
    pub(super) async fn ask(&self, slot: u16, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + self.rpc_timeout;
        let mut patience = Patience::until(deadline);
        loop {
            let attempt = timeout_at(deadline.into(), self.once(slot, pipeline.clone())).await.ok();
            if let Some(done) = patience.judge(self, attempt).await {
                return done;
            }
        }
    }

    /// The answers to pipelines of keys of one slot each. A server alone has all of them as one.
    pub(super) async fn ask_all(&self, pipelines: &[(u16, Pipeline)]) -> Result<Vec<Vec<Value>>, StoreError> {
        if self.url.cluster {
            return futures::future::try_join_all(pipelines.iter().map(|(slot, pipeline)| self.ask(*slot, pipeline))).await;
        }
        let mut all = Pipeline::with_capacity(pipelines.iter().map(|p| p.1.len()).sum());
        pipelines.iter().flat_map(|p| p.1.cmd_iter()).for_each(|cmd| _ = all.add_command(cmd.clone()));
        let mut answers = self.ask(0, &all).await?.into_iter();
        Ok(pipelines.iter().map(|p| answers.by_ref().take(p.1.len()).collect()).collect())
    }

    /// The answer to a command on one key.
    pub(super) async fn command(&self, key: &str, cmd: &Cmd) -> Result<Value, StoreError> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(cmd.clone());
        let answers = self.ask(slot(key), &pipeline).await?;
        Ok(answers.into_iter().next().unwrap_or_default())
    }

    pub(super) fn refused(&self, detail: String) -> StoreError {
        StoreError::Refused { endpoint: self.url.to_string(), detail }
    }

    pub(super) fn corrupt(&self, detail: &str) -> StoreError {
        StoreError::Corrupt(format!("{}: {detail}", self.url))
    }

    async fn once(&self, slot: u16, pipeline: Pipeline) -> Result<Vec<Value>, RedisError> {
        let (made, number) = self.made().await?;
        let (count, mut again) = (pipeline.len(), false);
        let answers = match made {
            Made::Cluster(mut c) => {
                let route = SingleNodeRoutingInfo::SpecificNode(Route::new(slot, SlotAddr::Master));
                c.route_pipeline(pipeline, 0, count, route).await
            }
            Made::Server(mut s) => {
                again = true;
                s.send_packed_commands(&pipeline, 0, count).await
            }
        };
        if again && answers.as_ref().is_err_and(RedisError::is_io_error) {
            let mut made = self.made.lock().await;
            // Another request may have made a new one.
            if made.1 == number {
                made.0 = None;
            }
        }
        answers?.into_iter().map(Value::extract_error).collect()
    }

    /// The connection, made if there is none.
    async fn made(&self) -> Result<(Made, u64), RedisError> {
        let mut made = self.made.lock().await;
        if let Some(m) = &made.0 {
            return Ok((m.clone(), made.1));
        }
        let new = if self.url.cluster { self.cluster().await? } else { self.server().await? };
        *made = (Some(new.clone()), made.1 + 1);
        Ok((new, made.1))
    }

    /// Time for a connection, and for one attempt: a server that hangs must leave some for that which takes its place.
    fn attempt(&self) -> (Duration, Duration) {
        let third = self.rpc_timeout / 3;
        (third.min(Duration::from_secs(5)), third.min(Duration::from_secs(10)))
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
        let (connect, respond) = self.attempt();
        let infos = self.url.endpoints.iter().map(|(host, port)| {
            let info = self.address(host, *port).into_connection_info()?;
            Ok(info.set_redis_settings(self.login()))
        });
        let mut builder = ClusterClientBuilder::new(infos.collect::<Result<Vec<_>, RedisError>>()?)
            .use_protocol(ProtocolVersion::RESP3)
            .connection_timeout(connect)
            .response_timeout(respond)
            .overall_response_timeout(None)
            .retries(3)
            .min_retry_wait(10)
            .max_retry_wait(200);
        if let Some(certificates) = &self.certificates {
            builder = builder.certs(certificates.clone());
        }
        Ok(Made::Cluster(builder.build()?.get_async_connection().await?))
    }

    async fn server(&self) -> Result<Made, RedisError> {
        let (connect, respond) = self.attempt();
        let (host, port) = &self.url.endpoints[0];
        let info = self.address(host, *port).into_connection_info()?.set_redis_settings(self.login());
        let client = match &self.certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone())?,
            None => Client::open(info)?,
        };
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(connect)).set_response_timeout(Some(respond));
        Ok(Made::Server(client.get_multiplexed_async_connection_with_config(&config).await?))
    }
}

/// What is known while attempts are repeated.
struct Patience {
    deadline: Instant,
    started: Instant,
    backoff: Backoff,
    detail: String,
    /// What is said where there was no error but no answer either.
    silent: &'static str,
}

impl Patience {
    fn until(deadline: Instant) -> Self {
        Self { deadline, started: Instant::now(), backoff: Backoff::new(), detail: String::new(), silent: "" }
    }

    /// What comes of an attempt; `None` is another one, after a pause. An attempt that ran out of time is none.
    async fn judge<T>(&mut self, link: &Link, attempt: Option<Result<T, RedisError>>) -> Option<Result<T, StoreError>> {
        match attempt {
            Some(Ok(done)) => return Some(Ok(done)),
            Some(Err(e)) => match fault(&e, link.url.cluster) {
                Fault::Refused(why) => return Some(Err(link.refused(why))),
                Fault::Again(why) => self.detail = why,
            },
            None => {}
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
