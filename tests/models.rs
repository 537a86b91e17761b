//! The models of `models/`: right by themselves, bit-equal when rewritten, byte-equal when written back.

#[path = "support/compare.rs"]
mod compare;

use compare::{Tolerance, compare};
use graphtool::data::folder::read_folder;
use graphtool::deploy::{self, RewriteOptions, rewrite};
use graphtool::exec::{Options, Session};
use graphtool::formats::{self, onnx::write};
use graphtool::ir::{print_graph, print_model, verify};
use graphtool::plan::{Mode, Sharding};
use graphtool::store;
use graphtool::tensor::Value;
use std::path::{Path, PathBuf};

fn models() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let mut found: Vec<_> = std::fs::read_dir(root)
        .expect("models")
        .flatten()
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
        .filter(|(_, p)| p.join("model.onnx").is_file())
        .collect();
    found.sort();
    assert!(found.len() >= 15, "only {} models", found.len());
    found
}

fn sets(model: &Path) -> Vec<PathBuf> {
    let is_set = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("test_data_set_"));
    let mut sets: Vec<_> = std::fs::read_dir(model).expect("a folder").flatten().map(|e| e.path()).filter(is_set).collect();
    assert!(!sets.is_empty(), "{}", model.display());
    sets.sort();
    sets
}

fn run(session: &Session, set: &Path) -> Vec<(String, Value)> {
    let names: Vec<String> = session.inputs().iter().map(|i| i.0.to_owned()).collect();
    let values = read_folder(set, "input").expect("inputs").into_iter().map(|(_, v)| v);
    session.run(names.into_iter().zip(values).collect()).expect("a run")
}

#[test]
fn outputs_are_the_recorded_ones() {
    for (name, path) in models() {
        let session = Session::new(&formats::load(&path.join("model.onnx")).expect("a model"), Options::default()).expect("a session");
        for set in sets(&path) {
            let expected = read_folder(&set, "output").expect("outputs");
            for ((output, found), (_, expected)) in run(&session, &set).iter().zip(&expected) {
                compare(found, expected, Tolerance::MODEL).unwrap_or_else(|e| panic!("{name}, {}, {output}: {e}", set.display()));
            }
        }
    }
}

#[test]
fn steps_of_several_nodes_and_threads_change_no_bit() {
    for (name, path) in models() {
        let model = formats::load(&path.join("model.onnx")).expect("a model");
        let session = |options| Session::new(&model, options).expect("a session");
        let one_by_one = session(Options { unfused: true, threads: 1, ..Options::default() });
        let fused = session(Options { threads: 3, ..Options::default() });
        for set in sets(&path) {
            assert_eq!(run(&fused, &set), run(&one_by_one, &set), "{name}, {}", set.display());
        }
    }
}

#[test]
fn a_rewritten_model_gives_equal_bits_and_merges_back() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, path) in models() {
        let file = path.join("model.onnx");
        let model = formats::load(&file).expect("a model");
        let plain = Session::new(&model, Options::default()).expect("a session");
        for (i, mode) in
            [Mode::Auto, Mode::All(Sharding::Row), Mode::All(Sharding::Range), Mode::All(Sharding::Column)].into_iter().enumerate()
        {
            let out = dir.path().join(format!("{name}{i}.dist"));
            rewrite(model.clone(), &out, RewriteOptions { shards: 3, mode, ..Default::default() }).expect("a rewrite");
            assert_eq!(deploy::check(&out).expect("a deployment"), Vec::<String>::new(), "{name}");
            let (_, rewritten) = deploy::open(&out).expect("a deployment");
            assert_eq!(verify(&rewritten), Vec::<String>::new(), "{name}");
            let store = store::open_local(&out).expect("a store");
            let session = Session::new(&rewritten, Options { store: Some(store), ..Options::default() }).expect("a session");
            for set in sets(&path) {
                assert_eq!(run(&session, &set), run(&plain, &set), "{name}, {}", set.display());
            }
            let merged = dir.path().join(format!("{name}{i}.onnx"));
            deploy::merge(&out, &merged).expect("a merge");
            let again = formats::load(&merged).expect("the merged model");
            assert_eq!(print_model(&again), print_model(&model), "{name}");
            if !path.join("model.onnx.data").exists() {
                assert_eq!(std::fs::read(&merged).expect("bytes"), std::fs::read(&file).expect("bytes"), "{name}");
            }
        }
    }
}

#[test]
fn a_model_read_and_written_is_byte_equal() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, path) in models() {
        let file = path.join("model.onnx");
        let out = dir.path().join("model.onnx");
        let external = write::External::Keep(write::EXTERNAL_ABOVE);
        write::to_file(&formats::load(&file).expect("a model"), &out, "model.onnx.data", external).expect("written");
        assert_eq!(std::fs::read(&out).expect("bytes"), std::fs::read(&file).expect("bytes"), "{name}");
    }
}

#[test]
fn a_second_rewrite_replaces_the_first_and_other_directories_are_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let model = formats::load(&models()[0].1.join("model.onnx")).expect("a model");
    let out = dir.path().join("a.dist");
    let files = |p: &Path| {
        let mut all: Vec<_> = walk(p).into_iter().map(|f| (f.clone(), std::fs::read(&f).expect("bytes"))).collect();
        all.sort();
        all
    };
    let once = |shards| rewrite(model.clone(), &out, RewriteOptions { shards, ..Default::default() });
    once(3).expect("a rewrite");
    let first = files(&out);
    once(5).expect("a rewrite");
    once(3).expect("a rewrite");
    assert!(files(&out) == first);
    let other = dir.path().join("mine");
    std::fs::create_dir(&other).expect("a directory");
    let error = rewrite(model, &other, RewriteOptions { shards: 3, ..Default::default() }).expect_err("refused").to_string();
    assert!(error.ends_with("it is there and is no deployment; it is left alone"), "{error}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("a directory").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

fn walk(p: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(p).expect("a directory").flatten().map(|e| e.path());
    entries.flat_map(|e| if e.is_dir() { walk(&e) } else { vec![e] }).collect()
}

#[test]
fn rewritten_graphs_are_the_reviewed_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, path) in models() {
        let out = dir.path().join(&name);
        let model = formats::load(&path.join("model.onnx")).expect("a model");
        let outcome = rewrite(model, &out, RewriteOptions { shards: 3, ..Default::default() }).expect("a rewrite");
        let (_, rewritten) = deploy::open(&out).expect("a deployment");
        let mut text = String::new();
        for l in &outcome.report.lookups {
            let what = l.reason.as_deref().unwrap_or("remote");
            text.push_str(&format!("{} ({}) in {}: {what}\n", l.node, l.op, l.table));
        }
        text.push_str(&print_graph(&rewritten.graph));
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("../snapshots/rewritten");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name, text));
    }
}
