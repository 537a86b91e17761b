//! TreeEnsembleClassifier and TreeEnsembleRegressor: trees in the older form, nodes keyed by tree and number.

use super::scores::{Labels, Post, Second, best, classify};
use super::trees::{Aggregate, Mode, Next, Node, Trees, ints, missing, regress, targets};
use super::{Rows, infer_columns, rows_dim};
use crate::invalid;
use crate::ir::Attrs;
use crate::ops::{Fact, InferCtx, Kernel, OpCtx, OpError, one};
use crate::tensor::{DType, cast};
use std::collections::{HashMap, HashSet};

/// Numbers of an attribute of floats, or of its twin that is a tensor.
fn numbers(attrs: &Attrs, name: &str) -> Result<Option<Vec<f64>>, OpError> {
    if let Some(t) = attrs.tensor(&format!("{name}_as_tensor"))? {
        return Ok(Some(cast(t, DType::F64)?.into_vec()?));
    }
    Ok(attrs.floats(name)?.map(|f| f.iter().map(|&x| x.into()).collect()))
}

/// The weights that leaves give, as the attributes with this prefix say.
struct Weights<'a> {
    trees: &'a [i64],
    nodes: &'a [i64],
    ids: &'a [i64],
    values: Vec<f64>,
}

impl<'a> Weights<'a> {
    fn read(attrs: &'a Attrs, prefix: &str) -> Result<Self, OpError> {
        let Some(values) = numbers(attrs, &format!("{prefix}_weights"))? else { invalid!("attribute \"{prefix}_weights\" is missing") };
        let list = |name: &str| ints(attrs, &format!("{prefix}_{name}"), Some(values.len()));
        Ok(Self { trees: list("treeids")?, nodes: list("nodeids")?, ids: list("ids")?, values })
    }
}

fn mode(name: &str) -> Result<Option<Mode>, OpError> {
    Ok(Some(match name {
        "LEAF" => return Ok(None),
        "BRANCH_LEQ" => Mode::Leq,
        "BRANCH_LT" => Mode::Lt,
        "BRANCH_GTE" => Mode::Gte,
        "BRANCH_GT" => Mode::Gt,
        "BRANCH_EQ" => Mode::Eq,
        "BRANCH_NEQ" => Mode::Neq,
        other => invalid!("attribute \"nodes_modes\": unknown mode \"{other}\""),
    }))
}

/// Trees out of the attributes `nodes_*` and the weights of their leaves.
fn read(attrs: &Attrs, weights: &Weights) -> Result<Trees, OpError> {
    let Some(modes) = attrs.strings("nodes_modes")? else { invalid!("attribute \"nodes_modes\" is missing") };
    let modes = modes.iter().map(|m| mode(m)).collect::<Result<Vec<_>, _>>()?;
    let n = Some(modes.len());
    let (tree, id) = (ints(attrs, "nodes_treeids", n)?, ints(attrs, "nodes_nodeids", n)?);
    let (yes, no) = (ints(attrs, "nodes_truenodeids", n)?, ints(attrs, "nodes_falsenodeids", n)?);
    let features = ints(attrs, "nodes_featureids", n)?;
    let Some(values) = numbers(attrs, "nodes_values")?.filter(|v| v.len() == modes.len()) else {
        invalid!("attribute \"nodes_values\": expected {} values", modes.len());
    };
    let missing = missing(attrs, modes.len())?;
    let mut places: HashMap<(i64, i64), Next> = HashMap::new();
    let (mut inner, mut leaves) = (0, 0);
    for i in 0..modes.len() {
        let count = if modes[i].is_some() { &mut inner } else { &mut leaves };
        let place = if modes[i].is_some() { Next::Node(*count) } else { Next::Leaf(*count) };
        *count += 1;
        if places.insert((tree[i], id[i]), place).is_some() {
            invalid!("node {} of tree {} is there twice", id[i], tree[i]);
        }
    }
    let find = |tree: i64, id: i64| match places.get(&(tree, id)) {
        Some(&next) => Ok(next),
        None => invalid!("tree {tree} has no node {id}"),
    };
    let mut trees = Trees { leaves: vec![Vec::new(); leaves], ..Trees::default() };
    let mut children = HashSet::new();
    for i in 0..modes.len() {
        let Some(mode) = modes[i] else { continue };
        let Ok(feature) = usize::try_from(features[i]) else { invalid!("attribute \"nodes_featureids\": {} is out of range", features[i]) };
        if feature > 1 << 40 {
            invalid!("attribute \"nodes_featureids\": {feature} is out of range");
        }
        children.extend([(tree[i], yes[i]), (tree[i], no[i])]);
        let (yes, no) = (find(tree[i], yes[i])?, find(tree[i], no[i])?);
        trees.nodes.push(Node { feature, mode, value: values[i], members: (0, 0), missing_is_true: missing[i], yes, no });
    }
    // The root of a tree is its first node that no other leads to.
    let mut rooted = HashSet::new();
    for i in 0..modes.len() {
        if !children.contains(&(tree[i], id[i])) && rooted.insert(tree[i]) {
            trees.roots.push(find(tree[i], id[i])?);
        }
    }
    if let Some(t) = tree.iter().find(|t| !rooted.contains(t)) {
        invalid!("tree {t} has no root");
    }
    for (i, &value) in weights.values.iter().enumerate() {
        let Ok(target) = usize::try_from(weights.ids[i]) else { invalid!("a leaf counts for target {}", weights.ids[i]) };
        // Weights of inner nodes are of no use.
        if let Next::Leaf(leaf) = find(weights.trees[i], weights.nodes[i])? {
            trees.leaves[leaf].push((target, value));
        }
    }
    Ok(trees)
}

pub(super) fn infer_regressor(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![infer_columns(cx, Some(targets(cx.op.attrs)?))?])
}

pub(super) fn build_regressor(cx: &OpCtx) -> Result<Kernel, OpError> {
    let targets = targets(cx.attrs)?;
    let trees = read(cx.attrs, &Weights::read(cx.attrs, "target")?)?;
    trees.check(targets)?;
    let base = numbers(cx.attrs, "base_values")?.unwrap_or_default();
    if !base.is_empty() && base.len() != targets {
        invalid!("attribute \"base_values\": expected {targets} values, found {}", base.len());
    }
    let post = Post::read(cx.attrs)?;
    let aggregate = match cx.attrs.string_or("aggregate_function", "SUM")? {
        "AVERAGE" => Aggregate::Average,
        "SUM" => Aggregate::Sum,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => invalid!("attribute \"aggregate_function\": unknown value \"{other}\""),
    };
    Ok(Box::new(move |args| {
        let y = regress(&trees, &Rows::read(&args)?, targets, aggregate, &base, post)?;
        one(cast(&y, DType::F32)?)
    }))
}

struct Classifier {
    labels: Labels,
    trees: Trees,
    base: Vec<f64>,
    post: Post,
    classes: usize,
    /// Two classes, and all leaves count for one of them.
    binary: bool,
    positive: bool,
    /// Whether some leaf counts for the second class.
    second: bool,
}

impl Classifier {
    fn read(attrs: &Attrs) -> Result<Self, OpError> {
        let labels = Labels::read(attrs, "classlabels_int64s")?;
        let classes = labels.len().max(1);
        let weights = Weights::read(attrs, "class")?;
        let trees = read(attrs, &weights)?;
        trees.check(classes)?;
        let base = numbers(attrs, "base_values")?.unwrap_or_default();
        if !base.is_empty() && base.len() != classes && !(base.len() == 1 && classes == 2) {
            invalid!("attribute \"base_values\": expected {classes} values, found {}", base.len());
        }
        let ids: HashSet<i64> = weights.ids.iter().copied().collect();
        let positive = weights.values.iter().all(|&w| w >= 0.0);
        Ok(Self {
            binary: classes == 2 && ids.len() == 1,
            second: ids.contains(&1),
            positive,
            labels,
            trees,
            base,
            post: Post::read(attrs)?,
            classes,
        })
    }

    /// How many scores a row has.
    fn columns(&self) -> usize {
        // A single score is not split by the probit.
        let one = self.binary && !self.second && self.base.len() < 2 && self.post == Post::Probit;
        if one { 1 } else { self.classes }
    }

    fn run(&self, x: &[f64]) -> (usize, Vec<f64>) {
        let found = self.trees.scores(x, self.classes, Aggregate::Sum);
        let base = |i: usize| self.base.get(i).copied().unwrap_or(0.0);
        let mut scores: Vec<f64> = found.iter().enumerate().map(|(i, s)| s.unwrap_or(0.0) + base(i)).collect();
        if self.classes > 2 {
            let class = best(&scores);
            self.post.apply(&mut scores, Second::No);
            return (class, scores);
        }
        if self.classes == 1 {
            let class = usize::from(scores[0] > 0.0);
            self.post.apply(&mut scores, Second::No);
            return (class, scores);
        }
        if self.binary && !self.second {
            // The one score is that of the second class.
            let score = found[0].unwrap_or(0.0) + if self.base.len() == 2 { base(1) } else { base(0) };
            scores = if self.base.len() == 2 { vec![-score, score] } else { vec![score] };
        }
        let weight = scores[scores.len() - 1];
        let class = if self.binary { usize::from(weight > if self.positive { 0.5 } else { 0.0 }) } else { best(&scores) };
        self.post.apply(&mut scores, if self.positive { Second::Complement } else { Second::Negative });
        (class, scores)
    }
}

pub(super) fn infer_classifier(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let c = Classifier::read(cx.op.attrs)?;
    Ok(vec![Fact::tensor(c.labels.dtype(), [rows_dim(cx)?]), infer_columns(cx, Some(c.columns()))?])
}

pub(super) fn build_classifier(cx: &OpCtx) -> Result<Kernel, OpError> {
    let c = Classifier::read(cx.attrs)?;
    Ok(Box::new(move |args| {
        let x = Rows::read(&args)?;
        if x.features < c.trees.features() {
            invalid!("input 0: expected {} features or more, found {}", c.trees.features(), x.features);
        }
        classify(x.rows, c.columns(), &c.labels, |i| Ok(c.run(x.row(i))))
    }))
}
