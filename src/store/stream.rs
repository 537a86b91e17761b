//! The rows of a large request, gathered while they are written: the peer reads the first of them while the next are looked
//! up, each chunk is still in the cache when it is sent, and no more than one is in memory.

use super::request::{Blocks, Request};
use super::{Shards, StoreError};
use crate::wire::{Chunks, Pooled};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Bytes of a chunk; a wider row is a chunk by itself.
pub(super) const CHUNK: usize = 512 << 10;
/// Answers up to this stay in the cache as they are, and go out sooner in one piece.
const WHOLE: usize = 2 << 20;

/// The rows of a request, in chunks.
pub(super) struct RowStream {
    shards: Arc<Shards>,
    request: Request,
    ids: Blocks,
    rows: Blocks,
    /// The next row to gather, and the bytes that are done.
    part: usize,
    row: usize,
    done: usize,
}

impl RowStream {
    /// The rows of `request`; `None` if they are few, or of keyed tables, whose absent keys come before the rows.
    ///
    /// # Errors
    /// A request that cannot be answered; afterwards nothing can fail.
    pub(super) fn new(shards: &Arc<Shards>, request: &Request, len: usize) -> Result<Option<Self>, StoreError> {
        if len <= WHOLE || request.parts.iter().any(|p| shards.keyed(p)) {
            return Ok(None);
        }
        let (ids, rows) = shards.check(request)?;
        Ok(Some(Self { shards: shards.clone(), request: request.clone(), ids, rows, part: 0, row: 0, done: 0 }))
    }

    /// Fills `out`, or less if the next row does not fit; gives how much.
    fn fill(&mut self, out: &mut [u8]) -> Option<usize> {
        let (mut at, mut absent) = (0, Vec::new());
        while let Some(p) = self.request.parts.get(self.part) {
            let width = p.width as usize;
            let left = p.count as usize - self.row;
            if left == 0 || width == 0 {
                (self.part, self.row) = (self.part + 1, 0);
                continue;
            }
            // The gap before a block.
            let gap = self.rows.0[self.part] + self.row * width - (self.done + at);
            let n = left.min(out.len().saturating_sub(at + gap) / width);
            if n == 0 {
                break;
            }
            out[at..at + gap].fill(0);
            at += gap;
            let from = self.ids.0[self.part] + self.row * p.id_bytes();
            let ids = &self.request.ids[from..from + n * p.id_bytes()];
            self.shards.part_rows(p, ids, &mut out[at..at + n * width], &mut absent).ok()?;
            at += n * width;
            self.row += n;
        }
        if self.part == self.request.parts.len() {
            // The gap before blocks without rows at the end.
            let gap = (self.rows.1 - self.done - at).min(out.len() - at);
            out[at..at + gap].fill(0);
            at += gap;
        }
        Some(at)
    }
}

impl Chunks for RowStream {
    fn total(&self) -> usize {
        self.rows.1
    }

    fn next(&mut self) -> Option<Bytes> {
        let widest = self.request.parts[self.part..].iter().map(|p| p.width as usize).max().unwrap_or(0);
        let mut chunk = Pooled::take(CHUNK.max(widest + 64).min(self.rows.1 - self.done));
        let n = self.fill(&mut chunk)?;
        self.done += n;
        chunk.truncate(n);
        Some(chunk.freeze())
    }
}

impl fmt::Debug for RowStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.done, self.rows.1)
    }
}
