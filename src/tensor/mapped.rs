//! Mapped files, the only place that makes a map: the bytes of a model or shard as a shared view that is paged in on use.
#![allow(unsafe_code)]

use bytes::Bytes;
use std::fs::File;
use std::io;

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
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}
