//! What is done with bytes that come from elsewhere, one function for each door that they come in by. The fuzz targets beside
//! this file call these, and so does `tests/fuzz.rs`, on mutations of known files, in every run of the tests.
//!
//! A function returns when the bytes were refused, or taken and found in order; it panics when they were taken and are not
//! what was said of them.

use graphtool::data::{self, Bind, InputSpec, Samples};
use graphtool::formats::onnx::value::ValueKind;
use graphtool::formats::onnx::{external::ExternalFiles, read, value, write};
use graphtool::formats::paddle;
use graphtool::ir;
use graphtool::plan::{Absent, Manifest, Piece, Sharding, TableEntry};
use graphtool::serve::protocol::{self, Interface, Port, Request, Wanted};
use graphtool::store::{self, TableRows};
use graphtool::tensor::{DType, Value};
use std::path::{Path, PathBuf};

/// A file of this thread, with these bytes.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    let dir = base.join(format!("graphtool-fuzz-{}-{:?}", std::process::id(), std::thread::current().id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let path = dir.join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

/// A valid model says the same after it was printed and read, and after it was written and read.
fn valid(model: &ir::Model) {
    if !ir::verify(model).is_empty() {
        return;
    }
    let text = ir::print_model(model);
    match ir::parse_model(&text) {
        Ok(again) => assert_eq!(ir::print_model(&again), text, "printed, parsed, printed"),
        // Constants outside the text.
        Err(e) => assert!(text.contains("external") || text.contains("absent") || text.len() > 1 << 20, "{e}: {text}"),
    }
    if let Ok(bytes) = write::to_bytes(model) {
        let again = read::read(bytes.into(), &ExternalFiles::none()).expect("what was written is read");
        assert_eq!(ir::print_model(&again), text, "written, read, printed");
    }
}

/// An ONNX model.
pub fn onnx(bytes: &[u8]) {
    if let Ok(model) = read::read(bytes.to_vec().into(), &ExternalFiles::none()) {
        valid(&model);
    }
}

/// A value of ONNX's test data.
pub fn onnx_value(bytes: &[u8]) {
    if let Ok((name, value)) = value::decode_value(&bytes.to_vec().into(), None) {
        let again = value::encode_value(&name, &value).expect("a value that was read is written");
        // By its kind: without, an empty value may pass for one of another.
        let kind = match &value {
            Value::Tensor(_) => ValueKind::Tensor,
            Value::Sequence(_) => ValueKind::Sequence,
            Value::Optional(_) => ValueKind::Optional,
            Value::Map(_) => ValueKind::Map,
        };
        let (found, _) = value::decode_value(&again.into(), Some(kind)).expect("and read");
        assert_eq!(found, name);
    }
}

/// A PaddlePaddle program, whose parameters are elsewhere.
pub fn paddle(bytes: &[u8]) {
    if let Some(program) = paddle::program(&bytes.to_vec().into())
        && let Ok(model) = paddle::load(Path::new("/dev/null/model.pdmodel"), &program, &|_| true)
    {
        let _ = ir::verify(&model);
        let _ = ir::print_model(&model);
    }
}

/// The parameters of a program that is known, all in one file.
pub fn paddle_params(bytes: &[u8]) {
    let program = include_bytes!("../models/paddle/deepfm/deepfm.pdmodel");
    let path = file("model.pdmodel", program);
    file("model.pdiparams", bytes);
    let _ = graphtool::formats::load(&path);
}

/// The canonical text of a model.
pub fn text(bytes: &[u8]) {
    if let Some(model) = std::str::from_utf8(bytes).ok().and_then(|text| ir::parse_model(text).ok()) {
        valid(&model);
    }
}

/// The manifest of a deployment.
pub fn manifest(bytes: &[u8]) {
    if let Some(m) = std::str::from_utf8(bytes).ok().and_then(|text| Manifest::parse(text).ok()) {
        let text = m.print();
        assert_eq!(Manifest::parse(&text).expect("what was printed is read").print(), text);
        for servers in [1, 2, 5] {
            let _ = m.placement(servers);
        }
        let _ = m.shard_bytes();
        // Its files are not there.
        assert!(m.tables.iter().all(|t| t.pieces.is_empty() || TableRows::open(Path::new("/dev/null"), t).is_err()));
    }
}

/// A shard file: a safetensors header and what it promises.
pub fn shard(bytes: &[u8]) {
    let path = file("piece.safetensors", bytes);
    for keyed in [false, true] {
        let piece = Piece {
            shard: 0,
            file: "piece.safetensors".into(),
            first_row: 0,
            rows: 7,
            first_column: 0,
            columns: 4,
            bytes: bytes.len() as u64,
            checksum: String::new(),
        };
        let entry = TableEntry {
            name: "t".into(),
            dtype: DType::F32,
            rows: 7,
            row_shape: vec![4],
            sharding: if keyed { Sharding::Row } else { Sharding::Table },
            keyed,
            absent: Absent::Zero,
            default_row: None,
            stored: None,
            content: String::new(),
            pieces: vec![piece],
        };
        if let Ok(rows) = TableRows::open(path.parent().expect("a directory"), &entry) {
            rows.content().expect("rows that are there");
        }
    }
}

/// Bytes that come over a connection.
pub fn wire(bytes: &[u8]) {
    store::frames_in(bytes);
    graphtool::comm::frames_in(bytes);
}

/// Everything that a data file says, in batches.
fn samples(path: &Path, inputs: &[InputSpec], options: &data::Options) {
    let Ok(source) = data::open_all(&[path.to_path_buf()], inputs, options) else { return };
    let Samples::Count(n) = *source.samples() else { return };
    for start in (0..n.min(1000)).step_by(16) {
        let end = (start + 16).min(n);
        if let Ok(values) = source.read(start..end) {
            assert_eq!(values.len(), inputs.len());
        }
        let _ = source.column("y", start..end);
        let _ = source.tensor("c", start..end);
    }
}

fn options(binds: &[&str]) -> data::Options {
    data::Options { binds: binds.iter().map(|b| b.parse::<Bind>().expect("a binding")).collect(), ..data::Options::default() }
}

/// A `.csv`.
pub fn csv(bytes: &[u8]) {
    let inputs =
        [InputSpec::tensor("ids", DType::I64, Some(vec![None, Some(2)])), InputSpec::tensor("x", DType::F32, Some(vec![None, Some(1)]))];
    samples(&file("data.csv", bytes), &inputs, &options(&["ids=a,b", "x=c"]));
}

/// MultiSlot text.
pub fn multislot(bytes: &[u8]) {
    let inputs =
        [InputSpec::tensor("a", DType::I64, Some(vec![None, None])), InputSpec::tensor("b", DType::F32, Some(vec![None, Some(1)]))];
    samples(&file("data.multislot", bytes), &inputs, &options(&[]));
}

/// A `.npz`.
pub fn npz(bytes: &[u8]) {
    let inputs = [InputSpec::tensor("x", DType::F32, None), InputSpec::tensor("ids", DType::I64, None)];
    samples(&file("data.npz", bytes), &inputs, &options(&[]));
}

/// A request over HTTP: JSON in one line, and binary data behind it.
pub fn request(bytes: &[u8]) {
    let port = |(name, dtype): (&str, DType)| Port { name: name.into(), ty: Some(ir::Type::unranked(dtype)), optional: true };
    let kinds = [
        ("a", DType::I64),
        ("b", DType::F32),
        ("c", DType::String),
        ("d", DType::Bool),
        ("e", DType::F16),
        ("f", DType::U8),
        ("g", DType::F64),
    ];
    let ports: Vec<Port> = kinds.into_iter().map(port).collect();
    let interface = Interface { name: "m".into(), version: "1".into(), inputs: ports.clone(), outputs: ports };
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let binary = bytes.get(end + 1..).unwrap_or_default().to_vec();
    let Ok(request) = protocol::parse(&interface, &bytes[..end], binary.into()) else { return };
    // What was taken is printed, in either form, and read again.
    let tensor = |name: &str| request.inputs.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let outputs: Vec<_> = interface
        .outputs
        .iter()
        .map(|p| (p.name.clone(), tensor(&p.name).unwrap_or_else(|| graphtool::tensor::Tensor::default().into())))
        .collect();
    for binary in [false, true] {
        let places = interface.outputs.iter().enumerate().filter(|(_, p)| tensor(&p.name).is_some());
        let wanted: Vec<Wanted> = places.map(|(output, _)| Wanted { output, binary }).collect();
        let asks = Request { id: request.id.clone(), inputs: Vec::new(), outputs: wanted };
        let answer = protocol::print(&interface, &asks, &outputs).expect("what was read is printed");
        let (head, tail) = answer.body.split_at(answer.json.unwrap_or(answer.body.len()));
        let head = std::str::from_utf8(head).expect("text").replacen("\"outputs\":[", "\"inputs\":[", 1);
        if head.contains("NaN") || head.contains("Infinity") {
            // Strings may say so, and JSON has no numbers for it.
            continue;
        }
        let again = protocol::parse(&interface, head.as_bytes(), tail.to_vec().into()).expect("what was printed is read");
        assert_eq!(again.id, request.id);
        for (name, value) in &again.inputs {
            assert_eq!(Some(value), tensor(name).as_ref(), "{name}");
        }
    }
}
