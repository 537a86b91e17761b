//! Pooling: the greatest, the mean or the norm of what lies under a sliding window, or of whole planes; and its inverse.

use super::util::{Real, checked_product, filled, for_each_chunk, real_dtype};
use super::window::{Axis, Span, Window, advance};
use super::{Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, one};
use crate::ir::{Attr, Attrs, Dim};
use crate::tensor::{DType, Number, Tensor, Value, cast, strides};
use crate::{dispatch_number, invalid, unsupported};

const AVERAGE_ATTRS: &[&str] = &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"];
const LP_ATTRS: &[&str] = &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "p", "pads", "strides"];
const MAX_ATTRS: &[&str] = &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"];

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("AveragePool", &[1, 7, 10, 11, 19, 22]).attrs(AVERAGE_ATTRS).infer(infer).kernel(build_average),
    OpDef::new("GlobalAveragePool", &[1, 22]).infer(infer_global).kernel(|cx| build_global(cx, Fold::Mean { with_pads: false })),
    OpDef::new("GlobalLpPool", &[1, 2, 22]).attrs(&["p"]).infer(infer_global).kernel(|cx| build_global(cx, Fold::norm(cx.attrs)?)),
    OpDef::new("GlobalMaxPool", &[1, 22]).infer(infer_global).kernel(|cx| build_global(cx, Fold::Max)),
    OpDef::new("LpPool", &[1, 2, 11, 18, 22]).attrs(LP_ATTRS).infer(infer).kernel(build_lp),
    OpDef::new("MaxPool", &[1, 8, 10, 11, 12, 22]).outputs(1, 2).attrs(MAX_ATTRS).infer(infer).kernel(build_max),
    OpDef::new("MaxUnpool", &[9, 11, 22]).inputs(2, 3).attrs(&["kernel_shape", "pads", "strides"]).infer(infer_unpool).kernel(build_unpool),
];

/// What becomes of the elements under a window.
#[derive(Debug, Clone, Copy)]
enum Fold {
    Max,
    Mean { with_pads: bool },
    Norm { p: f64 },
}

impl Fold {
    fn norm(attrs: &Attrs) -> Result<Self, OpError> {
        // A float in version 1 of the standard, an int after.
        let p = match attrs.get("p") {
            Some(Attr::Float(p)) => f64::from(*p),
            _ => attrs.int_or("p", 2)? as f64,
        };
        if p.is_nan() || p <= 0.0 {
            invalid!("attribute \"p\": expected a positive number, found {p}");
        }
        Ok(Fold::Norm { p })
    }
}

/// The dims of the kernel, which the attribute must give.
fn kernel_of(window: &Window) -> Result<&[usize], OpError> {
    match &window.kernel {
        Some(k) => Ok(k),
        None => invalid!("attribute \"kernel_shape\" is missing"),
    }
}

fn infer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let window = Window::read(cx.op.attrs)?;
    let kernel: Vec<Option<usize>> = kernel_of(&window)?.iter().map(|&k| Some(k)).collect();
    let shape = match cx.shape(0) {
        Some(x) if x.len() < 3 => invalid!("input 0: expected rank 3 or more, found {}", x.len()),
        Some(x) => x[..2].iter().cloned().chain(window.infer(&x[2..], &kernel)?).collect(),
        None => vec![Dim::Unknown; kernel.len() + 2],
    };
    let fact = |slot| Fact::partial(if slot == 1 { Some(DType::I64) } else { cx.dtype(0) }, Some(shape.clone()));
    Ok((0..cx.op.outputs.len()).map(fact).collect())
}

fn infer_global(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let shape = cx.shape(0).map(|x| x.iter().enumerate().map(|(i, d)| if i < 2 { d.clone() } else { Dim::Known(1) }).collect());
    Ok(vec![Fact::partial(cx.dtype(0), shape)])
}

/// The windows over a plane.
struct Plan {
    axes: Vec<Axis>,
    spans: Vec<Vec<Span>>,
    strides: Vec<usize>,
    outputs: Vec<usize>,
    plane: usize,
}

impl Plan {
    fn new(axes: Vec<Axis>) -> Self {
        let inputs: Vec<usize> = axes.iter().map(|a| a.input).collect();
        Self {
            spans: axes.iter().map(|a| (0..a.output).map(|o| a.span(o)).collect()).collect(),
            strides: strides(&inputs),
            outputs: axes.iter().map(|a| a.output).collect(),
            plane: inputs.iter().product(),
            axes,
        }
    }

    /// Visits the rows under the window of one output: `f(first position, count)`; positions are the last dilation apart.
    fn rows<F: FnMut(usize, usize)>(&self, d: usize, base: usize, index: &[usize], f: &mut F) {
        let span = self.spans[d][index[d]];
        if d + 1 == self.spans.len() {
            return f(base + span.first, span.count);
        }
        for k in 0..span.count {
            self.rows(d + 1, base + (span.first + k * self.axes[d].dilation) * self.strides[d], index, f);
        }
    }

    /// Fills each output of each plane with `fold(plane's number, its elements, index of the output)`.
    fn fill<T: Sync, U: Send>(&self, x: &[T], y: &mut [U], fold: impl Fn(usize, &[T], &[usize]) -> U + Sync + Send) {
        for_each_chunk(y, self.outputs.iter().product(), |i, out| {
            let plane = &x[i * self.plane..][..self.plane];
            let mut index = vec![0; self.outputs.len()];
            for y in out {
                *y = fold(i, plane, &index);
                advance(&mut index, &self.outputs);
            }
        });
    }

    fn step(&self) -> usize {
        self.axes.last().map_or(1, |a| a.dilation)
    }
}

/// The windows along each axis of `x`, and the dims of the output.
fn windows(window: &Window, x: &Tensor) -> Result<(Vec<Axis>, Vec<usize>), OpError> {
    if x.rank() < 3 {
        invalid!("input 0: expected rank 3 or more, found {}", x.rank());
    }
    let axes = window.axes(&x.shape()[2..], kernel_of(window)?)?;
    let mut shape = x.shape()[..2].to_vec();
    shape.extend(axes.iter().map(|a| a.output));
    Ok((axes, shape))
}

fn build_average(cx: &OpCtx) -> Result<Kernel, OpError> {
    let with_pads = cx.attrs.int_or("count_include_pad", 0)? != 0;
    build_real(cx, Fold::Mean { with_pads })
}

fn build_lp(cx: &OpCtx) -> Result<Kernel, OpError> {
    build_real(cx, Fold::norm(cx.attrs)?)
}

fn build_real(cx: &OpCtx, fold: Fold) -> Result<Kernel, OpError> {
    let window = Window::read(cx.attrs)?;
    kernel_of(&window)?;
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        match real_dtype(x.dtype())? {
            DType::F64 => real::<f64>(&window, x, fold),
            _ => real::<f32>(&window, x, fold),
        }
    }))
}

fn real<T: Real>(window: &Window, x: &Tensor, fold: Fold) -> Result<Outputs, OpError> {
    let (axes, shape) = windows(window, x)?;
    let mut y = filled(checked_product(&shape)?, T::zero())?;
    let wide = cast(x, T::DTYPE)?;
    let xs = wide.to_slice::<T>()?;
    if !y.is_empty() {
        let plan = Plan::new(axes);
        let step = plan.step();
        plan.fill(&xs, &mut y, |_, plane, index| {
            let mut row_sum = T::zero();
            plan.rows(0, 0, index, &mut |first, count| {
                let row = plane.get(first..).unwrap_or_default().iter().step_by(step).take(count);
                row_sum = row_sum + row.map(|&x| term(x, fold)).sum();
            });
            let counts = index.iter().enumerate().map(|(d, &o)| match fold {
                Fold::Mean { with_pads: true } => plan.axes[d].padded(o),
                _ => plan.spans[d][o].count,
            });
            // A window that lies in pads alone has no mean; it gives 0.
            result(row_sum, counts.map(|n| n as f64).product::<f64>().max(1.0), fold)
        });
    }
    one(cast(&Tensor::new(shape, y)?, x.dtype())?)
}

/// What an element adds to the sum.
fn term<T: Real>(x: T, fold: Fold) -> T {
    match fold {
        Fold::Norm { p: 1.0 } => x.abs(),
        Fold::Norm { p: 2.0 } => x * x,
        Fold::Norm { p } => x.abs().powf(T::of(p)),
        _ => x,
    }
}

/// What the sum of `count` elements comes to.
fn result<T: Real>(sum: T, count: f64, fold: Fold) -> T {
    match fold {
        Fold::Norm { p: 1.0 } | Fold::Max => sum,
        Fold::Norm { p: 2.0 } => sum.sqrt(),
        Fold::Norm { p } => sum.powf(T::of(1.0 / p)),
        Fold::Mean { .. } => sum / T::of(count),
    }
}

fn build_max(cx: &OpCtx) -> Result<Kernel, OpError> {
    let window = Window::read(cx.attrs)?;
    kernel_of(&window)?;
    let column_major = cx.attrs.int_or("storage_order", 0)? != 0;
    let with_indices = cx.wants(1);
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        match x.dtype() {
            DType::F16 | DType::BF16 | DType::F32 | DType::F64 | DType::I8 | DType::U8 => {}
            other => invalid!("input 0: expected a float of 16 bits or more, int8 or uint8, found {other}"),
        }
        dispatch_number!(x.dtype(), T => max::<T>(&window, x, with_indices, column_major), other => unsupported!("input 0 must be numbers, found {other}"))
    }))
}

/// Position of the greatest element under a window, the first of equal ones; a number goes before NaN.
fn greatest<T: Number>(plan: &Plan, plane: &[T], index: &[usize]) -> Option<usize> {
    let step = plan.step();
    let mut best: Option<(usize, T)> = None;
    plan.rows(0, 0, index, &mut |first, count| {
        for at in (first..).step_by(step).take(count) {
            let x = plane[at];
            if best.is_none_or(|(_, b)| x > b || b.partial_cmp(&b).is_none()) {
                best = Some((at, x));
            }
        }
    });
    best.map(|b| b.0)
}

fn max<T: Number>(window: &Window, x: &Tensor, with_indices: bool, column_major: bool) -> Result<Outputs, OpError> {
    let (axes, shape) = windows(window, x)?;
    let len = checked_product(&shape)?;
    let mut y = filled(len, T::lowest())?;
    let mut indices = filled(if with_indices { len } else { 0 }, -1i64)?;
    let xs = x.to_slice::<T>()?;
    if len > 0 {
        let plan = Plan::new(axes);
        if with_indices {
            plan.fill(&xs, &mut indices, |i, plane, index| greatest(&plan, plane, index).map_or(-1, |at| (i * plan.plane + at) as i64));
            y.iter_mut().zip(&indices).filter(|(_, i)| **i >= 0).for_each(|(y, &i)| *y = xs[i as usize]);
        } else {
            plan.fill(&xs, &mut y, |_, plane, index| greatest(&plan, plane, index).map_or(T::lowest(), |at| plane[at]));
        }
        if column_major {
            let dims: Vec<usize> = plan.axes.iter().map(|a| a.input).collect();
            indices.iter_mut().filter(|i| **i >= 0).for_each(|i| *i = to_column_major(*i as usize, plan.plane, &dims) as i64);
        }
    }
    let mut out = Outputs::from_iter([Value::Tensor(Tensor::new(shape.clone(), y)?)]);
    if with_indices {
        out.push(Value::Tensor(Tensor::new(shape, indices)?));
    }
    Ok(out)
}

/// A flat position with the first axis of its plane fastest instead of the last.
fn to_column_major(position: usize, plane: usize, dims: &[usize]) -> usize {
    let index = super::window::unravel(position % plane, dims);
    let mut stride = 1;
    let mut at = position - position % plane;
    for (i, d) in index.iter().zip(dims) {
        at += i * stride;
        stride *= d;
    }
    at
}

fn build_global(_: &OpCtx, fold: Fold) -> Result<Kernel, OpError> {
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        match real_dtype(x.dtype())? {
            DType::F64 => global::<f64>(x, fold),
            _ => global::<f32>(x, fold),
        }
    }))
}

fn global<T: Real>(x: &Tensor, fold: Fold) -> Result<Outputs, OpError> {
    if x.rank() < 2 {
        invalid!("input 0: expected rank 2 or more, found {}", x.rank());
    }
    let shape: Vec<usize> = x.shape().iter().enumerate().map(|(i, &d)| if i < 2 { d } else { 1 }).collect();
    let plane = checked_product(&x.shape()[2..])?;
    let wide = cast(x, T::DTYPE)?;
    let xs = wide.to_slice::<T>()?;
    let mut y = filled(checked_product(&shape)?, T::zero())?;
    // Planes are the grain here: outputs are few, their inputs many.
    let planes: Vec<usize> = (0..y.len()).collect();
    let fold_plane = |i: usize| {
        let plane = &xs[i * plane..][..plane];
        match fold {
            Fold::Max => plane.iter().copied().fold(T::neg_infinity(), |a, b| if b > a { b } else { a }),
            _ => result(plane.iter().map(|&x| term(x, fold)).sum(), plane.len() as f64, fold),
        }
    };
    if xs.len() < 2 * super::util::GRAIN {
        y.iter_mut().zip(planes).for_each(|(y, i)| *y = fold_plane(i));
    } else {
        super::util::chunks_in_parallel(&mut y, 1, 1, &|i, y| y[0] = fold_plane(i));
    }
    one(cast(&Tensor::new(shape, y)?, x.dtype())?)
}

/// The dims that pooling came from: those that an unpadded, whole number of windows covers.
fn unpooled(window: &Window, dims: &[usize]) -> Result<Vec<usize>, OpError> {
    let axes = window.base(dims, kernel_of(window)?)?;
    axes.iter()
        .map(|a| {
            let covered = (a.input as i64 - 1).checked_mul(a.stride as i64).map(|n| n - a.head - a.tail + a.kernel as i64);
            match covered.and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(n),
                None => invalid!("{} windows of {} with pads {} and {} cover no size", a.input, a.kernel, a.head, a.tail),
            }
        })
        .collect()
}

fn infer_unpool(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    if cx.has(2) {
        let rank = cx.rank(0);
        return Ok(vec![Fact::partial(cx.dtype(0), cx.dims(2).or(rank.map(|r| vec![Dim::Unknown; r])))]);
    }
    let window = Window::read(cx.op.attrs)?;
    let Some(x) = cx.shape(0) else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    if x.len() < 3 {
        invalid!("input 0: expected rank 3 or more, found {}", x.len());
    }
    let mut out = x[..2].to_vec();
    match x[2..].iter().map(Dim::known).collect::<Option<Vec<_>>>() {
        Some(dims) => out.extend(unpooled(&window, &dims)?.into_iter().map(Dim::Known)),
        None => out.extend(vec![Dim::Unknown; x.len() - 2]),
    }
    Ok(vec![Fact::partial(cx.dtype(0), Some(out))])
}

fn build_unpool(cx: &OpCtx) -> Result<Kernel, OpError> {
    let window = Window::read(cx.attrs)?;
    kernel_of(&window)?;
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        if x.rank() < 3 {
            invalid!("input 0: expected rank 3 or more, found {}", x.rank());
        }
        if args.tensor(1)?.shape() != x.shape() {
            invalid!("input 1: expected shape {}, found {}", x.shape(), args.tensor(1)?.shape());
        }
        let mut covered = x.shape()[..2].to_vec();
        covered.extend(unpooled(&window, &x.shape()[2..])?);
        let shape = match args.opt_ints(2)? {
            Some(s) if s.len() == x.rank() && s.iter().zip(&covered).all(|(&s, &c)| usize::try_from(s).is_ok_and(|s| s >= c)) => {
                s.iter().map(|&s| s as usize).collect()
            }
            Some(s) => invalid!("input 2: expected a shape of at least {covered:?}, found {s:?}"),
            None => covered.clone(),
        };
        let indices = args.ints(1)?;
        one(
            dispatch_number!(x.dtype(), T => unpool::<T>(x, &indices, &covered, &shape)?, other => unsupported!("input 0 must be numbers, found {other}")),
        )
    }))
}

/// Puts each element back where its index says, counted over `covered`, in the corner of an output of `shape`.
fn unpool<T: Number>(x: &Tensor, indices: &[i64], covered: &[usize], shape: &[usize]) -> Result<Tensor, OpError> {
    let len = checked_product(covered)?;
    let mut y = filled(checked_product(shape)?, T::ZERO)?;
    let out_strides = strides(shape);
    for (&x, &i) in x.to_slice::<T>()?.iter().zip(indices) {
        let Some(at) = usize::try_from(i).ok().filter(|&i| i < len) else { invalid!("index {i} is out of range for {len} elements") };
        let index = super::window::unravel(at, covered);
        y[index.iter().zip(&out_strides).map(|(i, s)| i * s).sum::<usize>()] = x;
    }
    Ok(Tensor::new(shape, y)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{run, run_values};

    fn square() -> Tensor {
        Tensor::new([1, 1, 3, 3], (1..=9).map(|x| x as f32).collect()).unwrap()
    }

    fn pads() -> Attrs {
        Attrs::new().with("kernel_shape", vec![2i64, 2]).with("pads", vec![1i64, 1, 0, 0]).with("strides", vec![2i64, 2])
    }

    #[test]
    fn a_mean_counts_pads_if_it_is_told() {
        let y = run("AveragePool", 22, pads(), &[square()]).unwrap();
        assert_eq!(y.to_f32s().unwrap(), [1.0, 2.5, 5.5, 7.0]);
        let y = run("AveragePool", 22, pads().with("count_include_pad", 1), &[square()]).unwrap();
        assert_eq!(y.to_f32s().unwrap(), [0.25, 1.25, 2.75, 7.0]);
    }

    #[test]
    fn indices_count_in_the_storage_order() {
        let max = |attrs: Attrs| run_values("MaxPool", 12, attrs, vec![Some(square().into())], 2).unwrap();
        let out = max(pads());
        assert_eq!(out[0].as_tensor().unwrap().to_f32s().unwrap(), [1.0, 3.0, 7.0, 9.0]);
        assert_eq!(out[1].as_tensor().unwrap().to_i64s().unwrap(), [0, 2, 6, 8]);
        let out = max(pads().with("storage_order", 1));
        assert_eq!(out[1].as_tensor().unwrap().to_i64s().unwrap(), [0, 6, 2, 8]);
    }

    #[test]
    fn unpooling_refuses_an_index_outside() {
        let attrs = || Attrs::new().with("kernel_shape", vec![2i64]).with("strides", vec![2i64]);
        let x = Tensor::new([1, 1, 2], vec![5f32, 6.0]).unwrap();
        let y = run("MaxUnpool", 22, attrs(), &[x.clone(), Tensor::new([1, 1, 2], vec![1i64, 3]).unwrap()]).unwrap();
        assert_eq!(y.to_f32s().unwrap(), [0.0, 5.0, 0.0, 6.0]);
        assert!(run("MaxUnpool", 22, attrs(), &[x, Tensor::new([1, 1, 2], vec![1i64, 4]).unwrap()]).is_err());
    }
}
