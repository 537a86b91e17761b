//! What a rank holds for others to fetch while a collective goes from rank to rank, and the serving of it. Bytes are held
//! before rank 0 hears of them, so that nobody asks too early for a contribution; for what is computed on the way, who asks
//! waits.

use super::GroupOptions;
use super::door::{self, CALLS, Channel, STRANGERS};
use super::wire::{Answer, Call, Fetch};
use crate::comm::call::Turn;
use crate::wire::Role;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Whole contributions, as the ranks submitted them.
pub(super) const CONTRIBUTION: u8 = 0;
/// The share of a rank, from the share's own beginning.
pub(super) const SHARE: u8 = 1;

/// What this rank holds, by epoch, number and stage.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    group: AtomicU64,
    held: Mutex<HashMap<(u64, u64, u8), Bytes>>,
    news: watch::Sender<()>,
}

/// Keeps what is held for a collective, as long as it lives.
pub(super) struct Kept {
    shelf: Arc<Shelf>,
    turn: Turn,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut held = self.shelf.lock();
        for stage in [CONTRIBUTION, SHARE] {
            held.remove(&(self.turn.epoch, self.turn.seq, stage));
        }
    }
}

impl Kept {
    /// Holds the share of this rank from now on.
    pub(super) fn share(&self, bytes: Bytes) {
        self.shelf.lock().insert((self.turn.epoch, self.turn.seq, SHARE), bytes);
        self.shelf.news.send_replace(());
    }
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, HashMap<(u64, u64, u8), Bytes>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which group this rank is in.
    pub(super) fn enter(&self, group: u64) {
        self.group.store(group, Relaxed);
    }

    pub(super) fn group(&self) -> u64 {
        self.group.load(Relaxed)
    }

    /// Holds the contribution of this rank.
    pub(super) fn keep(self: &Arc<Self>, turn: Turn, contribution: Bytes) -> Kept {
        self.lock().insert((turn.epoch, turn.seq, CONTRIBUTION), contribution);
        Kept { shelf: self.clone(), turn }
    }

    /// The bytes asked for, within `patience`.
    async fn get(&self, fetch: Fetch, patience: Duration) -> Answer {
        if fetch.group != self.group() {
            return Answer::Refused("it is in another group".into());
        }
        let key = (fetch.turn.epoch, fetch.turn.seq, fetch.stage);
        let mut news = self.news.subscribe();
        let found = async {
            loop {
                if let Some(bytes) = self.lock().get(&key) {
                    return bytes.clone();
                }
                if news.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let Ok(bytes) = tokio::time::timeout(patience, found).await else { return Answer::Later };
        let end = fetch.from.checked_add(fetch.len).and_then(|end| usize::try_from(end).ok());
        match end.filter(|&end| end <= bytes.len()) {
            Some(end) => Answer::More(bytes.slice(fetch.from as usize..end)),
            None => Answer::Refused(format!("{} bytes from {} on are asked for, it holds {}", fetch.len, fetch.from, bytes.len())),
        }
    }
}

/// Serves one peer until it goes.
pub(super) async fn serve(channel: &mut Channel, shelf: &Shelf, options: &GroupOptions) -> Result<(), String> {
    let mut calls = FuturesUnordered::new();
    loop {
        tokio::select! {
            next = door::next(channel), if calls.len() < CALLS => {
                let Some(next) = next else { return Ok(()) };
                let request = next?;
                calls.push(async move {
                    let answer = match request.message {
                        Call::Fetch(fetch) => shelf.get(fetch, options.heartbeat()).await,
                        _ => Answer::Refused("a rank other than 0 only gives what it holds".into()),
                    };
                    (request.id, answer)
                });
            }
            Some((id, answer)) = calls.next(), if !calls.is_empty() => {
                door::send(channel, id, answer, options.heartbeat_timeout).await?;
            }
        }
    }
}

/// Serves all peers that connect to a rank other than 0.
pub(super) async fn listen(listener: TcpListener, shelf: Arc<Shelf>, options: Arc<GroupOptions>) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if tasks.len() < options.size() + STRANGERS => {
                    let (shelf, options) = (shelf.clone(), options.clone());
                    tasks.spawn(async move {
                        if let Err(e) = connection(stream, &shelf, &options).await {
                            tracing::debug!("a connection of another rank ended: {e}");
                        }
                    });
                }
                Ok(_) => {}
                Err(e) => {
                    tracing::warn!("cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, shelf: &Shelf, options: &GroupOptions) -> Result<(), String> {
    let (mut channel, id, hello) = door::knock(stream, options).await?;
    let rank = options.rank;
    let checked = hello.and_then(|hello| {
        hello.check(&options.hello(Role::Peer, rank).identity)?;
        match hello.role {
            Role::Peer if hello.index as usize == rank => Ok(()),
            Role::Peer => Err(format!("rank {rank} here, rank {} at the peer", hello.index)),
            Role::Rank => Err(format!("this is rank {rank}; are the endpoints in the same order everywhere?")),
            Role::Worker | Role::Control => Err("this is a worker, not a pserver".into()),
        }
    });
    let group = checked.as_ref().map(|()| shelf.group()).map_err(String::as_str);
    let open = door::open(&mut channel, id, group, options).await;
    checked?;
    if open { serve(&mut channel, shelf, options).await } else { Err("closed in the handshake".into()) }
}
