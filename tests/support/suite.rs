//! The cases of the standard's backend suite, as they lie in its folders.

use bytes::Bytes;
use graphtool::formats::onnx::value::{ValueKind, decode_value};
use graphtool::ir::Type;
use graphtool::tensor::Value;
use std::path::{Path, PathBuf};

const CATEGORIES: [&str; 5] = ["light", "node", "pytorch-converted", "pytorch-operator", "simple"];

/// A model with its sets of inputs and expected outputs.
pub struct Case {
    pub category: &'static str,
    pub name: String,
    pub model: PathBuf,
    /// Folders `test_data_set_N`; none where inputs are made as the suite makes them.
    pub sets: Vec<PathBuf>,
}

pub fn cases(root: &Path, filter: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for category in CATEGORIES {
        let Ok(entries) = std::fs::read_dir(root.join(category)) else { continue };
        for path in entries.flatten().map(|e| e.path()) {
            let light = category == "light" && path.extension().is_some_and(|e| e == "onnx");
            let model = if light { path.clone() } else { path.join("model.onnx") };
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if model.is_file() && name.contains(filter) {
                let inside = std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path());
                let mut sets: Vec<_> = inside.filter(|p| p.is_dir()).collect();
                sets.sort();
                cases.push(Case { category, name, model, sets });
            }
        }
    }
    cases.sort_by(|a, b| (a.category, &a.name).cmp(&(b.category, &b.name)));
    cases
}

/// The values in `PREFIX_0.pb`, `PREFIX_1.pb`, …
pub fn read_values(prefix: &Path, types: &[Option<Type>]) -> Result<Vec<Value>, String> {
    let mut values = Vec::new();
    for i in 0.. {
        let file = PathBuf::from(format!("{}_{i}.pb", prefix.display()));
        let Ok(bytes) = std::fs::read(&file) else { break };
        let kind = types.get(i).and_then(Option::as_ref).map(|t| match t {
            Type::Sequence(_) => ValueKind::Sequence,
            Type::Optional(_) => ValueKind::Optional,
            Type::Map { .. } => ValueKind::Map,
            _ => ValueKind::Tensor,
        });
        values.push(decode_value(&Bytes::from(bytes), kind).map_err(|e| format!("{}: {e}", file.display()))?.1);
    }
    Ok(values)
}
