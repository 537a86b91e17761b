//! The rows of a deployment in other pieces: any number of shards, cut in any way, with proof that no row changed.

use super::rewrite::{finish, layout_of, refuse_foreign};
use super::{DeployError, dir_error};
use crate::files::Staged;
use crate::ir::Model;
use crate::plan::{IdStats, Layout, Manifest, Mode, TableEntry, TableSize, Wish};
use crate::store::{TableRows, checksum, rewrite_table};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// How to reshard.
#[derive(Debug, Default)]
pub struct ReshardOptions {
    /// Number of shards.
    pub shards: u32,
    /// How tables are cut.
    pub mode: Mode,
    /// Number of servers that hold each shard; as before if neither this nor the plan says.
    pub replicas: Option<u32>,
    /// How often each id is looked up, for the planner.
    pub stats: Option<IdStats>,
    /// The text of a plan to follow instead of `shards` and `mode`.
    pub plan: Option<String>,
}

/// A table whose rows have been counted and compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Name.
    pub name: String,
    /// Rows, before and after.
    pub rows: u64,
    /// The hash of all rows, before and after (see [`TableEntry::content`]).
    pub content: String,
}

/// What a reshard made.
#[derive(Debug)]
pub struct Resharded {
    /// The manifest of the new directory.
    pub manifest: Manifest,
    /// The tables.
    pub tables: Vec<Moved>,
}

/// Plans the tables of a deployment anew; changes nothing. Gives their sizes too.
///
/// # Errors
/// A plan or counts that do not fit the tables.
pub fn plan_again(manifest: &Manifest, model: &Model, options: &ReshardOptions) -> Result<(Vec<TableSize>, Layout), DeployError> {
    let lookups = lookups(model);
    let size = |t: &TableEntry| TableSize::of(t, lookups.get(&t.name).copied().unwrap_or(0));
    let tables: Vec<TableSize> = manifest.tables.iter().map(size).collect();
    let wish = Wish { shards: options.shards, mode: options.mode, store: None, stats: options.stats.as_ref() };
    let mut layout = layout_of(&tables, options.plan.as_deref(), &wish)?;
    if let Some((l, t)) = layout.tables.iter().zip(&tables).find(|(l, t)| l.store != t.stored) {
        let name = |s: Option<crate::plan::StoreDtype>| s.map_or("as they were", |s| s.name());
        let (is, found) = (name(t.stored), name(l.store));
        return Err(DeployError::Call(format!("table \"{}\": its rows are stored {is} and stay so, found store_dtype {found}", l.name)));
    }
    layout.replicas = Some(options.replicas.or(layout.replicas).unwrap_or(manifest.replicas));
    Ok((tables, layout))
}

/// Lookups of each table in the graphs of a model.
fn lookups(model: &Model) -> HashMap<String, u64> {
    let mut found = HashMap::new();
    for graph in model.graphs() {
        for &id in graph.ops() {
            let node = graph.node(id);
            if node.op().is_some_and(|o| &*o.domain == "graphtool") {
                let tables = node.attrs.strings("tables").ok().flatten().unwrap_or_default();
                tables.into_iter().for_each(|t| *found.entry(t).or_default() += 1);
            }
        }
    }
    found
}

/// Writes the deployment in `dir` to `output` (which may be `dir`) with its rows in other pieces. What was written is read
/// again and compared, row for row, before it takes its place.
///
/// # Errors
/// A deployment that is damaged, a wrong call, a directory that cannot be written; nothing is left behind then.
pub fn reshard(dir: &Path, output: &Path, options: &ReshardOptions) -> Result<Resharded, DeployError> {
    refuse_foreign(output)?;
    let (old, model) = super::open(dir)?;
    let (_, layout) = plan_again(&old, &model, options)?;
    drop(model);
    let staging = Staged::dir(output).map_err(|e| dir_error(output, e))?;
    for (file, expected) in &old.files {
        let (from, to) = (dir.join(file), staging.path().join(file));
        fs::copy(&from, &to).and_then(|_| fs::File::open(&to)?.sync_all()).map_err(|e| dir_error(&from, e))?;
        let found = checksum(&to).map_err(|e| dir_error(&to, e))?;
        if found != *expected {
            return Err(dir_error(&from, format!("expected checksum {expected}, found {found}")));
        }
    }
    let (mut tables, mut moved) = (Vec::new(), Vec::new());
    for t in &old.tables {
        let Some(l) = layout.table(&t.name) else { continue };
        let entry = rewrite_table(staging.path(), t, &TableRows::open(dir, t)?, l)?;
        moved.push(prove(staging.path(), dir, t, &entry)?);
        tables.push(entry);
    }
    let replicas = layout.replicas.unwrap_or(old.replicas);
    let manifest = finish(staging, output, Manifest { shards: layout.shards, replicas, tables, ..old })?;
    Ok(Resharded { manifest, tables: moved })
}

/// That the rows in `new` are those that were read, and those that the manifest speaks of.
fn prove(new: &Path, dir: &Path, old: &TableEntry, entry: &TableEntry) -> Result<Moved, DeployError> {
    let name = &old.name;
    let found = TableRows::open(new, entry)?.content().map_err(|e| dir_error(new, format!("table \"{name}\": {e}")))?;
    let rows: u64 = if entry.keyed { entry.pieces.iter().map(|p| p.rows).sum() } else { entry.rows };
    if rows != old.rows {
        return Err(dir_error(dir, format!("table \"{name}\": expected {} rows, found {rows} in the new pieces", old.rows)));
    }
    if found != entry.content {
        let read = &entry.content;
        return Err(dir_error(dir, format!("table \"{name}\": rows with hash {read} were read, rows with hash {found} were written")));
    }
    if !old.content.is_empty() && old.content != found {
        let expected = &old.content;
        return Err(dir_error(dir, format!("table \"{name}\": expected rows with hash {expected}, found {found}: its shards are damaged")));
    }
    Ok(Moved { name: name.clone(), rows, content: found })
}
