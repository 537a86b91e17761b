//! `graphtool run`

pub(super) use super::job::input_specs;
use super::job::{JobArgs, Meter, print, summarise};
use super::monitor::{self, Ids, WorkerWatch};
use super::process::{follow_parent, inherited_listener, launched, listen, listen_for_peers, stop_signal};
use super::{output, size, stores, usage};
use crate::comm::{self, Comm, GroupOptions};
use crate::data;
use crate::exec::{Options, Session, Trace};
use crate::ir::Model;
use crate::job::endpoints::{self, System};
use crate::job::launch::RESTARTED_ENV;
use crate::job::roles::{Role, RoleFlags, near_misses, resolve};
use crate::job::{Job, JobError, PartsOptions, predict, remove_parts};
use crate::plan::Manifest;
use crate::store::{self, ServeOptions, ServerWatch};
use crate::{deploy, formats};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Times that a group of workers is formed anew after one of them was lost.
const REJOINS: usize = 100;

/// Run a model on one machine, or one process of a distributed job
///
/// On a plain model, or on a deployment directory without a role, everything happens in this process. With a role
/// (flags, else PaddlePaddle's environment, else torchrun's) it is one worker or one pserver of a job. Which of them it is,
/// is found by --rank or --index, the environment (of a Kubernetes Job too), the text of its own endpoint in the list, the
/// address of this machine, or the number at the end of its host name (worker-3).
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
    /// Address that a pserver or a worker binds (all workers where the graph has collectives, else worker 0) [default: POD_IP, else from the endpoints, else 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Port that it binds; 0 takes a free one and prints it [default: from the endpoints, else 0]
    #[arg(long)]
    port: Option<u16>,
    /// Wait for workers that are lost to be started again, instead of ending with them
    #[arg(long)]
    rejoin: bool,
    /// Serve counters of this pserver or worker over HTTP, for Prometheus: /metrics, /healthz, /readyz
    ///
    /// Port 0 takes a free one; the address is printed to stderr.
    #[arg(long, value_name = "HOST:PORT")]
    metrics_addr: Option<String>,
    /// Connections that a pserver takes at once; more are closed
    #[arg(long, default_value_t = 1024, value_name = "COUNT")]
    max_connections: usize,
    /// Bytes of rows that a pserver has under way to all its clients at once; requests wait for their share
    #[arg(long, default_value = "512MiB", value_parser = size::parse, value_name = "SIZE")]
    max_in_flight: u64,
    /// Ids that a pserver takes in one request; workers split theirs
    #[arg(long, default_value_t = 1 << 20, value_name = "COUNT")]
    max_ids: usize,
    /// Whether the rows of lookups are what is computed.
    #[arg(skip)]
    lookups: bool,
    /// Write where the time of this process goes, as a trace for chrome://tracing or Perfetto
    ///
    /// One event for each step, lookup, wait and batch, with the node's name, op and shapes; each lookup has a row of its own,
    /// beside the rows of steps and of waits for it. For a run in this process, or a worker. Collecting it takes time.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Let a client stop this pserver
    #[arg(long, hide = true)]
    remote_shutdown: bool,
    /// Take the next batch that no worker has, by a list in the folder of parts
    #[arg(long, hide = true)]
    dynamic: bool,
    /// Folder of finished batches, where it is not beside the output
    #[arg(long, hide = true)]
    parts: Option<PathBuf>,
    /// Where worker 0 writes the last lines of the job
    #[arg(long, hide = true)]
    report: Option<PathBuf>,
}

/// The rows of all lookups, from the shards in `dir` or from `servers`.
pub(super) fn lookups(dir: PathBuf, job: JobArgs, servers: Vec<String>) -> anyhow::Result<()> {
    let alone = "127.0.0.1:0".to_owned();
    let args = Args {
        model: dir,
        job,
        role: None,
        servers: Vec::new(),
        workers: Vec::new(),
        rank: None,
        index: None,
        host: None,
        port: None,
        rejoin: false,
        metrics_addr: None,
        max_connections: 0,
        max_in_flight: 0,
        max_ids: 0,
        lookups: true,
        profile: None,
        remote_shutdown: false,
        dynamic: false,
        parts: None,
        report: None,
    };
    stores::chain(&args.job.stores, &servers)?;
    if servers.is_empty() { local(&args) } else { worker(&args, 0, vec![alone.clone()], &servers, &alone) }
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
    if args.role.as_deref() != Some("local") {
        for (name, near) in near_misses(&env) {
            tracing::warn!("the variable {name} is not read; is {near} meant?");
        }
    }
    stores::chain(&args.job.stores, &args.servers)?;
    let (role, source) = resolve(&flags, &env, &System).map_err(usage)?;
    tracing::info!("role {role:?} from {source}");
    match role {
        Role::Local if args.job.resume => Err(usage("--resume goes on with a job of workers; this run has none")),
        Role::Local if args.metrics_addr.is_some() => Err(usage("--metrics-addr is for a pserver or a worker; this run is neither")),
        Role::Pserver { .. } if args.job.stores.store.is_some() => {
            Err(usage("--store is for a run in this process or a worker; this is a pserver, which has the shards"))
        }
        Role::Pserver { .. } if args.profile.is_some() => {
            Err(usage("--profile is for a run in this process or a worker; this is a pserver"))
        }
        Role::Local => local(&args),
        Role::Worker { rank, workers, servers, bind } => worker(&args, rank, workers, &servers, &bind),
        Role::Pserver { index, servers, bind, peers } => pserver(&args, index, servers, &bind, &peers),
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

fn local(args: &Args) -> anyhow::Result<()> {
    let threads = args.job.threads.unwrap_or(0);
    let trace = trace(args)?;
    if args.lookups || deploy::is_deployment(&args.model) {
        let (manifest, model) = open_deployment(args)?;
        let runtime = runtime()?;
        let ids = stores::open(&args.model, manifest, &args.job.stores, &[], None, &runtime)?;
        let runtime = Some(runtime.handle().clone());
        let options = Options { threads, store: ids.store.clone(), runtime, trace: trace.clone(), ..Options::default() };
        let session = Session::new(&model, options)?;
        job(args, &session, None, None, (&ids, None))??;
        return write_trace(args, trace.as_deref(), "run", 0);
    }
    stores::no_tables(&args.job.stores, &[])?;
    let session = Session::new(&formats::load(&args.model)?, Options { threads, trace: trace.clone(), ..Options::default() })?;
    job(args, &session, None, None, (&Ids::default(), None))??;
    write_trace(args, trace.as_deref(), "run", 0)
}

/// What collects the profile, if one is wanted; a folder that is not there is told before the work.
fn trace(args: &Args) -> anyhow::Result<Option<Arc<Trace>>> {
    let Some(path) = &args.profile else { return Ok(None) };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.file_name().is_none() || !folder.is_dir() {
        return Err(usage(format!("--profile {}: it is no file in a folder that is there", path.display())));
    }
    Ok(Some(Arc::default()))
}

fn write_trace(args: &Args, trace: Option<&Trace>, process: &str, pid: usize) -> anyhow::Result<()> {
    if let (Some(path), Some(trace)) = (&args.profile, trace) {
        let text = trace.json(process, pid);
        data::write_file(path, |f| std::io::Write::write_all(f, text.as_bytes()).map_err(data::DataError::io(path)))?;
    }
    Ok(())
}

fn open_deployment(args: &Args) -> anyhow::Result<(Manifest, Model)> {
    let path = &args.model;
    if !deploy::is_deployment(path) {
        let who = if args.lookups { "lookups" } else { "workers and pservers" };
        anyhow::bail!("{}: {who} need a deployment directory; make one by `graphtool rewrite`", path.display());
    }
    Ok(if args.lookups { deploy::open_lookups(path)? } else { deploy::open(path)? })
}

/// Whether the graph has collectives.
fn has_collectives(model: &Model) -> bool {
    const COLLECTIVES: [&str; 5] = ["AllGather", "AllReduce", "Barrier", "Broadcast", "ReduceScatter"];
    let is = |op: &crate::ir::OpName| *op.domain == *crate::ops::remote::DOMAIN && COLLECTIVES.contains(&&*op.name);
    model.graphs().iter().any(|g| g.ops().iter().any(|&id| g.node(id).op().is_some_and(is)))
}

/// How long a worker may give no sign of life. It is noticed a fifth later at most: within --rpc-timeout.
fn silence(rpc_timeout: f64) -> Duration {
    Duration::from_secs_f64((rpc_timeout * 0.75).clamp(2.0, 10.0))
}

fn worker(args: &Args, rank: usize, workers: Vec<String>, servers: &[String], bind: &str) -> anyhow::Result<()> {
    let (manifest, model) = open_deployment(args)?;
    let runtime = runtime()?;
    let collectives = has_collectives(&model);
    let open = args.job.open();
    let mut listener = inherited_listener()?;
    if listener.is_none() && workers.len() > 1 {
        if rank == 0 {
            endpoints::reachable(bind, workers[1..].iter().map(String::as_str), &System).map_err(usage)?;
            listener = Some(listen(bind, open)?);
        } else if collectives {
            listener = listen_for_peers(rank, &workers, bind, open)?;
        }
    }
    let own = args.parts.clone().or_else(|| args.job.parts());
    if own.is_none() && args.job.resume {
        return Err(usage("--resume needs --output: what was put aside is beside it"));
    }
    let temporary = own.is_none();
    let mut parts = PartsOptions {
        dir: own.unwrap_or_else(|| std::env::temp_dir().join(format!("graphtool-{}.parts", std::process::id()))),
        resume: args.job.resume,
        identity: args.job.identity(&manifest.plan_id, &manifest.fingerprint)?,
    };
    let mut group = GroupOptions {
        plan_id: manifest.plan_id.clone(),
        fingerprint: manifest.fingerprint.clone(),
        token: args.job.stores.token()?,
        tls: args.job.stores.tls.load()?,
        connect_timeout: Duration::from_secs_f64(args.job.stores.connect_timeout),
        max_frame: args.job.stores.max_frame as usize,
        heartbeat_timeout: silence(args.job.stores.rpc_timeout),
        rejoin: args.rejoin,
        late: !collectives && std::env::var_os(RESTARTED_ENV).is_some(),
        ..GroupOptions::new(rank, workers)
    };
    if !collectives {
        // What is brought to rank 0 in the end is for rank 0.
        group.direct_from = usize::MAX;
        // A worker that is done waits for the others as long as they are alive, which heartbeats tell.
        group.timeout = Duration::from_secs(30 * 24 * 3600);
    }
    let watch = Arc::new(WorkerWatch::default());
    if let Some(address) = &args.metrics_addr {
        // This one is not within TLS.
        let open = args.job.stores.token_file.is_some() || args.job.insecure;
        monitor::worker(address, open, (rank, manifest.plan_id.clone()), args.job.batch_size, watch.clone())?;
    }
    let mut ids = Ids::default();
    // What a scheduler says of pservers gives way to what the caller says.
    let servers = if args.job.stores.store.is_some() { &[] } else { servers };
    let asks = args.job.stores.store.is_some() || !servers.is_empty();
    if asks && !manifest.tables.is_empty() {
        let durations = args.metrics_addr.is_some().then(|| watch.durations.clone());
        ids = stores::open(&args.model, manifest, &args.job.stores, servers, durations, &runtime)?;
    }
    let _ = watch.ids.set(ids.clone());
    // A model that cannot be run says so before the group is formed; the group's collectives come after.
    let threads = args.job.threads.unwrap_or(0);
    let trace = trace(args)?;
    let handle = Some(runtime.handle().clone());
    let options = Options { threads, store: ids.store.clone(), runtime: handle, trace: trace.clone(), ..Options::default() };
    let mut rejoins = 0;
    let result = loop {
        let error = match attempt(args, &model, &options, (&group, &listener), (&parts, collectives), &runtime, (&ids, &watch)) {
            Ok(Err(e)) if args.rejoin && e.lost().is_some() && rejoins < REJOINS => e,
            other => break other,
        };
        tracing::warn!("{error}; going on when all workers are there again");
        if let Some((rank, why)) = error.lost()
            && why.starts_with(comm::SILENT)
            && launched()
        {
            output::note(format_args!("{}{rank}", crate::job::launch::HANGS));
        }
        rejoins += 1;
        (parts.resume, group.late) = (true, !collectives);
    };
    runtime.shutdown_timeout(Duration::from_secs(1));
    if temporary {
        let _ = remove_parts(&parts.dir);
    }
    result??;
    write_trace(args, trace.as_deref(), &format!("worker {rank}"), rank)
}

/// Forms the group and does this worker's part, from where it is.
fn attempt(
    args: &Args,
    model: &Model,
    options: &Options,
    (group, listener): (&GroupOptions, &Option<TcpListener>),
    (parts, collectives): (&PartsOptions, bool),
    runtime: &Runtime,
    (ids, watch): (&Ids, &WorkerWatch),
) -> anyhow::Result<Result<(), JobError>> {
    let mut session = if collectives { None } else { Some(Session::new(model, options.clone())?) };
    let comm = if group.endpoints.len() > 1 {
        let listener = listener.as_ref().map(TcpListener::try_clone).transpose()?;
        match runtime.block_on(comm::connect(group.clone(), listener)) {
            Ok(comm) => Some(comm),
            Err(e) => return Ok(Err(e.into())),
        }
    } else {
        None
    };
    let session = match session.take() {
        Some(session) => session,
        None => Session::new(model, Options { comm: comm.clone(), ..options.clone() })?,
    };
    let comm = comm.as_deref().map(|c| (c, runtime.handle().clone()));
    job(args, &session, comm, Some((parts, collectives)), (ids, Some(watch)))
}

fn pserver(args: &Args, index: usize, servers: usize, bind: &str, peers: &[String]) -> anyhow::Result<()> {
    if !deploy::is_deployment(&args.model) {
        anyhow::bail!("{}: workers and pservers need a deployment directory; make one by `graphtool rewrite`", args.model.display());
    }
    let token = args.job.stores.token()?;
    let listener = match inherited_listener()? {
        Some(l) => l,
        None => {
            endpoints::reachable(bind, peers.iter().map(String::as_str), &System).map_err(usage)?;
            listen(bind, args.job.open())?
        }
    };
    let address = listener.local_addr()?;
    output::line(format!("pserver {index} of {servers} listens on {address}"))?;
    let mut watch = None;
    if let Some(address) = &args.metrics_addr {
        let seen = Arc::<ServerWatch>::default();
        let plan_id = store::read_manifest(&args.model)?.plan_id;
        monitor::pserver(address, token.is_some() || args.job.insecure, (index, plan_id), seen.clone())?;
        watch = Some(seen);
    }
    let options = ServeOptions {
        watch,
        servers,
        index,
        threads: args.job.threads.unwrap_or(0),
        token,
        tls: args.job.stores.tls.load()?,
        max_frame: args.job.stores.max_frame as usize,
        max_ids: args.max_ids,
        max_connections: args.max_connections,
        max_in_flight: args.max_in_flight as usize,
        remote_shutdown: args.remote_shutdown,
        verify: args.job.stores.verify(),
        local: !args.job.stores.tcp_only,
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

/// Runs the samples of this process. What went wrong in the job is kept apart from what was wrong before it.
fn job(
    args: &Args,
    session: &Session,
    comm: Option<(&dyn Comm, tokio::runtime::Handle)>,
    parts: Option<(&PartsOptions, bool)>,
    (ids, watch): (&Ids, Option<&WorkerWatch>),
) -> anyhow::Result<Result<(), JobError>> {
    let a = &args.job;
    let source = a.source(&input_specs(session))?;
    let root = comm.as_ref().is_none_or(|(c, _)| c.rank() == 0);
    let sink = match &a.output {
        Some(path) if root => Some(data::create(path)?),
        _ => None,
    };
    let meter = Meter::new(source.samples(), comm.as_ref().map_or(1, |(c, _)| c.size()), launched());
    let job = Job {
        batch: a.batch_size,
        comm,
        collectives: parts.is_some_and(|p| p.1),
        dynamic: args.dynamic,
        parts: parts.map(|p| p.0.clone()),
        label: a.label.clone(),
        group: a.group.clone(),
        keep: a.keep.clone(),
        score: a.score.clone(),
        // Worker 0 may want outputs of which the others know nothing.
        outputs: a.output.is_some() || args.parts.is_none(),
        prefetch: a.prefetch,
        progress: &|done, all| {
            meter.set(done, all);
            if let Some(watch) = watch {
                watch.samples.store(done as u64, Ordering::Relaxed);
            }
        },
        conclude: &|summary| {
            meter.done();
            let lines = summarise(a, summary, source.samples(), ids.cache.as_deref()).map_err(|e| e.to_string())?;
            if let Some(path) = &args.report {
                std::fs::write(path, lines.join("\n")).map_err(|e| format!("{}: {e}", path.display()))?;
            }
            print(&lines).map_err(|e| e.to_string())
        },
        ..Job::new(session, source.as_ref())
    };
    let result = predict(&job, sink);
    meter.done();
    Ok(result.map(drop))
}
