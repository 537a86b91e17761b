//! Where the elements of constants go when a model is written: inside it, or to a file beside it.

use super::external::ExternalPlace;
use crate::files::FileWriter;
use crate::ir::{self, Constant};
use crate::tensor::{Tensor, release};
use bytes::Bytes;
use std::io::{self, Seek, Write};
use std::ops::Range;

/// External data lies on page boundaries.
const PAGE: u64 = 4096;

/// Elements of constants that a model names but does not hold, by what [`Tensor::absent_place`] says. Written with them, the
/// model holds them again.
pub trait Elements {
    /// Whether those of `place` are here.
    fn has(&self, place: &str) -> bool;

    /// All of them, for a constant that stays inside the model.
    ///
    /// # Errors
    /// Those of wherever they are.
    fn bytes(&self, place: &str) -> io::Result<Bytes>;

    /// Writes them one after the other, for a constant that goes outside.
    ///
    /// # Errors
    /// Those of wherever they are, and of `out`.
    fn write(&self, place: &str, out: &mut dyn Write) -> io::Result<()>;
}

/// None: what is absent stays so.
pub(super) struct Nowhere;

impl Elements for Nowhere {
    fn has(&self, _: &str) -> bool {
        false
    }

    fn bytes(&self, _: &str) -> io::Result<Bytes> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn write(&self, _: &str, _: &mut dyn Write) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Bytes of a constant, if it has any, here or elsewhere.
pub(super) fn length(tensor: &Tensor, elements: &dyn Elements) -> usize {
    match tensor.absent_place() {
        Some(place) if elements.has(place) => tensor.dtype().byte_len(tensor.shape()).unwrap_or(0),
        _ => tensor.bytes().map_or(0, <[u8]>::len),
    }
}

/// Puts constants of a model into its external file; says where.
pub(super) trait Place {
    fn place(&mut self, constant: &Constant) -> Option<ExternalPlace>;

    /// What stays inside although the model does not hold it.
    fn bytes(&mut self, _place: &str) -> io::Result<Option<Bytes>> {
        Ok(None)
    }
}

/// Everything stays inside.
pub(super) struct Inside;

impl Place for Inside {
    fn place(&mut self, _: &Constant) -> Option<ExternalPlace> {
        None
    }
}

/// Which constants go to a file of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum External {
    /// Those that were in one, and all large ones of a model that has more than this many bytes inside.
    Keep(u64),
    /// All large ones of a model that has more than this many bytes in all, else none.
    Above(u64),
    /// Each of at least this many bytes.
    Each(u64),
}

/// One external file beside the model.
pub(super) struct Outside<'a> {
    location: String,
    keep: bool,
    /// Whether constants that were inside go out too, and from how many bytes on.
    least: Option<usize>,
    end: u64,
    /// Where each begins and ends.
    parts: Vec<(Range<u64>, Part)>,
    elements: &'a dyn Elements,
}

enum Part {
    Here(Bytes),
    /// The place of absent ones.
    Elsewhere(String),
}

impl<'a> Outside<'a> {
    pub(super) fn new(location: &str, keep: bool, least: Option<usize>, elements: &'a dyn Elements) -> Self {
        Self { location: location.to_owned(), keep, least, end: 0, parts: Vec::new(), elements }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes of the file.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn write(&self, file: &mut FileWriter) -> io::Result<()> {
        for (at, part) in &self.parts {
            let gap = at.start.saturating_sub(file.stream_position()?);
            file.write_all(&vec![0; gap as usize])?;
            match part {
                Part::Here(bytes) => raw_data(file, bytes)?,
                Part::Elsewhere(place) => self.elements.write(place, file)?,
            }
            let end = file.stream_position()?;
            if end != at.end {
                return Err(io::Error::other(format!("expected bytes {} to {}, they end at {end}", at.start, at.end)));
            }
        }
        Ok(())
    }
}

impl Place for Outside<'_> {
    fn place(&mut self, constant: &Constant) -> Option<ExternalPlace> {
        let external = self.keep && matches!(constant.encoding, ir::Encoding::External(_));
        let part = match constant.tensor.absent_place() {
            Some(place) if self.elements.has(place) => Part::Elsewhere(place.to_owned()),
            _ => Part::Here(constant.tensor.shared_bytes()?),
        };
        let length = length(&constant.tensor, self.elements);
        if !(external || self.least.is_some_and(|least| length >= least)) {
            return None;
        }
        // Where the file keeps its name and its order, a part keeps its place.
        if let ir::Encoding::External(entries) = &constant.encoding
            && let Ok(place) = ExternalPlace::parse(entries.clone())
            && place.location == self.location
            && place.offset >= self.end
            && place.offset - self.end <= PAGE * 16
        {
            self.end = place.offset + length as u64;
            self.parts.push((place.offset..self.end, part));
            return Some(place);
        }
        let offset = self.end.next_multiple_of(if length >= PAGE as usize { PAGE } else { 64 });
        self.end = offset + length as u64;
        let place = ExternalPlace::new(self.location.clone(), offset, length as u64);
        self.parts.push((offset..self.end, part));
        Some(place)
    }

    fn bytes(&mut self, place: &str) -> io::Result<Option<Bytes>> {
        self.elements.has(place).then(|| self.elements.bytes(place)).transpose()
    }
}

/// Writes elements; the pages of mapped ones are given back behind, so that memory stays bounded.
pub(super) fn raw_data(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    bytes.chunks(8 << 20).try_for_each(|chunk| {
        out.write_all(chunk)?;
        release(chunk);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::onnx::{save_with, write::to_bytes};
    use crate::formats::{load, onnx::save};
    use crate::ir::print_model;
    use std::path::Path;

    /// Every tensor by the name of its parameter, and one byte less of those that are cut.
    struct Held {
        tensors: Vec<(String, Bytes)>,
        cut: bool,
    }

    impl Held {
        fn of(&self, place: &str) -> Option<Bytes> {
            let (_, bytes) = self.tensors.iter().find(|(name, _)| name == place)?;
            Some(bytes.slice(usize::from(self.cut)..))
        }
    }

    impl Elements for Held {
        fn has(&self, place: &str) -> bool {
            self.of(place).is_some()
        }

        fn bytes(&self, place: &str) -> io::Result<Bytes> {
            self.of(place).ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn write(&self, place: &str, out: &mut dyn Write) -> io::Result<()> {
            self.bytes(place)?.chunks(100).try_for_each(|part| out.write_all(part))
        }
    }

    #[test]
    fn what_a_model_does_not_hold_is_written_where_it_would_be() {
        let whole = load(Path::new("models/widedeep_ts11/model.onnx")).unwrap();
        let (mut hollow, mut held) = (whole.clone(), Held { tensors: Vec::new(), cut: false });
        hollow.map_constants(&mut |name, c| {
            if let Some(bytes) = c.tensor.shared_bytes().filter(|b| b.len() > 500) {
                held.tensors.push((name.to_owned(), bytes));
                c.tensor = Tensor::absent(c.tensor.dtype(), c.tensor.shape().clone(), name);
            }
        });
        assert!(held.tensors.len() > 3);
        let files = |write: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("m.onnx");
            write(&path);
            assert_eq!(print_model(&load(&path).unwrap()), print_model(&whole));
            [&path, &path.with_extension("onnx.data")].map(|p| std::fs::read(p).ok())
        };
        for external in [External::Keep(1 << 30), External::Above(0), External::Each(600)] {
            let expected = files(&|path| drop(save(&whole, path, external).unwrap()));
            let found = files(&|path| drop(save_with(&hollow, path, external, &held).unwrap()));
            assert!(found == expected, "{external:?}");
        }
        // Without them it stays hollow.
        assert!(to_bytes(&hollow).unwrap().len() < to_bytes(&whole).unwrap().len());

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        held.cut = true;
        let inside = save_with(&hollow, &path, External::Keep(1 << 30), &held).unwrap_err();
        assert!(inside.to_string().contains("tensor"), "{inside}");
        let outside = save_with(&hollow, &path, External::Each(600), &held).unwrap_err();
        assert!(outside.to_string().contains("expected bytes"), "{outside}");
    }
}
