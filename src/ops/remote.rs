//! Ops of the domain `graphtool`, version 1: lookups in remote tables and collectives. The executor runs them.
//!
//! `RemoteLookup(ids…) → rows…` looks up any number of tables in one round trip. Lists with an entry per table:
//! `tables` (names), `rows`, `dtypes` (ONNX's numbers), `row_ranks` with the dims of all rows in `row_dims`,
//! `negative` (1: ids count from the end as in ONNX; 0: they are errors), `padding_idx` (that id gives zeros; −1: none).
//! The result has the shape of the ids, then the row's.
//!
//! `RemoteLookupBag(ids, offsets[, weights]) → pooled` pools the rows of each bag (`mode` sum, mean or max).

use super::infer::nothing;
use super::{Fact, InferCtx, OpDef, OpError, Run};
use crate::invalid;
use crate::ir::{Attrs, Dim};
use crate::tensor::{DType, Shape};

/// The domain of these ops.
pub const DOMAIN: &str = "graphtool";

const TABLE_ATTRS: &[&str] = &["tables", "rows", "dtypes", "row_ranks", "row_dims", "negative", "padding_idx"];

pub(super) const OPS: &[OpDef] = &[
    host("RemoteLookup").inputs(1, usize::MAX).outputs(1, usize::MAX).attrs(TABLE_ATTRS).infer(infer_lookup),
    host("RemoteLookupBag").inputs(2, 3).attrs(TABLE_ATTRS).infer(nothing),
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

/// How the rows of a bag are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PoolMode {
    Sum,
    Mean,
    Max,
}

impl PoolMode {
    /// From attribute `mode`.
    ///
    /// # Errors
    /// Another word.
    pub fn read(attrs: &Attrs) -> Result<Self, OpError> {
        Ok(match attrs.string_or("mode", "sum")? {
            "sum" => PoolMode::Sum,
            "mean" => PoolMode::Mean,
            "max" => PoolMode::Max,
            other => invalid!("mode must be sum, mean or max, found \"{other}\""),
        })
    }
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

fn infer_lookup(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let spec = LookupSpec::read(cx.op.attrs, cx.op.inputs)?;
    let facts = spec.tables.iter().enumerate().map(|(i, t)| {
        let row = t.row_shape.iter().map(|&d| Dim::Known(d));
        Fact::partial(Some(t.dtype), cx.shape(i).map(|ids| ids.iter().cloned().chain(row).collect()))
    });
    Ok(facts.collect())
}
