//! Asking the memory for rows before they are read, which has no safe form.
#![allow(unsafe_code)]

/// Rows that are asked for before the first of them is read: as many as the memory answers at once.
pub(crate) const AHEAD: usize = 64;

/// Bytes of a line of the cache: to read a shorter row is as little work as to ask for it.
pub(crate) const LINE: usize = 64;

/// Cache lines of a row that are asked for; the hardware follows by itself on longer ones.
#[cfg(target_arch = "x86_64")]
const LINES: usize = 8;

/// Asks the memory for a row that is read soon, into the second cache: of what the first one waits for there can only be a few
/// lines at a time.
#[inline(always)]
pub(crate) fn prefetch<T>(row: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let (start, len) = (row.as_ptr().cast::<i8>(), size_of_val(row));
        let mut at = 0;
        while at < len.min(LINES * LINE) {
            // SAFETY: a prefetch never faults, whatever the address; this one lies within `row`.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.add(at)) };
            at += LINE;
        }
        // A row that does not begin with a line ends in one more.
        if len > 0 {
            // SAFETY: as above.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.add(len - 1)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}
