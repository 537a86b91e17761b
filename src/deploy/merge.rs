//! The original model again: the graph as it came, its tables put together from the shards.

use super::{DeployError, ORIGINAL, dir_error};
use crate::files::Staged;
use crate::formats::{
    self,
    onnx::{
        save,
        write::{EXTERNAL_ABOVE, External},
    },
};
use crate::plan::Manifest;
use crate::store::{TableRows, checksum, read_manifest};
use crate::tensor::{Tensor, map_file};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes the original model of the deployment in `dir` to `output`. Tables are put together in files beside it that are
/// gone when it is done, so memory stays bounded.
///
/// # Errors
/// A deployment that is damaged, or with tables that are stored narrower than they were; an output that cannot be written.
/// Nothing is left behind then.
pub fn merge(dir: &Path, output: &Path) -> Result<(), DeployError> {
    write_original(dir, output, false)
}

/// As [`merge`], with the values that lookups give for tables that are stored narrower: the original ones are gone.
///
/// # Errors
/// As [`merge`].
pub fn merge_narrowed(dir: &Path, output: &Path) -> Result<(), DeployError> {
    write_original(dir, output, true)
}

fn write_original(dir: &Path, output: &Path, narrowed: bool) -> Result<(), DeployError> {
    let manifest = read_manifest(dir)?;
    if let Some((t, s)) = manifest.tables.iter().find_map(|t| Some(t).zip(t.stored)).filter(|_| !narrowed) {
        let (name, dtype, form, error) = (&t.name, t.dtype, s.dtype.name(), s.max_error);
        let detail = format!("table \"{name}\" ({dtype}) is stored as {form}, its original values are gone");
        return Err(dir_error(dir, format!("{detail}: --narrowed writes those that lookups give, at most {error:e} away from them")));
    }
    verify(dir, &manifest)?;
    let mut model = formats::load(&dir.join(ORIGINAL))?;
    let scratch = Staged::dir(output).map_err(|e| dir_error(output, e))?;
    let mut fault = None;
    model.map_constants(&mut |name, c| {
        let Some(table) = c.tensor.absent_place().and_then(|p| p.strip_prefix("table ")).map(str::to_owned) else { return };
        match assemble(dir, &manifest, &table, scratch.path()) {
            Ok(t) if t.dtype() == c.tensor.dtype() && t.len() == c.tensor.len() => match t.reshape(c.tensor.shape().clone()) {
                Ok(t) => c.tensor = t,
                Err(e) => drop(fault.get_or_insert_with(|| dir_error(dir, format!("\"{name}\": {e}")))),
            },
            Ok(t) => {
                let detail =
                    format!("\"{name}\": expected {}{}, the shards have {}{}", c.tensor.dtype(), c.tensor.shape(), t.dtype(), t.shape());
                fault.get_or_insert_with(|| dir_error(dir, detail));
            }
            Err(e) => drop(fault.get_or_insert(e)),
        }
    });
    if let Some(e) = fault {
        return Err(e);
    }
    save(&model, output, External::Keep(EXTERNAL_ABOVE))?;
    Ok(())
}

/// That what is put together is what was written.
fn verify(dir: &Path, manifest: &Manifest) -> Result<(), DeployError> {
    let originals = manifest.files.iter().filter(|(file, _)| file.starts_with(ORIGINAL));
    let pieces = manifest.tables.iter().flat_map(|t| &t.pieces).map(|p| (&p.file, &p.checksum));
    for (file, expected) in originals.chain(pieces) {
        let path = dir.join(file);
        let found = checksum(&path).map_err(|e| dir_error(&path, e))?;
        if found != *expected {
            return Err(dir_error(&path, format!("expected checksum {expected}, found {found}")));
        }
    }
    Ok(())
}

/// A table from its pieces, as a view on a mapped file.
fn assemble(dir: &Path, manifest: &Manifest, table: &str, scratch: &Path) -> Result<Tensor, DeployError> {
    let Some((index, entry)) = manifest.table(table) else { return Err(dir_error(dir, format!("the manifest has no table \"{table}\""))) };
    if entry.keyed {
        return Err(dir_error(dir, format!("table \"{table}\" is addressed by key; no model file can hold it")));
    }
    let path = scratch.join(format!("{index}.table"));
    let io = |e: std::io::Error| dir_error(&path, e);
    let rows = TableRows::open(dir, entry)?;
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io)?);
    rows.visit_wide(&mut |_, row| out.write_all(row)).and_then(|()| out.flush()).map_err(io)?;
    let file = File::open(&path).map_err(io)?;
    let bytes = map_file(&file).map_err(io)?;
    Tensor::from_bytes(entry.dtype, entry.shape(), bytes).map_err(|e| dir_error(dir, format!("table \"{table}\": {e}")))
}
