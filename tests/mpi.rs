//! Workers that Open MPI's `mpirun` starts, beside pservers. Says so where there is no `mpirun`.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A process that is killed when this is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn graphtool(dir: &Path, args: &[&str]) -> Output {
    let out = Command::new(env!("CARGO_BIN_EXE_graphtool")).current_dir(dir).args(args).output().expect("the program runs");
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

const JOB: &str = "--input log.csv --bind dense=I1..I5 --bind sparse=C1..C4 --label click --batch-size 64";

#[test]
fn mpirun_starts_the_workers_of_a_job() {
    if Command::new("mpirun").arg("--version").output().is_err() {
        eprintln!("skipped: no mpirun here");
        return;
    }
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let log = std::fs::read_to_string(models.join("clicks.csv")).expect("the log");
    std::fs::write(dir.join("log.csv"), log.lines().take(2001).map(|l| format!("{l}\n")).collect::<String>()).expect("written");
    let model = models.join("widedeep_ts11/model.onnx");
    graphtool(dir, &["rewrite", model.to_str().expect("text"), "-o", "w.dist", "--shards", "2", "--min-bytes", "0"]);
    let job: Vec<&str> = JOB.split(' ').collect();
    let alone = graphtool(dir, &[&["run", "w.dist", "--output", "alone.npz"], job.as_slice()].concat());
    let mut servers = Vec::new();
    let mut endpoints = Vec::new();
    for index in ["0", "1"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
        command.current_dir(dir).args(["run", "w.dist", "--role", "pserver", "--servers", "127.0.0.1:0,127.0.0.1:0", "--port", "0"]);
        let mut child = command.args(["--index", index]).stdout(Stdio::piped()).spawn().expect("a pserver");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        endpoints.push(line.trim().rsplit(' ').next().expect("an address").to_owned());
        servers.push(Process(child));
    }
    // A port that was free a moment ago.
    let rank_0 = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let mut mpirun = Command::new("mpirun");
    mpirun.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    mpirun.args(["--oversubscribe", "-np", "2", env!("CARGO_BIN_EXE_graphtool"), "run", "w.dist", "--role", "worker"]);
    mpirun.args(["--servers", &endpoints.join(","), "--workers", &rank_0, "--output", "mpi.npz"]).args(&job);
    let out = mpirun.current_dir(dir).output().expect("mpirun runs");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert_eq!(std::fs::read(dir.join("mpi.npz")).expect("outputs"), std::fs::read(dir.join("alone.npz")).expect("outputs"));
    let metrics = |out: &Output| String::from_utf8_lossy(&out.stdout).lines().last().expect("metrics").to_owned();
    assert_eq!(metrics(&out), metrics(&alone));
    assert!(!said.contains("is meant?"), "{said}");
}
