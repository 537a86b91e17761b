//! Ops of the domain `graphtool`, version 1: lookups in remote tables and collectives. The executor runs them.
//!
//! `RemoteLookup(ids…) → rows…` looks up any number of tables in one round trip. Lists with an entry per table:
//! `tables` (names), `rows`, `dtypes` (ONNX's numbers), `row_ranks` with the dims of all rows in `row_dims`,
//! `negative` (1: ids count from the end as in ONNX; 0: they are errors), `padding_idx` (that id gives zeros; −1: none).
//! The result has the shape of the ids, then the row's.
//!
//! `Lookup(table, ids) → rows` is a lookup in a table that is here, where ONNX's `Gather` would mean something else: with
//! `negative` and `padding_idx` as above and `table`, a name for messages.
//!
//! `RemoteLookupBag(ids, offsets[, weights]) → pooled` looks up a list of ids in one table and pools the rows of each bag (`mode` sum,
//! mean or max), in the order of the ids: bag `b` is the ids from `offsets[b]` up to `offsets[b + 1]`, the last one up to the end; with
//! `include_last_offset` 1 the last offset is an end alone. Weights are of the table's dtype and multiply the rows first. A mean is
//! divided by the number of ids, a bag without ids is zeros. Halves are pooled in `float32` and rounded once. The rows are pooled where
//! they are, where that sends less, to the same bits (`store::Store::lookup_bags`).

use super::infer::nothing;
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Run, one};
use crate::ir::{Attrs, Dim};
use crate::tensor::{DType, PoolMode, Shape, Tensor, fits_memory};
use crate::{invalid, unsupported};

/// The domain of these ops.
pub const DOMAIN: &str = "graphtool";

const TABLE_ATTRS: &[&str] = &["tables", "rows", "dtypes", "row_ranks", "row_dims", "negative", "padding_idx"];

const BAG_ATTRS: &[&str] = &["tables", "rows", "dtypes", "row_ranks", "row_dims", "negative", "padding_idx", "mode", "include_last_offset"];

pub(super) const OPS: &[OpDef] = &[
    host("RemoteLookup").inputs(1, usize::MAX).outputs(1, usize::MAX).attrs(TABLE_ATTRS).infer(infer_lookup),
    host("RemoteLookupBag").inputs(2, 3).attrs(BAG_ATTRS).infer(nothing),
    OpDef::new("Lookup", &[1]).domain(DOMAIN).inputs(2, 2).attrs(&["table", "negative", "padding_idx"]).kernel(lookup).infer(infer_local),
    host("AllReduce").attrs(&["op"]).infer(super::infer::same).impure(),
    host("AllGather").attrs(&["axis"]).infer(nothing).impure(),
    host("Broadcast").attrs(&["root"]).infer(super::infer::same).impure(),
    host("ReduceScatter").attrs(&["op"]).infer(nothing).impure(),
    host("Barrier").infer(super::infer::same).impure(),
];

const fn host(name: &'static str) -> OpDef {
    OpDef::new(name, &[1]).domain(DOMAIN).run(Run::Host)
}

/// What a negative id means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Negative {
    /// It counts from the end (ONNX).
    Wrap,
    /// It is an error (PaddlePaddle).
    Error,
}

/// How rows are pooled, from attribute `mode`.
///
/// # Errors
/// Another word.
pub fn pool_mode(attrs: &Attrs) -> Result<PoolMode, OpError> {
    Ok(match attrs.string_or("mode", "sum")? {
        "sum" => PoolMode::Sum,
        "mean" => PoolMode::Mean,
        "max" => PoolMode::Max,
        other => invalid!("mode must be sum, mean or max, found \"{other}\""),
    })
}

/// A table as a lookup sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// Name.
    pub name: String,
    /// Number of rows.
    pub rows: u64,
    /// Element type.
    pub dtype: DType,
    /// Dims of a row.
    pub row_shape: Shape,
    /// What a negative id means.
    pub negative: Negative,
    /// The id that gives zeros.
    pub padding: Option<i64>,
}

/// What a lookup node says: a table per operand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LookupSpec {
    /// One per operand.
    pub tables: Vec<TableSpec>,
}

impl LookupSpec {
    /// Reads the attributes of a node with `operands` ids.
    ///
    /// # Errors
    /// Lists of other lengths, values that make no sense.
    pub fn read(attrs: &Attrs, operands: usize) -> Result<Self, OpError> {
        let names = attrs.strings("tables")?.unwrap_or_default();
        let list = |name: &str, default: Option<i64>| -> Result<Vec<i64>, OpError> {
            match (attrs.ints(name)?, default) {
                (Some(v), _) if v.len() == operands => Ok(v.to_vec()),
                (None, Some(d)) => Ok(vec![d; operands]),
                (v, _) => invalid!("attribute \"{name}\" has {} entries for {operands} operands", v.map_or(0, <[i64]>::len)),
            }
        };
        if names.len() != operands {
            invalid!("attribute \"tables\" has {} entries for {operands} operands", names.len());
        }
        let (rows, dtypes, ranks) = (list("rows", None)?, list("dtypes", None)?, list("row_ranks", None)?);
        let (negative, padding) = (list("negative", Some(1))?, list("padding_idx", Some(-1))?);
        let mut dims = attrs.ints("row_dims")?.unwrap_or_default().iter();
        let mut tables = Vec::with_capacity(operands);
        for (i, name) in names.into_iter().enumerate() {
            let row_shape = dims.by_ref().take(ranks[i].max(0) as usize).map(|&d| d.max(0) as usize).collect::<Shape>();
            let Some(dtype) = i32::try_from(dtypes[i]).ok().and_then(DType::from_onnx) else { invalid!("no dtype {}", dtypes[i]) };
            if row_shape.len() as i64 != ranks[i] || rows[i] < 0 {
                invalid!("attributes \"row_ranks\" and \"row_dims\" do not fit for table \"{name}\"");
            }
            let negative = if negative[i] != 0 { Negative::Wrap } else { Negative::Error };
            let padding = (padding[i] != -1).then_some(padding[i]);
            tables.push(TableSpec { name, rows: rows[i] as u64, dtype, row_shape, negative, padding });
        }
        Ok(Self { tables })
    }

    /// The attributes that say this.
    pub fn attrs(&self) -> Attrs {
        let ints = |f: &dyn Fn(&TableSpec) -> i64| self.tables.iter().map(f).collect::<Vec<i64>>();
        let mut attrs = Attrs::new()
            .with("tables", self.tables.iter().map(|t| t.name.clone()).collect::<Vec<_>>())
            .with("rows", ints(&|t| t.rows as i64))
            .with("dtypes", ints(&|t| t.dtype.to_onnx().into()))
            .with("row_ranks", ints(&|t| t.row_shape.len() as i64))
            .with("row_dims", self.tables.iter().flat_map(|t| t.row_shape.to_i64s()).collect::<Vec<i64>>())
            .with("negative", ints(&|t| i64::from(t.negative == Negative::Wrap)));
        if self.tables.iter().any(|t| t.padding.is_some()) {
            attrs = attrs.with("padding_idx", ints(&|t| t.padding.unwrap_or(-1)));
        }
        attrs
    }
}

/// The padding id and what a negative id means, as a `Lookup` says.
///
/// # Errors
/// Attributes of another kind.
pub fn lookup_rules(attrs: &Attrs) -> Result<(Negative, Option<i64>), OpError> {
    let negative = if attrs.int_or("negative", 1)? != 0 { Negative::Wrap } else { Negative::Error };
    Ok((negative, attrs.int("padding_idx")?.filter(|&p| p != -1)))
}

/// The row of an id in a table, checked; `None` for the padding id.
///
/// # Errors
/// An id out of range.
pub fn row_of(table: &TableSpec, id: i64, position: usize) -> Result<Option<u64>, String> {
    if Some(id) == table.padding {
        return Ok(None);
    }
    let rows = table.rows as i64;
    let lowest = if table.negative == Negative::Wrap { -rows } else { 0 };
    if !(lowest..rows).contains(&id) {
        return Err(format!("table \"{}\": id {id} at position {position} is out of range, valid {lowest}..{}", table.name, rows - 1));
    }
    Ok(Some(if id < 0 { id + rows } else { id } as u64))
}

fn lookup(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (negative, padding) = lookup_rules(cx.attrs)?;
    let name = cx.attrs.string_or("table", "")?.to_owned();
    Ok(Box::new(move |args: Args| {
        let (data, ids) = (args.tensor(0)?, args.tensor(1)?);
        let Some((&rows, row_shape)) = data.shape().split_first() else { invalid!("a table must have rank 1 or more") };
        let row_shape = Shape::from(row_shape);
        let spec = TableSpec { name: name.clone(), rows: rows as u64, dtype: data.dtype(), row_shape, negative, padding };
        let Some(bytes) = data.bytes().filter(|_| data.dtype().bits().is_multiple_of(8)) else {
            unsupported!("rows of {} cannot be looked up", data.dtype())
        };
        let width = spec.dtype.byte_len(&spec.row_shape).unwrap_or(0);
        let shape: Shape = ids.shape().iter().chain(spec.row_shape.iter()).copied().collect();
        if !ids.len().checked_mul(width).is_some_and(fits_memory) {
            invalid!("rows {shape} do not fit memory");
        }
        let mut out = vec![0u8; ids.len() * width];
        for (position, id) in args.ints(1)?.into_iter().enumerate() {
            if let Some(row) = row_of(&spec, id, position).map_err(OpError::Invalid)? {
                let row = row as usize * width;
                out[position * width..(position + 1) * width].copy_from_slice(&bytes[row..row + width]);
            }
        }
        one(Tensor::from_bytes(spec.dtype, shape, out)?.aligned())
    }))
}

fn infer_local(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let shape = match (cx.shape(0), cx.shape(1)) {
        (Some([_, row @ ..]), Some(ids)) => Some([ids, row].concat()),
        _ => None,
    };
    Ok(vec![Fact::partial(cx.dtype(0), shape)])
}

fn infer_lookup(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let spec = LookupSpec::read(cx.op.attrs, cx.op.inputs)?;
    let facts = spec.tables.iter().enumerate().map(|(i, t)| {
        let row = t.row_shape.iter().map(|&d| Dim::Known(d));
        Fact::partial(Some(t.dtype), cx.shape(i).map(|ids| ids.iter().cloned().chain(row).collect()))
    });
    Ok(facts.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::run;

    fn look(attrs: &Attrs, ids: Vec<i64>) -> Result<Vec<f32>, String> {
        let table = Tensor::new([4, 2], vec![0f32, 1., 10., 11., 20., 21., 30., 31.]).expect("a table");
        let out = run("graphtool::Lookup", 1, attrs.clone(), &[table, Tensor::vector(ids)]);
        out.map_err(|e| e.to_string()).map(|t| t.to_f32s().expect("numbers"))
    }

    #[test]
    fn a_padding_id_gives_zeros_and_leaves_the_range_check_on() {
        let attrs = Attrs::new().with("table", "T").with("negative", 0).with("padding_idx", 0);
        assert_eq!(look(&attrs, vec![0, 3]), Ok(vec![0., 0., 30., 31.]));
        assert_eq!(look(&attrs, vec![0, 3, 7]), Err("table \"T\": id 7 at position 2 is out of range, valid 0..3".into()));
        assert_eq!(look(&attrs, vec![-1]), Err("table \"T\": id -1 at position 0 is out of range, valid 0..3".into()));
    }
}
