//! One shard file: opened, checked against the manifest, mapped; and its checksum.

use super::StoreError;
use super::keys::{self, Directory};
use crate::plan::{Piece, TableEntry};
use crate::tensor::{DType, Maps};
use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::OnceLock;

/// The tensors of a shard file.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) values: Bytes,
    pub(super) keys: Bytes,
    /// Made at the first lookup, for it reads all keys.
    directory: OnceLock<Option<Directory>>,
}

impl Mapped {
    /// The keys of a keyed table's piece, ascending; none for another table's.
    pub(super) fn keys(&self) -> &[u64] {
        bytemuck::try_cast_slice(&self.keys).unwrap_or_default()
    }

    /// Appends the place of each wanted key, as [`keys::find`] does.
    pub(super) fn find(&self, wanted: &[u64], found: &mut Vec<u64>) {
        match self.directory.get_or_init(|| Directory::of(self.keys())) {
            Some(directory) => directory.find(self.keys(), wanted, found),
            None => keys::find(self.keys(), wanted, found),
        }
    }
}

/// Addresses for the files of `pieces`, which are then opened in this order.
///
/// # Errors
/// That there are none. A file that is not there is told of when it is opened.
pub(super) fn maps_for<'a>(dir: &Path, pieces: impl Iterator<Item = &'a Piece>) -> Result<Maps, StoreError> {
    let sizes = pieces.map(|p| std::fs::metadata(dir.join(&p.file)).map_or(0, |m| m.len()));
    Maps::for_sizes(sizes).map_err(|e| StoreError::Corrupt(format!("{}: the shards: {e}", dir.display())))
}

/// Maps the file of `piece`, whose rows have `width` bytes, behind those before it.
///
/// # Errors
/// A file that is not there, has another size than the manifest says, or holds other tensors.
pub(super) fn open_piece(dir: &Path, table: &TableEntry, piece: &Piece, width: usize, maps: &Maps) -> Result<Mapped, StoreError> {
    let fail = |what: String| StoreError::Corrupt(format!("table \"{}\": shard file \"{}\": {what}", table.name, piece.file));
    let file = File::open(dir.join(&piece.file)).map_err(|e| fail(e.to_string()))?;
    let found = file.metadata().map_err(|e| fail(e.to_string()))?;
    if !found.is_file() {
        return Err(fail("expected a regular file".into()));
    }
    if found.len() != piece.bytes {
        return Err(fail(format!("expected {} bytes, found {}", piece.bytes, found.len())));
    }
    let bytes = maps.map(&file).map_err(|e| fail(e.to_string()))?;
    let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| fail(format!("not a safetensors file: {e}")))?;
    let tensor = |name: &str, dtype: DType, rows: u64, len: u64| -> Result<Bytes, StoreError> {
        let info = metadata.info(name).ok_or_else(|| fail(format!("no tensor \"{name}\"")))?;
        let (from, to) = info.data_offsets;
        // A dtype that safetensors has no name for is kept as bytes.
        if info.dtype != Dtype::U8 && native(dtype) != Some(info.dtype) {
            return Err(fail(format!("tensor \"{name}\": expected {dtype}, found {}", info.dtype)));
        }
        if info.shape.first().is_some_and(|&n| n as u64 != rows) || (to - from) as u64 != len {
            let what =
                format!("tensor \"{name}\": expected {rows} rows in {len} bytes, found shape {:?} in {} bytes", info.shape, to - from);
            return Err(fail(what));
        }
        let start = 8 + header;
        Ok(bytes.slice(start + from..start + to))
    };
    let len = piece.rows.checked_mul(width as u64).ok_or_else(|| fail("no size".into()))?;
    let element = table.stored.map_or(table.dtype, |s| s.dtype.element());
    let values = tensor("values", element, piece.rows, len)?;
    let mut keys = Bytes::new();
    if table.keyed {
        keys = tensor("keys", DType::U64, piece.rows, piece.rows.saturating_mul(8))?;
        if !(keys.as_ptr() as usize).is_multiple_of(8) {
            return Err(fail("tensor \"keys\" is not aligned to 8 bytes".into()));
        }
    }
    Ok(Mapped { values, keys, directory: OnceLock::new() })
}

/// The name that safetensors has for a dtype.
pub(super) fn native(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F32 => Dtype::F32,
        DType::U8 => Dtype::U8,
        DType::I8 => Dtype::I8,
        DType::U16 => Dtype::U16,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::Bool => Dtype::BOOL,
        DType::F16 => Dtype::F16,
        DType::F64 => Dtype::F64,
        DType::U32 => Dtype::U32,
        DType::U64 => Dtype::U64,
        DType::C64 => Dtype::C64,
        DType::BF16 => Dtype::BF16,
        DType::F8E4M3FN => Dtype::F8_E4M3,
        DType::F8E4M3FNUZ => Dtype::F8_E4M3FNUZ,
        DType::F8E5M2 => Dtype::F8_E5M2,
        DType::F8E5M2FNUZ => Dtype::F8_E5M2FNUZ,
        DType::F8E8M0 => Dtype::F8_E8M0,
        DType::F4E2M1 => Dtype::F4,
        DType::String | DType::C128 | DType::U4 | DType::I4 | DType::U2 | DType::I2 => return None,
    })
}

/// The checksum of a file as manifests have it: XXH3-128 of all its bytes, 32 hexadecimal digits. The file is streamed.
///
/// # Errors
/// Those of the system.
pub fn checksum(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = twox_hash::XxHash3_128::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(format!("{:032x}", hasher.finish_128())),
            Ok(n) => hasher.write(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
