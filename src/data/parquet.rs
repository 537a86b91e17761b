//! `.parquet` files: columns of numbers, truths and texts, and lists of them. They are read in batches at any place; a reader
//! stays where it is for the next batch, so that going through a file reads each page once.

mod write;

pub(super) use write::ParquetSink;

use super::bound::{Columns, listed};
use super::error::DataError;
use super::ragged::{Part, names};
use crate::tensor::{DType, Tensor, cast};
use parquet::basic::{ConvertedType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Files with the same columns, one after the other.
pub struct Parquet {
    files: Vec<One>,
    columns: Vec<String>,
    rows: usize,
    empty: Option<String>,
}

struct One {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    /// The first row of each row group.
    starts: Vec<usize>,
    rows: usize,
    /// The leaf of each column.
    leaves: HashMap<String, usize>,
    cursors: Mutex<HashMap<usize, Cursor>>,
}

/// A reader of one leaf, in one row group, and the row that it stands before.
struct Cursor {
    group: usize,
    row: usize,
    reader: ColumnReader,
}

impl Parquet {
    /// Opens files. `empty` is what a null stands for in a column of numbers.
    ///
    /// # Errors
    /// A file that cannot be read or is no Parquet.
    pub fn open(paths: &[PathBuf], empty: Option<String>) -> Result<Self, DataError> {
        let mut all = Self { files: Vec::new(), columns: Vec::new(), rows: 0, empty };
        for path in paths {
            let file = One::open(path)?;
            all.rows += file.rows;
            if all.files.is_empty() {
                let schema = file.reader.metadata().file_metadata().schema_descr();
                all.columns = schema.columns().iter().filter_map(|c| column_name(c)).collect();
            }
            all.files.push(file);
        }
        Ok(all)
    }

    fn find<'a>(&self, name: &'a str) -> Option<(&'a str, Part)> {
        if self.columns.iter().any(|c| c == name) {
            return Some((name, Part::Dense));
        }
        Part::split(name).filter(|(column, _)| self.columns.iter().any(|c| c == column))
    }
}

/// The name of a leaf: that of its column, or of its list; none for lists of lists.
fn column_name(c: &ColumnDescriptor) -> Option<String> {
    match c.max_rep_level() {
        0 => Some(c.path().parts().join(".")),
        1 => c.path().parts().first().cloned(),
        _ => None,
    }
}

impl One {
    fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let reader = SerializedFileReader::new(file).map_err(|e| DataError::file(path, e))?;
        let (mut starts, mut rows) = (Vec::new(), 0usize);
        for group in reader.metadata().row_groups() {
            starts.push(rows);
            rows = rows.saturating_add(usize::try_from(group.num_rows()).unwrap_or(0));
        }
        let schema = reader.metadata().file_metadata().schema_descr();
        let leaves = schema.columns().iter().enumerate().filter_map(|(i, c)| Some((column_name(c)?, i))).collect();
        Ok(Self { path: path.into(), starts, rows, leaves, cursors: Mutex::default(), reader })
    }

    /// Reads rows of a column behind those that `into` has.
    fn read(&self, name: &str, range: Range<usize>, into: &mut Taken) -> Result<(), DataError> {
        let leaf = *self.leaves.get(name).ok_or_else(|| DataError::member(&self.path, name, "no such column in this file"))?;
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let about = schema.column(leaf);
        let broken = |e: ParquetError| DataError::member(&self.path, name, e);
        let mut at = range.start;
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        while at < range.end {
            let group = self.starts.partition_point(|s| *s <= at).saturating_sub(1);
            let end = self.starts.get(group + 1).copied().unwrap_or(self.rows).min(range.end);
            let mut cursor = match cursors.remove(&leaf).filter(|c| c.group == group && c.row <= at) {
                Some(cursor) => cursor,
                None => {
                    let reader = self.reader.get_row_group(group).and_then(|g| g.get_column_reader(leaf)).map_err(broken)?;
                    Cursor { group, row: self.starts[group], reader }
                }
            };
            let base = Base { batch: into.lengths.len(), file: at };
            let found = take(&mut cursor.reader, &about, at - cursor.row, end - at, into).map_err(|e| e.at(&self.path, name, base))?;
            if found != end - at {
                return Err(DataError::member(&self.path, name, format!("ends after {found} of {} rows", end - at)));
            }
            cursor.row = end;
            cursors.insert(leaf, cursor);
            at = end;
        }
        Ok(())
    }
}

/// What is read of one column.
#[derive(Default)]
struct Taken {
    values: Values,
    lengths: Vec<usize>,
    /// What a null stands for.
    empty: Option<String>,
}

/// Elements as Parquet stores them.
#[derive(Default)]
enum Values {
    #[default]
    None,
    Bool(Vec<bool>),
    I32(Vec<i32>),
    U32(Vec<u32>),
    I64(Vec<i64>),
    U64(Vec<u64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Text(Vec<String>),
}

impl Values {
    fn tensor(self) -> Tensor {
        match self {
            Values::None => Tensor::vector(Vec::<f32>::new()),
            Values::Bool(v) => Tensor::vector(v),
            Values::I32(v) => Tensor::vector(v),
            Values::U32(v) => Tensor::vector(v),
            Values::I64(v) => Tensor::vector(v),
            Values::U64(v) => Tensor::vector(v),
            Values::F32(v) => Tensor::vector(v),
            Values::F64(v) => Tensor::vector(v),
            Values::Text(v) => Tensor::vector(v),
        }
    }
}

/// A fault in a column; the row counts those that the batch has so far.
enum Fault {
    Broken(String),
    Row(usize, String),
}

/// Where the first row of what is taken stands: in the batch and in its file.
#[derive(Clone, Copy)]
struct Base {
    batch: usize,
    file: usize,
}

impl Fault {
    fn at(self, path: &Path, name: &str, base: Base) -> DataError {
        match self {
            Fault::Broken(what) => DataError::member(path, name, what),
            Fault::Row(row, what) => DataError::member(path, name, format!("row {}: {what}", row - base.batch.min(row) + base.file)),
        }
    }
}

impl From<ParquetError> for Fault {
    fn from(e: ParquetError) -> Self {
        Fault::Broken(e.to_string())
    }
}

/// Skips rows, then takes rows; gives how many there were.
fn take(reader: &mut ColumnReader, about: &ColumnDescriptor, skip: usize, count: usize, into: &mut Taken) -> Result<usize, Fault> {
    let (physical, kind) = (about.physical_type(), about.converted_type());
    macro_rules! numbers {
        ($reader:expr, $kind:ident, $convert:expr, $parse:expr) => {{
            if matches!(into.values, Values::None) {
                into.values = Values::$kind(Vec::new());
            }
            let Values::$kind(values) = &mut into.values else {
                return Err(Fault::Broken(format!("{physical} in this file, another type in the file before")));
            };
            rows($reader, about, (skip, count), &mut into.lengths, |v| Ok(values.push($convert(v)?)), into.empty.as_deref().map($parse))
        }};
    }
    fn plain<A, B: From<A>>(x: A) -> Result<B, String> {
        Ok(x.into())
    }
    match (reader, kind) {
        (_, ConvertedType::DECIMAL | ConvertedType::INTERVAL) => Err(Fault::Broken(format!("columns of {kind} are not read"))),
        (ColumnReader::BoolColumnReader(r), _) => numbers!(r, Bool, plain::<bool, bool>, |t: &str| t.parse().ok()),
        (ColumnReader::Int32ColumnReader(r), ConvertedType::UINT_32) => {
            numbers!(r, U32, |v: i32| Ok::<_, String>(v.cast_unsigned()), |t: &str| t.parse::<u32>().ok().map(u32::cast_signed))
        }
        (ColumnReader::Int32ColumnReader(r), _) => numbers!(r, I32, plain::<i32, i32>, |t: &str| t.parse().ok()),
        (ColumnReader::Int64ColumnReader(r), ConvertedType::UINT_64) => {
            numbers!(r, U64, |v: i64| Ok::<_, String>(v.cast_unsigned()), |t: &str| t.parse::<u64>().ok().map(u64::cast_signed))
        }
        (ColumnReader::Int64ColumnReader(r), _) => numbers!(r, I64, plain::<i64, i64>, |t: &str| t.parse().ok()),
        (ColumnReader::FloatColumnReader(r), _) => numbers!(r, F32, plain::<f32, f32>, |t: &str| t.parse().ok()),
        (ColumnReader::DoubleColumnReader(r), _) => numbers!(r, F64, plain::<f64, f64>, |t: &str| t.parse().ok()),
        (ColumnReader::ByteArrayColumnReader(r), _) => {
            let text = |b: ByteArray| String::from_utf8(b.data().to_vec()).map_err(|_| "is not UTF-8".to_string());
            numbers!(r, Text, text, |t: &str| Some(ByteArray::from(t)))
        }
        _ => Err(Fault::Broken(format!("columns of {} are not read", Type::to_string(&physical)))),
    }
}

/// Reads rows of one leaf; each value goes to `put`, its count per row to `lengths`. A null is what `empty` holds.
fn rows<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    about: &ColumnDescriptor,
    (skip, count): (usize, usize),
    lengths: &mut Vec<usize>,
    mut put: impl FnMut(T::T) -> Result<(), String>,
    empty: Option<Option<T::T>>,
) -> Result<usize, Fault> {
    let skipped = reader.skip_records(skip)?;
    if skipped != skip {
        return Err(Fault::Broken(format!("ends {} rows early", skip - skipped)));
    }
    let (mut found, mut defs, mut reps, mut values) = (0, Vec::new(), Vec::new(), Vec::new());
    while found < count {
        match reader.read_records(count - found, Some(&mut defs), Some(&mut reps), &mut values)?.0 {
            0 => break,
            n => found += n,
        }
    }
    let (full, is_list) = (about.max_def_level(), about.max_rep_level() > 0);
    let mut values = values.into_iter();
    let mut give = |value: Option<T::T>, lengths: &mut Vec<usize>| {
        let row = lengths.len().saturating_sub(1);
        if let Some(length) = lengths.last_mut() {
            *length += 1;
        }
        put(value.unwrap_or_default()).map_err(|what| Fault::Row(row, what))
    };
    if full == 0 {
        for _ in 0..found {
            lengths.push(0);
            give(values.next(), lengths)?;
        }
        return Ok(found);
    }
    // In a list, what is defined down to the repeated group but not to the value is a null element.
    let null_element = if is_list && about.self_type().is_optional() { full - 1 } else { i16::MAX };
    for (i, &def) in defs.iter().enumerate() {
        if !is_list || reps.get(i) == Some(&0) {
            lengths.push(0);
        }
        if def == full {
            give(values.next(), lengths)?;
        } else if !is_list || def == null_element {
            let row = lengths.len().saturating_sub(1);
            let default = match &empty {
                None => return Err(Fault::Row(row, "is null; --empty says what a null stands for".into())),
                Some(None) => return Err(Fault::Row(row, format!("is null, and --empty is no {}", about.physical_type()))),
                Some(default) => default.clone(),
            };
            give(default, lengths)?;
        }
    }
    Ok(found)
}

impl Columns for Parquet {
    fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |f| &f.path)
    }

    fn names(&self) -> Vec<String> {
        self.columns.iter().flat_map(|c| names(c)).collect()
    }

    fn lengths(&self, names: &[&str]) -> Result<Vec<Option<usize>>, DataError> {
        Ok(names.iter().map(|_| Some(self.rows)).collect())
    }

    fn read(&self, names: &[(&str, Option<DType>)], range: Option<Range<usize>>) -> Result<Vec<Tensor>, DataError> {
        let range = range.unwrap_or(0..self.rows);
        // Values and offsets of a list are read once.
        let mut read: HashMap<&str, (Vec<usize>, Tensor)> = HashMap::new();
        let mut tensors = Vec::new();
        for &(name, dtype) in names {
            let missing = || DataError::member(self.path(), name, format!("no such column, there is {}", listed(&self.columns)));
            let (column, part) = self.find(name).ok_or_else(missing)?;
            if !read.contains_key(column) {
                read.insert(column, self.column(column, range.clone())?);
            }
            let Some((lengths, values)) = read.get(column) else { continue };
            let values = match (values.dtype(), dtype) {
                // Python writes numbers as float64 unless it is told otherwise; the nearest float32 is what a text file gives too.
                (DType::F64, Some(DType::F32)) if part.has_values() => {
                    cast(values, DType::F32).map_err(|e| DataError::member(self.path(), name, e))?
                }
                _ => values.clone(),
            };
            let fault = |(sample, what)| DataError::member(self.path(), name, format!("sample {}: {what}", range.start + sample));
            tensors.push(part.take(lengths, values).map_err(fault)?);
        }
        Ok(tensors)
    }
}

impl Parquet {
    fn column(&self, column: &str, range: Range<usize>) -> Result<(Vec<usize>, Tensor), DataError> {
        let mut taken = Taken { empty: self.empty.clone(), ..Taken::default() };
        let mut first = 0;
        for file in &self.files {
            let (from, to) = (range.start.max(first), range.end.min(first + file.rows));
            if from < to {
                file.read(column, from - first..to - first, &mut taken)?;
            }
            first += file.rows;
        }
        Ok((taken.lengths, taken.values.tensor()))
    }
}
