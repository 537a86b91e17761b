//! PaddlePaddle's programs of `models/paddle_programs`: recorded outputs, equal bits when rewritten and in standard ops; bytes
//! that are damaged; the dense part of a checkpoint; what `inspect` and the manual say.

use graphtool::data::npy::read_npy;
use graphtool::deploy::{self, RewriteOptions, rewrite};
use graphtool::exec::{Options, Session};
use graphtool::formats::paddle::proto::{OpDesc, Operand, ProgramDesc};
use graphtool::formats::{self, paddle};
use graphtool::ir::Model;
use graphtool::passes::{Pass, Report, Selection, StandardOps};
use graphtool::store;
use graphtool::tensor::Value;
use prost::Message;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

/// Each program with its tables and lookups that move.
const PROGRAMS: [(&str, usize, usize); 8] = [
    ("bert4rec", 1, 1),
    ("control", 1, 4),
    ("corners", 0, 0),
    ("din", 2, 4),
    ("esmm", 1, 3),
    ("gru4rec", 1, 1),
    ("metrics", 0, 0),
    ("sequences", 1, 1),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn file(name: &str) -> PathBuf {
    root().join("paddle_programs").join(name).join(format!("{name}.pdmodel"))
}

fn array(path: &Path) -> graphtool::tensor::Tensor {
    read_npy(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).into()).expect("an array")
}

fn inputs(model: &Model, dir: &Path) -> Vec<(String, Value)> {
    let names = model.graph.inputs().iter().map(|&id| model.graph.node(id).outputs[0].name.clone());
    names.map(|name| (name.clone(), array(&dir.join(format!("in_{name}.npy"))).into())).collect()
}

fn run(model: &Model, store: Option<Arc<dyn store::Store>>, values: Vec<(String, Value)>) -> Vec<(String, Value)> {
    let session = Session::new(model, Options { store, threads: 2, ..Options::default() }).expect("a session");
    session.run(values).expect("a run")
}

/// Shape, dtype, and numbers within 1e-5 of their size.
fn near(found: &[(String, Value)], dir: &Path) {
    for (i, (name, value)) in found.iter().enumerate() {
        let want = array(&dir.join(format!("out_{i}.npy")));
        let Value::Tensor(found) = value else { panic!("{name} is no tensor") };
        let place = format!("{}: output {i} ({name})", dir.display());
        assert_eq!((found.shape(), found.dtype()), (want.shape(), want.dtype()), "{place}");
        for (a, b) in found.to_f32s().expect("numbers").into_iter().zip(want.to_f32s().expect("numbers")) {
            assert!(a == b || (a - b).abs() <= 1e-5 * b.abs().max(1.0), "{place}: found {a}, expected {b}");
        }
    }
}

#[test]
fn recorded_programs_give_their_outputs_and_equal_bits_when_rewritten_and_in_standard_ops() {
    let temp = tempfile::tempdir().expect("a directory");
    for (name, tables, lookups) in PROGRAMS {
        let path = file(name);
        let dir = path.parent().expect("a folder");
        let model = formats::load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert!(!model.graphs().iter().any(|g| g.ops().iter().any(|&n| g.node(n).op().is_some_and(|o| &*o.domain == "paddle"))));
        let values = inputs(&model, dir);
        let plain = run(&model, None, values.clone());
        near(&plain, dir);

        let mut standard = model.clone();
        StandardOps.run(&mut standard, &mut Report::default()).expect("standard ops");
        assert_eq!(run(&standard, None, values.clone()), plain, "{name} in standard ops");

        if tables == 0 {
            continue;
        }
        let out = temp.path().join(format!("{name}.dist"));
        let selection = Selection { min_bytes: 0, ..Selection::default() };
        let outcome = rewrite(model, &out, RewriteOptions { shards: 3, selection, ..Default::default() }).expect("a rewrite");
        let moved = outcome.report.lookups.iter().filter(|l| l.reason.is_none()).count();
        assert_eq!((outcome.manifest.tables.len(), moved), (tables, lookups), "{name}: {:?}", outcome.report.lookups);
        let (_, remote) = deploy::open(&out).expect("a deployment");
        let store = store::open_local(&out).expect("a store");
        assert_eq!(run(&remote, Some(store), values), plain, "{name} rewritten");
    }
}

/// Numbers that follow from a seed alone.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

fn damaged(whole: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..1 + dice.below(3) {
        let at = dice.below(bytes.len());
        match dice.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, dice.below(256) as u8),
            2 => drop(bytes.drain(at..(at + 1 + dice.below(8)).min(bytes.len()))),
            3 => bytes.iter_mut().skip(at).take(8).for_each(|b| *b = 0xff),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = dice.below(256) as u8),
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

#[test]
fn a_damaged_program_is_an_error_or_a_program_and_never_a_panic() {
    let temp = tempfile::tempdir().expect("a directory");
    let mut dice = Dice(1);
    for (name, ..) in PROGRAMS {
        let folder = file(name).parent().expect("a folder").to_owned();
        let path = temp.path().join(format!("{name}.pdmodel"));
        let params = format!("{name}.pdiparams");
        if folder.join(&params).is_file() {
            fs::copy(folder.join(&params), temp.path().join(&params)).expect("a copy");
        }
        let whole = fs::read(file(name)).expect("bytes");
        for _ in 0..120 {
            fs::write(&path, damaged(&whole, &mut dice)).expect("written");
            if let Ok(model) = formats::load(&path) {
                let _ = Session::new(&model, Options::default());
            }
        }
    }
}

/// Changes an op or a variable of a program into one that makes little sense.
fn odd(program: &mut ProgramDesc, dice: &mut Dice) {
    const ODD: [i64; 8] = [i64::MIN, -2, -1, 0, 1, 7, 1 << 40, i64::MAX];
    let names = paddle::translated_ops();
    let block = dice.below(program.blocks.len());
    let block = &mut program.blocks[block];
    let (op, var) = (dice.below(block.ops.len()), dice.below(block.vars.len()));
    let Some(op) = block.ops.get_mut(op) else { return };
    match dice.below(7) {
        0 if !op.inputs.is_empty() => drop(op.inputs.remove(dice.below(op.inputs.len()))),
        1 if !op.outputs.is_empty() => drop(op.outputs.remove(dice.below(op.outputs.len()))),
        2 => op.r#type = Some(names[dice.below(names.len())].to_owned()),
        3 => {
            // Another op with the operands that it asks for.
            op.r#type = Some(names[dice.below(names.len())].to_owned());
            let renamed = ["X", "Input", "Y", "W", "Ids", "Index", "Filter", "Weight"];
            op.inputs.iter_mut().for_each(|i| i.parameter = Some(renamed[dice.below(renamed.len())].to_owned()));
            op.outputs.iter_mut().for_each(|o| o.parameter = Some(["Out", "Y", "Output", "Hidden"][dice.below(4)].to_owned()));
        }
        4 if !op.attrs.is_empty() => {
            let at = dice.below(op.attrs.len());
            let (attr, value) = (&mut op.attrs[at], ODD[dice.below(ODD.len())]);
            attr.i = attr.i.map(|_| value as i32);
            attr.l = attr.l.map(|_| value);
            attr.b = attr.b.map(|b| !b);
            attr.f = attr.f.map(|_| [f32::NAN, f32::INFINITY, -1.0, 0.0][dice.below(4)]);
            attr.ints.iter_mut().take(1 + dice.below(3)).for_each(|i| *i = value as i32);
            if !attr.longs.is_empty() || dice.below(3) == 0 {
                attr.longs = vec![value; dice.below(5)];
            }
        }
        5 if !op.attrs.is_empty() => drop(op.attrs.remove(dice.below(op.attrs.len()))),
        _ => {
            let lod = block.vars.get_mut(var).and_then(|v| v.r#type.as_mut()).and_then(|t| t.lod_tensor.as_mut());
            if let Some(tensor) = lod.and_then(|l| l.tensor.as_mut()) {
                match dice.below(4) {
                    0 => tensor.data_type = Some(dice.below(30) as i32),
                    1 => tensor.dims.clear(),
                    2 => tensor.dims.push(ODD[dice.below(ODD.len())]),
                    _ => tensor.dims.iter_mut().take(1).for_each(|d| *d = ODD[dice.below(ODD.len())]),
                }
            }
        }
    }
}

#[test]
fn an_odd_program_is_an_error_or_a_program_and_never_a_panic() {
    let temp = tempfile::tempdir().expect("a directory");
    let mut dice = Dice(3);
    for (name, ..) in PROGRAMS {
        let (path, params) = (temp.path().join(format!("{name}.pdmodel")), file(name).with_extension("pdiparams"));
        if params.is_file() {
            fs::copy(params, path.with_extension("pdiparams")).expect("a copy");
        }
        let whole = ProgramDesc::decode(&*fs::read(file(name)).expect("bytes")).expect("a program");
        for _ in 0..60 {
            let mut program = whole.clone();
            (0..1 + dice.below(3)).for_each(|_| odd(&mut program, &mut dice));
            fs::write(&path, program.encode_to_vec()).expect("written");
            if let Ok(model) = formats::load(&path) {
                let _ = Session::new(&model, Options { threads: 1, ..Options::default() });
            }
        }
    }
}

#[test]
fn a_block_that_is_in_itself_is_an_error() {
    let temp = tempfile::tempdir().expect("a directory");
    let path = temp.path().join("loop.pdmodel");
    fs::copy(file("control").with_extension("pdiparams"), path.with_extension("pdiparams")).expect("a copy");
    let mut program = ProgramDesc::decode(&*fs::read(file("control")).expect("bytes")).expect("a program");
    let nested = program.blocks[0].ops.iter().find(|op| op.r#type() == "while").expect("a loop").clone();
    let inside = nested.attrs.iter().find_map(|a| a.block_idx).expect("a block") as usize;
    program.blocks[inside].ops.push(nested);
    fs::write(&path, program.encode_to_vec()).expect("written");
    let told = formats::load(&path).expect_err("a block in itself").to_string();
    assert!(told.contains("is the body of an op already"), "{told}");
}

#[test]
fn a_damaged_parameter_file_is_an_error_that_names_a_parameter_or_other_numbers() {
    let temp = tempfile::tempdir().expect("a directory");
    let mut dice = Dice(2);
    let (path, params) = (temp.path().join("din.pdmodel"), temp.path().join("din.pdiparams"));
    fs::copy(file("din"), &path).expect("a copy");
    let whole = fs::read(file("din").with_extension("pdiparams")).expect("bytes");
    for _ in 0..400 {
        fs::write(&params, damaged(&whole, &mut dice)).expect("written");
        if let Err(e) = formats::load(&path) {
            let told = e.to_string();
            assert!(told.contains("parameter \"") || told.contains("it is of another program"), "{told}");
        }
    }
    fs::remove_file(&params).expect("gone");
    let told = formats::load(&path).expect_err("no parameters").to_string();
    assert!(told.contains("din.pdiparams: the file with the program's parameters, such as \"bias\", is missing"), "{told}");
}

fn graphtool(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_graphtool")).args(args).output().expect("graphtool")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

#[test]
fn what_is_no_program_is_named_and_leaves_no_output() {
    let temp = tempfile::tempdir().expect("a directory");
    let params = fs::read(file("din").with_extension("pdiparams")).expect("bytes");
    for (name, bytes, told) in [
        ("empty.pdmodel", &b""[..], "the file is empty"),
        ("model.pdparams", b"\x80\x04\x95", "PaddlePaddle's .pdparams"),
        ("inference.json", br#"{"base_code":{"magic":"pir","version":1}}"#, "save it as .pdmodel"),
        ("params", &params, "this is a PaddlePaddle parameter file"),
        ("notes.pdmodel", b"hello, world\n", "notes.pdmodel"),
    ] {
        let (path, out) = (temp.path().join(name), temp.path().join("out.onnx"));
        fs::write(&path, bytes).expect("written");
        let result = graphtool(&["convert", text(&path), "-o", text(&out)]);
        let stderr = String::from_utf8_lossy(&result.stderr);
        assert_eq!(result.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(told) && stderr.trim_end().lines().count() == 1, "{stderr}");
        assert!(!out.exists());
        assert_eq!(graphtool(&["rewrite", text(&path), "-o", text(&out)]).status.code(), Some(1));
        assert!(!out.exists());
    }
}

#[test]
fn inspect_and_check_say_what_a_program_is() {
    let shown = graphtool(&["inspect", text(&file("din"))]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.starts_with("format      PaddlePaddle program, version 2.6.2, 1 block\n"), "{shown}");
    assert!(shown.contains("lookup_table_v2 4") && shown.contains("translated  to opsets: ai.onnx"), "{shown}");
    let checked = graphtool(&["check", text(&file("din"))]);
    assert!(String::from_utf8_lossy(&checked.stdout).starts_with("ok: PaddlePaddle program (version 2.6.2), "));
    let dumped = graphtool(&["dump", text(&file("din"))]);
    assert!(String::from_utf8_lossy(&dumped.stdout).contains("PaddlePaddle program (version 2.6.2)"));
    let json = graphtool(&["inspect", "--json", text(&file("control"))]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((json["format"].as_str(), json["paddle"]["ops"]["while"].as_u64()), (Some("PaddlePaddle program"), Some(1)));
}

#[test]
fn a_lookup_in_a_table_made_of_parameters_is_remote_and_converted() {
    let temp = tempfile::tempdir().expect("a directory");
    let (path, out) = (temp.path().join("doubled.pdmodel"), temp.path().join("model.onnx"));
    fs::copy(file("din").with_extension("pdiparams"), path.with_extension("pdiparams")).expect("a copy");
    let mut program = ProgramDesc::decode(&*fs::read(file("din")).expect("bytes")).expect("a program");
    let block = &mut program.blocks[0];
    let lookup = |op: &OpDesc| op.r#type() == "lookup_table_v2" && op.ins("W") == ["bias"];
    let at = block.ops.iter().position(lookup).expect("a lookup");
    let mut double = block.ops[at].clone();
    double.r#type = Some("elementwise_add".into());
    double.inputs = ["X", "Y"].map(|p| Operand { parameter: Some(p.into()), arguments: vec!["bias".into()] }).to_vec();
    double.outputs = vec![Operand { parameter: Some("Out".into()), arguments: vec!["doubled".into()] }];
    let mut var = block.vars.iter().find(|v| v.name() == "bias").expect("a variable").clone();
    (var.name, var.persistable) = (Some("doubled".into()), Some(false));
    block.vars.push(var);
    block.ops[at].inputs.iter_mut().filter(|p| p.parameter() == "W").for_each(|p| p.arguments = vec!["doubled".into()]);
    block.ops.insert(at, double);
    fs::write(&path, program.encode_to_vec()).expect("written");
    let shown = graphtool(&["inspect", text(&path)]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let row = shown.lines().find(|l| l.starts_with("doubled ")).unwrap_or_default();
    assert!(row.contains("float32[1]") && row.ends_with("remote") && !shown.contains("null"), "{shown}");
    let result = graphtool(&["convert", text(&path), "-o", text(&out)]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    let folder = file("din").parent().expect("a folder").to_owned();
    let (plain, converted) = (formats::load(&path).expect("a model"), formats::load(&out).expect("a model"));
    assert_eq!(run(&converted, None, inputs(&converted, &folder)), run(&plain, None, inputs(&plain, &folder)));
}

/// A checkpoint of both kinds of parts, and the program alone.
fn checkpoint(temp: &Path) -> (PathBuf, PathBuf) {
    let (source, made, program) = (root().join("paddle/ps_checkpoint"), temp.join("checkpoint"), temp.join("program"));
    for (from, to) in [(source.join("saved/000"), made.join("000")), (source.join("dense/001"), made.join("001"))] {
        fs::create_dir_all(&to).expect("a directory");
        for entry in fs::read_dir(from).expect("parts").flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    }
    fs::create_dir_all(&program).expect("a directory");
    fs::copy(source.join("saved/dnn_plugin/__model__"), program.join("__model__")).expect("a copy");
    (made, program)
}

#[test]
fn a_program_is_served_from_a_checkpoint_alone() {
    let temp = tempfile::tempdir().expect("a directory");
    let (made, program) = checkpoint(temp.path());
    let out = temp.path().join("d.dist");
    let import = |extra: &[&str]| {
        let mut args = vec!["import-tables", text(&made), "--model", text(&program), "-o", text(&out)];
        args.extend(extra);
        let result = graphtool(&args);
        (result.status.code(), String::from_utf8_lossy(&result.stderr).into_owned())
    };
    let (code, told) = import(&["--dense", "1=fc_0_b,fc_0_w", "--dense", "3"]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("--dense 3: no such dense table; the checkpoint has [1]"), "{told}");
    let (code, told) = import(&[]);
    assert!(code == Some(1) && told.contains("parameter \"deep_out_b\": its file is missing"), "{told}");
    let names = "1=deep_out_b,deep_out_w,fc_0_b,fc_0_w,fc_1_b,fc_1_w,wide_b";
    let (code, told) = import(&["--dense", names]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("parameter \"wide_w\": its file is missing"), "{told}");
    fs::copy(root().join("paddle/ps_checkpoint/saved/dnn_plugin/wide_w"), program.join("wide_w")).expect("a copy");
    let (code, told) = import(&["--dense", names]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("001: expected 3482 values for deep_out_b[1], ") && told.contains("found 3495"), "{told}");
    assert!(!out.exists());
    fs::remove_file(program.join("wide_w")).expect("gone");

    let (code, told) = import(&["--dense", "1"]);
    assert_eq!(code, Some(0), "{told}");
    let (_, model) = deploy::open(&out).expect("a deployment");
    let folder = root().join("paddle/ps_checkpoint");
    let values = inputs(&model, &folder);
    near(&run(&model, Some(store::open_local(&out).expect("a store")), values), &folder);

    // Ids that the checkpoint lacks are counted: all 8 of one slot, of 8 in each of 26.
    let samples = temp.path().join("samples");
    fs::create_dir_all(&samples).expect("a directory");
    for entry in fs::read_dir(&folder).expect("inputs").flatten().filter(|e| e.file_name().to_string_lossy().starts_with("in_")) {
        let mut bytes = fs::read(entry.path()).expect("bytes");
        if entry.file_name() == "in_C3.npy" {
            let at = bytes.len() - 8 * 8;
            bytes[at..].fill(0x3f);
        }
        fs::write(samples.join(entry.file_name()), bytes).expect("written");
    }
    let result =
        graphtool(&["run", text(&out), "-i", &format!("{}/", text(&samples)), "-o", &format!("{}/", text(&temp.path().join("o")))]);
    let (stdout, stderr) = (String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
    assert!(stdout.contains("8 ids were absent from their table"), "{stdout}{stderr}");
}

#[test]
fn faults_in_a_checkpoint_name_the_file_and_the_line() {
    let temp = tempfile::tempdir().expect("a directory");
    let (made, program) = checkpoint(temp.path());
    let out = temp.path().join("d.dist");
    let told = || {
        let args = ["import-tables", text(&made), "--model", text(&program), "--dense", "1", "-o", text(&out)];
        let result = graphtool(&args);
        assert_eq!(result.status.code(), Some(1));
        assert!(!out.exists());
        String::from_utf8_lossy(&result.stderr).into_owned()
    };
    let part = made.join("000/part-002-00016");
    let row = |id: &str, fields: usize| format!("{id} {}\n", vec!["1"; fields - 1].join(" "));
    fs::write(&part, row("7", 58) + &row("77777", 58) + &row("77777", 58)).expect("written");
    let twice = told();
    assert!(twice.contains("is there twice: ") && twice.contains("part-002-00016 line "), "{twice}");
    fs::write(&part, row("77777", 58) + &row("77778", 33)).expect("written");
    assert!(told().contains("part-002-00016: line 2: expected a row of 16"), "{}", told());
    fs::write(&part, row("77777", 58) + "\n" + &row("seven", 58)).expect("written");
    assert!(told().contains("part-002-00016: line 3: id \"seven\""), "{}", told());
    fs::write(made.join("000/part-002-00017.gz"), b"\x1f\x8b\x08\x00").expect("written");
    fs::remove_file(&part).expect("gone");
    assert!(told().contains("part-002-00017.gz: line 1: "), "{}", told());
    fs::remove_file(made.join("000/part-002-00017.gz")).expect("gone");
    fs::write(made.join("001/part-002"), "0.5\nx\n").expect("written");
    assert!(told().contains("part-002: line 2: \"x\" is no number"), "{}", told());
    fs::write(made.join("001/part-002"), "0.5 0.25\n").expect("written");
    assert!(told().contains("part-002: line 1: expected 1 numbers as in the first line, found 2"), "{}", told());
}

#[test]
fn the_manual_lists_the_ops_that_are_translated() {
    let manual = include_str!("../src/PADDLE.md");
    let list = manual.split("# Ops\n").nth(1).expect("a list of ops");
    let mut listed: Vec<&str> = list.lines().filter(|l| l.starts_with('|')).flat_map(|l| l.split('`').skip(1).step_by(2)).collect();
    listed.sort_unstable();
    assert_eq!(listed, paddle::translated_ops());
}
