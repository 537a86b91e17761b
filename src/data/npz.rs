//! `.npz` archives and single `.npy` files: stored arrays are views on the mapped file, deflated ones are unpacked when
//! they are first asked for.

use super::bound::{Columns, rows};
use super::error::DataError;
use super::npy::{self, read_npy};
use super::write_file;
use crate::files::FileWriter;
use crate::tensor::{DType, Tensor, map_file};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

/// An open archive.
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    /// Name and place in the archive, in the archive's order.
    names: Vec<(String, usize)>,
    bytes: Bytes,
    arrays: Mutex<HashMap<String, Tensor>>,
}

/// An error of the zip layer in one member.
fn zip_error<'a>(path: &'a Path, member: &'a str) -> impl FnOnce(zip::result::ZipError) -> DataError + 'a {
    move |e| DataError::member(path, member, e)
}

impl Npz {
    /// Opens an archive, or a single array under the name of its file.
    ///
    /// # Errors
    /// A file that cannot be read, or that is neither.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let bytes = map_file(&file).map_err(DataError::io(path))?;
        let mut npz = Self { path: path.into(), names: Vec::new(), bytes, arrays: Mutex::default() };
        if npz.bytes.starts_with(b"\x93NUMPY") {
            let name = path.file_stem().map_or("array".into(), |s| s.to_string_lossy().into_owned());
            let array = read_npy(&npz.bytes).map_err(|e| DataError::file(path, e))?;
            npz.names.push((name.clone(), 0));
            npz.arrays.get_mut().unwrap_or_else(PoisonError::into_inner).insert(name, array);
            return Ok(npz);
        }
        let broken = |e| DataError::file(path, format!("no .npz archive: {e}"));
        let archive = ZipArchive::new(std::io::Cursor::new(&npz.bytes[..])).map_err(broken)?;
        let mut names = Vec::new();
        for (i, name) in archive.file_names().enumerate() {
            let name = name.map_err(broken)?;
            let Some(name) = name.strip_suffix(".npy") else { continue };
            names.push((name.to_string(), i));
        }
        npz.names = names;
        Ok(npz)
    }

    /// The names of the arrays, in the archive's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(n, _)| n.as_str())
    }

    /// An array.
    ///
    /// # Errors
    /// A name that is not there, or an array that is broken.
    pub fn get(&self, name: &str) -> Result<Tensor, DataError> {
        let mut arrays = self.arrays.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(array) = arrays.get(name) {
            return Ok(array.clone());
        }
        let place = self.names.iter().find(|(n, _)| n == name).map(|(_, i)| *i);
        let place = place.ok_or_else(|| DataError::member(&self.path, name, "no such array"))?;
        let array = self.load(name, place)?;
        arrays.insert(name.into(), array.clone());
        Ok(array)
    }

    fn load(&self, name: &str, place: usize) -> Result<Tensor, DataError> {
        let fault = |what: String| DataError::member(&self.path, name, what);
        let mut archive = ZipArchive::new(std::io::Cursor::new(&self.bytes[..])).map_err(zip_error(&self.path, name))?;
        let mut member = archive.by_index(place).map_err(zip_error(&self.path, name))?;
        if member.compression() == CompressionMethod::Stored {
            let start = member.data_start().and_then(|s| usize::try_from(s).ok());
            let size = usize::try_from(member.size()).ok();
            let view = start.zip(size).and_then(|(s, n)| Some(s..s.checked_add(n)?)).filter(|r| r.end <= self.bytes.len());
            let view = view.ok_or_else(|| fault("goes past the end of the file".into()))?;
            return read_npy(&self.bytes.slice(view)).map_err(fault);
        }
        // The header says how much follows, so an archive that would unpack to more is not followed.
        let unzip = |e: std::io::Error| fault(format!("cannot be unpacked: {e}"));
        let mut all = Vec::new();
        member.by_ref().take(12).read_to_end(&mut all).map_err(unzip)?;
        let head = match all[..] {
            [_, _, _, _, _, _, 1, _, a, b, ..] => 10 + usize::from(u16::from_le_bytes([a, b])),
            [_, _, _, _, _, _, _, _, a, b, c, d] => (u32::from_le_bytes([a, b, c, d]) as usize).saturating_add(12),
            _ => 12,
        };
        let head = head.saturating_sub(all.len()) as u64;
        member.by_ref().take(head).read_to_end(&mut all).map_err(unzip)?;
        let need = npy::parse_header(&all).map_err(fault)?.byte_len().ok_or_else(|| fault("its size does not fit 64 bits".into()))?;
        let left = need.saturating_sub(all.len().min(need)).saturating_add(256);
        all.try_reserve(left.min(1 << 20)).map_err(|e| fault(e.to_string()))?;
        member.take((need as u64).saturating_add(1)).read_to_end(&mut all).map_err(unzip)?;
        read_npy(&all.into()).map_err(fault)
    }
}

impl Columns for Npz {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.names.iter().map(|(n, _)| n.clone()).collect()
    }

    fn lengths(&self, names: &[&str]) -> Result<Vec<Option<usize>>, DataError> {
        names.iter().map(|n| Ok(self.get(n)?.shape().first().copied())).collect()
    }

    fn read(&self, names: &[(&str, Option<DType>)], range: Option<Range<usize>>) -> Result<Vec<Tensor>, DataError> {
        let one = |&(name, _): &(&str, _)| {
            let array = self.get(name)?;
            match &range {
                Some(range) => rows(&array, range.clone()).map_err(|e| DataError::member(&self.path, name, e)),
                None => Ok(array.aligned()),
            }
        };
        names.iter().map(one).collect()
    }
}

/// The options of a member: stored, its elements aligned, the same time for all.
pub(super) fn member_options() -> SimpleFileOptions {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    options.last_modified_time(DateTime::default()).unix_permissions(0o644).with_alignment(64)
}

/// Writes an archive through a file beside it; `fill` writes the members.
///
/// # Errors
/// Those of the system and of `fill`; nothing is left then.
pub(super) fn write_archive(path: &Path, fill: impl FnOnce(&mut ZipWriter<Latched<'_>>) -> Result<(), DataError>) -> Result<(), DataError> {
    write_file(path, |out| {
        let error = RefCell::new(None);
        let mut zip = ZipWriter::new(Latched { out, error: &error, at: 0, end: 0 });
        let filled = fill(&mut zip);
        let finished = zip.finish().map(drop).map_err(|e| DataError::file(path, e));
        match error.take() {
            Some(error) => Err(DataError::io(path)(error)),
            None => filled.and(finished),
        }
    })
}

/// Keeps the first error and takes everything from then on, as a file in memory would: an archive whose writer fails is
/// finished when it is dropped, and says on stderr that this fails too.
pub(super) struct Latched<'a> {
    out: &'a mut FileWriter,
    error: &'a RefCell<Option<io::Error>>,
    at: u64,
    end: u64,
}

impl Latched<'_> {
    /// What `call` gives, or `otherwise` from the first error on.
    fn latch<T>(&mut self, otherwise: T, call: impl FnOnce(&mut FileWriter) -> io::Result<T>) -> T {
        let mut error = self.error.borrow_mut();
        if error.is_some() {
            return otherwise;
        }
        call(self.out).unwrap_or_else(|e| {
            *error = Some(e);
            otherwise
        })
    }
}

impl Write for Latched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.latch((), |out| out.write_all(bytes));
        self.at += bytes.len() as u64;
        self.end = self.end.max(self.at);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.latch((), Write::flush);
        Ok(())
    }
}

impl Seek for Latched<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let there = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        let there = there.ok_or(io::ErrorKind::InvalidInput)?;
        self.at = self.latch(there, |out| out.seek(SeekFrom::Start(there)));
        Ok(self.at)
    }
}

/// Writes arrays in the order given; the bytes depend on nothing else.
///
/// # Errors
/// Those of the system, and tensors whose elements were taken out.
pub fn write_npz(path: &Path, arrays: &[(String, Tensor)]) -> Result<(), DataError> {
    write_archive(path, |zip| {
        for (name, array) in arrays {
            zip.start_file(format!("{name}.npy"), member_options()).map_err(zip_error(path, name))?;
            let bytes = npy::write_npy(array).map_err(|e| DataError::member(path, name, e))?;
            zip.write_all(&bytes).map_err(DataError::io(path))?;
        }
        Ok(())
    })
}
