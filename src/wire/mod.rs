//! Framing that `store::pserver` and `comm::tcp` share: a [`Framed`] stream of messages over a byte stream, pooled buffers,
//! the handshake, and TLS beneath it all. It knows no RPC library; a [`Codec`] says what the messages are.
//!
//! A frame is a prefix of 12 bytes (magic, bytes of head, bytes of body; little-endian), a small head that the codec writes
//! field by field, and a body of raw little-endian elements that is never touched: written vectored from where it lies and
//! read into a buffer of its exact size.

mod fields;
mod framed;
mod hello;
mod local;
mod pool;
mod prompt;
mod shared;
mod tls;
#[cfg(target_os = "linux")]
mod unix;

pub(crate) use fields::{Fields, put_str};
pub(crate) use framed::{Body, Chunks, Codec, Framed, PREFIX, invalid, read_all};
pub(crate) use hello::{Hello, Identity, Role, token_fits};
pub(crate) use local::{Door, Parked, Socket};
pub(crate) use pool::Pooled;
pub(crate) use shared::{Lent, Room, Window};
pub use tls::Tls;
pub(crate) use tls::{Stream, Unreached, refusal};

use std::time::Duration;

/// The version of the protocol: both sides of a connection must have the same.
pub(crate) const PROTOCOL: u32 = 6;

/// The default limit of a frame, prefix and head included.
pub const DEFAULT_MAX_FRAME: usize = 64 << 20;

/// The limit of a frame before the handshake is done.
pub(crate) const HANDSHAKE_FRAME: usize = 64 << 10;

/// The largest head: requests and answers leave this much of a frame unused by the body.
pub(crate) const MAX_HEAD: usize = 1 << 20;

/// Waits between attempts to connect: doubled from 10 ms up to half a second.
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(Duration::from_millis(10))
    }

    /// Sleeps, but not past `deadline`; false if the deadline is reached.
    pub(crate) async fn wait(&mut self, deadline: std::time::Instant) -> bool {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return false;
        }
        tokio::time::sleep(self.0.min(left)).await;
        self.0 = (self.0 * 2).min(Duration::from_millis(500));
        true
    }
}

/// An error with its causes on one line: RPC errors keep what happened in their sources.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let cause = e.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = e.source();
    }
    text
}
