//! All rows of a table in the order of their ids, wherever they lie: in a tensor, in lists, in the pieces of a deployment.
//! Mapped pages are given back behind the reader, so that memory stays bounded.

use super::StoreError;
use super::layout;
use super::narrow::{Narrower, at_row, widen};
use super::piece::{Mapped, maps_for, open_piece};
use crate::plan::{Sharding, StoreDtype, TableEntry};
use crate::tensor::{Tensor, release};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::path::Path;
use twox_hash::XxHash3_128;

/// Bytes of rows that are read before their pages are given back.
pub(super) const CHUNK: usize = 8 << 20;

/// What takes rows: id or key, and the row as it is stored.
pub type RowVisitor<'a> = dyn FnMut(u64, &[u8]) -> io::Result<()> + 'a;

/// The rows of a table.
pub trait RowSource {
    /// Their number.
    fn rows(&self) -> u64;

    /// Shows all rows, ascending by id or key.
    ///
    /// # Errors
    /// Those of `visit`, and rows that are not what they should be.
    fn visit(&self, visit: &mut RowVisitor) -> io::Result<()>;

    /// Shows the ids or keys alone.
    ///
    /// # Errors
    /// As [`RowSource::visit`].
    fn ids(&self, visit: &mut dyn FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        self.visit(&mut |id, _| visit(id))
    }
}

/// Gives back the pages of `bytes[from..to]`, and the one that `from` shares with what came before.
fn give_back(bytes: &[u8], from: usize, to: usize) {
    let to = to.min(bytes.len());
    release(&bytes[from.saturating_sub(4096).min(to)..to]);
}

/// The rows of a tensor.
pub(super) struct TensorRows<'a> {
    bytes: &'a [u8],
    rows: u64,
    width: usize,
}

impl<'a> TensorRows<'a> {
    pub(super) fn new(tensor: &'a Tensor) -> io::Result<Self> {
        let bytes = tensor.bytes().ok_or_else(|| io::Error::other("it has no elements"))?;
        let (rows, row) = tensor.shape().split_first().ok_or_else(|| io::Error::other("it has no axis of rows"))?;
        let width = tensor.dtype().byte_len(row).unwrap_or(0);
        if rows.checked_mul(width) != Some(bytes.len()) {
            return Err(io::Error::other(format!("rows of {} do not fill whole bytes", tensor.dtype())));
        }
        Ok(Self { bytes, rows: *rows as u64, width })
    }
}

impl RowSource for TensorRows<'_> {
    fn rows(&self) -> u64 {
        self.rows
    }

    fn visit(&self, visit: &mut RowVisitor) -> io::Result<()> {
        let mut done = 0;
        for r in 0..self.rows {
            let from = r as usize * self.width;
            visit(r, &self.bytes[from..from + self.width])?;
            if from + self.width >= done + CHUNK {
                give_back(self.bytes, done, from + self.width);
                done = from + self.width;
            }
        }
        give_back(self.bytes, done, self.bytes.len());
        Ok(())
    }
}

/// Rows by key, ascending, in lists.
pub(super) struct KeyedSlices<'a> {
    pub(super) keys: &'a [u64],
    pub(super) values: &'a [f32],
}

impl RowSource for KeyedSlices<'_> {
    fn rows(&self) -> u64 {
        self.keys.len() as u64
    }

    fn visit(&self, visit: &mut RowVisitor) -> io::Result<()> {
        let width = self.values.len() / self.keys.len().max(1);
        let row = |i: usize| bytemuck::cast_slice(&self.values[i * width..(i + 1) * width]);
        self.keys.iter().enumerate().try_for_each(|(i, &key)| visit(key, row(i)))
    }
}

/// Rows as they are to be stored.
pub(super) struct Narrowed<'a> {
    pub(super) source: &'a dyn RowSource,
    pub(super) narrower: RefCell<Narrower>,
}

impl RowSource for Narrowed<'_> {
    fn rows(&self) -> u64 {
        self.source.rows()
    }

    fn visit(&self, visit: &mut RowVisitor) -> io::Result<()> {
        let mut narrower = self.narrower.borrow_mut();
        self.source.visit(&mut |id, row| visit(id, narrower.narrow(row).map_err(|e| at_row(id, e))?))
    }

    fn ids(&self, visit: &mut dyn FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        self.source.ids(visit)
    }
}

/// The rows of a table of a deployment, from all its pieces.
pub struct TableRows {
    rows: u64,
    keyed: bool,
    sharding: Sharding,
    entry: TableEntry,
    pieces: Vec<Mapped>,
    widths: Vec<usize>,
}

impl TableRows {
    /// Maps the pieces of a table of the deployment in `dir`.
    ///
    /// # Errors
    /// Files that are not there, have another size than the manifest says, or hold other tensors.
    pub fn open(dir: &Path, entry: &TableEntry) -> Result<Self, StoreError> {
        let widths = layout::piece_widths(entry)?;
        let maps = maps_for(dir, entry.pieces.iter())?;
        let pieces = entry.pieces.iter().zip(&widths).map(|(p, &w)| open_piece(dir, entry, p, w, &maps)).collect::<Result<_, _>>()?;
        Ok(Self { rows: entry.rows, keyed: entry.keyed, sharding: entry.sharding, entry: entry.clone(), pieces, widths })
    }

    /// The sum over all rows of their hash, as manifests have it.
    ///
    /// # Errors
    /// As [`RowSource::visit`].
    pub fn content(&self) -> io::Result<String> {
        let mut content = Content::default();
        self.visit(&mut |id, row| {
            content.add(id, row);
            Ok(())
        })?;
        Ok(content.text())
    }

    /// Shows all rows as lookups give them.
    ///
    /// # Errors
    /// As [`RowSource::visit`].
    pub fn visit_wide(&self, visit: &mut RowVisitor) -> io::Result<()> {
        let Some(stored) = self.entry.stored else { return self.visit(visit) };
        let (mut wide, columns) = (Vec::new(), [self.entry.columns() as usize]);
        self.visit(&mut |id, row| {
            wide.clear();
            widen(self.entry.dtype, stored.dtype, &columns, row, &mut wide);
            visit(id, &wide)
        })
    }

    /// The piece and the place in it of row `r`.
    fn place(&self, r: u64, n: u64) -> (usize, u64) {
        match self.sharding {
            Sharding::Row => ((r % n) as usize, r / n),
            Sharding::Range => {
                let p = self.entry.pieces.partition_point(|p| p.first_row <= r).saturating_sub(1);
                (p, r - self.entry.pieces[p].first_row)
            }
            _ => (0, r),
        }
    }

    fn row(&self, p: usize, at: u64) -> io::Result<&[u8]> {
        let width = self.widths[p];
        let from = usize::try_from(at).ok().and_then(|a| a.checked_mul(width));
        let row = from.and_then(|from| self.pieces[p].values.get(from..from.checked_add(width)?));
        row.ok_or_else(|| io::Error::other(format!("piece {p} has no row {at}")))
    }

    fn visit_numbered(&self, visit: &mut RowVisitor) -> io::Result<()> {
        let n = self.pieces.len() as u64;
        let tail = self.entry.stored.map_or(0, |s| s.dtype.tail() as usize);
        let (mut whole, mut read) = (Vec::new(), 0);
        // Bytes of each piece that are read, and that are given back.
        let mut ends = vec![(0usize, 0usize); self.pieces.len()];
        for r in 0..self.rows {
            if self.sharding == Sharding::Column {
                whole.clear();
                for p in 0..self.pieces.len() {
                    let part = self.row(p, r)?;
                    ends[p].0 = (r as usize + 1) * self.widths[p];
                    // The scale of the row is in each part, and stands at the end of a whole row.
                    whole.truncate(whole.len() - if p == 0 { 0 } else { tail });
                    whole.extend_from_slice(part);
                }
                read += whole.len();
                visit(r, &whole)?;
            } else {
                let (p, at) = self.place(r, n);
                let row = self.row(p, at)?;
                ends[p].0 = (at as usize + 1) * self.widths[p];
                read += row.len();
                visit(r, row)?;
            }
            if read >= CHUNK {
                read = 0;
                self.give_back(&mut ends);
            }
        }
        self.give_back(&mut ends);
        Ok(())
    }

    fn give_back(&self, ends: &mut [(usize, usize)]) {
        for (piece, end) in self.pieces.iter().zip(ends).filter(|(_, e)| e.0 > e.1) {
            give_back(&piece.values, end.1, end.0);
            end.1 = end.0;
        }
    }

    /// The rows by key: each piece is in order, and the smallest head of all comes next.
    fn merge(&self, visit: &mut dyn FnMut(u64, usize, u64) -> io::Result<()>) -> io::Result<()> {
        let n = self.pieces.len() as u64;
        let mut heads: BinaryHeap<Reverse<(u64, usize, u64)>> =
            self.pieces.iter().enumerate().filter_map(|(p, m)| Some(Reverse((*m.keys().first()?, p, 0)))).collect();
        let mut last = None;
        while let Some(Reverse((key, p, at))) = heads.pop() {
            if last.is_some_and(|l| l >= key) || key % n != p as u64 {
                return Err(io::Error::other(format!("piece {p} holds key {key} at place {at}, where it does not belong")));
            }
            last = Some(key);
            visit(key, p, at)?;
            if let Some(&next) = self.pieces[p].keys().get(at as usize + 1) {
                heads.push(Reverse((next, p, at + 1)));
            }
        }
        Ok(())
    }
}

impl RowSource for TableRows {
    fn rows(&self) -> u64 {
        self.rows
    }

    fn visit(&self, visit: &mut RowVisitor) -> io::Result<()> {
        if !self.keyed {
            return self.visit_numbered(visit);
        }
        let (mut read, mut ends) = (0, vec![(0usize, 0usize); self.pieces.len()]);
        self.merge(&mut |key, p, at| {
            let row = self.row(p, at)?;
            ends[p].0 = (at as usize + 1) * self.widths[p];
            read += row.len();
            visit(key, row)?;
            if read >= CHUNK {
                read = 0;
                self.give_back(&mut ends);
            }
            Ok(())
        })
    }

    fn ids(&self, visit: &mut dyn FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        if self.keyed { self.merge(&mut |key, _, _| visit(key)) } else { (0..self.rows).try_for_each(visit) }
    }
}

/// A hash of rows that does not depend on their order, nor on how a table is cut.
#[derive(Debug, Default)]
pub(super) struct Content(u128);

impl Content {
    pub(super) fn add(&mut self, id: u64, row: &[u8]) {
        self.0 = self.0.wrapping_add(XxHash3_128::oneshot_with_seed(id, row));
    }

    pub(super) fn text(&self) -> String {
        format!("{:032x}", self.0)
    }
}

/// A source and the form that its rows are to be stored in.
pub(super) fn narrowed(source: &dyn RowSource, dtype: crate::tensor::DType, store: StoreDtype) -> Narrowed<'_> {
    Narrowed { source, narrower: RefCell::new(Narrower::new(dtype, store)) }
}
