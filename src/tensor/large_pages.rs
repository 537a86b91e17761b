//! Tables that are read at random, moved into large pages: with pages of 4 KiB most of the time of a random row is the search
//! for its page. Files lie in small pages on most systems, so what is read often becomes memory of this process, at the same
//! addresses, while others read it.
#![allow(unsafe_code)]

use bytes::Bytes;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes of a large page.
pub(super) const LARGE: usize = 2 << 20;

/// Of the bytes of the tables, how many are read before they are moved: to move them costs about as much as that many reads
/// gain.
const SHARE: usize = 4;

/// Tables in mapped files, and how often they are read.
#[derive(Debug, Default)]
pub struct Frequented {
    parts: Vec<Bytes>,
    /// Bytes that are read before the tables are moved; 0 if they were, or never are.
    left: AtomicUsize,
}

impl Frequented {
    /// Of parts of mapped files; other bytes are left where they are.
    pub fn new(parts: Vec<Bytes>) -> Self {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        let worth = bytes >= LARGE && cfg!(target_os = "linux") && rustix::param::page_size() == 4096;
        Self { parts, left: if worth { bytes / SHARE } else { 0 }.into() }
    }

    /// Moves the tables now, in this thread, for who knows that they will be read often.
    pub fn settle(&self) {
        if self.left.swap(0, Relaxed) > 0 {
            #[cfg(target_os = "linux")]
            linux::settle(&self.parts);
        }
    }

    /// Counts bytes that were read at random. Who reads the last of the share begins to move the tables, in a thread of its own.
    pub fn read(&self, bytes: usize) {
        if self.left.load(Relaxed) == 0 {
            return;
        }
        let less = |left: usize| (left > 0).then(|| left.saturating_sub(bytes));
        if let Ok(before) = self.left.fetch_update(Relaxed, Relaxed, less)
            && before <= bytes
        {
            #[cfg(target_os = "linux")]
            {
                let parts = self.parts.clone();
                // Without a thread they stay where they are.
                _ = std::thread::Builder::new().name("large-pages".into()).spawn(move || linux::settle(&parts));
            }
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::super::mapped::{Region, aligned, regions};
    use super::super::memory::plenty;
    use super::LARGE;
    use bytes::Bytes;
    use rustix::mm::{self, Advice, MprotectFlags, MremapFlags, ProtFlags};
    use std::io;
    use std::ops::Range;
    use std::time::Instant;

    /// Large pages that are moved at once, of so many: that much more memory is needed meanwhile, and each time leaves one more
    /// mapping, of which a process has some ten thousands.
    fn at_once(pages: usize) -> usize {
        (pages / 256).clamp(4, 64)
    }

    /// Moves the large pages that parts of mapped files lie in, as long as there is plenty of memory.
    pub(super) fn settle(parts: &[Bytes]) {
        let never = |setting: String| setting.contains("[never]");
        if std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").map_or(true, never) {
            return;
        }
        let (start, mut moved) = (Instant::now(), 0);
        for region in regions() {
            for pages in runs(pages(&region, parts)) {
                let done = if plenty(pages.len()) { own(&region, pages.clone()) } else { Err(io::ErrorKind::OutOfMemory.into()) };
                if let Err(e) = done {
                    tracing::debug!("after {moved} bytes tables are left in small pages: {e}");
                    return;
                }
                moved += pages.len();
            }
        }
        tracing::debug!("{moved} bytes of tables are in large pages now, after {:?}", start.elapsed());
    }

    /// The large pages of a region that parts lie in and that files fill at least half, as numbers, ascending.
    fn pages(region: &Region, parts: &[Bytes]) -> Vec<usize> {
        let of = |place: Range<usize>| place.start / LARGE..place.end.div_ceil(LARGE);
        let mut pages: Vec<usize> = parts.iter().filter_map(|p| region.place(p)).flat_map(of).collect();
        pages.sort_unstable();
        pages.dedup();
        let state = region.state();
        let filled = |page: &usize| {
            let own = page * LARGE..(page + 1) * LARGE;
            state.files.iter().map(|f| f.end.min(own.end).saturating_sub(f.start.max(own.start))).sum::<usize>() >= LARGE / 2
        };
        pages.retain(filled);
        pages
    }

    /// Pages that follow each other, as places in their region.
    fn runs(pages: Vec<usize>) -> Vec<Range<usize>> {
        let runs = pages.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(at_once(pages.len())));
        runs.map(|run| run[0] * LARGE..(run[0] + run.len()) * LARGE).collect()
    }

    /// Makes the pages of a place this process's own.
    pub(super) fn own(region: &Region, place: Range<usize>) -> io::Result<()> {
        let mut state = region.state();
        state.own = true;
        let len = place.len();
        // SAFETY: the new memory is nobody else's until it takes the place of the old. That happens at once for every other
        // thread, and the content is the same, so nobody can tell. That there is room for one more mapping is checked by the
        // system before the old one goes.
        unsafe {
            let new = aligned(len, ProtFlags::READ | ProtFlags::WRITE)?;
            let filled = mm::madvise(new, len, Advice::LinuxHugepage).and_then(|()| {
                for file in &state.files {
                    let (from, to) = (file.start.max(place.start), file.end.min(place.end));
                    if from < to {
                        let (source, target) = (region.base().byte_add(from), new.byte_add(from - place.start));
                        // What is on the disk comes at once, not page by page. A hint.
                        let _ = mm::madvise(source, to - from, Advice::WillNeed);
                        std::ptr::copy_nonoverlapping(source.cast::<u8>(), target.cast::<u8>(), to - from);
                    }
                }
                mm::mprotect(new, len, MprotectFlags::READ)?;
                mm::mremap_fixed(new, len, len, MremapFlags::MAYMOVE, region.base().byte_add(place.start)).map(drop)
            });
            if let Err(e) = filled {
                mm::munmap(new, len)?;
                return Err(e.into());
            }
        }
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::mapped::{Maps, release};
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    /// Files of these sizes, and their content.
    fn files(sizes: &[usize]) -> Vec<(File, Vec<u8>)> {
        let content = |n: usize| (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<u8>>();
        let file = |&n: &usize| {
            let (file, content) = (tempfile::tempfile().unwrap(), content(n));
            file.write_all_at(&content, 0).unwrap();
            (file, content)
        };
        sizes.iter().map(file).collect()
    }

    /// Waits until the bytes at `at` no longer follow their file; false if they never do.
    fn moved(file: &File, bytes: &Bytes, at: usize) -> bool {
        for _ in 0..1000 {
            let (old, new) = (bytes[at], !bytes[at]);
            file.write_all_at(&[new], at as u64).unwrap();
            // SAFETY: the byte is mapped; another writer changes it, so it is read as it is now.
            let seen = unsafe { std::ptr::read_volatile(&bytes[at]) };
            file.write_all_at(&[old], at as u64).unwrap();
            if seen == old {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    #[test]
    fn what_is_read_often_moves_while_others_read_it() {
        // The second and third share pages; the last one's large page is less than half full.
        let files = files(&[5 << 20, 300_000, (1 << 20) + 17, 700_000]);
        let maps = Maps::for_sizes(files.iter().map(|(_, c)| c.len() as u64)).unwrap();
        let bytes: Vec<Bytes> = files.iter().map(|(f, _)| maps.map(f).unwrap()).collect();
        let tables = Frequented::new(bytes.clone());
        let total: usize = bytes.iter().map(Bytes::len).sum();
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !end.load(Relaxed) {
                    bytes.iter().zip(&files).for_each(|(b, (_, content))| assert_eq!(b, content));
                }
            });
            tables.read(total / SHARE - 1);
            assert_ne!(tables.left.load(Relaxed), 0);
            tables.read(1);
            assert_eq!(tables.left.load(Relaxed), 0);
            tables.read(1);
            std::thread::sleep(Duration::from_millis(50));
            end.store(true, Relaxed);
            reader.join().unwrap();
        });
        assert!(moved(&files[0].0, &bytes[0], 1 << 20));
        assert!(moved(&files[0].0, &bytes[0], (5 << 20) - 1));
        assert!(moved(&files[1].0, &bytes[1], 0));
        assert!(moved(&files[2].0, &bytes[2], 0));
        // What is this process's own is not given back.
        bytes.iter().for_each(|b| release(b));
        bytes.iter().zip(&files).for_each(|(b, (_, content))| assert_eq!(b, content));
    }

    #[test]
    fn small_tables_and_other_bytes_stay() {
        let small = Frequented::new(vec![Bytes::from(vec![1; LARGE - 1])]);
        assert_eq!(small.left.load(Relaxed), 0);
        let heap = Frequented::new(vec![Bytes::from(vec![1; LARGE])]);
        heap.read(usize::MAX);
        assert_eq!(heap.left.load(Relaxed), 0);
    }
}
