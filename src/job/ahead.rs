//! Reads the next batches while one is computed: a thread that stays a few batches ahead.

use super::predict::{Job, JobError};
use super::schedule::Schedule;
use crate::tensor::{DType, Tensor, Value};
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

/// Batches that wait, besides the one that is read and the one that is computed.
const WAITING: usize = 2;

/// The samples of a batch, read.
pub(super) struct Batch {
    pub range: Range<usize>,
    pub inputs: Vec<(String, Value)>,
    pub labels: Option<Vec<f64>>,
    pub groups: Option<Vec<String>>,
    /// Columns that go out as they came.
    pub kept: Vec<(String, Value)>,
}

/// Starts to read; batches come in the order of the schedule, and after an error nothing comes.
pub(super) fn read_ahead<'s, 'e>(scope: &'s Scope<'s, 'e>, job: &'e Job, mut schedule: Schedule) -> Receiver<Result<Batch, JobError>> {
    let (send, receive) = sync_channel(WAITING);
    let source = Reading { source: job.source, label: job.label.as_deref(), group: job.group.as_deref(), keep: &job.keep };
    scope.spawn(move || {
        loop {
            let next = schedule.next().and_then(|range| range.map(|r| source.read(r)).transpose()).transpose();
            let Some(next) = next else { return };
            let failed = next.is_err();
            // Nobody listens any more once the job has failed.
            if send.send(next).is_err() || failed {
                return;
            }
        }
    });
    receive
}

/// What is read for each batch.
struct Reading<'a> {
    source: &'a dyn crate::data::Source,
    label: Option<&'a str>,
    group: Option<&'a str>,
    keep: &'a [String],
}

impl Reading<'_> {
    fn read(&self, range: Range<usize>) -> Result<Batch, JobError> {
        let inputs = self.source.read(range.clone())?;
        let labels = self.label.map(|c| self.source.column(c, range.clone())).transpose()?;
        let groups = self.group.map(|c| self.source.tensor(c, range.clone()).map(|t| (c, t))).transpose()?;
        let groups =
            groups.map(|(c, t)| names(&t).map_err(|what| JobError::Metrics(format!("group column \"{c}\": {what}")))).transpose()?;
        let mut kept = Vec::new();
        for column in self.keep {
            kept.push((column.clone(), self.source.tensor(column, range.clone())?.into()));
        }
        Ok(Batch { range, inputs, labels, groups, kept })
    }
}

/// The name of the group of each sample.
fn names(t: &Tensor) -> Result<Vec<String>, String> {
    if t.shape().iter().skip(1).any(|&d| d != 1) {
        return Err(format!("expected one value per sample, found {}{}", t.dtype(), t.shape()));
    }
    let fault = |e: crate::tensor::TensorError| e.to_string();
    match t.dtype() {
        DType::String => Ok(t.as_slice::<String>().map_err(fault)?.to_vec()),
        DType::U64 => Ok(t.to_slice::<u64>().map_err(fault)?.iter().map(u64::to_string).collect()),
        d if d.is_int() || d == DType::Bool => Ok(t.to_i64s().map_err(fault)?.iter().map(i64::to_string).collect()),
        d => Err(format!("a group is an integer or a text, found {d}")),
    }
}
