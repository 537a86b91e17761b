//! Several files one after the other, as if they were one.

use super::error::DataError;
use super::{Form, InputSpec, Options, Samples, Source, input_form, multi_slot, open, parquet_files};
use crate::tensor::{DType, Tensor, Value};
use std::ops::Range;
use std::path::PathBuf;

/// A [`Source`] over files of samples, in the order given.
struct Many {
    /// Each file with the number of its first sample.
    files: Vec<(usize, Box<dyn Source>)>,
    samples: Samples,
}

/// Opens files whose samples follow each other. One path alone may be anything that [`open`] takes.
///
/// # Errors
/// No file at all, a file that cannot be opened, or one among several that cannot be split into samples.
pub fn open_all(paths: &[PathBuf], inputs: &[InputSpec], options: &Options) -> Result<Box<dyn Source>, DataError> {
    let [first, rest @ ..] = paths else { return Err(DataError::Bind("no input files".into())) };
    if rest.is_empty() {
        return open(first, inputs, options);
    }
    // Offsets go on from file to file, which only the reader of such files knows.
    let forms = paths.iter().map(|p| input_form(p, options)).collect::<Result<Vec<_>, _>>()?;
    if forms.iter().all(|f| *f == Form::MultiSlot) {
        return multi_slot(paths, inputs, options);
    }
    if forms.iter().all(|f| *f == Form::Parquet) {
        return parquet_files(paths, inputs, options);
    }
    let (mut files, mut next) = (Vec::new(), 0usize);
    for path in paths {
        let source = open(path, inputs, options)?;
        match source.samples() {
            Samples::Count(n) => {
                let end = next.saturating_add(*n);
                files.push((next, source));
                next = end;
            }
            Samples::Whole(why) => return Err(DataError::file(path, format!("cannot stand among other files: {why}"))),
        }
    }
    Ok(Box::new(Many { files, samples: Samples::Count(next) }))
}

/// One file's part of a range.
type Piece<'a> = (&'a dyn Source, Range<usize>);

impl Many {
    /// The files that a range touches, each with the range inside it; an empty range touches one.
    fn touched(&self, range: Range<usize>) -> Result<Vec<Piece<'_>>, DataError> {
        if let Samples::Count(n) = self.samples
            && (range.start > range.end || range.end > n)
        {
            return Err(DataError::Bind(format!("samples {range:?} of {n} in all files")));
        }
        let mut out: Vec<Piece<'_>> = Vec::new();
        for (start, source) in &self.files {
            let Samples::Count(len) = source.samples() else { continue };
            let (from, to) = (range.start.max(*start), range.end.min(start + len));
            if from < to {
                out.push((source.as_ref(), from - start..to - start));
            }
        }
        if out.is_empty() && range.is_empty() {
            out.extend(self.files.first().map(|(_, s)| (s.as_ref(), 0..0)));
        }
        Ok(out)
    }
}

/// Tensors below each other.
fn stack(parts: &[Tensor]) -> Result<Tensor, String> {
    let [first, rest @ ..] = parts else { return Err("samples past the end of the last file".into()) };
    if rest.is_empty() {
        return Ok(first.clone());
    }
    if let Some(t) = rest.iter().find(|t| t.dtype() != first.dtype() || t.shape().get(1..) != first.shape().get(1..)) {
        return Err(format!("{}{} in one file, {}{} in the next", first.dtype(), first.shape(), t.dtype(), t.shape()));
    }
    let mut shape = first.shape().clone();
    shape[0] = parts.iter().map(|t| t.shape()[0]).sum();
    let done = if first.dtype() == DType::String {
        let texts = parts.iter().map(|t| t.as_slice::<String>()).collect::<Result<Vec<_>, _>>();
        texts.and_then(|t| Tensor::new(shape, t.concat()))
    } else {
        let bytes: Vec<_> = parts.iter().map(|t| t.bytes().unwrap_or_default()).collect();
        Tensor::from_bytes(first.dtype(), shape, bytes.concat()).map(Tensor::aligned)
    };
    done.map_err(|e| e.to_string())
}

impl Source for Many {
    fn samples(&self) -> &Samples {
        &self.samples
    }

    fn read(&self, range: Range<usize>) -> Result<Vec<(String, Value)>, DataError> {
        let mut parts = self.touched(range)?.into_iter().map(|(s, r)| s.read(r)).collect::<Result<Vec<_>, _>>()?;
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let names: Vec<String> = parts.first().into_iter().flatten().map(|(n, _)| n.clone()).collect();
        let one = |(i, name): (usize, String)| {
            let tensors = parts.iter().filter_map(|p| p.get(i)?.1.as_tensor().cloned()).collect::<Vec<_>>();
            let tensor = stack(&tensors).map_err(|what| DataError::Input { input: name.clone(), what })?;
            Ok((name, tensor.into()))
        };
        names.into_iter().enumerate().map(one).collect()
    }

    fn column(&self, name: &str, range: Range<usize>) -> Result<Vec<f64>, DataError> {
        Ok(self.touched(range)?.into_iter().map(|(s, r)| s.column(name, r)).collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn tensor(&self, name: &str, range: Range<usize>) -> Result<Tensor, DataError> {
        let parts = self.touched(range)?.into_iter().map(|(s, r)| s.tensor(name, r)).collect::<Result<Vec<_>, _>>()?;
        stack(&parts).map_err(|what| DataError::Input { input: name.into(), what })
    }
}
