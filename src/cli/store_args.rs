//! What a command says of the store behind lookups: where rows come from, how long to wait for them, what keeps strangers out.

use super::size;
use crate::plan::{Absent, Manifest};
use crate::store::{ConnectOptions, Tls, Verify};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The variable that stands for `--store`.
pub(super) const STORE_ENV: &str = "GRAPHTOOL_STORE";

/// What every command takes that looks rows up.
#[derive(clap::Args, Clone)]
pub(super) struct StoreArgs {
    /// Seconds to wait for peers that are not there yet
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS", value_parser = seconds)]
    pub(super) connect_timeout: f64,
    /// Seconds that a lookup may take, reconnects included
    ///
    /// A worker that gives no sign of life for this time is lost to the others (for 2.4 seconds at least, 12 at most).
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS", value_parser = seconds)]
    pub(super) rpc_timeout: f64,
    /// Largest message on the wire; larger requests are split
    #[arg(long, default_value = "64MiB", value_parser = size::parse, value_name = "SIZE")]
    pub(super) max_frame: u64,
    /// What an id gives that a keyed table does not hold [default: as the deployment says]
    #[arg(long, value_parser = ["zero", "error", "default"], value_name = "POLICY")]
    pub(super) on_absent: Option<String>,
    /// What a lookup gives whose server is not to be reached within --rpc-timeout: an error, or default rows (zeros where a table
    /// has none), which are counted
    #[arg(long, default_value = "error", value_parser = ["error", "default"], value_name = "POLICY")]
    pub(super) on_unavailable: String,
    /// Where rows come from: a source, and before it what stands in its way, separated by commas
    ///
    /// shards: the deployment's own shards, mapped (shards://DIR: those of the same plan elsewhere). memory: the same, read into memory.
    /// pserver://HOST:PORT,HOST:PORT: pservers that are running (--servers is short for it).
    /// redis+cluster://HOST:PORT,HOST:PORT/NAME: a Redis Cluster that `graphtool load` has filled; redis:// is one server, rediss
    /// is within TLS, USER:PASSWORD@ stands before the hosts (in a build with --features redis).
    /// Before them: cache:SIZE (--cache is short for it), dedup (each id of a numbered table once), default (as
    /// --on-unavailable default). The first is asked first: cache:256MiB,redis+cluster://h1:7000,h2:7000/ads
    /// GRAPHTOOL_STORE says it where a password is not to stand among the arguments.
    #[arg(long, value_name = "CHAIN", env = STORE_ENV, hide_env = true, verbatim_doc_comment)]
    pub(super) store: Option<String>,
    /// Memory of each process that looks rows up for those that are asked for often, such as 256MiB; the answers are the same [default: none]
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    pub(super) cache: Option<u64>,
    /// Reach pservers of this machine over TCP too; a pserver: take no other connections
    ///
    /// Without it, and without TLS, workers of this machine go by a Unix socket beside the port and share memory with the pserver.
    #[arg(long)]
    pub(super) tcp_only: bool,
    /// When shards are compared with the checksums of the manifest: before they are used, or meanwhile, and every lookup is
    /// refused from the first difference on; auto is eager for shards up to 64 MiB
    #[arg(long, default_value = "auto", value_parser = ["auto", "eager", "background", "off"], value_name = "WHEN")]
    pub(super) verify: String,
    /// File with the secret that all processes of the job share
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
}

impl StoreArgs {
    pub(super) fn token(&self) -> anyhow::Result<Option<String>> {
        self.token_file.as_deref().map(token).transpose()
    }

    pub(super) fn connect_options(&self) -> anyhow::Result<ConnectOptions> {
        Ok(ConnectOptions {
            connect_timeout: Duration::from_secs_f64(self.connect_timeout),
            rpc_timeout: Duration::from_secs_f64(self.rpc_timeout),
            max_frame: self.max_frame as usize,
            token: self.token()?,
            tls: self.tls.load()?,
            local: !self.tcp_only,
            ..ConnectOptions::default()
        })
    }

    /// When files are verified.
    pub(super) fn verify(&self) -> Verify {
        match self.verify.as_str() {
            "eager" => Verify::Eager,
            "background" => Verify::Background,
            "off" => Verify::Off,
            _ => Verify::Auto,
        }
    }

    /// Puts the policy for absent ids into a manifest.
    pub(super) fn policies(&self, manifest: &mut Manifest) {
        let policy = match self.on_absent.as_deref() {
            None => return,
            Some("zero") => Absent::Zero,
            Some("default") => Absent::Default,
            Some(_) => Absent::Error,
        };
        manifest.tables.iter_mut().filter(|t| t.keyed).for_each(|t| t.absent = policy);
    }
}

/// The secret in a file.
pub(super) fn token(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
    let token = text.trim().to_owned();
    if token.is_empty() { Err(anyhow::anyhow!("{}: it is empty", file.display())) } else { Ok(token) }
}

/// The certificates of a process.
#[derive(clap::Args, Clone)]
pub(super) struct TlsArgs {
    /// Certificate of this process, PEM: connections between the processes of the job are within TLS, both sides known
    ///
    /// It is for the names and addresses of the endpoints at which this process listens, and may be one for all processes.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Certificates of the CA that has signed those of all processes, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    pub(super) fn given(&self) -> bool {
        self.tls_cert.is_some()
    }

    pub(super) fn load(&self) -> anyhow::Result<Option<Tls>> {
        match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (Some(cert), Some(key), Some(ca)) => Ok(Some(Tls::load(cert, key, ca).map_err(anyhow::Error::msg)?)),
            _ => Ok(None),
        }
    }

    /// What is in the files: certificate, key, CA.
    pub(super) fn contents(&self) -> anyhow::Result<Option<Vec<Vec<u8>>>> {
        if self.load()?.is_none() {
            return Ok(None);
        }
        let read = |path: &PathBuf| std::fs::read(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()));
        self.flags().map(|(_, path)| read(path)).collect::<Result<_, _>>().map(Some)
    }

    /// The flags again, for a child.
    pub(super) fn flags(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key), ("--tls-ca", &self.tls_ca)]
            .into_iter()
            .filter_map(|(name, path)| Some((name, path.as_ref()?)))
    }
}

pub(super) fn seconds(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|s| *s > 0.0 && *s < 1e9).ok_or_else(|| format!("\"{text}\" is no number of seconds above 0"))
}
