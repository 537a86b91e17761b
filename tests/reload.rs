//! Pservers that get another version of their tables while they are asked.

mod support;

use graphtool::plan::{Manifest, Sharding};
use graphtool::store::{self, ServeOptions, Shards, Store};
use graphtool::tensor::{DType, Tensor};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use support::contract::{expected, options, query};
use support::{Server, Source, deploy, endpoints, source};

/// Puts a version of a table of 1000 rows in the place of the deployment that is there.
fn put(dir: &Path, offset: f32) -> (Arc<Manifest>, Source) {
    let mut table = source("T", DType::F32, &[1000, 4], Sharding::Row, 4);
    table.values = Tensor::new([1000, 4], (0..4000).map(|i| offset + i as f32).collect()).unwrap();
    let (fresh, old) = (dir.with_extension("fresh"), dir.with_extension(format!("before-{offset}")));
    let manifest = deploy(&fresh, std::slice::from_ref(&table), 4);
    if dir.exists() {
        std::fs::rename(dir, old).unwrap();
    }
    std::fs::rename(fresh, dir).unwrap();
    (Arc::new(manifest), table)
}

fn reload(dir: &Path, servers: &[String], seconds: &str) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_graphtool"))
        .arg("reload")
        .arg(dir)
        .args(["--servers", &servers.join(","), "--timeout", seconds])
        .output()
        .unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_keep_their_version_and_new_ones_get_the_new() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("t.dist");
    let (first, table) = put(&dir, 0.0);
    let running = Server::start_all(&dir, 2, ServeOptions::default());
    let all = endpoints(&running);
    let old = store::connect(first.clone(), &all, options()).await.unwrap();
    // Lookups under way from before the first reload until after the last.
    let ids: Vec<u64> = (0..500).map(|i| i * 7 % 1000).collect();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let asking = tokio::spawn({
        let (old, ids, stop, done, rows) = (old.clone(), ids.clone(), stop.clone(), done.clone(), expected(&table.values, &ids));
        async move {
            while !stop.load(SeqCst) {
                assert_eq!(old.lookup(vec![query(0, &ids)]).await.unwrap(), std::slice::from_ref(&rows));
                done.fetch_add(1, SeqCst);
            }
        }
    });
    for offset in [5000.0, 9000.0] {
        let (next, table) = put(&dir, offset);
        let (plan_id, old_id) = (next.plan_id.clone(), &first.plan_id);
        let before = done.load(SeqCst);
        let (code, said) = reload(&dir, &all, "60");
        let lines: String = all.iter().map(|e| format!("pserver {e} serves plan id {plan_id}\n")).collect();
        assert_eq!((code, said), (Some(0), lines));
        let new = store::connect(next, &all, options()).await.unwrap();
        assert_eq!(new.lookup(vec![query(0, &ids)]).await.unwrap(), [expected(&table.values, &ids)]);
        while done.load(SeqCst) < before + 2 {
            tokio::task::yield_now().await;
        }
        let error = store::connect(first.clone(), &all, options()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("plan id {plan_id} here, {old_id} at the peer")), "{error}");
    }
    stop.store(true, SeqCst);
    asking.await.unwrap();
    let lookups = store::server_info(&all[0], &options()).await.unwrap().stats.lookups;
    drop(old);
    // Counters go on from version to version.
    assert!(lookups >= done.load(SeqCst) as u64 + 2, "{lookups}");
    assert!(running.into_iter().map(|s| s.stop().unwrap().lookups).sum::<u64>() >= 2 * lookups - 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_leaves_the_old_version_serving() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("t.dist");
    let (first, table) = put(&dir, 0.0);
    let running = Server::start_all(&dir, 1, ServeOptions::default());
    let all = endpoints(&running);
    // It has opened its directory once it answers.
    drop(store::connect(first.clone(), &all, options()).await.unwrap());
    // A file of the next version is damaged.
    let (second, _) = put(&dir, 5000.0);
    let file = dir.join(&second.tables[0].pieces[1].file);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (code, said) = reload(&dir, &all, "60");
    assert!(code == Some(1) && said.contains(&format!("it goes on with plan id {}", first.plan_id)) && said.lines().count() == 1, "{said}");
    // The caller sees another directory than the server.
    let other = tmp.path().join("other.dist");
    let (third, _) = put(&other, 1.0);
    let (code, said) = reload(&other, &all, "60");
    let (one, two, three) = (&first.plan_id, &second.plan_id, &third.plan_id);
    let ids = format!("expected plan id {three}, found {two}; it goes on with plan id {one}");
    assert!(code == Some(1) && said.contains(&ids), "{said}");
    let store = store::connect(first, &all, options()).await.unwrap();
    assert_eq!(store.lookup(vec![query(0, &[3, 999])]).await.unwrap(), [expected(&table.values, &[3, 999])]);
    // Nothing listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, said) = reload(&other, &[free.clone(), all[0].clone()], "1");
    assert!(code == Some(1) && said.contains(&free) && said.contains("is unavailable"), "{said}");
}

#[tokio::test]
async fn shards_whose_directory_was_replaced_before_they_were_verified_go_on() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("t.dist");
    let (first, table) = put(&dir, 0.0);
    let shards = Shards::open(&dir, first, |_| true).unwrap();
    put(&dir, 5000.0);
    shards.verify().unwrap();
    assert_eq!(shards.lookup(vec![query(0, &[3, 999])]).await.unwrap(), [expected(&table.values, &[3, 999])]);
}
