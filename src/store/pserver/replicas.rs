//! The servers that hold the same shards: whoever is least busy is asked, and another one when it does not answer.

use super::client::{Client, Gone};
use crate::plan::Placement;
use crate::store::StoreError;
use crate::store::request::{Peer, Reply, ReplyFuture, Request};
use crate::wire::Backoff;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// How long the other replicas are asked first after a connection was lost.
const AFTER_LOSS: Duration = Duration::from_secs(1);
/// The same after no answer came in time, which costs whoever tries again a long wait.
const AFTER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long replicas are waited for that are not there while others are.
const GRACE: Duration = Duration::from_secs(2);

/// A group of shards, on several servers.
#[derive(Debug)]
pub(super) struct Replicas {
    clients: Vec<Arc<Client>>,
    shards: Vec<u32>,
    rpc_timeout: Duration,
    turn: AtomicUsize,
    retries: AtomicU64,
}

/// Counts a request down however it ends.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Replicas {
    pub(super) fn new(clients: Vec<Arc<Client>>, shards: Vec<u32>, rpc_timeout: Duration) -> Self {
        Self { clients, shards, rpc_timeout, turn: AtomicUsize::new(0), retries: AtomicU64::new(0) }
    }

    /// The replicas in the order in which they are asked: those at rest last, else the least busy first, in turn.
    fn order(&self) -> Vec<usize> {
        let (now, n) = (Instant::now(), self.clients.len());
        let turn = self.turn.fetch_add(1, Relaxed);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_cached_key(|&i| {
            let c = &self.clients[i];
            let until = *c.resting.lock().unwrap_or_else(PoisonError::into_inner);
            (until.filter(|u| *u > now), c.in_flight.load(Relaxed), (i + turn) % n)
        });
        order
    }

    async fn fetch_until(&self, request: Request, deadline: Instant) -> Result<Reply, StoreError> {
        let mut backoff = Backoff::new();
        // What was the matter with each, the last time.
        let mut faults: Vec<Option<Gone>> = self.clients.iter().map(|_| None).collect();
        loop {
            let order = self.order();
            for (k, &i) in order.iter().enumerate() {
                let now = Instant::now();
                if now >= deadline {
                    break;
                }
                let client = &self.clients[i];
                // The time that is left is shared by those that are left.
                let until = now + (deadline - now) / (order.len() - k) as u32;
                let _counted = UnderWay::new(&client.in_flight);
                let gone = match client.attempt(&request, until).await {
                    Ok(reply) => {
                        *client.resting.lock().unwrap_or_else(PoisonError::into_inner) = None;
                        return Ok(reply);
                    }
                    Err(gone) => gone,
                };
                let (rest, what) = match &gone {
                    Gone::Final(StoreError::Timeout { .. }) => (AFTER_TIMEOUT, "no answer in time"),
                    Gone::Lost(detail) => (AFTER_LOSS, detail.as_str()),
                    Gone::Busy(_) => (Duration::ZERO, ""),
                    Gone::Final(_) => return Err(client.last(gone)),
                };
                if !rest.is_zero() {
                    let before = client.resting.lock().unwrap_or_else(PoisonError::into_inner).replace(Instant::now() + rest);
                    if before.is_none() {
                        tracing::warn!("pserver {}: {what}; other replicas of its shards are asked", client.endpoint);
                    }
                }
                faults[i] = Some(gone);
                self.retries.fetch_add(1, Relaxed);
            }
            if !backoff.wait(deadline).await {
                return Err(self.gone(faults));
            }
        }
    }

    /// That no replica answers.
    fn gone(&self, faults: Vec<Option<Gone>>) -> StoreError {
        let shards = self.shards.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let endpoint = self.clients.iter().map(|c| c.endpoint.as_str()).collect::<Vec<_>>().join(", ");
        let timeout = |f: &Option<Gone>| matches!(f, None | Some(Gone::Final(_)));
        if faults.iter().all(timeout) {
            return StoreError::Timeout {
                endpoint: format!("{endpoint}, all that hold shards {shards},"),
                seconds: self.rpc_timeout.as_secs_f64(),
            };
        }
        let what = |(c, f): (&Arc<Client>, Option<Gone>)| match f {
            Some(Gone::Lost(detail) | Gone::Busy(detail)) => format!("{}: {detail}", c.endpoint),
            _ => format!("{}: no answer in time", c.endpoint),
        };
        let details: Vec<String> = self.clients.iter().zip(faults).map(what).collect();
        StoreError::Unavailable { endpoint, detail: format!("no replica of shards {shards} is left: {}", details.join("; ")) }
    }
}

impl Peer for Replicas {
    fn fetch(&self, request: Request) -> ReplyFuture<'_> {
        let deadline = Instant::now() + self.rpc_timeout;
        Box::pin(self.fetch_until(request, deadline))
    }

    fn pools(&self) -> bool {
        true
    }

    fn near(&self) -> bool {
        self.clients.iter().all(|c| c.near())
    }

    fn retries(&self) -> u64 {
        self.retries.load(Relaxed)
    }
}

/// That a group of shards is nowhere, `last` being what the last of its servers said.
fn nowhere(clients: &[Arc<Client>], placement: &Placement, group: usize, last: StoreError) -> StoreError {
    let holders: Vec<&str> = placement.holders(group).map(|s| clients[s].endpoint.as_str()).collect();
    match last {
        StoreError::Unavailable { endpoint, detail } if holders.len() > 1 => {
            let shards = placement.shards(group).map(|s| s.to_string()).collect::<Vec<_>>().join(", ");
            StoreError::Unavailable {
                endpoint: holders.join(", "),
                detail: format!("no replica of shards {shards} is there: {endpoint}: {detail}"),
            }
        }
        other => other,
    }
}

/// Waits for servers until each group of shards has one, and a little longer for the others.
///
/// # Errors
/// A group of which no server is there by `deadline`; a server that refuses.
pub(super) async fn reach(clients: &[Arc<Client>], placement: &Placement, deadline: Instant) -> Result<(), StoreError> {
    let mut pending: FuturesUnordered<_> = clients.iter().enumerate().map(async |(i, c)| (i, c.connection(deadline).await)).collect();
    let mut up = vec![false; clients.len()];
    let mut down = vec![false; clients.len()];
    let mut until = None;
    loop {
        let next = match until {
            Some(until) => timeout_at(tokio::time::Instant::from_std(until), pending.next()).await.unwrap_or(None),
            None => pending.next().await,
        };
        let Some((i, result)) = next else { break };
        match result {
            Ok(_) => up[i] = true,
            Err(e @ StoreError::Unavailable { .. }) => {
                down[i] = true;
                if let Some(group) = (0..placement.servers()).find(|&g| placement.holders(g).all(|s| down[s])) {
                    return Err(nowhere(clients, placement, group, e));
                }
            }
            Err(e) => return Err(e),
        }
        if until.is_none() && (0..placement.servers()).all(|g| placement.holders(g).any(|s| up[s])) {
            until = Some(deadline.min(Instant::now() + GRACE));
        }
    }
    for (client, _) in clients.iter().zip(&up).filter(|(_, up)| !**up) {
        tracing::warn!("pserver {} is not there; other replicas of its shards are", client.endpoint);
        *client.resting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + AFTER_LOSS);
    }
    Ok(())
}
