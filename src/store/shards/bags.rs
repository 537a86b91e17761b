//! Rows that are pooled where they are mapped: for a run on one machine, and for a pserver a few bags at a time.

use super::{Held, Place, Shards};
use crate::store::bags::{BagQuery, Stored, float_size};
use crate::store::keys::{Id, cast_ids, range_of};
use crate::store::layout;
use crate::store::piece::Mapped;
use crate::store::request::{Part, Pooling, Reply, Request, bag_blocks};
use crate::store::{Stats, StoreError};
use crate::tensor::pool::Bags;
use crate::tensor::{DType, Tensor};
use crate::wire::Pooled;

/// Bytes of rows that are pooled before other connections have their turn.
const STEP: usize = 512 << 10;

impl Held {
    fn stored(&self, dtype: DType, width: usize) -> Stored {
        Stored { dtype, stored: self.decode.stored(), width }
    }

    /// Bytes of a row of a group's columns in the table's dtype.
    fn wide(&self, dtype: DType, group: u32) -> usize {
        match &self.place {
            Place::Column(groups) => groups.get(&group).map_or(0, |c| c.pieces.iter().map(|p| self.stored(dtype, p.1).wide()).sum()),
            _ => self.stored(dtype, self.width).wide(),
        }
    }
}

/// A request whose rows are pooled bag by bag.
pub(in crate::store) struct PoolJob<'a> {
    shards: &'a Shards,
    part: Part,
    pooling: Pooling,
    ids: &'a [u8],
    bounds: Vec<usize>,
    weights: &'a [u8],
    rows: Pooled,
    next: usize,
}

impl<'a> PoolJob<'a> {
    /// Begins; afterwards nothing can fail but files that are damaged.
    ///
    /// # Errors
    /// As [`Shards::check`].
    pub(in crate::store) fn new(shards: &'a Shards, request: &'a Request, pooling: Pooling) -> Result<Self, StoreError> {
        if let Some(fault) = shards.fault.get() {
            return Err(fault.clone());
        }
        let fail = |what: String| Err(StoreError::Corrupt(what));
        let [part] = *request.parts else { return fail(format!("bags of {} tables in one request", request.parts.len())) };
        let Some((t, held)) = shards.tables.get(part.table as usize).zip(shards.held.get(part.table as usize)) else {
            return fail(format!("bags of table {} of {}", part.table, shards.tables.len()));
        };
        let Some(size) = float_size(t.dtype).filter(|_| !t.keyed) else {
            let what = if t.keyed { "a keyed table".into() } else { t.dtype.to_string() };
            return fail(format!("table \"{}\": rows of {what} are not pooled here", t.name));
        };
        let (has, asked) = ((held.width(part.group), held.wide(t.dtype, part.group)), (part.width as usize, pooling.width as usize));
        if has != asked || ![0, size].contains(&pooling.factor.into()) {
            return fail(format!(
                "table \"{}\": rows of {} bytes, {} pooled, and weights of {} were asked for, here are {}, {} and {size}",
                t.name, asked.0, asked.1, pooling.factor, has.0, has.1
            ));
        }
        let Some(([ids_at, ends_at, weights_at], len)) = bag_blocks(&part, &pooling).filter(|b| b.1 == request.ids.len()) else {
            return fail(format!("{} bytes of ids and bags, which is not what they are said to be", request.ids.len()));
        };
        let Some(rows) = pooling.len() else { return fail("bags without a size".into()) };
        let ids = &request.ids[ids_at..ids_at + part.count as usize * part.id_bytes()];
        if part.wide { shards.check_ids::<u64>(&part, ids) } else { shards.check_ids::<u32>(&part, ids) }?;
        let ends = request.ids[ends_at..ends_at + pooling.bags as usize * 4].as_chunks().0;
        let bounds: Vec<usize> = std::iter::once(0).chain(ends.iter().map(|e| u32::from_le_bytes(*e) as usize)).collect();
        if !bounds.is_sorted() || bounds.last() != Some(&(part.count as usize)) {
            return fail(format!("table \"{}\": bags that are not {} ids in ascending order", t.name, part.count));
        }
        let n = part.count.into();
        shards.frequented.read(part.count as usize * part.width as usize);
        shards.counters.add(&Stats { lookups: 1, ids: n, unique_ids: n, bytes: rows as u64, ..Stats::default() });
        let weights = &request.ids[weights_at..len];
        Ok(Self { shards, part, pooling, ids, bounds, weights, rows: Pooled::take(rows), next: 0 })
    }

    /// Pools some more bags; false if all are done.
    ///
    /// # Errors
    /// Files that are damaged.
    pub(in crate::store) fn step(&mut self) -> Result<bool, StoreError> {
        let (from, bags) = (self.next, self.bounds.len() - 1);
        if from >= bags {
            return Ok(false);
        }
        let first = self.bounds[from];
        let enough = first + (STEP / (self.part.width as usize).max(1)).max(1);
        self.next = (from + self.bounds[from + 1..].partition_point(|&end| end <= enough)).clamp(from + 1, bags);
        let last = self.bounds[self.next];
        let bounds: Vec<usize> = self.bounds[from..=self.next].iter().map(|b| b - first).collect();
        let (id, factor, width) = (self.part.id_bytes(), usize::from(self.pooling.factor), self.pooling.width as usize);
        let weights = (factor > 0).then(|| &self.weights[first * factor..last * factor]);
        let bags = Bags { mode: self.pooling.mode, bounds: &bounds, weights };
        let (ids, out) = (&self.ids[first * id..last * id], &mut self.rows[from * width..self.next * width]);
        let (table, group) = (self.part.table as usize, self.part.group);
        if self.part.wide {
            self.shards.pool::<u64>((table, group), &cast_ids(ids), &bags, out)?;
        } else {
            self.shards.pool::<u32>((table, group), &cast_ids(ids), &bags, out)?;
        }
        Ok(true)
    }

    /// The pooled rows.
    pub(in crate::store) fn reply(self) -> Reply {
        Reply { rows: self.rows, ..Reply::default() }
    }
}

impl Shards {
    /// Pools the rows of `ids`, of a group's columns, into `out`.
    fn pool<I: Id>(&self, (table, group): (usize, u32), ids: &[I], bags: &Bags, out: &mut [u8]) -> Result<(), StoreError> {
        let (t, held) = (&self.tables[table], &self.held[table]);
        let rows = held.stored(t.dtype, held.width(group));
        let whole = (rows.wide(), 0);
        fn row(piece: &Mapped, row: u64, width: usize) -> Option<&[u8]> {
            let from = usize::try_from(row).ok()?.checked_mul(width)?;
            piece.values.get(from..from.checked_add(width)?)
        }
        let id = |i: usize| ids.get(i).map(Id::wide);
        let done = match &held.place {
            Place::Whole(piece) => rows.pool(bags, out, whole, &|i| row(piece.as_ref()?, id(i)?, rows.width)),
            Place::Row(n, pieces) => rows.pool(bags, out, whole, &|i| {
                let (at, p) = n.div_rem(id(i)?);
                row(pieces[p].as_ref()?, at, rows.width)
            }),
            Place::Range(starts, pieces) => rows.pool(bags, out, whole, &|i| {
                let p = range_of(starts, id(i)?);
                row(pieces[p].as_ref()?, id(i)?.checked_sub(starts[p])?, rows.width)
            }),
            Place::Column(groups) => {
                let (stride, mut offset) = (held.wide(t.dtype, group), 0);
                groups.get(&group).map_or(&[][..], |c| &c.pieces).iter().try_for_each(|(_, width, piece)| {
                    let columns = held.stored(t.dtype, *width);
                    let done = columns.pool(bags, out, (stride, offset), &|i| row(piece, id(i)?, *width));
                    offset += columns.wide();
                    done
                })
            }
        };
        done.map_err(|_| self.elsewhere(t))
    }

    /// The pooled rows of a query, of tables that are here whole.
    pub(super) fn bags(&self, query: &BagQuery) -> Result<Option<Tensor>, StoreError> {
        if let Some(fault) = self.fault.get() {
            return Err(fault.clone());
        }
        let Some(inside) = query.in_bags(&self.tables)? else { return Ok(None) };
        let (t, bags) = (&self.tables[query.table], Bags { mode: query.mode, bounds: &inside.bounds, weights: inside.weights });
        let len = t.dtype.byte_len(&t.row_shape).and_then(|w| w.checked_mul(bags.count()));
        let len = len.ok_or_else(|| StoreError::Corrupt(format!("table \"{}\": {} bags have no size", t.name, bags.count())))?;
        let mut out = Pooled::take(len);
        self.pool((query.table, 0), inside.ids, &bags, &mut out)?;
        self.frequented.read(inside.ids.len() * self.held[query.table].width);
        let (ids, unique_ids) = (query.ids.len() as u64, inside.ids.len() as u64);
        self.counters.add_asked(&Stats { lookups: 1, ids, unique_ids, bytes: len as u64, ..Stats::default() });
        layout::rows_tensor(t, bags.count(), out.freeze()).map(Some)
    }
}
