//! Col2Im: sums columns of blocks back into an image.

use crate::invalid;
use crate::ir::Dim;
use crate::ops::util::{checked_product, filled, for_each_chunk};
use crate::ops::window::{Window, for_each_run, unravel};
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpError, one};
use crate::tensor::{Complex32, Complex64, DType, Element, Number, Tensor, strides};
use crate::unsupported;

pub(super) fn infer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let (x, image, block) = (cx.shape(0), cx.dims(1), cx.ints(2));
    let rank = image.as_ref().map(Vec::len).or(block.as_ref().map(Vec::len));
    let Some(rank) = rank else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    let taps = block.and_then(|b| b.iter().try_fold(1usize, |n, &k| n.checked_mul(usize::try_from(k).ok()?)));
    let channels = match (x.and_then(|x| x.get(1)?.known()), taps) {
        (Some(c), Some(taps @ 1..)) => Dim::Known(c / taps),
        _ => Dim::Unknown,
    };
    let mut out = vec![x.and_then(|x| x.first().cloned()).unwrap_or(Dim::Unknown), channels];
    out.extend(image.unwrap_or_else(|| vec![Dim::Unknown; rank]));
    Ok(vec![Fact::partial(cx.dtype(0), Some(out))])
}

pub(super) fn build(cx: &OpCtx) -> Result<Kernel, OpError> {
    let window = Window::read(cx.attrs)?;
    Ok(Box::new(move |args| {
        let dtype = args.tensor(0)?.dtype();
        one(match dtype {
            DType::C64 => run::<Complex32>(&window, &args, |a, b| *a += b)?,
            DType::C128 => run::<Complex64>(&window, &args, |a, b| *a += b)?,
            DType::Bool => run::<bool>(&window, &args, |a, b| *a |= b)?,
            _ => crate::dispatch_number!(dtype, T => run::<T>(&window, &args, |a, b| *a = Number::add(*a, *b))?,
                other => unsupported!("input 0 must be numbers, found {other}")),
        })
    }))
}

fn dims(args: &Args, i: usize) -> Result<Vec<usize>, OpError> {
    let list = args.ints(i)?;
    match list.iter().find(|&&x| x < 1) {
        Some(x) => invalid!("input {i}: {x} is no size"),
        None => Ok(list.iter().map(|&x| x as usize).collect()),
    }
}

fn run<T: Element>(window: &Window, args: &Args, add: impl Fn(&mut T, &T) + Sync + Send) -> Result<Tensor, OpError> {
    let x = args.tensor(0)?;
    let (image, block) = (dims(args, 1)?, dims(args, 2)?);
    let &[batch, depth, columns] = &**x.shape() else { invalid!("input 0: expected rank 3, found {}", x.rank()) };
    if image.is_empty() || block.len() != image.len() {
        invalid!("image of rank {} and blocks of rank {} do not fit", image.len(), block.len());
    }
    let axes = window.axes(&image, &block)?;
    let taps = checked_product(&block)?;
    let positions = checked_product(&axes.iter().map(|a| a.output).collect::<Vec<_>>())?;
    if !depth.is_multiple_of(taps) || positions != columns {
        invalid!("input 0: expected a multiple of {taps} rows and {positions} columns, found {depth} and {columns}");
    }
    let mut shape = vec![batch, depth / taps];
    shape.extend(&image);
    let plane = checked_product(&image)?;
    let mut y = filled(checked_product(&shape)?, T::default())?;
    let xs = x.to_slice::<T>()?;
    let plane_strides = strides(&image);
    let step = axes.last().map_or(1, |a| a.stride);
    for_each_chunk(&mut y, plane, |i, plane| {
        for t in 0..taps {
            let column = &xs[(i * taps + t) * positions..][..positions];
            for_each_run(&axes, &plane_strides, &unravel(t, &block), 0..positions, |o, n, to| {
                plane[to..].iter_mut().step_by(step).zip(&column[o..][..n]).for_each(|(y, x)| add(y, x));
            });
        }
    });
    Ok(Tensor::new(shape, y)?)
}
