//! Counters of running processes over HTTP.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

/// A process, killed when it is dropped.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn graphtool(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    command.current_dir(dir).stdin(Stdio::null());
    command
}

fn start(dir: &Path, args: &[&str]) -> Running {
    let mut child = graphtool(dir).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let (stdout, stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    Running { child, stdout: BufReader::new(stdout), stderr: BufReader::new(stderr) }
}

/// What follows `before` in the next line.
fn after(from: &mut impl BufRead, before: &str) -> String {
    let mut line = String::new();
    from.read_line(&mut line).expect("a line");
    line.split_once(before).unwrap_or_else(|| panic!("{before} in {line:?}")).1.trim().to_owned()
}

fn get(address: &str, page: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).expect("a connection");
    write!(stream, "GET {page} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
}

/// The samples of a text in format 0.0.4, each line of which is checked.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let name_end = |s: &str| s.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(s.len());
    let (mut kinds, mut samples) = (BTreeMap::new(), BTreeMap::new());
    let mut helped = None;
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped = rest.split(' ').next();
            assert!(rest.len() > name_end(rest) + 1, "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(helped == Some(name) && ["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line} is there twice");
        } else {
            let (sample, value) = line.rsplit_once(' ').expect("a sample");
            let name = &sample[..name_end(sample)];
            assert!(name.starts_with("graphtool_"), "{line}");
            let labels = &sample[name.len()..];
            assert!(labels.is_empty() || (labels.starts_with('{') && labels.ends_with("\"}")), "{line}");
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s).filter(|f| kinds.contains_key(*f)));
            let kind = kinds.get(family.unwrap_or(name)).unwrap_or_else(|| panic!("{line} has no type"));
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(samples.insert(sample.to_owned(), value.parse().expect("a number")).is_none(), "{line} is there twice");
        }
    }
    samples
}

#[test]
fn a_pserver_shows_its_counters_and_a_worker_that_waits_is_not_ready() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let model = models.join("widedeep_ts11/model.onnx");
    let rewritten = graphtool(dir).arg("rewrite").arg(model).args(["-o", "w.dist", "--min-bytes", "0"]).output().expect("it runs");
    assert!(rewritten.status.success());
    let log: Vec<String> =
        std::fs::read_to_string(models.join("clicks.csv")).expect("a log").lines().take(101).map(str::to_owned).collect();
    std::fs::write(dir.join("log.csv"), log.join("\n")).expect("written");
    let mut server = start(dir, &["run", "w.dist", "--role", "pserver", "--port", "0", "--metrics-addr", "127.0.0.1:0"]);
    let at = after(&mut server.stderr, "metrics at http://").replace("/metrics", "");
    let endpoint = after(&mut server.stdout, "listens on ");
    assert_eq!(get(&at, "/healthz").0, 200);
    while get(&at, "/readyz").0 != 200 {}
    let before = parse(&get(&at, "/metrics").1);
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("w.dist/manifest.json")).expect("a manifest")).expect("JSON");
    let plan_id = manifest["plan_id"].as_str().expect("an id");
    assert_eq!(before[&format!("graphtool_info{{role=\"pserver\",index=\"0\",plan_id=\"{plan_id}\"}}")], 1.0);
    assert_eq!((before["graphtool_pserver_lookups_total"], before["graphtool_lookup_duration_seconds_count"]), (0.0, 0.0));
    let args = ["--input", "log.csv", "--output", "out.npz", "--bind", "dense=I1..I5", "--bind", "sparse=C1..C4", "--batch-size", "10"];
    let worker = |servers: &str| [&["run", "w.dist", "--role", "worker", "--servers", servers][..], &args].concat().join("\t");
    let job = graphtool(dir).args(worker(&endpoint).split('\t')).output().expect("it runs");
    assert!(job.status.success(), "{}", String::from_utf8_lossy(&job.stderr));
    let samples = parse(&get(&at, "/metrics").1);
    let lookups = samples["graphtool_pserver_lookups_total"];
    assert!(lookups >= 10.0 && samples["graphtool_pserver_ids_total"] >= 100.0 && samples["graphtool_pserver_response_bytes_total"] > 0.0);
    let count = "graphtool_lookup_duration_seconds_count";
    assert_eq!((samples[count], samples["graphtool_lookup_duration_seconds_bucket{le=\"+Inf\"}"]), (lookups, lookups));
    assert!(samples["graphtool_pserver_shard_bytes"] > 0.0 && samples["graphtool_process_start_time_seconds"] > 1e9);
    assert_eq!(get(&at, "/nothing").0, 404);
    // Nothing listens where this worker looks for its pserver.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let line = worker(&free);
    let mut worker = start(dir, &[line.split('\t').collect::<Vec<_>>(), vec!["--metrics-addr", "127.0.0.1:0"]].concat());
    let at = after(&mut worker.stderr, "metrics at http://").replace("/metrics", "");
    assert_eq!((get(&at, "/healthz").0, get(&at, "/readyz").0), (200, 503));
    assert_eq!(parse(&get(&at, "/metrics").1)["graphtool_worker_samples_total"], 0.0);
    // Strangers are let in only in so many words; a local run has nothing to show.
    for (more, says) in
        [(["--role", "pserver", "0.0.0.0:0"], "is not loopback"), (["--role", "local", "127.0.0.1:0"], "--metrics-addr is for")]
    {
        let refused = graphtool(dir).args(["run", "w.dist", more[0], more[1], "--metrics-addr", more[2]]).output().expect("it runs");
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && error.contains(says), "{error}");
    }
}
