//! Linear attention: a state per head that each position decays, corrects and reads.

use super::attention::required_heads;
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, util};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{Shape, Tensor, cast};

pub(super) const OPS: &[OpDef] = &[OpDef::new("LinearAttention", &[27])
    .inputs(3, 6)
    .outputs(1, 2)
    .attrs(&["chunk_size", "kv_num_heads", "q_num_heads", "scale", "update_rule"])
    .infer(infer_linear)
    .kernel(build_linear)];

/// The attributes.
struct Spec {
    q_heads: usize,
    kv_heads: usize,
    scale: f32,
    /// The state decays before each position.
    gated: bool,
    /// Only what the state does not yet hold is written.
    delta: bool,
    outputs: usize,
}

fn spec(cx: &OpCtx) -> Result<Spec, OpError> {
    let (q_heads, kv_heads) = required_heads(cx, "q_num_heads", "kv_num_heads")?;
    let (gated, delta) = match cx.attrs.string_or("update_rule", "gated_delta")? {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => invalid!("update_rule {other:?} is not known"),
    };
    Ok(Spec { q_heads, kv_heads, scale: cx.attrs.float_or("scale", 0.0)?, gated, delta, outputs: cx.outputs.len().max(1) })
}

fn infer_linear(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let spec = spec(&cx.op)?;
    let part = |i: usize, heads: usize| match cx.shape(i) {
        Some([_, _, w]) => w.known().map(|w| w / heads),
        _ => None,
    };
    let (dk, dv) = (part(0, spec.q_heads), part(2, spec.kv_heads));
    let dim = |d: Option<usize>| d.map_or(Dim::Unknown, Dim::Known);
    let batch = cx.shape(0).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
    let len = cx.shape(0).and_then(|s| s.get(1).cloned()).unwrap_or(Dim::Unknown);
    let mut out = vec![
        Fact::partial(cx.dtype(0), Some(vec![batch.clone(), len, dim(dv.and_then(|d| d.checked_mul(spec.q_heads)))])),
        Fact::partial(cx.dtype(3).or(cx.dtype(0)), Some(vec![batch, Dim::Known(spec.kv_heads), dim(dk), dim(dv)])),
    ];
    out.truncate(cx.op.outputs.len().max(1));
    Ok(out)
}

fn build_linear(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spec = spec(cx)?;
    Ok(Box::new(move |args| run(&spec, &args)))
}

/// `[batch, len, heads * width]` in `float32`.
struct Rows {
    data: Vec<f32>,
    width: usize,
}

fn rows(t: &Tensor, batch: usize, len: usize) -> Result<Rows, OpError> {
    match t.shape()[..] {
        [b, l, width] if b == batch && l == len => Ok(Rows { data: t.to_f32s()?, width }),
        _ => invalid!("expected {batch} batches of {len} positions, found shape {}", t.shape()),
    }
}

fn run(spec: &Spec, args: &Args) -> Result<Outputs, OpError> {
    let query = args.tensor(0)?;
    let [batch, len, _] = query.shape()[..] else { invalid!("expected rank 3, found shape {}", query.shape()) };
    let (q, k, v) = (rows(query, batch, len)?, rows(args.tensor(1)?, batch, len)?, rows(args.tensor(2)?, batch, len)?);
    let decay = args.opt(4)?.map(|t| rows(t, batch, len)).transpose()?;
    let beta = args.opt(5)?.map(|t| rows(t, batch, len)).transpose()?;
    let Spec { q_heads, kv_heads, .. } = *spec;
    let (dk, dv) = (q.width / q_heads, v.width / kv_heads);
    if q.width != dk * q_heads || k.width != dk * kv_heads || v.width != dv * kv_heads {
        invalid!("widths {}, {} and {} do not split into {q_heads} and {kv_heads} heads", q.width, k.width, v.width);
    }
    if decay.is_some() != spec.gated || decay.as_ref().is_some_and(|d| d.width != kv_heads && d.width != kv_heads * dk) {
        invalid!("a decay of {kv_heads} or {} columns goes with the gated rules alone", kv_heads * dk);
    }
    if beta.is_some() != spec.delta || beta.as_ref().is_some_and(|b| b.width != kv_heads && b.width != 1) {
        invalid!("a beta of {kv_heads} or 1 columns goes with the delta rules alone");
    }
    let state_shape = Shape::from([batch, kv_heads, dk, dv]);
    let past = args.opt(3)?;
    let mut state = match past {
        Some(p) if *p.shape() == state_shape => p.to_f32s()?,
        Some(p) => invalid!("a state of shape {} is not {state_shape}", p.shape()),
        None => vec![0.0; state_shape.iter().product()],
    };
    let scale = if spec.scale == 0.0 { 1.0 / (dk as f32).sqrt() } else { spec.scale };
    let shared = q_heads / kv_heads;
    // `[batch, kv head, position, shared query head, value]`: each head writes its own part.
    let mut out = vec![0f32; batch * len * q_heads * dv];
    let mut parts: Vec<(&mut [f32], &mut [f32])> =
        state.chunks_mut((dk * dv).max(1)).zip(out.chunks_mut((len * shared * dv).max(1))).collect();
    util::for_each_chunk(&mut parts, 1, |i, part| {
        let (b, h) = (i / kv_heads, i % kv_heads);
        let (state, out) = &mut part[0];
        let mut value = vec![0f32; dv];
        for t in 0..len {
            let row = b * len + t;
            let key = &k.data[row * k.width + h * dk..][..dk];
            value.copy_from_slice(&v.data[row * v.width + h * dv..][..dv]);
            if let Some(d) = &decay {
                let gate = |i: usize| d.data[row * d.width + if d.width == kv_heads { h } else { h * dk + i }].exp();
                state.chunks_mut(dv).enumerate().for_each(|(i, s)| {
                    let g = gate(i);
                    s.iter_mut().for_each(|x| *x *= g);
                });
            }
            if let Some(beta) = &beta {
                let rate = beta.data[row * beta.width + if beta.width == 1 { 0 } else { h }];
                for (s, &k) in state.chunks(dv).zip(key) {
                    value.iter_mut().zip(s).for_each(|(v, &s)| *v -= s * k);
                }
                value.iter_mut().for_each(|v| *v *= rate);
            }
            for (s, &k) in state.chunks_mut(dv).zip(key) {
                s.iter_mut().zip(&value).for_each(|(s, &v)| *s += k * v);
            }
            for g in 0..shared {
                let query = &q.data[row * q.width + (h * shared + g) * dk..][..dk];
                let o = &mut out[(t * shared + g) * dv..][..dv];
                for (s, &q) in state.chunks(dv).zip(query) {
                    o.iter_mut().zip(s).for_each(|(o, &s)| *o += q * s);
                }
                o.iter_mut().for_each(|o| *o *= scale);
            }
        }
    });
    let y = super::attention::swap_heads(&out, kv_heads, len, shared * dv);
    let mut outputs = Outputs::new();
    outputs.push(cast(&Tensor::new([batch, len, q_heads * dv], y)?, query.dtype())?.into());
    if spec.outputs > 1 {
        outputs.push(cast(&Tensor::new(state_shape, state)?, past.map_or(query.dtype(), Tensor::dtype))?.into());
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::super::testing::run;
    use super::*;
    use crate::ir::Attrs;

    #[test]
    fn the_state_is_the_sum_of_what_was_written() {
        let t = |data: &[f32]| Tensor::new([1, data.len(), 1], data.to_vec()).unwrap();
        let attrs = Attrs::new().with("q_num_heads", 1i64).with("kv_num_heads", 1i64).with("update_rule", "linear");
        let out = run("LinearAttention", 27, attrs.clone(), &[t(&[1.0, 2.0]), t(&[1.0, 3.0]), t(&[5.0, 7.0])]).unwrap();
        assert_eq!(out.to_f32s().unwrap(), [5.0, 52.0]);
        let gated = attrs.with("update_rule", "gated");
        assert!(run("LinearAttention", 27, gated, &[t(&[1.0]), t(&[1.0]), t(&[5.0])]).is_err());
    }
}
