//! Bodies of requests: read within limits of size, time and memory, unpacked, and answers packed.

use super::protocol::Refusal;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::read::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use futures::StreamExt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

/// Time for a body to come, as a whole.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time without a byte of it.
const SILENCE: Duration = Duration::from_secs(10);
/// Time in which what is not wanted is read, so that the answer is not lost with it.
const REST: Duration = Duration::from_secs(5);
/// What memory is counted in.
const UNIT: usize = 4 << 10;
/// Answers below this size are not worth packing.
const WORTH: usize = 1 << 10;

/// The memory that all requests under way may have.
#[derive(Debug, Clone)]
pub(super) struct Memory(Arc<Semaphore>);

impl Memory {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS))))
    }

    pub(super) fn share(&self) -> Share {
        Share { of: self.0.clone(), held: None, units: 0 }
    }
}

/// What one request has of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    units: usize,
}

impl Share {
    /// Grows to this many bytes.
    fn reach(&mut self, bytes: usize) -> Result<(), Refusal> {
        let want = bytes.div_ceil(UNIT);
        let more = want.saturating_sub(self.units);
        if more == 0 {
            return Ok(());
        }
        let busy = || Refusal::Busy("other requests have all memory for bodies".into());
        let permit = self.of.clone().try_acquire_many_owned(u32::try_from(more).map_err(|_| busy())?).map_err(|_| busy())?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        self.units = want;
        Ok(())
    }
}

fn large(limit: usize) -> Refusal {
    Refusal::Large(format!("the body has more than {limit} bytes"))
}

/// Reads what is left and drops it: closing before would take the answer from a peer that is still sending.
pub(super) async fn discard(body: Body) {
    let mut rest = body.into_data_stream();
    let _ = timeout(REST, async { while let Some(Ok(_)) = rest.next().await {} }).await;
}

/// Reads a body of at most `limit` bytes. `stated` is its length, where the head says it.
pub(super) async fn read(body: Body, stated: Option<u64>, limit: usize, share: &mut Share) -> Result<Bytes, Refusal> {
    if stated.is_some_and(|n| n > limit as u64) {
        discard(body).await;
        return Err(large(limit));
    }
    let end = Instant::now() + PATIENCE;
    let mut stream = body.into_data_stream();
    let mut all = BytesMut::new();
    loop {
        let late = |_| Refusal::Late("the body did not come in time".into());
        let next = timeout_at(end.min(Instant::now() + SILENCE), stream.next()).await.map_err(late)?;
        let Some(piece) = next else { return Ok(all.freeze()) };
        let piece = piece.map_err(|_| Refusal::Bad("the body was cut off".into()))?;
        let size = all.len() + piece.len();
        let room = if size > limit { Err(large(limit)) } else { share.reach(size) };
        if let Err(e) = room {
            let _ = timeout(REST, async { while let Some(Ok(_)) = stream.next().await {} }).await;
            return Err(e);
        }
        all.extend_from_slice(&piece);
    }
}

/// How bodies are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Deflate,
    Gzip,
}

impl Coding {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Deflate => "deflate",
            Self::Gzip => "gzip",
        }
    }

    /// That of a request, from its `Content-Encoding`.
    pub(super) fn of_request(text: &str) -> Result<Option<Self>, Refusal> {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(None),
            "gzip" | "x-gzip" => Ok(Some(Self::Gzip)),
            "deflate" => Ok(Some(Self::Deflate)),
            other => Err(Refusal::Coding(format!("bodies are plain, gzip or deflate, found \"{other}\""))),
        }
    }

    /// The one that an `Accept-Encoding` likes best.
    pub(super) fn wanted(text: &str) -> Option<Self> {
        let likes = |part: &str| -> Option<(Self, f32)> {
            let (name, quality) = part.split_once(';').unwrap_or((part, "q=1"));
            let quality = quality.trim().strip_prefix("q=").and_then(|q| q.trim().parse().ok()).unwrap_or(0.0);
            let coding = Self::of_request(name).ok().flatten().filter(|_| !name.trim().is_empty())?;
            (quality > 0.0).then_some((coding, quality))
        };
        // Of two that are liked the same, the first.
        text.split(',').filter_map(likes).rev().max_by(|a, b| a.1.total_cmp(&b.1)).map(|c| c.0)
    }
}

/// Unpacks a body to at most `limit` bytes.
pub(super) fn unpack(packed: &[u8], coding: Coding, limit: usize, share: &mut Share) -> Result<Bytes, Refusal> {
    let mut reader: Box<dyn Read + '_> = match coding {
        Coding::Gzip => Box::new(GzDecoder::new(packed)),
        Coding::Deflate => Box::new(ZlibDecoder::new(packed)),
    };
    let mut all = Vec::new();
    let mut block = vec![0; 1 << 16];
    loop {
        let n = reader.read(&mut block).map_err(|e| Refusal::Bad(format!("the body is no {}: {e}", coding.name())))?;
        if n == 0 {
            return Ok(all.into());
        }
        if all.len() + n > limit {
            return Err(large(limit));
        }
        share.reach(packed.len() + all.len() + n)?;
        all.extend_from_slice(&block[..n]);
    }
}

/// Packs an answer, where it is worth it.
pub(super) fn pack(plain: &[u8], coding: Coding) -> Option<Vec<u8>> {
    if plain.len() < WORTH {
        return None;
    }
    let room = Vec::with_capacity(plain.len() / 2);
    match coding {
        Coding::Gzip => {
            let mut packer = GzEncoder::new(room, Compression::fast());
            packer.write_all(plain).ok()?;
            packer.finish().ok()
        }
        Coding::Deflate => {
            let mut packer = ZlibEncoder::new(room, Compression::fast());
            packer.write_all(plain).ok()?;
            packer.finish().ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_unpacked_to_its_limit_and_no_further() {
        let memory = Memory::new(1 << 20);
        let plain = vec![7u8; 100_000];
        for coding in [Coding::Gzip, Coding::Deflate] {
            let packed = pack(&plain, coding).unwrap();
            assert!(packed.len() < 2000);
            assert_eq!(unpack(&packed, coding, 100_000, &mut memory.share()).unwrap(), plain);
            assert_eq!(unpack(&packed, coding, 99_999, &mut memory.share()).unwrap_err().status(), 413);
            assert_eq!(unpack(&packed[..packed.len() - 20], coding, 100_000, &mut memory.share()).unwrap_err().status(), 400);
            assert_eq!(unpack(b"no such thing", coding, 100, &mut memory.share()).unwrap_err().status(), 400);
        }
        assert_eq!(pack(b"short", Coding::Gzip), None);
    }

    #[test]
    fn memory_is_shared_and_given_back() {
        let memory = Memory::new(8 * UNIT);
        let (mut a, mut b) = (memory.share(), memory.share());
        a.reach(5 * UNIT).unwrap();
        a.reach(UNIT).unwrap();
        assert_eq!(b.reach(4 * UNIT).unwrap_err().status(), 503);
        drop(a);
        b.reach(8 * UNIT).unwrap();
    }

    #[test]
    fn codings_are_chosen_by_what_the_peer_likes() {
        assert_eq!(Coding::wanted("gzip, deflate"), Some(Coding::Gzip));
        assert_eq!(Coding::wanted("deflate, gzip;q=0.5, br"), Some(Coding::Deflate));
        assert_eq!(Coding::wanted("identity"), None);
        assert_eq!(Coding::wanted("gzip;q=0"), None);
        assert_eq!(Coding::wanted(""), None);
        assert_eq!(Coding::of_request("br").unwrap_err().status(), 415);
        assert_eq!(Coding::of_request(" GZIP "), Ok(Some(Coding::Gzip)));
    }
}
