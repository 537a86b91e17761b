//! A byte stream as a `Stream` of messages read and a `Sink` of messages written.

use super::{MAX_HEAD, Pooled};
use bytes::{BufMut, Bytes};
use futures::{FutureExt, Sink, Stream, StreamExt, ready};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes before the head: magic, bytes of head, bytes of body.
pub(crate) const PREFIX: usize = 12;
const MAGIC: u32 = u32::from_le_bytes(*b"gtw1");
/// What a body that a peer announces costs at most before its bytes come, where announcements are not believed.
const BELIEVED: usize = 256 << 10;
/// What is read at once before the size of a body is known: room for a small message whole, little to copy of a large one.
const INBOX: usize = 8 << 10;

/// A body that is made while it is written, so that it is never in memory whole and the peer reads its beginning early.
pub(crate) trait Chunks: Send {
    /// Bytes of all chunks.
    fn total(&self) -> usize;

    /// The next chunk; none if it cannot be made, which ends the connection.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>>;
}

/// The body of a message to write.
pub(crate) enum Body {
    Whole(Bytes),
    Chunks(Box<dyn Chunks>),
}

/// What the messages of a stream are, in one direction each.
pub(crate) trait Codec {
    /// A message to write.
    type Out;
    /// A message read.
    type In;

    /// Appends the head of a message and gives its body.
    fn encode(&mut self, item: Self::Out, head: &mut Vec<u8>) -> io::Result<Body>;

    /// The message of a head and a body.
    fn decode(&mut self, head: &[u8], body: Pooled) -> io::Result<Self::In>;
}

/// An error about the content of a message.
pub(crate) fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// A body that is being read, and the head that it belongs to.
struct Arriving {
    head: usize,
    /// Bytes of the whole body.
    len: usize,
    body: Pooled,
    filled: usize,
}

impl Arriving {
    /// Makes room for more of the body, twice what there is.
    fn grow(&mut self) {
        let mut larger = Pooled::take(self.len.min(self.filled * 2));
        larger[..self.filled].copy_from_slice(&self.body);
        self.body = larger;
    }
}

/// How many messages `bytes` begin with.
pub(crate) fn read_all<C: Codec + Unpin>(bytes: &[u8], codec: C) -> usize {
    let mut framed = Framed::new(bytes, codec, super::DEFAULT_MAX_FRAME).doubting();
    std::iter::from_fn(|| framed.next().now_or_never().flatten()).take_while(Result::is_ok).count()
}

/// Messages of `C` over the byte stream `S`.
pub(crate) struct Framed<S, C> {
    stream: S,
    codec: C,
    read_limit: usize,
    write_limit: usize,
    /// Up to what size memory for a body is taken before it comes.
    believed: usize,
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    arriving: Option<Arriving>,
    frames_read: u64,
    ended: bool,
    outbox: Vec<u8>,
    body: Bytes,
    written: usize,
    /// What makes the rest of the body, and how much of it there is.
    chunks: Option<(Box<dyn Chunks>, usize)>,
}

impl<S, C: Codec> Framed<S, C> {
    /// Frames of at most `limit` bytes in both directions.
    pub(crate) fn new(stream: S, codec: C, limit: usize) -> Self {
        let (inbox, outbox) = (vec![0; INBOX], Vec::with_capacity(1024));
        Self {
            stream,
            codec,
            read_limit: limit,
            write_limit: limit,
            believed: usize::MAX,
            inbox,
            start: 0,
            end: 0,
            arriving: None,
            frames_read: 0,
            ended: false,
            outbox,
            body: Bytes::new(),
            written: 0,
            chunks: None,
        }
    }

    /// Frames of a peer that may announce more than it sends: memory grows with the bytes that come.
    pub(crate) fn doubting(mut self) -> Self {
        self.believed = BELIEVED;
        self
    }

    /// Changes the limits, for the handshake has lower ones.
    pub(crate) fn set_limits(&mut self, read: usize, write: usize) {
        (self.read_limit, self.write_limit) = (read, write);
    }

    /// Which frame is under way, if one has been read in part.
    pub(crate) fn partial(&self) -> Option<u64> {
        (self.arriving.is_some() || self.start < self.end).then_some(self.frames_read)
    }

    /// Whether the peer has closed the stream.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// The sizes of the frame at the front of the inbox, once its prefix is there.
    fn sizes(&self) -> io::Result<Option<(usize, usize)>> {
        let Some(prefix) = self.inbox[self.start..self.end].first_chunk::<PREFIX>() else {
            // A foreign protocol is told from its first bytes, however few it sends.
            let seen = &self.inbox[self.start..self.end.min(self.start + 4)];
            return if MAGIC.to_le_bytes().starts_with(seen) { Ok(None) } else { Err(foreign(seen)) };
        };
        let word = |i: usize| u32::from_le_bytes([prefix[i], prefix[i + 1], prefix[i + 2], prefix[i + 3]]);
        if word(0) != MAGIC {
            return Err(foreign(prefix));
        }
        let (head, body) = (word(4) as usize, word(8) as usize);
        if head > MAX_HEAD || PREFIX + head + body > self.read_limit {
            let size = PREFIX + head + body;
            return Err(invalid(format!("a frame of {size} bytes (head {head}) is over the limit of {} bytes", self.read_limit)));
        }
        Ok(Some((head, body)))
    }

    /// Takes the head and what there is of the body out of the inbox.
    fn begin(&mut self, head: usize, len: usize) -> Arriving {
        let from = self.start + PREFIX + head;
        let have = len.min(self.end - from);
        let mut body = Pooled::take(len.min(self.believed.max(have)));
        body[..have].copy_from_slice(&self.inbox[from..from + have]);
        Arriving { head, len, body, filled: have }
    }

    /// Makes room in the inbox for a frame of `need` bytes before its body.
    fn make_room(&mut self, need: usize) {
        self.inbox.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.inbox.len() < need {
            self.inbox.resize(need, 0);
        }
    }
}

fn foreign(seen: &[u8]) -> io::Error {
    // The first byte of a handshake, or of an alert.
    if seen.starts_with(&[0x16]) || seen.starts_with(&[0x15]) {
        return super::tls::spoken();
    }
    invalid("the peer does not speak graphtool's protocol")
}

impl<S: AsyncRead + Unpin, C: Codec + Unpin> Stream for Framed<S, C> {
    type Item = io::Result<C::In>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let early = || Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
        loop {
            if let Some(a) = &mut this.arriving {
                while a.filled < a.len {
                    if a.filled == a.body.len() {
                        a.grow();
                    }
                    let mut rest = ReadBuf::new(&mut a.body[a.filled..]);
                    ready!(Pin::new(&mut this.stream).poll_read(cx, &mut rest))?;
                    match rest.filled().len() {
                        0 => return early(),
                        n => a.filled += n,
                    }
                }
            }
            if let Some(Arriving { head, body, .. }) = this.arriving.take() {
                let from = this.start + PREFIX;
                let in_inbox = body.len().min(this.end - from - head);
                let message = this.codec.decode(&this.inbox[from..from + head], body);
                this.start = from + head + in_inbox;
                this.frames_read += 1;
                return Poll::Ready(Some(message));
            }
            let mut need = PREFIX;
            if let Some((head, body)) = this.sizes()? {
                need = PREFIX + head;
                if this.end - this.start >= need {
                    this.arriving = Some(this.begin(head, body));
                    continue;
                }
            }
            this.make_room(need);
            let mut room = ReadBuf::new(&mut this.inbox[this.end..]);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut room))?;
            match room.filled().len() {
                0 if this.end == 0 => {
                    this.ended = true;
                    return Poll::Ready(None);
                }
                0 => return early(),
                n => this.end += n,
            }
        }
    }
}

impl<S: AsyncWrite + Unpin, C: Codec + Unpin> Framed<S, C> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // The head goes out together with the first part of the body.
            if let (Some((chunks, left)), true) = (&mut self.chunks, self.body.is_empty()) {
                let made = ready!(chunks.poll_next(cx)).filter(|c| !c.is_empty() && c.len() <= *left);
                self.body = made.ok_or_else(|| invalid("the rest of a body could not be made"))?;
                *left -= self.body.len();
                if *left == 0 {
                    self.chunks = None;
                }
            }
            let head = self.outbox.len();
            while self.written < head + self.body.len() {
                let n = if self.written < head {
                    let parts = [IoSlice::new(&self.outbox[self.written..]), IoSlice::new(&self.body)];
                    ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &parts))?
                } else {
                    ready!(Pin::new(&mut self.stream).poll_write(cx, &self.body[self.written - head..]))?
                };
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += n;
            }
            self.outbox.clear();
            self.body = Bytes::new();
            self.written = 0;
            if self.chunks.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin, C: Codec + Unpin> Sink<C::Out> for Framed<S, C> {
    type Error = io::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(cx)
    }

    fn start_send(self: Pin<&mut Self>, item: C::Out) -> io::Result<()> {
        let this = self.get_mut();
        this.outbox.clear();
        this.outbox.resize(PREFIX, 0);
        let body = this.codec.encode(item, &mut this.outbox);
        let head = this.outbox.len() - PREFIX;
        let sized = body.and_then(|body| {
            let len = match &body {
                Body::Whole(bytes) => bytes.len(),
                Body::Chunks(chunks) => chunks.total(),
            };
            let size = PREFIX + head + len;
            if head <= MAX_HEAD && size <= this.write_limit {
                return Ok((body, len));
            }
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a frame of {size} bytes is over the limit of {} bytes", this.write_limit),
            ))
        });
        match sized {
            Ok((body, len)) => {
                let mut prefix = &mut this.outbox[..PREFIX];
                prefix.put_u32_le(MAGIC);
                prefix.put_u32_le(head as u32);
                prefix.put_u32_le(len as u32);
                match body {
                    Body::Whole(bytes) => this.body = bytes,
                    Body::Chunks(chunks) => this.chunks = (len > 0).then_some((chunks, len)),
                }
                Ok(())
            }
            Err(e) => {
                this.outbox.clear();
                Err(e)
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{SinkExt, StreamExt};
    use tokio::io::AsyncWriteExt;

    struct Plain;

    struct Slices(Bytes);

    impl Chunks for Slices {
        fn total(&self) -> usize {
            self.0.len()
        }
        fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
            let n = self.0.len().min(1000);
            Poll::Ready(Some(self.0.split_to(n)))
        }
    }

    impl Codec for Plain {
        type Out = (Vec<u8>, Vec<u8>);
        type In = (Vec<u8>, Vec<u8>);
        fn encode(&mut self, item: Self::Out, head: &mut Vec<u8>) -> io::Result<Body> {
            head.extend(item.0);
            // Every second size goes in chunks.
            if item.1.len().is_multiple_of(2) { Ok(Body::Chunks(Box::new(Slices(item.1.into())))) } else { Ok(Body::Whole(item.1.into())) }
        }
        fn decode(&mut self, head: &[u8], body: Pooled) -> io::Result<Self::In> {
            Ok((head.to_vec(), body.to_vec()))
        }
    }

    #[tokio::test]
    async fn frames_of_all_sizes_arrive_whole_over_any_buffer() {
        let sizes = [
            (0, 0),
            (1, 0),
            (3, 5),
            (40, 9000),
            (20_000, 7),
            (0, 100_000),
            (9_000, 30_000),
            (400_000, 2),
            (1, 500_000),
            (3, 900_001),
            (2, 2),
        ];
        for (buffer, doubt) in [(1, true), (7, false), (4096, true), (1 << 20, false), (1 << 20, true)] {
            let (a, b) = tokio::io::duplex(buffer);
            let (mut a, mut b) = (Framed::new(a, Plain, 1 << 20), Framed::new(b, Plain, 1 << 20));
            if doubt {
                b = b.doubting();
            }
            let message = |(h, d): (usize, usize)| ((0..h).map(|i| i as u8).collect(), (0..d).map(|i| (i * 7) as u8).collect());
            let send = async {
                for s in sizes {
                    a.send(message(s)).await.unwrap();
                }
                a.close().await.unwrap();
            };
            let receive = async {
                for s in sizes {
                    assert_eq!(b.next().await.unwrap().unwrap(), message(s), "{s:?} over {buffer}");
                }
                assert!(b.next().await.is_none());
            };
            futures::join!(send, receive);
        }
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_on_both_sides() {
        let (a, b) = tokio::io::duplex(1 << 16);
        let (mut a, mut b) = (Framed::new(a, Plain, 4096), Framed::new(b, Plain, 1024));
        let error = a.send((vec![], vec![0; 4096])).await.unwrap_err();
        assert_eq!(error.to_string(), "a frame of 4108 bytes is over the limit of 4096 bytes");
        a.send((vec![], vec![0; 2000])).await.unwrap();
        let error = b.next().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "a frame of 2012 bytes (head 0) is over the limit of 1024 bytes");
    }

    #[tokio::test]
    async fn memory_for_a_body_comes_with_its_bytes() {
        let (mut a, b) = tokio::io::duplex(1 << 20);
        let mut b = Framed::new(b, Plain, 64 << 20).doubting();
        a.write_all(b"gtw1\0\0\0\0\0\0\0\x03").await.unwrap();
        assert!(b.next().now_or_never().is_none());
        assert_eq!(b.arriving.as_ref().unwrap().body.len(), BELIEVED);
        a.write_all(&vec![0; BELIEVED + 1]).await.unwrap();
        assert!(b.next().now_or_never().is_none());
        assert_eq!(b.arriving.as_ref().unwrap().body.len(), 2 * BELIEVED);
    }

    #[tokio::test]
    async fn garbage_is_told_from_its_first_bytes() {
        for garbage in [&b"GE"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 64], b"gtw2            "] {
            let (mut a, b) = tokio::io::duplex(1 << 16);
            a.write_all(garbage).await.unwrap();
            let error = Framed::new(b, Plain, 1024).next().await.unwrap().unwrap_err();
            assert_eq!(error.to_string(), "the peer does not speak graphtool's protocol");
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_within_a_frame_is_an_error() {
        let (mut a, b) = tokio::io::duplex(1 << 16);
        a.write_all(b"gtw1\x01\0\0\0\x05\0\0\0habc").await.unwrap();
        drop(a);
        let error = Framed::new(b, Plain, 1024).next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
