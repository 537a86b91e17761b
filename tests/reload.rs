//! Pservers that get another version of their tables while they are asked.

mod support;

use graphtool::plan::{Manifest, Sharding};
use graphtool::store::{self, BagQuery, ServeOptions, Shards, Store};
use graphtool::tensor::{DType, PoolMode, Tensor};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
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
async fn bags_are_pooled_from_the_version_of_their_connection() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("t.dist");
    let (first, _) = put(&dir, 0.0);
    let running = Server::start_all(&dir, 1, ServeOptions::default());
    let all = endpoints(&running);
    let old = store::connect(first, &all, options()).await.unwrap();
    // Four bags of 100 rows, one without any; column c of row i is offset + 4 i + c, which stays exact.
    let bounds = vec![0, 100, 200, 200, 300, 400];
    let bags = BagQuery { table: 0, ids: (0..400).map(|i| i * 7 % 1000).collect(), bounds, weights: None, mode: PoolMode::Sum };
    let sums = |offset: u64| -> Vec<f32> {
        let of = |b: usize, c: u64| bags.ids[bags.bounds[b]..bags.bounds[b + 1]].iter().map(|i| offset + 4 * i + c).sum::<u64>() as f32;
        (0..5).flat_map(|b| (0..4).map(move |c| (b, c))).map(|(b, c)| of(b, c)).collect()
    };
    let pooled = async |store: &dyn Store| store.lookup_bags(&bags).await.unwrap().expect("one server has all rows").to_f32s().unwrap();
    assert_eq!(pooled(&*old).await, sums(0));
    let (next, _) = put(&dir, 5000.0);
    assert_eq!(reload(&dir, &all, "60").0, Some(0));
    let new = store::connect(next, &all, options()).await.unwrap();
    for _ in 0..3 {
        assert_eq!((pooled(&*old).await, pooled(&*new).await), (sums(0), sums(5000)));
    }
    // Neither fell back to asking for rows: a bag is one row of the answer.
    assert_eq!((old.stats().bytes, new.stats().bytes), (4 * 5 * 16, 3 * 5 * 16));
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
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, said) = reload(&other, &[free.clone(), all[0].clone()], "1");
    assert!(code == Some(1) && said.contains(&free) && said.contains("is unavailable"), "{said}");
}

/// The plans that servers serve.
async fn plans(servers: &[String]) -> Vec<String> {
    let infos = servers.iter().map(async |e| store::server_info(e, &options()).await.unwrap().plan_id);
    futures::future::join_all(infos).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_changes_where_one_cannot() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("t.dist");
    let (first, _) = put(&dir, 0.0);
    let running = Server::start_all(&dir, 2, ServeOptions::default());
    let all = endpoints(&running);
    drop(store::connect(first.clone(), &all, options()).await.unwrap());
    let (second, table) = put(&dir, 5000.0);
    // A file of the second server alone, of the right length.
    let placement = second.placement(2);
    let piece = second.tables[0].pieces.iter().find(|p| placement.group(p.shard) == 1).unwrap();
    let whole = std::fs::read(dir.join(&piece.file)).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(dir.join(&piece.file), damaged).unwrap();
    let (code, said) = reload(&dir, &all, "60");
    assert!(code == Some(1) && said.starts_with(&format!("error: pserver {}: ", all[1])) && said.contains(&piece.file), "{said}");
    assert!(said.ends_with("; no pserver has changed\n") && !said.contains(&all[0]) && said.lines().count() == 1, "{said}");
    assert_eq!(plans(&all).await, [first.plan_id.as_str(); 2]);
    std::fs::write(dir.join(&piece.file), whole).unwrap();
    // One that is not there is as good as one that cannot.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, said) = reload(&dir, &[all[0].clone(), free, all[1].clone()], "1");
    assert!(code == Some(1) && said.ends_with("; no pserver has changed\n"), "{said}");
    assert_eq!(plans(&all).await, [first.plan_id.as_str(); 2]);
    // What was prepared on the way is in nobody's way; a server that is named twice is one.
    let (code, said) = reload(&dir, &[all[0].clone(), all[1].clone(), all[0].clone()], "60");
    assert_eq!((code, said.lines().count()), (Some(0), 2), "{said}");
    assert_eq!(plans(&all).await, [second.plan_id.as_str(); 2]);
    let store = store::connect(second, &all, options()).await.unwrap();
    assert_eq!(store.lookup(vec![query(0, &[3, 999])]).await.unwrap(), [expected(&table.values, &[3, 999])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_is_given_up_leaves_nothing_behind() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("t.dist");
    let (first, _) = put(&dir, 0.0);
    let running = Server::start_all(&dir, 1, ServeOptions::default());
    let all = endpoints(&running);
    drop(store::connect(first.clone(), &all, options()).await.unwrap());
    let (second, _) = put(&dir, 5000.0);
    // It waits for one that takes connections and says nothing, and holds what the other has prepared.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let both = format!("{},{}", all[0], silent.local_addr().unwrap());
    let mut waiting = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    let mut waiting = waiting.arg("reload").arg(&dir).args(["--servers", &both]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let wrong = tmp.path().join("wrong.dist");
    put(&wrong, 9000.0);
    // Until then this one is refused for its plan.
    while !reload(&wrong, &all, "60").1.contains("another reload is under way") {
        assert!(waiting.try_wait().unwrap().is_none(), "it did not wait");
    }
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    assert_eq!(plans(&all).await, [first.plan_id.as_str()]);
    while reload(&dir, &all, "60").0 != Some(0) {}
    assert_eq!(plans(&all).await, [second.plan_id.as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_at_once_change_all_servers_or_none() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("t.dist");
    let (mut before, _) = put(&dir, 0.0);
    let running = Server::start_all(&dir, 3, ServeOptions::default());
    let all = endpoints(&running);
    drop(store::connect(before.clone(), &all, options()).await.unwrap());
    for offset in [1.0, 2.0, 3.0] {
        let (next, _) = put(&dir, offset);
        let reloads: Vec<_> = (0..4)
            .map(|_| {
                let (dir, all) = (dir.clone(), all.clone());
                std::thread::spawn(move || reload(&dir, &all, "60"))
            })
            .collect();
        let mut changed = false;
        for (code, said) in reloads.into_iter().map(|r| r.join().unwrap()) {
            assert!(code == Some(0) || said.contains("another reload is under way; "), "{said}");
            changed |= code == Some(0);
        }
        let expected = if changed { &next } else { &before };
        assert_eq!(plans(&all).await, [expected.plan_id.as_str(); 3]);
        before = expected.clone();
    }
}

/// What is lost of the third call of the first connection, with that connection.
#[derive(Clone, Copy, PartialEq)]
enum Loss {
    Call,
    Answer,
    /// The call, and all connections after it.
    Everything,
}

/// A way to a server on which something is lost. Calls and answers alternate, so each is a block by itself.
fn lossy(server: String, loss: Loss) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (n, client) in listener.incoming().enumerate() {
            let client = client.unwrap();
            if n > 0 && loss == Loss::Everything {
                continue;
            }
            let server = TcpStream::connect(&server).unwrap();
            let answers = Arc::new(AtomicUsize::new(0));
            let both = [(&client, &server, loss != Loss::Answer), (&server, &client, loss == Loss::Answer)];
            for (i, (from, to, cuts)) in both.into_iter().enumerate() {
                let (mut from, mut to, answers) = (from.try_clone().unwrap(), to.try_clone().unwrap(), answers.clone());
                std::thread::spawn(move || {
                    let mut block = [0; 4096];
                    while let Ok(len @ 1..) = from.read(&mut block) {
                        if n == 0 && cuts && answers.load(SeqCst) == 2 {
                            break;
                        }
                        answers.fetch_add(i, SeqCst);
                        if to.write_all(&block[..len]).is_err() {
                            break;
                        }
                    }
                    _ = from.shutdown(Shutdown::Both);
                    _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    endpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_lost_when_all_are_told_to_change_is_brought_to_the_others() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("t.dist");
    let (mut before, _) = put(&dir, 0.0);
    let running = Server::start_all(&dir, 2, ServeOptions::default());
    let all = endpoints(&running);
    drop(store::connect(before.clone(), &all, options()).await.unwrap());
    for (offset, loss) in [(1.0, Loss::Call), (2.0, Loss::Answer), (3.0, Loss::Everything)] {
        let (next, _) = put(&dir, offset);
        let way = lossy(all[1].clone(), loss);
        let (code, said) = reload(&dir, &[all[0].clone(), way.clone()], "2");
        let (old, new) = (before.plan_id.clone(), next.plan_id.clone());
        if loss == Loss::Everything {
            assert!(code == Some(1) && said.starts_with(&format!("error: pserver {way} is unavailable: ")), "{said}");
            assert!(said.ends_with(&format!("; changed: {}\n", all[0])) && said.lines().count() == 1, "{said}");
            assert_eq!(plans(&all).await, [new, old]);
        } else {
            assert_eq!((code, plans(&all).await), (Some(0), vec![new.clone(), new]), "{said}");
        }
        before = next;
    }
    assert_eq!(reload(&dir, &all, "60").0, Some(0));
    assert_eq!(plans(&all).await, [before.plan_id.as_str(); 2]);
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
