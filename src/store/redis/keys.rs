//! The keys of a version, and the bucket of a row.

use crate::plan::{Manifest, TableEntry};

/// Buckets of every version.
pub(super) const BUCKETS: usize = 256;
/// Slots of a cluster.
const SLOTS: usize = 16384;

/// The keys of one version under a name.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    name: String,
    plan: String,
    /// The tag of each bucket, and its slot.
    tags: Vec<(String, u16)>,
}

impl Keys {
    pub(super) fn new(name: &str, plan: &str) -> Self {
        Self { name: name.into(), plan: plan.into(), tags: (0..BUCKETS).map(tag).collect() }
    }

    /// Those of another version.
    pub(super) fn of(&self, plan: &str) -> Self {
        Self { plan: plan.into(), ..self.clone() }
    }

    /// The rows of a table in a bucket.
    pub(super) fn rows(&self, bucket: usize, table: usize) -> String {
        format!("{}:{}:{{{}}}:{table}", self.name, self.plan, self.tags[bucket].0)
    }

    /// The slot of a bucket.
    pub(super) fn slot(&self, bucket: usize) -> u16 {
        self.tags[bucket].1
    }

    pub(super) fn plan(&self) -> &str {
        &self.plan
    }

    pub(super) fn progress(&self) -> String {
        format!("{}:{}:progress", self.name, self.plan)
    }

    pub(super) fn complete(&self) -> String {
        format!("{}:{}:complete", self.name, self.plan)
    }

    pub(super) fn current(&self) -> String {
        format!("{}:current", self.name)
    }

    pub(super) fn versions(&self) -> String {
        format!("{}:versions", self.name)
    }
}

/// The slot of a key: CRC16 (XMODEM) of it, or of what stands within its first braces.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag).filter(|t| !t.is_empty());
    let crc = tag.unwrap_or(key).bytes().fold(0u16, |mut crc, byte| {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x1021 } else { crc << 1 };
        }
        crc
    });
    crc % SLOTS as u16
}

/// The first tag of a bucket whose slot is in the bucket's share of them: nodes hold ranges of slots, so each gets its share of buckets.
fn tag(bucket: usize) -> (String, u16) {
    let mut n = 0u32;
    loop {
        let tag = format!("{bucket:x}.{n:x}");
        let slot = slot(&tag);
        if usize::from(slot) / (SLOTS / BUCKETS) == bucket {
            return (tag, slot);
        }
        n += 1;
    }
}

/// The bucket of an id, or of a key.
pub(super) fn bucket(keyed: bool, id: u64) -> usize {
    let spread = if keyed { id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 } else { id };
    (spread % BUCKETS as u64) as usize
}

/// Bytes of the fields of a table.
pub(super) fn field_bytes(t: &TableEntry) -> usize {
    if t.keyed || t.rows > 1 << 32 { 8 } else { 4 }
}

/// The same tables, each in one piece: rows are kept whole, however the deployment cuts them.
pub(super) fn whole(manifest: &Manifest) -> Manifest {
    let mut whole = manifest.clone();
    (whole.shards, whole.replicas) = (1, 1);
    for t in &mut whole.tables {
        let (rows, columns) = (t.rows, t.columns());
        t.sharding = crate::plan::Sharding::Table;
        t.pieces.truncate(1);
        t.pieces.iter_mut().for_each(|p| (p.shard, p.rows, p.columns, p.first_row, p.first_column) = (0, rows, columns, 0, 0));
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // By CLUSTER KEYSLOT.
        assert_eq!((slot("foo"), slot("somekey"), slot("foo{hash_tag}"), slot("123456789")), (12182, 11058, 2515, 0x31c3));
        assert_eq!(slot("a{}b"), slot("a{}b"));
    }

    #[test]
    fn buckets_are_spread_evenly_over_the_slots() {
        let keys = Keys::new("n", "p");
        for b in 0..BUCKETS {
            assert_eq!(slot(&keys.rows(b, 7)), keys.slot(b));
            assert_eq!(usize::from(keys.slot(b)) / 64, b);
        }
        assert_eq!(keys.rows(0, 7), keys.of("p").rows(0, 7));
        let mut counts = [0; BUCKETS];
        (0..100_000u64).for_each(|key| counts[bucket(true, key << 20)] += 1);
        assert!(counts.iter().all(|&n| (300..500).contains(&n)), "{counts:?}");
    }
}
