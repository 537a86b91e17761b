//! `graphtool plan`

use super::rewrite::{Options, reason};
use super::run::input_specs;
use super::{exit_with, output, reshard, size, usage};
use crate::data::{self, Bind};
use crate::deploy::{self, DeployError};
use crate::exec::{self, Session};
use crate::ir::Model;
use crate::job::DEFAULT_BATCH;
use crate::plan::{IdStats, Layout, Manifest, ShardFigures, TableSize, check_stats, figures, imbalance};
use crate::store::{self, Counted, Memory, Store};
use std::path::PathBuf;
use std::sync::Arc;

/// Show where the tables of a model would go, and what that means for each shard; writes no deployment
///
/// Prints every table, and per shard its bytes, rows and expected lookups, with their imbalance (largest by mean). Without
/// counts each lookup of the graph counts one, spread evenly over the rows of its table. The JSON is a plan: edit `sharding`,
/// `shards` (the shard of each piece), `starts` (the first row or column of each range) or `store_dtype` of a table, and give
/// it to `rewrite --plan` or `reshard --plan`. Of a deployment it shows how it is cut, and with --shards, --sharding or --plan
/// how `reshard` would cut it.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A model file, or a deployment directory
    model: PathBuf,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
    /// Count ids by running the model over these samples, as --id-stats would say them
    #[arg(short, long, num_args = 1.., conflicts_with = "id_stats")]
    input: Vec<PathBuf>,
    /// Which columns make up an input: INPUT=COL[,COL…] or INPUT=A1..A9 (may be given several times)
    #[arg(long, value_name = "INPUT=COLS", requires = "input")]
    bind: Vec<Bind>,
    /// What an empty cell of a .csv stands for [default: it is an error]
    #[arg(long, value_name = "VALUE", requires = "input")]
    empty: Option<String>,
    /// Write the counts of --input to a file that --id-stats reads
    #[arg(long, value_name = "FILE", requires = "input")]
    id_stats_out: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if deploy::is_deployment(&args.model) { deployment(&args) } else { model(&args) }
}

fn model(args: &Args) -> anyhow::Result<()> {
    let cut = &args.options.cut;
    let mut options = args.options.build(1)?;
    let model = crate::formats::load(&args.model)?;
    if !args.input.is_empty() {
        let mut plain = args.options.build(1)?;
        plain.plan = None;
        let survey = deploy::survey(model.clone(), &mut plain).map_err(|e| cut.error(e))?;
        let mut memory = Memory::new();
        for t in &survey.report.tables {
            memory.add(&t.name, &t.tensor)?;
        }
        options.stats = Some(count(args, &survey.model, Arc::new(memory))?);
    }
    let survey = deploy::survey(model, &mut options).map_err(|e| cut.error(e))?;
    show(args, &survey.tables, &survey.layout, options.stats.as_ref(), None)?;
    if !args.json {
        for l in survey.report.lookups.iter().filter(|l| l.reason.is_some()) {
            output::line(format!("remark: {}", reason(l)))?;
        }
    }
    Ok(())
}

fn deployment(args: &Args) -> anyhow::Result<()> {
    let o = &args.options;
    let idle = o.for_models();
    if !idle.is_empty() {
        return Err(usage(format!("{}: for models; a deployment has its tables", idle.join(", "))));
    }
    let (manifest, model) = deploy::open(&args.model)?;
    let mut options = reshard::options(&o.cut, manifest.shards)?;
    if !args.input.is_empty() {
        options.stats = Some(count(args, &model, store::open_local(&args.model)?)?);
    }
    let anew = o.cut.shards.is_some() || o.cut.sharding.is_some() || o.cut.plan.is_some();
    let (tables, layout) = deploy::plan_again(&manifest, &model, &options).map_err(|e| o.cut.error(e))?;
    if anew {
        return show(args, &tables, &layout, options.stats.as_ref(), None);
    }
    let layout = Layout { replicas: layout.replicas, ..Layout::of(&manifest) };
    show(args, &tables, &layout, options.stats.as_ref(), Some(&manifest))
}

/// Runs a rewritten model over the samples and counts the ids that it looks up.
fn count(args: &Args, model: &Model, store: Arc<dyn Store>) -> anyhow::Result<IdStats> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let counted = Arc::new(Counted::new(store));
    let options = exec::Options { store: Some(counted.clone()), runtime: Some(runtime.handle().clone()), ..exec::Options::default() };
    let session = Session::new(model, options)?;
    let read = data::Options { binds: args.bind.clone(), empty: args.empty.clone(), ..Default::default() };
    let source = data::open_all(&args.input, &input_specs(&session), &read)?;
    let samples = match source.samples() {
        data::Samples::Count(n) => *n,
        data::Samples::Whole(_) => 1,
    };
    for start in (0..samples).step_by(DEFAULT_BATCH) {
        let range = start..(start + DEFAULT_BATCH).min(samples);
        session.run(source.read(range.clone())?).map_err(|e| exit_with(1, format!("samples {} to {}: {e}", range.start, range.end - 1)))?;
    }
    let counts = counted.counts();
    if let Some(path) = &args.id_stats_out {
        data::write_file(path, |out| counts.write(out).map_err(data::DataError::io(path)))?;
    }
    Ok(counts)
}

fn show(args: &Args, tables: &[TableSize], layout: &Layout, stats: Option<&IdStats>, is: Option<&Manifest>) -> anyhow::Result<()> {
    if let Some(stats) = stats {
        check_stats(tables, stats).map_err(|e| args.options.cut.error(DeployError::Stats(e)))?;
        let known = |name: &str| tables.iter().any(|t| t.name == name);
        stats.tables().filter(|t| !known(t)).for_each(|t| tracing::warn!("counts of \"{t}\", which is no table that moves"));
        let counted = |t: &&TableSize| stats.total(&t.name) > 0;
        tables.iter().filter(|t| !counted(t)).for_each(|t| tracing::warn!("no counts of table \"{}\": no load is expected of it", t.name));
    }
    let mut shards = figures(tables, layout, stats);
    if let Some(manifest) = is {
        // Keys are spread as they are, not evenly.
        shards.iter_mut().for_each(|s| (s.rows, s.bytes) = (0, 0));
        for (t, size) in manifest.tables.iter().zip(tables) {
            for piece in &t.pieces {
                let shard = &mut shards[piece.shard as usize];
                shard.rows += piece.rows;
                shard.bytes += size.bytes_of(piece.rows, piece.columns, size.stored);
            }
        }
    }
    let uneven = |of: fn(&ShardFigures) -> f64| imbalance(shards.iter().map(of));
    let (by_bytes, by_load) = (uneven(|s| s.bytes as f64), uneven(|s| s.load));
    if args.json {
        let mut json = layout.json(tables);
        for (v, t) in json["tables"].as_array_mut().into_iter().flatten().zip(&layout.tables) {
            let size = tables.iter().find(|x| x.name == t.name);
            v["load"] = serde_json::json!(load(size, stats));
            if let Some((id, n)) = stats.and_then(|s| s.hottest(&t.name)) {
                v["hottest"] = serde_json::json!({"id": id, "count": n});
            }
        }
        json["per_shard"] = serde_json::json!(shards);
        json["imbalance"] = serde_json::json!({"bytes": by_bytes, "load": by_load});
        json["load_from"] = if stats.is_some() { "counts" } else { "lookups of the graph" }.into();
        return Ok(output::line(serde_json::to_string_pretty(&json)?)?);
    }
    if tables.is_empty() {
        return Ok(output::line("no table moves")?);
    }
    print(tables, layout, stats, &shards)?;
    let replicas = layout.replicas.filter(|r| *r > 1).map_or(String::new(), |r| format!("; each shard on {r} servers"));
    Ok(output::line(format!("imbalance (largest by mean): bytes {by_bytes:.3}, load {by_load:.3}{replicas}"))?)
}

/// Lookups of a table.
fn load(table: Option<&TableSize>, stats: Option<&IdStats>) -> u64 {
    table.map_or(0, |t| stats.map_or(t.lookups, |s| s.total(&t.name)))
}

fn print(tables: &[TableSize], layout: &Layout, stats: Option<&IdStats>, shards: &[ShardFigures]) -> anyhow::Result<()> {
    let row = |t: &TableSize| -> Option<Vec<String>> {
        let l = layout.table(&t.name)?;
        let in_order = l.shards.len() == layout.shards as usize && l.shards.iter().zip(0u32..).all(|(&s, i)| s == i);
        let places = match l.shards.len() {
            n if n > 1 && (in_order || n > 16) => format!("{} x {n}", l.sharding.name()),
            _ => format!("{} on {}", l.sharding.name(), l.shards.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
        };
        let stored = l.store.map_or(String::new(), |s| format!(" as {}", s.name()));
        let keyed = if t.keyed { " by key" } else { "" };
        let all = load(Some(t), stats);
        let hottest = stats.and_then(|s| s.hottest(&t.name));
        Some(vec![
            t.name.clone(),
            t.rows.to_string(),
            format!("{}{:?}{keyed}{stored}", t.dtype, t.row_shape),
            size::print(t.bytes_of(t.rows, t.columns(), l.store)),
            places,
            all.to_string(),
            hottest.map_or(String::new(), |(id, n)| format!("{id} ({:.1} %)", n as f64 * 100.0 / all.max(1) as f64)),
        ])
    };
    let mut rows: Vec<Vec<String>> = tables.iter().filter_map(row).collect();
    let mut head = vec!["table", "rows", "row", "size", "sharding", "load", "hottest id"];
    if stats.is_none() {
        head.pop();
        rows.iter_mut().for_each(|r| r.truncate(head.len()));
    }
    if !rows.is_empty() {
        output::table(&head, &[1, 3, 5], &rows)?;
        output::line("")?;
    }
    let number = |x: f64| if x.fract() == 0.0 { format!("{x}") } else { format!("{x:.2}") };
    let shard = |(i, s): (usize, &ShardFigures)| vec![i.to_string(), size::print(s.bytes), s.rows.to_string(), number(s.load)];
    let rows: Vec<Vec<String>> = shards.iter().enumerate().map(shard).collect();
    Ok(output::table(&["shard", "size", "rows", "load"], &[0, 1, 2, 3], &rows)?)
}
