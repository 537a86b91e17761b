//! Scaled dot-product attention and rotary positions.

use super::gemm::{Dims, Epilogue, Matrix, Real, product};
use super::matmul::new_out;
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, infer, one, rows, threads, util};
use crate::ir::Dim;
use crate::tensor::{DType, Shape, Tensor, cast};
use crate::{dispatch_wide, invalid};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Attention", &[23, 24, 25])
        .inputs(3, 7)
        .outputs(1, 4)
        .attrs(&[
            "is_causal",
            "kv_num_heads",
            "left_window_size",
            "q_num_heads",
            "qk_matmul_output_mode",
            "right_window_size",
            "scale",
            "softcap",
            "softmax_precision",
        ])
        .infer(infer_attention)
        .kernel(build_attention),
    OpDef::new("RotaryEmbedding", &[23])
        .inputs(3, 4)
        .attrs(&["interleaved", "num_heads", "rotary_embedding_dim"])
        .infer(infer::same)
        .kernel(build_rotary),
];

/// Heads that an attribute may state.
pub(super) const MAX_HEADS: i64 = 1 << 16;

/// The numbers of query and key heads from two attributes; the first is a multiple of the second.
///
/// # Errors
/// One that is missing, not in `1..=MAX_HEADS`, or no multiple.
pub(super) fn required_heads(cx: &OpCtx, query: &str, key: &str) -> Result<(usize, usize), OpError> {
    let heads = |name: &str| -> Result<usize, OpError> {
        match cx.attrs.int(name)?.filter(|h| (1..=MAX_HEADS).contains(h)) {
            Some(h) => Ok(h as usize),
            None => invalid!("attribute {name:?} must be in 1..={MAX_HEADS}"),
        }
    };
    let (q, kv) = (heads(query)?, heads(key)?);
    if !q.is_multiple_of(kv) {
        invalid!("{query} {q} is no multiple of {key} {kv}");
    }
    Ok((q, kv))
}

/// The vectors of a query, key or value, wherever batch, head and position lie.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, T> {
    pub data: &'a [T],
    pub heads: usize,
    pub len: usize,
    pub width: usize,
    /// Elements from a batch, a head, a position to the next.
    pub strides: [usize; 3],
}

impl<'a, T> Heads<'a, T> {
    /// `[batch, heads, len, width]`.
    pub fn by_head(data: &'a [T], heads: usize, len: usize, width: usize) -> Self {
        Self { data, heads, len, width, strides: [heads * len * width, len * width, width] }
    }

    /// `[batch, len, heads * width]`.
    pub fn by_position(data: &'a [T], heads: usize, len: usize, width: usize) -> Self {
        Self { data, heads, len, width, strides: [heads * len * width, width, heads * width] }
    }

    fn matrix(&self) -> Matrix<'a, T> {
        Matrix { data: self.data, row: self.strides[2], col: 1 }
    }

    fn start(&self, batch: usize, head: usize) -> usize {
        batch * self.strides[0] + head * self.strides[1]
    }
}

/// Adds the bias of a row of scores: `(batch, head, position, row)`.
pub(super) type FillBias<'a, T> = dyn Fn(usize, usize, usize, &mut [T]) + Sync + 'a;

/// What a score passes through.
pub(super) struct Scores<'a, T> {
    pub scale: T,
    /// Scores are squeezed to this bound where it is above 0.
    pub softcap: T,
    /// Fills the additive bias of a row: `(batch, head, position, row)`; negative infinity hides a key.
    pub bias: &'a FillBias<'a, T>,
    /// Which stage of the scores is given back: raw, capped, biased, softmax.
    pub keep: Option<i64>,
    /// A number per head that joins the denominator of the softmax.
    pub sink: Option<&'a [T]>,
}

/// Attention of all heads: `[batch, heads, len, value width]`, and the scores `[batch, heads, len, keys]` if asked for.
pub(super) fn attend<T: Real>(
    batch: usize,
    q: Heads<T>,
    k: Heads<T>,
    v: Heads<T>,
    scores: &Scores<T>,
) -> Result<(Vec<T>, Vec<T>), OpError> {
    use rayon::prelude::*;
    if k.heads == 0 || !q.heads.is_multiple_of(k.heads) || v.heads != k.heads || q.width != k.width || k.len != v.len {
        invalid!(
            "queries of {} heads of {}, keys {} of {} and values {} of {} do not fit",
            q.heads,
            q.width,
            k.heads,
            k.width,
            v.heads,
            v.width
        );
    }
    let (shared, per_out, per_kept) = (q.heads / k.heads, q.len * v.width, q.len * k.len);
    let mut out = new_out::<T>(&Shape::from([batch, q.heads, q.len, v.width]))?;
    let mut kept = if scores.keep.is_some() { new_out::<T>(&Shape::from([batch, q.heads, q.len, k.len]))? } else { Vec::new() };
    if out.is_empty() && kept.is_empty() {
        return Ok((out, kept));
    }
    let mut kept_parts: Vec<&mut [T]> = kept.chunks_mut(per_kept.max(1)).collect();
    kept_parts.resize_with(batch * q.heads, Default::default);
    let mut out_parts: Vec<&mut [T]> = out.chunks_mut(per_out.max(1)).collect();
    out_parts.resize_with(batch * q.heads, Default::default);
    let head = |i: usize, out: &mut [T], kept: &mut [T]| -> Result<(), OpError> {
        let (b, h) = (i / q.heads, i % q.heads);
        let (from_k, from_v) = (k.start(b, h / shared), v.start(b, h / shared));
        let mut s = vec![T::ZERO; per_kept];
        let dims = Dims { m: q.len, n: k.len, k: q.width };
        // Few queries read the keys where they lie; for many they are turned once, which the product reads faster.
        let turned = if q.len < 8 { None } else { turned(&k, from_k) };
        let (keys, from_k) = match &turned {
            Some(keys) => (Matrix::new(&keys[..], k.len, false), 0),
            None => (Matrix { data: k.data, row: 1, col: k.strides[2] }, from_k),
        };
        product(dims, scores.scale, q.matrix(), keys, &[(q.start(b, h), from_k)], &mut s, &Epilogue::NONE)?;
        let keep = |stage: i64, at: usize, row: &[T], kept: &mut [T]| {
            if scores.keep == Some(stage) {
                kept[at * row.len()..][..row.len()].copy_from_slice(row);
            }
        };
        let mut bias = vec![T::ZERO; k.len];
        for (at, row) in s.chunks_mut(k.len.max(1)).enumerate() {
            keep(0, at, row, kept);
            if scores.softcap > T::ZERO {
                row.iter_mut().for_each(|x| *x = (*x / scores.softcap).tanh() * scores.softcap);
            }
            keep(1, at, row, kept);
            bias.fill(T::ZERO);
            (scores.bias)(b, h, at, &mut bias);
            row.iter_mut().zip(&bias).for_each(|(x, &b)| *x = *x + b);
            keep(2, at, row, kept);
            if bias.iter().all(|&x| x == T::lowest()) {
                row.fill(T::ZERO);
            } else if let Some(sink) = scores.sink {
                softmax_with_sink(row, sink[h]);
            } else {
                rows::softmax(row);
            }
            keep(3, at, row, kept);
        }
        let dims = Dims { m: q.len, n: v.width, k: k.len };
        product(dims, T::ONE, Matrix::new(&s, k.len, false), v.matrix(), &[(0, from_v)], out, &Epilogue::NONE)
    };
    // Heads are grouped by their size alone.
    let group = (util::GRAIN / (per_kept + per_out).max(1)).max(1);
    if threads::shared() {
        out_parts.into_par_iter().zip(kept_parts).with_min_len(group).enumerate().try_for_each(|(i, (out, kept))| head(i, out, kept))?;
    } else {
        out_parts.into_iter().zip(kept_parts).enumerate().try_for_each(|(i, (out, kept))| head(i, out, kept))?;
    }
    Ok((out, kept))
}

/// The keys of one head as a row-major `[width, len]`; `None` if they do not lie where they should.
fn turned<T: Real>(k: &Heads<T>, from: usize) -> Option<Vec<T>> {
    let mut out = vec![T::ZERO; k.len * k.width];
    for l in 0..k.len {
        let row = k.data.get(from + l * k.strides[2]..)?.get(..k.width)?;
        row.iter().enumerate().for_each(|(w, &x)| out[w * k.len + l] = x);
    }
    Some(out)
}

fn softmax_with_sink<T: Real>(row: &mut [T], sink: T) {
    let top = rows::max(row).greater_of(sink);
    row.iter_mut().for_each(|x| *x = (*x - top).exp_neg());
    let total = rows::sum(row) + (sink - top).exp_neg();
    row.iter_mut().for_each(|x| *x = *x / total);
}

/// `[batch, heads, len, width]` as `[batch, len, heads, width]`, or the other way round with `heads` and `len` swapped.
pub(super) fn swap_heads<T: Copy + Default>(x: &[T], heads: usize, len: usize, width: usize) -> Vec<T> {
    let mut out = vec![T::default(); x.len()];
    if width == 0 {
        return out;
    }
    for (i, row) in x.chunks(width).enumerate() {
        let (b, h, l) = (i / (heads * len), i / len % heads, i % len);
        let at = ((b * len + l) * heads + h) * width;
        out[at..at + width].copy_from_slice(row);
    }
    out
}

/// `past` followed by the new positions, both `[batch, heads, len, width]`.
pub(super) fn append<T: Copy>(past: &[T], new: &[T], groups: usize, past_len: usize, len: usize, width: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(past.len() + new.len());
    for g in 0..groups {
        out.extend_from_slice(&past[g * past_len * width..][..past_len * width]);
        out.extend_from_slice(&new[g * len * width..][..len * width]);
    }
    out
}

/// An additive mask that broadcasts to `[batch, heads, len, keys]`.
pub(super) struct Mask<T> {
    data: Vec<T>,
    strides: [usize; 4],
    /// Keys that it covers; those beyond are hidden.
    keys: usize,
}

impl<T: Real> Mask<T> {
    /// From floats to add, or from bools of which false hides.
    pub fn new(t: &Tensor, target: [usize; 4]) -> Result<Self, OpError> {
        let keys = t.shape().last().copied().unwrap_or(1);
        let covered = if keys == 1 && t.rank() < 2 { target[3] } else { keys };
        let to = [target[0], target[1], target[2], covered];
        if t.rank() > 4 || covered > target[3] || *util::broadcast(&[t.shape(), &to])? != to {
            invalid!("a mask of shape {} does not broadcast to {}", t.shape(), Shape::from(target));
        }
        let data = if t.dtype() == DType::Bool {
            t.to_slice::<bool>()?.iter().map(|&keep| if keep { T::ZERO } else { T::lowest() }).collect()
        } else {
            cast(t, T::DTYPE)?.into_vec()?
        };
        let s = util::broadcast_strides(t.shape(), &to);
        Ok(Self { data, strides: [s[0], s[1], s[2], s[3]], keys: covered })
    }

    /// Adds the mask's row.
    pub fn add(&self, batch: usize, head: usize, at: usize, row: &mut [T]) {
        let s = &self.strides;
        let from = batch * s[0] + head * s[1] + at * s[2];
        row.iter_mut().enumerate().for_each(|(j, x)| *x = if j < self.keys { *x + self.data[from + j * s[3]] } else { T::lowest() });
    }
}

/// The attributes of ONNX's Attention.
struct Spec {
    causal: bool,
    heads: Option<(usize, usize)>,
    window: (i64, i64),
    keep: i64,
    scale: Option<f32>,
    softcap: f32,
    outputs: usize,
    wants_present: bool,
    wants_scores: bool,
}

fn head_counts(cx: &OpCtx) -> Result<Option<(usize, usize)>, OpError> {
    match (cx.attrs.int("q_num_heads")?, cx.attrs.int("kv_num_heads")?) {
        (Some(q), Some(kv)) if (1..=MAX_HEADS).contains(&q) && (1..=MAX_HEADS).contains(&kv) => Ok(Some((q as usize, kv as usize))),
        (None, None) => Ok(None),
        (q, kv) => invalid!("q_num_heads and kv_num_heads must be in 1..={MAX_HEADS}, found {q:?} and {kv:?}"),
    }
}

fn infer_attention(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let heads = head_counts(&cx.op)?;
    let per_head = |d: &Dim, n: usize| d.known().map_or(Dim::Unknown, |d| Dim::Known(d / n));
    let total = match (cx.shape(1), cx.has(4)) {
        (Some(k), false) if k.len() >= 3 => k[k.len() - 2].clone(),
        (Some(k), true) if k.len() >= 3 => match (k[k.len() - 2].known(), cx.shape(4).and_then(|p| p.get(2)?.known())) {
            (Some(a), Some(b)) => a.checked_add(b).map_or(Dim::Unknown, Dim::Known),
            _ => Dim::Unknown,
        },
        _ => Dim::Unknown,
    };
    let kv = |i: usize| -> Option<Vec<Dim>> {
        Some(match (cx.shape(i)?, heads) {
            ([b, h, _, w], _) => vec![b.clone(), h.clone(), total.clone(), w.clone()],
            ([b, _, w], Some((_, n))) => vec![b.clone(), Dim::Known(n), total.clone(), per_head(w, n)],
            _ => return None,
        })
    };
    let (y, scores) = match (cx.shape(0), kv(2), heads) {
        (Some([b, h, s, _]), v, _) => (
            Some(vec![b.clone(), h.clone(), s.clone(), v.map_or(Dim::Unknown, |v| v[3].clone())]),
            Some(vec![b.clone(), h.clone(), s.clone(), total.clone()]),
        ),
        (Some([b, s, _]), v, Some((n, _))) => (
            Some(vec![
                b.clone(),
                s.clone(),
                v.and_then(|v| v[3].known()).map_or(Dim::Unknown, |w| w.checked_mul(n).map_or(Dim::Unknown, Dim::Known)),
            ]),
            Some(vec![b.clone(), Dim::Known(n), s.clone(), total.clone()]),
        ),
        (Some(s), ..) if !(3..=4).contains(&s.len()) => invalid!("expected rank 3 or 4, found {}", s.len()),
        _ => (None, None),
    };
    let mut out = vec![
        Fact::partial(cx.dtype(0), y),
        Fact::partial(cx.dtype(1), kv(1)),
        Fact::partial(cx.dtype(2), kv(2)),
        Fact::partial(cx.dtype(0), scores),
    ];
    out.truncate(cx.op.outputs.len().max(1));
    Ok(out)
}

fn build_attention(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = Spec {
        causal: cx.attrs.int_or("is_causal", 0)? != 0,
        heads: head_counts(cx)?,
        window: (cx.attrs.int_or("left_window_size", -1)?, cx.attrs.int_or("right_window_size", -1)?),
        keep: cx.attrs.int_or("qk_matmul_output_mode", 0)?,
        scale: cx.attrs.float("scale")?,
        softcap: cx.attrs.float_or("softcap", 0.0)?,
        outputs: cx.outputs.len().max(1),
        wants_present: cx.wants(1) || cx.wants(2),
        wants_scores: cx.wants(3),
    };
    if !(0..=3).contains(&spec.keep) || spec.window.0 < -1 || spec.window.1 < -1 {
        invalid!("qk_matmul_output_mode {} or window {:?} is out of range", spec.keep, spec.window);
    }
    Ok(Box::new(move |args| {
        let dtype = args.tensor(0)?.dtype();
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        dispatch_wide!(wide, T => run_attention::<T>(&spec, &args))
    }))
}

/// Batch, heads, positions and width of a 3-D or 4-D input.
fn layout(t: &Tensor, heads: Option<usize>) -> Result<[usize; 4], OpError> {
    match (&t.shape()[..], heads) {
        (&[b, h, l, w], _) => Ok([b, h, l, w]),
        (&[b, l, w], Some(h)) if w.is_multiple_of(h) => Ok([b, h, l, w / h]),
        _ => invalid!("shape {} does not split into {heads:?} heads", t.shape()),
    }
}

fn run_attention<T: Real>(spec: &Spec, args: &Args) -> Result<Outputs, OpError> {
    let inputs = [args.tensor(0)?, args.tensor(1)?, args.tensor(2)?];
    let (flat, dtype) = (inputs[0].rank() == 3, inputs[0].dtype());
    if let Some(other) = inputs.iter().find(|t| t.rank() != inputs[0].rank()) {
        invalid!("keys and values must have rank {} as the queries, found {}", inputs[0].rank(), other.shape());
    }
    let data = inputs.iter().map(|t| Ok(cast(t, T::DTYPE)?.aligned())).collect::<Result<Vec<_>, OpError>>()?;
    let q_shape = layout(inputs[0], spec.heads.map(|h| h.0))?;
    let (k_shape, v_shape) = (layout(inputs[1], spec.heads.map(|h| h.1))?, layout(inputs[2], spec.heads.map(|h| h.1))?);
    if k_shape[0] != q_shape[0] || v_shape[..3] != k_shape[..3] {
        invalid!("queries {}, keys {} and values {} do not fit", inputs[0].shape(), inputs[1].shape(), inputs[2].shape());
    }
    let past_len = args.opt(4)?.map_or(0, |p| p.shape().get(2).copied().unwrap_or(0));
    // Keys and values by head, the past before them.
    let cached = |i: usize, shape: [usize; 4], past: Option<&Tensor>| -> Result<Option<Tensor>, OpError> {
        let [b, h, l, w] = shape;
        if past.is_none() && !(spec.wants_present && flat) {
            return Ok(None);
        }
        let x = data[i].as_slice::<T>()?;
        let swapped = if flat { swap_heads(x, l, h, w) } else { x.to_vec() };
        let Some(past) = past else { return Ok(Some(Tensor::new([b, h, l, w], swapped)?)) };
        if **past.shape() != [b, h, past_len, w] {
            invalid!("a past of shape {} does not fit {b} batches of {h} heads of {w}", past.shape());
        }
        let all = append(cast(past, T::DTYPE)?.aligned().as_slice::<T>()?, &swapped, b * h, past_len, l, w);
        Ok(Some(Tensor::new([b, h, past_len + l, w], all)?))
    };
    let (key, value) = (cached(1, k_shape, args.opt(4)?)?, cached(2, v_shape, args.opt(5)?)?);
    if args.opt(4)?.is_some() != args.opt(5)?.is_some() {
        invalid!("past_key and past_value must be given together");
    }
    let total = past_len + k_shape[2];
    let (k, v) = (kv_heads(&data[1], key.as_ref(), k_shape, flat)?, kv_heads(&data[2], value.as_ref(), v_shape, flat)?);
    let q = kv_heads(&data[0], None, q_shape, flat)?;
    let target = [q_shape[0], q_shape[1], q_shape[2], total];
    let mask = args.opt(3)?.map(|m| Mask::<T>::new(m, target)).transpose()?;
    let valid = args.opt_ints(6)?;
    if let Some(v) = &valid
        && (v.len() != q_shape[0] || v.iter().any(|&n| usize::try_from(n).map_or(true, |n| n > total)))
    {
        invalid!("expected {} lengths of at most {total} keys, found {v:?}", q_shape[0]);
    }
    let bias = |b: usize, h: usize, at: usize, row: &mut [T]| {
        if let Some(mask) = &mask {
            mask.add(b, h, at, row);
        }
        let offset = match &valid {
            Some(v) if args.value(4).is_none() => v[b] - q_shape[2] as i64,
            _ => past_len as i64,
        };
        let here = at as i64 + offset;
        let (left, right) = spec.window;
        for (j, x) in row.iter_mut().enumerate() {
            let j = j as i64;
            let hidden = (spec.causal && j > here)
                || (left >= 0 && here - j > left)
                || (right >= 0 && j - here > right)
                || valid.as_ref().is_some_and(|v| j >= v[b]);
            if hidden {
                *x = T::lowest();
            }
        }
    };
    let scale = spec.scale.map_or_else(|| 1.0 / (q_shape[3] as f64).sqrt(), f64::from);
    let scores = Scores {
        scale: T::from_f64(scale),
        softcap: T::from_f64(spec.softcap.into()),
        bias: &bias,
        keep: spec.wants_scores.then_some(spec.keep),
        sink: None,
    };
    let (y, kept) = attend(q_shape[0], q, k, v, &scores)?;
    let [b, h, l, _] = q_shape;
    let w = v_shape[3];
    let y = if flat { Tensor::new([b, l, h * w], swap_heads(&y, h, l, w))? } else { Tensor::new([b, h, l, w], y)? };
    let mut out = Outputs::new();
    out.push(cast(&y, dtype)?.into());
    if spec.outputs > 1 {
        for (i, cache) in [(1, &key), (2, &value)] {
            out.push(cast(cache.as_ref().unwrap_or(&data[i]), inputs[i].dtype())?.into());
        }
        if spec.wants_scores {
            out.push(cast(&Tensor::new(target, kept)?, dtype)?.into());
        }
    }
    out.truncate(spec.outputs);
    Ok(out)
}

/// The heads of an input, or of the cache that it went into.
fn kv_heads<'a, T: Real>(own: &'a Tensor, cache: Option<&'a Tensor>, shape: [usize; 4], flat: bool) -> Result<Heads<'a, T>, OpError> {
    let [_, h, l, w] = shape;
    Ok(match cache {
        Some(t) => Heads::by_head(t.as_slice::<T>()?, h, t.shape()[2], w),
        None if flat => Heads::by_position(own.as_slice::<T>()?, h, l, w),
        None => Heads::by_head(own.as_slice::<T>()?, h, l, w),
    })
}

/// How positions are turned.
pub(super) struct Rotary {
    pub interleaved: bool,
    pub heads: usize,
    pub width: usize,
    pub scale: f32,
}

/// Where a token stands: rows of the cosine and sine tables.
pub(super) enum Positions {
    /// Tables of shape `[batch, len, half]`: one row per token.
    PerToken,
    /// Position of each token, `[batch, len]`.
    Given(Vec<i64>),
}

fn build_rotary(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (heads, width) = (cx.attrs.int_or("num_heads", 0)?, cx.attrs.int_or("rotary_embedding_dim", 0)?);
    let (Ok(heads), Ok(width)) = (usize::try_from(heads), usize::try_from(width)) else {
        invalid!("num_heads {heads} and rotary_embedding_dim {width} must not be negative")
    };
    let rotary = Rotary { interleaved: cx.attrs.int_or("interleaved", 0)? != 0, heads, width, scale: 1.0 };
    Ok(Box::new(move |args| {
        let positions = args.opt_ints(3)?.map_or(Positions::PerToken, Positions::Given);
        one(rotate(&rotary, args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, &positions)?)
    }))
}

/// Turns the pairs of each head by the angle of its position.
pub(super) fn rotate(rotary: &Rotary, x: &Tensor, cos: &Tensor, sin: &Tensor, positions: &Positions) -> Result<Tensor, OpError> {
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    dispatch_wide!(wide, T => rotate_as::<T>(rotary, x, cos, sin, positions))
}

fn rotate_as<T: Real>(rotary: &Rotary, x: &Tensor, cos: &Tensor, sin: &Tensor, positions: &Positions) -> Result<Tensor, OpError> {
    // Elements from a batch to the next are the same in both layouts; a row is one head of one token.
    let (batch, heads, len, width, by_head) = match x.shape()[..] {
        [b, h, l, w] => (b, h, l, w, true),
        [b, l, w] if rotary.heads > 0 && w.is_multiple_of(rotary.heads) => (b, rotary.heads, l, w / rotary.heads, false),
        _ => invalid!("shape {} does not split into {} heads", x.shape(), rotary.heads),
    };
    let turned = if rotary.width == 0 { width } else { rotary.width };
    let half = turned / 2;
    let table_rows = cos.len().checked_div(half).unwrap_or(0);
    if turned > width || !turned.is_multiple_of(2) || cos.shape() != sin.shape() || cos.shape().last() != Some(&half) {
        invalid!("tables {} and {} do not fit {turned} of {width} positions of a head", cos.shape(), sin.shape());
    }
    let row_of = |b: usize, l: usize| -> Result<usize, OpError> {
        let row = match positions {
            Positions::PerToken => (b * len + l) as i64,
            Positions::Given(p) if p.len() == batch * len => p[b * len + l],
            Positions::Given(p) if p.len() == 1 => p[0].saturating_add(l as i64),
            Positions::Given(p) => invalid!("expected {} positions, found {}", batch * len, p.len()),
        };
        match usize::try_from(row).ok().filter(|&r| r < table_rows) {
            Some(row) => Ok(row),
            None => invalid!("position {row} is beyond the {table_rows} rows of the tables"),
        }
    };
    let table: Vec<usize> = (0..batch * len).map(|i| row_of(i / len, i % len)).collect::<Result<_, _>>()?;
    let (cos, sin) = (cast(cos, T::DTYPE)?.into_vec::<T>()?, cast(sin, T::DTYPE)?.into_vec::<T>()?);
    let scale = T::from_f64(rotary.scale.into());
    let mut data = cast(x, T::DTYPE)?.into_vec::<T>()?;
    util::for_each_chunk(&mut data, width, |i, row| {
        let (b, l) = if by_head { (i / (heads * len), i % len) } else { (i / (heads * len), i / heads % len) };
        let at = table[b * len + l] * half;
        for j in 0..half {
            let (first, second) = if rotary.interleaved { (2 * j, 2 * j + 1) } else { (j, j + half) };
            let (re, im, c, s) = (row[first], row[second], cos[at + j], sin[at + j]);
            row[first] = (c * re - s * im) * scale;
            row[second] = (s * re + c * im) * scale;
        }
    });
    Ok(cast(&Tensor::new(x.shape(), data)?, x.dtype())?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::run;
    use super::*;
    use crate::ir::Attrs;

    fn t(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::new(shape, data.to_vec()).unwrap()
    }

    #[test]
    fn a_causal_query_sees_no_later_key() {
        let x = t(&[1, 1, 2, 1], &[1.0, 2.0]);
        let v = t(&[1, 1, 2, 1], &[5.0, 7.0]);
        let out = run("Attention", 24, Attrs::new().with("is_causal", 1i64), &[x.clone(), x.clone(), v.clone()]).unwrap();
        assert_eq!(out.to_f32s().unwrap()[0], 5.0);
        let hidden = Tensor::new([2, 2], vec![false, false, false, true]).unwrap();
        assert_eq!(run("Attention", 24, Attrs::new(), &[x.clone(), x, v, hidden]).unwrap(), t(&[1, 1, 2, 1], &[0.0, 7.0]));
    }

    #[test]
    fn a_quarter_turn_swaps_the_halves() {
        let x = t(&[1, 1, 1, 2], &[1.0, 2.0]);
        let positions = Tensor::new([1, 1], vec![0i64]).unwrap();
        let out = run("RotaryEmbedding", 23, Attrs::new(), &[x.clone(), t(&[1, 1], &[0.0]), t(&[1, 1], &[1.0]), positions]).unwrap();
        assert_eq!(out, t(&[1, 1, 1, 2], &[-2.0, 1.0]));
        let far = Tensor::new([1, 1], vec![7i64]).unwrap();
        assert!(run("RotaryEmbedding", 23, Attrs::new(), &[x, t(&[1, 1], &[0.0]), t(&[1, 1], &[1.0]), far]).is_err());
    }
}
