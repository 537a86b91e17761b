//! What `graphtool k8s` writes is what Kubernetes takes, and processes that are started as it says do the job.

#[path = "k8s/cluster.rs"]
mod cluster;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cluster::{Pod, documents, find};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn graphtool(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    command.current_dir(dir).args(args).stdin(Stdio::null()).output().expect("it runs")
}

fn ok(dir: &Path, args: &[&str]) -> String {
    let out = graphtool(dir, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

fn refused(dir: &Path, args: &[&str]) -> String {
    let out = graphtool(dir, args);
    let error = String::from_utf8(out.stderr).expect("text");
    assert_eq!((out.status.code(), out.stdout.len()), (Some(2), 0), "{args:?}: {error}");
    error
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// A directory with a deployment, `wide.dist`, and a token.
fn deployment(more: &[&str]) -> tempfile::TempDir {
    let tmp = tempfile::tempdir().expect("a directory");
    let model = root().join("models/widedeep_ts11/model.onnx");
    ok(tmp.path(), &[&["rewrite", text(&model), "-o", "wide.dist", "--min-bytes", "0"][..], more].concat());
    std::fs::write(tmp.path().join("token"), "s3cret\n").expect("written");
    tmp
}

const BASE: [&str; 8] = ["k8s", "wide.dist", "--servers", "2", "--workers", "3", "--image", "registry.example/graphtool:1"];
const INPUT: [&str; 2] = ["--input", "/data/log.csv"];

/// The same again, through the type: nothing is there that it does not know.
fn is<T: DeserializeOwned + Serialize>(document: &Value) {
    let typed: T = serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{e} in {document:#}"));
    assert_eq!(&serde_json::to_value(&typed).expect("JSON"), document);
}

/// That each document is an object as Kubernetes defines it; their kinds.
fn typed(documents: &[Value]) -> Vec<&str> {
    let kinds = documents.iter().map(|d| {
        let kind = d["kind"].as_str().expect("a kind");
        match kind {
            "Job" => is::<Job>(d),
            "PodDisruptionBudget" => is::<PodDisruptionBudget>(d),
            "Secret" => is::<Secret>(d),
            "Service" => is::<Service>(d),
            "StatefulSet" => is::<StatefulSet>(d),
            other => panic!("{other}"),
        }
        kind
    });
    kinds.collect()
}

fn snapshot(name: &str, text: String) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots/k8s");
    settings.set_prepend_module_to_snapshot(false);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn all_objects_are_as_kubernetes_defines_them() {
    let tmp = deployment(&["--replicas", "2"]);
    let dir = tmp.path();
    let plain = ok(dir, &[&BASE[..], &["--dir-in-pod", "/models/wide.dist", "--input", "/models/log.csv", "--insecure"]].concat());
    // Only in a template is a variable meant.
    let full = [
        &["--namespace", "ads", "--claim", "models:/models", "--claim", "logs:/logs", "--output", "/logs/out/$(X)$$.npz", "--cpu", "1.5"],
        &["--bind", "dense=I1..I2", "--empty=-1", "--label", "12:30", "--cache", "64MiB", "--token-file", "token", "--tls-secret", "certs"]
            [..],
        &["--input", "/logs/part-*.csv", "--server-cpu", "500m", "--max-restart", "5", "--metrics-out", "/logs/metrics.json"],
    ];
    let full = ok(dir, &[&BASE[..], &full.concat()].concat());
    assert_eq!(typed(&documents(&plain)), ["Service", "Service", "StatefulSet", "PodDisruptionBudget", "Job"]);
    assert_eq!(typed(&documents(&full)), ["Secret", "Service", "Service", "StatefulSet", "PodDisruptionBudget", "Job"]);
    let again = ok(dir, &[&BASE[..], &["--dir-in-pod", "/models/wide.dist", "--input", "/models/log.csv", "--insecure"]].concat());
    assert_eq!(plain, again);
    snapshot("plain", plain);
    snapshot("full", full);
}

#[test]
fn what_kubernetes_does_not_define_would_be_noticed() {
    let tmp = deployment(&[]);
    let all = documents(&ok(tmp.path(), &[&BASE[..], &INPUT, &["--claim", "c", "--insecure"]].concat()));
    let mut set = find(&all, "StatefulSet").clone();
    set["spec"]["template"]["spec"]["containers"][0]["port"] = serde_json::json!(1);
    let typed: StatefulSet = serde_json::from_value(set.clone()).expect("a StatefulSet");
    assert_ne!(serde_json::to_value(typed).expect("JSON"), set);
}

#[test]
fn secrets_hold_the_files_and_only_their_owner_reads_the_manifests() {
    let tmp = deployment(&[]);
    let dir = tmp.path();
    let file = |name: &str| root().join("tests/tls").join(name);
    let (cert, key, ca) = (file("here.pem"), file("here.key"), file("ca.pem"));
    let certificates = ["--tls-cert", text(&cert), "--tls-key", text(&key), "--tls-ca", text(&ca)];
    let all = [&BASE[..], &INPUT, &certificates, &["--claim", "c", "--token-file", "token", "-o", "job.yaml"]].concat();
    let said = ok(dir, &all);
    assert!(said.starts_with("job.yaml: 2 pservers of 768.") && said.contains(" MiB each, 3 workers of 25"), "{said}");
    assert_eq!(std::fs::metadata(dir.join("job.yaml")).expect("a file").permissions().mode() & 0o777, 0o600);
    let all = documents(&std::fs::read_to_string(dir.join("job.yaml")).expect("a file"));
    assert_eq!(typed(&all)[..2], ["Secret", "Secret"]);
    let data = |document: &Value, key: &str| STANDARD.decode(document["data"][key].as_str().expect("a text")).expect("base64");
    assert_eq!(data(&all[0], "token"), b"s3cret");
    for (key, file) in [("tls.crt", &cert), ("tls.key", &key), ("ca.crt", &ca)] {
        assert_eq!(data(&all[1], key), std::fs::read(file).expect("a file"), "{key}");
    }
    // All pods mount both, to be read by their user alone.
    for kind in ["StatefulSet", "Job"] {
        let volumes = &find(&all, kind)["spec"]["template"]["spec"]["volumes"];
        for (i, name) in ["wide-token", "wide-tls"].into_iter().enumerate() {
            let secret = &volumes[i + 1]["secret"];
            assert_eq!((secret["secretName"].as_str(), secret["defaultMode"].as_u64()), (Some(name), Some(0o400)));
        }
    }
    // A file without secrets is as any other.
    ok(dir, &[&BASE[..], &INPUT, &["--claim", "c", "--token-secret", "mine", "-o", "other.yaml"]].concat());
    assert_ne!(std::fs::metadata(dir.join("other.yaml")).expect("a file").permissions().mode() & 0o777, 0o600);
    let other = std::fs::read_to_string(dir.join("other.yaml")).expect("a file");
    assert!(!other.contains("kind: Secret") && other.contains("secretName: mine"), "{other}");
}

#[test]
fn what_would_not_run_is_refused() {
    let tmp = deployment(&["--replicas", "2", "--shards", "3"]);
    let dir = tmp.path();
    let with = |more: &[&str]| refused(dir, &[&BASE[..], more].concat());
    let good = ["--claim", "c", "--input", "/data/log.csv"];
    let error = with(&good);
    let expected = "error: pods listen on addresses that are not loopback: give --token-file, --token-secret, --tls-cert or --tls-secret, or --insecure to serve anybody\n";
    assert_eq!(error, expected);
    let error = with(&[&good[..], &["--tls-secret", "certs"]].concat());
    assert!(error.contains("metrics are plain HTTP: give --token-file or --token-secret, or --insecure"), "{error}");
    let open = [&good[..], &["--insecure"]].concat();
    let cases: [(&[&str], &str); 12] = [
        (&["--name", "Wide"], "--name \"Wide\": expected 1 to 44 of a-z, 0-9 and -"),
        (&["--name", "2wide"], "--name \"2wide\": expected a letter first"),
        (&["--namespace", "a.b"], "--namespace \"a.b\": expected 1 to 63"),
        (&["--output", "/out/y.npz"], "--output /out/y.npz: it is on no volume that outlives its pod"),
        (&["--output", "/data"], "--output /data: it is on no volume"),
        (&["--metrics-out", "m.json"], "--metrics-out m.json: expected a path in the pods"),
        (&["--output", "/data/../y.npz"], "--output /data/../y.npz: expected a path in the pods"),
        (&["--input", "log.csv"], "--input log.csv: expected a path in the pods"),
        (&["--claim", "d"], "--claim d: c is at /data already"),
        (&["--resume"], "--resume needs --output"),
        (&["--dir-in-pod", "wide.dist"], "--dir-in-pod wide.dist: expected a path in the pods"),
        (&["--token-secret", "A"], "\"A\": expected at most 253 of a-z"),
    ];
    for (more, says) in cases {
        let error = with(&[&open[..], more].concat());
        assert!(error.contains(says), "{error}");
    }
    let of = |servers: &str, workers: &str| {
        let head = ["k8s", "wide.dist", "--servers", servers, "--workers", workers, "--image", "i"];
        refused(dir, &[&head[..], &open].concat())
    };
    assert!(of("1", "1").contains("1 pservers for 2 replicas of each shard: expected 2 or more"), "{}", of("1", "1"));
    assert!(of("4", "1").contains("4 pservers for 3 shards: rewrite with --shards 4 or more"), "{}", of("4", "1"));
    assert!(of("2", "9999").contains("9999 workers: the list of their endpoints has "), "{}", of("2", "9999"));
    assert!(with(&["--input", "/x", "--insecure"]).contains("where is DIR in the pods? give --claim, or --dir-in-pod"));
    assert!(with(&["--claim", "c", "--insecure"]).contains("--input is missing"));
    // What is wrong with a file is the file's fault.
    let wrong = graphtool(dir, &[&BASE[..], &good, &["--token-file", "/dev/null"]].concat());
    assert_eq!(
        (wrong.status.code(), String::from_utf8_lossy(&wrong.stderr).into_owned()),
        (Some(1), "error: /dev/null: it is empty\n".into())
    );
    std::fs::write(dir.join("model"), "").expect("written");
    let wrong = graphtool(dir, &["k8s", "model", "--servers", "1", "--workers", "1", "--image", "i"]);
    assert!(wrong.status.code() == Some(1) && String::from_utf8_lossy(&wrong.stderr).contains("make one by `graphtool rewrite`"));
}

/// A click log of so many rows in a directory.
fn log(dir: &Path, rows: usize) -> PathBuf {
    let all = std::fs::read_to_string(root().join("models/clicks.csv")).expect("a log");
    let lines: Vec<&str> = all.lines().take(rows + 1).collect();
    let path = dir.join("log.csv");
    std::fs::write(&path, lines.join("\n") + "\n").expect("written");
    path
}

const JOB: [&str; 6] = ["--bind", "dense=I1..I5", "--bind", "sparse=C1..C4", "--label", "click"];

/// The manifests of a job on a claim that the pods see where it is here.
fn manifests(dir: &Path, batch: &str) -> Vec<Value> {
    let (claim, input, output) = (format!("data:{}", dir.display()), dir.join("log.csv"), dir.join("pods.npz"));
    let head = ["k8s", "wide.dist", "--servers", "2", "--workers", "2", "--image", "i", "--token-file", "token", "--claim", &claim];
    let rest = ["--input", text(&input), "--output", text(&output), "--batch-size", batch, "--threads", "1"];
    let all = documents(&ok(dir, &[&head[..], &rest, &JOB].concat()));
    typed(&all);
    all
}

fn expected(dir: &Path, head: &[&str], batch: &str) -> (Vec<u8>, String) {
    let said = ok(dir, &[head, &["--input", "log.csv", "--output", "alone.npz", "--batch-size", batch], &JOB].concat());
    (std::fs::read(dir.join("alone.npz")).expect("outputs"), said.lines().last().expect("metrics").to_owned())
}

#[test]
fn processes_as_the_manifests_say_write_the_bytes_of_one_process() {
    let tmp = deployment(&[]);
    let dir = tmp.path();
    log(dir, 600);
    let model = root().join("models/widedeep_ts11/model.onnx");
    let (bytes, metrics) = expected(dir, &["run", text(&model)], "50");
    let all = manifests(dir, "50");
    let pods = cluster::pods(&all, dir, 1);
    let mut servers: Vec<_> = pods.iter().filter(|p| !p.worker).map(Pod::start).collect();
    servers.iter_mut().for_each(|s| s.wait_until_ready());
    let workers: Vec<_> = pods.iter().filter(|p| p.worker).map(Pod::start).collect();
    let said: Vec<String> = workers.into_iter().map(|w| w.finish()).collect();
    assert!(said[0].ends_with(&format!("{metrics}\n")), "{} is not {metrics}", said[0]);
    assert!(std::fs::read(dir.join("pods.npz")).expect("outputs") == bytes);
    assert!(!dir.join("pods.npz.parts").exists());
}

#[test]
fn pods_that_are_replaced_go_on_where_they_were() {
    let tmp = deployment(&[]);
    let dir = tmp.path();
    log(dir, 2000);
    let model = root().join("models/widedeep_ts11/model.onnx");
    let (bytes, metrics) = expected(dir, &["run", text(&model)], "4");
    let all = manifests(dir, "4");
    let pods = cluster::pods(&all, dir, 101);
    // In whatever order: a worker waits for pservers that are not there yet.
    let mut running: Vec<_> = pods.iter().rev().map(Pod::start).collect();
    running.reverse();
    let [p0, p1, w0, w1] = &mut running[..] else { panic!("four pods") };
    w1.wait_for_samples();
    w1.kill();
    // Without worker 1 nothing is finished, whoever else is replaced.
    p1.kill();
    *p1 = pods[1].start();
    w0.kill();
    *w0 = pods[2].start();
    p0.kill();
    *p0 = pods[0].start();
    *w1 = pods[3].start();
    let (w1, w0) = (running.pop().expect("worker 1"), running.pop().expect("worker 0"));
    let said = w0.finish();
    assert!(said.ends_with(&format!("{metrics}\n")) && said.contains("from before"), "{said}");
    w1.finish();
    assert!(std::fs::read(dir.join("pods.npz")).expect("outputs") == bytes);
}

#[test]
fn workers_of_a_graph_with_collectives_meet_at_their_pods() {
    let tmp = deployment(&["--all-reduce", "prob=max"]);
    let dir = tmp.path();
    log(dir, 200);
    let (bytes, _) = expected(dir, &["launch", "wide.dist", "--server_num", "2", "--worker_num", "2"], "20");
    let all = manifests(dir, "20");
    let pods = cluster::pods(&all, dir, 201);
    let (workers, _servers): (Vec<_>, Vec<_>) = pods.iter().map(Pod::start).partition(|r| r.worker);
    workers.into_iter().for_each(|w| drop(w.finish()));
    assert!(std::fs::read(dir.join("pods.npz")).expect("outputs") == bytes);
}
