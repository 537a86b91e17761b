//! A Unix socket that waits for what it needs alone. That of tokio is told each time the peer has read, as there is room to write
//! then, which wakes a thread for nothing with every message.
#![allow(unsafe_code)]

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// See the module's page.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    stream: AsyncFd<UnixStream>,
    /// The socket once more, while there is no room to write.
    writable: Option<AsyncFd<OwnedFd>>,
}

/// Has the runtime tell of one side of a socket.
fn watch<T: AsFd + AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the file is open as long as what owns it lives, and these types keep one file for life.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest)? })
}

impl UnixSocket {
    /// Of a stream that does not block, on the runtime that this is called in.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self { stream: watch(stream, Interest::READABLE)?, writable: None })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        self.stream.get_ref()
    }

    pub(super) fn into_inner(self) -> UnixStream {
        self.stream.into_inner()
    }

    /// Sends the first byte of the connection, with the memory that is offered.
    pub(super) fn offer(&self, memory: Option<&OwnedFd>) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let memory: Vec<_> = memory.map(AsFd::as_fd).into_iter().collect();
        if !memory.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&memory));
        }
        sendmsg(self.stream(), &[IoSlice::new(&[0])], &mut ancillary, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(drop)
    }

    /// Reads the first byte, and the memory that comes with it; nothing where the connection has ended.
    ///
    /// # Errors
    /// Of the system.
    pub(super) async fn take_offer(&self) -> io::Result<Option<OwnedFd>> {
        let take = |stream: &UnixStream| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            recvmsg(stream, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC)?;
            Ok(ancillary.drain().find_map(|m| match m {
                RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
                _ => None,
            }))
        };
        self.stream.async_io(Interest::READABLE, take).await
    }
}

impl AsyncRead for UnixSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.stream.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            match recv(self.stream(), &mut *room, RecvFlags::DONTWAIT) {
                Ok((_, n)) => {
                    // Less than there was room for: nothing is left, and what comes next is told of.
                    if n > 0 && n < room.len() {
                        ready.clear_ready();
                    }
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::WOULDBLOCK) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }
}

impl AsyncWrite for UnixSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let stream = this.stream.get_ref();
        let send = || loop {
            match sendmsg(stream, parts, &mut SendAncillaryBuffer::default(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => return sent,
            }
        };
        let mut sent = send();
        while sent == Err(Errno::WOULDBLOCK) {
            let room = match &mut this.writable {
                Some(room) => room,
                none => none.insert(watch(stream.as_fd().try_clone_to_owned()?, Interest::WRITABLE)?),
            };
            let mut ready = ready!(room.poll_write_ready(cx))?;
            sent = send();
            if sent == Err(Errno::WOULDBLOCK) {
                ready.clear_ready();
            }
        }
        Poll::Ready(Ok(sent?))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written is on its way; nobody waits for room any more.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().writable = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream().shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> [UnixSocket; 2] {
        let (a, b) = UnixStream::pair().unwrap();
        [a, b].map(|s| {
            s.set_nonblocking(true).unwrap();
            UnixSocket::new(s).unwrap()
        })
    }

    #[tokio::test]
    async fn more_than_the_socket_holds_arrives_whole() {
        let [mut a, mut b] = pair();
        let sent: Vec<u8> = (0..20 << 20).map(|i: u32| (i >> 7) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            for part in sent.chunks(5 << 20) {
                a.write_all(part).await.unwrap();
                a.flush().await.unwrap();
                assert!(a.writable.is_none());
            }
            a.shutdown().await.unwrap();
        });
        tokio::task::yield_now().await;
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        writer.await.unwrap();
        assert!(got == expected);
    }

    #[tokio::test]
    async fn who_writes_to_nobody_is_told() {
        let [mut a, b] = pair();
        drop(b);
        assert_eq!(a.write_all(&[1]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(a.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn the_first_byte_may_come_without_memory() {
        let [a, mut b] = pair();
        a.offer(None).unwrap();
        assert!(b.take_offer().await.unwrap().is_none());
        a.stream().shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(b.read(&mut [0]).await.unwrap(), 0);
        assert!(b.take_offer().await.unwrap().is_none());
    }
}
