//! The wire's messages out of bytes from anywhere, for tests that throw bytes at it.

use super::wire::{ClientCodec, ServerCodec};
use crate::wire::read_all;

/// How many messages to a pserver, or to its client, `bytes` begin with.
pub fn frames_in(bytes: &[u8]) -> usize {
    read_all(bytes, ServerCodec::new()).max(read_all(bytes, ClientCodec))
}
