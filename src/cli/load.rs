//! `graphtool load`

use super::chain::{Chain, Source};
use super::usage;
use std::path::PathBuf;

/// Fill a Redis Cluster, or one Redis server, with the rows of a deployment directory
///
/// For workers that take `--store redis+cluster://…` in place of pservers. Rows are kept under NAME, in a version of their own that
/// has the plan id of DIR: workers that run on another version do not notice. The version becomes the current one in one command
/// when it is whole, and older ones are removed; --keep-versions leaves some for workers that still run on them. A filling that was
/// stopped goes on where it was when the same command is given again; on a version that is whole it sees that all rows are there.
///
/// Needs a build with --features redis, and Redis 6 or later with room for all rows and a policy that evicts none.
#[derive(clap::Args)]
// A build without Redis reads the arguments only to refuse them.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
pub(super) struct Args {
    /// The deployment directory
    dir: PathBuf,
    /// redis[s][+cluster]://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/NAME][?ca=FILE&cert=FILE&key=FILE]
    ///
    /// rediss is within TLS, by the system's certificates or those of ca. NAME is what keys begin with [default: graphtool].
    /// GRAPHTOOL_STORE says it where a password is not to stand among the arguments.
    #[arg(long, value_name = "URL", env = super::store_args::STORE_ENV, hide_env = true, verbatim_doc_comment)]
    store: String,
    /// Versions before this one that stay
    #[arg(long, default_value_t = 0, value_name = "N")]
    keep_versions: usize,
    /// Seconds to wait for servers that are not there yet
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS", value_parser = super::store_args::seconds)]
    connect_timeout: f64,
    /// Seconds that a batch of rows may take, failovers included
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS", value_parser = super::store_args::seconds)]
    rpc_timeout: f64,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let chain = Chain::parse(&args.store).map_err(|e| usage(format!("--store: {e}")))?;
    match &chain.source {
        #[cfg(feature = "redis")]
        Source::Redis(url) if chain.wrappers.is_empty() => fill(&args, url),
        Source::Memory | Source::Pservers(_) | Source::Shards(_) => {
            Err(usage("--store: load fills redis:// and redis+cluster://, found another store"))
        }
        #[cfg(feature = "redis")]
        Source::Redis(_) => Err(usage("--store: load takes the address alone, found a chain of stores")),
    }
}

#[cfg(feature = "redis")]
fn fill(args: &Args, url: &crate::store::RedisUrl) -> anyhow::Result<()> {
    use super::{output, size};
    use crate::store::{LoadOptions, load_redis, read_manifest};
    use indicatif::{ProgressBar, ProgressStyle};
    use std::io::IsTerminal;
    use std::time::{Duration, Instant};
    let rows: u64 = read_manifest(&args.dir)?.tables.iter().map(|t| t.rows).sum();
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} rows  {per_sec}  {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(rows).with_style(style) } else { ProgressBar::hidden() };
    let options = LoadOptions {
        connect_timeout: Duration::from_secs_f64(args.connect_timeout),
        rpc_timeout: Duration::from_secs_f64(args.rpc_timeout),
        keep_versions: args.keep_versions,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let started = Instant::now();
    let loaded = runtime.block_on(load_redis(&args.dir, url, &options, &|n| bar.set_position(n)));
    bar.finish_and_clear();
    let loaded = loaded?;
    let (seconds, sent) = (started.elapsed().as_secs_f64(), loaded.rows - loaded.before);
    let size = size::print(loaded.bytes);
    output::line(format!("{} tables, {} rows ({size}) are in {url}; version {} is current", loaded.tables, loaded.rows, loaded.plan_id))?;
    output::line(format!("sent {sent} rows in {seconds:.1} s, {} were there", loaded.before))?;
    loaded.removed.iter().try_for_each(|plan| output::line(format!("removed version {plan}")))?;
    Ok(())
}
