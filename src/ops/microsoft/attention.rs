//! Attention as ONNX Runtime's transformer optimizer writes it: projections, masks and caches inside one op.

use super::op;
use crate::ir::Dim;
use crate::ops::attention::{Heads, MAX_HEADS, Mask, Positions, Rotary, Scores, append, attend, rotate, swap_heads};
use crate::ops::gemm::{Bias, Dims, Epilogue, Matrix, product};
use crate::ops::matmul::new_out;
use crate::ops::matmul_integer::integer_product;
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, infer, one};
use crate::tensor::{DType, Shape, Tensor, cast};
use crate::{invalid, unsupported};

const ATTRS: &[&str] = &[
    "do_rotary",
    "mask_filter_value",
    "num_heads",
    "past_present_share_buffer",
    "qkv_hidden_sizes",
    "rotary_embedding_dim",
    "scale",
    "unidirectional",
];

pub(in crate::ops) const OPS: &[OpDef] = &[
    op("Attention").inputs(2, 7).outputs(1, 2).attrs(ATTRS).infer(infer_attention).kernel(build_attention),
    op("MultiHeadAttention")
        .inputs(1, 10)
        .outputs(1, 4)
        .attrs(&["mask_filter_value", "num_heads", "scale", "unidirectional"])
        .infer(infer_multi_head)
        .kernel(build_multi_head),
    op("QAttention").inputs(5, 9).outputs(1, 2).attrs(ATTRS).infer(infer_attention).kernel(build_quantized),
    op("RotaryEmbedding")
        .inputs(4, 4)
        .attrs(&["interleaved", "is_packed_batching", "num_heads", "rotary_embedding_dim", "scale"])
        .infer(infer::same)
        .kernel(build_rotary),
];

/// The attributes that the forms share.
#[derive(Clone)]
struct Spec {
    heads: usize,
    scale: Option<f32>,
    filter: f32,
    causal: bool,
    /// Hidden sizes of queries, keys and values, where they are stated.
    sizes: Option<[usize; 3]>,
    outputs: usize,
}

fn spec(cx: &OpCtx) -> Result<Spec, OpError> {
    let Some(heads) = cx.attrs.int("num_heads")?.filter(|h| (1..=MAX_HEADS).contains(h)) else {
        invalid!("attribute \"num_heads\" must be in 1..={MAX_HEADS}")
    };
    if cx.attrs.int_or("do_rotary", 0)? != 0 || cx.attrs.int_or("past_present_share_buffer", 0)? != 0 {
        unsupported!("do_rotary and past_present_share_buffer are not supported");
    }
    let sizes = match cx.attrs.ints("qkv_hidden_sizes")? {
        None | Some([]) => None,
        Some(&[q, k, v]) if q > 0 && k > 0 && v > 0 => Some([q as usize, k as usize, v as usize]),
        Some(other) => invalid!("qkv_hidden_sizes must be three sizes, found {other:?}"),
    };
    Ok(Spec {
        heads: heads as usize,
        scale: cx.attrs.float("scale")?.filter(|&s| s != 0.0),
        filter: cx.attrs.float_or("mask_filter_value", -10000.0)?,
        causal: cx.attrs.int_or("unidirectional", 0)? != 0,
        sizes,
        outputs: cx.outputs.len().max(1),
    })
}

fn infer_attention(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let spec = spec(&cx.op)?;
    let quantized = &*cx.op.op.name == "QAttention";
    let dtype = if quantized { cx.dtype(3) } else { cx.dtype(0) };
    let width = match (spec.sizes, cx.shape(1)) {
        (Some([.., v]), _) => Dim::Known(v),
        (None, Some([_, w])) => w.known().map_or(Dim::Unknown, |w| Dim::Known(w / 3)),
        _ => Dim::Unknown,
    };
    let y = match cx.shape(0) {
        Some([b, s, _]) => Some(vec![b.clone(), s.clone(), width]),
        Some(other) => invalid!("expected an input of rank 3, found {}", other.len()),
        None => None,
    };
    let mut out = vec![Fact::partial(dtype, y), Fact::partial(dtype, Some(vec![Dim::Unknown; 5]))];
    out.truncate(cx.op.outputs.len().max(1));
    Ok(out)
}

/// What hides keys: lengths, or a mask of 0 and 1 in 2 to 4 dims.
enum Hide {
    Nothing,
    /// First key and key past the last, per batch.
    Range(Vec<(i64, i64)>),
    /// `[batch or 1, queries or 1, keys]`, with the rows of earlier queries first where it is square.
    Flags {
        flags: Vec<i64>,
        strides: [usize; 2],
        skip: usize,
    },
}

impl Hide {
    fn new(mask: Option<&Tensor>, batch: usize, len: usize, total: usize) -> Result<Self, OpError> {
        let Some(mask) = mask else { return Ok(Hide::Nothing) };
        let flags = mask.to_i64s()?;
        Ok(match mask.shape()[..] {
            [n] if n == batch => Hide::Range(flags.into_iter().map(|end| (0, end)).collect()),
            [n] if n == 2 * batch => Hide::Range((0..batch).map(|b| (flags[batch + b], flags[b])).collect()),
            [b, k] if (b == batch || b == 1) && k == total => Hide::Flags { flags, strides: [if b == 1 { 0 } else { k }, 0], skip: 0 },
            [b, q, k] if b == batch && q == len && k == total => Hide::Flags { flags, strides: [q * k, k], skip: 0 },
            [b, 1, q, k] if (b == batch || b == 1) && q >= total && k >= total => {
                Hide::Flags { flags, strides: [if b == 1 { 0 } else { q * k }, k], skip: (total - len) * k }
            }
            _ => invalid!("a mask of shape {} does not fit {batch} batches of {len} queries and {total} keys", mask.shape()),
        })
    }

    fn add(&self, batch: usize, at: usize, filter: f32, row: &mut [f32]) {
        match self {
            Hide::Nothing => {}
            Hide::Range(ranges) => {
                let (first, end) = ranges[batch];
                row.iter_mut().enumerate().for_each(|(j, x)| *x += if (j as i64) < first || j as i64 >= end { filter } else { 0.0 });
            }
            Hide::Flags { flags, strides, skip } => {
                let flags = &flags[batch * strides[0] + at * strides[1] + skip..];
                row.iter_mut().zip(flags).for_each(|(x, &f)| *x += if f > 0 { 0.0 } else { filter });
            }
        }
    }
}

/// Queries, keys and values of one call, and what is known of them.
struct Call<'a> {
    batch: usize,
    q: Heads<'a, f32>,
    k: Heads<'a, f32>,
    v: Heads<'a, f32>,
    /// Keys that come from the past.
    past: usize,
    mask: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
}

/// The result `[batch, len, heads * value width]`.
fn run(spec: &Spec, call: &Call) -> Result<Tensor, OpError> {
    let Call { batch, q, k, v, past, .. } = *call;
    let hide = Hide::new(call.mask, batch, q.len, k.len)?;
    let extra = call.bias.map(|b| Mask::<f32>::new(b, [batch, q.heads, q.len, k.len])).transpose()?;
    let bias = |b: usize, h: usize, at: usize, row: &mut [f32]| {
        hide.add(b, at, spec.filter, row);
        if let Some(extra) = &extra {
            extra.add(b, h, at, row);
        }
        if spec.causal {
            row.iter_mut().skip(past + at + 1).for_each(|x| *x = f32::NEG_INFINITY);
        }
    };
    let scale = spec.scale.unwrap_or_else(|| 1.0 / (q.width as f32).sqrt());
    let scores = Scores { scale, softcap: 0.0, bias: &bias, keep: None, sink: None };
    let (y, _) = attend(batch, q, k, v, &scores)?;
    Ok(Tensor::new([batch, q.len, q.heads * v.width], swap_heads(&y, q.heads, q.len, v.width))?)
}

/// Attention over projected rows `[batch * len, q + k + v]`, after the past.
fn projected(
    spec: &Spec,
    qkv: &[f32],
    [batch, len]: [usize; 2],
    sizes: [usize; 3],
    args: &Args,
    at: [usize; 3],
    dtype: DType,
) -> Result<Outputs, OpError> {
    let (heads, width) = (spec.heads, sizes.iter().sum::<usize>());
    let [mask, past, bias] = at.map(|i| if i == usize::MAX { Ok(None) } else { args.opt(i) });
    let (mask, past, bias) = (mask?, past?, bias?);
    let part = |from: usize, size: usize| Heads {
        data: &qkv[from.min(qkv.len())..],
        heads,
        len,
        width: size / heads,
        strides: [len * width, size / heads, width],
    };
    let [sq, sk, sv] = sizes;
    let (q, mut k, mut v) = (part(0, sq), part(sq, sk), part(sq + sk, sv));
    let past_len = past.map_or(0, |p| p.shape().get(3).copied().unwrap_or(0));
    let mut present = Vec::new();
    if past.is_some() || spec.outputs > 1 {
        if sk != sv {
            invalid!("a past needs keys and values of one size, found {sk} and {sv}");
        }
        if past.is_some_and(|p| p.shape()[..] != [2, batch, heads, past_len, k.width]) {
            invalid!(
                "a past of shape {} does not fit {batch} batches of {heads} heads of {}",
                past.map_or(&Shape::default(), |p| p.shape()),
                k.width
            );
        }
        let old = past.map_or(Ok(Vec::new()), Tensor::to_f32s)?;
        for (i, part) in [k, v].into_iter().enumerate() {
            let new = by_head(part, batch);
            present.extend(append(&old[i * old.len() / 2..][..old.len() / 2], &new, batch * heads, past_len, len, part.width));
        }
        let half = present.len() / 2;
        k = Heads::by_head(&present[..half], heads, past_len + len, k.width);
        v = Heads::by_head(&present[half..], heads, past_len + len, v.width);
    }
    let call = Call { batch, q, k, v, past: past_len, mask, bias };
    let mut out = Outputs::new();
    out.push(cast(&run(spec, &call)?, dtype)?.into());
    if spec.outputs > 1 {
        let shape = [2, batch, heads, past_len + len, k.width];
        out.push(cast(&Tensor::new(shape, present)?, dtype)?.into());
    }
    Ok(out)
}

/// Copies heads to `[batch, heads, len, width]`.
fn by_head(x: Heads<f32>, batch: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(batch * x.heads * x.len * x.width);
    for b in 0..batch {
        for h in 0..x.heads {
            for l in 0..x.len {
                let at = b * x.strides[0] + h * x.strides[1] + l * x.strides[2];
                out.extend_from_slice(&x.data[at..at + x.width]);
            }
        }
    }
    out
}

/// Batch, length and input width, and the sizes of the projections.
fn projection(spec: &Spec, x: &Tensor, w: &Tensor) -> Result<([usize; 3], [usize; 3]), OpError> {
    let (&[b, s, i], &[rows, cols]) = (&x.shape()[..], &w.shape()[..]) else {
        invalid!("expected an input of rank 3 and weights of rank 2, found shapes {} and {}", x.shape(), w.shape())
    };
    let sizes = spec.sizes.unwrap_or([cols / 3; 3]);
    if rows != i || sizes.iter().sum::<usize>() != cols || sizes.iter().any(|s| !s.is_multiple_of(spec.heads)) || sizes[0] != sizes[1] {
        invalid!("shapes {} and {} do not fit projections {sizes:?} of {} heads", x.shape(), w.shape(), spec.heads);
    }
    Ok(([b, s, i], sizes))
}

fn build_attention(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = spec(cx)?;
    Ok(Box::new(move |args| {
        let (x, w, bias) = (args.tensor(0)?, args.tensor(1)?, args.opt(2)?);
        let ([batch, len, k], sizes) = projection(&spec, x, w)?;
        let n = sizes.iter().sum();
        let bias = bias.map(Tensor::to_f32s).transpose()?;
        let epilogue = Epilogue { bias: bias.as_ref().map_or(Bias::None, |b| Bias::Row(b)), activation: Default::default() };
        let mut qkv = new_out::<f32>(&Shape::from([batch, len, n]))?;
        let (data, w) = (x.to_f32s()?, w.to_f32s()?);
        let dims = Dims { m: batch * len, n, k };
        product(dims, 1.0, Matrix::new(&data, k, false), Matrix::new(&w, n, false), &[(0, 0)], &mut qkv, &epilogue)?;
        projected(&spec, &qkv, [batch, len], sizes, &args, [3, 4, 5], x.dtype())
    }))
}

fn build_quantized(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = spec(cx)?;
    Ok(Box::new(move |args| {
        let (x, w) = (args.tensor(0)?, args.tensor(1)?);
        let ([batch, len, _], sizes) = projection(&spec, x, w)?;
        let n: usize = sizes.iter().sum();
        let (_, sums) = integer_product(x, w, args.opt(6)?, args.opt(7)?)?;
        let (bias, sx, sw) = (args.tensor(2)?.to_f32s()?, args.tensor(3)?.to_f32s()?, args.tensor(4)?.to_f32s()?);
        if bias.len() != n || sx.len() != 1 || ![1, n].contains(&sw.len()) {
            invalid!("{} biases, {} input scales and {} weight scales do not fit {n} columns", bias.len(), sx.len(), sw.len());
        }
        let qkv: Vec<f32> = sums.iter().enumerate().map(|(i, &s)| s as f32 * (sx[0] * sw[i % n % sw.len()]) + bias[i % n]).collect();
        projected(&spec, &qkv, [batch, len], sizes, &args, [5, 8, usize::MAX], args.tensor(3)?.dtype())
    }))
}

fn infer_multi_head(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let heads = spec(&cx.op)?.heads;
    let y = match (cx.shape(0), cx.shape(2)) {
        (Some([b, s, _]), Some([_, _, w])) => Some(vec![b.clone(), s.clone(), w.clone()]),
        (Some([b, s, _]), Some([_, n, _, w])) => {
            let width = n.known().zip(w.known()).and_then(|(n, w)| n.checked_mul(w)).map_or(Dim::Unknown, Dim::Known);
            Some(vec![b.clone(), s.clone(), width])
        }
        (Some([b, s, w]), None) => Some(vec![b.clone(), s.clone(), if cx.has(1) { w.clone() } else { Dim::Unknown }]),
        (Some([b, s, n, _, w]), _) => {
            let width = n.known().zip(w.known()).and_then(|(n, w)| n.checked_mul(w)).map_or(Dim::Unknown, Dim::Known);
            Some(vec![b.clone(), s.clone(), width])
        }
        _ => None,
    };
    let batch = cx.shape(0).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
    let cache = Fact::partial(cx.dtype(0), Some(vec![batch, Dim::Known(heads), Dim::Unknown, Dim::Unknown]));
    let mut out = vec![Fact::partial(cx.dtype(0), y), cache.clone(), cache.clone(), cache];
    out.truncate(cx.op.outputs.len().max(1));
    Ok(out)
}

/// An owned `[batch, len, heads * width]` of one of the inputs, with its part of the bias.
struct Owned {
    data: Vec<f32>,
    len: usize,
    width: usize,
    by_head: bool,
}

/// Splits packed `[batch, len, heads, parts, width]`.
fn unpack(x: &Tensor, part: usize) -> Result<Owned, OpError> {
    let [_, len, _, parts, width] = x.shape()[..] else { invalid!("expected a packed input of rank 5, found shape {}", x.shape()) };
    if part >= parts {
        invalid!("a packed input of shape {} has no part {part}", x.shape());
    }
    let data = x.to_f32s()?;
    let rows = data.chunks((parts * width).max(1)).flat_map(|row| row[part * width..][..width].iter().copied());
    Ok(Owned { data: rows.collect(), len, width, by_head: false })
}

fn plain(x: &Tensor, heads: usize) -> Result<Owned, OpError> {
    let data = x.to_f32s()?;
    match x.shape()[..] {
        [_, len, w] if w.is_multiple_of(heads) => Ok(Owned { data, len, width: w / heads, by_head: false }),
        [_, n, len, width] if n == heads => Ok(Owned { data, len, width, by_head: true }),
        _ => invalid!("shape {} does not split into {heads} heads", x.shape()),
    }
}

fn build_multi_head(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = spec(cx)?;
    if cx.wants(3) {
        unsupported!("the scores of MultiHeadAttention are not given back");
    }
    Ok(Box::new(move |args| {
        let (query, key, value) = (args.tensor(0)?, args.opt(1)?, args.opt(2)?);
        let (heads, batch) = (spec.heads, query.shape().first().copied().unwrap_or(0));
        let mut parts = match (key, value) {
            (None, _) => [unpack(query, 0)?, unpack(query, 1)?, unpack(query, 2)?],
            (Some(k), None) => [plain(query, heads)?, unpack(k, 0)?, unpack(k, 1)?],
            (Some(k), Some(v)) => [plain(query, heads)?, plain(k, heads)?, plain(v, heads)?],
        };
        if parts.iter().any(|p| p.data.len() != batch * p.len * heads * p.width) {
            invalid!("queries, keys and values differ in batches or heads");
        }
        if let Some(bias) = args.opt(3)? {
            let bias = bias.to_f32s()?;
            let mut rest = &bias[..];
            for p in &mut parts {
                let n = heads * p.width;
                if rest.len() < n {
                    invalid!("a bias of {} elements is too short", bias.len());
                }
                // Keys and values by head come from a cache, their bias included.
                if !p.by_head && n > 0 {
                    p.data.chunks_mut(n).for_each(|row| row.iter_mut().zip(rest).for_each(|(x, b)| *x += b));
                }
                rest = &rest[n..];
            }
        }
        let past = args.opt(6)?.zip(args.opt(7)?);
        let past_len = past.map_or(0, |p| p.0.shape().get(2).copied().unwrap_or(0));
        if past.is_some() || spec.outputs > 1 {
            for (i, p) in parts.iter_mut().enumerate().skip(1) {
                let new = if p.by_head { std::mem::take(&mut p.data) } else { swap_heads(&p.data, p.len, heads, p.width) };
                let old = match past {
                    None => Vec::new(),
                    Some((k, v)) => {
                        let t = if i == 1 { k } else { v };
                        if t.shape()[..] != [batch, heads, past_len, p.width] {
                            invalid!("a past of shape {} does not fit {batch} batches of {heads} heads of {}", t.shape(), p.width);
                        }
                        t.to_f32s()?
                    }
                };
                p.data = append(&old, &new, batch * heads, past_len, p.len, p.width);
                (p.len, p.by_head) = (p.len + past_len, true);
            }
        }
        let [q, k, v] = [0, 1, 2].map(|i| {
            let p = &parts[i];
            if p.by_head { Heads::by_head(&p.data, heads, p.len, p.width) } else { Heads::by_position(&p.data, heads, p.len, p.width) }
        });
        let call = Call { batch, q, k, v, past: past_len, mask: args.opt(4)?, bias: args.opt(5)? };
        let dtype = query.dtype();
        let mut out = Outputs::new();
        out.push(cast(&run(&spec, &call)?, dtype)?.into());
        if spec.outputs > 1 {
            for p in parts.into_iter().skip(1) {
                out.push(cast(&Tensor::new([batch, heads, p.len, p.width], p.data)?, dtype)?.into());
            }
        }
        out.truncate(spec.outputs);
        Ok(out)
    }))
}

fn build_rotary(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (heads, width) = (cx.attrs.int_or("num_heads", 0)?, cx.attrs.int_or("rotary_embedding_dim", 0)?);
    let (Ok(heads), Ok(width)) = (usize::try_from(heads), usize::try_from(width)) else {
        invalid!("num_heads {heads} and rotary_embedding_dim {width} must not be negative")
    };
    let (interleaved, scale) = (cx.attrs.int_or("interleaved", 0)? != 0, cx.attrs.float_or("scale", 1.0)?);
    Ok(Box::new(move |args| {
        let (x, cos) = (args.tensor(0)?, args.tensor(2)?);
        // Without a stated number of heads, the tables say how wide a head is.
        let table = 2 * cos.shape().last().copied().unwrap_or(0);
        let heads = match (heads, x.rank()) {
            (0, 3) if table > 0 => x.shape()[2] / table,
            _ => heads,
        };
        let rotary = Rotary { interleaved, heads, width: if heads > 0 { width } else { 0 }, scale };
        one(rotate(&rotary, x, cos, args.tensor(3)?, &Positions::Given(args.ints(1)?))?)
    }))
}
