//! External data: the files beside a model that hold the elements of its tensors, mapped once each and never outside the
//! model's directory.

use crate::tensor::map_file;
use bytes::Bytes;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Where a tensor's elements are in another file, as the `external_data` pairs say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalPlace {
    /// The path of the file, relative to the model's directory.
    pub location: String,
    /// The first byte.
    pub offset: u64,
    /// The number of bytes, where the model says it.
    pub length: Option<u64>,
    /// Every pair, in the order of the file.
    pub entries: Vec<(String, String)>,
}

impl ExternalPlace {
    /// Reads the pairs.
    ///
    /// # Errors
    /// A missing or repeated key, or a number that is none.
    pub fn parse(entries: Vec<(String, String)>) -> Result<Self, String> {
        let get = |key: &str| {
            let mut found = entries.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str());
            match (found.next(), found.next()) {
                (_, Some(_)) => Err(format!("external data has {key:?} twice")),
                (first, None) => Ok(first),
            }
        };
        let number = |key: &str| match get(key)? {
            None => Ok(None),
            Some(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse::<u64>().map(Some).map_err(|_| format!("external data {key} {text} does not fit 64 bits"))
            }
            Some(text) => Err(format!("external data {key} must be a number of bytes, found {text:?}")),
        };
        let location = get("location")?.ok_or("external data without a location")?.to_string();
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        Ok(Self { location, offset, length, entries })
    }

    /// The pairs of a place that a writer chose.
    pub fn new(location: impl Into<String>, offset: u64, length: u64) -> Self {
        let location = location.into();
        let entries =
            vec![("location".into(), location.clone()), ("offset".into(), offset.to_string()), ("length".into(), length.to_string())];
        Self { location, offset, length: Some(length), entries }
    }
}

/// The external data files of one model.
#[derive(Debug, Default)]
pub struct ExternalFiles {
    /// The model's directory as given, then the directory that the model really lies in, where that is another.
    dirs: Vec<PathBuf>,
    maps: Mutex<HashMap<PathBuf, Bytes>>,
}

impl ExternalFiles {
    /// For a model that is in no file: any external data is refused.
    pub fn none() -> Self {
        Self::default()
    }

    /// For the model at `path`. If it is a symbolic link, as in a download cache, its data may lie beside the link or
    /// beside what the link leads to.
    ///
    /// # Errors
    /// When the path leads to nothing.
    pub fn of_model(path: &Path) -> std::io::Result<Self> {
        let parent = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let mut dirs = vec![parent.canonicalize()?];
        if let Some(real) = path.canonicalize()?.parent()
            && real != dirs[0]
        {
            dirs.push(real.to_path_buf());
        }
        Ok(Self { dirs, maps: Mutex::default() })
    }

    /// A view on the `need` bytes of a tensor.
    ///
    /// # Errors
    /// A location that is not a plain file inside the model's directory, or a range that is not inside the file or not of
    /// `need` bytes.
    pub fn view(&self, place: &ExternalPlace, need: usize) -> Result<Bytes, String> {
        let ExternalPlace { location, offset, length, .. } = place;
        if let Some(length) = length.filter(|&l| l != need as u64) {
            return Err(format!("needs {need} bytes, external data has length {length}"));
        }
        let file = self.open(location)?;
        let past = || format!("external data from {offset} to {offset} + {need} goes past the end of {location:?}, {} bytes", file.len());
        let from = usize::try_from(*offset).map_err(|_| past())?;
        let to = from.checked_add(need).filter(|&to| to <= file.len()).ok_or_else(past)?;
        Ok(file.slice(from..to))
    }

    /// The whole file at a location, mapped.
    fn open(&self, location: &str) -> Result<Bytes, String> {
        let at = |e: std::io::Error| format!("external data {location:?}: {e}");
        let path = self.resolve(location)?;
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = maps.get(&path) {
            return Ok(bytes.clone());
        }
        let file = open_file(&path).map_err(at)?;
        let meta = file.metadata().map_err(at)?;
        if !meta.is_file() {
            return Err(format!("external data {location:?} is no regular file"));
        }
        #[cfg(unix)]
        if std::os::unix::fs::MetadataExt::nlink(&meta) > 1 {
            return Err(format!("external data {location:?} is a hard link, which may lead outside the model's directory; copy it"));
        }
        let bytes = map_file(&file).map_err(at)?;
        maps.insert(path, bytes.clone());
        Ok(bytes)
    }

    /// The real path of a location, which is inside one of the model's directories.
    fn resolve(&self, location: &str) -> Result<PathBuf, String> {
        let outside = || format!("external data {location:?} is outside the model's directory");
        if self.dirs.is_empty() {
            return Err(format!("external data {location:?} of a model that is in no file"));
        }
        if location.is_empty() || location.contains('\0') {
            return Err(format!("external data location {location:?} names no file"));
        }
        let mut depth = 0usize;
        for part in Path::new(location).components() {
            match part {
                Component::Normal(_) => depth += 1,
                Component::CurDir => {}
                Component::ParentDir => depth = depth.checked_sub(1).ok_or_else(outside)?,
                Component::RootDir | Component::Prefix(_) => return Err(outside()),
            }
        }
        let mut last = None;
        for dir in &self.dirs {
            match dir.join(location).canonicalize() {
                Ok(real) if self.dirs.iter().any(|d| real.starts_with(d) && real != *d) => return Ok(real),
                Ok(_) => return Err(outside()),
                Err(e) => last = last.or(Some(e)),
            }
        }
        Err(format!("external data {location:?}: {}", last.map_or("not found".into(), |e| e.to_string())))
    }
}

/// Opens without waiting for the other end of a fifo, and without following a link that took the file's place.
fn open_file(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_NOFOLLOW);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn place(entries: &[(&str, &str)]) -> Result<ExternalPlace, String> {
        ExternalPlace::parse(entries.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    /// A directory `m` with a model and data in it, and a secret beside it.
    fn setup() -> (tempfile::TempDir, ExternalFiles) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("m/sub")).unwrap();
        fs::write(dir.path().join("m/model.onnx"), "").unwrap();
        fs::write(dir.path().join("m/w.bin"), [1u8, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        fs::write(dir.path().join("secret"), [9u8; 8]).unwrap();
        let files = ExternalFiles::of_model(&dir.path().join("m/model.onnx")).unwrap();
        (dir, files)
    }

    fn view(files: &ExternalFiles, location: &str) -> Result<Vec<u8>, String> {
        files.view(&place(&[("location", location)]).unwrap(), 2).map(|b| b.to_vec())
    }

    #[test]
    fn offset_and_length_pick_the_bytes() {
        let (_dir, files) = setup();
        let at = |o: &str, l: &str| place(&[("location", "w.bin"), ("offset", o), ("length", l)]).and_then(|p| files.view(&p, 2));
        assert_eq!(at("2", "2").unwrap(), [3u8, 4][..]);
        assert_eq!(at("6", "2").unwrap(), [7u8, 8][..]);
        assert_eq!(at("7", "2").unwrap_err(), "external data from 7 to 7 + 2 goes past the end of \"w.bin\", 8 bytes");
        assert!(at("18446744073709551615", "2").unwrap_err().contains("past the end"));
        assert_eq!(at("18446744073709551616", "2").unwrap_err(), "external data offset 18446744073709551616 does not fit 64 bits");
        assert_eq!(at("0", "3").unwrap_err(), "needs 2 bytes, external data has length 3");
        for bad in ["abc", "-1", "+1", "", " 1", "0x1"] {
            assert_eq!(at(bad, "2").unwrap_err(), format!("external data offset must be a number of bytes, found {bad:?}"));
        }
        assert_eq!(view(&files, "w.bin").unwrap(), [1, 2]);
        assert_eq!(place(&[("offset", "0")]).unwrap_err(), "external data without a location");
        assert_eq!(place(&[("location", "a"), ("location", "b")]).unwrap_err(), "external data has \"location\" twice");
    }

    #[test]
    fn a_file_is_mapped_once() {
        let (_dir, files) = setup();
        let get = |l| files.view(&place(&[("location", l)]).unwrap(), 8).unwrap();
        assert_eq!(get("w.bin").as_ptr(), get("sub/../w.bin").as_ptr());
    }

    #[test]
    fn nothing_outside_the_directory_is_read() {
        let (dir, files) = setup();
        let secret = dir.path().join("secret");
        symlink(&secret, dir.path().join("m/link")).unwrap();
        symlink(dir.path(), dir.path().join("m/up")).unwrap();
        symlink("w.bin", dir.path().join("m/inside")).unwrap();
        for bad in ["../secret", "sub/../../secret", secret.to_str().unwrap(), "link", "up/secret", "./../m/../secret", "../m/w.bin"] {
            assert_eq!(view(&files, bad).unwrap_err(), format!("external data {bad:?} is outside the model's directory"));
        }
        assert_eq!(view(&files, "inside").unwrap(), [1, 2]);
        assert_eq!(view(&files, "./w.bin").unwrap(), [1, 2]);
        assert!(view(&files, "").unwrap_err().contains("names no file"));
        assert!(view(&files, "a\0b").unwrap_err().contains("names no file"));
        assert!(view(&files, "gone").unwrap_err().starts_with("external data \"gone\": "));
        assert!(view(&ExternalFiles::none(), "w.bin").unwrap_err().contains("in no file"));
    }

    #[test]
    fn only_a_plain_file_with_one_name_is_read() {
        let (dir, files) = setup();
        fs::hard_link(dir.path().join("secret"), dir.path().join("m/hard")).unwrap();
        assert!(view(&files, "hard").unwrap_err().contains("is a hard link"));
        assert!(view(&files, "sub").unwrap_err().contains("is no regular file"));
        assert!(view(&files, ".").unwrap_err().contains("outside"));
        let fifo = std::ffi::CString::new(dir.path().join("m/fifo").to_str().unwrap()).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: the path is a valid C string.
        let made = unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) };
        assert_eq!(made, 0);
        assert!(view(&files, "fifo").unwrap_err().contains("is no regular file"));
        assert!(view(&files, "/dev/zero").unwrap_err().contains("outside"));
    }

    #[test]
    fn a_linked_cache_loads() {
        let dir = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (dir.path().join("blobs"), dir.path().join("snapshots/1"));
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        fs::write(blobs.join("aaa"), "").unwrap();
        fs::write(blobs.join("bbb"), [5u8, 6]).unwrap();
        symlink("../../blobs/aaa", snapshot.join("model.onnx")).unwrap();
        symlink("../../blobs/bbb", snapshot.join("model.onnx_data")).unwrap();
        let files = ExternalFiles::of_model(&snapshot.join("model.onnx")).unwrap();
        assert_eq!(view(&files, "model.onnx_data").unwrap(), [5, 6]);
        // The data beside what the link leads to.
        assert_eq!(view(&files, "bbb").unwrap(), [5, 6]);
    }
}
