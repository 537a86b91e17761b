//! Readers and writers as the rest of the program uses them.

use super::npz::{Npz, write_npz};
use super::*;
use crate::tensor::{Shape, bf16};
use std::fs;
use std::io::Write;
use std::sync::Arc;

/// `numpy.savez_compressed(ids=int64 [5,6,7], x=float32 [[1,2],[3,4],[5,6]])` of numpy 2.4.
const NUMPY_NPZ: &str = "504b03042d0000000800000021009e4d28b7ffffffffffffffff070014006964732e6e70790100100098000000000000004d000000000000009bec17ea1b10c9c850c650ad9e925a9c5ca46ea5a06e9369a1aea3a09e965f54529498179f5f94920a12774bcc294e058a17672416a402f91ac63a9a3a0ab50a14002e5606086083d2ec501a00504b03042d000000080000002100ffbf4235ffffffffffffffff05001400782e6e707901001000980000000000000058000000000000009bec17ea1b10c9c850c650ad9e925a9c5ca46ea5a06e9366a2aea3a09e965f54529498179f5f94920a12774bcc294e058a17672416a402f91ac63a0a469a3a0ab50a64032e0686067b060606072002e206205e00c4071c00504b01022d032d0000000800000021009e4d28b74d000000980000000700000000000000000000008001000000006964732e6e7079504b01022d032d000000080000002100ffbf42355800000098000000050000000000000000000000800186000000782e6e7079504b0506000000000200020068000000150100000000";

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn file(dir: &tempfile::TempDir, name: &str, bytes: impl AsRef<[u8]>) -> std::path::PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn spec(name: &str, dtype: DType, dims: &[Option<usize>]) -> InputSpec {
    InputSpec::tensor(name, dtype, Some(dims.to_vec()))
}

fn options(binds: &[&str]) -> Options {
    Options { binds: binds.iter().map(|b| b.parse().unwrap()).collect(), ..Options::default() }
}

fn shown(values: &[(String, Value)]) -> String {
    values.iter().map(|(n, v)| format!("{n} {:?}", v.as_tensor().unwrap())).collect::<Vec<_>>().join("; ")
}

fn failed<T>(result: Result<T, DataError>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

fn left(dir: &tempfile::TempDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_archive_of_numpy_is_read_by_batches() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "a.npz", unhex(NUMPY_NPZ));
    let specs = [spec("x", DType::F32, &[None, Some(2)]), spec("ids", DType::I64, &[None])];
    let source = open(&path, &specs, &Options::default()).unwrap();
    assert_eq!(*source.samples(), Samples::Count(3));
    assert_eq!(shown(&source.read(1..3).unwrap()), "x float32[2,2] [3.0, 4.0, 5.0, 6.0]; ids int64[2] [6, 7]");
    assert_eq!(shown(&source.read(3..3).unwrap()), "x float32[0,2] []; ids int64[0] []");
    assert_eq!(source.column("ids", 0..2).unwrap(), [5.0, 6.0]);
    assert!(failed(source.column("x", 0..2)).contains("expected one number per sample, found float32[2,2]"));
}

#[test]
fn a_stored_array_is_a_view_on_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    write_npz(&path, &[("x".into(), Tensor::vector(vec![1f32, 2.0, 3.0, 4.0]))]).unwrap();
    let npz = Npz::open(&path).unwrap();
    let (one, two) = (npz.get("x").unwrap(), npz.get("x").unwrap());
    assert_eq!(one.bytes().unwrap().as_ptr(), two.bytes().unwrap().as_ptr());
    // Aligned in the file, so that no batch is copied.
    assert_eq!(one.as_slice::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    write_npz(&dir.path().join("b.npz"), &[("x".into(), one)]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(dir.path().join("b.npz")).unwrap());
}

#[test]
fn arrays_are_fitted_to_the_inputs_without_loss_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let array = |name: &str, t| (name.to_string(), t);
    let wide = Tensor::vector(vec![1i64, 1 << 40]);
    let small = Tensor::vector(vec![-1i64, 2]);
    let real = Tensor::vector(vec![0.1f64, 1.0]);
    let half = Tensor::vector(vec![bf16::from_f32(0.25), bf16::ONE]);
    write_npz(&path, &[array("wide", wide), array("small", small), array("real", real), array("half", half)]).unwrap();
    let read = |name: &str, dtype, dims: &[Option<usize>]| {
        let source = open(&path, &[spec(name, dtype, dims)], &Options::default())?;
        source.read(0..2).map(|v| shown(&v))
    };
    assert_eq!(read("small", DType::I32, &[None]).unwrap(), "small int32[2] [-1, 2]");
    assert_eq!(read("small", DType::I64, &[None, Some(1)]).unwrap(), "small int64[2,1] [-1, 2]");
    assert_eq!(read("half", DType::BF16, &[None]).unwrap(), "half bfloat16[2] [0.25, 1.0]");
    assert_eq!(failed(read("wide", DType::I32, &[None])), "input \"wide\": expected int32, found int64[2]: values do not fit");
    assert_eq!(failed(read("small", DType::U64, &[None])), "input \"small\": expected uint64, found int64[2]: values do not fit");
    assert_eq!(failed(read("real", DType::F32, &[None])), "input \"real\": expected float32, found float64[2]");
    assert_eq!(failed(read("real", DType::F64, &[None, Some(3)])), "input \"real\": expected float64[?,3], found float64[2,1]");
    assert!(failed(read("gone", DType::F64, &[None])).contains("no column \"gone\" in"));
}

#[test]
fn arrays_of_different_lengths_are_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let (ids, offsets) = (Tensor::vector(vec![1i64, 2, 3]), Tensor::vector(vec![0i64, 2]));
    write_npz(&path, &[("ids".into(), ids), ("offsets".into(), offsets)]).unwrap();
    let specs = [spec("ids", DType::I64, &[None]), spec("offsets", DType::I64, &[None])];
    let source = open(&path, &specs, &Options::default()).unwrap();
    assert_eq!(*source.samples(), Samples::Whole("the first axis of \"ids\" is 3, that of \"offsets\" is 2".into()));
    assert_eq!(shown(&source.read(0..1).unwrap()), "ids int64[3] [1, 2, 3]; offsets int64[2] [0, 2]");
}

#[test]
fn broken_archives_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let whole = unhex(NUMPY_NPZ);
    for end in [0, 3, 40, whole.len() - 30] {
        let path = file(&dir, "cut.npz", &whole[..end]);
        assert!(failed(Npz::open(&path)).contains("no .npz archive"), "{end}");
    }
    for i in 0..whole.len() {
        let mut bad = whole.clone();
        bad[i] ^= 0xff;
        let path = file(&dir, "flip.npz", bad);
        let _ = Npz::open(&path).and_then(|z| z.get("x").and(z.get("ids")));
    }
    let path = file(
        &dir,
        "object.npy",
        [&b"\x93NUMPY\x01\x00\x76\x00"[..], b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", &[b' '; 62]].concat(),
    );
    assert!(failed(Npz::open(&path)).contains("Python objects are no tensor"));
}

#[test]
fn columns_of_a_text_file_are_bound_and_read_from_any_place() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..1000).map(|i| format!("{i},{}.5,{},\"t,{i}\"\r\n", i * 2, i % 2)).collect();
    let plain = file(&dir, "a.csv", format!("id,d1,d2,name\r\n{rows}"));
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(&fs::read(&plain).unwrap()).unwrap();
    let zipped = file(&dir, "a.csv.gz", zipped.finish().unwrap());
    let unquoted = file(&dir, "b.csv", format!("id,d1,d2,name\n{rows}").replace("\"t,", "").replace("\"\r", ""));
    let specs = [spec("ids", DType::I64, &[None]), spec("dense", DType::F32, &[None, Some(2)]), spec("d2", DType::Bool, &[None, Some(1)])];
    for path in [plain, zipped, unquoted] {
        let source = open(&path, &specs, &options(&["ids=id", "dense=d1..d2"])).unwrap();
        assert_eq!(*source.samples(), Samples::Count(1000));
        // Out of order, as workers read.
        for start in [700, 0, 256, 255, 998] {
            let want = format!(
                "ids int64[2] [{start}, {}]; dense float32[2,2] [{}.5, {}.0, {}.5, {}.0]; d2 bool[2,1] [{}, {}]",
                start + 1,
                start * 2,
                start % 2,
                start * 2 + 2,
                (start + 1) % 2,
                start % 2,
                (start + 1) % 2
            );
            assert_eq!(shown(&source.read(start..start + 2).unwrap()), want);
        }
        assert_eq!(source.column("d1", 2..4).unwrap(), [4.5, 6.5]);
        assert!(source.tensor("name", 7..8).unwrap().as_slice::<String>().unwrap()[0].ends_with('7'));
        assert!(failed(source.read(999..1001)).contains("samples 999..1001 of 1000"));
    }
}

#[test]
fn several_files_are_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [file(&dir, "a.csv", "x\n1\n2\n"), file(&dir, "b.csv", "x\n"), file(&dir, "c.csv", "y,x\n0,3\n0,4\n")];
    let source = open_all(&paths, &[spec("x", DType::I64, &[None])], &Options::default()).unwrap();
    assert_eq!(*source.samples(), Samples::Count(4));
    assert_eq!(shown(&source.read(1..4).unwrap()), "x int64[3] [2, 3, 4]");
    assert_eq!(shown(&source.read(2..3).unwrap()), "x int64[1] [3]");
    assert_eq!(shown(&source.read(4..4).unwrap()), "x int64[0] []");
    assert_eq!(source.column("x", 0..4).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(source.tensor("x", 1..3).unwrap().as_slice::<String>().unwrap(), ["2", "3"]);
    assert_eq!(failed(source.read(3..5)), "samples 3..5 of 4 in all files");
    assert!(failed(source.column("y", 1..3)).contains("a.csv"));
    assert!(failed(open_all(&[paths[0].clone(), dir.path().into()], &[], &Options::default())).contains("cannot stand among other files"));
}

#[test]
fn a_bad_cell_is_named_by_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "a.csv", "id,x,x\n1,2,3\n\nabc,4,5\n\"6\n\",7,8\n,9,9\n1,2\n");
    let at = |column: &str, range| {
        let source = open(&path, &[spec("in", DType::I64, &[None])], &options(&[&format!("in={column}")]))?;
        source.read(range).map(|v| shown(&v))
    };
    let shown = path.display();
    assert_eq!(at("id", 0..1).unwrap(), "in int64[1] [1]");
    assert_eq!(at("id", 2..3).unwrap(), "in int64[1] [6]");
    assert_eq!(failed(at("id", 0..2)), format!("{shown}:4: column \"id\": expected int64, found \"abc\""));
    assert_eq!(failed(at("id", 3..4)), format!("{shown}:7: column \"id\": expected int64, found an empty cell"));
    assert_eq!(failed(at("id", 4..5)), format!("{shown}:8: column \"x\": the row has 2 cells, the header 3"));
    assert!(failed(at("x", 0..1)).contains("the header has this column twice"));
    assert!(failed(at("y", 0..1)).contains("no column \"y\""));
    let defaults = Options { empty: Some("-7".into()), ..options(&["in=id"]) };
    let source = open(&path, &[spec("in", DType::I64, &[None])], &defaults).unwrap();
    assert_eq!(source.column("id", 3..4).unwrap(), [-7.0]);
    assert!(failed(open(&file(&dir, "e.csv", ""), &[], &Options::default())).contains("no header row"));
}

#[test]
fn bindings_must_fit_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "a.csv", "a,b\n1,2\n");
    let specs = [spec("x", DType::I64, &[None])];
    assert!(failed(open(&path, &specs, &options(&["y=a"]))).contains("binding of \"y\": the model has the inputs x"));
    assert!(failed(open(&path, &specs, &options(&["x=a", "x=b"]))).contains("bound twice"));
    let source = open(&path, &specs, &options(&["x=a,b"])).unwrap();
    assert_eq!(failed(source.read(0..1)), "input \"x\": expected int64[?], found int64[1,2]");
    assert!(failed(open(&dir.path().join("a.xlsx"), &specs, &Options::default())).contains("\"xlsx\" is not known"));
}

#[test]
fn a_folder_is_read_by_names_and_else_by_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let x = Value::from(Tensor::vector(vec![1f32]));
    let list = Value::Sequence(Arc::new(vec![x.clone()]));
    let list_spec = InputSpec { kind: ValueKind::Sequence, ..InputSpec::tensor("list", DType::F32, None) };
    let specs = [list_spec, spec("x", DType::F32, &[None])];
    // Named, in another order than the model's.
    folder::write_folder(dir.path(), "input", &[("x".into(), x.clone()), ("list".into(), list.clone())]).unwrap();
    let want = [("list".to_string(), list.clone()), ("x".to_string(), x.clone())];
    let source = open(dir.path(), &specs, &Options::default()).unwrap();
    assert!(matches!(source.samples(), Samples::Whole(_)));
    assert_eq!(source.read(0..0).unwrap(), want);
    // Under other names, by the numbers.
    folder::write_folder(dir.path(), "input", &[("a".into(), list), ("b".into(), x.clone())]).unwrap();
    assert_eq!(open(dir.path(), &specs, &Options::default()).unwrap().read(0..1).unwrap(), want);
    folder::write_folder(dir.path(), "input", &[("a".into(), x.clone()), ("b".into(), x)]).unwrap();
    assert!(failed(open(dir.path(), &specs, &Options::default())).contains("input_0.pb: no sequence"));
    assert!(failed(open(dir.path(), &specs[..1], &Options::default())).contains("input_0.pb"));
    fs::remove_file(dir.path().join("input_0.pb")).unwrap();
    fs::remove_file(dir.path().join("input_1.pb")).unwrap();
    assert!(failed(open(dir.path(), &specs, &Options::default())).starts_with("input \"list\": no file for it in"));
}

/// Outputs of samples `start..end`: a number, a row of two, and a text for each.
fn batch(start: usize, end: usize) -> Vec<(String, Value)> {
    let n = end - start;
    let score = Tensor::new([n, 1], (start..end).map(|i| i as f32 / 8.0).collect()).unwrap();
    let pair = Tensor::new([n, 2], (start..end).flat_map(|i| [i as i64, -(i as i64)]).collect()).unwrap();
    let text = Tensor::vector((start..end).map(|i| format!("n{i}")).collect::<Vec<_>>());
    vec![("score".into(), score.into()), ("pair".into(), pair.into()), ("text".into(), text.into())]
}

#[test]
fn outputs_are_the_same_in_whatever_order_the_batches_come() {
    for name in ["o.npz", "o.csv", "o"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        let write = |cuts: &[(usize, usize)]| {
            let mut sink = create(&path).unwrap();
            cuts.iter().for_each(|&(a, b)| sink.write(a, b - a, &batch(a, b)).unwrap());
            sink.finish().unwrap();
            assert_eq!(left(&dir), [name]);
            let read = |p: &std::path::Path| fs::read(p).unwrap();
            if name == "o" { (0..3).flat_map(|k| read(&path.join(format!("output_{k}.pb")))).collect() } else { read(&path) }
        };
        let one = write(&[(0, 11)]);
        assert_eq!(write(&[(0, 4), (4, 8), (8, 11)]), one);
        assert_eq!(write(&[(8, 11), (0, 4), (11, 11), (4, 8)]), one);
    }
}

#[test]
fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let path = dir.path().join(name);
        let mut sink = create(&path).unwrap();
        sink.write(2, 1, &batch(2, 3)).unwrap();
        sink.write(0, 2, &batch(0, 2)).unwrap();
        sink.finish().unwrap();
        path
    };
    assert_eq!(fs::read_to_string(write("o.csv")).unwrap(), "score,pair_0,pair_1,text\n0.0,0,0,n0\n0.125,1,-1,n1\n0.25,2,-2,n2\n");
    let npz = Npz::open(&write("o.npz")).unwrap();
    for (name, value) in batch(0, 3) {
        assert_eq!(Value::from(npz.get(&name).unwrap()), value);
    }
    assert_eq!(folder::read_folder(&write("o"), "output").unwrap(), batch(0, 3));
}

#[test]
fn a_sample_that_is_missing_or_came_twice_leaves_nothing() {
    for (cuts, want) in [
        (&[(0, 2), (3, 4)][..], "samples 2 to 2 are missing"),
        (&[(2, 4)], "samples 0 to 1 are missing"),
        (&[(0, 3), (2, 4)], "samples 2 to 2 came twice"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = create(&dir.path().join("o.npz")).unwrap();
        cuts.iter().for_each(|&(a, b)| sink.write(a, b - a, &batch(a, b)).unwrap());
        assert!(failed(sink.finish()).contains(want));
        assert_eq!(left(&dir), Vec::<String>::new());
    }
    let dir = tempfile::tempdir().unwrap();
    let mut sink = create(&dir.path().join("o.csv")).unwrap();
    sink.write(0, 2, &batch(0, 2)).unwrap();
    assert!(failed(sink.write(0, 2, &batch(0, 2))).contains("the samples from 0 on came twice"));
    drop(sink);
    assert_eq!(left(&dir), Vec::<String>::new());
}

#[test]
fn outputs_that_are_no_rows_of_samples_are_one_run_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("o.npz");
    let odd = |n: usize| vec![("y".to_string(), Value::from(Tensor::vector(vec![1f32; n])))];
    let mut sink = create(&path).unwrap();
    sink.write(0, 1, &odd(5)).unwrap();
    sink.finish().unwrap();
    assert_eq!(Npz::open(&path).unwrap().get("y").unwrap().shape(), &Shape::from([5]));
    let mut sink = create(&path).unwrap();
    sink.write(0, 2, &odd(2)).unwrap();
    sink.write(2, 2, &odd(5)).unwrap();
    assert_eq!(failed(sink.finish()), "output \"y\": expected [2] for a batch of 2 samples, found [5]");
    // A scalar per batch.
    let mut sink = create(&path).unwrap();
    for k in 0..3 {
        sink.write(k * 2, 2, &[("loss".into(), Tensor::scalar(k as f32).into())]).unwrap();
    }
    sink.finish().unwrap();
    assert_eq!(Npz::open(&path).unwrap().get("loss").unwrap().as_slice::<f32>().unwrap(), [0.0, 1.0, 2.0]);
    // No samples at all.
    let mut sink = create(&path).unwrap();
    sink.write(0, 0, &batch(0, 0)).unwrap();
    sink.finish().unwrap();
    assert_eq!(Npz::open(&path).unwrap().get("pair").unwrap().shape(), &Shape::from([0, 2]));
    let list = vec![("l".to_string(), Value::Sequence(Arc::default()))];
    assert!(failed(create(&path).unwrap().write(0, 1, &list)).contains("sequence of 0 cannot be written as .npz"));
    let mut sink = create(&dir.path().join("out/")).unwrap();
    sink.write(0, 1, &list).unwrap();
    sink.finish().unwrap();
    assert_eq!(folder::read_folder(&dir.path().join("out"), "output").unwrap().len(), 1);
}

#[test]
fn a_folder_of_other_files_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    file(&dir, "notes.txt", "mine");
    assert!(failed(create(dir.path())).contains("holds \"notes.txt\", so it is not replaced"));
}
