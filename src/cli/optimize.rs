//! `graphtool optimize`

use super::{output, usage};
use crate::data::TempPath;
use crate::formats::onnx::write::{EXTERNAL_ABOVE, External, to_file};
use crate::passes::{Changed, Report, parse_passes};
use std::path::PathBuf;

/// Run graph passes over a model
#[derive(clap::Args)]
pub(super) struct Args {
    /// The model file
    model: PathBuf,
    /// The model file to write
    #[arg(short, long)]
    output: PathBuf,
    /// Passes in their order, separated by commas (see `graphtool passes`)
    #[arg(long, default_value = "fold-constants,dead-code")]
    passes: String,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let pipeline = parse_passes(&args.passes).map_err(usage)?;
    let mut model = crate::formats::load(&args.model)?;
    let before = model.graph.ops().len();
    let mut report = Report::default();
    let changed = pipeline.run(&mut model, &mut report)?;
    let name =
        args.output.file_name().ok_or_else(|| usage(format!("{} has no name", args.output.display())))?.to_string_lossy().into_owned();
    // The model names its data file by its final name, so both are written into a directory of their own first.
    let temp = TempPath::beside(&args.output)?;
    let dir = temp.path().with_extension("dir");
    std::fs::create_dir(&dir)?;
    let written = to_file(&model, &dir.join(&name), &format!("{name}.data"), External::Keep(EXTERNAL_ABOVE));
    let done = written.map_err(anyhow::Error::from).and_then(|bytes| {
        if bytes > 0 {
            std::fs::rename(dir.join(format!("{name}.data")), args.output.with_file_name(format!("{name}.data")))?;
        }
        Ok(std::fs::rename(dir.join(&name), &args.output)?)
    });
    let _ = std::fs::remove_dir_all(&dir);
    done?;
    let what = if changed == Changed::Yes { report.changed.join(", ") } else { "nothing changed".into() };
    output::line(format!("{before} nodes -> {} nodes ({what})", model.graph.ops().len()))?;
    Ok(())
}
