//! The launcher: starts the pservers and workers that belong on this machine, watches them, starts those again that were
//! killed, and stops them all.
//!
//! Each child is given its listening socket as its standard input: the port is the system's choice (or the caller's) and
//! nobody can take it in between, nor while the child is started again. Its environment is PaddlePaddle's. Children are in
//! process groups of their own, so that a Ctrl-C at the terminal reaches the launcher alone.

mod child;
mod log;
mod watch;

pub use log::{HANGS, PROGRESS};
pub use watch::{Progress, Watcher};

use super::endpoints::Seat;
use child::{Child, Family};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The variable that tells a child that its standard input is its listening socket.
pub const LISTEN_ENV: &str = "GRAPHTOOL_LISTEN";
/// The variable that tells a child whose it is: it ends when that process does.
pub const PARENT_ENV: &str = "GRAPHTOOL_PARENT";
/// The variable that tells a child that it takes the place of one that was killed.
pub const RESTARTED_ENV: &str = "GRAPHTOOL_RESTARTED";

/// Time that servers have to end by themselves once the workers are done.
const GRACE: Duration = Duration::from_secs(3);

/// What to start.
#[derive(Debug)]
pub struct LaunchOptions {
    /// The program of every child.
    pub program: PathBuf,
    /// Arguments of every pserver.
    pub server_args: Vec<String>,
    /// Arguments of every worker.
    pub worker_args: Vec<String>,
    /// The pservers of the job.
    pub servers: Vec<Seat>,
    /// The workers of the job, by rank.
    pub workers: Vec<Seat>,
    /// Where the log files go.
    pub log_dir: PathBuf,
    /// How often each process is started again.
    pub max_restart: usize,
}

impl LaunchOptions {
    /// Whether other machines have a part in the job.
    pub fn has_others(&self) -> bool {
        self.servers.iter().chain(&self.workers).any(|s| s.bind.is_none())
    }
}

/// Why a job ended.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The system would not start it.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system says.
        error: io::Error,
    },
    /// A process failed: the first that did, with the last error in its log.
    #[error("{name} {how}{}", if line.is_empty() { format!("; see {}", log.display()) } else { format!(": {line}") })]
    Failed {
        /// `worker 1`, `pserver 0`.
        name: String,
        /// Its exit code or signal, and how often it was started again.
        how: String,
        /// The last error in its log.
        line: String,
        /// Its log.
        log: PathBuf,
        /// The code to end with.
        code: i32,
    },
    /// The caller asked to stop.
    #[error("interrupted; all processes were stopped")]
    Interrupted,
}

fn io_error(what: impl ToString) -> impl FnOnce(io::Error) -> LaunchError {
    let what = what.to_string();
    move |error| LaunchError::Io { what, error }
}

/// A seat of this machine with its socket, or one elsewhere.
type Bound = (String, Option<TcpListener>);

fn bind(seats: &[Seat]) -> Result<Vec<Bound>, LaunchError> {
    let one = |seat: &Seat| {
        let Some(bind) = &seat.bind else { return Ok((seat.endpoint.clone(), None)) };
        let failed = || io_error(format!("cannot listen on {bind}"));
        let listener = TcpListener::bind(bind).map_err(failed())?;
        let port = listener.local_addr().map_err(failed())?.port();
        // Port 0 is told by the system; a name stays a name.
        let endpoint = match seat.endpoint.rsplit_once(':') {
            Some((host, "0")) => format!("{host}:{port}"),
            _ => seat.endpoint.clone(),
        };
        Ok((endpoint, Some(listener)))
    };
    seats.iter().map(one).collect()
}

/// Runs the job to its end. `stop_servers` is told the endpoints of the servers when the workers are done.
///
/// # Errors
/// The first process that fails and is not started again, by name; everybody else is stopped then.
pub fn launch(options: &LaunchOptions, watcher: &mut dyn Watcher, stop_servers: &dyn Fn(&[String])) -> Result<(), LaunchError> {
    std::fs::create_dir_all(&options.log_dir).map_err(io_error(options.log_dir.display()))?;
    let (servers, workers) = (bind(&options.servers)?, bind(&options.workers)?);
    let endpoints = |list: &[Bound]| list.iter().map(|l| l.0.clone()).collect::<Vec<_>>();
    let (server_list, worker_list) = (endpoints(&servers), endpoints(&workers));
    let mut family = Family::new(options, &server_list, &worker_list);
    for (is_worker, list) in [(false, servers), (true, workers)] {
        for (index, (endpoint, socket)) in list.into_iter().enumerate() {
            if let Some(socket) = socket {
                family.add(Child::new(is_worker, index, endpoint, socket, &options.log_dir))?;
            }
        }
    }
    let leads = options.workers.first().is_some_and(|w| w.bind.is_some());
    let result = watch::watch(&mut family, options, watcher);
    if leads && (result.is_ok() || options.has_others()) {
        stop_servers(&server_list);
    }
    result?;
    let deadline = Instant::now() + GRACE;
    while family.any_left() && Instant::now() < deadline {
        family.reap();
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Removes the logs that an earlier, larger job left: nobody is to take them for this one's.
pub fn clean_logs(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("workerlog.").or_else(|| name.strip_prefix("serverlog."));
        if number.is_some_and(|n| n.parse::<usize>().is_ok()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
