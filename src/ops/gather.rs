//! Ops that pick elements by index. An index counts from the end where it is negative and is checked against its range.

use super::movement::{Cell, Movement, Take, moved};
use super::util::{axis, for_each_chunk, position, product};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, one};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{DType, Shape, Tensor, cast, fits_memory, strides};

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Gather", &[1, 11, 13]).inputs(2, 2).attrs(&["axis"]).kernel(gather).infer(infer_gather),
    OpDef::new("GatherElements", &[11, 13]).inputs(2, 2).attrs(&["axis"]).kernel(gather_elements).infer(infer_gather_elements),
    OpDef::new("GatherND", &[11, 12, 13]).inputs(2, 2).attrs(&["batch_dims"]).kernel(gather_nd).infer(infer_gather_nd),
    OpDef::new("OneHot", &[9, 11, 28]).inputs(3, 3).attrs(&["axis"]).kernel(one_hot).infer(infer_one_hot),
];

/// An index out of range, told in full.
pub(super) fn out_of_range<T>(index: i64, at: usize, n: usize) -> Result<T, OpError> {
    invalid!("index {index} at position {at} is out of range for {n} positions: expected -{n}..{n}")
}

/// Positions of indices along a dim of `n`.
pub(super) fn positions(indices: &Tensor, n: usize) -> Result<Vec<usize>, OpError> {
    if !matches!(indices.dtype(), DType::I32 | DType::I64) {
        invalid!("indices must be int32 or int64, found {}", indices.dtype());
    }
    let one = |(i, &index): (usize, &i64)| position(index, n).map_or_else(|| out_of_range(index, i, n), Ok);
    indices.to_i64s()?.iter().enumerate().map(one).collect()
}

fn gather(cx: &OpCtx) -> Result<Kernel, OpError> {
    let at = cx.attrs.int_or("axis", 0)?;
    Ok(Box::new(move |args: Args| one(take(args.tensor(0)?, args.tensor(1)?, at)?)))
}

/// The slices of `data` along an axis that `indices` names; its dims stand where the axis was.
///
/// # Errors
/// An index or axis out of range, indices that are no `int32` or `int64`.
pub fn take(data: &Tensor, indices: &Tensor, at: i64) -> Result<Tensor, OpError> {
    let at = axis(at, data.rank())?;
    let dim = data.shape()[at];
    let ids = positions(indices, dim)?;
    let shape: Shape = [&data.shape()[..at], &indices.shape()[..], &data.shape()[at + 1..]].concat().into();
    moved(&Take { block: product(&data.shape()[at + 1..]), dim, ids: &ids }, &[data], shape)
}

fn infer_gather(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let (Some(data), Some(indices)) = (cx.shape(0), cx.shape(1)) else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    let at = axis(cx.op.attrs.int_or("axis", 0)?, data.len())?;
    let fact = Fact::partial(cx.dtype(0), Some([&data[..at], indices, &data[at + 1..]].concat()));
    if let (Some(n), Some(ids)) = (data[at].known(), cx.ints(1))
        && let Some(id) = ids.iter().find(|&&i| position(i, n).is_none())
    {
        invalid!("index {id} is out of range for {n} positions");
    }
    let picked = match (cx.dims(0), cx.known(1)) {
        (Some(elements), Some(ids)) if data.len() == 1 && indices.len() < 2 => {
            ids.iter().map(|&i| position(i, elements.len()).map(|p| elements[p].clone())).collect::<Option<Vec<_>>>()
        }
        _ => None,
    };
    Ok(vec![match picked {
        Some(dims) => fact.with_dims(dims),
        None => fact,
    }])
}

/// For each element of `indices`, the element's place in a tensor of dims `data` that equals its own place but along `at`.
pub(super) fn element_places(data: &[usize], indices: &Tensor, at: i64) -> Result<Vec<usize>, OpError> {
    let at = axis(at, data.len())?;
    let shape = indices.shape();
    if shape.len() != data.len() {
        invalid!("indices must have rank {}, found {shape}", data.len());
    }
    if let Some(d) = (0..data.len()).find(|&d| d != at && shape[d] > data[d]) {
        invalid!("dim {d} of indices {shape} is greater than that of the data {}", Shape::from(data));
    }
    let mut places = positions(indices, data[at])?;
    let (by, index_by) = (strides(data), strides(shape));
    for (i, place) in places.iter_mut().enumerate() {
        let own: usize = (0..data.len()).filter(|&d| d != at).map(|d| i / index_by[d] % shape[d] * by[d]).sum();
        *place = own + *place * by[at];
    }
    Ok(places)
}

/// The elements of `data` at places that differ from those of `indices` along one axis alone, as GatherElements.
///
/// # Errors
/// An index or axis out of range, dims that do not fit.
pub fn take_elements(data: &Tensor, indices: &Tensor, at: i64) -> Result<Tensor, OpError> {
    let ids = element_places(data.shape(), indices, at)?;
    moved(&Take { block: 1, dim: data.len(), ids: &ids }, &[data], indices.shape())
}

fn gather_elements(cx: &OpCtx) -> Result<Kernel, OpError> {
    let at = cx.attrs.int_or("axis", 0)?;
    Ok(Box::new(move |args: Args| one(take_elements(args.tensor(0)?, args.tensor(1)?, at)?)))
}

fn infer_gather_elements(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    if let (Some(a), Some(b)) = (cx.rank(0), cx.rank(1))
        && a != b
    {
        invalid!("indices must have rank {a}, found {b}");
    }
    Ok(vec![Fact::partial(cx.dtype(0), cx.shape(1).map(<[Dim]>::to_vec))])
}

/// The numbers of the blocks that the last axis of `indices` names, where `data` are the dims that it indexes.
pub(super) fn tuple_places(data: &[usize], indices: &Tensor) -> Result<Vec<usize>, OpError> {
    let Some(&width) = indices.shape().last() else { invalid!("indices must have rank 1 or more") };
    if width > data.len() {
        invalid!("indices name {width} axes, but the data has {}", data.len());
    }
    if !matches!(indices.dtype(), DType::I32 | DType::I64) {
        invalid!("indices must be int32 or int64, found {}", indices.dtype());
    }
    let by = strides(&data[..width]);
    let list = indices.to_i64s()?;
    let tuples = product(&indices.shape()[..indices.rank() - 1]);
    if width == 0 {
        if !fits_memory(tuples.saturating_mul(size_of::<usize>())) {
            invalid!("indices {} do not fit memory", indices.shape());
        }
        return Ok(vec![0; tuples]);
    }
    let one = |(i, tuple): (usize, &[i64])| {
        tuple.iter().enumerate().try_fold(0, |place, (k, &index)| match position(index, data[k]) {
            Some(p) => Ok(usize::wrapping_add(place, p.wrapping_mul(by[k]))),
            None => out_of_range(index, i * width + k, data[k]),
        })
    };
    list.chunks_exact(width).enumerate().map(one).collect()
}

fn gather_nd(cx: &OpCtx) -> Result<Kernel, OpError> {
    let batch = cx.attrs.int_or("batch_dims", 0)?;
    Ok(Box::new(move |args: Args| {
        let (data, indices) = (args.tensor(0)?, args.tensor(1)?);
        let batch = match usize::try_from(batch) {
            Ok(b) if b < data.rank().min(indices.rank()) => b,
            _ => invalid!("batch_dims {batch} is out of range for ranks {} and {}", data.rank(), indices.rank()),
        };
        if data.shape()[..batch] != indices.shape()[..batch] {
            invalid!("the first {batch} dims of {} and {} must be equal", data.shape(), indices.shape());
        }
        let mut places = tuple_places(&data.shape()[batch..], indices)?;
        let width = indices.shape()[indices.rank() - 1];
        let (batches, blocks) = (product(&data.shape()[..batch]), product(&data.shape()[batch..batch + width]));
        let per = places.len().checked_div(batches).unwrap_or(0);
        places.iter_mut().enumerate().for_each(|(i, p)| *p = p.wrapping_add((i / per.max(1)).wrapping_mul(blocks)));
        let rest = &data.shape()[batch + width..];
        let shape = [&indices.shape()[..indices.rank() - 1], rest].concat();
        one(moved(&Take { block: product(rest), dim: batches.wrapping_mul(blocks), ids: &places }, &[data], shape)?)
    }))
}

fn infer_gather_nd(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let batch = usize::try_from(cx.op.attrs.int_or("batch_dims", 0)?).unwrap_or(usize::MAX);
    let dims = match (cx.shape(0), cx.shape(1)) {
        (Some(data), Some([outer @ .., width])) => match width.known() {
            Some(w) => match batch.checked_add(w).and_then(|from| data.get(from..)) {
                Some(rest) => Some([outer, rest].concat()),
                None => invalid!("indices name {w} axes after {batch} batch dims, but the data has {}", data.len()),
            },
            None => None,
        },
        _ => None,
    };
    Ok(vec![Fact::partial(cx.dtype(0), dims)])
}

/// The second element of the source where an index names the position along the new axis, else the first.
struct Hot {
    ids: Vec<Option<usize>>,
    depth: usize,
    inner: usize,
}

impl Movement for Hot {
    fn run<T: Cell>(&self, src: &[&[T]], out: &mut [T]) {
        let (off, on) = (&src[0][0], &src[0][1]);
        for_each_chunk(out, self.depth * self.inner, |o, out| {
            out.fill(off.clone());
            for (i, id) in self.ids[o * self.inner..(o + 1) * self.inner].iter().enumerate() {
                if let Some(id) = id {
                    out[id * self.inner + i] = on.clone();
                }
            }
        });
    }
}

fn one_hot(cx: &OpCtx) -> Result<Kernel, OpError> {
    let at = cx.attrs.int_or("axis", -1)?;
    Ok(Box::new(move |args: Args| {
        let (indices, values) = (args.tensor(0)?, args.tensor(2)?);
        let depth = cast(args.tensor(1)?, DType::I64)?;
        let depth = match depth.as_slice::<i64>()? {
            [d] if (0..=i64::from(u32::MAX)).contains(d) => *d as usize,
            other => invalid!("depth must be one number from 0 on, found {other:?}"),
        };
        if values.len() != 2 {
            invalid!("values must be [off, on], found shape {}", values.shape());
        }
        let at = axis(at, indices.rank() + 1)?;
        let ids = cast(indices, DType::I64)?.to_i64s()?.into_iter().map(|i| position(i, depth)).collect();
        let mut shape = indices.shape().clone();
        shape.insert(at, depth);
        one(moved(&Hot { ids, depth, inner: product(&indices.shape()[at..]) }, &[values], shape)?)
    }))
}

fn infer_one_hot(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let depth = match cx.constant(1).and_then(|c| cast(c, DType::I64).ok()?.item::<i64>().ok()) {
        Some(d) => usize::try_from(d).map_or(Dim::Unknown, Dim::Known),
        None => cx.dims(1).and_then(|d| d.first().cloned()).unwrap_or(Dim::Unknown),
    };
    let dims = match cx.shape(0) {
        Some(s) => {
            let mut dims = s.to_vec();
            dims.insert(axis(cx.op.attrs.int_or("axis", -1)?, s.len() + 1)?, depth);
            Some(dims)
        }
        None => None,
    };
    Ok(vec![Fact::partial(cx.dtype(2), dims)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;

    fn ints(shape: &[usize], v: &[i64]) -> Tensor {
        Tensor::new(shape, v.to_vec()).unwrap()
    }

    #[test]
    fn gather_takes_rows_and_counts_from_the_end() {
        let data = ints(&[3, 2], &[1, 2, 3, 4, 5, 6]);
        let ids = ints(&[1, 2], &[-1, 0]);
        assert_eq!(run("Gather", 13, Attrs::new(), &[data.clone(), ids.clone()]).unwrap(), ints(&[1, 2, 2], &[5, 6, 1, 2]));
        let columns = run("Gather", 13, Attrs::new().with("axis", 1), &[data.clone(), ints(&[], &[1])]).unwrap();
        assert_eq!(columns, ints(&[3], &[2, 4, 6]));
        let e = run("Gather", 13, Attrs::new(), &[data, ints(&[2], &[0, 3])]).unwrap_err();
        assert_eq!(e.to_string(), "index 3 at position 1 is out of range for 3 positions: expected -3..3");
    }

    #[test]
    fn gather_reads_mapped_and_packed_tables() {
        let bytes = bytes::Bytes::from((0..25u8).collect::<Vec<_>>()).slice(1..);
        let table = Tensor::from_bytes(DType::F32, [3, 2], bytes).unwrap();
        let row = run("Gather", 13, Attrs::new(), &[table, ints(&[1], &[2])]).unwrap();
        assert_eq!(row.bytes().unwrap(), (17..25).collect::<Vec<u8>>());
        let table = Tensor::from_vec_as(DType::U4, [2, 2], vec![0x21u8, 0x43]).unwrap();
        let both = run("Gather", 13, Attrs::new(), &[table.clone(), ints(&[2], &[1, 1])]).unwrap();
        assert_eq!(both.to_i64s().unwrap(), [3, 4, 3, 4]);
        let columns = run("Gather", 13, Attrs::new().with("axis", 1), &[table, ints(&[1], &[1])]).unwrap();
        assert_eq!(columns.to_i64s().unwrap(), [2, 4]);
    }

    #[test]
    fn gather_of_an_empty_table_takes_nothing() {
        let table = ints(&[0, 3], &[]);
        assert_eq!(run("Gather", 13, Attrs::new(), &[table.clone(), ints(&[0], &[])]).unwrap().shape().to_i64s(), [0, 3]);
        assert!(run("Gather", 13, Attrs::new(), &[table, ints(&[1], &[0])]).is_err());
    }

    #[test]
    fn elements_and_tuples_are_picked() {
        let data = ints(&[2, 2], &[1, 2, 3, 4]);
        let picked = run("GatherElements", 13, Attrs::new().with("axis", 1), &[data.clone(), ints(&[2, 1], &[-1, 0])]).unwrap();
        assert_eq!(picked, ints(&[2, 1], &[2, 3]));
        let picked = run("GatherND", 13, Attrs::new(), &[data.clone(), ints(&[2, 2], &[0, 0, 1, -1])]).unwrap();
        assert_eq!(picked, ints(&[2], &[1, 4]));
        let batched = run("GatherND", 13, Attrs::new().with("batch_dims", 1), &[data.clone(), ints(&[2, 1], &[1, 0])]).unwrap();
        assert_eq!(batched, ints(&[2], &[2, 3]));
        assert!(run("GatherND", 13, Attrs::new(), &[data, ints(&[1, 2], &[0, i64::MIN])]).is_err());
    }

    #[test]
    fn one_hot_leaves_indices_out_of_range_off() {
        let values = Tensor::vector(vec![0u8, 9]);
        let out = run("OneHot", 11, Attrs::new(), &[ints(&[3], &[1, -3, 3]), Tensor::scalar(3f32), values]).unwrap();
        assert_eq!(out, Tensor::new([3, 3], vec![0u8, 9, 0, 9, 0, 0, 0, 0, 0]).unwrap());
    }
}
