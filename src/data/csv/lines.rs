//! The rows of a file without quotes: a row is a line that is not empty, its cells are what stands between commas.

use std::io::{self, Read};

/// Lines that are not empty.
pub struct Lines {
    from: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The number of the line that starts at `start`.
    line: u64,
}

impl Lines {
    /// Reads on from a place that is the start of line number `line`.
    pub fn new(from: Box<dyn Read + Send>, line: u64) -> Self {
        Self { from, buffer: vec![0; 1 << 16], start: 0, end: 0, line }
    }

    /// The next line without its end, and its number.
    pub fn next(&mut self) -> io::Result<Option<(&[u8], u64)>> {
        let (mut seen, mut last) = (0, false);
        loop {
            let left = &self.buffer[self.start + seen..self.end];
            let found = memchr::memchr(b'\n', left).map(|at| (seen + at, seen + at + 1));
            let Some((len, taken)) = found.or((last && self.start < self.end).then_some((self.end - self.start, self.end - self.start)))
            else {
                if last {
                    return Ok(None);
                }
                seen = self.end - self.start;
                last = !self.more()?;
                continue;
            };
            let (from, line) = (self.start, self.line);
            let cut = len - usize::from(len > 0 && self.buffer[from + len - 1] == b'\r');
            self.start += taken;
            self.line += 1;
            if cut > 0 {
                return Ok(Some((&self.buffer[from..from + cut], line)));
            }
            seen = 0;
        }
    }

    /// Reads more behind what is left; false at the end of the file.
    fn more(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.buffer.len() {
            self.buffer.resize(2 * self.end, 0);
        }
        loop {
            match self.from.read(&mut self.buffer[self.end..]) {
                Ok(n) => {
                    self.end += n;
                    return Ok(n > 0);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives as many bytes at once as it is told.
    struct Slowly(io::Cursor<Vec<u8>>, usize);

    impl Read for Slowly {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = out.len().min(self.1);
            self.0.read(&mut out[..n])
        }
    }

    #[test]
    fn lines_come_with_their_numbers_however_they_are_read() {
        let long = "x".repeat(200_000);
        let text = format!("a,b\n\n1,2\r\n\r\n{long}\n3,4");
        for at_once in [1, 3, 1 << 20] {
            let mut lines = Lines::new(Box::new(Slowly(io::Cursor::new(text.clone().into_bytes()), at_once)), 1);
            for (want, number) in [("a,b", 1), ("1,2", 3), (long.as_str(), 5), ("3,4", 6)] {
                assert_eq!(lines.next().unwrap(), Some((want.as_bytes(), number)));
            }
            assert_eq!(lines.next().unwrap(), None);
            assert_eq!(lines.next().unwrap(), None);
        }
    }
}
