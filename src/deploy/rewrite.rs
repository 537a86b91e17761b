//! From a model to a deployment directory: the passes, the plan, the shard files, all written aside and put in place at once.

use super::{DENSE, DeployError, KeyedRows, LOOKUPS, ORIGINAL, WORKER, dense_io, dir_error, is_deployment};
use crate::files::Staged;
use crate::formats::onnx::write::{EXTERNAL_ABOVE, External, to_file};
use crate::ir::{Constant, Model, fingerprint};
use crate::passes::{
    AllReduce, DeadCode, FoldConstants, HoistLookups, InlineFunctions, MergeLookups, PartitionParams, Pipeline, RemoteLookup, Report,
    Selection, hidden_in_functions,
};
use crate::plan::{Absent, FORMAT_VERSION, IdStats, Layout, Manifest, Mode, StoreDtype, TableSize, Wish, check_stats, plan};
use crate::store::{checksum, write_keyed_table, write_table};
use crate::tensor::Tensor;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::Path;

/// How to rewrite.
#[derive(Default)]
pub struct RewriteOptions {
    /// Number of shards.
    pub shards: u32,
    /// How tables are cut.
    pub mode: Mode,
    /// Number of servers that hold each shard; 1 if neither this nor the plan says.
    pub replicas: Option<u32>,
    /// The form in which float tables are stored, where the plan does not say; as they are if `None`.
    pub store: Option<StoreDtype>,
    /// How often each id is looked up, for the planner.
    pub stats: Option<IdStats>,
    /// Which tables may move.
    pub selection: Selection,
    /// Outputs to combine over the workers: name and operation.
    pub all_reduce: Vec<(String, String)>,
    /// Rows by key, with the policy for absent keys, of tables whose elements the model does not hold.
    pub keyed: HashMap<String, (KeyedRows, Absent)>,
    /// Whether the rewritten graph is written in two as well: `lookups.onnx`, and `dense.onnx` for other runtimes.
    pub dense_io: bool,
    /// The text of a plan to follow instead of `shards` and `mode`.
    pub plan: Option<String>,
}

/// What a rewrite made.
#[derive(Debug)]
pub struct Outcome {
    /// What the passes did.
    pub report: Report,
    /// The manifest of the directory.
    pub manifest: Manifest,
    /// The plan that was followed.
    pub layout: Layout,
}

/// A model whose tables have been found and planned, and nothing written.
#[derive(Debug)]
pub struct Survey {
    /// The rewritten graph.
    pub model: Model,
    /// What the passes did, with the tables.
    pub report: Report,
    /// The tables that move.
    pub tables: Vec<TableSize>,
    /// Where their pieces go.
    pub layout: Layout,
}

/// The sizes of tables that the planner asks for.
fn sizes(report: &Report, keyed: &HashMap<String, (KeyedRows, Absent)>) -> Vec<TableSize> {
    let size = |name: &str, t: &Tensor, lookups: usize| TableSize {
        name: name.to_owned(),
        rows: keyed.get(name).map_or(t.shape().first().copied().unwrap_or(0), |k| k.0.keys.len()) as u64,
        row_shape: t.shape().get(1..).unwrap_or_default().to_vec(),
        dtype: t.dtype(),
        keyed: keyed.contains_key(name),
        lookups: lookups as u64,
        stored: None,
    };
    report.tables.iter().map(|t| size(&t.name, &t.tensor, t.lookups)).collect()
}

/// Plans tables by a plan's text if there is one, else anew.
pub(super) fn layout_of(tables: &[TableSize], text: Option<&str>, wish: &Wish) -> Result<Layout, DeployError> {
    if let Some(stats) = wish.stats {
        check_stats(tables, stats).map_err(DeployError::Stats)?;
    }
    let Some(text) = text else { return Ok(plan(tables, wish)) };
    let mut layout = Layout::parse(text, tables).map_err(DeployError::Call)?;
    for l in layout.tables.iter_mut().filter(|l| l.store.is_none()) {
        let table = tables.iter().find(|t| t.name == l.name);
        l.store = table.and_then(|t| t.stored.or(wish.store.filter(|s| s.narrows(t.dtype))));
    }
    Ok(layout)
}

/// Rewrites a model in memory and plans its tables; writes nothing.
///
/// # Errors
/// A wrong call, a pass that fails.
pub fn survey(mut model: Model, options: &mut RewriteOptions) -> Result<Survey, DeployError> {
    let mut report = Report::default();
    let mut pipeline = Pipeline::new();
    if hidden_in_functions(&model) {
        pipeline = pipeline.with(InlineFunctions);
    }
    let pipeline = pipeline
        .with(RemoteLookup { selection: std::mem::take(&mut options.selection) })
        .with(PartitionParams)
        .with(AllReduce { outputs: std::mem::take(&mut options.all_reduce) })
        .with(FoldConstants::default())
        .with(DeadCode)
        .with(HoistLookups)
        .with(MergeLookups);
    pipeline.run(&mut model, &mut report)?;
    let tables = sizes(&report, &options.keyed);
    let wish = Wish { shards: options.shards, mode: options.mode, store: options.store, stats: options.stats.as_ref() };
    let mut layout = layout_of(&tables, options.plan.as_deref(), &wish)?;
    layout.replicas = options.replicas.or(layout.replicas);
    Ok(Survey { model, report, tables, layout })
}

/// Rewrites `model` into the deployment directory `dir`. A deployment that is there is replaced whole; anything else there
/// is refused. A model without lookups to rewrite becomes a deployment without tables.
///
/// # Errors
/// A wrong call, a pass that fails, a directory that cannot be written; nothing is left behind then.
pub fn rewrite(model: Model, dir: &Path, mut options: RewriteOptions) -> Result<Outcome, DeployError> {
    refuse_foreign(dir)?;
    let mut original = model.clone();
    let Survey { model, report, layout, .. } = survey(model, &mut options)?;
    take_tables_out(&mut original, &report);
    let staging = Staged::dir(dir).map_err(|e| dir_error(dir, e))?;
    let tmp = staging.path();
    let io = |path: &Path| {
        let path = path.to_owned();
        move |e: std::io::Error| dir_error(&path, e)
    };
    let mut tables = Vec::new();
    for t in &report.tables {
        let Some(l) = layout.table(&t.name) else { continue };
        let written = match options.keyed.get(&t.name) {
            Some((rows, absent)) => write_keyed_table(tmp, l, &t.tensor.shape()[1..], &rows.keys, &rows.values, *absent),
            None => write_table(tmp, &t.name, &t.tensor, l),
        };
        tables.push(written.map_err(|e| dir_error(dir, e))?);
    }
    let parts = if options.dense_io { Some(dense_io::split(&model)?) } else { None };
    let mut models = vec![(WORKER, &model, External::Above(EXTERNAL_ABOVE)), (ORIGINAL, &original, External::Keep(EXTERNAL_ABOVE))];
    if let Some(p) = &parts {
        models.extend([(LOOKUPS, &p.lookups, External::Above(EXTERNAL_ABOVE)), (DENSE, &p.dense, External::Above(EXTERNAL_ABOVE))]);
    }
    let mut files = BTreeMap::new();
    for (name, m, external) in models {
        let data = format!("{name}.data");
        let path = tmp.join(name);
        if to_file(m, &path, &data, external)? > 0 {
            files.insert(data.clone(), checksum(&tmp.join(&data)).map_err(io(&path))?);
        }
        files.insert(name.to_owned(), checksum(&path).map_err(io(&path))?);
    }
    // Of the graph as it is read back: that is what every process of a job compares.
    let written = crate::formats::load(&tmp.join(WORKER))?;
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        plan_id: String::new(),
        fingerprint: fingerprint(&written),
        shards: layout.shards,
        replicas: layout.replicas.unwrap_or(1),
        files,
        tables,
        dense_inputs: parts.map_or_else(Vec::new, |p| p.inputs),
    };
    let manifest = finish(staging, dir, manifest)?;
    Ok(Outcome { report, manifest, layout })
}

/// That a directory is a deployment or not there.
pub(super) fn refuse_foreign(dir: &Path) -> Result<(), DeployError> {
    if fs::symlink_metadata(dir).is_ok() && !is_deployment(dir) {
        return Err(dir_error(dir, "it is there and is no deployment; it is left alone"));
    }
    Ok(())
}

/// Gives the manifest its id, writes it and puts the directory in place.
pub(super) fn finish(staging: Staged, dir: &Path, mut manifest: Manifest) -> Result<Manifest, DeployError> {
    manifest.seal();
    let path = staging.path().join("manifest.json");
    fs::write(&path, manifest.print()).and_then(|()| File::open(&path)?.sync_all()).map_err(|e| dir_error(&path, e))?;
    staging.put_in_place().map_err(|e| dir_error(dir, e))?;
    Ok(manifest)
}

/// Leaves a stand-in for each table in the graph as it came.
fn take_tables_out(original: &mut Model, report: &Report) {
    let same = |a: &Tensor, b: &Tensor| matches!((a.bytes(), b.bytes()), (Some(x), Some(y)) if !x.is_empty() && std::ptr::eq(x, y));
    original.map_constants(&mut |_: &str, c: &mut Constant| {
        if let Some(t) = report.tables.iter().find(|t| same(&t.tensor, &c.tensor)) {
            c.tensor = Tensor::absent(c.tensor.dtype(), c.tensor.shape(), &format!("table {}", t.name));
        }
    });
}
