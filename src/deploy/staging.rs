//! Directories that are put together beside their target and take its place at once.
//!
//! A staging directory is named `.TARGET.tmp-PID-N` and locked as long as its process lives: one without a lock was left
//! behind, and goes at the next run.

use super::{DeployError, dir_error};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A directory beside the target that disappears unless it is put in place.
pub(super) struct Staging {
    pub(super) path: PathBuf,
    /// Locked.
    _lock: File,
    done: bool,
}

/// What a directory is called that a fallback moved out of the way.
const OLD: &str = "-old";

impl Staging {
    /// A new directory beside `target`; what runs that were killed left there is removed first.
    ///
    /// # Errors
    /// A target without a name, a directory that cannot be written.
    pub(super) fn beside(target: &Path) -> Result<Self, DeployError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = target.file_name().ok_or_else(|| dir_error(target, "it has no name"))?.to_string_lossy().into_owned();
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let prefix = format!(".{name}.tmp-");
        clean(parent, &prefix, target)?;
        loop {
            let path = parent.join(format!("{prefix}{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)));
            match fs::create_dir(&path) {
                Ok(()) => {}
                // Process numbers come again; its lock says that somebody is there.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(dir_error(&path, e)),
            }
            // Until it is locked somebody else may take it for a leftover.
            if let Some(lock) = lock(&path).map_err(|e| dir_error(&path, e))? {
                return Ok(Self { path, _lock: lock, done: false });
            }
        }
    }

    /// Takes the place of `target`, which is a directory or not there. Whoever looks sees the old one or the new one, also
    /// when this process is killed in between, where the system can exchange two names.
    ///
    /// # Errors
    /// Those of the system; the old one is in its place then.
    pub(super) fn put_in_place(mut self, target: &Path) -> Result<(), DeployError> {
        let fail = |e: io::Error| dir_error(target, e);
        if fs::symlink_metadata(target).is_err() {
            fs::rename(&self.path, target).map_err(fail)?;
            self.done = true;
        } else {
            match renameat_with(CWD, &self.path, CWD, target, RenameFlags::EXCHANGE) {
                // What is at `path` now is the old one, and goes with `self`.
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
                    let old = PathBuf::from(format!("{}{OLD}", self.path.display()));
                    fs::rename(target, &old).map_err(fail)?;
                    if let Err(e) = fs::rename(&self.path, target) {
                        let _ = fs::rename(&old, target);
                        return Err(fail(e));
                    }
                    self.done = true;
                    let _ = fs::remove_dir_all(&old);
                }
                Err(e) => return Err(fail(e.into())),
            }
        }
        // The new name lasts; a system that cannot promise it is none the worse.
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _ = File::open(parent).and_then(|d| d.sync_all());
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The lock of a directory that is there; `None` if another process has it or the directory is gone.
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

/// Removes the staging directories of `target` whose processes are gone. One that was moved out of the way by a run that
/// was killed before the new one stood comes back.
fn clean(parent: &Path, prefix: &str, target: &Path) -> Result<(), DeployError> {
    for entry in fs::read_dir(parent).map_err(|e| dir_error(parent, e))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(prefix) else { continue };
        let (numbers, old) = rest.strip_suffix(OLD).map_or((rest, false), |r| (r, true));
        let ours = numbers.split('-').count() <= 2 && numbers.split('-').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        if !ours || !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let Ok(Some(_lock)) = lock(&entry.path()) else { continue };
        if old && fs::symlink_metadata(target).is_err() {
            let _ = fs::rename(entry.path(), target);
        } else {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_directory_takes_the_place_of_another_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.dist");
        for text in ["one", "two", "three"] {
            let staging = Staging::beside(&target).unwrap();
            fs::write(staging.path.join(text), "").unwrap();
            staging.put_in_place(&target).unwrap();
            assert_eq!(names(&target), [text]);
        }
        drop(Staging::beside(&target).unwrap());
        assert_eq!(names(dir.path()), ["m.dist"]);
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
        let running = Staging::beside(&target).unwrap();
        let second = Staging::beside(&target).unwrap();
        let name = |s: &Staging| s.path.file_name().unwrap().to_string_lossy().into_owned();
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
        let staging = Staging::beside(&target).unwrap();
        assert_eq!(names(&target), ["kept"]);
        drop(staging);
        assert_eq!(names(dir.path()), ["m.dist"]);
    }
}
