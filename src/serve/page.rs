//! The page that shows a server: the graph, where the shards are, and what is answered at present. It loads nothing from elsewhere.

use crate::plan::Manifest;
use serde_json::{Value, json};

/// The page, which asks for all that it shows.
pub(super) const PAGE: &str = include_str!("page.html");

/// What does not change: the model, and its tables with the places of their shards on `servers`, or all at `place`.
pub fn about((name, version): (&str, &str), source: &str, manifest: Option<&Manifest>, servers: &[String], place: &str) -> Value {
    let placement = manifest.filter(|_| !servers.is_empty()).map(|m| m.placement(servers.len()));
    let places = |shard: u32| -> Vec<&str> {
        match &placement {
            Some(p) => p.holders(p.group(shard)).filter_map(|s| servers.get(s)).map(String::as_str).collect(),
            None => vec![place],
        }
    };
    let tables: Vec<Value> = manifest
        .iter()
        .flat_map(|m| &m.tables)
        .map(|t| {
            let pieces: Vec<Value> = t
                .pieces
                .iter()
                .map(|p| json!({ "file": p.file, "shard": p.shard, "rows": p.rows, "bytes": p.bytes, "places": places(p.shard) }))
                .collect();
            let dims: Vec<String> = t.row_shape.iter().map(ToString::to_string).collect();
            json!({
                "name": t.name,
                "rows": t.rows,
                "row": format!("{}[{}]", t.dtype, dims.join(",")),
                "sharding": t.sharding.name(),
                "keyed": t.keyed,
                "pieces": pieces,
            })
        })
        .collect();
    json!({ "name": name, "version": version, "source": source, "servers": servers, "tables": tables })
}
