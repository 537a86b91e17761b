//! `graphtool dump`

use super::output;
use crate::{deploy, formats, ir};
use std::path::PathBuf;

/// Print the canonical text form of a model (of the rewritten one, for a deployment directory)
#[derive(clap::Args)]
pub(super) struct Args {
    /// A model file, or a deployment directory
    model: PathBuf,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let path = if deploy::is_deployment(&args.model) { args.model.join(deploy::WORKER) } else { args.model };
    let text = ir::print_model(&formats::load(&path)?);
    output::line(text.trim_end())?;
    Ok(())
}
