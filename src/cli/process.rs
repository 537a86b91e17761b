//! A process of a job among others: where it listens, whom it follows, when it ends.

use super::usage;
use crate::job::endpoints::{self, System};
use crate::job::launch::{LISTEN_ENV, PARENT_ENV};
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::Duration;

/// A child of a launcher ends when the launcher is gone.
pub(super) fn follow_parent() {
    let Some(parent) = std::env::var(PARENT_ENV).ok().and_then(|p| p.parse::<u32>().ok()) else { return };
    // The system does it at once, even to a process that is stopped; the thread is for a launcher that was gone before.
    #[cfg(target_os = "linux")]
    if let Err(e) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)) {
        tracing::debug!("no signal at the end of the launcher: {e}");
    }
    std::thread::spawn(move || {
        while std::os::unix::process::parent_id() == parent {
            std::thread::sleep(Duration::from_millis(200));
        }
        std::process::exit(1);
    });
}

/// Whether a launcher started this process.
pub(super) fn launched() -> bool {
    std::env::var_os(PARENT_ENV).is_some()
}

/// The listening socket that a launcher handed over.
pub(super) fn inherited_listener() -> anyhow::Result<Option<TcpListener>> {
    if std::env::var(LISTEN_ENV).as_deref() != Ok("stdin") {
        return Ok(None);
    }
    Ok(Some(TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?)))
}

/// Binds an address; one that is not loopback only if `open` says that strangers are kept out or welcome.
pub(super) fn listen(bind: &str, open: bool) -> anyhow::Result<TcpListener> {
    may_listen(bind, open)?;
    let addresses: Vec<_> = bind.to_socket_addrs().map_err(|e| anyhow::anyhow!("cannot bind {bind}: {e}"))?.collect();
    TcpListener::bind(addresses.as_slice()).map_err(|e| anyhow::anyhow!("cannot bind {bind}: {e}"))
}

/// That an address is loopback, or that `open` says that strangers are kept out or welcome.
pub(super) fn may_listen(bind: &str, open: bool) -> anyhow::Result<()> {
    if !open && !is_loopback(bind)? {
        return Err(usage(format!("{bind} is not loopback: give --token-file or --tls-cert, or --insecure to serve anybody")));
    }
    Ok(())
}

/// Whether an address is loopback alone.
pub(super) fn is_loopback(bind: &str) -> anyhow::Result<bool> {
    let mut addresses = bind.to_socket_addrs().map_err(|e| anyhow::anyhow!("cannot bind {bind}: {e}"))?;
    Ok(addresses.all(|a| a.ip().is_loopback()))
}

/// Where a worker other than 0 listens for the others: at its endpoint, if it has one of its own that can be bound. Without, the
/// group takes a port at the address by which worker 0 is reached.
pub(super) fn listen_for_peers(rank: usize, workers: &[String], bind: &str, open: bool) -> anyhow::Result<Option<TcpListener>> {
    // Worker 0's address tells on which network the workers meet.
    if !open && !is_loopback(&workers[0]).unwrap_or(false) {
        let text = "workers of this graph listen for each other, and not on loopback: give --token-file or --tls-cert, or --insecure to serve anybody";
        return Err(usage(text));
    }
    let others = || workers.iter().filter(|w| **w != workers[rank]).map(String::as_str);
    let own = workers[rank] != workers[0] && !bind.ends_with(":0");
    if !own || endpoints::reachable(bind, others(), &System).is_err() {
        return Ok(None);
    }
    match listen(bind, open) {
        Ok(listener) => Ok(Some(listener)),
        Err(e) => {
            tracing::warn!("{e:#}; listening for the other workers on another port");
            Ok(None)
        }
    }
}

/// Resolves at the first SIGINT or SIGTERM.
pub(super) async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut a), Ok(mut b)) => {
            tokio::select! { _ = a.recv() => {}, _ = b.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}
