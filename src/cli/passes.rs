//! `graphtool passes`

use super::output;
use crate::passes::{FUSE, SIMPLIFY, catalogue, page, summary, with_settings};

/// List the graph passes, with what each does (`graphtool explain PASS` says more)
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let kind = |name: &str| match name {
        name if SIMPLIFY.contains(&name) => "simplifies",
        name if FUSE.contains(&name) => "fuses",
        name if with_settings().iter().any(|p| p.name() == name) => "another command's",
        _ => "on request",
    };
    let mut rows: Vec<(&str, &str, String)> =
        catalogue().iter().chain(&with_settings()).map(|p| (p.name(), kind(p.name()), summary(&page(p.source())))).collect();
    rows.sort_unstable();
    if args.json {
        let list: Vec<_> = rows.iter().map(|(name, kind, what)| serde_json::json!({"name": name, "kind": kind, "what": what})).collect();
        return Ok(output::line(serde_json::to_string_pretty(&list)?)?);
    }
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, kind, what)| vec![name.to_owned(), kind.to_owned(), what.replace('`', "")]).collect();
    Ok(output::table(&["pass", "in optimize", "what it does"], &[], &rows)?)
}
