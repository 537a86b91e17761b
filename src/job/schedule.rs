//! Which batches a worker computes: every W-th, or the next that nobody has taken.

use super::parts::Parts;
use super::predict::JobError;
use crate::data::DataError;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of a claim: the rank, and zeros.
const CLAIM: usize = 16;

/// The batches of one worker, one after the other.
pub(super) enum Schedule {
    /// Those that are listed.
    Listed(std::vec::IntoIter<Range<usize>>),
    /// Whoever is ready takes the next.
    Claimed(Claims),
}

impl Schedule {
    /// Batch `k` belongs to rank `k mod size`; what is finished already is left out.
    pub fn fixed(batches: &[Range<usize>], rank: usize, size: usize, parts: &Parts) -> Self {
        let mine = batches.iter().skip(rank).step_by(size).filter(|b| !parts.has(b)).cloned();
        Self::Listed(mine.collect::<Vec<_>>().into_iter())
    }

    /// All workers take batches from a list in a folder that they share.
    pub fn claimed(batches: Vec<Range<usize>>, rank: usize, dir: &Path, parts: &Parts) -> Result<Self, JobError> {
        let path = dir.join("claims");
        // What this rank had taken before it was cut off, nobody else will do.
        let old = fs::read(&path).unwrap_or_default();
        let mine = old.as_chunks::<CLAIM>().0.iter().enumerate().filter(|(_, c)| c[..8] == (rank as u64).to_le_bytes());
        let mut back: Vec<usize> = mine.map(|(k, _)| k).filter(|k| batches.get(*k).is_some_and(|b| !parts.has(b))).collect();
        back.reverse();
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(DataError::io(&path))?;
        let finished = batches.iter().map(|b| parts.has(b)).collect();
        Ok(Self::Claimed(Claims { path, file, rank, back, batches, finished }))
    }

    /// The next batch, if there is one.
    pub fn next(&mut self) -> Result<Option<Range<usize>>, JobError> {
        match self {
            Self::Listed(list) => Ok(list.next()),
            Self::Claimed(claims) => claims.next(),
        }
    }
}

/// A file to which each claim is appended; the place where it comes to stand is the number of the batch. Appending is one
/// step for the system, so no two workers get the same number.
pub(super) struct Claims {
    path: PathBuf,
    file: File,
    rank: usize,
    back: Vec<usize>,
    batches: Vec<Range<usize>>,
    finished: Vec<bool>,
}

impl Claims {
    fn next(&mut self) -> Result<Option<Range<usize>>, JobError> {
        if let Some(k) = self.back.pop() {
            return Ok(Some(self.batches[k].clone()));
        }
        loop {
            let mut claim = [0; CLAIM];
            claim[..8].copy_from_slice(&(self.rank as u64).to_le_bytes());
            let end = self.file.write(&claim).and_then(|n| if n == CLAIM { self.file.stream_position() } else { Ok(0) });
            let end = end.map_err(DataError::io(&self.path))?;
            let place = (end / CLAIM as u64).checked_sub(1).filter(|_| end.is_multiple_of(CLAIM as u64));
            let Some(k) = place.and_then(|p| usize::try_from(p).ok()) else {
                return Err(DataError::file(&self.path, "a claim could not be written whole").into());
            };
            match self.finished.get(k) {
                None => return Ok(None),
                Some(true) => {}
                Some(false) => return Ok(Some(self.batches[k].clone())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parts::PartsOptions;
    use super::super::record::{Filled, Record};
    use super::*;

    #[test]
    fn each_batch_is_taken_once_and_a_worker_comes_back_to_what_it_had_taken() {
        let tmp = tempfile::tempdir().unwrap();
        let batches: Vec<Range<usize>> = (0..10).map(|k| k * 2..k * 2 + 2).collect();
        let open = |rank, resume| {
            let options = PartsOptions { dir: tmp.path().into(), resume, identity: Default::default() };
            Parts::open(Some(&options), rank, 2).unwrap()
        };
        let claim = |rank, parts: &Parts| Schedule::claimed(batches.clone(), rank, tmp.path(), parts).unwrap();
        let (mut one, two) = (open(0, false), open(1, false));
        let (mut a, mut b) = (claim(0, &one), claim(1, &two));
        let next = |s: &mut Schedule| s.next().unwrap().map(|r| r.start / 2);
        assert_eq!([next(&mut a), next(&mut b), next(&mut a), next(&mut a), next(&mut b)], [0, 1, 2, 3, 4].map(Some));
        // Worker 0 finished batch 2 of its 0, 2 and 3, and dies.
        let record = Record { range: 4..6, filled: Filled::default(), metrics: None, outputs: Vec::new() };
        one.put(4..6, record.encode().unwrap()).unwrap();
        drop((one, a));
        let one = open(0, true);
        let mut a = claim(0, &one);
        assert_eq!([next(&mut a), next(&mut a), next(&mut a), next(&mut b)], [0, 3, 5, 6].map(Some));
        let rest: Vec<usize> = std::iter::from_fn(|| next(&mut a)).collect();
        assert_eq!((rest, next(&mut b)), (vec![7, 8, 9], None));
    }

    #[test]
    fn fixed_shares_leave_out_what_is_finished() {
        let tmp = tempfile::tempdir().unwrap();
        let options = PartsOptions { dir: tmp.path().into(), resume: false, identity: Default::default() };
        let parts = Parts::open(Some(&options), 1, 3).unwrap();
        let batches: Vec<Range<usize>> = (0..8).map(|k| k..k + 1).collect();
        let mut mine = Schedule::fixed(&batches, 1, 3, &parts);
        let starts: Vec<usize> = std::iter::from_fn(|| mine.next().unwrap()).map(|r| r.start).collect();
        assert_eq!(starts, [1, 4, 7]);
    }
}
