//! Every door that bytes come in by, with mutations of known files, from fixed seeds: `fuzz/` has the same as cargo-fuzz
//! targets. Nothing panics, nothing is taken that does not hold, and memory stays in proportion to what was given.
//! `GRAPHTOOL_FUZZ_SECONDS` says how long each door is tried (otherwise a fixed number of times), `GRAPHTOOL_FUZZ_SEED` with which seed.
#![allow(unsafe_code)]

#[path = "../fuzz/harness.rs"]
mod harness;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Counts what each thread has allocated.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(by: isize) {
    // Threads that are ending have no counters any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + by);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a door may take for the bytes that it is given: some room for a start, and so many bytes a byte.
const ROOM: isize = 8 << 20;
const EACH: isize = 2000;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below `models/` and `tests/` that end so, up to a size.
fn files(end: &str) -> Vec<Vec<u8>> {
    fn walk(dir: &Path, end: &str, all: &mut Vec<PathBuf>) {
        let mut entries: Vec<_> = std::fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry").path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, end, all);
            } else if path.to_string_lossy().ends_with(end) && path.metadata().expect("a file").len() < 200 << 10 {
                all.push(path);
            }
        }
    }
    let mut all = Vec::new();
    walk(&root().join("models"), end, &mut all);
    walk(&root().join("tests"), end, &mut all);
    assert!(!all.is_empty(), "no file ends in {end}");
    all.iter().map(|p| std::fs::read(p).expect("a file")).collect()
}

/// Numbers that readers trip over.
const NUMBERS: [u64; 12] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff_ffff, 0x8000_0000, u64::MAX, u64::MAX >> 1, 1 << 63, 1 << 40];
const WORDS: [&str; 12] = ["-1", "9223372036854775807", "18446744073709551616", "1e999", "nan", "\"", "[", "{", "\u{0}", "..", ",", "\n"];

fn mutate(r: &mut StdRng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[r.random_range(0..seeds.len())].clone();
    for _ in 0..r.random_range(1..6u32) {
        let n = bytes.len();
        if n == 0 {
            break;
        }
        // Heads of files decide more than their bulk.
        let at = if r.random_bool(0.5) { r.random_range(0..n.min(256)) } else { r.random_range(0..n) };
        let len = r.random_range(1..33).min(n - at);
        match r.random_range(0..10u32) {
            0 => bytes[at] ^= 1 << r.random_range(0..8u32),
            1 => bytes[at] = r.random_range(0..=255u32) as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + len)),
            4 => drop(bytes.splice(at..at, bytes[at..at + len].to_vec())),
            5 => {
                let other = &seeds[r.random_range(0..seeds.len())];
                let from = r.random_range(0..other.len().max(1)).min(other.len());
                let len = r.random_range(1..257).min(other.len() - from);
                bytes.splice(at..at, other[from..from + len].iter().copied());
            }
            6 => {
                let number = NUMBERS[r.random_range(0..NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][r.random_range(0..4usize)].min(n - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            7 => {
                // A protobuf varint.
                let mut number = NUMBERS[r.random_range(0..NUMBERS.len())];
                let mut varint = Vec::new();
                while number > 0x7f {
                    varint.push(number as u8 | 0x80);
                    number >>= 7;
                }
                varint.push(number as u8);
                bytes.splice(at..at + 1, varint);
            }
            8 => drop(bytes.splice(at..at, WORDS[r.random_range(0..WORDS.len())].bytes())),
            _ => bytes[at..at + len].fill(r.random_range(0..=255u32) as u8),
        }
    }
    bytes
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().expect("a number"))
}

/// Throws mutations of `seeds` at a door; the seeds themselves first.
fn throw(door: fn(&[u8]), seeds: &[Vec<u8>], times: usize) {
    let (seconds, seed) = (number("GRAPHTOOL_FUZZ_SECONDS"), number("GRAPHTOOL_FUZZ_SEED").unwrap_or(0));
    let (start, mut done) = (Instant::now(), 0);
    let more = |done: usize| seconds.map_or(done < times, |s| start.elapsed() < Duration::from_secs(s));
    while more(done) {
        let bytes = if done < seeds.len() && seed == 0 {
            seeds[done].clone()
        } else {
            mutate(&mut StdRng::seed_from_u64(seed.wrapping_mul(1 << 40) + done as u64), seeds)
        };
        let before = HELD.with(Cell::get);
        PEAK.with(|p| p.set(before));
        if let Err(panic) = std::panic::catch_unwind(|| door(&bytes)) {
            let path = std::env::temp_dir().join(format!("graphtool-fuzz-found-{}", std::process::id()));
            std::fs::write(&path, &bytes).expect("written");
            eprintln!("these bytes, mutation {done} of seed {seed}, are in {}", path.display());
            std::panic::resume_unwind(panic);
        }
        let peak = PEAK.with(Cell::get) - before;
        assert!(peak < ROOM + EACH * bytes.len() as isize, "mutation {done} of seed {seed}: {peak} bytes of memory for {}", bytes.len());
        done += 1;
    }
    println!("{done} inputs in {:.1} s", start.elapsed().as_secs_f64());
}

#[test]
fn onnx_models() {
    throw(harness::onnx, &files(".onnx"), 600);
}

#[test]
fn onnx_values() {
    throw(harness::onnx_value, &files(".pb"), 4000);
}

#[test]
fn paddle_programs() {
    throw(harness::paddle, &files(".pdmodel"), 300);
}

#[test]
fn paddle_parameters() {
    throw(harness::paddle_params, &files("deepfm.pdiparams"), 300);
}

#[test]
fn model_texts() {
    let texts: Vec<Vec<u8>> = files(".onnx")
        .into_iter()
        .filter_map(|b| graphtool::formats::onnx::read::read(b.into(), &graphtool::formats::onnx::external::ExternalFiles::none()).ok())
        .map(|m| graphtool::ir::print_model(&m).into_bytes())
        .filter(|t| t.len() < 64 << 10)
        .collect();
    throw(harness::text, &texts, 600);
}

/// A deployment of a small model: its manifest, and its shards.
fn deployment() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let tmp = tempfile::tempdir().expect("a directory");
    let model = graphtool::formats::load(&root().join("models/widedeep_ts11/model.onnx")).expect("a model");
    let dir = tmp.path().join("w.dist");
    let selection = graphtool::passes::Selection { min_bytes: 0, ..Default::default() };
    let options = graphtool::deploy::RewriteOptions { shards: 3, selection, ..Default::default() };
    graphtool::deploy::rewrite(model, &dir, options).expect("rewritten");
    let manifest = std::fs::read(dir.join("manifest.json")).expect("a manifest");
    let shards = std::fs::read_dir(dir.join("shards")).expect("shards");
    let mut shards: Vec<_> = shards.map(|e| std::fs::read(e.expect("an entry").path()).expect("a shard")).collect();
    shards.sort();
    let header = br#"{"rows":{"dtype":"F32","shape":[7,4],"data_offsets":[0,112]}}"#;
    let mut small = (header.len() as u64).to_le_bytes().to_vec();
    small.extend(header);
    small.extend([7; 112]);
    shards.push(small);
    (vec![manifest], shards)
}

#[test]
fn manifests() {
    throw(harness::manifest, &deployment().0, 3000);
}

#[test]
fn shard_files() {
    throw(harness::shard, &deployment().1, 3000);
}

/// A frame: magic, bytes of head, bytes of body, head, body.
fn frame(head: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = b"gtw1".to_vec();
    out.extend((head.len() as u32).to_le_bytes());
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(head);
    out.extend(body);
    out
}

#[test]
fn frames_of_the_wire() {
    // A request for three ids of one table, a hello with texts, a question, and two of them in a row.
    let mut fetch = vec![1u8];
    fetch.extend(7u64.to_le_bytes());
    fetch.extend(1_000_000u64.to_le_bytes());
    fetch.extend(1u32.to_le_bytes());
    for word in [0u32, 3, 64] {
        fetch.extend(word.to_le_bytes());
    }
    fetch.push(1);
    fetch.extend(0u32.to_le_bytes());
    // The same to be pooled: the kind, and after the part the mode, two bags, weights of four bytes and the width.
    let pool = [&[6u8], &fetch[1..], &[1], &2u32.to_le_bytes(), &[4], &64u32.to_le_bytes()].concat();
    let pool = frame(&pool, &[[1u8; 24].as_slice(), &1u32.to_le_bytes(), &3u32.to_le_bytes(), &[0; 12]].concat());
    let fetch = frame(&fetch, &[1; 24]);
    let info = frame(&[[2u8].as_slice(), &[0; 16]].concat(), &[]);
    let hello = frame(&[[0u8].as_slice(), &[0; 16], &[1, 0, 0, 0], &[4, 0, 0, 0], b"plan", &[0; 40]].concat(), &[]);
    assert!(
        graphtool::store::frames_in(&fetch) > 0 && graphtool::store::frames_in(&info) > 0 && graphtool::store::frames_in(&pool) > 0,
        "the seeds are frames"
    );
    throw(harness::wire, &[fetch.clone(), pool, info.clone(), hello, [fetch, info].concat()], 20_000);
}

#[test]
fn csv_files() {
    let plain = b"a,b,c,y\n1,2,0.5,1\n3,4,1.5,0\n\"5\",6,-2e3,1\n".to_vec();
    let long: String =
        std::iter::once("a,b,c,y\n".to_owned()).chain((0..40).map(|i| format!("{i},{},{}.25,{}\n", i * 7, i, i % 2))).collect();
    throw(harness::csv, &[plain, long.into_bytes(), b"a,b,c,y\r\n1,2,,\r\n".to_vec()], 4000);
}

#[test]
fn multislot_files() {
    let lines = b"2 17 4 1 0.5\n0 1 2.5\n1 9223372036854775807 1 -3\n".to_vec();
    throw(harness::multislot, &[lines, b"2 a:17 a:4 1 b:0.5\n".to_vec()], 4000);
}

#[test]
fn archives() {
    let tmp = tempfile::tempdir().expect("a directory");
    let path = tmp.path().join("a.npz");
    let tensor = |v: Vec<f32>| graphtool::tensor::Tensor::new([v.len() / 2, 2], v).expect("a tensor");
    let ids = graphtool::tensor::Tensor::new([3], vec![1i64, 2, 3]).expect("a tensor");
    graphtool::data::npz::write_npz(&path, &[("x".into(), tensor(vec![1.0; 6])), ("ids".into(), ids)]).expect("written");
    let mut all = vec![std::fs::read(&path).expect("an archive")];
    all.extend(files(".npy").into_iter().take(4));
    throw(harness::npz, &all, 3000);
}

#[test]
fn requests_over_http() {
    let json = br#"{"id":"7","inputs":[{"name":"a","datatype":"INT64","shape":[2,2],"data":[[1,-2],[9007199254740993,4]]},{"name":"b","datatype":"FP32","shape":[3],"data":[0.1,-0.0,1e-40]},{"name":"c","datatype":"BYTES","shape":[1,2],"data":["x\u20ac\n",""]},{"name":"e","datatype":"FP16","shape":[],"data":[0.5]}],"outputs":[{"name":"a"}]}"#;
    let flat = br#"{"inputs":[{"name":"d","datatype":"BOOL","shape":[2],"data":[true,0]},{"name":"f","datatype":"UINT8","shape":[0,3],"data":[]},{"name":"g","datatype":"FP64","shape":[1,1,2],"data":[1.5,2]}]}"#;
    let head = br#"{"inputs":[{"name":"c","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":11}},{"name":"a","datatype":"INT64","shape":[1],"parameters":{"binary_data_size":8}},{"name":"d","datatype":"BOOL","shape":[1],"parameters":{"binary_data_size":1}}],"parameters":{"binary_data_output":true}}"#;
    let binary = [&head[..], b"\n\x01\0\0\0x\x02\0\0\0yz", &(1u64 << 53 | 1).to_le_bytes(), b"\x01"].concat();
    let nested = format!("{{\"inputs\":[{{\"name\":\"a\",\"datatype\":\"INT64\",\"shape\":[1],\"data\":{}", "[".repeat(5000));
    throw(harness::request, &[json.to_vec(), flat.to_vec(), binary, nested.into_bytes()], 20_000);
}
