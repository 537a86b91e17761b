//! Rows per second as the work grows, and their picture.

use crate::{Server, deploy, median_round, spawn};
use graphtool::store::{self, ConnectOptions, Query, Store};
use std::fmt::Write;
use std::sync::Arc;

/// Ids of a call where it is not their number that grows.
const IDS: usize = 26_000;
const TABLES: usize = 26;
const ROWS: usize = 1_000_000;

/// What one point is measured on: tables, rows of each, dim, servers, ids of each table in a call.
struct Work {
    tables: usize,
    rows: usize,
    dim: usize,
    servers: usize,
    ids: usize,
}

struct Curve {
    title: &'static str,
    /// What grows, millions of rows per second, and per second on a CPU.
    points: Vec<(usize, f64, f64)>,
}

fn measure(work: &Work, rounds: usize) -> (f64, f64) {
    let dir = tempfile::tempdir().unwrap();
    let manifest = Arc::new(deploy(dir.path(), work.tables, work.rows, work.dim, work.servers));
    let path = dir.path().to_str().unwrap();
    let count = work.servers.to_string();
    let (servers, endpoints): (Vec<Server>, Vec<String>) =
        (0..work.servers).map(|i| spawn(&["serve", path, &count, &i.to_string()])).unzip();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store: Arc<dyn Store> = runtime.block_on(store::connect(manifest, &endpoints, ConnectOptions::default())).unwrap();
    let pids: Vec<u32> = servers.iter().map(|s| s.0.id()).collect();
    let ids = work.ids * work.tables;
    let call = async move |all: Vec<u64>| {
        let query = |(table, ids): (usize, &[u64])| Query { table, ids: ids.to_vec() };
        let queries = all.chunks(work.ids).enumerate().map(query).collect();
        std::hint::black_box(store.lookup(queries).await.unwrap());
    };
    let found = runtime.block_on(median_round(pids, (ids, work.rows), rounds, call));
    (ids as f64 / found.wall / 1e6, ids as f64 / found.cpu / 1e6)
}

fn curve(title: &'static str, all: impl IntoIterator<Item = (usize, Work)>, rounds: usize) -> Curve {
    let point = |(x, work): (usize, Work)| {
        let (wall, cpu) = measure(&work, rounds);
        println!("{title}: {x}: {wall:.2} million rows/s, {cpu:.2} per CPU second");
        (x, wall, cpu)
    };
    Curve { title, points: all.into_iter().map(point).collect() }
}

/// Measures all curves and writes their picture.
pub fn draw(path: &str, rounds: usize) {
    let powers = |from: u32, to: u32| (from..=to).map(|p| 10usize.pow(p));
    let one = Work { tables: 1, rows: ROWS, dim: 16, servers: 1, ids: IDS };
    let curves = [
        curve("rows of the table (dim 4)", powers(3, 8).map(|rows| (rows, Work { rows, dim: 4, ..one })), rounds),
        curve("pservers", [1, 2, 4, 8].map(|servers| (servers, Work { servers, ..one })), rounds),
        curve("tables", powers(0, 3).map(|tables| (tables, Work { tables, rows: ROWS / tables, ids: IDS / tables, ..one })), rounds),
        curve(
            "batch of 26 tables",
            (0..=7).map(|p| 4usize.pow(p)).map(|ids| (ids, Work { tables: TABLES, rows: ROWS / TABLES, ids, ..one })),
            rounds,
        ),
    ];
    std::fs::write(path, picture(&curves)).unwrap();
}

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 240.0;

fn picture(curves: &[Curve]) -> String {
    let (width, height) = (2.0 * WIDTH, HEIGHT * curves.len().div_ceil(2) as f64 + 24.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n"
    );
    let legend = "million rows per second: solid; per second on a CPU, client and servers together: dashed";
    writeln!(svg, "<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n<text x=\"40\" y=\"16\">{legend}</text>").unwrap();
    for (i, curve) in curves.iter().enumerate() {
        let at = (i % 2) as f64 * WIDTH;
        writeln!(svg, "<g transform=\"translate({at} {})\">\n{}</g>", (i / 2) as f64 * HEIGHT + 24.0, panel(curve)).unwrap();
    }
    svg + "</svg>\n"
}

/// One curve on logarithmic axes.
fn panel(curve: &Curve) -> String {
    let (left, right, top, bottom) = (40.0, WIDTH - 16.0, 28.0, HEIGHT - 32.0);
    let (first, last) = (curve.points[0].0 as f64, curve.points[curve.points.len() - 1].0 as f64);
    let x = |n: usize| left + (n as f64 / first).ln() / (last / first).ln() * (right - left);
    // From 0.1 to 1000 million rows a second.
    let y = |v: f64| bottom - (v.clamp(0.1, 1000.0).log10() + 1.0) / 4.0 * (bottom - top);
    let mut out = format!("<text x=\"{left}\" y=\"18\" font-weight=\"bold\">{}</text>\n", curve.title);
    for v in [0.1, 1.0, 10.0, 100.0, 1000.0] {
        writeln!(out, "<path d=\"M{left} {0:.0}H{right}\" stroke=\"#ddd\"/><text x=\"4\" y=\"{1:.0}\">{v}</text>", y(v), y(v) + 4.0)
            .unwrap();
    }
    for (n, _, _) in &curve.points {
        writeln!(out, "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>", x(*n), bottom + 16.0, short(*n)).unwrap();
    }
    for (dashes, value) in [("none", 1), ("4 3", 2)] {
        let points: Vec<String> =
            curve.points.iter().map(|p| format!("{:.0},{:.1}", x(p.0), y(if value == 1 { p.1 } else { p.2 }))).collect();
        writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"#1a6\" stroke-dasharray=\"{dashes}\"/>", points.join(" ")).unwrap();
    }
    out
}

fn short(n: usize) -> String {
    match n {
        1_000_000.. => format!("{}M", n / 1_000_000),
        10_000.. => format!("{}k", n / 1000),
        _ => n.to_string(),
    }
}
