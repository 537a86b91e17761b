//! A connection whose reader may stay awake for a moment after something was written: where cores are idle, a small answer is there
//! before a thread has been put to sleep and woken again, which then costs several times the call itself.
//!
//! It never holds the thread: between two looks at the socket all other tasks have their turn, and whoever else wants the core.
//! Whether staying awake pays depends on the machine, the peer and what else runs, so both ways are timed, the one that is worse
//! now and then, and the better is taken. What is timed is the whole round from message to message: both sides see the same then,
//! and as they try at the same rounds, they find out what it is worth if both stay awake, which one alone would not.

use super::local::Socket;
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How long the reader stays awake: longer than a peer that sleeps takes to be woken on another core and to answer.
const AWAKE: Duration = Duration::from_micros(150);
/// Of so many rounds the first few go the way that was worse so far. Those that begin awake are more than one, for the first of
/// them finds the peer asleep.
const TRY: [(u32, u32); 2] = [(128, 8), (256, 1)];
/// The longest round that counts as such.
const LONG: Duration = Duration::from_micros(300);
/// What a round counts for in what is typical: one of so many.
const WEIGHT: u32 = 8;

/// When the reader of a connection stays awake.
#[derive(Debug, Default)]
struct Patience {
    /// Something was written, and nothing has been read since.
    asked: bool,
    /// How often that began.
    rounds: u32,
    /// When something came last.
    came: Option<Instant>,
    /// The wait that is under way: since when, and whether it began awake.
    wait: Option<(Instant, bool)>,
    /// It is not, or no more, awake.
    asleep: bool,
    /// What a round takes in which the wait begins asleep, and in which it begins awake.
    typical: [Duration; 2],
}

impl Patience {
    /// Something is written.
    fn ask(&mut self) {
        self.rounds = self.rounds.wrapping_add(u32::from(!self.asked));
        self.asked = true;
    }

    /// Whether to look at the socket again, rather than sleep.
    fn awake(&mut self, now: impl FnOnce() -> Instant) -> bool {
        match self.wait {
            Some(_) if self.asleep => {}
            Some((since, _)) => self.asleep = now() - since >= AWAKE,
            None if !self.asked => return false,
            None => {
                // A round has more to it than waiting.
                let better = self.typical[1] * 5 / 4 < self.typical[0];
                let (of, first) = TRY[usize::from(better)];
                self.asleep = better == (self.rounds % of < first);
                self.wait = Some((now(), !self.asleep));
            }
        }
        !self.asleep
    }

    /// Something came.
    fn came(&mut self, now: impl FnOnce() -> Instant) {
        let now = now();
        self.asked = false;
        if let (Some((_, began_awake)), Some(before)) = (self.wait.take(), self.came) {
            // Who fell asleep over it had better slept at once.
            let took = if began_awake && self.asleep { LONG } else { (now - before).min(LONG) };
            let typical = &mut self.typical[usize::from(began_awake)];
            *typical = (*typical * (WEIGHT - 1) + took) / WEIGHT;
        }
        self.came = Some(now);
    }
}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Prompt {
    socket: Socket,
    patience: Patience,
}

impl Prompt {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, patience: Patience::default() }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl AsyncRead for Prompt {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.patience.wait.is_none() || !this.patience.awake(Instant::now) {
            // The waker is known from here on.
            let polled = Pin::new(&mut this.socket).poll_read(cx, buf);
            if polled.is_ready() {
                this.patience.came(Instant::now);
                return polled;
            }
            if !this.patience.awake(Instant::now) {
                return Poll::Pending;
            }
        }
        match this.socket.read_now(buf.initialize_unfilled()) {
            Ok(n) => {
                this.patience.came(Instant::now);
                buf.advance(n);
                Poll::Ready(Ok(()))
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                // The peer may be waiting for this core.
                std::thread::yield_now();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(e) => Poll::Ready(Err(e.into())),
        }
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.patience.ask();
        Pin::new(&mut this.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.patience.ask();
        Pin::new(&mut this.socket).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 6,400 rounds begin awake, where the answer takes `asleep` or `awake`.
    fn awake_of(asleep: u64, awake: u64) -> usize {
        let mut now = Instant::now();
        let mut patience = Patience::default();
        let mut count = 0;
        for _ in 0..6400 {
            patience.ask();
            let began = patience.awake(|| now);
            count += usize::from(began);
            let answer = now + Duration::from_micros(if began { awake } else { asleep });
            while now < answer {
                now += Duration::from_micros(1);
                patience.awake(|| now);
            }
            patience.came(|| now);
        }
        count
    }

    #[test]
    fn a_reader_stays_awake_where_that_pays() {
        // Waking a thread takes long.
        assert!(awake_of(70, 15) > 6200);
        // It is as quick, or answers take longer than anybody stays awake: one in 16 is tried.
        for (asleep, awake) in [(18, 18), (700, 660), (5_000, 5_000)] {
            assert!((300..500).contains(&awake_of(asleep, awake)), "{asleep}, {awake}");
        }
    }

    /// Two sides that answer each other: a wait costs nothing if it is awake to its end, `alone` if only the other side is awake,
    /// and `both` if both sleep. How many of the last 1,000 rounds both begin awake.
    fn together(alone: u64, both: u64) -> usize {
        let mut now = Instant::now();
        let mut sides = [Patience::default(), Patience::default()];
        let mut count = 0;
        for round in 0..6000 {
            let began: Vec<bool> = sides.iter_mut().map(|side| (side.ask(), side.awake(|| now)).1).collect();
            count += usize::from(round >= 5000 && began == [true; 2]);
            now += Duration::from_micros(match began[..] {
                [true, true] => 25,
                [false, false] => both,
                _ => alone,
            });
            sides.iter_mut().for_each(|side| side.came(|| now));
        }
        count
    }

    #[test]
    fn both_sides_find_what_one_alone_does_not() {
        assert!(together(45, 40) > 950);
        assert!(together(80, 120) > 950);
        assert!(together(30, 26) < 100);
    }

    #[test]
    fn who_has_not_asked_sleeps() {
        let mut patience = Patience::default();
        assert!(!patience.awake(|| panic!("no time is needed")));
        patience.ask();
        patience.came(Instant::now);
        assert!(!patience.awake(|| panic!("nothing is awaited")));
    }

    #[tokio::test]
    async fn bytes_come_whole_in_both_ways() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let mut s = Prompt::new(listener.accept().await.unwrap().0.into());
            let mut got = [0u8; 3000];
            while s.read_exact(&mut got).await.is_ok() {
                s.write_all(&got).await.unwrap();
            }
        });
        let mut c = Prompt::new(tokio::net::TcpStream::connect(address).await.unwrap().into());
        for n in 0..500u32 {
            let sent: Vec<u8> = (0..3000).map(|i| (i + n) as u8).collect();
            c.write_all(&sent).await.unwrap();
            let mut got = vec![0; 3000];
            c.read_exact(&mut got).await.unwrap();
            assert_eq!(got, sent, "message {n}");
        }
        drop(c);
        server.await.unwrap();
    }
}
