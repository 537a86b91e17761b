//! A model file and its data file, written so that a kill at any moment leaves the old pair or the new one.

use super::place::Nowhere;
use super::write::{Elements, External, WriteError, to_file_with};
use crate::files::{Staged, replaceable, sync_parent};
use crate::ir::Model;
use memchr::memmem;
use std::fs;
use std::io;
use std::path::Path;

/// What a model's data file may be called: the one that the present model names stays until the new model stands, so the
/// two take turns.
fn data_names(name: &str) -> [String; 2] {
    [format!("{name}.data"), format!("{name}.2.data")]
}

/// What [`save`] wrote beside the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    /// The name of the data file.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Writes `model` to `path` and, where constants go outside, those to `path` with `.data` appended (`.2.data`, in turn, if
/// the model that is there uses the first). Says what it wrote beside the model.
///
/// # Errors
/// As [`to_file_with`]; what was there before is left then.
pub fn save(model: &Model, path: &Path, external: External) -> Result<Option<Beside>, WriteError> {
    save_with(model, path, external, &Nowhere)
}

/// As [`save`], with elements that the model does not hold.
///
/// # Errors
/// As [`to_file_with`]; what was there before is left then.
pub fn save_with(model: &Model, path: &Path, external: External, elements: &dyn Elements) -> Result<Option<Beside>, WriteError> {
    let io = |error: io::Error| WriteError::Io { path: path.display().to_string(), error };
    let path = &replaceable(path).map_err(io)?;
    let staged = Staged::dir(path).map_err(io)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names = data_names(&name);
    let used = used(path, &names).map_err(io)?;
    let data = &names[usize::from(used[0])];
    let written = staged.path().join(&name);
    let bytes = to_file_with(model, &written, data, external, elements)?;
    if bytes > 0 {
        fs::rename(staged.path().join(data), path.with_file_name(data)).map_err(io)?;
        sync_parent(path);
    }
    fs::rename(&written, path).map_err(io)?;
    sync_parent(path);
    for (old, _) in names.iter().zip(used).filter(|(n, used)| *used && bytes > 0 && *n != data) {
        // Nothing names it any more.
        let _ = fs::remove_file(path.with_file_name(old));
    }
    Ok((bytes > 0).then(|| Beside { name: data.clone(), bytes }))
}

/// Which of `names` the model file at `path` uses, if one is there.
fn used(path: &Path, names: &[String; 2]) -> io::Result<[bool; 2]> {
    match fs::File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok([false; 2]),
        Err(e) => Err(e),
        Ok(file) => {
            let old = crate::tensor::map_file(&file)?;
            Ok([0, 1].map(|k| memmem::find(&old, names[k].as_bytes()).is_some()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::names;
    use crate::formats::load;

    #[test]
    fn data_files_take_turns_and_one_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        let model = crate::formats::load(Path::new("models/widedeep_ts11/model.onnx")).unwrap();
        for data in ["m.onnx.data", "m.onnx.2.data", "m.onnx.data"] {
            assert_eq!(save(&model, &path, External::Each(1)).unwrap().unwrap().name, data);
            assert_eq!(names(dir.path()), ["m.onnx", data]);
            assert_eq!(crate::ir::print_model(&load(&path).unwrap()), crate::ir::print_model(&model));
        }
        // A model that was read from its own place stays readable while it is replaced.
        let again = load(&path).unwrap();
        save(&again, &path, External::Each(1)).unwrap();
        assert_eq!(names(dir.path()), ["m.onnx", "m.onnx.2.data"]);
        assert_eq!(crate::ir::print_model(&load(&path).unwrap()), crate::ir::print_model(&model));
    }
}
