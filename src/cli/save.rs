//! Reading a model that is to be changed, and writing it under its name, with its data file, once both are whole.

use super::{output, usage};
use crate::formats;
use crate::formats::onnx::{self, write::External};
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

/// Writes `path` and, where constants go outside, a data file beside it.
pub(super) fn save(model: &Model, path: &Path, external: External) -> anyhow::Result<()> {
    if path.file_name().is_none() {
        return Err(usage(format!("{} has no name", path.display())));
    }
    if let Some(beside) = onnx::save(model, path, external)? {
        output::note(format_args!("{} bytes of constants are beside the model, in {}", beside.bytes, beside.name));
    }
    Ok(())
}
