//! The area under the ROC curve, exact: pairs are counted, never binned.

use super::Figure;

/// Samples that are put aside before they are sorted in.
const PENDING: usize = 1 << 20;

/// A score with how many samples of each class have it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Run {
    pub score: f64,
    pub positive: u64,
    pub negative: u64,
}

/// Positive and negative samples by their scores.
#[derive(Debug, Clone, Default)]
pub struct Auc {
    /// Ascending, each score once.
    runs: Vec<Run>,
    pending: Vec<Run>,
}

impl Auc {
    /// Adds a sample with a finite score.
    pub fn add(&mut self, score: f64, positive: bool) {
        // Both zeros are one score.
        self.push(Run { score: score + 0.0, positive: u64::from(positive), negative: u64::from(!positive) });
    }

    pub(super) fn push(&mut self, run: Run) {
        self.pending.push(run);
        if self.pending.len() >= PENDING.max(self.runs.len() / 2) {
            self.runs = self.sorted();
            self.pending.clear();
        }
    }

    /// Adds the samples of another.
    pub fn merge(&mut self, other: &Auc) {
        other.sorted().into_iter().for_each(|run| self.push(run));
    }

    /// All runs, ascending, each score once.
    pub(super) fn sorted(&self) -> Vec<Run> {
        let mut all = [&self.runs[..], &self.pending].concat();
        // Runs are in order already, which a stable sort makes use of.
        all.sort_by(|a, b| a.score.total_cmp(&b.score));
        all.dedup_by(|next, kept| {
            let same = next.score == kept.score;
            if same {
                kept.positive += next.positive;
                kept.negative += next.negative;
            }
            same
        });
        all
    }

    /// How many samples there are.
    pub fn count(&self) -> u64 {
        self.runs.iter().chain(&self.pending).map(|r| r.positive + r.negative).sum()
    }

    /// The area: of all pairs of a positive and a negative sample, the part where the positive one scores higher, ties
    /// counting one half.
    pub fn figure(&self) -> Figure {
        let (mut below, mut positives, mut twice) = (0u64, 0u64, 0u128);
        for run in self.sorted() {
            twice += u128::from(run.positive) * (2 * u128::from(below) + u128::from(run.negative));
            below += run.negative;
            positives += run.positive;
        }
        match (positives, below) {
            (0, 0) => Figure::none("no samples"),
            (0, _) => Figure::none("no positive sample"),
            (_, 0) => Figure::none("no negative sample"),
            (p, n) => Figure::Value(twice as f64 / (2.0 * p as f64 * n as f64)),
        }
    }
}

/// Equal samples, however they came.
impl PartialEq for Auc {
    fn eq(&self, other: &Self) -> bool {
        self.sorted() == other.sorted()
    }
}
