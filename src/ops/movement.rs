//! Movement of elements that nobody looks at: one instantiation per element width, strings apart. Bytes are read on any
//! alignment, so that mapped tables need no copy.

use super::OpError;
use super::util::for_each_chunk;
use crate::invalid;
use crate::tensor::{
    AHEAD, Complex32, Complex64, DType, Element, LINE, Shape, Tensor, TensorError, checked_len, fits_memory, pack_bits, prefetch, strides,
    unpack_bits,
};
use bytemuck::Pod;

/// An element as it is moved: its bytes, or a string. The default is zero in every dtype.
pub trait Cell: Clone + Default + Send + Sync {}
impl Cell for [u8; 1] {}
impl Cell for [u8; 2] {}
impl Cell for [u8; 4] {}
impl Cell for [u8; 8] {}
impl Cell for [u8; 16] {}
impl Cell for String {}

/// A way to fill a tensor with elements of others.
pub trait Movement: Sync + Sized {
    /// Whether it writes each element.
    const WHOLE: bool = false;

    /// Fills `out`, which starts as zeros (or as anything, if the movement is whole) and is not empty.
    fn run<T: Cell>(&self, src: &[&[T]], out: &mut [T]);

    /// The same movement over packed bytes of `per` elements each, where it keeps bytes whole.
    fn packed(&self, _per: usize) -> Option<Self> {
        None
    }
}

/// A tensor of `shape` that `movement` fills from `src`; all of one dtype, at least one.
///
/// # Errors
/// Dtypes that differ, a stand-in without elements, a shape that does not fit memory.
pub fn moved<M: Movement>(movement: &M, src: &[&Tensor], shape: impl Into<Shape>) -> Result<Tensor, OpError> {
    let shape = shape.into();
    let Some(first) = src.first() else { invalid!("no input") };
    let dtype = first.dtype();
    if let Some(other) = src.iter().find(|t| t.dtype() != dtype) {
        invalid!("inputs must have one dtype, found {dtype} and {}", other.dtype());
    }
    match dtype {
        DType::String => {
            let mut out = Vec::new();
            let len = checked_len(&shape).ok_or_else(|| too_large(&shape))?;
            if len.checked_mul(size_of::<String>()).is_none_or(|b| !fits_memory(b)) || out.try_reserve_exact(len).is_err() {
                return Err(too_large(&shape));
            }
            out.resize(len, String::new());
            let src = src.iter().map(|t| t.as_slice::<String>()).collect::<Result<Vec<_>, _>>()?;
            if len > 0 {
                movement.run(&src, &mut out);
            }
            Ok(Tensor::new(shape, out)?)
        }
        DType::C64 => words::<Complex32, [u8; 8]>(movement, src, shape),
        DType::C128 => words::<Complex64, [u8; 16]>(movement, src, shape),
        DType::F32 if M::WHOLE => {
            let mut out = super::util::room::<f32>(&shape)?;
            let cells = src.iter().map(|t| cells::<[u8; 4]>(t)).collect::<Result<Vec<_>, _>>()?;
            if !out.is_empty() {
                movement.run(&cells, bytemuck::cast_slice_mut(&mut out));
            }
            Ok(Tensor::new(shape, out)?)
        }
        d => match d.bits() {
            8 => words::<u8, [u8; 1]>(movement, src, shape),
            16 => words::<u16, [u8; 2]>(movement, src, shape),
            32 => words::<u32, [u8; 4]>(movement, src, shape),
            64 => words::<u64, [u8; 8]>(movement, src, shape),
            bits => packed(movement, src, shape, bits),
        },
    }
}

fn too_large(shape: &Shape) -> OpError {
    OpError::Invalid(format!("shape {shape} does not fit memory"))
}

fn zeroed<W: bytemuck::Zeroable>(shape: &Shape, len: usize) -> Result<Vec<W>, OpError> {
    if len.checked_mul(size_of::<W>()).is_none_or(|b| !fits_memory(b)) {
        return Err(too_large(shape));
    }
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| too_large(shape))
}

fn cells<'a, C: Pod>(t: &'a Tensor) -> Result<&'a [C], OpError> {
    let bytes: &'a [u8] = t.bytes().ok_or(TensorError::Absent)?;
    bytemuck::try_cast_slice(bytes).map_err(|e| OpError::Invalid(e.to_string()))
}

fn words<W: Element + Pod, C: Cell + Pod>(movement: &impl Movement, src: &[&Tensor], shape: Shape) -> Result<Tensor, OpError> {
    let len = checked_len(&shape).ok_or_else(|| too_large(&shape))?;
    let mut out = zeroed::<W>(&shape, len)?;
    let cells = src.iter().map(|t| cells::<C>(t)).collect::<Result<Vec<_>, _>>()?;
    if len > 0 {
        movement.run(&cells, bytemuck::cast_slice_mut(&mut out));
    }
    Ok(Tensor::from_vec_as(src[0].dtype(), shape, out)?)
}

fn packed(movement: &impl Movement, src: &[&Tensor], shape: Shape, bits: usize) -> Result<Tensor, OpError> {
    let dtype = src[0].dtype();
    let per = 8 / bits;
    let len = checked_len(&shape).ok_or_else(|| too_large(&shape))?;
    if let Some(whole) = movement.packed(per) {
        let mut out = zeroed::<u8>(&shape, len.div_ceil(per))?;
        let cells = src.iter().map(|t| cells::<[u8; 1]>(t)).collect::<Result<Vec<_>, _>>()?;
        if len > 0 {
            whole.run(&cells, bytemuck::cast_slice_mut(&mut out));
        }
        return Ok(Tensor::from_vec_as(dtype, shape, out)?);
    }
    let codes = src
        .iter()
        .map(|t| Ok(unpack_bits(t.bytes().ok_or(TensorError::Absent)?, bits, t.len())))
        .collect::<Result<Vec<_>, TensorError>>()?;
    let codes: Vec<&[[u8; 1]]> = codes.iter().map(|c| bytemuck::cast_slice(c)).collect();
    let mut out = zeroed::<u8>(&shape, len)?;
    if len > 0 {
        movement.run(&codes, bytemuck::cast_slice_mut(&mut out));
    }
    Ok(Tensor::from_vec_as(dtype, shape, pack_bits(&out, bits))?)
}

/// A walk over the positions of some axes in row-major order, with the offset in each of `K` operands.
pub struct Walk<'a, const K: usize> {
    axes: &'a [(usize, [isize; K])],
    index: Vec<usize>,
    /// The offset in each operand.
    pub at: [isize; K],
}

impl<'a, const K: usize> Walk<'a, K> {
    /// At position `row` of `axes`, each a size and the operands' strides; none of the sizes is 0.
    pub fn new(axes: &'a [(usize, [isize; K])], start: [isize; K], mut row: usize) -> Self {
        let mut walk = Self { axes, index: vec![0; axes.len()], at: start };
        for (d, (size, strides)) in axes.iter().enumerate().rev() {
            walk.index[d] = row % size;
            row /= size;
            for (a, s) in walk.at.iter_mut().zip(strides) {
                *a += walk.index[d] as isize * s;
            }
        }
        walk
    }

    /// Goes to the next position, from the last to the first.
    pub fn step(&mut self) {
        for (d, (size, strides)) in self.axes.iter().enumerate().rev() {
            self.index[d] += 1;
            let back = self.index[d] == *size;
            for (a, s) in self.at.iter_mut().zip(strides) {
                *a += if back { -((*size - 1) as isize) * s } else { *s };
            }
            if !back {
                return;
            }
            self.index[d] = 0;
        }
    }
}

/// Rows of `len` elements that one chunk takes, so that its start is worth its cost.
pub fn rows_per_chunk(len: usize) -> usize {
    (4096 / len.max(1)).max(1)
}

/// A strided read: output position `i` is the source's element `start + Σ i[d] · stride[d]`.
struct Strided {
    start: isize,
    axes: Vec<(usize, [isize; 1])>,
}

const TILE: usize = 16;

impl Strided {
    /// Axes of size 1 dropped, axes that lie behind each other in the source joined.
    fn new(start: usize, shape: &[usize], strides: &[isize]) -> Self {
        let mut axes: Vec<(usize, [isize; 1])> = Vec::new();
        for (&size, &stride) in shape.iter().zip(strides).filter(|(size, _)| **size != 1) {
            match axes.last_mut() {
                Some((n, [s])) if *s == stride * size as isize => (*n, *s) = (*n * size, stride),
                _ => axes.push((size, [stride])),
            }
        }
        Self { start: start as isize, axes }
    }

    fn rows<T: Cell>(&self, src: &[T], out: &mut [T], len: usize, stride: isize) {
        let outer = &self.axes[..self.axes.len() - 1];
        let rows = rows_per_chunk(len);
        for_each_chunk(out, rows * len, |chunk, out| {
            let mut walk = Walk::new(outer, [self.start], chunk * rows);
            for row in out.chunks_mut(len) {
                let at = walk.at[0];
                match stride {
                    1 => row.clone_from_slice(&src[at as usize..at as usize + len]),
                    0 => row.fill(src[at as usize].clone()),
                    _ => (0..).zip(row).for_each(|(i, x)| *x = src[(at + i * stride) as usize].clone()),
                }
                walk.step();
            }
        });
    }

    /// Axis `k` runs along the source's rows and the last axis across them: tiles are read and written line by line.
    fn tiles<T: Cell>(&self, src: &[T], out: &mut [T], k: usize) {
        let (outer, inner) = (&self.axes[..k], &self.axes[k + 1..]);
        let row: usize = inner.iter().map(|a| a.0).product();
        let (mid, (len, [stride])) = (&inner[..inner.len() - 1], inner[inner.len() - 1]);
        for_each_chunk(out, self.axes[k].0 * row, |o, out| {
            let base = Walk::new(outer, [self.start], o).at[0];
            for_each_chunk(out, TILE * row, |block, out| {
                let n = out.len() / row;
                let mut tile = vec![T::default(); TILE * TILE];
                let mut walk = Walk::new(mid, [base + (block * TILE) as isize], 0);
                for m in 0..row / len {
                    for j in (0..len).step_by(TILE) {
                        let width = TILE.min(len - j);
                        for (i, t) in tile.chunks_exact_mut(TILE).take(width).enumerate() {
                            let at = (walk.at[0] + (j + i) as isize * stride) as usize;
                            t[..n].clone_from_slice(&src[at..at + n]);
                        }
                        for i in 0..n {
                            let to = i * row + m * len + j;
                            out[to..to + width].iter_mut().enumerate().for_each(|(c, x)| *x = tile[c * TILE + i].clone());
                        }
                    }
                    walk.step();
                }
            });
        });
    }
}

impl Movement for Strided {
    const WHOLE: bool = true;

    fn run<T: Cell>(&self, src: &[&[T]], out: &mut [T]) {
        let src = src[0];
        let Some(&(len, [stride])) = self.axes.last() else {
            out[0] = src[self.start as usize].clone();
            return;
        };
        match self.axes.iter().position(|a| a.1 == [1]) {
            Some(k) if k + 1 < self.axes.len() && stride > 1 => self.tiles(src, out, k),
            _ => self.rows(src, out, len, stride),
        }
    }
}

/// The elements of `t` read by strides: output position `i` is element `start + Σ i[d] · strides[d]`, which the caller
/// knows to lie inside.
///
/// # Errors
/// As [`moved`].
pub fn strided(t: &Tensor, start: usize, shape: &[usize], by: &[isize]) -> Result<Tensor, OpError> {
    let Some(len) = checked_len(shape) else { return Err(too_large(&shape.into())) };
    if len == 0 {
        return moved(&Nothing, &[t], shape);
    }
    let plan = Strided::new(start, shape, by);
    if start == 0 && len == t.len() && matches!(plan.axes[..], [] | [(_, [1])]) {
        return Ok(t.clone().reshape(shape)?);
    }
    moved(&plan, &[t], shape)
}

/// Row-major strides, signed.
pub fn signed_strides(dims: &[usize]) -> Vec<isize> {
    strides(dims).into_iter().map(|s| s as isize).collect()
}

/// Leaves zeros (or empty strings).
pub struct Nothing;

impl Movement for Nothing {
    fn run<T: Cell>(&self, _: &[&[T]], _: &mut [T]) {}

    fn packed(&self, _: usize) -> Option<Self> {
        Some(Nothing)
    }
}

/// Blocks of `block` elements by number: for each outer position `o`, the blocks `o · dim + ids[i]` of the source.
pub struct Take<'a> {
    /// Elements of a block.
    pub block: usize,
    /// Blocks of the source per outer position.
    pub dim: usize,
    /// The blocks to take, each below `dim`.
    pub ids: &'a [usize],
}

impl Movement for Take<'_> {
    const WHOLE: bool = true;

    fn run<T: Cell>(&self, src: &[&[T]], out: &mut [T]) {
        let (src, ids, block) = (src[0], self.ids, self.block);
        let per = ids.len() * block;
        if block == 1 && per != out.len() {
            for_each_chunk(out, per, |o, out| out.iter_mut().zip(ids).for_each(|(x, &id)| *x = src[o * self.dim + id].clone()));
        } else if block == 1 {
            for_each_chunk(out, 1024, |c, out| out.iter_mut().zip(&ids[c * 1024..]).for_each(|(x, &id)| *x = src[id].clone()));
        } else {
            let at = |c: usize| (c / ids.len() * self.dim + ids[c % ids.len()]) * block;
            // Up to which block those to come are asked for.
            let ask = if block * size_of::<T>() < LINE { 0 } else { (out.len() / block).saturating_sub(AHEAD) };
            for_each_chunk(out, block, |c, out| {
                if c < ask {
                    let at = at(c + AHEAD);
                    prefetch(&src[at..at + block]);
                }
                let at = at(c);
                out.clone_from_slice(&src[at..at + block]);
            });
        }
    }

    fn packed(&self, per: usize) -> Option<Self> {
        self.block.is_multiple_of(per).then(|| Self { block: self.block / per, ..*self })
    }
}

/// For each outer position, a run of each source in turn.
pub struct Join {
    /// Elements of a run, by source.
    pub runs: Vec<usize>,
}

impl Movement for Join {
    const WHOLE: bool = true;

    fn run<T: Cell>(&self, src: &[&[T]], out: &mut [T]) {
        for_each_chunk(out, self.runs.iter().sum(), |o, mut rest| {
            for (s, &run) in src.iter().zip(&self.runs) {
                let (part, tail) = rest.split_at_mut(run);
                part.clone_from_slice(&s[o * run..(o + 1) * run]);
                rest = tail;
            }
        });
    }

    fn packed(&self, per: usize) -> Option<Self> {
        self.runs.iter().all(|r| r.is_multiple_of(per)).then(|| Self { runs: self.runs.iter().map(|r| r / per).collect() })
    }
}

/// Position by position along each axis: output position `i` is the source's `maps[d][i[d]]`, or the fill (the one element
/// of a second source, else zero) where one of them is [`OUTSIDE`].
pub struct AxisMaps {
    /// Dims of the source.
    pub from: Shape,
    /// The source's position of each output position, by axis.
    pub maps: Vec<Vec<usize>>,
}

/// No position of the source.
pub const OUTSIDE: usize = usize::MAX;

impl Movement for AxisMaps {
    fn run<T: Cell>(&self, src: &[&[T]], out: &mut [T]) {
        let fill = src.get(1).map_or_else(T::default, |s| s[0].clone());
        let Some((last, outer)) = self.maps.split_last() else {
            out[0] = src[0][0].clone();
            return;
        };
        let by = strides(&self.from);
        // The longest run that is copied as it lies; the ends go element by element.
        let lo = last.windows(2).position(|w| w[0] != OUTSIDE && w[1] == w[0] + 1).unwrap_or(last.len());
        let hi = (lo..last.len()).take_while(|&i| last[i] == last[lo].wrapping_add(i - lo)).last().map_or(lo, |i| i + 1);
        for_each_chunk(out, last.len(), |row, out| {
            let mut rest = row;
            let mut at = Some(0);
            for (map, s) in outer.iter().zip(&by).rev() {
                let m = map[rest % map.len()];
                rest /= map.len();
                at = at.filter(|_| m != OUTSIDE).map(|a| usize::wrapping_add(a, m.wrapping_mul(*s)));
            }
            let Some(at) = at else { return out.fill(fill.clone()) };
            let line = &src[0][at..];
            let one = |x: &mut T, m: usize| *x = if m == OUTSIDE { fill.clone() } else { line[m].clone() };
            out[..lo].iter_mut().zip(&last[..lo]).for_each(|(x, &m)| one(x, m));
            if lo < hi {
                out[lo..hi].clone_from_slice(&line[last[lo]..last[lo] + hi - lo]);
            }
            out[hi..].iter_mut().zip(&last[hi..]).for_each(|(x, &m)| one(x, m));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(shape: &[usize]) -> Tensor {
        Tensor::new(shape, (0..shape.iter().product::<usize>() as i32).collect()).unwrap()
    }

    /// Reads `t` by strides in the plainest way.
    fn plain(t: &Tensor, start: usize, shape: &[usize], by: &[isize]) -> Vec<i32> {
        let x = t.as_slice::<i32>().unwrap();
        let s = strides(shape);
        let at = |i: usize| (0..shape.len()).fold(start as isize, |a, d| a + (i / s[d] % shape[d]) as isize * by[d]) as usize;
        (0..shape.iter().product()).map(|i| x[at(i)]).collect()
    }

    #[test]
    fn strided_reads_equal_plain_reads() {
        let t = numbers(&[6, 35, 40]);
        for (start, shape, by) in [
            (0, [35, 6, 40], [40, 1400, 1]),
            (0, [6, 40, 35], [1400, 1, 40]),
            (0, [40, 35, 6], [1, 40, 1400]),
            (0, [40, 6, 35], [1, 1400, 40]),
            (8399, [6, 35, 40], [-1400, -40, -1]),
            (3, [5, 7, 4], [0, 80, 3]),
            (0, [3, 1, 40], [1400, 9, 0]),
        ] {
            let got = strided(&t, start, &shape, &by).unwrap();
            assert_eq!(got.as_slice::<i32>().unwrap(), plain(&t, start, &shape, &by), "{shape:?} {by:?}");
        }
    }

    #[test]
    fn packed_elements_move_one_by_one_or_by_whole_bytes() {
        let t = Tensor::from_vec_as(DType::U4, [2, 2], vec![0x21u8, 0x43]).unwrap();
        let swapped = strided(&t, 0, &[2, 2], &[1, 2]).unwrap();
        assert_eq!(swapped.to_i64s().unwrap(), [1, 3, 2, 4]);
        let rows = moved(&Take { block: 2, dim: 2, ids: &[1, 0] }, &[&t], [2, 2]).unwrap();
        assert_eq!(rows.bytes().unwrap(), [0x43, 0x21]);
    }

    #[test]
    fn unaligned_bytes_are_read_in_place() {
        let bytes = bytes::Bytes::from([vec![9u8], vec![1, 0, 0, 0, 2, 0, 0, 0]].concat()).slice(1..);
        let t = Tensor::from_bytes(DType::I32, [2], bytes).unwrap();
        assert_eq!(strided(&t, 1, &[2], &[-1]).unwrap(), Tensor::vector(vec![2, 1]));
    }

    #[test]
    fn a_shape_past_memory_is_an_error() {
        let t = Tensor::scalar(1u8);
        assert!(strided(&t, 0, &[1 << 31, 1 << 31], &[0, 0]).is_err());
        assert!(strided(&t, 0, &[1 << 62, 1 << 62], &[0, 0]).is_err());
    }
}
