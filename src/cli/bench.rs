//! `graphtool bench`

use super::{exit_with, output, usage};
use crate::exec::{Options, Session};
use crate::ir::{Dim, Model, Type};
use crate::store::{Shards, Store};
use crate::tensor::{DType, Tensor, Value, cast};
use crate::{deploy, formats};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time a model on random valid inputs: samples/s, percentiles, time per op
///
/// Every open dim is the batch. Integer inputs are ids: their range is found from the tables that they reach, or is 0 and 1
/// where none is found.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A model file, or a deployment directory (its shards are served in this process)
    model: PathBuf,
    /// Samples in a batch
    #[arg(short, long, default_value_t = 64)]
    batch_size: usize,
    /// Threads; 0 is one per core
    #[arg(short, long, default_value_t = 0)]
    threads: usize,
    /// Seconds to measure, after a tenth of that to warm up
    #[arg(short, long, default_value_t = 3.0)]
    seconds: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if args.batch_size == 0 || !(args.seconds > 0.0 && args.seconds < 1e6) {
        return Err(usage("--batch-size and --seconds must be above 0"));
    }
    let (model, store) = if deploy::is_deployment(&args.model) {
        let (manifest, model) = deploy::open(&args.model)?;
        // Not verified, which would be measured too.
        let shards: Arc<dyn Store> = Arc::new(Shards::open(&args.model, Arc::new(manifest), |_| true)?);
        (model, Some(shards))
    } else {
        (formats::load(&args.model)?, None)
    };
    let options = Options { threads: args.threads, store, ..Options::default() };
    let session = Session::new(&model, options.clone())?;
    let inputs = random_inputs(&model, &session, args.batch_size)?;
    let fault = |e: crate::exec::ExecError| exit_with(1, format!("on random inputs: {e}"));
    let warm = Instant::now() + Duration::from_secs_f64(args.seconds / 10.0);
    // What a session does once, when it is used long, is not what is measured.
    session.settle();
    session.run(inputs.clone()).map_err(fault)?;
    while Instant::now() < warm {
        session.run(inputs.clone()).map_err(fault)?;
    }
    let mut times = Vec::new();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    while start.elapsed().as_secs_f64() < args.seconds {
        let one = Instant::now();
        session.run(inputs.clone()).map_err(fault)?;
        times.push(one.elapsed().as_secs_f64());
    }
    let (total, cpu) = (start.elapsed().as_secs_f64(), cpu.zip(cpu_seconds()).map(|(before, after)| after - before));
    // To take the time of each op takes time, so it is done apart.
    let profiled = Session::new(&model, Options { profile: true, ..options })?;
    let until = Instant::now() + Duration::from_secs_f64(args.seconds / 5.0);
    profiled.run(inputs.clone()).map_err(fault)?;
    while Instant::now() < until {
        profiled.run(inputs.clone()).map_err(fault)?;
    }
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
    let samples = (times.len() * args.batch_size) as f64;
    let (rate, cpu_rate) = (samples / total, cpu.map(|s| samples / s.max(1e-9)));
    let table = profiled.profile().map(crate::exec::Profile::table).unwrap_or_default();
    let spent: f64 = table.iter().map(|r| r.2.as_secs_f64()).sum();
    if args.json {
        let ops: Vec<_> = table.iter().map(|(op, n, t)| serde_json::json!({"op": op, "calls": n, "seconds": t.as_secs_f64()})).collect();
        let json = serde_json::json!({"samples_per_second": rate, "samples_per_cpu_second": cpu_rate, "p50_seconds": at(0.5), "p90_seconds": at(0.9), "p99_seconds": at(0.99),
            "batch_size": args.batch_size, "runs": times.len(), "ops": ops});
        output::line(serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    let of_cpu = cpu_rate.map_or(String::new(), |r| format!(" ({r:.0} per second of CPU time)"));
    output::line(format!("{rate:.0} samples/s in batches of {}{of_cpu}", args.batch_size))?;
    output::line(format!(
        "p50 {:.3} ms  p90 {:.3} ms  p99 {:.3} ms  ({} runs)",
        at(0.5) * 1e3,
        at(0.9) * 1e3,
        at(0.99) * 1e3,
        times.len()
    ))?;
    let rows: Vec<Vec<String>> = table
        .iter()
        .map(|(op, n, t)| {
            let s = t.as_secs_f64();
            vec![
                op.clone(),
                n.to_string(),
                format!("{:.1} us", s / (*n).max(1) as f64 * 1e6),
                format!("{:.1}%", s / spent.max(1e-12) * 100.0),
            ]
        })
        .collect();
    output::table(&["op", "calls", "a call", "share"], &[1, 2, 3], &rows)?;
    Ok(())
}

/// Seconds of CPU time of all threads of this process, where the system tells.
fn cpu_seconds() -> Option<f64> {
    let nanoseconds = |task: std::fs::DirEntry| -> Option<f64> {
        std::fs::read_to_string(task.path().join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    tasks.map(|task| nanoseconds(task.ok()?)).sum::<Option<f64>>().map(|n| n / 1e9)
}

/// Numbers that are the same in every run.
struct Counter(u64);

impl Counter {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn random_inputs(model: &Model, session: &Session, batch: usize) -> anyhow::Result<Vec<(String, Value)>> {
    let mut counter = Counter(1);
    let mut out = Vec::new();
    for (name, ty, optional) in session.inputs() {
        if optional {
            continue;
        }
        let Some(Type::Tensor { dtype: Some(dtype), shape: Some(dims) }) = ty else {
            return Err(exit_with(1, format!("input \"{name}\": no random value for a type that is not stated")));
        };
        let shape: Vec<usize> = dims.iter().map(|d| if let Dim::Known(n) = d { *n } else { batch }).collect();
        let n: usize = shape.iter().product();
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let rows = id_ranges(model, name, columns);
        let tensor = match dtype {
            DType::String => Tensor::new(shape, vec![String::from("a"); n])?,
            DType::Bool => Tensor::new(shape, (0..n).map(|_| counter.next() & 1 == 1).collect())?,
            d if d.is_int() => {
                let ids = (0..n).map(|i| (counter.unit() * rows[i % columns] as f64) as i64).collect();
                cast(&Tensor::new(shape, ids)?, *d)?
            }
            d => cast(&Tensor::new(shape, (0..n).map(|_| counter.unit() as f32).collect())?, *d)?,
        };
        out.push((name.to_owned(), tensor.into()));
    }
    Ok(out)
}

/// How many ids are valid in each column of an input: the rows of the smallest table that is reached from it, by column
/// where a column is picked by a constant, else by all.
fn id_ranges(model: &Model, input: &str, columns: usize) -> Vec<u64> {
    let g = &model.graph;
    let mut limits = vec![u64::MAX; columns];
    let Some(start) = g.value(input) else { return vec![2; columns] };
    let mut stack = vec![(start, None::<usize>)];
    let mut seen = std::collections::HashSet::new();
    while let Some((value, column)) = stack.pop() {
        if !seen.insert((value, column)) {
            continue;
        }
        for u in g.uses(value) {
            let node = g.node(u.node);
            let Some((op, operand)) = node.op().zip(u.operand) else { continue };
            let constant = |i: usize| {
                node.input(i).and_then(|v| {
                    g.constant(v).map(|c| c.tensor.clone()).or_else(|| g.node(v.node).attrs.tensor("value").ok().flatten().cloned())
                })
            };
            let mut limit = |rows: u64| match column {
                Some(c) => limits[c % columns] = limits[c % columns].min(rows),
                None => limits.iter_mut().for_each(|l| *l = (*l).min(rows)),
            };
            match &*op.name {
                "Gather" if operand == 1 => {
                    let axis = node.attrs.int_or("axis", 0).unwrap_or(0);
                    let rows = constant(0)
                        .and_then(|t| t.shape().get(if axis < 0 { (axis + t.rank() as i64) as usize } else { axis as usize }).copied());
                    limit(rows.map_or(2, |r| r as u64));
                }
                "Gather" => {
                    let picked = constant(1)
                        .and_then(|t| t.to_i64s().ok())
                        .filter(|v| v.len() == 1)
                        .map(|v| v[0].rem_euclid(columns as i64) as usize);
                    stack.push((u.node.value(0), picked.or(column)));
                }
                "RemoteLookup" => limit(node.attrs.ints("rows").ok().flatten().and_then(|r| r.get(operand)).map_or(2, |r| *r as u64)),
                "Slice" => {
                    let start = constant(1)
                        .and_then(|t| t.to_i64s().ok())
                        .filter(|v| v.len() == 1)
                        .map(|v| v[0].rem_euclid(columns as i64) as usize);
                    stack.push((u.node.value(0), start.or(column)));
                }
                _ => stack.extend((0..node.outputs.len()).map(|s| (u.node.value(s as u32), column))),
            }
        }
    }
    limits.into_iter().map(|l| if l == u64::MAX { 2 } else { l.max(1) }).collect()
}
