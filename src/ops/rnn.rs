//! Recurrent networks: RNN, GRU and LSTM, one loop over time with a cell each.

use super::util::{Real, checked_product, filled, real_dtype};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{DType, Tensor, Value, cast};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

const ATTRS: &[&str] =
    &["activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout", "output_sequence"];
const GRU_ATTRS: &[&str] = &[
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "layout",
    "linear_before_reset",
    "output_sequence",
];
const LSTM_ATTRS: &[&str] = &[
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "input_forget",
    "layout",
    "output_sequence",
];

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("GRU", &[1, 3, 7, 14, 22]).inputs(3, 6).outputs(0, 2).attrs(GRU_ATTRS).infer(infer).kernel(|cx| build(cx, Cell::Gru)),
    OpDef::new("LSTM", &[1, 7, 14, 22]).inputs(3, 8).outputs(0, 3).attrs(LSTM_ATTRS).infer(infer).kernel(|cx| build(cx, Cell::Lstm)),
    OpDef::new("RNN", &[1, 7, 14, 22]).inputs(3, 6).outputs(0, 2).attrs(ATTRS).infer(infer).kernel(|cx| build(cx, Cell::Rnn)),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Rnn,
    Gru,
    Lstm,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Rnn => 1,
            Cell::Gru => 3,
            Cell::Lstm => 4,
        }
    }

    fn default_activations(self) -> &'static [&'static str] {
        match self {
            Cell::Rnn => &["Tanh"],
            Cell::Gru => &["Sigmoid", "Tanh"],
            Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Affine,
    Elu,
    HardSigmoid,
    LeakyRelu,
    Relu,
    ScaledTanh,
    Sigmoid,
    Softplus,
    Softsign,
    Tanh,
    ThresholdedRelu,
}

/// An activation with its constants.
#[derive(Debug, Clone, Copy)]
struct Activation {
    function: Function,
    alpha: f32,
    beta: f32,
}

impl Activation {
    /// Reads the activation of this name; takes its constants from the lists, which hold those of the functions that have
    /// one, in order.
    fn read(name: &str, alphas: &mut &[f32], betas: &mut &[f32]) -> Result<Self, OpError> {
        let (function, alpha, beta) = match name.to_ascii_lowercase().as_str() {
            "affine" => (Function::Affine, Some(1.0), Some(0.0)),
            "elu" => (Function::Elu, Some(1.0), None),
            "hardsigmoid" => (Function::HardSigmoid, Some(0.2), Some(0.5)),
            "leakyrelu" => (Function::LeakyRelu, Some(0.01), None),
            "relu" => (Function::Relu, None, None),
            "scaledtanh" => (Function::ScaledTanh, Some(1.0), Some(1.0)),
            "sigmoid" => (Function::Sigmoid, None, None),
            "softplus" => (Function::Softplus, None, None),
            "softsign" => (Function::Softsign, None, None),
            "tanh" => (Function::Tanh, None, None),
            "thresholdedrelu" => (Function::ThresholdedRelu, Some(1.0), None),
            _ => invalid!("attribute \"activations\": unknown activation \"{name}\""),
        };
        let next = |list: &mut &[f32], default: Option<f32>| match (default, *list) {
            (Some(_), [first, rest @ ..]) => {
                *list = rest;
                *first
            }
            (default, _) => default.unwrap_or(0.0),
        };
        Ok(Self { function, alpha: next(alphas, alpha), beta: next(betas, beta) })
    }

    fn apply<T: Real>(&self, x: T) -> T {
        let (a, b, one, zero) = (T::of(self.alpha.into()), T::of(self.beta.into()), T::one(), T::zero());
        match self.function {
            Function::Affine => a * x + b,
            Function::Elu => {
                if x < zero {
                    a * x.exp_m1()
                } else {
                    x
                }
            }
            Function::HardSigmoid => (a * x + b).max(zero).min(one),
            Function::LeakyRelu => {
                if x < zero {
                    a * x
                } else {
                    x
                }
            }
            Function::Relu => x.max(zero),
            Function::ScaledTanh => a * (b * x).tanh(),
            Function::Sigmoid => one / (one + (-x).exp()),
            // ln(1 + e^x), without overflow for large x.
            Function::Softplus => x.max(zero) + (-x.abs()).exp().ln_1p(),
            Function::Softsign => x / (one + x.abs()),
            Function::Tanh => x.tanh(),
            Function::ThresholdedRelu => {
                if x > a {
                    x
                } else {
                    zero
                }
            }
        }
    }
}

/// What the attributes say.
struct Spec {
    cell: Cell,
    hidden: Option<usize>,
    /// One entry per direction: whether it runs backwards, and its activations f, g, h (those that the cell has not: f).
    directions: Vec<(bool, [Activation; 3])>,
    clip: Option<f32>,
    batch_first: bool,
    linear_before_reset: bool,
    input_forget: bool,
    outputs: usize,
}

impl Spec {
    fn read(cx: &OpCtx, cell: Cell) -> Result<Self, OpError> {
        let attrs = cx.attrs;
        // Version 1 of the standard spells its own default so.
        let backwards: &[bool] = match attrs.string_or("direction", "forward")? {
            "forward" | "foward" => &[false],
            "reverse" => &[true],
            "bidirectional" => &[false, true],
            other => invalid!("attribute \"direction\": expected forward, reverse or bidirectional, found \"{other}\""),
        };
        let defaults = cell.default_activations();
        let names = match attrs.strings("activations")? {
            Some(names) if !names.is_empty() => names,
            _ => defaults.iter().cycle().take(defaults.len() * backwards.len()).map(|s| (*s).to_owned()).collect(),
        };
        if names.len() != defaults.len() * backwards.len() {
            invalid!("attribute \"activations\": expected {} names, found {}", defaults.len() * backwards.len(), names.len());
        }
        let mut alphas = attrs.floats("activation_alpha")?.unwrap_or_default();
        let mut betas = attrs.floats("activation_beta")?.unwrap_or_default();
        let mut directions = Vec::new();
        for (&back, names) in backwards.iter().zip(names.chunks(defaults.len())) {
            let read = names.iter().map(|n| Activation::read(n, &mut alphas, &mut betas)).collect::<Result<Vec<_>, _>>()?;
            let at = |i: usize| read.get(i).copied().unwrap_or(read[0]);
            directions.push((back, [at(0), at(1), at(2)]));
        }
        let clip = attrs.float("clip")?;
        if clip.is_some_and(|c| c.is_nan() || c <= 0.0) {
            invalid!("attribute \"clip\": expected a positive number, found {}", clip.unwrap_or_default());
        }
        let hidden = match attrs.int("hidden_size")? {
            Some(h) => match usize::try_from(h) {
                Ok(h) => Some(h),
                Err(_) => invalid!("attribute \"hidden_size\": expected a positive number, found {h}"),
            },
            None => None,
        };
        Ok(Self {
            cell,
            hidden,
            directions,
            clip,
            batch_first: attrs.int_or("layout", 0)? != 0,
            linear_before_reset: attrs.int_or("linear_before_reset", 0)? != 0,
            input_forget: attrs.int_or("input_forget", 0)? != 0,
            outputs: cx.outputs.len(),
        })
    }
}

fn infer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dims = |i: usize, rank: usize| match cx.shape(i) {
        Some(s) if s.len() != rank => invalid!("input {i}: expected rank {rank}, found {}", s.len()),
        Some(s) => Ok(s.to_vec()),
        None => Ok(vec![Dim::Unknown; rank]),
    };
    let (x, r) = (dims(0, 3)?, dims(2, 3)?);
    let directions = Dim::Known(if cx.op.attrs.string_or("direction", "forward")? == "bidirectional" { 2 } else { 1 });
    let hidden = match cx.op.attrs.int("hidden_size")?.and_then(|h| usize::try_from(h).ok()) {
        Some(h) => Dim::Known(h),
        None => r[2].clone(),
    };
    let (y, last) = if cx.op.attrs.int_or("layout", 0)? != 0 {
        (vec![x[0].clone(), x[1].clone(), directions.clone(), hidden.clone()], vec![x[0].clone(), directions, hidden])
    } else {
        (vec![x[0].clone(), directions.clone(), x[1].clone(), hidden.clone()], vec![directions, x[1].clone(), hidden])
    };
    Ok((0..cx.op.outputs.len()).map(|i| Fact::partial(cx.dtype(0), Some(if i == 0 { y.clone() } else { last.clone() }))).collect())
}

fn build(cx: &OpCtx, cell: Cell) -> Result<Kernel, OpError> {
    let spec = Spec::read(cx, cell)?;
    Ok(Box::new(move |args| match real_dtype(args.tensor(0)?.dtype())? {
        DType::F64 => run::<f64>(&spec, &args),
        _ => run::<f32>(&spec, &args),
    }))
}

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    time: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    directions: usize,
}

/// An input as the computing dtype, of the shape that it must have.
fn input<T: Real>(args: &Args, i: usize, dtype: DType, shape: &[usize]) -> Result<Option<Tensor>, OpError> {
    let Some(t) = args.opt(i)? else { return Ok(None) };
    if t.dtype() != dtype {
        invalid!("input {i}: expected {dtype}, found {}", t.dtype());
    }
    if **t.shape() != *shape {
        invalid!("input {i}: expected shape {shape:?}, found {}", t.shape());
    }
    Ok(Some(cast(t, T::DTYPE)?.aligned()))
}

/// `[a, b, c]` as `[b, a, c]`.
fn swap<T: Clone>(x: &[T], a: usize, b: usize, c: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(x.len());
    for j in 0..b {
        for i in 0..a {
            out.extend_from_slice(&x[(i * b + j) * c..][..c]);
        }
    }
    out
}

fn run<T: Real>(spec: &Spec, args: &Args) -> Result<Outputs, OpError> {
    let (x, w, r) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    for (i, t) in [x, w, r].into_iter().enumerate() {
        if t.rank() != 3 {
            invalid!("input {i}: expected rank 3, found {}", t.rank());
        }
    }
    let dtype = x.dtype();
    let (time, batch) = if spec.batch_first { (x.shape()[1], x.shape()[0]) } else { (x.shape()[0], x.shape()[1]) };
    let s = Sizes { time, batch, input: x.shape()[2], hidden: r.shape()[2], directions: spec.directions.len() };
    if spec.hidden.is_some_and(|h| h != s.hidden) {
        invalid!("input 2: expected hidden size {}, found {}", spec.hidden.unwrap_or_default(), s.hidden);
    }
    let (d, h) = (s.directions, s.hidden);
    let rows = spec.cell.gates() * h;
    let first: &[usize] = if spec.batch_first { &[batch, d, h] } else { &[d, batch, h] };
    let x = cast(x, T::DTYPE)?.aligned();
    let w = input::<T>(args, 1, dtype, &[d, rows, s.input])?.unwrap_or_default();
    let r = input::<T>(args, 2, dtype, &[d, rows, h])?.unwrap_or_default();
    let b = input::<T>(args, 3, dtype, &[d, 2 * rows])?;
    let h0 = input::<T>(args, 5, dtype, first)?;
    let lstm = spec.cell == Cell::Lstm;
    let c0 = if lstm { input::<T>(args, 6, dtype, first)? } else { None };
    let p = if lstm { input::<T>(args, 7, dtype, &[d, 3 * h])? } else { None };
    let lens = lengths(args, s)?;

    let state = |t: Option<Tensor>| -> Result<Vec<T>, OpError> {
        match t {
            Some(t) if spec.batch_first => Ok(swap(t.as_slice::<T>()?, batch, d, h)),
            Some(t) => Ok(t.into_vec()?),
            None => filled(checked_product(&[d, batch, h])?, T::zero()),
        }
    };
    let (mut hs, mut cs) = (state(h0)?, if lstm { state(c0)? } else { Vec::new() });
    let xs = if spec.batch_first { swap(x.as_slice::<T>()?, batch, time, s.input) } else { x.into_vec()? };
    let mut y = filled(checked_product(&[time, d, batch, h])?, T::zero())?;
    for i in 0..d {
        let weights = Weights {
            w: &w.as_slice::<T>()?[i * rows * s.input..][..rows * s.input],
            r: &r.as_slice::<T>()?[i * rows * h..][..rows * h],
            b: b.as_ref().map(|b| b.as_slice::<T>()).transpose()?.map(|b| &b[i * 2 * rows..][..2 * rows]),
            p: p.as_ref().map(|p| p.as_slice::<T>()).transpose()?.map(|p| &p[i * 3 * h..][..3 * h]),
        };
        let of = i * batch * h..(i + 1) * batch * h;
        let c = if lstm { &mut cs[of.clone()] } else { &mut [][..] };
        direction(spec, s, i, &xs, &lens, &weights, &mut hs[of], c, &mut y)?;
    }

    // Both layouts of the states and of Y end in the same axes; batch comes first or last of the others.
    let last = |v: Vec<T>| -> Result<Value, OpError> {
        let v = if spec.batch_first { swap(&v, d, batch, h) } else { v };
        Ok(Value::Tensor(cast(&Tensor::new(first, v)?, dtype)?))
    };
    let y = if spec.batch_first {
        Tensor::new([batch, time, d, h], swap(&y, time * d, batch, h))?
    } else {
        Tensor::new([time, d, batch, h], y)?
    };
    let mut out = Outputs::from_iter([Value::Tensor(cast(&y, dtype)?), last(hs)?]);
    if lstm {
        out.push(last(cs)?);
    }
    out.truncate(spec.outputs);
    Ok(out)
}

/// How many steps each sequence has.
fn lengths(args: &Args, s: Sizes) -> Result<Vec<usize>, OpError> {
    let Some(lens) = args.opt_ints(4)? else { return Ok(vec![s.time; s.batch]) };
    if lens.len() != s.batch {
        invalid!("input 4: expected {} sequence lengths, found {}", s.batch, lens.len());
    }
    let fits = |&n: &i64| usize::try_from(n).ok().filter(|&n| n <= s.time);
    match lens.iter().find(|n| fits(n).is_none()) {
        Some(n) => invalid!("input 4: sequence length {n} is not in 0..={}", s.time),
        None => Ok(lens.iter().filter_map(fits).collect()),
    }
}

/// The weights of one direction.
struct Weights<'a, T> {
    w: &'a [T],
    r: &'a [T],
    b: Option<&'a [T]>,
    p: Option<&'a [T]>,
}

/// `out = a · bᵀ`, where `a` is `[m, k]` and `b` is `[n, k]`.
fn mul_t<T: Real>(a: &[T], b: &[T], out: &mut [T], (m, k, n): (usize, usize, usize)) -> Result<(), OpError> {
    let shape = |e: ndarray::ShapeError| OpError::Invalid(e.to_string());
    let a = ArrayView2::from_shape((m, k), a).map_err(shape)?;
    let b = ArrayView2::from_shape((n, k), b).map_err(shape)?;
    let mut out = ArrayViewMut2::from_shape((m, n), out).map_err(shape)?;
    general_mat_mul(T::one(), &a, &b.t(), T::zero(), &mut out);
    Ok(())
}

/// Runs one direction over all steps: `h` and `c` go from the first state to the last, `y` gets the states of each step.
#[allow(clippy::too_many_arguments)]
fn direction<T: Real>(
    spec: &Spec,
    s: Sizes,
    which: usize,
    xs: &[T],
    lens: &[usize],
    weights: &Weights<T>,
    h: &mut [T],
    c: &mut [T],
    y: &mut [T],
) -> Result<(), OpError> {
    let (back, acts) = &spec.directions[which];
    let (rows, hid) = (spec.cell.gates() * s.hidden, s.hidden);
    let mut xw = filled(checked_product(&[s.time, s.batch, rows])?, T::zero())?;
    mul_t(xs, weights.w, &mut xw, (s.time * s.batch, s.input, rows))?;
    let mut hr = filled(checked_product(&[s.batch, rows])?, T::zero())?;
    let zeros = vec![T::zero(); 2 * rows];
    let (wb, rb) = weights.b.unwrap_or(&zeros).split_at(rows);
    let clip = spec.clip.map(|c| T::of(c.into()));
    let act = |i: usize, x: T| acts[i].apply(clip.map_or(x, |c| x.max(-c).min(c)));
    // GRU that resets before its product with R: that product is taken apart.
    let reset_first = spec.cell == Cell::Gru && !spec.linear_before_reset;
    let mut update = vec![T::zero(); if reset_first { h.len() } else { 0 }];
    let mut reset = update.clone();
    let mut product_h = update.clone();
    for step in 0..s.time {
        let early = if reset_first { 2 * hid } else { rows };
        let hr = &mut hr[..s.batch * early];
        mul_t(h, &weights.r[..early * hid], hr, (s.batch, hid, early))?;
        let at = |n: usize| if *back { lens[n] - 1 - step } else { step };
        for n in (0..s.batch).filter(|&n| step < lens[n]) {
            let x = &xw[(at(n) * s.batch + n) * rows..][..rows];
            let hr = &hr[n * early..][..early];
            let h = &mut h[n * hid..][..hid];
            let pre = |g: usize, j: usize| x[g * hid + j] + wb[g * hid + j] + hr[g * hid + j] + rb[g * hid + j];
            match spec.cell {
                Cell::Rnn => (0..hid).for_each(|j| h[j] = act(0, pre(0, j))),
                Cell::Gru if reset_first => {
                    for j in 0..hid {
                        update[n * hid + j] = act(0, pre(0, j));
                        reset[n * hid + j] = act(0, pre(1, j)) * h[j];
                    }
                }
                Cell::Gru => {
                    for j in 0..hid {
                        let (z, r, g) = (act(0, pre(0, j)), act(0, pre(1, j)), 2 * hid + j);
                        let new = act(1, x[g] + wb[g] + r * (hr[g] + rb[g]));
                        h[j] = (T::one() - z) * new + z * h[j];
                    }
                }
                Cell::Lstm => {
                    let c = &mut c[n * hid..][..hid];
                    let peep = |g: usize, j: usize| weights.p.map_or(T::zero(), |p| p[g * hid + j]);
                    for j in 0..hid {
                        let i = act(0, pre(0, j) + peep(0, j) * c[j]);
                        let f = if spec.input_forget { T::one() - i } else { act(0, pre(2, j) + peep(2, j) * c[j]) };
                        c[j] = f * c[j] + i * act(1, pre(3, j));
                        // The state itself is not clipped, as in other runtimes.
                        h[j] = act(0, pre(1, j) + peep(1, j) * c[j]) * acts[2].apply(c[j]);
                    }
                }
            }
        }
        if reset_first {
            mul_t(&reset, &weights.r[early * hid..], &mut product_h, (s.batch, hid, hid))?;
            for n in (0..s.batch).filter(|&n| step < lens[n]) {
                let x = &xw[(at(n) * s.batch + n) * rows..][..rows];
                for j in 0..hid {
                    let (g, at) = (2 * hid + j, n * hid + j);
                    let new = act(1, x[g] + wb[g] + product_h[at] + rb[g]);
                    h[at] = (T::one() - update[at]) * new + update[at] * h[at];
                }
            }
        }
        for n in (0..s.batch).filter(|&n| step < lens[n]) {
            y[((at(n) * s.directions + which) * s.batch + n) * hid..][..hid].copy_from_slice(&h[n * hid..][..hid]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::ir::Attrs;
    use crate::ops::testing::run_values;
    use crate::tensor::{Tensor, Value};

    fn ones(shape: &[usize], x: f32) -> Option<Value> {
        Some(Value::Tensor(Tensor::full(shape, x).unwrap()))
    }

    fn check(op: &str, attrs: Attrs, inputs: Vec<Option<Value>>, expect: &[&[f32]]) {
        let out = run_values(op, 14, attrs, inputs, expect.len()).unwrap();
        for (slot, (found, expect)) in out.iter().zip(expect).enumerate() {
            let found = found.as_tensor().unwrap().to_f32s().unwrap();
            assert_eq!(found.len(), expect.len(), "output {slot}: {found:?}");
            assert!(found.iter().zip(*expect).all(|(a, b)| (a - b).abs() < 1e-5), "output {slot}: {found:?}");
        }
    }

    fn relu() -> Attrs {
        Attrs::new().with("activations", vec!["Relu".to_owned()])
    }

    #[test]
    fn rnn_sums_its_inputs_and_its_state() {
        let x = Some(Value::Tensor(Tensor::new([3, 1, 1], vec![1f32, 2.0, 3.0]).unwrap()));
        check("RNN", relu(), vec![x.clone(), ones(&[1, 1, 1], 1.0), ones(&[1, 1, 1], 1.0)], &[&[1.0, 3.0, 6.0], &[6.0]]);
        let reverse = relu().with("direction", "reverse");
        check("RNN", reverse, vec![x, ones(&[1, 1, 1], 1.0), ones(&[1, 1, 1], 1.0)], &[&[6.0, 5.0, 3.0], &[6.0]]);
    }

    #[test]
    fn steps_past_a_sequence_give_zeros_and_keep_the_state() {
        let x = Some(Value::Tensor(Tensor::new([3, 2, 1], vec![1f32, 1.0, 2.0, 2.0, 3.0, 3.0]).unwrap()));
        let lens = Some(Value::Tensor(Tensor::vector(vec![3i32, 2])));
        let inputs = vec![x, ones(&[1, 1, 1], 1.0), ones(&[1, 1, 1], 1.0), None, lens];
        check("RNN", relu(), inputs.clone(), &[&[1.0, 1.0, 3.0, 3.0, 6.0, 0.0], &[6.0, 3.0]]);
        check("RNN", relu().with("direction", "reverse"), inputs, &[&[6.0, 3.0, 5.0, 2.0, 3.0, 0.0], &[6.0, 3.0]]);
    }

    #[test]
    fn layout_1_puts_the_batch_first() {
        let x = Some(Value::Tensor(Tensor::new([2, 2, 1], vec![1f32, 2.0, 10.0, 20.0]).unwrap()));
        let h0 = Some(Value::Tensor(Tensor::new([2, 1, 1], vec![0f32, 5.0]).unwrap()));
        let inputs = vec![x, ones(&[1, 1, 1], 1.0), ones(&[1, 1, 1], 1.0), None, None, h0];
        check("RNN", relu().with("layout", 1), inputs, &[&[1.0, 3.0, 15.0, 35.0], &[3.0, 35.0]]);
    }

    #[test]
    fn gru_resets_before_or_after_the_product() {
        let inputs =
            vec![ones(&[1, 1, 1], 1.0), ones(&[1, 3, 1], 0.5), ones(&[1, 3, 1], 0.5), ones(&[1, 6], 0.1), None, ones(&[1, 1, 1], 1.0)];
        // z = r = σ(1.2); h = tanh(0.5 + 0.5·r·1 + 0.2), or tanh(0.5 + r·(0.5 + 0.1) + 0.1).
        let z = 1.0 / (1.0 + (-1.2f32).exp());
        let (a, b) = ((0.7 + 0.5 * z).tanh(), (0.6 + 0.6 * z).tanh());
        let (a, b) = ((1.0 - z) * a + z, (1.0 - z) * b + z);
        check("GRU", Attrs::new(), inputs.clone(), &[&[a], &[a]]);
        check("GRU", Attrs::new().with("linear_before_reset", 1), inputs, &[&[b], &[b]]);
    }

    #[test]
    fn lstm_clips_couples_and_peeps() {
        let inputs = vec![
            ones(&[1, 1, 1], 1.0),
            ones(&[1, 4, 1], 1.0),
            ones(&[1, 4, 1], 0.0),
            None,
            None,
            None,
            ones(&[1, 1, 1], 2.0),
            ones(&[1, 3], 0.5),
        ];
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        // i = f = σ(1 + 0.5·2), c = f·2 + i·tanh(1), o = σ(1 + 0.5·c).
        let c = sigmoid(2.0) * (2.0 + 1f32.tanh());
        let h = sigmoid(1.0 + 0.5 * c) * c.tanh();
        check("LSTM", Attrs::new(), inputs.clone(), &[&[h], &[h], &[c]]);
        let c = (1.0 - sigmoid(2.0)) * 2.0 + sigmoid(2.0) * 1f32.tanh();
        let h = sigmoid(1.0 + 0.5 * c) * c.tanh();
        check("LSTM", Attrs::new().with("input_forget", 1), inputs.clone(), &[&[h], &[h], &[c]]);
        let c = sigmoid(0.25) * (2.0 + 0.25f32.tanh());
        let h = sigmoid(0.25) * c.tanh();
        check("LSTM", Attrs::new().with("clip", 0.25), inputs, &[&[h], &[h], &[c]]);
    }

    #[test]
    fn a_sequence_longer_than_the_input_is_refused() {
        let lens = Some(Value::Tensor(Tensor::vector(vec![4i32])));
        let inputs = vec![ones(&[3, 1, 1], 1.0), ones(&[1, 1, 1], 1.0), ones(&[1, 1, 1], 1.0), None, lens];
        let error = run_values("RNN", 14, Attrs::new(), inputs, 2).unwrap_err();
        assert_eq!(error.to_string(), "input 4: sequence length 4 is not in 0..=3");
    }
}
