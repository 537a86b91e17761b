//! Folders in the layout of ONNX's test data: `input_0.pb`, `input_1.pb`, … in; `output_0.pb`, … out. Read also: one array
//! per input in `in_NAME.npy`, with lengths of sequences in `meta.json`, as PaddlePaddle's executor is recorded.

use super::bound::fit;
use super::collect::{Collected, put_all};
use super::error::DataError;
use super::npy::read_npy;
use super::{InputSpec, Samples, Sink, Source};
use crate::files::{FileWriter, Staged};
use crate::formats::onnx::value::{decode_value, encode_value, tensor_prefix};
use crate::tensor::{DType, Tensor, Value, map_file, pack_bits};
use bytes::Bytes;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A folder of inputs: one run as it stands.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    values: Vec<(String, Value)>,
    samples: Samples,
}

/// The files `PREFIX_K.pb` of a folder, in the order of K.
fn numbered(dir: &Path, prefix: &str) -> Result<Vec<(usize, PathBuf)>, DataError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(DataError::io(dir))? {
        let path = entry.map_err(DataError::io(dir))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let number = name.strip_prefix(prefix).and_then(|n| n.strip_prefix('_')).and_then(|n| n.strip_suffix(".pb"));
        if let Some(k) = number.and_then(|n| n.parse().ok()) {
            files.push((k, path));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads the values of `PREFIX_0.pb`, `PREFIX_1.pb`, … with their names, each taken for what its bytes are.
///
/// # Errors
/// A folder or file that cannot be read.
pub fn read_folder(dir: &Path, prefix: &str) -> Result<Vec<(String, Value)>, DataError> {
    let one = |(_, path): (usize, PathBuf)| decode_value(&map(&path)?, None).map_err(|e| DataError::file(&path, e));
    numbered(dir, prefix)?.into_iter().map(one).collect()
}

fn map(path: &Path) -> Result<Bytes, DataError> {
    File::open(path).and_then(|f| map_file(&f)).map_err(DataError::io(path))
}

impl Folder {
    /// Reads the values for a model's inputs. A file belongs to the input whose name is in it, or else to the one at its
    /// number.
    ///
    /// # Errors
    /// Inputs without a file, files without an input, and values of another type than the input's.
    pub fn open(dir: &Path, specs: &[InputSpec]) -> Result<Self, DataError> {
        let mut found: Vec<Option<(PathBuf, Value)>> = specs.iter().map(|_| None).collect();
        let mut unnamed = Vec::new();
        for (spec, found) in specs.iter().zip(&mut found) {
            let path = dir.join(format!("in_{}.npy", spec.name));
            if path.is_file() {
                let tensor = read_npy(&map(&path)?).map_err(|e| DataError::file(&path, e))?;
                *found = Some((path, tensor.into()));
            } else if let Some(fed) = spec.name.strip_suffix(".lod") {
                *found = offsets(dir, fed)?.map(|t| (dir.join("meta.json"), t.into()));
            }
        }
        for (k, path) in numbered(dir, "input")? {
            let bytes = map(&path)?;
            let named = specs.iter().enumerate().find_map(|(i, spec)| match decode_value(&bytes, Some(spec.kind)) {
                Ok((name, value)) if name == spec.name => Some((i, value)),
                _ => None,
            });
            match named {
                Some((i, _)) if found[i].is_some() => {
                    return Err(DataError::file(&path, format!("a second value for input {:?}", specs[i].name)));
                }
                Some((i, value)) => found[i] = Some((path, value)),
                None => unnamed.push((k, path, bytes)),
            }
        }
        for (k, path, bytes) in unnamed {
            let Some(spec) = specs.get(k).filter(|_| found[k].is_none()) else {
                let name = decode_value(&bytes, None).map_err(|e| DataError::file(&path, e))?.0;
                return Err(DataError::file(&path, format!("the model has no input {name:?} and none left at place {k}")));
            };
            let value = decode_value(&bytes, Some(spec.kind)).map_err(|e| DataError::file(&path, e))?.1;
            found[k] = Some((path, value));
        }
        let mut values = Vec::new();
        for (spec, found) in specs.iter().zip(found) {
            let fault = |what| DataError::Input { input: spec.name.clone(), what };
            match found {
                Some((path, Value::Tensor(t))) => {
                    let dtype = t.dtype();
                    let t = Some(t).filter(|t| t.dtype() == spec.dtype).ok_or_else(|| format!("expected {}, found {dtype}", spec.dtype));
                    let t = t.and_then(|t| fit(spec, t)).map_err(|what| fault(format!("{what} in {}", path.display())))?;
                    values.push((spec.name.clone(), t.into()));
                }
                Some((_, value)) => values.push((spec.name.clone(), value)),
                None if spec.optional => {}
                None => return Err(fault(format!("no file for it in {}", dir.display()))),
            }
        }
        let samples = Samples::Whole("a folder in the ONNX layout is one run".into());
        Ok(Self { path: dir.into(), values, samples })
    }
}

/// The offsets of a sequence input: the running sums of the lengths that `meta.json` lists.
fn offsets(dir: &Path, input: &str) -> Result<Option<Tensor>, DataError> {
    let path = dir.join("meta.json");
    if !path.is_file() {
        return Ok(None);
    }
    let meta: serde_json::Value = serde_json::from_slice(&map(&path)?).map_err(|e| DataError::file(&path, e))?;
    let feeds = meta["feeds"].as_array().into_iter().flatten();
    let lengths = feeds.filter(|f| f["name"] == input).find_map(|f| f["seq_lens"].as_array()?.last()?.as_array().cloned());
    Ok(lengths.map(|lengths| {
        let ends = lengths.iter().scan(0, |end, n| {
            *end += n.as_i64().unwrap_or(0);
            Some(*end)
        });
        Tensor::vector(std::iter::once(0).chain(ends).collect::<Vec<i64>>())
    }))
}

impl Source for Folder {
    fn samples(&self) -> &Samples {
        &self.samples
    }

    fn read(&self, _: Range<usize>) -> Result<Vec<(String, Value)>, DataError> {
        Ok(self.values.clone())
    }

    fn column(&self, name: &str, _: Range<usize>) -> Result<Vec<f64>, DataError> {
        Err(DataError::member(&self.path, name, "a folder has no columns"))
    }

    fn tensor(&self, name: &str, _: Range<usize>) -> Result<Tensor, DataError> {
        Err(DataError::member(&self.path, name, "a folder has no columns"))
    }
}

/// Outputs as a folder.
pub(super) struct FolderSink {
    path: PathBuf,
    collected: Vec<Collected>,
    /// A whole run with outputs that are no tensors: their files, by number.
    values: Option<Vec<Vec<u8>>>,
}

/// The folder may be new, empty, or one of outputs alone; any other is not ours to replace.
fn replaceable(path: &Path) -> Result<(), DataError> {
    if !path.exists() {
        return Ok(());
    }
    let outputs = numbered(path, "output")?;
    for entry in fs::read_dir(path).map_err(DataError::io(path))? {
        let entry = entry.map_err(DataError::io(path))?.path();
        if !outputs.iter().any(|(_, p)| *p == entry) {
            return Err(DataError::file(
                path,
                format!("holds {:?}, so it is not replaced by outputs", entry.file_name().unwrap_or_default()),
            ));
        }
    }
    Ok(())
}

impl FolderSink {
    pub fn create(path: &Path) -> Result<Self, DataError> {
        // `out/` and `out` are one folder.
        let path: PathBuf = path.components().collect();
        replaceable(&path)?;
        drop(Staged::dir(&path).map_err(DataError::io(&path))?);
        Ok(Self { path, collected: Vec::new(), values: None })
    }
}

impl Sink for FolderSink {
    fn write(&mut self, start: usize, count: usize, outputs: &[(String, Value)]) -> Result<(), DataError> {
        let tensors: Option<Vec<_>> = outputs.iter().map(|(n, v)| Some((n.clone(), v.as_tensor()?.clone()))).collect();
        match tensors {
            Some(tensors) if self.values.is_none() => put_all(&mut self.collected, &self.path, (start, count), &tensors),
            _ if self.values.is_some() || !self.collected.is_empty() => {
                Err(DataError::file(&self.path, "outputs that are no tensors come from one run alone, not from batches"))
            }
            _ => {
                let one = |(name, value): &(String, Value)| {
                    encode_value(name, value).map_err(|e| DataError::Output { output: name.clone(), what: e.to_string() })
                };
                self.values = Some(outputs.iter().map(one).collect::<Result<_, _>>()?);
                Ok(())
            }
        }
    }

    fn finish(self: Box<Self>) -> Result<(), DataError> {
        replaceable(&self.path)?;
        let io = |e| DataError::Io { path: self.path.clone(), error: e };
        let staged = Staged::dir(&self.path).map_err(io)?;
        let count = self.values.as_ref().map_or(self.collected.len(), Vec::len);
        for k in 0..count {
            let mut out = FileWriter::create(&staged.path().join(format!("output_{k}.pb"))).map_err(io)?;
            match &self.values {
                Some(values) => out.write_all(&values[k]).map_err(io)?,
                None => write_tensor(&self.collected[k], &mut out).map_err(|e| match e {
                    Ok(e) => e,
                    Err(e) => io(e),
                })?,
            }
            out.sync().map_err(io)?;
        }
        staged.put_in_place().map_err(io)
    }
}

/// Writes a tensor as a file; its elements go through memory only where they are strings or packed.
fn write_tensor(c: &Collected, out: &mut impl Write) -> Result<(), Result<DataError, std::io::Error>> {
    let shape = c.shape().map_err(Ok)?;
    let fault = |what: String| Ok(DataError::Output { output: c.name.clone(), what });
    let small = |tensor: Result<Tensor, crate::tensor::TensorError>| {
        let tensor = tensor.map_err(|e| fault(e.to_string()))?;
        encode_value(&c.name, &tensor.into()).map_err(|e| fault(e.to_string()))
    };
    if c.dtype == DType::String {
        let bytes = small(Tensor::new(shape, c.texts().map_err(Ok)?))?;
        return out.write_all(&bytes).map_err(Err);
    }
    if c.dtype.size().is_none() {
        let mut codes = Vec::new();
        c.write_elements(&mut codes).map_err(Ok)?;
        let bytes = small(Tensor::from_vec_as(c.dtype, shape, pack_bits(&codes, c.dtype.bits())))?;
        return out.write_all(&bytes).map_err(Err);
    }
    let len = c.dtype.byte_len(&shape).ok_or_else(|| fault(format!("the size of {shape} does not fit")))?;
    out.write_all(&tensor_prefix(&c.name, c.dtype, &shape, len)).map_err(Err)?;
    c.write_elements(out).map_err(Ok)
}

/// Writes values as `PREFIX_0.pb`, `PREFIX_1.pb`, … into a folder that is there.
///
/// # Errors
/// Those of the system, and values that no file can hold.
pub fn write_folder(dir: &Path, prefix: &str, values: &[(String, Value)]) -> Result<(), DataError> {
    for (k, (name, value)) in values.iter().enumerate() {
        let path = dir.join(format!("{prefix}_{k}.pb"));
        let bytes = encode_value(name, value).map_err(|e| DataError::file(&path, e))?;
        super::write_file(&path, |out| out.write_all(&bytes).map_err(DataError::io(&path)))?;
    }
    Ok(())
}
