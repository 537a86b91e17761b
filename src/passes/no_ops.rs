//! `no-ops`
//!
//! *What*: removes nodes that give back what they are given: Identity, Dropout outside training, Cast to the same type, Reshape
//! and its like to the same dims, Transpose that moves nothing, Slice of all, Pad by nothing, Concat of one, `x * 1`, `x / 1`,
//! `x - 0`.
//! *Why*: exporters leave them behind; each costs a pass over memory, and hides its operand from other passes.
//! *Before*:
//! ```text
//! graph g(x: float32[2,n]) -> (y) {
//!   param one: float32[] = [1.0]
//!   a = Identity(x)
//!   b = Mul(a, one)
//!   c = Transpose(b) {perm=[0, 1]}
//!   d = Relu(c)
//!   y = Cast(d) {to=1}
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: float32[2,n]) -> (y) {
//!   param one: float32[] = [1.0]
//!   y = Relu(x)
//! }
//! ```
//! *Needs*: for most of them types that are known.
//! *Leaves alone*: `x + 0` of floats, which turns -0 into 0; an Identity that gives a graph input or a constant back as an output.

use super::rules::{self, Batch};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Model, NodeId, ValueId};
use crate::tensor::DType;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct NoOps;

impl Pass for NoOps {
    fn name(&self) -> &'static str {
        "no-ops"
    }

    fn source(&self) -> &'static str {
        include_str!("no_ops.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), |batch, id| {
            let same = unchanged(batch, id)?;
            batch.forward(id, same)
        })
    }
}

/// The operand that a node gives back as it is.
fn unchanged(b: &Batch, id: NodeId) -> Option<ValueId> {
    let (node, y) = (b.node(id), id.value(0));
    let op = b.op(id)?;
    if matches!(op, "Mul" | "Div" | "Add" | "Sub") {
        return neutral(b, id, op);
    }
    let x = node.input(0)?;
    let same = match op {
        "Identity" => true,
        "Dropout" => !trains(b, id)?,
        "Cast" => {
            let to = node.attrs.int("to").ok()??;
            b.dtype(x)? == DType::from_onnx(i32::try_from(to).ok()?)?
        }
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" => b.same_shape(x, y),
        "Transpose" => node.attrs.ints("perm").ok()??.iter().enumerate().all(|(i, &p)| p == i as i64),
        "Slice" => b.same_shape(x, y) && node.input(4).is_none_or(|s| b.ints(s).is_some_and(|s| s.iter().all(|&s| s == 1))),
        "Pad" => {
            let pads = if node.attrs.get("paddings").is_some() { "paddings" } else { "pads" };
            b.input_or_attr(id, 1, pads)?.iter().all(|&p| p == 0)
        }
        "Concat" | "Sum" | "Max" | "Min" | "Mean" => node.inputs().len() == 1,
        _ => false,
    };
    same.then_some(x)
}

/// The operand of an arithmetic op whose other operand is its neutral element and widens nothing.
fn neutral(b: &Batch, id: NodeId, op: &str) -> Option<ValueId> {
    let node = b.node(id);
    let (p, q) = (node.input(0)?, node.input(1)?);
    let is_neutral = |v: ValueId| -> Option<bool> {
        let t = b.constant(v).filter(|t| !t.is_empty())?;
        let float = match t.dtype() {
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => true,
            d if d.is_int() => false,
            _ => return None,
        };
        let all = crate::tensor::cast(t, DType::F64).ok()?.into_vec::<f64>().ok()?;
        Some(match op {
            "Mul" | "Div" => all.iter().all(|&x| x == 1.0),
            // -0 is neutral to Add, 0 to Sub.
            "Add" => all.iter().all(|&x| x == 0.0 && (!float || x.is_sign_negative())),
            _ => all.iter().all(|&x| x == 0.0 && x.is_sign_positive()),
        })
    };
    let keeps = |x: ValueId, c: ValueId| {
        let small = b.constant(c).is_some_and(|t| t.len() == 1 && b.rank(x).map_or(t.rank() == 0, |r| t.rank() <= r));
        small || b.same_shape(x, id.value(0))
    };
    if is_neutral(q) == Some(true) && keeps(p, q) {
        return Some(p);
    }
    (matches!(op, "Mul" | "Add") && is_neutral(p) == Some(true) && keeps(q, p)).then_some(q)
}

/// Whether a Dropout drops; `None` where only the run tells.
fn trains(b: &Batch, id: NodeId) -> Option<bool> {
    let node = b.node(id);
    match b.opset {
        12.. => match node.input(2) {
            None => Some(false),
            Some(v) => Some(b.constant(v)?.to_i64s().ok()? != [0]),
        },
        7.. => Some(false),
        _ => Some(node.attrs.int_or("is_test", 0).ok()? == 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{parse_model, print_graph};

    fn check(text: &str) -> String {
        let mut model = parse_model(text).unwrap();
        NoOps.run(&mut model, &mut Report::default()).unwrap();
        assert_eq!(NoOps.run(&mut model, &mut Report::default()).unwrap(), Changed::No);
        print_graph(&model.graph)
    }

    #[test]
    fn what_changes_a_bit_or_a_dim_stays() {
        for line in [
            "y = Add(x, zero)",
            "y = Mul(x, wide)",
            "y = Div(one, x)",
            "y = Slice(x, m, n, m, m)",
            "y = Cast(x) {to=11}",
            "y = Reshape(x, m)",
            "y = Identity(x)",
        ] {
            let text = format!(
                "graph g(x: float32[2]) -> (y) {{\n  param zero: float32[] = [0.0]\n  param one: float32[] = [1.0]\n  param wide: float32[1,1] = [1.0]\n  param m: int64[1] = [-1]\n  param n: int64[1] = [-3]\n  {line}\n}}"
            );
            assert!(check(&text).contains(&format!("  {line}\n")), "{line}: {}", check(&text));
        }
    }

    #[test]
    fn subtracting_zero_and_adding_minus_zero_change_nothing() {
        let text = "graph g(x: float32[2]) -> (y) {\n  param a: float32[] = [-0.0]\n  param b: float32[] = [0.0]\n  t = Add(x, a)\n  u = Sub(t, b)\n  y = Neg(u)\n}";
        assert!(check(text).contains("y = Neg(x)"));
    }

    #[test]
    fn a_dropout_whose_mask_is_read_stays() {
        let text = "graph g(x: float32[2]) -> (y, m) {\n  d, m = Dropout(x)\n  y = Neg(d)\n}";
        assert!(check(text).contains("Dropout"));
    }

    #[test]
    fn a_body_that_captures_is_followed() {
        let text = "graph g(x: float32[2], c: bool[]) -> (y) {\n  a = Identity(x)\n  y = If(c) {then_branch=graph t() -> (u) {\n    u = Neg(a)\n  }, else_branch=graph e() -> (v) {\n    v = Relu(a)\n  }}\n}";
        let text = check(text);
        assert!(text.contains("u = Neg(x)") && !text.contains("Identity"), "{text}");
    }
}
