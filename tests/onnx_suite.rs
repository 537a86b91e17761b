//! The backend test suite of the ONNX standard, run case by case in parallel.
//!
//! `GRAPHTOOL_ONNX_SUITE` names the folder `onnx/backend/test/data` of the wheel; without it the test is skipped and says
//! so. `GRAPHTOOL_ONNX_FILTER` runs the cases whose name contains it and prints each failure.

#[path = "support/compare.rs"]
mod compare;

use bytes::Bytes;
use compare::{Tolerance, compare};
use graphtool::exec::{Options, Session};
use graphtool::formats::{self, onnx::value::decode_value};
use graphtool::ir::Type;
use graphtool::tensor::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const CATEGORIES: [&str; 5] = ["light", "node", "pytorch-converted", "pytorch-operator", "simple"];

#[test]
fn the_suite_passes_but_for_the_listed_cases() {
    let Some(root) = std::env::var_os("GRAPHTOOL_ONNX_SUITE").map(PathBuf::from) else {
        eprintln!("skipped: GRAPHTOOL_ONNX_SUITE does not name the suite's data folder");
        return;
    };
    let filter = std::env::var("GRAPHTOOL_ONNX_FILTER").unwrap_or_default();
    let mut cases = Vec::new();
    for category in CATEGORIES {
        let Ok(entries) = std::fs::read_dir(root.join(category)) else { continue };
        for entry in entries.flatten().filter(|e| e.path().join("model.onnx").is_file() || category == "light") {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains(&filter) && entry.path().join("model.onnx").is_file() {
                cases.push((category, name, entry.path()));
            }
        }
    }
    cases.sort();
    std::panic::set_hook(Box::new(|_| {}));
    let results = run_all(&cases);
    let _ = std::panic::take_hook();
    let mut table: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut failures = Vec::new();
    for (category, name, result) in results {
        let row = table.entry(category).or_default();
        match result {
            Ok(()) => row.0 += 1,
            Err(e) => {
                row.1 += 1;
                failures.push((name.as_str(), e));
            }
        }
    }
    for (category, (passed, failed)) in &table {
        println!("{category}: {passed} passed, {failed} failed");
    }
    if !filter.is_empty() || std::env::var_os("GRAPHTOOL_ONNX_VERBOSE").is_some() {
        failures.iter().for_each(|(name, e)| println!("FAILED {name}: {e}"));
        return;
    }
    let listed = include_str!("onnx_suite_failures.txt");
    let known: BTreeMap<&str, &str> = listed.lines().filter_map(|l| l.split_once(": ")).collect();
    let new: Vec<_> = failures.iter().filter(|(name, _)| !known.contains_key(name)).collect();
    assert!(new.is_empty(), "{} cases fail that are not listed: {new:#?}", new.len());
    let failing: Vec<&str> = failures.iter().map(|f| f.0).collect();
    let gone: Vec<_> = known.keys().filter(|k| !failing.contains(k)).collect();
    assert!(gone.is_empty(), "listed as failing, but they pass: {gone:?}");
}

/// Threads of our own: a session waits for its pool, which a worker of another pool must not.
fn run_all<'c>(cases: &'c [(&'static str, String, PathBuf)]) -> Vec<(&'static str, &'c String, Result<(), String>)> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let work = || {
        while let Some((category, name, path)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = run_case(path);
            results.lock().expect("no panic holds it").push((*category, name, result));
        }
    };
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(s, work).expect("a thread");
        }
    });
    let mut results = results.into_inner().expect("no panic holds it");
    results.sort_by_key(|r| (r.0, r.1));
    results
}

fn run_case(path: &Path) -> Result<(), String> {
    std::panic::catch_unwind(|| {
        let model = formats::load(&path.join("model.onnx")).map_err(|e| e.to_string())?;
        let session = Session::new(&model, Options { threads: 1, ..Options::default() }).map_err(|e| e.to_string())?;
        let names: Vec<String> = session.inputs().iter().filter(|i| !i.2).map(|i| i.0.to_owned()).collect();
        let mut sets: Vec<_> =
            std::fs::read_dir(path).map_err(|e| e.to_string())?.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
        sets.sort();
        for set in sets {
            let inputs = read_values(
                &set,
                "input",
                &model.graph.inputs().iter().map(|&i| model.graph.node(i).outputs[0].ty.clone()).collect::<Vec<_>>(),
            )?;
            let all: Vec<String> = session.inputs().iter().map(|i| i.0.to_owned()).collect();
            let names = if inputs.len() <= names.len() { &names } else { &all };
            let found = session.run(names.iter().cloned().zip(inputs).collect()).map_err(|e| e.to_string())?;
            let expected = read_values(&set, "output", &model.graph.outputs().iter().map(|o| o.ty.clone()).collect::<Vec<_>>())?;
            for ((name, found), expected) in found.iter().zip(&expected) {
                compare(found, expected, Tolerance::SUITE).map_err(|e| format!("output {name}: {e}"))?;
            }
        }
        Ok(())
    })
    .unwrap_or_else(|_| Err("panic".into()))
}

fn read_values(set: &Path, kind: &str, types: &[Option<Type>]) -> Result<Vec<Value>, String> {
    use graphtool::formats::onnx::value::ValueKind;
    let mut values = Vec::new();
    for i in 0.. {
        let file = set.join(format!("{kind}_{i}.pb"));
        let Ok(bytes) = std::fs::read(&file) else { break };
        let kind = types.get(i).and_then(Option::as_ref).map(|t| match t {
            Type::Sequence(_) => ValueKind::Sequence,
            Type::Optional(_) => ValueKind::Optional,
            Type::Map { .. } => ValueKind::Map,
            _ => ValueKind::Tensor,
        });
        values.push(decode_value(&Bytes::from(bytes), kind).map_err(|e| format!("{}: {e}", file.display()))?.1);
    }
    Ok(values)
}
