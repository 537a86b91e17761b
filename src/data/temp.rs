//! Files that take their name only when they are whole.

use super::error::DataError;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A temporary sibling of a file or directory; removed when dropped, unless it took the place of its target.
#[derive(Debug)]
pub struct TempPath {
    target: PathBuf,
    path: PathBuf,
}

/// `.NAME.tmp-PID-N`
fn prefix(target: &Path) -> Option<String> {
    Some(format!(".{}.tmp-", target.file_name()?.to_string_lossy()))
}

impl TempPath {
    /// A free name beside `target`; what processes that are no more left there is removed.
    ///
    /// # Errors
    /// A target without a name.
    pub fn beside(target: &Path) -> Result<Self, DataError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let prefix = prefix(target).ok_or_else(|| DataError::file(target, "no name to write to"))?;
        clean(target, &prefix);
        let name = format!("{prefix}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Ok(Self { path: target.with_file_name(name), target: target.into() })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the place of the target, which is a file or not there.
    ///
    /// # Errors
    /// Those of the system.
    pub fn persist(self) -> Result<(), DataError> {
        fs::rename(&self.path, &self.target).map_err(DataError::io(&self.target))?;
        sync_dir(&self.target);
        Ok(())
    }

    /// Takes the place of the target, which is a directory or not there; the old one goes when the new one stands.
    ///
    /// # Errors
    /// Those of the system.
    pub fn persist_dir(self) -> Result<(), DataError> {
        if self.target.exists() {
            let old = TempPath::beside(&self.target)?;
            fs::rename(&self.target, &old.path).map_err(DataError::io(&self.target))?;
            if let Err(e) = fs::rename(&self.path, &self.target) {
                let _ = fs::rename(&old.path, &self.target);
                return Err(DataError::io(&self.target)(e));
            }
            sync_dir(&self.target);
            return Ok(());
        }
        self.persist()
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        // After a rename nothing is there any more.
        let _ = if self.path.is_dir() { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
    }
}

/// Makes the names in the target's directory last; a system that cannot is none the worse.
fn sync_dir(target: &Path) {
    if let Some(dir) = target.parent() {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let _ = File::open(dir).and_then(|d| d.sync_all());
    }
}

/// Whether a process runs; one that is dead but has not been asked about yet does not.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !matches!(rest.trim_start().chars().next(), None | Some('Z' | 'X')))
}

/// Removes what a process left that is no longer running, where the system tells.
fn clean(target: &Path, prefix: &str) {
    let dir = match target.parent() {
        Some(d) if !d.as_os_str().is_empty() => d,
        _ => Path::new("."),
    };
    let proc = Path::new("/proc");
    if !proc.join("self").exists() {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_string_lossy().strip_prefix(prefix).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !lives(pid)) {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// Writes a file through a temporary sibling, synced before it takes its name.
///
/// # Errors
/// Those of the system and of `fill`; nothing is left then.
pub fn write_file<T>(target: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<T, DataError>) -> Result<T, DataError> {
    let temp = TempPath::beside(target)?;
    let io = |e: io::Error| DataError::Io { path: target.into(), error: e };
    let mut out = BufWriter::with_capacity(1 << 18, File::create(temp.path()).map_err(io)?);
    let result = fill(&mut out)?;
    out.flush().map_err(io)?;
    out.get_ref().sync_all().map_err(io)?;
    temp.persist()?;
    Ok(result)
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
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.npz");
        write_file(&path, |f| f.write_all(b"old").map_err(DataError::io(&path))).unwrap();
        write_file(&path, |f| f.write_all(b"new").map_err(DataError::io(&path)).and(Err::<(), _>(DataError::Bind("no".into()))))
            .unwrap_err();
        assert_eq!(names(dir.path()), ["out.npz"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn leftovers_of_dead_processes_are_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        // No process has this id: it is past the system's limit.
        fs::write(dir.path().join(".a.csv.tmp-4194999-0"), "x").unwrap();
        fs::write(dir.path().join(".b.csv.tmp-4194999-0"), "x").unwrap();
        write_file(&dir.path().join("a.csv"), |_| Ok(())).unwrap();
        assert_eq!(names(dir.path()), [".b.csv.tmp-4194999-0", "a.csv"]);
    }

    #[test]
    fn a_directory_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("d");
        for text in ["one", "two"] {
            let temp = TempPath::beside(&target).unwrap();
            fs::create_dir(temp.path()).unwrap();
            fs::write(temp.path().join(text), "").unwrap();
            temp.persist_dir().unwrap();
            assert_eq!(names(&target), [text]);
        }
        assert_eq!(names(dir.path()), ["d"]);
    }
}
