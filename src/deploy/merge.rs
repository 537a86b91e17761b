//! The original model again: the graph as it came, its tables put together from the shards.

use super::{DeployError, ORIGINAL, dir_error};
use crate::files::{FileWriter, Staged};
use crate::formats::{
    self,
    onnx::{
        save_with,
        write::{EXTERNAL_ABOVE, Elements, External},
    },
};
use crate::plan::{Manifest, TableEntry};
use crate::store::{TableRows, checksum, read_manifest};
use crate::tensor::{Tensor, map_file};
use bytes::Bytes;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Writes the original model of the deployment in `dir` to `output`. Tables go from the shards into its data file; those that
/// stay inside it are put together in a file beside it that is gone when it is done, so memory stays bounded.
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
    let tables = Tables { dir, manifest: &manifest, scratch: scratch.path() };
    let mut fault = None;
    model.map_constants(&mut |_, constant| {
        if let Err(detail) = tables.fits(&constant.tensor) {
            fault.get_or_insert(dir_error(dir, detail));
        }
    });
    if let Some(e) = fault {
        return Err(e);
    }
    save_with(&model, output, External::Keep(EXTERNAL_ABOVE), &tables)?;
    Ok(())
}

/// The table that a place of absent elements names.
fn name_of(place: &str) -> Option<&str> {
    place.strip_prefix("table ")
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

/// The tables of a deployment as elements of its original model.
struct Tables<'a> {
    dir: &'a Path,
    manifest: &'a Manifest,
    /// For those that stay inside the model: they are put together in a file there, so that memory stays bounded.
    scratch: &'a Path,
}

impl Tables<'_> {
    fn entry(&self, table: &str) -> Option<&TableEntry> {
        self.manifest.table(table).map(|(_, entry)| entry)
    }

    /// That the table which an absent tensor stands for can take its place.
    fn fits(&self, tensor: &Tensor) -> Result<(), String> {
        let Some(table) = tensor.absent_place().and_then(name_of) else { return Ok(()) };
        let entry = self.entry(table).ok_or_else(|| format!("the manifest has no table \"{table}\""))?;
        if entry.keyed {
            return Err(format!("table \"{table}\" is addressed by key; no model file can hold it"));
        }
        let (dtype, shape, found) = (tensor.dtype(), tensor.shape(), entry.shape());
        if dtype != entry.dtype || dtype.byte_len(shape) != dtype.byte_len(&found) {
            return Err(format!("table \"{table}\": expected {dtype}{shape}, the shards have {}{found}", entry.dtype));
        }
        Ok(())
    }
}

impl Elements for Tables<'_> {
    fn has(&self, place: &str) -> bool {
        name_of(place).is_some_and(|table| self.entry(table).is_some())
    }

    fn bytes(&self, place: &str) -> io::Result<Bytes> {
        let path = self.scratch.join("table");
        let mut out = FileWriter::create(&path)?;
        self.write(place, &mut out)?;
        out.flush()?;
        let bytes = map_file(&File::open(&path)?)?;
        fs::remove_file(&path)?;
        Ok(bytes)
    }

    fn write(&self, place: &str, out: &mut dyn Write) -> io::Result<()> {
        let entry = name_of(place).and_then(|table| self.entry(table)).ok_or(io::ErrorKind::NotFound)?;
        let rows = TableRows::open(self.dir, entry).map_err(io::Error::other)?;
        rows.visit_wide(&mut |_, row| out.write_all(row))
    }
}
