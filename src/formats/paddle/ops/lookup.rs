//! Lookups, and pools over the rows of each sample.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::{Attrs, OpName};
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[(&str, Translate)] = &[
    ("distributed_lookup_table", distributed),
    ("lookup_table", |tx, op| lookup(tx, op, true)),
    ("lookup_table_v2", |tx, op| lookup(tx, op, false)),
    ("sequence_pool", sequence_pool),
];

fn one_lookup(tx: &mut Tx, op: &OpDesc, ids: &str, out: &str, old: bool) -> Done {
    let table = tx.input(op, "W")?;
    let mut value = tx.value(ids)?;
    // The first version has ids of [.., 1] and gives [.., width].
    if old && tx.dims(ids)?.last() == Some(&1) {
        let last = tx.ints(&[-1]);
        value = tx.node("Squeeze", &[&value, &last], Attrs::new());
    }
    let mut attrs = Attrs::new().with("table", op.ins("W")[0].as_str()).with("negative", 0);
    let padding = op.int("padding_idx", -1);
    if padding != -1 {
        attrs.set("padding_idx", padding.into());
    }
    let single = OpDesc {
        outputs: vec![crate::formats::paddle::proto::Operand { parameter: Some("Out".into()), arguments: vec![out.into()] }],
        ..OpDesc::default()
    };
    tx.outs(&single, &["Out"], OpName::new("graphtool", "Lookup"), &[&table, &value], attrs)
}

fn lookup(tx: &mut Tx, op: &OpDesc, old: bool) -> Done {
    let (Some(ids), Some(out)) = (op.ins("Ids").first(), op.outs("Out").first()) else { return Err("it lacks Ids or Out".into()) };
    one_lookup(tx, op, ids, out, old)
}

/// Many ids of one table at once.
fn distributed(tx: &mut Tx, op: &OpDesc) -> Done {
    let outs = if op.outs("Outputs").is_empty() { op.outs("Out") } else { op.outs("Outputs") };
    let ids = op.ins("Ids");
    if ids.len() != outs.len() {
        return Err(format!("expected as many outputs as ids, found {} and {}", outs.len(), ids.len()));
    }
    let old = op.text("lookup_table_version", "lookup_table") == "lookup_table";
    ids.iter().zip(outs).try_for_each(|(i, o)| one_lookup(tx, op, i, o, old))
}

/// Pools the rows between the offsets of each sample; a sample without rows gives `pad_value`.
fn sequence_pool(tx: &mut Tx, op: &OpDesc) -> Done {
    let var = op.ins("X").first().ok_or("it has no X")?;
    let x = tx.input(op, "X")?;
    let lod = tx.lod.get(var).cloned().ok_or_else(|| format!("variable \"{var}\" has no LoD"))?;
    let rank = tx.dims(var)?.len();
    let dtype = tx.dtype(var)?;
    let (zero, one, last, ahead) = (tx.ints(&[0]), tx.ints(&[1]), tx.ints(&[-1]), tx.ints(&[i64::MAX]));
    let starts = tx.node("Slice", &[&lod, &zero, &last], Attrs::new());
    let ends = tx.node("Slice", &[&lod, &one, &ahead], Attrs::new());
    let lengths = tx.node("Sub", &[&ends, &starts], Attrs::new());
    let pad = tx.number(dtype, op.float("pad_value", 0.0).into())?;
    let column: Vec<i64> = std::iter::once(-1).chain(std::iter::repeat_n(1, rank.saturating_sub(1))).collect();
    let column = tx.ints(&column);
    let lengths_column = tx.node("Reshape", &[&lengths, &column], Attrs::new());
    let nothing = tx.ints(&[0]);
    let empty = tx.node("Equal", &[&lengths_column, &nothing], Attrs::new());
    let kind = op.text("pooltype", "AVERAGE").to_ascii_uppercase();
    let pooled = match kind.as_str() {
        "FIRST" | "LAST" => {
            // One row of padding behind all lets a sample without rows point at something.
            let at = if kind == "FIRST" { starts } else { tx.node("Sub", &[&ends, &one], Attrs::new()) };
            let at = tx.node("Max", &[&at, &zero], Attrs::new());
            let shape = tx.node("Shape", &[&x], Attrs::new());
            let tail = tx.node("Slice", &[&shape, &one, &ahead], Attrs::new());
            let row = tx.node("Concat", &[&one, &tail], Attrs::new().with("axis", 0));
            let row = tx.node("Expand", &[&pad, &row], Attrs::new());
            let longer = tx.node("Concat", &[&x, &row], Attrs::new().with("axis", 0));
            tx.node("Gather", &[&longer, &at], Attrs::new().with("axis", 0))
        }
        "SUM" | "AVERAGE" | "SQRT" | "MAX" => {
            let max = kind == "MAX";
            let summed = reduce(tx, &x, &ends, dtype, max)?;
            if matches!(kind.as_str(), "SUM" | "MAX") {
                summed
            } else {
                let n = tx.node("Max", &[&lengths_column, &one], Attrs::new());
                let n = tx.cast(&n, dtype);
                let n = if kind == "SQRT" { tx.node("Sqrt", &[&n], Attrs::new()) } else { n };
                tx.node("Div", &[&summed, &n], Attrs::new())
            }
        }
        other => return Err(format!("pooltype must be SUM, AVERAGE, SQRT, MAX, FIRST or LAST, found {other}")),
    };
    tx.out(op, "Out", "Where", &[&empty, &pad, &pooled], Attrs::new())
}

/// The sum or greatest of the rows up to each end.
fn reduce(tx: &mut Tx, x: &str, ends: &str, dtype: DType, max: bool) -> Result<String, String> {
    let (zero, one, ahead) = (tx.ints(&[0]), tx.ints(&[1]), tx.ints(&[i64::MAX]));
    let shape = tx.node("Shape", &[x], Attrs::new());
    let rows = tx.node("Slice", &[&shape, &zero, &one], Attrs::new());
    let tail = tx.node("Slice", &[&shape, &one, &ahead], Attrs::new());
    // The sample of a row is the number of ends at or before it.
    let places = tx.node("Add", &[&rows, &one], Attrs::new());
    let none = tx.constant("none", Tensor::scalar(0i64));
    let marks = tx.node("Expand", &[&none, &places], Attrs::new());
    let count = tx.node("Shape", &[ends], Attrs::new());
    let unit = tx.constant("unit", Tensor::scalar(1i64));
    let ones = tx.node("Expand", &[&unit, &count], Attrs::new());
    let last_axis = tx.ints(&[1]);
    let at = tx.node("Unsqueeze", &[ends, &last_axis], Attrs::new());
    let marks = tx.node("ScatterND", &[&marks, &at, &ones], Attrs::new().with("reduction", "add"));
    let axis = tx.constant("axis", Tensor::scalar(0i64));
    let samples = tx.node("CumSum", &[&marks, &axis], Attrs::new());
    let samples = tx.node("Slice", &[&samples, &zero, &rows], Attrs::new());
    let samples = tx.node("Unsqueeze", &[&samples, &last_axis], Attrs::new());
    let start = tx.number(dtype, if max { f64::from(f32::MIN) } else { 0.0 })?;
    let dims = tx.node("Concat", &[&count, &tail], Attrs::new().with("axis", 0));
    let start = tx.node("Expand", &[&start, &dims], Attrs::new());
    Ok(tx.node("ScatterND", &[&start, &samples, x], Attrs::new().with("reduction", if max { "max" } else { "add" })))
}
