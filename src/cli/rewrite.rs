//! `graphtool rewrite`

use super::{exit_with, output, size, usage};
use crate::deploy::{Outcome, RewriteOptions, rewrite};
use crate::passes::{NameFilter, Selection};
use crate::plan::{Mode, Sharding};
use std::path::{Path, PathBuf};

/// Move the embedding tables of a model into shards and rewrite its lookups into remote ones
///
/// Writes a deployment directory: manifest.json, worker.onnx (the rewritten graph), original.onnx (what `merge` fills
/// again) and shards/. A deployment that is there is replaced whole; anything else there is refused. Prints each lookup
/// with what became of it. Ends with exit code 3 where nothing was to be rewritten; the directory then works all the same.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The model file
    model: PathBuf,
    /// The directory to write [default: the model's stem with `.dist`]
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// How tables are chosen and cut.
#[derive(clap::Args, Clone)]
pub(super) struct Options {
    /// Number of shards; they are shared out over any number of servers up to this
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    shards: u32,
    /// How tables are cut: by size, whole, by row (id mod N), or by column
    #[arg(long, default_value = "auto", value_parser = ["auto", "table", "row", "range", "column"])]
    sharding: String,
    /// Only tables whose name matches (may be given several times)
    #[arg(long, value_name = "GLOB")]
    tables: Vec<String>,
    /// Tables of fewer bytes stay in the model
    #[arg(long, default_value = "64KiB", value_parser = size::parse, value_name = "SIZE")]
    min_bytes: u64,
    /// Serve tables that have other readers too (tied weights), and keep them in the model for those
    #[arg(long)]
    keep_shared: bool,
    /// Take products of one-hot rows and a table for lookups; an id out of range then gives zeros, as there
    #[arg(long)]
    one_hot: bool,
    /// Combine an output over all workers: sum, mean, max or min
    #[arg(long, value_name = "OUTPUT=OP")]
    all_reduce: Vec<String>,
    /// Follow the plan in a JSON file instead of --shards and --sharding
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

impl Options {
    /// As the library takes them; a launch without an explicit number has a shard per server.
    pub(super) fn build(&self, at_least: u32) -> anyhow::Result<RewriteOptions> {
        let mode = match self.sharding.as_str() {
            "table" => Mode::All(Sharding::Table),
            "row" => Mode::All(Sharding::Row),
            "range" => Mode::All(Sharding::Range),
            "column" => Mode::All(Sharding::Column),
            _ => Mode::Auto,
        };
        let names: Option<NameFilter> = if self.tables.is_empty() {
            None
        } else {
            let mut set = globset::GlobSetBuilder::new();
            for g in &self.tables {
                set.add(globset::Glob::new(g).map_err(|e| usage(format!("--tables {g}: {}", e.kind())))?);
            }
            let set = set.build().map_err(usage)?;
            Some(Box::new(move |name| set.is_match(name)))
        };
        let pair = |text: &String| match text.rsplit_once('=') {
            Some((o, op)) => Ok((o.to_owned(), op.to_owned())),
            None => Err(usage(format!("--all-reduce {text}: expected OUTPUT=sum|mean|max|min"))),
        };
        let plan = match &self.plan {
            Some(file) => Some(std::fs::read_to_string(file).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?),
            None => None,
        };
        Ok(RewriteOptions {
            shards: self.shards.max(at_least),
            mode,
            selection: Selection { min_bytes: self.min_bytes, names, keep_shared: self.keep_shared, one_hot: self.one_hot },
            all_reduce: self.all_reduce.iter().map(pair).collect::<Result<_, _>>()?,
            plan,
            ..RewriteOptions::default()
        })
    }
}

/// The directory that a model is rewritten into by default.
pub(super) fn default_dir(model: &Path) -> PathBuf {
    model.with_extension("dist")
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let model = crate::formats::load(&args.model)?;
    let dir = args.output.unwrap_or_else(|| default_dir(&args.model));
    let outcome = rewrite(model, &dir, args.options.build(1)?).map_err(|e| match e {
        crate::deploy::DeployError::Call(_) | crate::deploy::DeployError::Pass(crate::passes::PassError::Call(_)) => usage(e),
        e => e.into(),
    })?;
    report(&outcome)?;
    let (remote, all) = counts(&outcome);
    output::line(format!(
        "{remote} of {all} lookups are remote; {} tables in {} shards: {}",
        outcome.manifest.tables.len(),
        outcome.manifest.shards,
        dir.display()
    ))?;
    if remote == 0 && args.options.all_reduce.is_empty() {
        let why = outcome.report.lookups.first().map_or("the model has no lookups".into(), reason);
        return Err(exit_with(3, format!("0 of {all} lookups rewritten: {why}")));
    }
    Ok(())
}

pub(super) fn counts(outcome: &Outcome) -> (usize, usize) {
    let lookups = &outcome.report.lookups;
    (lookups.iter().filter(|l| l.reason.is_none()).count(), lookups.len())
}

fn reason(l: &crate::passes::LookupRemark) -> String {
    format!("\"{}\" ({}) in \"{}\" stays: {}", l.node, l.op, l.table, l.reason.as_deref().unwrap_or(""))
}

fn report(outcome: &Outcome) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = outcome
        .manifest
        .tables
        .iter()
        .map(|t| {
            let bytes = t.rows * t.row_bytes().unwrap_or(0) as u64;
            let lookups = outcome.report.tables.iter().find(|x| x.name == t.name).map_or(0, |x| x.lookups);
            let cut = match t.sharding {
                Sharding::Table => format!("whole, shard {}", t.pieces[0].shard),
                s => format!("{} x {}", format!("{s:?}").to_lowercase(), t.pieces.len()),
            };
            vec![t.name.clone(), t.rows.to_string(), format!("{}{:?}", t.dtype, t.row_shape), size::print(bytes), lookups.to_string(), cut]
        })
        .collect();
    if !rows.is_empty() {
        output::table(&["table", "rows", "row", "size", "lookups", "sharding"], &[1, 3, 4], &rows)?;
    }
    for l in outcome.report.lookups.iter().filter(|l| l.reason.is_some()) {
        output::line(format!("remark: {}", reason(l)))?;
    }
    Ok(())
}
