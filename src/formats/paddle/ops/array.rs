//! Lists of tensors (`LoDTensorArray`) as sequences.

use super::control::{branch, scalar_bool};
use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::{BlockDesc, OpDesc};
use crate::ir::Attrs;
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[(&str, Translate)] =
    &[("lod_array_length", length), ("read_from_array", read), ("tensor_array_to_tensor", join), ("write_to_array", write)];

/// The dtype that a block writes into a list.
pub(super) fn written_dtype(tx: &Tx, block: &BlockDesc, var: &str) -> Result<DType, String> {
    let mut writes = block.ops.iter().filter(|op| op.r#type() == "write_to_array" && op.outs("Out").iter().any(|o| o == var));
    match writes.next() {
        Some(op) => tx.dtype_in(op, "X"),
        None => tx.dtype(var),
    }
}

/// Begins a list.
pub(super) fn empty(tx: &mut Tx, var: &str, dtype: DType) {
    let list = tx.node("SequenceEmpty", &[], Attrs::new().with("dtype", i64::from(dtype.to_onnx())));
    tx.env.insert(var.to_owned(), list);
}

fn index(tx: &mut Tx, op: &OpDesc) -> Result<String, String> {
    let at = tx.input(op, "I")?;
    let scalar = tx.constant("scalar", Tensor::vector(Vec::<i64>::new()));
    let at = tx.cast(&at, DType::I64);
    Ok(tx.plain("Reshape", &[&at, &scalar]))
}

/// Replaces an element, or adds one behind the last.
fn write(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, at) = (tx.input(op, "X")?, index(tx, op)?);
    let var = op.outs("Out").first().ok_or("it has no Out")?.clone();
    if !tx.env.contains_key(&var) {
        let dtype = tx.dtype_in(op, "X")?;
        empty(tx, &var, dtype);
    }
    let list = tx.value(&var)?;
    let count = tx.plain("SequenceLength", &[&list]);
    let there = tx.plain("Less", &[&at, &count]);
    let there = scalar_bool(tx, &there);
    let then = tx.body("then", Vec::new(), None, |tx| {
        let rest = tx.plain("SequenceErase", &[&list, &at]);
        Ok(vec![tx.plain("SequenceInsert", &[&rest, &x, &at])])
    })?;
    let other = tx.body("else", Vec::new(), None, |tx| Ok(vec![tx.plain("SequenceInsert", &[&list, &x])]))?;
    branch(tx, &there, [then, other], &[var])
}

fn read(tx: &mut Tx, op: &OpDesc) -> Done {
    let (list, at) = (tx.input(op, "X")?, index(tx, op)?);
    tx.out(op, "Out", "SequenceAt", &[&list, &at], Attrs::new())
}

fn length(tx: &mut Tx, op: &OpDesc) -> Done {
    let list = tx.input(op, "X")?;
    let count = tx.plain("SequenceLength", &[&list]);
    let one = tx.ints(&[1]);
    tx.out(op, "Out", "Reshape", &[&count, &one], Attrs::new())
}

fn join(tx: &mut Tx, op: &OpDesc) -> Done {
    let list = tx.input(op, "X")?;
    let attrs = Attrs::new().with("axis", op.int("axis", 0)).with("new_axis", i64::from(op.flag("use_stack", false)));
    if tx.is_read(op, "OutIndex") {
        return Err("its OutIndex has no translation".into());
    }
    tx.out(op, "Out", "ConcatFromSequence", &[&list], attrs)
}
