//! `graphtool merge`

use super::usage;
use crate::deploy;
use std::path::PathBuf;

/// Put the original model together again from a deployment directory
#[derive(clap::Args)]
pub(super) struct Args {
    /// The deployment directory
    dir: PathBuf,
    /// The model file to write; external data goes beside it, with `.data` appended
    #[arg(short, long)]
    output: PathBuf,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.output.is_dir() {
        return Err(usage(format!("{} is a directory", args.output.display())));
    }
    Ok(deploy::merge(&args.dir, &args.output)?)
}
