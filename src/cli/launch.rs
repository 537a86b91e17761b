//! `graphtool launch`

use super::board::Board;
use super::job::{JobArgs, print};
use super::process::{may_listen, stop_signal};
use super::store_args::STORE_ENV;
use super::{exit_with, output, rewrite, stores, usage};
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
/// A plain model is rewritten first, into its default directory; flags that say how are refused for a deployment. Each process writes a log file, log/serverlog.N or
/// log/workerlog.N. A process that is killed is started again up to --max-restart times, and a worker goes on where it was.
/// When one fails for good, all are stopped, the exit code is not 0, and `--resume` goes on with the batches that are done.
///
/// With --servers and --workers the job may be spread over machines: the same command on each starts those endpoints that
/// belong there. With --store no pservers are started: the workers take their rows from there.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A model file, or a deployment directory
    model: PathBuf,
    /// Number of pservers [default: 1; with --store 0, for rows come from there]
    #[arg(long = "server_num", alias = "server-num", value_name = "N", conflicts_with = "servers")]
    server_num: Option<usize>,
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
    #[arg(long, value_delimiter = ',', alias = "trainers", value_name = "ENDPOINTS")]
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
    /// The number of pservers to start here, if no list says it.
    fn server_num(&self) -> anyhow::Result<usize> {
        match (self.server_num, &self.job.stores.store) {
            (None, None) => Ok(1),
            (None | Some(0), Some(_)) => Ok(0),
            (Some(0), None) => Err(usage("--server_num must be at least 1, unless --store says where rows come from")),
            (Some(n), None) => Ok(n),
            (Some(n), Some(_)) => {
                Err(usage(format!("--server_num {n} starts pservers, whose rows --store does not take; give one of them")))
            }
        }
    }

    fn seats(&self) -> anyhow::Result<(Vec<Seat>, Vec<Seat>)> {
        if self.servers.is_empty() && self.workers.is_empty() {
            let host = self.host.as_deref().unwrap_or("127.0.0.1");
            return Ok((seats_here(host, self.server_num()?), seats_here(host, self.worker_num)));
        }
        if self.servers.is_empty() && self.job.stores.store.is_none() {
            return Err(usage("--workers needs --servers, or --store"));
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

    /// The chain of stores, where the environment does not say it to workers too.
    fn told_store(&self) -> Option<String> {
        self.job.stores.store.clone().filter(|s| std::env::var(STORE_ENV).as_ref() != Ok(s))
    }

    /// Where worker 0 leaves the last lines of the job; several launchers may share a folder of logs.
    fn report(&self) -> PathBuf {
        self.log_dir.join(format!(".report-{}", std::process::id()))
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.worker_num == 0 {
        return Err(usage("--worker_num must be at least 1"));
    }
    stores::chain(&args.job.stores, &args.servers)?;
    if args.job.input.is_empty() {
        return Err(usage("--input is missing"));
    }
    let (servers, workers) = args.seats()?;
    let (connect, open) = (args.job.stores.connect_options()?, args.job.open());
    servers.iter().chain(&workers).filter_map(|s| s.bind.as_ref()).try_for_each(|b| may_listen(b, open))?;
    let dir = deployment(&args, servers.len())?;
    let several = servers.iter().chain(&workers).any(|s| s.bind.is_none());
    if args.schedule == "dynamic" && several {
        return Err(usage("--schedule dynamic is for workers of one machine"));
    }
    std::fs::create_dir_all(&args.log_dir).map_err(|e| anyhow::anyhow!("{}: {e}", args.log_dir.display()))?;
    let parts = Parts::take(&args, several)?;
    let options = LaunchOptions {
        program: std::env::current_exe()?,
        server_args: child_args(&args, &dir, &parts.dir, false, &servers, &workers),
        worker_args: child_args(&args, &dir, &parts.dir, true, &servers, &workers),
        servers,
        workers,
        log_dir: args.log_dir.clone(),
        max_restart: args.max_restart,
    };
    clean_logs(&args.log_dir);
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    std::thread::spawn(move || {
        if let Ok(rt) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            rt.block_on(stop_signal());
            flag.store(true, Ordering::Relaxed);
        }
    });
    let mut board = Board::new(stop);
    let connect = ConnectOptions { connect_timeout: Duration::from_secs(1), rpc_timeout: Duration::from_secs(2), ..connect };
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
    result.map_err(|e| failure(&args, &parts.dir, &e))?;
    let report = std::fs::read_to_string(args.report()).unwrap_or_default();
    let _ = std::fs::remove_file(args.report());
    print(&report.lines().map(str::to_owned).collect::<Vec<_>>())
}

/// The deployment directory; a plain model is rewritten into one.
fn deployment(args: &Args, servers: usize) -> anyhow::Result<PathBuf> {
    let dir = if deploy::is_deployment(&args.model) {
        let (cut, others) = (args.rewrite.cut.given(), args.rewrite.for_models());
        let how = if others.is_empty() { "`graphtool reshard` cuts it anew" } else { "`graphtool rewrite` of its model takes them" };
        let idle = [cut, others].concat().join(", ");
        if !idle.is_empty() {
            return Err(usage(format!("{idle}: {} is rewritten already; {how}", args.model.display())));
        }
        args.model.clone()
    } else {
        rewritten(args, servers)?
    };
    let (manifest, _) = deploy::open(&dir)?;
    if (manifest.shards as usize) < servers {
        return Err(usage(format!("{servers} pservers for {} shards: rewrite with --shards {servers} or more", manifest.shards)));
    }
    Ok(dir)
}

/// Rewrites the model into its default directory. One that holds the same already is left as it is: another job may be reading it.
fn rewritten(args: &Args, servers: usize) -> anyhow::Result<PathBuf> {
    let dir = rewrite::default_dir(&args.model);
    let model = crate::formats::load(&args.model)?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let fresh = dir.with_file_name(format!(".{name}.tmp-{}", std::process::id()));
    let foreign = dir.exists() && !deploy::is_deployment(&dir);
    let options = args.rewrite.build(servers.max(1) as u32)?;
    let outcome = deploy::rewrite(model, if foreign { &dir } else { &fresh }, options)?;
    let plan = || deploy::open(&dir).ok().map(|(m, _)| m.plan_id);
    let same = || plan().as_ref() == Some(&outcome.manifest.plan_id);
    let old = fresh.with_extension("old");
    // A directory takes the place of none or an empty one in one step; whoever else is at it may have been faster.
    if !foreign && !same() && std::fs::rename(&fresh, &dir).is_err() && !same() {
        let _ = std::fs::rename(&dir, &old);
        if let Err(e) = std::fs::rename(&fresh, &dir) {
            let _ = std::fs::rename(&old, &dir);
            let _ = std::fs::remove_dir_all(&fresh);
            anyhow::bail!("{}: {e}", dir.display());
        }
    }
    for left in [&fresh, &old] {
        let _ = std::fs::remove_dir_all(left);
    }
    let (remote, all) = rewrite::counts(&outcome);
    output::line(format!("rewritten: {remote} of {all} lookups are remote; {}", dir.display()))?;
    Ok(dir)
}

/// The folder of finished batches, which this job alone uses as long as this lives.
struct Parts {
    dir: PathBuf,
    _lock: Option<std::fs::File>,
}

impl Parts {
    /// Takes the folder beside the output, cleared unless this job goes on with it; another where a job that runs has it.
    fn take(args: &Args, several: bool) -> anyhow::Result<Self> {
        let dir = args.job.parts().unwrap_or_else(|| args.log_dir.join("parts"));
        if several {
            // Where machines share the folder, another may have begun: each worker clears its own.
            return Ok(Self { dir, _lock: None });
        }
        let Some(lock) = lock(&dir)? else {
            if args.job.resume {
                anyhow::bail!("{}: another job uses these batches", dir.display());
            }
            let dir = dir.with_file_name(format!("{}-{}", dir.file_name().unwrap_or_default().to_string_lossy(), std::process::id()));
            return Ok(Self { _lock: lock(&dir)?, dir });
        };
        // Who had taken which batch does not matter any more.
        let _ = std::fs::remove_file(dir.join("claims"));
        if args.job.resume || !remove_parts(&dir)? {
            return Ok(Self { dir, _lock: Some(lock) });
        }
        tracing::info!("{}: batches of an earlier job are thrown away", dir.display());
        Ok(Self { _lock: self::lock(&dir)?, dir })
    }
}

/// Locks a folder of parts, if nobody has.
fn lock(dir: &Path) -> anyhow::Result<Option<std::fs::File>> {
    use rustix::fs::{FlockOperation, flock};
    let path = dir.join("lock");
    let open = || {
        // Not its parents: an output in a folder that is not there is a mistake.
        std::fs::create_dir(dir).or_else(|e| if dir.is_dir() { Ok(()) } else { Err(e) })?;
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path)
    };
    let file = open().map_err(|e| anyhow::anyhow!("{}: {e}", dir.display()))?;
    Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
}

fn failure(args: &Args, parts: &Path, error: &LaunchError) -> anyhow::Error {
    let code = match error {
        LaunchError::Failed { code, .. } => u8::try_from(*code).unwrap_or(1).max(1),
        LaunchError::Interrupted => 130,
        LaunchError::Io { .. } => 1,
    };
    // A worker 0 that was killed leaves the file in which it gathered outputs.
    if let Some(output) = &args.job.output {
        crate::files::clean_beside(output);
    }
    let _ = std::fs::remove_file(args.report());
    let done = std::fs::read_dir(parts)
        .into_iter()
        .flatten()
        .flatten()
        .any(|e| e.metadata().is_ok_and(|m| m.is_file() && m.len() > 0 && e.file_name().to_string_lossy().starts_with("worker-")));
    let hint = if done {
        format!(" (finished batches are in {}; the same command with --resume goes on)", parts.display())
    } else {
        // Nothing to go on with.
        let _ = remove_parts(parts);
        let _ = std::fs::remove_file(parts.join("lock"));
        let _ = std::fs::remove_dir(parts);
        String::new()
    };
    exit_with(code, format!("{error}{hint}"))
}

/// The arguments of a child.
fn child_args(args: &Args, dir: &Path, parts: &Path, worker: bool, servers: &[Seat], workers: &[Seat]) -> Vec<String> {
    let job = &args.job;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let here = |seats: &[Seat]| seats.iter().filter(|s| s.bind.is_some()).count().max(1);
    let threads = job.threads.unwrap_or_else(|| (cores / here(if worker { workers } else { servers })).max(1));
    let mut out: Vec<String> = vec!["run".into(), dir.display().to_string(), "--threads".into(), threads.to_string()];
    let mut flag = |name: &str, value: String| out.extend([name.to_owned(), value]);
    if let Some(f) = &job.stores.token_file {
        flag("--token-file", f.display().to_string());
    }
    job.stores.tls.flags().for_each(|(name, path)| flag(name, path.display().to_string()));
    if !worker {
        out.extend(job.flags(false));
        out.push("--remote-shutdown".into());
        return out;
    }
    flag("--parts", parts.display().to_string());
    flag("--report", args.report().display().to_string());
    if let Some(store) = args.told_store() {
        flag("--store", store);
    }
    out.extend(job.flags(true));
    let switches = [("--rejoin", args.max_restart > 0), ("--dynamic", args.schedule == "dynamic")];
    out.extend(switches.into_iter().filter(|s| s.1).map(|s| s.0.to_owned()));
    out
}
