//! `fuse-matmul`
//!
//! *What*: a product takes in what stands around it: Transposes of its operands become flags, factors become `alpha`, and the
//! Add behind a product of matrices becomes the `C` of Gemm.
//! *Why*: the product reads its operands in any order and scales and adds as it writes.
//! *Before*:
//! ```text
//! graph g(x: float32[n,3], w: float32[2,3], q: float32[n,2,4,3], k: float32[n,2,4,3]) -> (y, z) {
//!   param b: float32[2] = [0.5, 1.0]
//!   param scale: float32[] = [0.25]
//!   turned = Transpose(w) {perm=[1, 0]}
//!   product = MatMul(x, turned)
//!   y = Add(product, b)
//!   keys = Transpose(k) {perm=[0, 1, 3, 2]}
//!   scores = MatMul(q, keys)
//!   z = Mul(scores, scale)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[n,3], w: float32[2,3], q: float32[n,2,4,3], k: float32[n,2,4,3]) -> (y, z) {
//!   param b: float32[2] = [0.5, 1.0]
//!   param scale: float32[] = [0.25]
//!   y = Gemm(x, w, b) {transB=1}
//!   z = com.microsoft::FusedMatMul(q, k) {alpha=0.25, transB=1}
//! }
//! ```
//! *Needs*: the operands' types and ranks. Products of matrices become ONNX's Gemm (from version 11 on), others, of
//! float32, ONNX Runtime's FusedMatMul.
//! *Leaves alone*: halves and integers; an Add that widens the product.

use super::rules::{self, Batch, microsoft};
use super::simplify_transposes::perm;
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Dim, Model, NodeId, OpName, ValueId};
use crate::tensor::DType;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct FuseMatmul;

impl Pass for FuseMatmul {
    fn name(&self) -> &'static str {
        "fuse-matmul"
    }

    fn source(&self) -> &'static str {
        include_str!("fuse_matmul.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), |b, id| grow(b, id).or_else(|| turn_gemm(b, id)))
    }
}

/// A product without a bias, whatever op it is.
struct Product {
    operands: [ValueId; 2],
    turned: [bool; 2],
    alpha: f64,
    bias: Option<ValueId>,
    /// The nodes that it takes in; the last gives its result.
    parts: Vec<NodeId>,
}

fn product(b: &Batch, id: NodeId) -> Option<Product> {
    let node = b.node(id);
    let op = node.op()?;
    let fused = *op == microsoft("FusedMatMul") && ["transBatchA", "transBatchB"].iter().all(|a| node.attrs.get(a).is_none());
    let gemm = op.is("Gemm") && node.input(2).is_none();
    if !(op.is("MatMul") || fused || gemm) {
        return None;
    }
    let flag = |name| node.attrs.int_or(name, 0).ok().map(|f| f != 0);
    Some(Product {
        operands: [node.input(0)?, node.input(1)?],
        turned: [flag("transA")?, flag("transB")?],
        alpha: node.attrs.float_or("alpha", 1.0).ok()?.into(),
        bias: None,
        parts: vec![id],
    })
}

/// The operand of a Transpose of the last two axes that nobody else reads.
fn turned(b: &Batch, v: ValueId) -> Option<ValueId> {
    let id = b.by(v, "Transpose").filter(|_| b.is_sole(v))?;
    let perm = perm(b, id)?;
    let n = perm.len();
    let last = n >= 2 && perm[..n - 2].iter().enumerate().all(|(i, &p)| i == p) && perm[n - 2..] == [n - 1, n - 2];
    last.then(|| b.node(id).input(0)).flatten()
}

/// The other operand, and the factor, of a node that scales by a constant of one element.
fn scaled(b: &Batch, id: NodeId) -> Option<(ValueId, f64)> {
    let node = b.node(id);
    let (p, q) = (node.input(0)?, node.input(1)?);
    let factor = |c: ValueId, x: ValueId| {
        let t = b.constant(c)?;
        (t.rank() <= b.rank(x)?).then_some(b.number(c)?)
    };
    match b.op(id)? {
        "Mul" => factor(q, p).map(|n| (p, n)).or_else(|| factor(p, q).map(|n| (q, n))),
        "Div" => factor(q, p).filter(|&n| n != 0.0).map(|n| (p, 1.0 / n)),
        _ => None,
    }
}

fn grow(b: &mut Batch, id: NodeId) -> Option<()> {
    let mut p = product(b, id)?;
    let (ranks, dtype) = ([b.rank(p.operands[0])?, b.rank(p.operands[1])?], b.dtype(p.operands[0])?);
    let matrices = ranks == [2, 2] && b.opset >= 11 && matches!(dtype, DType::F32 | DType::F64);
    if !matrices && (dtype != DType::F32 || ranks.iter().any(|&r| r < 2)) {
        return None;
    }
    for i in 0..2 {
        if let Some(x) = turned(b, p.operands[i]) {
            p.parts.insert(0, p.operands[i].node);
            (p.operands[i], p.turned[i]) = (x, !p.turned[i]);
        }
        let v = p.operands[i];
        if let Some((x, n)) = b.is_sole(v).then(|| scaled(b, v.node)).flatten() {
            p.parts.insert(0, v.node);
            (p.operands[i], p.alpha) = (x, p.alpha * n);
        }
    }
    let last = *p.parts.last()?;
    if let Some(reader) = b.sole(last.value(0))
        && let Some((x, n)) = scaled(b, reader)
        && x == last.value(0)
    {
        p.parts.push(reader);
        p.alpha *= n;
    }
    let last = *p.parts.last()?;
    if matrices
        && let Some(add) = b.sole(last.value(0)).filter(|&a| b.is(a, "Add"))
        && let Some(c) = b.other(add, last.value(0)).filter(|&c| fits(b, c, id.value(0)))
    {
        p.parts.push(add);
        p.bias = Some(c);
    }
    if p.parts.len() == 1 || !(p.alpha as f32).is_finite() {
        return None;
    }
    write(b, p, matrices)
}

/// Whether a value widens a matrix product in no dim when it is added.
fn fits(b: &Batch, c: ValueId, product: ValueId) -> bool {
    let (Some(c), Some(p)) = (b.shape(c), b.shape(product)) else { return false };
    let one = |(c, p): (&Dim, &Dim)| c.known() == Some(1) || (c == p && *c != Dim::Unknown);
    c.len() <= p.len() && c.iter().rev().zip(p.iter().rev()).all(one)
}

fn write(b: &mut Batch, p: Product, matrices: bool) -> Option<()> {
    let last = *p.parts.last()?;
    let mut inputs = vec![Some(p.operands[0]), Some(p.operands[1])];
    inputs.extend(p.bias.map(Some));
    b.claim(&p.parts, inputs.iter().flatten().copied())?;
    let mut attrs = Attrs::new();
    if p.alpha != 1.0 {
        attrs = attrs.with("alpha", p.alpha as f32);
    }
    for (turned, name) in p.turned.into_iter().zip(["transA", "transB"]) {
        if turned {
            attrs = attrs.with(name, 1i64);
        }
    }
    let op = if matrices { OpName::onnx("Gemm") } else { microsoft("FusedMatMul") };
    b.replace_node(last, op, &inputs, attrs);
    p.parts.into_iter().filter(|&n| n != last).for_each(|n| b.edit.remove(n));
    Some(())
}

/// Transposed operands of a Gemm become flags.
fn turn_gemm(b: &mut Batch, id: NodeId) -> Option<()> {
    let node = b.node(id);
    let op = node.op()?;
    if !(op.is("Gemm") || *op == microsoft("FusedGemm")) || !matches!(b.dtype(node.input(0)?)?, DType::F32 | DType::F64) {
        return None;
    }
    let mut found = Vec::new();
    for (i, name) in ["transA", "transB"].into_iter().enumerate() {
        let v = b.node(id).input(i)?;
        if let Some(x) = turned(b, v) {
            found.push((i, name, v.node, x));
        }
    }
    if found.is_empty() {
        return None;
    }
    let gone: Vec<NodeId> = found.iter().map(|f| f.2).chain([id]).collect();
    b.claim(&gone, found.iter().map(|f| f.3))?;
    for (i, name, transpose, x) in found {
        let flag = i64::from(b.attrs(id).int_or(name, 0).ok()? == 0);
        b.edit.set_operand(id, i, Some(x));
        b.edit.set_attr(id, name, flag);
        b.edit.remove(transpose);
    }
    Some(())
}
