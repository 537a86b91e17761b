//! Lookups.

use super::{Done, Translate, Tx, sequence};
use crate::formats::paddle::proto::{OpDesc, Operand};
use crate::ir::{Attrs, OpName};

pub(super) const OPS: &[(&str, Translate)] = &[
    ("distributed_lookup_table", distributed),
    ("fused_embedding_seq_pool", fused_pool),
    ("lookup_table", |tx, op| lookup(tx, op, true)),
    ("lookup_table_v2", |tx, op| lookup(tx, op, false)),
];

/// The inputs and attributes of a lookup.
fn parts(tx: &mut Tx, op: &OpDesc, ids: &str, old: bool) -> Result<([String; 2], Attrs), String> {
    let table = tx.input(op, "W")?;
    let mut value = tx.value(ids)?;
    // The first version has ids of [.., 1] and gives [.., width].
    if old && tx.dims(ids)?.last() == Some(&1) {
        let last = tx.ints(&[-1]);
        value = tx.plain("Squeeze", &[&value, &last]);
    }
    let mut attrs = Attrs::new().with("table", op.ins("W")[0].as_str()).with("negative", 0);
    let padding = op.int("padding_idx", -1);
    if padding != -1 {
        attrs.set("padding_idx", padding.into());
    }
    Ok(([table, value], attrs))
}

fn one_lookup(tx: &mut Tx, op: &OpDesc, ids: &str, out: &str, old: bool) -> Done {
    let ([table, value], attrs) = parts(tx, op, ids, old)?;
    let single = OpDesc { outputs: vec![Operand { parameter: Some("Out".into()), arguments: vec![out.into()] }], ..OpDesc::default() };
    tx.outs(&single, &["Out"], OpName::new("graphtool", "Lookup"), &[&table, &value], attrs)
}

/// A lookup whose rows have no variable of their own.
fn lookup_node(tx: &mut Tx, op: &OpDesc, ids: &str, old: bool) -> Result<String, String> {
    let ([table, value], attrs) = parts(tx, op, ids, old)?;
    let out = tx.fresh(&format!("{ids}#rows"));
    tx.domains.insert("graphtool");
    tx.push(OpName::new("graphtool", "Lookup"), vec![table, value], vec![out.clone()], attrs);
    Ok(out)
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

/// Looks up the ids of each sample and sums their rows.
fn fused_pool(tx: &mut Tx, op: &OpDesc) -> Done {
    let kind = op.text("combiner", "sum");
    if kind != "sum" {
        return Err(format!("combiner must be sum, found {kind}"));
    }
    let ids = op.ins("Ids").first().ok_or("it has no Ids")?;
    let of = sequence::offsets(tx, ids)?;
    let dtype = tx.dtype_in(op, "W")?;
    let rows = lookup_node(tx, op, ids, false)?;
    let flat = tx.ints(&[0, -1]);
    let rows = tx.plain("Reshape", &[&rows, &flat]);
    let sums = sequence::reduce(tx, &rows, &of, dtype, false)?;
    tx.give(op, "Out", &sums)?;
    tx.forget_lod(op);
    Ok(())
}
