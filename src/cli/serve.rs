//! `graphtool serve`

use super::chain::Source;
use super::job::positive;
use super::monitor::{self, Ids};
use super::process::{is_loopback, listen, stop_signal};
use super::store_args::{StoreArgs, token};
use super::{exit_with, output, size, stores, usage};
use crate::exec::{Options, Session};
use crate::http::{self, Limits};
use crate::ir::{Model, Type};
use crate::plan::Manifest;
use crate::serve::protocol::{Interface, Port, datatype};
use crate::serve::{BatchOptions, Batcher, Counts, Guard, Parts, Service, about};
use crate::store::{Durations, Store};
use crate::view::{Form, draw};
use crate::{deploy, formats, passes};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The version of every model.
const VERSION: &str = "1";

/// Answer requests for predictions over HTTP, by the Open Inference Protocol (v2)
///
/// Requests and answers are JSON or Triton's binary form: `tritonclient[http]` works as it is. A deployment directory is served from
/// its own shards, or from pservers (--servers). Requests of several clients become one run where the first axis of all inputs and
/// outputs counts samples: whoever waits while runs are under way forms the next one. `/` is a page with the graph, the shards and
/// live rates; /metrics is for Prometheus; /healthz and /readyz are there too.
///
/// On SIGTERM or SIGINT the server is no longer ready, and what is under way is finished. Exit code 0.
#[derive(clap::Args)]
#[command(
    mut_arg("rpc_timeout", |a| {
        let help = "Seconds that a lookup may take, reconnects included; then requests are answered with 503 until pservers answer again";
        a.default_value("5").help(help).long_help(help)
    }),
    mut_arg("token_file", |a| a.help("File with the secret that pservers ask for")),
)]
pub(super) struct Args {
    /// A model file, or a deployment directory
    model: PathBuf,
    /// Address to listen at; port 0 takes a free one. The address is printed
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "HOST:PORT")]
    http: String,
    /// The model's name in paths [default: that of the file or directory, without its extension; of a model.onnx, that of its directory]
    #[arg(long)]
    name: Option<String>,
    /// The most samples of a run of several requests; 1 computes each request by itself
    #[arg(long, default_value_t = 1024, value_parser = positive, value_name = "SAMPLES")]
    max_batch: usize,
    /// Milliseconds that a request may wait for others while nothing else is computed
    #[arg(long, default_value_t = 0.0, value_parser = milliseconds, value_name = "MS")]
    max_delay: f64,
    /// The most requests that wait; more are answered with 503
    #[arg(long, default_value_t = 1024, value_parser = positive, value_name = "REQUESTS")]
    max_queue: usize,
    /// Runs at once [default: one per core, 4 at most]
    #[arg(long, value_parser = positive, value_name = "RUNS")]
    runs: Option<usize>,
    /// The largest body of a request, packed or unpacked; more is answered with 413. All together may have 8 times as much
    #[arg(long, default_value = "64MiB", value_parser = size::parse, value_name = "SIZE")]
    max_body: u64,
    /// Connections at once; more are closed
    #[arg(long, default_value_t = 1024, value_parser = positive, value_name = "COUNT")]
    max_connections: usize,
    /// Seconds after the first signal in which requests are still answered while /readyz says no; another signal ends them
    #[arg(long, default_value_t = 0.0, value_parser = some_seconds, value_name = "SECONDS")]
    drain: f64,
    /// File with the secret that clients send as `Authorization: Bearer …`
    #[arg(long, value_name = "FILE")]
    http_token_file: Option<PathBuf>,
    /// Serve on an address that is not loopback without a token
    #[arg(long)]
    insecure: bool,
    /// Threads for kernels; 0 is one per core
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    /// Endpoints of the pservers, HOST:PORT separated by commas [default: none, the shards are read here]
    #[arg(long, value_delimiter = ',', alias = "pservers")]
    servers: Vec<String>,
    #[command(flatten)]
    stores: StoreArgs,
}

fn milliseconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|ms| (0.0..=60_000.0).contains(ms))
        .ok_or_else(|| format!("\"{text}\" is no number of milliseconds up to 60000"))
}

fn some_seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s| (0.0..=86_400.0).contains(s)).ok_or_else(|| format!("\"{text}\" is no number of seconds up to 86400"))
}

impl Args {
    fn batches(&self) -> BatchOptions {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        BatchOptions {
            samples: self.max_batch,
            delay: Duration::from_secs_f64(self.max_delay / 1e3),
            queue: self.max_queue,
            runs: self.runs.unwrap_or(cores.min(4)),
        }
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let token = args.http_token_file.as_deref().map(token).transpose()?;
    if token.is_none() && !args.insecure && !is_loopback(&args.http)? {
        let text = "is not loopback, and this is plain HTTP: give --http-token-file, or --insecure to serve anybody";
        return Err(usage(format!("{} {text}", args.http)));
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => stem(&args.model)?,
    };
    if name.is_empty() || name.contains('/') {
        return Err(usage(format!("--name \"{name}\": a name in paths is not empty and has no /")));
    }
    let listener = listen(&args.http, true)?;
    let address = listener.local_addr()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores.min(4)).enable_all().build()?;
    let (service, batcher, counts) = service(&args, name.clone(), token, &runtime)?;
    let limits = Limits {
        connections: args.max_connections,
        head: 32 << 10,
        idle: Duration::from_secs(60),
        stall: Duration::from_secs(30),
        ending: Duration::from_secs(30),
        keep_alive: true,
    };
    output::line(format!("{name} is served at http://{address}"))?;
    let ended = runtime.block_on(async {
        let stop = async {
            stop_signal().await;
            service.leave();
            tokio::select! { () = tokio::time::sleep(Duration::from_secs_f64(args.drain)) => {}, () = stop_signal() => {} }
            service.end();
        };
        Ok::<_, anyhow::Error>(http::serve(http::listener(listener)?, service.routes(), limits, stop).await)
    })?;
    if ended {
        batcher.close();
    } else {
        tracing::warn!("what was under way did not end within {} s", limits.ending.as_secs());
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    let (requests, samples) = counts.served();
    output::line(format!("served {requests} requests, {samples} samples"))?;
    Ok(())
}

/// What a file or directory is called, without its extension.
fn stem(path: &Path) -> anyhow::Result<String> {
    let whole = path.canonicalize().map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    // Every exporter's file is called so; the directory says more.
    match whole.parent().filter(|_| whole.is_file() && stem(&whole) == "model").map(stem) {
        Some(parent) if !parent.is_empty() => Ok(parent),
        _ => Ok(stem(&whole)),
    }
}

fn service(
    args: &Args,
    name: String,
    token: Option<String>,
    runtime: &Runtime,
) -> anyhow::Result<(Arc<Service>, Arc<Batcher>, Arc<Counts>)> {
    let took = Arc::<Durations>::default();
    let (model, manifest, mut ids) = open(args, took.clone(), runtime)?;
    let mut guard = None;
    if let Some(store) = ids.store.take() {
        let watched = Arc::new(Guard::new(store, runtime.handle().clone()));
        guard = Some(watched.clone());
        ids.store = Some(watched as Arc<dyn Store>);
    }
    let handle = Some(runtime.handle().clone());
    let session = Session::new(&model, Options { threads: args.threads, store: ids.store.clone(), runtime: handle, ..Options::default() })?;
    let interface = interface(&model, &session, name)?;
    let source = match &manifest {
        Some(m) => format!("deployment, plan {}", m.plan_id),
        None => "model file".into(),
    };
    let (servers, place) = match stores::chain(&args.stores, &args.servers)?.source {
        Source::Pservers(endpoints) => (endpoints, ""),
        #[cfg(feature = "redis")]
        Source::Redis(_) => (Vec::new(), "Redis"),
        Source::Memory | Source::Shards(_) => (Vec::new(), "this process"),
    };
    let about = about((&interface.name, VERSION), &source, manifest.as_ref(), &servers, place).to_string();
    let (start, plan) = (monitor::now(), manifest.map_or(String::new(), |m| m.plan_id));
    let counts = Arc::<Counts>::default();
    let batcher = Batcher::start(session, interface.counts_samples(), args.batches(), counts.clone())?;
    let service = Service::new(Parts {
        interface,
        batcher: batcher.clone(),
        counts: counts.clone(),
        limit: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        token,
        guard,
        picture: draw(&model, Form::Svg),
        about,
        more: Box::new(move |text| {
            *text = monitor::about("serve", 0, &plan, start);
            monitor::of_ids(text, "serve", &ids, &took);
        }),
    });
    Ok((service, batcher, counts))
}

fn open(args: &Args, took: Arc<Durations>, runtime: &Runtime) -> anyhow::Result<(Model, Option<Manifest>, Ids)> {
    if deploy::is_deployment(&args.model) {
        let (manifest, model) = deploy::open(&args.model)?;
        let ids = stores::open(&args.model, manifest.clone(), &args.stores, &args.servers, Some(took), runtime)?;
        return Ok((model, Some(manifest), ids));
    }
    stores::no_tables(&args.stores, &args.servers)?;
    Ok((formats::load(&args.model)?, None, Ids::default()))
}

/// The model in the protocol's words; its outputs as far as they are stated or inferred.
fn interface(model: &Model, session: &Session, name: String) -> anyhow::Result<Interface> {
    let mut inputs = Vec::new();
    for (name, ty, optional) in session.inputs() {
        let fits = match ty {
            None => true,
            Some(Type::Tensor { dtype, .. }) => dtype.is_none_or(|d| datatype(d).is_some()),
            Some(_) => false,
        };
        match ty {
            _ if fits => inputs.push(Port { name: name.to_owned(), ty: ty.cloned(), optional }),
            // Nobody can give it, and nobody has to.
            _ if optional => {}
            Some(ty) => return Err(exit_with(1, format!("input \"{name}\" is {ty}: the protocol has nothing for it"))),
            None => {}
        }
    }
    let port = |(name, ty): (&String, Option<Type>)| Port { name: name.clone(), ty, optional: false };
    let outputs = session.output_names().iter().zip(passes::output_types(model)).map(port).collect();
    Ok(Interface { name, version: VERSION.into(), inputs, outputs })
}
