//! Host steps: lookups and collectives. They are started by the scheduler and run on the asynchronous runtime.

use super::bags::{self, BagLookup};
use super::scheduler::Pending;
use crate::comm::{Comm, ReduceOp};
use crate::ir::{Attrs, OpName};
use crate::ops::OpError;
use crate::ops::remote::{LookupSpec, TableSpec, pool_mode, row_of};
use crate::store::{Query, Store, StoreError, Tally};
use crate::tensor::{DType, PoolMode, Shape, Tensor, Value};
use crate::{dispatch, invalid, unsupported};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

/// What a host step does.
#[derive(Debug)]
pub(super) enum HostStep {
    Lookup(LookupSpec),
    Bag { table: LookupSpec, mode: PoolMode, last_offset: bool },
    AllReduce(ReduceOp),
    AllGather(usize),
    ReduceScatter(ReduceOp),
    Broadcast(usize),
    Barrier,
}

/// Reads the attributes of a host op.
pub(super) fn build(op: &OpName, attrs: &Attrs, inputs: usize) -> Result<HostStep, OpError> {
    let reduce = || -> Result<ReduceOp, OpError> {
        Ok(match attrs.string_or("op", "sum")? {
            "sum" => ReduceOp::Sum,
            "mean" => ReduceOp::Mean,
            "max" => ReduceOp::Max,
            "min" => ReduceOp::Min,
            other => invalid!("op must be sum, mean, max or min, found \"{other}\""),
        })
    };
    Ok(match &*op.name {
        "RemoteLookup" => HostStep::Lookup(LookupSpec::read(attrs, inputs)?),
        "RemoteLookupBag" => HostStep::Bag {
            table: LookupSpec::read(attrs, 1)?,
            mode: pool_mode(attrs)?,
            last_offset: attrs.int_or("include_last_offset", 0)? != 0,
        },
        "AllReduce" => HostStep::AllReduce(reduce()?),
        "ReduceScatter" => HostStep::ReduceScatter(reduce()?),
        "AllGather" => HostStep::AllGather(attrs.int_or("axis", 0)?.max(0) as usize),
        "Broadcast" => HostStep::Broadcast(attrs.int_or("root", 0)?.max(0) as usize),
        "Barrier" => HostStep::Barrier,
        other => unsupported!("no executor for {other}"),
    })
}

/// What host steps are run with.
#[derive(Debug, Default)]
pub(super) struct Host {
    store: Option<Arc<dyn Store>>,
    comm: Option<Arc<dyn Comm>>,
    runtime: Option<tokio::runtime::Handle>,
    tables: HashMap<String, usize>,
}

/// Why a host step failed.
#[derive(Debug)]
pub(super) enum HostError {
    /// Its operands, or another rank.
    Step(String),
    /// The store, whatever the ids; and whether the same may succeed later.
    Rows { detail: String, later: bool },
}

impl From<String> for HostError {
    fn from(text: String) -> Self {
        Self::Step(text)
    }
}

impl From<&str> for HostError {
    fn from(text: &str) -> Self {
        Self::Step(text.into())
    }
}

/// What a store says, by whose fault it is.
pub(super) fn rows_error(e: StoreError) -> HostError {
    let detail = e.to_string();
    match e {
        StoreError::Invalid { .. } | StoreError::Absent { .. } => HostError::Step(detail),
        StoreError::Unavailable { .. } | StoreError::Timeout { .. } | StoreError::Refused { .. } => HostError::Rows { detail, later: true },
        StoreError::Corrupt(_) => HostError::Rows { detail, later: false },
    }
}

type Job = BoxFuture<'static, Result<Vec<Value>, HostError>>;

impl Host {
    pub(super) fn new(store: Option<Arc<dyn Store>>, comm: Option<Arc<dyn Comm>>, runtime: Option<tokio::runtime::Handle>) -> Self {
        let tables = store.iter().flat_map(|s| s.tables().iter().enumerate().map(|(i, t)| (t.name.clone(), i))).collect();
        Self { store, comm, runtime, tables }
    }

    /// Checks that the store serves the tables as the node has them.
    pub(super) fn check(&self, step: &HostStep) -> Result<(), String> {
        let (HostStep::Lookup(spec) | HostStep::Bag { table: spec, .. }) = step else { return Ok(()) };
        for want in &spec.tables {
            let name = &want.name;
            let Some(store) = &self.store else {
                return Err(format!("table \"{name}\" is on pservers: give their endpoints, or run the deployment directory by itself"));
            };
            let Some(&index) = self.tables.get(name) else { return Err(format!("table \"{name}\" is not in the store")) };
            let found = &store.tables()[index];
            if (found.rows, found.dtype, &found.row_shape) != (want.rows, want.dtype, &want.row_shape) && !found.keyed {
                return Err(format!(
                    "table \"{name}\": expected {} rows of {}{}, the store has {} of {}{}",
                    want.rows, want.dtype, want.row_shape, found.rows, found.dtype, found.row_shape
                ));
            }
        }
        Ok(())
    }

    /// Starts a step, whose lookups are counted in `tally`. Ids are checked before anything is sent.
    pub(super) fn start(&self, step: &HostStep, inputs: Vec<Option<Value>>, tally: &Arc<Tally>) -> Result<Pending, String> {
        let mut job = tally.clone().of(self.job(step, inputs)?).boxed();
        let (sender, receiver) = channel();
        let _context = self.runtime.as_ref().map(tokio::runtime::Handle::enter);
        // A store in this process answers at once; then there is no need to hop.
        match (&mut job).now_or_never() {
            Some(done) => drop(sender.send((done, Instant::now()))),
            None => match &self.runtime {
                Some(runtime) => drop(runtime.spawn(async move {
                    let done = job.await;
                    drop(sender.send((done, Instant::now())));
                })),
                None => return Err("no asynchronous runtime to wait on".into()),
            },
        }
        Ok(receiver)
    }

    fn job(&self, step: &HostStep, inputs: Vec<Option<Value>>) -> Result<Job, String> {
        let mut tensors = inputs.into_iter().map(|v| v.and_then(Value::into_tensor));
        match step {
            HostStep::Lookup(spec) => {
                let ids = tensors.map(|t| t.ok_or("ids must be a tensor")).collect::<Result<Vec<_>, _>>()?;
                let rows = self.lookup(spec, ids)?;
                Ok(async move { Ok(rows.await?.into_iter().map(Value::Tensor).collect()) }.boxed())
            }
            HostStep::Bag { table, mode, last_offset } => {
                let ids = tensors.next().flatten().ok_or("ids are missing")?;
                let offsets = tensors.next().flatten().ok_or("offsets are missing")?;
                let offsets = offsets.to_i64s().map_err(|e| format!("offsets: {e}"))?;
                let weights = tensors.next().flatten();
                let bounds = bags::bounds(&offsets, ids.len(), *last_offset)?;
                let [table] = table.tables.as_slice() else { return Err("one table is expected".into()) };
                let source = (self.store.clone().ok_or("no store")?, self.index(table)?);
                let lookup = BagLookup::new(source, table, &ids, weights.as_ref(), (bounds, *mode))?;
                Ok(async move { Ok(vec![lookup.run().await?.into()]) }.boxed())
            }
            collective => {
                let x = tensors.next().flatten();
                let Some(comm) = self.comm.clone() else {
                    return Ok(async move { Ok(x.into_iter().map(Value::Tensor).collect()) }.boxed());
                };
                let name = collective.name();
                let x = x.ok_or("the operand must be a tensor")?;
                let job: Job = match *collective {
                    HostStep::AllReduce(op) => async move { comm.all_reduce(name, x, op).await.map(one).map_err(fault) }.boxed(),
                    HostStep::ReduceScatter(op) => async move { comm.reduce_scatter(name, x, op).await.map(one).map_err(fault) }.boxed(),
                    HostStep::AllGather(axis) => async move { comm.all_gather(name, x, axis).await.map(one).map_err(fault) }.boxed(),
                    HostStep::Broadcast(root) => async move { comm.broadcast(name, x, root).await.map(one).map_err(fault) }.boxed(),
                    _ => async move { comm.barrier(name).await.map(|()| one(x)).map_err(fault) }.boxed(),
                };
                Ok(job)
            }
        }
    }

    fn index(&self, table: &TableSpec) -> Result<usize, String> {
        self.tables.get(&table.name).copied().ok_or_else(|| format!("table \"{}\" is not in the store", table.name))
    }

    fn lookup(&self, spec: &LookupSpec, ids: Vec<Tensor>) -> Result<BoxFuture<'static, Result<Vec<Tensor>, HostError>>, String> {
        let store = self.store.clone().ok_or("no store")?;
        let mut queries = Vec::with_capacity(ids.len());
        let mut shapes = Vec::with_capacity(ids.len());
        let mut kept = Vec::with_capacity(ids.len());
        for (table, ids) in spec.tables.iter().zip(ids) {
            let index = self.index(table)?;
            let keyed = store.tables()[index].keyed;
            let (rows, places) = row_ids(table, &ids, keyed)?;
            queries.push(Query { table: index, ids: rows });
            shapes.push(ids.shape().iter().chain(table.row_shape.iter()).copied().collect::<Shape>());
            kept.push((places, ids.len()));
        }
        let job = async move {
            let rows = store.lookup(queries).await.map_err(rows_error)?;
            let whole = rows.into_iter().zip(shapes).zip(kept);
            let whole = whole.map(|((rows, shape), (places, len))| spread(rows, places, len).and_then(|t| t.reshape(shape).map_err(text)));
            Ok(whole.collect::<Result<_, String>>()?)
        };
        Ok(job.boxed())
    }
}

fn one(t: Tensor) -> Vec<Value> {
    vec![t.into()]
}

fn text(e: impl ToString) -> String {
    e.to_string()
}

fn fault(e: impl ToString) -> HostError {
    HostError::Step(e.to_string())
}

impl HostStep {
    /// Whether it waits for a store alone, not for other ranks.
    pub(super) fn is_lookup(&self) -> bool {
        matches!(self, HostStep::Lookup(_) | HostStep::Bag { .. })
    }

    /// What ranks agree on besides the order: the kind of step.
    fn name(&self) -> &'static str {
        match self {
            HostStep::Lookup(_) => "RemoteLookup",
            HostStep::Bag { .. } => "RemoteLookupBag",
            HostStep::AllReduce(_) => "AllReduce",
            HostStep::AllGather(_) => "AllGather",
            HostStep::ReduceScatter(_) => "ReduceScatter",
            HostStep::Broadcast(_) => "Broadcast",
            HostStep::Barrier => "Barrier",
        }
    }
}

/// The row numbers of ids, checked. Where the table has a padding id, also the positions of the ids that are none.
pub(super) fn row_ids(table: &TableSpec, ids: &Tensor, keyed: bool) -> Result<(Vec<u64>, Option<Vec<usize>>), String> {
    if keyed && ids.dtype() == DType::U64 {
        return Ok((ids.to_slice::<u64>().map_err(text)?.into_owned(), None));
    }
    let raw = ids.to_i64s().map_err(|e| format!("table \"{}\": ids: {e}", table.name))?;
    let mut out = Vec::with_capacity(raw.len());
    let mut places = table.padding.map(|_| Vec::with_capacity(raw.len()));
    for (position, id) in raw.into_iter().enumerate() {
        let row = match keyed {
            true if Some(id) == table.padding => None,
            true => Some(id as u64),
            false => row_of(table, id, position)?,
        };
        let Some(row) = row else { continue };
        out.push(row);
        if let Some(places) = &mut places {
            places.push(position);
        }
    }
    Ok((out, places))
}

/// Puts rows at their places among `len`; the others are zeros.
pub(super) fn spread(rows: Tensor, places: Option<Vec<usize>>, len: usize) -> Result<Tensor, String> {
    fn spread_as<T: crate::tensor::Element>(rows: &Tensor, places: &[usize], len: usize) -> Result<Tensor, String> {
        let mut shape = rows.shape().clone();
        let width: usize = shape[1..].iter().product();
        shape[0] = len;
        let mut out = vec![T::default(); width * len];
        for (row, &place) in rows.as_slice::<T>().map_err(text)?.chunks(width.max(1)).zip(places) {
            out[place * width..(place + 1) * width].clone_from_slice(row);
        }
        Tensor::new(shape, out).map_err(text)
    }
    match places {
        Some(places) if places.len() < len => dispatch!(rows.dtype(), T => spread_as::<T>(&rows, &places, len)),
        _ => Ok(rows),
    }
}
