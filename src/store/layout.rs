//! What stores read off a manifest: tables, widths of rows in bytes, what stands in for an absent key.

use super::narrow::{Narrower, widen};
use super::{StoreError, Table};
use crate::plan::{Absent, Manifest, Sharding, StoreDtype, TableEntry};
use crate::tensor::{DType, Shape, Tensor, cast};

/// The tables of a deployment, in its order.
pub(super) fn tables(manifest: &Manifest) -> Vec<Table> {
    let table = |t: &TableEntry| Table {
        name: t.name.clone(),
        rows: t.rows,
        dtype: t.dtype,
        row_shape: Shape::from(t.row_shape.as_slice()),
        keyed: t.keyed,
    };
    manifest.tables.iter().map(table).collect()
}

/// Bytes of `columns` elements.
///
/// # Errors
/// Strings, and elements that do not fill whole bytes.
pub(super) fn width(table: &str, dtype: DType, columns: u64) -> Result<usize, StoreError> {
    let bits = columns.checked_mul(dtype.bits() as u64).filter(|_| dtype != DType::String);
    whole_bytes(bits)
        .ok_or_else(|| StoreError::Corrupt(format!("table \"{table}\": {columns} elements of {dtype} do not fill whole bytes")))
}

fn whole_bytes(bits: Option<u64>) -> Option<usize> {
    // Widths go over the wire as 32 bits.
    bits.filter(|b| b.is_multiple_of(8) && b / 8 <= u64::from(u32::MAX)).map(|b| (b / 8) as usize)
}

/// Bytes of the columns of each piece of a table as they are stored; of the whole row where the pieces are not columns.
///
/// # Errors
/// Pieces that do not fill whole bytes, and keyed tables cut in another way than by key modulo pieces.
pub(super) fn piece_widths(t: &TableEntry) -> Result<Vec<usize>, StoreError> {
    if t.keyed && t.pieces.len() > 1 && t.sharding != Sharding::Row {
        let how = format!("{:?}", t.sharding).to_lowercase();
        return Err(StoreError::Corrupt(format!("table \"{}\": keyed tables are sharded by row, found {how}", t.name)));
    }
    let stored = |columns: u64| {
        width(&t.name, t.stored.map_or(t.dtype, |s| s.dtype.element()), columns)?;
        whole_bytes(Some(t.stored_bits(columns)))
            .ok_or_else(|| StoreError::Corrupt(format!("table \"{}\": {columns} elements have no width", t.name)))
    };
    let widths: Vec<usize> = t.pieces.iter().map(|p| stored(p.columns)).collect::<Result<_, _>>()?;
    match row_width(t, &widths) {
        w if w > u32::MAX as usize => Err(StoreError::Corrupt(format!("table \"{}\": a row of {w} bytes is over 4 GiB", t.name))),
        _ => Ok(widths),
    }
}

/// Bytes of a row as stores put it together from pieces of these widths.
pub(super) fn row_width(t: &TableEntry, piece_widths: &[usize]) -> usize {
    match t.sharding {
        Sharding::Column => piece_widths.iter().sum(),
        _ => piece_widths.first().copied().unwrap_or(0),
    }
}

/// From rows as stores put them together to rows of the table's dtype.
#[derive(Debug)]
pub(super) struct Decode(Option<(StoreDtype, Vec<usize>)>);

impl Decode {
    /// Of a table of a deployment.
    pub(super) fn of(t: &TableEntry) -> Self {
        let columns = |s: Sharding| if s == Sharding::Column { t.pieces.len() } else { 1 };
        Self(t.stored.map(|s| (s.dtype, t.pieces.iter().take(columns(t.sharding)).map(|p| p.columns as usize).collect())))
    }

    /// The form in which rows are stored, where it is not their dtype.
    pub(super) fn stored(&self) -> Option<StoreDtype> {
        self.0.as_ref().map(|(stored, _)| *stored)
    }

    /// The tensor of `n` rows over their bytes.
    pub(super) fn tensor(&self, table: &Table, n: usize, bytes: bytes::Bytes) -> Result<Tensor, StoreError> {
        let Some((store, segments)) = &self.0 else { return rows_tensor(table, n, bytes) };
        let mut wide = Vec::with_capacity(table.dtype.byte_len(&table.row_shape).unwrap_or(0).saturating_mul(n));
        widen(table.dtype, *store, segments, &bytes, &mut wide);
        rows_tensor(table, n, wide.into())
    }
}

/// The tensor of `n` rows over their bytes.
pub(super) fn rows_tensor(table: &Table, n: usize, bytes: bytes::Bytes) -> Result<Tensor, StoreError> {
    let shape = Shape::from_dims(std::iter::once(n).chain(table.row_shape.iter().copied()));
    Tensor::from_bytes(table.dtype, shape, bytes).map_err(|e| StoreError::Corrupt(format!("table \"{}\": {e}", table.name)))
}

/// The first id that is no row of `table`, as an error.
pub(super) fn check_range(table: &Table, ids: &[u64]) -> Result<(), StoreError> {
    // One comparison of the greatest id, which compiles to vector code, before the search for the first bad one.
    if table.keyed || ids.iter().copied().max().is_none_or(|max| max < table.rows) {
        return Ok(());
    }
    let position = ids.iter().position(|&id| id >= table.rows).unwrap_or(0);
    Err(StoreError::Invalid { table: table.name.clone(), id: ids[position], position, rows: table.rows })
}

/// What an absent key gives.
#[derive(Debug, Clone)]
pub(super) enum Filling {
    /// An error.
    Refuse,
    /// These bytes.
    Row(Vec<u8>),
}

impl Filling {
    /// The filling by policy for rows of `shape`.
    ///
    /// # Errors
    /// A default row that is not there or does not fit.
    pub(super) fn new(table: &str, dtype: DType, shape: &[usize], policy: Absent, default: Option<&[f64]>) -> Result<Self, StoreError> {
        let fail = |e: String| StoreError::Corrupt(format!("table \"{table}\": default row: {e}"));
        let len = dtype.byte_len(shape).ok_or_else(|| fail("no size".into()))?;
        match policy {
            Absent::Error => Ok(Self::Refuse),
            Absent::Zero => Ok(Self::Row(vec![0; len])),
            Absent::Default => {
                let row = default.ok_or_else(|| fail("missing".into()))?.to_vec();
                let row = Tensor::new(shape, row).and_then(|t| cast(&t, dtype)).map_err(|e| fail(e.to_string()))?;
                Ok(Self::Row(row.bytes().unwrap_or_default().to_vec()))
            }
        }
    }

    /// The filling of a table of a deployment.
    ///
    /// # Errors
    /// As [`Filling::new`].
    pub(super) fn of(t: &TableEntry) -> Result<Self, StoreError> {
        let policy = if t.keyed { t.absent } else { Absent::Error };
        let filling = Self::new(&t.name, t.dtype, &t.row_shape, policy, t.default_row.as_deref())?;
        let (Self::Row(row), Some(stored)) = (&filling, t.stored) else { return Ok(filling) };
        // It travels among stored rows, so it is stored as they are.
        let mut narrower = Narrower::new(t.dtype, stored.dtype);
        match narrower.narrow(row) {
            Ok(row) => Ok(Self::Row(row.to_vec())),
            Err(e) => Err(StoreError::Corrupt(format!("table \"{}\": default row: {e}", t.name))),
        }
    }

    /// The filling of a table of a deployment, as lookups give it.
    ///
    /// # Errors
    /// As [`Filling::new`].
    pub(super) fn wide(t: &TableEntry, table: &Table) -> Result<Self, StoreError> {
        match Self::of(t)? {
            Self::Refuse => Ok(Self::Refuse),
            Self::Row(stored) => Ok(Self::Row(Decode::of(t).tensor(table, 1, stored.into())?.bytes().unwrap_or_default().to_vec())),
        }
    }

    /// The row for `key`.
    pub(super) fn row(&self, table: &str, key: u64) -> Result<&[u8], StoreError> {
        match self {
            Self::Refuse => Err(StoreError::Absent { table: table.into(), key }),
            Self::Row(bytes) => Ok(bytes),
        }
    }
}
