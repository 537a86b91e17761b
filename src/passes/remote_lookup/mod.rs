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
//! *Needs*: an op that one of the rules knows, in the main graph or in any body, on an initializer or a Constant, or on an
//! Identity, Flatten, Reshape, Cast or per-tensor DequantizeLinear of one.
//! *Leaves alone*: tables that anything else reads or that are given back (unless they are to be kept too), that a caller
//! can override, or that the selection does not name; each lookup that stays is reported with its reason.

mod blocks;
mod embed;
mod gather;
mod gather_elements;
mod gather_nd;
mod local;
mod loop_state;
mod one_hot;
mod rewrite;
mod source;
mod survey;

pub(super) use source::{const_ints, view_of};
pub use survey::hidden_in_functions;

use super::report::{LookupRemark, TableTaken};
use super::{Changed, Pass, PassError, Report};
use crate::ir::{Graph, Model, NodeId, Scope, ValueId};
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
}

/// The pass.
#[derive(Default)]
pub struct RemoteLookup {
    /// Which tables may move.
    pub selection: Selection,
}

/// A constant by the depth of its graph (0: main) and its name.
type Key = (usize, String);

/// A node that may look up rows.
struct Site<'g, 's> {
    graph: &'g Graph,
    scope: Option<&'s Scope<'g>>,
    id: NodeId,
}

/// How the result of a lookup takes the place of a node.
#[derive(Debug, Clone, PartialEq)]
enum How {
    /// The rows are the result.
    Rows,
    /// The dims of the ids move behind the first `at` dims of a row; the ids have `rank` dims.
    Moved { at: usize, rank: usize },
    /// Indices in several dims become row numbers first.
    Stacked { dims: Vec<i64> },
    /// The rows are expanded to a shape.
    Expanded { shape: ValueId },
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
    Some(found.and_then(|f| if source.foreign { Err("its table is computed in an outer graph".into()) } else { Ok(f) }))
}

impl Pass for RemoteLookup {
    fn name(&self) -> &'static str {
        "remote-lookup"
    }

    fn source(&self) -> &'static str {
        include_str!("mod.rs")
    }

    fn run(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError> {
        let mut survey = Survey::default();
        survey.graph(&model.graph, None, model.ir_version >= 4);
        for f in &model.functions {
            survey.function(&f.graph, &f.name);
        }
        self.judge(&mut survey);
        let Survey { mut tables, lookups, .. } = survey;
        for l in &lookups {
            let reason = match &l.key {
                Some(key) => tables[key].reason.clone(),
                None => l.reason.clone(),
            };
            report.lookups.push(LookupRemark { node: l.node.clone(), op: l.op.clone(), table: l.table.clone(), reason });
        }
        tables.retain(|_, t| t.reason.is_none() && t.lookups > 0);
        if tables.is_empty() {
            return Ok(Changed::No);
        }
        let mut names = model.names();
        model.visit_mut(&mut |graph, scope| rewrite::graph(graph, scope, &tables, &mut names))?;
        model.import_opset(DOMAIN, 1);
        let mut taken: Vec<TableTaken> = Vec::with_capacity(tables.len());
        for (key, t) in tables {
            let tensor = t.stored().map_err(|e| PassError::Call(format!("table \"{}\": {e}", key.1)))?;
            taken.push(TableTaken { name: key.1, tensor, lookups: t.lookups });
        }
        let place = |name: &str| report.lookups.iter().position(|l| l.table == name);
        taken.sort_by_key(|t| place(&t.name));
        report.tables.extend(taken);
        Ok(Changed::Yes)
    }
}

impl RemoteLookup {
    /// Gives each table that must stay its reason.
    fn judge(&self, survey: &mut Survey) {
        let tables = &mut survey.tables;
        let mut seen: HashMap<String, Key> = HashMap::new();
        let mut keys: Vec<Key> = tables.keys().cloned().collect();
        keys.sort();
        let clash: Vec<Key> = keys.iter().filter(|k| seen.insert(k.1.clone(), (*k).clone()).is_some()).cloned().collect();
        for (key, table) in tables.iter_mut() {
            if clash.contains(key) {
                table.reason.get_or_insert_with(|| "another table has its name".into());
            }
            table.reason = table.reason.take().or_else(|| table.shared.clone().filter(|_| !self.selection.keep_shared));
            table.reason = table.reason.take().or_else(|| self.selection.refuses(&key.1, &table.tensor, table.goes_along));
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
