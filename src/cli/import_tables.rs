//! `graphtool import-tables`

use super::{output, usage};
use crate::deploy::{self, RewriteOptions, dense_tables, read_dense, read_sparse, rewrite, sparse_tables};
use crate::formats::paddle;
use crate::ir::Model;
use crate::passes::Selection;
use crate::plan::{Absent, Mode, Sharding, StoreDtype};
use crate::tensor::{Tensor, cast};
use std::cell::RefCell;
use std::path::PathBuf;

/// Make a deployment of a PaddlePaddle program whose tables are in a parameter-server checkpoint
///
/// The checkpoint has a directory per table number with sparse parts (part-SERVER-SHARD.gz) of any number of servers and
/// shards. Its rows are addressed by feature id; ids that the checkpoint lacks follow --absent. The program has its dense
/// parameters beside it, or --dense takes them from the checkpoint's dense tables (part-SERVER.gz) as well.
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
    /// A dense table of the checkpoint that fills parameters of the program: those named, in that order, else all but the
    /// lookups' tables in the order of their names (may be given several times)
    #[arg(long, value_name = "NUMBER[=NAME,NAME…]")]
    dense: Vec<String>,
    /// How the tables keep their ids: PaddlePaddle's SparseAccessor, CtrCommonAccessor or CtrDoubleAccessor
    #[arg(long, default_value = "sparse", value_parser = ["sparse", "ctr", "ctr-double"])]
    accessor: String,
    /// What trained the tables [default: as the number of fields in a line says]
    #[arg(long, value_parser = ["naive", "adagrad", "std-adagrad", "adam", "shared-adam"])]
    optimizer: Option<String>,
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

/// A dense table and the parameters that it fills; none are all that no other fills.
type Dense = (u64, Vec<String>);

fn dense_of(args: &Args) -> anyhow::Result<Vec<Dense>> {
    let mut out: Vec<Dense> = Vec::new();
    for text in &args.dense {
        let (number, names) = text.split_once('=').map_or((text.as_str(), None), |(n, names)| (n, Some(names)));
        let number = number.parse::<u64>().map_err(|_| usage(format!("--dense {text}: expected NUMBER or NUMBER=NAME,NAME…")))?;
        let names: Vec<String> = names.map(|n| n.split(',').map(str::to_owned).collect()).unwrap_or_default();
        if names.iter().any(String::is_empty) {
            return Err(usage(format!("--dense {text}: a name is empty")));
        }
        if out.iter().any(|d| d.0 == number || (d.1.is_empty() && names.is_empty())) {
            return Err(usage(format!("--dense {text}: an earlier one fills the same")));
        }
        out.push((number, names));
    }
    Ok(out)
}

/// Elements of a shape, where they can be counted.
fn size(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// Fills parameters from the dense tables.
fn fill(model: &mut Model, args: &Args, dense: &[Dense]) -> anyhow::Result<()> {
    let found = dense_tables(&args.checkpoint)?;
    if let Some((number, _)) = dense.iter().find(|d| !found.contains_key(&d.0)) {
        let numbers: Vec<String> = found.keys().map(u64::to_string).collect();
        return Err(usage(format!("--dense {number}: no such dense table; the checkpoint has [{}]", numbers.join(", "))));
    }
    for (number, names) in dense {
        let parts = &found[number];
        let values = read_dense(parts)?;
        let mut shapes = Vec::new();
        for name in names {
            let shape = model.graph.value(name).and_then(|v| model.graph.constant(v)).map(|c| c.tensor.shape().to_vec());
            shapes.push(shape.ok_or_else(|| anyhow::anyhow!("--dense {number}: \"{name}\" is no parameter of the program"))?);
        }
        let sizes: Option<Vec<usize>> = shapes.iter().map(|s| size(s)).collect();
        let sizes = sizes.ok_or_else(|| anyhow::anyhow!("--dense {number}: its parameters have no size"))?;
        let expected: usize = sizes.iter().fold(0, |a, &b| a.saturating_add(b));
        if values.len() != expected {
            let list: Vec<String> = names.iter().zip(&shapes).map(|(n, s)| format!("{n}{s:?}")).collect();
            let (place, found) = (args.checkpoint.join(format!("{number:03}")), values.len());
            anyhow::bail!("{}: expected {expected} values for {}, found {found}", place.display(), list.join(", "));
        }
        let mut at = 0;
        for ((name, shape), count) in names.iter().zip(shapes).zip(sizes) {
            let tensor = Tensor::new(shape.as_slice(), values[at..at + count].to_vec())?;
            at += count;
            let mut fault = None;
            model.map_constants(&mut |n, c| {
                if n == name {
                    match cast(&tensor, c.tensor.dtype()) {
                        Ok(t) => c.tensor = t,
                        Err(e) => fault = Some(e),
                    }
                }
            });
            if let Some(e) = fault {
                anyhow::bail!("--dense {number}: \"{name}\": {e}");
            }
        }
        output::line(format!("{} parameters: {} values from {} parts of table {number}", names.len(), values.len(), parts.len()))?;
    }
    Ok(())
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let mut dense = dense_of(&args)?;
    let found = sparse_tables(&args.checkpoint)?;
    if found.is_empty() {
        anyhow::bail!("{}: no sparse tables: expected NUMBER/part-SERVER-SHARD.gz", args.checkpoint.display());
    }
    let path = args.model.clone().unwrap_or_else(|| args.checkpoint.join("dnn_plugin"));
    let mut named = Vec::new();
    for text in &args.table {
        let pair = text.rsplit_once('=').and_then(|(n, id)| Some((n.to_owned(), id.parse::<u64>().ok()?)));
        named.push(pair.ok_or_else(|| usage(format!("--table {text}: expected NAME=NUMBER")))?);
    }
    // Tables without a file of their own come from the checkpoint.
    let missing = RefCell::new(Vec::<String>::new());
    let mut filled: Vec<String> = dense.iter().flat_map(|d| d.1.clone()).collect();
    if let Some(all) = dense.iter_mut().find(|d| d.1.is_empty()) {
        all.1 = paddle::dense_names(&path)?.into_iter().filter(|n| !filled.contains(n)).collect();
        filled.extend(all.1.clone());
    }
    let mut model = paddle::open(&path, &|program, name| {
        if filled.iter().any(|n| n == name) {
            return true;
        }
        let wanted =
            if named.is_empty() { paddle::lookup_tables(program).iter().any(|t| t == name) } else { named.iter().any(|n| n.0 == name) };
        if wanted {
            missing.borrow_mut().push(name.to_owned());
        }
        wanted
    })?;
    let missing = missing.into_inner();
    fill(&mut model, &args, &dense)?;
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
    let accessor = match args.accessor.as_str() {
        "ctr" => deploy::Accessor::Ctr,
        "ctr-double" => deploy::Accessor::CtrDouble,
        _ => deploy::Accessor::Sparse,
    };
    let optimizer = args.optimizer.as_deref().map(|o| match o {
        "adagrad" => deploy::Optimizer::AdaGrad,
        "std-adagrad" => deploy::Optimizer::StdAdaGrad,
        "adam" => deploy::Optimizer::Adam,
        "shared-adam" => deploy::Optimizer::SharedAdam,
        _ => deploy::Optimizer::Naive,
    });
    let absent = if args.absent == "zero" { Absent::Zero } else { Absent::Error };
    let store = args.store_dtype.as_deref().and_then(StoreDtype::from_name);
    // Keys are spread over all shards, however few rows there are.
    let mode = Mode::All(Sharding::Row);
    let mut options = RewriteOptions { shards: args.shards, mode, replicas: args.replicas, store, ..RewriteOptions::default() };
    for (name, number) in &named {
        let parts = found.get(number).ok_or_else(|| usage(format!("--table {name}={number}: the checkpoint has no such table")))?;
        let value = model.graph.value(name).and_then(|v| model.graph.constant(v)).map(|c| c.tensor.shape().to_vec());
        let columns = value.and_then(|shape| size(shape.get(1..)?));
        let columns = columns.ok_or_else(|| anyhow::anyhow!("{}: \"{name}\" is no table of the program", path.display()))?;
        let rows = read_sparse(parts, columns, accessor, optimizer)?;
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
