//! Memory that the two sides of a connection within one machine have in common: the client lends a place in it with a request,
//! and the server writes the answer there instead of sending it. Such memory is sealed against shrinking, so that neither side
//! can take it from under the other. Both are processes of one user, who trust each other with the content.
#![allow(unsafe_code)]

use super::Pooled;
use rustix::fd::OwnedFd;
use rustix::mm::{self, MapFlags, ProtFlags};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, ptr};

/// Bytes of a [`Room`]; what is never used takes no memory.
const SIZE: usize = 64 << 20;
/// Answers below this are as quick over the socket.
const LEAST: usize = 8 << 10;
/// Places begin at multiples of this.
const GRAIN: usize = 4096;

/// Memory as one of the two sides has it mapped.
#[derive(Debug)]
struct Mapping {
    base: *mut c_void,
    len: usize,
}

// SAFETY: the addresses are plain numbers; who may read or write which of them is agreed upon by messages.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn of(memory: &OwnedFd, len: usize) -> io::Result<Arc<Self>> {
        // SAFETY: new addresses, of memory that cannot shrink.
        let base = unsafe { mm::mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, memory, 0)? };
        #[cfg(target_os = "linux")]
        // SAFETY: the addresses are this mapping's, and the advice changes no content.
        let _ = unsafe { mm::madvise(base, len, mm::Advice::LinuxHugepage) };
        Ok(Arc::new(Self { base, len }))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the addresses are this mapping's, and no place in it is left.
        let _ = unsafe { mm::munmap(self.base, self.len) };
    }
}

/// A place in shared memory that this side reads and writes.
#[derive(Debug)]
pub(super) struct Slot {
    mapping: Arc<Mapping>,
    /// Where it goes back to, on the side that lends places.
    room: Option<Arc<Room>>,
    at: usize,
    len: usize,
}

impl Slot {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the place lies within the mapping. The other side writes there only while the place is lent, when there is
        // no `Slot` of it on the side that lends.
        unsafe { std::slice::from_raw_parts(self.mapping.base.byte_add(self.at).cast(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and on the side that writes it is the only one of its place.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.base.byte_add(self.at).cast(), self.len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(room) = &self.room {
            room.put(self.at, self.len.next_multiple_of(GRAIN));
        }
    }
}

/// The side that lends places.
#[derive(Debug)]
pub(crate) struct Room {
    mapping: Arc<Mapping>,
    /// What is free: beginning and length.
    free: Mutex<BTreeMap<usize, usize>>,
}

impl Room {
    /// New memory, and what the other side is given to find it.
    ///
    /// # Errors
    /// Of the system, which may have no such memory.
    pub(crate) fn new() -> io::Result<(Arc<Self>, OwnedFd)> {
        let memory = sealed(SIZE)?;
        let room = Self { mapping: Mapping::of(&memory, SIZE)?, free: Mutex::new([(0, SIZE)].into()) };
        Ok((Arc::new(room), memory))
    }

    /// Lends the first place of `len` bytes that is free; `None` if there is none, or if it is not worth it.
    pub(crate) fn lend(self: &Arc<Self>, len: usize) -> Option<Lent> {
        if !(LEAST..=SIZE / 2).contains(&len) {
            return None;
        }
        let need = len.next_multiple_of(GRAIN);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (&at, &room) = free.iter().find(|(_, room)| **room >= need)?;
        free.remove(&at);
        if room > need {
            free.insert(at + need, room - need);
        }
        let slot = Slot { mapping: self.mapping.clone(), room: Some(self.clone()), at, len };
        Some(Lent(Some(slot)))
    }

    fn put(&self, mut at: usize, mut len: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(after) = free.remove(&(at + len)) {
            len += after;
        }
        if let Some((&before, &room)) = free.range(..at).next_back()
            && before + room == at
        {
            free.remove(&before);
            (at, len) = (before, len + room);
        }
        free.insert(at, len);
    }
}

/// A place that the other side may be writing to. One that is dropped is never used again: nobody knows when the other side is
/// done with it.
#[derive(Debug)]
pub(crate) struct Lent(Option<Slot>);

impl Lent {
    /// Where it begins, as the other side is told.
    pub(crate) fn at(&self) -> u64 {
        self.0.as_ref().map_or(0, |slot| slot.at as u64)
    }

    /// The place, once the other side is done with it.
    pub(crate) fn back(mut self) -> Pooled {
        self.0.take().map(Pooled::from).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // The memory itself goes with the connection.
        if let Some(slot) = &mut self.0 {
            slot.room = None;
        }
    }
}

/// The side that writes to places.
#[derive(Debug)]
pub(crate) struct Window(Arc<Mapping>);

impl Window {
    /// Of memory that the other side gave.
    ///
    /// # Errors
    /// Of the system; memory that could shrink.
    pub(crate) fn of(memory: &OwnedFd) -> io::Result<Self> {
        Ok(Self(Mapping::of(memory, sealed_size(memory)?)?))
    }

    /// A place in it that was lent; `None` if there is no such.
    pub(crate) fn place(&self, at: u64, len: usize) -> Option<Pooled> {
        let at = usize::try_from(at).ok().filter(|at| at.is_multiple_of(GRAIN))?;
        let fits = at.checked_add(len).is_some_and(|end| end <= self.0.len);
        fits.then(|| Slot { mapping: self.0.clone(), room: None, at, len }.into())
    }
}

#[cfg(target_os = "linux")]
fn sealed(len: usize) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let memory = memfd_create("graphtool", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, len as u64)?;
    fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(memory)
}

#[cfg(target_os = "linux")]
fn sealed_size(memory: &OwnedFd) -> io::Result<usize> {
    use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
    let size = usize::try_from(fstat(memory)?.st_size).unwrap_or(0);
    let sealed = fcntl_get_seals(memory)?.contains(SealFlags::SHRINK);
    if sealed && size > 0 { Ok(size) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

#[cfg(not(target_os = "linux"))]
fn sealed(_: usize) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn sealed_size(_: &OwnedFd) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let (room, memory) = Room::new().unwrap();
        let window = Window::of(&memory).unwrap();
        let lent: Vec<Lent> = [10_000, 8192, 100_001].map(|len| room.lend(len).unwrap()).into();
        for (i, (lent, len)) in lent.iter().zip([10_000, 8192, 100_001]).enumerate() {
            window.place(lent.at(), len).unwrap().fill(i as u8 + 1);
        }
        let mut back: Vec<Pooled> = lent.into_iter().map(Lent::back).collect();
        for (i, (bytes, len)) in back.iter().zip([10_000, 8192, 100_001]).enumerate() {
            assert_eq!(**bytes, vec![i as u8 + 1; len]);
            assert_eq!(bytes.as_ptr() as usize % 64, 0);
        }
        // In whatever order they go, all is free again.
        [1, 0, 0].into_iter().for_each(|i| drop(back.remove(i)));
        assert_eq!(*room.free.lock().unwrap(), [(0, SIZE)].into());
    }

    #[test]
    fn a_place_that_was_not_given_back_is_never_lent_again() {
        let (room, _memory) = Room::new().unwrap();
        let first = room.lend(LEAST).unwrap().at();
        assert_eq!(first, 0);
        let again = room.lend(LEAST).unwrap();
        assert_eq!(again.at(), LEAST as u64);
        drop(again.back());
        assert_eq!(room.lend(LEAST).unwrap().at(), LEAST as u64);
        // Too little, too much, and more than is left.
        assert!(room.lend(LEAST - 1).is_none() && room.lend(SIZE / 2 + 1).is_none());
        let most: Vec<Lent> = std::iter::from_fn(|| room.lend(SIZE / 4)).collect();
        assert_eq!(most.len(), 3);
        drop(most);
        assert_eq!(Arc::strong_count(&room), 1);
    }

    #[test]
    fn places_lie_within_memory_that_cannot_shrink() {
        let (_room, memory) = Room::new().unwrap();
        let window = Window::of(&memory).unwrap();
        assert!(window.place(0, SIZE).is_some());
        for (at, len) in [(0, SIZE + 1), (SIZE as u64, 1), (1, 1), (u64::MAX - 4095, 4096), (4096, usize::MAX)] {
            assert!(window.place(at, len).is_none(), "{at} {len}");
        }
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        let open = memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&open, 4096).unwrap();
        assert!(Window::of(&open).is_err());
        assert!(ftruncate(&memory, 4096).is_err());
    }
}
