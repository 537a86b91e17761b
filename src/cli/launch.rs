//! `graphtool launch`

use super::run::{ABSENT_IDS, JobArgs};
use super::{exit_with, output, rewrite, usage};
use crate::deploy;
use crate::job::launch::{LaunchError, LaunchOptions, launch};
use crate::store::{ConnectOptions, stop_server};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Run a whole job on this machine: pservers and workers as processes, watched to the end
///
/// A plain model is rewritten first, into its default directory. Each process writes a log file, log/serverlog.N or
/// log/workerlog.N. When one fails, all are stopped and the exit code is not 0.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A model file, or a deployment directory
    model: PathBuf,
    /// Number of pservers
    #[arg(long = "server_num", alias = "server-num", default_value_t = 1, value_name = "N")]
    server_num: usize,
    /// Number of workers
    #[arg(long = "worker_num", aliases = ["worker-num", "trainer_num", "trainer-num"], default_value_t = 1, value_name = "N")]
    worker_num: usize,
    /// Folder for the log files
    #[arg(long = "log_dir", alias = "log-dir", default_value = "log", value_name = "DIR")]
    log_dir: PathBuf,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    rewrite: rewrite::Options,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.server_num == 0 || args.worker_num == 0 {
        return Err(usage("--server_num and --worker_num must be at least 1"));
    }
    if args.job.input.is_empty() {
        return Err(usage("--input is missing"));
    }
    let dir = if deploy::is_deployment(&args.model) {
        args.model.clone()
    } else {
        let dir = rewrite::default_dir(&args.model);
        let outcome = deploy::rewrite(crate::formats::load(&args.model)?, &dir, args.rewrite.build(args.server_num as u32)?)?;
        let (remote, all) = rewrite::counts(&outcome);
        output::line(format!("rewritten: {remote} of {all} lookups are remote; {}", dir.display()))?;
        dir
    };
    let (manifest, _) = deploy::open(&dir)?;
    if (manifest.shards as usize) < args.server_num {
        let shards = manifest.shards;
        return Err(usage(format!("{} pservers for {shards} shards: rewrite with --shards {} or more", args.server_num, args.server_num)));
    }
    let options = LaunchOptions {
        program: std::env::current_exe()?,
        server_args: child_args(&args, &dir, false),
        worker_args: child_args(&args, &dir, true),
        servers: args.server_num,
        workers: args.worker_num,
        log_dir: args.log_dir.clone(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    std::thread::spawn(move || {
        if let Ok(rt) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            rt.block_on(super::run::stop_signal());
            flag.store(true, Ordering::Relaxed);
        }
    });
    let connect =
        ConnectOptions { connect_timeout: Duration::from_secs(1), rpc_timeout: Duration::from_secs(2), ..args.job.connect_options()? };
    let stop_servers = |endpoints: &[String]| {
        let Ok(rt) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        for e in endpoints {
            // A server that does not stop by itself is killed by the launcher.
            if let Err(error) = rt.block_on(stop_server(e, &connect)) {
                tracing::warn!("{error}");
            }
        }
    };
    launch(&options, &|| stop.load(Ordering::Relaxed), &stop_servers).map_err(|e| {
        let code = match &e {
            LaunchError::Failed { code, .. } => u8::try_from(*code).unwrap_or(1).max(1),
            LaunchError::Interrupted => 130,
            LaunchError::Io { .. } => 1,
        };
        exit_with(code, e)
    })?;
    let log = args.log_dir.join("workerlog.0");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    // Worker 0's last words are the summary of the job.
    let lines: Vec<&str> =
        text.lines().filter(|l| l.contains("samples in ") || l.starts_with("one run in ") || l.starts_with("logloss ")).collect();
    lines.into_iter().try_for_each(output::line)?;
    // Each worker counts the absent ids of its own batches.
    let absent = |rank: usize| {
        let text = std::fs::read_to_string(args.log_dir.join(format!("workerlog.{rank}"))).unwrap_or_default();
        let counts = |l: &str| {
            let (absent, all) = l.split_once(ABSENT_IDS)?.0.split_once(" of ")?;
            Some((absent.parse::<u64>().ok()?, all.parse::<u64>().ok()?))
        };
        text.lines().rev().find_map(counts).unwrap_or((0, 0))
    };
    let total = (0..args.worker_num).map(absent).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    if total.0 > 0 {
        output::line(format!("{} of {}{ABSENT_IDS}", total.0, total.1))?;
    }
    Ok(())
}

/// The arguments of a child.
fn child_args(args: &Args, dir: &std::path::Path, worker: bool) -> Vec<String> {
    let job = &args.job;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = job.threads.unwrap_or_else(|| (cores / if worker { args.worker_num } else { args.server_num }).max(1));
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
    job.input.iter().for_each(|p| flag("--input", p.display().to_string()));
    for (name, path) in [("--output", &job.output), ("--metrics-out", &job.metrics_out)] {
        if let Some(p) = path {
            flag(name, p.display().to_string());
        }
    }
    for (name, text) in [("--empty", &job.empty), ("--label", &job.label), ("--score", &job.score)] {
        if let Some(t) = text {
            flag(name, t.clone());
        }
    }
    for b in &job.bind {
        flag("--bind", b.to_string());
    }
    out
}
