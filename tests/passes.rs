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

use compare::{Tolerance, compare};
use graphtool::data::folder::read_folder;
use graphtool::deploy::{self, RewriteOptions, rewrite};
use graphtool::exec::{Options, Session};
use graphtool::formats;
use graphtool::ir::{Model, Type, parse_model, print_graph, print_model, verify};
use graphtool::passes::{self, Changed, FUSE, Pass, Report, TableTaken, UpgradeOpset, catalogue, example, page, section, with_settings};
use graphtool::store;
use graphtool::tensor::{DType, Tensor, Value, cast};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use suite::{Case, cases, read_values};

/// A pass that needs settings, with those of its page's example.
fn set_up(pass: Box<dyn Pass>, before: &Model, report: &mut Report) -> Box<dyn Pass> {
    match pass.name() {
        "all-reduce" => Box::new(passes::AllReduce { outputs: vec![("total".into(), "sum".into())] }),
        "upgrade-opset" => Box::new(UpgradeOpset { to: 13 }),
        "partition-params" => {
            let table = before.graph.constant(before.graph.value("W").expect("W")).expect("a table").tensor.clone();
            report.tables.push(TableTaken { name: "W".into(), tensor: table, lookups: 1 });
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

/// Runs both on made inputs: numbers between -1 and 1, small integers, 3 for each dim that is a symbol.
fn same_answers(name: &str, plain: &Model, new: &Model) -> Result<(), String> {
    let inputs: Vec<Value> = plain.graph.inputs().iter().enumerate().map(|(k, &i)| made(k, plain.graph.type_of(i.value(0)))).collect();
    let (expected, found) = (run(plain, &inputs)?, run(new, &inputs)?);
    for ((output, a), (_, b)) in found.iter().zip(&expected) {
        let good = if exact(name) { (bits(a) == bits(b)).then_some(()).ok_or_else(|| "another bit".into()) } else { near(a, b) };
        good.map_err(|e| format!("{name}, output {output}: {e}"))?;
    }
    Ok(())
}

fn made(k: usize, ty: Option<&Type>) -> Value {
    let ty = ty.expect("a stated type");
    let dims: Vec<usize> = ty.shape().expect("dims").iter().map(|d| d.known().unwrap_or(3)).collect();
    let n = dims.iter().product::<usize>();
    let numbers = (0..n).map(|i| ((i * 37 + k * 11) % 41) as f32 / 20.5 - 1.0).collect();
    let dtype = ty.dtype().expect("a dtype");
    let scaled = if dtype.is_float() { 1f32 } else { 8.0 };
    let t =
        Tensor::new(dims, numbers).and_then(|t| cast(&Tensor::new(t.shape(), t.to_f32s()?.iter().map(|x| x * scaled).collect())?, dtype));
    Value::Tensor(t.expect("a tensor"))
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

/// The passes that keep every bit, and those that may round otherwise.
fn exact(pass: &str) -> bool {
    !FUSE.contains(&pass) || pass == "split-slices"
}

/// How far a fused result may be from the plain one: of the largest value of the tensor, 1e-5, or what half a unit in the last place
/// of its type is.
fn share(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 1e-2,
        _ => 1e-5,
    }
}

fn bits(v: &Value) -> String {
    match v {
        // Equality of floats would not tell -0 from 0, and NaN from itself.
        Value::Tensor(t) => format!("{}{} {}", t.dtype(), t.shape(), graphtool::ir::digest(t)),
        other => format!("{other:?}"),
    }
}

fn near(a: &Value, b: &Value) -> Result<(), String> {
    let (Value::Tensor(a), Value::Tensor(b)) = (a, b) else {
        return if a == b { Ok(()) } else { Err("other values".into()) };
    };
    if a.dtype() != b.dtype() || a.shape() != b.shape() {
        return Err(format!("expected {}{}, found {}{}", b.dtype(), b.shape(), a.dtype(), a.shape()));
    }
    if !a.dtype().is_float() {
        return if a == b { Ok(()) } else { Err("other elements".into()) };
    }
    let wide = |t: &Tensor| cast(t, DType::F64).and_then(Tensor::into_vec::<f64>).map_err(|e| e.to_string());
    let (x, y) = (wide(a)?, wide(b)?);
    let largest = y.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
    let limit = share(a.dtype()) * largest;
    match x.iter().zip(&y).position(|(x, y)| !(x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= limit)) {
        None => Ok(()),
        Some(i) => Err(format!("element {i}: expected {}, found {} (largest {largest})", y[i], x[i])),
    }
}

fn interface(model: &Model) -> String {
    let g = &model.graph;
    let inputs = g.inputs().iter().map(|&i| format!("{:?}", g.node(i).outputs[0].ty).to_owned() + g.name_of(i.value(0)));
    let outputs = g.outputs().iter().map(|o| format!("{:?}", o.ty) + g.name_of(o.value));
    inputs.chain(outputs).collect::<Vec<_>>().join("\n")
}

/// The text of a model reads back to the same text.
fn text_is_stable(model: &Model) -> Result<(), String> {
    let text = print_model(model);
    let again = parse_model(&text).map_err(|e| format!("its text does not parse: {e}"))?;
    if print_model(&again) == text { Ok(()) } else { Err("its text reads back as another".into()) }
}

/// Runs a pass; the model is valid afterwards, its interface is kept, and a second run changes nothing.
fn apply(pass: &dyn Fn(&mut Model) -> Result<Changed, passes::PassError>, model: &Model) -> Result<(Model, Changed), String> {
    let mut new = model.clone();
    let did = pass(&mut new).map_err(|e| e.to_string())?;
    if let Some(fault) = verify(&new).first() {
        return Err(format!("invalid: {fault}"));
    }
    if interface(&new) != interface(model) {
        return Err("the interface changed".into());
    }
    if did == Changed::No && print_model(&new) != print_model(model) {
        return Err("it changed something and says it did not".into());
    }
    let text = print_model(&new);
    if pass(&mut new).map_err(|e| e.to_string())? == Changed::Yes || print_model(&new) != text {
        return Err("a second run changes it".into());
    }
    Ok((new, did))
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

fn run(model: &Model, inputs: &[Value]) -> Result<Vec<(String, Value)>, String> {
    let session = Session::new(model, Options { threads: 1, ..Options::default() }).map_err(|e| e.to_string())?;
    let names: Vec<String> = session.inputs().iter().filter(|i| !i.2).map(|i| i.0.to_owned()).collect();
    let all: Vec<String> = session.inputs().iter().map(|i| i.0.to_owned()).collect();
    let names = if inputs.len() <= names.len() { names } else { all };
    session.run(names.into_iter().zip(inputs.iter().cloned()).collect()).map_err(|e| e.to_string())
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
    let all: Vec<Case> = cases(&root, &filter).into_iter().filter(|c| c.category == "node" || c.category == "simple").collect();
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

fn changes(pass: &str, text: &str) -> (Changed, String) {
    let mut model = parse_model(text).unwrap_or_else(|e| panic!("{pass}: {e}\n{text}"));
    let pass = catalogue().into_iter().find(|p| p.name() == pass).expect("a pass");
    let did = pass.run(&mut model, &mut Report::default()).expect("a run");
    (did, print_graph(&model.graph))
}

/// `(pass, inputs, lines)`: graphs that look like what a pass is for, and are not.
const LEFT_ALONE: &[(&str, &str, &str)] = &[
    (
        "constant-branches",
        "c: bool[], x: float32[2]",
        "y = If(c) {then_branch=graph t() -> (u) {u = Neg(x)}, else_branch=graph e() -> (v) {v = Abs(x)}}",
    ),
    (
        "fold-shapes",
        "x: float32[a,b]",
        "s = Shape(x)\n f = Flatten(s) {axis=0}\n m: int64[1] = Constant() {value=int64[1] [-1]}\n t = Concat(m, s) {axis=0}\n y = Reshape(x, t)",
    ),
    ("fuse-activations", "x: float32[2,2], w: float32[2,2]", "t = Gemm(x, w)\n u = Relu(t)\n y = Add(t, u)"),
    ("fuse-activations", "x: float64[2,2], w: float64[2,2]", "t = Gemm(x, w)\n y = Relu(t)"),
    (
        "fuse-gelu",
        "x: float32[2]",
        "r = Constant() {value=float32[] [1.5]}\n o = Constant() {value=float32[] [1.0]}\n h = Constant() {value=float32[] [0.5]}\n a = Div(x, r)\n b = Erf(a)\n c = Add(b, o)\n d = Mul(x, c)\n y = Mul(d, h)",
    ),
    (
        "fuse-gelu",
        "x: float16[2]",
        "r = Constant() {value=float32[] [1.4142135]}\n rh = Cast(r) {to=10}\n o = Constant() {value=float32[] [1.0]}\n oh = Cast(o) {to=10}\n h = Constant() {value=float32[] [0.5]}\n hh = Cast(h) {to=10}\n a = Div(x, rh)\n b = Erf(a)\n c = Add(b, oh)\n d = Mul(x, c)\n y = Mul(d, hh)",
    ),
    (
        "fuse-layer-normalization",
        "x: float32[2,4], gamma: float32[4]",
        "l = Constant() {value=int64[1] [-1]}\n e = Constant() {value=float32[] [1e-5]}\n m = ReduceMean(x, l)\n d = Sub(x, m)\n q = Mul(d, d)\n v = ReduceMean(q, l)\n s = Add(v, e)\n r = Sqrt(s)\n n = Div(d, r)\n y = Mul(n, gamma)",
    ),
    (
        "fuse-layer-normalization",
        "x: float32[2,2]",
        "l = Constant() {value=int64[1] [-1]}\n f = Constant() {value=int64[1] [0]}\n gamma = Constant() {value=float32[2] [1.0, 2.0]}\n e = Constant() {value=float32[] [1e-5]}\n m = ReduceMean(x, l)\n d = Sub(x, m)\n q = Mul(d, d)\n v = ReduceMean(q, f)\n s = Add(v, e)\n r = Sqrt(s)\n n = Div(d, r)\n y = Mul(n, gamma)",
    ),
    ("fuse-matmul", "x: float32[1,2], w: float32[2,3], c: float32[4,3]", "t = MatMul(x, w)\n y = Add(t, c)"),
    ("fuse-matmul", "x: float32[n,2], w: float32[2,3], c: float32[m,3]", "t = MatMul(x, w)\n y = Add(t, c)"),
    ("fuse-matmul", "x: float16[2,2], w: float16[2,2], c: float16[2]", "t = MatMul(x, w)\n y = Add(t, c)"),
    ("fuse-matmul", "x: float32[4,2,3], w: float32[4,2,3]", "t = Transpose(w) {perm=[2, 1, 0]}\n y = MatMul(x, t)"),
    (
        "fuse-skip-layer-normalization",
        "x: float32[2,3,2], s: float32[2]",
        "g = Constant() {value=float32[2] [1.0, 2.0]}\n t = Add(x, s)\n y = LayerNormalization(t, g)",
    ),
    ("merge-initializers", "x: float32[1]", "param a: float32[1] = [0.0]\n param b: float32[1] = [-0.0]\n t = Add(x, a)\n y = Add(t, b)"),
    ("reshape-chains", "x: float32[a,b,c]", "m = Constant() {value=int64[1] [0]}\n u = Flatten(x) {axis=2}\n y = Unsqueeze(u, m)"),
    (
        "simplify-slices",
        "x: float32[8]",
        "a = Constant() {value=int64[1] [1]}\n e = Constant() {value=int64[1] [7]}\n z = Constant() {value=int64[1] [0]}\n u = Slice(x, a, e, z)\n y = Slice(u, a, e, z)",
    ),
    (
        "split-slices",
        "x: float32[8]",
        "a = Constant() {value=int64[1] [1]}\n b = Constant() {value=int64[1] [3]}\n c = Constant() {value=int64[1] [5]}\n z = Constant() {value=int64[1] [0]}\n u = Slice(x, z, b, z)\n v = Slice(x, a, c, z)\n y = Concat(u, v) {axis=0}",
    ),
];

#[test]
fn what_only_looks_alike_is_left_alone() {
    for (pass, inputs, lines) in LEFT_ALONE {
        let text = format!("graph g({inputs}) -> (y) {{\n {lines}\n}}");
        let (did, found) = changes(pass, &text);
        assert_eq!(did, Changed::No, "{pass}: {found}");
    }
}

/// `(opset, pass, inputs, lines, the ops that are left)`: other forms in which exporters write what a pass fuses.
const FUSED: &[(i64, &str, &str, &str, &str)] = &[
    (
        17,
        "fuse-gelu",
        "x: float32[2,3]",
        "r = Constant() {value=float32[] [0.70710677]}\n o = Constant() {value=float32[] [1.0]}\n h = Constant() {value=float32[] [0.5]}\n a = Mul(r, x)\n b = Erf(a)\n c = Add(o, b)\n d = Mul(h, c)\n y = Mul(x, d)",
        "com.microsoft::Gelu",
    ),
    (
        20,
        "fuse-gelu",
        "x: float64[2,3]",
        "r = Constant() {value=float64[] [1.4142135623730951]}\n o = Constant() {value=float64[] [1.0]}\n h = Constant() {value=float64[] [0.5]}\n a = Div(x, r)\n b = Erf(a)\n c = Add(b, o)\n d = Mul(x, h)\n y = Mul(d, c)",
        "Gelu",
    ),
    (
        17,
        "fuse-gelu",
        "x: float32[2,3]",
        "three = Constant() {value=float32[] [3.0]}\n k = Constant() {value=float32[] [0.044715]}\n s = Constant() {value=float32[] [0.7978846]}\n o = Constant() {value=float32[] [1.0]}\n h = Constant() {value=float32[] [0.5]}\n p = Pow(x, three)\n q = Mul(k, p)\n t = Add(x, q)\n u = Mul(s, t)\n v = Tanh(u)\n w = Add(o, v)\n d = Mul(x, h)\n y = Mul(d, w)",
        "com.microsoft::FastGelu",
    ),
    (
        20,
        "fuse-gelu",
        "x: float32[2,3]",
        "k = Constant() {value=float32[] [0.044715]}\n s = Constant() {value=float32[] [0.7978846]}\n o = Constant() {value=float32[] [1.0]}\n h = Constant() {value=float32[] [0.5]}\n p2 = Mul(x, x)\n p = Mul(x, p2)\n q = Mul(p, k)\n t = Add(q, x)\n u = Mul(t, s)\n v = Tanh(u)\n w = Add(v, o)\n d = Mul(x, w)\n y = Mul(d, h)",
        "Gelu",
    ),
    (
        20,
        "fuse-gelu",
        "x: float32[2,3]",
        "b = Constant() {value=float32[3] [0.5, 1.0, -1.0]}\n t = Add(b, x)\n y = Gelu(t)",
        "com.microsoft::BiasGelu",
    ),
    (
        17,
        "fuse-layer-normalization",
        "x: float32[n,2,3]",
        "g = Constant() {value=float32[2,3] [1.0, 2.0, 3.0, 1.0, 1.0, 1.0]}\n e = Constant() {value=float32[] [0.001]}\n m = ReduceMean(x) {axes=[1, 2]}\n d = Sub(x, m)\n q = Mul(d, d)\n v = ReduceMean(q) {axes=[-2, -1]}\n s = Add(e, v)\n r = Sqrt(s)\n z = Div(d, r)\n y = Mul(g, z)",
        "LayerNormalization",
    ),
    (
        18,
        "fuse-layer-normalization",
        "x: float64[n,4]",
        "a = Constant() {value=int64[1] [1]}\n g = Constant() {value=float64[4] [1.0, 2.0, 3.0, 1.0]}\n h = Constant() {value=float64[4] [1.0, 2.0, 3.0, 1.0]}\n two = Constant() {value=float64[] [2.0]}\n e = Constant() {value=float64[] [0.001]}\n m = ReduceMean(x, a)\n d = Sub(x, m)\n q = Pow(d, two)\n v = ReduceMean(q, a)\n s = Add(v, e)\n r = Sqrt(s)\n z = Div(d, r)\n w = Mul(z, g)\n y = Add(h, w)",
        "LayerNormalization",
    ),
    (
        17,
        "fuse-attention",
        "q: float32[n,m,4], k: float32[n,l,4], v: float32[n,l,6]",
        "hq = Constant() {value=int64[4] [0, 0, 2, 2]}\n hv = Constant() {value=int64[4] [0, 0, 2, 3]}\n j = Constant() {value=int64[3] [0, 0, 6]}\n s = Constant() {value=float32[] [1.4142135]}\n a = Reshape(q, hq)\n b = Transpose(a) {perm=[0, 2, 1, 3]}\n c = Reshape(k, hq)\n d0 = Transpose(c) {perm=[0, 2, 1, 3]}\n d = Transpose(d0) {perm=[0, 1, 3, 2]}\n e = Reshape(v, hv)\n f = Transpose(e) {perm=[0, 2, 1, 3]}\n g0 = MatMul(b, d)\n g1 = Div(g0, s)\n p = Softmax(g1) {axis=3}\n o = MatMul(p, f)\n t = Transpose(o) {perm=[0, 2, 1, 3]}\n y = Reshape(t, j)",
        "com.microsoft::MultiHeadAttention",
    ),
    (
        23,
        "fuse-attention",
        "q: float32[n,2,4], k: float32[n,2,4], v: float32[n,2,4]",
        "h = Constant() {value=int64[4] [0, 0, 2, 2]}\n j = Constant() {value=int64[3] [0, 0, 4]}\n s = Constant() {value=float32[] [0.8]}\n w = Constant() {value=float32[1,2,2] [0.0, -inf, -1.0, 0.5]}\n a = Reshape(q, h)\n b0 = Transpose(a) {perm=[0, 2, 1, 3]}\n b = Mul(b0, s)\n c = Reshape(k, h)\n d0 = Transpose(c) {perm=[0, 2, 3, 1]}\n d = Mul(s, d0)\n e = Reshape(v, h)\n f = Transpose(e) {perm=[0, 2, 1, 3]}\n g0 = MatMul(b, d)\n g1 = Add(w, g0)\n p = Softmax(g1) {axis=-1}\n o = MatMul(p, f)\n t = Transpose(o) {perm=[0, 2, 1, 3]}\n y = Reshape(t, j)",
        "Attention",
    ),
    (
        17,
        "fuse-matmul",
        "x: float32[n,3,2], w: float32[n,3,4]",
        "s = Constant() {value=float32[1] [4.0]}\n t = Transpose(x) {perm=[0, 2, 1]}\n u = Div(w, s)\n y = MatMul(t, u)",
        "com.microsoft::FusedMatMul",
    ),
    (
        17,
        "fuse-matmul",
        "x: float64[3,n], w: float64[3,2], c: float64[n,1]",
        "s = Constant() {value=float64[] [4.0]}\n t = Transpose(x)\n u = MatMul(t, w)\n v = Mul(s, u)\n y = Add(c, v)",
        "Gemm",
    ),
    (
        17,
        "fuse-matmul",
        "x: float32[3,2], w: float32[4,3], c: float32[2,4]",
        "t = Transpose(w)\n y = Gemm(x, t, c) {transA=1, alpha=0.5, beta=2.0}",
        "Gemm",
    ),
    (
        17,
        "fuse-activations",
        "x: float32[3,2], w: float32[2,4]",
        "t = Gemm(x, w) {alpha=2.0}\n y = LeakyRelu(t) {alpha=0.3}",
        "com.microsoft::FusedGemm",
    ),
    (
        17,
        "fuse-skip-layer-normalization",
        "x: float32[2,3,2], s: float32[2,3,2]",
        "g = Constant() {value=float32[2] [1.0, 2.0]}\n t = Add(x, s)\n y = LayerNormalization(t, g) {axis=2}",
        "com.microsoft::SkipLayerNormalization",
    ),
];

#[test]
fn other_forms_are_fused_and_answer_alike() {
    for (opset, pass, inputs, lines, left) in FUSED {
        let plain =
            parse_model(&format!("model ir_version=8 opset=[\"\"={opset}]\ngraph g({inputs}) -> (y) {{\n {lines}\n}}")).expect(lines);
        let pass = catalogue().into_iter().find(|p| p.name() == *pass).expect("a pass");
        let (mut new, _) = apply(&|m| pass.run(m, &mut Report::default()), &plain).unwrap_or_else(|e| panic!("{lines}: {e}"));
        passes::parse_passes("lift-constants,dead-code").expect("passes").run(&mut new, &mut Report::default()).expect("a run");
        let ops: Vec<String> = new.graph.ops().iter().filter_map(|&id| Some(new.graph.node(id).op()?.to_string())).collect();
        assert_eq!(ops.join(" "), *left, "{}", print_model(&new));
        same_answers(pass.name(), &plain, &new).unwrap_or_else(|e| panic!("{e}\n{}", print_model(&new)));
    }
}

/// `(opset, inputs, lines)`: ops whose attributes, inputs or defaults changed in a later version.
const OLD: &[(i64, &str, &str)] = &[
    (3, "x: float32[2,3]", "y = Concat(x, x)"),
    (4, "x: float32[2,3]", "y = Reshape(x) {shape=[3, -1]}"),
    (5, "x: float32[2,3]", "y = Selu(x)"),
    (6, "x: float32[2,3,4], b: float32[3]", "y = Add(x, b) {broadcast=1, axis=1}"),
    (6, "x: float32[2,3,4], b: float32[4]", "y = Mul(x, b) {broadcast=1}"),
    (6, "x: float32[2,3]", "y = Dropout(x) {is_test=1, ratio=0.3}"),
    (
        6,
        "x: float32[2,3,4], s: float32[3], b: float32[3], m: float32[3], v: float32[3]",
        "w = Abs(v)\n y = BatchNormalization(x, s, b, m, w) {is_test=1}",
    ),
    (9, "x: float32[4,5]", "y = Slice(x) {starts=[1, -3], ends=[3, 100], axes=[0, 1]}"),
    (9, "x: float32[4,5]", "y, i = TopK(x) {k=2, axis=1}"),
    (9, "x: float32[1,1,2,3]", "s = Constant() {value=float32[4] [1.0, 1.0, 2.0, 2.0]}\n y = Upsample(x, s) {mode=\"nearest\"}"),
    (9, "x: float32[1,1,2,3]", "s = Constant() {value=float32[4] [1.0, 1.0, 2.0, 3.0]}\n y = Upsample(x, s) {mode=\"linear\"}"),
    (7, "x: float32[1,1,2,3]", "y = Upsample(x) {mode=\"nearest\", scales=[1.0, 1.0, 2.0, 2.0]}"),
    (9, "x: float32[2,2], u: float32[1,2]", "i = Constant() {value=int64[1,2] [1, 0]}\n y = Scatter(x, i, u)"),
    (10, "x: float32[1,1,3,3]", "s = Constant() {value=float32[4] [1.0, 1.0, 0.6, 2.0]}\n y = Resize(x, s) {mode=\"nearest\"}"),
    (10, "x: float64[2,3]", "y = Pad(x) {pads=[0, 1, 1, 0], value=0.5}"),
    (10, "x: float64[2,3]", "y = Clip(x) {min=-0.5, max=0.25}"),
    (11, "x: float32[2,3]", "y = Dropout(x) {ratio=0.25}"),
    (12, "x: float32[2,3,4]", "y = Softmax(x)"),
    (12, "x: float32[2,3,4]", "y = LogSoftmax(x) {axis=-1}"),
    (12, "x: float32[2,3,4]", "y = Hardmax(x) {axis=0}"),
    (12, "x: float32[2,1,4]", "t = Squeeze(x) {axes=[1]}\n u = Unsqueeze(t) {axes=[0]}\n y = ReduceSum(u) {axes=[1], keepdims=0}"),
    (12, "x: float32[4,3]", "y, z = Split(x) {axis=0, split=[1, 3]}"),
    (12, "x: float32[4,3]", "y, z = Split(x)"),
    (17, "x: float32[2,3,4]", "t = ReduceMean(x) {axes=[-1]}\n y = ReduceL2(t) {axes=[0], keepdims=0}"),
    (17, "x: float32[1,4,1]", "y = DFT(x) {axis=1}"),
    (
        15,
        "x: float32[1,1,4,4], r: float32[1,4]",
        "b = Constant() {value=int64[1] [0]}\n q = Abs(r)\n y = RoiAlign(x, q, b) {output_height=2, output_width=2}",
    ),
    (19, "x: float32[1,1,3,3], g: float32[1,2,2,2]", "y = GridSample(x, g)"),
    (19, "x: float32[1,1,3,3], g: float32[1,2,2,2]", "y = GridSample(x, g) {mode=\"bicubic\"}"),
];

#[test]
fn a_later_opset_keeps_the_answers() {
    for (opset, inputs, lines) in OLD {
        let plain =
            parse_model(&format!("model ir_version=4 opset=[\"\"={opset}]\ngraph g({inputs}) -> (y) {{\n {lines}\n}}")).expect(lines);
        for to in [7, 10, 11, 13, 14, 18, 20, 24].into_iter().filter(|to| to > opset) {
            let pass = UpgradeOpset { to };
            let (new, _) = apply(&|m| pass.run(m, &mut Report::default()), &plain).unwrap_or_else(|e| panic!("{lines} to {to}: {e}"));
            same_answers("dead-code", &plain, &new).unwrap_or_else(|e| panic!("{lines} from {opset} to {to}: {e}\n{}", print_model(&new)));
        }
    }
}

#[test]
fn what_a_later_opset_cannot_say_is_refused_by_name() {
    let cases = [
        (
            6,
            "t = Tile(x, x, x)",
            "node \"t\" (Tile) cannot be written in opset 13: its inputs or attributes mean other things from version 6 on",
        ),
        (6, "t = Dropout(x)", "node \"t\" (Dropout) cannot be written in opset 13: it trains"),
        (9, "t, m = Dropout(x)", "node \"t\" (Dropout) cannot be written in opset 13: its mask has another type"),
        (9, "t = Mystery(x)", "node \"t\" (Mystery) cannot be written in opset 13: this build does not know the op"),
    ];
    for (opset, line, message) in cases {
        let text = format!(
            "model ir_version=4 opset=[\"\"={}]\ngraph g(x: float32[2]) -> (t) {{\n {line}\n}}",
            if line.contains("Tile") { 5 } else { opset }
        );
        let mut model = parse_model(&text).expect("a model");
        let error = UpgradeOpset { to: 13 }.run(&mut model, &mut Report::default()).expect_err(line).to_string();
        assert_eq!(error, message);
        assert_eq!(print_model(&model), print_model(&parse_model(&text).expect("a model")), "{line}: it is left as it was");
    }
    let mut model = parse_model("model ir_version=8 opset=[\"\"=17]\ngraph g(x: float32[2]) -> (y) {\n y = Neg(x)\n}").expect("a model");
    let mut to = |to| UpgradeOpset { to }.run(&mut model, &mut Report::default()).expect_err("refused").to_string();
    assert_eq!(to(13), "the model is of opset 17; only a later one can be written, not 13");
    assert!(to(1000).starts_with("opset 1000 is not known; the latest is "), "{}", to(1000));
}

#[test]
fn functions_are_upgraded_with_the_model_and_kept() {
    let text = r#"
    model ir_version=8 opset=[""=12, "my"=1]
    function domain="my" opset=[""=12] attributes=[axes] defaults={} Sum(a) -> (b) {
      t = Unsqueeze(a) {axes=[0]}
      b = ReduceSum(t) {axes=[0], keepdims=0}
    }
    graph g(x: float32[2,3]) -> (y) {
      u = my::Sum(x)
      y = my::Sum(u)
    }"#;
    let plain = parse_model(text).expect("a model");
    let pass = UpgradeOpset { to: 17 };
    let (new, _) = apply(&|m| pass.run(m, &mut Report::default()), &plain).expect("an upgrade");
    assert_eq!((new.functions.len(), new.functions[0].opset_imports[0].version), (1, 17));
    assert!(new.functions[0].graph.params().is_empty(), "a function has no initializers");
    same_answers("dead-code", &plain, &new).expect("equal answers");
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
