//! `remote-lookup`
//!
//! *What*: a lookup in a constant table becomes `graphtool::RemoteLookup`.
//! *Why*: the table can then live on servers.
//! *Before*:
//! ```text
//! graph g(i: int64[n]) -> (y) {
//!   param W: float32[2,2] = [0.0, 1.0, 2.0, 3.0]
//!   y = Gather(W, i)
//! }
//! ```
//! *After*:
//! ```text
//! graph g(i: int64[n]) -> (y) {
//!   param W: float32[2,2] = [0.0, 1.0, 2.0, 3.0]
//!   y = graphtool::RemoteLookup(i) {tables=["W"], rows=[2], dtypes=[1], row_ranks=[1], row_dims=[2], negative=[1]}
//! }
//! ```
//! *Needs*: an op that one of the rules knows, in the main graph or in any body, on an initializer or a Constant, or on what
//! ops make of constants. Reshapes are looked through; ops on single elements are done to the rows instead; a table that a
//! loop hands from step to step is read from outside; a scale per row is looked up too; what else is made of constants is
//! computed once, here.
//! *Leaves alone*: tables that anything else reads or that are given back (unless they are to be kept too), that a caller
//! can override, or that the selection does not name; each lookup that stays is reported with its reason.

mod blocks;
mod compute;
mod embed;
mod gather;
mod gather_elements;
mod gather_nd;
mod local;
mod loop_state;
mod one_hot;
mod rewrite;
mod row_scales;
mod source;
mod state;
mod survey;
mod types;

pub(super) use source::{const_ints, constant, source};
pub use survey::hidden_in_functions;
pub(super) use types::Types;

use super::report::{LookupRemark, TableTaken};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Graph, Model, NodeId, OpName, Scope, ValueId};
use crate::ops::remote::{DOMAIN, Negative};
use crate::tensor::{DType, Tensor};
use source::Source;
use std::collections::HashMap;
use survey::{Survey, Table};

/// Whether the table of a name is meant.
pub type NameFilter = Box<dyn Fn(&str) -> bool>;

/// Which tables may move.
#[derive(Default)]
pub struct Selection {
    /// Tables of fewer bytes stay.
    pub min_bytes: u64,
    /// Whether the table of that name may move; all may without it.
    pub names: Option<NameFilter>,
    /// Tables with other readers are served, and kept in the graph for those.
    pub keep_shared: bool,
    /// Products of one-hot rows and a table are lookups.
    pub one_hot: bool,
}

/// The pass.
#[derive(Default)]
pub struct RemoteLookup {
    /// Which tables may move.
    pub selection: Selection,
}

/// A constant by its graph, as long as that does not move, and its name.
type Key = (usize, String);

/// A node that may look up rows.
struct Site<'g, 's> {
    graph: &'g Graph,
    scope: Option<&'s Scope<'g>>,
    id: NodeId,
    types: &'s Types,
    one_hot: bool,
}

/// How the result of a lookup takes the place of a node.
#[derive(Debug, Clone, PartialEq)]
enum How {
    /// The rows are the result.
    Rows,
    /// The dims of the ids move behind the first `at` dims of a row; the ids have `rank` dims.
    Moved { at: usize, rank: usize },
    /// Indices in several dims become row numbers first; the first `batch` dims count with where an index stands.
    Stacked { dims: Vec<i64>, batch: usize },
    /// The rows are expanded to a shape.
    Expanded { shape: ValueId },
    /// The rows have a dim of 1 before their own, and are expanded to a shape where there is one.
    Column { shape: Option<ValueId> },
    /// An id out of range gives zeros; one from `lowest` on counts.
    OneHot { lowest: i64 },
    /// The node stays: it reads the rows instead of the table, and positions instead of the ids.
    Compact { ids: usize },
}

/// What a rule found: a lookup in the table that a node reads as an operand.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    /// The ids, or indices.
    ids: ValueId,
    /// The dim of the table that is looked up, and how many from there on make a row number.
    axis: usize,
    keys: usize,
    how: How,
    negative: Negative,
    /// All tables of the node move or none.
    together: bool,
    /// The id that gives zeros.
    padding: Option<i64>,
}

/// What a rule says of a node and a table that it reads: nothing, a lookup, or a lookup that stays and why.
type Verdict = Option<Result<Found, String>>;

type Rule = fn(&Site, usize, &Source) -> Verdict;

const RULES: &[Rule] =
    &[blocks::find, embed::find, gather::find, gather_elements::find, gather_nd::find, local::find, loop_state::find, one_hot::find];

fn verdict(site: &Site, operand: usize, source: &Source) -> Verdict {
    let found = RULES.iter().find_map(|rule| rule(site, operand, source))?;
    Some(found.and_then(|f| {
        if source.by_column && f.axis + f.keys == source.tensor.rank() {
            return Err("its rows are single elements, and each column of its table is scaled by itself".into());
        }
        Ok(f)
    }))
}

/// Whether some op, in a body or function too, is such a one.
fn has_op(model: &Model, is: impl Fn(&OpName) -> bool) -> bool {
    model.graphs().iter().any(|g| g.ops().iter().any(|&id| g.node(id).op().is_some_and(&is)))
}

impl Pass for RemoteLookup {
    fn name(&self) -> &'static str {
        "remote-lookup"
    }

    fn source(&self) -> &'static str {
        include_str!("mod.rs")
    }

    fn run(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError> {
        let mut changed = state::capture(model)?.or(row_scales::look_up(model)?);
        // A product may be one of one-hot rows. No other op looks anything up.
        let asks = has_op(model, |op| compute::is_lookup(op) || matches!(&*op.name, "FusedMatMul" | "Gemm" | "MatMul"));
        if !asks {
            return Ok(changed);
        }
        let types = Types::of(model);
        let (computed, left) = compute::tables(model, &self.selection, &types)?;
        changed = changed.or(computed);
        let mut survey = Survey::new(&types, self.selection.one_hot, left);
        survey.graph(&model.graph, None, model.ir_version >= 4);
        for f in &model.functions {
            survey.function(&f.graph, &f.name);
        }
        self.judge(&mut survey);
        let Survey { tables, lookups, .. } = survey;
        for l in &lookups {
            let (table, reason) = match &l.key {
                Some(key) => (tables[key].name.clone(), tables[key].reason.clone()),
                None => (l.table.clone(), l.reason.clone()),
            };
            report.lookups.push(LookupRemark { node: l.node.clone(), op: l.op.clone(), table, reason });
        }
        let mut found: Vec<(&Key, &Table)> = tables.iter().collect();
        found.sort_by_key(|(_, t)| t.order);
        report.shapes.extend(found.iter().map(|(_, t)| (t.name.clone(), t.tensor.dtype(), t.tensor.shape().clone())));
        let mut moved: HashMap<Key, Table> = tables.into_iter().filter(|(_, t)| t.reason.is_none() && t.lookups > 0).collect();
        if moved.is_empty() {
            return Ok(changed);
        }
        let mut names = model.names();
        let rewriter = rewrite::Rewriter { tables: &moved, types: &types, one_hot: self.selection.one_hot };
        model.visit_mut(&mut |graph, scope| rewriter.graph(graph, scope, &mut names))?;
        model.import_opset(DOMAIN, 1);
        let mut taken: Vec<(usize, TableTaken)> = Vec::with_capacity(moved.len());
        for (key, t) in moved.drain() {
            let tensor = t.stored().map_err(|e| PassError::Call(format!("table \"{}\": {e}", t.name)))?;
            taken.push((t.order, TableTaken { name: t.name, origin: key.1, tensor, lookups: t.lookups }));
        }
        taken.sort_by_key(|(order, _)| *order);
        report.tables.extend(taken.into_iter().map(|(_, t)| t));
        Ok(Changed::Yes)
    }
}

impl RemoteLookup {
    /// Gives each table that must stay its reason.
    fn judge(&self, survey: &mut Survey) {
        let tables = &mut survey.tables;
        for table in tables.values_mut() {
            table.reason = table.reason.take().or_else(|| table.shared.clone().filter(|_| !self.selection.keep_shared));
            table.reason = table.reason.take().or_else(|| self.selection.refuses(&table.name, &table.tensor, table.goes_along));
            if table.reason.is_none() && table.one_hot && !one_hot::is_exact(&table.tensor) {
                table.reason = Some("its products with one-hot rows are not its rows to the bit: it has infinities, NaNs, negative zeros or a column of negative numbers alone".into());
            }
        }
        // A table that stays keeps those that its lookups need beside it.
        loop {
            let stays = |k: &Key| tables[k].reason.is_some();
            let held: Vec<(Key, Key)> = (survey.groups.iter())
                .filter_map(|g| g.iter().find(|k| stays(k)).map(|s| (g, s)))
                .flat_map(|(g, s)| g.iter().filter(|k| !stays(k)).map(|k| (k.clone(), s.clone())))
                .collect();
            if held.is_empty() {
                return;
            }
            for (key, by) in held {
                if let Some(t) = tables.get_mut(&key) {
                    t.reason = Some(format!("it goes with \"{}\", which stays", by.1));
                }
            }
        }
    }
}

impl Selection {
    fn refuses(&self, name: &str, tensor: &Tensor, goes_along: bool) -> Option<String> {
        let Some(bytes) = tensor.dtype().byte_len(tensor.shape()) else { return Some("its rows are strings".into()) };
        if !whole_bytes(tensor.dtype(), &tensor.shape()[1..]) {
            return Some(format!("its rows of {} do not fill whole bytes", tensor.dtype()));
        }
        if goes_along {
            return None;
        }
        if self.names.as_ref().is_some_and(|f| !f(name)) {
            return Some("--tables does not name it".into());
        }
        if (bytes as u64) < self.min_bytes {
            return Some(format!("its {bytes} bytes are below --min-bytes {}", self.min_bytes));
        }
        None
    }
}

/// Whether elements of these dims end at a byte.
fn whole_bytes(dtype: DType, dims: &[usize]) -> bool {
    dtype.byte_len(dims).is_some_and(|b| b * 8 == dtype.bits() * dims.iter().product::<usize>())
}

/// The row number and the row of a table as it is stored.
#[derive(Debug, Clone, PartialEq)]
struct Layout {
    axis: usize,
    rows: usize,
    row: Vec<usize>,
}

impl Layout {
    fn new(found: &Found, shape: &[usize]) -> Self {
        let end = found.axis + found.keys;
        let row = shape[..found.axis].iter().chain(&shape[end..]).copied().collect();
        Self { axis: found.axis, rows: shape[found.axis..end].iter().product(), row }
    }
}

impl Table {
    /// The table with its rows outermost.
    fn stored(&self) -> Result<Tensor, String> {
        let Some(layout) = &self.layout else { return Ok(self.tensor.clone()) };
        let shape: Vec<usize> = std::iter::once(layout.rows).chain(layout.row.iter().copied()).collect();
        if layout.axis == 0 {
            return self.tensor.clone().reshape(shape).map_err(|e| e.to_string());
        }
        let (dims, bytes) = (self.tensor.shape(), self.tensor.bytes().ok_or("its elements are not in the file")?);
        let outer: usize = dims[..layout.axis].iter().product();
        let inner = self.tensor.dtype().bits() / 8 * dims[layout.axis + 1..].iter().product::<usize>();
        let mut out = Vec::with_capacity(bytes.len());
        for r in 0..layout.rows {
            for o in 0..outer {
                out.extend_from_slice(&bytes[(o * layout.rows + r) * inner..][..inner]);
            }
        }
        Tensor::from_bytes(self.tensor.dtype(), shape, out).map_err(|e| e.to_string())
    }
}
