//! The fields of a head: fixed-width little-endian numbers and strings with their length before them.

use super::invalid;
use bytes::{Buf, BufMut};
use std::io;

/// Appends a string.
pub(crate) fn put_str(out: &mut Vec<u8>, s: &str) {
    put_bytes(out, s.as_bytes());
}

/// Appends bytes with their length.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

/// Reads fields off the front of a head; every read is checked.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

fn short<E>(_: E) -> io::Error {
    invalid("the head of a message ends early")
}

impl<'a> Fields<'a> {
    pub(crate) fn u8(&mut self) -> io::Result<u8> {
        self.0.try_get_u8().map_err(short)
    }

    pub(crate) fn u32(&mut self) -> io::Result<u32> {
        self.0.try_get_u32_le().map_err(short)
    }

    pub(crate) fn u64(&mut self) -> io::Result<u64> {
        self.0.try_get_u64_le().map_err(short)
    }

    pub(crate) fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let len = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or_else(|| short(()))?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn str(&mut self) -> io::Result<String> {
        let bytes = self.bytes()?;
        Ok(std::str::from_utf8(bytes).map_err(|_| invalid("a string of a message is not UTF-8"))?.to_owned())
    }

    /// A count of items that take at least `width` bytes each: more than the head can hold is refused before memory is taken.
    pub(crate) fn count(&mut self, width: usize) -> io::Result<usize> {
        let n = self.u32()? as usize;
        if n.saturating_mul(width) > self.0.len() {
            return Err(short(()));
        }
        Ok(n)
    }

    /// That nothing is left.
    pub(crate) fn end(&self) -> io::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(invalid("the head of a message is too long")) }
    }
}
