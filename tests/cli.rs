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
fn a_cache_changes_no_byte_and_says_what_it_had() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let (log, wide) = (small_log(dir), model("widedeep_ts11"));
    ok(dir, &["rewrite", path(&wide), "-o", "w.dist", "--shards", "2", "--min-bytes", "0"]);
    let with = |head: &[&str], out: &str| {
        let args = [head, &["--input", path(&log), "--output", out, "--batch-size", "32"], &BINDS].concat();
        ok(dir, &args)
    };
    with(&["run", "w.dist"], "plain.npz");
    let expected = std::fs::read(dir.join("plain.npz")).expect("outputs");
    let jobs: [(&str, &[&str]); 2] = [("run.npz", &["run", "w.dist"]), ("launch.npz", &["launch", "w.dist", "--worker_num", "2"])];
    for (out, head) in jobs {
        for size in ["0", "2KiB", "64MiB"] {
            let said = with(&[head, &["--cache", size, "--metrics-out", "m.json"]].concat(), out);
            assert!(std::fs::read(dir.join(out)).expect("outputs") == expected, "{out} with {size}");
            let json: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("m.json")).expect("metrics")).expect("JSON");
            let count = |name: &str| json["cache"][name].as_u64().expect("a count");
            let (hits, ids) = (count("hits"), count("hits") + count("misses"));
            assert!(ids > 300 && (hits > 0) == (size != "0") && count("bytes") <= count("capacity"), "{json}");
            let line = format!("cache: {:.1} % of {ids} ids, ", 100.0 * hits as f64 / ids as f64);
            assert!(said.lines().last().is_some_and(|l| l.starts_with(&line)), "{said}");
        }
    }
    let error = fails(dir, &["run", path(&wide), "--input", path(&log), "--cache", "1MiB"], 2);
    assert!(error.contains("--cache is for the tables of a deployment directory"), "{error}");
}

#[test]
fn a_profile_has_each_step_lookup_and_wait_of_each_batch() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let (log, wide) = (small_log(dir), model("widedeep_ts11"));
    ok(dir, &["rewrite", path(&wide), "-o", "w.dist", "--shards", "2", "--min-bytes", "0"]);
    let run = |what: &str, more: &[&str]| {
        ok(dir, &[&["run", what, "--input", path(&log), "--output", "y.npz", "--batch-size", "100"], &BINDS[..], more].concat());
        std::fs::read(dir.join("y.npz")).expect("outputs")
    };
    let plain = run(path(&wide), &[]);
    for what in [path(&wide), "w.dist"] {
        assert!(run(what, &["--profile", "trace.json"]) == plain, "a profile changes bytes");
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("trace.json")).expect("a trace")).expect("JSON");
        let events = json["traceEvents"].as_array().expect("events");
        let tid = |row: &str| {
            let named = events.iter().find(|e| e["ph"] == "M" && e["name"] == "thread_name" && e["args"]["name"] == row);
            named.map(|e| e["tid"].as_u64().expect("a number"))
        };
        let on = |tid: Option<u64>| events.iter().filter(move |e| e["ph"] == "X" && e["tid"].as_u64() == tid).collect::<Vec<_>>();
        let span = |e: &serde_json::Value| {
            let (from, length) = (e["ts"].as_f64().expect("a time"), e["dur"].as_f64().expect("a time"));
            (from, from + length)
        };
        let (batches, steps) = (on(tid("batches")), on(tid("steps")));
        assert_eq!(batches.len(), 3, "{what}");
        assert!(!steps.is_empty() && steps.len() % 3 == 0, "{what}: {}", steps.len());
        for step in &steps {
            let batch = step["args"]["batch"].as_u64().expect("a batch") as usize;
            let ((from, to), (first, last)) = (span(step), span(batches[batch]));
            assert!(first <= from && to <= last, "{step}");
        }
        let gemm = steps.iter().find(|e| e["args"]["op"] == "Gemm").expect("a Gemm");
        assert!(gemm["args"]["outputs"][0].as_str().is_some_and(|s| s.starts_with("float32[100,")), "{gemm}");
        let lookups: Vec<_> = events.iter().filter(|e| e["args"]["op"].as_str().is_some_and(|op| op.contains("RemoteLookup"))).collect();
        assert_eq!(lookups.is_empty(), what != "w.dist", "{what}");
        assert_eq!(on(tid("waits")).len() * 2, lookups.len(), "each lookup is awaited once");
    }
    let error = fails(dir, &["run", "w.dist", "--input", path(&log), "--output", "y.npz", "--profile", "no/such/trace.json"], 2);
    assert!(error.contains("no/such/trace.json"), "{error}");
    let error = fails(dir, &["run", "w.dist", "--role", "pserver", "--input", "x", "--profile", "t.json"], 2);
    assert!(error.contains("--profile"), "{error}");
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
    assert!(!dir.join("out.npz").exists() && !dir.join("out.npz.parts").exists());
    args.iter_mut().filter(|a| **a == "out.npz").for_each(|a| *a = "gone/out.npz");
    assert!(fails(dir, &args, 1).contains("gone/out.npz.parts: No such file"));
    assert!(!dir.join("gone").exists());
}

#[test]
fn what_a_deployment_cannot_follow_is_refused() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    ok(dir, &["rewrite", path(&model("widedeep_ts11")), "-o", "w.dist", "--shards", "2", "--min-bytes", "0"]);
    let launch = ["launch", "w.dist", "--input", "none.csv"];
    let reshard = "`graphtool reshard` cuts it anew";
    let rewrite = "`graphtool rewrite` of its model takes them";
    let flags: [(&[&str], &str); 11] = [
        (&["--shards", "2"], reshard),
        (&["--sharding", "auto"], reshard),
        (&["--plan", "none.json"], reshard),
        (&["--id-stats", "none.csv"], reshard),
        (&["--replicas", "1"], reshard),
        (&["--tables", "*"], rewrite),
        (&["--store-dtype", "f16"], rewrite),
        // The default, given all the same.
        (&["--min-bytes", "64KiB"], rewrite),
        (&["--keep-shared"], rewrite),
        (&["--one-hot"], rewrite),
        (&["--all-reduce", "prob=max"], rewrite),
    ];
    for (flag, how) in flags {
        let error = fails(dir, &[&launch, flag].concat(), 2);
        assert_eq!(error.trim_end(), format!("error: {}: w.dist is rewritten already; {how}", flag[0]));
        if how == rewrite {
            let error = fails(dir, &[&["plan", "w.dist"], flag].concat(), 2);
            assert_eq!(error.trim_end(), format!("error: {}: for models; a deployment has its tables", flag[0]));
        }
    }
    let error = fails(dir, &[&launch[..], &["--shards", "2", "--one-hot"]].concat(), 2);
    assert_eq!(error.trim_end(), format!("error: --shards, --one-hot: w.dist is rewritten already; {rewrite}"));
    assert!(!dir.join("log").exists());
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
        assert!(error.contains("0.0.0.0:0 is not loopback: give --token-file or --tls-cert, or --insecure"), "{error}");
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

#[test]
fn twenty_launches_at_once_take_nothing_from_each_other() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let log = small_log(dir);
    std::fs::copy(model("widedeep_ts11"), dir.join("w.pb")).expect("copied");
    // All in one directory: ports, the deployment, logs; the last five have outputs that others have, too.
    let launch = |i: usize| {
        let out = format!("{}.csv", i % 15);
        let mut args = vec!["launch", "w.pb", "--server_num=2", "--worker_num=2", "--min-bytes=0", "--input", path(&log), "--output", &out];
        args.extend(BINDS);
        args.extend(["--batch-size", "64", "--label", "click"]);
        graphtool(dir).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a launcher")
    };
    let launchers: Vec<_> = (0..20).map(launch).collect();
    for launcher in launchers {
        let out = launcher.wait_with_output().expect("it ends");
        assert!(out.status.success(), "{}", text(&out.stderr));
        assert!(text(&out.stdout).lines().last().expect("metrics").starts_with("logloss 0."), "{}", text(&out.stdout));
    }
    let first = std::fs::read(dir.join("0.csv")).expect("outputs");
    assert!((1..15).all(|i| std::fs::read(dir.join(format!("{i}.csv"))).expect("outputs") == first));
    let left: Vec<_> = std::fs::read_dir(dir).expect("a directory").flatten().map(|e| e.file_name().into_string().expect("text")).collect();
    assert_eq!(left.len(), 15 + 4, "{left:?}");
}

#[test]
fn columns_are_kept_and_groups_measured() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let log = std::fs::read_to_string(small_log(dir)).expect("text");
    // Users of four rows each; the last has rows of one class only.
    let mark = |(i, line): (usize, &str)| match i {
        0 => format!("{line},user,row"),
        297.. => format!("0{},last,r{i}", &line[1..]),
        _ => format!("{line},u{},r{i}", i / 4),
    };
    let lines: Vec<String> = log.lines().enumerate().map(mark).collect();
    std::fs::write(dir.join("users.csv"), lines.join("\n")).expect("written");
    ok(dir, &["rewrite", path(&model("widedeep_ts11")), "-o", "w.dist", "--shards", "2", "--min-bytes", "0"]);
    let run = |head: &[&str], out: &str| {
        let mut args = head.to_vec();
        args.extend(["--input", "users.csv", "--output", out, "--keep", "row,user", "--label", "click", "--group", "user"]);
        args.extend(["--batch-size", "50"]);
        args.extend(BINDS);
        ok(dir, &args).lines().last().expect("metrics").to_owned()
    };
    let metrics = run(&["run", "w.dist"], "one.csv");
    assert!(metrics.contains("grouped_auc 0.") && metrics.contains(" groups; ") && metrics.ends_with(" have one class only"), "{metrics}");
    let all = std::fs::read_to_string(dir.join("one.csv")).expect("outputs");
    assert_eq!(all.lines().next(), Some("row,user,prob"));
    assert!(all.lines().nth(5).expect("a row").starts_with("r5,u1,0."), "{all}");
    assert_eq!(run(&["launch", "w.dist", "--server-num", "2", "--trainer-num", "3"], "three.csv"), metrics);
    assert_eq!(std::fs::read_to_string(dir.join("three.csv")).expect("outputs"), all);
    let mut args = vec!["run", "w.dist", "--input", "users.csv", "--keep", "nobody", "--output", "no.csv"];
    args.extend(BINDS);
    assert!(fails(dir, &args, 1).contains("\"nobody\": no such column"));
    assert!(!dir.join("no.csv").exists());
}

#[test]
fn many_files_and_patterns_are_read_as_one() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let log = std::fs::read_to_string(small_log(dir)).expect("text");
    let (head, rows) = log.split_once('\n').expect("a header");
    let rows: Vec<&str> = rows.lines().collect();
    for (i, part) in rows.chunks(70).enumerate() {
        std::fs::write(dir.join(format!("part-{i}.csv")), format!("{head}\n{}\n", part.join("\n"))).expect("written");
    }
    let wide = model("widedeep_ts11");
    let run = |input: &str, out: &str| {
        let mut args = vec!["run", path(&wide), "--input", input, "--output", out, "--batch-size", "64"];
        args.extend(BINDS);
        ok(dir, &args);
        std::fs::read(dir.join(out)).expect("outputs")
    };
    assert!(run("log.csv", "a.npz") == run("part-*.csv", "b.npz"));
    let error = fails(dir, &["run", path(&wide), "--input", "gone-*.csv"], 1);
    assert!(error.contains("gone-*.csv: no file matches this pattern"), "{error}");
    // The same samples as MultiSlot text, slots named and counted.
    let named = |row: &&str| {
        let cells: Vec<&str> = row.split(',').collect();
        let slot = |name: &str, cells: &[&str]| cells.iter().map(|c| format!(" {name}:{c}")).collect::<String>();
        format!("{}{}{}", cells[0], slot("dense", &cells[1..6]), slot("sparse", &cells[6..10]))
    };
    let counted = |row: &&str| {
        let cells: Vec<&str> = row.split(',').collect();
        format!("1 {} 5 {} 4 {}", cells[0], cells[1..6].join(" "), cells[6..10].join(" "))
    };
    let expected = run("log.csv", "a.npz");
    std::fs::write(dir.join("named.multislot"), rows.iter().map(named).collect::<Vec<_>>().join("\n")).expect("written");
    std::fs::write(dir.join("counted.txt"), rows.iter().map(counted).collect::<Vec<_>>().join("\n")).expect("written");
    ok(dir, &["run", path(&wide), "--input", "named.multislot", "--output", "n.npz", "--batch-size", "64", "--label", "label"]);
    assert!(std::fs::read(dir.join("n.npz")).expect("outputs") == expected);
    let slots = ["--format", "multislot", "--slots", "click,dense,sparse"];
    let mut args = vec!["run", path(&wide), "--input", "counted.txt", "--output", "c.npz", "--batch-size", "64", "--label", "click"];
    args.extend(slots);
    ok(dir, &args);
    assert!(std::fs::read(dir.join("c.npz")).expect("outputs") == expected);
}

#[test]
fn endpoints_are_started_where_they_belong_and_loopback_is_told_to_nobody_else() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let log = small_log(dir);
    ok(dir, &["rewrite", path(&model("widedeep_ts11")), "-o", "w.dist", "--shards", "2", "--min-bytes", "0"]);
    let args = |servers: &'static str, workers: &'static str| {
        let mut args = vec!["launch", "w.dist", "--servers", servers, "--workers", workers, "--input", path(&log), "--output", "o.csv"];
        args.extend(BINDS);
        args
    };
    ok(dir, &args("127.0.0.1:0,localhost:0", "127.0.0.1:0,127.0.0.1:0"));
    assert!(dir.join("o.csv").is_file() && dir.join("log/serverlog.1").is_file() && dir.join("log/workerlog.1").is_file());
    // 192.0.2.1 is for documentation: no machine has it.
    let error = fails(dir, &args("127.0.0.1:7001,192.0.2.1:7001", "127.0.0.1:7002"), 2);
    assert!(error.contains("\"127.0.0.1:7001\": 192.0.2.1:7001 on another machine could not connect to a loopback address"), "{error}");
    assert!(error.contains("--host or POD_IP"), "{error}");
    let error = fails(dir, &args("192.0.2.1:1", "192.0.2.1:2"), 2);
    assert!(error.contains("none of 192.0.2.1:2 is an address of this machine"), "{error}");
    let run = ["run", "w.dist", "--role", "pserver", "--index", "0", "--servers", "127.0.0.1:0,192.0.2.1:7001"];
    assert!(fails(dir, &run, 2).contains("could not connect to a loopback address"));
    let mut args = args("127.0.0.1:0", "127.0.0.1:0");
    args.extend(["--host", "0.0.0.0"]);
    assert!(fails(dir, &args, 2).contains("0.0.0.0:0 is not loopback: give --token-file or --tls-cert, or --insecure"));
}

#[test]
fn a_variable_that_is_nearly_right_is_noticed() {
    let tmp = tempfile::tempdir().expect("a directory");
    let args = ["run", path(&model("widedeep_ts11")), "--input", "x.npz"].map(str::to_owned);
    let out = graphtool(tmp.path()).args(args).env("PADDLE_TRAINER_NUM", "2").output().expect("the program runs");
    assert!(
        text(&out.stderr).contains("the variable PADDLE_TRAINER_NUM is not read; is PADDLE_TRAINERS_NUM meant?"),
        "{}",
        text(&out.stderr)
    );
}

#[test]
fn a_folder_is_one_run_with_all_its_rows() {
    let tmp = tempfile::tempdir().expect("a directory");
    let wide = model("widedeep_ts11");
    let set = wide.with_file_name("test_data_set_0");
    let said = ok(tmp.path(), &["run", path(&wide), "--input", path(&set), "--output", "o.csv"]);
    assert!(said.starts_with("one run in "), "{said}");
    assert_eq!(std::fs::read_to_string(tmp.path().join("o.csv")).expect("outputs").lines().count(), 1 + 6);
}
