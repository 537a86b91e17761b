//! Batch prediction: batches are global (batch `k` is samples `kB…`), whoever computes them; rank 0 writes one file in the
//! order of the samples and computes the metrics over all of them.
//!
//! Where the graph has no collective, workers do not need each other before the end: each puts its finished batches aside
//! ([`PartsOptions`]), and then they are brought to rank 0. A graph with collectives runs in rounds of one batch per worker.

use super::ahead::{Batch, read_ahead};
use super::metrics::{Metrics, Report};
use super::parts::{Parts, PartsOptions};
use super::record::{Filled, Record};
use super::schedule::Schedule;
use crate::comm::{Comm, CommError, ReduceOp};
use crate::data::{DataError, Samples, Sink, Source};
use crate::exec::{self, ExecError, Session};
use crate::tensor::{DType, Tensor, Value, cast};
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Samples in a batch unless the caller says otherwise; one default, for only equal batches give equal bits.
pub const DEFAULT_BATCH: usize = 1024;

/// Batches whose ids are sent ahead unless the caller says otherwise.
pub const DEFAULT_PREFETCH: usize = 1;

/// What a prediction needs.
pub struct Job<'a> {
    /// The compiled model.
    pub session: &'a Session,
    /// The samples.
    pub source: &'a dyn Source,
    /// Samples in a batch.
    pub batch: usize,
    /// The other workers.
    pub comm: Option<(&'a dyn Comm, Handle)>,
    /// Whether the graph has collectives: workers then compute in rounds.
    pub collectives: bool,
    /// Whether workers take the next batch that nobody has, else every W-th is theirs.
    pub dynamic: bool,
    /// Where finished batches are put aside; in memory without it.
    pub parts: Option<PartsOptions>,
    /// The column of labels, for metrics.
    pub label: Option<String>,
    /// The column of groups, such as users, for the grouped AUC.
    pub group: Option<String>,
    /// Columns that are written beside the outputs.
    pub keep: Vec<String>,
    /// The output that is the score; the first without it.
    pub score: Option<String>,
    /// Whether outputs are wanted at all.
    pub outputs: bool,
    /// Batches whose ids are sent while another is computed.
    pub prefetch: usize,
    /// Called with the samples that are done so far, here, and whether these are all that are done here.
    pub progress: &'a dyn Fn(usize, bool),
    /// Called on rank 0 when the output stands, before the others end.
    pub conclude: &'a dyn Fn(&Summary) -> Result<(), String>,
}

impl<'a> Job<'a> {
    /// A job of this process alone, in batches of [`DEFAULT_BATCH`].
    pub fn new(session: &'a Session, source: &'a dyn Source) -> Self {
        Self {
            session,
            source,
            batch: DEFAULT_BATCH,
            comm: None,
            collectives: false,
            dynamic: false,
            parts: None,
            label: None,
            group: None,
            keep: Vec::new(),
            score: None,
            outputs: true,
            prefetch: DEFAULT_PREFETCH,
            progress: &|_, _| {},
            conclude: &|_| Ok(()),
        }
    }
}

/// What a prediction came to. On ranks other than 0 the metrics are empty.
#[derive(Debug)]
pub struct Summary {
    /// Samples in all.
    pub samples: usize,
    /// Those that were finished before, of this worker.
    pub before: usize,
    /// From the first batch to the last.
    pub elapsed: Duration,
    /// The metrics over all workers.
    pub metrics: Option<Report>,
    /// What became of the ids of all workers.
    pub filled: Filled,
}

/// Why a prediction failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Samples or outputs.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model, in one batch.
    #[error("samples {} to {}: {error}", range.start, range.end.saturating_sub(1))]
    Batch {
        /// The samples of the batch.
        range: Range<usize>,
        /// What the model says.
        error: ExecError,
    },
    /// The other workers.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// Labels and scores.
    #[error("{0}")]
    Metrics(String),
}

impl JobError {
    /// The worker that was lost and why, if that is what went wrong: with the same parts the job can go on once all are there
    /// again.
    pub fn lost(&self) -> Option<(usize, &str)> {
        match self {
            JobError::Comm(CommError::Lost { rank, detail }) => Some((*rank, detail)),
            // A collective in the graph gives its text to its node.
            JobError::Batch { error: ExecError::Node { detail, .. }, .. } => {
                let (rank, detail) = detail.strip_prefix("rank ")?.split_once(" lost: ")?;
                Some((rank.parse().ok()?, detail))
            }
            _ => None,
        }
    }
}

/// Runs the job. Rank 0 (or the only process) is given a sink.
///
/// # Errors
/// Those of [`JobError`]; nothing is written then.
pub fn predict(job: &Job, mut sink: Option<Box<dyn Sink>>) -> Result<Summary, JobError> {
    let start = Instant::now();
    if let Some(name) = job.keep.iter().find(|k| job.session.output_names().contains(k)) {
        return Err(DataError::Output { output: name.clone(), what: "is the name of a column that is kept, too".into() }.into());
    }
    let (rank, size) = job.comm.as_ref().map_or((0, 1), |(c, _)| (c.rank(), c.size()));
    let batches = batches(job.source.samples(), job.batch);
    let samples = batches.last().map_or(0, |b| b.end);
    let mut totals = Totals::default();
    if size == 1 && job.parts.is_none() {
        let listed = Schedule::Listed(batches.into_iter());
        run(job, listed, 0, &mut |record| {
            totals.add(&record);
            sink.as_mut().map_or(Ok(()), |s| record.write(s.as_mut(), job.source.samples()))
        })?;
        if let Some(sink) = sink {
            sink.finish()?;
        }
        let summary = totals.summary(job, samples, 0, start);
        (job.conclude)(&summary).map_err(JobError::Metrics)?;
        return Ok(summary);
    }
    let mut parts = Parts::open(job.parts.as_ref(), rank, size)?;
    let together = job.comm.as_ref().filter(|_| job.collectives && size > 1);
    if let Some((comm, handle)) = together {
        // All begin with the round that the least advanced has not done.
        let own = Tensor::vector(vec![parts.own() as i64]);
        let least = handle.block_on(comm.all_reduce("rounds that are done", own, ReduceOp::Min))?.to_i64s().unwrap_or_default();
        parts.keep(least.first().map_or(0, |n| usize::try_from(*n).unwrap_or(0)))?;
    }
    let before = parts.samples();
    let schedule = match job.parts.as_ref().filter(|_| job.dynamic && !job.collectives) {
        Some(p) => Schedule::claimed(batches, rank, &p.dir, &parts)?,
        None => Schedule::fixed(&batches, rank, size, &parts),
    };
    run(job, schedule, before, &mut |record| parts.put(record.range.clone(), record.encode()?))?;
    if let Some((comm, handle)) = together {
        // A rank that has no batch in the last round has joined, and others' collectives do not wait for it.
        handle.block_on(comm.join())?;
    }
    collect(job, &mut parts, &mut |mut bytes| {
        while !bytes.is_empty() {
            let broken = || JobError::Metrics("what a worker put aside does not decode".into());
            let record = Record::decode(&mut bytes).ok_or_else(broken)?;
            totals.add(&record);
            sink.as_mut().map_or(Ok(()), |s| record.write(s.as_mut(), job.source.samples()))?;
        }
        Ok(())
    })?;
    if let Some(sink) = sink {
        sink.finish()?;
    }
    let summary = totals.summary(job, samples, before, start);
    if rank == 0 {
        (job.conclude)(&summary).map_err(JobError::Metrics)?;
    }
    if let Some((comm, handle)) = &job.comm {
        // Parts go when the output stands.
        handle.block_on(comm.barrier("output written"))?;
    }
    parts.remove();
    Ok(summary)
}

fn batches(samples: &Samples, batch: usize) -> Vec<Range<usize>> {
    match samples {
        Samples::Whole(_) => vec![Range { start: 0, end: 1 }],
        Samples::Count(0) => vec![Range::default()],
        Samples::Count(n) => (0..n.div_ceil(batch)).map(|k| k * batch..((k + 1) * batch).min(*n)).collect(),
    }
}

/// What rank 0 adds up.
#[derive(Default)]
struct Totals {
    metrics: Metrics,
    filled: Filled,
}

impl Totals {
    fn add(&mut self, record: &Record) {
        record.metrics.iter().for_each(|m| self.metrics.merge(m));
        self.filled = self.filled.plus(record.filled);
    }

    fn summary(&self, job: &Job, samples: usize, before: usize, start: Instant) -> Summary {
        let root = job.comm.as_ref().is_none_or(|(c, _)| c.rank() == 0);
        let metrics = (root && job.label.is_some()).then(|| self.metrics.report());
        Summary { samples, before, elapsed: start.elapsed(), metrics, filled: self.filled }
    }
}

/// A batch whose ids are under way, and what is wanted of it besides.
struct Begun<'s> {
    range: Range<usize>,
    run: Result<exec::Begun<'s>, ExecError>,
    labels: Option<Vec<f64>>,
    groups: Option<Vec<String>>,
    kept: Vec<(String, Value)>,
}

impl<'s> Begun<'s> {
    fn new(job: &Job<'s>, batch: Batch) -> Self {
        let Batch { range, inputs, labels, groups, kept } = batch;
        Self { range, run: job.session.begin(inputs), labels, groups, kept }
    }

    fn finish(self, job: &Job) -> Result<Record, JobError> {
        let range = self.range;
        let fault = |error| JobError::Batch { range: range.clone(), error };
        let run = self.run.map_err(fault)?;
        let tally = run.tally();
        let outputs = run.finish().map_err(fault)?;
        let metrics = self.labels.map(|l| score(job, &l, self.groups.as_deref(), &outputs)).transpose()?;
        let outputs = if job.outputs { self.kept.into_iter().chain(outputs).collect() } else { Vec::new() };
        Ok(Record { filled: Filled::of(&tally), range, metrics, outputs })
    }
}

/// Computes the batches of a schedule and gives each to `done`, in order. The ids of those that come next are sent before.
fn run(job: &Job, schedule: Schedule, before: usize, done: &mut dyn FnMut(Record) -> Result<(), JobError>) -> Result<(), JobError> {
    let mut samples = before;
    std::thread::scope(|scope| {
        let batches = read_ahead(scope, job, schedule);
        let mut begun = VecDeque::new();
        loop {
            // A batch that is not read yet is not waited for while another can be computed.
            let next = if begun.is_empty() { batches.recv().ok() } else { batches.try_recv().ok() };
            if let Some(batch) = next {
                // What is wrong is said in its turn.
                begun.push_back(batch.map(|b| Begun::new(job, b)));
                if begun.len() <= job.prefetch {
                    continue;
                }
            }
            let Some(first) = begun.pop_front() else { break };
            let record = first?.finish(job)?;
            samples += record.range.len();
            done(record)?;
            (job.progress)(samples, false);
        }
        (job.progress)(samples, true);
        Ok(())
    })
}

fn score(job: &Job, labels: &[f64], groups: Option<&[String]>, outputs: &[(String, Value)]) -> Result<Metrics, JobError> {
    let found = match &job.score {
        Some(name) => outputs.iter().find(|(n, _)| n == name),
        None => outputs.first(),
    };
    let Some((name, value)) = found else {
        let known: Vec<&str> = outputs.iter().map(|(n, _)| n.as_str()).collect();
        return Err(JobError::Metrics(format!("no output \"{}\"; there are {}", job.score.as_deref().unwrap_or(""), known.join(", "))));
    };
    let scores = value.as_tensor().and_then(|t| cast(t, DType::F64).and_then(Tensor::into_vec::<f64>).ok()).unwrap_or_default();
    if scores.len() != labels.len() {
        return Err(JobError::Metrics(format!(
            "output \"{name}\" is {} for {} labels: a score is one number per sample",
            value.describe(),
            labels.len()
        )));
    }
    let mut metrics = Metrics::default();
    match groups {
        Some(groups) if groups.len() == labels.len() => {
            labels.iter().zip(scores).zip(groups).for_each(|((l, s), g)| metrics.add_grouped(g, *l, s));
        }
        _ => labels.iter().zip(scores).for_each(|(l, s)| metrics.add(*l, s)),
    }
    Ok(metrics)
}

/// Brings the records of all workers to rank 0, which hands them to `take`.
fn collect(job: &Job, parts: &mut Parts, take: &mut dyn FnMut(Bytes) -> Result<(), JobError>) -> Result<(), JobError> {
    let pieces = parts.pieces()?;
    let Some((comm, handle)) = &job.comm else {
        return pieces.iter().try_for_each(|p| take(parts.read(p)?.into()));
    };
    let own = Tensor::vector(vec![pieces.len() as i64]);
    let most = handle.block_on(comm.all_reduce("parts", own, ReduceOp::Max))?.to_i64s().unwrap_or_default();
    for i in 0..most.first().map_or(0, |n| usize::try_from(*n).unwrap_or(0)) {
        let payload = pieces.get(i).map(|p| parts.read(p)).transpose()?.unwrap_or_default();
        for bytes in handle.block_on(comm.gather_bytes("parts", payload.into()))?.into_iter().flatten() {
            take(bytes)?;
        }
    }
    Ok(())
}
