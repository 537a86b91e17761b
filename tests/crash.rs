//! Commands that write, stopped at every write: killed, on a full disk, in a directory that takes nothing. The kernel does it
//! (`strace` injects the fault into the N-th call that changes a file), so what is tested is the program as it is. The result
//! is the old one or the new one; what is left over goes at the next run. Says so where the machine has no strace.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Calls by which a process changes files.
const CHANGES: &str = "write,pwrite64,writev,openat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,ftruncate,fsync,\
                       fdatasync,copy_file_range,sendfile,fallocate,flock";
/// Calls that fail when a disk is full.
const TAKES_SPACE: &str = "write,pwrite64,writev,mkdir,mkdirat,ftruncate,fsync,copy_file_range,sendfile,fallocate";
/// Calls that fail where nothing may be changed.
const TAKES_NAMES: &str = "mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir";

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn graphtool(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_graphtool")).current_dir(dir).args(args).output().expect("the program runs")
}

fn right(dir: &Path, args: &[&str]) -> Vec<u8> {
    let out = graphtool(dir, args);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    out.stdout
}

/// Whether faults can be injected here.
fn strace() -> bool {
    let works = Command::new("strace").args(["-qq", "-o", "/dev/null", "-e", "inject=fsync:error=EIO:when=1", "true"]).status();
    let works = works.is_ok_and(|s| s.success());
    if !works {
        eprintln!("skipped: no strace that may trace here");
    }
    works
}

/// The command with a fault in the calls `set`: from the `n`-th on, or in that alone.
fn injected(dir: &Path, args: &[&str], set: &str, fault: &str, when: &str) -> Output {
    let inject = format!("inject={set}:{fault}:when={when}");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={set}"), "-e", &inject]);
    command.arg(env!("CARGO_BIN_EXE_graphtool")).args(args).current_dir(dir).output().expect("strace runs")
}

/// All files below `dir` with what they hold, by name; hidden ones too.
fn tree(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            all.extend(tree(&path).into_iter().map(|(n, b)| (format!("{name}/{n}"), b)));
            all.push((format!("{name}/"), Vec::new()));
        } else {
            all.push((name, std::fs::read(&path).expect("a file")));
        }
    }
    all.sort();
    all
}

/// The files of a directory, or what a model says, in full, with the digests of its constants.
type State = Vec<(String, Vec<u8>)>;

/// What a command makes.
enum Makes {
    /// A file, or a directory.
    Files(&'static str),
    /// A model, with its data file.
    Model(&'static str),
}

/// A command that is to be stopped: what makes the directory that it finds, and what it makes there.
struct Case {
    prepare: &'static [&'static [&'static str]],
    command: &'static [&'static str],
    makes: Makes,
}

/// The states that a result may be in: before, and after the command.
struct States {
    old: State,
    new: State,
}

impl Case {
    fn field(&self) -> tempfile::TempDir {
        let tmp = tempfile::tempdir().expect("a directory");
        for file in ["widedeep_ts11/model.onnx", "external_dynamo18/model.onnx", "external_dynamo18/model.onnx.data"] {
            std::fs::create_dir_all(tmp.path().join(file).parent().expect("a parent")).expect("made");
            std::fs::copy(models().join(file), tmp.path().join(file)).expect("copied");
        }
        let log = std::fs::read_to_string(models().join("clicks.csv")).expect("the log");
        let log: String = log.lines().take(200).map(|l| format!("{l}\n")).collect();
        std::fs::write(tmp.path().join("log.csv"), log).expect("written");
        for args in self.prepare {
            right(tmp.path(), args);
        }
        tmp
    }

    /// The result, which must be valid if it is there.
    fn result(&self, dir: &Path) -> State {
        match self.makes {
            Makes::Files(name) => {
                if name.ends_with(".dist") && dir.join(name).exists() {
                    right(dir, &["check", name]);
                }
                let prefix = format!("{name}/");
                tree(dir).into_iter().filter(|(n, _)| n == name || n.starts_with(&prefix)).collect()
            }
            Makes::Model(name) if dir.join(name).exists() => {
                right(dir, &["check", name]);
                vec![(name.to_owned(), right(dir, &["dump", name]))]
            }
            Makes::Model(_) => Vec::new(),
        }
    }

    /// Files that are none of the command's business.
    fn others(&self, dir: &Path) -> State {
        let (Makes::Files(name) | Makes::Model(name)) = self.makes;
        tree(dir).into_iter().filter(|(n, _)| !n.starts_with('.') && !n.starts_with(name)).collect()
    }

    fn states(&self) -> States {
        let tmp = self.field();
        let old = self.result(tmp.path());
        right(tmp.path(), self.command);
        let new = self.result(tmp.path());
        assert_ne!(old, new, "{:?} changes nothing", self.command);
        States { old, new }
    }

    /// Stops the command at its `n`-th call of `set`; whether there was one.
    fn stop(&self, states: &States, set: &str, fault: &str, n: usize, on: &str) -> bool {
        let tmp = self.field();
        let dir = tmp.path();
        let others = self.others(dir);
        let out = injected(dir, self.command, set, fault, &format!("{n}{on}"));
        let (at, said) = (format!("{:?} with {fault} at {n}{on} of {set}", self.command), text(&out.stderr));
        let found = self.result(dir);
        let is_new = found == states.new;
        assert!(is_new || found == states.old, "{at}: neither old nor new: {:?}", found.iter().map(|f| &f.0).collect::<Vec<_>>());
        match out.status.code() {
            Some(0) => assert!(is_new, "{at}: it says that it is done"),
            Some(1) => {
                let errors = said.lines().filter(|l| l.starts_with("error: ")).count();
                assert!(errors <= 1 && !said.contains("internal error"), "{at}: {said}");
            }
            // The fault was a kill; strace dies of it too.
            None => assert!(fault.starts_with("signal"), "{at}: {said}"),
            // The dynamic loader.
            Some(127) => assert!(said.contains("error while loading shared libraries"), "{at}: {said}"),
            Some(code) => panic!("{at}: exit code {code}: {said}"),
        }
        assert_eq!(self.others(dir), others, "{at}");
        // The next run sees to the rest.
        right(dir, self.command);
        assert_eq!(self.result(dir), states.new, "{at}: the next run");
        let left: Vec<_> = tree(dir).into_iter().map(|f| f.0).filter(|n| n.starts_with('.')).collect();
        assert_eq!(left, [""; 0], "{at}: after the next run");
        out.status.code() != Some(0) || !is_new
    }

    /// Stops the command in every way, at each place until there is none any more.
    fn stop_everywhere(&self) {
        let states = self.states();
        let ways = [
            (CHANGES, "signal=KILL", ""),
            (TAKES_SPACE, "error=ENOSPC", "+"),
            (TAKES_NAMES, "error=EROFS", "+"),
            (CHANGES, "error=EIO", ""),
        ];
        let mut stopped = 0;
        for (set, fault, on) in ways {
            // Faults in calls that do not matter, such as the line on stdout, end well: the last place is behind three of those.
            let (mut n, mut harmless) = (1, 0);
            while harmless < 4 {
                harmless = if self.stop(&states, set, fault, n, on) { 0 } else { harmless + 1 };
                n += 1;
            }
            stopped += n - 5;
        }
        println!("{:?}: stopped at {stopped} places", self.command);
        assert!(stopped > 20, "only {stopped} places");
    }
}

#[test]
fn a_new_deployment_is_whole_or_not_there() {
    if strace() {
        Case {
            prepare: &[],
            command: &["rewrite", "widedeep_ts11/model.onnx", "-o", "d.dist", "--shards", "2", "--min-bytes", "0"],
            makes: Makes::Files("d.dist"),
        }
        .stop_everywhere();
    }
}

#[test]
fn a_deployment_that_is_replaced_is_the_old_or_the_new_one() {
    if strace() {
        Case {
            prepare: &[&["rewrite", "widedeep_ts11/model.onnx", "-o", "d.dist", "--shards", "2", "--min-bytes", "0"]],
            command: &["rewrite", "external_dynamo18/model.onnx", "-o", "d.dist", "--min-bytes", "0"],
            makes: Makes::Files("d.dist"),
        }
        .stop_everywhere();
    }
}

#[test]
fn a_deployment_that_is_cut_anew_is_the_old_or_the_new_one() {
    if strace() {
        Case {
            prepare: &[&["rewrite", "external_dynamo18/model.onnx", "-o", "d.dist", "--min-bytes", "0"]],
            command: &["reshard", "d.dist", "--shards", "2"],
            makes: Makes::Files("d.dist"),
        }
        .stop_everywhere();
    }
}

#[test]
fn a_model_is_merged_whole_with_its_data() {
    if strace() {
        Case {
            prepare: &[
                &["rewrite", "external_dynamo18/model.onnx", "-o", "d.dist", "--min-bytes", "0"],
                &["merge", "d.dist", "-o", "m.onnx"],
                &["rewrite", "widedeep_ts11/model.onnx", "-o", "d.dist", "--min-bytes", "0"],
            ],
            command: &["merge", "d.dist", "-o", "m.onnx"],
            makes: Makes::Model("m.onnx"),
        }
        .stop_everywhere();
    }
}

#[test]
fn a_model_is_replaced_whole_with_its_data() {
    if strace() {
        Case {
            prepare: &[&["optimize", "external_dynamo18/model.onnx", "-o", "m.onnx", "--external", "1"]],
            command: &["optimize", "widedeep_ts11/model.onnx", "-o", "m.onnx", "--external", "1"],
            makes: Makes::Model("m.onnx"),
        }
        .stop_everywhere();
    }
}

#[test]
fn predictions_are_whole_or_not_there() {
    if strace() {
        Case {
            prepare: &[],
            command: &[
                "run",
                "widedeep_ts11/model.onnx",
                "--input",
                "log.csv",
                "--bind",
                "dense=I1..I5",
                "--bind",
                "sparse=C1..C4",
                "--output",
                "out.npz",
                "--batch-size",
                "64",
                "--threads",
                "1",
            ],
            makes: Makes::Files("out.npz"),
        }
        .stop_everywhere();
    }
}

#[test]
fn full_disks_and_read_only_directories_leave_what_was_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut script = Command::new("sh");
    script.arg(root.join("tests/tmpfs.sh")).arg(env!("CARGO_BIN_EXE_graphtool")).arg(models());
    let out = script.output().expect("a shell");
    let said = format!("{}{}", text(&out.stdout), text(&out.stderr));
    match out.status.code() {
        Some(0) => assert_eq!(said.matches("ok: ").count(), 6, "{said}"),
        Some(77) => eprintln!("{}", said.trim()),
        _ => panic!("{said}"),
    }
}
