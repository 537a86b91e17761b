//! Convolution and what is built from it: transposed, deformable, quantized and causal convolution, and Col2Im.

mod causal;
mod col2im;
mod deform;
mod forward;
mod integer;
mod transpose;

use super::util::{Real, real_dtype};
use super::window::{Axis, Window, unravel};
use super::{Args, Fact, InferCtx, OpDef, OpError};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{DType, Tensor, cast, strides};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

const ATTRS: &[&str] = &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("CausalConvWithState", &[27]).inputs(2, 4).outputs(2, 2).attrs(&["activation"]).infer(causal::infer).kernel(causal::build),
    OpDef::new("Col2Im", &[18]).inputs(3, 3).attrs(&["dilations", "pads", "strides"]).infer(col2im::infer).kernel(col2im::build),
    OpDef::new("Conv", &[1, 11, 22]).inputs(2, 3).attrs(ATTRS).infer(forward::infer).kernel(forward::build),
    OpDef::new("ConvInteger", &[10]).inputs(2, 4).attrs(ATTRS).infer(integer::infer_integer).kernel(integer::build_integer),
    OpDef::new("ConvTranspose", &[1, 11, 22])
        .inputs(2, 3)
        .attrs(&["auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"])
        .infer(transpose::infer)
        .kernel(transpose::build),
    OpDef::new("DeformConv", &[19, 22])
        .inputs(3, 5)
        .attrs(&["dilations", "group", "kernel_shape", "offset_group", "pads", "strides"])
        .infer(forward::infer)
        .kernel(deform::build),
    OpDef::new("QLinearConv", &[10]).inputs(8, 9).attrs(ATTRS).infer(integer::infer_qlinear).kernel(integer::build_qlinear),
];

/// The attributes of a convolution.
#[derive(Debug, Clone)]
struct Spec {
    window: Window,
    group: usize,
}

impl Spec {
    fn read(attrs: &crate::ir::Attrs) -> Result<Self, OpError> {
        Ok(Self { window: Window::read(attrs)?, group: count(attrs, "group")? })
    }
}

/// An attribute that counts groups; 1 by default.
fn count(attrs: &crate::ir::Attrs, name: &str) -> Result<usize, OpError> {
    match attrs.int_or(name, 1)? {
        n @ 1.. => Ok(n as usize),
        n => invalid!("attribute \"{name}\": expected a positive number, found {n}"),
    }
}

/// The sizes of a convolution: `groups` times from `inputs` to `outputs` channels.
#[derive(Debug, Clone)]
struct Sizes {
    batch: usize,
    groups: usize,
    inputs: usize,
    outputs: usize,
    axes: Vec<Axis>,
}

impl Sizes {
    /// From the dims of the input `[N, C, ..]` and the weights `[M, C/group, ..]`.
    fn new(spec: &Spec, x: &[usize], w: &[usize]) -> Result<Self, OpError> {
        if x.len() < 3 || w.len() != x.len() {
            invalid!("expected input and weights of one rank from 3 up, found ranks {} and {}", x.len(), w.len());
        }
        let groups = spec.group;
        if w[1].checked_mul(groups) != Some(x[1]) || !w[0].is_multiple_of(groups) {
            invalid!("{} input channels in {groups} groups do not fit weights of {} x {} channels", x[1], w[0], w[1]);
        }
        Ok(Self { batch: x[0], groups, inputs: w[1], outputs: w[0] / groups, axes: spec.window.axes(&x[2..], &w[2..])? })
    }

    /// Dims of the output.
    fn shape(&self) -> Vec<usize> {
        [self.batch, self.groups * self.outputs].into_iter().chain(self.axes.iter().map(|a| a.output)).collect()
    }

    fn kernel(&self) -> Vec<usize> {
        self.axes.iter().map(|a| a.kernel).collect()
    }

    fn input_dims(&self) -> Vec<usize> {
        self.axes.iter().map(|a| a.input).collect()
    }

    fn input_strides(&self) -> Vec<usize> {
        strides(&self.input_dims())
    }

    /// Elements of an input plane.
    fn plane(&self) -> usize {
        self.axes.iter().map(|a| a.input).product()
    }

    /// Elements of the kernel of one channel.
    fn taps(&self) -> usize {
        self.axes.iter().map(|a| a.kernel).product()
    }

    /// Elements of an output plane.
    fn positions(&self) -> usize {
        self.axes.iter().map(|a| a.output).product()
    }

    /// The index of each kernel element.
    fn tap_indices(&self) -> Vec<Vec<usize>> {
        let kernel = self.kernel();
        (0..self.taps()).map(|t| unravel(t, &kernel)).collect()
    }
}

/// The bias, one value per output channel; a single value stands for all.
fn bias<T: Real>(args: &Args, i: usize, dtype: DType, channels: usize) -> Result<Option<Vec<T>>, OpError> {
    let Some(b) = args.opt(i)? else { return Ok(None) };
    if b.dtype() != dtype {
        invalid!("input {i}: expected {dtype}, found {}", b.dtype());
    }
    let b: Vec<T> = cast(b, T::DTYPE)?.into_vec()?;
    match b.len() {
        n if n == channels => Ok(Some(b)),
        1 => Ok(Some(vec![b[0]; channels])),
        n => invalid!("input {i}: expected {channels} values, found {n}"),
    }
}

/// A float input in the dtype it is computed in.
fn real<T: Real>(args: &Args, i: usize, dtype: DType) -> Result<Tensor, OpError> {
    let t = args.tensor(i)?;
    if t.dtype() != dtype {
        invalid!("input {i}: expected {dtype}, found {}", t.dtype());
    }
    real_dtype(dtype)?;
    Ok(cast(t, T::DTYPE)?.aligned())
}

/// `out += a · b`.
fn add_mul<T: Real>(a: &ArrayView2<T>, b: &ArrayView2<T>, out: &mut ArrayViewMut2<T>) {
    general_mat_mul(T::one(), a, b, T::one(), out);
}

fn view<T>(dims: (usize, usize), data: &[T]) -> Result<ArrayView2<'_, T>, OpError> {
    ArrayView2::from_shape(dims, data).map_err(|e| OpError::Invalid(e.to_string()))
}

fn view_mut<T>(dims: (usize, usize), data: &mut [T]) -> Result<ArrayViewMut2<'_, T>, OpError> {
    ArrayViewMut2::from_shape(dims, data).map_err(|e| OpError::Invalid(e.to_string()))
}

/// The kernel dims as far as the weights' dims (or the attribute) tell.
fn known_kernel(cx: &InferCtx, window: &Window, weights: usize, rank: usize) -> Vec<Option<usize>> {
    match (&window.kernel, cx.shape(weights)) {
        (Some(k), _) => k.iter().map(|&k| Some(k)).collect(),
        (None, Some(w)) if w.len() >= 2 => w[2..].iter().map(Dim::known).collect(),
        _ => vec![None; rank],
    }
}

/// The type of a convolution of input `x` with the weights at input `weights`.
fn infer_conv(cx: &InferCtx, weights: usize, dtype: Option<DType>) -> Result<Vec<Fact>, OpError> {
    let window = Window::read(cx.op.attrs)?;
    let (x, w) = (cx.shape(0), cx.shape(weights));
    let Some(x) = x else {
        let rank = w.map(<[Dim]>::len).or(window.kernel.as_ref().map(|k| k.len() + 2));
        return Ok(vec![Fact::partial(dtype, rank.map(|r| vec![Dim::Unknown; r]))]);
    };
    if x.len() < 3 || w.is_some_and(|w| w.len() != x.len()) {
        invalid!("expected input and weights of one rank from 3 up, found ranks {} and {}", x.len(), w.map_or(0, <[Dim]>::len));
    }
    let kernel = known_kernel(cx, &window, weights, x.len() - 2);
    if kernel.len() != x.len() - 2 {
        invalid!("attribute \"kernel_shape\": expected {} values, found {}", x.len() - 2, kernel.len());
    }
    let mut out = vec![x[0].clone(), w.map_or(Dim::Unknown, |w| w[0].clone())];
    out.extend(window.infer(&x[2..], &kernel)?);
    Ok(vec![Fact::partial(dtype, Some(out))])
}
