//! The launcher: starts pservers and workers as processes of this machine, watches them, stops them all.
//!
//! Each child is given its listening socket as its standard input: the port is the system's choice and nobody can take it
//! in between. Its environment is PaddlePaddle's.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The variable that tells a child that its standard input is its listening socket.
pub const LISTEN_ENV: &str = "GRAPHTOOL_LISTEN";
/// The variable that tells a child whose it is: it ends when that process does.
pub const PARENT_ENV: &str = "GRAPHTOOL_PARENT";

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
    /// Number of pservers.
    pub servers: usize,
    /// Number of workers.
    pub workers: usize,
    /// Where the log files go.
    pub log_dir: PathBuf,
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
    /// A process failed: the first that did, with the last line of its log.
    #[error("{name} {how}{}", if line.is_empty() { format!("; see {}", log.display()) } else { format!(": {line}") })]
    Failed {
        /// `worker 1`, `pserver 0`.
        name: String,
        /// Its exit code or signal.
        how: String,
        /// The last line of its log.
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

struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    is_worker: bool,
    done: bool,
}

/// All children; those that still run end when it is dropped.
struct Family(Vec<Process>);

impl Drop for Family {
    fn drop(&mut self) {
        for p in self.0.iter_mut().filter(|p| !p.done) {
            let _ = p.child.kill();
        }
        for p in self.0.iter_mut().filter(|p| !p.done) {
            let _ = p.child.wait();
        }
    }
}

fn listener() -> Result<(TcpListener, String), LaunchError> {
    let io = |error| LaunchError::Io { what: "cannot listen on 127.0.0.1".into(), error };
    let listener = TcpListener::bind("127.0.0.1:0").map_err(io)?;
    let endpoint = listener.local_addr().map_err(io)?.to_string();
    Ok((listener, endpoint))
}

/// Runs the job to its end. `stopped` is asked now and then whether the caller wants to stop; `stop_servers` is told the
/// endpoints of the servers when the workers are done.
///
/// # Errors
/// The first process that fails, by name; everybody else is stopped then.
pub fn launch(options: &LaunchOptions, stopped: &dyn Fn() -> bool, stop_servers: &dyn Fn(&[String])) -> Result<(), LaunchError> {
    fs::create_dir_all(&options.log_dir).map_err(|error| LaunchError::Io { what: options.log_dir.display().to_string(), error })?;
    let servers = (0..options.servers).map(|_| listener()).collect::<Result<Vec<_>, _>>()?;
    let workers = (0..options.workers).map(|_| listener()).collect::<Result<Vec<_>, _>>()?;
    let endpoints = |list: &[(TcpListener, String)]| list.iter().map(|l| l.1.clone()).collect::<Vec<_>>();
    let (server_list, worker_list) = (endpoints(&servers), endpoints(&workers));
    let mut family = Family(Vec::new());
    for (is_worker, list) in [(false, servers), (true, workers)] {
        for (i, (socket, endpoint)) in list.into_iter().enumerate() {
            let (kind, args) = if is_worker { ("worker", &options.worker_args) } else { ("pserver", &options.server_args) };
            let log = options.log_dir.join(if is_worker { format!("workerlog.{i}") } else { format!("serverlog.{i}") });
            let file = File::create(&log).map_err(|error| LaunchError::Io { what: log.display().to_string(), error })?;
            let (host, port) = endpoint.rsplit_once(':').unwrap_or(("127.0.0.1", "0"));
            let mut command = Command::new(&options.program);
            command
                .args(args)
                .stdin(Stdio::from(OwnedFd::from(socket)))
                .stdout(file.try_clone().map_err(|error| LaunchError::Io { what: log.display().to_string(), error })?)
                .stderr(file)
                .env(LISTEN_ENV, "stdin")
                .env(PARENT_ENV, std::process::id().to_string())
                .env("TRAINING_ROLE", if is_worker { "TRAINER" } else { "PSERVER" })
                .env("PADDLE_PSERVERS_IP_PORT_LIST", server_list.join(","))
                .env("PADDLE_TRAINER_ENDPOINTS", worker_list.join(","))
                .env("PADDLE_TRAINERS_NUM", options.workers.to_string())
                .env("POD_IP", host)
                .env("PADDLE_PORT", port);
            if is_worker {
                command.env("PADDLE_TRAINER_ID", i.to_string());
            } else {
                command.env("PADDLE_PSERVER_ID", i.to_string());
            }
            let name = format!("{kind} {i}");
            let child = command.spawn().map_err(|error| LaunchError::Io { what: format!("cannot start {name}"), error })?;
            family.0.push(Process { name, log, child, is_worker, done: false });
        }
    }
    watch(&mut family, stopped)?;
    stop_servers(&server_list);
    let deadline = Instant::now() + GRACE;
    while family.0.iter().any(|p| !p.done) && Instant::now() < deadline {
        family.0.iter_mut().filter(|p| !p.done).for_each(|p| p.done = matches!(p.child.try_wait(), Ok(Some(_))));
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Waits for the workers.
fn watch(family: &mut Family, stopped: &dyn Fn() -> bool) -> Result<(), LaunchError> {
    while family.0.iter().any(|p| p.is_worker && !p.done) {
        if stopped() {
            return Err(LaunchError::Interrupted);
        }
        // A worker that fails names the server that it lost; where both are down, the server is the root.
        let mut failed: Option<(usize, ExitStatus)> = None;
        for (i, p) in family.0.iter_mut().enumerate().filter(|(_, p)| !p.done) {
            let Ok(Some(status)) = p.child.try_wait() else { continue };
            p.done = true;
            if !(status.success() && p.is_worker) && failed.is_none() {
                failed = Some((i, status));
            }
        }
        if let Some((i, status)) = failed {
            let p = &family.0[i];
            let (how, code) = describe(status);
            return Err(LaunchError::Failed { name: p.name.clone(), how, line: last_line(&p.log), log: p.log.clone(), code });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn describe(status: ExitStatus) -> (String, i32) {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => ("ended before the workers were done".into(), 1),
        (Some(code), _) => (format!("failed with exit code {code}"), code),
        (None, Some(signal)) => (format!("was killed by signal {signal}"), 1),
        _ => ("failed".into(), 1),
    }
}

/// The last line of a log that says something.
fn last_line(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(4096)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = read().unwrap_or_default();
    text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("").trim_start_matches("error: ").to_owned()
}
