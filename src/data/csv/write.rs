//! Outputs as `.csv`: one row per sample, one column per number.

use crate::data::collect::{Spool, tensors};
use crate::data::error::DataError;
use crate::data::{Sink, write_file};
use crate::tensor::{DType, Shape, Tensor, Value};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Outputs as `.csv`. An output of more than one number per sample has the columns `NAME_0`, `NAME_1`, …; a scalar is repeated
/// for each sample of its batch.
pub(in crate::data) struct CsvSink {
    path: PathBuf,
    header: Option<Vec<String>>,
    spool: Spool,
}

impl CsvSink {
    pub fn create(path: &Path) -> Result<Self, DataError> {
        Ok(Self { path: path.into(), header: None, spool: Spool::create(path)? })
    }
}

/// The columns of an output.
fn columns(name: &str, shape: &[usize]) -> Vec<String> {
    let inner = shape.get(1..).unwrap_or_default();
    if inner.iter().all(|&d| d == 1) {
        return vec![name.into()];
    }
    let mut names = vec![name.to_string()];
    for &d in inner {
        names = names.iter().flat_map(|n| (0..d).map(move |i| format!("{n}_{i}"))).collect();
    }
    names
}

/// The elements as text; floats in the shortest form that reads back as the same number.
fn texts(t: &Tensor) -> Result<Vec<String>, crate::tensor::TensorError> {
    Ok(match t.dtype() {
        DType::String => t.to_slice::<String>()?.into_owned(),
        DType::F64 => t.to_slice::<f64>()?.iter().map(|x| format!("{x:?}")).collect(),
        DType::U64 => t.to_slice::<u64>()?.iter().map(u64::to_string).collect(),
        d if d.is_int() || d == DType::Bool => t.to_i64s()?.iter().map(i64::to_string).collect(),
        _ => t.to_f32s()?.iter().map(|x| format!("{x:?}")).collect(),
    })
}

impl Sink for CsvSink {
    fn write(&mut self, start: usize, count: usize, outputs: &[(String, Value)]) -> Result<(), DataError> {
        let (mut header, mut cells) = (Vec::new(), Vec::new());
        for (name, t) in tensors(outputs, ".csv")? {
            let fault = |what: String| DataError::Output { output: name.clone(), what };
            if t.shape().first().is_some_and(|&n| n != count) {
                return Err(fault(format!("a row for each of {count} samples is needed, found {}{}", t.dtype(), t.shape())));
            }
            let names = columns(&name, t.shape());
            let width = if t.rank() == 0 { 0 } else { names.len() };
            cells.push((texts(&t).map_err(|e| fault(e.to_string()))?, width));
            header.extend(names);
        }
        match &self.header {
            Some(old) if *old != header => return Err(DataError::file(&self.path, "the batches have different outputs")),
            _ => self.header = Some(header),
        }
        let mut rows = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        for i in 0..count {
            let row = cells.iter().flat_map(|(texts, w)| if *w == 0 { &texts[..] } else { &texts[i * w..(i + 1) * w] });
            rows.write_record(row).map_err(|e| DataError::file(&self.path, e))?;
        }
        let bytes = rows.into_inner().map_err(|e| DataError::file(&self.path, e))?;
        self.spool.put(start, count, Shape::default(), &bytes)
    }

    fn finish(self: Box<Self>) -> Result<(), DataError> {
        write_file(&self.path, |out| {
            let mut head = csv::WriterBuilder::new().from_writer(Vec::new());
            head.write_record(self.header.iter().flatten()).map_err(|e| DataError::file(&self.path, e))?;
            let head = head.into_inner().map_err(|e| DataError::file(&self.path, e))?;
            out.write_all(&head).map_err(DataError::io(&self.path))?;
            for part in self.spool.ordered()?.1 {
                self.spool.copy(part, out)?;
            }
            Ok(())
        })
    }
}
