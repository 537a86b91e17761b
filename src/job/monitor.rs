//! A small HTTP/1.1 server for those who watch a process: `/metrics`, `/healthz`, `/readyz`. It reads a bounded head within a
//! bounded time, answers and closes; whatever goes wrong with one connection is that connection's end alone.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 8 << 10;
/// Time of one connection, from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at once; more are closed.
const CONNECTIONS: usize = 16;
/// What is read of a request after its answer, so that closing does not take the answer back.
const MAX_REST: usize = 64 << 10;

/// What there is to see.
pub struct Monitor {
    /// Whether the process can do its work.
    pub ready: Box<dyn Fn() -> bool + Send + Sync>,
    /// The text of `/metrics`.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
}

/// Serves on a thread of its own, as long as the process lives.
///
/// # Errors
/// Errors of the system before the first connection.
pub fn monitor(listener: TcpListener, monitor: Monitor) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    std::thread::Builder::new().name("monitor".into()).spawn(move || runtime.block_on(accept(listener, Arc::new(monitor))))?;
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, monitor: Arc<Monitor>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(place) = free.clone().try_acquire_owned() else { continue };
                let monitor = monitor.clone();
                tokio::spawn(async move {
                    if !matches!(tokio::time::timeout(PATIENCE, converse(stream, &monitor)).await, Ok(Ok(()))) {
                        tracing::debug!("a connection of the monitor did not end well");
                    }
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, monitor: &Monitor) -> io::Result<()> {
    let mut head = Vec::new();
    let whole = loop {
        if head.windows(4).any(|w| w == b"\r\n\r\n") {
            break true;
        }
        if head.len() > MAX_HEAD {
            break false;
        }
        let mut block = [0; 1024];
        match stream.read(&mut block).await? {
            0 if head.is_empty() => return Ok(()),
            0 => break true,
            n => head.extend_from_slice(&block[..n]),
        }
    };
    let answer =
        if whole { answer(&head, monitor) } else { text("431 Request Header Fields Too Large", "", "the head is too long\n", true) };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    let mut left = MAX_REST;
    while left > 0 {
        match stream.read(&mut rest).await? {
            0 => break,
            n => left = left.saturating_sub(n),
        }
    }
    Ok(())
}

/// The whole answer to the request of this head.
fn answer(head: &[u8], monitor: &Monitor) -> String {
    let line = std::str::from_utf8(head).ok().and_then(|t| t.split("\r\n").next()).unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1" | "HTTP/1.0"] = words[..] else {
        return text("400 Bad Request", "", "this is not HTTP/1.1\n", true);
    };
    let body = method != "HEAD";
    if method != "GET" && body {
        return text("405 Method Not Allowed", "Allow: GET, HEAD\r\n", "only GET and HEAD are answered\n", true);
    }
    match target.split('?').next().unwrap_or_default() {
        "/metrics" => response("200 OK", "", "text/plain; version=0.0.4; charset=utf-8", &(monitor.metrics)(), body),
        "/healthz" => text("200 OK", "", "ok\n", body),
        "/readyz" if (monitor.ready)() => text("200 OK", "", "ready\n", body),
        "/readyz" => text("503 Service Unavailable", "", "not ready\n", body),
        _ => text("404 Not Found", "", "there are /metrics, /healthz and /readyz\n", body),
    }
}

fn text(status: &str, headers: &str, content: &str, body: bool) -> String {
    response(status, headers, "text/plain; charset=utf-8", content, body)
}

fn response(status: &str, headers: &str, kind: &str, content: &str, body: bool) -> String {
    let head =
        format!("HTTP/1.1 {status}\r\n{headers}Content-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len());
    if body { head + content } else { head }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    fn start(ready: Arc<AtomicBool>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ready = Box::new(move || ready.load(SeqCst));
        monitor(listener, Monitor { ready, metrics: Box::new(|| "a_total 1\n".into()) }).unwrap();
        address
    }

    /// The status line, and what follows the head.
    fn ask(address: SocketAddr, request: &[u8]) -> (String, String) {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(request).unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        let length: usize = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
        assert!(body.len() == length || request.starts_with(b"HEAD"), "{all}");
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[test]
    fn pages_are_answered_and_everything_else_is_refused() {
        let ready = Arc::new(AtomicBool::new(false));
        let address = start(ready.clone());
        let get = |target: &str| ask(address, format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert_eq!(get("/metrics"), ("HTTP/1.1 200 OK".into(), "a_total 1\n".into()));
        assert_eq!(get("/metrics?x=1").1, "a_total 1\n");
        assert_eq!(get("/healthz").0, "HTTP/1.1 200 OK");
        assert_eq!(get("/readyz").0, "HTTP/1.1 503 Service Unavailable");
        ready.store(true, SeqCst);
        assert_eq!(get("/readyz").0, "HTTP/1.1 200 OK");
        assert_eq!(get("/").0, "HTTP/1.1 404 Not Found");
        assert_eq!(ask(address, b"HEAD /metrics HTTP/1.0\r\n\r\n"), ("HTTP/1.1 200 OK".into(), String::new()));
        assert_eq!(ask(address, b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc").0, "HTTP/1.1 405 Method Not Allowed");
        for bad in
            [&b"\r\n\r\n"[..], b"GET /metrics\r\n\r\n", b"GET  /metrics HTTP/1.1\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET / HTTP/9\r\n\r\n"]
        {
            assert_eq!(ask(address, bad).0, "HTTP/1.1 400 Bad Request", "{bad:?}");
        }
        let long = [&b"GET /metrics HTTP/1.1\r\nX: "[..], &vec![b'x'; 20 << 10], b"\r\n\r\n"].concat();
        assert_eq!(ask(address, &long).0, "HTTP/1.1 431 Request Header Fields Too Large");
    }

    #[test]
    fn silent_connections_do_not_keep_others_out_forever() {
        let address = start(Arc::default());
        let silent: Vec<_> = (0..CONNECTIONS - 1).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        assert_eq!(ask(address, b"GET /healthz HTTP/1.1\r\n\r\n").1, "ok\n");
        drop(silent);
    }
}
