//! Connections within one machine: beside its TCP port a server listens on a Unix socket that is named after its address, and who
//! connects to an address of the own machine goes that way, which carries the same bytes without the work of TCP. Names are those
//! of the network namespace (abstract ones, which only Linux has): nothing is left on a disk, and what is between the two sides of a
//! TCP connection, such as a proxy, has no such socket, so that it is not passed by. The first byte of such a connection brings the
//! client's shared memory along, if it has any.

#[cfg(target_os = "linux")]
use super::unix::UnixSocket;
use super::{Room, Window};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
#[cfg(target_os = "linux")]
use tokio::net::{UnixListener, UnixStream};

/// Bytes under way that the system is asked to keep: enough not to wait for the reader at each turn, and few enough that their pages
/// are still in the cache when they are used again.
#[cfg(target_os = "linux")]
const BUFFER: usize = 512 << 10;

/// The name of the socket beside the port at `address`.
#[cfg(target_os = "linux")]
fn name(address: SocketAddr) -> String {
    format!("\0graphtool-{}@{address}", super::PROTOCOL)
}

/// A connection of either kind.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    #[cfg(target_os = "linux")]
    Local(UnixSocket),
}

/// What takes connections in, while no runtime has it: who connects waits until it is open.
#[derive(Debug)]
pub(crate) struct Door {
    tcp: std::net::TcpListener,
    #[cfg(target_os = "linux")]
    local: Option<std::os::unix::net::UnixListener>,
}

impl Door {
    /// A TCP port, and the socket beside it if `local`. Should another process have a socket of that name, there is TCP alone.
    ///
    /// # Errors
    /// Of the system.
    pub(crate) fn new(tcp: std::net::TcpListener, local: bool) -> io::Result<Self> {
        tcp.set_nonblocking(true)?;
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            let address = tcp.local_addr()?;
            let bind = || {
                let name = std::os::unix::net::SocketAddr::from_abstract_name(&name(address)[1..])?;
                let listener = std::os::unix::net::UnixListener::bind_addr(&name)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            let bound = local.then(bind).transpose();
            let local = bound.unwrap_or_else(|e: io::Error| {
                tracing::debug!("no local socket beside {address}: {e}");
                None
            });
            Ok(Self { tcp, local })
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = local;
            Ok(Self { tcp })
        }
    }

    /// Opens it on the runtime that this is called in.
    ///
    /// # Errors
    /// Of the system.
    pub(crate) fn open(self) -> io::Result<Listener> {
        Ok(Listener {
            tcp: TcpListener::from_std(self.tcp)?,
            #[cfg(target_os = "linux")]
            local: self.local.map(UnixListener::from_std).transpose()?,
        })
    }
}

/// A [`Door`] that is open.
pub(crate) struct Listener {
    tcp: TcpListener,
    #[cfg(target_os = "linux")]
    local: Option<UnixListener>,
}

impl Listener {
    /// The next connection.
    ///
    /// # Errors
    /// Of the system, which do not end the listener.
    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        #[cfg(target_os = "linux")]
        if let Some(local) = &self.local {
            return tokio::select! {
                accepted = self.tcp.accept() => accepted.map(|(stream, _)| Socket::Tcp(stream)),
                accepted = local.accept() => Ok(Socket::Local(UnixSocket::new(accepted?.0.into_std()?)?)),
            };
        }
        self.tcp.accept().await.map(|(stream, _)| Socket::Tcp(stream))
    }
}

/// A connection that no runtime has.
#[derive(Debug)]
pub(crate) enum Parked {
    Tcp(std::net::TcpStream),
    #[cfg(target_os = "linux")]
    Local(std::os::unix::net::UnixStream),
}

impl Parked {
    /// The connection, for the runtime that this is called in.
    ///
    /// # Errors
    /// Of the system.
    pub(crate) fn resume(self) -> io::Result<Socket> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream).map(Socket::Tcp),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => UnixSocket::new(stream).map(Socket::Local),
        }
    }
}

impl Socket {
    /// Connects to `endpoint` (`host:port`) over TCP; its name is resolved anew at each call.
    ///
    /// # Errors
    /// Of the system.
    pub(super) async fn dial(endpoint: &str) -> io::Result<Self> {
        TcpStream::connect(endpoint).await.map(Self::Tcp)
    }

    /// Connects to the socket beside the port of `endpoint`, if that is on this machine and who listens is of this user or of the
    /// system. Offers memory to share.
    #[cfg(target_os = "linux")]
    pub(super) async fn beside(endpoint: &str) -> Option<(Self, Option<Arc<Room>>)> {
        let addresses = tokio::net::lookup_host(endpoint).await.ok()?;
        // Only an address of this machine can be bound here.
        for address in addresses.filter(|a| std::net::UdpSocket::bind((a.ip(), 0)).is_ok()) {
            let port = address.port();
            for listening in [address, ([0u8; 4], port).into(), ([0u16; 8], port).into()] {
                let Ok(stream) = UnixStream::connect(name(listening)).await else { continue };
                let user = stream.peer_cred().ok()?.uid();
                if user == 0 || user == rustix::process::geteuid().as_raw() {
                    let stream = UnixSocket::new(stream.into_std().ok()?).ok()?;
                    let (room, memory) = Room::new().ok().unzip();
                    stream.offer(memory.as_ref()).ok()?;
                    return Some((Self::Local(stream), room));
                }
            }
        }
        None
    }

    /// As on Linux, where there are such sockets.
    #[cfg(not(target_os = "linux"))]
    pub(super) async fn beside(_: &str) -> Option<(Self, Option<Arc<Room>>)> {
        None
    }

    /// The memory that the client of a connection beside TCP offers, which it does first of all.
    ///
    /// # Errors
    /// Of the system.
    pub(crate) async fn offered(&self) -> io::Result<Option<Window>> {
        match self {
            Self::Tcp(_) => Ok(None),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => Ok(stream.take_offer().await?.and_then(|memory| Window::of(&memory).ok())),
        }
    }

    /// Has small messages go out at once, and large ones whole.
    ///
    /// # Errors
    /// Of the system.
    pub(super) fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => Ok(rustix::net::sockopt::set_socket_send_buffer_size(stream.stream(), BUFFER)?),
        }
    }

    /// Takes the connection from its runtime.
    ///
    /// # Errors
    /// Of the system.
    pub(crate) fn park(self) -> io::Result<Parked> {
        match self {
            Self::Tcp(stream) => stream.into_std().map(Parked::Tcp),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => Ok(Parked::Local(stream.into_inner())),
        }
    }

    /// Whether it is none of TCP.
    pub(crate) fn is_local(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    /// The address of this side of a TCP connection.
    ///
    /// # Errors
    /// Of the system; there is none.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr(),
            #[cfg(target_os = "linux")]
            Self::Local(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Who is on the other side, for a log.
    pub(crate) fn peer(&self) -> String {
        match self {
            Self::Tcp(stream) => stream.peer_addr().map_or_else(|e| e.to_string(), |a| a.to_string()),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => {
                let peer = rustix::net::sockopt::socket_peercred(stream.stream());
                peer.map_or("this machine".into(), |peer| format!("process {}", peer.pid))
            }
        }
    }

    /// Reads what there is, without waiting.
    pub(super) fn read_now(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Tcp(stream) => recv(stream, buf, RecvFlags::DONTWAIT).map(|(_, n)| n),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => recv(stream.stream(), buf, RecvFlags::DONTWAIT).map(|(_, n)| n),
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(target_os = "linux")]
            Self::Local(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn port(address: &str) -> (std::net::TcpListener, String) {
        let listener = std::net::TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, format!("localhost:{port}"))
    }

    #[tokio::test]
    async fn bytes_go_beside_the_port_and_over_it() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let (listener, endpoint) = port(address);
            let door = Door::new(listener, true).unwrap();
            // Waits until the door is open.
            let (mut beside, room) = Socket::beside(&endpoint).await.expect("it is of this machine and user");
            let mut over = Socket::dial(&endpoint).await.unwrap();
            let open = door.open().unwrap();
            let mut accepted = Vec::new();
            for _ in 0..2 {
                accepted.push(open.accept().await.unwrap().park().unwrap().resume().unwrap());
            }
            // Which of the two is taken first is left open.
            accepted.sort_by_key(|s| matches!(s, Socket::Tcp(_)));
            for ((client, server), name) in [&mut beside, &mut over].into_iter().zip(&mut accepted).zip(["local", "tcp"]) {
                let local = [&*client, &*server].map(|s| matches!(s, Socket::Local(_)));
                assert_eq!((local, server.local_addr().is_ok()), ([name == "local"; 2], name == "tcp"));
                client.prepare().unwrap();
                let window = server.offered().await.unwrap();
                assert_eq!(window.is_some(), name == "local");
                if let Some(window) = window {
                    let lent = room.as_ref().unwrap().lend(10_000).unwrap();
                    window.place(lent.at(), 10_000).unwrap().fill(7);
                    assert_eq!(*lent.back(), [7; 10_000]);
                }
                client.write_all(name.as_bytes()).await.unwrap();
                let mut read = vec![0; name.len()];
                server.read_exact(&mut read).await.unwrap();
                assert_eq!(read, name.as_bytes());
            }
        }
    }

    #[tokio::test]
    async fn there_is_no_socket_where_none_is_wanted_or_another_port_is_between() {
        let (listener, endpoint) = port("127.0.0.1:0");
        let own = Door::new(listener, false).unwrap();
        assert!(Socket::beside(&endpoint).await.is_none());
        let (proxy, between) = port("127.0.0.1:0");
        let taken = UnixListener::bind(name(proxy.local_addr().unwrap())).unwrap();
        // Another has the name: there is TCP alone, and no error.
        let door = Door::new(proxy, true).unwrap().open().unwrap();
        assert!(door.local.is_none());
        drop(taken);
        assert!(Socket::beside(&between).await.is_none());
        assert!(Socket::beside("192.0.2.1:7000").await.is_none(), "an address of another machine");
        drop(own);
    }
}
