//! `graphtool view`

use super::{output, usage};
use crate::ir::Model;
use crate::view::{Form, draw, draw_changes};
use crate::{deploy, formats};
use std::path::{Path, PathBuf};

/// Draw a model, or what differs between two
///
/// Nodes stand in layers below what they read, with bodies of If, Loop and Scan inside their boxes; remote lookups and
/// tables stand out, small constants are left out. The output's extension says how the picture is written: `.svg`, `.html`
/// (to move, to search in, with details on a click; it needs no network) or `.dot` (for Graphviz).
///
/// Given two models, nodes are aligned as `diff` does it, and what was added, removed and changed is marked.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The model (or deployment directory: its rewritten graph); of two, the old one
    model: PathBuf,
    /// The new model, to draw what differs
    new: Option<PathBuf>,
    /// The file to write: .svg, .html or .dot
    #[arg(short, long)]
    output: PathBuf,
    /// Draw what differs from this older model
    #[arg(long, value_name = "OLD", conflicts_with = "new")]
    diff: Option<PathBuf>,
}

pub(super) fn load(path: &Path) -> anyhow::Result<Model> {
    let file = if deploy::is_deployment(path) { path.join(deploy::WORKER) } else { path.to_owned() };
    Ok(formats::load(&file)?)
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let form = match args.output.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("svg") => Form::Svg,
        Some("html" | "htm") => Form::Html,
        Some("dot" | "gv") => Form::Dot,
        _ => return Err(usage(format!("{}: expected a file that ends in .svg, .html or .dot", args.output.display()))),
    };
    let (old, new) = match (&args.new, &args.diff) {
        (Some(new), _) => (Some(&args.model), new),
        (None, Some(old)) => (Some(old), &args.model),
        (None, None) => (None, &args.model),
    };
    let model = load(new)?;
    let picture = match old {
        Some(old) => draw_changes(&load(old)?, &model, form),
        None => draw(&model, form),
    };
    crate::data::write_file(&args.output, |out| {
        use std::io::Write;
        out.write_all(picture.as_bytes()).map_err(crate::data::DataError::io(&args.output))
    })?;
    let nodes: usize = model.graphs().iter().map(|g| g.ops().len()).sum();
    output::line(format!("{nodes} nodes, {}: {}", super::size::print(picture.len() as u64), args.output.display()))?;
    Ok(())
}
