//! Deployment directories: a model rewritten, its tables in shards, and the way back; and a cluster that serves one.

mod checkpoint;
mod dense_io;
pub mod k8s;
mod merge;
mod reshard;
mod rewrite;

pub use checkpoint::{Accessor, KeyedRows, Optimizer, dense_tables, read_dense, read_sparse, sparse_tables};
pub use merge::{merge, merge_narrowed};
pub use reshard::{Moved, ReshardOptions, Resharded, plan_again, reshard};
pub use rewrite::{Outcome, RewriteOptions, Survey, rewrite, survey};

use crate::formats::{self, LoadError};
use crate::ir::Model;
use crate::plan::Manifest;
use crate::store::{RowSource, StoreError, TableRows, checksum, read_manifest};
use std::path::{Path, PathBuf};

/// The rewritten graph.
pub const WORKER: &str = "worker.onnx";
/// The graph as it came, without its tables.
pub const ORIGINAL: &str = "original.onnx";
/// The part of the rewritten graph that gives the rows of all lookups, if it was wanted.
pub const LOOKUPS: &str = "lookups.onnx";
/// The rest of it, in standard ops, whose inputs they are.
pub const DENSE: &str = "dense.onnx";

/// Why a deployment could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The call is wrong.
    #[error("{0}")]
    Call(String),
    /// Counts of ids that do not fit the tables.
    #[error("{0}")]
    Stats(String),
    /// The model, or a model in the directory.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Shards or manifest.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pass.
    #[error(transparent)]
    Pass(#[from] crate::passes::PassError),
    /// Writing a model.
    #[error(transparent)]
    Write(#[from] formats::onnx::write::WriteError),
    /// The directory as it stands.
    #[error("{}: {detail}", path.display())]
    Dir {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

fn dir_error(path: &Path, detail: impl ToString) -> DeployError {
    DeployError::Dir { path: path.to_owned(), detail: detail.to_string() }
}

/// Whether a path is a deployment directory.
pub fn is_deployment(path: &Path) -> bool {
    path.join("manifest.json").is_file()
}

/// The manifest and the rewritten model of a deployment directory; their fingerprints agree.
///
/// # Errors
/// Files that are missing, damaged or of another rewrite.
pub fn open(dir: &Path) -> Result<(Manifest, Model), DeployError> {
    let manifest = read_manifest(dir)?;
    let model = formats::load(&dir.join(WORKER))?;
    let found = crate::ir::fingerprint(&model);
    if found != manifest.fingerprint {
        let detail = format!("its graph has fingerprint {found}, the manifest {}: it is of another rewrite", manifest.fingerprint);
        return Err(dir_error(&dir.join(WORKER), detail));
    }
    Ok((manifest, model))
}

/// The manifest of a deployment directory and the part of its graph that gives the rows of all lookups.
///
/// # Errors
/// As [`open`]; a deployment without that part.
pub fn open_lookups(dir: &Path) -> Result<(Manifest, Model), DeployError> {
    let (manifest, path) = (read_manifest(dir)?, dir.join(LOOKUPS));
    let Some(expected) = manifest.files.get(LOOKUPS) else {
        return Err(dir_error(dir, format!("it has no {LOOKUPS}: `graphtool rewrite --dense-io` writes one")));
    };
    let found = checksum(&path).map_err(|e| dir_error(&path, e))?;
    if found != *expected {
        return Err(dir_error(&path, format!("expected checksum {expected}, found {found}")));
    }
    Ok((manifest, formats::load(&path)?))
}

/// Compares every file of a deployment with the manifest: sizes, checksums, files that are missing or too many; and that the
/// keys of a keyed table lie in their pieces, each once. Returns every fault.
///
/// # Errors
/// A directory without a valid manifest.
pub fn check(dir: &Path) -> Result<Vec<String>, DeployError> {
    let manifest = read_manifest(dir)?;
    let mut faults = Vec::new();
    let mut known: Vec<String> = vec!["manifest.json".into()];
    let mut one = |file: &str, bytes: Option<u64>, expected: &str| {
        let path = dir.join(file);
        let found = match std::fs::metadata(&path) {
            Ok(m) => m.len(),
            Err(e) => return faults.push(format!("{file}: {e}")),
        };
        match (bytes, checksum(&path)) {
            (Some(want), _) if want != found => faults.push(format!("{file}: expected {want} bytes, found {found}")),
            (_, Ok(sum)) if sum != expected => faults.push(format!("{file}: expected checksum {expected}, found {sum}")),
            (_, Err(e)) => faults.push(format!("{file}: {e}")),
            _ => {}
        }
    };
    for (file, sum) in &manifest.files {
        one(file, None, sum);
        known.push(file.clone());
    }
    for piece in manifest.tables.iter().flat_map(|t| &t.pieces) {
        one(&piece.file, Some(piece.bytes), &piece.checksum);
        known.push(piece.file.clone());
    }
    if faults.is_empty() {
        for t in manifest.tables.iter().filter(|t| t.keyed) {
            if let Err(e) = TableRows::open(dir, t)?.ids(&mut |_| Ok(())) {
                faults.push(format!("table \"{}\": {e}", t.name));
            }
        }
    }
    for sub in ["", "shards"] {
        let Ok(entries) = std::fs::read_dir(dir.join(sub)) else { continue };
        let mut extra: Vec<String> =
            entries
                .flatten()
                .filter(|e| e.path().is_file())
                .map(|e| {
                    if sub.is_empty() {
                        e.file_name().to_string_lossy().into()
                    } else {
                        format!("{sub}/{}", e.file_name().to_string_lossy())
                    }
                })
                .filter(|name| !known.contains(name))
                .collect();
        extra.sort();
        faults.extend(extra.into_iter().map(|name| format!("{name}: the manifest does not list it")));
    }
    Ok(faults)
}
