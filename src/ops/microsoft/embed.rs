//! Sums and layer normalization of BERT-like models: skip connections and embeddings.

use super::op;
use crate::ir::Dim;
use crate::ops::gemm::Real;
use crate::ops::norm::{Param, normalize_rows};
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, infer, quant, util};
use crate::tensor::{DType, Number, Shape, Tensor, cast};
use crate::{dispatch_wide, invalid};

pub(in crate::ops) const OPS: &[OpDef] = &[
    op("EmbedLayerNormalization").inputs(7, 9).outputs(1, 3).attrs(&["epsilon", "mask_index_type"]).infer(infer_embed).kernel(build_embed),
    op("QEmbedLayerNormalization").inputs(18, 18).outputs(2, 2).attrs(&["epsilon"]).infer(infer_embed).kernel(build_quantized_embed),
    op("SkipLayerNormalization").inputs(3, 5).outputs(1, 4).attrs(&["epsilon"]).infer(infer_skip).kernel(|cx| build_skip(cx, false)),
    op("SkipSimplifiedLayerNormalization")
        .inputs(3, 4)
        .outputs(1, 4)
        .attrs(&["epsilon"])
        .infer(infer_skip)
        .kernel(|cx| build_skip(cx, true)),
];

fn infer_skip(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let same = infer::same(cx)?.remove(0);
    let stats = cx.shape(0).map(|s| s.iter().enumerate().map(|(i, d)| if i + 1 == s.len() { Dim::Known(1) } else { d.clone() }).collect());
    let stats = Fact::partial(Some(DType::F32), stats);
    let mut out = vec![same.clone(), stats.clone(), stats, same];
    out.truncate(cx.op.outputs.len().max(1));
    Ok(out)
}

fn build_skip(cx: &OpCtx, rms: bool) -> Result<Kernel, OpError> {
    let (epsilon, outputs) = (cx.attrs.float_or("epsilon", 1e-12)?, cx.outputs.len().max(1));
    let wants_sum = cx.wants(3);
    Ok(Box::new(move |mut args| {
        let x = args.take(0)?;
        let (dtype, shape) = (x.dtype(), x.shape().clone());
        let width = shape.last().copied().unwrap_or(0);
        let (skip, gamma) = (args.tensor(1)?, args.tensor(2)?);
        let (beta, bias) = if rms { (None, args.opt(3)?) } else { (args.opt(3)?, args.opt(4)?) };
        for p in [Some(gamma), beta, bias].into_iter().flatten() {
            if p.len() != width {
                invalid!("expected {width} parameters, found shape {}", p.shape());
            }
        }
        if *util::broadcast(&[skip.shape(), &shape])? != *shape || skip.is_empty() != x.is_empty() || skip.shape().last() != Some(&width) {
            invalid!("a skip of shape {} does not broadcast to {shape}", skip.shape());
        }
        let wide = if dtype.bits() == 16 { util::widen(&x)? } else { x };
        dispatch_wide!(wide.dtype(), T => {
            let skip = cast(skip, wide.dtype())?.into_vec::<T>()?;
            let bias = bias.map(|b| cast(b, wide.dtype())?.into_vec::<T>()).transpose()?;
            let (gamma, beta) = (Param::new(Some(gamma), &shape, width)?, Param::new(beta, &shape, width)?);
            let mut data = wide.into_vec::<T>()?;
            let skip_rows = skip.len().checked_div(width).unwrap_or(1).max(1);
            util::for_each_chunk(&mut data, width, |i, row| {
                row.iter_mut().zip(&skip[i % skip_rows * width..]).for_each(|(v, &s)| *v += s);
                if let Some(bias) = &bias {
                    row.iter_mut().zip(bias).for_each(|(v, &b)| *v += b);
                }
            });
            let sum = if wants_sum { Some(cast(&Tensor::new(&shape, data.clone())?, dtype)?) } else { None };
            let (mean, inv) = normalize_rows(&mut data, width, T::from_f64(f64::from(epsilon)), rms, &gamma, &beta);
            let mut out = Outputs::new();
            out.push(cast(&Tensor::new(&shape, data)?, dtype)?.into());
            if outputs > 1 {
                let mut stats = shape.clone();
                if let Some(d) = stats.last_mut() {
                    *d = 1;
                }
                for values in [mean, inv] {
                    out.push(cast(&Tensor::new(&stats, values)?, DType::F32)?.into());
                }
                out.extend(sum.map(Into::into));
            }
            out.truncate(outputs);
            Ok(out)
        })
    }))
}

fn infer_embed(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let quantized = cx.has(8) && cx.op.inputs == 18;
    let dtype = if quantized { Some(DType::F32) } else { cx.dtype(2) };
    let (batch, shape) = match (cx.shape(0), cx.shape(2)) {
        (Some([b, s]), Some([_, w])) => (b.clone(), Some(vec![b.clone(), s.clone(), w.clone()])),
        (Some(ids), _) if ids.len() != 2 => invalid!("expected ids of rank 2, found {}", ids.len()),
        _ => (Dim::Unknown, None),
    };
    let sum = Fact::partial(dtype, shape);
    let mut out = vec![sum.clone(), Fact::tensor(DType::I32, [batch]), sum];
    out.truncate(cx.op.outputs.len().max(1));
    Ok(out)
}

/// Tables and parameters of an embedding, whatever they were stored as.
struct Embedding<'a> {
    ids: &'a Tensor,
    segments: Option<(&'a Tensor, &'a Tensor)>,
    words: &'a Tensor,
    positions: &'a Tensor,
    position_ids: Option<&'a Tensor>,
    gamma: &'a Tensor,
    beta: &'a Tensor,
    mask: Option<&'a Tensor>,
    epsilon: f32,
}

fn build_embed(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (epsilon, outputs) = (cx.attrs.float_or("epsilon", 1e-12)?, cx.outputs.len().max(1));
    Ok(Box::new(move |args| {
        let e = Embedding {
            ids: args.tensor(0)?,
            segments: args.opt(1)?.zip(args.opt(4)?),
            words: args.tensor(2)?,
            positions: args.tensor(3)?,
            position_ids: args.opt(8)?,
            gamma: args.tensor(5)?,
            beta: args.tensor(6)?,
            mask: args.opt(7)?,
            epsilon,
        };
        let dtype = e.words.dtype();
        let mut out = embed(&e, dtype)?;
        out.truncate(outputs);
        Ok(out)
    }))
}

fn build_quantized_embed(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (epsilon, outputs) = (cx.attrs.float_or("epsilon", 1e-12)?, cx.outputs.len().max(1));
    Ok(Box::new(move |args: Args| {
        let real = |i: usize, scale: usize, zero: usize| quant::dequantize(args.tensor(i)?, args.tensor(scale)?, args.opt(zero)?, 0, 0);
        let segment = args.opt(4)?.map(|_| real(4, 10, 15)).transpose()?;
        let (words, positions, gamma, beta) = (real(2, 8, 13)?, real(3, 9, 14)?, real(5, 11, 16)?, real(6, 12, 17)?);
        let e = Embedding {
            ids: args.tensor(0)?,
            segments: args.opt(1)?.zip(segment.as_ref()),
            words: &words,
            positions: &positions,
            position_ids: None,
            gamma: &gamma,
            beta: &beta,
            mask: args.opt(7)?,
            epsilon,
        };
        let mut out = embed(&e, DType::F32)?;
        out.truncate(outputs.min(2));
        Ok(out)
    }))
}

fn embed(e: &Embedding, dtype: DType) -> Result<Outputs, OpError> {
    let [batch, len] = e.ids.shape()[..] else { invalid!("expected ids of rank 2, found shape {}", e.ids.shape()) };
    let words = util::widen(e.words)?;
    let (normal, sum) = dispatch_wide!(words.dtype(), T => lookup::<T>(e, &words, batch, len)?);
    let mask = match e.mask {
        None => vec![0; batch],
        Some(mask) if mask.shape() == e.ids.shape() => {
            let mask = mask.to_i64s()?;
            (0..batch).map(|b| mask[b * len..][..len].iter().filter(|&&m| m == 1).count() as i32).collect()
        }
        Some(mask) => invalid!("a mask of shape {} does not fit ids of shape {}", mask.shape(), e.ids.shape()),
    };
    Ok(Outputs::from_iter([cast(&normal, dtype)?.into(), Tensor::vector(mask).into(), cast(&sum, dtype)?.into()]))
}

fn lookup<T: Real>(e: &Embedding, words: &Tensor, batch: usize, len: usize) -> Result<(Tensor, Tensor), OpError> {
    let [_, width] = words.shape()[..] else { invalid!("expected a table of rank 2, found shape {}", words.shape()) };
    let table = |t: &Tensor| -> Result<Tensor, OpError> {
        match t.shape()[..] {
            [_, w] if w == width => Ok(cast(t, T::DTYPE)?.aligned()),
            _ => invalid!("expected a table of width {width}, found shape {}", t.shape()),
        }
    };
    let (positions, segment) = (table(e.positions)?, e.segments.map(|s| table(s.1)).transpose()?);
    let ids = e.ids.to_i64s()?;
    let segment_ids = e.segments.map(|s| s.0.to_i64s()).transpose()?;
    let position_ids = e.position_ids.map(Tensor::to_i64s).transpose()?;
    let (words, positions) = (words.as_slice::<T>()?, positions.as_slice::<T>()?);
    let segment = segment.as_ref().map(|s| s.as_slice::<T>()).transpose()?;
    if position_ids.as_ref().is_some_and(|p| p.len() != len && p.len() != ids.len())
        || segment_ids.as_ref().is_some_and(|s| s.len() != ids.len())
    {
        invalid!("position or segment ids do not fit ids of shape {}", e.ids.shape());
    }
    let mut data = Vec::with_capacity(ids.len() * width);
    for (i, &id) in ids.iter().enumerate() {
        let position = position_ids.as_ref().map_or((i % len) as i64, |p| p[i % p.len()]);
        let start = data.len();
        data.extend_from_slice(row(words, width, id, "word")?);
        let mut add = |r: &[T]| data[start..].iter_mut().zip(r).for_each(|(x, &y)| *x = *x + y);
        add(row(positions, width, position, "position")?);
        if let (Some(table), Some(ids)) = (segment, &segment_ids) {
            add(row(table, width, ids[i], "segment")?);
        }
    }
    let shape = Shape::from([batch, len, width]);
    let sum = Tensor::new(&shape, data.clone())?;
    let (gamma, beta) = (Param::new(Some(e.gamma), &shape, width)?, Param::new(Some(e.beta), &shape, width)?);
    normalize_rows(&mut data, width, T::from_f64(f64::from(e.epsilon)), false, &gamma, &beta);
    Ok((Tensor::new(shape, data)?, sum))
}

fn row<'a, T>(table: &'a [T], width: usize, id: i64, what: &str) -> Result<&'a [T], OpError> {
    let rows = table.len().checked_div(width).unwrap_or(0);
    match usize::try_from(id).ok().filter(|&i| i < rows) {
        Some(i) => Ok(&table[i * width..][..width]),
        None => invalid!("{what} id {id} is beyond the {rows} rows of its table"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run_values;
    use crate::tensor::Value;

    fn t(shape: &[usize], data: &[f32]) -> Value {
        Tensor::new(shape, data.to_vec()).unwrap().into()
    }

    fn close(found: &Value, want: &[f32]) {
        let found = found.as_tensor().unwrap().to_f32s().unwrap();
        assert!(found.len() == want.len() && found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?}, expected {want:?}");
    }

    #[test]
    fn a_skip_is_added_before_the_norm() {
        let inputs =
            vec![Some(t(&[1, 1, 2], &[1.0, 2.0])), Some(t(&[1, 2], &[0.0, 1.0])), Some(t(&[2], &[1.0, 2.0])), Some(t(&[2], &[0.0, 1.0]))];
        let out = run_values("com.microsoft::SkipLayerNormalization", 1, Attrs::new(), inputs, 4).unwrap();
        close(&out[0], &[-1.0, 3.0]);
        close(&out[1], &[2.0]);
        close(&out[3], &[1.0, 3.0]);
    }

    #[test]
    fn embeddings_are_summed_and_the_mask_counted() {
        let ids = |v: Vec<i32>| Some(Value::from(Tensor::new([1, 2], v).unwrap()));
        let inputs = |words: Vec<i32>| {
            vec![
                ids(words),
                ids(vec![0, 0]),
                Some(t(&[2, 2], &[0.0, 1.0, 10.0, 0.0])),
                Some(t(&[2, 2], &[0.0, 0.0, 0.0, 2.0])),
                Some(t(&[1, 2], &[0.0, 1.0])),
                Some(t(&[2], &[1.0, 1.0])),
                Some(t(&[2], &[0.0, 0.0])),
                ids(vec![1, 0]),
            ]
        };
        let out = run_values("com.microsoft::EmbedLayerNormalization", 1, Attrs::new(), inputs(vec![0, 1]), 3).unwrap();
        close(&out[0], &[-1.0, 1.0, 1.0, -1.0]);
        close(&out[2], &[0.0, 2.0, 10.0, 3.0]);
        assert_eq!(out[1], Tensor::vector(vec![1i32]).into());
        assert!(run_values("com.microsoft::EmbedLayerNormalization", 1, Attrs::new(), inputs(vec![0, 2]), 3).is_err());
    }
}
