//! `graphtool extract`

use super::save::{save, valid};
use super::{output, usage};
use crate::formats::onnx::write::{EXTERNAL_ABOVE, External};
use crate::ir::verify;
use crate::passes::{PassError, Size, extract};
use std::path::PathBuf;

/// Cut a part out of a model: what computes some of its values from others
///
/// Values are named as `dump` prints them. The part's inputs and outputs have the types that the model states or that follow
/// from it; functions that the part calls go along.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The model file
    model: PathBuf,
    /// The model file to write
    #[arg(short, long)]
    output: PathBuf,
    /// Values to cut at, separated by commas; without them, the model's own inputs
    #[arg(long, value_delimiter = ',', value_name = "VALUE,…")]
    inputs: Vec<String>,
    /// Values to give back, separated by commas
    #[arg(long, value_delimiter = ',', required = true, value_name = "VALUE,…")]
    outputs: Vec<String>,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let model = valid(&args.model)?;
    let part = extract(&model, &args.inputs, &args.outputs).map_err(|e| match e {
        PassError::Call(text) => usage(text),
        other => other.into(),
    })?;
    if let Some(fault) = verify(&part).first() {
        anyhow::bail!("the part is not valid: {fault}");
    }
    save(&part, &args.output, External::Keep(EXTERNAL_ABOVE))?;
    output::line(format!("{} of {} nodes: {}", Size::of(&part).nodes, Size::of(&model).nodes, args.output.display()))?;
    Ok(())
}
