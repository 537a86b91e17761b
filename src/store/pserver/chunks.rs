//! Requests that are over a limit, cut into several, and their replies put together again.

use super::wire::{ABSENT_BYTES, Limits, overhead};
use crate::store::request::{Blocks, Part, Reply, Request, id_blocks, row_blocks};
use crate::wire::Pooled;

/// Ids `first..first + count` of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    part: usize,
    first: usize,
    count: usize,
}

/// A request in as many pieces as the limits need.
pub(super) struct Chunks<'a> {
    request: &'a Request,
    ids: Blocks,
    rows: Blocks,
    chunks: Vec<Vec<Piece>>,
}

/// Room that is lost between two blocks at most.
const GAP: usize = 64;

impl<'a> Chunks<'a> {
    /// Cuts `request`; `None` if it is within the limits as it is.
    ///
    /// # Errors
    /// A single row that is over the limit.
    pub(super) fn cut(
        request: &'a Request,
        limits: Limits,
        keyed: impl Fn(u32) -> bool,
        table: impl Fn(u32) -> String,
    ) -> Result<Option<Self>, String> {
        let no_size = || "a request without a size".to_string();
        let (ids, rows) = (id_blocks(&request.parts).ok_or_else(no_size)?, row_blocks(&request.parts).ok_or_else(no_size)?);
        let limit = usize::try_from(limits.max_frame).unwrap_or(usize::MAX);
        let max_ids = usize::try_from(limits.max_ids).unwrap_or(usize::MAX).max(1);
        let row_cost = |p: &Part| p.width as usize + if keyed(p.table) { ABSENT_BYTES } else { 0 };
        let (mut total, mut answer) = (0, overhead(request.parts.len()) + rows.1);
        for p in request.parts.iter() {
            total += p.count as usize;
            answer += p.count as usize * (row_cost(p) - p.width as usize);
        }
        if total <= max_ids && overhead(request.parts.len()) + ids.1 <= limit && answer <= limit {
            return Ok(None);
        }
        let mut chunks: Vec<Vec<Piece>> = Vec::new();
        // What is left of the present chunk: ids, bytes of the request, bytes of the answer.
        let (mut n, mut request_room, mut answer_room) = (0usize, 0usize, 0usize);
        for (part, p) in request.parts.iter().enumerate() {
            let alone = overhead(1) + GAP + row_cost(p);
            if alone > limit {
                let what = format!("a row of table \"{}\" needs a frame of {alone} bytes, the limit is {limit} bytes", table(p.table));
                return Err(format!("{what}; --max-frame sets it, here and at the pserver"));
            }
            let mut first = 0;
            while first < p.count as usize {
                // Another part in a chunk costs its place in the head and a gap.
                let fixed = overhead(1) + GAP;
                let fits = n
                    .min(request_room.saturating_sub(fixed) / p.id_bytes())
                    .min(answer_room.saturating_sub(fixed).checked_div(row_cost(p)).unwrap_or(usize::MAX));
                if fits == 0 {
                    chunks.push(Vec::new());
                    (n, request_room, answer_room) = (max_ids, limit, limit);
                    if limit < fixed + p.id_bytes() {
                        return Err(format!("the frame limit of {limit} bytes (--max-frame) has no room for an id"));
                    }
                    continue;
                }
                let count = fits.min(p.count as usize - first);
                if let Some(chunk) = chunks.last_mut() {
                    chunk.push(Piece { part, first, count });
                }
                n -= count;
                request_room -= fixed + count * p.id_bytes();
                answer_room -= fixed + count * row_cost(p);
                first += count;
            }
        }
        Ok(Some(Self { request, ids, rows, chunks }))
    }

    /// Number of requests.
    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// The request of chunk `i`.
    pub(super) fn request(&self, i: usize) -> Request {
        let of = |c: &Piece| Part { count: c.count as u32, ..self.request.parts[c.part] };
        let parts: Vec<Part> = self.chunks[i].iter().map(of).collect();
        let (starts, len) = id_blocks(&parts).unwrap_or_default();
        let mut ids = Pooled::take(len);
        let mut end = 0;
        for ((c, p), start) in self.chunks[i].iter().zip(&parts).zip(starts) {
            ids[end..start].fill(0);
            let from = self.ids.0[c.part] + c.first * p.id_bytes();
            end = start + c.count * p.id_bytes();
            ids[start..end].copy_from_slice(&self.request.ids[from..from + c.count * p.id_bytes()]);
        }
        Request { parts: parts.into(), pooling: None, ids: ids.freeze() }
    }

    /// An answer to the whole request, to be filled by [`Chunks::put`].
    pub(super) fn reply(&self) -> Reply {
        Reply { rows: Pooled::take(self.rows.1), ..Reply::default() }
    }

    /// Puts the reply to chunk `i` into its place; false if it is not as long as the chunk.
    pub(super) fn put(&self, i: usize, reply: &Reply, whole: &mut Reply) -> bool {
        let parts: Vec<Part> = self.chunks[i].iter().map(|c| Part { count: c.count as u32, ..self.request.parts[c.part] }).collect();
        let Some((starts, len)) = row_blocks(&parts) else { return false };
        if len != reply.rows.len() {
            return false;
        }
        for ((c, p), start) in self.chunks[i].iter().zip(&parts).zip(starts) {
            let width = p.width as usize;
            let to = self.rows.0[c.part] + c.first * width;
            whole.rows[to..to + c.count * width].copy_from_slice(&reply.rows[start..start + c.count * width]);
        }
        for &(part, slot) in &reply.absent {
            let Some(c) = self.chunks[i].get(part as usize) else { return false };
            whole.absent.push((c.part as u32, c.first as u32 + slot));
        }
        true
    }
}
