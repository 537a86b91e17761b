//! TfIdfVectorizer: counts of the n-grams of a pool.

use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, one};
use crate::invalid;
use crate::ir::Dim;
use crate::tensor::{DType, Shape, Tensor};
use std::collections::HashMap;

const ATTRS: &[&str] = &[
    "max_gram_length",
    "max_skip_count",
    "min_gram_length",
    "mode",
    "ngram_counts",
    "ngram_indexes",
    "pool_int64s",
    "pool_strings",
    "weights",
];

pub(super) const OPS: &[OpDef] = &[OpDef::new("TfIdfVectorizer", &[9]).attrs(ATTRS).kernel(build).infer(infer_vectorizer)];

/// The n-grams as a tree of tokens: node 0 is the root, children by (node, token).
#[derive(Default)]
struct Tree {
    children: HashMap<(u32, u32), u32>,
    /// The output position of the n-gram that ends at each node.
    ends: Vec<Option<usize>>,
}

impl Tree {
    fn add(&mut self, gram: &[u32], place: usize) {
        let mut node = 0;
        for &token in gram {
            let next = self.ends.len() as u32;
            node = *self.children.entry((node, token)).or_insert(next);
            if node == next {
                self.ends.push(None);
            }
        }
        self.ends[node as usize] = Some(place);
    }
}

/// The distinct tokens of the pool, numbered.
enum Tokens {
    Ints(HashMap<i64, u32>),
    Texts(HashMap<String, u32>),
}

fn number<K: std::hash::Hash + Eq>(pool: impl IntoIterator<Item = K>) -> (HashMap<K, u32>, Vec<u32>) {
    let mut ids = HashMap::new();
    let list = pool
        .into_iter()
        .map(|k| {
            let next = ids.len() as u32;
            *ids.entry(k).or_insert(next)
        })
        .collect();
    (ids, list)
}

struct Vectorizer {
    tokens: Tokens,
    tree: Tree,
    lengths: (usize, usize),
    skips: usize,
    width: usize,
    /// Counts above 1 count as 1.
    binary: bool,
    /// By output position, as other runtimes read them.
    weights: Vec<f32>,
}

/// The number of outputs: one more than the greatest index.
fn width(indexes: &[i64]) -> Result<usize, OpError> {
    match (indexes.iter().max(), indexes.iter().min()) {
        (Some(&max), Some(&min)) if min >= 0 && max < 1 << 40 => Ok(max as usize + 1),
        _ => invalid!("ngram_indexes must be numbers from 0 on"),
    }
}

impl Vectorizer {
    fn read(cx: &OpCtx) -> Result<Self, OpError> {
        let a = cx.attrs;
        let required = |name: &str| match a.int(name)?.map(usize::try_from) {
            Some(Ok(n)) => Ok(n),
            Some(Err(_)) => invalid!("attribute {name:?} is negative"),
            None => invalid!("attribute {name:?} is missing"),
        };
        let lengths = (required("min_gram_length")?, required("max_gram_length")?);
        if lengths.0 == 0 || lengths.0 > lengths.1 {
            invalid!("n-gram lengths {}..={} are no range from 1 on", lengths.0, lengths.1);
        }
        let skips = required("max_skip_count")?;
        let (binary, weighted) = match a.string("mode")? {
            Some("TF") => (false, false),
            Some("IDF") => (true, true),
            Some("TFIDF") => (false, true),
            other => invalid!("mode must be TF, IDF or TFIDF, found {other:?}"),
        };
        let (tokens, pool) = match (a.ints("pool_int64s")?, a.strings("pool_strings")?) {
            (Some(ints), None) => {
                let (ids, pool) = number(ints.iter().copied());
                (Tokens::Ints(ids), pool)
            }
            (None, Some(texts)) => {
                let (ids, pool) = number(texts);
                (Tokens::Texts(ids), pool)
            }
            _ => invalid!("exactly one of pool_int64s and pool_strings must be given"),
        };
        let indexes = a.ints("ngram_indexes")?.unwrap_or_default();
        let width = width(indexes)?;
        let tree = grams(&pool, a.ints("ngram_counts")?.unwrap_or_default(), indexes)?;
        let weights = if weighted { a.floats("weights")?.unwrap_or_default().to_vec() } else { Vec::new() };
        if !weights.is_empty() && weights.len() != indexes.len() {
            invalid!("{} weights for {} n-grams", weights.len(), indexes.len());
        }
        Ok(Self { tokens, tree, lengths, skips, width, binary, weights })
    }

    /// The tokens of a row by number; `None` for one that the pool does not have.
    fn tokens(&self, x: &Tensor) -> Result<Vec<Option<u32>>, OpError> {
        match &self.tokens {
            Tokens::Texts(ids) => Ok(x.as_slice::<String>()?.iter().map(|s| ids.get(s).copied()).collect()),
            Tokens::Ints(ids) => Ok(x.to_i64s()?.iter().map(|i| ids.get(i).copied()).collect()),
        }
    }

    /// Counts the n-grams of a row whose tokens lie `1 + skips` apart, for each number of skips.
    fn count(&self, row: &[Option<u32>], out: &mut [f32]) {
        let (mut least, most) = self.lengths;
        for distance in 1..=self.skips.saturating_add(1).min(row.len()) {
            for start in 0..row.len() {
                let mut node = 0;
                for (n, token) in row[start..].iter().step_by(distance).take(most).enumerate() {
                    let Some(&next) = token.as_ref().and_then(|t| self.tree.children.get(&(node, *t))) else { break };
                    node = next;
                    if let Some(place) = self.tree.ends[node as usize].filter(|_| n + 1 >= least) {
                        out[place] += 1.0;
                    }
                }
            }
            // Skips do not change a single token, which is counted once.
            if least == 1 {
                least = 2;
                if least > most {
                    break;
                }
            }
        }
        if self.binary {
            out.iter_mut().for_each(|x| *x = x.min(1.0));
        }
        out.iter_mut().zip(&self.weights).for_each(|(x, w)| *x *= w);
    }
}

/// The tree of a pool that lists all 1-grams from `counts[0]` on, all 2-grams from `counts[1]` on, and so on.
fn grams(pool: &[u32], counts: &[i64], indexes: &[i64]) -> Result<Tree, OpError> {
    let mut tree = Tree { ends: vec![None], ..Tree::default() };
    let mut places = indexes.iter();
    for (i, &start) in counts.iter().enumerate() {
        let end = counts.get(i + 1).map_or(pool.len() as i64, |&e| e);
        let part = usize::try_from(start).ok().zip(usize::try_from(end).ok()).and_then(|(s, e)| pool.get(s..e));
        let Some(part) = part.filter(|p| p.len() % (i + 1) == 0) else {
            invalid!("ngram_counts {counts:?} do not cut a pool of {} into whole n-grams", pool.len())
        };
        for gram in part.chunks_exact(i + 1) {
            match places.next() {
                Some(&place) => tree.add(gram, place as usize),
                None => invalid!("more n-grams than ngram_indexes"),
            }
        }
    }
    Ok(tree)
}

fn build(cx: &OpCtx) -> Result<Kernel, OpError> {
    let v = Vectorizer::read(cx)?;
    Ok(Box::new(move |args: Args| {
        let x = args.tensor(0)?;
        let (rows, columns, shape) = match x.shape()[..] {
            [] => (1, 1, Shape::from([v.width])),
            [c] => (1, c, Shape::from([v.width])),
            [b, c] => (b, c, Shape::from([b, v.width])),
            _ => invalid!("input 0 must have rank 1 or 2, found {}", x.shape()),
        };
        let tokens = v.tokens(x)?;
        let mut out = Tensor::full(shape.clone(), 0f32)?.into_vec::<f32>()?;
        for (i, out) in out.chunks_mut(v.width).enumerate().take(rows) {
            v.count(&tokens[i * columns..(i + 1) * columns], out);
        }
        one(Tensor::new(shape, out)?)
    }))
}

fn infer_vectorizer(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let width = Dim::Known(width(cx.op.attrs.ints("ngram_indexes")?.unwrap_or_default())?);
    let dims = match cx.shape(0) {
        Some([] | [_]) => Some(vec![width]),
        Some([b, _]) => Some(vec![b.clone(), width]),
        Some(other) => invalid!("input 0 must have rank 1 or 2, found {}", other.len()),
        None => None,
    };
    Ok(vec![Fact::partial(Some(DType::F32), dims)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attr, Attrs};
    use crate::ops::testing::run;

    fn attrs(mode: &str, lengths: (i64, i64), skips: i64) -> Attrs {
        Attrs::new()
            .with("mode", mode)
            .with("min_gram_length", lengths.0)
            .with("max_gram_length", lengths.1)
            .with("max_skip_count", skips)
            .with("ngram_counts", vec![0, 4])
            .with("ngram_indexes", vec![0, 1, 2, 3, 4, 5, 6])
            .with("pool_int64s", vec![2, 3, 5, 4, 5, 6, 7, 8, 6, 7])
    }

    fn counts(attrs: Attrs, x: &[i32]) -> Vec<f32> {
        run("TfIdfVectorizer", 9, attrs, &[Tensor::vector(x.to_vec())]).unwrap().into_vec().unwrap()
    }

    const ROW: [i32; 12] = [1, 1, 3, 3, 3, 7, 8, 6, 7, 5, 6, 8];

    #[test]
    fn pairs_are_counted_with_and_without_skips() {
        assert_eq!(counts(attrs("TF", (2, 2), 0), &ROW), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(counts(attrs("TF", (2, 2), 5), &ROW), [0.0, 0.0, 0.0, 0.0, 1.0, 3.0, 1.0]);
        assert_eq!(counts(attrs("TF", (1, 2), 5), &ROW), [0.0, 3.0, 1.0, 0.0, 1.0, 3.0, 1.0]);
        assert_eq!(counts(attrs("IDF", (1, 2), i64::MAX), &ROW), [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn weights_scale_counts() {
        let mut a = attrs("TFIDF", (2, 2), 5);
        a.set("weights", Attr::Floats(vec![1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0]));
        assert_eq!(counts(a, &ROW)[5], 6.0);
    }

    #[test]
    fn a_pool_of_broken_n_grams_is_an_error() {
        let a = attrs("TF", (1, 2), 0).with("ngram_counts", vec![0, 5]);
        assert!(run("TfIdfVectorizer", 9, a, &[Tensor::vector(vec![1i64])]).is_err());
        let a = attrs("TF", (1, 2), 0).with("ngram_indexes", vec![0, -1]);
        assert!(run("TfIdfVectorizer", 9, a, &[Tensor::vector(vec![1i64])]).is_err());
    }
}
