//! A connection whose reader may stay awake for a moment after something was written: where cores are idle, a small answer is there
//! before a thread has been put to sleep and woken again, which then costs several times the call itself.
//!
//! It never holds the thread: between two looks at the socket all other tasks have their turn. Whether staying awake pays depends on
//! the machine, the peer and what else runs, so both ways are timed, the one that is worse now and then, and the better is taken.

use super::local::Socket;
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How long the reader stays awake.
const AWAKE: Duration = Duration::from_micros(60);
/// One wait in so many goes the way that was worse so far.
const TRY: u32 = 64;
/// The longest wait that counts as such.
const LONG: Duration = Duration::from_millis(1);

/// When the reader of a connection stays awake.
#[derive(Debug, Default)]
struct Patience {
    /// Something was written, and nothing has been read since.
    asked: bool,
    /// The wait that is under way: since when, and whether it began awake.
    wait: Option<(Instant, bool)>,
    /// It is not, or no more, awake.
    asleep: bool,
    waits: u32,
    /// What a wait takes that begins asleep, and one that begins awake.
    typical: [Duration; 2],
}

impl Patience {
    /// Whether to look at the socket again, rather than sleep.
    fn awake(&mut self, now: impl FnOnce() -> Instant) -> bool {
        match self.wait {
            Some(_) if self.asleep => {}
            Some((since, _)) => self.asleep = now() - since >= AWAKE,
            None if !std::mem::take(&mut self.asked) => return false,
            None => {
                let better = self.typical[1] * 3 / 2 < self.typical[0];
                self.asleep = better == self.waits.is_multiple_of(TRY);
                self.waits = self.waits.wrapping_add(1);
                self.wait = Some((now(), !self.asleep));
            }
        }
        !self.asleep
    }

    /// Something came.
    fn came(&mut self, now: impl FnOnce() -> Instant) {
        self.asked = false;
        let Some((since, began_awake)) = self.wait.take() else { return };
        // Who fell asleep over it had better slept at once.
        let took = if began_awake && self.asleep { LONG } else { (now() - since).min(LONG) };
        let typical = &mut self.typical[usize::from(began_awake)];
        *typical = (*typical * 3 + took) / 4;
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
        this.patience.asked = true;
        Pin::new(&mut this.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.patience.asked = true;
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

    /// How many of 6,400 waits are spent awake to their end or to the limit, where the answer takes `asleep` or `awake`.
    fn awake_of(asleep: u64, awake: u64) -> usize {
        let mut now = Instant::now();
        let mut patience = Patience::default();
        let mut count = 0;
        for _ in 0..6400 {
            patience.asked = true;
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
        // It is as quick, or answers take longer than anybody stays awake: one in 64 is tried.
        assert!(awake_of(18, 18) < 120);
        assert!(awake_of(700, 660) < 120);
        assert!(awake_of(5_000, 5_000) < 120);
    }

    #[test]
    fn who_has_not_asked_sleeps() {
        let mut patience = Patience::default();
        assert!(!patience.awake(|| panic!("no time is needed")));
        patience.asked = true;
        patience.came(|| panic!("it came without a wait"));
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
