//! Bags of ids, pooled where their rows are.

use super::gather::Coming;
use super::layout::check_range;
use super::narrow::Narrowed;
use super::{StoreError, Table};
use crate::dispatch_float;
use crate::plan::StoreDtype;
use crate::tensor::pool::{self, Bags, Columns};
use crate::tensor::{DType, PoolMode, Tensor};
use std::future::Future;
use std::pin::Pin;

/// Ids to look up in one table, and how their rows are pooled.
#[derive(Debug, Clone, PartialEq)]
pub struct BagQuery {
    /// Index into [`super::Store::tables`].
    pub table: usize,
    /// As in [`super::Query`].
    pub ids: Vec<u64>,
    /// Where each bag begins among the ids, then where the last ends: ascending, and one more than there are bags.
    pub bounds: Vec<usize>,
    /// A factor for each id, of the table's dtype.
    pub weights: Option<Tensor>,
    /// How.
    pub mode: PoolMode,
}

/// The pooled rows of a [`BagQuery`], `[bags, row_shape…]`; `None` where they are not to be had.
pub type BagFuture<'a> = Pin<Box<dyn Future<Output = Result<Option<Tensor>, StoreError>> + Send + 'a>>;

/// The part of a query that lies in bags, numbered from its first id on.
pub(super) struct InBags<'a> {
    pub(super) ids: &'a [u64],
    pub(super) bounds: Vec<usize>,
    pub(super) weights: Option<&'a [u8]>,
}

impl BagQuery {
    /// Number of bags.
    pub fn bags(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    /// The ids that lie in bags; `None` where the rows of the table cannot be pooled by its holder: where ids are keys, whose absent
    /// ones get their row from whoever asks, and where elements are no floats.
    ///
    /// # Errors
    /// An id out of range, and parts that do not fit each other.
    pub(super) fn in_bags(&self, tables: &[Table]) -> Result<Option<InBags<'_>>, StoreError> {
        let Some(table) = tables.get(self.table) else {
            return Err(StoreError::Corrupt(format!("table {} of {}", self.table, tables.len())));
        };
        let fail = |what: String| Err(StoreError::Corrupt(format!("table \"{}\": {what}", table.name)));
        check_range(table, &self.ids)?;
        let (Some(&first), Some(&last)) = (self.bounds.first(), self.bounds.last()) else { return Ok(None) };
        if last > self.ids.len() || !self.bounds.is_sorted() {
            return fail(format!("bags do not lie in ascending order among {} ids", self.ids.len()));
        }
        let Some(size) = float_size(table.dtype).filter(|_| !table.keyed) else { return Ok(None) };
        let mut weights = None;
        if let Some(given) = &self.weights {
            let bytes = given.bytes().filter(|b| given.dtype() == table.dtype && b.len() == self.ids.len() * size);
            let Some(bytes) = bytes else {
                return fail(format!("expected {} weights of {}, found {} of {}", self.ids.len(), table.dtype, given.len(), given.dtype()));
            };
            weights = Some(&bytes[first * size..last * size]);
        }
        let bounds = self.bounds.iter().map(|b| b - first).collect();
        Ok(Some(InBags { ids: &self.ids[first..last], bounds, weights }))
    }
}

/// Bytes of an element of rows that can be pooled.
pub(super) fn float_size(dtype: DType) -> Option<usize> {
    dispatch_float!(dtype, T => Some(size_of::<T>()), _other => None)
}

/// Rows, or some columns of them, as they are stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) dtype: DType,
    pub(super) stored: Option<StoreDtype>,
    /// Bytes of a row.
    pub(super) width: usize,
}

impl Stored {
    /// Number of elements.
    fn columns(&self) -> usize {
        match self.stored {
            Some(s) => self.width.saturating_sub(s.tail() as usize) / s.element().size().unwrap_or(1).max(1),
            None => self.width / self.dtype.size().unwrap_or(1).max(1),
        }
    }

    /// Bytes of the elements that these stand for.
    pub(super) fn wide(&self) -> usize {
        self.columns() * self.dtype.size().unwrap_or(0)
    }

    /// Pools the rows that `locate` finds, of bags of which the first begins with row 0, into the bytes of `out` that begin at `offset`
    /// of each `stride`. Rows are asked for well before they are read, and never copied.
    ///
    /// # Errors
    /// The first row that is not there.
    pub(super) fn pool<'a>(
        &self,
        bags: &Bags,
        out: &mut [u8],
        (stride, offset): (usize, usize),
        locate: &dyn Fn(usize) -> Option<&'a [u8]>,
    ) -> Result<(), usize> {
        let mut coming = Coming::new(self.width, bags.bounds.last().copied().unwrap_or(0), locate)?;
        let mut missing = None;
        let next = |i: usize| coming.take(i).map_err(|at| missing = Some(at)).ok();
        let at = Columns { stride, offset, width: self.wide() };
        let mut scratch = Vec::new();
        let done = dispatch_float!(self.dtype, T => match self.stored {
            None => pool::pool::<T>(bags, out, at, next, pool::widened::<T>),
            Some(stored) => pool::pool::<T>(bags, out, at, next, |row, wide| {
                T::widen_row(stored, row, &mut scratch, wide);
                Some(wide)
            }),
        }, _other => Err(0));
        done.map_err(|i| missing.unwrap_or(i))
    }
}
