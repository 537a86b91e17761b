//! Writing a model under its name, with its data file, once both are whole.

use super::usage;
use crate::data::TempPath;
use crate::formats::onnx::write::{External, to_file};
use crate::ir::Model;
use std::path::Path;

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
        }
        Ok(std::fs::rename(dir.join(&name), path)?)
    });
    let _ = std::fs::remove_dir_all(dir);
    done
}
