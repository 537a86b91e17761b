//! The rows of a large request, gathered while they are written: the peer reads the first of them while the next are looked
//! up, by a second thread where there is one, and of the largest requests no more than a part is in memory.

use super::request::{Blocks, Request};
use super::{Shards, StoreError};
use crate::wire::{Chunks, Pooled, Window};
use bytes::Bytes;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Answers up to this stay in the cache as they are, and go out sooner all at once.
const WHOLE: usize = 2 << 20;
/// Answers from this on are worth a second thread where writing costs little.
const LEAST: usize = 1 << 20;
/// Bytes of an answer over [`WHOLE`] that are in memory at once; a wider row is there by itself.
const PART: usize = 1 << 20;
/// Eighths of them that this thread gathers where another helps, which has time until those are written.
const OWN: usize = 3;
/// Bytes that are gathered at one turn where nothing is sent meanwhile.
const TURN: usize = 512 << 10;
/// How long this thread waits awake for the other one.
const AWAKE: Duration = Duration::from_micros(100);

/// What is gathered from.
struct Source {
    shards: Arc<Shards>,
    request: Request,
    ids: Blocks,
    rows: Blocks,
}

/// A place in the answer: the next row to gather, and the bytes before it.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    part: usize,
    row: usize,
    done: usize,
}

impl Source {
    /// # Errors
    /// A request that cannot be answered.
    fn new(shards: &Arc<Shards>, request: &Request) -> Result<Self, StoreError> {
        let (ids, rows) = shards.check(request)?;
        Ok(Self { shards: shards.clone(), request: request.clone(), ids, rows })
    }

    /// The place at most `len` bytes on, but one row on at least.
    fn after(&self, from: Place, len: usize) -> Place {
        let (mut at, end) = (from, from.done.saturating_add(len));
        while let Some(p) = self.request.parts.get(at.part) {
            let width = p.width as usize;
            let left = p.count as usize - at.row;
            if left == 0 || width == 0 {
                (at.part, at.row) = (at.part + 1, 0);
                continue;
            }
            let start = self.rows.0[at.part] + at.row * width;
            let least = usize::from(at.done == from.done);
            let n = left.min((end.saturating_sub(start) / width).max(least));
            if n == 0 {
                return at;
            }
            (at.row, at.done) = (at.row + n, start + n * width);
        }
        // Blocks without rows may have a gap before them.
        Place { done: self.rows.1, ..at }
    }

    /// The bytes from one place to the other; none if a row is not there.
    fn gather(&self, from: Place, to: Place) -> Option<Bytes> {
        let mut out = Pooled::take(to.done - from.done);
        self.fill(from, to, &mut out).ok()?;
        Some(out.freeze())
    }

    /// Writes the bytes from one place to the other.
    fn fill(&self, from: Place, to: Place, out: &mut [u8]) -> Result<(), StoreError> {
        let (mut end, mut absent) = (0, Vec::new());
        for (i, p) in self.request.parts.iter().enumerate().take(to.part + 1).skip(from.part) {
            let first = if i == from.part { from.row } else { 0 };
            let last = if i == to.part { to.row } else { p.count as usize };
            if first == last || p.width == 0 {
                continue;
            }
            let start = self.rows.0[i] + first * p.width as usize - from.done;
            // Gaps between blocks are cleared: the buffer has been used before.
            out[end..start].fill(0);
            end = start + (last - first) * p.width as usize;
            let ids = &self.request.ids[self.ids.0[i] + first * p.id_bytes()..self.ids.0[i] + last * p.id_bytes()];
            self.shards.part_rows(p, ids, &mut out[start..end], &mut absent)?;
        }
        out[end..].fill(0);
        Ok(())
    }
}

/// Writes the rows of `request`, of which no table is keyed, to `out`; other connections of the thread have their turn meanwhile.
///
/// # Errors
/// A request that cannot be answered.
pub(super) async fn fill(shards: &Arc<Shards>, request: &Request, mut out: Pooled) -> Result<Pooled, StoreError> {
    let source = Source::new(shards, request)?;
    let mut at = Place::default();
    while at.done < out.len() {
        let to = source.after(at, TURN);
        source.fill(at, to, &mut out[at.done..to.done])?;
        at = to;
        if at.done < out.len() {
            tokio::task::yield_now().await;
        }
    }
    Ok(out)
}

/// What another thread gathers, unless it is late.
struct Ahead {
    from: Place,
    to: Place,
    /// Whether a thread has begun with it.
    taken: Arc<AtomicBool>,
    made: JoinHandle<Option<Bytes>>,
}

/// The rows of a request, part by part.
pub(super) struct RowStream {
    source: Arc<Source>,
    at: Place,
    ahead: Option<Ahead>,
    shared: bool,
}

/// Where rows are gathered for, and by whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Means<'a> {
    /// Whether there is a second thread.
    pub(super) shared: bool,
    /// Whether the reader is on this machine, beside TCP.
    pub(super) local: bool,
    /// Memory that the reader has too.
    pub(super) window: Option<&'a Window>,
}

impl RowStream {
    /// The rows of `request`; `None` if they are few, or of keyed tables, whose absent keys come before the rows.
    ///
    /// # Errors
    /// A request that cannot be answered; afterwards nothing can fail.
    pub(super) fn new(shards: &Arc<Shards>, request: &Request, len: usize, means: Means<'_>) -> Result<Option<Self>, StoreError> {
        let least = if means.shared && means.local { LEAST } else { WHOLE };
        if len <= least || request.parts.iter().any(|p| shards.keyed(p)) {
            return Ok(None);
        }
        let source = Source::new(shards, request)?;
        Ok(Some(Self { source: source.into(), at: Place::default(), ahead: None, shared: means.shared }))
    }

    /// Bytes of rows that are in memory at once.
    pub(super) fn held(&self) -> usize {
        if self.total() <= WHOLE { self.total() } else { PART }
    }

    /// Has another thread gather what comes after `from`.
    fn share(&mut self, from: Place, len: usize) {
        let Ok(runtime) = Handle::try_current() else { return };
        let (to, taken, source) = (self.source.after(from, len), Arc::new(AtomicBool::new(false)), self.source.clone());
        let begun = taken.clone();
        let made = runtime.spawn_blocking(move || if begun.swap(true, Relaxed) { None } else { source.gather(from, to) });
        self.ahead = Some(Ahead { from, to, taken, made });
    }
}

impl Chunks for RowStream {
    fn total(&self) -> usize {
        self.source.rows.1
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(ahead) = &mut self.ahead {
            let (from, to) = (ahead.from, ahead.to);
            let made = if ahead.taken.swap(true, Relaxed) {
                let since = Instant::now();
                while !ahead.made.is_finished() && since.elapsed() < AWAKE {
                    std::hint::spin_loop();
                }
                ready!(Pin::new(&mut ahead.made).poll(cx)).ok().flatten()
            } else {
                self.source.gather(from, to)
            };
            (self.ahead, self.at) = (None, to);
            return Poll::Ready(made);
        }
        let from = self.at;
        let held = self.held();
        let own = if self.shared { held / 8 * OWN } else { held / 2 };
        self.at = self.source.after(from, own);
        if self.shared && self.at.done < self.total() {
            self.share(self.at, held - own);
        }
        Poll::Ready(self.source.gather(from, self.at))
    }
}

impl fmt::Debug for RowStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.at.done, self.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{FORMAT_VERSION, Manifest, Sharding, TableLayout};
    use crate::store::request::Part;
    use crate::store::write_table;
    use crate::tensor::Tensor;
    use std::path::Path;

    /// Shards of tables of 40 rows with these widths in bytes; no two elements are alike.
    fn shards(dir: &Path, widths: &[usize]) -> Arc<Shards> {
        let table = |(i, w): (usize, &usize)| {
            let values = Tensor::new([40, w / 4], (0..10 * w).map(|x| (i << 24 | x) as u32).collect()).unwrap();
            let layout = TableLayout { name: format!("T{i}"), sharding: Sharding::Table, shards: vec![0], starts: None, store: None };
            write_table(dir, &layout.name, &values, &layout).unwrap()
        };
        let tables = widths.iter().enumerate().map(table).collect();
        let mut manifest = Manifest {
            format_version: FORMAT_VERSION,
            plan_id: String::new(),
            fingerprint: "graph".into(),
            shards: 1,
            tables,
            replicas: 1,
            files: Default::default(),
            dense_inputs: vec![],
        };
        manifest.seal();
        Arc::new(Shards::open(dir, Arc::new(manifest), |_| true).unwrap())
    }

    async fn all(mut stream: RowStream) -> Vec<Bytes> {
        let mut chunks = Vec::new();
        while chunks.iter().map(Bytes::len).sum::<usize>() < stream.total() {
            chunks.push(std::future::poll_fn(|cx| stream.poll_next(cx)).await.unwrap());
        }
        chunks
    }

    #[tokio::test]
    async fn chunks_are_the_answer_whoever_gathers_them() {
        let tmp = tempfile::tempdir().unwrap();
        let widths = [64, 4, 12, 4096, 768 << 10, 256];
        let shards = shards(tmp.path(), &widths);
        for counts in
            [[5000, 9, 7, 0, 0, 1], [0, 1000, 0, 400, 1, 0], [3, 0, 200_001, 700, 3, 5], [40_000, 0, 0, 0, 0, 0], [1, 1, 1, 1, 2, 0]]
        {
            let part = |(i, (&count, &width))| Part { table: i as u32, count, wide: false, width: width as u32, group: 0 };
            let parts: Vec<Part> = counts.iter().zip(&widths).enumerate().map(part).collect();
            let (starts, len) = crate::store::request::id_blocks(&parts).unwrap();
            let mut ids = vec![0u8; len];
            for (p, start) in parts.iter().zip(starts) {
                let to = ids[start..].as_chunks_mut().0;
                to.iter_mut().take(p.count as usize).enumerate().for_each(|(i, to)| *to = (i as u32 * 7919 % 40).to_le_bytes());
            }
            let request = Request { parts: parts.into(), pooling: None, ids: ids.into() };
            let whole = shards.answer(&request).unwrap().rows.freeze();
            for (shared, local) in [(false, false), (false, true), (true, false), (true, true)] {
                let Some(stream) = RowStream::new(&shards, &request, whole.len(), Means { shared, local, window: None }).unwrap() else {
                    assert!(whole.len() <= if shared && local { LEAST } else { WHOLE }, "{counts:?}");
                    continue;
                };
                let chunks = all(stream).await;
                assert_eq!(chunks.concat(), whole, "{counts:?} {shared}");
                assert!(chunks.len() > 1 && chunks.iter().all(|c| c.len() < WHOLE), "{counts:?} {shared}");
            }
        }
    }
}
