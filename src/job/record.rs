//! One finished batch as bytes: what a worker puts aside, and what it sends to rank 0.

use super::metrics::Metrics;
use super::predict::JobError;
use crate::data::{Samples, Sink, whole_count};
use crate::exec::Tally;
use crate::formats::onnx::value::{ValueKind, decode_value, encode_value};
use crate::tensor::Value;
use bytes::{Buf, Bytes};
use std::ops::Range;
use twox_hash::XxHash3_64;

/// The first bytes of a record; another layout takes others.
const MAGIC: [u8; 4] = *b"GTB3";
/// Magic, length of the body, its checksum.
const HEAD: usize = 20;

/// What became of ids that were looked up: those that got a row that is not their own, and those that a cache was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filled {
    /// Their table does not hold them.
    pub absent: u64,
    /// Their pserver was not to be reached, and the job goes on with defaults.
    pub unavailable: u64,
    /// The cache had their row.
    pub cache_hits: u64,
    /// The cache did not have their row.
    pub cache_misses: u64,
}

impl Filled {
    pub(super) fn plus(self, o: Self) -> Self {
        Self::each(|f| f(&self) + f(&o))
    }

    /// What a run of the model counted.
    pub(super) fn of(t: &Tally) -> Self {
        Self { absent: t.absent(), unavailable: t.unavailable(), cache_hits: t.cache_hits(), cache_misses: t.cache_misses() }
    }

    fn each(count: impl Fn(fn(&Self) -> u64) -> u64) -> Self {
        Self {
            absent: count(|f| f.absent),
            unavailable: count(|f| f.unavailable),
            cache_hits: count(|f| f.cache_hits),
            cache_misses: count(|f| f.cache_misses),
        }
    }
}

/// A batch that is done.
#[derive(Debug)]
pub(super) struct Record {
    pub range: Range<usize>,
    /// What became of the ids of this batch.
    pub filled: Filled,
    pub metrics: Option<Metrics>,
    pub outputs: Vec<(String, Value)>,
}

impl Record {
    /// Head and body.
    pub fn encode(&self) -> Result<Vec<u8>, JobError> {
        let mut out = vec![0; HEAD];
        let metrics = self.metrics.as_ref().map(Metrics::to_bytes).unwrap_or_default();
        let (range, f) = (&self.range, &self.filled);
        let counts = [f.absent, f.unavailable, f.cache_hits, f.cache_misses];
        for n in [range.start as u64, range.len() as u64].into_iter().chain(counts).chain([metrics.len() as u64]) {
            out.extend(n.to_le_bytes());
        }
        out.extend(metrics);
        out.extend((self.outputs.len() as u64).to_le_bytes());
        for (name, value) in &self.outputs {
            let encoded = encode_value(name, value).map_err(|e| JobError::Metrics(format!("output \"{name}\": {e}")))?;
            out.push(ValueKind::of(value) as u8);
            out.extend((encoded.len() as u64).to_le_bytes());
            out.extend(encoded);
        }
        let (len, sum) = ((out.len() - HEAD) as u64, XxHash3_64::oneshot(&out[HEAD..]));
        out[..4].copy_from_slice(&MAGIC);
        out[4..12].copy_from_slice(&len.to_le_bytes());
        out[12..HEAD].copy_from_slice(&sum.to_le_bytes());
        Ok(out)
    }

    /// Takes the next record off; `None` for bytes that are cut off or damaged.
    pub fn decode(bytes: &mut Bytes) -> Option<Self> {
        let len = whole(bytes)?;
        let mut body = bytes.split_to(len).slice(HEAD..);
        let (start, count) = (word(&mut body)?, word(&mut body)?);
        let mut ids = || word(&mut body).map(|n| n as u64);
        let filled = Filled { absent: ids()?, unavailable: ids()?, cache_hits: ids()?, cache_misses: ids()? };
        let metrics = word(&mut body)?;
        if metrics > body.len() {
            return None;
        }
        let part = body.split_to(metrics);
        let metrics = if part.is_empty() { None } else { Some(Metrics::from_bytes(&part).ok()?) };
        let mut outputs = Vec::new();
        for _ in 0..word(&mut body)? {
            let kind = match body.try_get_u8().ok()? {
                0 => ValueKind::Tensor,
                1 => ValueKind::Sequence,
                2 => ValueKind::Optional,
                _ => ValueKind::Map,
            };
            let len = word(&mut body)?;
            if len > body.len() {
                return None;
            }
            outputs.push(decode_value(&body.split_to(len), Some(kind)).ok()?);
        }
        Some(Self { range: start..start.checked_add(count)?, filled, metrics, outputs })
    }

    /// Writes the outputs where they belong; of a run that is not split, all that there is.
    pub fn write(&self, sink: &mut dyn Sink, samples: &Samples) -> Result<(), JobError> {
        let count = match samples {
            Samples::Count(_) => self.range.len(),
            Samples::Whole(_) => whole_count(&self.outputs),
        };
        Ok(sink.write(self.range.start, count, &self.outputs)?)
    }
}

fn word(b: &mut Bytes) -> Option<usize> {
    usize::try_from(b.try_get_u64_le().ok()?).ok()
}

/// The length of the record at the start of `bytes`, if it is whole and undamaged.
pub(super) fn whole(bytes: &[u8]) -> Option<usize> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let field = |at: usize| <[u8; 8]>::try_from(&head[at..at + 8]).map(u64::from_le_bytes).ok();
    let len = usize::try_from(field(4)?).ok().filter(|n| *n <= rest.len())?;
    (head[..4] == MAGIC && field(12)? == XxHash3_64::oneshot(&rest[..len])).then_some(HEAD + len)
}

/// The samples of the record at the start of `bytes`, which is whole.
pub(super) fn range_of(bytes: &[u8]) -> Option<Range<usize>> {
    let mut body = bytes.get(HEAD..HEAD + 16)?;
    let start = usize::try_from(body.get_u64_le()).ok()?;
    Some(start..start.checked_add(usize::try_from(body.get_u64_le()).ok()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn record(start: usize) -> Record {
        let mut metrics = Metrics::default();
        metrics.add(1.0, 0.75);
        let outputs = vec![("p".to_owned(), Tensor::vector(vec![start as f32, 0.5]).into())];
        Record {
            range: start..start + 2,
            filled: Filled { absent: 3, unavailable: 4, cache_hits: 5, cache_misses: 6 },
            metrics: Some(metrics),
            outputs,
        }
    }

    #[test]
    fn records_come_back_as_they_were() {
        let mut bytes: Vec<u8> = record(4).encode().unwrap();
        bytes.extend(record(9).encode().unwrap());
        assert_eq!(range_of(&bytes), Some(4..6));
        let mut bytes = Bytes::from(bytes);
        for start in [4, 9] {
            let (found, expected) = (Record::decode(&mut bytes).unwrap(), record(start));
            assert_eq!((found.range, found.filled, found.metrics), (expected.range, expected.filled, expected.metrics));
            assert_eq!(found.outputs, expected.outputs);
        }
        assert!(bytes.is_empty());
    }

    #[test]
    fn what_is_cut_off_or_damaged_is_no_record() {
        let good = record(0).encode().unwrap();
        for len in 0..good.len() {
            assert_eq!(whole(&good[..len]), None, "{len} bytes");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(whole(&bad), None, "byte {at}");
        }
        assert_eq!(whole(&good), Some(good.len()));
    }
}
