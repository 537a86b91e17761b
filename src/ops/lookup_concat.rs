//! Lookups whose rows are joined side by side, in one pass: each row goes straight to its place. This is how recommenders
//! make the input of their dense part from many columns of ids.

use super::fused::Sequence;
use super::{Args, Kernel, OpError, one, util};
use crate::tensor::{DType, LINE, Shape, Tensor, prefetch};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Elements of a task.
const GRAIN: usize = 16 * 1024;

/// Where a part of the row of a sample comes from. Numbers are those of the inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A value as it is.
    Plain(usize),
    /// The row of a table that an id names.
    Lookup {
        /// The table, `[rows, width]`.
        table: usize,
        /// The ids: one per sample, or `[samples, columns]` of which `column` is taken.
        ids: usize,
        /// The column, if the ids have some; negative ones count from the end.
        column: Option<i64>,
    },
}

/// A part of the row of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) source: Source,
    /// Whether a dim of 1 is put in at axis 1.
    pub(crate) unsqueezed: bool,
}

/// The ids of a part.
#[derive(Clone, Copy)]
enum Ids<'a> {
    Long(&'a [i64]),
    Short(&'a [i32]),
}

/// A part as it is read: bytes of a sample, and where they lie.
enum Read<'a> {
    Plain(&'a [u8]),
    Lookup(Lookup<'a>),
}

/// Rows of a table.
struct Lookup<'a> {
    table: &'a [u8],
    rows: i64,
    ids: Ids<'a>,
    columns: usize,
    column: usize,
}

impl Lookup<'_> {
    /// Where the row of a sample begins, of `size` bytes; `None` if there is none of its id.
    #[inline(always)]
    fn at(&self, sample: usize, size: usize) -> Option<usize> {
        let i = sample * self.columns + self.column;
        let id = match self.ids {
            Ids::Long(ids) => ids[i],
            Ids::Short(ids) => i64::from(ids[i]),
        };
        let row = if id < 0 { id.wrapping_add(self.rows) } else { id };
        (0..self.rows).contains(&row).then_some(row as usize * size)
    }

    /// Where the rows of `count` samples from `first` on begin, of `size` bytes each; false if there is none of an id. The memory is
    /// asked for them, unless they are so short that to read them is as little work.
    fn locate(&self, first: usize, count: usize, size: usize, places: &mut Vec<usize>) -> bool {
        places.clear();
        for sample in first..first + count {
            let Some(at) = self.at(sample, size) else { return false };
            if size >= LINE {
                prefetch(self.table.get(at..at + size).unwrap_or_default());
            }
            places.push(at);
        }
        true
    }
}

/// The kernel of a Concat along axis 1 of such parts. Anything out of the ordinary goes the way of the nodes themselves.
pub(crate) fn kernel(parts: Vec<Part>, nodes: Sequence) -> Kernel {
    Box::new(move |args| match joined(&parts, &args)? {
        Some(y) => one(y),
        None => nodes.run(&args),
    })
}

fn joined(parts: &[Part], args: &Args) -> Result<Option<Tensor>, OpError> {
    let mut reads = Vec::with_capacity(parts.len());
    let mut shape: Option<Shape> = None;
    for part in parts {
        let Some((read, own)) = open(part, args)? else { return Ok(None) };
        match &mut shape {
            None => shape = Some(own.clone()),
            Some(all) if all.len() == own.len() && all[0] == own[0] && all[2..] == own[2..] => all[1] += own[1],
            Some(_) => return Ok(None),
        }
        reads.push((read, util::product(&own[1..]) * size_of::<f32>()));
    }
    let Some(shape) = shape.filter(|s| util::checked_product(s).is_ok_and(|n| n > 0)) else { return Ok(None) };
    let mut out = util::room::<f32>(&shape)?;
    let width = util::product(&shape[1..]);
    let samples = (GRAIN / width).max(1);
    let wrong = AtomicBool::new(false);
    util::for_each_chunk(&mut out, samples * width, |chunk, block| {
        let block: &mut [u8] = bytemuck::cast_slice_mut(block);
        let count = block.len() / (width * size_of::<f32>());
        // The rows of a part are asked for while those of the one before are copied.
        let locate = |part: usize, places: &mut Vec<usize>| match reads.get(part) {
            Some((Read::Lookup(lookup), size)) => lookup.locate(chunk * samples, count, *size, places),
            _ => true,
        };
        let (mut places, mut next, mut offset) = (Vec::with_capacity(count), Vec::with_capacity(count), 0);
        let mut there = locate(0, &mut next);
        for (i, (read, size)) in reads.iter().enumerate() {
            std::mem::swap(&mut places, &mut next);
            let place = Place { stride: width * size_of::<f32>(), offset, size: *size };
            if !std::mem::replace(&mut there, locate(i + 1, &mut next)) || !fill(read, chunk * samples, &places, block, place) {
                wrong.store(true, Relaxed);
            }
            offset += size;
        }
    });
    // The nodes themselves say which id is out of range.
    Ok(if wrong.into_inner() { None } else { Some(Tensor::new(shape, out)?) })
}

fn open<'a>(part: &Part, args: &'a Args) -> Result<Option<(Read<'a>, Shape)>, OpError> {
    let (read, mut shape) = match &part.source {
        Source::Plain(i) => {
            let t = args.tensor(*i)?;
            let Some(bytes) = t.bytes().filter(|_| t.dtype() == DType::F32) else { return Ok(None) };
            (Read::Plain(bytes), t.shape().clone())
        }
        Source::Lookup { table, ids, column } => {
            let (table, t) = (args.tensor(*table)?, args.tensor(*ids)?);
            let (&[rows, width], Some(bytes)) = (&table.shape()[..], table.bytes().filter(|_| table.dtype() == DType::F32)) else {
                return Ok(None);
            };
            let ids = match t.dtype() {
                DType::I64 => Ids::Long(t.as_slice()?),
                DType::I32 => Ids::Short(t.as_slice()?),
                _ => return Ok(None),
            };
            let (columns, column, mut shape) = match (column, &t.shape()[..]) {
                (None, _) => (1, 0, t.shape().clone()),
                (Some(c), &[samples, columns]) => {
                    let Some(c) = util::position(*c, columns) else { return Ok(None) };
                    (columns, c, Shape::from([samples]))
                }
                _ => return Ok(None),
            };
            shape.push(width);
            (Read::Lookup(Lookup { table: bytes, rows: rows as i64, ids, columns, column }), shape)
        }
    };
    if part.unsqueezed && !shape.is_empty() {
        shape = Shape::from_dims([shape[0], 1].into_iter().chain(shape[1..].iter().copied()));
    }
    // One id per sample: ids of more would be a longer part.
    let one_id = match &read {
        Read::Lookup(Lookup { table, rows, .. }) => {
            util::product(shape.get(1..).unwrap_or(&[])) * size_of::<f32>() * (*rows as usize) == table.len()
        }
        Read::Plain(_) => true,
    };
    Ok((shape.len() >= 2 && one_id).then_some((read, shape)))
}

/// Where the bytes of a part stand in a block of rows.
#[derive(Clone, Copy)]
struct Place {
    stride: usize,
    offset: usize,
    size: usize,
}

/// Fills a part of the rows from sample `first` on, whose rows of a table begin at `places`; false if they do not lie in it.
fn fill(read: &Read, first: usize, places: &[usize], block: &mut [u8], place: Place) -> bool {
    let Place { stride, offset, size } = place;
    match read {
        Read::Plain(bytes) => {
            for (row, from) in block.chunks_exact_mut(stride).zip(bytes[first * size..].chunks_exact(size)) {
                row[offset..offset + size].copy_from_slice(from);
            }
            true
        }
        Read::Lookup(Lookup { table, .. }) => match size {
            4 => copy::<4>(table, places, block, place),
            32 => copy::<32>(table, places, block, place),
            64 => copy::<64>(table, places, block, place),
            128 => copy::<128>(table, places, block, place),
            256 => copy::<256>(table, places, block, place),
            _ => block.chunks_exact_mut(stride).zip(places).all(|(row, &from)| {
                let from = table.get(from..from + size);
                from.map(|from| row[offset..offset + size].copy_from_slice(from)).is_some()
            }),
        },
    }
}

/// A size that is known when the loop is compiled makes each copy a few moves.
fn copy<const N: usize>(table: &[u8], places: &[usize], block: &mut [u8], place: Place) -> bool {
    block.chunks_exact_mut(place.stride).zip(places).all(|(row, &from)| {
        let from = table.get(from..).and_then(|t| t.first_chunk::<N>());
        let to = row.get_mut(place.offset..).and_then(|r| r.first_chunk_mut::<N>());
        from.zip(to).map(|(from, to)| *to = *from).is_some()
    })
}
