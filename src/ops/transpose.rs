//! Ops that put elements in another order or repeat them along axes.

use super::infer::{broadcast_dims, quotient, unknown_dims};
use super::movement::{Take, moved, signed_strides, strided};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, infer, one};
use crate::invalid;
use crate::ir::{Attrs, Dim};
use crate::tensor::{Shape, Tensor, broadcast_shapes};

const BLOCKS: &[&str] = &["blocksize", "mode"];

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("DepthToSpace", &[1, 11, 13, 28]).attrs(BLOCKS).kernel(depth_to_space).infer(infer_depth_to_space),
    OpDef::new("Expand", &[8, 13]).inputs(2, 2).kernel(expand).infer(infer_expand),
    OpDef::new("ReverseSequence", &[10, 28]).inputs(2, 2).attrs(&["batch_axis", "time_axis"]).kernel(reverse_sequence).infer(infer::same),
    OpDef::new("SpaceToDepth", &[1, 13, 28]).attrs(BLOCKS).kernel(space_to_depth).infer(infer_space_to_depth),
    OpDef::new("Tile", &[1, 6, 13]).inputs(2, 3).kernel(tile).infer(infer_tile),
    OpDef::new("Transpose", &[1, 13, 21, 23, 24, 25]).attrs(&["perm"]).kernel(transpose).infer(infer_transpose),
];

/// The permutation of `rank` axes that `perm` states; all reversed if it states none.
/// The axes that `perm` names, or all of them reversed.
pub(super) fn permutation(perm: Option<&[i64]>, rank: usize) -> Result<Vec<usize>, OpError> {
    let Some(perm) = perm else { return Ok((0..rank).rev().collect()) };
    let sorted = super::util::axes(perm, rank)?;
    if sorted.len() != rank {
        invalid!("perm {perm:?} must name each of {rank} axes once");
    }
    Ok(perm.iter().map(|&p| if p < 0 { p + rank as i64 } else { p } as usize).collect())
}

/// The elements of `t`, seen under dims `from`, with its axes in the order of `perm`, as `to`.
fn permuted(t: &Tensor, from: &[usize], perm: &[usize], to: impl Into<Shape>) -> Result<Tensor, OpError> {
    let by = signed_strides(from);
    let shape: Vec<usize> = perm.iter().map(|&p| from[p]).collect();
    let by: Vec<isize> = perm.iter().map(|&p| by[p]).collect();
    Ok(strided(t, 0, &shape, &by)?.reshape(to)?)
}

fn transpose(cx: &OpCtx) -> Result<Kernel, OpError> {
    let perm = cx.attrs.ints("perm")?.map(<[i64]>::to_vec);
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let perm = permutation(perm.as_deref(), data.rank())?;
        let to: Shape = perm.iter().map(|&p| data.shape()[p]).collect();
        one(permuted(data, data.shape(), &perm, to)?)
    }))
}

fn infer_transpose(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let perm = cx.op.attrs.ints("perm")?;
    let dims = match cx.shape(0) {
        Some(s) => Some(permutation(perm, s.len())?.into_iter().map(|p| s[p].clone()).collect()),
        None => perm.map(|p| unknown_dims(p.len())),
    };
    Ok(vec![Fact::partial(cx.dtype(0), dims)])
}

/// Dims that an input states.
fn to_dims(list: &[i64]) -> Result<Shape, OpError> {
    match list.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>() {
        Ok(dims) => Ok(dims.into()),
        Err(_) => invalid!("shape {list:?} has a negative dim: expected 0 or more"),
    }
}

/// `t` repeated along axes of size 1 to a shape that it broadcasts to.
pub(super) fn broadcast_to(t: &Tensor, to: &[usize]) -> Result<Tensor, OpError> {
    let by: Vec<isize> = super::util::broadcast_strides(t.shape(), to).into_iter().map(|s| s as isize).collect();
    strided(t, 0, to, &by)
}

fn expand(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| {
        let (data, target) = (args.tensor(0)?, to_dims(&args.ints(1)?)?);
        match broadcast_shapes(data.shape(), &target) {
            Some(to) => one(broadcast_to(data, &to)?),
            None => invalid!("shape {} does not expand to {target}", data.shape()),
        }
    }))
}

fn infer_expand(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let target = cx.dims(1).or_else(|| cx.vector_len(1).map(unknown_dims));
    let dims = match (cx.shape(0), target) {
        (Some(s), Some(t)) => Some(broadcast_dims(s, &t)?),
        _ => None,
    };
    Ok(vec![Fact::partial(cx.dtype(0), dims)])
}

/// The block size, and whether depth comes before the block's rows and columns (`CRD`).
fn blocks(attrs: &Attrs) -> Result<(usize, bool), OpError> {
    let crd = match attrs.string_or("mode", "DCR")? {
        "DCR" => false,
        "CRD" => true,
        other => invalid!("mode must be DCR or CRD, found {other:?}"),
    };
    match attrs.int("blocksize")? {
        Some(b) if (1..=1 << 20).contains(&b) => Ok((b as usize, crd)),
        Some(b) => invalid!("blocksize {b} is out of range"),
        None => invalid!("attribute \"blocksize\" is missing"),
    }
}

fn nchw(t: &Tensor) -> Result<[usize; 4], OpError> {
    match t.shape()[..] {
        [n, c, h, w] => Ok([n, c, h, w]),
        _ => invalid!("input 0 must have rank 4, found {}", t.shape()),
    }
}

fn depth_to_space(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (b, crd) = blocks(cx.attrs)?;
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let [n, c, h, w] = nchw(data)?;
        if c % (b * b) != 0 {
            invalid!("{c} channels are no multiple of {b}·{b}");
        }
        let d = c / (b * b);
        let (Some(hb), Some(wb)) = (h.checked_mul(b), w.checked_mul(b)) else { invalid!("blocksize {b} is too large") };
        let to = [n, d, hb, wb];
        one(match crd {
            false => permuted(data, &[n, b, b, d, h, w], &[0, 3, 4, 1, 5, 2], to)?,
            true => permuted(data, &[n, d, b, b, h, w], &[0, 1, 4, 2, 5, 3], to)?,
        })
    }))
}

fn space_to_depth(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (b, crd) = blocks(cx.attrs)?;
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let [n, c, h, w] = nchw(data)?;
        if h % b != 0 || w % b != 0 {
            invalid!("rows and columns of {} are no multiples of {b}", data.shape());
        }
        let Some(depth) = c.checked_mul(b * b) else { invalid!("blocksize {b} is too large") };
        let (from, to) = ([n, c, h / b, b, w / b, b], [n, depth, h / b, w / b]);
        one(permuted(data, &from, if crd { &[0, 1, 3, 5, 2, 4] } else { &[0, 3, 5, 1, 2, 4] }, to)?)
    }))
}

/// Inference of both: channels and sides by what `channels` and `sides` make of a known dim.
fn infer_blocks(
    cx: &InferCtx,
    channels: impl Fn(usize, usize) -> Option<usize>,
    sides: impl Fn(usize, usize) -> Option<usize>,
) -> Result<Vec<Fact>, OpError> {
    let (b, _) = blocks(cx.op.attrs)?;
    let of = |d: &Dim, f: &dyn Fn(usize, usize) -> Option<usize>| d.known().and_then(|d| f(d, b)).map_or(Dim::Unknown, Dim::Known);
    let dims = match cx.shape(0) {
        Some([n, c, h, w]) => vec![n.clone(), of(c, &channels), of(h, &sides), of(w, &sides)],
        Some(other) => invalid!("input 0 must have rank 4, found {}", other.len()),
        None => unknown_dims(4),
    };
    Ok(vec![Fact::partial(cx.dtype(0), Some(dims))])
}

fn infer_depth_to_space(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    infer_blocks(cx, |c, b| Some(c / (b * b)), usize::checked_mul)
}

fn infer_space_to_depth(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    infer_blocks(cx, |c, b| c.checked_mul(b * b), |x, b| Some(x / b))
}

fn reverse_sequence(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (batch, time) = (cx.attrs.int_or("batch_axis", 1)?, cx.attrs.int_or("time_axis", 0)?);
    if !matches!((batch, time), (0, 1) | (1, 0)) {
        invalid!("batch_axis and time_axis must be 0 and 1, found {batch} and {time}");
    }
    Ok(Box::new(move |args: Args| {
        let (data, lens) = (args.tensor(0)?, args.ints(1)?);
        let [rows, columns, rest @ ..] = &data.shape()[..] else { invalid!("input 0 must have rank 2 or more, found {}", data.shape()) };
        let (batches, times) = if time == 0 { (*columns, *rows) } else { (*rows, *columns) };
        if lens.len() != batches {
            invalid!("expected {batches} sequence lengths, found {}", lens.len());
        }
        if let Some(bad) = lens.iter().find(|&&n| n < 0 || n as u64 > times as u64) {
            invalid!("sequence length {bad} is out of range for {times} steps");
        }
        let turned = |b: usize, t: usize| if t < lens[b] as usize { lens[b] as usize - 1 - t } else { t };
        let block = super::util::product(rest);
        if data.is_empty() {
            return one(data.clone());
        }
        let ids: Vec<usize> = (0..rows * columns)
            .map(|i| match (i / columns, i % columns) {
                (t, b) if time == 0 => turned(b, t) * columns + b,
                (b, t) => b * columns + turned(b, t),
            })
            .collect();
        one(moved(&Take { block, dim: ids.len(), ids: &ids }, &[data], data.shape())?)
    }))
}

/// `t` repeated `repeats[d]` times along each axis.
fn tiled(t: &Tensor, repeats: &[usize]) -> Result<Tensor, OpError> {
    let by = signed_strides(t.shape());
    let (mut shape, mut strides, mut to) = (Vec::new(), Vec::new(), Shape::default());
    for ((&d, &s), &r) in t.shape().iter().zip(&by).zip(repeats) {
        shape.extend([r, d]);
        strides.extend([0, s]);
        match d.checked_mul(r) {
            Some(n) => to.push(n),
            None => invalid!("{r} repeats of {d} are too many"),
        }
    }
    Ok(strided(t, 0, &shape, &strides)?.reshape(to)?)
}

fn tile(cx: &OpCtx) -> Result<Kernel, OpError> {
    let first = cx.version < 6;
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let repeats = if first {
            let number = |i| -> Result<i64, OpError> {
                let t = args.tensor(i)?;
                Ok(crate::tensor::cast(t, crate::tensor::DType::I64)?.item::<i64>()?)
            };
            let mut all = vec![1; data.rank()];
            all[super::util::axis(number(2)?, data.rank())?] = number(1)?;
            all
        } else {
            args.ints(1)?
        };
        if repeats.len() != data.rank() {
            invalid!("expected {} repeats, found {}", data.rank(), repeats.len());
        }
        one(tiled(data, &to_dims(&repeats)?)?)
    }))
}

fn infer_tile(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let repeats = if cx.op.version < 6 { None } else { cx.dims(1) };
    let dims = match (cx.shape(0), repeats) {
        (Some(s), Some(r)) if s.len() == r.len() => {
            let times = |(d, r): (&Dim, &Dim)| if *r == Dim::Unknown { Dim::Unknown } else { quotient(&[d.clone(), r.clone()], &[]) };
            Some(s.iter().zip(&r).map(times).collect())
        }
        (Some(s), None) => Some(unknown_dims(s.len())),
        (Some(s), Some(r)) => invalid!("expected {} repeats, found {}", s.len(), r.len()),
        (None, r) => r.map(|r| unknown_dims(r.len())),
    };
    Ok(vec![Fact::partial(cx.dtype(0), dims)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::run;

    fn numbers(shape: &[usize]) -> Tensor {
        Tensor::new(shape, (0..shape.iter().product::<usize>() as i64).collect()).unwrap()
    }

    fn values(op: &str, attrs: Attrs, inputs: &[Tensor]) -> (Vec<i64>, Vec<i64>) {
        let out = run(op, 13, attrs, inputs).unwrap();
        (out.shape().to_i64s(), out.into_vec().unwrap())
    }

    #[test]
    fn transpose_reverses_all_axes_by_default() {
        assert_eq!(values("Transpose", Attrs::new(), &[numbers(&[2, 3])]), (vec![3, 2], vec![0, 3, 1, 4, 2, 5]));
        let strings = Tensor::new([1, 2], vec!["a".to_owned(), "b".to_owned()]).unwrap();
        assert_eq!(run("Transpose", 1, Attrs::new(), &[strings]).unwrap().shape().to_i64s(), [2, 1]);
        assert!(run("Transpose", 1, Attrs::new().with("perm", vec![0, 0]), &[numbers(&[2, 3])]).is_err());
        assert!(run("Transpose", 1, Attrs::new().with("perm", vec![0]), &[numbers(&[2, 3])]).is_err());
    }

    #[test]
    fn expand_and_tile_repeat() {
        let by = |v: &[i64]| Tensor::vector(v.to_vec());
        assert_eq!(values("Expand", Attrs::new(), &[numbers(&[2, 1]), by(&[2, 1, 2])]), (vec![2, 2, 2], vec![0, 0, 1, 1, 0, 0, 1, 1]));
        assert_eq!(values("Tile", Attrs::new(), &[numbers(&[1, 2]), by(&[2, 2])]), (vec![2, 4], vec![0, 1, 0, 1, 0, 1, 0, 1]));
        let old = [numbers(&[2]), Tensor::scalar(2f32), Tensor::scalar(0f32)];
        assert_eq!(run("Tile", 1, Attrs::new(), &old).unwrap(), by(&[0, 1, 0, 1]));
        assert!(run("Tile", 13, Attrs::new(), &[numbers(&[2]), by(&[i64::MAX])]).is_err());
        assert!(run("Expand", 13, Attrs::new(), &[numbers(&[2]), by(&[-1])]).is_err());
    }

    #[test]
    fn depth_and_space_are_inverse() {
        let t = numbers(&[1, 8, 2, 3]);
        for mode in ["DCR", "CRD"] {
            let attrs = Attrs::new().with("blocksize", 2).with("mode", mode);
            let wide = run("DepthToSpace", 13, attrs.clone(), std::slice::from_ref(&t)).unwrap();
            assert_eq!(wide.shape().to_i64s(), [1, 2, 4, 6]);
            assert_eq!(run("SpaceToDepth", 28, attrs, &[wide]).unwrap(), t);
        }
    }

    #[test]
    fn sequences_reverse_by_their_own_length() {
        let attrs = Attrs::new().with("batch_axis", 0).with("time_axis", 1);
        let lens = Tensor::vector(vec![1i64, 3]);
        assert_eq!(values("ReverseSequence", attrs, &[numbers(&[2, 3]), lens]).1, [0, 1, 2, 5, 4, 3]);
    }
}
