//! Deployment directories: any number of shards cut in any way holds the same rows; what is stored narrower says so; nothing is
//! left behind.

mod support;

use graphtool::deploy::{self, KeyedRows, ReshardOptions, RewriteOptions, reshard, rewrite};
use graphtool::ir::{Model, parse_model};
use graphtool::plan::{Absent, Manifest, Mode, Sharding, StoreDtype};
use graphtool::store::{self, ConnectOptions, Query, ServeOptions, Store, read_manifest};
use graphtool::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use support::{Server, endpoints};

const SHARDINGS: [Sharding; 4] = [Sharding::Row, Sharding::Range, Sharding::Column, Sharding::Table];

/// Elements of the tables of [`model`]: whole numbers, each once.
fn elements(n: usize, first: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7) % n + first) as f32).collect()
}

/// Lookups in `t` (23 x 6), `u` (5 x 3, int64), and bags of `t`.
fn model() -> Model {
    model_with(elements(138, 0))
}

fn model_with(t: Vec<f32>) -> Model {
    let text = |v: Vec<f32>| v.iter().map(|x| format!("{x:?}")).collect::<Vec<_>>().join(", ");
    let ints = elements(15, 1000).iter().map(|x| format!("{x}")).collect::<Vec<_>>().join(", ");
    parse_model(&format!(
        "graph g(ids: int64[b], bags: int64[b,3]) -> (p: float32[b,6], q: int64[b,3], s: float32[b,6]) {{
  param t: float32[23,6] = [{}]
  param u: int64[5,3] = [{ints}]
  param axis: int64[1] = [1]
  param five: int64[1] = [5]
  p = Gather(t, ids)
  small = Mod(ids, five)
  q = Gather(u, small)
  many = Gather(t, bags)
  s = ReduceSum(many, axis) {{keepdims=0}}
}}",
        text(t)
    ))
    .expect("a model")
}

fn options(shards: u32, how: Sharding) -> RewriteOptions {
    RewriteOptions { shards, mode: Mode::All(how), ..RewriteOptions::default() }
}

fn to(shards: u32, mode: Mode) -> ReshardOptions {
    ReshardOptions { shards, mode, ..ReshardOptions::default() }
}

fn lookup(store: &dyn Store, table: &str, ids: Vec<u64>) -> Tensor {
    let table = store.tables().iter().position(|t| t.name == table).expect("a table");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(store.lookup(vec![Query { table, ids }])).expect("rows").remove(0)
}

/// All rows of a table, as lookups give them.
fn rows(dir: &Path, table: &str) -> Tensor {
    let store = store::open_local(dir).expect("a store");
    let n = store.tables().iter().find(|t| t.name == table).expect("a table").rows;
    lookup(&*store, table, (0..n).collect())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).expect("a directory").flatten().map(|e| e.file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

/// Name and content of every file.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for sub in ["", "shards"] {
        for name in names(&dir.join(sub)) {
            let path = dir.join(sub).join(&name);
            if path.is_file() {
                out.insert(format!("{sub}/{name}"), std::fs::read(path).expect("a file"));
            }
        }
    }
    out
}

fn contents(m: &Manifest) -> Vec<(String, u64, String)> {
    m.tables.iter().map(|t| (t.name.clone(), t.rows, t.content.clone())).collect()
}

#[test]
fn resharding_keeps_every_row_and_comes_back_to_the_same_files() {
    for how in SHARDINGS {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = tmp.path().join("m.dist");
        let first = rewrite(model(), &dir, options(3, how)).expect("a rewrite").manifest;
        assert_eq!(rows(&dir, "t"), Tensor::new([23, 6], elements(138, 0)).expect("a tensor"));
        let (before, u) = (files(&dir), rows(&dir, "u"));
        let steps = [(5, Sharding::Row), (1, Sharding::Row), (3, Sharding::Column), (4, Sharding::Range), (2, Sharding::Table), (7, how)];
        for (shards, next) in steps.into_iter().chain([(3, how)]) {
            let done = reshard(&dir, &dir, &to(shards, Mode::All(next))).expect("a reshard");
            assert_eq!(contents(&done.manifest), contents(&first), "{how:?} to {shards} x {next:?}");
            assert_eq!(done.tables.iter().map(|t| t.rows).collect::<Vec<_>>(), [23, 5]);
            assert_eq!(done.manifest.shards, shards);
            assert_eq!(deploy::check(&dir).expect("a check"), [""; 0]);
            assert_eq!(rows(&dir, "t"), Tensor::new([23, 6], elements(138, 0)).expect("a tensor"), "{how:?} to {shards} x {next:?}");
            assert_eq!(rows(&dir, "u"), u);
            assert_eq!(names(tmp.path()), ["m.dist"]);
        }
        assert!(files(&dir) == before, "{how:?}: other files after the way there and back");
    }
}

#[test]
fn a_reshard_elsewhere_leaves_the_first_alone() {
    let tmp = tempfile::tempdir().expect("a directory");
    let (a, b) = (tmp.path().join("a.dist"), tmp.path().join("b.dist"));
    rewrite(model(), &a, options(3, Sharding::Row)).expect("a rewrite");
    let before = files(&a);
    reshard(&a, &b, &to(2, Mode::Auto)).expect("a reshard");
    assert!(files(&a) == before);
    let (ours, theirs) = (read_manifest(&a).expect("a manifest"), read_manifest(&b).expect("a manifest"));
    assert_eq!(ours.fingerprint, theirs.fingerprint);
    assert_ne!(ours.plan_id, theirs.plan_id);
    std::fs::create_dir(tmp.path().join("other")).expect("a directory");
    let error = reshard(&a, &tmp.path().join("other"), &to(2, Mode::Auto)).expect_err("no deployment").to_string();
    assert!(error.ends_with("it is there and is no deployment; it is left alone"), "{error}");
}

fn keyed_rows() -> KeyedRows {
    // Keys of all sizes, more of them odd than even.
    let keys: Vec<u64> = [0, 1, 3, 5, 7, 11, 12, 1 << 40, (1 << 40) + 1, u64::MAX - 4, u64::MAX].into();
    let values = elements(keys.len() * 6, 0);
    KeyedRows { keys, values, columns: 6 }
}

fn keyed_options(shards: u32, absent: Absent) -> RewriteOptions {
    RewriteOptions { keyed: HashMap::from([("t".to_owned(), (keyed_rows(), absent))]), ..options(shards, Sharding::Row) }
}

#[test]
fn keyed_tables_are_resharded_by_key() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path().join("k.dist");
    let first = rewrite(model(), &dir, keyed_options(3, Absent::Zero)).expect("a rewrite").manifest;
    let (before, all) = (files(&dir), keyed_rows());
    // By hand: mod 3, 0 12 2^40-1 … ; only the sum and the spread are told.
    let spread = |m: &Manifest| m.tables[0].pieces.iter().map(|p| p.rows).collect::<Vec<_>>();
    let count = |n: u64| (0..n).map(|p| all.keys.iter().filter(|k| **k % n == p).count() as u64).collect::<Vec<_>>();
    assert_eq!(spread(&first), count(3));
    for (shards, mode) in [(5, Mode::Auto), (1, Mode::Auto), (2, Mode::All(Sharding::Column)), (3, Mode::All(Sharding::Row))] {
        let done = reshard(&dir, &dir, &to(shards, mode)).expect("a reshard").manifest;
        assert_eq!(contents(&done), contents(&first));
        assert!(done.tables[0].keyed);
        assert_eq!(spread(&done), count(done.tables[0].pieces.len() as u64));
        let store = store::open_local(&dir).expect("a store");
        assert_eq!(lookup(&*store, "t", all.keys.clone()), Tensor::new([11, 6], all.values.clone()).expect("a tensor"));
        assert_eq!(lookup(&*store, "t", vec![2]), Tensor::new([1, 6], vec![0f32; 6]).expect("a tensor"));
        assert_eq!(deploy::check(&dir).expect("a check"), [""; 0]);
    }
    assert!(files(&dir) == before);
    let error = deploy::merge(&dir, &tmp.path().join("m.onnx")).expect_err("keys").to_string();
    assert!(error.contains("table \"t\" is addressed by key; no model file can hold it"), "{error}");
    assert_eq!(names(tmp.path()), ["k.dist"]);
}

#[test]
fn keys_in_the_wrong_piece_are_found() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path().join("k.dist");
    let mut m = rewrite(model(), &dir, keyed_options(2, Absent::Error)).expect("a rewrite").manifest;
    m.tables[0].pieces.swap(0, 1);
    m.seal();
    std::fs::write(dir.join("manifest.json"), m.print()).expect("written");
    let faults = deploy::check(&dir).expect("a check");
    assert_eq!(faults, ["table \"t\": piece 1 holds key 0 at place 0, where it does not belong"]);
    let error = reshard(&dir, &dir, &to(3, Mode::Auto)).expect_err("wrong pieces").to_string();
    assert!(error.starts_with("table \"t\": ") && error.ends_with("piece 1 holds key 0 at place 0, where it does not belong"), "{error}");
}

#[test]
fn a_second_rewrite_replaces_and_never_appends() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path().join("m.dist");
    rewrite(model(), &dir, options(3, Sharding::Row)).expect("a rewrite");
    let first = files(&dir);
    std::fs::write(dir.join("shards/left"), "of another time").expect("written");
    rewrite(model(), &dir, options(3, Sharding::Row)).expect("a rewrite");
    assert!(files(&dir) == first);
    // The shard files hold rows and headers of less than 512 bytes, nothing else.
    let bytes: usize = first.iter().filter(|f| f.0.starts_with("shards/")).map(|f| f.1.len()).sum();
    let rows = 23 * 6 * 4 + 5 * 3 * 8;
    assert!((rows..rows + 6 * 512).contains(&bytes), "{bytes}");
}

#[test]
fn ten_rows_in_four_shards_are_served_by_three_and_by_one() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path().join("m.dist");
    let table = (0..20).map(|i| format!("{i}.0")).collect::<Vec<_>>().join(", ");
    let text = format!("graph g(ids: int64[b]) -> (p: float32[b,2]) {{\n  param t: float32[10,2] = [{table}]\n  p = Gather(t, ids)\n}}");
    let manifest = rewrite(parse_model(&text).expect("a model"), &dir, options(4, Sharding::Row)).expect("a rewrite").manifest;
    assert_eq!(manifest.tables[0].pieces.iter().map(|p| p.rows).collect::<Vec<_>>(), [3, 3, 2, 2]);
    let mut seen = BTreeSet::new();
    for piece in &manifest.tables[0].pieces {
        let bytes = std::fs::read(dir.join(&piece.file)).expect("a shard");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        for row in file.tensor("values").expect("values").data().chunks(8) {
            assert!(seen.insert(row.to_vec()), "a row is there twice");
        }
    }
    assert_eq!(seen.len(), 10);
    let manifest = Arc::new(manifest);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    for n in [3, 1] {
        let running = Server::start_all(&dir, n, ServeOptions::default());
        let store = runtime.block_on(store::connect(manifest.clone(), &endpoints(&running), ConnectOptions::default())).expect("a store");
        let rows = runtime.block_on(store.lookup(vec![Query { table: 0, ids: (0..10).collect() }])).expect("rows").remove(0);
        assert_eq!(rows, Tensor::new([10, 2], (0..20).map(|i| i as f32).collect()).expect("a tensor"), "{n} servers");
    }
}

#[test]
fn a_shard_of_another_export_is_found_before_serving() {
    let tmp = tempfile::tempdir().expect("a directory");
    let (a, b) = (tmp.path().join("a.dist"), tmp.path().join("b.dist"));
    let ours = rewrite(model(), &a, options(2, Sharding::Row)).expect("a rewrite").manifest;
    rewrite(model_with([vec![0.5], elements(138, 0)[1..].to_vec()].concat()), &b, options(2, Sharding::Row)).expect("a rewrite");
    let file = &ours.tables[0].pieces[0].file;
    std::fs::copy(b.join(file), a.join(file)).expect("copied");
    let error = store::serve(TcpListener::bind("127.0.0.1:0").expect("a port"), &a, ServeOptions::default(), async {});
    let error = error.expect_err("a foreign shard").to_string();
    assert!(error.contains(file) && error.contains("expected checksum ") && error.contains(", found "), "{error}");
    let faults = deploy::check(&a).expect("a check");
    assert!(faults.len() == 1 && faults[0].contains("expected checksum"), "{faults:?}");
    let before = files(&a);
    let error = reshard(&a, &a, &to(3, Mode::Auto)).expect_err("a foreign shard").to_string();
    assert!(error.contains("table \"t\": expected rows with hash ") && error.ends_with("its shards are damaged"), "{error}");
    assert!(files(&a) == before && names(tmp.path()) == ["a.dist", "b.dist"]);
}

/// Rows whose int8 form can be told by hand: the largest element of the first is 127, of the second 12.7.
const NARROW: &str = "graph g(ids: int64[b]) -> (p: float32[b,4]) {
  param t: float32[2,4] = [127.0, 63.25, -2.0, 0.0, 12.7, -12.7, 0.1, 0.0]
  p = Gather(t, ids)
}";

#[test]
fn narrower_storage_gives_rows_of_the_tables_dtype_and_tells_its_error() {
    let original = [127.0f32, 63.25, -2.0, 0.0, 12.7, -12.7, 0.1, 0.0];
    // int8: the scales are 1 and 0.1, the codes 127 63 -2 0 and 127 -127 1 0.
    let tenth = 12.7f32 / 127.0;
    let int8 = [127.0, 63.0, -2.0, 0.0, 127.0 * tenth, -127.0 * tenth, tenth, 0.0];
    // 63.25 has 8 bits, 127 has 7; 12.7 is 1.5875 * 8 and lies between 12.6875 and 12.75 in bfloat16.
    let bf16 = [127.0, 63.25, -2.0, 0.0, 12.6875, -12.6875, 205.0 / 2048.0, 0.0];
    // In float16, steps of 2^-7 at 12.7 and of 2^-14 at 0.1.
    let f16 = [127.0, 63.25, -2.0, 0.0, 12.703125, -12.703125, 819.0 / 8192.0, 0.0];
    for (store, expected) in [(StoreDtype::Int8, int8), (StoreDtype::BF16, bf16), (StoreDtype::F16, f16)] {
        let mut content = None;
        for how in SHARDINGS {
            let tmp = tempfile::tempdir().expect("a directory");
            let dir = tmp.path().join("n.dist");
            let m = parse_model(NARROW).expect("a model");
            let types = |m: &Model| m.graph.outputs().iter().map(|o| o.ty.clone()).collect::<Vec<_>>();
            let wish = RewriteOptions { store: Some(store), ..options(2, how) };
            let manifest = rewrite(m.clone(), &dir, wish).expect("a rewrite").manifest;
            let stored = manifest.tables[0].stored.expect("stored narrower");
            let error = original.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(b)).abs()).fold(0.0, f64::max);
            assert_eq!((stored.dtype, stored.max_error), (store, error), "{how:?}");
            assert_eq!(types(&deploy::open(&dir).expect("a deployment").1), types(&m));
            let expected = Tensor::new([2, 4], expected.to_vec()).expect("a tensor");
            assert_eq!(rows(&dir, "t"), expected, "{store:?} {how:?}");
            assert_eq!(manifest.tables[0].content, *content.get_or_insert(manifest.tables[0].content.clone()), "{how:?}");
            // Other pieces, the same rows.
            for (shards, next) in [(3, Sharding::Column), (1, Sharding::Row), (2, Sharding::Range)] {
                let done = reshard(&dir, &dir, &to(shards, Mode::All(next))).expect("a reshard").manifest;
                assert_eq!((done.tables[0].stored, &done.tables[0].content), (Some(stored), &manifest.tables[0].content));
                assert_eq!(rows(&dir, "t"), expected, "{store:?} {how:?} to {next:?}");
            }
            let out = tmp.path().join("m.onnx");
            let refusal = deploy::merge(&dir, &out).expect_err("values are gone").to_string();
            let says = format!("table \"t\" (float32) is stored as {}, its original values are gone: --narrowed", store.name());
            assert!(refusal.contains(&says), "{refusal}");
            assert_eq!(names(tmp.path()), ["n.dist"]);
            deploy::merge_narrowed(&dir, &out).expect("a merge");
            let merged = graphtool::formats::load(&out).expect("a model");
            let t = merged.graph.value("t").and_then(|v| merged.graph.constant(v)).expect("a table");
            assert_eq!(t.tensor, expected);
        }
    }
}

#[test]
fn servers_give_narrow_rows_as_one_machine_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    for how in SHARDINGS {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = tmp.path().join("n.dist");
        let wish = RewriteOptions { store: Some(StoreDtype::Int8), ..options(3, how) };
        let manifest = Arc::new(rewrite(model(), &dir, wish).expect("a rewrite").manifest);
        assert_eq!(manifest.tables[1].stored, None, "int64 is not narrowed");
        let expected = rows(&dir, "t");
        for servers in [1, 2] {
            let running = Server::start_all(&dir, servers, ServeOptions::default());
            let endpoints = endpoints(&running);
            let connect = store::connect(manifest.clone(), &endpoints, ConnectOptions::default());
            let store = runtime.block_on(connect).expect("a store");
            let rows = runtime.block_on(store.lookup(vec![Query { table: 0, ids: (0..23).collect() }])).expect("rows").remove(0);
            assert_eq!(rows, expected, "{how:?} over {servers}");
        }
    }
}

#[test]
fn what_cannot_be_narrowed_names_table_and_row() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path().join("n.dist");
    let m = parse_model(&NARROW.replace("0.1, 0.0]", "70000.0, 0.0]")).expect("a model");
    let wish = RewriteOptions { store: Some(StoreDtype::F16), ..options(2, Sharding::Row) };
    let error = rewrite(m, &dir, wish).expect_err("past the range").to_string();
    assert!(error.contains("table \"t\": row 1: element 70000 is past the range of float16"), "{error}");
    assert_eq!(names(tmp.path()), [""; 0]);
}

#[test]
fn zeros_take_no_room_on_disk() {
    use std::os::unix::fs::MetadataExt;
    let tmp = tempfile::tempdir().expect("a directory");
    // 64 MiB of zeros but for one element.
    let path = tmp.path().join("rows.bin");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(64 << 20).expect("sparse");
    std::os::unix::fs::FileExt::write_all_at(&file, &7f32.to_le_bytes(), 4096 * 1000).expect("written");
    let bytes = graphtool::tensor::map_file(&std::fs::File::open(&path).expect("a file")).expect("a map");
    let table = Tensor::from_bytes(graphtool::tensor::DType::F32, [16384, 1024], bytes).expect("a tensor");
    for how in SHARDINGS {
        let layout = graphtool::plan::TableLayout {
            name: "t".into(),
            sharding: how,
            shards: vec![0; if how == Sharding::Table { 1 } else { 2 }],
            starts: None,
            store: None,
        };
        let dir = tmp.path().join(how.name());
        let entry = store::write_table(&dir, "t", &table, &layout).expect("written");
        let (mut len, mut used) = (0, 0);
        for p in &entry.pieces {
            let m = std::fs::metadata(dir.join(&p.file)).expect("a file");
            assert_eq!(store::checksum(&dir.join(&p.file)).expect("a sum"), p.checksum);
            (len, used) = (len + m.len(), used + m.blocks() * 512);
        }
        assert!(len > 64 << 20 && used < 100 << 10, "{how:?}: {used} of {len} bytes");
    }
}

#[test]
fn a_table_of_more_pieces_than_are_open_at_once_is_whole() {
    let tmp = tempfile::tempdir().expect("a directory");
    let n = 700;
    let table = Tensor::new([n, 3], elements(n * 3, 0)).expect("a tensor");
    for how in [Sharding::Row, Sharding::Range] {
        let layout = graphtool::plan::TableLayout { name: "t".into(), sharding: how, shards: vec![0; 600], starts: None, store: None };
        let entry = store::write_table(tmp.path(), "t", &table, &layout).expect("written");
        let mut all = Vec::new();
        let rows = store::TableRows::open(tmp.path(), &entry).expect("pieces");
        store::RowSource::visit(&rows, &mut |_, row| {
            all.extend_from_slice(row);
            Ok(())
        })
        .expect("rows");
        assert!(all == table.bytes().expect("bytes"), "{how:?}");
        assert_eq!(rows.content().expect("a hash"), entry.content);
    }
}

#[test]
fn elements_that_share_a_byte_are_cut_between_bytes() {
    let numbers: Vec<u8> = (0..5 * 6).map(|i| (i * 7 % 16) as u8).collect();
    let text = numbers.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let text = format!("graph g(ids: int64[b]) -> (p: uint4[b,6]) {{\n  param t: uint4[5,6] = [{text}]\n  p = Gather(t, ids)\n}}");
    for how in SHARDINGS {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = tmp.path().join("m.dist");
        let model = parse_model(&text).expect("a model");
        let manifest = rewrite(model, &dir, options(4, how)).expect("a rewrite").manifest;
        let columns: Vec<u64> = manifest.tables[0].pieces.iter().map(|p| p.columns).collect();
        if how == Sharding::Column {
            assert_eq!(columns, [2, 2, 2]);
        }
        let bytes: Vec<u8> = numbers.chunks(2).map(|c| c[0] | c[1] << 4).collect();
        assert_eq!(rows(&dir, "t").bytes(), Some(&bytes[..]), "{how:?}");
        reshard(&dir, &dir, &to(2, Mode::All(Sharding::Column))).expect("a reshard");
        assert_eq!(rows(&dir, "t").bytes(), Some(&bytes[..]), "{how:?} by column");
    }
}

#[test]
fn a_byte_that_changed_anywhere_is_seen_by_whoever_reads_the_file() {
    let tmp = tempfile::tempdir().expect("a directory");
    let (dir, merged) = (tmp.path().join("m.dist"), tmp.path().join("m.onnx"));
    rewrite(model(), &dir, options(2, Sharding::Row)).expect("a rewrite");
    let mut files = vec!["manifest.json".to_owned(), "original.onnx".into(), "worker.onnx".into()];
    let shards = std::fs::read_dir(dir.join("shards")).expect("shards");
    files.extend(shards.map(|e| format!("shards/{}", e.expect("an entry").file_name().to_string_lossy())));
    assert_eq!(files.len(), 3 + 4);
    for file in &files {
        let path = dir.join(file);
        let whole = std::fs::read(&path).expect("bytes");
        for at in [0, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, &bytes).expect("written");
            let seen = |what: &str, error: Option<String>| {
                let error = error.unwrap_or_else(|| panic!("{what} does not see byte {at} of {file}"));
                assert!(error.contains(file.as_str()) && error.lines().count() == 1, "{what}, byte {at} of {file}: {error}");
            };
            match deploy::check(&dir) {
                Ok(faults) => seen("check", faults.into_iter().next()),
                Err(e) => seen("check", Some(e.to_string())),
            }
            if file != "worker.onnx" {
                seen("merge", deploy::merge(&dir, &merged).err().map(|e| e.to_string()));
            }
            if !file.ends_with(".onnx") {
                seen("a local store", store::open_local(&dir).err().map(|e| e.to_string()));
            }
            if file == "worker.onnx" || file == "manifest.json" {
                seen("a worker", deploy::open(&dir).err().map(|e| e.to_string()));
            }
            assert!(!merged.exists());
        }
        std::fs::write(&path, &whole).expect("written");
    }
    deploy::merge(&dir, &merged).expect("merged");
    store::open_local(&dir).expect("opened");
}
