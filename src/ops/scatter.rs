//! Ops that write elements at places that indices name, in the order of the updates.

use super::gather::{element_places, tuple_places};
use super::util::{axis, product};
use super::{Args, Kernel, OpCtx, OpDef, OpError, infer, one};
use crate::tensor::{Complex32, Complex64, DType, Element, Number, Tensor, pack_bits, unpack_bits};
use crate::{dispatch, dispatch_number, invalid, unsupported};

const ELEMENTS: &[&str] = &["axis", "reduction"];

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Scatter", &[9, 11]).inputs(3, 3).attrs(ELEMENTS).kernel(scatter_elements).infer(infer::same),
    OpDef::new("ScatterElements", &[11, 13, 16, 18]).inputs(3, 3).attrs(ELEMENTS).kernel(scatter_elements).infer(infer::same),
    OpDef::new("ScatterND", &[11, 13, 16, 18]).inputs(3, 3).attrs(&["reduction"]).kernel(scatter_nd).infer(infer::same),
    OpDef::new("TensorScatter", &[24]).inputs(2, 3).attrs(&["axis", "mode"]).kernel(tensor_scatter).infer(infer::same),
];

/// What an update does to the element that is there.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reduction {
    None,
    Add,
    Mul,
    Max,
    Min,
}

fn reduction(cx: &OpCtx) -> Result<Reduction, OpError> {
    Ok(match cx.attrs.string_or("reduction", "none")? {
        "none" => Reduction::None,
        "add" => Reduction::Add,
        "mul" => Reduction::Mul,
        "max" => Reduction::Max,
        "min" => Reduction::Min,
        other => invalid!("reduction must be none, add, mul, max or min, found {other:?}"),
    })
}

/// Writes blocks of `block` updates over the blocks of `out` that `places` numbers.
fn write<T: Clone>(out: &mut [T], updates: &[T], places: &[usize], block: usize, f: impl Fn(&mut T, &T)) {
    if block == 1 {
        places.iter().zip(updates).for_each(|(&p, u)| f(&mut out[p], u));
        return;
    }
    for (&p, u) in places.iter().zip(updates.chunks(block.max(1))) {
        out[p * block..(p + 1) * block].iter_mut().zip(u).for_each(|(o, u)| f(o, u));
    }
}

/// `data` with its elements changed in place where nobody else holds them.
fn changed<T: Element>(data: Tensor, updates: &Tensor, places: &[usize], block: usize, f: impl Fn(&mut T, &T)) -> Result<Tensor, OpError> {
    let shape = data.shape().clone();
    let updates = updates.to_slice::<T>()?;
    let mut out = data.into_vec::<T>()?;
    write(&mut out, &updates, places, block, f);
    Ok(Tensor::new(shape, out)?)
}

/// `data` with blocks of `block` elements replaced by (or reduced with) those of `updates`.
fn scattered(data: Tensor, updates: &Tensor, places: &[usize], block: usize, how: Reduction) -> Result<Tensor, OpError> {
    let dtype = data.dtype();
    if updates.dtype() != dtype {
        invalid!("updates must be {dtype} as the data, found {}", updates.dtype());
    }
    if data.is_empty() || updates.is_empty() {
        return Ok(data);
    }
    if how == Reduction::None {
        if dtype.bits() < 8 && dtype != DType::String {
            let codes = |t: &Tensor| unpack_bits(t.bytes().unwrap_or_default(), dtype.bits(), t.len());
            let mut out = codes(&data);
            write(&mut out, &codes(updates), places, block, |o, u| *o = *u);
            return Ok(Tensor::from_vec_as(dtype, data.shape(), pack_bits(&out, dtype.bits()))?);
        }
        return dispatch!(dtype, T => changed::<T>(data, updates, places, block, |o, u| o.clone_from(u)));
    }
    macro_rules! complex {
        ($t:ty) => {
            match how {
                Reduction::Add => changed::<$t>(data, updates, places, block, |o, u| *o += u),
                Reduction::Mul => changed::<$t>(data, updates, places, block, |o, u| *o *= u),
                _ => invalid!("{dtype} has no order for max and min"),
            }
        };
    }
    dispatch_number!(dtype, T => match how {
        Reduction::Mul => changed::<T>(data, updates, places, block, |o, u| *o = Number::mul(*o, *u)),
        Reduction::Max => changed::<T>(data, updates, places, block, |o, u| *o = Number::greater_of(*o, *u)),
        Reduction::Min => changed::<T>(data, updates, places, block, |o, u| *o = Number::lesser_of(*o, *u)),
        _ => changed::<T>(data, updates, places, block, |o, u| *o = Number::add(*o, *u)),
    }, other => match other {
        DType::Bool if matches!(how, Reduction::Add | Reduction::Max) => changed::<bool>(data, updates, places, block, |o, u| *o |= u),
        DType::Bool => changed::<bool>(data, updates, places, block, |o, u| *o &= u),
        DType::C64 => complex!(Complex32),
        DType::C128 => complex!(Complex64),
        _ => unsupported!("a reduction needs numbers, found {dtype}"),
    })
}

fn scatter_elements(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (at, how) = (cx.attrs.int_or("axis", 0)?, reduction(cx)?);
    Ok(Box::new(move |mut args: Args| {
        let data = args.take(0)?;
        let (indices, updates) = (args.tensor(1)?, args.tensor(2)?);
        if indices.shape() != updates.shape() {
            invalid!("indices {} and updates {} must have one shape", indices.shape(), updates.shape());
        }
        let places = element_places(data.shape(), indices, at)?;
        one(scattered(data, updates, &places, 1, how)?)
    }))
}

fn scatter_nd(cx: &OpCtx) -> Result<Kernel, OpError> {
    let how = reduction(cx)?;
    Ok(Box::new(move |mut args: Args| {
        let data = args.take(0)?;
        let (indices, updates) = (args.tensor(1)?, args.tensor(2)?);
        let places = tuple_places(data.shape(), indices)?;
        let width = indices.shape()[indices.rank() - 1];
        let rest = &data.shape()[width..];
        if updates.shape()[..] != [&indices.shape()[..indices.rank() - 1], rest].concat() {
            invalid!("updates {} do not fit indices {} into data {}", updates.shape(), indices.shape(), data.shape());
        }
        let block = product(rest);
        one(scattered(data, updates, &places, block, how)?)
    }))
}

fn tensor_scatter(cx: &OpCtx) -> Result<Kernel, OpError> {
    let at = cx.attrs.int_or("axis", -2)?;
    let circular = match cx.attrs.string_or("mode", "linear")? {
        "linear" => false,
        "circular" => true,
        other => invalid!("mode must be linear or circular, found {other:?}"),
    };
    Ok(Box::new(move |mut args: Args| {
        let cache = args.take(0)?;
        let update = args.tensor(1)?;
        let at = match axis(at, cache.rank())? {
            0 => invalid!("axis must not be the batch axis 0"),
            at => at,
        };
        let (have, new) = (cache.shape(), update.shape());
        if have.len() != new.len() || (0..have.len()).any(|d| if d == at { new[d] > have[d] } else { new[d] != have[d] }) {
            invalid!("an update {new} does not fit a cache {have} along axis {at}");
        }
        let (batches, length, steps) = (have[0], have[at], new[at]);
        let starts = args.opt_ints(2)?;
        if let Some(found) = starts.as_ref().map(Vec::len).filter(|&n| n != batches) {
            invalid!("expected {batches} write indices, found {found}");
        }
        if update.is_empty() {
            return one(cache);
        }
        let prefixes: usize = have[..at].iter().product();
        let mut places = Vec::with_capacity(prefixes * steps);
        for prefix in 0..prefixes {
            let start = starts.as_ref().map_or(0, |s| s[prefix / (prefixes / batches)]);
            for step in 0..steps {
                let to = i128::from(start) + step as i128;
                let to = if circular { to.rem_euclid(length as i128) } else { to };
                match usize::try_from(to) {
                    Ok(to) if to < length => places.push(prefix * length + to),
                    _ => invalid!("write index {start} and {steps} steps are out of range for {length}"),
                }
            }
        }
        let block = product(&have[at + 1..]);
        one(scattered(cache, update, &places, block, Reduction::None)?)
    }))
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
    fn elements_are_replaced_or_reduced() {
        let inputs = |u: &[i64]| [ints(&[1, 4], &[1, 2, 3, 4]), ints(&[1, 2], &[1, -3]), ints(&[1, 2], u)];
        let by = |how: &str, u: &[i64]| {
            let attrs = Attrs::new().with("axis", 1).with("reduction", how);
            run("ScatterElements", 18, attrs, &inputs(u)).unwrap().into_vec::<i64>().unwrap()
        };
        assert_eq!(by("none", &[8, 9]), [1, 9, 3, 4]);
        assert_eq!(by("add", &[8, 9]), [1, 19, 3, 4]);
        assert_eq!(by("mul", &[2, 5]), [1, 20, 3, 4]);
        assert_eq!(by("max", &[1, 5]), [1, 5, 3, 4]);
        assert_eq!(by("min", &[1, 5]), [1, 1, 3, 4]);
    }

    #[test]
    fn blocks_are_replaced_in_any_dtype() {
        let data = Tensor::from_vec_as(DType::U4, [2, 2], vec![0x21u8, 0x43]).unwrap();
        let update = Tensor::from_vec_as(DType::U4, [1, 2], vec![0x65u8]).unwrap();
        let out = run("ScatterND", 18, Attrs::new(), &[data, ints(&[1, 1], &[-1]), update]).unwrap();
        assert_eq!(out.to_i64s().unwrap(), [1, 2, 5, 6]);
        let texts = |v: &[&str]| Tensor::vector(v.iter().map(|s| (*s).to_owned()).collect());
        let out = run("ScatterND", 11, Attrs::new(), &[texts(&["a", "b"]), ints(&[1, 1], &[0]), texts(&["c"])]).unwrap();
        assert_eq!(out, texts(&["c", "b"]));
    }

    #[test]
    fn places_and_shapes_are_checked() {
        let data = ints(&[2, 2], &[1, 2, 3, 4]);
        let of = |ids: Tensor, u: Tensor| run("ScatterND", 18, Attrs::new(), &[data.clone(), ids, u]);
        assert!(of(ints(&[1, 1], &[2]), ints(&[1, 2], &[0, 0])).is_err());
        assert!(of(ints(&[1, 1], &[0]), ints(&[1, 1], &[0])).is_err());
        assert!(of(ints(&[1, 3], &[0, 0, 0]), ints(&[1], &[0])).is_err());
    }

    #[test]
    fn a_cache_takes_updates_round_its_end() {
        let cache = ints(&[2, 3, 1], &[1, 2, 3, 4, 5, 6]);
        let inputs = [cache, ints(&[2, 2, 1], &[7, 8, 9, 10]), ints(&[2], &[0, 2])];
        let out = run("TensorScatter", 24, Attrs::new().with("mode", "circular"), &inputs).unwrap();
        assert_eq!(out, ints(&[2, 3, 1], &[7, 8, 3, 10, 5, 9]));
        assert!(run("TensorScatter", 24, Attrs::new(), &inputs).is_err());
    }
}
