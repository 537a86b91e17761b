//! Deployments and servers for tests: small tables with known content, cut in any way, served on ports of the system's choice.
#![allow(dead_code)]

pub mod contract;

use graphtool::plan::{Absent, Manifest, Piece, Sharding, TableEntry};
use graphtool::store::{self, ServeOptions, Stats, StoreError};
use graphtool::tensor::{DType, Tensor, cast};
use std::net::TcpListener;
use std::path::Path;
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// A table to deploy.
#[derive(Clone)]
pub struct Source {
    pub name: &'static str,
    pub values: Tensor,
    pub keys: Option<Vec<u64>>,
    pub sharding: Sharding,
    pub pieces: usize,
    pub absent: Absent,
    pub default_row: Option<Vec<f64>>,
}

/// A table whose element `i` is `i mod 113`, as its dtype has it.
pub fn source(name: &'static str, dtype: DType, shape: &[usize], sharding: Sharding, pieces: usize) -> Source {
    let n: usize = shape.iter().product();
    let modulus = if dtype == DType::Bool {
        2
    } else if dtype.bits() < 8 {
        4
    } else {
        113
    };
    let numbers = Tensor::new(shape, (0..n).map(|i| (i % modulus) as f32).collect()).unwrap();
    let values = if dtype == DType::Bool {
        Tensor::new(shape, (0..n).map(|i| i % 3 == 0).collect()).unwrap()
    } else if dtype == DType::F8E8M0 {
        Tensor::from_bytes(dtype, shape, (0..n).map(|i| (i % modulus) as u8).collect::<Vec<u8>>()).unwrap()
    } else {
        cast(&numbers, dtype).unwrap()
    };
    Source { name, values, keys: None, sharding, pieces, absent: Absent::Error, default_row: None }
}

/// Writes a deployment of `tables` over `shards` shards.
pub fn deploy(dir: &Path, tables: &[Source], shards: u32) -> Manifest {
    std::fs::create_dir_all(dir.join("shards")).unwrap();
    let mut next_shard = 0;
    let mut entry = |s: &Source| {
        let (rows, row_shape) = (s.values.shape()[0], s.values.shape()[1..].to_vec());
        let columns: usize = row_shape.iter().product();
        let bytes = s.values.bytes().unwrap();
        let width = s.values.dtype().bits() * columns / 8;
        let mut pieces = Vec::new();
        for p in 0..s.pieces {
            let cut = |n: usize, p: usize| n * p / s.pieces;
            let (mut first_row, mut first_column, mut piece_columns) = (0, 0, columns);
            let key = |r: usize| s.keys.as_ref().map_or(r as u64, |k| k[r]);
            let mut mine: Vec<usize> = match s.sharding {
                Sharding::Table => (0..rows).collect(),
                Sharding::Row => (0..rows).filter(|&r| key(r) % s.pieces as u64 == p as u64).collect(),
                Sharding::Range => {
                    first_row = cut(rows, p);
                    (cut(rows, p)..cut(rows, p + 1)).collect()
                }
                Sharding::Column => {
                    first_column = cut(columns, p);
                    piece_columns = cut(columns, p + 1) - first_column;
                    (0..rows).collect()
                }
            };
            mine.sort_by_key(|&r| key(r));
            let element = s.values.dtype().bits();
            let (from, len) = (first_column * element / 8, piece_columns * element / 8);
            let values: Vec<u8> = mine.iter().flat_map(|&r| bytes[r * width + from..r * width + from + len].to_vec()).collect();
            let keys: Option<Vec<u64>> = s.keys.as_ref().map(|_| mine.iter().map(|&r| key(r)).collect());
            let file = format!("shards/{}-{p:05}-of-{:05}.safetensors", s.name, s.pieces);
            write_piece(&dir.join(&file), s.values.dtype(), mine.len(), piece_columns, &values, keys.as_deref());
            pieces.push(Piece {
                shard: next_shard % shards,
                rows: mine.len() as u64,
                first_row: first_row as u64,
                first_column: first_column as u64,
                columns: piece_columns as u64,
                bytes: std::fs::metadata(dir.join(&file)).unwrap().len(),
                checksum: store::checksum(&dir.join(&file)).unwrap(),
                file,
            });
            next_shard += 1;
        }
        TableEntry {
            name: s.name.into(),
            rows: rows as u64,
            row_shape,
            dtype: s.values.dtype(),
            sharding: s.sharding,
            keyed: s.keys.is_some(),
            absent: s.absent,
            default_row: s.default_row.clone(),
            stored: None,
            content: String::new(),
            pieces,
        }
    };
    let mut manifest = Manifest {
        format_version: graphtool::plan::FORMAT_VERSION,
        plan_id: String::new(),
        fingerprint: "graph-a".into(),
        shards,
        replicas: 1,
        files: Default::default(),
        tables: tables.iter().map(&mut entry).collect(),
        dense_inputs: Vec::new(),
    };
    manifest.seal();
    std::fs::write(dir.join("manifest.json"), manifest.print()).unwrap();
    Manifest::parse(&manifest.print()).unwrap()
}

fn write_piece(path: &Path, dtype: DType, rows: usize, columns: usize, values: &[u8], keys: Option<&[u64]>) {
    use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
    let native = match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        DType::F64 => Some(Dtype::F64),
        DType::I64 => Some(Dtype::I64),
        DType::Bool => Some(Dtype::BOOL),
        _ => None,
    };
    let width = dtype.bits() * columns / 8;
    let view = match native {
        Some(d) => TensorView::new(d, vec![rows, columns], values),
        None => TensorView::new(Dtype::U8, vec![rows, width], values),
    };
    let keys: Option<Vec<u8>> = keys.map(|k| k.iter().flat_map(|k| k.to_le_bytes()).collect());
    let mut tensors = vec![("values", view.unwrap())];
    if let Some(keys) = &keys {
        tensors.push(("keys", TensorView::new(Dtype::U64, vec![rows], keys).unwrap()));
    }
    serialize_to_file(tensors, None, path).unwrap();
}

/// A server on a thread of its own. It stops when this is dropped.
pub struct Server {
    pub endpoint: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<Stats, StoreError>>>,
}

impl Server {
    pub fn start(dir: &Path, options: ServeOptions) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), dir, options)
    }

    pub fn on(listener: TcpListener, dir: &Path, options: ServeOptions) -> Self {
        let endpoint = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let dir = dir.to_path_buf();
        let thread = std::thread::spawn(move || store::serve(listener, &dir, options, async { _ = stopped.await }));
        Self { endpoint, stop: Some(stop), thread: Some(thread) }
    }

    /// `n` servers that share the shards.
    pub fn start_all(dir: &Path, n: usize, options: ServeOptions) -> Vec<Self> {
        (0..n).map(|index| Self::start(dir, ServeOptions { servers: n, index, threads: 1, ..options.clone() })).collect()
    }

    /// Stops the server, unless it stopped by itself, and gives what it came to.
    pub fn stop(mut self) -> Result<Stats, StoreError> {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits for the server to stop by itself.
    pub fn wait(mut self) -> Result<Stats, StoreError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

pub fn endpoints(servers: &[Server]) -> Vec<String> {
    servers.iter().map(|s| s.endpoint.clone()).collect()
}
