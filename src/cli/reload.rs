//! `graphtool reload`

use super::store_args::TlsArgs;
use super::{output, usage};
use crate::store::{ConnectOptions, read_manifest, reload_servers};
use std::path::PathBuf;
use std::time::Duration;

/// Let running pservers open their deployment directory anew
///
/// For after the directory was replaced, by `rewrite` or `reshard`, at the same path. Each pserver opens the directory that it was
/// started with, checks that it holds the plan that DIR holds here, and verifies its files (unless it was started with --verify
/// off). When all have done so they serve it, to connections that are made from then on; workers that are connected keep the
/// version they have. If a pserver cannot, none changes: all go on with what they have, and the exit code is 1.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The deployment directory, as it is now
    dir: PathBuf,
    /// Endpoints of the pservers, HOST:PORT separated by commas
    #[arg(long, value_delimiter = ',', alias = "pservers", required = true)]
    servers: Vec<String>,
    /// File with the secret that all processes of the job share
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Seconds that a pserver may take to open and verify its files
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.servers.iter().any(String::is_empty) {
        return Err(usage("--servers has an empty endpoint"));
    }
    let plan_id = read_manifest(&args.dir)?.plan_id;
    let token = args.token_file.as_deref().map(super::store_args::token).transpose()?;
    let rpc_timeout = Duration::from_secs(args.timeout.into());
    let connect_timeout = rpc_timeout.min(Duration::from_secs(5));
    let options = ConnectOptions { connect_timeout, rpc_timeout, token, tls: args.tls.load()?, ..ConnectOptions::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut seen = std::collections::HashSet::new();
    let servers: Vec<String> = args.servers.into_iter().filter(|s| seen.insert(s.clone())).collect();
    runtime.block_on(reload_servers(&servers, &plan_id, &options))?;
    Ok(servers.iter().try_for_each(|endpoint| output::line(format!("pserver {endpoint} serves plan id {plan_id}")))?)
}
