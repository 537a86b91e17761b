//! What the launcher reads in the logs of its children: progress as it comes, and the error that one ended with.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// How a worker's line of progress begins: `progress 2048 of 100003`.
pub const PROGRESS: &str = "progress ";

/// How a worker says that another gives no sign of life: `hangs: worker 1`.
pub const HANGS: &str = "hangs: worker ";

/// What a log says since it was last read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// The last progress: samples that are done, and all of the job.
    pub progress: Option<(u64, u64)>,
    /// Workers that give no sign of life.
    pub hangs: Vec<usize>,
}

/// The end of a log, read further each time.
#[derive(Debug, Default)]
pub(super) struct Tail {
    read: u64,
    partial: String,
}

impl Tail {
    /// What was written since the last call, in whole lines.
    pub fn news(&mut self, log: &Path) -> News {
        let more = self.more(log).unwrap_or_default();
        self.partial.push_str(&more);
        let Some(end) = self.partial.rfind('\n') else { return News::default() };
        let lines: String = self.partial.drain(..=end).collect();
        let progress = |l: &str| {
            let (done, total) = l.strip_prefix(PROGRESS)?.split_once(" of ")?;
            Some((done.parse().ok()?, total.parse().ok()?))
        };
        let hangs = lines.lines().filter_map(|l| l.strip_prefix(HANGS)?.parse().ok()).collect();
        News { progress: lines.lines().rev().find_map(progress), hangs }
    }

    fn more(&mut self, log: &Path) -> io::Result<String> {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = Vec::new();
        self.read += file.read_to_end(&mut text)? as u64;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// The last line of a log that tells of an error.
pub(super) fn last_error(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(16 << 10)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = read().unwrap_or_default();
    let tells = |l: &&str| l.starts_with("error: ") || l.contains(" ERROR ") || l.starts_with("memory allocation of ");
    text.lines().rev().find(tells).unwrap_or("").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn progress_is_read_line_by_line_as_it_comes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        let mut tail = Tail::default();
        assert_eq!(tail.news(&path), News::default());
        write!(file, "progress 1 of 9\nother\nhangs: worker 2\nprogress 4 of").unwrap();
        assert_eq!(tail.news(&path), News { progress: Some((1, 9)), hangs: vec![2] });
        writeln!(file, " 9").unwrap();
        assert_eq!(tail.news(&path), News { progress: Some((4, 9)), hangs: Vec::new() });
        assert_eq!(tail.news(&path), News::default());
    }

    #[test]
    fn the_last_error_is_found_above_other_lines() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(last_error(file.path()), "");
        write!(file, "error: one\nerror: two\nprogress 4 of 9\n").unwrap();
        assert_eq!(last_error(file.path()), "two");
    }
}
