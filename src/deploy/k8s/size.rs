//! How much memory pods need: pservers by what the placement gives them, workers by their graph.

use crate::ir::{Kind, Model};
use crate::passes::costs::costs;
use crate::plan::Manifest;
use std::collections::BTreeMap;

/// Memory of a process beside its data: code, threads, buffers.
const OVERHEAD: u64 = 256 << 20;

/// That so many servers can share the shards as the manifest wants it.
///
/// # Errors
/// Too few for its replicas, more than there are shards.
pub fn servers_fit(manifest: &Manifest, servers: usize) -> Result<(), String> {
    let (shards, replicas) = (manifest.shards as usize, manifest.replicas as usize);
    if servers < replicas {
        return Err(format!(
            "{servers} pservers for {replicas} replicas of each shard: expected {replicas} or more; or reshard with --replicas {servers}"
        ));
    }
    if servers > shards {
        return Err(format!("{servers} pservers for {shards} shards: rewrite with --shards {servers} or more"));
    }
    Ok(())
}

/// Memory of the pserver that has most: its shards, which stay in memory, and the rows that are under way.
pub fn server_bytes(manifest: &Manifest, servers: usize, in_flight: u64) -> u64 {
    let (placement, shards) = (manifest.placement(servers), manifest.shard_bytes());
    let held = |server| {
        let groups = (0..servers).filter(|&g| placement.holds(server, g));
        groups.flat_map(|g| placement.shards(g)).fold(0u64, |sum, s| sum.saturating_add(shards[s as usize]))
    };
    let most = (0..servers).map(held).max().unwrap_or(0);
    most.saturating_add(in_flight).saturating_add(OVERHEAD)
}

/// Memory of a worker: the parameters of its graph, laid out anew for products, all values of a batch as if none were freed,
/// and the rows of so many batches ahead; and the nodes that are not counted, for their dims are not known.
pub fn worker_bytes(model: &Model, batch: usize, ahead: usize) -> (u64, usize) {
    let params = model.graphs().into_iter().flat_map(|g| g.params().iter().map(move |&id| &g.node(id).kind));
    let dense = params.fold(0u64, |sum, kind| match kind {
        Kind::Param(c) | Kind::Input(Some(c)) => {
            sum.saturating_add(c.tensor.dtype().byte_len(c.tensor.shape()).unwrap_or(usize::MAX) as u64)
        }
        _ => sum,
    });
    let costs = costs(model, &BTreeMap::new(), Some(batch));
    let unknown = costs.nodes.iter().filter(|n| n.bytes.is_none()).count();
    let values = costs.nodes.iter().fold(0u64, |sum, n| {
        let times = if n.op.contains("RemoteLookup") { 1 + ahead as u64 } else { 1 };
        sum.saturating_add(n.bytes.unwrap_or(0).saturating_mul(times))
    });
    (OVERHEAD.saturating_add(dense).saturating_add(values), unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::parse_model;

    /// Three shards of 100, 60 and 50 bytes.
    fn manifest(replicas: u32) -> Manifest {
        let piece = |shard: usize, bytes: u64| serde_json::json!({"file": format!("shards/{shard}"), "shard": shard, "rows": 1, "columns": 1, "bytes": bytes, "checksum": ""});
        let pieces = [piece(0, 100), piece(1, 60), piece(2, 50)];
        let table = serde_json::json!({"name": "t", "rows": 3, "row_shape": [1], "dtype": "float32", "sharding": "row", "pieces": pieces});
        let json = serde_json::json!({"format_version": 1, "plan_id": "p", "fingerprint": "f", "shards": 3, "replicas": replicas,
            "tables": [table]});
        Manifest::parse(&json.to_string()).unwrap()
    }

    #[test]
    fn a_pserver_needs_what_the_fullest_of_them_holds() {
        let held = |replicas, servers| server_bytes(&manifest(replicas), servers, 0) - OVERHEAD;
        assert_eq!(held(1, 1), 210);
        assert_eq!(held(1, 2), 110);
        assert_eq!(held(1, 3), 100);
        // Server 0 holds the groups 0 and 2, server 1 the groups 1 and 0.
        assert_eq!(held(2, 3), 160);
        assert_eq!(held(2, 2), 210);
        assert_eq!(server_bytes(&manifest(1), 1, 5), OVERHEAD + 215);
    }

    #[test]
    fn servers_are_as_many_as_replicas_at_least_and_as_shards_at_most() {
        let fit = |replicas, servers| servers_fit(&manifest(replicas), servers);
        assert_eq!((fit(1, 1), fit(1, 3), fit(2, 2)), (Ok(()), Ok(()), Ok(())));
        let error = "1 pservers for 2 replicas of each shard: expected 2 or more; or reshard with --replicas 1";
        assert_eq!(fit(2, 1).unwrap_err(), error);
        assert_eq!(fit(1, 4).unwrap_err(), "4 pservers for 3 shards: rewrite with --shards 4 or more");
    }

    #[test]
    fn a_worker_needs_its_parameters_its_values_and_rows_ahead() {
        let text = "graph g(ids: int64[b]) -> (y: float32[b,2]) {
  param w: float32[2,2] = [1, 2, 3, 4]
  rows = graphtool::RemoteLookup(ids) {tables=[\"T\"], rows=[9], dtypes=[1], row_ranks=[1], row_dims=[2], negative=[0]}
  y = MatMul(rows, w)
}";
        let model = parse_model(text).unwrap();
        let (bytes, unknown) = worker_bytes(&model, 10, 0);
        assert_eq!(unknown, 0);
        let lookup = costs(&model, &BTreeMap::new(), Some(10)).nodes[0].bytes.unwrap();
        // Ids of 8 bytes, rows of 8; the product reads 80 and 16, and writes 80. The parameters have 16.
        assert!(lookup >= 160, "{lookup}");
        assert_eq!(bytes, OVERHEAD + 16 + lookup + 176);
        assert_eq!(worker_bytes(&model, 10, 2).0, bytes + 2 * lookup);
    }
}
