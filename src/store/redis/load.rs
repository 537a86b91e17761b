//! Filling a version: rows are read in their order, sent in batches, and what came is noted, so that a filling that was stopped
//! goes on behind it. At the end the rows of each bucket are counted; what a failover lost meanwhile is sent again.

use super::keys::{BUCKETS, Keys, bucket, field_bytes, whole};
use super::link::Link;
use super::url::RedisUrl;
use super::versions::{self, Marker};
use crate::plan::{Manifest, TableEntry};
use crate::store::rows::Content;
use crate::store::{RowSource, StoreError, TableRows, layout, read_manifest};
use redis::{Cmd, Pipeline, Value, cmd};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How to fill a Redis store.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// How long to wait for servers that are not there yet.
    pub connect_timeout: Duration,
    /// The time that one batch may take, failovers included.
    pub rpc_timeout: Duration,
    /// Versions before this one that stay.
    pub keep_versions: usize,
}

/// What a filling did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The version.
    pub plan_id: String,
    /// Its tables.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// Bytes of these rows.
    pub bytes: u64,
    /// Rows that were there and were not sent again.
    pub before: u64,
    /// Plan ids of the versions that were removed.
    pub removed: Vec<String>,
}

/// Bytes of rows of a batch; two are in memory.
const BATCH: usize = 4 << 20;

/// Rows of one table on their way.
struct Batch {
    table: usize,
    /// Fields and rows, by bucket.
    buckets: Vec<Vec<u8>>,
    /// Rows of the table that are sent when this is, and their content.
    upto: (u64, String),
    rows: u64,
}

/// Rows by table and bucket.
type Counts = Vec<[u64; BUCKETS]>;
/// Which rows to read: those behind the first of each table, whose content must be that; or all of some buckets.
#[derive(Clone)]
enum Wanted {
    Behind(Vec<(u64, String)>),
    Buckets(Vec<[bool; BUCKETS]>),
}

/// Fills the version of the deployment in `dir`, makes it current, and removes older ones. `progress` hears how many rows are there.
///
/// # Errors
/// Servers that are not there, refuse, or have no memory; shards that are not what the manifest says.
pub async fn load_redis(dir: &Path, url: &RedisUrl, options: &LoadOptions, progress: &(dyn Fn(u64) + Sync)) -> Result<Loaded, StoreError> {
    let manifest = read_manifest(dir)?;
    let marker = Marker::of(&whole(&manifest))?;
    let link = Link::connect(url, Instant::now() + options.connect_timeout, options.rpc_timeout).await?;
    let keys = Keys::new(&url.name, &manifest.plan_id);
    let load = Load { dir: dir.into(), manifest: Arc::new(manifest), link, keys, progress };
    let tables = load.manifest.tables.len();
    versions::note(&load.link, &load.keys, tables).await?;
    let held = versions::complete(&load.link, &load.keys).await?.as_ref() == Some(&marker);
    let rows: u64 = load.manifest.tables.iter().map(|t| t.rows).sum();
    let sent = if held { load.repair(load.counts()?).await? } else { load.fill().await? };
    versions::finish(&load.link, &load.keys, &marker).await?;
    let removed = versions::remove_older(&load.link, &load.keys, options.keep_versions).await?;
    let (mut bytes, mut empty) = (0, 0);
    for t in &load.manifest.tables {
        let width = width(t)? as u64;
        bytes += width * t.rows;
        empty += if width == 0 { t.rows } else { 0 };
    }
    Ok(Loaded { plan_id: load.manifest.plan_id.clone(), tables, rows, bytes, before: rows.saturating_sub(sent + empty), removed })
}

/// Bytes of a row as it is kept.
fn width(t: &TableEntry) -> Result<usize, StoreError> {
    Ok(t.stored_bits(t.columns()) as usize / 8).and_then(|w| layout::piece_widths(t).map(|_| w))
}

struct Load<'a> {
    dir: PathBuf,
    manifest: Arc<Manifest>,
    link: Link,
    keys: Keys,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Load<'_> {
    /// Sends the rows that are not there yet; gives their number.
    async fn fill(&self) -> Result<u64, StoreError> {
        let mut behind = vec![(0, String::new()); self.manifest.tables.len()];
        for (table, done) in versions::pairs(&self.link, &self.keys.progress()).await? {
            let done = done.split_once(' ').and_then(|(rows, content)| Some((rows.parse().ok()?, content.to_owned())));
            if let Some((to, done)) = table.parse().ok().and_then(|t: usize| behind.get_mut(t)).zip(done) {
                *to = done;
            }
        }
        let (counts, sent) = match self.send(Wanted::Behind(behind)).await {
            // What came of these shards is not to be built upon.
            Err(e @ StoreError::Corrupt(_)) => {
                let key = self.keys.progress();
                self.link.command(&key, cmd("DEL").arg(&key)).await?;
                return Err(e);
            }
            done => done?,
        };
        for (t, of_table) in counts.iter().enumerate().filter(|(t, _)| self.manifest.tables[*t].keyed) {
            let number = |b: usize| {
                let mut pipeline = Pipeline::new();
                pipeline.cmd("HSET").arg(self.keys.rows(b, t)).arg("").arg(of_table[b]);
                (self.keys.slot(b), pipeline)
            };
            self.link.ask_all(&(0..BUCKETS).map(number).collect::<Vec<_>>()).await?;
        }
        Ok(sent + self.repair(counts).await?)
    }

    /// Sends those buckets again whose number of rows is not what it must be; gives the number of rows sent.
    async fn repair(&self, counts: Counts) -> Result<u64, StoreError> {
        let mut sent = 0;
        for attempt in 0.. {
            let wrong = self.wrong(&counts).await?;
            let first = wrong.iter().position(|t| t.iter().any(|w| *w));
            let Some(first) = first else { break };
            if attempt == 3 {
                let name = &self.manifest.tables[first].name;
                return Err(self
                    .link
                    .corrupt(&format!("table \"{name}\": rows that were sent are not there, or others are; are keys evicted?")));
            }
            for (t, wrong) in wrong.iter().enumerate().filter(|(t, _)| self.manifest.tables[*t].keyed) {
                for b in (0..BUCKETS).filter(|&b| wrong[b]) {
                    let key = self.keys.rows(b, t);
                    self.link.command(&key, cmd("HSET").arg(&key).arg("").arg(counts[t][b])).await?;
                }
            }
            sent += self.send(Wanted::Buckets(wrong)).await?.1;
        }
        Ok(sent)
    }

    /// The buckets that do not hold as many rows as they must.
    async fn wrong(&self, counts: &Counts) -> Result<Vec<[bool; BUCKETS]>, StoreError> {
        let tables: Vec<usize> = (0..counts.len()).filter(|&t| width(&self.manifest.tables[t]).is_ok_and(|w| w > 0)).collect();
        let lengths = |b: usize| {
            let mut pipeline = Pipeline::new();
            tables.iter().for_each(|&t| _ = pipeline.cmd("HLEN").arg(self.keys.rows(b, t)));
            (self.keys.slot(b), pipeline)
        };
        let mut wrong = vec![[false; BUCKETS]; counts.len()];
        if tables.is_empty() {
            return Ok(wrong);
        }
        let found = self.link.ask_all(&(0..BUCKETS).map(lengths).collect::<Vec<_>>()).await?;
        for (b, found) in found.into_iter().enumerate() {
            for (&t, found) in tables.iter().zip(found) {
                let expected = counts[t][b] + u64::from(self.manifest.tables[t].keyed);
                wrong[t][b] = found != Value::Int(expected as i64);
            }
        }
        Ok(wrong)
    }

    /// Rows of each bucket, without reading them.
    fn counts(&self) -> Result<Counts, StoreError> {
        let mut counts = vec![[0; BUCKETS]; self.manifest.tables.len()];
        for (t, counts) in self.manifest.tables.iter().zip(&mut counts) {
            let count = |id| {
                counts[bucket(t.keyed, id)] += 1;
                Ok(())
            };
            TableRows::open(&self.dir, t)?.ids(&mut { count }).map_err(|e| read_error(t, &e))?;
        }
        Ok(counts)
    }

    /// Sends what is wanted; gives the rows of all buckets, and how many were sent.
    async fn send(&self, wanted: Wanted) -> Result<(Counts, u64), StoreError> {
        let (to, mut batches) = mpsc::channel(1);
        let note = matches!(wanted, Wanted::Behind(_));
        let mut there: u64 = match &wanted {
            Wanted::Behind(behind) => behind.iter().map(|b| b.0).sum(),
            Wanted::Buckets(_) => 0,
        };
        let (dir, manifest) = (self.dir.clone(), self.manifest.clone());
        let reader = tokio::task::spawn_blocking(move || read(&dir, &manifest, wanted, &to));
        let mut sent = 0;
        while let Some(batch) = batches.recv().await {
            self.flush(&batch).await?;
            if note {
                let (key, value) = (self.keys.progress(), format!("{} {}", batch.upto.0, batch.upto.1));
                self.link.command(&key, cmd("HSET").arg(&key).arg(batch.table).arg(value)).await?;
                there += batch.rows;
                (self.progress)(there);
            }
            sent += batch.rows;
        }
        let counts = reader.await.map_err(|e| StoreError::Corrupt(e.to_string()))??;
        Ok((counts, sent))
    }

    async fn flush(&self, batch: &Batch) -> Result<(), StoreError> {
        let t = &self.manifest.tables[batch.table];
        let (field, size) = (field_bytes(t), field_bytes(t) + width(t)?);
        let put = |b: usize| {
            let (key, rows) = (self.keys.rows(b, batch.table), &batch.buckets[b]);
            let mut cmd = Cmd::with_capacity(2 + rows.len() / size * 2, rows.len() + key.len() + 4);
            cmd.arg("HSET").arg(key);
            rows.chunks_exact(size).for_each(|r| _ = cmd.arg(&r[..field]).arg(&r[field..]));
            let mut pipeline = Pipeline::with_capacity(1);
            pipeline.add_command(cmd);
            (self.keys.slot(b), pipeline)
        };
        let filled = (0..BUCKETS).filter(|&b| !batch.buckets[b].is_empty());
        self.link.ask_all(&filled.map(put).collect::<Vec<_>>()).await?;
        Ok(())
    }
}

fn read_error(t: &TableEntry, e: &io::Error) -> StoreError {
    StoreError::Corrupt(format!("table \"{}\": {e}", t.name))
}

/// Reads the rows that are wanted, in batches; gives the rows of all buckets.
fn read(dir: &Path, manifest: &Manifest, mut wanted: Wanted, to: &mpsc::Sender<Batch>) -> Result<Counts, StoreError> {
    let mut counts = Counts::new();
    for (table, t) in manifest.tables.iter().enumerate() {
        let mut of_table = [0; BUCKETS];
        let rows = TableRows::open(dir, t)?;
        if width(t)? > 0 && !read_table(&rows, (table, t), &wanted, to, &mut of_table)? {
            tracing::warn!("table \"{}\": what came of it before is not what the shards hold now; it is sent again", t.name);
            if let Wanted::Behind(behind) = &mut wanted {
                behind[table] = (0, String::new());
            }
            of_table = [0; BUCKETS];
            read_table(&rows, (table, t), &wanted, to, &mut of_table)?;
        }
        counts.push(of_table);
    }
    Ok(counts)
}

/// Reads a table; false if the rows that came before are not those that it holds.
fn read_table(
    rows: &TableRows,
    (table, t): (usize, &TableEntry),
    wanted: &Wanted,
    to: &mpsc::Sender<Batch>,
    counts: &mut [u64; BUCKETS],
) -> Result<bool, StoreError> {
    let field = field_bytes(t);
    let new = || Batch { table, buckets: vec![Vec::new(); BUCKETS], upto: (0, String::new()), rows: 0 };
    let (mut batch, mut bytes, mut seen, mut content, mut same) = (new(), 0, 0u64, Content::default(), true);
    let mut visit = |id: u64, row: &[u8]| {
        let b = bucket(t.keyed, id);
        let send = match wanted {
            Wanted::Behind(behind) if behind[table].0 == seen && seen > 0 && content.text() != behind[table].1 => {
                same = false;
                return Err(io::Error::other("other rows"));
            }
            Wanted::Behind(behind) => seen >= behind[table].0,
            Wanted::Buckets(buckets) => buckets[table][b],
        };
        content.add(id, row);
        counts[b] += 1;
        seen += 1;
        if send {
            batch.buckets[b].extend_from_slice(&id.to_le_bytes()[..field]);
            batch.buckets[b].extend_from_slice(row);
            batch.rows += 1;
            bytes += field + row.len();
        }
        if bytes >= BATCH {
            bytes = 0;
            let mut full = std::mem::replace(&mut batch, new());
            full.upto = (seen, content.text());
            return to.blocking_send(full).map_err(|_| io::Error::other("nobody takes its rows"));
        }
        Ok(())
    };
    match rows.visit(&mut visit) {
        Err(_) if !same => return Ok(false),
        done => done.map_err(|e| read_error(t, &e))?,
    }
    let text = content.text();
    if !t.content.is_empty() && text != t.content {
        return Err(StoreError::Corrupt(format!("table \"{}\": expected content {}, found {text}", t.name, t.content)));
    }
    if let Wanted::Behind(behind) = wanted
        && behind[table].0 >= seen
        && seen > 0
        && behind[table] != (seen, text.clone())
    {
        return Ok(false);
    }
    if batch.rows > 0 {
        batch.upto = (seen, text);
        let _ = to.blocking_send(batch);
    }
    Ok(true)
}
