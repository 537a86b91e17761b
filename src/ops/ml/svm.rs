//! SVMClassifier and SVMRegressor.

use super::scores::{Labels, Post, Second, best, classify, logistic};
use super::{Rows, infer_columns, rows_dim};
use crate::invalid;
use crate::ir::Attrs;
use crate::ops::util::{filled, for_each_chunk};
use crate::ops::{Fact, InferCtx, Kernel, OpCtx, OpError, one};
use crate::tensor::Tensor;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Linear,
    Poly,
    Rbf,
    Sigmoid,
}

/// The kernel of a support vector machine.
#[derive(Debug, Clone, Copy)]
struct Dot {
    shape: Shape,
    gamma: f64,
    offset: f64,
    degree: f64,
}

fn floats(attrs: &Attrs, name: &str) -> Result<Vec<f64>, OpError> {
    Ok(attrs.floats(name)?.unwrap_or_default().iter().map(|&x| x.into()).collect())
}

impl Dot {
    fn read(attrs: &Attrs) -> Result<Self, OpError> {
        let params = floats(attrs, "kernel_params")?;
        let at = |i: usize| params.get(i).copied().unwrap_or(0.0);
        let shape = match attrs.string_or("kernel_type", "LINEAR")? {
            "LINEAR" => Shape::Linear,
            "POLY" => Shape::Poly,
            "RBF" => Shape::Rbf,
            "SIGMOID" => Shape::Sigmoid,
            other => invalid!("attribute \"kernel_type\": unknown value \"{other}\""),
        };
        Ok(Self { shape, gamma: at(0), offset: at(1), degree: at(2) })
    }

    fn of(&self, a: &[f64], b: &[f64]) -> f64 {
        let dot = || a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        match self.shape {
            Shape::Linear => dot(),
            Shape::Poly => (self.gamma * dot() + self.offset).powf(self.degree),
            Shape::Rbf => (-self.gamma * a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>()).exp(),
            Shape::Sigmoid => (self.gamma * dot() + self.offset).tanh(),
        }
    }
}

struct Classifier {
    dot: Dot,
    coefficients: Vec<f64>,
    vectors: Vec<f64>,
    /// First support vector and number of them, per class; none for a linear machine.
    ranges: Vec<(usize, usize)>,
    rho: Vec<f64>,
    prob: Option<(Vec<f64>, Vec<f64>)>,
    classes: usize,
    count: usize,
    post: Post,
    labels: Labels,
}

impl Classifier {
    fn read(attrs: &Attrs) -> Result<Self, OpError> {
        let labels = Labels::read(attrs, "classlabels_ints")?;
        let classes = labels.len().max(1);
        let mut ranges = Vec::new();
        let mut count = 0usize;
        for &n in attrs.ints("vectors_per_class")?.unwrap_or_default() {
            let Some(n) = usize::try_from(n).ok().filter(|&n| n <= 1 << 40) else {
                invalid!("attribute \"vectors_per_class\": {n} is out of range");
            };
            ranges.push((count, n));
            count += n;
        }
        let (coefficients, vectors, rho) = (floats(attrs, "coefficients")?, floats(attrs, "support_vectors")?, floats(attrs, "rho")?);
        let (a, b) = (floats(attrs, "prob_a")?, floats(attrs, "prob_b")?);
        let pairs = classes * (classes - 1) / 2;
        let fits = if count > 0 {
            let lines = coefficients.len() == (classes - 1).saturating_mul(count) && vectors.len().is_multiple_of(count);
            lines && ranges.len() == classes && rho.len() >= pairs
        } else {
            !coefficients.is_empty() && coefficients.len().is_multiple_of(classes) && !rho.is_empty()
        };
        if !fits || a.len() != b.len() || (!a.is_empty() && a.len() < pairs) {
            let (c, v, r) = (coefficients.len(), vectors.len(), rho.len());
            invalid!(
                "{c} coefficients, {v} support values, {r} offsets, {} and {} probabilities do not fit {classes} classes",
                a.len(),
                b.len()
            );
        }
        let prob = (!a.is_empty() && count > 0).then_some((a, b));
        let dot = if count > 0 { Dot::read(attrs)? } else { Dot { shape: Shape::Linear, ..Dot::read(attrs)? } };
        Ok(Self { dot, coefficients, vectors, ranges, rho, prob, classes, count, post: Post::read(attrs)?, labels })
    }

    fn features(&self) -> usize {
        self.vectors.len().checked_div(self.count).unwrap_or_else(|| self.coefficients.len() / self.classes)
    }

    /// The scores of each pair of classes, and the votes that they come to.
    fn pairs(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let kernels: Vec<f64> = (0..self.count).map(|j| self.dot.of(x, &self.vectors[j * x.len()..][..x.len()])).collect();
        let mut votes = vec![0.0; self.classes];
        let mut scores = Vec::new();
        for i in 0..self.classes {
            for j in i + 1..self.classes {
                let sum = |line: usize, (from, n): (usize, usize)| {
                    let line = &self.coefficients[line * self.count + from..][..n];
                    line.iter().zip(&kernels[from..]).map(|(c, k)| c * k).sum::<f64>()
                };
                let score = self.rho[scores.len()] + sum(j - 1, self.ranges[i]) + sum(i, self.ranges[j]);
                votes[if score > 0.0 { i } else { j }] += 1.0;
                scores.push(score);
            }
        }
        (scores, votes)
    }

    fn run(&self, x: &[f64]) -> (usize, Vec<f64>) {
        let (mut scores, votes) = if self.count > 0 {
            let (scores, votes) = self.pairs(x);
            (scores, Some(votes))
        } else {
            (self.coefficients.chunks(x.len().max(1)).map(|c| self.rho[0] + self.dot.of(x, c)).collect(), None)
        };
        if let Some((a, b)) = &self.prob {
            scores = self.probabilities(&scores, a, b);
        }
        let judged = votes.as_ref().unwrap_or(&scores);
        let mut class = best(judged);
        let weight = judged[class];
        let mut second = Second::No;
        if self.rho.len() == 1 {
            if self.labels.len() == 2 {
                second = Second::Negative;
            } else {
                class = usize::from(weight > 0.0);
            }
        }
        self.post.apply(&mut scores, second);
        (class, scores)
    }

    /// A probability per class out of the scores of pairs (Wu, Lin and Weng 2004, as libsvm has it).
    fn probabilities(&self, scores: &[f64], a: &[f64], b: &[f64]) -> Vec<f64> {
        let k = self.classes;
        let mut pair = vec![0.0; k * k];
        let mut at = 0;
        for i in 0..k {
            for j in i + 1..k {
                let p = (1.0 - logistic(scores[at] * a[at] + b[at])).clamp(1e-7, 1.0 - 1e-7);
                (pair[i * k + j], pair[j * k + i]) = (p, 1.0 - p);
                at += 1;
            }
        }
        let mut q = vec![0.0; k * k];
        for t in 0..k {
            for j in (0..k).filter(|&j| j != t) {
                q[t * k + t] += pair[j * k + t] * pair[j * k + t];
                q[t * k + j] = -pair[j * k + t] * pair[t * k + j];
            }
        }
        let mut p = vec![1.0 / k as f64; k];
        for _ in 0..k.max(100) {
            let mut qp: Vec<f64> = q.chunks(k).map(|line| line.iter().zip(&p).map(|(q, p)| q * p).sum()).collect();
            let mut pqp: f64 = p.iter().zip(&qp).map(|(p, q)| p * q).sum();
            if qp.iter().all(|q| (q - pqp).abs() < 0.005 / k as f64) {
                break;
            }
            for t in 0..k {
                let diff = (pqp - qp[t]) / q[t * k + t];
                p[t] += diff;
                pqp = (pqp + diff * (diff * q[t * k + t] + 2.0 * qp[t])) / (1.0 + diff) / (1.0 + diff);
                for j in 0..k {
                    qp[j] = (qp[j] + diff * q[t * k + j]) / (1.0 + diff);
                    p[j] /= 1.0 + diff;
                }
            }
        }
        p
    }

    /// How many scores a row has.
    fn columns(&self) -> usize {
        let n = if self.prob.is_some() || self.count == 0 { self.classes } else { self.classes * (self.classes - 1) / 2 };
        if n == 1 && self.rho.len() == 1 && self.labels.len() == 2 { 2 } else { n }
    }
}

pub(super) fn infer_classifier(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let svm = Classifier::read(cx.op.attrs)?;
    Ok(vec![Fact::tensor(svm.labels.dtype(), [rows_dim(cx)?]), infer_columns(cx, Some(svm.columns()))?])
}

pub(super) fn build_classifier(cx: &OpCtx) -> Result<Kernel, OpError> {
    let svm = Classifier::read(cx.attrs)?;
    Ok(Box::new(move |args| {
        let x = Rows::read(&args)?;
        if x.features != svm.features() {
            invalid!("input 0: expected {} features, found {}", svm.features(), x.features);
        }
        classify(x.rows, svm.columns(), &svm.labels, |i| Ok(svm.run(x.row(i))))
    }))
}

pub(super) fn infer_regressor(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![infer_columns(cx, Some(1))?])
}

pub(super) fn build_regressor(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (coefficients, vectors) = (floats(cx.attrs, "coefficients")?, floats(cx.attrs, "support_vectors")?);
    let rho = floats(cx.attrs, "rho")?.first().copied().unwrap_or(0.0);
    let one_class = cx.attrs.int_or("one_class", 0)? != 0;
    let post = Post::read(cx.attrs)?;
    let supports = match cx.attrs.int_or("n_supports", 0)? {
        n @ 0..=0x1_0000_0000 => n as usize,
        n => invalid!("attribute \"n_supports\": {n} is out of range"),
    };
    let dot = if supports > 0 { Dot::read(cx.attrs)? } else { Dot { shape: Shape::Linear, ..Dot::read(cx.attrs)? } };
    let features = vectors.len().checked_div(supports).unwrap_or(coefficients.len());
    if supports > 0 && (coefficients.len() != supports || features * supports != vectors.len()) {
        invalid!("{} coefficients and {} support values do not fit {supports} vectors", coefficients.len(), vectors.len());
    }
    Ok(Box::new(move |args| {
        let x = Rows::read(&args)?;
        if x.features != features {
            invalid!("input 0: expected {features} features, found {}", x.features);
        }
        let mut y = filled(x.rows, 0f32)?;
        for_each_chunk(&mut y, 1, |i, out| {
            let sum = if supports > 0 {
                let terms = (0..supports).map(|j| coefficients[j] * dot.of(x.row(i), &vectors[j * features..][..features]));
                terms.sum::<f64>()
            } else {
                dot.of(x.row(i), &coefficients)
            };
            let mut scores = vec![sum + rho];
            if one_class {
                scores[0] = if scores[0] > 0.0 { 1.0 } else { -1.0 };
            } else {
                post.apply(&mut scores, Second::No);
            }
            out[0] = scores[0] as f32;
        });
        one(Tensor::new([x.rows, 1], y)?)
    }))
}
