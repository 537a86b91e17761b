//! `graphtool launch`

use super::board::Board;
use super::job::{JobArgs, print};
use super::run::{may_listen, stop_signal};
use super::{exit_with, output, rewrite, usage};
use crate::deploy;
use crate::job::endpoints::{Seat, System, reachable, seats, seats_here};
use crate::job::launch::{LaunchError, LaunchOptions, clean_logs, launch};
use crate::job::remove_parts;
use crate::store::{ConnectOptions, stop_server};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Run a whole job: pservers and workers as processes of this machine, watched to the end
///
/// A plain model is rewritten first, into its default directory. Each process writes a log file, log/serverlog.N or
/// log/workerlog.N. A process that is killed is started again up to --max-restart times, and a worker goes on where it was.
/// When one fails for good, all are stopped, the exit code is not 0, and `--resume` goes on with the batches that are done.
///
/// With --servers and --workers the job may be spread over machines: the same command on each starts those endpoints that
/// belong there.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A model file, or a deployment directory
    model: PathBuf,
    /// Number of pservers
    #[arg(long = "server_num", alias = "server-num", default_value_t = 1, value_name = "N", conflicts_with = "servers")]
    server_num: usize,
    /// Number of workers (also --trainer_num)
    #[arg(
        long = "worker_num",
        aliases = ["worker-num", "trainer_num", "trainer-num"],
        default_value_t = 1,
        value_name = "N",
        conflicts_with = "workers"
    )]
    worker_num: usize,
    /// Endpoints of all pservers, HOST:PORT separated by commas; those of this machine are started here
    #[arg(long, value_delimiter = ',', alias = "pservers", value_name = "ENDPOINTS", requires = "workers")]
    servers: Vec<String>,
    /// Endpoints of all workers, likewise
    #[arg(long, value_delimiter = ',', alias = "trainers", value_name = "ENDPOINTS", requires = "servers")]
    workers: Vec<String>,
    /// The address of this machine that is bound and told to others [default: POD_IP where endpoints are given, else 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Folder for the log files
    #[arg(long = "log_dir", alias = "log-dir", default_value = "log", value_name = "DIR")]
    log_dir: PathBuf,
    /// How often each process that was killed is started again
    #[arg(long = "max-restart", aliases = ["max_restart", "max-restarts"], default_value_t = 0, value_name = "N")]
    max_restart: usize,
    /// Who computes which batch: every W-th, or whoever is ready takes the next
    #[arg(long, default_value = "static", value_parser = ["static", "dynamic"])]
    schedule: String,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    rewrite: rewrite::Options,
}

impl Args {
    fn seats(&self) -> anyhow::Result<(Vec<Seat>, Vec<Seat>)> {
        if self.servers.is_empty() {
            let host = self.host.as_deref().unwrap_or("127.0.0.1");
            return Ok((seats_here(host, self.server_num), seats_here(host, self.worker_num)));
        }
        let pod = std::env::var("POD_IP").ok().filter(|p| !p.is_empty());
        let host = self.host.as_deref().or(pod.as_deref());
        let both = (seats(&self.servers, host, &System).map_err(usage)?, seats(&self.workers, host, &System).map_err(usage)?);
        let all: Vec<&Seat> = both.0.iter().chain(&both.1).collect();
        if all.iter().all(|s| s.bind.is_none()) {
            return Err(usage(format!("none of {} is an address of this machine; --host says which is", self.workers.join(", "))));
        }
        let others = || all.iter().filter(|s| s.bind.is_none()).map(|s| s.endpoint.as_str());
        all.iter().filter_map(|s| s.bind.as_ref()).try_for_each(|own| reachable(own, others(), &System)).map_err(usage)?;
        Ok(both)
    }

    /// Where finished batches are.
    fn parts(&self) -> PathBuf {
        self.job.parts().unwrap_or_else(|| self.log_dir.join("parts"))
    }

    fn report(&self) -> PathBuf {
        self.log_dir.join("report.txt")
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.server_num == 0 || args.worker_num == 0 {
        return Err(usage("--server_num and --worker_num must be at least 1"));
    }
    if args.job.input.is_empty() {
        return Err(usage("--input is missing"));
    }
    let (servers, workers) = args.seats()?;
    let open = args.job.token()?.is_some() || args.job.insecure;
    servers.iter().chain(&workers).filter_map(|s| s.bind.as_ref()).try_for_each(|b| may_listen(b, open))?;
    let dir = deployment(&args, servers.len())?;
    let options = LaunchOptions {
        program: std::env::current_exe()?,
        server_args: child_args(&args, &dir, false, &servers, &workers),
        worker_args: child_args(&args, &dir, true, &servers, &workers),
        servers,
        workers,
        log_dir: args.log_dir.clone(),
        max_restart: args.max_restart,
    };
    if args.schedule == "dynamic" && options.has_others() {
        return Err(usage("--schedule dynamic is for workers of one machine"));
    }
    prepare(&args, &options)?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    std::thread::spawn(move || {
        if let Ok(rt) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            rt.block_on(stop_signal());
            flag.store(true, Ordering::Relaxed);
        }
    });
    let mut board = Board::new(stop);
    let connect =
        ConnectOptions { connect_timeout: Duration::from_secs(1), rpc_timeout: Duration::from_secs(2), ..args.job.connect_options()? };
    let stop_servers = |endpoints: &[String]| {
        let Ok(rt) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        for e in endpoints {
            // A server that does not stop by itself is killed by the launcher.
            if let Err(error) = rt.block_on(stop_server(e, &connect)) {
                tracing::info!("{error}");
            }
        }
    };
    let result = launch(&options, &mut board, &stop_servers);
    board.clear();
    result.map_err(|e| failure(&args, &e))?;
    let report = std::fs::read_to_string(args.report()).unwrap_or_default();
    let _ = std::fs::remove_file(args.report());
    print(&report.lines().map(str::to_owned).collect::<Vec<_>>())
}

/// The deployment directory; a plain model is rewritten into one.
fn deployment(args: &Args, servers: usize) -> anyhow::Result<PathBuf> {
    let dir = if deploy::is_deployment(&args.model) {
        args.model.clone()
    } else {
        let dir = rewrite::default_dir(&args.model);
        let outcome = deploy::rewrite(crate::formats::load(&args.model)?, &dir, args.rewrite.build(servers as u32)?)?;
        let (remote, all) = rewrite::counts(&outcome);
        output::line(format!("rewritten: {remote} of {all} lookups are remote; {}", dir.display()))?;
        dir
    };
    let (manifest, _) = deploy::open(&dir)?;
    if (manifest.shards as usize) < servers {
        return Err(usage(format!("{servers} pservers for {} shards: rewrite with --shards {servers} or more", manifest.shards)));
    }
    Ok(dir)
}

/// Clears away what an earlier job left, unless this one goes on with it.
fn prepare(args: &Args, options: &LaunchOptions) -> anyhow::Result<()> {
    clean_logs(&args.log_dir);
    let _ = std::fs::remove_file(args.report());
    let parts = args.parts();
    // Who had taken which batch does not matter any more.
    let _ = std::fs::remove_file(parts.join("claims"));
    // Where machines share the folder, another may have begun: each worker clears its own.
    if !args.job.resume && !options.has_others() && remove_parts(&parts)? {
        tracing::info!("{}: batches of an earlier job are thrown away", parts.display());
    }
    Ok(())
}

fn failure(args: &Args, error: &LaunchError) -> anyhow::Error {
    let code = match error {
        LaunchError::Failed { code, .. } => u8::try_from(*code).unwrap_or(1).max(1),
        LaunchError::Interrupted => 130,
        LaunchError::Io { .. } => 1,
    };
    // A worker 0 that was killed leaves the file in which it gathered outputs; asking for a name clears that away.
    drop(args.job.output.as_deref().map(crate::data::TempPath::beside));
    let parts = args.parts();
    let done = std::fs::read_dir(&parts)
        .into_iter()
        .flatten()
        .flatten()
        .any(|e| e.metadata().is_ok_and(|m| m.is_file() && m.len() > 0 && e.file_name() != "job.json"));
    let hint = if done {
        format!(" (finished batches are in {}; the same command with --resume goes on)", parts.display())
    } else {
        String::new()
    };
    exit_with(code, format!("{error}{hint}"))
}

/// The arguments of a child.
fn child_args(args: &Args, dir: &Path, worker: bool, servers: &[Seat], workers: &[Seat]) -> Vec<String> {
    let job = &args.job;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let here = |seats: &[Seat]| seats.iter().filter(|s| s.bind.is_some()).count().max(1);
    let threads = job.threads.unwrap_or_else(|| (cores / here(if worker { workers } else { servers })).max(1));
    let mut out: Vec<String> = vec!["run".into(), dir.display().to_string(), "--threads".into(), threads.to_string()];
    let mut flag = |name: &str, value: String| out.extend([name.to_owned(), value]);
    flag("--max-frame", job.max_frame.to_string());
    if let Some(f) = &job.token_file {
        flag("--token-file", f.display().to_string());
    }
    if !worker {
        out.push("--remote-shutdown".into());
        return out;
    }
    flag("--batch-size", job.batch_size.to_string());
    flag("--connect-timeout", job.connect_timeout.to_string());
    flag("--rpc-timeout", job.rpc_timeout.to_string());
    flag("--on-unavailable", job.on_unavailable.clone());
    flag("--parts", args.parts().display().to_string());
    flag("--report", args.report().display().to_string());
    job.input.iter().for_each(|p| flag("--input", p.display().to_string()));
    for (name, path) in [("--output", &job.output), ("--metrics-out", &job.metrics_out)] {
        if let Some(p) = path {
            flag(name, p.display().to_string());
        }
    }
    let texts = [
        ("--empty", &job.empty),
        ("--format", &job.format),
        ("--group", &job.group),
        ("--label", &job.label),
        ("--on-absent", &job.on_absent),
        ("--score", &job.score),
    ];
    for (name, text) in texts {
        if let Some(t) = text {
            flag(name, t.clone());
        }
    }
    job.keep.iter().for_each(|k| flag("--keep", k.clone()));
    job.slots.iter().for_each(|s| flag("--slots", s.clone()));
    job.bind.iter().for_each(|b| flag("--bind", b.to_string()));
    let switches = [("--resume", job.resume), ("--rejoin", args.max_restart > 0), ("--dynamic", args.schedule == "dynamic")];
    out.extend(switches.into_iter().filter(|s| s.1).map(|s| s.0.to_owned()));
    out
}
