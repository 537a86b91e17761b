//! Columns with any number of values per sample, and the names under which they are read: `C.values` with `C.offsets` (where
//! each sample starts, as an EmbeddingBag takes it) or `C.lod` (the same with the end, as PaddlePaddle has it); and `C` itself
//! where each sample has equally many.

use crate::tensor::{Shape, Tensor};

/// What of a column is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Dense,
    Values,
    Offsets,
    Lod,
}

/// The endings of names.
const ENDINGS: [(&str, Part); 3] = [(".values", Part::Values), (".offsets", Part::Offsets), (".lod", Part::Lod)];

impl Part {
    /// Column and part of a name that has an ending.
    pub fn split(name: &str) -> Option<(&str, Self)> {
        ENDINGS.into_iter().find_map(|(ending, part)| Some((name.strip_suffix(ending)?, part)))
    }

    /// Whether the values themselves are wanted.
    pub fn has_values(self) -> bool {
        matches!(self, Part::Dense | Part::Values)
    }

    /// The part of samples of these lengths, or the sample that does not fit and why.
    pub fn take(self, lengths: &[usize], values: Tensor) -> Result<Tensor, (usize, String)> {
        let starts = lengths.iter().scan(0, |end, len| {
            let start = *end;
            *end += *len as i64;
            Some(start)
        });
        match self {
            Part::Values => return Ok(values),
            Part::Offsets => return Ok(Tensor::vector(starts.collect::<Vec<i64>>())),
            Part::Lod => return Ok(Tensor::vector(starts.chain([lengths.iter().sum::<usize>() as i64]).collect::<Vec<i64>>())),
            Part::Dense => {}
        }
        let width = lengths.first().copied().unwrap_or(1);
        if let Some(odd) = lengths.iter().position(|&len| len != width) {
            let what = "the samples before have";
            let how = "a column of any number of values is read as .values with .offsets or .lod";
            return Err((odd, format!("{} values, {what} {width}; {how}", lengths[odd])));
        }
        if width == 1 { Ok(values) } else { values.reshape(Shape::from([lengths.len(), width])).map_err(|e| (0, e.to_string())) }
    }
}

/// A column and the names of its parts.
pub(super) fn names(column: &str) -> impl Iterator<Item = String> + '_ {
    std::iter::once(column.to_owned()).chain(ENDINGS.iter().map(move |(ending, _)| format!("{column}{ending}")))
}
