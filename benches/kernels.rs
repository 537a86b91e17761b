//! Kernels by themselves, in graphs of a few nodes on one thread: `cargo bench --bench kernels [-- NAME]`.
//!
//! Throughput is in multiply-adds for products, in elements for what is read and written once, in ids for lookups.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use graphtool::exec::{Options, Session};
use graphtool::ir::parse_model;
use graphtool::tensor::{Tensor, Value};
use std::fmt::Write as _;

/// Numbers in -0.5..0.5 that look random.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
}

fn param(name: &str, dims: &[usize], seed: u32) -> String {
    let values: Vec<String> = numbers(dims.iter().product(), seed).iter().map(|x| format!("{x:?}")).collect();
    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
    format!("  param {name}: float32[{}] = [{}]\n", dims.join(","), values.join(", "))
}

fn session(text: &str) -> Session {
    Session::new(&parse_model(text).unwrap(), Options { threads: 1, ..Options::default() }).unwrap()
}

fn tensor(dims: &[usize], seed: u32) -> Value {
    Tensor::new(dims.to_vec(), numbers(dims.iter().product(), seed)).unwrap().into()
}

/// Times the session on these inputs.
fn time(c: &mut Criterion, group: &str, case: impl ToString, work: u64, session: &Session, inputs: &[(&str, Value)]) {
    let mut group = c.benchmark_group(group);
    group.throughput(Throughput::Elements(work));
    group.bench_function(BenchmarkId::from_parameter(case.to_string()), |b| {
        b.iter(|| {
            let inputs = inputs.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
            std::hint::black_box(session.run(inputs).unwrap())
        });
    });
    group.finish();
}

/// A dense layer: product, bias, Relu.
fn dense(c: &mut Criterion) {
    let (k, n) = (416, 400);
    let text = format!(
        "graph g(x: float32[m,{k}]) -> (y) {{\n{}{}  z = Gemm(x, w, b)\n  y = Relu(z)\n}}",
        param("w", &[k, n], 1),
        param("b", &[n], 2)
    );
    let session = session(&text);
    for m in [1, 6, 64, 1024] {
        time(c, "dense", format!("{m}x{k}x{n}"), (m * k * n) as u64, &session, &[("x", tensor(&[m, k], 3))]);
        // What Relu leaves of it: half are zeros.
        let half = numbers(m * k, 3).into_iter().map(|x| x.max(0.0)).collect();
        let x = Tensor::new([m, k], half).unwrap().into();
        time(c, "dense, half zeros", format!("{m}x{k}x{n}"), (m * k * n) as u64, &session, &[("x", x)]);
    }
}

/// 26 lookups whose rows are joined.
fn lookups(c: &mut Criterion) {
    let (tables, rows, dim) = (26, 4000, 16);
    let mut text = String::from("graph g(ids: int64[b,26]) -> (y) {\n");
    for t in 0..tables {
        text.push_str(&param(&format!("t{t}"), &[rows, dim], t as u32));
        writeln!(text, "  param i{t}: int64[] = [{t}]").unwrap();
    }
    for t in 0..tables {
        writeln!(text, "  c{t} = Gather(ids, i{t}) {{axis=1}}\n  r{t} = Gather(t{t}, c{t})").unwrap();
    }
    let names: Vec<String> = (0..tables).map(|t| format!("r{t}")).collect();
    writeln!(text, "  y = Concat({}) {{axis=1}}\n}}", names.join(", ")).unwrap();
    let session = session(&text);
    for batch in [1, 64, 1024] {
        let ids: Vec<i64> =
            (0..batch * tables).map(|i| (i as i64).wrapping_mul(2_654_435_761) >> 4 & 0xfff).map(|i| i % rows as i64).collect();
        let ids = Tensor::new([batch, tables], ids).unwrap();
        time(c, "lookups", batch, (batch * tables) as u64, &session, &[("ids", ids.into())]);
    }
}

/// What is done to rows by themselves.
fn rows(c: &mut Criterion) {
    let width = 384;
    let text = format!(
        "graph g(x: float32[m,{width}]) -> (y) {{\n{}{}  y = LayerNormalization(x, s, b)\n}}",
        param("s", &[width], 1),
        param("b", &[width], 2)
    );
    let norm = session(&text);
    let softmax = session(&format!("graph g(x: float32[m,{width}]) -> (y) {{\n  y = Softmax(x)\n}}"));
    let gelu = session(&format!("graph g(x: float32[m,{width}]) -> (y) {{\n  y = Gelu(x)\n}}"));
    for m in [16, 1024] {
        let inputs = [("x", tensor(&[m, width], 3))];
        for (name, session) in [("layer_normalization", &norm), ("softmax", &softmax), ("gelu", &gelu)] {
            time(c, name, format!("{m}x{width}"), (m * width) as u64, session, &inputs);
        }
    }
}

criterion_group!(kernels, dense, lookups, rows);
criterion_main!(kernels);
