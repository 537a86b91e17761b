//! `graphtool diff`

use super::{exit_with, output, view};
use crate::view::changes::{Difference, differences};
use std::path::PathBuf;

/// Show the structural difference of two models: interface, parameters by value, nodes and attributes
///
/// Nodes are aligned by what they compute, then by name, then by their neighbours; not by their order. Nodes and constants
/// that are the same under other names are no differences; --names lists them. Ends with exit code 1 where the models
/// differ.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The old model (or deployment directory: its rewritten graph)
    old: PathBuf,
    /// The new model
    new: PathBuf,
    /// List what is the same under another name too
    #[arg(long)]
    names: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn change(d: &Difference) -> &'static str {
    match (&d.old, &d.new) {
        (None, _) => "added",
        (_, None) => "removed",
        _ => "changed",
    }
}

fn print(d: &Difference) -> Result<(), output::Stdout> {
    output::line(format!("{} {} {}", change(d), d.kind, d.name))?;
    // What changed says it better than both texts do.
    if !d.changes.is_empty() {
        return d.changes.iter().try_for_each(|c| output::line(format!("    {c}")));
    }
    for (mark, text) in [('-', &d.old), ('+', &d.new)] {
        text.as_ref().map_or(Ok(()), |t| t.lines().try_for_each(|l| output::line(format!("  {mark} {l}"))))?;
    }
    Ok(())
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let found = differences(&view::load(&args.old)?, &view::load(&args.new)?);
    if args.json {
        let one = |d: &Difference| serde_json::json!({"change": change(d), "kind": d.kind, "name": d.name, "old": d.old, "new": d.new, "changes": d.changes});
        let renamed: Vec<_> = found.renamed.iter().map(|(a, b)| serde_json::json!({"old": a, "new": b})).collect();
        let list: Vec<_> = found.list.iter().map(one).collect();
        output::line(serde_json::to_string_pretty(&serde_json::json!({"differences": list, "renamed": renamed}))?)?;
    } else {
        found.list.iter().try_for_each(print)?;
        if args.names {
            found.renamed.iter().try_for_each(|(a, b)| output::line(format!("renamed {a} to {b}")))?;
        } else if !found.renamed.is_empty() {
            output::line(format!("{} nodes and constants are the same under other names (--names lists them)", found.renamed.len()))?;
        }
        if found.list.is_empty() {
            output::line("no differences")?;
        }
    }
    let count = |what: &str| found.list.iter().filter(|d| change(d) == what).count();
    match found.list.len() {
        0 => Ok(()),
        n => Err(exit_with(
            1,
            format!("{n} differences: {} added, {} removed, {} changed", count("added"), count("removed"), count("changed")),
        )),
    }
}
