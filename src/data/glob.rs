//! Patterns of file names: `part-*.csv`, `day-?/*.npz`.

use super::error::DataError;
use std::path::{Component, Path, PathBuf};

/// The files that paths stand for: each path that is there stands for itself, any other with `*`, `?` or `[…]` for the files
/// that match it, in the order of their names. A `*` stays within one name.
///
/// # Errors
/// A pattern that nothing matches, or that is none.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut all = Vec::new();
    for path in paths {
        if !is_pattern(path) || path.exists() {
            all.push(path.clone());
            continue;
        }
        let mut found = vec![PathBuf::new()];
        for part in path.components() {
            found = step(found, part, path)?;
        }
        if found.is_empty() {
            return Err(DataError::file(path, "no file matches this pattern"));
        }
        all.extend(found);
    }
    Ok(all)
}

fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '['])
}

/// One component further.
fn step(from: Vec<PathBuf>, part: Component, whole: &Path) -> Result<Vec<PathBuf>, DataError> {
    let name = Path::new(part.as_os_str());
    if !is_pattern(name) {
        return Ok(from.into_iter().map(|p| p.join(name)).filter(|p| p.exists()).collect());
    }
    let glob = globset::GlobBuilder::new(&name.to_string_lossy()).literal_separator(true).build();
    let matcher = glob.map_err(|e| DataError::file(whole, e))?.compile_matcher();
    let mut found = Vec::new();
    for dir in from {
        let here = if dir.as_os_str().is_empty() { Path::new(".") } else { &dir };
        for entry in std::fs::read_dir(here).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let hidden = file.to_string_lossy().starts_with('.') && !name.to_string_lossy().starts_with('.');
            if !hidden && matcher.is_match(&file) {
                found.push(dir.join(file));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_files_in_the_order_of_their_names() {
        let tmp = tempfile::tempdir().unwrap();
        for name in ["part-2.csv", "part-10.csv", "part-1.csv", ".part-0.csv", "other.csv", "d/part-3.csv", "[x].csv"] {
            let path = tmp.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let find = |pattern: &str| {
            let found = expand(&[tmp.path().join(pattern)]).map_err(|e| e.to_string())?;
            Ok::<_, String>(found.iter().map(|p| p.strip_prefix(tmp.path()).unwrap().display().to_string()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(find("part-*.csv").unwrap(), "part-1.csv part-10.csv part-2.csv");
        assert_eq!(find("part-?.csv").unwrap(), "part-1.csv part-2.csv");
        assert_eq!(find("*/part-*").unwrap(), "d/part-3.csv");
        assert_eq!(find("[x].csv").unwrap(), "[x].csv", "a file of that very name");
        assert_eq!(find("gone.csv").unwrap(), "gone.csv", "for whoever opens it to miss");
        assert!(find("gone-*.csv").unwrap_err().contains("no file matches"));
    }
}
