//! Counts the rows of a text file and notes where every so many of them start.

use csv::{ByteRecord, Reader};
use std::io::{self, Read};

/// Rows between noted starts.
const STRIDE: usize = 256;

/// Where a row starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    pub offset: u64,
    /// From 1, the header included.
    pub line: u64,
}

/// The rows after the header.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rows {
    pub count: usize,
    starts: Vec<Start>,
}

impl Rows {
    fn push(&mut self, start: Start) {
        if self.count.is_multiple_of(STRIDE) {
            self.starts.push(start);
        }
        self.count += 1;
    }

    /// The last noted start at or before a row, and the row that it is the start of.
    pub fn before(&self, row: usize) -> (Start, usize) {
        let at = (row / STRIDE).min(self.starts.len().saturating_sub(1));
        (self.starts.get(at).copied().unwrap_or_default(), at * STRIDE)
    }
}

/// The rows of a file without quotes, where each line that is not empty is a row. `None` for any other file.
pub fn simple(mut from: impl Read) -> io::Result<Option<Rows>> {
    let mut rows = Rows::default();
    let mut header = true;
    let mut buffer = vec![0; 1 << 20];
    // The file's offset of the buffer, the start of the line, and the place after a carriage return.
    let (mut base, mut line, mut after_cr) = (0u64, Start { offset: 0, line: 1 }, None);
    loop {
        let len = match from.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        for at in memchr::memchr3_iter(b'\n', b'\r', b'"', &buffer[..len]) {
            let place = base + at as u64;
            if after_cr.is_some_and(|p| p != place) {
                return Ok(None);
            }
            match buffer[at] {
                b'\n' => {
                    let empty = line.offset + u64::from(after_cr.is_some()) == place;
                    if !empty && !std::mem::take(&mut header) {
                        rows.push(line);
                    }
                    line = Start { offset: place + 1, line: line.line + 1 };
                    after_cr = None;
                }
                b'\r' if after_cr.is_none() => after_cr = Some(place + 1),
                _ => return Ok(None),
            }
        }
        base += len as u64;
        if len == 0 {
            if after_cr.is_some() {
                return Ok(None);
            }
            if line.offset < base && !header {
                rows.push(line);
            }
            return Ok(Some(rows));
        }
    }
}

/// The rows of any file, by reading each.
pub fn quoted<R: Read>(mut reader: Reader<R>) -> Result<Rows, csv::Error> {
    let mut rows = Rows::default();
    let mut record = ByteRecord::new();
    let mut header = true;
    while reader.read_byte_record(&mut record)? {
        if !std::mem::take(&mut header) {
            let at = record.position();
            rows.push(Start { offset: at.map_or(0, |p| p.byte()), line: at.map_or(1, |p| p.line()) });
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(text: &str) -> (Option<Rows>, Rows) {
        let reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
        (simple(text.as_bytes()).unwrap(), quoted(reader).unwrap())
    }

    #[test]
    fn the_fast_way_counts_as_the_slow_one() {
        for text in ["", "a", "a\n", "a\n1", "a\n1\n", "a\r\n1\r\n2\r\n", "a\n\n1\n\r\n\n2\n", "\n\na\n1\n"] {
            let (fast, slow) = both(text);
            assert_eq!(fast.map(|r| r.count), Some(slow.count), "{text:?}");
        }
        let long = format!("a\n{}", "12,3\n".repeat(3 * STRIDE + 5));
        let (fast, slow) = both(&long);
        assert_eq!(fast, Some(slow));
    }

    #[test]
    fn a_file_that_needs_the_slow_way_is_left_to_it() {
        for text in ["a\n\"1\n2\"\n3\n", "a\r1\r2", "a\n1\r", "a\n1\r\r\n"] {
            assert_eq!(simple(text.as_bytes()).unwrap(), None, "{text:?}");
        }
        assert_eq!(both("a\n\"1\n2\"\n3\n").1.count, 2);
    }
}
