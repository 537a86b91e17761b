//! The versions under a name: which are whole, which is current, and the removal of those that are not wanted any more.

use super::keys::{BUCKETS, Keys};
use super::link::Link;
use crate::plan::Manifest;
use crate::store::{StoreError, layout};
use redis::{Pipeline, Value, cmd};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// The layout of keys that this build writes and reads.
const FORMAT: u32 = 1;

/// What a version holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    format: u32,
    buckets: usize,
    tables: Vec<Held>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    name: String,
    rows: u64,
    /// Bytes of a row as it is kept.
    row_bytes: usize,
}

impl Marker {
    /// Of a manifest whose tables are whole.
    pub(super) fn of(manifest: &Manifest) -> Result<Self, StoreError> {
        let held = |t: &crate::plan::TableEntry| {
            let row_bytes = layout::row_width(t, &layout::piece_widths(t)?);
            Ok(Held { name: t.name.clone(), rows: t.rows, row_bytes })
        };
        let tables = manifest.tables.iter().map(held).collect::<Result<_, StoreError>>()?;
        Ok(Self { format: FORMAT, buckets: BUCKETS, tables })
    }
}

/// What it takes to remove a version.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Version {
    /// When its filling began, in milliseconds since 1970.
    started: u64,
    tables: usize,
    format: u32,
}

/// The text of a value, if there is one.
fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn json<T: DeserializeOwned>(link: &Link, key: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| link.corrupt(&format!("key {key} is not what graphtool wrote: {e}")))
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// What the version says of itself, if it is whole.
pub(super) async fn complete(link: &Link, keys: &Keys) -> Result<Option<Marker>, StoreError> {
    let key = keys.complete();
    let found = text(link.command(&key, cmd("GET").arg(&key)).await?);
    found.map(|t| json(link, &key, &t)).transpose()
}

/// Says that the version is whole, then that it is current.
pub(super) async fn finish(link: &Link, keys: &Keys, marker: &Marker) -> Result<(), StoreError> {
    let (complete, current) = (keys.complete(), keys.current());
    link.command(&complete, cmd("SET").arg(&complete).arg(to_json(marker))).await?;
    link.command(&current, cmd("SET").arg(&current).arg(keys.plan())).await?;
    let progress = keys.progress();
    link.command(&progress, cmd("DEL").arg(&progress)).await?;
    Ok(())
}

/// The plan id of the version that was filled last.
pub(super) async fn current(link: &Link, keys: &Keys) -> Result<Option<String>, StoreError> {
    let key = keys.current();
    Ok(text(link.command(&key, cmd("GET").arg(&key)).await?))
}

/// Notes a version before its first key is written, so that it can be removed whatever happens.
pub(super) async fn note(link: &Link, keys: &Keys, tables: usize) -> Result<(), StoreError> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64);
    let (key, value) = (keys.versions(), to_json(&Version { started, tables, format: FORMAT }));
    link.command(&key, cmd("HSETNX").arg(&key).arg(keys.plan()).arg(value)).await?;
    Ok(())
}

/// Pairs of a hash.
pub(super) async fn pairs(link: &Link, key: &str) -> Result<Vec<(String, String)>, StoreError> {
    let pair = |(k, v)| Some((text(k)?, text(v)?));
    Ok(match link.command(key, cmd("HGETALL").arg(key)).await? {
        Value::Map(pairs) => pairs.into_iter().filter_map(pair).collect(),
        _ => Vec::new(),
    })
}

/// Whether the version of a manifest is there as a whole.
///
/// # Errors
/// Says what is there in its place and the line that fills it.
pub(super) async fn check(link: &Link, keys: &Keys, manifest: &Manifest, hint: &str) -> Result<(), StoreError> {
    let plan = keys.plan();
    let Some(found) = complete(link, keys).await? else {
        let why = match (pairs(link, &keys.progress()).await?.is_empty(), current(link, keys).await?) {
            (false, _) => format!("version {plan} is filled in part only"),
            (true, Some(other)) => format!("version {plan} is not there, {other} is current"),
            (true, None) => format!("version {plan} is not there, nor any other"),
        };
        return Err(link.refused(format!("{why}; fill it by: {hint}")));
    };
    let expected = Marker::of(manifest)?;
    if found != expected {
        let why = format!("version {plan} holds {}, expected {}", to_json(&found), to_json(&expected));
        return Err(link.refused(format!("{why}; fill it again by: {hint}")));
    }
    Ok(())
}

/// Removes all versions but this one and the `keep` before it; gives their plan ids.
pub(super) async fn remove_older(link: &Link, keys: &Keys, keep: usize) -> Result<Vec<String>, StoreError> {
    let list = keys.versions();
    let mut others = Vec::new();
    for (plan, text) in pairs(link, &list).await? {
        if plan != keys.plan() {
            others.push((json::<Version>(link, &list, &text)?, plan));
        }
    }
    others.sort_by(|a, b| (b.0.started, &b.1).cmp(&(a.0.started, &a.1)));
    let mut removed = Vec::new();
    for (version, plan) in others.into_iter().skip(keep) {
        let of = keys.of(&plan);
        // First what lets workers open it.
        for key in [of.complete(), of.progress()] {
            link.command(&key, cmd("DEL").arg(&key)).await?;
        }
        let unlink = |b: usize| {
            let mut pipeline = Pipeline::new();
            (0..version.tables).for_each(|t| _ = pipeline.cmd("UNLINK").arg(of.rows(b, t)));
            (of.slot(b), pipeline)
        };
        if version.tables > 0 {
            link.ask_all(&(0..BUCKETS).map(unlink).collect::<Vec<_>>()).await?;
        }
        link.command(&list, cmd("HDEL").arg(&list).arg(&plan)).await?;
        removed.push(plan);
    }
    Ok(removed)
}
