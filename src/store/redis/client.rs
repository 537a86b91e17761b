//! Lookups in a Redis store: one pipeline for each bucket in which there are ids, all under way at once.

use super::keys::{BUCKETS, Keys, bucket, whole};
use super::link::Link;
use super::url::RedisUrl;
use super::versions;
use crate::plan::Manifest;
use crate::store::request::{Part, Peer, Reply, ReplyFuture, Request, id_blocks, row_blocks};
use crate::store::sharded::Sharded;
use crate::store::{Dedup, Store, StoreError};
use crate::wire::Pooled;
use redis::{Cmd, Pipeline, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How to reach a Redis store.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// How long to wait for servers that are not there yet.
    pub connect_timeout: Duration,
    /// The deadline of a lookup; until then it is repeated, for servers that are lost have replicas that take their place.
    pub rpc_timeout: Duration,
    /// Whether ids are de-duplicated before they are sent.
    pub dedup: Dedup,
    /// The line that fills the store, for errors.
    pub hint: String,
}

impl Default for RedisOptions {
    fn default() -> Self {
        let (connect_timeout, rpc_timeout) = (Duration::from_secs(60), Duration::from_secs(30));
        Self { connect_timeout, rpc_timeout, dedup: Dedup::Auto, hint: "graphtool load DIR --store URL".into() }
    }
}

/// A store over the version of a manifest that is in Redis. Lookups run on the runtime that calls this.
///
/// # Errors
/// Servers that are not there within the time, or refuse; a version that is not there as a whole.
pub async fn connect_redis(manifest: &Manifest, url: &RedisUrl, options: &RedisOptions) -> Result<Arc<dyn Store>, StoreError> {
    let manifest = whole(manifest);
    let link = Link::connect(url, Instant::now() + options.connect_timeout, options.rpc_timeout).await?;
    let keys = Keys::new(&url.name, &manifest.plan_id);
    versions::check(&link, &keys, &manifest, &options.hint).await?;
    let table = |t: &crate::plan::TableEntry| Fields { name: t.name.clone(), keyed: t.keyed };
    let tables = manifest.tables.iter().map(table).collect();
    let rows: Arc<dyn Peer> = Arc::new(Rows { link, keys, tables, hint: options.hint.clone() });
    Ok(Arc::new(Sharded::new(&manifest, vec![rows], options.dedup)?))
}

#[derive(Debug)]
struct Fields {
    name: String,
    keyed: bool,
}

/// The rows of a version.
#[derive(Debug)]
struct Rows {
    link: Link,
    keys: Keys,
    tables: Vec<Fields>,
    hint: String,
}

/// The places of a part's ids, bucket by bucket, and where each bucket begins.
struct Sorted {
    places: Vec<u32>,
    starts: Vec<u32>,
}

impl Sorted {
    fn of(buckets: &[u8]) -> Self {
        let mut starts = vec![0u32; BUCKETS + 1];
        buckets.iter().for_each(|&b| starts[usize::from(b) + 1] += 1);
        (0..BUCKETS).for_each(|b| starts[b + 1] += starts[b]);
        let (mut next, mut places) = (starts.clone(), vec![0; buckets.len()]);
        for (at, &b) in (0u32..).zip(buckets) {
            places[next[usize::from(b)] as usize] = at;
            next[usize::from(b)] += 1;
        }
        Self { places, starts }
    }

    fn bucket(&self, b: usize) -> &[u32] {
        &self.places[self.starts[b] as usize..self.starts[b + 1] as usize]
    }
}

/// An id of a request.
fn id(p: &Part, ids: &[u8], at: u32) -> u64 {
    let from = at as usize * p.id_bytes();
    ids[from..from + p.id_bytes()].iter().rev().fold(0, |id, &b| id << 8 | u64::from(b))
}

impl Rows {
    async fn answer(&self, request: &Request) -> Result<Reply, StoreError> {
        let sizes = id_blocks(&request.parts).zip(row_blocks(&request.parts)).filter(|s| s.0.1 == request.ids.len());
        let Some(((ids_at, _), (rows_at, len))) = sizes else { return Err(self.link.corrupt("a request without a size")) };
        let ids: Vec<&[u8]> =
            request.parts.iter().zip(&ids_at).map(|(p, &at)| &request.ids[at..at + p.count as usize * p.id_bytes()]).collect();
        let sort = |(p, ids): (&Part, &&[u8])| {
            let keyed = self.tables[p.table as usize].keyed;
            Sorted::of(&(0..p.count).map(|at| bucket(keyed, id(p, ids, at)) as u8).collect::<Vec<_>>())
        };
        let sorted: Vec<Sorted> = request.parts.iter().zip(&ids).map(sort).collect();
        let (parts, mut asked, mut pipelines) = (&request.parts, Vec::new(), Vec::new());
        for b in (0..BUCKETS).filter(|&b| sorted.iter().any(|s| !s.bucket(b).is_empty())) {
            let mut pipeline = Pipeline::with_capacity(parts.len());
            for ((p, s), ids) in parts.iter().zip(&sorted).zip(&ids).filter(|((_, s), _)| !s.bucket(b).is_empty()) {
                pipeline.add_command(self.fetch_some(b, p, ids, s.bucket(b)));
            }
            asked.push(b);
            pipelines.push((self.keys.slot(b), pipeline));
        }
        let answers = self.link.ask_all(&pipelines).await?;
        let (mut rows, mut absent) = (Pooled::take(len), Vec::new());
        // The gaps between blocks, in a buffer that was used before.
        let mut end = 0;
        for (p, &at) in parts.iter().zip(&rows_at) {
            rows[end..at].fill(0);
            end = at + p.count as usize * p.width as usize;
        }
        for (b, answers) in asked.into_iter().zip(answers) {
            let mut answers = answers.into_iter();
            for (i, p) in parts.iter().enumerate().filter(|(i, _)| !sorted[*i].bucket(b).is_empty()) {
                let block = &mut rows[rows_at[i]..rows_at[i] + p.count as usize * p.width as usize];
                let table = &self.tables[p.table as usize];
                let Some(missing) = self.put(p, sorted[i].bucket(b), answers.next().unwrap_or_default(), block)? else {
                    return Err(self.lost(&table.name, "a bucket of its keys").await);
                };
                if let Some(&at) = missing.first().filter(|_| !table.keyed) {
                    return Err(self.lost(&table.name, &format!("row {}", id(p, ids[i], at))).await);
                }
                absent.extend(missing.into_iter().map(|at| (i as u32, at)));
            }
        }
        absent.sort_unstable();
        Ok(Reply { absent, rows, ..Reply::default() })
    }

    /// The command for the ids of one part that are in one bucket.
    fn fetch_some(&self, b: usize, p: &Part, ids: &[u8], places: &[u32]) -> Cmd {
        let key = self.keys.rows(b, p.table as usize);
        let mut cmd = Cmd::with_capacity(places.len() + 3, places.len() * p.id_bytes() + key.len() + 8);
        cmd.arg("HMGET").arg(key);
        for &at in places {
            let from = at as usize * p.id_bytes();
            cmd.arg(&ids[from..from + p.id_bytes()]);
        }
        if self.tables[p.table as usize].keyed {
            cmd.arg("");
        }
        cmd
    }

    /// Puts rows in their places; gives the places of those that were not there, whose rows are zeros; `None` if a bucket of keys is
    /// not there as a whole.
    fn put(&self, p: &Part, places: &[u32], answer: Value, block: &mut [u8]) -> Result<Option<Vec<u32>>, StoreError> {
        let (table, width) = (&self.tables[p.table as usize], p.width as usize);
        let fail = |what: String| Err(self.link.corrupt(&format!("table \"{}\": {what}", table.name)));
        let Value::Array(mut rows) = answer else { return fail("an answer that is no list of rows".into()) };
        if table.keyed && !matches!(rows.pop(), Some(Value::BulkString(_))) {
            return Ok(None);
        }
        if rows.len() != places.len() {
            return fail(format!("expected {} rows, found {}", places.len(), rows.len()));
        }
        let mut missing = Vec::new();
        for (&at, row) in places.iter().zip(&rows) {
            let to = &mut block[at as usize * width..(at as usize + 1) * width];
            match row {
                Value::BulkString(row) if row.len() == width => to.copy_from_slice(row),
                Value::BulkString(row) => return fail(format!("expected rows of {width} bytes, found {}", row.len())),
                _ => {
                    to.fill(0);
                    missing.push(at);
                }
            }
        }
        Ok(Some(missing))
    }

    /// Why a row is not there that must be.
    async fn lost(&self, table: &str, row: &str) -> StoreError {
        let plan = self.keys.plan();
        let why = match versions::complete(&self.link, &self.keys).await {
            Err(e) => return e,
            Ok(Some(_)) => "is lost, or was evicted".to_owned(),
            Ok(None) => match versions::current(&self.link, &self.keys).await {
                Ok(Some(other)) if other != plan => format!("is gone: version {plan} was removed, {other} is current"),
                _ => format!("is gone with version {plan}"),
            },
        };
        self.link.corrupt(&format!("table \"{table}\": {row} {why}; fill it again by: {}", self.hint))
    }
}

impl Peer for Rows {
    fn fetch(&self, request: Request) -> ReplyFuture<'_> {
        Box::pin(async move { self.answer(&request).await })
    }

    fn retries(&self) -> u64 {
        self.link.retries()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_sorted_by_bucket_and_keep_their_order_within() {
        let sorted = Sorted::of(&[3, 0, 3, 255, 0, 3]);
        assert_eq!((sorted.bucket(0), sorted.bucket(3), sorted.bucket(255)), (&[1, 4][..], &[0, 2, 5][..], &[3][..]));
        assert!(sorted.bucket(1).is_empty());
    }
}
