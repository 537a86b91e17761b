//! `graphtool lookup`

use super::job::JobArgs;
use super::run::lookups;
use std::path::PathBuf;

/// Fetch the rows of all lookups of a model, for a runtime that runs the rest
///
/// For deployments that `graphtool rewrite --dense-io` wrote. Reads the model's inputs as `run` does and writes, for each
/// lookup, the rows under the name of the input of dense.onnx that takes them: together with the model's other inputs they
/// are what ONNX Runtime or another runtime feeds to dense.onnx. Rows come from the shards in DIR, or from pservers.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The deployment directory
    dir: PathBuf,
    /// Endpoints of the pservers, HOST:PORT separated by commas [default: the shards in DIR]
    #[arg(long, value_delimiter = ',', alias = "pservers")]
    servers: Vec<String>,
    #[command(flatten)]
    job: JobArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    lookups(args.dir, args.job, args.servers)
}
