//! `plan`, `rewrite --plan`, `reshard` and counts of ids, as their users call them; and the memory that a large table takes.

use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn wide() -> String {
    models().join("widedeep_ts11/model.onnx").to_str().expect("a path").to_owned()
}

fn call(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_graphtool")).current_dir(dir).stdin(Stdio::null()).args(args).output().expect("the program runs")
}

fn ok(dir: &Path, args: &[&str]) -> String {
    let out = call(dir, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

fn fails(dir: &Path, args: &[&str], code: i32) -> String {
    let out = call(dir, args);
    let error = String::from_utf8(out.stderr).expect("text");
    assert_eq!((out.status.code(), error.lines().count()), (Some(code), 1), "{args:?}: {error}");
    error
}

fn json_of(dir: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&ok(dir, args)).expect("JSON")
}

fn manifest(dir: &Path, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join(name).join("manifest.json")).expect("a manifest")).expect("JSON")
}

#[test]
fn a_plan_goes_out_is_edited_and_comes_back() {
    let tmp = tempfile::tempdir().expect("a directory");
    let (dir, wide) = (tmp.path(), wide());
    let mut plan = json_of(dir, &["plan", &wide, "--min-bytes", "0", "--shards", "3", "--json"]);
    assert_eq!(plan["per_shard"].as_array().map(Vec::len), Some(3));
    let bytes = |v: &Value| v.as_array().into_iter().flatten().filter_map(|s| s["bytes"].as_u64()).sum::<u64>();
    // 777 rows of 1 and of 8 elements of 4 bytes.
    assert_eq!((bytes(&plan["per_shard"]), bytes(&plan["tables"])), (777 * 9 * 4, 777 * 9 * 4));
    assert_eq!(ok(dir, &["plan", &wide, "--min-bytes", "0", "--shards", "3"]).lines().count(), 8 + 1 + 1 + 1 + 3 + 1);
    let edit = |plan: &Value| std::fs::write(dir.join("p.json"), plan.to_string()).expect("written");
    edit(&plan);
    ok(dir, &["rewrite", &wide, "--min-bytes", "0", "--plan", "p.json", "-o", "a.dist"]);
    ok(dir, &["rewrite", &wide, "--min-bytes", "0", "--shards", "3", "-o", "b.dist"]);
    assert_eq!(manifest(dir, "a.dist"), manifest(dir, "b.dist"));
    let again = json_of(dir, &["plan", "a.dist", "--json"]);
    assert_eq!((&again["tables"], &again["per_shard"]), (&plan["tables"], &plan["per_shard"]));
    // By hand: e.0.weight (500 rows) in uneven ranges, e.3.weight as int8.
    let at = |plan: &Value, name: &str| plan["tables"].as_array().and_then(|t| t.iter().position(|t| t["name"] == name)).expect("a table");
    let (e0, e3) = (at(&plan, "e.0.weight"), at(&plan, "e.3.weight"));
    for (key, value) in [("sharding", json!("range")), ("shards", json!([2, 0])), ("starts", json!([0, 400]))] {
        plan["tables"][e0][key] = value;
    }
    plan["tables"][e3]["store_dtype"] = json!("int8");
    edit(&plan);
    let said = ok(dir, &["rewrite", &wide, "--min-bytes", "0", "--plan", "p.json", "-o", "a.dist"]);
    assert!(said.contains("stored: \"e.3.weight\" (float32) as int8, largest absolute error "), "{said}");
    let table = &manifest(dir, "a.dist")["tables"][e0];
    let pieces = [&table["pieces"][0], &table["pieces"][1]].map(|p| (p["shard"].as_u64(), p["rows"].as_u64()));
    assert_eq!(pieces, [(Some(2), Some(400)), (Some(0), Some(100))]);
    // What `reshard` is given must keep what was stored.
    let kept = json_of(dir, &["plan", "a.dist", "--json"]);
    assert_eq!(kept["tables"][e3]["store_dtype"], "int8");
    edit(&kept);
    ok(dir, &["reshard", "a.dist", "--plan", "p.json", "-o", "c.dist"]);
    assert_eq!(manifest(dir, "c.dist")["tables"], manifest(dir, "a.dist")["tables"]);
    for (name, key, value, says) in [
        (e0, "rows", json!(501), "table \"e.0.weight\": expected rows 500, which the model has, found 501"),
        (e0, "shards", json!([0, 3]), "table \"e.0.weight\": expected shards below 3, found 3"),
        (e0, "starts", json!([0, 500]), "table \"e.0.weight\": expected \"starts\" below 500, the number of rows, found 500"),
        (e3, "sharding", json!("rows"), "table \"e.3.weight\": expected sharding table, row, range or column, found \"rows\""),
        (e3, "name", json!("e.9"), "table \"e.9\" of the plan is none of the model's"),
    ] {
        let mut wrong = kept.clone();
        wrong["tables"][name][key] = value;
        edit(&wrong);
        let error = fails(dir, &["rewrite", &wide, "--min-bytes", "0", "--plan", "p.json", "-o", "a.dist"], 2);
        assert!(error.contains("p.json: ") && error.contains(says), "{error}");
    }
}

#[test]
fn counts_of_a_click_log_are_its_columns() {
    let tmp = tempfile::tempdir().expect("a directory");
    let (dir, wide) = (tmp.path(), wide());
    let log = std::fs::read_to_string(models().join("clicks.csv")).expect("the log");
    let lines: Vec<&str> = log.lines().take(1501).collect();
    std::fs::write(dir.join("log.csv"), lines.join("\n") + "\n").expect("written");
    let column = lines[0].split(',').position(|c| c == "C3").expect("a column");
    let mut counts = [0u64; 7];
    lines[1..].iter().for_each(|l| counts[l.split(',').nth(column).and_then(|c| c.parse::<usize>().ok()).expect("an id")] += 1);
    let plan = ["plan", &wide, "--min-bytes", "0", "--shards", "2"];
    let input = ["--input", "log.csv", "--bind", "dense=I1..I5", "--bind", "sparse=C1..C4", "--id-stats-out", "ids.csv"];
    ok(dir, &[&plan[..], &input].concat());
    let written = std::fs::read_to_string(dir.join("ids.csv")).expect("counts");
    let expected: Vec<String> = counts.iter().enumerate().filter(|c| *c.1 > 0).map(|(id, n)| format!("e.2.weight,{id},{n}")).collect();
    assert_eq!(written.lines().filter(|l| l.starts_with("e.2.weight,")).collect::<Vec<_>>(), expected);
    // Loads follow the counts, by whatever way they come.
    let by_file = json_of(dir, &[&plan[..], &["--id-stats", "ids.csv", "--json"]].concat());
    assert_eq!(json_of(dir, &[&plan[..], &input, &["--json"]].concat()), by_file);
    assert_eq!(by_file["per_shard"].as_array().into_iter().flatten().filter_map(|s| s["load"].as_f64()).sum::<f64>(), 8.0 * 1500.0);
    let hottest = counts.iter().enumerate().max_by_key(|(i, n)| (**n, std::cmp::Reverse(*i))).expect("ids");
    let e2 = by_file["tables"].as_array().into_iter().flatten().find(|t| t["name"] == "e.2.weight").expect("a table");
    assert_eq!(e2["hottest"], json!({"id": hottest.0, "count": hottest.1}));
    // A deployment is counted as its model is.
    ok(dir, &["rewrite", &wide, "--min-bytes", "0", "--shards", "2", "--id-stats", "ids.csv", "-o", "w.dist"]);
    let again = json_of(dir, &[&["plan", "w.dist", "--json"][..], &input].concat());
    assert_eq!(again["per_shard"], by_file["per_shard"]);
    std::fs::write(dir.join("bad.csv"), "table,id,count\ne.2.weight,7,1\n").expect("written");
    let error = fails(dir, &["rewrite", &wide, "--min-bytes", "0", "--id-stats", "bad.csv", "-o", "x.dist"], 1);
    assert!(error.contains("bad.csv: table \"e.2.weight\": counts of id 7, expected ids below 7, the number of rows"), "{error}");
    assert!(!dir.join("x.dist").exists());
}

#[test]
fn a_resharded_deployment_gives_the_same_answers() {
    let tmp = tempfile::tempdir().expect("a directory");
    let (dir, wide) = (tmp.path(), wide());
    let set = models().join("widedeep_ts11/test_data_set_0");
    let input = set.to_str().expect("a path");
    ok(dir, &["run", &wide, "--input", input, "--output", "local/"]);
    let expected = std::fs::read(dir.join("local/output_0.pb")).expect("an output");
    ok(dir, &["rewrite", &wide, "--min-bytes", "0", "--shards", "3", "--sharding", "row", "--replicas", "2", "-o", "w.dist"]);
    for (shards, how) in [("3", "row"), ("5", "column"), ("1", "auto"), ("3", "range")] {
        let said = ok(dir, &["reshard", "w.dist", "--shards", shards, "--sharding", how]);
        assert_eq!(said.matches(" equal").count(), 8, "{said}");
        ok(dir, &["check", "w.dist"]);
        ok(dir, &["launch", "w.dist", "--server_num", if shards == "1" { "1" } else { "2" }, "--input", input, "--output", "out/"]);
        assert!(std::fs::read(dir.join("out/output_0.pb")).expect("an output") == expected, "{shards} x {how}");
    }
    assert_eq!(manifest(dir, "w.dist")["replicas"], 2);
    assert!(fails(dir, &["reshard", &wide, "--shards", "2"], 1).contains("manifest.json"));
    assert!(fails(dir, &["plan", "w.dist", "--store-dtype", "int8"], 2).contains("--store-dtype: for models"));
}

/// A field of a protobuf message with bytes as its value.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    put_varint(&mut out, value.len() as u64);
    out.extend(value);
    out
}

fn int(number: u8, value: u64) -> Vec<u8> {
    let mut out = vec![number << 3];
    put_varint(&mut out, value);
    out
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// `out = Gather(t, ids)` where `t` is `[rows, columns]` float32 in the file `t.data`.
fn gather_model(rows: u64, columns: u64) -> Vec<u8> {
    let info = |name: &str, kind: u64, dims: &[Vec<u8>]| {
        let shape: Vec<u8> = dims.iter().flat_map(|d| field(1, d)).collect();
        let tensor = [int(1, kind), field(2, &shape)].concat();
        [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
    };
    let node = [field(1, b"t"), field(1, b"ids"), field(2, b"out"), field(3, b"look"), field(4, b"Gather")].concat();
    let place = field(13, &[field(1, b"location"), field(2, b"t.data")].concat());
    let table = [int(1, rows), int(1, columns), int(2, 1), field(8, b"t"), place, int(14, 1)].concat();
    let batch = field(2, b"b");
    let graph = [
        field(1, &node),
        field(2, b"g"),
        field(5, &table),
        field(11, &info("ids", 7, &[batch.clone()])),
        field(12, &info("out", 1, &[batch, int(1, columns)])),
    ];
    [int(1, 8), field(7, &graph.concat()), field(8, &int(2, 17))].concat()
}

/// Runs the program to its end and gives the most memory that it held, in bytes.
fn peak(dir: &Path, args: &[&str]) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_graphtool"))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .args(args)
        .spawn()
        .expect("the program runs");
    let mut peak = 0;
    loop {
        // The system's own high-water mark: it only grows, and is there until the process is.
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().strip_suffix(" kB")).and_then(|n| n.trim().parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        if let Some(status) = child.try_wait().expect("a child") {
            assert!(status.success(), "{args:?}");
            return peak;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_large_table_is_cut_cut_again_and_merged_in_a_fraction_of_its_memory() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = tmp.path();
    let (rows, columns) = (262_144u64, 256u64);
    std::fs::write(dir.join("big.onnx"), gather_model(rows, columns)).expect("written");
    let data = std::fs::File::create(dir.join("t.data")).expect("a file");
    data.set_len(rows * columns * 4).expect("sparse");
    for row in [0, 1000, rows - 1] {
        let marker: Vec<u8> = (0..columns).flat_map(|c| ((row + c) as f32).to_le_bytes()).collect();
        std::os::unix::fs::FileExt::write_all_at(&data, &marker, row * columns * 4).expect("written");
    }
    // Maps of the whole table count as they are read, unless they are given back.
    let limit = 100 << 20;
    for (args, what) in [
        (&["rewrite", "big.onnx", "--shards", "4"][..], "rewrite"),
        (&["reshard", "big.dist", "--shards", "3", "--sharding", "range"], "reshard"),
        (&["merge", "big.dist", "-o", "again.onnx"], "merge"),
    ] {
        let peak = peak(dir, args);
        assert!((1 << 20..limit).contains(&peak), "{what}: {} MiB", peak >> 20);
    }
    let mut ids = std::fs::File::create(dir.join("in.csv")).expect("a file");
    writeln!(ids, "ids\n1000\n7\n{}", rows - 1).expect("written");
    ok(dir, &["run", "big.dist", "--input", "in.csv", "--output", "out.npz"]);
    let out = graphtool::data::npz::Npz::open(&dir.join("out.npz")).and_then(|f| f.get("out")).expect("an output");
    let out = out.as_slice::<f32>().expect("float32");
    let row = |i: usize| &out[i * columns as usize..][..columns as usize];
    assert!(row(0).iter().enumerate().all(|(c, x)| *x == (1000 + c) as f32));
    assert!(row(1).iter().all(|x| *x == 0.0));
    assert!(row(2).iter().enumerate().all(|(c, x)| *x == (rows as usize - 1 + c) as f32));
}
