//! `graphtool reshard`

use super::{output, rewrite};
use crate::deploy::{self, ReshardOptions, reshard};
use std::path::PathBuf;

/// Cut the tables of a deployment into other shards
///
/// Any number of shards becomes any other, cut in any way; rows are streamed and stay as they are stored. What was written
/// is read again and its rows are compared with those before: their number, and a hash that does not depend on how a table
/// is cut. The new directory takes its place only then.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The deployment directory
    dir: PathBuf,
    /// The directory to write; a deployment that is there is replaced whole [default: the deployment itself]
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    cut: rewrite::Cut,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let (manifest, _) = deploy::open(&args.dir)?;
    let options = options(&args.cut, manifest.shards)?;
    let output = args.output.as_ref().unwrap_or(&args.dir);
    let done = reshard(&args.dir, output, &options).map_err(|e| args.cut.error(e))?;
    let rows: Vec<Vec<String>> = done
        .tables
        .iter()
        .zip(&done.manifest.tables)
        .zip(&manifest.tables)
        .map(|((m, new), old)| {
            vec![m.name.clone(), m.rows.to_string(), rewrite::cut(old), rewrite::cut(new), format!("{} equal", m.content)]
        })
        .collect();
    if !rows.is_empty() {
        output::table(&["table", "rows", "from", "to", "content"], &[1], &rows)?;
    }
    let (from, to) = (manifest.shards, done.manifest.shards);
    output::line(format!("{} tables from {from} shards to {to}: {}", rows.len(), output.display()))?;
    Ok(())
}

/// As the library takes them.
pub(super) fn options(cut: &rewrite::Cut, shards: u32) -> anyhow::Result<ReshardOptions> {
    Ok(ReshardOptions {
        shards: cut.shards.unwrap_or(shards),
        mode: cut.mode(),
        replicas: cut.replicas,
        stats: cut.stats()?,
        plan: cut.plan_text()?,
    })
}
