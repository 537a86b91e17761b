//! From a model to a deployment directory: the passes, the plan, the shard files, all written aside and put in place at once.

use super::{DeployError, KeyedRows, ORIGINAL, WORKER, dir_error, is_deployment};
use crate::formats::onnx::write::{EXTERNAL_ABOVE, External, to_file};
use crate::ir::{Constant, Model, fingerprint};
use crate::passes::{
    AllReduce, DeadCode, FoldConstants, HoistLookups, InlineFunctions, MergeLookups, PartitionParams, Pipeline, RemoteLookup, Report,
    Selection, hidden_in_functions,
};
use crate::plan::{Absent, FORMAT_VERSION, Layout, Manifest, Mode, TableSize, plan};
use crate::store::{checksum, write_keyed_table, write_table};
use crate::tensor::Tensor;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// How to rewrite.
#[derive(Default)]
pub struct RewriteOptions {
    /// Number of shards.
    pub shards: u32,
    /// How tables are cut.
    pub mode: Mode,
    /// Which tables may move.
    pub selection: Selection,
    /// Outputs to combine over the workers: name and operation.
    pub all_reduce: Vec<(String, String)>,
    /// Rows by key, with the policy for absent keys, of tables whose elements the model does not hold.
    pub keyed: HashMap<String, (KeyedRows, Absent)>,
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

/// The sizes of tables that the planner asks for.
pub(super) fn sizes(report: &Report) -> Vec<TableSize> {
    let size = |name: &str, t: &Tensor| {
        let row = t.shape().get(1..).unwrap_or_default();
        TableSize {
            name: name.to_owned(),
            rows: t.shape().first().copied().unwrap_or(0) as u64,
            // Elements of less than a byte are not cut apart.
            columns: if t.dtype().bits().is_multiple_of(8) { row.iter().product::<usize>() as u64 } else { 1 },
            row_bytes: t.dtype().byte_len(row).unwrap_or(0) as u64,
        }
    };
    report.tables.iter().map(|t| size(&t.name, &t.tensor)).collect()
}

/// Rewrites `model` into the deployment directory `dir`. A deployment that is there is replaced whole; anything else there
/// is refused. A model without lookups to rewrite becomes a deployment without tables.
///
/// # Errors
/// A wrong call, a pass that fails, a directory that cannot be written; nothing is left behind then.
pub fn rewrite(model: Model, dir: &Path, options: RewriteOptions) -> Result<Outcome, DeployError> {
    if fs::symlink_metadata(dir).is_ok() && !is_deployment(dir) {
        return Err(dir_error(dir, "it is there and is no deployment; it is left alone"));
    }
    let mut original = model.clone();
    let mut model = model;
    let mut report = Report::default();
    let mut pipeline = Pipeline::new();
    if hidden_in_functions(&model) {
        pipeline = pipeline.with(InlineFunctions);
    }
    let pipeline = pipeline
        .with(RemoteLookup { selection: options.selection })
        .with(PartitionParams)
        .with(AllReduce { outputs: options.all_reduce })
        .with(FoldConstants::default())
        .with(DeadCode)
        .with(HoistLookups)
        .with(MergeLookups);
    pipeline.run(&mut model, &mut report)?;
    let sizes = sizes(&report);
    let layout = match &options.plan {
        Some(text) => Layout::parse(text, &sizes).map_err(DeployError::Call)?,
        None => plan(&sizes, options.shards, options.mode),
    };
    take_tables_out(&mut original, &report);
    let staging = Staging::beside(dir)?;
    let tmp = staging.path.as_path();
    let io = |path: &Path| {
        let path = path.to_owned();
        move |e: std::io::Error| dir_error(&path, e)
    };
    let mut tables = Vec::new();
    for t in &report.tables {
        let Some(l) = layout.table(&t.name) else { continue };
        if let Some((rows, absent)) = options.keyed.get(&t.name) {
            let row_shape = &t.tensor.shape()[1..];
            tables.push(write_keyed_table(tmp, &t.name, row_shape, &rows.keys, &rows.values, layout.shards, *absent).map_err(io(tmp))?);
            continue;
        }
        tables.push(write_table(tmp, &t.name, &t.tensor, l).map_err(io(tmp))?);
    }
    let mut files = BTreeMap::new();
    for (name, m, external) in [(WORKER, &model, External::Above(EXTERNAL_ABOVE)), (ORIGINAL, &original, External::Keep(EXTERNAL_ABOVE))] {
        let data = format!("{name}.data");
        let path = tmp.join(name);
        if to_file(m, &path, &data, external)? > 0 {
            files.insert(data.clone(), checksum(&tmp.join(&data)).map_err(io(&path))?);
        }
        files.insert(name.to_owned(), checksum(&path).map_err(io(&path))?);
    }
    // Of the graph as it is read back: that is what every process of a job compares.
    let written = crate::formats::load(&tmp.join(WORKER))?;
    let mut manifest = Manifest {
        format_version: FORMAT_VERSION,
        plan_id: String::new(),
        fingerprint: fingerprint(&written),
        shards: layout.shards,
        files,
        tables,
    };
    manifest.plan_id = format!("{:032x}", twox_hash::XxHash3_128::oneshot(manifest.print().as_bytes()));
    let path = tmp.join("manifest.json");
    fs::write(&path, manifest.print()).and_then(|()| File::open(&path)?.sync_all()).map_err(io(&path))?;
    staging.put_in_place(dir)?;
    Ok(Outcome { report, manifest, layout })
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

/// A directory beside the target that disappears unless it is put in place.
struct Staging {
    path: PathBuf,
    done: bool,
}

impl Staging {
    fn beside(target: &Path) -> Result<Self, DeployError> {
        let name = target.file_name().ok_or_else(|| dir_error(target, "it has no name"))?.to_string_lossy().into_owned();
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // What a run that was killed left behind is recognised by its name and goes.
        let prefix = format!(".{name}.tmp-");
        for entry in fs::read_dir(parent).map_err(|e| dir_error(parent, e))?.flatten() {
            let left = entry.file_name().to_string_lossy().into_owned();
            if let Some(pid) = left.strip_prefix(&prefix)
                && !Path::new(&format!("/proc/{pid}")).exists()
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let path = parent.join(format!("{prefix}{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| dir_error(&path, e))?;
        Ok(Self { path, done: false })
    }

    fn put_in_place(mut self, target: &Path) -> Result<(), DeployError> {
        let old = self.path.with_extension("old");
        let replaced = fs::symlink_metadata(target).is_ok();
        if replaced {
            fs::rename(target, &old).map_err(|e| dir_error(target, e))?;
        }
        if let Err(e) = fs::rename(&self.path, target) {
            if replaced {
                let _ = fs::rename(&old, target);
            }
            return Err(dir_error(target, e));
        }
        self.done = true;
        if replaced {
            let _ = fs::remove_dir_all(&old);
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
