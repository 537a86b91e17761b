//! Batch prediction: batches are global (batch `k` is samples `kB…`), worker `r` of `W` computes those with `k mod W = r`,
//! and rank 0 writes one file in the order of the samples and computes the metrics over all of them.

use super::metrics::{Metrics, Report};
use crate::comm::{Comm, CommError};
use crate::data::{DataError, Samples, Sink, Source};
use crate::exec::{ExecError, Session};
use crate::formats::onnx::value::{decode_value, encode_value};
use crate::tensor::{DType, Tensor, Value, cast};
use bytes::{Buf, Bytes};
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Samples in a batch unless the caller says otherwise; one default, for only equal batches give equal bits.
pub const DEFAULT_BATCH: usize = 1024;

/// Batches that a worker computes before results are collected.
const ROUND: usize = 8;

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
    /// The column of labels, for metrics.
    pub label: Option<String>,
    /// The output that is the score; the first without it.
    pub score: Option<String>,
    /// Called with the samples that are done so far, here.
    pub progress: &'a dyn Fn(usize),
}

/// What a prediction came to. On ranks other than 0 the metrics are empty.
#[derive(Debug)]
pub struct Summary {
    /// Samples in all.
    pub samples: usize,
    /// From the first batch to the last.
    pub elapsed: Duration,
    /// The metrics over all workers.
    pub metrics: Option<Report>,
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

/// Runs the job. Rank 0 (or the only process) is given a sink.
///
/// # Errors
/// Those of [`JobError`]; nothing is written then.
pub fn predict(job: &Job, mut sink: Option<Box<dyn Sink>>) -> Result<Summary, JobError> {
    let start = Instant::now();
    let (rank, size) = job.comm.as_ref().map_or((0, 1), |(c, _)| (c.rank(), c.size()));
    let batches = batches(job.source.samples(), job.batch);
    let samples = batches.last().map_or(0, |b| b.end);
    let rounds = batches.len().div_ceil(size);
    let mut metrics = job.label.is_some().then(Metrics::default);
    let mut totals = Metrics::default();
    let mut outbox = Outbox::default();
    let mut done = 0;
    for round in 0..rounds {
        // In the last round a rank may have no batch: it has joined, and others' collectives do not wait for it.
        let Some(range) = batches.get(round * size + rank) else { break };
        let outputs = run_batch(job, range)?;
        if let Some(metrics) = &mut metrics {
            score(job, range, &outputs, metrics)?;
        }
        done += range.len();
        (job.progress)(done);
        match &mut sink {
            Some(sink) if size == 1 => sink.write(range.start, range.len(), &outputs)?,
            _ => outbox.push(range, &outputs)?,
        }
        // Whoever has no batch in the last round says all it has to say before.
        let last_full = round + 2 == rounds && !batches.len().is_multiple_of(size);
        if size > 1 && (last_full || round + 1 == rounds || (round + 1).is_multiple_of(ROUND)) {
            exchange(job, &mut outbox, &mut metrics, &mut totals, &mut sink)?;
        }
    }
    if let Some((comm, handle)) = &job.comm {
        handle.block_on(comm.join())?;
    }
    if let Some(sink) = sink {
        sink.finish()?;
    }
    let metrics = metrics.filter(|_| rank == 0).map(|own| {
        totals.merge(&own);
        totals.report()
    });
    Ok(Summary { samples, elapsed: start.elapsed(), metrics })
}

fn batches(samples: &Samples, batch: usize) -> Vec<Range<usize>> {
    match samples {
        Samples::Whole(_) => vec![Range { start: 0, end: 1 }],
        Samples::Count(0) => vec![Range::default()],
        Samples::Count(n) => (0..n.div_ceil(batch)).map(|k| k * batch..((k + 1) * batch).min(*n)).collect(),
    }
}

fn run_batch(job: &Job, range: &Range<usize>) -> Result<Vec<(String, Value)>, JobError> {
    let inputs = job.source.read(range.clone())?;
    job.session.run(inputs).map_err(|error| JobError::Batch { range: range.clone(), error })
}

fn score(job: &Job, range: &Range<usize>, outputs: &[(String, Value)], metrics: &mut Metrics) -> Result<(), JobError> {
    let Some(column) = &job.label else { return Ok(()) };
    let labels = job.source.column(column, range.clone())?;
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
    labels.into_iter().zip(scores).for_each(|(l, s)| metrics.add(l, s));
    Ok(())
}

/// Results on their way to rank 0: per batch its first sample, its length, and its outputs as value files.
#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
}

impl Outbox {
    fn push(&mut self, range: &Range<usize>, outputs: &[(String, Value)]) -> Result<(), JobError> {
        for n in [range.start, range.len(), outputs.len()] {
            self.bytes.extend((n as u64).to_le_bytes());
        }
        for (name, value) in outputs {
            let kind = crate::formats::onnx::value::ValueKind::of(value);
            let encoded = encode_value(name, value).map_err(|e| JobError::Metrics(format!("output \"{name}\": {e}")))?;
            self.bytes.push(kind as u8);
            self.bytes.extend((encoded.len() as u64).to_le_bytes());
            self.bytes.extend(encoded);
        }
        Ok(())
    }
}

/// Collects outputs and metrics since the last exchange on rank 0. A payload is the metrics with their length, then the
/// batches.
fn exchange(
    job: &Job,
    outbox: &mut Outbox,
    metrics: &mut Option<Metrics>,
    totals: &mut Metrics,
    sink: &mut Option<Box<dyn Sink>>,
) -> Result<(), JobError> {
    let Some((comm, handle)) = &job.comm else { return Ok(()) };
    let own = metrics.as_mut().map(|m| std::mem::take(m).to_bytes()).unwrap_or_default();
    let mut payload = (own.len() as u64).to_le_bytes().to_vec();
    payload.extend(own);
    payload.append(&mut outbox.bytes);
    let Some(all) = handle.block_on(comm.gather_bytes("outputs", payload.into()))? else { return Ok(()) };
    let broken = || JobError::Metrics("what another worker sent does not decode".into());
    for mut bytes in all.into_iter().filter(|b| !b.is_empty()) {
        let len = if bytes.len() < 8 { usize::MAX } else { bytes.get_u64_le() as usize };
        if len > bytes.len() {
            return Err(broken());
        }
        let part = bytes.split_to(len);
        if !part.is_empty() {
            totals.merge(&Metrics::from_bytes(&part).map_err(|e| JobError::Metrics(e.to_string()))?);
        }
        if let Some(sink) = sink {
            deliver(bytes, sink.as_mut()).map_err(|e| e.unwrap_or_else(broken))?;
        }
    }
    Ok(())
}

/// Writes the batches of one payload; `None` for bytes that are cut off.
fn deliver(mut bytes: Bytes, sink: &mut dyn Sink) -> Result<(), Option<JobError>> {
    use crate::formats::onnx::value::ValueKind;
    let word = |b: &mut Bytes| if b.remaining() < 8 { Err(None) } else { Ok(b.get_u64_le() as usize) };
    while bytes.has_remaining() {
        let (start, count, outputs) = (word(&mut bytes)?, word(&mut bytes)?, word(&mut bytes)?);
        let mut values = Vec::new();
        for _ in 0..outputs {
            if !bytes.has_remaining() {
                return Err(None);
            }
            let kind = match bytes.get_u8() {
                0 => ValueKind::Tensor,
                1 => ValueKind::Sequence,
                2 => ValueKind::Optional,
                _ => ValueKind::Map,
            };
            let len = word(&mut bytes)?;
            if len > bytes.remaining() {
                return Err(None);
            }
            values.push(decode_value(&bytes.split_to(len), Some(kind)).map_err(|_| None)?);
        }
        sink.write(start, count, &values).map_err(|e| Some(e.into()))?;
    }
    Ok(())
}
