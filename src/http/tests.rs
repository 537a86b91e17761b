//! Peers that are silent, slow, or too many.

use super::*;
use axum::routing::get;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits { connections: 4, head: 8 << 10, idle: LONG, stall: LONG, ending: LONG, keep_alive: true }
}

struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<bool>,
}

fn start(limits: Limits, app: Router) -> Running {
    let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = own.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let ended = tokio::spawn(serve(listener(own).unwrap(), app, limits, async { drop(stopped.await) }));
    Running { address, stop, ended }
}

fn app() -> Router {
    // More than the buffers of two sockets hold.
    Router::new().route("/", get(async || "here")).route("/large", get(async || "x".repeat(64 << 20)))
}

/// What comes until the connection is closed.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_peer_that_says_nothing_or_half_a_head_is_closed() {
    let server = start(Limits { idle: SHORT, ..limits() }, app());
    for begins in ["", "GET / HT", "GET / HTTP/1.1\r\nX: y\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(begins.as_bytes()).await.unwrap();
        let found = rest(&mut stream).await;
        assert_eq!(found.ends_with("here"), begins.ends_with("\r\n\r\n"), "{begins:?}: {found}");
    }
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_closed() {
    let server = start(Limits { stall: SHORT, connections: 1, ..limits() }, app());
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    // Its place is the next one's as soon as it is closed.
    loop {
        let mut next = TcpStream::connect(server.address).await.unwrap();
        if next.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.is_ok()
            && rest(&mut next).await.ends_with("here")
        {
            break;
        }
    }
    assert!(rest(&mut slow).await.len() < 64 << 20);
}

#[tokio::test]
async fn what_is_under_way_ends_and_idle_connections_close() {
    let (begun, began) = oneshot::channel();
    let (go, gone) = oneshot::channel::<()>();
    let once = Arc::new(std::sync::Mutex::new(Some((begun, gone))));
    let wait = async move || {
        let (begun, gone) = once.lock().unwrap().take().unwrap();
        begun.send(()).unwrap();
        gone.await.unwrap();
        "done"
    };
    let server = start(limits(), app().route("/wait", get(wait)));
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    let mut busy = TcpStream::connect(server.address).await.unwrap();
    busy.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    began.await.unwrap();
    server.stop.send(()).unwrap();
    assert_eq!(rest(&mut idle).await, "");
    assert!(TcpStream::connect(server.address).await.is_err());
    assert!(!server.ended.is_finished());
    go.send(()).unwrap();
    assert!(rest(&mut busy).await.ends_with("done"));
    assert!(server.ended.await.unwrap());
}

#[tokio::test]
async fn an_end_does_not_wait_for_ever() {
    let never = async || std::future::pending::<&'static str>().await;
    let server = start(Limits { ending: SHORT, ..limits() }, Router::new().route("/", get(never)));
    let mut stuck = TcpStream::connect(server.address).await.unwrap();
    stuck.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    // Connections come in their order: once this one is served, that one is.
    let mut next = TcpStream::connect(server.address).await.unwrap();
    next.write_all(b"no such thing\r\n\r\n").await.unwrap();
    assert!(rest(&mut next).await.starts_with("HTTP/1.1 400"));
    server.stop.send(()).unwrap();
    assert!(!server.ended.await.unwrap());
}
