//! Files and directories that are put together beside their target and take its place at once, when they are whole and on
//! disk.
//!
//! What is being written is named `.TARGET.tmp-PID-N` and locked as long as its process lives: what is there without a lock
//! was left behind by a run that was killed, and goes at the next one.

mod writer;

pub use writer::{FileWriter, STEP, Written};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A file or directory beside its target, which disappears unless it is put in place.
#[derive(Debug)]
pub struct Staged {
    target: PathBuf,
    path: PathBuf,
    /// Locked.
    lock: File,
}

/// What a directory is called that a fallback moved out of the way.
const OLD: &str = "-old";

impl Staged {
    /// A new file, open to read and write. A target that is a link stands for what it leads to.
    ///
    /// # Errors
    /// A target without a name, or that is there and no regular file; a directory that cannot be written.
    pub fn file(target: &Path) -> io::Result<(Self, File)> {
        Self::scratch(&replaceable(target)?)
    }

    /// A new file beside `target`, whatever that is, which is not to take its place.
    ///
    /// # Errors
    /// A target without a name, a directory that cannot be written.
    pub fn scratch(target: &Path) -> io::Result<(Self, File)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let (path, lock) = create(target, |path| options.open(path).map(drop))?;
        let staged = Self { target: target.into(), path, lock };
        let file = options.create_new(false).open(&staged.path)?;
        Ok((staged, file))
    }

    /// A new directory.
    ///
    /// # Errors
    /// A target without a name, a directory that cannot be written.
    pub fn dir(target: &Path) -> io::Result<Self> {
        let (path, lock) = create(target, |path| fs::create_dir(path))?;
        Ok(Self { target: target.into(), path, lock })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the place of the target, which is of the same kind or not there. Whoever looks sees the old one or the new one,
    /// also when this process is killed in between, where the system can exchange two names.
    ///
    /// # Errors
    /// Those of the system; the old one is in its place then.
    pub fn put_in_place(self) -> io::Result<()> {
        let (path, target) = (&self.path, &self.target);
        self.lock.sync_all()?;
        if !self.lock.metadata()?.is_dir() || fs::symlink_metadata(target).is_err() {
            fs::rename(path, target)?;
        } else {
            match renameat_with(CWD, path, CWD, target, RenameFlags::EXCHANGE) {
                // What is at `path` now is the old one, and goes with `self`.
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
                    let old = PathBuf::from(format!("{}{OLD}", path.display()));
                    fs::rename(target, &old)?;
                    if let Err(e) = fs::rename(path, target) {
                        let _ = fs::rename(&old, target);
                        return Err(e);
                    }
                    let _ = fs::remove_dir_all(&old);
                }
                Err(e) => return Err(e.into()),
            }
        }
        sync_parent(target);
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename nothing is there any more.
        remove(&self.path);
    }
}

/// The file that a target stands for, which may be a link to it.
///
/// # Errors
/// A target that is there and no regular file.
pub fn replaceable(target: &Path) -> io::Result<PathBuf> {
    let target = fs::canonicalize(target).unwrap_or_else(|_| target.into());
    if fs::metadata(&target).is_ok_and(|m| !m.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file, so it is not replaced"));
    }
    Ok(target)
}

/// Removes what runs that were killed left beside `target`.
pub fn clean_beside(target: &Path) {
    // A directory that cannot be read holds nothing that could be removed.
    let _ = prefix(target).and_then(|prefix| clean(&prefix, target));
}

/// Makes the names in the directory of `target` last; a system that cannot promise it is none the worse.
pub fn sync_parent(target: &Path) {
    let _ = File::open(parent(target)).and_then(|d| d.sync_all());
}

fn parent(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn prefix(target: &Path) -> io::Result<String> {
    let name = target.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it has no name"))?;
    Ok(format!(".{}.tmp-", name.to_string_lossy()))
}

fn remove(path: &Path) {
    // What cannot be removed now is tried again by the next run.
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// A name beside `target` at which `make` made something, and the lock of that; leftovers are removed first.
fn create(target: &Path, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<(PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let prefix = prefix(target)?;
    clean(&prefix, target)?;
    loop {
        let path = parent(target).join(format!("{prefix}{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)));
        match make(&path) {
            Ok(()) => {}
            // Process numbers come again; its lock says that somebody is there.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        }
        // Until it is locked somebody else may take it for a leftover.
        if let Some(lock) = lock(&path)? {
            return Ok((path, lock));
        }
    }
}

/// The lock of what is there; `None` if another process has it or it is gone.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        // A file system without locks: nobody else is known to be there.
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOLCK | rustix::io::Errno::NOSYS) => {}
        Err(e) => return Err(e.into()),
    }
    let same = fs::symlink_metadata(path).is_ok_and(|m| file.metadata().is_ok_and(|f| (f.dev(), f.ino()) == (m.dev(), m.ino())));
    Ok(same.then_some(file))
}

/// Removes what was staged for `target` by processes that are gone. A directory that was moved out of the way by a run that
/// was killed before the new one stood comes back.
fn clean(prefix: &str, target: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent(target))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(prefix) else { continue };
        let (numbers, old) = rest.strip_suffix(OLD).map_or((rest, false), |r| (r, true));
        let ours = numbers.split('-').count() <= 2 && numbers.split('-').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        if !ours || !entry.file_type().is_ok_and(|t| t.is_dir() || t.is_file()) {
            continue;
        }
        let Ok(Some(_lock)) = lock(&entry.path()) else { continue };
        if old && fs::symlink_metadata(target).is_err() {
            let _ = fs::rename(entry.path(), target);
        } else {
            remove(&entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// What is in a directory.
    pub(crate) fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn name(s: &Staged) -> String {
        s.path().file_name().unwrap().to_string_lossy().into_owned()
    }

    #[test]
    fn a_directory_takes_the_place_of_another_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.dist");
        for text in ["one", "two", "three"] {
            let staged = Staged::dir(&target).unwrap();
            fs::write(staged.path().join(text), "").unwrap();
            staged.put_in_place().unwrap();
            assert_eq!(names(&target), [text]);
        }
        drop(Staged::dir(&target).unwrap());
        assert_eq!(names(dir.path()), ["m.dist"]);
    }

    #[test]
    fn a_file_takes_the_place_of_another_or_leaves_it() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out.npz");
        for text in ["one", "two"] {
            let (staged, mut file) = Staged::file(&target).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            staged.put_in_place().unwrap();
        }
        let (staged, mut file) = Staged::file(&target).unwrap();
        file.write_all(b"three").unwrap();
        drop(staged);
        assert_eq!(fs::read(&target).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["out.npz"]);
    }

    #[test]
    fn a_link_stays_and_what_is_no_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let (staged, mut out) = Staged::file(&link).unwrap();
        out.write_all(b"new").unwrap();
        staged.put_in_place().unwrap();
        assert_eq!((fs::read(&file).unwrap(), fs::read_link(&link).unwrap()), (b"new".to_vec(), file));
        for other in [Path::new("/dev/null"), dir.path()] {
            assert_eq!(Staged::file(other).unwrap_err().to_string(), "it is no regular file, so it is not replaced");
        }
        assert_eq!(Staged::dir(Path::new("/")).unwrap_err().to_string(), "it has no name");
    }

    #[test]
    fn only_what_a_dead_process_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.dist");
        // This process's own number in an earlier life, another's, and the form of earlier versions.
        let own = format!(".m.dist.tmp-{}-0", std::process::id());
        for left in [own.as_str(), ".m.dist.tmp-1-0", ".m.dist.tmp-1", ".m.dist.tmp-notes", ".n.dist.tmp-1-0"] {
            fs::create_dir(dir.path().join(left)).unwrap();
        }
        fs::write(dir.path().join(".m.dist.tmp-2-0"), "x").unwrap();
        let running = Staged::dir(&target).unwrap();
        let second = Staged::file(&target).unwrap().0;
        let mut expected = vec![name(&running), name(&second), ".m.dist.tmp-notes".into(), ".n.dist.tmp-1-0".into()];
        expected.sort();
        assert_eq!(names(dir.path()), expected);
    }

    #[test]
    fn a_directory_that_was_moved_away_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.dist");
        fs::create_dir(dir.path().join(".m.dist.tmp-1-0-old")).unwrap();
        fs::write(dir.path().join(".m.dist.tmp-1-0-old/kept"), "").unwrap();
        clean_beside(&target);
        assert_eq!(names(&target), ["kept"]);
        assert_eq!(names(dir.path()), ["m.dist"]);
    }
}
