//! `graphtool rewrite`

use super::{exit_with, output, size, usage};
use crate::deploy::{DeployError, Outcome, RewriteOptions, rewrite};
use crate::passes::{NameFilter, Selection};
use crate::plan::{IdStats, Mode, Sharding, StoreDtype, TableEntry};
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
    /// Also write the rewritten graph in two: lookups.onnx, which gives the rows of all lookups, and dense.onnx, in standard ops
    /// for ONNX Runtime and others, whose inputs they are (`dense_inputs` in manifest.json names them)
    #[arg(long)]
    dense_io: bool,
}

/// How tables are cut and placed.
#[derive(clap::Args, Clone)]
pub(super) struct Cut {
    /// Number of shards; they are shared out over any number of servers up to this [default: 4, of a deployment its own]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) shards: Option<u32>,
    /// How tables are cut: by size (and load, with --id-stats), whole, by row (id mod N), by ranges of rows, or by column
    /// [default: auto]
    #[arg(long, value_parser = ["auto", "table", "row", "range", "column"])]
    pub(super) sharding: Option<String>,
    /// Follow the plan in a JSON file (`graphtool plan --json` prints one) instead of --shards and --sharding
    #[arg(long, value_name = "FILE")]
    pub(super) plan: Option<PathBuf>,
    /// How often each id is looked up: a CSV file with lines `table,id,count`, of which that is the first; ids that are not
    /// there are never looked up. Tables and ranges are then balanced by lookups as well as by bytes
    #[arg(long, value_name = "FILE")]
    pub(super) id_stats: Option<PathBuf>,
    /// Number of servers that hold each shard; a lookup goes to another one when a server is lost [default: 1,
    /// of a deployment its own]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) replicas: Option<u32>,
}

impl Cut {
    pub(super) fn mode(&self) -> Mode {
        match self.sharding.as_deref() {
            Some("table") => Mode::All(Sharding::Table),
            Some("row") => Mode::All(Sharding::Row),
            Some("range") => Mode::All(Sharding::Range),
            Some("column") => Mode::All(Sharding::Column),
            _ => Mode::Auto,
        }
    }

    /// The flags that were given.
    pub(super) fn given(&self) -> Vec<&'static str> {
        given([
            ("--shards", self.shards.is_some()),
            ("--sharding", self.sharding.is_some()),
            ("--plan", self.plan.is_some()),
            ("--id-stats", self.id_stats.is_some()),
            ("--replicas", self.replicas.is_some()),
        ])
    }

    /// The text of the plan.
    pub(super) fn plan_text(&self) -> anyhow::Result<Option<String>> {
        let Some(file) = &self.plan else { return Ok(None) };
        Ok(Some(std::fs::read_to_string(file).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?))
    }

    /// The counts of ids.
    pub(super) fn stats(&self) -> anyhow::Result<Option<IdStats>> {
        let Some(path) = &self.id_stats else { return Ok(None) };
        let file = std::fs::File::open(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
        let stats = IdStats::read(std::io::BufReader::new(file)).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
        Ok(Some(stats))
    }

    /// A wrong plan is a wrong call, and its file is named.
    pub(super) fn error(&self, e: DeployError) -> anyhow::Error {
        match (e, &self.plan, &self.id_stats) {
            (DeployError::Call(e), Some(file), _) => usage(format!("{}: {e}", file.display())),
            (DeployError::Stats(e), _, Some(file)) => exit_with(1, format!("{}: {e}", file.display())),
            (e @ (DeployError::Call(_) | DeployError::Pass(crate::passes::PassError::Call(_))), ..) => usage(e),
            (e, ..) => e.into(),
        }
    }
}

/// How tables are chosen, cut and stored.
#[derive(clap::Args, Clone)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) cut: Cut,
    /// Only tables whose name matches (may be given several times)
    #[arg(long, value_name = "GLOB")]
    pub(super) tables: Vec<String>,
    /// Store float tables narrower: f16, bf16, or int8 with a scale per row. Lookups give the table's own dtype; the largest
    /// error is printed and kept in the manifest. The original values are gone then
    #[arg(long, value_name = "DTYPE", value_parser = ["f16", "bf16", "int8"])]
    pub(super) store_dtype: Option<String>,
    /// Tables of fewer bytes stay in the model [default: 64KiB]
    #[arg(long, value_parser = size::parse, value_name = "SIZE")]
    min_bytes: Option<u64>,
    /// Serve tables that have other readers too (tied weights), and keep them in the model for those
    #[arg(long)]
    pub(super) keep_shared: bool,
    /// Take products of one-hot rows and a table for lookups; an id out of range then gives zeros, as there
    #[arg(long)]
    pub(super) one_hot: bool,
    /// Combine an output over all workers: sum, mean, max or min
    #[arg(long, value_name = "OUTPUT=OP")]
    pub(super) all_reduce: Vec<String>,
}

fn given<const N: usize>(flags: [(&'static str, bool); N]) -> Vec<&'static str> {
    flags.into_iter().filter(|f| f.1).map(|f| f.0).collect()
}

impl Options {
    /// The flags that were given and that a deployment cannot follow: they say what becomes of a model.
    pub(super) fn for_models(&self) -> Vec<&'static str> {
        given([
            ("--tables", !self.tables.is_empty()),
            ("--store-dtype", self.store_dtype.is_some()),
            ("--min-bytes", self.min_bytes.is_some()),
            ("--keep-shared", self.keep_shared),
            ("--one-hot", self.one_hot),
            ("--all-reduce", !self.all_reduce.is_empty()),
        ])
    }

    /// As the library takes them; a launch without an explicit number has a shard per server.
    pub(super) fn build(&self, at_least: u32) -> anyhow::Result<RewriteOptions> {
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
        Ok(RewriteOptions {
            shards: self.cut.shards.unwrap_or(DEFAULT_SHARDS).max(at_least),
            mode: self.cut.mode(),
            replicas: self.cut.replicas,
            store: self.store_dtype.as_deref().and_then(StoreDtype::from_name),
            stats: self.cut.stats()?,
            selection: Selection {
                min_bytes: self.min_bytes.unwrap_or(MIN_BYTES),
                names,
                keep_shared: self.keep_shared,
                one_hot: self.one_hot,
            },
            all_reduce: self.all_reduce.iter().map(pair).collect::<Result<_, _>>()?,
            plan: self.cut.plan_text()?,
            ..RewriteOptions::default()
        })
    }
}

/// Bytes of the smallest table that moves, where nobody says.
const MIN_BYTES: u64 = 64 << 10;

/// Shards of a rewrite that does not say.
const DEFAULT_SHARDS: u32 = 4;

/// The directory that a model is rewritten into by default.
pub(super) fn default_dir(model: &Path) -> PathBuf {
    model.with_extension("dist")
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let model = crate::formats::load(&args.model)?;
    let dir = args.output.unwrap_or_else(|| default_dir(&args.model));
    let options = RewriteOptions { dense_io: args.dense_io, ..args.options.build(1)? };
    let outcome = rewrite(model, &dir, options).map_err(|e| args.options.cut.error(e))?;
    report(&outcome, args.options.store_dtype.as_deref())?;
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

pub(super) fn reason(l: &crate::passes::LookupRemark) -> String {
    format!("\"{}\" ({}) in \"{}\" stays: {}", l.node, l.op, l.table, l.reason.as_deref().unwrap_or(""))
}

/// How a table is cut, in a few words.
pub(super) fn cut(t: &TableEntry) -> String {
    match t.sharding {
        Sharding::Table => format!("whole, shard {}", t.pieces[0].shard),
        s => format!("{} x {}", s.name(), t.pieces.len()),
    }
}

fn report(outcome: &Outcome, store: Option<&str>) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = outcome
        .manifest
        .tables
        .iter()
        .map(|t| {
            let bytes = t.rows * t.row_bytes().unwrap_or(0) as u64;
            let lookups = outcome.report.tables.iter().find(|x| x.name == t.name).map_or(0, |x| x.lookups);
            vec![
                t.name.clone(),
                t.rows.to_string(),
                format!("{}{:?}", t.dtype, t.row_shape),
                size::print(bytes),
                lookups.to_string(),
                cut(t),
            ]
        })
        .collect();
    if !rows.is_empty() {
        output::table(&["table", "rows", "row", "size", "lookups", "sharding"], &[1, 3, 4], &rows)?;
    }
    for t in &outcome.manifest.tables {
        let (name, dtype) = (&t.name, t.dtype);
        match (t.stored.map(|s| (s.dtype.name(), s.max_error)), store) {
            (Some((form, error)), _) => {
                output::line(format!("stored: \"{name}\" ({dtype}) as {form}, largest absolute error {error:e}"))?;
            }
            (None, Some(form)) => output::line(format!("stored: \"{name}\" ({dtype}) as it is, {form} would not be narrower"))?,
            (None, None) => {}
        }
    }
    for l in outcome.report.lookups.iter().filter(|l| l.reason.is_some()) {
        output::line(format!("remark: {}", reason(l)))?;
    }
    Ok(())
}
