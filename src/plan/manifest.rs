//! `manifest.json`: what a deployment directory holds. Every process of a job computes the same placement from it.

use super::placement::Placement;
use super::stored::Stored;
use crate::tensor::{DType, Shape, checked_len};
use serde::{Deserialize, Serialize};

/// The version of the deployment layout that this library writes.
pub const FORMAT_VERSION: u32 = 1;

/// How the rows of a table are spread over its pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharding {
    /// One piece holds the whole table.
    Table,
    /// Piece `p` of `n` holds the rows with `id mod n == p`, in the order of `id / n`.
    Row,
    /// Piece `p` holds a contiguous range of rows; the ranges follow each other.
    Range,
    /// Piece `p` holds all rows and a contiguous range of columns of the flattened row; the ranges follow each other.
    Column,
}

impl Sharding {
    /// The word that plans, manifests and the command line use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Row => "row",
            Self::Range => "range",
            Self::Column => "column",
        }
    }
}

/// What a lookup of an id that the table does not hold gives (only keyed tables can lack an id).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Absent {
    /// An error that names the table and the id.
    #[default]
    Error,
    /// A row of zeros.
    Zero,
    /// The table's default row.
    Default,
}

/// One shard file: a piece of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Path of the safetensors file, relative to the deployment directory, with `/`.
    pub file: String,
    /// The shard (unit of placement, below [`Manifest::shards`]) that it belongs to.
    pub shard: u32,
    /// Rows in the file.
    pub rows: u64,
    /// First row that it holds (range sharding), else 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_row: u64,
    /// First column that it holds (column sharding), else 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_column: u64,
    /// Columns of the flattened row that it holds.
    pub columns: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// XXH3-128 of the whole file, in hexadecimal.
    pub checksum: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// One table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableEntry {
    /// The name of the value that held the table in the original graph.
    pub name: String,
    /// Rows in all pieces together.
    pub rows: u64,
    /// Dims of one row (empty for a table of rank 1).
    pub row_shape: Vec<usize>,
    /// Element type.
    #[serde(with = "dtype_name")]
    pub dtype: DType,
    /// How the rows are spread.
    pub sharding: Sharding,
    /// Whether ids are keys (any `u64`) and not row numbers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keyed: bool,
    /// Policy for absent ids.
    #[serde(default)]
    pub absent: Absent,
    /// The row that [`Absent::Default`] gives, as numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_row: Option<Vec<f64>>,
    /// How rows are stored, where that is narrower than the dtype.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<Stored>,
    /// The sum over all rows of XXH3-128 of the stored row, seeded by its id or key, modulo 2^128, in hexadecimal: the
    /// same however the table is cut. Empty where it was not computed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub content: String,
    /// The pieces, in order.
    pub pieces: Vec<Piece>,
}

impl TableEntry {
    /// Elements of a row.
    pub fn columns(&self) -> u64 {
        checked_len(&self.row_shape).unwrap_or(usize::MAX) as u64
    }

    /// Bytes of a row as lookups give it; `None` for dtypes without whole-byte rows.
    pub fn row_bytes(&self) -> Option<usize> {
        self.dtype.byte_len(&self.row_shape)
    }

    /// Bits of `columns` elements of a row as it is stored.
    pub fn stored_bits(&self, columns: u64) -> u64 {
        match self.stored {
            Some(s) => columns.saturating_mul(s.dtype.element().bits() as u64).saturating_add(s.dtype.tail() * 8),
            None => columns.saturating_mul(self.dtype.bits() as u64),
        }
    }

    /// Dims of the whole table.
    pub fn shape(&self) -> Shape {
        std::iter::once(self.rows as usize).chain(self.row_shape.iter().copied()).collect()
    }
}

mod dtype_name {
    use crate::tensor::DType;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(d: &DType, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(d.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<DType, D::Error> {
        let name = String::deserialize(d)?;
        DType::from_name(&name).ok_or_else(|| D::Error::custom(format!("unknown dtype \"{name}\"")))
    }
}

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Identity of this rewrite: two deployments with the same id hold the same pieces (a digest of tables and checksums).
    pub plan_id: String,
    /// XXH3-128 of the canonical text of the rewritten graph, in hexadecimal.
    pub fingerprint: String,
    /// Number of shards, the units that are placed on servers.
    pub shards: u32,
    /// Number of servers that hold each shard.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub replicas: u32,
    /// XXH3-128 of each file of the deployment that is no shard (`worker.onnx`, `original.onnx`, …), by relative path.
    #[serde(default)]
    pub files: std::collections::BTreeMap<String, String>,
    /// The tables, in the order of the original graph.
    pub tables: Vec<TableEntry>,
    /// The inputs of `dense.onnx` that take rows, in the order of its interface, if there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dense_inputs: Vec<DenseInput>,
}

/// An input of the dense part that takes what a lookup gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DenseInput {
    /// Its name: that of the lookup's output.
    pub name: String,
    /// The table whose rows it takes.
    pub table: String,
    /// Their dtype.
    #[serde(with = "dtype_name")]
    pub dtype: DType,
    /// Its dims, as far as they are known: numbers, names of symbols, and `?`. The last ones are those of a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dims: Option<Vec<String>>,
}

fn one() -> u32 {
    1
}

fn is_one(n: &u32) -> bool {
    *n == 1
}

/// What can be wrong with a manifest.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ManifestError(pub String);

impl Manifest {
    /// Reads the JSON text and checks that the parts fit each other.
    ///
    /// # Errors
    /// Text that is no manifest, another format version, pieces that do not make up their table.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let m: Manifest = serde_json::from_str(text).map_err(|e| ManifestError(format!("not a manifest: {e}")))?;
        m.validate()?;
        Ok(m)
    }

    /// The JSON text, indented, with a final newline.
    pub fn print(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Gives it the id that its content has: the XXH3-128 of its text without an id.
    pub fn seal(&mut self) {
        self.plan_id = self.digest();
    }

    fn digest(&self) -> String {
        let plain = Self { plan_id: String::new(), ..self.clone() };
        format!("{:032x}", twox_hash::XxHash3_128::oneshot(plain.print().as_bytes()))
    }

    /// Reads what [`Manifest::print`] of a manifest with [its seal](Manifest::seal) has written.
    ///
    /// # Errors
    /// As [`Manifest::parse`]; a text that was changed since.
    pub fn read(text: &str) -> Result<Self, ManifestError> {
        let m = Self::parse(text)?;
        let digest = m.digest();
        if m.plan_id != digest {
            let id = &m.plan_id;
            return Err(ManifestError(format!("its content has the id {digest}, it says {id}: it was changed after it was written")));
        }
        if m.print() != text {
            return Err(ManifestError("it is not as it was written, though it says the same".into()));
        }
        Ok(m)
    }

    /// The table of that name, with its index.
    pub fn table(&self, name: &str) -> Option<(usize, &TableEntry)> {
        self.tables.iter().enumerate().find(|(_, t)| t.name == name)
    }

    fn validate(&self) -> Result<(), ManifestError> {
        let fail = |m: String| Err(ManifestError(m));
        if self.format_version != FORMAT_VERSION {
            return fail(format!("deployment format version {} is not {FORMAT_VERSION}, the one this build reads", self.format_version));
        }
        if self.replicas == 0 {
            return fail("each shard is on 0 servers, expected at least 1".into());
        }
        let mut names = std::collections::HashSet::new();
        for t in &self.tables {
            let name = &t.name;
            if !names.insert(name) {
                return fail(format!("table \"{name}\" is listed twice"));
            }
            if t.pieces.is_empty() {
                return fail(format!("table \"{name}\" has no pieces"));
            }
            if t.row_bytes().and_then(|b| (b as u64).checked_mul(t.rows)).is_none() {
                return fail(format!("table \"{name}\": {}{} has no size", t.dtype, t.shape()));
            }
            if let Some(s) = t.stored.filter(|s| !s.dtype.narrows(t.dtype)) {
                return fail(format!("table \"{name}\": {} is not stored as {}", t.dtype, s.dtype.name()));
            }
            let n = t.pieces.len() as u64;
            let mut next = 0;
            for (p, piece) in t.pieces.iter().enumerate() {
                if piece.shard >= self.shards {
                    return fail(format!("table \"{name}\" piece {p}: shard {} of {}", piece.shard, self.shards));
                }
                if piece.file.is_empty() || piece.file.starts_with('/') || piece.file.split('/').any(|c| c == ".." || c.is_empty()) {
                    return fail(format!("table \"{name}\" piece {p}: path \"{}\" leaves the directory", piece.file));
                }
                let (rows, columns) = match t.sharding {
                    _ if t.keyed => (piece.rows, t.columns()),
                    Sharding::Table => (t.rows, t.columns()),
                    Sharding::Row => (t.rows.saturating_sub(p as u64).div_ceil(n), t.columns()),
                    Sharding::Range => (piece.rows, t.columns()),
                    Sharding::Column => (t.rows, piece.columns),
                };
                if (piece.rows, piece.columns) != (rows, columns) {
                    return fail(format!("table \"{name}\" piece {p}: expected {rows}x{columns}, found {}x{}", piece.rows, piece.columns));
                }
                let (start, len) = if t.sharding == Sharding::Column { (piece.first_column, columns) } else { (piece.first_row, rows) };
                if matches!(t.sharding, Sharding::Range | Sharding::Column) {
                    if start != next {
                        return fail(format!("table \"{name}\" piece {p} starts at {start}, expected {next}"));
                    }
                    next = start.saturating_add(len);
                }
            }
            let whole = match t.sharding {
                _ if t.keyed => t.pieces.iter().try_fold(0u64, |sum, p| sum.checked_add(p.rows)) == Some(t.rows),
                Sharding::Table => n == 1,
                Sharding::Row => true,
                Sharding::Range => next == t.rows,
                Sharding::Column => next == t.columns(),
            };
            if !whole {
                return fail(format!("table \"{name}\": its pieces do not make up {}", t.shape()));
            }
        }
        Ok(())
    }

    /// Where the shards are when `servers` share them.
    pub fn placement(&self, servers: usize) -> Placement {
        Placement::new(&self.shard_bytes(), servers, self.replicas)
    }

    /// Bytes of each shard over all its pieces.
    pub fn shard_bytes(&self) -> Vec<u64> {
        let mut bytes = vec![0u64; self.shards as usize];
        for piece in self.tables.iter().flat_map(|t| &t.pieces) {
            bytes[piece.shard as usize] = bytes[piece.shard as usize].saturating_add(piece.bytes);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_do_not_make_up_their_table_are_refused() {
        let text = r#"{"format_version":1,"plan_id":"p","fingerprint":"f","shards":2,"tables":[
            {"name":"t","rows":5,"row_shape":[2],"dtype":"float32","sharding":"row","pieces":[
              {"file":"shards/a","shard":0,"rows":3,"columns":2,"bytes":1,"checksum":""},
              {"file":"shards/b","shard":1,"rows":3,"columns":2,"bytes":1,"checksum":""}]}]}"#;
        let error = Manifest::parse(text).unwrap_err().to_string();
        assert_eq!(error, "table \"t\" piece 1: expected 2x2, found 3x2");
        assert!(
            Manifest::parse(&text.replace(
                "\"rows\":3,\"columns\":2,\"bytes\":1,\"checksum\":\"\"}]",
                "\"rows\":2,\"columns\":2,\"bytes\":1,\"checksum\":\"\"}]"
            ))
            .is_ok()
        );
    }

    #[test]
    fn no_byte_of_a_manifest_can_change_unseen() {
        let text = r#"{"format_version":1,"plan_id":"","fingerprint":"f","shards":2,"files":{"worker.onnx":"ab"},"tables":[{"name":"t","rows":4,
            "row_shape":[2],"dtype":"float32","sharding":"table","pieces":[{"file":"shards/t","shard":1,"rows":4,"columns":2,"bytes":96,
            "checksum":"cd"}]}]}"#;
        let mut m = Manifest::parse(text).unwrap();
        m.seal();
        let text = m.print();
        assert_eq!(Manifest::read(&text).unwrap(), m);
        for at in 0..text.len() {
            for flip in [1, 8, 32] {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= flip;
                let changed =
                    String::from_utf8(bytes).map_err(|e| e.to_string()).and_then(|t| Manifest::read(&t).map_err(|e| e.to_string()));
                assert!(changed.is_err(), "byte {at} with {flip}");
            }
        }
        assert_eq!(Manifest::read(text.trim_end()).unwrap_err().0, "it is not as it was written, though it says the same");
    }

    #[test]
    fn what_tables_cannot_be_is_refused() {
        let entry = |dtype: &str, more: &str| {
            let text = format!(
                r#"{{"format_version":1,"plan_id":"p","fingerprint":"f","shards":1,"tables":[
                {{"name":"t","rows":5,"row_shape":[2],"dtype":"{dtype}","sharding":"row",{more}"pieces":[
                  {{"file":"shards/a","shard":0,"rows":5,"columns":2,"bytes":1,"checksum":""}}]}}]}}"#
            );
            Manifest::parse(&text).map_err(|e| e.to_string())
        };
        let stored = r#""stored":{"dtype":"int8","max_error":0.5},"#;
        let table = entry("float32", stored).unwrap().tables.remove(0);
        assert_eq!((table.stored_bits(2), table.row_bytes()), (2 * 8 + 32, Some(8)));
        assert_eq!(entry("int64", stored).unwrap_err(), "table \"t\": int64 is not stored as int8");
        let keyed = entry("float32", "\"keyed\":true,").unwrap().print();
        let error = Manifest::parse(&keyed.replacen("\"rows\": 5", "\"rows\": 6", 1)).unwrap_err().to_string();
        assert_eq!(error, "table \"t\": its pieces do not make up [6,2]");
        let error = Manifest::parse(&keyed.replacen("\"shards\": 1", "\"shards\": 1, \"replicas\": 0", 1)).unwrap_err().to_string();
        assert_eq!(error, "each shard is on 0 servers, expected at least 1");
    }
}
