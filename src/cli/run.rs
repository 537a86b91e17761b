//! `graphtool run`

use super::{output, size, usage};
use crate::comm::{self, GroupOptions};
use crate::data::{self, Bind, InputSpec};
use crate::exec::{Options, Session};
use crate::formats::onnx::value::ValueKind;
use crate::ir::{Dim, Model, Type};
use crate::job::launch::{LISTEN_ENV, PARENT_ENV};
use crate::job::metrics::{Figure, Report};
use crate::job::roles::{Role, RoleFlags, resolve};
use crate::job::{DEFAULT_BATCH, Job, Summary, predict};
use crate::plan::Manifest;
use crate::store::{self, ConnectOptions, ServeOptions};
use crate::{deploy, formats};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Run a model on one machine, or one process of a distributed job
///
/// On a plain model, or on a deployment directory without a role, everything happens in this process. With a role
/// (flags, else PaddlePaddle's environment, else torchrun's) it is one worker or one pserver of a job.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A model file, or a deployment directory
    model: PathBuf,
    #[command(flatten)]
    job: JobArgs,
    /// local, worker or pserver [default: from the environment, else local]
    #[arg(long)]
    role: Option<String>,
    /// Endpoints of the pservers, HOST:PORT separated by commas
    #[arg(long, value_delimiter = ',', alias = "pservers")]
    servers: Vec<String>,
    /// Endpoints of the workers, HOST:PORT separated by commas
    #[arg(long, value_delimiter = ',', alias = "trainers")]
    workers: Vec<String>,
    /// This worker's rank
    #[arg(long)]
    rank: Option<usize>,
    /// This pserver's place among the servers
    #[arg(long)]
    index: Option<usize>,
    /// Address that a pserver binds [default: from the endpoints, else 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Port that a pserver binds; 0 takes a free one and prints it [default: from the endpoints, else 0]
    #[arg(long)]
    port: Option<u16>,
    /// Serve on an address that is not loopback without a token
    #[arg(long)]
    insecure: bool,
    /// Let a client stop this pserver
    #[arg(long, hide = true)]
    remote_shutdown: bool,
}

/// What every form of a job takes.
#[derive(clap::Args, Clone)]
pub(super) struct JobArgs {
    /// Samples: .npz, .npy, .csv, .csv.gz, or a folder in the layout of ONNX's test data; several files are read as one
    #[arg(short, long, num_args = 1..)]
    pub(super) input: Vec<PathBuf>,
    /// Where outputs go: .npz, .csv, or a folder
    #[arg(short, long)]
    pub(super) output: Option<PathBuf>,
    /// Which columns make up an input: INPUT=COL[,COL…] or INPUT=A1..A9 (may be given several times)
    #[arg(long, value_name = "INPUT=COLS")]
    pub(super) bind: Vec<Bind>,
    /// What an empty cell of a .csv stands for [default: it is an error]
    #[arg(long, value_name = "VALUE")]
    pub(super) empty: Option<String>,
    /// Column of labels (0 or 1): prints logloss, AUC and more over all samples
    #[arg(long, value_name = "COLUMN")]
    pub(super) label: Option<String>,
    /// The output that is the score [default: the first]
    #[arg(long, value_name = "OUTPUT")]
    pub(super) score: Option<String>,
    /// Samples in a batch; only equal batches give equal bits
    #[arg(short, long, default_value_t = DEFAULT_BATCH, value_parser = positive)]
    pub(super) batch_size: usize,
    /// Threads for kernels; 0 is one per core [default: 0, in a launched job the cores shared out]
    #[arg(short, long)]
    pub(super) threads: Option<usize>,
    /// Seconds to wait for peers that are not there yet
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS", value_parser = seconds)]
    pub(super) connect_timeout: f64,
    /// Seconds that a lookup may take, reconnects included
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS", value_parser = seconds)]
    pub(super) rpc_timeout: f64,
    /// Largest message on the wire; larger requests are split
    #[arg(long, default_value = "64MiB", value_parser = size::parse, value_name = "SIZE")]
    pub(super) max_frame: u64,
    /// File with the secret that all processes of the job share
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Write the metrics as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) metrics_out: Option<PathBuf>,
}

/// What follows the number of ids that a keyed table lacked.
pub(super) const ABSENT_IDS: &str = " ids were absent from their table and got its row for absent ids";

fn seconds(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|s| *s > 0.0 && *s < 1e9).ok_or_else(|| format!("\"{text}\" is no number of seconds above 0"))
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(|| format!("\"{text}\" is no number above 0"))
}

impl JobArgs {
    fn token(&self) -> anyhow::Result<Option<String>> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let text = std::fs::read_to_string(file).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
        let token = text.trim().to_owned();
        if token.is_empty() { Err(anyhow::anyhow!("{}: it is empty", file.display())) } else { Ok(Some(token)) }
    }

    pub(super) fn connect_options(&self) -> anyhow::Result<ConnectOptions> {
        Ok(ConnectOptions {
            connect_timeout: Duration::from_secs_f64(self.connect_timeout),
            rpc_timeout: Duration::from_secs_f64(self.rpc_timeout),
            max_frame: self.max_frame as usize,
            token: self.token()?,
            ..ConnectOptions::default()
        })
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    follow_parent();
    let flags = RoleFlags {
        role: args.role.clone(),
        servers: args.servers.clone(),
        workers: args.workers.clone(),
        rank: args.rank,
        index: args.index,
        host: args.host.clone(),
        port: args.port,
    };
    let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let (role, source) = resolve(&flags, &env).map_err(usage)?;
    tracing::info!("role {role:?} from {source}");
    match role {
        Role::Local => local(&args),
        Role::Worker { rank, workers, servers } => worker(&args, rank, workers, &servers),
        Role::Pserver { index, servers, bind } => pserver(&args, index, servers, &bind),
    }
}

/// A child of a launcher ends when the launcher is gone.
fn follow_parent() {
    let Some(parent) = std::env::var(PARENT_ENV).ok().and_then(|p| p.parse::<u32>().ok()) else { return };
    std::thread::spawn(move || {
        while std::os::unix::process::parent_id() == parent {
            std::thread::sleep(Duration::from_millis(200));
        }
        std::process::exit(1);
    });
}

/// The listening socket that a launcher handed over.
fn inherited_listener() -> anyhow::Result<Option<TcpListener>> {
    if std::env::var(LISTEN_ENV).as_deref() != Ok("stdin") {
        return Ok(None);
    }
    Ok(Some(TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?)))
}

/// Binds an address; one that is not loopback only if `open` says that strangers are kept out or welcome.
fn listen(bind: &str, open: bool) -> anyhow::Result<TcpListener> {
    let addresses: Vec<_> = bind.to_socket_addrs().map_err(|e| anyhow::anyhow!("cannot bind {bind}: {e}"))?.collect();
    if !open && addresses.iter().any(|a| !a.ip().is_loopback()) {
        return Err(usage(format!("{bind} is not loopback: give --token-file, or --insecure to serve anybody")));
    }
    TcpListener::bind(addresses.as_slice()).map_err(|e| anyhow::anyhow!("cannot bind {bind}: {e}"))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

fn local(args: &Args) -> anyhow::Result<()> {
    if deploy::is_deployment(&args.model) {
        let (_, model) = deploy::open(&args.model)?;
        let store = store::open_local(&args.model)?;
        let runtime = runtime()?;
        let options = Options {
            threads: args.job.threads.unwrap_or(0),
            store: Some(store),
            runtime: Some(runtime.handle().clone()),
            ..Options::default()
        };
        return job(&args.job, &model, options, None, true);
    }
    let model = formats::load(&args.model)?;
    job(&args.job, &model, Options { threads: args.job.threads.unwrap_or(0), ..Options::default() }, None, true)
}

fn open_deployment(path: &Path) -> anyhow::Result<(Manifest, Model)> {
    if !deploy::is_deployment(path) {
        anyhow::bail!("{}: workers and pservers need a deployment directory; make one by `graphtool rewrite`", path.display());
    }
    Ok(deploy::open(path)?)
}

fn worker(args: &Args, rank: usize, workers: Vec<String>, servers: &[String]) -> anyhow::Result<()> {
    let (manifest, model) = open_deployment(&args.model)?;
    let runtime = runtime()?;
    let mut listener = inherited_listener()?;
    if listener.is_none() && rank == 0 && workers.len() > 1 {
        listener = Some(listen(&workers[0], args.job.token()?.is_some() || args.insecure)?);
    }
    let (plan_id, fingerprint) = (manifest.plan_id.clone(), manifest.fingerprint.clone());
    let store = if servers.is_empty() || manifest.tables.is_empty() {
        None
    } else {
        Some(runtime.block_on(store::connect(Arc::new(manifest), servers, args.job.connect_options()?))?)
    };
    let size = workers.len();
    let group = GroupOptions {
        plan_id,
        fingerprint,
        token: args.job.token()?,
        connect_timeout: Duration::from_secs_f64(args.job.connect_timeout),
        max_frame: args.job.max_frame as usize,
        ..GroupOptions::new(rank, workers)
    };
    // A model that cannot be run says so before the group is formed; the group's collectives come after.
    let options = Options { threads: args.job.threads.unwrap_or(0), store, runtime: Some(runtime.handle().clone()), ..Options::default() };
    let comm = if size > 1 { Some(runtime.block_on(comm::connect(group, listener))?) } else { None };
    let options = Options { comm: comm.clone(), ..options };
    let result = job(&args.job, &model, options, comm.map(|c| (c, runtime.handle().clone())), rank == 0);
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn pserver(args: &Args, index: usize, servers: usize, bind: &str) -> anyhow::Result<()> {
    if !deploy::is_deployment(&args.model) {
        anyhow::bail!("{}: workers and pservers need a deployment directory; make one by `graphtool rewrite`", args.model.display());
    }
    let token = args.job.token()?;
    let listener = match inherited_listener()? {
        Some(l) => l,
        None => listen(bind, token.is_some() || args.insecure)?,
    };
    let address = listener.local_addr()?;
    output::line(format!("pserver {index} of {servers} listens on {address}"))?;
    let options = ServeOptions {
        servers,
        index,
        threads: args.job.threads.unwrap_or(0),
        token,
        max_frame: args.job.max_frame as usize,
        remote_shutdown: args.remote_shutdown,
        ..ServeOptions::default()
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        if let Ok(rt) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            rt.block_on(stop_signal());
            let _ = stop.send(());
        }
    });
    let stats = store::serve(listener, &args.model, options, async { drop(stopped.await) })?;
    output::line(format!("served {} lookups of {} ids", stats.lookups, stats.ids))?;
    Ok(())
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

/// What a session wants as inputs, as data readers take it.
pub(super) fn input_specs(session: &Session) -> Vec<InputSpec> {
    session
        .inputs()
        .into_iter()
        .map(|(name, ty, optional)| {
            let kind = match ty {
                Some(Type::Sequence(_)) => ValueKind::Sequence,
                Some(Type::Optional(_)) => ValueKind::Optional,
                Some(Type::Map { .. }) => ValueKind::Map,
                _ => ValueKind::Tensor,
            };
            let dtype = ty.and_then(Type::dtype).unwrap_or(crate::tensor::DType::F32);
            let dims = ty.and_then(Type::shape).map(|s| s.iter().map(Dim::known).collect());
            InputSpec { kind, optional, ..InputSpec::tensor(name, dtype, dims) }
        })
        .collect()
}

fn job(
    args: &JobArgs,
    model: &Model,
    options: Options,
    comm: Option<(Arc<dyn comm::Comm>, tokio::runtime::Handle)>,
    root: bool,
) -> anyhow::Result<()> {
    let store = options.store.clone();
    let session = Session::new(model, options)?;
    if args.input.is_empty() {
        return Err(usage("--input is missing"));
    }
    let source =
        data::open_all(&args.input, &input_specs(&session), &data::Options { binds: args.bind.clone(), empty: args.empty.clone() })?;
    let sink = match &args.output {
        Some(path) if root => Some(data::create(path)?),
        _ => None,
    };
    let total = match source.samples() {
        data::Samples::Count(n) => *n,
        data::Samples::Whole(_) => 1,
    };
    let bar = progress(total);
    let size = comm.as_ref().map_or(1, |(c, _)| c.size());
    let job = Job {
        session: &session,
        source: source.as_ref(),
        batch: args.batch_size,
        comm: comm.as_ref().map(|(c, h)| (c.as_ref(), h.clone())),
        label: args.label.clone(),
        score: args.score.clone(),
        progress: &|done| bar.set_position((done * size) as u64),
    };
    let summary = predict(&job, sink);
    bar.finish_and_clear();
    let summary = summary?;
    if root {
        summarise(args, &summary, source.samples())?;
    }
    if let Some(stats) = store.map(|s| s.stats()).filter(|s| s.absent > 0) {
        output::line(format!("{} of {}{ABSENT_IDS}", stats.absent, stats.ids))?;
    }
    Ok(())
}

fn progress(total: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} samples  {per_sec}  {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total as u64).with_style(style)
}

fn summarise(args: &JobArgs, s: &Summary, samples: &data::Samples) -> anyhow::Result<()> {
    let seconds = s.elapsed.as_secs_f64();
    let rate = s.samples as f64 / seconds.max(1e-9);
    let metrics = s.metrics.as_ref();
    if let Some(path) = &args.metrics_out {
        let mut json = metrics.map_or_else(|| serde_json::json!({}), metrics_json);
        json["samples"] = s.samples.into();
        json["seconds"] = seconds.into();
        json["samples_per_second"] = rate.into();
        let text = serde_json::to_string_pretty(&json)?;
        data::write_file(path, |f| {
            use std::io::Write;
            writeln!(f, "{text}").map_err(data::DataError::io(path))
        })?;
    }
    match samples {
        data::Samples::Whole(_) => output::line(format!("one run in {seconds:.3} s"))?,
        data::Samples::Count(_) => output::line(format!("{} samples in {seconds:.3} s: {rate:.0} samples/s", s.samples))?,
    }
    metrics.map_or(Ok(()), print_metrics)
}

fn figures(r: &Report) -> Vec<(&'static str, &Figure)> {
    let mut all = vec![
        ("logloss", &r.logloss),
        ("auc", &r.auc),
        ("accuracy", &r.accuracy),
        ("rmse", &r.rmse),
        ("mae", &r.mae),
        ("calibration", &r.calibration),
    ];
    all.extend(r.grouped_auc.as_ref().map(|g| ("grouped_auc", g)));
    all
}

fn print_metrics(r: &Report) -> anyhow::Result<()> {
    let all: Vec<String> = figures(r).into_iter().map(|(name, f)| format!("{name} {f}")).collect();
    output::line(all.join("  "))?;
    Ok(())
}

fn metrics_json(r: &Report) -> serde_json::Value {
    let mut json = serde_json::json!({ "count": r.count });
    for (name, f) in figures(r) {
        json[name] = f.value().map_or_else(|| serde_json::json!({ "undefined": f.to_string() }), Into::into);
    }
    json
}
