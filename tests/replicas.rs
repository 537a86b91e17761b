//! Jobs whose shards are on several pservers: processes that are killed are not missed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn graphtool(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    command.current_dir(dir).stdin(Stdio::null()).args(args);
    command
}

fn ok(out: Output) {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// A pserver, killed when it is dropped.
struct Pserver {
    child: Child,
    endpoint: String,
}

impl Pserver {
    fn start(dir: &Path, index: usize, of: usize) -> Self {
        let list = vec!["127.0.0.1:0"; of].join(",");
        let index = index.to_string();
        let args = ["run", "w.dist", "--role", "pserver", "--servers", &list, "--index", &index, "--port", "0", "--threads", "1"];
        let mut child = graphtool(dir, &args).stdout(Stdio::piped()).spawn().expect("a pserver");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        let endpoint = line.trim().rsplit(' ').next().expect("an address").to_owned();
        Self { child, endpoint }
    }
}

impl Drop for Pserver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_pserver_that_is_killed_is_not_missed_and_the_last_replica_is() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let wide = models().join("widedeep_ts11/model.onnx");
    let log = std::fs::read_to_string(models().join("clicks.csv")).expect("the log");
    std::fs::write(dir.join("log.csv"), log.lines().take(1001).collect::<Vec<_>>().join("\n") + "\n").expect("written");
    let job = |model: &str, out: &str, more: &[&str]| {
        let mut args = vec!["run", model, "--input", "log.csv", "--output", out, "--batch-size", "4"];
        args.extend(["--bind", "dense=I1..I5", "--bind", "sparse=C1..C4"]);
        args.extend(more);
        let mut command = graphtool(dir, &args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let wide = wide.to_str().expect("a path");
    ok(job(wide, "local.npz", &[]).output().expect("a run"));
    let expected = std::fs::read(dir.join("local.npz")).expect("outputs");
    let cut = ["rewrite", wide, "-o", "w.dist", "--shards", "4", "--sharding", "row", "--min-bytes", "0", "--replicas", "2"];
    ok(graphtool(dir, &cut).output().expect("a rewrite"));
    let mut servers: Vec<Pserver> = (0..3).map(|i| Pserver::start(dir, i, 3)).collect();
    let list = servers.iter().map(|s| s.endpoint.clone()).collect::<Vec<_>>().join(",");
    let worker = ["--role", "worker", "--servers", &list, "--rpc-timeout", "2", "--connect-timeout", "2"];
    ok(job("w.dist", "all.npz", &worker).output().expect("a run"));
    assert!(std::fs::read(dir.join("all.npz")).expect("outputs") == expected);
    // Killed while the job runs, and gone before it starts: the answers are the same.
    let running = job("w.dist", "killed.npz", &worker).spawn().expect("a worker");
    drop(servers.remove(1));
    ok(running.wait_with_output().expect("it ends"));
    assert!(std::fs::read(dir.join("killed.npz")).expect("outputs") == expected);
    ok(job("w.dist", "gone.npz", &worker).output().expect("a run"));
    assert!(std::fs::read(dir.join("gone.npz")).expect("outputs") == expected);
    // Servers 1 and 2 were those of one group of shards.
    let lost = servers.remove(1).endpoint.clone();
    let out = job("w.dist", "none.npz", &worker).output().expect("a run");
    let error = String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or_default().to_owned();
    assert_eq!(out.status.code(), Some(1), "{error}");
    assert!(error.starts_with("error: ") && error.contains(&lost) || error.contains(list.split(',').nth(1).expect("three")), "{error}");
    assert!(!dir.join("none.npz").exists());
}
