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
    /// Of tables that are stored narrower than they were, write the values that lookups give; the original ones are gone
    #[arg(long)]
    narrowed: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.output.is_dir() {
        return Err(usage(format!("{} is a directory", args.output.display())));
    }
    let merge = if args.narrowed { deploy::merge_narrowed } else { deploy::merge };
    Ok(merge(&args.dir, &args.output)?)
}
