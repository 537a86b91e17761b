//! `.parquet` in and out; or, in a build without it, what is said of one.

use std::path::Path;
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn graphtool(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_graphtool")).current_dir(dir).args(args).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_says_so() {
    let tmp = tempfile::tempdir().expect("a directory");
    let (model, data) = (root().join("models/widedeep_ts11/model.onnx"), root().join("tests/data/clicks.parquet"));
    let (model, data) = (model.to_str().expect("text"), data.to_str().expect("text"));
    for args in [vec!["run", model, "--input", data], vec!["run", model, "--input", "x.csv", "--output", "o.parquet"]] {
        let out = graphtool(tmp.path(), &args);
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{error}");
        if args.len() == 4 {
            assert!(error.contains("this build reads and writes no .parquet; build with `--features parquet`"), "{error}");
        }
    }
    eprintln!("skipped: reading and writing .parquet; run with `--features parquet`");
}

#[cfg(feature = "parquet")]
mod with {
    use super::*;
    use graphtool::data::{self, InputSpec, Options, Source, npz};
    use graphtool::tensor::{DType, Tensor};
    use std::path::PathBuf;

    fn clicks() -> PathBuf {
        root().join("tests/data/clicks.parquet")
    }

    fn open(files: usize, specs: &[InputSpec], empty: Option<&str>) -> Box<dyn Source> {
        let options = Options { empty: empty.map(str::to_owned), ..Options::default() };
        data::open_all(&vec![clicks(); files], specs, &options).expect("samples")
    }

    fn vector(name: &str, dtype: DType) -> InputSpec {
        InputSpec::tensor(name, dtype, Some(vec![None]))
    }

    #[test]
    fn columns_are_what_was_written() {
        let source = open(1, &[vector("I1", DType::F32)], None);
        let get = |name: &str, range| source.tensor(name, range).map_err(|e| e.to_string().replace(&clicks().display().to_string(), "F"));
        assert_eq!(get("small", 0..4).unwrap(), Tensor::vector(vec![-3i32, -2, -1, 0]));
        assert_eq!(get("key", 298..300).unwrap(), Tensor::vector(vec![u64::MAX - 298, u64::MAX - 299]));
        assert_eq!(get("user", 7..9).unwrap(), Tensor::vector(vec!["u1".to_string(), "u2".into()]));
        // Over the border of two row groups, then back.
        assert_eq!(get("tags.values", 108..114).unwrap(), Tensor::vector(vec![0i64, 0, 1, 2, 0]));
        assert_eq!(get("tags.offsets", 108..114).unwrap(), Tensor::vector(vec![0i64, 0, 1, 1, 4, 4]));
        assert_eq!(get("tags.lod", 0..5).unwrap(), Tensor::vector(vec![0i64, 0, 1, 3, 6, 6]));
        assert_eq!(get("note", 5..7).unwrap(), Tensor::vector(vec![2.5f64, 3.0]));
        assert_eq!(get("note", 5..9).unwrap_err(), "F: \"note\": row 7: is null; --empty says what a null stands for");
        assert!(get("tags", 0..5).unwrap_err().contains("sample 1: 1 values, the samples before have 0"));
        assert!(get("nobody", 0..5).unwrap_err().contains("\"nobody\": no such column"));
        let filled = open(1, &[vector("I1", DType::F32)], Some("-1")).tensor("note", 6..9).expect("a column");
        assert_eq!(filled, Tensor::vector(vec![3.0f64, -1.0, 4.0]));
    }

    #[test]
    fn several_files_are_one_and_offsets_go_on() {
        let source = open(2, &[vector("small", DType::I64), vector("tags.offsets", DType::I64)], None);
        assert_eq!(source.samples(), &data::Samples::Count(600));
        let inputs = source.read(298..303).expect("samples");
        assert_eq!(inputs[0].1.as_tensor(), Some(&Tensor::vector(vec![1i64, 2, -3, -2, -1])));
        // Rows 298 and 299 have 2 and 3 tags, then 0, 1 and 2.
        assert_eq!(inputs[1].1.as_tensor(), Some(&Tensor::vector(vec![0i64, 2, 5, 5, 6])));
    }

    #[test]
    fn a_run_gives_what_the_same_log_as_text_gives_and_what_is_written_reads_back() {
        let tmp = tempfile::tempdir().expect("a directory");
        let dir = tmp.path();
        let text_log = std::fs::read_to_string(root().join("models/clicks.csv")).expect("the log");
        std::fs::write(dir.join("log.csv"), text_log.lines().take(301).collect::<Vec<_>>().join("\n")).expect("written");
        let model = root().join("models/widedeep_ts11/model.onnx");
        let run = |input: &str, output: &str, more: &[&str]| {
            let base = ["run", model.to_str().expect("text"), "--input", input, "--output", output, "--batch-size", "64"];
            let out = graphtool(dir, &[&base[..], more].concat());
            assert!(out.status.success(), "{}", text(&out.stderr));
        };
        run("log.csv", "text.npz", &["--bind", "dense=I1..I5", "--bind", "sparse=C1..C4"]);
        run(clicks().to_str().expect("text"), "lists.npz", &["--label", "click", "--group", "user"]);
        let expected = std::fs::read(dir.join("text.npz")).expect("outputs");
        assert!(std::fs::read(dir.join("lists.npz")).expect("outputs") == expected);
        run(clicks().to_str().expect("text"), "out.parquet", &["--keep", "user,key,sparse,small"]);
        let back = data::open(&dir.join("out.parquet"), &[vector("prob", DType::F32)], &Options::default()).expect("outputs");
        let prob = npz::Npz::open(&dir.join("text.npz")).and_then(|n| n.get("prob")).expect("outputs");
        assert_eq!(back.tensor("prob", 0..300).expect("a column").to_f32s().expect("floats"), prob.to_f32s().expect("floats"));
        let given = open(1, &[vector("small", DType::I64)], None);
        for column in ["user", "key", "sparse", "small"] {
            assert_eq!(back.tensor(column, 0..300).expect("a column"), given.tensor(column, 0..300).expect("a column"), "{column}");
        }
    }

    #[test]
    fn what_is_no_parquet_is_refused() {
        let tmp = tempfile::tempdir().expect("a directory");
        let path = tmp.path().join("x.parquet");
        let whole = std::fs::read(clicks()).expect("bytes");
        for bytes in [&b""[..], b"PAR1", b"hello, I am no data", &whole[..whole.len() / 2]] {
            std::fs::write(&path, bytes).expect("written");
            let Err(error) = data::open(&path, &[vector("I1", DType::F32)], &Options::default()) else { panic!("{} bytes", bytes.len()) };
            assert!(error.to_string().contains("x.parquet: "), "{error}");
        }
        // A page that is damaged is an error of its column.
        let mut bad = whole.clone();
        bad[4..3000].fill(0xff);
        std::fs::write(&path, bad).expect("written");
        let source = data::open(&path, &[vector("click", DType::I64)], &Options::default()).expect("metadata");
        let error = source.read(0..10).expect_err("a damaged page").to_string();
        assert!(error.contains("\"click\": "), "{error}");
    }
}
