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
/// them find the peer asleep, or on the same core.
const TRY: [(u32, u32); 2] = [(256, 16), (256, 1)];
/// Between two looks at a socket somebody else had the core, if it was so long.
const ABSENT: Duration = Duration::from_micros(5);
/// So many rounds in which somebody else had the core are no accident.
const SHARED: u32 = 3;
/// Rounds on a core before it is left for another.
const SETTLED: u32 = 64;
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
    /// When the socket was looked at last while awake, and whether somebody else had the core before that.
    looked: Option<(Instant, bool)>,
    /// In how many rounds one after the other somebody else had the core just before something came.
    shared: u32,
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
            Some((since, _)) => {
                let now = now();
                self.asleep = now - since >= AWAKE;
                let before = self.looked.map_or(since, |(looked, _)| looked);
                self.looked = Some((now, now - before >= ABSENT));
            }
            None if !self.asked => return false,
            None => {
                // A round has more to it than waiting.
                let better = self.typical[1] * 9 / 8 < self.typical[0];
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
        let shared = self.looked.take().is_some_and(|(_, shared)| shared && !self.asleep);
        self.shared = if shared { self.shared + 1 } else { 0 };
        if let (Some((_, began_awake)), Some(before)) = (self.wait.take(), self.came) {
            // Who fell asleep over it had better slept at once.
            let took = if began_awake && self.asleep { LONG } else { (now - before).min(LONG) };
            let typical = &mut self.typical[usize::from(began_awake)];
            *typical = match *typical {
                Duration::ZERO => took,
                // A pause of the peer says little about the rounds to come.
                before => (before * (WEIGHT - 1) + took.min(before * 2)) / WEIGHT,
            };
        }
        self.came = Some(now);
    }
}

/// Has this thread go on on another core than its present one, if it may use more than one.
#[cfg(target_os = "linux")]
fn elsewhere() {
    use rustix::thread::{sched_getaffinity, sched_getcpu, sched_setaffinity};
    let Ok(all) = sched_getaffinity(None) else { return };
    let mut others = all;
    others.unset(sched_getcpu());
    if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
        let _ = sched_setaffinity(None, &all);
    }
}

#[cfg(not(target_os = "linux"))]
fn elsewhere() {}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Prompt {
    socket: Socket,
    patience: Patience,
    /// In which round this side has left a core to its peer last; of the two sides of a connection one does.
    left: Option<u32>,
}

impl Prompt {
    /// The side that waited for the other one to connect.
    pub(super) fn accepted(socket: Socket) -> Self {
        Self { socket, patience: Patience::default(), left: None }
    }

    /// The side that connected.
    pub(super) fn dialed(socket: Socket) -> Self {
        let left = socket.is_local().then_some(0);
        Self { left, ..Self::accepted(socket) }
    }

    /// Lets the peer have this core, if it waits for one.
    fn give_way(&mut self) {
        let round = self.patience.rounds;
        match &mut self.left {
            Some(left) if self.patience.shared >= SHARED && round.wrapping_sub(*left) >= SETTLED => {
                *left = round;
                elsewhere();
            }
            _ => std::thread::yield_now(),
        }
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
                this.give_way();
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
    fn a_pause_of_the_peer_changes_nothing() {
        let (mut now, mut patience) = (Instant::now(), Patience::default());
        let mut asleep = 0;
        for round in 0..20_000 {
            patience.ask();
            let began = patience.awake(|| now);
            asleep += usize::from(!began && round > 1000);
            // Now and then the peer has other things to do.
            now += Duration::from_micros(if round % 100 == 99 { 20_000 } else { 60 - 40 * u64::from(began) });
            patience.awake(|| now);
            patience.came(|| now);
        }
        assert!(asleep < 100, "{asleep}");
    }

    #[test]
    fn who_shares_a_core_with_the_peer_finds_out() {
        let (mut now, mut patience) = (Instant::now(), Patience { typical: [LONG, Duration::ZERO], rounds: 100, ..Patience::default() });
        let mut round = |between: &[u64]| {
            patience.ask();
            assert!(patience.awake(|| now));
            for &micros in between {
                now += Duration::from_micros(micros);
                patience.awake(|| now);
            }
            patience.came(|| now);
            patience.shared
        };
        assert_eq!([round(&[1, 20]), round(&[30]), round(&[1, 1, 15])], [1, 2, 3]);
        // The peer answers from another core, whoever was on this one before; or this side had fallen asleep.
        assert_eq!([round(&[20, 1]), round(&[20]), round(&[200])], [0, 1, 0]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn who_goes_elsewhere_may_come_back() {
        use rustix::thread::{sched_getaffinity, sched_setaffinity};
        let before = sched_getaffinity(None).unwrap();
        elsewhere();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        // With one core there is no other.
        let mut one = before;
        (1..rustix::thread::CpuSet::MAX_CPU).filter(|&c| (0..c).any(|b| before.is_set(b))).for_each(|c| one.unset(c));
        assert_eq!(one.count(), 1);
        sched_setaffinity(None, &one).unwrap();
        elsewhere();
        assert_eq!(sched_getaffinity(None).unwrap(), one);
        sched_setaffinity(None, &before).unwrap();
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
            let mut s = Prompt::accepted(listener.accept().await.unwrap().0.into());
            let mut got = [0u8; 3000];
            while s.read_exact(&mut got).await.is_ok() {
                s.write_all(&got).await.unwrap();
            }
        });
        let mut c = Prompt::dialed(tokio::net::TcpStream::connect(address).await.unwrap().into());
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
