//! Metrics over all samples, whoever predicted them: each worker gathers its own, and the merged figures are those of one
//! worker to the last bit, for sums are exact and AUC counts pairs in integers.

mod auc;
mod bytes;
mod sum;

pub use auc::Auc;
pub use bytes::MetricsError;
pub use sum::ExactSum;

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Scores are kept this far from 0 and 1 before the logarithm: the step of float32 at 1.
pub const LOGLOSS_CLAMP: f64 = 1e-7;

/// A figure, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Figure {
    /// The figure.
    Value(f64),
    /// Why there is none.
    Undefined {
        /// The reason.
        undefined: String,
    },
}

impl Figure {
    fn none(why: impl Into<String>) -> Self {
        Figure::Undefined { undefined: why.into() }
    }

    /// The figure, if there is one.
    pub fn value(&self) -> Option<f64> {
        match self {
            Figure::Value(x) => Some(*x),
            Figure::Undefined { .. } => None,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Figure::Value(x) => write!(f, "{x:.6}"),
            Figure::Undefined { undefined } => write!(f, "undefined ({undefined})"),
        }
    }
}

/// All figures of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Samples.
    pub count: u64,
    /// The chance that a positive sample scores above a negative one, ties counting one half.
    pub auc: Figure,
    /// The mean of -ln(p) of what happened, with p kept [`LOGLOSS_CLAMP`] away from 0 and 1.
    pub logloss: Figure,
    /// The part of samples whose score is on the label's side of one half; one half itself counts as 1.
    pub accuracy: Figure,
    /// The root of the mean squared difference of score and label.
    pub rmse: Figure,
    /// The mean absolute difference of score and label.
    pub mae: Figure,
    /// The sum of scores over the sum of labels: above 1 the model promises too much.
    pub calibration: Figure,
    /// The mean AUC of the groups that have both classes, weighted by their samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grouped_auc: Option<Figure>,
    /// Groups, and how many of them have both classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<(u64, u64)>,
}

/// What is gathered from samples. Merging is exact: the order of samples and of merges does not matter.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metrics {
    count: u64,
    /// Samples whose score or label is infinite or no number.
    not_finite: u64,
    /// Labels that are neither 0 nor 1, and labels or scores outside 0 to 1.
    not_class: u64,
    not_chance: u64,
    right: u64,
    loss: ExactSum,
    squares: ExactSum,
    absolutes: ExactSum,
    scores: ExactSum,
    labels: ExactSum,
    auc: Auc,
    groups: BTreeMap<String, Auc>,
}

impl Metrics {
    /// Adds a sample.
    pub fn add(&mut self, label: f64, score: f64) {
        self.take(None, label, score);
    }

    /// Adds a sample of a group, such as a user.
    pub fn add_grouped(&mut self, group: &str, label: f64, score: f64) {
        self.take(Some(group), label, score);
    }

    fn take(&mut self, group: Option<&str>, label: f64, score: f64) {
        self.count += 1;
        if !(label.is_finite() && score.is_finite()) {
            self.not_finite += 1;
            return;
        }
        let positive = label == 1.0;
        if positive || label == 0.0 {
            self.right += u64::from((score >= 0.5) == positive);
            self.auc.add(score, positive);
            if let Some(group) = group {
                match self.groups.get_mut(group) {
                    Some(auc) => auc.add(score, positive),
                    None => self.groups.entry(group.into()).or_default().add(score, positive),
                }
            }
        } else {
            self.not_class += 1;
        }
        let chance = 0.0..=1.0;
        if chance.contains(&label) && chance.contains(&score) {
            let p = score.clamp(LOGLOSS_CLAMP, 1.0 - LOGLOSS_CLAMP);
            self.loss.add(-(label * p.ln() + (1.0 - label) * (1.0 - p).ln()));
        } else {
            self.not_chance += 1;
        }
        let difference = score - label;
        self.squares.add(difference * difference);
        self.absolutes.add(difference.abs());
        self.scores.add(score);
        self.labels.add(label);
    }

    /// Adds the samples of another worker.
    pub fn merge(&mut self, other: &Metrics) {
        self.count += other.count;
        self.not_finite += other.not_finite;
        self.not_class += other.not_class;
        self.not_chance += other.not_chance;
        self.right += other.right;
        self.loss.merge(&other.loss);
        self.squares.merge(&other.squares);
        self.absolutes.merge(&other.absolutes);
        self.scores.merge(&other.scores);
        self.labels.merge(&other.labels);
        self.auc.merge(&other.auc);
        for (group, auc) in &other.groups {
            self.groups.entry(group.clone()).or_default().merge(auc);
        }
    }

    /// How many samples there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The figures.
    pub fn report(&self) -> Report {
        let n = self.count;
        let classes = (self.not_class > 0).then(|| format!("{} of {n} labels are neither 0 nor 1", self.not_class));
        let chances = (self.not_chance > 0).then(|| format!("{} of {n} labels or scores are not from 0 to 1", self.not_chance));
        let all = if n == 0 {
            Some("no samples".to_string())
        } else {
            (self.not_finite > 0).then(|| format!("{} of {n} samples have a score or label that is not finite", self.not_finite))
        };
        let figure = |why: &Option<String>, value: &dyn Fn() -> Figure| match all.as_ref().or(why.as_ref()) {
            Some(why) => Figure::none(why.clone()),
            None => value(),
        };
        let mean = |sum: &ExactSum| sum.value().map_or(Figure::none("the sum overflows"), |s| Figure::Value(s / n as f64));
        Report {
            count: n,
            auc: figure(&classes, &|| self.auc.figure()),
            logloss: figure(&chances, &|| mean(&self.loss)),
            accuracy: figure(&classes, &|| Figure::Value(self.right as f64 / n as f64)),
            rmse: figure(&None, &|| match mean(&self.squares) {
                Figure::Value(x) => Figure::Value(x.sqrt()),
                none => none,
            }),
            mae: figure(&None, &|| mean(&self.absolutes)),
            calibration: figure(&None, &|| match (self.scores.value(), self.labels.value()) {
                (Some(_), Some(0.0)) => Figure::none("the labels sum to 0"),
                (Some(scores), Some(labels)) => Figure::Value(scores / labels),
                _ => Figure::none("the sum overflows"),
            }),
            grouped_auc: (!self.groups.is_empty()).then(|| figure(&classes, &|| self.grouped())),
            groups: (!self.groups.is_empty()).then(|| {
                let both = self.groups.values().filter(|a| a.figure().value().is_some()).count();
                (self.groups.len() as u64, both as u64)
            }),
        }
    }

    fn grouped(&self) -> Figure {
        let (mut sum, mut weight) = (ExactSum::default(), 0u64);
        for auc in self.groups.values() {
            if let Some(value) = auc.figure().value() {
                sum.add(value * auc.count() as f64);
                weight += auc.count();
            }
        }
        match sum.value() {
            Some(sum) if weight > 0 => Figure::Value(sum / weight as f64),
            _ => Figure::none("no group has both classes"),
        }
    }
}

#[cfg(test)]
mod tests;
