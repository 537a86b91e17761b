//! The program as its users call it: files in, files out, exit codes, messages.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name).join("model.onnx")
}

fn clicks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/clicks.csv")
}

fn graphtool(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    command.current_dir(dir).stdin(Stdio::null());
    command
}

fn call(dir: &Path, args: &[&str]) -> Output {
    graphtool(dir).args(args).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ok(dir: &Path, args: &[&str]) -> String {
    let out = call(dir, args);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

/// One line on stderr, the exit code, nothing of a panic.
fn fails(dir: &Path, args: &[&str], code: i32) -> String {
    let out = call(dir, args);
    let error = text(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

fn path(p: &Path) -> &str {
    p.to_str().expect("a path that is text")
}

const BINDS: [&str; 4] = ["--bind", "dense=I1..I5", "--bind", "sparse=C1..C4"];

/// A log of 300 rows, small enough for a debug build.
fn small_log(dir: &Path) -> PathBuf {
    let text = std::fs::read_to_string(clicks()).expect("the click log");
    let rows: Vec<&str> = text.lines().take(301).collect();
    let out = dir.join("log.csv");
    std::fs::write(&out, rows.join("\n") + "\n").expect("written");
    out
}

#[test]
fn any_number_of_servers_and_workers_writes_the_same_bytes() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let (log, wide) = (small_log(dir), model("widedeep_ts11"));
    let job = |head: &[&str], out: &str| {
        let mut args: Vec<&str> = head.to_vec();
        args.extend(["--input", path(&log), "--output", out, "--batch-size", "32", "--label", "click"]);
        args.extend(BINDS);
        ok(dir, &args)
    };
    let local = job(&["run", path(&wide)], "local.npz");
    let metrics = local.lines().last().expect("metrics").to_owned();
    assert!(metrics.starts_with("logloss 0."), "{local}");
    ok(dir, &["rewrite", path(&wide), "-o", "w.dist", "--shards", "4", "--min-bytes", "0"]);
    assert_eq!(job(&["run", "w.dist"], "dist.npz").lines().last(), Some(metrics.as_str()));
    let expected = std::fs::read(dir.join("local.npz")).expect("outputs");
    assert_eq!(std::fs::read(dir.join("dist.npz")).expect("outputs"), expected);
    for (servers, workers) in [("1", "1"), ("2", "2"), ("3", "4")] {
        let out = format!("{servers}x{workers}.npz");
        let said = job(&["launch", "w.dist", "--server_num", servers, "--worker_num", workers], &out);
        assert_eq!(said.lines().last(), Some(metrics.as_str()), "{said}");
        assert!(std::fs::read(dir.join(&out)).expect("outputs") == expected, "{servers} servers, {workers} workers");
        assert!(dir.join("log/serverlog.0").is_file() && dir.join("log/workerlog.0").is_file());
    }
}

#[test]
fn a_plain_model_is_rewritten_by_launch() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let log = small_log(dir);
    std::fs::copy(model("widedeep_ts11"), dir.join("m.pb")).expect("copied");
    let mut args =
        vec!["launch", "m.pb", "--server_num=2", "--worker_num=2", "--input", path(&log), "--output", "out.csv", "--min-bytes", "0"];
    args.extend(BINDS);
    let said = ok(dir, &args);
    assert!(said.contains("7 of 7 lookups are remote") || said.contains("8 of 8 lookups are remote"), "{said}");
    assert!(dir.join("m.dist/manifest.json").is_file());
    assert_eq!(std::fs::read_to_string(dir.join("out.csv")).expect("outputs").lines().count(), 301);
}

#[test]
fn a_failing_worker_stops_the_job_and_leaves_no_output() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    ok(dir, &["rewrite", path(&model("widedeep_ts11")), "-o", "w.dist", "--shards", "2", "--min-bytes", "0"]);
    let log = small_log(dir);
    let broken = std::fs::read_to_string(&log).expect("text").replacen("315,22,0,46", "315,22,9,46", 1);
    std::fs::write(&log, broken).expect("written");
    let mut args = vec!["launch", "w.dist", "--server_num", "2", "--worker_num", "2", "--input", path(&log), "--output", "out.npz"];
    args.extend(BINDS);
    let error = fails(dir, &args, 1);
    assert!(error.contains("worker") && error.contains("id 9 at position 0 is out of range, valid -7..6"), "{error}");
    assert!(!dir.join("out.npz").exists());
}

#[test]
fn what_is_missing_is_named() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let error = fails(dir, &["run", "nothing.onnx", "--input", "x.npz"], 1);
    assert!(error.contains("nothing.onnx"), "{error}");
    std::fs::write(dir.join("empty.onnx"), "").expect("written");
    assert!(fails(dir, &["inspect", "empty.onnx"], 1).contains("the file is empty"));
    std::fs::write(dir.join("text.onnx"), "hello, I am no model").expect("written");
    assert!(fails(dir, &["check", "text.onnx"], 1).contains("not an ONNX model"));
    fails(dir, &["run", path(&model("widedeep_ts11"))], 2);
    assert_eq!(call(dir, &["launch"]).status.code(), Some(2));
    let out = call(dir, &["rewrite", path(&model("tied_lm_nofold_ts13")), "-o", "t.dist", "--min-bytes", "0"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stderr).contains("it is also read by"), "{}", text(&out.stderr));
}

#[test]
fn a_worker_without_its_servers_says_so_in_time() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    ok(dir, &["rewrite", path(&model("widedeep_ts11")), "-o", "w.dist", "--shards", "2", "--min-bytes", "0"]);
    let set = model("widedeep_ts11").with_file_name("test_data_set_0");
    let base = ["run", "w.dist", "--role", "worker", "--input", path(&set), "--output", "out/"];
    let error = fails(dir, &base, 1);
    assert!(error.contains("is on pservers: give their endpoints"), "{error}");
    // A port that nobody listens on: taken once and given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let endpoint = port.to_string();
    let mut args = base.to_vec();
    args.extend(["--servers", &endpoint, "--connect-timeout", "1"]);
    let error = fails(dir, &args, 1);
    assert!(error.contains(&endpoint), "{error}");
}

#[test]
fn an_address_that_is_not_loopback_needs_a_token() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    ok(dir, &["rewrite", path(&model("widedeep_ts11")), "-o", "w.dist", "--shards", "2", "--min-bytes", "0"]);
    let refused = |args: &[&str]| {
        let error = fails(dir, args, 2);
        assert!(error.contains("0.0.0.0:0 is not loopback: give --token-file, or --insecure"), "{error}");
    };
    refused(&["run", "w.dist", "--role", "pserver", "--host", "0.0.0.0", "--port", "0"]);
    refused(&["run", "w.dist", "--role", "worker", "--rank", "0", "--workers", "0.0.0.0:0,127.0.0.1:1", "--input", "x.npz"]);
}

#[test]
fn a_worker_waits_for_a_server_and_another_rewrite_is_refused() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let wide = model("widedeep_ts11");
    ok(dir, &["rewrite", path(&wide), "-o", "a.dist", "--shards", "1", "--min-bytes", "0"]);
    ok(dir, &["rewrite", path(&wide), "-o", "b.dist", "--shards", "2", "--min-bytes", "0"]);
    let set = wide.with_file_name("test_data_set_0");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port().to_string();
    let endpoint = format!("127.0.0.1:{port}");
    let args = ["run", "a.dist", "--role", "worker", "--servers", &endpoint, "--input", path(&set), "--output", "out/"];
    let worker = graphtool(dir).args(args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a worker");
    let mut server =
        graphtool(dir).args(["run", "a.dist", "--role", "pserver", "--port", &port]).stdout(Stdio::null()).spawn().expect("a server");
    let out = worker.wait_with_output().expect("the worker ends");
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(dir.join("out/output_0.pb").is_file());
    let error = fails(dir, &["run", "b.dist", "--role", "worker", "--servers", &endpoint, "--input", path(&set), "--output", "out2/"], 1);
    server.kill().expect("the server is ours");
    server.wait().expect("it ends");
    assert!(error.contains("plan"), "{error}");
    assert!(!dir.join("out2").exists());
}

#[test]
fn a_killed_pserver_ends_the_job_soon() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    ok(dir, &["rewrite", path(&model("widedeep_ts11")), "-o", "w.dist", "--shards", "2", "--min-bytes", "0"]);
    let mut args = vec!["launch", "w.dist", "--server_num", "2", "--worker_num", "2", "--batch-size", "1", "--output", "out.npz"];
    let log = clicks();
    args.extend(["--input", path(&log)]);
    args.extend(BINDS);
    let launcher = graphtool(dir).args(&args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a launcher");
    let victim = child_with(launcher.id(), "TRAINING_ROLE=PSERVER");
    let killed = Command::new("kill").args(["-9", &victim.to_string()]).status().expect("kill runs");
    assert!(killed.success());
    let start = Instant::now();
    let out = launcher.wait_with_output().expect("the launcher ends");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("was killed by signal 9"), "{}", text(&out.stderr));
    assert!(!dir.join("out.npz").exists());
}

/// A child process of `parent` whose environment holds `entry`.
fn child_with(parent: u32, entry: &str) -> u32 {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        for pid in std::fs::read_dir("/proc").expect("procfs").flatten().filter_map(|e| e.file_name().to_string_lossy().parse::<u32>().ok())
        {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let ppid = stat.rsplit(')').next().and_then(|s| s.split_whitespace().nth(1)).and_then(|s| s.parse::<u32>().ok());
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if ppid == Some(parent) && environ.split(|b| *b == 0).any(|e| e == entry.as_bytes()) {
                return pid;
            }
        }
        std::thread::yield_now();
    }
    panic!("no child of {parent} with {entry}");
}

#[test]
fn inspect_and_dump_show_the_model() {
    let tmp = tempfile::tempdir().expect("a directory");
    let json = ok(tmp.path(), &["inspect", path(&model("shared_slots_ts13")), "--json"]);
    let facts: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(facts["tables"][0]["lookups"].as_array().map(Vec::len), Some(4), "{json}");
    assert_eq!(facts["tables"][0]["remote"], true);
    assert!(ok(tmp.path(), &["dump", path(&model("emb_ts11"))]).starts_with("model ir_version="));
}
