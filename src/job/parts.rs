//! What a job has finished, on disk: a folder beside the output with a file of records per worker, so that a worker or a job
//! that was cut off goes on where it was. The folder goes when the output stands.

use super::predict::JobError;
use super::record::{range_of, whole};
use crate::data::{DataError, write_file};
use crate::tensor::map_file;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of records that travel to rank 0 at once, unless one record alone has more.
const CHUNK: usize = 4 << 20;
/// What the job is, in its folder.
const JOB: &str = "job.json";

/// Where a job puts its parts, and whether it goes on with those that are there.
#[derive(Debug, Clone)]
pub struct PartsOptions {
    /// The folder, beside the output. Workers on several machines have one each.
    pub dir: PathBuf,
    /// Whether parts that are there count. Without it they are thrown away.
    pub resume: bool,
    /// What must be the same for parts to count: model, data, batch and the like.
    pub identity: BTreeMap<String, String>,
}

/// The records of one worker, and what of the job is finished.
pub(super) struct Parts {
    dir: Option<PathBuf>,
    own: Own,
    rank: usize,
    /// Start and length of each own record, in the file's order.
    records: Vec<(Range<usize>, usize)>,
    /// Files of workers that this job has no more, for rank 0 to take along.
    orphans: Vec<PathBuf>,
    /// Length of each batch that any worker has finished, by its first sample.
    finished: HashMap<usize, usize>,
}

enum Own {
    File(File, PathBuf),
    Memory(Vec<u8>),
}

/// The folder of parts that belongs to an output.
pub fn parts_dir(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{name}.parts"))
}

/// Removes the parts of a job, if `dir` holds such; true if it did.
///
/// # Errors
/// Those of the system.
pub fn remove_parts(dir: &Path) -> Result<bool, DataError> {
    if !dir.join(JOB).is_file() {
        return Ok(false);
    }
    fs::remove_dir_all(dir).map_err(DataError::io(dir))?;
    Ok(true)
}

fn file_of(dir: &Path, rank: usize) -> PathBuf {
    dir.join(format!("worker-{rank}.parts"))
}

/// That a folder holds nothing that is not of a job: it is removed in the end.
fn foreign(dir: &Path) -> Result<(), DataError> {
    for entry in fs::read_dir(dir).map_err(DataError::io(dir))? {
        let name = entry.map_err(DataError::io(dir))?.file_name().to_string_lossy().into_owned();
        if !(name == JOB || name == "lock" || name == "claims" || name.starts_with("worker-") || name.starts_with(&format!(".{JOB}."))) {
            return Err(DataError::file(dir, format!("it holds {name:?}, so it is no folder of finished batches; it is left alone")));
        }
    }
    Ok(())
}

/// The ranks that have a file in a folder.
fn ranks(dir: &Path) -> Result<Vec<usize>, DataError> {
    let mut ranks = Vec::new();
    for entry in fs::read_dir(dir).map_err(DataError::io(dir))? {
        let name = entry.map_err(DataError::io(dir))?.file_name();
        ranks.extend(name.to_string_lossy().strip_prefix("worker-").and_then(|n| n.strip_suffix(".parts")?.parse::<usize>().ok()));
    }
    ranks.sort_unstable();
    Ok(ranks)
}

/// The records of a file up to the first that is cut off or damaged.
fn scan(path: &Path) -> Result<Vec<(Range<usize>, usize)>, DataError> {
    let mut records = Vec::new();
    let bytes = File::open(path).and_then(|f| map_file(&f)).map_err(DataError::io(path))?;
    let mut rest = &bytes[..];
    while let Some(len) = whole(rest) {
        records.extend(range_of(rest).map(|r| (r, len)));
        rest = &rest[len..];
    }
    Ok(records)
}

impl Parts {
    /// The parts of rank `rank` of `size`; in memory if there is no folder.
    pub fn open(options: Option<&PartsOptions>, rank: usize, size: usize) -> Result<Self, JobError> {
        let mut parts =
            Self { dir: None, own: Own::Memory(Vec::new()), rank, records: Vec::new(), orphans: Vec::new(), finished: HashMap::new() };
        let Some(PartsOptions { dir, resume, identity }) = options else { return Ok(parts) };
        fs::create_dir(dir).or_else(|e| if dir.is_dir() { Ok(()) } else { Err(e) }).map_err(DataError::io(dir))?;
        let path = file_of(dir, rank);
        let known = dir.join(JOB);
        let others = ranks(dir)?;
        if *resume && known.is_file() {
            same_job(&known, identity)?;
            for other in others {
                let records = scan(&file_of(dir, other))?;
                parts.finished.extend(records.iter().map(|(r, _)| (r.start, r.len())));
                if other == rank {
                    parts.records = records;
                } else if other >= size && rank == 0 {
                    parts.orphans.push(file_of(dir, other));
                }
            }
        } else {
            foreign(dir)?;
            // Nobody else writes these any more.
            for other in others.into_iter().filter(|o| *o >= size && rank == 0) {
                fs::remove_file(file_of(dir, other)).map_err(DataError::io(dir))?;
            }
            let text = serde_json::to_string_pretty(identity).map_err(|e| DataError::file(&known, e))?;
            write_file(&known, |f| writeln!(f, "{text}").map_err(DataError::io(&known)))?;
        }
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(DataError::io(&path))?;
        let end = parts.own_len();
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(DataError::io(&path))?;
        parts.own = Own::File(file, path);
        parts.dir = Some(dir.clone());
        Ok(parts)
    }

    fn own_len(&self) -> u64 {
        self.records.iter().map(|r| r.1 as u64).sum()
    }

    /// Whether some worker has finished a batch.
    pub fn has(&self, batch: &Range<usize>) -> bool {
        self.finished.get(&batch.start) == Some(&batch.len())
    }

    /// The samples that this worker has finished.
    pub fn samples(&self) -> usize {
        self.records.iter().map(|r| r.0.len()).sum()
    }

    /// Batches that this worker has finished.
    pub fn own(&self) -> usize {
        self.records.len()
    }

    /// Forgets all own records after the first `count`, for a group that begins there together.
    pub fn keep(&mut self, count: usize) -> Result<(), JobError> {
        for (range, _) in self.records.drain(count.min(self.records.len())..) {
            self.finished.remove(&range.start);
        }
        let end = self.own_len();
        match &mut self.own {
            Own::File(file, path) => {
                file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(DataError::io(path))?;
            }
            Own::Memory(bytes) => bytes.truncate(end as usize),
        }
        Ok(())
    }

    /// Takes a record as it is encoded.
    pub fn put(&mut self, range: Range<usize>, record: Vec<u8>) -> Result<(), JobError> {
        self.records.push((range, record.len()));
        match &mut self.own {
            Own::File(file, path) => file.write_all(&record).map_err(DataError::io(path))?,
            Own::Memory(bytes) => bytes.extend(record),
        }
        Ok(())
    }

    /// What rank 0 is to get, in pieces of whole records.
    pub fn pieces(&self) -> Result<Vec<Piece>, JobError> {
        let mut pieces = cut(None, &self.records);
        for path in &self.orphans {
            pieces.extend(cut(Some(path), &scan(path)?));
        }
        Ok(pieces)
    }

    /// The bytes of a piece.
    pub fn read(&mut self, piece: &Piece) -> Result<Vec<u8>, JobError> {
        let mut bytes = vec![0; piece.len];
        let mut fill = |file: &mut File, path: &Path| {
            file.seek(SeekFrom::Start(piece.from)).and_then(|_| file.read_exact(&mut bytes)).map_err(DataError::io(path))
        };
        match (&piece.file, &mut self.own) {
            (Some(path), _) => fill(&mut File::open(path).map_err(DataError::io(path))?, path)?,
            (None, Own::File(file, path)) => fill(file, path)?,
            (None, Own::Memory(all)) => bytes.copy_from_slice(&all[piece.from as usize..][..piece.len]),
        }
        Ok(bytes)
    }

    /// Removes what the job no longer needs: rank 0 the folder, the others their file.
    pub fn remove(self) {
        let Some(dir) = &self.dir else { return };
        // Rank 0 on the same machine may be first.
        if self.rank == 0 {
            let _ = fs::remove_dir_all(dir);
            return;
        }
        let _ = fs::remove_file(file_of(dir, self.rank));
        if fs::read_dir(dir).is_ok_and(|d| d.flatten().all(|e| e.file_name() == JOB || e.file_name() == "lock")) {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// Records that lie one after the other.
pub(super) struct Piece {
    file: Option<PathBuf>,
    from: u64,
    len: usize,
}

fn cut(file: Option<&PathBuf>, records: &[(Range<usize>, usize)]) -> Vec<Piece> {
    let (mut pieces, mut from) = (Vec::<Piece>::new(), 0u64);
    for (_, len) in records {
        match pieces.last_mut() {
            Some(last) if last.len + len <= CHUNK => last.len += len,
            _ => pieces.push(Piece { file: file.cloned(), from, len: *len }),
        }
        from += *len as u64;
    }
    pieces
}

/// That the parts are of the same job.
fn same_job(path: &Path, identity: &BTreeMap<String, String>) -> Result<(), DataError> {
    let text = fs::read_to_string(path).map_err(DataError::io(path))?;
    let found: BTreeMap<String, String> = serde_json::from_str(&text).map_err(|e| DataError::file(path, e))?;
    let none = String::new();
    for key in identity.keys().chain(found.keys()) {
        let (now, then) = (identity.get(key).unwrap_or(&none), found.get(key).unwrap_or(&none));
        if now != then {
            let what = format!("the parts are of another job: {key} was {then:?} and is {now:?}; without --resume they are thrown away");
            return Err(DataError::file(path, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::record::{Filled, Record};
    use super::*;
    use bytes::Bytes;

    fn options(dir: &Path, resume: bool, batch: &str) -> PartsOptions {
        let identity = [("batch".to_owned(), batch.to_owned())].into();
        PartsOptions { dir: dir.join("o.parts"), resume, identity }
    }

    fn put(parts: &mut Parts, range: Range<usize>) {
        let record = Record { range: range.clone(), filled: Filled::default(), metrics: None, outputs: Vec::new() };
        parts.put(range, record.encode().unwrap()).unwrap();
    }

    fn ranges(parts: &mut Parts) -> Vec<Range<usize>> {
        let pieces = parts.pieces().unwrap();
        let mut bytes: Bytes = pieces.iter().flat_map(|p| parts.read(p).unwrap()).collect::<Vec<u8>>().into();
        std::iter::from_fn(|| Record::decode(&mut bytes)).map(|r| r.range).collect()
    }

    #[test]
    fn a_worker_goes_on_behind_its_last_whole_record() {
        let tmp = tempfile::tempdir().unwrap();
        let mut parts = Parts::open(Some(&options(tmp.path(), false, "2")), 0, 2).unwrap();
        put(&mut parts, 0..2);
        put(&mut parts, 4..6);
        drop(parts);
        // The last record was cut off.
        let path = file_of(&tmp.path().join("o.parts"), 0);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let mut parts = Parts::open(Some(&options(tmp.path(), true, "2")), 0, 2).unwrap();
        assert_eq!((parts.own(), parts.samples(), parts.has(&(0..2)), parts.has(&(4..6))), (1, 2, true, false));
        put(&mut parts, 4..6);
        assert_eq!(ranges(&mut parts), [0..2, 4..6]);
        parts.keep(1).unwrap();
        put(&mut parts, 8..9);
        assert_eq!(ranges(&mut parts), [0..2, 8..9]);
        // Another start throws them away.
        let mut parts = Parts::open(Some(&options(tmp.path(), false, "2")), 0, 2).unwrap();
        assert!(ranges(&mut parts).is_empty());
        parts.remove();
        assert!(!tmp.path().join("o.parts").exists());
    }

    #[test]
    fn what_other_workers_finished_counts_and_rank_0_takes_along_what_nobody_else_would() {
        let tmp = tempfile::tempdir().unwrap();
        for (rank, range) in [(0, 0..2), (1, 2..4), (2, 4..6)] {
            put(&mut Parts::open(Some(&options(tmp.path(), false, "2")), rank, 3).unwrap(), range);
        }
        // Two workers go on where three were.
        let mut first = Parts::open(Some(&options(tmp.path(), true, "2")), 0, 2).unwrap();
        assert!([0..2, 2..4, 4..6].iter().all(|b| first.has(b)) && !first.has(&(6..8)));
        assert_eq!(ranges(&mut first), [0..2, 4..6]);
        let mut second = Parts::open(Some(&options(tmp.path(), true, "2")), 1, 2).unwrap();
        assert_eq!(ranges(&mut second).first(), Some(&(2..4)));
        assert_eq!(second.own(), 1);
    }

    #[test]
    fn parts_of_another_job_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        drop(Parts::open(Some(&options(tmp.path(), false, "2")), 0, 1).unwrap());
        let Err(error) = Parts::open(Some(&options(tmp.path(), true, "3")), 0, 1) else { panic!("another batch") };
        assert!(error.to_string().contains("batch was \"2\" and is \"3\""), "{error}");
    }

    #[test]
    fn without_a_folder_parts_are_in_memory() {
        let mut parts = Parts::open(None, 0, 1).unwrap();
        put(&mut parts, 0..3);
        put(&mut parts, 3..4);
        assert_eq!(ranges(&mut parts), [0..3, 3..4]);
    }
}
