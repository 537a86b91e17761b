//! `graphtool convert`

use super::{output, usage};
use crate::formats::onnx::write::{EXTERNAL_ABOVE, External, to_file};
use crate::ir::Model;
use crate::passes::{InferShapes, Pass, Report, StandardOps};
use std::path::PathBuf;

/// Write a model as standard ONNX that other runtimes run
///
/// A PaddlePaddle program becomes ONNX ops; lookups by its rules become Gather with a mask. A model with ops that ONNX
/// does not have is refused, and they are named.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The model file, or the directory of a PaddlePaddle program
    model: PathBuf,
    /// The ONNX file to write; tensors that do not fit go beside it, with `.data` appended
    #[arg(short, long)]
    output: PathBuf,
}

/// Nodes of a domain.
fn left(model: &Model, domain: &str) -> usize {
    let of = |g: &&crate::ir::Graph| g.ops().iter().filter(|&&id| g.node(id).op().is_some_and(|op| &*op.domain == domain)).count();
    model.graphs().iter().map(of).sum()
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let name = args.output.file_name().ok_or_else(|| usage(format!("{} has no name", args.output.display())))?;
    let name = name.to_string_lossy().into_owned();
    let mut model = crate::formats::load(&args.model)?;
    let mut report = Report::default();
    StandardOps.run(&mut model, &mut report)?;
    if left(&model, "graphtool") > 0 {
        // A table that is computed has no type until its shape is inferred.
        InferShapes.run(&mut model, &mut report)?;
        StandardOps.run(&mut model, &mut report)?;
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
    // The model names its data file by the final name, so both are written in a directory of their own.
    let dir = args.output.with_file_name(format!(".{name}.tmp-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let data = format!("{name}.data");
    let written = to_file(&model, &dir.join(&name), &data, External::Above(EXTERNAL_ABOVE));
    let done = written.map_err(anyhow::Error::from).and_then(|bytes| {
        if bytes > 0 {
            std::fs::rename(dir.join(&data), args.output.with_file_name(&data))?;
        }
        Ok(std::fs::rename(dir.join(&name), &args.output)?)
    });
    let _ = std::fs::remove_dir_all(&dir);
    done?;
    output::line(format!("{} nodes: {}", model.graph.ops().len(), args.output.display()))?;
    Ok(())
}
