//! What a router asks of a holder of shards, in one round trip: ids of any number of tables, and the rows of them.
//! Ids and rows are blocks in one buffer each, so that they go over a wire as they lie.

use super::StoreError;
use crate::tensor::PoolMode;
use crate::wire::Pooled;
use bytes::Bytes;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// Blocks of ids start at multiples of this.
const ID_ALIGN: usize = 8;
/// Blocks of rows start at multiples of this, the alignment of the buffers.
const ROW_ALIGN: usize = 64;

/// The ids of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index into the manifest's tables.
    pub(crate) table: u32,
    /// Number of ids.
    pub(crate) count: u32,
    /// Whether ids are 8 bytes wide, else 4.
    pub(crate) wide: bool,
    /// Bytes of a row, of the columns that the peer holds.
    pub(crate) width: u32,
    /// The group of shards (see [`crate::plan::Placement`]) whose columns are asked for.
    pub(crate) group: u32,
}

impl Part {
    pub(crate) fn id_bytes(&self) -> usize {
        if self.wide { 8 } else { 4 }
    }
}

/// How the rows of a part are pooled before they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pooling {
    pub(crate) mode: PoolMode,
    /// Number of bags.
    pub(crate) bags: u32,
    /// Bytes of the factor of each row; 0 if there are none.
    pub(crate) factor: u8,
    /// Bytes of a pooled row, of the columns that the peer holds.
    pub(crate) width: u32,
}

impl Pooling {
    /// Bytes of all pooled rows.
    pub(crate) fn len(&self) -> Option<usize> {
        (self.bags as usize).checked_mul(self.width as usize)
    }
}

/// Ids of some tables.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) parts: Arc<[Part]>,
    /// Of a request of one part: that its rows are to be pooled.
    pub(crate) pooling: Option<Pooling>,
    /// Their ids, in blocks as [`id_blocks`] has them; with what pooling needs, as [`bag_blocks`] has it.
    pub(crate) ids: Bytes,
}

/// The rows of a request: of each table those columns that the peer holds.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// That the limits of the peer have no room for one of the bags, so that it was not asked.
    pub(crate) over_limit: bool,
    /// (part, position) of each key that its table does not hold; its row is zeros. In order.
    pub(crate) absent: Vec<(u32, u32)>,
    /// The rows, in blocks as [`row_blocks`] has them, or the pooled rows.
    pub(crate) rows: Pooled,
}

/// Where the blocks begin, and the length of all.
pub(crate) type Blocks = (Vec<usize>, usize);

fn blocks(sizes: impl Iterator<Item = Option<usize>>, align: usize) -> Option<Blocks> {
    let (mut starts, mut at) = (Vec::with_capacity(sizes.size_hint().0), 0usize);
    for size in sizes {
        at = at.checked_next_multiple_of(align)?;
        starts.push(at);
        at = at.checked_add(size?)?;
    }
    (at <= isize::MAX as usize).then_some((starts, at))
}

/// The blocks of ids of `parts`; `None` if they have no size.
pub(crate) fn id_blocks(parts: &[Part]) -> Option<Blocks> {
    blocks(parts.iter().map(|p| (p.count as usize).checked_mul(p.id_bytes())), ID_ALIGN)
}

/// The blocks of rows of `parts`; `None` if they have no size.
pub(crate) fn row_blocks(parts: &[Part]) -> Option<Blocks> {
    blocks(parts.iter().map(|p| (p.count as usize).checked_mul(p.width as usize)), ROW_ALIGN)
}

/// The blocks of a part that is pooled: its ids, where each bag ends among them (4 bytes each), the factors; `None` if they have no
/// size.
pub(crate) fn bag_blocks(part: &Part, pooling: &Pooling) -> Option<([usize; 3], usize)> {
    let count = part.count as usize;
    let sizes = [count.checked_mul(part.id_bytes()), (pooling.bags as usize).checked_mul(4), count.checked_mul(pooling.factor.into())];
    let (starts, len) = blocks(sizes.into_iter(), ID_ALIGN)?;
    Some((starts.try_into().ok()?, len))
}

/// The answer to a request.
pub(crate) type ReplyFuture<'a> = Pin<Box<dyn Future<Output = Result<Reply, StoreError>> + Send + 'a>>;

/// A holder of some shards of a deployment: here or across a wire.
pub(crate) trait Peer: Send + Sync + fmt::Debug {
    /// Answers a request. Idempotent.
    fn fetch(&self, request: Request) -> ReplyFuture<'_>;

    /// Whether it pools rows that are asked for so. Whoever does not is never asked.
    fn pools(&self) -> bool {
        false
    }

    /// Whether its rows come by memory that who asks has too.
    fn near(&self) -> bool {
        false
    }

    /// Calls that were repeated after a connection was lost.
    fn retries(&self) -> u64 {
        0
    }
}
