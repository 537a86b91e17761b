//! Buffers for ids and rows: aligned to a cache line, exact in size, and used again once they are dropped, so that the
//! pages of a large one are faulted in once and not at every call.

use super::shared::Slot;
use bytemuck::{Pod, Zeroable};
use bytes::Bytes;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Smaller buffers go straight back to the allocator.
const KEEP_FROM: usize = 16 << 10;
/// What the pool holds at most, in bytes and in buffers.
const KEEP_BYTES: usize = 64 << 20;
const KEEP_COUNT: usize = 32;

static FREE: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// A buffer from the pool, or a place in shared memory. It goes back when it is dropped.
#[derive(Default)]
pub(crate) struct Pooled {
    memory: Memory,
    len: usize,
}

enum Memory {
    Own(Vec<Line>),
    Shared(Slot),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl From<Slot> for Pooled {
    fn from(slot: Slot) -> Self {
        let len = slot.bytes().len();
        Self { memory: Memory::Shared(slot), len }
    }
}

impl Pooled {
    /// A buffer of `len` bytes. Their content is left over from earlier use: the caller writes every byte.
    pub(crate) fn take(len: usize) -> Self {
        let need = len.div_ceil(64);
        if len >= KEEP_FROM {
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = |n: usize| n >= need && n <= need.saturating_mul(4);
            let best = (0..free.len()).filter(|&i| fits(free[i].len())).min_by_key(|&i| free[i].len());
            if let Some(i) = best {
                return Self { memory: Memory::Own(free.swap_remove(i)), len };
            }
        }
        Self { memory: Memory::Own(bytemuck::zeroed_vec(need)), len }
    }

    /// Whether the other side of a connection has these bytes too.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.memory, Memory::Shared(_))
    }

    /// Leaves the first `len` bytes, if there are more.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The buffer as shared bytes; it goes back to the pool with the last of them.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let Memory::Own(lines) = &mut self.memory else { return };
        if lines.len() * 64 < KEEP_FROM {
            return;
        }
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = free.iter().map(|b| b.len() * 64).sum();
        if free.len() < KEEP_COUNT && held + lines.len() * 64 <= KEEP_BYTES {
            free.push(std::mem::take(lines));
        }
    }
}

impl Deref for Pooled {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Own(lines) => &bytemuck::cast_slice(lines)[..self.len],
            Memory::Shared(slot) => &slot.bytes()[..self.len],
        }
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Own(lines) => &mut bytemuck::cast_slice_mut(lines)[..self.len],
            Memory::Shared(slot) => &mut slot.bytes_mut()[..self.len],
        }
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Pooled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_exact_aligned_and_used_again() {
        let mut b = Pooled::take(100_001);
        assert_eq!(b.len(), 100_001);
        assert_eq!(b.as_ptr() as usize % 64, 0);
        b[100_000] = 7;
        drop(b.freeze());
        assert_eq!(Pooled::take(0).len(), 0);
        assert_eq!(Pooled::take(90_000).len(), 90_000);
    }
}
