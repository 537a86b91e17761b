//! The standard's suite through the command line: `run model.onnx --input test_data_set_0 --output out/`, and what is in
//! `out/` compared with the expected outputs.
//!
//! `GRAPHTOOL_ONNX_SUITE` names the suite's data folder; without it the test is skipped and says so. A debug build tries one
//! case in twenty, a release build all; `GRAPHTOOL_ONNX_STEP` says otherwise.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/suite.rs"]
mod suite;

use compare::{Tolerance, compare};
use graphtool::formats;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use suite::{Case, cases, read_values};

#[test]
fn each_case_gives_the_expected_files() {
    let Some(root) = std::env::var_os("GRAPHTOOL_ONNX_SUITE").map(PathBuf::from) else {
        eprintln!("skipped: GRAPHTOOL_ONNX_SUITE does not name the suite's data folder");
        return;
    };
    let step = std::env::var("GRAPHTOOL_ONNX_STEP").ok().and_then(|s| s.parse().ok());
    let step = step.unwrap_or(if cfg!(debug_assertions) { 20 } else { 1 });
    let filter = std::env::var("GRAPHTOOL_ONNX_FILTER").unwrap_or_default();
    let listed = include_str!("onnx_suite_failures.txt");
    let known: Vec<&str> = listed.lines().filter_map(|l| l.split_once(": ")).map(|l| l.0).collect();
    let cases: Vec<Case> =
        cases(&root, &filter).into_iter().step_by(step).filter(|c| !c.sets.is_empty() && !known.contains(&c.name.as_str())).collect();
    let out = tempfile::tempdir().expect("a folder");
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = run_case(case, &out.path().join(format!("{}-{}", case.category, case.name))) {
                failures.lock().expect("no panic holds it").push(format!("{}: {e}", case.name));
            }
        }
    };
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            s.spawn(work);
        }
    });
    let mut failures = failures.into_inner().expect("no panic holds it");
    failures.sort();
    println!("{} of {} cases pass through the command line", cases.len() - failures.len(), cases.len());
    assert!(failures.is_empty(), "{failures:#?}");
}

fn run_case(case: &Case, out: &Path) -> Result<(), String> {
    let model = formats::load(&case.model).map_err(|e| e.to_string())?;
    let types: Vec<_> = model.graph.outputs().iter().map(|o| o.ty.clone()).collect();
    for (k, set) in case.sets.iter().enumerate() {
        let out = PathBuf::from(format!("{}-{k}", out.display()));
        let done = Command::new(env!("CARGO_BIN_EXE_graphtool"))
            .args(["run", "--threads", "1"])
            .arg(&case.model)
            .arg("--input")
            .arg(set)
            .arg("--output")
            .arg(&out)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| e.to_string())?;
        if !done.status.success() {
            return Err(format!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim()));
        }
        let found = read_values(&out.join("output"), &types)?;
        let expected = read_values(&set.join("output"), &types)?;
        if found.len() != model.graph.outputs().len() || found.len() < expected.len() {
            return Err(format!("expected {} files, found {}", expected.len(), found.len()));
        }
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            compare(found, expected, Tolerance::SUITE).map_err(|e| format!("output_{i}.pb: {e}"))?;
        }
    }
    Ok(())
}
