//! Model files that are wrong in one way each: every command says in one line where, and ends at once. What is said of each is
//! in `snapshots/`; how the files were made is in `malformed/README.md`.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A field of bytes, in Protobuf.
fn field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn length(out: &mut Vec<u8>, mut n: usize) {
    while n >= 128 {
        out.push(n as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A float32 tensor of zeros.
fn zeros(dims: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = dims.iter().flat_map(|&d| [8, d]).collect();
    out.extend([16, 1]);
    field(&mut out, 0x4a, &vec![0; 4 * dims.iter().map(|&d| usize::from(d)).product::<usize>()]);
    out
}

/// A value's name and its type, float32[4].
fn info(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    field(&mut out, 0x0a, name.as_bytes());
    field(&mut out, 0x12, &[0x0a, 8, 8, 1, 0x12, 4, 0x0a, 2, 8, 4]);
    out
}

fn model(graph: &[u8]) -> Vec<u8> {
    let mut out = vec![8, 10];
    field(&mut out, 0x3a, graph);
    field(&mut out, 0x42, &[0x10, 21]);
    out
}

/// A valid model of `n` Identities in a row.
fn chain(n: usize) -> Vec<u8> {
    let name = |i: usize| {
        if i == 0 {
            "x".to_owned()
        } else if i == n {
            "y".to_owned()
        } else {
            format!("n{i}")
        }
    };
    let mut graph = Vec::new();
    for i in 0..n {
        let mut node = Vec::new();
        field(&mut node, 0x0a, name(i).as_bytes());
        field(&mut node, 0x12, name(i + 1).as_bytes());
        field(&mut node, 0x22, b"Identity");
        field(&mut graph, 0x0a, &node);
    }
    field(&mut graph, 0x12, b"g");
    field(&mut graph, 0x5a, &info("x"));
    field(&mut graph, 0x62, &info("y"));
    model(&graph)
}

/// `n` Ifs, each in the then-branch of the one around it.
fn nested_ifs(n: usize) -> Vec<u8> {
    let body = |node: &[u8], output: &str| {
        let mut g = Vec::new();
        field(&mut g, 0x0a, node);
        field(&mut g, 0x12, b"b");
        field(&mut g, 0x62, &info(output));
        g
    };
    let mut identity = Vec::new();
    field(&mut identity, 0x0a, b"x");
    field(&mut identity, 0x12, b"o");
    field(&mut identity, 0x22, b"Identity");
    let attribute = |name: &str, graph: &[u8]| {
        let mut a = Vec::new();
        field(&mut a, 0x0a, name.as_bytes());
        field(&mut a, 0x32, graph);
        a.extend([0xa0, 1, 5]);
        a
    };
    let otherwise = attribute("else_branch", &body(&identity, "o"));
    let tail = [&[0xa0, 1, 5][..], &{
        let mut t = Vec::new();
        field(&mut t, 0x2a, &otherwise);
        t
    }]
    .concat();
    let mut end = Vec::new();
    field(&mut end, 0x12, b"b");
    field(&mut end, 0x62, &info("o"));
    // From the inside out, growing at both ends.
    let mut all: VecDeque<u8> = body(&identity, "o").into();
    for _ in 0..n {
        let mut then = Vec::new();
        field(&mut then, 0x0a, b"then_branch");
        then.push(0x32);
        length(&mut then, all.len());
        let mut node = Vec::new();
        field(&mut node, 0x0a, b"c");
        field(&mut node, 0x12, b"o");
        field(&mut node, 0x22, b"If");
        node.push(0x2a);
        length(&mut node, then.len() + all.len() + 3);
        let mut graph = vec![0x0a];
        length(&mut graph, node.len() + then.len() + all.len() + tail.len());
        for byte in [graph, node, then].concat().into_iter().rev() {
            all.push_front(byte);
        }
        all.extend(tail.iter().chain(&end));
    }
    model(&Vec::from(all))
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// One line for a call: the exit code and what was said.
    fn call(&self, command: &str, file: &Path, extra: &[&str]) -> (i32, String) {
        let start = Instant::now();
        let out = Command::new(env!("CARGO_BIN_EXE_graphtool"))
            .arg(command)
            .arg(file)
            .args(extra)
            .stdin(Stdio::null())
            .current_dir(self.0.path())
            .output()
            .expect("the program runs");
        let took = start.elapsed();
        // A debug build on a busy machine; a release build takes a few milliseconds.
        assert!(took < Duration::from_secs(20), "{command} {} took {took:?}", file.display());
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        let code = out.status.code().unwrap_or_else(|| panic!("{command} {}: ended by a signal", file.display()));
        assert!(!error.contains("panicked") && !error.contains("internal error"), "{command} {}: {error}", file.display());
        assert_eq!(error.lines().count(), usize::from(code != 0), "{command} {}: {error}", file.display());
        let dir = file.parent().map(|d| format!("{}/", d.display())).unwrap_or_default();
        let said = error.trim_end().replace(&dir, "");
        (code, said.strip_prefix("error: ").unwrap_or(&said).to_owned())
    }
}

#[test]
fn each_file_is_refused_in_one_line_that_names_the_place() {
    let (folder, source) = (Folder::new(), Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/malformed"));
    let models = folder.path("models");
    std::fs::create_dir(&models).unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&source).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        std::fs::copy(entry.path(), models.join(&name)).unwrap();
        names.extend(name.strip_suffix(".onnx").map(str::to_owned));
    }
    let outside = folder.path("outside.bin");
    std::fs::write(&outside, [0; 16]).unwrap();
    std::os::unix::fs::symlink(&outside, models.join("link.bin")).unwrap();
    std::fs::hard_link(&outside, models.join("hard.bin")).unwrap();
    std::fs::write(models.join("deep_if_20000.onnx"), nested_ifs(20_000)).unwrap();
    names.push("deep_if_20000".into());
    names.sort();
    let mut table = String::new();
    for name in &names {
        let file = models.join(format!("{name}.onnx"));
        let input = folder.path(&format!("in-{name}"));
        std::fs::create_dir(&input).unwrap();
        let alone = ["run_constant_of_shape_huge", "run_div_int_min", "run_range_delta_zero", "tensor_string_raw"];
        if !alone.contains(&name.as_str()) {
            let dims: &[u8] = if name == "conv_pad_huge" { &[1, 1, 4] } else { &[4] };
            std::fs::write(input.join("input_0.pb"), zeros(dims)).unwrap();
        }
        let output = folder.path(&format!("out-{name}"));
        let (check, said) = folder.call("check", &file, &[]);
        let inspect = folder.call("inspect", &file, &[]);
        let run = folder.call("run", &file, &["--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()]);
        let valid = name.contains("control_good") || name == "deep_if_20";
        let want = i32::from(!valid);
        assert_eq!((check, inspect.0, run.0), (want, want, want), "{name}: {said} / {} / {}", inspect.1, run.1);
        assert_eq!(output.exists(), valid, "{name}");
        let said = if valid { "valid".to_owned() } else { said.replace(&format!("{name}.onnx: "), "") };
        table.push_str(&format!("{name}: {said}\n"));
        if !valid && run.1.replace(&format!("{name}.onnx: "), "") != said {
            table.push_str(&format!("    run: {}\n", run.1));
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn a_chain_of_50_000_nodes_is_valid_and_fast() {
    let folder = Folder::new();
    let file = folder.path("chain.onnx");
    std::fs::write(&file, chain(50_000)).unwrap();
    let input = folder.path("in");
    std::fs::create_dir(&input).unwrap();
    std::fs::write(input.join("input_0.pb"), zeros(&[4])).unwrap();
    assert_eq!(folder.call("check", &file, &[]), (0, String::new()));
    assert_eq!(folder.call("inspect", &file, &[]), (0, String::new()));
    assert_eq!(folder.call("run", &file, &["--input", "in", "--output", "out"]), (0, String::new()));
}
