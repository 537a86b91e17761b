//! `graphtool optimize`

use super::save::{save, valid};
use super::{output, size, usage};
use crate::formats::onnx::write::{EXTERNAL_ABOVE, External};
use crate::ir::{Kind, NodeId};
use crate::passes::{Changed, PassError, Report, Size, Step, optimize, parse_passes};
use std::path::PathBuf;

/// A protobuf message ends at 2 GiB; the rest of the model needs some of it.
const MOST_INSIDE: u64 = (2 << 30) - (16 << 20);

/// Make a model smaller and faster, with the same answers
///
/// Without --passes, runs passes that simplify until nothing changes, then those that fuse as well (`graphtool passes` lists
/// both). What fuses may round otherwise, as another order of sums does; all else keeps every bit. Fused ops are ONNX's where
/// the model's opset has them, else ONNX Runtime's (domain com.microsoft). Prints what each pass did; Constant nodes are not
/// counted.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The model file, or the directory of a PaddlePaddle program
    model: PathBuf,
    /// The model file to write
    #[arg(short, long)]
    output: PathBuf,
    /// These passes alone, once each in this order, separated by commas
    #[arg(long, conflicts_with = "skip")]
    passes: Option<String>,
    /// All but these passes, separated by commas
    #[arg(long, default_value = "")]
    skip: String,
    /// Which constants go to a data file beside the model: `keep` those that were in one, `none`, or those of at least a
    /// SIZE such as 64KiB
    #[arg(long, value_name = "keep|none|SIZE", default_value = "keep", value_parser = external)]
    external: External,
}

fn external(text: &str) -> Result<External, String> {
    match text {
        "keep" => Ok(External::Keep(EXTERNAL_ABOVE)),
        "none" => Ok(External::Above(u64::MAX)),
        size => size::parse(size).map(External::Each).map_err(|e| format!("expected keep, none or a size: {e}")),
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let named = args.passes.as_deref().map(parse_passes).transpose().map_err(usage)?;
    let mut model = valid(&args.model)?;
    let before = Size::of(&model);
    let mut report = Report::default();
    let changed = match named {
        Some(pipeline) => pipeline.run(&mut model, &mut report)?,
        None => optimize(&mut model, &args.skip, &mut report).map_err(|e| match e {
            PassError::Call(text) => usage(text),
            other => other.into(),
        })?,
    };
    // Before version 4 of the format each initializer had to be an input too.
    let own = |id: &NodeId| !matches!(model.graph.node(*id).kind, Kind::Input(_));
    if model.ir_version < 4 && model.graph.params().iter().any(own) {
        model.ir_version = 4;
    }
    let bytes: u64 = model
        .graphs()
        .iter()
        .flat_map(|g| g.params().iter().filter_map(|&p| g.node(p).constant()?.tensor.bytes()))
        .map(|b| b.len() as u64)
        .sum();
    if args.external == External::Above(u64::MAX) && bytes > MOST_INSIDE {
        return Err(usage(format!(
            "{} of constants do not fit a file of protobuf's; let --external be keep or a size",
            size::print(bytes)
        )));
    }
    save(&model, &args.output, args.external)?;
    let (after, unchanged) = (Size::of(&model), if changed == Changed::No { ", nothing changed" } else { "" });
    output::line(format!(
        "{} nodes -> {}, {} initializers -> {}{unchanged}",
        before.nodes, after.nodes, before.initializers, after.initializers
    ))?;
    report.steps.iter().try_for_each(|s| output::line(format!("  {:<32}{}", s.pass, what(s))))?;
    report.remarks.iter().try_for_each(|(pass, text)| output::line(format!("  {pass}: {text}")))?;
    Ok(())
}

/// What a pass added and took away.
fn what(step: &Step) -> String {
    let counts = [(step.nodes, "node"), (step.initializers, "initializer")];
    let parts: Vec<String> = counts
        .into_iter()
        .filter(|(n, _)| *n != 0)
        .map(|(n, word)| format!("{n:+} {word}{}", if n.abs() == 1 { "" } else { "s" }))
        .collect();
    if parts.is_empty() { "changed operands".into() } else { parts.join(", ") }
}
