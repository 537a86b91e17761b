//! ConvTranspose: each input position spreads its product with the weights over the output.

use super::{Spec, add_mul, bias, count, known_kernel, real, view, view_mut};
use crate::invalid;
use crate::ir::{Attrs, Dim};
use crate::ops::util::{Real, checked_product, filled, real_dtype, run_all, tiles};
use crate::ops::window::{AutoPad, Axis, Window, for_each_run, unravel};
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpError, Outputs, one};
use crate::tensor::{DType, Tensor, cast, strides};
use ndarray::s;

/// Elements of the columns that one task makes, if one channel does not take more.
const BLOCK: usize = 512 * 1024;

/// What the attributes say beyond [`Spec`].
struct Transposed {
    conv: Spec,
    output_padding: Vec<i64>,
    output_shape: Option<Vec<i64>>,
    /// Before version 11, pads that follow from `output_shape` alone have their odd one at the end.
    odd_at_end: bool,
}

impl Transposed {
    fn read(attrs: &Attrs, version: i64) -> Result<Self, OpError> {
        let fits = |name: &str| -> Result<Option<Vec<i64>>, OpError> {
            let list = attrs.ints(name)?;
            if let Some(x) = list.unwrap_or_default().iter().find(|&&x| !(0..=1 << 40).contains(&x)) {
                invalid!("attribute \"{name}\": {x} is out of range");
            }
            Ok(list.filter(|l| !l.is_empty()).map(<[i64]>::to_vec))
        };
        Ok(Self {
            conv: Spec { window: Window::read(attrs)?, group: count(attrs, "group")? },
            output_padding: fits("output_padding")?.unwrap_or_default(),
            output_shape: fits("output_shape")?,
            odd_at_end: version < 11,
        })
    }

    /// The window from the output (its `input`) to the input (its `output`), along each axis.
    fn axes(&self, input: &[usize], kernel: &[usize]) -> Result<Vec<Axis>, OpError> {
        let rank = input.len();
        let window = &self.conv.window;
        let mut axes = window.base(input, kernel)?;
        let padding = &self.output_padding;
        if !padding.is_empty() && padding.len() < rank {
            invalid!("attribute \"output_padding\": expected {rank} values, found {}", padding.len());
        }
        // Some files state the dims of batch and channels too.
        let stated = match &self.output_shape {
            Some(s) if s.len() == rank => Some(&s[..]),
            Some(s) if s.len() == rank + 2 => Some(&s[2..]),
            Some(s) => invalid!("attribute \"output_shape\": expected {rank} values, found {}", s.len()),
            None => None,
        };
        let same = matches!(window.auto_pad, AutoPad::SameUpper | AutoPad::SameLower);
        for (i, a) in axes.iter_mut().enumerate() {
            let stride = a.stride as i64;
            let Some(spread) = (a.input as i64 - 1).max(0).checked_mul(stride) else { invalid!("the output is too large") };
            let full = spread + padding.get(i).unwrap_or(&0) + a.extent();
            let wanted = match stated {
                Some(s) => Some(s[i]),
                None if same && !window.has_pads() => Some((a.input as i64).saturating_mul(stride)),
                None => None,
            };
            let output = match wanted {
                Some(output) => {
                    let total = (full - output).max(0);
                    let head_is_less = window.auto_pad == AutoPad::SameUpper || (self.odd_at_end && window.auto_pad == AutoPad::NotSet);
                    a.head = if head_is_less { total / 2 } else { total - total / 2 };
                    a.tail = total - a.head;
                    output
                }
                None if window.auto_pad == AutoPad::Valid => {
                    (a.head, a.tail) = (0, 0);
                    full
                }
                None => full - a.head - a.tail,
            };
            if !(0..=1 << 40).contains(&output) {
                invalid!("the output would have {output} elements along spatial axis {i}");
            }
            (a.output, a.input) = (a.input, output as usize);
        }
        Ok(axes)
    }
}

pub(super) fn infer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let spec = Transposed::read(cx.op.attrs, cx.op.version)?;
    let dtype = cx.dtype(0);
    let Some(x) = cx.shape(0) else {
        return Ok(vec![Fact::partial(dtype, cx.shape(1).map(|w| vec![Dim::Unknown; w.len()]))]);
    };
    if x.len() < 3 || cx.rank(1).is_some_and(|r| r != x.len()) {
        invalid!("expected input and weights of one rank from 3 up, found ranks {} and {}", x.len(), cx.rank(1).unwrap_or(0));
    }
    let kernel = known_kernel(cx, &spec.conv.window, 1, x.len() - 2);
    let sizes: Vec<usize> = x[2..].iter().map(|d| d.known().unwrap_or(1)).collect();
    let channels = cx.shape(1).and_then(|w| w[1].known()).and_then(|m| m.checked_mul(spec.conv.group));
    let mut out = vec![x[0].clone(), channels.map_or(Dim::Unknown, Dim::Known)];
    let stated = spec.output_shape.is_some();
    match kernel.iter().copied().collect::<Option<Vec<_>>>() {
        Some(k) => {
            // An unknown size is stood in for by a large one: a pad must not eat it.
            let sizes: Vec<usize> = x[2..].iter().zip(&sizes).map(|(d, &n)| if d.known().is_some() { n } else { 1 << 20 }).collect();
            let axes = spec.axes(&sizes, &k)?;
            out.extend(
                x[2..].iter().zip(axes).map(|(d, a)| if stated || d.known().is_some() { Dim::Known(a.input) } else { Dim::Unknown }),
            );
        }
        None => out.extend(vec![Dim::Unknown; x.len() - 2]),
    }
    Ok(vec![Fact::partial(dtype, Some(out))])
}

pub(super) fn build(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = Transposed::read(cx.attrs, cx.version)?;
    Ok(Box::new(move |args| match real_dtype(args.tensor(0)?.dtype())? {
        DType::F64 => run::<f64>(&spec, &args),
        _ => run::<f32>(&spec, &args),
    }))
}

fn run<T: Real>(spec: &Transposed, args: &Args) -> Result<Outputs, OpError> {
    let dtype = args.tensor(0)?.dtype();
    let (x, w) = (real::<T>(args, 0, dtype)?, real::<T>(args, 1, dtype)?);
    let (xs, ws, groups) = (x.shape(), w.shape(), spec.conv.group);
    if xs.len() < 3 || ws.len() != xs.len() {
        invalid!("expected input and weights of one rank from 3 up, found ranks {} and {}", xs.len(), ws.len());
    }
    if xs[1] != ws[0] || !xs[1].is_multiple_of(groups) {
        invalid!("{} input channels in {groups} groups do not fit weights of {} channels", xs[1], ws[0]);
    }
    let axes = spec.axes(&xs[2..], &ws[2..])?;
    let (inputs, outputs) = (xs[1] / groups, ws[1]);
    let mut shape = vec![xs[0], checked_product(&[outputs, groups])?];
    shape.extend(axes.iter().map(|a| a.input));
    let mut y = filled(checked_product(&shape)?, T::zero())?;
    let plane: usize = shape[2..].iter().product();
    if let (Some(bias), 1..) = (bias::<T>(args, 2, dtype, shape[1])?, plane) {
        y.chunks_mut(plane).enumerate().for_each(|(i, c)| c.fill(bias[i % bias.len()]));
    }
    let kernel: Vec<usize> = ws[2..].to_vec();
    let taps: usize = kernel.iter().product();
    let positions: usize = axes.iter().map(|a| a.output).product();
    if y.is_empty() || positions == 0 || inputs == 0 {
        return one(cast(&Tensor::new(shape, y)?, dtype)?);
    }
    let (x, w) = (x.as_slice::<T>()?, w.as_slice::<T>()?);
    let indices: Vec<Vec<usize>> = (0..taps).map(|t| unravel(t, &kernel)).collect();
    let plane_strides = strides(&shape[2..]);
    let step = axes.last().map_or(1, |a| a.stride);
    let rows = (BLOCK / taps.saturating_mul(positions).max(1)).clamp(1, outputs.max(1));
    let mut tasks = Vec::new();
    for (i, part) in y.chunks_mut(outputs * plane).enumerate() {
        tasks.extend(tiles(view_mut((outputs, plane), part)?, rows, plane).into_iter().map(|t| (i, t)));
    }
    run_all(tasks, |(i, (row, _, mut out))| {
        let group = i % groups;
        let height = out.nrows();
        let weights = view((inputs, outputs * taps), &w[group * inputs * outputs * taps..][..inputs * outputs * taps])?;
        let weights = weights.slice(s![.., row * taps..(row + height) * taps]);
        let mut block = filled(checked_product(&[height, taps, positions])?, T::zero())?;
        add_mul(
            &weights.t(),
            &view((inputs, positions), &x[i * inputs * positions..][..inputs * positions])?,
            &mut view_mut((height * taps, positions), &mut block)?,
        );
        let Some(out) = out.as_slice_mut() else { invalid!("an output plane is not contiguous") };
        for (m, plane) in out.chunks_mut(plane).enumerate() {
            for (t, k) in indices.iter().enumerate() {
                let column = &block[(m * taps + t) * positions..][..positions];
                for_each_run(&axes, &plane_strides, k, 0..positions, |o, n, to| {
                    plane[to..].iter_mut().step_by(step).zip(&column[o..][..n]).for_each(|(y, &x)| *y = *y + x);
                });
            }
        }
        Ok(())
    })?;
    one(cast(&Tensor::new(shape, y)?, dtype)?)
}
