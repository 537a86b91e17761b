//! Writes shard files: passes over the rows of a table in their order, into all its pieces at once, in bounded memory.

use super::StoreError;
use super::piece::native;
use super::rows::{CHUNK, Content, KeyedSlices, RowSource, TableRows, TensorRows, narrowed};
use crate::files::{STEP, Written};
use crate::plan::{Absent, Piece, Sharding, StoreDtype, Stored, TableEntry, TableLayout, TableSize};
use crate::tensor::{DType, Tensor};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread::ScopedJoinHandle;
use twox_hash::XxHash3_128;

/// Files that are open at once; a table of more pieces is read several times.
const OPEN: usize = 256;
/// Steps that wait for a thread that writes.
const AHEAD: usize = 16;
/// A table of fewer bytes is written before a thread has begun.
const LARGE: u64 = 32 << 20;
/// Zeros of this length, at multiples of it, are left out of a file and read as zeros all the same.
const HOLE: usize = 4096;

/// The file name of piece `index` of `pieces`: the table's name, escaped reversibly (bytes outside `A-Za-z0-9._-` as `%XX`).
pub fn piece_file(table: &str, index: usize, pieces: usize) -> String {
    let mut name = String::new();
    for b in table.bytes() {
        let plain = b.is_ascii_alphanumeric() || b"_-".contains(&b) || (b == b'.' && !name.is_empty());
        if plain { name.push(b as char) } else { name.push_str(&format!("%{b:02X}")) }
    }
    // Names of files end at 255 bytes; a digest keeps long ones apart.
    if name.len() > 180 {
        let cut = (0..=180).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0);
        name = format!("{}~{:032x}", &name[..cut], XxHash3_128::oneshot(table.as_bytes()));
    }
    format!("shards/{name}-{index:05}-of-{pieces:05}.safetensors")
}

/// An error, with what it is about.
fn named(what: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// A file that is hashed as it is written, with holes where there are only zeros.
struct Target {
    file: File,
    /// As errors have it.
    name: String,
    at: u64,
    written: Written,
    hash: XxHash3_128,
}

impl Target {
    /// The file `name` of a directory.
    fn create(dir: &Path, name: &str) -> io::Result<Self> {
        let file = File::create(dir.join(name)).map_err(|e| named(name, e))?;
        Ok(Self { file, name: name.to_owned(), at: 0, written: Written::default(), hash: XxHash3_128::new() })
    }

    /// Appends bytes; all but the last are a multiple of [`HOLE`], so that zeros are not cut up.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.append(bytes).map_err(|e| named(&self.name, e))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.write(bytes);
        // Bytes up to `from` are written or left out.
        let (mut from, mut i) = (0, 0);
        while i < bytes.len() {
            let end = (i + HOLE - (self.at as usize + i) % HOLE).min(bytes.len());
            if end - i == HOLE && bytes[i..end] == [0; HOLE] {
                self.file.write_all_at(&bytes[from..i], self.at + from as u64)?;
                from = end;
            }
            i = end;
        }
        self.file.write_all_at(&bytes[from..], self.at + from as u64)?;
        self.at += bytes.len() as u64;
        self.written.up_to(&self.file, self.at);
        Ok(())
    }

    /// Size and checksum of the file.
    fn finish(self) -> io::Result<(u64, String)> {
        self.file.set_len(self.at).and_then(|()| self.file.sync_data()).map_err(|e| named(&self.name, e))?;
        Ok((self.at, format!("{:032x}", self.hash.finish_128())))
    }
}

/// Bytes that go to a file, put together to steps.
struct Out<'a> {
    buffer: Vec<u8>,
    /// A multiple of [`HOLE`].
    capacity: usize,
    /// Takes what the buffer holds and leaves an empty one.
    take: Box<dyn FnMut(&mut Vec<u8>) -> io::Result<()> + 'a>,
}

impl Out<'_> {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.buffer.len() + bytes.len() >= self.capacity {
            let (now, rest) = bytes.split_at(self.capacity - self.buffer.len());
            self.buffer.extend_from_slice(now);
            (self.take)(&mut self.buffer)?;
            bytes = rest;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }
}

/// Has `fill` write to files, in this thread.
fn write_here(targets: &mut [Target], capacity: usize, fill: impl FnOnce(&mut [Out]) -> io::Result<()>) -> io::Result<()> {
    let out = |target| {
        let target: &mut Target = target;
        let take = Box::new(|buffer: &mut Vec<u8>| target.put(buffer).map(|()| buffer.clear()));
        Out { buffer: Vec::with_capacity(capacity), capacity, take }
    };
    let mut outs: Vec<Out> = targets.iter_mut().map(out).collect();
    fill(&mut outs)?;
    outs.iter_mut().try_for_each(|out| (out.take)(&mut out.buffer))
}

/// As [`write_here`], while other threads hash and write what is there: most of the work is the system's, which copies to its cache.
fn write_beside(
    targets: &mut [Target],
    (capacity, threads): (usize, usize),
    fill: impl FnOnce(&mut [Out]) -> io::Result<()>,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        let (give_back, spare) = mpsc::channel::<Vec<u8>>();
        let count = targets.len();
        let mut shares: Vec<Vec<&mut Target>> = (0..threads).map(|_| Vec::new()).collect();
        targets.iter_mut().enumerate().for_each(|(i, target)| shares[i % threads].push(target));
        let mut senders = Vec::with_capacity(threads);
        let mut running = Vec::with_capacity(threads);
        for mut share in shares {
            let (sender, full) = mpsc::sync_channel::<(usize, Vec<u8>)>(AHEAD);
            let give_back = give_back.clone();
            senders.push(sender);
            running.push(std::thread::Builder::new().name("write".into()).spawn_scoped(scope, move || -> io::Result<()> {
                while let Ok((at, mut buffer)) = full.recv() {
                    share[at].put(&buffer)?;
                    buffer.clear();
                    // Nobody wants it when all are on their way.
                    let _ = give_back.send(buffer);
                }
                Ok(())
            })?);
        }
        let out = |i: usize| {
            let (sender, spare) = (senders[i % threads].clone(), &spare);
            let take = move |buffer: &mut Vec<u8>| {
                let empty = spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(capacity));
                // Who does not take it has failed, and says why.
                sender.send((i / threads, std::mem::replace(buffer, empty))).map_err(|_| io::ErrorKind::BrokenPipe.into())
            };
            Out { buffer: Vec::with_capacity(capacity), capacity, take: Box::new(take) }
        };
        let mut outs: Vec<Out> = (0..count).map(out).collect();
        let filled = fill(&mut outs).and_then(|()| outs.iter_mut().try_for_each(|out| (out.take)(&mut out.buffer)));
        drop((outs, senders));
        let end = |r: ScopedJoinHandle<_>| r.join().unwrap_or_else(|_| Err(io::Error::other("a thread that writes has ended")));
        running.into_iter().try_for_each(end).and(filled)
    })
}

/// What is known of a table before it is written.
struct Spec<'a> {
    table: TableSize,
    layout: &'a TableLayout,
    /// Where ranges of rows or columns begin and end.
    cuts: Vec<u64>,
    absent: Absent,
    default_row: Option<Vec<f64>>,
}

impl Spec<'_> {
    /// The header of a piece: dtype and shape of the rows as they are stored, and of keys.
    fn header(&self, piece: &Piece) -> Vec<u8> {
        let t = &self.table;
        let keys = if t.keyed { piece.rows * 8 } else { 0 };
        let len = t.bytes_of(piece.rows, piece.columns, self.layout.store) - keys;
        let mut shape = vec![piece.rows];
        match self.layout.sharding {
            Sharding::Column => shape.push(piece.columns),
            _ => shape.extend(t.row_shape.iter().map(|&d| d as u64)),
        }
        let element = self.layout.store.map_or(t.dtype, StoreDtype::element);
        // What safetensors has no name for is kept as bytes.
        let (name, shape) = match native(element) {
            Some(d) if self.layout.store.is_none_or(|s| s.tail() == 0) => (format!("{d:?}"), shape),
            _ => ("U8".into(), vec![piece.rows, len / piece.rows.max(1)]),
        };
        let values = serde_json::json!({ "dtype": name, "shape": shape, "data_offsets": [keys, keys + len] });
        let json = match t.keyed {
            true => serde_json::json!({ "keys": { "dtype": "U64", "shape": [piece.rows], "data_offsets": [0, keys] }, "values": values }),
            false => serde_json::json!({ "values": values }),
        };
        let mut text = json.to_string().into_bytes();
        // The rows start on a page's multiple of 64 bytes.
        text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
        let mut out = (text.len() as u64).to_le_bytes().to_vec();
        out.extend(text);
        out
    }

    /// The pieces before they are written; `counts` are the rows of each piece of a keyed table.
    fn pieces(&self, counts: &[u64]) -> Vec<Piece> {
        let (t, n) = (&self.table, self.layout.shards.len());
        let piece = |(p, &shard): (usize, &u32)| {
            let range = || (self.cuts[p], self.cuts[p + 1] - self.cuts[p]);
            let (rows, first_row, first_column, columns) = match self.layout.sharding {
                _ if t.keyed => (counts[p], 0, 0, t.columns()),
                Sharding::Table => (t.rows, 0, 0, t.columns()),
                Sharding::Row => (t.rows.saturating_sub(p as u64).div_ceil(n as u64), 0, 0, t.columns()),
                Sharding::Range => (range().1, range().0, 0, t.columns()),
                Sharding::Column => (t.rows, 0, range().0, range().1),
            };
            let file = piece_file(&t.name, p, n);
            Piece { file, shard, rows, first_row, first_column, columns, bytes: 0, checksum: String::new() }
        };
        self.layout.shards.iter().enumerate().map(piece).collect()
    }

    /// Writes all rows that belong to pieces `first..` of `outs`.
    fn fill(&self, source: &dyn RowSource, first: usize, outs: &mut [Out<'_>], content: &mut Content) -> io::Result<()> {
        let (t, n) = (&self.table, self.layout.shards.len() as u64);
        if t.keyed {
            source.ids(&mut |key| match outs.get_mut(((key % n) as usize).wrapping_sub(first)) {
                Some(out) => out.write(&key.to_le_bytes()),
                None => Ok(()),
            })?;
        }
        let tail = self.layout.store.map_or(0, |s| s.tail() as usize);
        let mut range = 0;
        source.visit(&mut |id, row| {
            if first == 0 {
                content.add(id, row);
            }
            let p = match self.layout.sharding {
                Sharding::Table => 0,
                Sharding::Row => (id % n) as usize,
                Sharding::Range => {
                    while id >= self.cuts[range + 1] {
                        range += 1;
                    }
                    range
                }
                Sharding::Column => {
                    let (elements, scale) = row.split_at(row.len() - tail);
                    // Cuts of elements that share a byte are at whole bytes.
                    let at = |c: u64| (c as u128 * elements.len() as u128 / u128::from(t.columns().max(1))) as usize;
                    for (i, out) in outs.iter_mut().enumerate() {
                        out.write(&elements[at(self.cuts[first + i])..at(self.cuts[first + i + 1])])?;
                        out.write(scale)?;
                    }
                    return Ok(());
                }
            };
            match outs.get_mut(p.wrapping_sub(first)) {
                Some(out) => out.write(row),
                None => Ok(()),
            }
        })
    }

    /// Writes the pieces of the table below `dir`.
    fn write(self, dir: &Path, source: &dyn RowSource) -> io::Result<TableEntry> {
        let n = self.layout.shards.len();
        let mut counts = vec![0u64; if self.table.keyed { n } else { 0 }];
        if self.table.keyed {
            source.ids(&mut |key| {
                counts[(key % n as u64) as usize] += 1;
                Ok(())
            })?;
        }
        let mut pieces = self.pieces(&counts);
        let mut content = Content::default();
        fs::create_dir_all(dir.join("shards"))?;
        for first in (0..n).step_by(OPEN) {
            let mine = &mut pieces[first..(first + OPEN).min(n)];
            let capacity = (CHUNK / mine.len()).clamp(16 << 10, STEP) / HOLE * HOLE;
            let mut targets = mine.iter().map(|p| Target::create(dir, &p.file)).collect::<io::Result<Vec<Target>>>()?;
            let headers: Vec<Vec<u8>> = mine.iter().map(|p| self.header(p)).collect();
            let fill = |outs: &mut [Out]| {
                outs.iter_mut().zip(&headers).try_for_each(|(out, header)| out.write(header))?;
                self.fill(source, first, outs, &mut content)
            };
            let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(targets.len());
            match self.table.bytes_of(self.table.rows, self.table.columns(), self.layout.store) >= LARGE {
                true => write_beside(&mut targets, (capacity, threads), fill)?,
                false => write_here(&mut targets, capacity, fill)?,
            }
            for (piece, target) in mine.iter_mut().zip(targets) {
                (piece.bytes, piece.checksum) = target.finish()?;
            }
        }
        let t = self.table;
        Ok(TableEntry {
            name: t.name,
            rows: t.rows,
            row_shape: t.row_shape,
            dtype: t.dtype,
            sharding: self.layout.sharding,
            keyed: t.keyed,
            absent: self.absent,
            default_row: self.default_row,
            stored: None,
            content: content.text(),
            pieces,
        })
    }
}

fn size(name: &str, rows: u64, row_shape: &[usize], dtype: DType, keyed: bool) -> TableSize {
    TableSize { name: name.to_owned(), rows, row_shape: row_shape.to_vec(), dtype, keyed, lookups: 0, stored: None }
}

/// Writes a table of new rows, in the form that its layout says.
fn write_new(dir: &Path, table: TableSize, source: &dyn RowSource, layout: &TableLayout, absent: Absent) -> io::Result<TableEntry> {
    let of_table = |e| named(&format!("table \"{}\"", layout.name), e);
    let dtype = table.dtype;
    let spec = Spec { cuts: layout.cuts(&table), table, layout, absent, default_row: None };
    let Some(store) = layout.store else { return spec.write(dir, source).map_err(of_table) };
    let narrow = narrowed(source, dtype, store);
    let mut entry = spec.write(dir, &narrow).map_err(of_table)?;
    entry.stored = Some(Stored { dtype: store, max_error: narrow.narrower.borrow().max_error });
    Ok(entry)
}

/// Writes the pieces of a table below `dir` and gives back its entry in the manifest.
///
/// # Errors
/// Those of the system, with the file's name; rows that cannot be stored as the layout says.
pub fn write_table(dir: &Path, name: &str, tensor: &Tensor, layout: &TableLayout) -> io::Result<TableEntry> {
    let source = TensorRows::new(tensor).map_err(|e| io::Error::other(format!("table \"{name}\": {e}")))?;
    let table = size(name, source.rows(), tensor.shape().get(1..).unwrap_or_default(), tensor.dtype(), false);
    write_new(dir, table, &source, layout, Absent::Error)
}

/// Writes the pieces of a table of `float32` rows addressed by `keys` (ascending): piece `p` of `n` holds the keys with
/// `key mod n == p`.
///
/// # Errors
/// As [`write_table`].
pub fn write_keyed_table(
    dir: &Path,
    layout: &TableLayout,
    row_shape: &[usize],
    keys: &[u64],
    values: &[f32],
    absent: Absent,
) -> io::Result<TableEntry> {
    let table = size(&layout.name, keys.len() as u64, row_shape, DType::F32, true);
    write_new(dir, table, &KeyedSlices { keys, values }, layout, absent)
}

/// Writes the rows of a table of another deployment, as they are stored there, in the pieces of `layout`.
///
/// # Errors
/// As [`write_table`].
pub fn rewrite_table(dir: &Path, old: &TableEntry, rows: &TableRows, layout: &TableLayout) -> Result<TableEntry, StoreError> {
    let table = TableSize::of(old, 0);
    let spec = Spec { cuts: layout.cuts(&table), table, layout, absent: old.absent, default_row: old.default_row.clone() };
    let entry = spec.write(dir, rows).map_err(|e| StoreError::Corrupt(format!("table \"{}\": {e}", old.name)))?;
    Ok(TableEntry { stored: old.stored, ..entry })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_threads_write_the_same_files_and_say_what_fails() {
        let dir = tempfile::tempdir().unwrap();
        let row = |i: usize| [(i % 251) as u8; 1000];
        let fill = |outs: &mut [Out]| (0..2000).try_for_each(|i| outs[i % 3].write(&row(i)));
        let mut found = Vec::new();
        for beside in [false, true] {
            let name = |i: usize| format!("{beside}-{i}");
            let mut targets: Vec<Target> = (0..3).map(|i| Target::create(dir.path(), &name(i)).unwrap()).collect();
            match beside {
                true => write_beside(&mut targets, (16 << 10, 2), fill).unwrap(),
                false => write_here(&mut targets, 16 << 10, fill).unwrap(),
            }
            let ends: Vec<(u64, String)> = targets.into_iter().map(|t| t.finish().unwrap()).collect();
            found.push((ends, [0, 1, 2].map(|i| fs::read(dir.path().join(name(i))).unwrap())));
        }
        let expected = [0, 1, 2].map(|k| (0..2000).filter(|i| i % 3 == k).flat_map(row).collect::<Vec<u8>>());
        assert!(found[0] == found[1] && found[0].1 == expected);
        // A file that takes nothing ends the work, however much is still to come.
        let read_only = File::open(dir.path().join("true-0")).unwrap();
        let mut targets: Vec<Target> = ["a", "b"].map(|name| Target::create(dir.path(), name).unwrap()).into();
        targets[1].file = read_only;
        let forever = |outs: &mut [Out]| (0..).try_for_each(|i: usize| outs[i % 2].write(&row(i)));
        let error = write_beside(&mut targets, (16 << 10, 2), forever).unwrap_err();
        assert_eq!(error.to_string(), format!("b: {}", io::Error::from(rustix::io::Errno::BADF)));
    }
}
