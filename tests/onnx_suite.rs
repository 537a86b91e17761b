//! The backend test suite of the ONNX standard, run case by case in parallel.
//!
//! `GRAPHTOOL_ONNX_SUITE` names the folder `onnx/backend/test/data` of the wheel; without it the test is skipped and says
//! so. `GRAPHTOOL_ONNX_FILTER` runs the cases whose name contains it and prints each failure;
//! `GRAPHTOOL_ONNX_UPDATE=1` writes the table in `tests/README.md`.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/suite.rs"]
mod suite;

use compare::{Tolerance, compare};
use graphtool::exec::{Options, Session};
use graphtool::formats;
use graphtool::ir::Type;
use graphtool::passes::output_types;
use graphtool::tensor::{Tensor, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use suite::{Case, cases, read_values};

#[test]
fn the_suite_passes_but_for_the_listed_cases() {
    let Some(root) = std::env::var_os("GRAPHTOOL_ONNX_SUITE").map(PathBuf::from) else {
        eprintln!("skipped: GRAPHTOOL_ONNX_SUITE does not name the suite's data folder");
        return;
    };
    let filter = std::env::var("GRAPHTOOL_ONNX_FILTER").unwrap_or_default();
    let cases = cases(&root, &filter);
    std::panic::set_hook(Box::new(|_| {}));
    let results = run_all(&cases);
    let _ = std::panic::take_hook();
    let mut table: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let (mut failures, mut inferred, mut wrong) = (Vec::new(), Inferred::default(), Vec::new());
    for (case, result) in results {
        let row = table.entry(case.category).or_default();
        match result {
            Ok(found) => {
                row.0 += 1;
                inferred.exact += found.exact;
                inferred.partly += found.partly;
                inferred.unknown += found.unknown;
                wrong.extend(found.wrong.iter().map(|w| format!("{}: {w}", case.name)));
            }
            Err(e) => {
                row.1 += 1;
                failures.push((case.name.as_str(), e));
            }
        }
    }
    let table = print(&table, &inferred, wrong.len());
    println!("{table}");
    if !filter.is_empty() || std::env::var_os("GRAPHTOOL_ONNX_VERBOSE").is_some() {
        failures.iter().for_each(|(name, e)| println!("FAILED {name}: {e}"));
        wrong.iter().for_each(|w| println!("INFERRED {w}"));
        return;
    }
    if std::env::var_os("GRAPHTOOL_ONNX_UPDATE").is_some() {
        update(&table);
    }
    assert!(wrong.is_empty(), "inferred types that are not those of the values: {wrong:#?}");
    let listed = include_str!("onnx_suite_failures.txt");
    let known: BTreeMap<&str, &str> = listed.lines().filter_map(|l| l.split_once(": ")).collect();
    let new: Vec<_> = failures.iter().filter(|(name, _)| !known.contains_key(name)).collect();
    assert!(new.is_empty(), "{} cases fail that are not listed: {new:#?}", new.len());
    let failing: Vec<&str> = failures.iter().map(|f| f.0).collect();
    // What is drawn anew in each run comes out as it was recorded once in a thousand times.
    let gone: Vec<_> = known.iter().filter(|(k, why)| !failing.contains(k) && !why.contains("unseeded random")).collect();
    assert!(gone.is_empty(), "listed as failing, but they pass: {gone:?}");
}

/// How the inferred types of outputs compare with their values.
#[derive(Default)]
struct Inferred {
    exact: usize,
    partly: usize,
    unknown: usize,
    wrong: Vec<String>,
}

fn print(table: &BTreeMap<&str, (usize, usize)>, inferred: &Inferred, wrong: usize) -> String {
    let mut text = String::from("| category | passed | failed |\n|---|---|---|\n");
    let total = table.values().fold((0, 0), |n, row| (n.0 + row.0, n.1 + row.1));
    for (category, (passed, failed)) in table.iter().chain([(&"all", &total)]) {
        text += &format!("| {category} | {passed} | {failed} |\n");
    }
    text + &format!(
        "\nShape inference over the passing cases: of their outputs, {} have exactly the inferred type, {} one with unknown dims, {} \
         are not known before the run, {wrong} differ.\n",
        inferred.exact, inferred.partly, inferred.unknown
    )
}

/// Puts the table between the marks in `tests/README.md`.
fn update(table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/README.md");
    let text = std::fs::read_to_string(&path).expect("the page");
    let (head, rest) = text.split_once("<!-- suite -->\n").expect("the first mark");
    let (_, tail) = rest.split_once("<!-- end -->").expect("the second mark");
    std::fs::write(&path, format!("{head}<!-- suite -->\n{table}<!-- end -->{tail}")).expect("written");
}

/// Threads of our own: a session waits for its pool, which a worker of another pool must not.
fn run_all(cases: &[Case]) -> Vec<(&Case, Result<Inferred, String>)> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(i) else { break };
            let result = std::panic::catch_unwind(|| run_case(case)).unwrap_or_else(|_| Err("panic".into()));
            results.lock().expect("no panic holds it").push((i, case, result));
        }
    };
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(s, work).expect("a thread");
        }
    });
    let mut results = results.into_inner().expect("no panic holds it");
    results.sort_by_key(|r| r.0);
    results.into_iter().map(|(_, case, result)| (case, result)).collect()
}

fn run_case(case: &Case) -> Result<Inferred, String> {
    let model = formats::load(&case.model).map_err(|e| e.to_string())?;
    let session = Session::new(&model, Options { threads: 1, ..Options::default() }).map_err(|e| e.to_string())?;
    let types = output_types(&model);
    let names: Vec<String> = session.inputs().iter().filter(|i| !i.2).map(|i| i.0.to_owned()).collect();
    let all: Vec<String> = session.inputs().iter().map(|i| i.0.to_owned()).collect();
    let given: Vec<_> = model.graph.inputs().iter().map(|&i| model.graph.node(i).outputs[0].ty.clone()).collect();
    let made: Vec<_> = model.graph.outputs().iter().map(|o| o.ty.clone()).collect();
    let mut inferred = Inferred::default();
    let mut one = |inputs: Vec<Value>, expected: Vec<Value>| {
        let names = if inputs.len() <= names.len() { &names } else { &all };
        let found = session.run(names.iter().cloned().zip(inputs).collect()).map_err(|e| e.to_string())?;
        if found.len() < expected.len() {
            return Err(format!("expected {} outputs, found {}", expected.len(), found.len()));
        }
        for (((name, found), expected), ty) in found.iter().zip(&expected).zip(&types) {
            compare(found, expected, Tolerance::SUITE).map_err(|e| format!("output {name}: {e}"))?;
            match ty {
                None => inferred.unknown += 1,
                Some(ty) if !ty.admits(found) => inferred.wrong.push(format!("output {name}: inferred {ty}, found {}", found.describe())),
                Some(ty) if ty.shape().is_some_and(|s| s.iter().all(|d| d.known().is_some())) => inferred.exact += 1,
                Some(_) => inferred.partly += 1,
            }
        }
        Ok(())
    };
    for set in &case.sets {
        one(read_values(&set.join("input"), &given)?, read_values(&set.join("output"), &made)?)?;
    }
    if case.sets.is_empty() {
        let inputs = session.inputs().iter().filter(|i| !i.2).map(|i| made_input(i.1)).collect::<Result<_, _>>()?;
        one(inputs, read_values(&case.model.with_extension("").with_file_name(format!("{}_output", case.name)), &made)?)?;
    }
    Ok(inferred)
}

/// The input that the suite's runner makes for a model without data: k / n as element k of n.
fn made_input(ty: Option<&Type>) -> Result<Value, String> {
    let dims: Vec<usize> = ty.and_then(Type::shape).ok_or("an input without a shape")?.iter().map(|d| d.known().unwrap_or(1)).collect();
    let n: usize = dims.iter().product();
    let data = (0..n).map(|k| (k as f64 / n as f64) as f32).collect();
    Tensor::new(dims, data).map(Value::Tensor).map_err(|e| e.to_string())
}
