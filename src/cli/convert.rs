//! `graphtool convert`

use super::save::{save, valid};
use super::{output, usage};
use crate::formats::onnx::write::{EXTERNAL_ABOVE, External};
use crate::ir::Model;
use crate::passes::{InferShapes, Pass, PassError, Report, StandardOps, UpgradeOpset};
use std::path::PathBuf;

/// Write a model as standard ONNX that other runtimes run
///
/// A PaddlePaddle program becomes ONNX ops; lookups by its rules become Gather with a mask. A model with ops that ONNX
/// does not have is refused, and they are named. With --opset, nodes are written as a later version of ONNX's ops has them
/// (bodies and functions too); one that cannot be is named, and nothing is written.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The model file, or the directory of a PaddlePaddle program
    model: PathBuf,
    /// The ONNX file to write; tensors that do not fit go beside it, with `.data` appended
    #[arg(short, long)]
    output: PathBuf,
    /// The version of ONNX's ops to write; not below the model's
    #[arg(long, value_name = "N")]
    opset: Option<i64>,
}

/// Nodes of a domain.
fn left(model: &Model, domain: &str) -> usize {
    let of = |g: &&crate::ir::Graph| g.ops().iter().filter(|&&id| g.node(id).op().is_some_and(|op| &*op.domain == domain)).count();
    model.graphs().iter().map(of).sum()
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let mut model = valid(&args.model)?;
    let mut report = Report::default();
    StandardOps.run(&mut model, &mut report)?;
    if left(&model, "graphtool") > 0 {
        // A table that is computed has no type until its shape is inferred.
        InferShapes.run(&mut model, &mut report)?;
        StandardOps.run(&mut model, &mut report)?;
    }
    if let Some(to) = args.opset {
        UpgradeOpset { to }.run(&mut model, &mut report).map_err(|e| match e {
            PassError::Call(text) if text.starts_with("node") => anyhow::anyhow!("{}: {text}", args.model.display()),
            PassError::Call(text) => usage(text),
            other => other.into(),
        })?;
    }
    let mut others: Vec<String> = Vec::new();
    for graph in model.graphs() {
        for &id in graph.ops() {
            let node = graph.node(id);
            if let Some(op) = node.op().filter(|op| matches!(&*op.domain, "graphtool" | "paddle")) {
                others.push(format!("\"{}\" ({op})", node.label()));
            }
        }
    }
    if let Some(first) = others.first() {
        anyhow::bail!("{}: {} nodes are not ONNX's, such as {first}", args.model.display(), others.len());
    }
    save(&model, &args.output, External::Above(EXTERNAL_ABOVE))?;
    output::line(format!("{} nodes: {}", model.graph.ops().len(), args.output.display()))?;
    Ok(())
}
