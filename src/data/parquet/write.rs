//! Outputs as `.parquet`: one number per sample is a column of numbers, several are a list. Rows are written in groups as they
//! come off the file where batches were put aside; the bytes depend on the samples and the size of a batch alone.

use crate::data::collect::{Collected, put_all, tensors};
use crate::data::error::DataError;
use crate::data::{Sink, write_file};
use crate::tensor::{DType, Tensor, TensorError, Value};
use parquet::basic::{Compression, ConvertedType, Repetition, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::{Type, TypePtr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a group, unless a batch has more.
const GROUP: usize = 1 << 16;

/// Outputs as `.parquet`.
pub(in crate::data) struct ParquetSink {
    path: PathBuf,
    collected: Vec<Collected>,
}

impl ParquetSink {
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), collected: Vec::new() }
    }

    fn schema(&self) -> Result<TypePtr, DataError> {
        let broken = |e: ParquetError| DataError::file(&self.path, e);
        let mut fields = Vec::new();
        for c in &self.collected {
            let (physical, converted) = stored(c.dtype)
                .ok_or_else(|| DataError::Output { output: c.name.clone(), what: format!("{} has no place in a .parquet", c.dtype) })?;
            let leaf = |name: &str| {
                Type::primitive_type_builder(name, physical).with_repetition(Repetition::REQUIRED).with_converted_type(converted).build()
            };
            if width(c)? == 1 {
                fields.push(Arc::new(leaf(&c.name).map_err(broken)?));
                continue;
            }
            let element = Arc::new(leaf("element").map_err(broken)?);
            let list = Type::group_type_builder("list").with_repetition(Repetition::REPEATED).with_fields(vec![element]).build();
            let group = Type::group_type_builder(&c.name).with_repetition(Repetition::REQUIRED).with_converted_type(ConvertedType::LIST);
            fields.push(Arc::new(group.with_fields(vec![Arc::new(list.map_err(broken)?)]).build().map_err(broken)?));
        }
        Ok(Arc::new(Type::group_type_builder("schema").with_fields(fields).build().map_err(broken)?))
    }
}

/// How elements are stored.
fn stored(dtype: DType) -> Option<(Physical, ConvertedType)> {
    Some(match dtype {
        DType::Bool => (Physical::BOOLEAN, ConvertedType::NONE),
        DType::I8 => (Physical::INT32, ConvertedType::INT_8),
        DType::I16 => (Physical::INT32, ConvertedType::INT_16),
        DType::I32 => (Physical::INT32, ConvertedType::NONE),
        DType::U8 => (Physical::INT32, ConvertedType::UINT_8),
        DType::U16 => (Physical::INT32, ConvertedType::UINT_16),
        DType::U32 => (Physical::INT32, ConvertedType::UINT_32),
        DType::I64 => (Physical::INT64, ConvertedType::NONE),
        DType::U64 => (Physical::INT64, ConvertedType::UINT_64),
        DType::F16 | DType::BF16 | DType::F32 => (Physical::FLOAT, ConvertedType::NONE),
        DType::F64 => (Physical::DOUBLE, ConvertedType::NONE),
        DType::String => (Physical::BYTE_ARRAY, ConvertedType::UTF8),
        _ => return None,
    })
}

/// Numbers per sample, the same in all batches.
fn width(c: &Collected) -> Result<usize, DataError> {
    let mut width = None;
    for (count, shape) in c.batches()? {
        let fits = shape.is_empty() || shape.first() == Some(&count);
        let found = shape.iter().skip(1).product::<usize>();
        if !fits || *width.get_or_insert(found) != found {
            let what = format!("a row for each of {count} samples is needed, as wide as those before, found {}{shape}", c.dtype);
            return Err(DataError::Output { output: c.name.clone(), what });
        }
    }
    Ok(width.unwrap_or(1))
}

/// Writes the batches `which` of an output as one column of a row group.
fn put(column: &mut SerializedColumnWriter<'_>, c: &Collected, which: std::ops::Range<usize>, width: usize) -> Result<(), DataError> {
    let fault = |what: String| DataError::Output { output: c.name.clone(), what };
    let sizes = c.batches()?;
    let mut all = Vec::new();
    for i in which {
        let t = c.batch(i)?;
        // A scalar stands for each sample of its batch.
        let times = if t.rank() == 0 { sizes[i].0 } else { 1 };
        all.extend(std::iter::repeat_n(t, times));
    }
    let rows = all.iter().map(|t| t.shape().first().copied().unwrap_or(1)).sum::<usize>();
    let (defs, reps) = if width == 1 {
        (None, None)
    } else {
        let levels = (0..rows).flat_map(|_| (0..width.max(1)).map(|i| i16::from(i > 0)));
        (Some(vec![i16::from(width > 0); rows * width.max(1)]), Some(levels.collect::<Vec<i16>>()))
    };
    macro_rules! write {
        ($writer:expr, $take:expr) => {{
            let mut values = Vec::new();
            for t in &all {
                let part: Result<Vec<_>, TensorError> = $take(t);
                values.extend(part.map_err(|e| fault(e.to_string()))?);
            }
            $writer.write_batch(&values, defs.as_deref(), reps.as_deref()).map_err(|e| fault(e.to_string()))?
        }};
    }
    let written = match column.untyped() {
        ColumnWriter::BoolColumnWriter(w) => write!(w, |t: &Tensor| Ok(t.to_slice::<bool>()?.into_owned())),
        ColumnWriter::Int32ColumnWriter(w) => {
            write!(w, |t: &Tensor| Ok(t.to_i64s()?.into_iter().map(|x| x as i32).collect()))
        }
        ColumnWriter::Int64ColumnWriter(w) if c.dtype == DType::U64 => {
            write!(w, |t: &Tensor| Ok(t.to_slice::<u64>()?.iter().map(|x| x.cast_signed()).collect()))
        }
        ColumnWriter::Int64ColumnWriter(w) => write!(w, |t: &Tensor| t.to_i64s()),
        ColumnWriter::FloatColumnWriter(w) => write!(w, |t: &Tensor| t.to_f32s()),
        ColumnWriter::DoubleColumnWriter(w) => write!(w, |t: &Tensor| Ok(t.to_slice::<f64>()?.into_owned())),
        ColumnWriter::ByteArrayColumnWriter(w) => {
            write!(w, |t: &Tensor| Ok(t.as_slice::<String>()?.iter().map(|s| ByteArray::from(s.as_str())).collect()))
        }
        _ => return Err(fault("has no place in a .parquet".into())),
    };
    if written == rows * width { Ok(()) } else { Err(fault(format!("{written} of {} values were written", rows * width))) }
}

impl Sink for ParquetSink {
    fn write(&mut self, start: usize, count: usize, outputs: &[(String, Value)]) -> Result<(), DataError> {
        put_all(&mut self.collected, &self.path, (start, count), &tensors(outputs, ".parquet")?)
    }

    fn finish(self: Box<Self>) -> Result<(), DataError> {
        let schema = self.schema()?;
        let widths = self.collected.iter().map(width).collect::<Result<Vec<_>, _>>()?;
        let sizes: Vec<usize> = match self.collected.first() {
            Some(first) => first.batches()?.into_iter().map(|b| b.0).collect(),
            None => Vec::new(),
        };
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).set_created_by("graphtool".into());
        let properties = Arc::new(properties.build());
        write_file(&self.path, |out| {
            let broken = |e: ParquetError| DataError::file(&self.path, e);
            let mut file = SerializedFileWriter::new(out, schema, properties).map_err(broken)?;
            let mut from = 0;
            while from < sizes.len() {
                let (mut to, mut rows) = (from, 0);
                while to < sizes.len() && (to == from || rows + sizes[to] <= GROUP) {
                    rows += sizes[to];
                    to += 1;
                }
                let mut group = file.next_row_group().map_err(broken)?;
                for (c, &width) in self.collected.iter().zip(&widths) {
                    let Some(mut column) = group.next_column().map_err(broken)? else { break };
                    put(&mut column, c, from..to, width)?;
                    column.close().map_err(broken)?;
                }
                group.close().map_err(broken)?;
                from = to;
            }
            file.close().map_err(broken)?;
            Ok(())
        })
    }
}
