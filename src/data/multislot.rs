//! MultiSlot text, PaddlePaddle's format of click logs, gzipped or not: a line per sample, a slot with any number of values.
//!
//! Two forms, told apart by their first line: `count value… count value…`, a group for each slot in a known order, and
//! `slot:value slot:value …`, where a slot comes as often as it has values and what stands in front without a slot is the slot
//! `label`. A slot is read as any column of many values is.

mod lines;

use super::bound::Columns;
use super::csv::{Cells, cells};
use super::error::DataError;
use super::ragged::{Part, names};
use crate::tensor::{DType, Tensor};
use lines::Lines;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Lines in which the slots of the second form are looked for.
const LOOKED_AT: usize = 1 << 16;
/// The slot of values without one.
const LABEL: &str = "label";

/// Files of samples, one after the other.
pub struct MultiSlot {
    files: Vec<Lines>,
    slots: Vec<String>,
    /// The place of each slot.
    places: HashMap<String, usize>,
    /// Whether lines name their slots.
    named: bool,
    rows: usize,
}

impl MultiSlot {
    /// Opens files and counts their lines. `slots` are the slots of the first form.
    ///
    /// # Errors
    /// A file that cannot be read, or that is of another form than the first.
    pub fn open(paths: &[PathBuf], slots: &[String]) -> Result<Self, DataError> {
        let mut all = Self { files: Vec::new(), slots: slots.to_vec(), places: HashMap::new(), named: false, rows: 0 };
        let mut seen = BTreeSet::new();
        for path in paths {
            let (mut named, mut line) = (None, 0);
            let lines = Lines::open(path, |text| {
                line += 1;
                let mut tokens = text.split_ascii_whitespace();
                let is_named = *named.get_or_insert_with(|| text.contains(':'));
                if is_named && line <= LOOKED_AT {
                    for slot in tokens.by_ref().map(|t| t.split_once(':').map_or(LABEL, |s| s.0)) {
                        if !seen.contains(slot) {
                            seen.insert(slot.to_owned());
                        }
                    }
                }
            })?;
            let named = named.unwrap_or(all.named);
            if !all.files.is_empty() && named != all.named {
                return Err(DataError::file(path, "its lines are of another form than those of the first file"));
            }
            all.named = named;
            all.rows += lines.rows();
            all.files.push(lines);
        }
        if all.named {
            all.slots = seen.into_iter().collect();
        }
        all.places = all.slots.iter().enumerate().map(|(i, s)| (s.clone(), i)).collect();
        Ok(all)
    }

    /// The slot that a column is about.
    fn find(&self, column: &str) -> Option<(usize, Part)> {
        let place = |name: &str| self.places.get(name).copied();
        if let Some(slot) = place(column) {
            return Some((slot, Part::Dense));
        }
        let (name, part) = Part::split(column)?;
        Some((place(name)?, part))
    }

    fn column(&self, (name, dtype): (&str, Option<DType>)) -> Result<Wanted, DataError> {
        let (slot, part) = self
            .find(name)
            .ok_or_else(|| DataError::member(self.path(), name, format!("no such slot, there is {}", super::bound::listed(&self.slots))))?;
        let dtype = dtype.unwrap_or(DType::String);
        let cells = cells(dtype).map_err(|e| DataError::member(self.path(), name, e))?;
        Ok(Wanted { slot, part, dtype, cells, lengths: Vec::new() })
    }

    /// Takes one line apart.
    fn take(&self, text: &str, wanted: &mut [Wanted]) -> Result<(), (usize, String)> {
        wanted.iter_mut().for_each(|w| w.lengths.push(0));
        let mut put = |slot: usize, value: &str| {
            for w in wanted.iter_mut().filter(|w| w.slot == slot) {
                w.put(value).map_err(|what| (slot, what))?;
            }
            Ok(())
        };
        let mut tokens = text.split_ascii_whitespace();
        if self.named {
            for token in tokens {
                let (name, value) = token.split_once(':').unwrap_or((LABEL, token));
                if let Some(&slot) = self.places.get(name) {
                    put(slot, value)?;
                }
            }
            return Ok(());
        }
        for slot in 0..self.slots.len() {
            let count = tokens.next().ok_or_else(|| (slot, "the line ends before this slot".to_owned()))?;
            let count: usize = count.parse().map_err(|_| (slot, format!("expected the number of its values, found {count:?}")))?;
            for i in 0..count {
                put(slot, tokens.next().ok_or_else(|| (slot, format!("the line ends after {i} of {count} values")))?)?;
            }
        }
        let left = tokens.count();
        if left > 0 {
            return Err((self.slots.len() - 1, format!("{left} more numbers after the last slot; --slots names all slots of a line")));
        }
        Ok(())
    }
}

impl Columns for MultiSlot {
    fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |f| f.path())
    }

    fn names(&self) -> Vec<String> {
        self.slots.iter().flat_map(|s| names(s)).collect()
    }

    fn lengths(&self, names: &[&str]) -> Result<Vec<Option<usize>>, DataError> {
        Ok(names.iter().map(|_| Some(self.rows)).collect())
    }

    fn read(&self, names: &[(&str, Option<DType>)], range: Option<Range<usize>>) -> Result<Vec<Tensor>, DataError> {
        let range = range.unwrap_or(0..self.rows);
        let mut wanted = names.iter().map(|&n| self.column(n)).collect::<Result<Vec<_>, _>>()?;
        let mut first = 0;
        for file in &self.files {
            let (from, to) = (range.start.max(first), range.end.min(first + file.rows()));
            if from < to {
                file.read(from - first..to - first, |line, text| {
                    self.take(text, &mut wanted).map_err(|(slot, what)| DataError::Cell {
                        path: file.path().into(),
                        line,
                        column: self.slots[slot].clone(),
                        what,
                    })
                })?;
            }
            first += file.rows();
        }
        let finish = |(w, (name, _)): (Wanted, &(&str, Option<DType>))| {
            w.finish().map_err(|(sample, what)| DataError::member(self.path(), name, format!("sample {}: {what}", range.start + sample)))
        };
        wanted.into_iter().zip(names).map(finish).collect()
    }
}

/// A column that is asked for, as far as it is read.
struct Wanted {
    slot: usize,
    part: Part,
    dtype: DType,
    cells: Box<dyn Cells>,
    /// Values of each sample.
    lengths: Vec<usize>,
}

impl Wanted {
    fn put(&mut self, value: &str) -> Result<(), String> {
        if let Some(length) = self.lengths.last_mut() {
            *length += 1;
        }
        if !self.part.has_values() {
            return Ok(());
        }
        // Feature ids are any 64 bits; where a model takes them as int64, it takes the bits.
        let wide = (self.dtype == DType::I64).then(|| value.parse::<u64>().ok().filter(|u| *u > i64::MAX as u64)).flatten();
        match wide {
            Some(bits) => self.cells.put(&(bits as i64).to_string(), None),
            None => self.cells.put(value, None),
        }
    }

    /// The tensor, or the sample that does not fit and why.
    fn finish(self) -> Result<Tensor, (usize, String)> {
        self.part.take(&self.lengths, self.cells.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[&str], slots: &str, columns: &[(&str, DType)], range: Range<usize>) -> Result<Vec<Tensor>, String> {
        let tmp = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..files.len()).map(|i| tmp.path().join(format!("{i}.txt"))).collect();
        paths.iter().zip(files).for_each(|(p, text)| std::fs::write(p, text).unwrap());
        let slots: Vec<String> = slots.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        let columns: Vec<_> = columns.iter().map(|(n, d)| (*n, Some(*d))).collect();
        let shown = |e: DataError| e.to_string().replace(&format!("{}/", tmp.path().display()), "");
        MultiSlot::open(&paths, &slots).map_err(shown)?.read(&columns, Some(range)).map_err(shown)
    }

    #[test]
    fn counted_slots_are_read_in_their_order() {
        // Two samples: label 1, ids 10 11 12; label 0, no id. A third in the next file.
        let files = ["1 1 3 10 11 12\n1 0 0\n", "1 1 1 13\n"];
        let read = |range| {
            let columns = [("y", DType::F32), ("ids.values", DType::I64), ("ids.offsets", DType::I64), ("ids.lod", DType::I64)];
            check(&files, "y,ids", &columns, range).unwrap()
        };
        let all = read(0..3);
        assert_eq!(all[0], Tensor::vector(vec![1.0f32, 0.0, 1.0]));
        assert_eq!(all[1], Tensor::vector(vec![10i64, 11, 12, 13]));
        // Over the border of the files the second starts where the first ended.
        assert_eq!(all[2], Tensor::vector(vec![0i64, 3, 3]));
        assert_eq!(all[3], Tensor::vector(vec![0i64, 3, 3, 4]));
        assert_eq!(read(1..3)[2], Tensor::vector(vec![0i64, 0]));
    }

    #[test]
    fn named_slots_are_found_wherever_they_stand() {
        let files = ["1 101:7 102:8 102:18446744073709551615\r\n\n0 102:5 101:6\n"];
        let columns = [("label", DType::I64), ("101", DType::I64), ("102.values", DType::I64), ("102.lod", DType::I64)];
        let all = check(&files, "", &columns, 0..2).unwrap();
        assert_eq!(all[0], Tensor::vector(vec![1i64, 0]));
        assert_eq!(all[1], Tensor::vector(vec![7i64, 6]));
        assert_eq!(all[2], Tensor::vector(vec![8i64, -1, 5]), "64 bits are 64 bits");
        assert_eq!(all[3], Tensor::vector(vec![0i64, 2, 3]));
        let dense = check(&["click:0 d:0.5 d:1.5\nclick:1 d:2 d:3\n"], "", &[("d", DType::F32), ("click", DType::F32)], 0..2).unwrap();
        assert_eq!(dense[0], Tensor::new([2, 2], vec![0.5f32, 1.5, 2.0, 3.0]).unwrap());
    }

    #[test]
    fn a_gzipped_file_is_read_on_from_batch_to_batch() {
        use std::io::Write;
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("x.multislot.gz");
        let mut gz = flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
        (0..1000).for_each(|i| writeln!(gz, "a:{i}").unwrap());
        gz.finish().unwrap();
        let slots = MultiSlot::open(&[path], &[]).unwrap();
        // On, further on, back.
        for range in [10..20, 20..30, 700..701, 0..3] {
            let read = slots.read(&[("a", Some(DType::I64))], Some(range.clone())).unwrap();
            assert_eq!(read, [Tensor::vector(range.map(|i| i as i64).collect::<Vec<_>>())]);
        }
        assert_eq!(slots.lengths(&["a"]).unwrap(), [Some(1000)]);
    }

    #[test]
    fn faults_are_told_with_their_place() {
        let error = |files: &[&str], slots, column| check(files, slots, &[(column, DType::I64)], 0..2).unwrap_err();
        assert_eq!(error(&["1 1\n1 x\n"], "a", "a"), "0.txt:2: column \"a\": expected int64, found \"x\"");
        assert_eq!(error(&["1 1\n2 1\n"], "a", "a"), "0.txt:2: column \"a\": the line ends after 1 of 2 values");
        assert_eq!(error(&["1 1 1 2\n1 1\n"], "a,b", "b"), "0.txt:2: column \"b\": the line ends before this slot");
        assert!(error(&["1 1 1 2\n1 1\n"], "a", "a").contains("2 more numbers after the last slot"));
        assert!(error(&["a:1\na:1 a:2\n"], "", "a").contains("sample 1: 2 values, the samples before have 1"));
        assert!(error(&["a:1\na:1\n"], "", "b").contains("no such slot, there is a"));
        assert!(error(&["a:1\n", "1 1\n"], "", "a").contains("1.txt: its lines are of another form"));
    }
}
