//! `simplify-transposes`
//!
//! *What*: a Transpose of a Transpose becomes one, or none where the second undoes the first; one that was put between two
//! Reshapes, to turn the last two axes of many matrices, becomes a Transpose alone.
//! *Why*: each moves every element.
//! *Before*:
//! ```text
//! graph g(x: float32[n,2,3,4]) -> (y, z, w) {
//!   param matrices: int64[3] = [-1, 3, 4]
//!   param back: int64[4] = [-1, 2, 4, 3]
//!   a = Transpose(x) {perm=[0, 2, 1, 3]}
//!   b = Transpose(a) {perm=[0, 1, 3, 2]}
//!   y = Neg(b)
//!   c = Transpose(a) {perm=[0, 2, 1, 3]}
//!   z = Neg(c)
//!   d = Reshape(x, matrices)
//!   e = Transpose(d) {perm=[0, 2, 1]}
//!   w = Reshape(e, back)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,2,3,4]) -> (y, z, w) {
//!   param matrices: int64[3] = [-1, 3, 4]
//!   param back: int64[4] = [-1, 2, 4, 3]
//!   a = Transpose(x) {perm=[0, 2, 1, 3]}
//!   b = Transpose(x) {perm=[0, 2, 3, 1]}
//!   y = Neg(b)
//!   z = Neg(x)
//!   d = Reshape(x, matrices)
//!   e = Transpose(d) {perm=[0, 2, 1]}
//!   w = Transpose(x) {perm=[0, 1, 3, 2]}
//! }
//! ```
//! *Needs*: for a Transpose without `perm`, the rank.
//! *Leaves alone*: Transposes of constants (`fold-constants` computes them) and those that a product takes (`fuse-matmul`).

use super::rules::{self, Batch};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Dim, Model, NodeId, OpName, ValueId};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct SimplifyTransposes;

impl Pass for SimplifyTransposes {
    fn name(&self) -> &'static str {
        "simplify-transposes"
    }

    fn source(&self) -> &'static str {
        include_str!("simplify_transposes.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), |b, id| compose(b, id).or_else(|| between_reshapes(b, id)))
    }
}

/// The axes of the operand of a Transpose, in the order of its result.
pub(super) fn perm(b: &Batch, id: NodeId) -> Option<Vec<usize>> {
    if !b.is(id, "Transpose") {
        return None;
    }
    match b.attrs(id).ints("perm").ok()? {
        Some(p) => p.iter().map(|&p| usize::try_from(p).ok().filter(|&q| q < p as usize + 1)).collect(),
        None => Some((0..b.rank(b.node(id).input(0)?)?).rev().collect()),
    }
}

fn compose(b: &mut Batch, id: NodeId) -> Option<()> {
    let outer = perm(b, id)?;
    let middle = b.node(id).input(0)?;
    let inner = perm(b, middle.node)?;
    let x = b.node(middle.node).input(0)?;
    let both: Vec<usize> = outer.iter().map(|&p| inner.get(p).copied()).collect::<Option<_>>()?;
    if both.iter().enumerate().all(|(i, &p)| i == p)
        && let Some(done) = b.forward(id, x)
    {
        return Some(done);
    }
    b.claim(&[id], [x])?;
    b.edit.set_operand(id, 0, Some(x));
    b.edit.set_attr(id, "perm", both.iter().map(|&p| p as i64).collect::<Vec<_>>());
    Some(())
}

/// `Reshape` to `[matrices, m, n]`, `Transpose` of the last two, `Reshape` to the first leading dims.
fn between_reshapes(b: &mut Batch, id: NodeId) -> Option<()> {
    let turn = b.by(b.is(id, "Reshape").then(|| b.node(id).input(0)).flatten()?, "Transpose")?;
    if perm(b, turn)? != [0, 2, 1] || !b.is_sole(turn.value(0)) {
        return None;
    }
    let flat = b.node(turn).input(0)?;
    let x: ValueId = b.node(b.by(flat, "Reshape")?).input(0)?;
    let (from, to, flat) = (b.shape(x)?, b.shape(id.value(0))?, b.shape(flat)?);
    let ([lead @ .., m, n], [back @ .., q, p]) = (from, to) else { return None };
    let known = [m, n].iter().all(|d| d.known().is_some_and(|n| n > 0));
    if !known || flat[1..] != [m.clone(), n.clone()] || (m, n) != (p, q) || lead.is_empty() || !same_leading(lead, back) {
        return None;
    }
    let rank = from.len() as i64;
    let axes: Vec<i64> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
    b.claim(&[id, turn], [x])?;
    b.replace_node(id, OpName::onnx("Transpose"), &[Some(x)], Attrs::new().with("perm", axes));
    Some(())
}

/// Whether dims with the same product are the same, where at most one is not known.
pub(super) fn same_leading(a: &[Dim], b: &[Dim]) -> bool {
    let differ = a.iter().zip(b).filter(|(x, y)| x != y || **x == Dim::Unknown).count();
    let certain = a.iter().zip(b).all(|(x, y)| x == y && *x != Dim::Unknown);
    let others = a.iter().zip(b).filter(|(x, y)| x == y).all(|(x, _)| x.known().is_some_and(|n| n > 0));
    a.len() == b.len() && (certain || (differ == 1 && others))
}
