//! What those who watch a process see over HTTP: `/metrics`, `/healthz`, `/readyz`.

use crate::http::{self, Limits, Router};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

/// Time for a head to come, and for some of an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at once; more are closed.
const CONNECTIONS: usize = 16;
/// Bytes of a head that are taken at least.
const MAX_HEAD: usize = 8 << 10;

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        http::listener(listener)?
    };
    let limits = Limits { connections: CONNECTIONS, head: MAX_HEAD, idle: PATIENCE, stall: PATIENCE, ending: PATIENCE, keep_alive: false };
    let serve = http::serve(listener, routes(Arc::new(monitor)), limits, std::future::pending());
    std::thread::Builder::new().name("monitor".into()).spawn(move || runtime.block_on(serve))?;
    Ok(())
}

fn routes(monitor: Arc<Monitor>) -> Router {
    let watched = monitor.clone();
    let metrics = async move || text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", (watched.metrics)());
    let readyz = async move || match (monitor.ready)() {
        true => plain(StatusCode::OK, "ready\n"),
        false => plain(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    };
    Router::new()
        .route("/healthz", get(async || plain(StatusCode::OK, "ok\n")))
        .route("/metrics", get(metrics))
        .route("/readyz", get(readyz))
        .fallback(async || plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"))
        .method_not_allowed_fallback(async || plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered\n"))
}

fn plain(status: StatusCode, content: &str) -> Response {
    text(status, "text/plain; charset=utf-8", content.to_owned())
}

fn text(status: StatusCode, kind: &'static str, content: String) -> Response {
    (status, [(header::CONTENT_TYPE, kind)], content).into_response()
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
        let length: usize = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap().parse().unwrap();
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
        assert_eq!(ask(address, b"HEAD /metrics HTTP/1.0\r\n\r\n"), ("HTTP/1.0 200 OK".into(), String::new()));
        assert_eq!(ask(address, b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc").0, "HTTP/1.1 405 Method Not Allowed");
        for bad in [&b"GET /metrics\r\n\r\n"[..], b"GET  /metrics HTTP/1.1\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET / HTTP/9\r\n\r\n"] {
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
