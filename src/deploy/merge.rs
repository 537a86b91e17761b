//! The original model again: the graph as it came, its tables put together from the shards.

use super::{DeployError, ORIGINAL, dir_error};
use crate::formats::{
    self,
    onnx::write::{EXTERNAL_ABOVE, External, to_file},
};
use crate::plan::{Manifest, Sharding, TableEntry};
use crate::store::{PieceRows, read_manifest};
use crate::tensor::{Tensor, map_file};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes the original model of the deployment in `dir` to `output`. Tables are put together in files beside it that are
/// gone when it is done, so memory stays bounded.
///
/// # Errors
/// A deployment that is damaged, an output that cannot be written; nothing is left behind then.
pub fn merge(dir: &Path, output: &Path) -> Result<(), DeployError> {
    let manifest = read_manifest(dir)?;
    let mut model = formats::load(&dir.join(ORIGINAL))?;
    let scratch = Scratch::beside(output)?;
    let mut fault = None;
    model.map_constants(&mut |name, c| {
        let Some(table) = c.tensor.absent_place().and_then(|p| p.strip_prefix("table ")).map(str::to_owned) else { return };
        match assemble(dir, &manifest, &table, &scratch.path) {
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
    let name = output.file_name().ok_or_else(|| dir_error(output, "it has no name"))?.to_string_lossy().into_owned();
    let data = format!("{name}.data");
    let written = scratch.path.join(&name);
    let has_data = to_file(&model, &written, &data, External::Keep(EXTERNAL_ABOVE))? > 0;
    if has_data {
        fs::rename(scratch.path.join(&data), output.with_file_name(&data)).map_err(|e| dir_error(output, e))?;
    }
    fs::rename(&written, output).map_err(|e| dir_error(output, e))
}

/// A table from its pieces, as a view on a mapped file.
fn assemble(dir: &Path, manifest: &Manifest, table: &str, scratch: &Path) -> Result<Tensor, DeployError> {
    let Some((index, entry)) = manifest.table(table) else { return Err(dir_error(dir, format!("the manifest has no table \"{table}\""))) };
    if entry.keyed {
        return Err(dir_error(dir, format!("table \"{table}\" is addressed by key; no model file can hold it")));
    }
    let path = scratch.join(format!("{index}.table"));
    let io = |e: std::io::Error| dir_error(&path, e);
    let pieces = entry.pieces.iter().map(|p| PieceRows::open(dir, entry, p)).collect::<Result<Vec<_>, _>>()?;
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io)?);
    write_rows(entry, &pieces, &mut out).and_then(|()| out.flush()).map_err(io)?;
    let file = File::open(&path).map_err(io)?;
    let bytes = map_file(&file).map_err(io)?;
    Tensor::from_bytes(entry.dtype, entry.shape(), bytes).map_err(|e| dir_error(dir, format!("table \"{table}\": {e}")))
}

fn write_rows(entry: &TableEntry, pieces: &[PieceRows], out: &mut impl Write) -> std::io::Result<()> {
    match entry.sharding {
        Sharding::Table | Sharding::Range => pieces.iter().try_for_each(|p| p.blocks().try_for_each(|b| out.write_all(b))),
        Sharding::Row => (0..entry.rows).try_for_each(|r| {
            let n = pieces.len() as u64;
            out.write_all(pieces[(r % n) as usize].row(r / n))
        }),
        Sharding::Column => (0..entry.rows).try_for_each(|r| pieces.iter().try_for_each(|p| out.write_all(p.row(r)))),
    }
}

/// A directory for what is being put together, gone at the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn beside(output: &Path) -> Result<Self, DeployError> {
        let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = output.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let path = parent.join(format!(".{name}.tmp-{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| dir_error(&path, e))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
