//! Parameter-server checkpoints: `TABLE/part-SERVER-SHARD.gz`, text lines
//! `id slot unseen delta show click w0 [optimizer] w1 … [optimizer]`, as keyed tables.

use super::{DeployError, dir_error};
use flate2::read::MultiGzDecoder;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
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

/// Fields of a line before the vector: id, slot, unseen days, delta score, show, click.
const HEAD: usize = 6;

/// The sparse tables of a checkpoint: the number of each with its parts, in order.
///
/// # Errors
/// A directory that cannot be read.
pub fn sparse_tables(checkpoint: &Path) -> Result<BTreeMap<u64, Vec<PathBuf>>, DeployError> {
    let mut tables = BTreeMap::new();
    let list = |dir: &Path| -> Result<Vec<PathBuf>, DeployError> {
        let mut paths: Vec<_> = fs::read_dir(dir).map_err(|e| dir_error(dir, e))?.flatten().map(|e| e.path()).collect();
        paths.sort();
        Ok(paths)
    };
    for dir in list(checkpoint)? {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let (Ok(id), true) = (name.parse::<u64>(), dir.is_dir()) else { continue };
        let is_part = |p: &PathBuf| {
            let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let stem = name.strip_suffix(".gz").unwrap_or(&name);
            // Dense parts have one number, sparse ones two.
            stem.strip_prefix("part-").is_some_and(|n| n.split('-').count() == 2 && n.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
        };
        let parts: Vec<PathBuf> = list(&dir)?.into_iter().filter(is_part).collect();
        if !parts.is_empty() {
            tables.insert(id, parts);
        }
    }
    Ok(tables)
}

/// Reads the parts of a table with rows of `columns`.
///
/// # Errors
/// Parts that cannot be read, lines that are none of such a table, keys that come twice.
pub fn read_sparse(parts: &[PathBuf], columns: usize) -> Result<KeyedRows, DeployError> {
    let mut rows: Vec<(u64, Vec<f32>)> = Vec::new();
    for part in parts {
        let file = File::open(part).map_err(|e| dir_error(part, e))?;
        let text: Box<dyn BufRead> = match part.extension() {
            Some(e) if e == "gz" => Box::new(BufReader::new(MultiGzDecoder::new(file))),
            _ => Box::new(BufReader::new(file)),
        };
        for (n, line) in text.lines().enumerate() {
            let line = line.map_err(|e| dir_error(part, format!("line {}: {e}", n + 1)))?;
            if !line.trim().is_empty() {
                rows.push(parse_line(&line, columns).map_err(|e| dir_error(part, format!("line {}: {e}", n + 1)))?);
            }
        }
    }
    rows.sort_by_key(|r| r.0);
    if let Some(w) = rows.windows(2).find(|w| w[0].0 == w[1].0) {
        let dir = parts.first().and_then(|p| p.parent()).unwrap_or(Path::new("."));
        return Err(dir_error(dir, format!("id {} is in its parts twice", w[0].0)));
    }
    let mut out = KeyedRows { columns, ..KeyedRows::default() };
    for (key, row) in rows {
        out.keys.push(key);
        out.values.extend(row);
    }
    Ok(out)
}

/// A line's key and vector. How many numbers an optimizer keeps follows from the number of fields.
fn parse_line(line: &str, columns: usize) -> Result<(u64, Vec<f32>), String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let key = fields[0].parse::<u64>().map_err(|_| format!("id {:?} is no number of 64 bits", fields[0]))?;
    let number = |at: usize| -> Result<f32, String> {
        let text = fields.get(at).ok_or_else(|| format!("expected a row of {columns}, found {} fields", fields.len()))?;
        text.parse::<f32>().map_err(|_| format!("{text:?} is no number"))
    };
    let mut row = vec![number(HEAD)?];
    let rest = columns.saturating_sub(1);
    if fields.len() <= HEAD + 1 + 4 && fields.len() < HEAD + 1 + rest {
        // Too few shows: the rest of the vector does not exist yet.
        row.resize(columns, 0.0);
        return Ok((key, row));
    }
    let extra = fields.len().checked_sub(HEAD + 1 + rest);
    let before = match extra {
        Some(0) => 0,
        // AdaGrad: a sum per part, or per element.
        Some(2) => 1,
        Some(n) if n == 1 + rest => 1,
        // Adam: two moments and two powers, of the part that is one element first.
        Some(n) if n == 4 + 2 * rest + 2 => 4,
        Some(8) => 4,
        _ => return Err(format!("expected a row of {columns} and an optimizer's numbers, found {} fields", fields.len())),
    };
    for i in 0..rest {
        row.push(number(HEAD + 1 + before + i)?);
    }
    Ok((key, row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_is_found_between_the_optimizers_numbers() {
        let row = Ok((7, vec![0.5, 1.0, 2.0, 3.0, 4.0]));
        assert_eq!(parse_line("7 0 0 1 1 0 0.5 1 2 3 4", 5), row);
        assert_eq!(parse_line("7 0 0 1 1 0 0.5 9 1 2 3 4 9", 5), row);
        assert_eq!(parse_line("7 0 0 1 1 0 0.5 9 9 9 9 1 2 3 4 9 9 9 9 9 9 9 9 9 9", 5), row);
        assert!(parse_line("7 0 0 1 1 0 0.5 1 2 3 4 5 6 7", 5).unwrap_err().contains("found 14 fields"));
        assert_eq!(parse_line("18446744073709551615 0 0 1 1 0 1", 1), Ok((u64::MAX, vec![1.0])));
    }
}
