//! Mapped files, the only place that makes a map: the bytes of a model or shard as a shared view that is paged in on use.
#![allow(unsafe_code)]

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The maps that are alive, so that [`release`] touches nothing else.
static MAPS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());

struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The bytes of a file, mapped read-only. An empty file gives no bytes.
///
/// # Errors
/// Those of the system.
pub fn map_file(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is private and read-only. A file that another process truncates while it is mapped ends this
    // process with SIGBUS; readers that take files from others check the length against the manifest first.
    let map = Arc::new(unsafe { Mmap::map(file)? });
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    maps.retain(|m| m.strong_count() > 0);
    maps.push(Arc::downgrade(&map));
    Ok(Bytes::from_owner(Owner(map)))
}

/// Gives the memory pages that lie wholly within a part of a mapped file back to the system; they are read again on the
/// next use. Bytes that are no map are left alone.
pub fn release(part: &[u8]) {
    let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    let (start, end) = (part.as_ptr() as usize, part.as_ptr() as usize + part.len());
    for map in maps.iter().filter_map(Weak::upgrade) {
        let base = map.as_ptr() as usize;
        if start < base || end > base + map.len() {
            continue;
        }
        let (from, to) = ((start - base).next_multiple_of(4096), (end - base) / 4096 * 4096);
        if to > from {
            // SAFETY: the pages belong to a read-only map of a file, which has their content; dropping them changes no byte.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, to - from) };
        }
    }
}
