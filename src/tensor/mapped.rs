//! Mapped files, the only place that makes a map: the bytes of a model or shard as a shared view that is paged in on use.
#![allow(unsafe_code)]

use super::large_pages::LARGE;
use bytes::Bytes;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use rustix::param::page_size;
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Files from this size on begin with a large page, as the system may have them in such already; smaller ones share them.
const APART: usize = 16 * LARGE;

/// The regions that are alive, so that [`release`] touches nothing else.
static REGIONS: Mutex<Vec<Weak<Region>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The regions that are alive.
pub(super) fn regions() -> Vec<Arc<Region>> {
    lock(&REGIONS).iter().filter_map(Weak::upgrade).collect()
}

/// Addresses that belong to some files, one behind the other, from a multiple of [`LARGE`] on.
#[derive(Debug)]
pub(super) struct Region {
    base: *mut c_void,
    /// A multiple of [`LARGE`].
    len: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Where the files lie in the region, ascending.
    pub(super) files: Vec<Range<usize>>,
    /// Whether pages have become this process's own: these have no file to be read again from.
    pub(super) own: bool,
}

// SAFETY: the addresses are plain numbers; what is there never changes while the region lives.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn reserve(len: usize) -> io::Result<Self> {
        let len = len.checked_next_multiple_of(LARGE).filter(|len| len.checked_add(LARGE).is_some()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base: aligned(len, ProtFlags::empty())?, len, state: Mutex::default() })
    }

    pub(super) fn base(&self) -> *mut c_void {
        self.base
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Where bytes lie in the region, if they do.
    pub(super) fn place(&self, bytes: &[u8]) -> Option<Range<usize>> {
        let from = (bytes.as_ptr() as usize).checked_sub(self.base as usize)?;
        (from + bytes.len() <= self.len).then(|| from..from + bytes.len())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the addresses are the region's, and nobody has a view on them any more.
        let _ = unsafe { mm::munmap(self.base, self.len) };
    }
}

/// Memory of this process that begins at a multiple of [`LARGE`], as `len` does.
///
/// # Errors
/// Those of the system.
pub(super) fn aligned(len: usize, access: ProtFlags) -> io::Result<*mut c_void> {
    let all = len + LARGE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: addresses that nobody had, of which the ends that are not needed are given back.
    unsafe {
        let start = mm::mmap_anonymous(ptr::null_mut(), all, access, flags)?;
        let before = (start as usize).next_multiple_of(LARGE) - start as usize;
        let base = start.byte_add(before);
        if before > 0 {
            mm::munmap(start, before)?;
        }
        if before < LARGE {
            mm::munmap(base.byte_add(len), LARGE - before)?;
        }
        Ok(base)
    }
}

/// The bytes of one file of a region.
struct Part {
    region: Arc<Region>,
    place: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the place is mapped readable as long as the region lives.
        unsafe { std::slice::from_raw_parts(self.region.base.byte_add(self.place.start).cast(), self.place.len()) }
    }
}

/// Maps files one behind the other, so that small ones can share large pages.
#[derive(Debug)]
pub struct Maps(Arc<Region>);

impl Maps {
    /// With addresses for files of these sizes, in this order.
    ///
    /// # Errors
    /// Those of the system.
    pub fn for_sizes(sizes: impl IntoIterator<Item = u64>) -> io::Result<Self> {
        let mut end = 0usize;
        for size in sizes {
            let size = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
            end = start(end, size).checked_add(size).filter(|&end| end < isize::MAX as usize).ok_or(io::ErrorKind::OutOfMemory)?;
        }
        let region = Arc::new(Region::reserve(end.max(1))?);
        let mut regions = lock(&REGIONS);
        regions.retain(|m| m.strong_count() > 0);
        regions.push(Arc::downgrade(&region));
        Ok(Self(region))
    }

    /// The bytes of the next file, mapped read-only. An empty file gives no bytes.
    ///
    /// # Errors
    /// Those of the system, and that the file does not fit what was asked for.
    pub fn map(&self, file: &File) -> io::Result<Bytes> {
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let mut state = self.0.state();
        let from = start(state.files.last().map_or(0, |f| f.end), len);
        if from.checked_add(len).is_none_or(|end| end > self.0.len) {
            return Err(io::Error::other("the file has become larger meanwhile"));
        }
        // SAFETY: the addresses are the region's and no file has them yet. The map is read-only. A file that another process
        // truncates while it is mapped ends this process with SIGBUS; readers that take files from others check the
        // length against the manifest first.
        unsafe { mm::mmap(self.0.base.byte_add(from), len, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, file, 0)? };
        state.files.push(from..from + len);
        Ok(Bytes::from_owner(Part { region: self.0.clone(), place: from..from + len }))
    }
}

/// Where the file after one that ends at `end` begins.
fn start(end: usize, len: usize) -> usize {
    end.next_multiple_of(if len >= APART { LARGE } else { page_size() })
}

/// The bytes of a file, mapped read-only. An empty file gives no bytes.
///
/// # Errors
/// Those of the system.
pub fn map_file(file: &File) -> io::Result<Bytes> {
    Maps::for_sizes([file.metadata()?.len()])?.map(file)
}

/// Gives the memory pages that lie wholly within a part of a mapped file back to the system; they are read again on the
/// next use. Bytes that are no map are left alone.
pub fn release(part: &[u8]) {
    for region in regions() {
        let Some(place) = region.place(part) else { continue };
        let state = region.state();
        let (from, to) = (place.start.next_multiple_of(page_size()), place.end / page_size() * page_size());
        if to > from && !state.own {
            // SAFETY: the pages belong to a read-only map of a file, which has their content; dropping them changes no byte.
            let _ = unsafe { mm::madvise(region.base.byte_add(from), to - from, DROP) };
        }
    }
}

#[cfg(target_os = "linux")]
const DROP: Advice = Advice::LinuxDontNeed;
#[cfg(not(target_os = "linux"))]
const DROP: Advice = Advice::DontNeed;

/// Tells the system that a part of a mapped file is read at random, and that large pages are welcome where memory has room
/// for all of it. A hint: errors do not matter.
pub fn read_at_random(part: &[u8]) {
    for region in regions() {
        let Some(place) = region.place(part) else { continue };
        let from = place.start / page_size() * page_size();
        // SAFETY: the addresses are the region's, and these two kinds of advice change no content.
        unsafe {
            let (start, len) = (region.base.byte_add(from), place.end - from);
            let _ = mm::madvise(start, len, Advice::Random);
            #[cfg(target_os = "linux")]
            if super::fits_memory(len) {
                let _ = mm::madvise(start, len, Advice::LinuxHugepage);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn files_lie_one_behind_the_other() {
        let contents: Vec<Vec<u8>> =
            [1usize, 4096, 0, 4097, 100_000].iter().map(|&n| (0..n).map(|i| (i * 7 + n) as u8).collect()).collect();
        let files: Vec<File> = contents.iter().map(|c| file(c)).collect();
        let maps = Maps::for_sizes(contents.iter().map(|c| c.len() as u64)).unwrap();
        let bytes: Vec<Bytes> = files.iter().map(|f| maps.map(f).unwrap()).collect();
        drop(maps);
        for (b, c) in bytes.iter().zip(&contents) {
            read_at_random(b);
            release(b);
            assert_eq!(b, c);
        }
        assert_eq!(bytes[0].as_ptr() as usize % LARGE, 0);
        assert_eq!(bytes[4].as_ptr() as usize - bytes[0].as_ptr() as usize, 4 * 4096);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let large = file(&vec![1; LARGE + 1]);
        assert!(Maps::for_sizes([LARGE as u64]).unwrap().map(&large).is_err());
        assert!(Maps::for_sizes([u64::MAX, 1]).is_err());
        assert!(Maps::for_sizes([u64::MAX / 2, u64::MAX / 2]).is_err());
        assert!(map_file(&file(&[])).unwrap().is_empty());
    }
}
