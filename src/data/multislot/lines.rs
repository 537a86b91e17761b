//! The lines of a text file, at any place, never held whole: an index of where every so many of them start. A gzipped file
//! cannot be entered in the middle: its reader stays where it is for the next batch.

use crate::data::error::DataError;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Lines between noted starts.
const STRIDE: usize = 256;

/// A file of lines; empty ones do not count.
pub(super) struct Lines {
    path: PathBuf,
    gzip: bool,
    rows: usize,
    /// Offset and number of every `STRIDE`-th line.
    starts: Vec<(u64, u64)>,
    kept: Mutex<Option<Cursor>>,
}

/// A reader and the line that it stands before.
struct Cursor {
    reader: BufReader<Box<dyn Read + Send>>,
    row: usize,
    /// Lines read, empty ones too.
    line: u64,
    buffer: Vec<u8>,
}

impl Cursor {
    /// The next line that is not empty: its number, from 1, and bytes read before it. False at the end.
    fn next(&mut self, path: &Path) -> Result<bool, DataError> {
        loop {
            self.buffer.clear();
            if self.reader.read_until(b'\n', &mut self.buffer).map_err(DataError::io(path))? == 0 {
                return Ok(false);
            }
            self.line += 1;
            if !self.buffer.trim_ascii().is_empty() {
                self.row += 1;
                return Ok(true);
            }
        }
    }
}

impl Lines {
    /// Opens a file and counts its lines; each is shown to `see`.
    pub fn open(path: &Path, mut see: impl FnMut(&str)) -> Result<Self, DataError> {
        let gzip = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
        let mut lines = Self { path: path.into(), gzip, rows: 0, starts: Vec::new(), kept: Mutex::default() };
        let mut cursor = lines.cursor((0, 0), 0)?;
        let mut offset = 0u64;
        loop {
            cursor.buffer.clear();
            let n = cursor.reader.read_until(b'\n', &mut cursor.buffer).map_err(DataError::io(path))?;
            if n == 0 {
                return Ok(lines);
            }
            cursor.line += 1;
            if !cursor.buffer.trim_ascii().is_empty() {
                if lines.rows.is_multiple_of(STRIDE) {
                    lines.starts.push((offset, cursor.line - 1));
                }
                lines.rows += 1;
                see(&String::from_utf8_lossy(&cursor.buffer));
            }
            offset += n as u64;
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    fn cursor(&self, (offset, line): (u64, u64), row: usize) -> Result<Cursor, DataError> {
        let mut file = File::open(&self.path).map_err(DataError::io(&self.path))?;
        let from: Box<dyn Read + Send> = if self.gzip {
            Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, file)))
        } else {
            file.seek(SeekFrom::Start(offset)).map_err(DataError::io(&self.path))?;
            Box::new(file)
        };
        Ok(Cursor { reader: BufReader::with_capacity(1 << 16, from), row, line, buffer: Vec::new() })
    }

    /// Shows the lines of a range, each with its number from 1.
    pub fn read(&self, range: Range<usize>, mut see: impl FnMut(u64, &str) -> Result<(), DataError>) -> Result<(), DataError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cursor = match kept.take().filter(|c| self.gzip && c.row <= range.start) {
            Some(cursor) => cursor,
            None if self.gzip => self.cursor((0, 0), 0)?,
            None => self.cursor(self.starts[range.start / STRIDE], range.start / STRIDE * STRIDE)?,
        };
        while cursor.row < range.end {
            if !cursor.next(&self.path)? {
                return Err(DataError::file(&self.path, format!("ends before sample {}, it was {} long", cursor.row, self.rows)));
            }
            if cursor.row > range.start {
                let text = std::str::from_utf8(&cursor.buffer);
                let text = text.map_err(|_| DataError::file(&self.path, format!("line {} is not UTF-8", cursor.line)))?;
                see(cursor.line, text)?;
            }
        }
        *kept = self.gzip.then_some(cursor);
        Ok(())
    }
}
