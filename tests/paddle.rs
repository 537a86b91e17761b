//! PaddlePaddle's programs: both file forms give the recorded outputs, rewritten ones equal bits, and what is wrong with a
//! file is told by variable, expected and found.

use graphtool::data::{self, InputSpec, npy::read_npy};
use graphtool::deploy::{self, KeyedRows, RewriteOptions, read_sparse, rewrite, sparse_tables};
use graphtool::exec::{Options, Session};
use graphtool::formats::{self, paddle};
use graphtool::ir::Model;
use graphtool::passes::{Changed, Pass, Report, StandardOps};
use graphtool::plan::Absent;
use graphtool::store;
use graphtool::tensor::{DType, Tensor, Value};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MODELS: [&str; 5] = ["deepfm", "padding_idx", "seqpool", "wide_deep", "wide_deep_v1_lookup"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/paddle").join(name)
}

fn forms(name: &str) -> [PathBuf; 3] {
    let dir = folder(name);
    [dir.join(format!("{name}.pdmodel")), dir.join("legacy/__model__"), dir.join("legacy")]
}

fn inputs(model: &Model, dir: &Path) -> Vec<(String, Value)> {
    let specs: Vec<InputSpec> = model
        .graph
        .inputs()
        .iter()
        .map(|&id| {
            let output = &model.graph.node(id).outputs[0];
            let dtype = match &output.ty {
                Some(graphtool::ir::Type::Tensor { dtype: Some(d), .. }) => *d,
                other => panic!("{other:?}"),
            };
            InputSpec::tensor(output.name.clone(), dtype, None)
        })
        .collect();
    data::open(dir, &specs, &data::Options::default()).expect("inputs").read(0..1).expect("inputs")
}

fn near(found: &[(String, Value)], dir: &Path) {
    for (i, (name, value)) in found.iter().enumerate() {
        let bytes = fs::read(dir.join(format!("out_{i}.npy"))).expect("an output");
        let want = read_npy(&bytes.into()).expect("an array");
        let Value::Tensor(found) = value else { panic!("{name} is no tensor") };
        assert_eq!(found.shape(), want.shape(), "{name}");
        let pairs = found.to_f32s().expect("numbers").into_iter().zip(want.to_f32s().expect("numbers"));
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= 1e-5, "{}: {name} differs by {worst}", dir.display());
    }
}

fn session(model: &Model, store: Option<Arc<dyn store::Store>>) -> Session {
    Session::new(model, Options { store, ..Options::default() }).expect("a session")
}

fn run(model: &Model, dir: &Path) -> Vec<(String, Value)> {
    session(model, None).run(inputs(model, dir)).expect("a run")
}

#[test]
fn both_forms_give_the_recorded_outputs_and_equal_bits_when_rewritten() {
    let temp = tempfile::tempdir().expect("a directory");
    for name in MODELS {
        for (i, form) in forms(name).iter().enumerate() {
            let model = formats::load(form).expect("a model");
            let plain = run(&model, &folder(name));
            near(&plain, &folder(name));
            let out = temp.path().join(format!("{name}{i}.dist"));
            let outcome = rewrite(model, &out, RewriteOptions { shards: 3, ..Default::default() }).expect("a rewrite");
            assert!(!outcome.manifest.tables.is_empty(), "{name}");
            assert_eq!(deploy::check(&out).expect("a deployment"), Vec::<String>::new(), "{name}");
            let (_, model) = deploy::open(&out).expect("a deployment");
            let session = session(&model, Some(store::open_local(&out).expect("a store")));
            assert_eq!(session.run(inputs(&model, &folder(name))).expect("a run"), plain, "{name}");
            let merged = temp.path().join(format!("{name}{i}.onnx"));
            deploy::merge(&out, &merged).expect("a merge");
            assert_eq!(run(&formats::load(&merged).expect("the merged model"), &folder(name)), plain, "{name}");
        }
    }
}

#[test]
fn in_standard_ops_a_program_gives_equal_bits() {
    for name in MODELS {
        let mut model = formats::load(&forms(name)[0]).expect("a model");
        let plain = run(&model, &folder(name));
        assert_eq!(StandardOps.run(&mut model, &mut Report::default()).expect("a pass"), Changed::Yes);
        assert_eq!(StandardOps.run(&mut model, &mut Report::default()).expect("a pass"), Changed::No);
        assert_eq!(model.opset("graphtool"), 0);
        assert_eq!(run(&model, &folder(name)), plain, "{name}");
    }
}

#[test]
fn a_padding_id_leaves_the_range_check_on() {
    let model = formats::load(&forms("padding_idx")[0]).expect("a model");
    let temp = tempfile::tempdir().expect("a directory");
    let out = temp.path().join("p.dist");
    rewrite(model.clone(), &out, RewriteOptions { shards: 2, ..Default::default() }).expect("a rewrite");
    let (_, remote) = deploy::open(&out).expect("a deployment");
    let sessions = [session(&model, None), session(&remote, Some(store::open_local(&out).expect("a store")))];
    for (id, valid) in [(40, false), (-1, false), (39, true), (0, true)] {
        for session in &sessions {
            let mut ids = vec![1i64; 10];
            ids[2] = id;
            let ids = Tensor::new([2, 5], ids).expect("ids");
            let other = Tensor::new([2, 5], vec![1i64; 10]).expect("ids");
            let result = session.run(vec![("ids".into(), ids.into()), ("ids_b".into(), other.into())]);
            assert_eq!(result.is_ok(), valid, "{id}");
            if let Err(e) = result {
                let told = format!("table \"pad_emb\": id {id} at position 2 is out of range, valid 0..39");
                assert!(e.to_string().contains(&told), "{e}");
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    }
}

fn fault(path: &Path) -> String {
    formats::load(path).expect_err("a fault").to_string()
}

#[test]
fn what_is_wrong_with_a_parameter_is_told_by_its_name() {
    let temp = tempfile::tempdir().expect("a directory");
    let dir = temp.path().join("legacy");
    copy(&folder("wide_deep").join("legacy"), &dir);
    let (bias, weights) = (dir.join("fc0_b"), dir.join("fc0_w"));
    let good = fs::read(&bias).expect("bytes");
    fs::remove_file(&bias).expect("gone");
    assert!(fault(&dir).contains("parameter \"fc0_b\": its file is missing"), "{}", fault(&dir));
    fs::write(&bias, &good[..good.len() - 3]).expect("written");
    assert!(fault(&dir).contains("parameter \"fc0_b\" is cut off: expected"), "{}", fault(&dir));
    fs::copy(&weights, &bias).expect("a copy");
    assert!(fault(&dir).contains("parameter \"fc0_b\": expected shape ["), "{}", fault(&dir));
    let mut other = good.clone();
    // The dtype follows the four words of the head and the field's tag.
    let at = 4 + 8 + 4 + 4 + 1;
    other[at] = 6;
    fs::write(&bias, &other).expect("written");
    assert!(fault(&dir).contains("parameter \"fc0_b\": expected float32, found float64"), "{}", fault(&dir));
    fs::write(&bias, [good.as_slice(), b"xx"].concat()).expect("written");
    assert!(fault(&dir).contains("parameter \"fc0_b\": 2 bytes are left"), "{}", fault(&dir));

    let one = temp.path().join("one");
    copy(&folder("deepfm"), &one);
    let params = one.join("deepfm.pdiparams");
    let whole = fs::read(&params).expect("bytes");
    fs::write(&params, &whole[..whole.len() - 1]).expect("written");
    assert!(fault(&one).contains("parameter \"lin_w\" is cut off"), "{}", fault(&one));
    fs::write(&params, [whole.as_slice(), b"x"].concat()).expect("written");
    assert!(fault(&one).contains("it is of another program"), "{}", fault(&one));
    fs::remove_file(&params).expect("gone");
    assert!(fault(&one).contains("deepfm.pdiparams"), "{}", fault(&one));
}

#[test]
fn files_are_told_by_content() {
    let temp = tempfile::tempdir().expect("a directory");
    copy(&folder("deepfm"), temp.path());
    let renamed = temp.path().join("deepfm.json");
    fs::rename(temp.path().join("deepfm.pdmodel"), &renamed).expect("renamed");
    formats::load(&renamed).expect("a program under another name");
    for (name, bytes, told) in [
        (
            "inference.json",
            &br#"{"base_code":{"magic":"pir","trainable":false,"version":1},"program":{}}"#[..],
            "PaddlePaddle 3 program (PIR",
        ),
        ("empty.pdmodel", b"", "the file is empty"),
        ("model.pkl", b"\x80\x04\x95", "Python pickle"),
        ("text.pdmodel", b"<html>", "text file"),
    ] {
        let path = temp.path().join(name);
        fs::write(&path, bytes).expect("written");
        assert!(fault(&path).contains(told), "{}", fault(&path));
    }
    // A program that is cut off anywhere is an error, never a panic or a smaller program.
    let whole = fs::read(&renamed).expect("bytes");
    for cut in (1..whole.len()).step_by(97) {
        fs::write(&renamed, &whole[..cut]).expect("written");
        assert!(formats::load(&renamed).is_err(), "cut at {cut}");
    }
}

fn checkpoint() -> (Model, KeyedRows) {
    let dir = folder("ps_checkpoint").join("saved");
    let model = paddle::open(&dir.join("dnn_plugin"), &|program, name| paddle::distributed_tables(program).iter().any(|t| t == name));
    let tables = sparse_tables(&dir).expect("tables");
    (model.expect("a model"), read_sparse(&tables[&0], 16).expect("rows"))
}

#[test]
fn a_checkpoint_gives_the_recorded_predictions_and_zeros_for_ids_never_seen() {
    let temp = tempfile::tempdir().expect("a directory");
    let (model, rows) = checkpoint();
    assert_eq!((rows.keys.len(), rows.columns), (200, 16));
    for (policy, shards) in [(Absent::Zero, 1), (Absent::Zero, 5), (Absent::Error, 2)] {
        let out = temp.path().join(format!("{policy:?}{shards}.dist"));
        let keyed = [("deep_emb".to_owned(), (rows.clone(), policy))].into();
        rewrite(model.clone(), &out, RewriteOptions { shards, keyed, ..Default::default() }).expect("a rewrite");
        assert_eq!(deploy::check(&out).expect("a deployment"), Vec::<String>::new());
        let (manifest, remote) = deploy::open(&out).expect("a deployment");
        assert!(manifest.tables[0].keyed);
        let store = store::open_local(&out).expect("a store");
        let session = session(&remote, Some(store.clone()));
        let mut values = inputs(&remote, &folder("ps_checkpoint"));
        near(&session.run(values.clone()).expect("a run"), &folder("ps_checkpoint"));
        assert_eq!(store.stats().absent, 0);
        let never = Tensor::new([8, 1], vec![i64::MAX; 8]).expect("ids");
        assert_eq!(never.dtype(), DType::I64);
        values.iter_mut().filter(|(name, _)| name == "C3").for_each(|(_, v)| *v = never.clone().into());
        let result = session.run(values);
        match policy {
            Absent::Error => {
                let told = result.expect_err("an absent id").to_string();
                assert!(told.contains("deep_emb") && told.contains(&i64::MAX.to_string()), "{told}");
            }
            _ => {
                result.expect("zeros");
                assert_eq!(store.stats().absent, 8);
            }
        }
    }
}

#[test]
fn a_distributed_table_without_a_file_says_where_it_comes_from() {
    let told = fault(&folder("ps_checkpoint").join("saved/dnn_plugin"));
    assert!(told.contains("parameter \"deep_emb\"") && told.contains("import-tables"), "{told}");
}
