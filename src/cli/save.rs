//! Reading a model that is to be changed, and writing it under its name, with its data file, once both are whole.

use super::usage;
use crate::data::TempPath;
use crate::formats;
use crate::formats::onnx::write::{External, to_file};
use crate::ir::{Model, verify};
use std::path::Path;

/// The model of a file, if its structure is valid.
pub(super) fn valid(path: &Path) -> anyhow::Result<Model> {
    let model = formats::load(path)?;
    match verify(&model).into_iter().next() {
        None => Ok(model),
        Some(fault) => anyhow::bail!("{}: {fault}", path.display()),
    }
}

/// Writes `path` and, where constants go outside, `path` with `.data` appended.
pub(super) fn save(model: &Model, path: &Path, external: External) -> anyhow::Result<()> {
    let name = path.file_name().ok_or_else(|| usage(format!("{} has no name", path.display())))?.to_string_lossy().into_owned();
    // The model names its data file by its final name, so both are written into a directory of their own first.
    let temp = TempPath::beside(path)?;
    let (dir, data) = (temp.path(), format!("{name}.data"));
    std::fs::create_dir(dir).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let done = to_file(model, &dir.join(&name), &data, external).map_err(anyhow::Error::from).and_then(|bytes| {
        if bytes > 0 {
            std::fs::rename(dir.join(&data), path.with_file_name(&data))?;
            eprintln!("{bytes} bytes of constants are beside the model, in {data}");
        }
        Ok(std::fs::rename(dir.join(&name), path)?)
    });
    let _ = std::fs::remove_dir_all(dir);
    done
}
