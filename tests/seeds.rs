//! Faults that other systems' users reported, each with the right value: tables of files (P04, P27, P29, P31), keys that are
//! absent (P06), a rewritten model without its servers (P08).

use graphtool::deploy;
use graphtool::exec::{Options, Session};
use graphtool::formats;
use graphtool::plan::Absent;
use graphtool::store::{Memory, Query, Store};
use graphtool::tensor::{Tensor, Value, checked_offset};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

/// Protobuf by hand: these files are not of our own writer.
mod message {
    pub fn varint(mut x: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while x >= 0x80 {
            out.push(x as u8 | 0x80);
            x >>= 7;
        }
        out.push(x as u8);
        out
    }

    pub fn number(field: u64, x: u64) -> Vec<u8> {
        [varint(field << 3), varint(x)].concat()
    }

    pub fn bytes(field: u64, data: impl AsRef<[u8]>) -> Vec<u8> {
        [varint(field << 3 | 2), varint(data.as_ref().len() as u64), data.as_ref().to_vec()].concat()
    }
}

use message::{bytes, number, varint};

/// A tensor called T: its dims, type and elements.
fn tensor(dims: &[u64], dtype: u64, elements: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|&d| number(1, d)).collect();
    [dims, number(2, dtype), bytes(8, "T"), elements.to_vec()].concat()
}

fn external(entries: &[(&str, &str)]) -> Vec<u8> {
    let entry = |(k, v): &(&str, &str)| bytes(13, [bytes(1, k), bytes(2, v)].concat());
    [entries.iter().flat_map(entry).collect(), number(14, 1)].concat()
}

/// A model: `y = Gather(T, ids)`.
fn model(table: &[u8], dtype: u64) -> Vec<u8> {
    let value = |name: &str, ty: u64, dims: &[&str]| {
        let dims: Vec<u8> = dims.iter().flat_map(|d| bytes(1, bytes(2, d))).collect();
        [bytes(1, name), bytes(2, bytes(1, [number(1, ty), bytes(2, dims)].concat()))].concat()
    };
    let node = [bytes(1, "T"), bytes(1, "ids"), bytes(2, "y"), bytes(4, "Gather")].concat();
    let graph =
        [bytes(1, node), bytes(2, "g"), bytes(5, table), bytes(11, value("ids", 7, &["n"])), bytes(12, value("y", dtype, &["n", "d"]))]
            .concat();
    [number(1, 8), bytes(7, graph), bytes(8, number(2, 13))].concat()
}

fn look(path: &Path, ids: &[i64]) -> Tensor {
    let model = formats::load(path).expect("a model");
    let session = Session::new(&model, Options::default()).expect("a session");
    let out = session.run(vec![("ids".into(), Tensor::vector(ids.to_vec()).into())]).expect("a run");
    let Value::Tensor(t) = &out[0].1 else { panic!("no tensor") };
    t.clone()
}

fn program(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_graphtool")).args(args).current_dir(dir).output().expect("the program runs");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

// P04
#[test]
fn rows_past_four_gibibytes_are_where_they_are() {
    assert_eq!(checked_offset(239_674, 8960 * 4), Some(8_589_916_160));
    assert_eq!(checked_offset(u64::MAX, 2), None);
    let dir = tempfile::tempdir().expect("a directory");
    let data = File::create(dir.path().join("t.bin")).expect("a file");
    data.set_len(262_144 * 8960 * 4).expect("a sparse file");
    for (row, first) in [(239_674u64, 7.5f32), (262_143, -2.25)] {
        data.write_all_at(&first.to_le_bytes(), row * 8960 * 4).expect("written");
    }
    let table = tensor(&[262_144, 8960], 1, &external(&[("location", "t.bin")]));
    let path = dir.path().join("m.onnx");
    fs::write(&path, model(&table, 1)).expect("written");
    let rows = look(&path, &[239_674, 262_143, -22_470, 0]).to_f32s().expect("numbers");
    assert_eq!([rows[0], rows[8960], rows[2 * 8960], rows[3 * 8960]], [7.5, -2.25, 7.5, 0.0]);
    assert_eq!(rows.iter().filter(|x| **x != 0.0).count(), 3);
}

// P06
#[test]
fn an_absent_key_follows_its_policy_and_is_counted_and_never_put_in() {
    let store = |absent, default: Option<&[f64]>| {
        let values = Tensor::new([2, 2], vec![1f32, 1.0, 2.0, 2.0]).expect("rows");
        let mut store = Memory::new();
        store.add_keyed("H", &[5, 9], &values, absent, default).expect("a table");
        store
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let ask = |store: &Memory| runtime.block_on(store.lookup(vec![Query { table: 0, ids: vec![5, 7] }]));
    for (absent, default, right) in
        [(Absent::Zero, None, [1.0, 1.0, 0.0, 0.0]), (Absent::Default, Some(&[9.0, 9.0][..]), [1.0, 1.0, 9.0, 9.0])]
    {
        let store = store(absent, default);
        for times in 1..=2 {
            assert_eq!(ask(&store).expect("rows")[0].to_f32s().expect("numbers"), right);
            assert_eq!((store.stats().absent, store.tables()[0].rows), (times, 2));
        }
    }
    let strict = store(Absent::Error, None);
    let told = ask(&strict).expect_err("an error").to_string();
    assert!(told.contains("\"H\"") && told.contains('7'), "{told}");
    assert_eq!(strict.tables()[0].rows, 2);
}

// P08
#[test]
fn a_rewritten_model_without_servers_refuses_to_start_and_merges_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    let elements: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let original = model(&tensor(&[4, 2], 1, &bytes(9, elements)), 1);
    fs::write(at.join("m.onnx"), &original).expect("written");
    assert_eq!(program(at, &["rewrite", "m.onnx", "-o", "out", "--shards", "2", "--min-bytes", "0"]).0, Some(0));
    // No input is there: it is not looked for.
    let (code, told) = program(at, &["run", "out/worker.onnx", "--input", "none.npz", "--output", "o.npz"]);
    assert_eq!((code, told.lines().count()), (Some(1), 1), "{told}");
    for part in ["\"y\"", "table \"T\"", "give their endpoints", "deployment directory"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(!at.join("o.npz").exists());
    deploy::merge(&at.join("out"), &at.join("whole.onnx")).expect("a merge");
    assert_eq!(fs::read(at.join("whole.onnx")).expect("bytes"), original);
}

// P27
#[test]
fn narrow_floats_are_the_same_however_they_are_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("m.onnx");
    // 0.25, 0.5, 1 and 2 as bfloat16 and as float16.
    for (dtype, codes) in [(16u64, [0x3E80u16, 0x3F00, 0x3F80, 0x4000]), (10, [0x3400, 0x3800, 0x3C00, 0x4000])] {
        let raw: Vec<u8> = codes.iter().flat_map(|c| c.to_le_bytes()).collect();
        let typed: Vec<u8> = codes.iter().flat_map(|&c| varint(c.into())).collect();
        fs::write(dir.path().join("t.bin"), &raw).expect("written");
        for elements in [bytes(9, &raw), bytes(5, typed), external(&[("location", "t.bin"), ("offset", "0"), ("length", "8")])] {
            let file = model(&tensor(&[2, 2], dtype, &elements), dtype);
            fs::write(&path, &file).expect("written");
            let rows = look(&path, &[1, 0]);
            assert_eq!(rows.to_f32s().expect("numbers"), [1.0, 2.0, 0.25, 0.5]);
            assert_eq!(rows.bytes().expect("bytes"), [&raw[4..], &raw[..4]].concat());
        }
    }
}

// P29
#[test]
fn a_table_past_two_gibibytes_goes_to_a_file_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    let elements = (1u64 << 29) + 1;
    let data = File::create(at.join("t.bin")).expect("a file");
    data.set_len(elements * 4).expect("a sparse file");
    data.write_all_at(&3.5f32.to_le_bytes(), (elements - 1) * 4).expect("written");
    let table = tensor(&[elements, 1], 1, &external(&[("location", "t.bin")]));
    fs::write(at.join("m.onnx"), model(&table, 1)).expect("written");
    let told = format!("{} bytes of constants are beside the model, in o.onnx.data\n", elements * 4);
    assert_eq!(program(at, &["optimize", "m.onnx", "-o", "o.onnx", "--passes", "dead-code"]), (Some(0), told));
    assert!(fs::metadata(at.join("o.onnx")).expect("a file").len() < 1000);
    assert_eq!(fs::metadata(at.join("o.onnx.data")).expect("a file").size(), elements * 4);
    assert_eq!(program(at, &["check", "o.onnx"]), (Some(0), String::new()));
    assert_eq!(look(&at.join("o.onnx"), &[1 << 29, 0]).to_f32s().expect("numbers"), [3.5, 0.0]);
}

// P31
#[test]
fn external_data_stays_beside_its_model_and_within_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let inside = dir.path().join("inside");
    fs::create_dir_all(inside.join("a")).expect("directories");
    for file in [dir.path().join("x.bin"), inside.join("x.bin")] {
        fs::write(file, [0u8; 16]).expect("written");
    }
    let absolute = dir.path().join("x.bin").to_string_lossy().into_owned();
    let path = inside.join("m.onnx");
    let load = |entries: &[(&str, &str)]| {
        fs::write(&path, model(&tensor(&[2, 2], 1, &external(entries)), 1)).expect("written");
        formats::load(&path).map(|_| ()).map_err(|e| e.to_string())
    };
    load(&[("location", "x.bin")]).expect("a file beside the model");
    for entries in [
        &[("location", "../x.bin")][..],
        &[("location", &absolute)],
        &[("location", "a/../../x.bin")],
        &[("location", "")],
        &[("offset", "0")],
        &[("location", "x.bin"), ("offset", "4"), ("length", "16")],
        &[("location", "x.bin"), ("offset", "-4")],
        &[("location", "x.bin"), ("offset", "18446744073709551615")],
        &[("location", "x.bin"), ("length", "8")],
    ] {
        let told = load(entries).expect_err("refused");
        assert!(told.contains("\"T\""), "{entries:?}: {told}");
    }
}
