//! A server in a process of its own, and clients of it: HTTP by hand.

use graphtool::data::{self, InputSpec};
use graphtool::exec::Session;
use graphtool::formats::onnx::value::ValueKind;
use graphtool::ir::{Dim, Type};
use graphtool::tensor::{DType, Tensor, Value, f16};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub type Named = Vec<(String, Value)>;

pub fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

pub fn graphtool(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A process, killed when it is dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts a process and gives what follows `before` in its first line.
    pub fn start(args: &[&str], before: &str) -> (Self, String) {
        let mut child = graphtool(args).spawn().expect("it starts");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        out.read_line(&mut line).expect("a line");
        if line.is_empty() {
            let mut says = String::new();
            child.stderr.take().expect("a pipe").read_to_string(&mut says).expect("text");
            panic!("{args:?}: {says}");
        }
        child.stdout = Some(out.into_inner());
        let rest = line.split_once(before).unwrap_or_else(|| panic!("{before} in {line:?}")).1.trim().to_owned();
        (Self(child), rest)
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.0.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }
}

/// A server of a model, at a port of the system's choice.
pub struct Server {
    pub process: Running,
    pub address: String,
}

pub fn serve(model: &Path, more: &[&str]) -> Server {
    let args = [&["serve", model.to_str().expect("text"), "--http", "127.0.0.1:0"], more].concat();
    let named = if more.contains(&"--name") { args } else { [&args[..], &["--name", "m"]].concat() };
    let (process, address) = Running::start(&named, " is served at http://");
    Server { process, address }
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|h| h.0.eq_ignore_ascii_case(name)).map(|h| h.1.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("text")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// What went wrong, which every answer but 200 says.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().expect("an error").to_owned()
    }
}

/// A connection that is kept.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn open(address: &str) -> Self {
        Self(BufReader::new(TcpStream::connect(address).expect("a connection")))
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("sent");
    }

    /// Whether the bytes could be sent.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.0.get_mut().write_all(bytes).is_ok()
    }

    pub fn stream(&self) -> &TcpStream {
        self.0.get_ref()
    }

    /// The next answer; `None` where the connection was closed.
    pub fn reply(&mut self) -> Option<Reply> {
        let mut line = String::new();
        if self.0.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let status = line.split(' ').nth(1).expect("a status").parse().expect("a number");
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        let length = reply.header("content-length").map_or(0, |n| n.parse().expect("a number"));
        reply.body = vec![0; length];
        self.0.read_exact(&mut reply.body).expect("a body");
        Some(reply)
    }

    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n");
        headers.iter().for_each(|(k, v)| write!(head, "{k}: {v}\r\n").expect("text"));
        write!(head, "Content-Length: {}\r\n\r\n", body.len()).expect("text");
        self.send(&[head.as_bytes(), body].concat());
        self.reply().expect("an answer")
    }
}

impl Server {
    pub fn get(&self, path: &str) -> Reply {
        Connection::open(&self.address).ask("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        Connection::open(&self.address).ask("POST", path, headers, body)
    }

    pub fn infer(&self, body: &str) -> Reply {
        self.post("/v2/models/m/infer", &[], body.as_bytes())
    }

    /// A sample of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
    }
}

/// The inputs of a folder in the layout of ONNX's test data, as a session wants them.
pub fn inputs(session: &Session, folder: &Path) -> Named {
    let spec = |(name, ty, optional): (&str, Option<&Type>, bool)| {
        let dims = ty.and_then(Type::shape).map(|s| s.iter().map(Dim::known).collect());
        InputSpec { kind: ValueKind::Tensor, optional, ..InputSpec::tensor(name, ty.and_then(Type::dtype).expect("a dtype"), dims) }
    };
    let specs: Vec<InputSpec> = session.inputs().into_iter().map(spec).collect();
    data::open(folder, &specs, &data::Options::default()).expect("inputs").read(0..1).expect("inputs")
}

/// The protocol's names, written again.
pub fn datatype(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "BOOL",
        DType::F16 => "FP16",
        DType::F32 => "FP32",
        DType::F64 => "FP64",
        DType::I32 => "INT32",
        DType::I64 => "INT64",
        DType::String => "BYTES",
        other => panic!("{other}"),
    }
}

fn dims(t: &Tensor) -> String {
    format!("[{}]", t.shape().iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

/// A request with its data as JSON.
pub fn json_request(inputs: &Named) -> String {
    let one = |(name, value): &(String, Value)| {
        let t = value.as_tensor().expect("a tensor");
        let data: Vec<String> = match t.dtype() {
            DType::String => t.as_slice::<String>().unwrap().iter().map(|s| format!("{s:?}")).collect(),
            DType::F32 => t.to_slice::<f32>().unwrap().iter().map(|x| format!("{x:?}")).collect(),
            DType::F64 => t.to_slice::<f64>().unwrap().iter().map(|x| format!("{x:?}")).collect(),
            DType::F16 => t.to_slice::<f16>().unwrap().iter().map(|x| x.to_f32().to_string()).collect(),
            DType::Bool => t.to_slice::<bool>().unwrap().iter().map(ToString::to_string).collect(),
            _ => t.to_i64s().unwrap().iter().map(ToString::to_string).collect(),
        };
        format!(r#"{{"name":"{name}","datatype":"{}","shape":{},"data":[{}]}}"#, datatype(t.dtype()), dims(t), data.join(","))
    };
    format!(r#"{{"inputs":[{}]}}"#, inputs.iter().map(one).collect::<Vec<_>>().join(","))
}

/// A request with binary data, and the length of its JSON.
pub fn binary_request(inputs: &Named) -> (Vec<u8>, usize) {
    let mut tail = Vec::new();
    let mut one = |(name, value): &(String, Value)| {
        let t = value.as_tensor().expect("a tensor");
        let bytes = match t.as_slice::<String>() {
            Ok(texts) => texts.iter().flat_map(|s| [&(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()).collect(),
            Err(_) => t.bytes().expect("bytes").to_vec(),
        };
        tail.extend(&bytes);
        let (kind, shape, size) = (datatype(t.dtype()), dims(t), bytes.len());
        format!(r#"{{"name":"{name}","datatype":"{kind}","shape":{shape},"parameters":{{"binary_data_size":{size}}}}}"#)
    };
    let inputs: Vec<String> = inputs.iter().map(&mut one).collect();
    let json = format!(r#"{{"inputs":[{}],"parameters":{{"binary_data_output":true}}}}"#, inputs.join(","));
    ([json.as_bytes(), &tail].concat(), json.len())
}

/// Compares an answer with outputs, to the bit.
pub fn same(reply: &Reply, outputs: &Named) {
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let json = reply.header("Inference-Header-Content-Length").map_or(reply.body.len(), |n| n.parse().expect("a number"));
    let head: serde_json::Value = serde_json::from_slice(&reply.body[..json]).expect("JSON");
    let mut tail = &reply.body[json..];
    let found = head["outputs"].as_array().expect("outputs");
    assert_eq!(found.len(), outputs.len());
    for (found, (name, value)) in found.iter().zip(outputs) {
        let t = value.as_tensor().expect("a tensor");
        assert_eq!((found["name"].as_str(), found["datatype"].as_str()), (Some(name.as_str()), Some(datatype(t.dtype()))));
        assert_eq!(found["shape"], serde_json::json!(t.shape().to_vec()));
        if let Some(size) = found["parameters"]["binary_data_size"].as_u64() {
            let (own, rest) = tail.split_at(size as usize);
            assert_eq!(Some(own), t.bytes(), "{name}");
            tail = rest;
            continue;
        }
        let data = found["data"].as_array().expect("data");
        assert_eq!(data.len(), t.len());
        for (i, x) in data.iter().enumerate() {
            let equal = match t.dtype() {
                // Only text that reads back as the same bits is right.
                DType::F32 => x.to_string().parse::<f32>().unwrap().to_bits() == t.to_slice::<f32>().unwrap()[i].to_bits(),
                DType::F16 => f16::from_f32(x.to_string().parse().unwrap()) == t.to_slice::<f16>().unwrap()[i],
                DType::Bool => x.as_bool() == Some(t.to_slice::<bool>().unwrap()[i]),
                DType::String => x.as_str() == Some(t.as_slice::<String>().unwrap()[i].as_str()),
                _ => x.as_i64() == Some(t.to_i64s().unwrap()[i]),
            };
            assert!(equal, "{name}[{i}]: {x}");
        }
    }
    assert!(tail.is_empty());
}
