//! Losses of classifiers: negative log likelihood and cross entropy.

use super::gemm::Real;
use super::{Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, rows, softmax::softmax, util};
use crate::ir::Dim;
use crate::tensor::{Element, Shape, Tensor, cast};
use crate::{dispatch_wide, invalid};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("NegativeLogLikelihoodLoss", &[12, 13, 22])
        .inputs(2, 3)
        .attrs(&["ignore_index", "reduction"])
        .infer(infer_loss)
        .kernel(|cx| build(cx, false)),
    OpDef::new("SoftmaxCrossEntropyLoss", &[12, 13])
        .inputs(2, 3)
        .outputs(1, 2)
        .attrs(&["ignore_index", "reduction"])
        .infer(infer_loss)
        .kernel(|cx| build(cx, true)),
];

#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    None,
    Mean,
    Sum,
}

fn reduction(cx: &OpCtx) -> Result<Reduction, OpError> {
    Ok(match cx.attrs.string_or("reduction", "mean")? {
        "none" => Reduction::None,
        "mean" => Reduction::Mean,
        "sum" => Reduction::Sum,
        other => invalid!("reduction must be none, mean or sum, found {other:?}"),
    })
}

fn infer_loss(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let shape = match reduction(&cx.op)? {
        Reduction::None => cx.shape(1).map(<[Dim]>::to_vec),
        _ => Some(Vec::new()),
    };
    let mut out = vec![Fact::partial(cx.dtype(0), shape)];
    if cx.op.outputs.len() > 1 {
        out.push(Fact::partial(cx.dtype(0), cx.shape(0).map(<[Dim]>::to_vec)));
    }
    Ok(out)
}

fn build(cx: &OpCtx, cross: bool) -> Result<Kernel, OpError> {
    let (reduction, ignore, outputs) = (reduction(cx)?, cx.attrs.int("ignore_index")?, cx.outputs.len().max(1));
    Ok(Box::new(move |mut args| {
        let x = args.take(0)?;
        let (targets, target_shape, weight) = (args.ints(1)?, args.tensor(1)?.shape().clone(), args.opt(2)?);
        let (dtype, shape) = (x.dtype(), x.shape().clone());
        let [batch, classes, ..] = shape[..] else { invalid!("expected rank 2 or more, found shape {shape}") };
        let inner: usize = shape[2..].iter().product();
        if target_shape.len() + 1 != shape.len() || target_shape[0] != batch || target_shape[1..] != shape[2..] {
            invalid!("targets of shape {target_shape} do not fit scores of shape {shape}");
        }
        if weight.is_some_and(|w| w.len() != classes) {
            invalid!("expected {classes} weights, found {}", weight.map_or(0, Tensor::len));
        }
        let wide = util::widen(&x)?;
        let log = if cross { softmax(wide, classes, inner, true)? } else { wide };
        let loss = dispatch_wide!(log.dtype(), T => {
            let weight = weight.map(|w| cast(w, T::DTYPE)?.into_vec::<T>()).transpose()?;
            loss::<T>(log.as_slice()?, &targets, weight.as_deref(), (classes, inner), ignore, reduction, target_shape)?
        });
        let mut out = Outputs::new();
        out.push(cast(&loss, dtype)?.into());
        if cross && outputs > 1 {
            out.push(cast(&log, dtype)?.into());
        }
        Ok(out)
    }))
}

fn loss<T: Real>(
    log: &[T],
    targets: &[i64],
    weight: Option<&[T]>,
    (classes, inner): (usize, usize),
    ignore: Option<i64>,
    reduction: Reduction,
    shape: Shape,
) -> Result<Tensor, OpError> {
    let mut losses = Vec::with_capacity(targets.len());
    let mut weights = Vec::with_capacity(targets.len());
    for (i, &t) in targets.iter().enumerate() {
        if Some(t) == ignore {
            losses.push(T::ZERO);
            weights.push(T::ZERO);
            continue;
        }
        let Some(t) = usize::try_from(t).ok().filter(|&t| t < classes) else {
            invalid!("target {t} is out of range for {classes} classes: expected 0..{classes}")
        };
        let w = weight.map_or(T::ONE, |w| w[t]);
        losses.push(-log[(i / inner * classes + t) * inner + i % inner] * w);
        weights.push(w);
    }
    Ok(match reduction {
        Reduction::None => Tensor::new(shape, losses)?,
        Reduction::Sum => Tensor::scalar(rows::sum(&losses)),
        Reduction::Mean => Tensor::scalar(rows::sum(&losses) / rows::sum(&weights)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::run;
    use super::*;
    use crate::ir::Attrs;

    #[test]
    fn ignored_targets_and_weights_count_in_the_mean() {
        let x = Tensor::new([3, 2], vec![-1f32, -2.0, -3.0, -4.0, -5.0, -6.0]).unwrap();
        let targets = Tensor::vector(vec![0i64, 1, -1]);
        let attrs = Attrs::new().with("ignore_index", -1i64);
        let out = run("NegativeLogLikelihoodLoss", 13, attrs, &[x.clone(), targets, Tensor::vector(vec![1f32, 3.0])]).unwrap();
        assert_eq!(out, Tensor::scalar((1.0 + 12.0) / 4.0f32));
        assert!(run("NegativeLogLikelihoodLoss", 13, Attrs::new(), &[x, Tensor::vector(vec![0i64, 2, 0])]).is_err());
    }

    #[test]
    fn cross_entropy_of_equal_scores_is_the_logarithm_of_the_classes() {
        let x = Tensor::new([1, 4, 1], vec![7f32; 4]).unwrap();
        let out = run("SoftmaxCrossEntropyLoss", 13, Attrs::new(), &[x, Tensor::new([1, 1], vec![2i32]).unwrap()]).unwrap();
        assert!((out.item::<f32>().unwrap() - 4f32.ln()).abs() < 1e-6);
    }
}
