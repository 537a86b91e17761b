//! The graph passes: each page's example is run; every pass is run on every model at hand and must leave it valid, with the
//! same interface and the same answers, and change nothing the second time.
//!
//! `GRAPHTOOL_ONNX_SUITE` names the folder `onnx/backend/test/data` of the wheel, whose cases are then run through each pass;
//! without it that test is skipped and says so. `GRAPHTOOL_MODELS` names a folder of models to take besides `models/`.
//! `GRAPHTOOL_PAGES=1` writes the *After* of each page.

#[path = "support/compare.rs"]
mod compare;
#[path = "support/suite.rs"]
mod suite;
#[path = "support/passes.rs"]
mod support;

use compare::{Tolerance, compare};
use graphtool::data::folder::read_folder;
use graphtool::deploy::{self, RewriteOptions, rewrite};
use graphtool::exec::{Options, Session};
use graphtool::formats;
use graphtool::ir::{Model, Type, parse_model, print_graph, print_model, verify};
use graphtool::passes::{self, Changed, FUSE, Pass, Report, TableTaken, UpgradeOpset, catalogue, example, page, section, with_settings};
use graphtool::store;
use graphtool::tensor::Value;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use suite::{Case, cases, read_values};
use support::{apply, bits, exact, near, run, same_answers};

/// A pass that needs settings, with those of its page's example.
fn set_up(pass: Box<dyn Pass>, before: &Model, report: &mut Report) -> Box<dyn Pass> {
    match pass.name() {
        "all-reduce" => Box::new(passes::AllReduce { outputs: vec![("total".into(), "sum".into())] }),
        "upgrade-opset" => Box::new(UpgradeOpset { to: 13 }),
        "partition-params" => {
            let table = before.graph.constant(before.graph.value("W").expect("W")).expect("a table").tensor.clone();
            report.tables.push(TableTaken { name: "W".into(), origin: "W".into(), tensor: table, lookups: 1 });
            pass
        }
        _ => pass,
    }
}

#[test]
fn each_page_is_whole_and_its_example_is_what_the_pass_does() {
    let faults: Vec<String> = catalogue().into_iter().chain(with_settings()).filter_map(|p| check_page(p).err()).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

fn check_page(pass: Box<dyn Pass>) -> Result<(), String> {
    let (name, text) = (pass.name(), page(pass.source()));
    let fault = |what: &str| Err(format!("{name}: {what}"));
    if !text.starts_with(&format!("`{name}`\n")) {
        return fault("no page of its name");
    }
    for mark in ["What", "Why", "Leaves alone"] {
        if section(&text, mark).is_none_or(|s| s.is_empty()) {
            return fault(mark);
        }
    }
    let (Some(before), Some(after)) = (example(&text, "Before"), example(&text, "After")) else { return fault("no example") };
    let mut model = parse_model(&before).map_err(|e| format!("{name}, Before: {e}"))?;
    let mut report = Report::default();
    let pass = set_up(pass, &model, &mut report);
    let mut run = |model: &mut Model| pass.run(model, &mut report).map_err(|e| format!("{name}: {e}"));
    let plain = model.clone();
    let did = run(&mut model)?;
    // What needs servers or other ranks is run by other tests.
    if [&plain, &model].iter().all(|m| m.opset("graphtool") == 0 && !uses_domain(m, "graphtool")) {
        same_answers(name, &plain, &model)?;
    }
    let found = if before.starts_with("model") { print_model(&model) } else { print_graph(&model.graph) };
    if did == Changed::No || !verify(&model).is_empty() {
        return fault(&format!("{did:?}, {:?}", verify(&model)));
    }
    if run(&mut model)? == Changed::Yes {
        return fault(&format!("it changes its own result:\n{found}{}", print_graph(&model.graph)));
    }
    if std::env::var_os("GRAPHTOOL_PAGES").is_some() {
        write_after(name, &found);
        return Ok(());
    }
    if found == after { Ok(()) } else { fault(&format!("expected\n{after}found\n{found}")) }
}

fn uses_domain(model: &Model, domain: &str) -> bool {
    model.graphs().iter().any(|g| g.ops().iter().any(|&id| g.node(id).op().is_some_and(|op| &*op.domain == domain)))
}

/// Puts a graph into the *After* of a page.
fn write_after(name: &str, graph: &str) {
    let stem = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/passes").join(name.replace('-', "_"));
    let path = [stem.with_extension("rs"), stem.join("mod.rs")].into_iter().find(|p| p.exists()).expect("the pass's file");
    let source = std::fs::read_to_string(&path).expect("a page");
    let (head, rest) = source.split_once("//! *After*:\n//! ```text\n").expect("an After");
    let (_, tail) = rest.split_once("//! ```\n").expect("its end");
    let lines: String = graph.lines().map(|l| format!("//! {l}\n")).collect();
    std::fs::write(&path, format!("{head}//! *After*:\n//! ```text\n{lines}//! ```\n{tail}")).expect("written");
}

/// The text of a model reads back to the same text.
fn text_is_stable(model: &Model) -> Result<(), String> {
    let text = print_model(model);
    let again = parse_model(&text).map_err(|e| format!("its text does not parse: {e}"))?;
    if print_model(&again) == text { Ok(()) } else { Err("its text reads back as another".into()) }
}

type Named = (&'static str, Box<dyn Fn(&mut Model) -> Result<Changed, passes::PassError>>);

/// Every pass of the catalogue, and all that `optimize` runs.
fn all_passes() -> Vec<Named> {
    let mut all: Vec<Named> = Vec::new();
    for pass in catalogue() {
        all.push((pass.name(), Box::new(move |m: &mut Model| pass.run(m, &mut Report::default()))));
    }
    all.push(("optimize", Box::new(|m: &mut Model| passes::optimize(m, "", &mut Report::default()))));
    let skip = FUSE.join(",");
    all.push(("optimize without fusing", Box::new(move |m: &mut Model| passes::optimize(m, &skip, &mut Report::default()))));
    all
}

/// Each pass on a model, beside the model without it, on each set of inputs.
fn check_model(model: &Model, sets: &[Vec<Value>]) -> Vec<String> {
    let mut faults: Vec<String> = text_is_stable(model).err().into_iter().collect();
    let plain: Vec<_> = sets.iter().map(|inputs| run(model, inputs)).collect();
    for (name, pass) in all_passes() {
        let new = match apply(&*pass, model) {
            Ok((_, Changed::No)) => continue,
            Ok((new, _)) => new,
            Err(e) => {
                faults.push(format!("{name}: {e}"));
                continue;
            }
        };
        faults.extend(text_is_stable(&new).err().map(|e| format!("{name}: {e}")));
        for (inputs, plain) in sets.iter().zip(&plain) {
            let Ok(plain) = plain else { continue };
            let found = match run(&new, inputs) {
                Ok(found) => found,
                Err(e) => {
                    faults.push(format!("{name}: {e}"));
                    continue;
                }
            };
            for ((output, found), (_, plain)) in found.iter().zip(plain) {
                let exactly = exact(name) && name != "optimize";
                if exactly && bits(found) != bits(plain) {
                    faults.push(format!("{name}: output {output} differs in a bit: {:?}", near(found, plain)));
                } else if !exactly && let Err(e) = near(found, plain) {
                    faults.push(format!("{name}: output {output}: {e}"));
                }
            }
        }
    }
    faults
}

fn model_folders() -> Vec<PathBuf> {
    let mut roots = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("models")];
    roots.extend(std::env::var_os("GRAPHTOOL_MODELS").map(PathBuf::from));
    let entries = roots.iter().flat_map(|r| std::fs::read_dir(r).expect("a folder of models").flatten().map(|e| e.path()));
    let mut all: Vec<PathBuf> = entries.filter(|p| p.join("model.onnx").is_file()).collect();
    all.sort();
    all
}

/// Calls `f` on each item, on a few threads of their own with room for deep bodies: a session waits for its pool.
fn each<T: Sync>(items: &[T], f: impl Fn(&T) -> Vec<String> + Sync) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let faults = Mutex::new(Vec::new());
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(item))).unwrap_or_else(|_| vec!["panic".into()]);
            faults.lock().expect("no panic holds it").extend(found);
        }
    };
    std::thread::scope(|s| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(s, work).expect("a thread");
        }
    });
    let mut faults = faults.into_inner().expect("no panic holds it");
    faults.sort();
    faults
}

#[test]
fn every_pass_keeps_the_answers_of_every_model() {
    let folders = model_folders();
    assert!(folders.len() >= 15, "only {} models", folders.len());
    let faults = each(&folders, |folder| {
        let model = formats::load(&folder.join("model.onnx")).expect("a model");
        let is_set = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("test_data_set_"));
        let mut paths: Vec<_> = std::fs::read_dir(folder).expect("a folder").flatten().map(|e| e.path()).filter(is_set).collect();
        paths.sort();
        let inputs = |p: &PathBuf| read_folder(p, "input").expect("inputs").into_iter().map(|(_, v)| v).collect::<Vec<_>>();
        let sets: Vec<Vec<Value>> = paths.iter().map(inputs).collect();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(sets.iter().all(|s| run(&model, s).is_ok()), "{name} does not run");
        check_model(&model, &sets).into_iter().map(|f| format!("{name}: {f}")).collect()
    });
    println!("{} models", folders.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn an_optimised_model_is_rewritten_with_equal_bits() {
    let dir = tempfile::tempdir().expect("a directory");
    for folder in model_folders() {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut model = formats::load(&folder.join("model.onnx")).expect("a model");
        passes::optimize(&mut model, "", &mut Report::default()).expect("a run");
        let out = dir.path().join(&name);
        rewrite(model.clone(), &out, RewriteOptions { shards: 3, ..Default::default() }).expect("a rewrite");
        let (_, rewritten) = deploy::open(&out).expect("a deployment");
        let store = store::open_local(&out).expect("a store");
        let plain = Session::new(&model, Options::default()).expect("a session");
        let remote = Session::new(&rewritten, Options { store: Some(store), ..Options::default() }).expect("a session");
        let set = folder.join("test_data_set_0");
        let names: Vec<String> = plain.inputs().iter().map(|i| i.0.to_owned()).collect();
        let inputs = || names.iter().cloned().zip(read_folder(&set, "input").expect("inputs").into_iter().map(|(_, v)| v)).collect();
        let (a, b) = (plain.run(inputs()).expect("a run"), remote.run(inputs()).expect("a run"));
        assert!(a.iter().zip(&b).all(|((_, a), (_, b))| bits(a) == bits(b)), "{name}");
    }
}

/// Whether a run may give other numbers than the run before.
fn draws(model: &Model) -> bool {
    let random = |op: &graphtool::ir::OpName| op.name.starts_with("Random") || ["Bernoulli", "Multinomial"].contains(&&*op.name);
    model.graphs().iter().any(|g| g.ops().iter().any(|&id| g.node(id).op().is_some_and(random)))
}

/// What the suite's cases are given, where this build runs them.
fn suite_sets(case: &Case, model: &Model) -> Vec<(Vec<Value>, Vec<Value>)> {
    let types = |list: Vec<Option<Type>>| list;
    let given = types(model.graph.inputs().iter().map(|&i| model.graph.node(i).outputs[0].ty.clone()).collect());
    let made = types(model.graph.outputs().iter().map(|o| o.ty.clone()).collect());
    let read = |set: &PathBuf| Some((read_values(&set.join("input"), &given).ok()?, read_values(&set.join("output"), &made).ok()?));
    case.sets.iter().filter_map(read).collect()
}

fn suite() -> Option<Vec<Case>> {
    let Some(root) = std::env::var_os("GRAPHTOOL_ONNX_SUITE").map(PathBuf::from) else {
        eprintln!("skipped: GRAPHTOOL_ONNX_SUITE does not name the suite's data folder");
        return None;
    };
    let filter = std::env::var("GRAPHTOOL_ONNX_FILTER").unwrap_or_default();
    let all: Vec<Case> = cases(&root, &filter);
    eprintln!("{} cases", all.len());
    Some(all)
}

#[test]
fn every_pass_keeps_the_answers_of_the_suite() {
    let Some(cases) = suite() else { return };
    let (random, failing) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let faults = each(&cases, |case| {
        let model = match formats::load(&case.model) {
            Ok(model) => model,
            Err(e) => return vec![e.to_string()],
        };
        if draws(&model) {
            random.fetch_add(1, Ordering::Relaxed);
            return check_model(&model, &[]);
        }
        let sets: Vec<_> = suite_sets(case, &model).into_iter().map(|s| s.0).collect();
        failing.fetch_add(usize::from(sets.iter().any(|s| run(&model, s).is_err())), Ordering::Relaxed);
        check_model(&model, &sets).into_iter().map(|f| format!("{}: {f}", case.name)).collect()
    });
    println!(
        "{} models; {} draw random numbers and {} fail without a pass, so that their answers are not compared",
        cases.len(),
        random.into_inner(),
        failing.into_inner()
    );
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_suite_passes_in_a_later_opset_or_is_refused() {
    let Some(cases) = suite() else { return };
    let (upgraded, refused) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let faults = each(&cases, |case| {
        let model = match formats::load(&case.model) {
            Ok(model) => model,
            Err(e) => return vec![e.to_string()],
        };
        let to = 24;
        if model.opset("") == 0 || model.opset("") >= to {
            return Vec::new();
        }
        let pass = UpgradeOpset { to };
        let new = match apply(&|m| pass.run(m, &mut Report::default()), &model) {
            Ok((new, _)) => new,
            Err(e) if e.contains("cannot be written") => {
                refused.lock().expect("no panic holds it").push(format!("{}: {e}", case.name));
                return Vec::new();
            }
            Err(e) => return vec![format!("{}: {e}", case.name)],
        };
        upgraded.fetch_add(1, Ordering::Relaxed);
        let mut faults = Vec::new();
        for (inputs, expected) in suite_sets(case, &model) {
            let right =
                |outputs: &[(String, Value)]| outputs.iter().zip(&expected).try_for_each(|((_, v), e)| compare(v, e, Tolerance::SUITE));
            let Ok(plain) = run(&model, &inputs) else { continue };
            if right(&plain).is_err() {
                continue;
            }
            match run(&new, &inputs) {
                Ok(found) => faults.extend(right(&found).err().map(|e| format!("{}: {e}", case.name))),
                Err(e) => faults.push(format!("{}: {e}", case.name)),
            }
        }
        faults
    });
    let refused = refused.into_inner().expect("no panic holds it");
    println!("{} upgraded, {} refused:\n{}", upgraded.into_inner(), refused.len(), refused.join("\n"));
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn names_that_are_taken_stay_whose_they_are() {
    for pass in catalogue() {
        let Some(before) = example(&page(pass.source()), "Before") else { continue };
        let mut once = parse_model(&before).expect("a model");
        pass.run(&mut once, &mut Report::default()).expect("a run");
        // A second graph owns every name that the pass made.
        let (mut first, mut taken) = (Vec::new(), Vec::new());
        let plain = parse_model(&before).expect("a model");
        let names = |m: &Model, out: &mut Vec<String>| {
            let g = &m.graph;
            out.extend(g.nodes().flat_map(|id| g.node(id).outputs.iter().map(|o| o.name.clone())).filter(|n| !n.is_empty()));
        };
        names(&plain, &mut first);
        names(&once, &mut taken);
        let new: Vec<String> = taken.into_iter().filter(|n| !first.contains(n)).collect();
        let Some((head, body)) = before.rsplit_once("-> (") else { continue };
        let (outputs, lines) = body.split_once(") {\n").expect("a graph");
        if before.contains("then_branch") || before.contains("body=") {
            continue;
        }
        let more: String = new.iter().map(|n| format!("  {n} = Constant() {{value=float32[] [7.0]}}\n")).collect();
        let extra: String = new.iter().map(|n| format!(", {n}")).collect();
        let text = format!("{head}-> ({outputs}{extra}) {{\n{more}{lines}");
        let mut model = parse_model(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", pass.name()));
        pass.run(&mut model, &mut Report::default()).unwrap_or_else(|e| panic!("{}: {e}", pass.name()));
        assert_eq!(verify(&model), [""; 0], "{}", pass.name());
        let mut again = parse_model(&text).expect("a model");
        pass.run(&mut again, &mut Report::default()).expect("a run");
        assert_eq!(print_model(&model), print_model(&again), "{}: the same names in each run", pass.name());
        let kept: Vec<String> = model.graph.outputs().iter().map(|o| model.graph.name_of(o.value).to_owned()).collect();
        assert!(new.iter().all(|n| kept.contains(n)), "{}", pass.name());
    }
}
