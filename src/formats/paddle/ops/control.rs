//! Conditions and loops: blocks become bodies of `If` and `Loop`.

use super::{Done, Translate, Tx, array};
use crate::formats::paddle::proto::{BlockDesc, OpDesc};
use crate::ir::{Attr, Attrs, Dim, Graph, Output, Type};
use crate::tensor::{DType, Tensor};
use std::collections::HashSet;

pub(super) const OPS: &[(&str, Translate)] =
    &[("conditional_block", conditional), ("conditional_block_infer", conditional), ("select_input", select), ("while", while_loop)];

/// The variables that a block writes and that are known outside of it, in the order of their first write.
fn written(block: &BlockDesc, outside: impl Fn(&str) -> bool) -> Vec<&str> {
    let mut seen = HashSet::new();
    let all = block.ops.iter().flat_map(|op| op.outputs.iter().flat_map(|p| &p.arguments)).map(String::as_str);
    all.filter(|n| outside(n) && seen.insert(*n)).collect()
}

pub(super) fn scalar_bool(tx: &mut Tx, value: &str) -> String {
    let scalar = tx.constant("scalar", Tensor::vector(Vec::<i64>::new()));
    tx.node("Reshape", &[value, &scalar], Attrs::new())
}

/// `If` over two bodies that make the values of `vars`.
pub(super) fn branch(tx: &mut Tx, cond: &str, bodies: [Graph; 2], vars: &[String]) -> Done {
    let [then, other] = bodies;
    let mut attrs = Attrs::new();
    attrs.set("then_branch", Attr::Graph(Box::new(then)));
    attrs.set("else_branch", Attr::Graph(Box::new(other)));
    many(tx, "If", &[cond], vars, attrs);
    Ok(())
}

fn many(tx: &mut Tx, onnx: &str, inputs: &[&str], vars: &[String], attrs: Attrs) {
    let of = OpDesc {
        outputs: vec![crate::formats::paddle::proto::Operand { parameter: Some("Out".into()), arguments: vars.to_vec() }],
        ..OpDesc::default()
    };
    tx.out_all(&of, "Out", onnx, inputs, attrs);
}

/// A block that runs where its condition holds; what it writes stays as it was where it does not.
fn conditional<'a>(tx: &mut Tx<'a>, op: &'a OpDesc) -> Done {
    let block = tx.block(op)?;
    let cond = tx.input(op, "Cond")?;
    let cond = scalar_bool(tx, &cond);
    let vars: Vec<String> = op.outs("Out").to_vec();
    let before = tx.env.clone();
    let then = tx.body("then", Vec::new(), Some(block), |tx| vars.iter().map(|v| result(tx, v)).collect())?;
    tx.env = before;
    let other = tx.body("else", Vec::new(), None, |tx| vars.iter().map(|v| result(tx, v)).collect())?;
    branch(tx, &cond, [then, other], &vars)
}

/// The value of a variable as a result of a body; nothing is there yet for one that only the other branch makes.
fn result(tx: &mut Tx, var: &str) -> Result<String, String> {
    let value = match tx.env.get(var) {
        Some(v) => v.clone(),
        None => {
            let dtype = tx.dtype(var)?;
            tx.number(dtype, 0.0)?
        }
    };
    Ok(tx.node("Identity", &[&value], Attrs::new()))
}

/// One of two values by a mask: the first where it is 0.
fn select(tx: &mut Tx, op: &OpDesc) -> Done {
    let [first, second] = tx.inputs(op, "X")?.try_into().map_err(|_| "expected two X".to_owned())?;
    let mask = tx.input(op, "Mask")?;
    let mask = tx.cast(&mask, DType::Bool);
    let mask = scalar_bool(tx, &mask);
    let then = tx.body("then", Vec::new(), None, |tx| Ok(vec![tx.node("Identity", &[&second], Attrs::new())]))?;
    let other = tx.body("else", Vec::new(), None, |tx| Ok(vec![tx.node("Identity", &[&first], Attrs::new())]))?;
    branch(tx, &mask, [then, other], op.outs("Out"))
}

/// A block that runs while its condition holds; what it writes goes around.
fn while_loop<'a>(tx: &mut Tx<'a>, op: &'a OpDesc) -> Done {
    let block = tx.block(op)?;
    let cond_var = op.ins("Condition").first().ok_or("it has no Condition")?.clone();
    let cond = tx.input(op, "Condition")?;
    let start = scalar_bool(tx, &cond);
    // A list that the block begins is empty before it.
    for var in written(block, |n| op.outs("Out").iter().any(|o| o == n)) {
        if !tx.env.contains_key(var) && tx.is_array(var) {
            let dtype = array::written_dtype(tx, block, var)?;
            array::empty(tx, var, dtype);
        }
    }
    let before = tx.env.clone();
    let vars: Vec<String> = written(block, |n| before.contains_key(n)).into_iter().filter(|n| *n != cond_var).map(str::to_owned).collect();
    let initial: Vec<String> = vars.iter().map(|v| tx.value(v)).collect::<Result<_, _>>()?;
    let mut inputs = vec![Output::new(tx.fresh("iteration"), Some(Type::tensor(DType::I64, [])))];
    inputs.push(Output::new(tx.fresh("running"), Some(Type::tensor(DType::Bool, []))));
    for v in &vars {
        let name = tx.fresh(&format!("{v}.in"));
        let ty = if tx.is_array(v) {
            Type::Sequence(Box::new(Type::Tensor { dtype: Some(array::written_dtype(tx, block, v)?), shape: None }))
        } else {
            Type::tensor(tx.dtype(v)?, tx.dims(v)?.iter().map(|_| Dim::Unknown))
        };
        inputs.push(Output::new(&name, Some(ty)));
        tx.env.insert(v.clone(), name);
    }
    let body = tx.body("body", inputs, Some(block), |tx| {
        let cond = tx.value(&cond_var)?;
        let cond = scalar_bool(tx, &cond);
        std::iter::once(Ok(cond)).chain(vars.iter().map(|v| result(tx, v))).collect()
    })?;
    tx.env = before;
    let mut attrs = Attrs::new();
    attrs.set("body", Attr::Graph(Box::new(body)));
    let operands: Vec<&str> = ["", start.as_str()].into_iter().chain(initial.iter().map(String::as_str)).collect();
    many(tx, "Loop", &operands, &vars, attrs);
    Ok(())
}
