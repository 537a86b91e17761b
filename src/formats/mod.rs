//! File formats. A model's format is told by its content, never by its name.

pub mod onnx;
pub mod paddle;

use crate::ir::Model;
use crate::tensor::map_file;
use bytes::Bytes;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("{}: {detail}", path.display())]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong; the first fault where there are several.
    pub detail: String,
    /// Further faults.
    pub more: Vec<String>,
}

fn fault(path: &Path, detail: impl ToString) -> LoadError {
    LoadError { path: path.to_owned(), detail: detail.to_string(), more: Vec::new() }
}

/// Loads the model in a file, or in the directory of a PaddlePaddle program. Elements of tensors stay views on the mapped
/// file.
///
/// # Errors
/// A file that cannot be read, is of no known format, or is at fault.
pub fn load(path: &Path) -> Result<Model, LoadError> {
    let found;
    let path = if path.is_dir() {
        found = paddle::in_directory(path)?;
        found.as_path()
    } else {
        path
    };
    let file = File::open(path).map_err(|e| fault(path, e))?;
    let meta = file.metadata().map_err(|e| fault(path, e))?;
    if !meta.is_file() {
        return Err(fault(path, "it is not a file"));
    }
    let bytes = map_file(&file).map_err(|e| fault(path, e))?;
    if let Some(other) = foreign(&bytes) {
        return Err(fault(path, other));
    }
    if let Some(program) = paddle::program(&bytes) {
        return paddle::load(path, &program, &|_| false);
    }
    let files = onnx::external::ExternalFiles::of_model(path).map_err(|e| fault(path, e))?;
    onnx::read::read(bytes, &files).map_err(|e| {
        let mut faults = e.0.into_iter();
        LoadError { path: path.to_owned(), detail: faults.next().unwrap_or_default(), more: faults.collect() }
    })
}

/// What a file is that is certainly no ONNX model, and what to do about it.
fn foreign(bytes: &Bytes) -> Option<&'static str> {
    let head = &bytes[..bytes.len().min(4096)];
    let text = std::str::from_utf8(head).ok().map(str::trim_start);
    if bytes.is_empty() {
        return Some("the file is empty");
    }
    if head.starts_with(b"\x80") && head.get(1).is_some_and(|v| (2..=5).contains(v)) {
        return Some(
            "this is a Python pickle (torch.save, or PaddlePaddle's .pdparams and .pdopt), which can run code when it is read; \
             export the model to ONNX, or save it as a program (paddle.jit.save, paddle.static.save_inference_model)",
        );
    }
    if head.starts_with(b"PK\x03\x04") {
        return Some("this is a zip archive (a PyTorch checkpoint?); export the model to ONNX instead");
    }
    // A record: version 0, no LoD, tensor version 0, the length of its header, the header's first field.
    if head.len() > 20 && head[..16].iter().all(|&b| b == 0) && head[16] < 128 && head[17..20] == [0; 3] && head[20] == 8 {
        return Some("this is a PaddlePaddle parameter file; name the program it belongs to (.pdmodel or __model__)");
    }
    match text {
        Some(t) if t.starts_with('{') && t.contains("\"pir\"") => {
            Some("this is a PaddlePaddle 3 program (PIR in JSON), which is not supported; save it as .pdmodel, or export it to ONNX")
        }
        Some(t) if t.starts_with(['{', '[', '<']) => Some("this is a text file, not a model"),
        _ => None,
    }
}
