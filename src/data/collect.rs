//! Outputs gathered batch by batch in any order: each batch is put aside in a file as it comes, and taken from there in
//! the order of its samples, so that memory stays bounded and the result depends on the samples alone.

use super::Sink;
use super::error::DataError;
use super::npy;
use super::npz::{member_options, write_archive};
use crate::files::Staged;
use crate::tensor::{DType, Shape, Tensor, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The bytes of one batch.
#[derive(Debug)]
pub(super) struct Part {
    pub count: usize,
    pub shape: Shape,
    offset: u64,
    len: u64,
}

/// Bytes of batches, put aside in a file beside the target.
#[derive(Debug)]
pub(super) struct Spool {
    target: PathBuf,
    // The file's name goes with it.
    _staged: Staged,
    file: File,
    end: u64,
    parts: BTreeMap<usize, Part>,
}

impl Spool {
    pub fn create(target: &Path) -> Result<Self, DataError> {
        let (staged, file) = Staged::scratch(target).map_err(DataError::io(target))?;
        Ok(Self { target: target.into(), _staged: staged, file, end: 0, parts: BTreeMap::new() })
    }

    /// Takes the bytes of the samples from `start` on.
    pub fn put(&mut self, start: usize, count: usize, shape: Shape, bytes: &[u8]) -> Result<(), DataError> {
        match self.parts.get(&start) {
            Some(_) if count == 0 => return Ok(()),
            Some(old) if old.count > 0 => {
                return Err(DataError::file(&self.target, format!("the samples from {start} on came twice")));
            }
            _ => {}
        }
        self.file.seek(SeekFrom::Start(self.end)).and_then(|_| self.file.write_all(bytes)).map_err(DataError::io(&self.target))?;
        let part = Part { count, shape, offset: self.end, len: bytes.len() as u64 };
        self.end += part.len;
        self.parts.insert(start, part);
        Ok(())
    }

    /// The number of samples and the batches in their order.
    pub fn ordered(&self) -> Result<(usize, Vec<&Part>), DataError> {
        let mut next = 0;
        for (&start, part) in &self.parts {
            if start != next && part.count > 0 {
                let what = if start > next { "are missing" } else { "came twice" };
                let (low, high) = (start.min(next), start.max(next));
                return Err(DataError::file(&self.target, format!("samples {low} to {} {what}", high - 1)));
            }
            next += part.count;
        }
        // Empty batches count only where there is nothing else.
        let mut parts: Vec<_> = self.parts.values().filter(|p| p.count > 0).collect();
        if parts.is_empty() {
            parts.extend(self.parts.values().take(1));
        }
        Ok((next, parts))
    }

    /// The bytes of a batch, given to `take` piece by piece.
    fn stream(&self, part: &Part, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<(), DataError> {
        let io = DataError::io(&self.target);
        let mut copy = || {
            let mut file = &self.file;
            file.seek(SeekFrom::Start(part.offset))?;
            let mut left = file.take(part.len);
            let mut buffer = vec![0; usize::try_from(part.len).unwrap_or(usize::MAX).min(1 << 18)];
            loop {
                match left.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => take(&buffer[..n])?,
                }
            }
        };
        copy().map_err(io)
    }

    /// Copies a batch.
    pub fn copy(&self, part: &Part, out: &mut impl Write) -> Result<(), DataError> {
        self.stream(part, |bytes| out.write_all(bytes))
    }
}

/// All batches of one output.
#[derive(Debug)]
pub(super) struct Collected {
    pub name: String,
    pub dtype: DType,
    spool: Spool,
    chars: usize,
}

impl Collected {
    pub fn create(target: &Path, name: &str, dtype: DType) -> Result<Self, DataError> {
        Ok(Self { name: name.into(), dtype, spool: Spool::create(target)?, chars: 0 })
    }

    fn fault(&self, what: String) -> DataError {
        DataError::Output { output: self.name.clone(), what }
    }

    pub fn put(&mut self, start: usize, count: usize, tensor: &Tensor) -> Result<(), DataError> {
        if tensor.dtype() != self.dtype {
            return Err(self.fault(format!("expected {} as in the other batches, found {}", self.dtype, tensor.dtype())));
        }
        if let Ok(texts) = tensor.as_slice::<String>() {
            self.chars = texts.iter().map(|t| t.chars().count()).max().unwrap_or(0).max(self.chars);
            let mut bytes = Vec::new();
            for text in texts {
                bytes.extend((text.len() as u64).to_le_bytes());
                bytes.extend(text.bytes());
            }
            return self.spool.put(start, count, tensor.shape().clone(), &bytes);
        }
        let bytes = npy::plain_bytes(tensor).ok_or_else(|| self.fault("its elements are not in the file".into()))?;
        self.spool.put(start, count, tensor.shape().clone(), &bytes)
    }

    /// The dims of the whole: a single batch as it stands, several along the first axis, scalars as one element per batch.
    pub fn shape(&self) -> Result<Shape, DataError> {
        let (samples, parts) = self.spool.ordered()?;
        let [first, rest @ ..] = &parts[..] else { return Ok(Shape::from([0])) };
        if rest.is_empty() {
            return Ok(first.shape.clone());
        }
        if parts.iter().all(|p| p.shape.is_empty()) {
            return Ok(Shape::from([parts.len()]));
        }
        for part in &parts {
            if part.shape.first() != Some(&part.count) || part.shape.get(1..) != first.shape.get(1..) {
                let inner = first.shape.get(1..).unwrap_or_default().iter().map(|d| format!(",{d}")).collect::<String>();
                return Err(
                    self.fault(format!("expected [{}{inner}] for a batch of {} samples, found {}", part.count, part.count, part.shape))
                );
            }
        }
        let mut shape = first.shape.clone();
        shape[0] = samples;
        Ok(shape)
    }

    /// Writes the elements in the order of their samples, as they stand in an `.npy`.
    pub fn write_elements(&self, out: &mut impl Write) -> Result<(), DataError> {
        for part in self.spool.ordered()?.1 {
            if self.dtype != DType::String {
                self.spool.copy(part, out)?;
                continue;
            }
            let mut bytes = Vec::new();
            for text in self.part_texts(part)? {
                npy::put_text(&mut bytes, &text, self.chars);
            }
            out.write_all(&bytes).map_err(DataError::io(&self.spool.target))?;
        }
        Ok(())
    }

    /// The strings in the order of their samples.
    pub fn texts(&self) -> Result<Vec<String>, DataError> {
        let mut all = Vec::new();
        for part in self.spool.ordered()?.1 {
            all.extend(self.part_texts(part)?);
        }
        Ok(all)
    }

    fn part_texts(&self, part: &Part) -> Result<Vec<String>, DataError> {
        let mut bytes = Vec::new();
        self.spool.copy(part, &mut bytes)?;
        let mut texts = Vec::new();
        let mut rest = &bytes[..];
        while let Some((len, tail)) = rest.split_first_chunk::<8>() {
            let (text, tail) = tail.split_at_checked(u64::from_le_bytes(*len) as usize).ok_or_else(|| self.fault("was cut off".into()))?;
            texts.push(String::from_utf8_lossy(text).into_owned());
            rest = tail;
        }
        Ok(texts)
    }

    /// Samples and dims of each batch, in their order.
    #[cfg(feature = "parquet")]
    pub fn batches(&self) -> Result<Vec<(usize, Shape)>, DataError> {
        Ok(self.spool.ordered()?.1.into_iter().map(|p| (p.count, p.shape.clone())).collect())
    }

    /// One of [`batches`](Self::batches), as it was put aside.
    #[cfg(feature = "parquet")]
    pub fn batch(&self, i: usize) -> Result<Tensor, DataError> {
        let parts = self.spool.ordered()?.1;
        let part = parts.get(i).ok_or_else(|| self.fault(format!("has no batch {i}")))?;
        let fault = |e: crate::tensor::TensorError| self.fault(e.to_string());
        if self.dtype == DType::String {
            return Tensor::new(part.shape.clone(), self.part_texts(part)?).map_err(fault);
        }
        let mut bytes = Vec::new();
        self.spool.copy(part, &mut bytes)?;
        Tensor::from_bytes(self.dtype, part.shape.clone(), bytes).map(Tensor::aligned).map_err(fault)
    }

    /// The header of an `.npy` of the whole.
    fn npy_header(&self) -> Result<Vec<u8>, DataError> {
        Ok(npy::header(self.dtype, &self.shape()?, self.chars))
    }
}

/// Puts each output in its collection; the first batch says which there are.
pub(super) fn put_all(
    collected: &mut Vec<Collected>,
    target: &Path,
    (start, count): (usize, usize),
    outputs: &[(String, Tensor)],
) -> Result<(), DataError> {
    if collected.is_empty() {
        for (i, (name, t)) in outputs.iter().enumerate() {
            if outputs[..i].iter().any(|(n, _)| n == name) {
                return Err(DataError::Output { output: name.clone(), what: "is there twice".into() });
            }
            collected.push(Collected::create(target, name, t.dtype())?);
        }
    }
    if !collected.iter().map(|c| &c.name).eq(outputs.iter().map(|(n, _)| n)) {
        return Err(DataError::file(target, "the batches have different outputs"));
    }
    collected.iter_mut().zip(outputs).try_for_each(|(c, (_, t))| c.put(start, count, t))
}

/// The tensors of outputs, for files that hold nothing else.
pub(super) fn tensors(outputs: &[(String, Value)], form: &str) -> Result<Vec<(String, Tensor)>, DataError> {
    let one = |(name, value): &(String, Value)| match value.as_tensor() {
        Some(t) => Ok((name.clone(), t.clone())),
        None => {
            Err(DataError::Output { output: name.clone(), what: format!("{} cannot be written as {form}; a folder can", value.describe()) })
        }
    };
    outputs.iter().map(one).collect()
}

/// Outputs as an `.npz`.
pub(super) struct NpzSink {
    path: PathBuf,
    collected: Vec<Collected>,
}

impl NpzSink {
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), collected: Vec::new() }
    }
}

impl Sink for NpzSink {
    fn write(&mut self, start: usize, count: usize, outputs: &[(String, Value)]) -> Result<(), DataError> {
        put_all(&mut self.collected, &self.path, (start, count), &tensors(outputs, ".npz")?)
    }

    fn finish(self: Box<Self>) -> Result<(), DataError> {
        write_archive(&self.path, |zip| {
            for output in &self.collected {
                let zipped = zip.start_file(format!("{}.npy", output.name), member_options());
                zipped.map_err(|e| DataError::member(&self.path, &output.name, e))?;
                zip.write_all(&output.npy_header()?).map_err(DataError::io(&self.path))?;
                output.write_elements(zip)?;
            }
            Ok(())
        })
    }
}
