//! What classifiers share: class labels, and the transforms that scores go through.

use crate::invalid;
use crate::ir::Attrs;
use crate::ops::util::{checked_product, filled};
use crate::ops::{OpError, Outputs};
use crate::tensor::{DType, Tensor, Value};

/// The transform of a row of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Post {
    /// None.
    None,
    /// Exponentials over their sum.
    Softmax,
    /// Each to 0 to 1.
    Logistic,
    /// As softmax; scores of zero stay so.
    SoftmaxZero,
    /// The inverse of the normal distribution.
    Probit,
}

/// How the one score of a binary classifier becomes two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Second {
    /// It stays one.
    No,
    /// It is a probability: its complement goes before it.
    Complement,
    /// It is signed: its negative goes before it.
    Negative,
}

impl Post {
    /// By the name in an attribute.
    ///
    /// # Errors
    /// An unknown name.
    pub fn read(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(match attrs.string_or("post_transform", "NONE")? {
            "NONE" => Post::None,
            "SOFTMAX" => Post::Softmax,
            "LOGISTIC" => Post::Logistic,
            "SOFTMAX_ZERO" => Post::SoftmaxZero,
            "PROBIT" => Post::Probit,
            other => invalid!("attribute \"post_transform\": unknown value \"{other}\""),
        })
    }

    /// By the number in an attribute.
    ///
    /// # Errors
    /// An unknown number.
    pub fn from_code(code: i64) -> Result<Self, OpError> {
        Ok(match code {
            0 => Post::None,
            1 => Post::Softmax,
            2 => Post::Logistic,
            3 => Post::SoftmaxZero,
            4 => Post::Probit,
            other => invalid!("attribute \"post_transform\": unknown value {other}"),
        })
    }

    /// Transforms a row of scores. One score alone is only changed by the probit, unless a second one is made of it.
    pub fn apply(self, scores: &mut Vec<f64>, second: Second) {
        if scores.len() == 1 {
            let s = scores[0];
            match (self, second) {
                (Post::Probit, _) => scores[0] = probit(s),
                (_, Second::No) => {}
                (_, Second::Complement) => *scores = vec![1.0 - s, s],
                (_, Second::Negative) => {
                    *scores = vec![-s, s];
                    self.spread(scores);
                }
            }
            return;
        }
        self.spread(scores);
    }

    fn spread(self, scores: &mut [f64]) {
        match self {
            Post::None => {}
            Post::Logistic => scores.iter_mut().for_each(|s| *s = logistic(*s)),
            Post::Probit => scores.iter_mut().for_each(|s| *s = probit(*s)),
            Post::Softmax | Post::SoftmaxZero => {
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                for s in scores.iter_mut() {
                    let zero = self == Post::SoftmaxZero && s.abs() <= 1e-7;
                    *s = if zero { *s * (-max).exp() } else { (*s - max).exp() };
                }
                let sum: f64 = scores.iter().sum();
                scores.iter_mut().for_each(|s| *s = if sum == 0.0 { 0.5 } else { *s / sum });
            }
        }
    }
}

/// 1 / (1 + e^-x).
pub fn logistic(x: f64) -> f64 {
    let v = 1.0 / (1.0 + (-x.abs()).exp());
    if x < 0.0 { 1.0 - v } else { v }
}

/// Winitzki's approximation, as other runtimes have it.
fn probit(x: f64) -> f64 {
    let y = 2.0 * x - 1.0;
    let log = ((1.0 - y) * (1.0 + y)).ln();
    if log == f64::NEG_INFINITY {
        return 0.0;
    }
    let v = 2.0 / (std::f64::consts::PI * 0.147) + 0.5 * log;
    std::f64::consts::SQRT_2 * y.signum() * (-v + (v * v - log / 0.147).sqrt()).sqrt()
}

/// The names of classes.
#[derive(Debug, Clone)]
pub enum Labels {
    /// Integers.
    Ints(Vec<i64>),
    /// Texts.
    Strings(Vec<String>),
}

impl Labels {
    /// From the attribute of integers of this name, or from `classlabels_strings`.
    ///
    /// # Errors
    /// Both are given.
    pub fn read(attrs: &Attrs, ints: &str) -> Result<Self, OpError> {
        let strings = attrs.strings("classlabels_strings")?.filter(|s| !s.is_empty());
        let ints = attrs.ints(ints)?.filter(|i| !i.is_empty());
        match (ints, strings) {
            (Some(_), Some(_)) => invalid!("class labels are given as ints and as strings"),
            (_, Some(s)) => Ok(Labels::Strings(s)),
            (i, None) => Ok(Labels::Ints(i.unwrap_or_default().to_vec())),
        }
    }

    /// How many classes have a name.
    pub fn len(&self) -> usize {
        match self {
            Labels::Ints(l) => l.len(),
            Labels::Strings(l) => l.len(),
        }
    }

    /// The dtype of the names.
    pub fn dtype(&self) -> DType {
        match self {
            Labels::Ints(_) => DType::I64,
            Labels::Strings(_) => DType::String,
        }
    }

    /// The names of chosen classes; a class without a name is its number.
    fn of(&self, classes: &[usize]) -> Tensor {
        match self {
            Labels::Ints(l) => Tensor::vector(classes.iter().map(|&c| l.get(c).copied().unwrap_or(c as i64)).collect()),
            Labels::Strings(l) => Tensor::vector(classes.iter().map(|&c| l.get(c).cloned().unwrap_or_else(|| c.to_string())).collect()),
        }
    }
}

/// Position of the greatest score, the first of equal ones.
pub fn best(scores: &[f64]) -> usize {
    (1..scores.len()).fold(0, |b, i| if scores[i] > scores[b] { i } else { b })
}

/// Labels and scores of all rows. `row` gives the class and the `columns` scores of each.
///
/// # Errors
/// That of a row.
pub fn classify(
    rows: usize,
    columns: usize,
    labels: &Labels,
    row: impl Fn(usize) -> Result<(usize, Vec<f64>), OpError>,
) -> Result<Outputs, OpError> {
    let mut classes = filled(rows, 0usize)?;
    let mut scores = filled(checked_product(&[rows, columns])?, 0f32)?;
    for (i, class) in classes.iter_mut().enumerate() {
        let (c, s) = row(i)?;
        if s.len() != columns {
            invalid!("expected {columns} scores, found {}", s.len());
        }
        *class = c;
        scores[i * columns..][..columns].iter_mut().zip(s).for_each(|(y, s)| *y = s as f32);
    }
    Ok(Outputs::from_iter([Value::Tensor(labels.of(&classes)), Value::Tensor(Tensor::new([rows, columns], scores)?)]))
}
