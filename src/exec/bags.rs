//! Lookups that are pooled by bag: by the store where it can, else here.

use super::host::{HostError, row_ids, rows_error, spread};
use crate::dispatch_float;
use crate::ops::remote::TableSpec;
use crate::store::{BagQuery, Query, Store};
use crate::tensor::pool::{Bags, Columns, pool, widened};
use crate::tensor::{DType, Float, PoolMode, Tensor, fits_memory};
use std::sync::Arc;

/// Where each bag begins among so many ids, then where the last ends. Without `last_offset`, that is the end of the ids.
pub(super) fn bounds(offsets: &[i64], ids: usize, last_offset: bool) -> Result<Vec<usize>, String> {
    let bags = if last_offset { offsets.len().saturating_sub(1) } else { offsets.len() };
    let mut bounds = Vec::with_capacity(bags + 1);
    for b in 0..bags {
        let start = offsets[b];
        let end = offsets.get(b + 1).copied().unwrap_or(ids as i64);
        if start < 0 || end < start || end > ids as i64 {
            return Err(format!("offsets {start}..{end} of bag {b} do not lie in 0..{ids}"));
        }
        bounds.push(start as usize);
        if b + 1 == bags {
            bounds.push(end as usize);
        }
    }
    if bags == 0 {
        bounds.push(0);
    }
    Ok(bounds)
}

/// A lookup of bags that is ready to go.
pub(super) struct BagLookup {
    store: Arc<dyn Store>,
    query: BagQuery,
    /// Where the ids of the query stand among all, if others are padding, and how many all are.
    places: Option<Vec<usize>>,
    len: usize,
}

impl BagLookup {
    /// Checks ids, bags and weights; nothing is sent yet.
    pub(super) fn new(
        (store, index): (Arc<dyn Store>, usize),
        table: &TableSpec,
        ids: &Tensor,
        weights: Option<&Tensor>,
        (bounds, mode): (Vec<usize>, PoolMode),
    ) -> Result<Self, String> {
        if ids.rank() != 1 {
            return Err(format!("table \"{}\": ids of bags must be a list, found shape {}", table.name, ids.shape()));
        }
        let found = &store.tables()[index];
        let weights = weights.map(|w| each_weight(found.dtype, w, ids.len())).transpose()?;
        let (rows, places) = row_ids(table, ids, found.keyed)?;
        Ok(Self { query: BagQuery { table: index, ids: rows, bounds, weights, mode }, store, places, len: ids.len() })
    }

    /// The pooled rows.
    pub(super) async fn run(self) -> Result<Tensor, HostError> {
        let Self { store, query, places, len } = self;
        // The zeros of padding ids are rows of their bags.
        if query.ids.len() == len
            && let Some(pooled) = store.lookup_bags(&query).await.map_err(rows_error)?
        {
            return Ok(pooled);
        }
        let BagQuery { table, ids, bounds, weights, mode } = query;
        let rows = store.lookup(vec![Query { table, ids }]).await.map_err(rows_error)?.pop().ok_or("no rows")?;
        let rows = spread(rows, places, len)?;
        Ok(pool_here(&rows, &Bags { mode, bounds: &bounds, weights: weights.as_ref().and_then(Tensor::bytes) })?)
    }
}

/// A weight for each of so many ids: those that are given, else one.
fn each_weight(dtype: DType, given: &Tensor, ids: usize) -> Result<Tensor, String> {
    fn all<T: Float>(given: &Tensor, ids: usize) -> Result<Tensor, String> {
        let mut weights = given.to_slice::<T>().map_err(|e| e.to_string())?.into_owned();
        weights.resize(ids, T::ONE);
        Ok(Tensor::vector(weights))
    }
    dispatch_float!(dtype, T => all::<T>(given, ids), other => Err(format!("cannot pool rows of {other}")))
}

/// Pools rows by bag.
fn pool_here(rows: &Tensor, bags: &Bags) -> Result<Tensor, String> {
    fn pool_as<T: Float + bytemuck::Pod>(rows: &Tensor, bags: &Bags) -> Result<Tensor, String> {
        let mut shape = rows.shape().clone();
        let width: usize = shape[1..].iter().product();
        shape[0] = bags.count();
        let Some(len) = bags.count().checked_mul(width).filter(|n| n.checked_mul(size_of::<T>()).is_some_and(fits_memory)) else {
            return Err(format!("pooled rows {shape} do not fit memory"));
        };
        let (mut out, bytes) = (vec![T::ZERO; len], width * size_of::<T>());
        let data = rows.bytes().unwrap_or_default();
        let at = Columns { stride: bytes, offset: 0, width: bytes };
        pool::<T>(bags, bytemuck::cast_slice_mut(&mut out), at, |i| data.get(i * bytes..(i + 1) * bytes), widened::<T>)
            .map_err(|i| format!("no row came for the id at position {i}"))?;
        Tensor::new(shape, out).map_err(|e| e.to_string())
    }
    dispatch_float!(rows.dtype(), T => pool_as::<T>(rows, bags), other => Err(format!("cannot pool rows of {other}")))
}
