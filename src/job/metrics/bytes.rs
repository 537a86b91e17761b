//! Metrics as bytes, to be sent to the rank that merges them: little-endian numbers, lists led by their length.

use super::auc::Run;
use super::{Auc, ExactSum, Metrics};

/// The first byte; another layout takes another.
const VERSION: u8 = 1;

/// More samples than any job has; sums of so many workers' counts do not wrap.
const MOST: u64 = 1 << 48;

/// Bytes that are no metrics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no metrics: {0}")]
pub struct MetricsError(String);

impl Metrics {
    /// The bytes of all that was gathered.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        for n in [self.count, self.not_finite, self.not_class, self.not_chance, self.right] {
            out.extend(n.to_le_bytes());
        }
        for sum in [&self.loss, &self.squares, &self.absolutes, &self.scores, &self.labels] {
            out.push(sum.overflow.into());
            out.extend((sum.parts.len() as u64).to_le_bytes());
            sum.parts.iter().for_each(|p| out.extend(p.to_le_bytes()));
        }
        put_auc(&mut out, &self.auc);
        out.extend((self.groups.len() as u64).to_le_bytes());
        for (group, auc) in &self.groups {
            out.extend((group.len() as u64).to_le_bytes());
            out.extend(group.bytes());
            put_auc(&mut out, auc);
        }
        out
    }

    /// From the bytes of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// Any other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MetricsError> {
        let mut input = Input(bytes);
        match input.take(1)?[0] {
            VERSION => {}
            other => return Err(MetricsError(format!("expected version {VERSION}, found {other}"))),
        }
        let mut metrics = Metrics::default();
        for n in [&mut metrics.count, &mut metrics.not_finite, &mut metrics.not_class, &mut metrics.not_chance, &mut metrics.right] {
            *n = limit(input.u64()?)?;
        }
        for sum in [&mut metrics.loss, &mut metrics.squares, &mut metrics.absolutes, &mut metrics.scores, &mut metrics.labels] {
            let overflow = input.take(1)?[0] != 0;
            let mut read = ExactSum::default();
            for _ in 0..input.u64()? {
                read.add(input.f64()?);
            }
            read.overflow |= overflow;
            *sum = read;
        }
        metrics.auc = input.auc()?;
        let mut grouped = 0u64;
        for _ in 0..input.u64()? {
            let len = input.u64()?;
            let name = String::from_utf8(input.take(len)?.to_vec()).map_err(|_| MetricsError("a group is not UTF-8".into()))?;
            let auc = input.auc()?;
            grouped = limit(grouped + auc.count())?;
            metrics.groups.insert(name, auc);
        }
        if !input.0.is_empty() {
            return Err(MetricsError(format!("{} bytes too many", input.0.len())));
        }
        Ok(metrics)
    }
}

fn put_auc(out: &mut Vec<u8>, auc: &Auc) {
    let runs = auc.sorted();
    out.extend((runs.len() as u64).to_le_bytes());
    for run in runs {
        out.extend(run.score.to_le_bytes());
        out.extend(run.positive.to_le_bytes());
        out.extend(run.negative.to_le_bytes());
    }
}

fn limit(count: u64) -> Result<u64, MetricsError> {
    if count <= MOST { Ok(count) } else { Err(MetricsError("a count past 2^48".into())) }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], MetricsError> {
        let parts = usize::try_from(len).ok().and_then(|n| self.0.split_at_checked(n));
        let (taken, rest) = parts.ok_or_else(|| MetricsError("cut off".into()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u64(&mut self) -> Result<u64, MetricsError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(|| MetricsError("cut off".into()))?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*taken))
    }

    fn f64(&mut self) -> Result<f64, MetricsError> {
        self.u64().map(f64::from_bits)
    }

    fn auc(&mut self) -> Result<Auc, MetricsError> {
        let (mut auc, mut total) = (Auc::default(), 0u64);
        for _ in 0..self.u64()? {
            let run = Run { score: self.f64()?, positive: self.u64()?, negative: self.u64()? };
            total = limit(total.saturating_add(run.positive).saturating_add(run.negative))?;
            if !run.score.is_finite() {
                return Err(MetricsError("a score that is not finite".into()));
            }
            auc.push(run);
        }
        Ok(auc)
    }
}
