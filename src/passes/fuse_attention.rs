//! `fuse-attention`
//!
//! *What*: attention in its parts (heads split off and turned, scaled scores, mask, softmax, weighted sum, heads joined) becomes
//! Attention or MultiHeadAttention.
//! *Why*: a dozen passes over memory become one, and the scores are never stored as a whole.
//! *Before*:
//! ```text
//! model ir_version=8 opset=[""=17]
//! graph g(q: float32[n,2,4], k: float32[n,2,4], v: float32[n,2,4]) -> (y) {
//!   param heads: int64[4] = [0, 2, 2, 2]
//!   param joined: int64[3] = [0, 2, 4]
//!   param scale: float32[] = [0.5]
//!   param mask: float32[2,2] = [0.0, -inf, 0.0, 0.0]
//!   q4 = Reshape(q, heads)
//!   qt = Transpose(q4) {perm=[0, 2, 1, 3]}
//!   k4 = Reshape(k, heads)
//!   kt = Transpose(k4) {perm=[0, 2, 3, 1]}
//!   v4 = Reshape(v, heads)
//!   vt = Transpose(v4) {perm=[0, 2, 1, 3]}
//!   raw = MatMul(qt, kt)
//!   scores = Mul(raw, scale)
//!   masked = Add(scores, mask)
//!   p = Softmax(masked) {axis=-1}
//!   o = MatMul(p, vt)
//!   ot = Transpose(o) {perm=[0, 2, 1, 3]}
//!   y = Reshape(ot, joined)
//! }
//! ```
//! *After*:
//! ```text
//! model ir_version=8 opset=[""=17, "com.microsoft"=1]
//! graph g(q: float32[n,2,4], k: float32[n,2,4], v: float32[n,2,4]) -> (y) {
//!   param heads: int64[4] = [0, 2, 2, 2]
//!   param joined: int64[3] = [0, 2, 4]
//!   param scale: float32[] = [0.5]
//!   param mask: float32[2,2] = [0.0, -inf, 0.0, 0.0]
//!   param y_mask: float32[1,1,2,2] = [0.0, -inf, 0.0, 0.0]
//!   q4 = Reshape(q, heads)
//!   qt = Transpose(q4) {perm=[0, 2, 1, 3]}
//!   k4 = Reshape(k, heads)
//!   kt = Transpose(k4) {perm=[0, 2, 3, 1]}
//!   v4 = Reshape(v, heads)
//!   vt = Transpose(v4) {perm=[0, 2, 1, 3]}
//!   raw = MatMul(qt, kt)
//!   scores = Mul(raw, scale)
//!   masked = Add(scores, mask)
//!   y = com.microsoft::MultiHeadAttention(q, k, v, _, _, y_mask) {num_heads=2, scale=0.5}
//! }
//! ```
//! *Needs*: float32; known numbers and widths of heads; from version 23 on it writes ONNX's Attention, before it ONNX Runtime's
//! MultiHeadAttention.
//! *Leaves alone*: a mask that is no constant of queries by keys, or hides all keys of a query (the parts then give NaN).

use super::rules::{self, Batch, microsoft};
use super::simplify_transposes::{perm, same_leading};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Model, NodeId, OpName, ValueId};
use crate::tensor::{DType, Shape, Tensor};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct FuseAttention;

impl Pass for FuseAttention {
    fn name(&self) -> &'static str {
        "fuse-attention"
    }

    fn source(&self) -> &'static str {
        include_str!("fuse_attention.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), fuse)
    }
}

/// A value and the factor by which it was scaled.
fn unscaled(b: &Batch, v: ValueId) -> (ValueId, f64) {
    let factor = || {
        let node = b.node(v.node);
        let (p, q) = (node.input(0)?, node.input(1)?);
        let small = |c: ValueId, x: ValueId| b.constant(c).is_some_and(|t| b.rank(x).is_some_and(|r| t.rank() <= r));
        match b.op(v.node).filter(|_| b.is_sole(v))? {
            "Div" if small(q, p) => Some((p, 1.0 / b.number(q)?)),
            "Mul" if small(q, p) && b.number(q).is_some() => Some((p, b.number(q)?)),
            "Mul" if small(p, q) => Some((q, b.number(p)?)),
            _ => None,
        }
    };
    factor().unwrap_or((v, 1.0))
}

/// `[batch, len, heads * width]` behind `[batch, heads, len, width]` (or with the last two turned), and `[heads, width]`.
fn heads(b: &Batch, v: ValueId, turned: bool) -> Option<(ValueId, [usize; 2])> {
    let mut order = perm(b, v.node)?;
    let mut of = b.node(v.node).input(0)?;
    if turned && order == [0, 1, 3, 2] {
        order = perm(b, of.node)?.get(..4).map(|p| vec![p[0], p[1], p[3], p[2]])?;
        of = b.node(of.node).input(0)?;
    }
    if order != if turned { [0, 2, 3, 1] } else { [0, 2, 1, 3] } {
        return None;
    }
    let x = b.node(b.by(of, "Reshape")?).input(0)?;
    let ([batch, len, n, w], [first, second, width]) = (b.shape(of)?, b.shape(x)?) else { return None };
    let (n, w) = (n.known()?, w.known()?);
    let lead = same_leading(&[first.clone(), second.clone()], &[batch.clone(), len.clone()]);
    (lead && n > 0 && w > 0 && width.known() == n.checked_mul(w) && b.dtype(x)? == DType::F32).then_some((x, [n, w]))
}

/// A constant mask as `[1, 1, queries, keys]`, if no row of it hides every key.
fn mask(b: &Batch, v: ValueId, scores: ValueId) -> Option<Tensor> {
    let t = b.constant(v).filter(|t| t.dtype() == DType::F32)?;
    let [.., queries, keys] = b.shape(scores)? else { return None };
    let (queries, keys) = (queries.known()?, keys.known()?);
    let fits = match t.shape()[..] {
        [q, k] | [1, q, k] | [1, 1, q, k] => q == queries && k == keys,
        _ => false,
    };
    let values = t.to_f32s().ok()?;
    let open = keys > 0 && values.chunks(keys).all(|row| row.iter().any(|&x| x > f32::MIN));
    (fits && open && !values.iter().any(|x| x.is_nan())).then(|| t.clone().reshape(Shape::from([1, 1, queries, keys])).ok()).flatten()
}

fn fuse(b: &mut Batch, id: NodeId) -> Option<()> {
    if !b.is(id, "Softmax") || b.opset < 13 || ![-1, 3].contains(&b.attrs(id).int_or("axis", -1).ok()?) {
        return None;
    }
    let mut scores = b.node(id).input(0)?;
    let mut added = None;
    if let Some(add) = b.by(scores, "Add").filter(|_| b.is_sole(scores)) {
        let (p, q) = (b.node(add).input(0)?, b.node(add).input(1)?);
        let (of, by) = if b.constant(q).is_some() { (p, q) } else { (q, p) };
        added = Some(mask(b, by, of)?);
        scores = of;
    }
    let (raw, outer) = unscaled(b, scores);
    let product = b.by(raw, "MatMul").filter(|_| b.is_sole(raw))?;
    let (q, on_q) = unscaled(b, b.node(product).input(0)?);
    let (k, on_k) = unscaled(b, b.node(product).input(1)?);
    let ((q, q_heads), (k, k_heads)) = (heads(b, q, false)?, heads(b, k, true)?);
    let sum = b.sole(id.value(0)).filter(|&m| b.is(m, "MatMul") && b.node(m).input(0) == Some(id.value(0)))?;
    let (v, v_heads) = heads(b, b.node(sum).input(1)?, false)?;
    let turn = b.sole(sum.value(0)).filter(|&t| perm(b, t).is_some_and(|p| p == [0, 2, 1, 3]))?;
    let join = b.sole(turn.value(0)).filter(|&r| b.is(r, "Reshape"))?;
    let ([batch, len, width], [first, second, ..]) = (b.shape(join.value(0))?, b.shape(q)?) else { return None };
    let lead = same_leading(&[first.clone(), second.clone()], &[batch.clone(), len.clone()]);
    let scale = outer * on_q * on_k;
    if !lead || q_heads != k_heads || q_heads[0] != v_heads[0] || width.known() != Some(v_heads[0] * v_heads[1]) || scale <= 0.0 {
        return None;
    }
    let gone = [id, sum, turn, join];
    b.claim(&gone, [q, k, v])?;
    let mut inputs = vec![Some(q), Some(k), Some(v)];
    let (heads, scale) = (q_heads[0] as i64, scale as f32);
    let (op, attrs) = if b.opset >= 23 {
        (OpName::onnx("Attention"), Attrs::new().with("q_num_heads", heads).with("kv_num_heads", heads).with("scale", scale))
    } else {
        inputs.extend(added.is_some().then_some([None, None]).into_iter().flatten());
        (microsoft("MultiHeadAttention"), Attrs::new().with("num_heads", heads).with("scale", scale))
    };
    if let Some(mask) = added {
        let name = format!("{}_mask", b.graph().name_of(join.value(0)));
        inputs.push(Some(b.edit.add_param(&name, mask)));
    }
    b.replace_node(join, op, &inputs, attrs);
    [turn, sum, id].into_iter().for_each(|n| b.edit.remove(n));
    Some(())
}
