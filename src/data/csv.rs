//! `.csv` files, gzipped or not: a header row, then one row per sample. They are read in batches at any place, with an index
//! of row starts, and never held whole.

mod lines;
mod scan;
mod write;

pub(super) use write::CsvSink;

use super::bound::Columns;
use super::error::DataError;
use crate::tensor::{DType, Element, Tensor, bf16, f16};
use csv::{ByteRecord, Reader, ReaderBuilder};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// An open file.
pub struct Csv {
    path: PathBuf,
    header: Vec<String>,
    rows: scan::Rows,
    empty: Option<String>,
    gzip: bool,
    /// Whether no cell is quoted.
    plain: bool,
    /// A gzip stream cannot be entered in the middle: the reader stays where it is for the next batch.
    cursor: Mutex<Option<Cursor>>,
}

/// A reader and the row that it stands before.
struct Cursor {
    reader: Rows,
    row: usize,
}

enum Rows {
    Plain(lines::Lines),
    /// With the line number that the reader calls 1.
    Quoted(Box<Reader<Box<dyn Read + Send>>>, u64),
}

fn records(from: Box<dyn Read + Send>) -> Reader<Box<dyn Read + Send>> {
    ReaderBuilder::new().has_headers(false).flexible(true).buffer_capacity(1 << 16).from_reader(from)
}

impl Csv {
    /// Opens a file and counts its rows. `empty` is what an empty cell of a number column stands for.
    ///
    /// # Errors
    /// A file that cannot be read, or that has no header row.
    pub fn open(path: &Path, empty: Option<String>) -> Result<Self, DataError> {
        let gzip = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
        let mut csv = Self {
            path: path.into(),
            header: Vec::new(),
            rows: scan::Rows::default(),
            empty,
            gzip,
            plain: false,
            cursor: Mutex::default(),
        };
        let mut first = ByteRecord::new();
        let found = records(csv.stream(0)?).read_byte_record(&mut first).map_err(|e| csv.broken(e))?;
        if !found {
            return Err(DataError::file(path, "no header row: the file is empty"));
        }
        for (i, name) in first.iter().enumerate() {
            let name = std::str::from_utf8(name).map_err(|_| csv.cell(1, &(i + 1).to_string(), "the name is not UTF-8"))?;
            csv.header.push(name.trim().to_string());
        }
        csv.rows = match scan::simple(csv.stream(0)?).map_err(DataError::io(path))? {
            Some(rows) => {
                csv.plain = true;
                rows
            }
            None => scan::quoted(records(csv.stream(0)?)).map_err(|e| csv.broken(e))?,
        };
        Ok(csv)
    }

    fn stream(&self, offset: u64) -> Result<Box<dyn Read + Send>, DataError> {
        let mut file = File::open(&self.path).map_err(DataError::io(&self.path))?;
        if self.gzip {
            return Ok(Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, file))));
        }
        file.seek(SeekFrom::Start(offset)).map_err(DataError::io(&self.path))?;
        Ok(Box::new(file))
    }

    fn broken(&self, e: csv::Error) -> DataError {
        DataError::file(&self.path, e)
    }

    fn cell(&self, line: u64, column: &str, what: impl ToString) -> DataError {
        DataError::Cell { path: self.path.clone(), line, column: column.into(), what: what.to_string() }
    }

    /// The place of a column.
    fn place(&self, name: &str) -> Result<usize, DataError> {
        let mut places = self.header.iter().enumerate().filter(|(_, n)| *n == name).map(|(i, _)| i);
        match (places.next(), places.next()) {
            (Some(place), None) => Ok(place),
            (None, _) => Err(DataError::member(&self.path, name, "no such column")),
            _ => Err(DataError::member(&self.path, name, "the header has this column twice")),
        }
    }

    /// A reader that stands before a row, or shortly before.
    fn cursor(&self, row: usize) -> Result<Cursor, DataError> {
        let (start, row) = if self.gzip { (scan::Start { offset: 0, line: 1 }, 0) } else { self.rows.before(row) };
        let stream = self.stream(start.offset)?;
        let mut reader = match self.plain {
            true => Rows::Plain(lines::Lines::new(stream, start.line)),
            false => Rows::Quoted(Box::new(records(stream)), start.line),
        };
        if self.gzip {
            // The header.
            match &mut reader {
                Rows::Plain(lines) => drop(lines.next().map_err(DataError::io(&self.path))?),
                Rows::Quoted(records, _) => drop(records.read_byte_record(&mut ByteRecord::new()).map_err(|e| self.broken(e))?),
            }
        }
        Ok(Cursor { reader, row })
    }

    fn fill(&self, cursor: &mut Cursor, range: Range<usize>, columns: &mut [Column]) -> Result<(), DataError> {
        let mut record = ByteRecord::new();
        // Columns in the order of their places.
        let mut order: Vec<usize> = (0..columns.len()).collect();
        order.sort_by_key(|&i| columns[i].place);
        while cursor.row < range.end {
            let wanted = cursor.row >= range.start;
            let more = match &mut cursor.reader {
                Rows::Plain(lines) => match lines.next().map_err(DataError::io(&self.path))? {
                    Some((bytes, line)) if wanted => self.put_line(bytes, line, &order, columns).map(|()| true)?,
                    found => found.is_some(),
                },
                Rows::Quoted(reader, first) => {
                    let more = reader.read_byte_record(&mut record).map_err(|e| self.broken(e))?;
                    if more && wanted {
                        let line = *first + line_of(&record, reader.position().line()) - 1;
                        self.put_record(&record, line, columns)?;
                    }
                    more
                }
            };
            if !more {
                return Err(DataError::file(&self.path, format!("ends before sample {}, it was {} long", cursor.row, self.rows.count)));
            }
            cursor.row += 1;
        }
        Ok(())
    }

    fn check_count(&self, line: u64, cells: usize) -> Result<(), DataError> {
        if cells == self.header.len() {
            return Ok(());
        }
        let column = self.header.get(cells).or(self.header.last()).map_or("", String::as_str);
        Err(self.cell(line, column, format!("the row has {cells} cells, the header {}", self.header.len())))
    }

    fn put(&self, line: u64, column: &mut Column, bytes: &[u8]) -> Result<(), DataError> {
        let put = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_string());
        let put = put.and_then(|text| column.cells.put(text, self.empty.as_deref()));
        put.map_err(|what| self.cell(line, &self.header[column.place], what))
    }

    fn put_record(&self, record: &ByteRecord, line: u64, columns: &mut [Column]) -> Result<(), DataError> {
        self.check_count(line, record.len())?;
        columns.iter_mut().try_for_each(|c| self.put(line, c, record.get(c.place).unwrap_or_default()))
    }

    /// Takes the cells of a line without quotes; `order` is that of the places of `columns`.
    fn put_line(&self, bytes: &[u8], line: u64, order: &[usize], columns: &mut [Column]) -> Result<(), DataError> {
        let (mut place, mut from, mut order) = (0, 0, order.iter().peekable());
        let mut done = Ok(());
        for to in memchr::memchr_iter(b',', bytes).chain([bytes.len()]) {
            while let Some(&i) = order.next_if(|&&i| columns[i].place == place) {
                // How many cells there are is said before what is wrong in one.
                done = done.and_then(|()| self.put(line, &mut columns[i], &bytes[from..to]));
            }
            (place, from) = (place + 1, to + 1);
        }
        self.check_count(line, place).and(done)
    }
}

impl Columns for Csv {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.header.clone()
    }

    fn lengths(&self, names: &[&str]) -> Result<Vec<Option<usize>>, DataError> {
        names.iter().map(|n| self.place(n).map(|_| Some(self.rows.count))).collect()
    }

    fn read(&self, names: &[(&str, Option<DType>)], range: Option<Range<usize>>) -> Result<Vec<Tensor>, DataError> {
        let range = range.unwrap_or(0..self.rows.count);
        if range.start > range.end || range.end > self.rows.count {
            return Err(DataError::file(&self.path, format!("samples {range:?} of {}", self.rows.count)));
        }
        let column = |&(name, dtype): &(&str, Option<DType>)| {
            let cells = cells(dtype.unwrap_or(DType::String)).map_err(|e| DataError::member(&self.path, name, e))?;
            Ok(Column { place: self.place(name)?, cells })
        };
        let mut columns = names.iter().map(column).collect::<Result<Vec<_>, DataError>>()?;
        if !range.is_empty() {
            let mut kept = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
            let mut cursor = match kept.take().filter(|c| c.row <= range.start) {
                Some(cursor) if self.gzip => cursor,
                _ => self.cursor(range.start)?,
            };
            if self.gzip {
                // The next batch goes on from here; after an error it starts anew.
                self.fill(&mut cursor, range, &mut columns)?;
                *kept = Some(cursor);
            } else {
                drop(kept);
                self.fill(&mut cursor, range, &mut columns)?;
            }
        }
        Ok(columns.into_iter().map(|c| c.cells.finish()).collect())
    }
}

/// The line of a record by the reader's count, which stands at `after` behind it. The position of a record is before the
/// empty lines that were skipped to reach it.
fn line_of(record: &ByteRecord, after: u64) -> u64 {
    let before = record.position().map_or(1, |p| p.line());
    let inside = memchr::memchr_iter(b'\n', record.as_slice()).count() as u64;
    after.saturating_sub(inside + 1).max(before)
}

struct Column {
    place: usize,
    cells: Box<dyn Cells>,
}

/// Cells of one column, read as elements.
pub(super) trait Cells {
    fn put(&mut self, text: &str, empty: Option<&str>) -> Result<(), String>;
    fn finish(self: Box<Self>) -> Tensor;
}

/// Numbers.
struct Numbers<T>(Vec<T>, fn(&str) -> Option<T>);

impl<T: Element> Cells for Numbers<T> {
    fn put(&mut self, text: &str, empty: Option<&str>) -> Result<(), String> {
        // Most cells are a number and nothing else.
        if let Some(number) = (self.1)(text) {
            self.0.push(number);
            return Ok(());
        }
        let text = text.trim();
        let used = match (text, empty) {
            ("", None) => return Err(format!("expected {}, found an empty cell", T::DTYPE)),
            ("", Some(default)) => default,
            _ => text,
        };
        self.0.push((self.1)(used).ok_or_else(|| format!("expected {}, found {used:?}", T::DTYPE))?);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Tensor {
        Tensor::vector(self.0)
    }
}

/// Strings, as they stand.
struct Texts(Vec<String>);

impl Cells for Texts {
    fn put(&mut self, text: &str, _: Option<&str>) -> Result<(), String> {
        self.0.push(text.into());
        Ok(())
    }

    fn finish(self: Box<Self>) -> Tensor {
        Tensor::vector(self.0)
    }
}

fn parsed<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "true" | "True" | "TRUE" => Some(true),
        "0" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// What cells of a dtype are read into.
pub(super) fn cells(dtype: DType) -> Result<Box<dyn Cells>, String> {
    fn numbers<T: Element + FromStr>() -> Box<dyn Cells> {
        Box::new(Numbers::<T>(Vec::new(), parsed))
    }
    Ok(match dtype {
        DType::F32 => numbers::<f32>(),
        DType::F64 => numbers::<f64>(),
        DType::F16 => numbers::<f16>(),
        DType::BF16 => numbers::<bf16>(),
        DType::I8 => numbers::<i8>(),
        DType::I16 => numbers::<i16>(),
        DType::I32 => numbers::<i32>(),
        DType::I64 => numbers::<i64>(),
        DType::U8 => numbers::<u8>(),
        DType::U16 => numbers::<u16>(),
        DType::U32 => numbers::<u32>(),
        DType::U64 => numbers::<u64>(),
        DType::Bool => Box::new(Numbers(Vec::new(), truth)),
        DType::String => Box::new(Texts(Vec::new())),
        other => return Err(format!("cells of a text file cannot be {other}")),
    })
}
