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
    (model.expect("a model"), read_sparse(&tables[&0], 16, Default::default(), None).expect("rows"))
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

/// Programs made here: variables, ops and parameters in few words.
mod made {
    use graphtool::formats::paddle::proto::{
        AttrDesc, BlockDesc, LoDTensorDesc, OpDesc, Operand, ProgramDesc, TensorDesc, VarDesc, VarType,
    };
    use prost::Message;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// A variable by dtype number and dims.
    pub fn var(name: &str, dtype: i32, dims: &[i64], stored: bool) -> VarDesc {
        let tensor = TensorDesc { data_type: Some(dtype), dims: dims.to_vec() };
        let lod = LoDTensorDesc { tensor: Some(tensor), lod_level: Some(0) };
        let ty = VarType { r#type: Some(7), lod_tensor: Some(lod), ..Default::default() };
        VarDesc { name: Some(name.into()), r#type: Some(ty), persistable: Some(stored), ..Default::default() }
    }

    fn operands(list: &[(&str, &[&str])]) -> Vec<Operand> {
        let one = |(p, names): &(&str, &[&str])| Operand {
            parameter: Some((*p).into()),
            arguments: names.iter().map(|n| (*n).to_owned()).collect(),
        };
        list.iter().map(one).collect()
    }

    pub fn op(kind: &str, ins: &[(&str, &[&str])], outs: &[(&str, &[&str])], attrs: &[(&str, i64)]) -> OpDesc {
        let attrs = attrs.iter().map(|(n, v)| AttrDesc { name: Some((*n).into()), r#type: Some(9), l: Some(*v), ..Default::default() });
        OpDesc { r#type: Some(kind.into()), inputs: operands(ins), outputs: operands(outs), attrs: attrs.collect(), ..Default::default() }
    }

    pub fn feed(name: &str, col: i64) -> OpDesc {
        op("feed", &[("X", &["feed"])], &[("Out", &[name])], &[("col", col)])
    }

    pub fn fetch(name: &str, col: i64) -> OpDesc {
        op("fetch", &[("X", &[name])], &[("Out", &["fetch"])], &[("col", col)])
    }

    pub fn block(idx: i32, vars: Vec<VarDesc>, ops: Vec<OpDesc>) -> BlockDesc {
        BlockDesc { idx: Some(idx), parent_idx: Some(idx - 1), vars, ops, ..Default::default() }
    }

    /// Writes `__model__` and a file per table; each has 4 rows of [10 r, 10 r + 1] and more.
    pub fn save(dir: &Path, blocks: Vec<BlockDesc>, tables: &[(&str, i64, i64)]) -> PathBuf {
        fs::create_dir_all(dir).expect("a directory");
        for (name, rows, columns) in tables {
            let desc = TensorDesc { data_type: Some(5), dims: vec![*rows, *columns] }.encode_to_vec();
            let mut bytes = [0u8; 16].to_vec();
            bytes.extend((desc.len() as i32).to_le_bytes());
            bytes.extend(desc);
            for r in 0..*rows {
                (0..*columns).for_each(|c| bytes.extend(((10 * r + c) as f32).to_le_bytes()));
            }
            let path = dir.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, bytes).expect("written");
        }
        let program = ProgramDesc { blocks, ..Default::default() };
        fs::write(dir.join("__model__"), program.encode_to_vec()).expect("written");
        dir.join("__model__")
    }
}

/// Runs a model as it is, and rewritten over two shards; both must agree.
fn both(path: &Path, dist: &Path, tables: usize, lookups: usize, values: Vec<(String, Value)>) -> Vec<(String, Value)> {
    let model = formats::load(path).expect("a model");
    let plain = session(&model, None).run(values.clone()).expect("a run");
    let outcome = rewrite(model, dist, RewriteOptions { shards: 2, ..Default::default() }).expect("a rewrite");
    assert_eq!(outcome.manifest.tables.len(), tables);
    assert_eq!(outcome.report.lookups.iter().filter(|l| l.reason.is_none()).count(), lookups, "{:?}", outcome.report.lookups);
    let (_, remote) = deploy::open(dist).expect("a deployment");
    let remote = session(&remote, Some(store::open_local(dist).expect("a store")));
    assert_eq!(remote.run(values).expect("a run"), plain);
    plain
}

fn ids(name: &str, shape: &[usize], ids: &[i64]) -> (String, Value) {
    (name.into(), Tensor::new(shape, ids.to_vec()).expect("ids").into())
}

fn numbers(value: &(String, Value)) -> (Vec<usize>, Vec<f32>) {
    let Value::Tensor(t) = &value.1 else { panic!("no tensor") };
    (t.shape().to_vec(), t.to_f32s().expect("numbers"))
}

#[test]
fn tables_keep_their_names_and_lookups_their_own_attributes() {
    use made::*;
    let temp = tempfile::tempdir().expect("a directory");
    for (i, table) in ["T", "DAGGER_emb", "emb_A", "GRAD", "A@B", "a/b:0", "with spaces", "größe"].into_iter().enumerate() {
        let vars = vec![
            var("ids", 3, &[-1, 1], false),
            var(table, 5, &[4, 2], true),
            var("padded", 5, &[-1, 1, 2], false),
            var("plain", 5, &[-1, 1, 2], false),
            var("old", 5, &[-1, 2], false),
        ];
        let look = |kind: &str, out: &str, padding: i64| {
            op(kind, &[("Ids", &["ids"]), ("W", &[table])], &[("Out", &[out])], &[("padding_idx", padding)])
        };
        let ops = vec![
            feed("ids", 0),
            look("lookup_table_v2", "padded", 0),
            look("lookup_table_v2", "plain", -1),
            look("lookup_table", "old", -1),
            fetch("padded", 0),
            fetch("plain", 1),
            fetch("old", 2),
        ];
        let path = save(&temp.path().join(format!("m{i}")), vec![block(0, vars, ops)], &[(table, 4, 2)]);
        let out = both(&path, &temp.path().join(format!("{i}.dist")), 1, 3, vec![ids("ids", &[2, 1], &[0, 3])]);
        assert_eq!(numbers(&out[0]), (vec![2, 1, 2], vec![0., 0., 30., 31.]));
        assert_eq!(numbers(&out[1]), (vec![2, 1, 2], vec![0., 1., 30., 31.]));
        assert_eq!(numbers(&out[2]), (vec![2, 2], vec![0., 1., 30., 31.]));
    }
}

#[test]
fn several_tables_are_looked_up_each_by_its_own_ids() {
    use made::*;
    let temp = tempfile::tempdir().expect("a directory");
    let mut vars = vec![var("x", 3, &[-1], false), var("y", 3, &[-1], false), var("A", 5, &[4, 2], true), var("B", 5, &[6, 3], true)];
    let mut ops = vec![feed("y", 1), feed("x", 0)];
    let outs = ["ax", "ay", "bx", "by"];
    for out in outs {
        let (table, width) = if out.starts_with('a') { ("A", 2) } else { ("B", 3) };
        vars.push(var(out, 5, &[-1, width], false));
        ops.push(op("lookup_table_v2", &[("Ids", &[&out[1..]]), ("W", &[table])], &[("Out", &[out])], &[("padding_idx", -1)]));
    }
    vars.push(var("all", 5, &[-1, 10], false));
    ops.extend([op("concat", &[("X", &outs)], &[("Out", &["all"])], &[("axis", 1)]), fetch("all", 0)]);
    let path = save(&temp.path().join("m"), vec![block(0, vars, ops)], &[("A", 4, 2), ("B", 6, 3)]);
    let out = both(&path, &temp.path().join("d"), 2, 4, vec![ids("x", &[1], &[1]), ids("y", &[1], &[3])]);
    assert_eq!(numbers(&out[0]).1, [10., 11., 30., 31., 10., 11., 12., 30., 31., 32.]);
}

#[test]
fn a_lookup_in_a_conditional_block_is_found() {
    use made::*;
    let temp = tempfile::tempdir().expect("a directory");
    let vars = vec![
        var("ids", 3, &[-1], false),
        var("cond", 0, &[1], false),
        var("T", 5, &[4, 2], true),
        var("out", 5, &[-1, 2], false),
        var("rows", 5, &[-1, 2], false),
    ];
    let mut conditional = op("conditional_block", &[("Cond", &["cond"]), ("Input", &["ids", "T"])], &[("Out", &["out"])], &[]);
    conditional.attrs.push(graphtool::formats::paddle::proto::AttrDesc {
        name: Some("sub_block".into()),
        r#type: Some(8),
        block_idx: Some(1),
        ..Default::default()
    });
    let zeros = op("fill_any_like", &[("X", &["base"])], &[("Out", &["out"])], &[("dtype", 5)]);
    let mut vars = vars;
    vars.push(var("base", 5, &[-1, 2], false));
    let main = vec![feed("ids", 0), feed("cond", 1), feed("base", 2), zeros, conditional, fetch("out", 0)];
    let sub = vec![
        op("lookup_table_v2", &[("Ids", &["ids"]), ("W", &["T"])], &[("Out", &["rows"])], &[("padding_idx", -1)]),
        op("assign", &[("X", &["rows"])], &[("Out", &["out"])], &[]),
    ];
    let path = save(&temp.path().join("m"), vec![block(0, vars, main), block(1, vec![], sub)], &[("T", 4, 2)]);
    for (i, (cond, want)) in [(true, [30f32, 31.]), (false, [0., 0.])].into_iter().enumerate() {
        let base = Tensor::new([1, 2], vec![5f32, 5.]).expect("numbers");
        let cond = Tensor::new([1], vec![cond]).expect("a flag");
        let values = vec![ids("ids", &[1], &[3]), ("cond".into(), cond.into()), ("base".into(), base.into())];
        let out = both(&path, &temp.path().join(format!("{i}.dist")), 1, 1, values);
        assert_eq!(numbers(&out[0]).1, want);
    }
}

#[test]
fn an_op_without_a_translation_is_carried_and_named_when_it_must_run() {
    use made::*;
    let temp = tempfile::tempdir().expect("a directory");
    let vars = vec![var("x", 5, &[-1], false), var("y", 5, &[-1], false), var("z", 5, &[-1], false)];
    let strange = op("strange_op", &[("X", &["x"])], &[("Out", &["y"])], &[("depth", 3)]);
    let ops = |fetched: &str| vec![feed("x", 0), strange.clone(), op("relu", &[("X", &["x"])], &[("Out", &["z"])], &[]), fetch(fetched, 0)];
    let x = ("x".to_owned(), Value::from(Tensor::vector(vec![-1f32, 2.])));
    let path = save(&temp.path().join("a"), vec![block(0, vars.clone(), ops("y"))], &[]);
    let model = formats::load(&path).expect("a model");
    assert!(graphtool::ir::print_model(&model).contains("paddle::strange_op"));
    let told = match Session::new(&model, Options::default()) {
        Ok(session) => session.run(vec![x.clone()]).expect_err("an unknown op").to_string(),
        Err(e) => e.to_string(),
    };
    assert!(told.contains("paddle::strange_op"), "{told}");
    let path = save(&temp.path().join("b"), vec![block(0, vars, ops("z"))], &[]);
    let out = session(&formats::load(&path).expect("a model"), None).run(vec![x]).expect("a run");
    assert_eq!(numbers(&out[0]).1, [0., 2.]);
}
