//! One process of a job, which may be started several times, and all of them.

use super::{LISTEN_ENV, LaunchError, LaunchOptions, PARENT_ENV, RESTARTED_ENV, io_error};
use std::fs::OpenOptions;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A process and what is needed to start it again.
pub(super) struct Child {
    pub name: String,
    pub log: PathBuf,
    pub is_worker: bool,
    pub index: usize,
    pub restarts: usize,
    /// When it is to be started again.
    pub due: Option<Instant>,
    /// How it ended for good.
    pub ended: Option<ExitStatus>,
    endpoint: String,
    socket: TcpListener,
    process: Option<process::Child>,
    started: Instant,
}

/// Whoever is younger cannot have been silent for as long as it takes to be noticed.
const YOUNG: Duration = Duration::from_secs(2);

impl Child {
    pub fn new(is_worker: bool, index: usize, endpoint: String, socket: TcpListener, logs: &Path) -> Self {
        let (kind, log) = if is_worker { ("worker", "workerlog") } else { ("pserver", "serverlog") };
        Self {
            name: format!("{kind} {index}"),
            log: logs.join(format!("{log}.{index}")),
            is_worker,
            index,
            restarts: 0,
            due: None,
            ended: None,
            endpoint,
            socket,
            process: None,
            started: Instant::now(),
        }
    }

    /// Its end, if it has ended since it was last asked.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().ok()??;
        self.process = None;
        Some(status)
    }

    /// Kills it, unless it has just been started; true if it did.
    pub fn kill_if_old(&mut self) -> bool {
        self.process.as_mut().filter(|_| self.started.elapsed() > YOUNG).is_some_and(|p| p.kill().is_ok())
    }

    pub fn runs(&self) -> bool {
        self.process.is_some()
    }
}

/// All children; those that still run end when it is dropped.
pub(super) struct Family<'a> {
    pub children: Vec<Child>,
    options: &'a LaunchOptions,
    servers: String,
    workers: String,
}

impl Drop for Family<'_> {
    fn drop(&mut self) {
        let mut left: Vec<_> = self.children.iter_mut().filter_map(|c| c.process.take()).collect();
        for process in &mut left {
            let _ = process.kill();
        }
        for mut process in left {
            let _ = process.wait();
        }
    }
}

impl<'a> Family<'a> {
    pub fn new(options: &'a LaunchOptions, servers: &[String], workers: &[String]) -> Self {
        Self { children: Vec::new(), options, servers: servers.join(","), workers: workers.join(",") }
    }

    /// Takes a child in and starts it.
    pub fn add(&mut self, child: Child) -> Result<(), LaunchError> {
        self.children.push(child);
        self.start(self.children.len() - 1)
    }

    /// Starts a child, for the first time or again; its log goes on.
    pub fn start(&mut self, i: usize) -> Result<(), LaunchError> {
        let (o, c) = (self.options, &mut self.children[i]);
        let again = c.restarts > 0;
        let log = OpenOptions::new().create(true).write(true).append(again).truncate(!again).open(&c.log);
        let log = log.map_err(io_error(c.log.display()))?;
        let socket = c.socket.try_clone().map_err(io_error("cannot hand a socket over"))?;
        let (host, port) = c.endpoint.rsplit_once(':').unwrap_or(("127.0.0.1", "0"));
        let mut command = Command::new(&o.program);
        command
            .args(if c.is_worker { &o.worker_args } else { &o.server_args })
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .stdout(log.try_clone().map_err(io_error(c.log.display()))?)
            .stderr(log)
            .process_group(0)
            .env(LISTEN_ENV, "stdin")
            .env(PARENT_ENV, process::id().to_string())
            .env("TRAINING_ROLE", if c.is_worker { "TRAINER" } else { "PSERVER" })
            .env("PADDLE_PSERVERS_IP_PORT_LIST", &self.servers)
            .env("PADDLE_TRAINER_ENDPOINTS", &self.workers)
            .env("PADDLE_TRAINERS_NUM", self.options.workers.len().to_string())
            .env("POD_IP", host)
            .env("PADDLE_PORT", port)
            .env(if c.is_worker { "PADDLE_TRAINER_ID" } else { "PADDLE_PSERVER_ID" }, c.index.to_string());
        if again {
            command.env(RESTARTED_ENV, c.restarts.to_string());
            if c.is_worker && !o.worker_args.iter().any(|a| a == "--resume") {
                command.arg("--resume");
            }
        }
        (c.due, c.started) = (None, Instant::now());
        c.process = Some(command.spawn().map_err(io_error(format!("cannot start {}", c.name)))?);
        Ok(())
    }

    pub fn any_left(&self) -> bool {
        self.children.iter().any(Child::runs)
    }

    pub fn reap(&mut self) {
        self.children.iter_mut().for_each(|c| _ = c.poll());
    }
}
