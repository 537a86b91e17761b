//! LinearClassifier and LinearRegressor.

use super::scores::{Labels, Post, Second, best, classify};
use super::{Rows, infer_columns, rows_dim};
use crate::invalid;
use crate::ir::Attrs;
use crate::ops::util::{checked_product, filled, for_each_chunk};
use crate::ops::{Fact, InferCtx, Kernel, OpCtx, OpError, one};
use crate::tensor::Tensor;

/// One line of weights per target.
struct Linear {
    coefficients: Vec<f64>,
    intercepts: Vec<f64>,
    targets: usize,
}

impl Linear {
    fn read(attrs: &Attrs, targets: Option<usize>) -> Result<Self, OpError> {
        let list =
            |name: &str| -> Result<Vec<f64>, OpError> { Ok(attrs.floats(name)?.unwrap_or_default().iter().map(|&x| x.into()).collect()) };
        let (coefficients, intercepts) = (list("coefficients")?, list("intercepts")?);
        if coefficients.is_empty() {
            invalid!("attribute \"coefficients\" is missing");
        }
        let targets = targets.unwrap_or(intercepts.len().max(1));
        if targets == 0 || !coefficients.len().is_multiple_of(targets) || !(intercepts.is_empty() || intercepts.len() == targets) {
            invalid!("{} coefficients and {} intercepts do not fit {targets} targets", coefficients.len(), intercepts.len());
        }
        Ok(Self { coefficients, intercepts, targets })
    }

    fn scores(&self, x: &[f64]) -> impl Iterator<Item = f64> {
        let lines = self.coefficients.chunks(self.coefficients.len() / self.targets);
        lines
            .enumerate()
            .map(move |(i, line)| line.iter().zip(x).map(|(a, b)| a * b).sum::<f64>() + self.intercepts.get(i).copied().unwrap_or(0.0))
    }

    fn check(&self, x: &Rows) -> Result<(), OpError> {
        let features = self.coefficients.len() / self.targets;
        if x.features != features {
            invalid!("input 0: expected {features} features, found {}", x.features);
        }
        Ok(())
    }
}

/// How many scores a classifier gives.
fn columns(attrs: &Attrs, targets: usize, labels: &Labels) -> Result<usize, OpError> {
    let splits = targets == 1 && labels.len() == 2 && Post::read(attrs)? != Post::Probit;
    Ok(if splits { 2 } else { targets })
}

pub(super) fn infer_classifier(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let labels = Labels::read(cx.op.attrs, "classlabels_ints")?;
    let linear = Linear::read(cx.op.attrs, None)?;
    let columns = columns(cx.op.attrs, linear.targets, &labels)?;
    Ok(vec![Fact::tensor(labels.dtype(), [rows_dim(cx)?]), infer_columns(cx, Some(columns))?])
}

pub(super) fn build_classifier(cx: &OpCtx) -> Result<Kernel, OpError> {
    let labels = Labels::read(cx.attrs, "classlabels_ints")?;
    let linear = Linear::read(cx.attrs, None)?;
    let post = Post::read(cx.attrs)?;
    let columns = columns(cx.attrs, linear.targets, &labels)?;
    let second = if labels.len() == 2 { Second::Complement } else { Second::No };
    Ok(Box::new(move |args| {
        let x = Rows::read(&args)?;
        linear.check(&x)?;
        classify(x.rows, columns, &labels, |i| {
            let mut scores: Vec<f64> = linear.scores(x.row(i)).collect();
            // One score alone is that of the second class.
            let class = if scores.len() == 1 { usize::from(scores[0] > 0.0) } else { best(&scores) };
            post.apply(&mut scores, second);
            Ok((class, scores))
        })
    }))
}

fn targets(attrs: &Attrs) -> Result<usize, OpError> {
    match attrs.int_or("targets", 1)? {
        n @ 1..=0x1_0000_0000 => Ok(n as usize),
        n => invalid!("attribute \"targets\": {n} is out of range"),
    }
}

pub(super) fn infer_regressor(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![infer_columns(cx, Some(targets(cx.op.attrs)?))?])
}

pub(super) fn build_regressor(cx: &OpCtx) -> Result<Kernel, OpError> {
    let linear = Linear::read(cx.attrs, Some(targets(cx.attrs)?))?;
    let post = Post::read(cx.attrs)?;
    Ok(Box::new(move |args| {
        let x = Rows::read(&args)?;
        linear.check(&x)?;
        let mut y = filled(checked_product(&[x.rows, linear.targets])?, 0f32)?;
        for_each_chunk(&mut y, linear.targets, |i, out| {
            let mut scores: Vec<f64> = linear.scores(x.row(i)).collect();
            post.apply(&mut scores, Second::No);
            out.iter_mut().zip(scores).for_each(|(y, s)| *y = s as f32);
        });
        one(Tensor::new([x.rows, linear.targets], y)?)
    }))
}
