//! Ops that add a margin, or blank a part: Pad, CenterCropPad, Trilu.

use super::infer::unknown_dims;
use super::movement::{AxisMaps, Cell, Movement, OUTSIDE, moved};
use super::util::{axes, axis, for_each_chunk};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, infer, one};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{DType, Shape, Tensor, cast, checked_len, fits_memory};

const PAD: &[i64] = &[1, 2, 11, 13, 18, 19, 21, 23, 24, 25];

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("CenterCropPad", &[18]).inputs(2, 2).attrs(&["axes"]).kernel(center_crop_pad).infer(infer_center_crop_pad),
    OpDef::new("Pad", PAD).inputs(1, 4).attrs(&["mode", "paddings", "pads", "value"]).kernel(pad).infer(infer_pad),
    OpDef::new("Trilu", &[14]).inputs(1, 2).attrs(&["upper"]).kernel(trilu).infer(infer::same),
];

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Constant,
    Edge,
    Reflect,
    Wrap,
}

/// The length of a dim with `before` and `after` positions more (or fewer).
fn padded_len(dim: usize, before: i64, after: i64) -> Result<usize, OpError> {
    match usize::try_from(dim as i128 + i128::from(before) + i128::from(after)) {
        Ok(n) if isize::try_from(n).is_ok() => Ok(n),
        _ => invalid!("pads {before} and {after} do not fit a dim of {dim}"),
    }
}

/// A vector that may be too long for memory.
fn positions(len: usize, f: impl Fn(usize) -> usize) -> Result<Vec<usize>, OpError> {
    let mut out = Vec::new();
    if !fits_memory(len.saturating_mul(size_of::<usize>())) || out.try_reserve_exact(len).is_err() {
        invalid!("a dim of {len} does not fit memory");
    }
    out.extend((0..len).map(f));
    Ok(out)
}

/// The source's position of each padded position.
fn pad_map(mode: Mode, dim: usize, before: i64, after: i64) -> Result<Vec<usize>, OpError> {
    let len = padded_len(dim, before, after)?;
    if mode == Mode::Constant {
        return positions(len, |i| usize::try_from(i as i128 - i128::from(before)).ok().filter(|&i| i < dim).unwrap_or(OUTSIDE));
    }
    // What negative pads cut is not read by the others.
    let low = before.min(0).unsigned_abs() as usize;
    let n = dim as i128 - low as i128 - i128::from(after.min(0).unsigned_abs());
    if n <= 0 && len > 0 {
        invalid!("a dim of {dim} has nothing to pad with after pads {before} and {after} cut it");
    }
    positions(len, |i| {
        let i = i as i128 - i128::from(before.max(0));
        let at = match mode {
            Mode::Edge => i.clamp(0, n - 1),
            Mode::Wrap => i.rem_euclid(n),
            _ if n == 1 => 0,
            _ => {
                let r = i.rem_euclid(2 * (n - 1));
                r.min(2 * (n - 1) - r)
            }
        };
        low + at as usize
    })
}

/// Pads by axis, from a list of all begins and then all ends for `axes` (all, if not given).
fn by_axis(pads: &[i64], list: Option<&[i64]>, rank: usize) -> Result<Vec<(i64, i64)>, OpError> {
    let list: Vec<usize> = match list {
        Some(list) => {
            axes(list, rank)?;
            list.iter().map(|&a| axis(a, rank)).collect::<Result<_, _>>()?
        }
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * list.len() {
        invalid!("expected {} pads, found {}", 2 * list.len(), pads.len());
    }
    let mut out = vec![(0, 0); rank];
    for (i, &a) in list.iter().enumerate() {
        out[a] = (pads[i], pads[list.len() + i]);
    }
    Ok(out)
}

fn mode(cx: &OpCtx) -> Result<Mode, OpError> {
    Ok(match cx.attrs.string_or("mode", "constant")? {
        "constant" => Mode::Constant,
        "edge" => Mode::Edge,
        "reflect" => Mode::Reflect,
        "wrap" => Mode::Wrap,
        other => invalid!("mode must be constant, reflect, edge or wrap, found {other:?}"),
    })
}

fn attr_pads<'a>(cx: &OpCtx<'a>) -> Result<Option<&'a [i64]>, OpError> {
    Ok(match cx.attrs.ints("pads")? {
        Some(pads) => Some(pads),
        None => cx.attrs.ints("paddings")?,
    })
}

/// A tensor whose positions along each axis are those of `maps`; `maps` may also drop or repeat some.
fn mapped(data: &Tensor, fill: Option<&Tensor>, maps: Vec<Vec<usize>>) -> Result<Tensor, OpError> {
    let shape: Shape = maps.iter().map(Vec::len).collect();
    let src: Vec<&Tensor> = std::iter::once(data).chain(fill).collect();
    moved(&AxisMaps { from: data.shape().clone(), maps }, &src, shape)
}

fn pad(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (mode, fixed) = (mode(cx)?, attr_pads(cx)?.map(<[i64]>::to_vec));
    let value = cx.attrs.float("value")?;
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let pads = match args.opt_ints(1)?.or_else(|| fixed.clone()) {
            Some(pads) => pads,
            None => invalid!("input 1 is missing: expected a value, found none"),
        };
        let pads = by_axis(&pads, args.opt_ints(3)?.as_deref(), data.rank())?;
        let lens = pads.iter().zip(&data.shape()[..]).map(|(&(b, a), &d)| padded_len(d, b, a)).collect::<Result<Shape, _>>()?;
        if checked_len(&lens) == Some(0) {
            return one(moved(&super::movement::Nothing, &[data], lens)?);
        }
        let fill = match args.opt(2)? {
            Some(t) if t.len() == 1 => Some(t.clone()),
            Some(t) if t.len() > 1 => invalid!("the fill must be one element, found {}", t.shape()),
            _ => value.filter(|_| data.dtype() != DType::String).map(|v| cast(&Tensor::scalar(v), data.dtype())).transpose()?,
        };
        let maps = pads.iter().zip(&data.shape()[..]).map(|(&(b, a), &d)| pad_map(mode, d, b, a)).collect::<Result<_, _>>()?;
        one(mapped(data, fill.as_ref(), maps)?)
    }))
}

fn infer_pad(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let Some(shape) = cx.shape(0) else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    let fixed = if cx.has(1) { None } else { attr_pads(&cx.op)?.map(<[i64]>::to_vec) };
    let list = if cx.has(3) { cx.known(3).map(Some) } else { Some(None) };
    let dims = match (fixed.or_else(|| cx.known(1)), list) {
        (Some(pads), Some(list)) => {
            let one = |((b, a), d): ((i64, i64), &Dim)| match d.known() {
                Some(d) => padded_len(d, b, a).map(Dim::Known),
                None if (b, a) == (0, 0) => Ok(d.clone()),
                None => Ok(Dim::Unknown),
            };
            by_axis(&pads, list.as_deref(), shape.len())?.into_iter().zip(shape).map(one).collect::<Result<_, _>>()?
        }
        _ => unknown_dims(shape.len()),
    };
    Ok(vec![Fact::partial(cx.dtype(0), Some(dims))])
}

/// Target lengths by axis of a CenterCropPad; `None` for an axis that stays.
fn targets<T: Clone>(list: Option<&[i64]>, target: &[T], rank: usize) -> Result<Vec<Option<T>>, OpError> {
    let list = match list {
        Some(list) => list.to_vec(),
        None => (0..rank as i64).collect(),
    };
    if target.len() != list.len() {
        invalid!("expected {} target dims, found {}", list.len(), target.len());
    }
    let mut out = vec![None; rank];
    for (&a, t) in list.iter().zip(target) {
        out[axis(a, rank)?] = Some(t.clone());
    }
    Ok(out)
}

fn center_crop_pad(cx: &OpCtx) -> Result<Kernel, OpError> {
    let list = cx.attrs.ints("axes")?.map(<[i64]>::to_vec);
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let mut maps = Vec::with_capacity(data.rank());
        let targets = targets(list.as_deref(), &args.ints(1)?, data.rank())?;
        let mut lens = data.shape().clone();
        for (len, target) in lens.iter_mut().zip(&targets) {
            match target.map(usize::try_from) {
                Some(Ok(t)) => *len = t,
                Some(Err(_)) => invalid!("a target dim is negative: expected 0 or more"),
                None => {}
            }
        }
        if checked_len(&lens) == Some(0) {
            return one(moved(&super::movement::Nothing, &[data], lens)?);
        }
        for (&len, &dim) in lens.iter().zip(&data.shape()[..]) {
            // Both differences are halved and rounded down.
            let (cut, margin) = (dim.saturating_sub(len) / 2, len.saturating_sub(dim) / 2);
            maps.push(positions(len, |i| i.checked_sub(margin).map(|i| i + cut).filter(|&i| i < dim).unwrap_or(OUTSIDE))?);
        }
        one(mapped(data, None, maps)?)
    }))
}

fn infer_center_crop_pad(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let list = cx.op.attrs.ints("axes")?;
    let dims = match (cx.shape(0), cx.dims(1)) {
        (Some(s), Some(target)) => {
            Some(targets(list, &target, s.len())?.into_iter().zip(s).map(|(t, d)| t.unwrap_or_else(|| d.clone())).collect())
        }
        (Some(s), None) => Some(unknown_dims(s.len())),
        (None, Some(target)) if list.is_none() => Some(target),
        _ => None,
    };
    Ok(vec![Fact::partial(cx.dtype(0), dims)])
}

/// The triangle on or above (below) diagonal `k` of each matrix.
struct Triangle {
    upper: bool,
    k: i64,
    rows: usize,
    columns: usize,
}

impl Movement for Triangle {
    fn run<T: Cell>(&self, src: &[&[T]], out: &mut [T]) {
        let n = self.columns;
        for_each_chunk(out, n, |row, out| {
            let edge = ((row % self.rows) as i64).saturating_add(self.k).saturating_add(i64::from(!self.upper)).clamp(0, n as i64) as usize;
            let keep = if self.upper { edge..n } else { 0..edge };
            out[keep.clone()].clone_from_slice(&src[0][row * n..][keep]);
        });
    }
}

fn trilu(cx: &OpCtx) -> Result<Kernel, OpError> {
    let upper = cx.attrs.int_or("upper", 1)? != 0;
    Ok(Box::new(move |args: Args| {
        let data = args.tensor(0)?;
        let k = match args.opt_ints(1)?.as_deref() {
            None => 0,
            Some([k]) => *k,
            Some(other) => invalid!("k must be one element, found {}", other.len()),
        };
        let [.., rows, columns] = data.shape()[..] else { invalid!("input 0 must have rank 2 or more, found {}", data.shape()) };
        one(moved(&Triangle { upper, k, rows, columns }, &[data], data.shape())?)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;

    fn ints(v: &[i64]) -> Tensor {
        Tensor::vector(v.to_vec())
    }

    fn padded(mode: &str, data: &[i64], pads: &[i64]) -> Result<Vec<i64>, OpError> {
        Ok(run("Pad", 19, Attrs::new().with("mode", mode), &[ints(data), ints(pads)])?.into_vec()?)
    }

    #[test]
    fn pads_follow_numpy() {
        assert_eq!(padded("constant", &[1, 2, 3], &[1, 2]).unwrap(), [0, 1, 2, 3, 0, 0]);
        assert_eq!(padded("constant", &[1, 2, 3], &[-1, 1]).unwrap(), [2, 3, 0]);
        assert_eq!(padded("edge", &[1, 2, 3], &[2, 1]).unwrap(), [1, 1, 1, 2, 3, 3]);
        assert_eq!(padded("reflect", &[1, 2, 3], &[3, 5]).unwrap(), [2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2]);
        assert_eq!(padded("wrap", &[1, 2, 3], &[4, 1]).unwrap(), [3, 1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(padded("reflect", &[7], &[1, 1]).unwrap(), [7, 7, 7]);
        assert_eq!(padded("edge", &[1, 2, 3], &[-1, 2]).unwrap(), [2, 3, 3, 3]);
    }

    #[test]
    fn pads_out_of_range_are_errors() {
        assert!(padded("constant", &[1], &[i64::MAX, i64::MAX]).is_err());
        assert!(padded("constant", &[1], &[i64::MIN, 0]).is_err());
        assert!(padded("constant", &[1], &[1 << 60, 0]).is_err());
        assert!(padded("wrap", &[], &[1, 1]).is_err());
        assert!(padded("edge", &[1, 2], &[-2, 3]).is_err());
        assert!(padded("constant", &[1], &[1]).is_err());
    }

    #[test]
    fn the_fill_is_an_attribute_or_an_input() {
        let t = Tensor::new([1, 1], vec![1f32]).unwrap();
        let old = Attrs::new().with("pads", vec![0, 1, 0, 0]).with("value", 2.5);
        assert_eq!(run("Pad", 2, old, std::slice::from_ref(&t)).unwrap().into_vec::<f32>().unwrap(), [2.5, 1.0]);
        let new = [t, ints(&[1, 0]), Tensor::scalar(4f32), ints(&[-1])];
        assert_eq!(run("Pad", 18, Attrs::new(), &new).unwrap().into_vec::<f32>().unwrap(), [4.0, 1.0]);
    }

    #[test]
    fn crops_and_pads_keep_the_centre() {
        let of =
            |data: &[i64], to: i64| run("CenterCropPad", 18, Attrs::new(), &[ints(data), ints(&[to])]).unwrap().into_vec::<i64>().unwrap();
        assert_eq!(of(&[1, 2, 3, 4], 1), [2]);
        assert_eq!(of(&[1, 2], 5), [0, 1, 2, 0, 0]);
    }

    #[test]
    fn triangles_follow_their_diagonal() {
        let t = Tensor::new([2, 3], (1..7i64).collect()).unwrap();
        let of = |upper: i64, k: i64| {
            run("Trilu", 14, Attrs::new().with("upper", upper), &[t.clone(), Tensor::scalar(k)]).unwrap().into_vec::<i64>().unwrap()
        };
        assert_eq!(of(1, 0), [1, 2, 3, 0, 5, 6]);
        assert_eq!(of(0, 0), [1, 0, 0, 4, 5, 0]);
        assert_eq!(of(1, i64::MIN), [1, 2, 3, 4, 5, 6]);
        assert_eq!(of(0, i64::MIN), [0; 6]);
        assert_eq!(of(0, i64::MAX), [1, 2, 3, 4, 5, 6]);
    }
}
