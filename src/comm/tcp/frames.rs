//! The messages of groups out of bytes from anywhere, for tests that throw bytes at them.

use super::wire::{RankCodec, RootCodec};
use crate::wire::read_all;

/// How many messages to rank 0, or to another rank, `bytes` begin with.
pub fn frames_in(bytes: &[u8]) -> usize {
    read_all(bytes, RootCodec::new()).max(read_all(bytes, RankCodec))
}
