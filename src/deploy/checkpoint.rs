//! Parameter-server checkpoints. Sparse: `TABLE/part-SERVER-SHARD.gz`, a line per id (see `rows`), as keyed tables. Dense:
//! `TABLE/part-SERVER.gz`, a line per number, all parameters in a row.

mod rows;

pub use rows::{Accessor, Optimizer};

use super::{DeployError, dir_error};
use flate2::read::MultiGzDecoder;
use rows::Reader;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Rows by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyedRows {
    /// Keys, ascending.
    pub keys: Vec<u64>,
    /// A row per key.
    pub values: Vec<f32>,
    /// Elements of a row.
    pub columns: usize,
}

/// The sparse tables of a checkpoint: the number of each with its parts, in order.
///
/// # Errors
/// A directory that cannot be read.
pub fn sparse_tables(checkpoint: &Path) -> Result<BTreeMap<u64, Vec<PathBuf>>, DeployError> {
    tables(checkpoint, 2)
}

/// The dense tables of a checkpoint: the number of each with its parts, in order.
///
/// # Errors
/// A directory that cannot be read.
pub fn dense_tables(checkpoint: &Path) -> Result<BTreeMap<u64, Vec<PathBuf>>, DeployError> {
    tables(checkpoint, 1)
}

/// Tables whose parts have so many numbers in their names: dense parts have one, sparse ones two.
fn tables(checkpoint: &Path, numbers: usize) -> Result<BTreeMap<u64, Vec<PathBuf>>, DeployError> {
    let mut tables = BTreeMap::new();
    let list = |dir: &Path| -> Result<Vec<PathBuf>, DeployError> {
        let mut paths: Vec<_> = fs::read_dir(dir).map_err(|e| dir_error(dir, e))?.flatten().map(|e| e.path()).collect();
        paths.sort();
        Ok(paths)
    };
    for dir in list(checkpoint)? {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let (Ok(id), true) = (name.parse::<u64>(), dir.is_dir()) else { continue };
        let mut parts: Vec<(Vec<u64>, PathBuf)> = Vec::new();
        for path in list(&dir)? {
            if let Some(at) = numbers_of(&path).filter(|n| n.len() == numbers) {
                parts.push((at, path));
            }
        }
        parts.sort();
        if let Some(pair) = parts.windows(2).find(|w| w[0].0 == w[1].0) {
            let (a, b) = (pair[0].1.display(), pair[1].1.display());
            return Err(dir_error(&dir, format!("{a} and {b} are the same part")));
        }
        if !parts.is_empty() {
            tables.insert(id, parts.into_iter().map(|p| p.1).collect());
        }
    }
    Ok(tables)
}

/// The numbers in the name of a part.
fn numbers_of(path: &Path) -> Option<Vec<u64>> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(".gz").unwrap_or(name).strip_prefix("part-")?;
    stem.split('-').map(|n| n.parse().ok().filter(|_| n.bytes().all(|b| b.is_ascii_digit()))).collect()
}

/// Calls `f` with each line of a part that is not blank and its number.
fn lines(part: &Path, f: &mut dyn FnMut(usize, &str) -> Result<(), String>) -> Result<(), DeployError> {
    let file = File::open(part).map_err(|e| dir_error(part, e))?;
    if file.metadata().is_ok_and(|m| m.len() == 0) {
        return Ok(());
    }
    let mut text: Box<dyn BufRead> = match part.extension() {
        Some(e) if e == "gz" => Box::new(BufReader::new(MultiGzDecoder::new(file))),
        _ => Box::new(BufReader::new(file)),
    };
    let mut line = String::new();
    for n in 1.. {
        line.clear();
        let at = |e: &dyn std::fmt::Display| dir_error(part, format!("line {n}: {e}"));
        // A line that is none would be read without an end.
        match text.by_ref().take(LONGEST).read_line(&mut line) {
            Ok(0) => break,
            Ok(k) if k as u64 == LONGEST => return Err(at(&format!("it is longer than {LONGEST} bytes"))),
            Ok(_) => {}
            Err(e) => return Err(at(&e)),
        }
        if !line.trim().is_empty() {
            f(n, &line).map_err(|e| at(&e))?;
        }
    }
    Ok(())
}

/// Bytes of a line.
const LONGEST: u64 = 16 << 20;

/// Reads the parts of a table with rows of `columns`. What optimizer trained it follows from the number of fields, where
/// that says it.
///
/// # Errors
/// Parts that cannot be read, lines that are none of such a table, keys that come twice.
pub fn read_sparse(parts: &[PathBuf], columns: usize, accessor: Accessor, optimizer: Option<Optimizer>) -> Result<KeyedRows, DeployError> {
    let (mut counts, mut rows) = (BTreeMap::new(), 0usize);
    for (p, part) in parts.iter().enumerate() {
        lines(part, &mut |n, line| {
            counts.entry(line.split_ascii_whitespace().count()).or_insert((p, n));
            rows += 1;
            Ok(())
        })?;
    }
    let dir = parts.first().and_then(|p| p.parent()).unwrap_or(Path::new("."));
    let found: Vec<usize> = counts.keys().copied().collect();
    let reader = Reader::of(&found, columns, accessor, optimizer).map_err(|(count, detail)| match counts.get(&count) {
        Some(&(p, n)) => dir_error(&parts[p], format!("line {n}: {detail}")),
        None => dir_error(dir, detail),
    })?;
    // The size is known, so that no list is twice in memory while it grows.
    let mut out = KeyedRows { keys: Vec::with_capacity(rows), values: Vec::with_capacity(rows.saturating_mul(columns)), columns };
    for part in parts {
        lines(part, &mut |_, line| {
            let (key, row) = reader.row(line)?;
            out.keys.push(key);
            out.values.extend(row);
            Ok(())
        })?;
    }
    out.sort();
    match out.keys.windows(2).find(|w| w[0] == w[1]) {
        Some(twice) => Err(dir_error(dir, told_twice(parts, &reader, twice[0])?)),
        None => Ok(out),
    }
}

/// Where the lines of a key are.
fn told_twice(parts: &[PathBuf], reader: &Reader, key: u64) -> Result<String, DeployError> {
    let mut places = Vec::new();
    for part in parts {
        lines(part, &mut |n, line| {
            if reader.row(line)?.0 == key {
                places.push(format!("{} line {n}", part.display()));
            }
            Ok(())
        })?;
    }
    places.truncate(2);
    Ok(format!("id {key} is there twice: {}", places.join(" and ")))
}

impl KeyedRows {
    /// Sorts the rows by their keys where they lie.
    fn sort(&mut self) {
        if self.keys.is_sorted() {
            return;
        }
        // The row that belongs at each place.
        match u32::try_from(self.keys.len()) {
            Ok(n) => self.permute((0..n).collect(), |i| *i as usize, |i| i as u32),
            Err(_) => self.permute((0..self.keys.len()).collect(), |i| *i, |i| i),
        }
    }

    fn permute<I>(&mut self, mut order: Vec<I>, at: fn(&I) -> usize, of: fn(usize) -> I) {
        let c = self.columns;
        order.sort_unstable_by_key(|i| self.keys[at(i)]);
        let mut row = Vec::with_capacity(c);
        for first in 0..order.len() {
            let key = self.keys[first];
            row.clear();
            row.extend_from_slice(&self.values[first * c..(first + 1) * c]);
            // Follows the places round until the row is wanted that stood at the first.
            let mut to = first;
            loop {
                let from = at(&order[to]);
                order[to] = of(to);
                if from == first {
                    break;
                }
                self.keys[to] = self.keys[from];
                self.values.copy_within(from * c..(from + 1) * c, to * c);
                to = from;
            }
            if to != first {
                self.keys[to] = key;
                self.values[to * c..(to + 1) * c].copy_from_slice(&row);
            }
        }
    }
}

/// Reads the parts of a dense table: the first number of each line, for an optimizer's follow it.
///
/// # Errors
/// Parts that cannot be read, lines that hold no numbers, or another number of them than the first.
pub fn read_dense(parts: &[PathBuf]) -> Result<Vec<f32>, DeployError> {
    let (mut out, mut width) = (Vec::new(), None);
    for part in parts {
        lines(part, &mut |_, line| {
            let mut values = Vec::new();
            for text in line.split_ascii_whitespace() {
                values.push(text.parse::<f32>().map_err(|_| format!("{text:?} is no number"))?);
            }
            let expected = *width.get_or_insert(values.len());
            if values.len() != expected {
                return Err(format!("expected {expected} numbers as in the first line, found {}", values.len()));
            }
            out.push(values[0]);
            Ok(())
        })?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stay_with_their_keys_when_they_are_sorted() {
        for n in [0u64, 1, 2, 7, 1000] {
            // Odd multipliers go through all residues of a power of two.
            let keys: Vec<u64> = (0..n).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            let values = keys.iter().flat_map(|&k| [(k >> 40) as f32, (k & 0xffff) as f32]).collect();
            let mut rows = KeyedRows { keys: keys.clone(), values, columns: 2 };
            rows.sort();
            let mut sorted = keys;
            sorted.sort_unstable();
            assert_eq!(rows.values, sorted.iter().flat_map(|&k| [(k >> 40) as f32, (k & 0xffff) as f32]).collect::<Vec<_>>());
            assert_eq!(rows.keys, sorted);
        }
    }
}
