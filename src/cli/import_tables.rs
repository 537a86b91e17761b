//! `graphtool import-tables`

use super::{output, usage};
use crate::deploy::{RewriteOptions, read_sparse, rewrite, sparse_tables};
use crate::formats::paddle;
use crate::passes::Selection;
use crate::plan::{Absent, Mode, Sharding, StoreDtype};
use std::cell::RefCell;
use std::path::PathBuf;

/// Make a deployment of a PaddlePaddle program whose tables are in a parameter-server checkpoint
///
/// The checkpoint has a directory per table number with sparse parts (part-SERVER-SHARD.gz) of any number of servers and
/// shards. Its rows are addressed by feature id; ids that the checkpoint lacks follow --absent. The program has its dense
/// parameters beside it.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The checkpoint directory
    checkpoint: PathBuf,
    /// The program: a .pdmodel, a __model__ or its directory [default: dnn_plugin in the checkpoint]
    #[arg(long)]
    model: Option<PathBuf>,
    /// The deployment directory to write
    #[arg(short, long)]
    output: PathBuf,
    /// The number of a table in the checkpoint [default: tables and numbers in their order]
    #[arg(long, value_name = "NAME=NUMBER")]
    table: Vec<String>,
    /// What an id that the checkpoint lacks gives
    #[arg(long, default_value = "zero", value_parser = ["zero", "error"])]
    absent: String,
    /// Number of shards
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    shards: u32,
    /// Number of servers that hold each shard
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1024))]
    replicas: Option<u32>,
    /// Store rows narrower: f16, bf16, or int8 with a scale per row
    #[arg(long, value_name = "DTYPE", value_parser = ["f16", "bf16", "int8"])]
    store_dtype: Option<String>,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let found = sparse_tables(&args.checkpoint)?;
    if found.is_empty() {
        anyhow::bail!("{}: no sparse tables: expected NUMBER/part-SERVER-SHARD.gz", args.checkpoint.display());
    }
    let path = args.model.unwrap_or_else(|| args.checkpoint.join("dnn_plugin"));
    let mut named = Vec::new();
    for text in &args.table {
        let pair = text.rsplit_once('=').and_then(|(n, id)| Some((n.to_owned(), id.parse::<u64>().ok()?)));
        named.push(pair.ok_or_else(|| usage(format!("--table {text}: expected NAME=NUMBER")))?);
    }
    // Tables without a file of their own come from the checkpoint.
    let missing = RefCell::new(Vec::<String>::new());
    let model = paddle::open(&path, &|program, name| {
        let wanted =
            if named.is_empty() { paddle::lookup_tables(program).iter().any(|t| t == name) } else { named.iter().any(|n| n.0 == name) };
        if wanted {
            missing.borrow_mut().push(name.to_owned());
        }
        wanted
    })?;
    let missing = missing.into_inner();
    if let Some((name, _)) = named.iter().find(|(n, _)| !missing.contains(n)) {
        anyhow::bail!("{}: no table \"{name}\" without a file of its own", path.display());
    }
    if named.is_empty() {
        if missing.len() != found.len() {
            let (tables, numbers) = (missing.join(", "), found.keys().map(u64::to_string).collect::<Vec<_>>().join(", "));
            anyhow::bail!(
                "the program lacks the tables [{tables}], the checkpoint has [{numbers}]: say which is which by --table NAME=NUMBER"
            );
        }
        named = missing.into_iter().zip(found.keys().copied()).collect();
    }
    let absent = if args.absent == "zero" { Absent::Zero } else { Absent::Error };
    let store = args.store_dtype.as_deref().and_then(StoreDtype::from_name);
    // Keys are spread over all shards, however few rows there are.
    let mode = Mode::All(Sharding::Row);
    let mut options = RewriteOptions { shards: args.shards, mode, replicas: args.replicas, store, ..RewriteOptions::default() };
    for (name, number) in &named {
        let parts = found.get(number).ok_or_else(|| usage(format!("--table {name}={number}: the checkpoint has no such table")))?;
        let value = model.graph.value(name).and_then(|v| model.graph.constant(v)).map(|c| c.tensor.shape().to_vec());
        let columns = value.map(|shape| shape[1..].iter().product::<usize>());
        let columns = columns.ok_or_else(|| anyhow::anyhow!("{}: \"{name}\" is no table of the program", path.display()))?;
        let rows = read_sparse(parts, columns)?;
        output::line(format!("{name}: {} rows of {columns} from {} parts of table {number}", rows.keys.len(), parts.len()))?;
        options.keyed.insert(name.clone(), (rows, absent));
    }
    let tables: Vec<String> = named.into_iter().map(|n| n.0).collect();
    let wanted = tables.clone();
    options.selection =
        Selection { min_bytes: 0, keep_shared: false, one_hot: false, names: Some(Box::new(move |name| wanted.iter().any(|t| t == name))) };
    let outcome = rewrite(model, &args.output, options)?;
    for table in &tables {
        if outcome.manifest.table(table).is_none() {
            let why = outcome.report.lookups.iter().find(|l| l.table == *table).and_then(|l| l.reason.clone()).unwrap_or_default();
            anyhow::bail!("table \"{table}\" could not move: {why}");
        }
    }
    output::line(format!("{} tables in {} shards: {}", tables.len(), outcome.manifest.shards, args.output.display()))?;
    Ok(())
}
