//! The HTTP/1.1 server beneath everything that answers over HTTP: who may connect, for how long, and how it ends. What is answered
//! is the caller's. Whatever goes wrong with one connection is that connection's end alone.

mod patient;

pub use axum::Router;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use patient::Patient;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// What one peer may take of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; more are closed.
    pub connections: usize,
    /// Bytes of a head that are taken at least; twice as many never are. 8 KiB at least.
    pub head: usize,
    /// Time for a head to come, and that a connection may be kept without a request.
    pub idle: Duration,
    /// Time in which a peer has to take some of an answer.
    pub stall: Duration,
    /// Time for what is under way when the server ends.
    pub ending: Duration,
    /// Whether a connection may have several requests, one after another.
    pub keep_alive: bool,
}

/// Answers with `app` until `stop` resolves. Then nobody is let in, and what is under way ends; says whether it did in time.
pub async fn serve(listener: TcpListener, app: Router, limits: Limits, stop: impl Future<Output = ()>) -> bool {
    let connections = limits.connections.min(Semaphore::MAX_PERMITS >> 1);
    let free = Arc::new(Semaphore::new(connections));
    let (end, ending) = watch::channel(());
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(place) = free.clone().try_acquire_owned() else { continue };
                let (app, ending) = (app.clone(), ending.clone());
                tokio::spawn(async move {
                    if let Err(e) = converse(stream, app, limits, ending).await {
                        tracing::debug!("a connection did not end well: {e}");
                    }
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    drop(end);
    let all = free.acquire_many(u32::try_from(connections).unwrap_or(u32::MAX));
    tokio::time::timeout(limits.ending, all).await.is_ok()
}

/// One connection, to its end.
async fn converse(stream: TcpStream, app: Router, limits: Limits, mut ending: watch::Receiver<()>) -> Result<(), hyper::Error> {
    // A small answer is not to wait for another.
    let _ = stream.set_nodelay(true);
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(limits.idle).max_buf_size(limits.head.max(8 << 10)).keep_alive(limits.keep_alive);
    let io = TokioIo::new(Patient::new(stream, limits.stall));
    let connection = server.serve_connection(io, TowerToHyperService::new(app));
    tokio::pin!(connection);
    tokio::select! {
        done = connection.as_mut() => return done,
        _ = ending.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// A listening socket for [`serve`], of the runtime that calls this.
///
/// # Errors
/// Those of the system.
pub fn listener(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

#[cfg(test)]
mod tests;
