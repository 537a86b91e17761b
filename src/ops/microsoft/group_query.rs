//! GroupQueryAttention: attention over a cache of keys and values that fewer heads share, of decoders.

use super::op;
use crate::ir::Dim;
use crate::ops::attention::{Heads, Mask, Positions, Rotary, Scores, attend, required_heads, rotate, swap_heads};
use crate::ops::matmul::new_out;
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs};
use crate::tensor::{Shape, Tensor, cast};
use crate::{invalid, unsupported};

pub(in crate::ops) const OPS: &[OpDef] = &[op("GroupQueryAttention")
    .inputs(7, 17)
    .outputs(1, 4)
    .attrs(&[
        "causal",
        "do_rotary",
        "k_norm_epsilon",
        "k_quant_type",
        "kv_cache_bit_width",
        "kv_num_heads",
        "local_window_size",
        "num_heads",
        "q_norm_epsilon",
        "qk_norm_epsilon",
        "qk_output",
        "rotary_interleaved",
        "scale",
        "sliding_window_cache",
        "smooth_softmax",
        "softcap",
        "v_quant_type",
    ])
    .infer(infer_group)
    .kernel(build_group)];

/// The attributes.
struct Spec {
    heads: usize,
    kv_heads: usize,
    scale: Option<f32>,
    softcap: f32,
    causal: bool,
    /// Keys that a query sees, its own the last, where it is not negative.
    window: i64,
    rotary: Option<bool>,
    smooth: bool,
    outputs: usize,
}

fn spec(cx: &OpCtx) -> Result<Spec, OpError> {
    let (heads, kv_heads) = required_heads(cx, "num_heads", "kv_num_heads")?;
    let quantized = ["k_quant_type", "v_quant_type"].iter().any(|a| !matches!(cx.attrs.string_or(a, "NONE"), Ok("NONE" | "")));
    if quantized || cx.attrs.int_or("sliding_window_cache", 0)? != 0 || cx.attrs.int_or("qk_output", 0)? != 0 {
        unsupported!("quantized caches, sliding_window_cache and qk_output are not supported");
    }
    Ok(Spec {
        heads,
        kv_heads,
        scale: cx.attrs.float("scale")?.filter(|&s| s != 0.0),
        softcap: cx.attrs.float_or("softcap", 0.0)?,
        causal: cx.attrs.int_or("causal", 1)? != 0,
        window: cx.attrs.int_or("local_window_size", -1)?,
        rotary: (cx.attrs.int_or("do_rotary", 0)? != 0).then_some(cx.attrs.int_or("rotary_interleaved", 0)? != 0),
        smooth: cx.attrs.int_or("smooth_softmax", 0)? != 0,
        outputs: cx.outputs.len().max(1),
    })
}

fn infer_group(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let spec = spec(&cx.op)?;
    let (y, cache) = match cx.shape(0) {
        Some([b, s, w]) => {
            let width = match (cx.has(1), w.known()) {
                (true, _) => w.clone(),
                (false, Some(w)) => Dim::Known(w / (spec.heads + 2 * spec.kv_heads) * spec.heads),
                _ => Dim::Unknown,
            };
            (Some(vec![b.clone(), s.clone(), width]), Some(vec![b.clone(), Dim::Known(spec.kv_heads), Dim::Unknown, Dim::Unknown]))
        }
        Some(s) => invalid!("expected rank 3, found {}", s.len()),
        None => (None, None),
    };
    let cache = Fact::partial(cx.dtype(0), cache);
    let mut out = vec![Fact::partial(cx.dtype(0), y), cache.clone(), cache];
    out.resize(cx.op.outputs.len().max(1), Fact::unknown());
    Ok(out)
}

fn build_group(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = spec(cx)?;
    if cx.wants(3) {
        unsupported!("the scores of GroupQueryAttention are not given back");
    }
    Ok(Box::new(move |args| run(&spec, &args)))
}

/// Queries, keys and values by position, each `[batch, len, heads * width]`.
fn split(spec: &Spec, args: &Args, width: usize) -> Result<[Tensor; 3], OpError> {
    let query = args.tensor(0)?;
    if let (Some(k), Some(v)) = (args.opt(1)?, args.opt(2)?) {
        let (&[b, s, _], want) = (&query.shape()[..], spec.kv_heads * width) else {
            invalid!("expected rank 3, found shape {}", query.shape())
        };
        if k.shape()[..] != [b, s, want] || v.shape()[..] != [b, s, want] {
            invalid!("keys {} and values {} do not fit queries {}", k.shape(), v.shape(), query.shape());
        }
        let wide = |t: &Tensor| cast(t, crate::tensor::DType::F32);
        return Ok([wide(query)?.aligned(), wide(k)?.aligned(), wide(v)?.aligned()]);
    }
    let [b, s, all] = query.shape()[..] else { invalid!("expected rank 3, found shape {}", query.shape()) };
    let data = query.to_f32s()?;
    let part = |from: usize, size: usize| -> Result<Tensor, OpError> {
        let rows = data.chunks(all.max(1)).flat_map(|row| row[from..from + size].iter().copied());
        Ok(Tensor::new([b, s, size], rows.collect())?)
    };
    let (q, kv) = (spec.heads * width, spec.kv_heads * width);
    Ok([part(0, q)?, part(q, kv)?, part(q + kv, kv)?])
}

fn run(spec: &Spec, args: &Args) -> Result<Outputs, OpError> {
    if (12..args.len()).any(|i| args.value(i).is_some()) {
        unsupported!("scales of the cache, norms of queries and keys, and query_seqlens are not supported");
    }
    let query = args.tensor(0)?;
    let [batch, len, all] = query.shape()[..] else { invalid!("expected rank 3, found shape {}", query.shape()) };
    let Spec { heads, kv_heads, .. } = *spec;
    if args.opt(1)?.is_some() != args.opt(2)?.is_some() {
        invalid!("keys and values must be given together");
    }
    let columns = if args.opt(1)?.is_some() { heads } else { heads + 2 * kv_heads };
    if !all.is_multiple_of(columns) {
        invalid!("{all} columns do not split into {columns} heads");
    }
    let width = all / columns;
    let [mut q, mut k, v] = split(spec, args, width)?;
    let (lens, total) = (args.ints(5)?, args.ints(6)?);
    let [total] = total[..] else { invalid!("expected one total_sequence_length, found {}", total.len()) };
    let old = args.opt(3)?.zip(args.opt(4)?);
    let capacity = match old.map(|(k, v)| (&k.shape()[..], &v.shape()[..])) {
        None => 0,
        Some((&[b, n, l, w], other)) if [b, n, w] == [batch, kv_heads, width] && other == [b, n, l, w] => l,
        Some((k, v)) => invalid!("a past of shapes {} and {} does not fit", Shape::from(k), Shape::from(v)),
    };
    let limit = usize::try_from(total).ok().filter(|&t| t <= capacity.saturating_add(len));
    let (Some(total), true) = (limit, lens.len() == batch) else {
        invalid!("total_sequence_length {total} or {} lengths do not fit", lens.len())
    };
    let first = total == len;
    let mut past = Vec::with_capacity(batch);
    for &l in &lens {
        let all = l.saturating_add(1);
        let before = if first { 0 } else { all - len as i64 };
        match usize::try_from(before).ok().filter(|&p| p <= capacity && p + len <= total.max(capacity) && all >= 0) {
            Some(p) => past.push(p),
            None => invalid!("a sequence of {all} positions does not fit a past of {capacity} and {len} new ones"),
        }
    }
    if let Some(interleaved) = spec.rotary {
        let (cos, sin) = (args.tensor(7)?, args.tensor(8)?);
        let positions: Vec<i64> = match args.opt_ints(9)? {
            Some(p) if !first && p.len() == batch * len => p,
            _ => (0..batch * len).map(|i| (past[i / len] + i % len) as i64).collect(),
        };
        let table = 2 * cos.shape().last().copied().unwrap_or(0);
        for (t, heads) in [(&mut q, heads), (&mut k, kv_heads)] {
            let rotary = Rotary { interleaved, heads, width: table, scale: 1.0 };
            *t = rotate(&rotary, t, cos, sin, &Positions::Given(positions.clone()))?;
        }
    }
    let room = capacity.max(total);
    let shape = Shape::from([batch, kv_heads, room, width]);
    let cache = |new: &Tensor, old: Option<&Tensor>| -> Result<Vec<f32>, OpError> {
        let mut out = new_out::<f32>(&shape)?;
        let new = new.as_slice::<f32>()?;
        let old = old.map(Tensor::to_f32s).transpose()?.unwrap_or_default();
        for (i, rows) in out.chunks_mut((room * width).max(1)).enumerate() {
            let (b, h) = (i / kv_heads, i % kv_heads);
            if capacity > 0 {
                rows[..past[b] * width].copy_from_slice(&old[i * capacity * width..][..past[b] * width]);
            }
            for l in 0..len {
                rows[(past[b] + l) * width..][..width].copy_from_slice(&new[((b * len + l) * kv_heads + h) * width..][..width]);
            }
        }
        Ok(out)
    };
    let (keys, values) = (cache(&k, old.map(|o| o.0))?, cache(&v, old.map(|o| o.1))?);
    let extra = args.opt(10)?.map(|t| Mask::<f32>::new(t, [batch, heads, len, room])).transpose()?;
    let sink = match args.opt(11)? {
        Some(t) if t.len() == heads => Some(t.to_f32s()?),
        Some(t) => invalid!("expected {heads} sinks, found {}", t.len()),
        None => spec.smooth.then(|| vec![0.0; heads]),
    };
    let bias = |b: usize, h: usize, at: usize, row: &mut [f32]| {
        if let Some(extra) = &extra {
            extra.add(b, h, at, row);
        }
        let here = (past[b] + at) as i64;
        let end = if spec.causal { here + 1 } else { lens[b] + 1 };
        for (j, x) in row.iter_mut().enumerate() {
            let j = j as i64;
            if j >= end || (spec.window >= 0 && here - j >= spec.window) {
                *x = f32::NEG_INFINITY;
            }
        }
    };
    let scale = spec.scale.unwrap_or_else(|| 1.0 / (width as f32).sqrt());
    let scores = Scores { scale, softcap: spec.softcap, bias: &bias, keep: None, sink: sink.as_deref() };
    let queries = Heads::by_position(q.as_slice::<f32>()?, heads, len, width);
    let (keys_by_head, values_by_head) = (Heads::by_head(&keys, kv_heads, room, width), Heads::by_head(&values, kv_heads, room, width));
    let (y, _) = attend(batch, queries, keys_by_head, values_by_head, &scores)?;
    let y = Tensor::new([batch, len, heads * width], swap_heads(&y, heads, len, width))?;
    let mut out = Outputs::new();
    out.push(cast(&y, query.dtype())?.into());
    if spec.outputs > 1 {
        for data in [keys, values] {
            out.push(cast(&Tensor::new(&shape, data)?, query.dtype())?.into());
        }
    }
    out.truncate(spec.outputs);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run_values;
    use crate::tensor::Value;

    #[test]
    fn new_keys_follow_the_past_of_their_sequence() {
        let t = |shape: &[usize], data: &[f32]| Some(Value::from(Tensor::new(shape, data.to_vec()).unwrap()));
        let attrs = Attrs::new().with("num_heads", 1i64).with("kv_num_heads", 1i64);
        let inputs = vec![
            t(&[1, 1, 1], &[0.0]),
            t(&[1, 1, 1], &[9.0]),
            t(&[1, 1, 1], &[3.0]),
            t(&[1, 1, 2, 1], &[1.0, 7.0]),
            t(&[1, 1, 2, 1], &[1.0, 100.0]),
            Some(Tensor::vector(vec![1i32]).into()),
            Some(Tensor::scalar(2i32).into()),
        ];
        let out = run_values("com.microsoft::GroupQueryAttention", 1, attrs, inputs, 3).unwrap();
        assert_eq!(out[0], Tensor::new([1, 1, 1], vec![2f32]).unwrap().into());
        assert_eq!(out[1], Tensor::new([1, 1, 2, 1], vec![1f32, 9.0]).unwrap().into());
    }
}
