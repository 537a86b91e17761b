//! The graph commands as their users call them: optimize, passes, explain, extract, convert --opset.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn model(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name).join("model.onnx");
    path.to_str().expect("a path that is text").to_owned()
}

fn call(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    command.current_dir(dir).stdin(Stdio::null()).args(args).output().expect("the program runs")
}

fn ok(dir: &Path, args: &[&str]) -> String {
    let out = call(dir, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

/// One line on stderr, the exit code, no file left behind.
fn fails(dir: &Path, args: &[&str], code: i32) -> String {
    let out = call(dir, args);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    assert!(!error.contains("panicked") && !dir.join("out.onnx").exists(), "{error}");
    error.trim_start_matches("error: ").trim_end().to_owned()
}

fn files(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> =
        std::fs::read_dir(dir).expect("a directory").flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

#[test]
fn optimize_says_what_each_pass_did_and_a_second_run_changes_nothing() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let said = ok(dir, &["optimize", &model("bert_plain_ts17"), "-o", "out.onnx"]);
    insta::assert_snapshot!(said, @r"
    83 nodes -> 40, 19 initializers -> 29
      lift-constants                  +38 initializers
      no-ops                          -4 nodes
      fold-shapes                     +4 initializers
      reshape-chains                  +1 initializer
      common-subexpressions           -4 nodes
      merge-initializers              -27 initializers
      dead-code                       -26 nodes, -6 initializers
      fuse-gelu                       -4 nodes
      fuse-skip-layer-normalization   -4 nodes
      fuse-matmul                     -1 node
    ");
    assert_eq!(files(dir), ["out.onnx"]);
    assert_eq!(ok(dir, &["optimize", "out.onnx", "-o", "again.onnx"]), "40 nodes -> 40, 29 initializers -> 29, nothing changed\n");
    assert_eq!(std::fs::read(dir.join("out.onnx")).expect("bytes"), std::fs::read(dir.join("again.onnx")).expect("bytes"));
    let set = Path::new(&model("bert_plain_ts17")).with_file_name("test_data_set_0");
    let args = ["compare", "out.onnx", &model("bert_plain_ts17"), "--input", set.to_str().expect("text"), "--rtol", "1e-5"];
    assert!(ok(dir, &args).contains("equal enough"));
    assert!(ok(dir, &["check", "out.onnx"]).starts_with("ok: 40 nodes"));
}

#[test]
fn passes_are_chosen_and_skipped_by_name() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let said = ok(dir, &["optimize", &model("dlrm_ts13"), "-o", "one.onnx", "--passes", "lift-constants"]);
    assert_eq!(said.lines().count(), 2, "{said}");
    let plain = ok(dir, &["optimize", &model("dlrm_ts13"), "-o", "all.onnx"]);
    let less = ok(dir, &["optimize", &model("dlrm_ts13"), "-o", "less.onnx", "--skip", "fuse-activations, fuse-matmul"]);
    assert!(plain.contains("fuse-activations") && !less.contains("fuse-"), "{plain}{less}");
    let m = model("dlrm_ts13");
    let near = fails(dir, &["optimize", &m, "-o", "out.onnx", "--passes", "fuse-activation"], 2);
    assert_eq!(near, "no pass \"fuse-activation\"; near it: fuse-activations, fuse-attention (`graphtool passes` lists them)");
    assert_eq!(fails(dir, &["optimize", &m, "-o", "out.onnx", "--skip", "xyzzy"], 2), "no pass \"xyzzy\" (`graphtool passes` lists them)");
    assert!(fails(dir, &["optimize", "none.onnx", "-o", "out.onnx"], 1).contains("none.onnx"));
}

#[test]
fn data_goes_outside_and_comes_back() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let optimize =
        |from: &str, to: &str, external: &str| ok(dir, &["optimize", from, "-o", to, "--passes", "dead-code", "--external", external]);
    optimize(&model("dlrm_ts13"), "out.onnx", "4KiB");
    assert_eq!(files(dir), ["out.onnx", "out.onnx.data"]);
    optimize("out.onnx", "kept.onnx", "keep");
    optimize("out.onnx", "whole.onnx", "none");
    assert_eq!(files(dir), ["kept.onnx", "kept.onnx.data", "out.onnx", "out.onnx.data", "whole.onnx"]);
    let dump = |m: &str| ok(dir, &["dump", m]);
    assert!(["kept.onnx", "whole.onnx", &model("dlrm_ts13")].iter().all(|m| dump(m) == dump("out.onnx")));
    let size = |m: &str| std::fs::metadata(dir.join(m)).expect("a file").len();
    assert!(size("out.onnx") + 4096 < size("whole.onnx"));
}

#[test]
fn explain_prints_the_page_of_a_pass_and_the_record_of_an_op() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    insta::assert_snapshot!(ok(dir, &["explain", "cast-chains"]), @r"
    cast-chains

    What: a Cast of a Cast reads the first one's operand, where the type between holds every value of the first.
    Why: exporters widen, compute nothing, and narrow again.
    Before:
        graph g(x: int32[n]) -> (y) {
          wide = Cast(x) {to=7}
          y = Cast(wide) {to=1}
        }
    After:
        graph g(x: int32[n]) -> (y) {
          wide = Cast(x) {to=7}
          y = Cast(x) {to=1}
        }
    Needs: the type of the first operand.
    Leaves alone: types between that round or cut (float32 by way of float16), texts. The first Cast goes by dead-code.
    ");
    insta::assert_snapshot!(ok(dir, &["explain", "Softmax"]), @r"
    Softmax
    Domain     ai.onnx
    Versions   1, 11, 13
    Inputs     1
    Outputs    1
    Attributes axis = -1
    Runs by    a kernel
    Pure       yes: equal operands give equal results; it is folded, merged and dropped
    ");
    insta::assert_snapshot!(ok(dir, &["explain", "ai.onnx.ml::Scaler"]), @r"
    ai.onnx.ml::Scaler
    Domain     ai.onnx.ml
    Versions   1
    Inputs     1
    Outputs    1
    Attributes offset
               scale
    Runs by    a kernel
    Pure       yes: equal operands give equal results; it is folded, merged and dropped
    ");
    assert!(ok(dir, &["explain", "Attention"]).ends_with("See also   com.microsoft::Attention\n"));
    assert!(ok(dir, &["explain", "RandomNormal"]).contains("no: it is never folded"));
    assert_eq!(fails(dir, &["explain", "Gathr"], 2), "no pass and no op \"Gathr\"; near it: Gather");
    for line in ok(dir, &["passes"]).lines().skip(1) {
        let name = line.split_whitespace().next().expect("a name");
        assert!(ok(dir, &["explain", name]).starts_with(&format!("{name}\n")), "{name}");
    }
}

#[test]
fn extract_cuts_a_part_out() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let m = model("deepfm_ts13");
    let said = ok(dir, &["extract", &m, "-o", "part.onnx", "--outputs", "/Concat_output_0"]);
    assert!(said.ends_with("nodes: part.onnx\n"), "{said}");
    assert!(ok(dir, &["check", "part.onnx"]).starts_with("ok: "));
    let text = ok(dir, &["dump", "part.onnx"]);
    assert!(text.contains("(sparse: int64[batch,5]) -> (/Concat_output_0: float32[5,batch,1])"), "{text}");
    let error = fails(dir, &["extract", &m, "-o", "out.onnx", "--outputs", "/Concat_output"], 2);
    assert!(error.starts_with("the graph has no value \"/Concat_output\"; near it: /Concat_output_0"), "{error}");
    let error = fails(dir, &["extract", &m, "-o", "out.onnx", "--inputs", "dense", "--outputs", "/Concat_output_0"], 2);
    assert_eq!(error, "input \"sparse\" is needed for \"/Concat_output_0\" but not among --inputs");
}

#[test]
fn convert_writes_a_later_opset() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let m = model("modfunc_ts15");
    ok(dir, &["convert", &m, "-o", "later.onnx", "--opset", "21"]);
    let text = ok(dir, &["dump", "later.onnx"]);
    assert!(text.starts_with("model ir_version=10 opset=[\"\"=21") && text.contains("function domain="), "{text}");
    let set = Path::new(&m).with_file_name("test_data_set_0");
    let args = ["compare", "later.onnx", &m, "--input", set.to_str().expect("text"), "--rtol", "0", "--atol", "0"];
    assert!(ok(dir, &args).contains("equal enough"));
    assert_eq!(
        fails(dir, &["convert", &m, "-o", "out.onnx", "--opset", "13"], 2),
        "the model is of opset 15; only a later one can be written, not 13"
    );
}
