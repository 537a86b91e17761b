//! An exchange of versions, on all servers or on none: each opens and verifies the next one and holds it for the connection that
//! asked; when all have it, each is told to serve it. What a connection holds is given up when it ends, and after the time for
//! which it was asked.

use super::ServeOptions;
use super::client::{Client, ConnectOptions, server_info};
use super::versions::{Prepared, Versions};
use super::wire::{Answer, Call, Failure};
use crate::store::StoreError;
use futures::future::join_all;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a connection holds of the next version.
#[derive(Default)]
pub(super) struct Held(Option<(Prepared, Instant)>);

impl Held {
    /// Answers a call of the exchange.
    pub(super) async fn answer(&mut self, call: Call, versions: &Arc<Versions>, options: &ServeOptions) -> Answer {
        let outcome = match call {
            Call::Prepare { plan_id, hold } => {
                self.0 = None;
                let prepared = prepare(versions.clone(), options.clone(), plan_id).await;
                prepared.map(|p| self.0 = Some((p, Instant::now() + hold)))
            }
            Call::Commit(plan_id) => match self.0.take() {
                Some((prepared, until)) if prepared.plan_id() == plan_id && Instant::now() < until => {
                    versions.commit(prepared);
                    Ok(())
                }
                _ => Err(Failure::Refused(format!("plan id {plan_id} is not prepared on this connection, or was too long ago"))),
            },
            _ => Err(Failure::Refused("this is no call of a reload".into())),
        };
        outcome.map_or_else(Answer::Failed, |()| Answer::Done)
    }

    /// Gives up what was held for its time.
    pub(super) fn expire(&mut self) {
        self.0.take_if(|(_, until)| *until <= Instant::now());
    }
}

/// Opens the directory on a thread of its own.
async fn prepare(versions: Arc<Versions>, options: ServeOptions, plan_id: String) -> Result<Prepared, Failure> {
    let turn = versions.turn().await?;
    let (send, done) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || send.send(versions.prepare(turn, &plan_id, &options)));
    done.await.unwrap_or_else(|_| Err(Failure::Busy("the reload came to no end".into())))
}

/// Why servers were not brought to another version.
#[derive(Debug, thiserror::Error)]
#[error("{}; {}", .failed.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "), state(.switched))]
pub struct ReloadError {
    /// What was wrong, a line for each server.
    pub failed: Vec<StoreError>,
    /// Endpoints of servers that have changed all the same.
    pub switched: Vec<String>,
}

fn state(switched: &[String]) -> String {
    if switched.is_empty() { "no pserver has changed".into() } else { format!("changed: {}", switched.join(", ")) }
}

/// Lets the servers open their directories anew, which are to hold the plan `plan_id`, and serve it when all can. Connections
/// that are made from then on get it; those that are there keep what they have.
///
/// # Errors
/// A server that is not there within the time, refuses, or cannot open its directory: then none changes. A server that is lost
/// when all are told to change is asked again; if that is in vain, the others have changed.
pub async fn reload_servers(endpoints: &[String], plan_id: &str, options: &ConnectOptions) -> Result<(), ReloadError> {
    let clients: Vec<Client> = endpoints.iter().map(|e| Client::control(e, options)).collect();
    let failed = errors(join_all(clients.iter().map(|c| ask_to_prepare(c, plan_id, options))).await);
    if !failed.is_empty() {
        return Err(ReloadError { failed, switched: Vec::new() });
    }
    let commit = async |client: &Client| match done(client, Call::Commit(plan_id.into())).await {
        Ok(()) => Ok(()),
        Err(e) => again(client, plan_id, options).await.map_err(|_| e),
    };
    let committed = join_all(clients.iter().map(commit)).await;
    let switched = endpoints.iter().zip(&committed).filter(|(_, c)| c.is_ok()).map(|(e, _)| e.clone()).collect();
    let failed = errors(committed);
    if failed.is_empty() { Ok(()) } else { Err(ReloadError { failed, switched }) }
}

fn errors(results: Vec<Result<(), StoreError>>) -> Vec<StoreError> {
    results.into_iter().filter_map(Result::err).collect()
}

async fn ask_to_prepare(client: &Client, plan_id: &str, options: &ConnectOptions) -> Result<(), StoreError> {
    // Until the slowest of the others has it as well.
    let hold = options.rpc_timeout.saturating_add(Duration::from_secs(60));
    done(client, Call::Prepare { plan_id: plan_id.into(), hold }).await
}

/// Brings a server to the others that did not say that it had changed: its answer may be lost, or it may be another process.
async fn again(client: &Client, plan_id: &str, options: &ConnectOptions) -> Result<(), StoreError> {
    if server_info(&client.endpoint, options).await?.plan_id == plan_id {
        return Ok(());
    }
    let client = Client::control(&client.endpoint, options);
    ask_to_prepare(&client, plan_id, options).await?;
    done(&client, Call::Commit(plan_id.into())).await
}

async fn done(client: &Client, call: Call) -> Result<(), StoreError> {
    match client.ask(call).await? {
        Answer::Done => Ok(()),
        other => Err(client.unexpected(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Manifest;
    use crate::store::{Shards, read_manifest};
    use std::path::Path;

    /// Writes a deployment without tables, which differs from others by its fingerprint; its plan id.
    fn put(dir: &Path, fingerprint: &str) -> String {
        let text = format!(r#"{{"format_version":1,"plan_id":"","fingerprint":"{fingerprint}","shards":1,"tables":[]}}"#);
        let mut manifest = Manifest::parse(&text).unwrap();
        manifest.seal();
        std::fs::write(dir.join("manifest.json"), manifest.print()).unwrap();
        manifest.plan_id
    }

    #[tokio::test]
    async fn one_connection_holds_the_next_version_and_only_for_its_time() {
        let tmp = tempfile::tempdir().unwrap();
        let (dir, options) = (tmp.path(), ServeOptions { servers: 1, ..ServeOptions::default() });
        let first = put(dir, "a");
        let shards = Shards::of_server(dir, Arc::new(read_manifest(dir).unwrap()), 1, 0).unwrap();
        let versions = Arc::new(Versions::new(Arc::new(shards), Some(dir.into()), &options).unwrap());
        let present = || versions.present().identity.plan_id.clone();
        let second = put(dir, "b");
        let prepare = |seconds| Call::Prepare { plan_id: second.clone(), hold: Duration::from_secs(seconds) };
        let said = async |held: &mut Held, call| match held.answer(call, &versions, &options).await {
            Answer::Done => "done".to_owned(),
            Answer::Failed(Failure::Busy(text) | Failure::Refused(text)) => text,
            other => panic!("{other:?}"),
        };
        let (mut one, mut other) = (Held::default(), Held::default());
        assert_eq!(said(&mut one, prepare(60)).await, "done");
        assert_eq!(present(), first);
        // The other can neither prepare nor use what the one has.
        assert_eq!(said(&mut other, prepare(60)).await, "another reload is under way");
        let none = format!("plan id {second} is not prepared on this connection, or was too long ago");
        assert_eq!(said(&mut other, Call::Commit(second.clone())).await, none);
        one.expire();
        assert_eq!(said(&mut other, prepare(60)).await, "another reload is under way");
        drop(one);
        // No time at all is over at once.
        assert_eq!(said(&mut other, prepare(0)).await, "done");
        assert_eq!((said(&mut other, Call::Commit(second.clone())).await, present()), (none, first.clone()));
        assert_eq!(said(&mut other, prepare(0)).await, "done");
        other.expire();
        let mut third = Held::default();
        assert_eq!(said(&mut third, prepare(60)).await, "done");
        let wrong = format!("plan id {first} is not prepared on this connection, or was too long ago");
        assert_eq!(said(&mut third, Call::Commit(first)).await, wrong);
        // Whoever prepares anew gives up what it had.
        assert_eq!(said(&mut third, prepare(60)).await, "done");
        assert_eq!(said(&mut third, prepare(60)).await, "done");
        assert_eq!((said(&mut third, Call::Commit(second.clone())).await, present()), ("done".into(), second.clone()));
        assert_eq!(said(&mut third, Call::Info).await, "this is no call of a reload");
        assert_eq!(said(&mut other, prepare(60)).await, "done");
    }
}
