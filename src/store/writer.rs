//! Writes shard files: one pass over the table, from its mapped bytes into all its pieces at once, in bounded memory.

use super::piece::native;
use crate::plan::{Absent, Piece, Sharding, TableEntry, TableLayout, ranges};
use crate::tensor::{DType, Tensor, release};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use twox_hash::XxHash3_128;

/// Bytes of the table that are read before its pages are given back.
const CHUNK: usize = 8 << 20;

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

/// A file that is hashed as it is written.
struct Out {
    file: BufWriter<File>,
    hash: XxHash3_128,
    bytes: u64,
}

impl Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.write(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

fn header(dtype: DType, shape: &[u64], len: u64) -> Vec<u8> {
    // A dtype that safetensors has no name for is kept as bytes.
    let (name, shape) = match native(dtype) {
        Some(d) => (format!("{d:?}"), shape.to_vec()),
        None => ("U8".into(), vec![shape[0], len / shape[0].max(1)]),
    };
    let json = serde_json::json!({ "values": { "dtype": name, "shape": shape, "data_offsets": [0, len] } });
    framed(&json)
}

/// The head of a safetensors file.
fn framed(json: &serde_json::Value) -> Vec<u8> {
    let mut text = json.to_string().into_bytes();
    // The rows start on a page's multiple of 64 bytes.
    text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    out
}

/// Writes the pieces of a table below `dir` and gives back its entry in the manifest.
///
/// # Errors
/// Those of the system, with the file's name.
pub fn write_table(dir: &Path, name: &str, tensor: &Tensor, layout: &TableLayout) -> io::Result<TableEntry> {
    let bytes = tensor.bytes().ok_or_else(|| io::Error::other(format!("table \"{name}\" has no elements")))?;
    let rows = tensor.shape().first().copied().unwrap_or(0) as u64;
    let row_shape: Vec<usize> = tensor.shape().get(1..).unwrap_or_default().to_vec();
    let columns: u64 = row_shape.iter().product::<usize>() as u64;
    let width = tensor.dtype().byte_len(&row_shape).unwrap_or(0);
    let n = layout.shards.len() as u64;
    let cuts = match layout.sharding {
        Sharding::Column => ranges(columns, n),
        _ => ranges(rows, n),
    };
    let mut pieces = Vec::with_capacity(layout.shards.len());
    for (p, &shard) in layout.shards.iter().enumerate() {
        let (first, end) = (cuts[p], cuts[p + 1]);
        let (rows, first_row, first_column, columns) = match layout.sharding {
            Sharding::Table => (rows, 0, 0, columns),
            Sharding::Row => (rows.saturating_sub(p as u64).div_ceil(n), 0, 0, columns),
            Sharding::Range => (end - first, first, 0, columns),
            Sharding::Column => (rows, 0, first, end - first),
        };
        let file = piece_file(name, p, layout.shards.len());
        pieces.push(Piece { file, shard, rows, first_row, first_column, columns, bytes: 0, checksum: String::new() });
    }
    let named = |file: &str, e: io::Error| io::Error::new(e.kind(), format!("{file}: {e}"));
    let mut outs = Vec::with_capacity(pieces.len());
    for piece in &pieces {
        let path = dir.join(&piece.file);
        fs::create_dir_all(path.parent().unwrap_or(dir))?;
        let capacity = (CHUNK / pieces.len()).clamp(16 << 10, 1 << 20);
        let file = File::create(&path).map_err(|e| named(&piece.file, e))?;
        let mut out = Out { file: BufWriter::with_capacity(capacity, file), hash: XxHash3_128::new(), bytes: 0 };
        let mut shape = vec![piece.rows];
        let len = match layout.sharding {
            Sharding::Column => {
                shape.push(piece.columns);
                piece.rows * piece.columns * (width as u64 / columns.max(1))
            }
            _ => {
                shape.extend(row_shape.iter().map(|&d| d as u64));
                piece.rows * width as u64
            }
        };
        out.write(&header(tensor.dtype(), &shape, len)).map_err(|e| named(&piece.file, e))?;
        outs.push(out);
    }
    let chunk_rows = (CHUNK / width.max(1)).max(1);
    let element = width / (columns.max(1) as usize);
    let mut row = 0;
    for chunk in bytes.chunks((chunk_rows * width).max(1)) {
        let here = chunk.len() / width.max(1);
        for (p, out) in outs.iter_mut().enumerate() {
            let result = match layout.sharding {
                Sharding::Table => out.write(chunk),
                Sharding::Row => {
                    let n = n as usize;
                    let first = (p + n - row % n) % n;
                    (first..here).step_by(n).try_for_each(|r| out.write(&chunk[r * width..(r + 1) * width]))
                }
                Sharding::Range => {
                    let at = |r: u64| ((r as usize).clamp(row, row + here) - row) * width;
                    out.write(&chunk[at(cuts[p])..at(cuts[p + 1])])
                }
                Sharding::Column => {
                    let (from, to) = (cuts[p] as usize * element, cuts[p + 1] as usize * element);
                    (0..here).try_for_each(|r| out.write(&chunk[r * width + from..r * width + to]))
                }
            };
            result.map_err(|e| named(&pieces[p].file, e))?;
        }
        row += here;
        release(chunk);
    }
    for (piece, mut out) in pieces.iter_mut().zip(outs) {
        out.file.flush().and_then(|()| out.file.get_ref().sync_data()).map_err(|e| named(&piece.file, e))?;
        piece.bytes = out.bytes;
        piece.checksum = format!("{:032x}", out.hash.finish_128());
    }
    Ok(TableEntry {
        name: name.to_owned(),
        rows,
        row_shape,
        dtype: tensor.dtype(),
        sharding: layout.sharding,
        keyed: false,
        absent: Default::default(),
        default_row: None,
        pieces,
    })
}

/// Writes the pieces of a table of `float32` rows addressed by `keys` (ascending), one piece per shard: piece `p` of `n` holds
/// the keys with `key mod n == p`.
///
/// # Errors
/// Those of the system, with the file's name.
pub fn write_keyed_table(
    dir: &Path,
    name: &str,
    row_shape: &[usize],
    keys: &[u64],
    values: &[f32],
    shards: u32,
    absent: Absent,
) -> io::Result<TableEntry> {
    let width: usize = row_shape.iter().product();
    let n = u64::from(shards.max(1));
    let mut pieces = Vec::new();
    for p in 0..n {
        let own: Vec<usize> = (0..keys.len()).filter(|&i| keys[i] % n == p).collect();
        let file = piece_file(name, p as usize, n as usize);
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{file}: {e}"));
        let path = dir.join(&file);
        fs::create_dir_all(path.parent().unwrap_or(dir))?;
        let mut out = Out { file: BufWriter::new(File::create(&path).map_err(named)?), hash: XxHash3_128::new(), bytes: 0 };
        let shape: Vec<usize> = std::iter::once(own.len()).chain(row_shape.iter().copied()).collect();
        let (middle, end) = (own.len() * 8, own.len() * (8 + 4 * width));
        let json = serde_json::json!({
            "keys": { "dtype": "U64", "shape": [own.len()], "data_offsets": [0, middle] },
            "values": { "dtype": "F32", "shape": shape, "data_offsets": [middle, end] },
        });
        let mut write = || -> io::Result<()> {
            out.write(&framed(&json))?;
            own.iter().try_for_each(|&i| out.write(&keys[i].to_le_bytes()))?;
            own.iter().try_for_each(|&i| out.write(bytemuck::cast_slice(&values[i * width..(i + 1) * width])))?;
            out.file.flush()?;
            out.file.get_ref().sync_data()
        };
        write().map_err(named)?;
        pieces.push(Piece {
            shard: p as u32,
            rows: own.len() as u64,
            first_row: 0,
            first_column: 0,
            columns: width as u64,
            bytes: out.bytes,
            checksum: format!("{:032x}", out.hash.finish_128()),
            file,
        });
    }
    Ok(TableEntry {
        name: name.to_owned(),
        rows: keys.len() as u64,
        row_shape: row_shape.to_vec(),
        dtype: DType::F32,
        sharding: Sharding::Row,
        keyed: true,
        absent,
        default_row: None,
        pieces,
    })
}
