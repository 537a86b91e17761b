//! `graphtool k8s`

use super::job::JobArgs;
use super::store_args::STORE_ENV;
use super::{output, size, usage};
use crate::deploy::k8s::{self, Claim, Cluster, Component, Process, Secret, TLS, TOKEN};
use crate::{data, deploy};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component as Step, Path, PathBuf};

/// Write Kubernetes objects that run a job: pservers as a StatefulSet, workers as an Indexed Job
///
/// One file of YAML for `kubectl apply -f`: headless Services, a StatefulSet of pservers, a Job of workers, Secrets where a token
/// or certificates are given as files, and a PodDisruptionBudget where shards have replicas. For Kubernetes 1.31 and later. The
/// pservers go on when the Job is done; `kubectl delete -f` ends all. A Job cannot be changed: one of before is deleted first.
///
/// Paths of the deployment, of samples and of outputs are paths in the pods, on volumes (--claim) or in the image. An output, with
/// the batches that are put aside beside it (OUTPUT.parts), is on a claim that all workers can write: ReadWriteMany where they
/// are on several nodes.
///
/// Memory of a pserver is what the fullest one holds of the shards, the rows under way (--max-in-flight) and 256 MiB; that of a
/// worker its parameters, all values of a batch, --cache and 256 MiB. Request and limit are the same.
///
/// A pod that is replaced has the same name and number. Workers wait for a pserver that comes back as long as --rpc-timeout, and
/// for another worker as long as --connect-timeout; one that is started again (each up to --max-restart times) goes on behind
/// its last finished batch. Where a job of other data or another model has left batches beside the same output, workers say so
/// and end: remove OUTPUT.parts, or the line --resume.
///
/// Certificates are for the names of the pods, NAME-pserver-0.NAME-pserver … and NAME-worker-0.NAME-worker …, each up to the
/// number of pods; with --namespace NS for NAME-pserver-0.NAME-pserver.NS.svc …, so that *.NAME-pserver.NS.svc and
/// *.NAME-worker.NS.svc will do.
#[derive(clap::Args)]
#[command(
    mut_arg("output", |a| a.short(None).help("Where outputs go, in the pods: .npz, .csv, .parquet, or a folder, on a claim")),
    mut_arg("connect_timeout", |a| a.default_value("600")),
    mut_arg("rpc_timeout", |a| a.default_value("120")),
    mut_arg("threads", |a| a.help("Threads for kernels [default: one per core of --cpu]")),
    mut_arg("token_file", |a| a.help("File with the secret that all processes of the job share: it is written into a Secret, NAME-token")),
    mut_arg("tls_cert", |a| a.help("Certificate of all pods, PEM: written into a Secret, NAME-tls, with --tls-key and --tls-ca")),
)]
pub(super) struct Args {
    /// The deployment directory, as it is here
    dir: PathBuf,
    /// Number of pservers
    #[arg(long, alias = "server_num", value_name = "S", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    servers: u32,
    /// Number of workers
    #[arg(long, alias = "worker_num", value_name = "W", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    workers: u32,
    /// The image of all pods, with graphtool in its PATH
    #[arg(long)]
    image: String,
    /// Where the objects go; - is stdout. A file that holds secrets is for its owner alone
    #[arg(short = 'o', long = "manifests", default_value = "-", value_name = "FILE")]
    manifests: PathBuf,
    /// What the names of all objects begin with [default: DIR's name, without its extension]
    #[arg(long)]
    name: Option<String>,
    /// The namespace of all objects [default: kubectl's own]
    #[arg(long)]
    namespace: Option<String>,
    /// A PersistentVolumeClaim that all pods see, at MOUNT or /data (may be given several times)
    #[arg(long = "claim", value_name = "PVC[:MOUNT]", value_parser = claim)]
    claims: Vec<Claim>,
    /// DIR's path in the pods [default: its name, on the first claim]
    #[arg(long, value_name = "PATH")]
    dir_in_pod: Option<String>,
    /// A Secret that is there already and has the secret under the key `token`
    #[arg(long, value_name = "SECRET", conflicts_with = "token_file", value_parser = existing)]
    token_secret: Option<String>,
    /// A Secret that is there already and has the keys tls.crt, tls.key and ca.crt, as cert-manager writes them
    #[arg(long, value_name = "SECRET", conflicts_with = "tls_cert", value_parser = existing)]
    tls_secret: Option<String>,
    /// Cores of each worker, and of each pserver unless --server-cpu says otherwise: 2, 0.5, 500m
    #[arg(long, default_value = "1", value_name = "CORES", value_parser = millicores)]
    cpu: u64,
    /// Cores of each pserver
    #[arg(long, value_name = "CORES", value_parser = millicores)]
    server_cpu: Option<u64>,
    /// Memory of each pserver [default: from the shards]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    server_memory: Option<u64>,
    /// Memory of each worker [default: from the graph]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    worker_memory: Option<u64>,
    /// Bytes of rows that a pserver has under way to all its clients at once; requests wait for their share
    #[arg(long, default_value = "512MiB", value_parser = size::parse, value_name = "SIZE")]
    max_in_flight: u64,
    /// How often each worker is started again; a node that is drained does not count
    #[arg(long, default_value_t = 3, value_name = "N")]
    max_restart: u16,
    /// User and group of the processes, not root
    #[arg(long, default_value_t = 65_532, value_name = "UID", value_parser = clap::value_parser!(u32).range(1..=0x7fff_ffff))]
    user: u32,
    #[command(flatten)]
    job: JobArgs,
}

fn claim(text: &str) -> Result<Claim, String> {
    let (name, mount) = text.split_once(':').unwrap_or((text, "/data"));
    k8s::subdomain(name)?;
    if mount == "/" || !is_absolute(Path::new(mount)) || mount.contains(':') {
        return Err(format!("mount \"{mount}\": expected a path from / below it, without .. and :"));
    }
    Ok(Claim { name: name.into(), mount: mount.trim_end_matches('/').into(), written: false })
}

fn existing(text: &str) -> Result<String, String> {
    k8s::subdomain(text).map(|()| text.to_owned())
}

/// Thousandths of a core.
fn millicores(text: &str) -> Result<u64, String> {
    let millis = match text.strip_suffix('m') {
        Some(m) => m.parse::<u32>().ok().map(f64::from),
        None => text.parse::<f64>().ok().map(|c| c * 1000.0),
    };
    let fits = |m: &f64| *m >= 1.0 && *m <= 1e6 && (*m - m.round()).abs() < 1e-6;
    millis.filter(fits).map(|m| m.round() as u64).ok_or_else(|| format!("\"{text}\" is no number of cores, such as 2, 0.5 or 500m"))
}

/// Whether a path is the same whatever the working directory is, and leads where it says.
fn is_absolute(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|c| matches!(c, Step::RootDir | Step::Normal(_)))
}

impl Args {
    /// The name of all objects.
    fn name(&self, dir: &Path) -> anyhow::Result<String> {
        let stem = || dir.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = self.name.clone().unwrap_or_else(stem);
        k8s::check_name(&name).map_err(|e| usage(format!("--name {e}")))?;
        Ok(name)
    }

    fn dir_in_pod(&self, dir: &Path) -> anyhow::Result<String> {
        let name = || dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match (&self.dir_in_pod, self.claims.first()) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(claim)) => Ok(format!("{}/{}", claim.mount, name())),
            (None, None) => Err(usage("where is DIR in the pods? give --claim, or --dir-in-pod of an image that holds it")),
        }
    }

    /// The volumes, of which workers write those that outputs are on.
    fn claims(&self) -> anyhow::Result<Vec<Claim>> {
        let mut claims = self.claims.clone();
        for (i, c) in claims.iter().enumerate() {
            if let Some(other) = claims[..i].iter().find(|o| o.mount == c.mount) {
                return Err(usage(format!("--claim {}: {} is at {} already", c.name, other.name, c.mount)));
            }
        }
        let outputs = [("--output", &self.job.output), ("--metrics-out", &self.job.metrics_out)];
        for (flag, path) in outputs.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?))) {
            // The innermost.
            let on = claims.iter_mut().filter(|c| path.starts_with(&c.mount) && *path != Path::new(&c.mount)).max_by_key(|c| c.mount.len());
            let Some(claim) = on else {
                return Err(usage(format!("{flag} {}: it is on no volume that outlives its pod; give --claim PVC:MOUNT", path.display())));
            };
            claim.written = true;
        }
        Ok(claims)
    }

    fn check_paths(&self, dir: &str) -> anyhow::Result<()> {
        if self.job.input.is_empty() {
            return Err(usage("--input is missing"));
        }
        let own = PathBuf::from(dir);
        let given = self.job.input.iter().map(|p| ("--input", p));
        let outputs = [("--output", &self.job.output), ("--metrics-out", &self.job.metrics_out)];
        let outputs = outputs.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?)));
        match given.chain(outputs).chain([("--dir-in-pod", &own)]).find(|(_, p)| !is_absolute(p)) {
            None => Ok(()),
            Some((flag, path)) => Err(usage(format!("{flag} {}: expected a path in the pods, from / and without ..", path.display()))),
        }
    }

    fn secrets(&self) -> anyhow::Result<(Option<Secret>, Option<Secret>)> {
        let token = match (&self.token_secret, &self.job.stores.token_file) {
            (Some(name), _) => Some(Secret::Existing(name.clone())),
            (None, Some(_)) => self.job.stores.token()?.map(|token| Secret::Content(vec![(TOKEN, token.into_bytes())])),
            (None, None) => None,
        };
        let tls = match &self.tls_secret {
            Some(name) => Some(Secret::Existing(name.clone())),
            None => self.job.stores.tls.contents()?.map(|files| Secret::Content(TLS.into_iter().zip(files).collect())),
        };
        if token.is_none() && !self.job.insecure {
            let what = "pods listen on addresses that are not loopback";
            return Err(usage(match tls {
                None => format!("{what}: give --token-file, --token-secret, --tls-cert or --tls-secret, or --insecure to serve anybody"),
                // As `run` has it.
                Some(_) => {
                    format!("{what}, and metrics are plain HTTP: give --token-file or --token-secret, or --insecure to serve anybody")
                }
            }));
        }
        Ok((token, tls))
    }

    /// What a process of either kind is told.
    fn process_args(&self, component: Component, dir: &str, millicores: u64) -> Vec<String> {
        let worker = component == Component::Worker;
        let threads = self.job.threads.unwrap_or(millicores.div_ceil(1000) as usize);
        let mut args = vec!["run".to_owned(), dir.to_owned(), format!("--threads={threads}")];
        args.extend(self.job.flags(worker));
        if !worker {
            args.push(format!("--max-in-flight={}", self.max_in_flight));
            return args;
        }
        if self.job.output.is_some() && !self.job.resume {
            // A pod does not know whether it is the first of its number.
            args.push("--resume".into());
        }
        args.push("--rejoin".into());
        args
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if !deploy::is_deployment(&args.dir) {
        anyhow::bail!("{}: pods need a deployment directory; make one by `graphtool rewrite`", args.dir.display());
    }
    let dir = args.dir.canonicalize().map_err(|e| anyhow::anyhow!("{}: {e}", args.dir.display()))?;
    let name = args.name(&dir)?;
    if let Some(namespace) = &args.namespace {
        k8s::label(namespace, 63).map_err(|e| usage(format!("--namespace {e}")))?;
    }
    if args.job.resume && args.job.output.is_none() {
        return Err(usage("--resume needs --output: what was put aside is beside it"));
    }
    if args.job.stores.store.is_some() {
        return Err(usage(format!("workers in pods ask the pservers beside them: give no --store, and unset {STORE_ENV}")));
    }
    let dir_in_pod = args.dir_in_pod(&dir)?;
    args.check_paths(&dir_in_pod)?;
    let claims = args.claims()?;
    let (token, tls) = args.secrets()?;
    let (manifest, model) = deploy::open(&dir)?;
    let (servers, workers) = (args.servers as usize, args.workers as usize);
    k8s::servers_fit(&manifest, servers).map_err(usage)?;
    let server_cpu = args.server_cpu.unwrap_or(args.cpu);
    let server_memory = args.server_memory.unwrap_or_else(|| k8s::server_bytes(&manifest, servers, args.max_in_flight));
    let (worker_memory, unknown) = k8s::worker_bytes(&model, args.job.batch_size, args.job.prefetch);
    let worker_memory = worker_memory.saturating_add(args.job.stores.cache.unwrap_or(0));
    if unknown > 0 && args.worker_memory.is_none() {
        tracing::warn!("dims of {unknown} nodes are not known, so the memory of workers does not count them; --worker-memory says it");
    }
    let process = |component, count, memory, millicores| {
        let args = args.process_args(component, &dir_in_pod, millicores);
        Process { count, args, memory, millicores }
    };
    let cluster = Cluster {
        name,
        namespace: args.namespace.clone(),
        image: args.image.clone(),
        user: args.user,
        plan_id: manifest.plan_id.clone(),
        replicas: manifest.replicas as usize,
        claims,
        token,
        tls,
        insecure: args.job.insecure,
        restarts: args.max_restart.into(),
        pservers: process(Component::Pserver, servers, server_memory, server_cpu),
        workers: process(Component::Worker, workers, args.worker_memory.unwrap_or(worker_memory), args.cpu),
    };
    cluster.check_lists().map_err(usage)?;
    write(&args.manifests, &cluster)
}

fn write(path: &Path, cluster: &Cluster) -> anyhow::Result<()> {
    let text = k8s::print(&k8s::objects(cluster)).map_err(anyhow::Error::msg)?;
    if path == Path::new("-") {
        return Ok(output::line(text.trim_end())?);
    }
    let secret = [&cluster.token, &cluster.tls].into_iter().any(|s| matches!(s, Some(Secret::Content(_))));
    data::write_file(path, |f| {
        if secret {
            f.file().set_permissions(PermissionsExt::from_mode(0o600)).map_err(data::DataError::io(path))?;
        }
        f.write_all(text.as_bytes()).map_err(data::DataError::io(path))
    })?;
    let (p, w) = (&cluster.pservers, &cluster.workers);
    let memory = |bytes| size::print(bytes);
    output::line(format!(
        "{}: {} pservers of {} each, {} workers of {} each",
        path.display(),
        p.count,
        memory(p.memory),
        w.count,
        memory(w.memory)
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_and_claims_are_parsed() {
        let cores = ["2", "0.5", "500m", "1.25", "1m"].map(|t| millicores(t).unwrap());
        assert_eq!(cores, [2000, 500, 500, 1250, 1]);
        for wrong in ["", "0", "-1", "x", "0.0001", "1.2m", "nan", "inf", "1e9", "m"] {
            assert!(millicores(wrong).unwrap_err().contains("is no number of cores"), "{wrong}");
        }
        let parsed = |text: &str| claim(text).map(|c| (c.name, c.mount));
        assert_eq!(parsed("models"), Ok(("models".into(), "/data".into())));
        assert_eq!(parsed("a.b:/x/y/"), Ok(("a.b".into(), "/x/y".into())));
        for wrong in ["", "A", "a:", "a:x", "a:/", "a:/x/../y", "a:/x:ro"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
