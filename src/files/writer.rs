//! Files that are written from front to back, at the speed of copying.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::path::Path;

/// Bytes that are written to a file at once. The system's cache takes larger writes into larger pages, and to find those can
/// cost it several times what copying does: in a virtual machine they are the ones that the host has taken back.
pub const STEP: usize = 64 << 10;
/// Bytes that begin to go to the disk together.
const BEHIND: u64 = 8 << 20;
/// Bytes of a file that stay in the system's cache, for who reads it next. The pages of what follows hold the rest of the file
/// when the disk has them: new ones cost more than the copying, and who reads so much reads it from the disk as fast.
const KEPT: u64 = 256 << 20;

/// How far the writer of a file is that goes forward, so that the system begins to bring it to the disk behind him: the end
/// of the work does not wait for all of it then.
#[derive(Debug, Default)]
pub struct Written {
    started: u64,
    /// Bytes from which on the cache need not keep what the disk has; it keeps everything without.
    kept: Option<u64>,
}

impl Written {
    /// What lies before `end` is written.
    pub fn up_to(&mut self, file: &File, end: u64) {
        if end.saturating_sub(self.started) < BEHIND {
            return;
        }
        // The disk may not have the last of them yet.
        let from = self.kept.map_or(self.started, |kept| self.started.saturating_sub(2 * BEHIND).max(kept).min(self.started));
        // A hint: errors do not matter.
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(file, from, NonZeroU64::new(end - from), rustix::fs::Advice::DontNeed);
        #[cfg(not(target_os = "linux"))]
        let _ = (file, from);
        self.started = end;
    }
}

/// A file that is written in steps of [`STEP`]. Every byte goes through the buffer: a system that is given pages of a map
/// which are not in memory yet writes zeros, takes them back and begins anew, for each of them.
#[derive(Debug)]
pub struct FileWriter {
    file: File,
    buffer: Vec<u8>,
    /// Where what is in the buffer belongs, if the file began empty.
    at: u64,
    written: Written,
}

impl FileWriter {
    /// Writes to an open file.
    pub fn new(file: File) -> Self {
        Self { file, buffer: Vec::with_capacity(STEP), at: 0, written: Written { started: 0, kept: Some(KEPT) } }
    }

    /// Writes to a new file, or to one that loses what it held.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create(path: &Path) -> io::Result<Self> {
        File::create(path).map(Self::new)
    }

    /// The file. What was written last may not be there yet.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Ends when all is on disk.
    ///
    /// # Errors
    /// Those of the system.
    pub fn sync(mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_all()
    }
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == STEP {
            self.flush()?;
        }
        let taken = bytes.len().min(STEP - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        // What a failed write left is not written twice: the caller gives up.
        let result = self.file.write_all(&self.buffer);
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        self.written.up_to(&self.file, self.at);
        result
    }
}

impl Seek for FileWriter {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.flush()?;
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_whatever_the_pieces_and_a_seek_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let expected: Vec<u8> = (0..9 * BEHIND / 4).map(|i| (i / 251 + i) as u8).collect();
        let mut out = FileWriter::create(&path).unwrap();
        out.written.kept = Some(1 << 20);
        let mut rest = &expected[..];
        for len in [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP].into_iter().cycle() {
            let (now, later) = rest.split_at(len.min(rest.len()));
            out.write_all(now).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        assert_eq!(out.stream_position().unwrap(), expected.len() as u64);
        out.seek(SeekFrom::Start(7)).unwrap();
        out.write_all(b"seven").unwrap();
        out.sync().unwrap();
        let found = std::fs::read(&path).unwrap();
        assert!(found[..7] == expected[..7] && &found[7..12] == b"seven" && found[12..] == expected[12..]);
    }
}
