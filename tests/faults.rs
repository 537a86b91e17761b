//! Processes of a job that die or hang in the middle: what is started again, what the output is, what is said, what is left.
//! Each test waits for a worker's line of progress before it does harm, and harms its own processes alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// More than any step of these tests takes on a busy machine.
const LONG: Duration = Duration::from_secs(90);
/// The promise for a job that cannot go on.
const SOON: Duration = Duration::from_secs(10);

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn graphtool(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    command.current_dir(dir).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A deployment of a small model, a log of clicks with the number of each row, and the output of a run that nothing disturbs.
struct Field {
    tmp: tempfile::TempDir,
    expected: Vec<u8>,
    /// The line of metrics.
    metrics: String,
}

const SAMPLES: usize = 6000;

impl Field {
    fn new(rewrite: &[&str]) -> Self {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = tmp.path();
        let rows = std::fs::read_to_string(models().join("clicks.csv")).expect("the log");
        let numbered = |(i, row): (usize, &str)| if i == 0 { format!("{row},row\n") } else { format!("{row},{i}\n") };
        let log: String = rows.lines().take(SAMPLES + 1).enumerate().map(numbered).collect();
        std::fs::write(dir.join("log.csv"), log).expect("written");
        let model = models().join("widedeep_ts11/model.onnx");
        let mut args = vec!["rewrite", model.to_str().expect("text"), "-o", "w.dist", "--shards", "3", "--min-bytes", "0"];
        args.extend(rewrite);
        let out = graphtool(dir, &args).output().expect("the program runs");
        assert!(out.status.success(), "{}", text(&out.stderr));
        let mut field = Self { tmp, expected: Vec::new(), metrics: String::new() };
        let out = field.start(&["--worker_num", "2"]).wait_with_output().expect("the launcher ends");
        assert!(out.status.success(), "{}", text(&out.stderr));
        field.metrics = text(&out.stdout).lines().last().expect("metrics").to_owned();
        field.expected = std::fs::read(field.dir().join("out.csv")).expect("outputs");
        assert_eq!(field.expected.iter().filter(|b| **b == b'\n').count(), SAMPLES + 1);
        std::fs::remove_file(field.dir().join("out.csv")).expect("removed");
        field
    }

    fn dir(&self) -> &Path {
        self.tmp.path()
    }

    /// Starts a job of two pservers; the logs of an earlier one are gone.
    fn start(&self, extra: &[&str]) -> Child {
        let _ = std::fs::remove_dir_all(self.dir().join("log"));
        let base = "launch w.dist --server_num 2 --input log.csv --bind dense=I1..I5 --bind sparse=C1..C4 --label click --keep row \
                    --batch-size 16 --output out.csv --log_dir log";
        let args: Vec<&str> = base.split_whitespace().chain(extra.iter().copied()).collect();
        graphtool(self.dir(), &args).spawn().expect("a launcher")
    }

    /// Waits until a worker says that it has done so many samples.
    fn wait_for(&self, worker: usize, samples: usize, job: &mut Child) {
        let log = self.dir().join(format!("log/workerlog.{worker}"));
        let deadline = Instant::now() + LONG;
        let done = |line: &str| line.strip_prefix("progress ")?.split(' ').next()?.parse::<usize>().ok();
        while !std::fs::read_to_string(&log).unwrap_or_default().lines().filter_map(done).any(|n| n >= samples) {
            assert!(Instant::now() < deadline, "worker {worker} does not get to {samples} samples");
            assert!(job.try_wait().expect("a state").is_none(), "the job ended before worker {worker} had {samples} samples");
            std::thread::yield_now();
        }
    }

    /// The output is that of a run without faults, and nothing else is there.
    fn assert_whole(&self, out: &Output) {
        assert!(out.status.success(), "{}", text(&out.stderr));
        assert!(std::fs::read(self.dir().join("out.csv")).expect("outputs") == self.expected, "other outputs: {}", text(&out.stderr));
        assert_eq!(text(&out.stdout).lines().last(), Some(self.metrics.as_str()), "{}", text(&out.stdout));
        assert_eq!(self.names(), ["log", "log.csv", "out.csv", "w.dist"]);
        std::fs::remove_file(self.dir().join("out.csv")).expect("removed");
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir())
            .expect("a directory")
            .map(|e| e.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        names
    }
}

/// The living children of a process by their roles: `w0`, `s1`.
fn children(parent: u32) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for pid in std::fs::read_dir("/proc").expect("procfs").flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        if fields.first() == Some(&"Z") || fields.get(1).and_then(|p| p.parse::<u32>().ok()) != Some(parent) {
            continue;
        }
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        for entry in environ.split(|b| *b == 0) {
            let entry = text(entry);
            if let Some(i) = entry.strip_prefix("PADDLE_TRAINER_ID=") {
                found.insert(format!("w{i}"), pid);
            } else if let Some(i) = entry.strip_prefix("PADDLE_PSERVER_ID=") {
                found.insert(format!("s{i}"), pid);
            }
        }
    }
    found
}

fn signal(name: &str, pid: u32) {
    let done = Command::new("kill").args([name, &pid.to_string()]).status().expect("kill runs");
    assert!(done.success(), "{name} {pid}");
}

/// As [`signal`], to a process that its launcher may have killed by now, since it gave no sign of life.
fn signal_if_there(name: &str, pid: u32) {
    Command::new("kill").args([name, &pid.to_string()]).stderr(Stdio::null()).status().expect("kill runs");
}

fn hit(job: &Child, who: &str, name: &str) -> u32 {
    let pid = children(job.id())[who];
    signal(name, pid);
    pid
}

/// Waits until processes are gone.
fn assert_gone(pids: impl IntoIterator<Item = u32>) {
    let deadline = Instant::now() + SOON;
    for pid in pids {
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let lives = || stat().rsplit(')').next().and_then(|s| s.split_whitespace().next().map(|s| s != "Z")).unwrap_or(false);
        while lives() {
            assert!(Instant::now() < deadline, "process {pid} is left");
            std::thread::yield_now();
        }
    }
}

/// The end of a job that cannot go on: soon, on one line, with nothing left running.
fn fails_soon(job: Child, since: Instant, pids: BTreeMap<String, u32>, code: i32) -> String {
    let out = job.wait_with_output().expect("the launcher ends");
    assert!(since.elapsed() < SOON, "after {:?}", since.elapsed());
    let error = text(&out.stderr);
    assert_eq!((out.status.code(), error.lines().count()), (Some(code), 1), "{error}");
    assert_gone(pids.into_values());
    error
}

#[test]
fn killed_processes_are_started_again_and_the_output_is_the_same() {
    let field = Field::new(&[]);
    for victims in [&["s0"][..], &["w1"], &["w0"], &["s1", "w1"], &["s0", "s1", "w0", "w1"]] {
        let mut job = field.start(&["--worker_num", "2", "--max-restart", "3"]);
        field.wait_for(0, 16, &mut job);
        field.wait_for(1, 16, &mut job);
        victims.iter().for_each(|v| _ = hit(&job, v, "-9"));
        let out = job.wait_with_output().expect("the launcher ends");
        let said = text(&out.stderr);
        assert_eq!(said.matches("was killed by signal 9 (SIGKILL); restart 1 of 3").count(), victims.len(), "{victims:?}: {said}");
        field.assert_whole(&out);
    }
}

#[test]
fn workers_that_take_what_is_next_give_the_same_output_with_and_without_a_death() {
    let field = Field::new(&[]);
    let out = field.start(&["--worker_num", "3", "--schedule", "dynamic"]).wait_with_output().expect("the launcher ends");
    field.assert_whole(&out);
    let mut job = field.start(&["--worker_num", "3", "--schedule", "dynamic", "--max-restart", "1"]);
    field.wait_for(0, 16, &mut job);
    hit(&job, "w0", "-9");
    let out = job.wait_with_output().expect("the launcher ends");
    assert!(text(&out.stderr).contains("worker 0 was killed by signal 9"), "{}", text(&out.stderr));
    field.assert_whole(&out);
    // A worker that stands still leaves its share to the others.
    let mut job = field.start(&["--worker_num", "2", "--schedule", "dynamic", "--max-restart", "1"]);
    field.wait_for(1, 16, &mut job);
    let stopped = hit(&job, "w1", "-STOP");
    field.wait_for(0, SAMPLES / 2 + 16, &mut job);
    signal_if_there("-CONT", stopped);
    field.assert_whole(&job.wait_with_output().expect("the launcher ends"));
}

#[test]
fn a_worker_that_dies_while_the_others_wait_for_it_is_waited_for() {
    let field = Field::new(&[]);
    for (victim, other) in [(1, 0), (0, 1)] {
        let mut job = field.start(&["--worker_num", "2", "--max-restart", "1"]);
        field.wait_for(victim, 16, &mut job);
        let pid = hit(&job, &format!("w{victim}"), "-STOP");
        field.wait_for(other, SAMPLES / 2 - 16, &mut job);
        signal_if_there("-9", pid);
        field.assert_whole(&job.wait_with_output().expect("the launcher ends"));
    }
}

#[test]
fn a_graph_with_collectives_goes_on_from_the_round_that_all_have() {
    let field = Field::new(&["--all-reduce", "prob=max"]);
    for victims in [&["w1"][..], &["w0"], &["s0"]] {
        let mut job = field.start(&["--worker_num", "2", "--max-restart", "2"]);
        field.wait_for(0, 16, &mut job);
        victims.iter().for_each(|v| _ = hit(&job, v, "-9"));
        let out = job.wait_with_output().expect("the launcher ends");
        assert!(text(&out.stderr).contains("restart 1 of 2"), "{}", text(&out.stderr));
        field.assert_whole(&out);
    }
}

#[test]
fn a_worker_that_hangs_is_named_with_its_address_within_the_timeout_that_was_asked_for() {
    for rewrite in [&["--all-reduce", "prob=max"][..], &[]] {
        let field = Field::new(rewrite);
        let mut job = field.start(&["--worker_num", "2", "--rpc-timeout", "4"]);
        field.wait_for(1, 16, &mut job);
        let (pids, since) = (children(job.id()), Instant::now());
        hit(&job, "w1", "-STOP");
        let error = fails_soon(job, since, pids, 1);
        assert!(error.contains("rank 1 lost: nothing was heard of it for 3 s (127.0.0.1:"), "{error}");
    }
}

#[test]
fn without_restarts_left_the_dead_one_is_named_and_the_job_can_go_on_later() {
    let field = Field::new(&[]);
    for (victim, name, workers) in [("s0", "pserver 0", "2"), ("w1", "worker 1", "3"), ("w0", "worker 0", "1")] {
        let mut job = field.start(&["--worker_num", "2"]);
        field.wait_for(0, 16, &mut job);
        let (pids, since) = (children(job.id()), Instant::now());
        hit(&job, victim, "-9");
        let error = fails_soon(job, since, pids, 1);
        assert!(error.contains(&format!("error: {name} was killed by signal 9 (SIGKILL)")), "{error}");
        assert!(error.contains("out.csv.parts; the same command with --resume goes on"), "{error}");
        assert_eq!(field.names(), ["log", "log.csv", "out.csv.parts", "w.dist"]);
        // Any number of workers may go on.
        field.assert_whole(&field.start(&["--worker_num", workers, "--resume"]).wait_with_output().expect("the launcher ends"));
    }
}

#[test]
fn restarts_run_out() {
    let field = Field::new(&[]);
    let mut job = field.start(&["--worker_num", "2", "--max-restart", "1"]);
    field.wait_for(1, 16, &mut job);
    let first = hit(&job, "w1", "-9");
    let deadline = Instant::now() + LONG;
    let second = loop {
        match children(job.id()).get("w1") {
            Some(&pid) if pid != first => break pid,
            _ => assert!(Instant::now() < deadline, "worker 1 is not started again"),
        }
    };
    signal("-9", second);
    let out = job.wait_with_output().expect("the launcher ends");
    let error = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{error}");
    assert!(error.contains("worker 1 was killed by signal 9 (SIGKILL) after 1 restarts"), "{error}");
    assert!(!field.dir().join("out.csv").exists());
}

#[test]
fn finished_batches_of_another_job_do_not_count() {
    let field = Field::new(&[]);
    let mut job = field.start(&["--worker_num", "2"]);
    field.wait_for(0, 16, &mut job);
    hit(&job, "w0", "-9");
    job.wait_with_output().expect("the launcher ends");
    let out = field.start(&["--worker_num", "2", "--resume", "--batch-size", "32"]).wait_with_output();
    // Given twice, --batch-size is a wrong call; another empty cell makes another job.
    assert_eq!(out.expect("it ends").status.code(), Some(2));
    let out = field.start(&["--worker_num", "2", "--resume", "--empty", "0"]).wait_with_output().expect("it ends");
    let error = text(&out.stderr);
    assert!(error.contains("the parts are of another job: empty was \"\" and is \"0\""), "{error}");
    assert_eq!(out.status.code(), Some(1));
    // Without --resume they are thrown away.
    field.assert_whole(&field.start(&["--worker_num", "2"]).wait_with_output().expect("it ends"));
}

#[test]
fn ctrl_c_stops_all_and_says_how_to_go_on() {
    let field = Field::new(&[]);
    let mut job = field.start(&["--worker_num", "2", "--max-restart", "3"]);
    field.wait_for(0, 16, &mut job);
    let (pids, since) = (children(job.id()), Instant::now());
    signal("-INT", job.id());
    let error = fails_soon(job, since, pids, 130);
    assert!(error.contains("interrupted; all processes were stopped") && error.contains("--resume goes on"), "{error}");
    field.assert_whole(&field.start(&["--worker_num", "2", "--resume"]).wait_with_output().expect("the launcher ends"));
}

#[test]
fn no_process_outlives_its_launcher_even_one_that_is_stopped() {
    let field = Field::new(&[]);
    let mut job = field.start(&["--worker_num", "2"]);
    field.wait_for(0, 16, &mut job);
    let pids = children(job.id());
    assert_eq!(pids.keys().map(String::as_str).collect::<Vec<_>>(), ["s0", "s1", "w0", "w1"]);
    signal("-STOP", pids["w1"]);
    signal("-STOP", pids["s1"]);
    job.kill().expect("the launcher is ours");
    job.wait().expect("it ends");
    assert_gone(pids.into_values());
    field.assert_whole(&field.start(&["--worker_num", "2", "--resume"]).wait_with_output().expect("the launcher ends"));
}

#[test]
fn a_pserver_that_hangs_is_an_error_within_the_time_and_never_a_default_row() {
    let field = Field::new(&[]);
    let mut job = field.start(&["--worker_num", "2", "--rpc-timeout", "1.5"]);
    field.wait_for(0, 16, &mut job);
    let (pids, since) = (children(job.id()), Instant::now());
    signal("-STOP", pids["s0"]);
    signal("-STOP", pids["s1"]);
    let error = fails_soon(job, since, pids, 1);
    assert!(error.contains("pserver 127.0.0.1:") && error.contains("did not answer within 1.5 s"), "{error}");
    assert!(!field.dir().join("out.csv").exists());
}

#[test]
fn default_rows_for_a_pserver_that_hangs_are_a_choice_and_counted() {
    let field = Field::new(&[]);
    let mut job = field.start(&["--worker_num", "1", "--rpc-timeout", "0.02", "--on-unavailable", "default"]);
    field.wait_for(0, 16, &mut job);
    let pids = children(job.id());
    signal("-STOP", pids["s0"]);
    signal("-STOP", pids["s1"]);
    // The batches after those that were under way have no pserver.
    field.wait_for(0, SAMPLES, &mut job);
    signal("-CONT", pids["s0"]);
    signal("-CONT", pids["s1"]);
    let out = job.wait_with_output().expect("the launcher ends");
    let (said, error) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{error}");
    assert!(said.lines().last().expect("a line").ends_with(" ids got default rows because a server was unavailable"), "{said}");
    assert!(!said.contains("were absent"), "{said}");
}

#[test]
fn a_worker_that_hangs_is_killed_and_started_again() {
    let field = Field::new(&[]);
    let mut job = field.start(&["--worker_num", "2", "--max-restart", "1"]);
    field.wait_for(1, 16, &mut job);
    hit(&job, "w1", "-STOP");
    let out = job.wait_with_output().expect("the launcher ends");
    let said = text(&out.stderr);
    assert!(said.contains("worker 1 gives no sign of life and is killed"), "{said}");
    assert!(said.contains("worker 1 was killed by signal 9 (SIGKILL); restart 1 of 1"), "{said}");
    field.assert_whole(&out);
}
