//! `fuse-gelu`
//!
//! *What*: a Gelu in its parts, by Erf or by Tanh, becomes Gelu; one of a sum with a bias becomes BiasGelu.
//! *Why*: five to eight passes over memory become one.
//! *Before*:
//! ```text
//! model ir_version=8 opset=[""=17]
//! graph g(x: float32[n,2]) -> (y) {
//!   param root2: float32[] = [1.4142135]
//!   param one: float32[] = [1.0]
//!   param half: float32[] = [0.5]
//!   a = Div(x, root2)
//!   b = Erf(a)
//!   c = Add(b, one)
//!   d = Mul(x, c)
//!   y = Mul(d, half)
//! }
//! ```
//! *After*:
//! ```text
//! model ir_version=8 opset=[""=17, "com.microsoft"=1]
//! graph g(x: float32[n,2]) -> (y) {
//!   param root2: float32[] = [1.4142135]
//!   param one: float32[] = [1.0]
//!   param half: float32[] = [0.5]
//!   a = Div(x, root2)
//!   y = com.microsoft::Gelu(x)
//! }
//! ```
//! *Needs*: version 20 of ONNX's ops for ONNX's Gelu; before it, float32, for ONNX Runtime's Gelu and FastGelu.
//! *Leaves alone*: halves; parts that others read.

use super::rules::{self, Batch, about, microsoft};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Attrs, Model, NodeId, OpName, ValueId};
use crate::tensor::DType;
use std::f64::consts::{FRAC_1_SQRT_2, PI, SQRT_2};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct FuseGelu;

impl Pass for FuseGelu {
    fn name(&self) -> &'static str {
        "fuse-gelu"
    }

    fn source(&self) -> &'static str {
        include_str!("fuse_gelu.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), |b, id| gelu(b, id).or_else(|| bias(b, id)))
    }
}

/// The operand of a node with two operands of which the other is about `n`.
fn times(b: &Batch, v: ValueId, op: &str, n: f64) -> Option<ValueId> {
    let (x, found) = b.with_number(b.by(v, op)?)?;
    about(found, n).then_some(x)
}

/// `x` of `x / sqrt 2`.
fn erf_argument(b: &Batch, v: ValueId) -> Option<ValueId> {
    let by_quotient = || {
        let id = b.by(v, "Div")?;
        let (x, n) = (b.node(id).input(0)?, b.number(b.node(id).input(1)?)?);
        about(n, SQRT_2).then_some(x)
    };
    by_quotient().or_else(|| times(b, v, "Mul", FRAC_1_SQRT_2))
}

/// `x` of `sqrt(2 / pi) * (x + 0.044715 * x^3)`.
fn tanh_argument(b: &Batch, v: ValueId) -> Option<ValueId> {
    let sum = b.by(times(b, v, "Mul", (2.0 / PI).sqrt())?, "Add")?;
    let (p, q) = (b.node(sum).input(0)?, b.node(sum).input(1)?);
    let is_cube = |v: ValueId, x: ValueId| {
        let cube = || {
            let v = times(b, v, "Mul", 0.044_715)?;
            match b.op(v.node)? {
                "Pow" => Some(b.node(v.node).input(0)? == x && b.number(b.node(v.node).input(1)?)? == 3.0),
                "Mul" => {
                    let square = b.by(b.other(v.node, x)?, "Mul")?;
                    Some(b.node(square).inputs() == [Some(x), Some(x)])
                }
                _ => None,
            }
        };
        cube() == Some(true)
    };
    if is_cube(q, p) {
        return Some(p);
    }
    is_cube(p, q).then_some(q)
}

fn gelu(b: &mut Batch, id: NodeId) -> Option<()> {
    let tanh = b.is(id, "Tanh");
    let argument = b.node(id).input(0)?;
    let x = match tanh {
        true => tanh_argument(b, argument)?,
        false if b.is(id, "Erf") => erf_argument(b, argument)?,
        false => return None,
    };
    let plus = b.sole(id.value(0)).filter(|&p| b.is(p, "Add") && b.number_beside(p, id.value(0)) == Some(1.0))?;
    // What is left is a product of the sum, `x` and 0.5, in any order.
    let first = b.sole(plus.value(0)).filter(|&m| b.is(m, "Mul"))?;
    let beside = b.other(first, plus.value(0))?;
    let mut gone = vec![id, plus, first];
    let last = if beside == x {
        let second = b.sole(first.value(0)).filter(|&m| b.is(m, "Mul") && b.number_beside(m, first.value(0)) == Some(0.5))?;
        gone.push(second);
        second
    } else if b.number(beside) == Some(0.5) {
        let second = b.sole(first.value(0)).filter(|&m| b.is(m, "Mul") && b.other(m, first.value(0)) == Some(x))?;
        gone.push(second);
        second
    } else if times(b, beside, "Mul", 0.5) == Some(x) {
        first
    } else {
        return None;
    };
    let dtype = b.dtype(x)?;
    let (op, attrs) = match (b.opset >= 20, tanh) {
        (true, true) if matches!(dtype, DType::F32 | DType::F64) => (OpName::onnx("Gelu"), Attrs::new().with("approximate", "tanh")),
        (true, false) if matches!(dtype, DType::F32 | DType::F64) => (OpName::onnx("Gelu"), Attrs::new()),
        (false, true) if dtype == DType::F32 => (microsoft("FastGelu"), Attrs::new()),
        (false, false) if dtype == DType::F32 => (microsoft("Gelu"), Attrs::new()),
        _ => return None,
    };
    b.claim(&gone, [x])?;
    b.replace_node(last, op, &[Some(x)], attrs);
    gone.into_iter().filter(|&n| n != last).for_each(|n| b.edit.remove(n));
    Some(())
}

/// A Gelu by Erf of a sum with a vector of the last axis.
fn bias(b: &mut Batch, id: NodeId) -> Option<()> {
    let node = b.node(id);
    let op = node.op()?;
    let by_erf = op == &microsoft("Gelu") || (op.is("Gelu") && node.attrs.string_or("approximate", "none").ok()? == "none");
    let sum = node.input(0)?;
    let add = b.by(sum, "Add").filter(|_| by_erf && b.is_sole(sum) && b.dtype(sum) == Some(DType::F32))?;
    let (p, q) = (b.node(add).input(0)?, b.node(add).input(1)?);
    let is_bias = |v: ValueId, x: ValueId| {
        let width = b.shape(x).and_then(|s| s.last()?.known());
        matches!(b.shape(v), Some([n]) if n.known().is_some() && n.known() == width) && b.rank(x).is_some_and(|r| r > 1)
    };
    let (x, bias) = if is_bias(q, p) { (p, q) } else { is_bias(p, q).then_some((q, p))? };
    b.claim(&[id, add], [x, bias])?;
    b.replace_node(id, microsoft("BiasGelu"), &[Some(x), Some(bias)], Attrs::new());
    b.edit.remove(add);
    Some(())
}
