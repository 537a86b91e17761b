//! Decision trees: the nodes that all tree ops are brought to, and TreeEnsemble.

use super::scores::{Post, Second};
use super::{Rows, rows_dim};
use crate::invalid;
use crate::ir::{Attrs, Dim};
use crate::ops::util::{checked_product, filled, for_each_chunk};
use crate::ops::{Fact, InferCtx, Kernel, OpCtx, OpError, one};
use crate::tensor::{DType, Tensor, cast};

/// The comparison of a feature with a node's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// At most.
    Leq,
    /// Less.
    Lt,
    /// At least.
    Gte,
    /// Greater.
    Gt,
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
    /// One of a set.
    Member,
}

/// Where a branch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// To a node.
    Node(usize),
    /// To a leaf.
    Leaf(usize),
}

/// An inner node.
#[derive(Debug, Clone)]
pub struct Node {
    /// The feature that is compared.
    pub feature: usize,
    /// How.
    pub mode: Mode,
    /// With what.
    pub value: f64,
    /// With what, for [`Mode::Member`]: a range of [`Trees::members`].
    pub members: (usize, usize),
    /// Whether NaN goes the way of "true".
    pub missing_is_true: bool,
    /// Where to go on.
    pub yes: Next,
    /// Where to go otherwise.
    pub no: Next,
}

/// How the weights of leaves come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    /// Their mean over trees.
    Average,
    /// Their sum.
    Sum,
    /// The least.
    Min,
    /// The greatest.
    Max,
}

/// Trees over shared nodes.
#[derive(Debug, Clone, Default)]
pub struct Trees {
    /// Inner nodes.
    pub nodes: Vec<Node>,
    /// Sets that nodes compare with.
    pub members: Vec<f64>,
    /// Where each tree starts.
    pub roots: Vec<Next>,
    /// The weights of each leaf, by target.
    pub leaves: Vec<Vec<(usize, f64)>>,
}

impl Trees {
    /// Checks that every branch goes somewhere and that no way is endless.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self, targets: usize) -> Result<(), OpError> {
        let exists = |n: &Next| match *n {
            Next::Node(i) => i < self.nodes.len(),
            Next::Leaf(i) => i < self.leaves.len(),
        };
        if !self.nodes.iter().flat_map(|n| [&n.yes, &n.no]).chain(&self.roots).all(exists) {
            invalid!("a branch of a tree goes to a node that is not there");
        }
        if let Some((t, _)) = self.leaves.iter().flatten().find(|(t, _)| *t >= targets) {
            invalid!("a leaf of a tree counts for target {t}, but there are {targets}");
        }
        // Depth first; a node that is met again while its branches are being followed closes a circle.
        let mut state = vec![0u8; self.nodes.len()];
        for start in 0..self.nodes.len() {
            let mut stack = vec![(start, false)];
            while let Some((i, done)) = stack.pop() {
                if done {
                    state[i] = 2;
                    continue;
                }
                match state[i] {
                    2 => continue,
                    1 => invalid!("the branches of a tree go in a circle"),
                    _ => {}
                }
                state[i] = 1;
                stack.push((i, true));
                for next in [self.nodes[i].yes, self.nodes[i].no] {
                    if let Next::Node(n) = next {
                        if state[n] == 1 {
                            invalid!("the branches of a tree go in a circle");
                        }
                        if state[n] == 0 {
                            stack.push((n, false));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// One more than the greatest feature that is compared.
    pub fn features(&self) -> usize {
        self.nodes.iter().map(|n| n.feature + 1).max().unwrap_or(0)
    }

    /// The leaf that a row of features comes to.
    fn leaf(&self, root: Next, x: &[f64]) -> &[(usize, f64)] {
        let mut at = root;
        loop {
            match at {
                Next::Leaf(i) => return &self.leaves[i],
                Next::Node(i) => {
                    let n = &self.nodes[i];
                    let v = x[n.feature];
                    let holds = match n.mode {
                        Mode::Leq => v <= n.value,
                        Mode::Lt => v < n.value,
                        Mode::Gte => v >= n.value,
                        Mode::Gt => v > n.value,
                        Mode::Eq => v == n.value,
                        Mode::Neq => v != n.value,
                        Mode::Member => self.members[n.members.0..n.members.1].contains(&v),
                    };
                    at = if holds || (n.missing_is_true && v.is_nan()) { n.yes } else { n.no };
                }
            }
        }
    }

    /// What all trees say of a row, by target; `None` where no leaf counts for it.
    pub fn scores(&self, x: &[f64], targets: usize, aggregate: Aggregate) -> Vec<Option<f64>> {
        let mut scores = vec![None; targets];
        for &root in &self.roots {
            for &(target, weight) in self.leaf(root, x) {
                let s: &mut Option<f64> = &mut scores[target];
                *s = Some(match (*s, aggregate) {
                    (None, _) => weight,
                    (Some(s), Aggregate::Sum | Aggregate::Average) => s + weight,
                    (Some(s), Aggregate::Min) => s.min(weight),
                    (Some(s), Aggregate::Max) => s.max(weight),
                });
            }
        }
        if aggregate == Aggregate::Average {
            scores.iter_mut().flatten().for_each(|s| *s /= self.roots.len().max(1) as f64);
        }
        scores
    }
}

/// A count of targets, which an attribute must give.
pub fn targets(attrs: &Attrs) -> Result<usize, OpError> {
    match attrs.int("n_targets")? {
        Some(n @ 1..=0x10_0000) => Ok(n as usize),
        Some(n) => invalid!("attribute \"n_targets\": {n} is out of range"),
        None => invalid!("attribute \"n_targets\" is missing"),
    }
}

/// Ints that must be there, `n` of them if that is known.
pub fn ints<'a>(attrs: &'a Attrs, name: &str, n: Option<usize>) -> Result<&'a [i64], OpError> {
    match attrs.ints(name)? {
        Some(list) if n.is_none_or(|n| n == list.len()) => Ok(list),
        Some(list) => invalid!("attribute \"{name}\": expected {} values, found {}", n.unwrap_or_default(), list.len()),
        None if n == Some(0) => Ok(&[]),
        None => invalid!("attribute \"{name}\" is missing"),
    }
}

/// Whether each node sends NaN the way of "true".
pub fn missing(attrs: &Attrs, n: usize) -> Result<Vec<bool>, OpError> {
    match attrs.ints("nodes_missing_value_tracks_true")? {
        None | Some([]) => Ok(vec![false; n]),
        Some(list) if list.len() == n => Ok(list.iter().map(|&x| x != 0).collect()),
        Some(list) => invalid!("attribute \"nodes_missing_value_tracks_true\": expected {n} values, found {}", list.len()),
    }
}

fn numbers(attrs: &Attrs, name: &str) -> Result<Option<Vec<f64>>, OpError> {
    Ok(attrs.tensor(name)?.map(|t| cast(t, DType::F64)?.into_vec()).transpose()?)
}

fn index(name: &str, i: i64) -> Result<usize, OpError> {
    match usize::try_from(i) {
        Ok(i) if i <= 1 << 40 => Ok(i),
        _ => invalid!("attribute \"{name}\": {i} is out of range"),
    }
}

/// The trees of a TreeEnsemble.
fn read(attrs: &Attrs) -> Result<Trees, OpError> {
    let Some(modes) = attrs.tensor("nodes_modes")? else { invalid!("attribute \"nodes_modes\" is missing") };
    let modes = modes.to_i64s()?;
    let n = Some(modes.len());
    let Some(splits) = numbers(attrs, "nodes_splits")? else { invalid!("attribute \"nodes_splits\" is missing") };
    if splits.len() != modes.len() {
        invalid!("attribute \"nodes_splits\": expected {} values, found {}", modes.len(), splits.len());
    }
    let features = ints(attrs, "nodes_featureids", n)?;
    let (yes, yes_leaf) = (ints(attrs, "nodes_truenodeids", n)?, ints(attrs, "nodes_trueleafs", n)?);
    let (no, no_leaf) = (ints(attrs, "nodes_falsenodeids", n)?, ints(attrs, "nodes_falseleafs", n)?);
    let missing = missing(attrs, modes.len())?;
    let members = numbers(attrs, "membership_values")?.unwrap_or_default();
    let next = |name: &str, i: i64, leaf: i64| -> Result<Next, OpError> {
        let i = index(name, i)?;
        Ok(if leaf != 0 { Next::Leaf(i) } else { Next::Node(i) })
    };
    let mut sets = members.split(|x| x.is_nan()).scan(0, |from, set| {
        let range = (*from, *from + set.len());
        *from += set.len() + 1;
        Some(range)
    });
    let mut nodes = Vec::with_capacity(modes.len());
    for (i, &mode) in modes.iter().enumerate() {
        let mode = match mode {
            0 => Mode::Leq,
            1 => Mode::Lt,
            2 => Mode::Gte,
            3 => Mode::Gt,
            4 => Mode::Eq,
            5 => Mode::Neq,
            6 => Mode::Member,
            other => invalid!("attribute \"nodes_modes\": unknown mode {other}"),
        };
        let set = if mode == Mode::Member { sets.next() } else { Some((0, 0)) };
        let Some(set) = set else { invalid!("attribute \"membership_values\": too few sets") };
        nodes.push(Node {
            feature: index("nodes_featureids", features[i])?,
            mode,
            value: splits[i],
            members: set,
            missing_is_true: missing[i],
            yes: next("nodes_truenodeids", yes[i], yes_leaf[i])?,
            no: next("nodes_falsenodeids", no[i], no_leaf[i])?,
        });
    }
    let Some(weights) = numbers(attrs, "leaf_weights")? else { invalid!("attribute \"leaf_weights\" is missing") };
    let ids = ints(attrs, "leaf_targetids", Some(weights.len()))?;
    let leaves =
        ids.iter().zip(&weights).map(|(&t, &w)| Ok(vec![(index("leaf_targetids", t)?, w)])).collect::<Result<Vec<_>, OpError>>()?;
    let roots = ints(attrs, "tree_roots", None)?.iter().map(|&r| Ok(Next::Node(index("tree_roots", r)?)));
    let roots = roots.collect::<Result<Vec<_>, OpError>>()?;
    Ok(Trees { nodes, members, roots, leaves })
}

pub(super) fn infer_ensemble(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(cx.dtype(0), Some(vec![rows_dim(cx)?, Dim::Known(targets(cx.op.attrs)?)]))])
}

pub(super) fn build_ensemble(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (targets, trees) = (targets(cx.attrs)?, read(cx.attrs)?);
    trees.check(targets)?;
    let post = Post::from_code(cx.attrs.int_or("post_transform", 0)?)?;
    let aggregate = match cx.attrs.int_or("aggregate_function", 1)? {
        0 => Aggregate::Average,
        1 => Aggregate::Sum,
        2 => Aggregate::Min,
        3 => Aggregate::Max,
        other => invalid!("attribute \"aggregate_function\": unknown value {other}"),
    };
    Ok(Box::new(move |args| {
        let dtype = args.tensor(0)?.dtype();
        if !matches!(dtype, DType::F16 | DType::F32 | DType::F64) {
            invalid!("input 0: expected float16, float32 or float64, found {dtype}");
        }
        let y = regress(&trees, &Rows::read(&args)?, targets, aggregate, &[], post)?;
        one(cast(&y, dtype)?)
    }))
}

/// What the trees say of each row, plus base values, transformed.
///
/// # Errors
/// A row with too few features.
pub fn regress(trees: &Trees, x: &Rows, targets: usize, aggregate: Aggregate, base: &[f64], post: Post) -> Result<Tensor, OpError> {
    if x.features < trees.features() {
        invalid!("input 0: expected {} features or more, found {}", trees.features(), x.features);
    }
    let mut y = filled(checked_product(&[x.rows, targets])?, 0f64)?;
    for_each_chunk(&mut y, targets, |i, out| {
        let scores = trees.scores(x.row(i), targets, aggregate);
        let mut scores: Vec<f64> = scores.iter().enumerate().map(|(t, s)| s.unwrap_or(0.0) + base.get(t).copied().unwrap_or(0.0)).collect();
        post.apply(&mut scores, Second::No);
        out.copy_from_slice(&scores);
    });
    Ok(Tensor::new([x.rows, targets], y)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::run;

    fn stump(yes: i64, yes_leaf: i64) -> Attrs {
        let floats = |v: Vec<f32>| Tensor::vector(v);
        Attrs::new()
            .with("n_targets", 1)
            .with("nodes_modes", Tensor::vector(vec![0u8]))
            .with("nodes_splits", floats(vec![0.5]))
            .with("nodes_featureids", vec![0i64])
            .with("nodes_truenodeids", vec![yes])
            .with("nodes_trueleafs", vec![yes_leaf])
            .with("nodes_falsenodeids", vec![1i64])
            .with("nodes_falseleafs", vec![1i64])
            .with("leaf_weights", floats(vec![3.0, 4.0]))
            .with("leaf_targetids", vec![0i64, 0])
            .with("tree_roots", vec![0i64])
    }

    #[test]
    fn a_stump_splits_and_sends_nan_to_no() {
        let x = Tensor::new([3, 1], vec![0.5f32, 0.6, f32::NAN]).unwrap();
        let y = run("ai.onnx.ml::TreeEnsemble", 5, stump(0, 1), &[x]).unwrap();
        assert_eq!(y.to_f32s().unwrap(), [3.0, 4.0, 4.0]);
    }

    #[test]
    fn a_circle_is_refused() {
        let x = Tensor::new([1, 1], vec![0.5f32]).unwrap();
        let error = run("ai.onnx.ml::TreeEnsemble", 5, stump(0, 0), &[x]).unwrap_err();
        assert_eq!(error.to_string(), "the branches of a tree go in a circle");
    }
}
