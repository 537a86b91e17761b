//! `graphtool inspect`

use super::{exit_with, output, size, usage};
use crate::ir::{Kind, Model};
use crate::passes::costs::{Cost, costs};
use crate::passes::{InlineFunctions, Pass, RemoteLookup, Report, hidden_in_functions};
use crate::{deploy, formats};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Show what a model or a deployment holds: interface, ops, parameters, tables and their lookups, and what a run costs
///
/// Costs are additions, products and function values of elements (FLOPs), and the bytes of all that nodes read and write;
/// a lookup reads the rows that it gives. They are known where all dims are: give those of the inputs by --batch-size and
/// --dim. What a body of a loop costs is counted once.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A model file, or a deployment directory
    model: PathBuf,
    /// Cost of a run with so many samples: the outermost dim of each input that is no number
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// What a symbol of the inputs stands for, for costs (may be given several times)
    #[arg(long, value_name = "SYMBOL=N")]
    dim: Vec<String>,
    /// List the cost of each node
    #[arg(long)]
    nodes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let is_dir = deploy::is_deployment(&args.model);
    let (model, mut facts) = if is_dir {
        let (manifest, model) = deploy::open(&args.model)?;
        let facts = describe(&model, "deployment");
        let mut facts = facts;
        facts["plan_id"] = json!(manifest.plan_id);
        facts["shards"] = json!(manifest.shards);
        facts["replicas"] = json!(manifest.replicas);
        facts["shard_bytes"] = json!(manifest.shard_bytes());
        facts["tables"] = manifest
            .tables
            .iter()
            .map(|t| {
                json!({"name": t.name, "rows": t.rows, "row_shape": t.row_shape, "dtype": t.dtype.name(),
                "bytes": t.rows * t.row_bytes().unwrap_or(0) as u64, "sharding": t.sharding, "pieces": t.pieces.len(), "keyed": t.keyed, "stored": t.stored, "remote": true})
            })
            .collect();
        (model, facts)
    } else {
        let model = formats::load(&args.model)?;
        if let Some(fault) = super::check::faults(&model).into_iter().next() {
            return Err(exit_with(1, format!("{}: {fault}", args.model.display())));
        }
        let paddle = formats::paddle::facts(&args.model);
        let mut facts = describe(&model, paddle.as_ref().map_or("ONNX", |_| "PaddlePaddle program"));
        if let Some(p) = paddle {
            facts["paddle"] = json!({"version": p.version, "blocks": p.blocks, "ops": p.ops, "op_versions": p.op_versions});
        }
        (model, facts)
    };
    if !is_dir {
        facts["tables"] = tables(&model)?;
    }
    facts["costs"] = cost(&model, &args)?;
    if args.json {
        output::line(serde_json::to_string_pretty(&facts)?)?;
        return Ok(());
    }
    print(&facts, args.nodes)
}

fn describe(model: &Model, format: &str) -> Value {
    let g = &model.graph;
    let mut ops: BTreeMap<String, usize> = BTreeMap::new();
    for graph in model.graphs() {
        for &id in graph.ops() {
            if let Some(op) = graph.node(id).op() {
                *ops.entry(op.to_string()).or_default() += 1;
            }
        }
    }
    let (mut parameters, mut bytes) = (0u64, 0u64);
    for graph in model.graphs() {
        for &id in graph.params() {
            if let Kind::Param(c) | Kind::Input(Some(c)) = &graph.node(id).kind {
                parameters += c.tensor.len() as u64;
                bytes += c.tensor.dtype().byte_len(c.tensor.shape()).unwrap_or(0) as u64;
            }
        }
    }
    let ty = |t: Option<&crate::ir::Type>| t.map_or("?".to_owned(), ToString::to_string);
    let inputs: Vec<Value> =
        g.inputs().iter().map(|&i| json!({"name": g.node(i).outputs[0].name, "type": ty(g.node(i).outputs[0].ty.as_ref())})).collect();
    let outputs: Vec<Value> = g.outputs().iter().map(|o| json!({"name": g.name_of(o.value), "type": ty(o.ty.as_ref())})).collect();
    let opsets: BTreeMap<&str, i64> =
        model.opset_imports.iter().map(|o| (if o.domain.is_empty() { "ai.onnx" } else { o.domain.as_str() }, o.version)).collect();
    json!({"format": format, "ir_version": model.ir_version, "opsets": opsets, "graph": g.name, "inputs": inputs, "outputs": outputs,
        "nodes": ops.values().sum::<usize>(), "ops": ops, "functions": model.functions.len(), "parameters": parameters, "parameter_bytes": bytes})
}

/// Every table with its lookups, and whether the rewriter would move it.
fn tables(model: &Model) -> anyhow::Result<Value> {
    let mut report = Report::default();
    let mut copy = model.clone();
    if hidden_in_functions(&copy) {
        InlineFunctions.run(&mut copy, &mut report)?;
    }
    RemoteLookup::default().run(&mut copy, &mut report)?;
    let mut names: Vec<&str> = Vec::new();
    report.lookups.iter().for_each(|l| {
        if !names.contains(&l.table.as_str()) {
            names.push(&l.table);
        }
    });
    let one = |name: &&str| {
        let lookups: Vec<_> = report.lookups.iter().filter(|l| l.table == *name).collect();
        let reason = lookups.iter().find_map(|l| l.reason.clone());
        let nodes: Vec<Value> = lookups.iter().map(|l| json!({"node": l.node, "op": l.op, "reason": l.reason})).collect();
        let mut row = json!({"name": name, "lookups": nodes, "remote": reason.is_none(), "reason": reason});
        if let Some((_, dtype, shape)) = report.shapes.iter().find(|(n, ..)| n == name) {
            row["rows"] = json!(shape.first().copied().unwrap_or(0));
            row["row_shape"] = json!(shape.get(1..).unwrap_or_default());
            row["dtype"] = json!(dtype.name());
            row["bytes"] = json!(dtype.byte_len(shape).unwrap_or(0));
        }
        row
    };
    Ok(names.iter().map(one).collect())
}

/// What a run costs, in all and by node.
fn cost(model: &Model, args: &Args) -> anyhow::Result<Value> {
    let mut symbols = BTreeMap::new();
    for d in &args.dim {
        let pair = d.rsplit_once('=').and_then(|(s, n)| Some((s.to_owned(), n.parse::<usize>().ok()?)));
        let (symbol, n) = pair.ok_or_else(|| usage(format!("--dim {d}: expected SYMBOL=N")))?;
        symbols.insert(symbol, n);
    }
    let found = costs(model, &symbols, args.batch_size.map(|b| b as usize));
    if let Some(symbol) = found.unknown.iter().next() {
        return Err(usage(format!("--dim {symbol}: no input has a dim of that name")));
    }
    let sum = |f: &dyn Fn(&Cost) -> Option<u64>| found.nodes.iter().filter_map(f).fold(0u64, u64::saturating_add);
    let bodies = ["If", "Loop", "Scan", "SequenceMap"];
    let own: Vec<&Cost> = found.nodes.iter().filter(|c| !bodies.contains(&c.op.as_str())).collect();
    let (flops, bytes) = (sum(&|c| c.flops), sum(&|c| c.bytes));
    let repeated = own.iter().filter(|c| c.repeated).count();
    let lost = own.iter().filter(|c| c.flops.is_none() || c.bytes.is_none()).count();
    let nodes: Vec<Value> = found
        .nodes
        .iter()
        .map(|c| json!({"node": c.node, "op": c.op, "flops": c.flops, "bytes": c.bytes, "repeated": c.repeated}))
        .collect();
    Ok(json!({"flops": flops, "bytes": bytes, "unknown_nodes": lost, "repeated_nodes": repeated, "unbound": found.unbound, "nodes": nodes}))
}

/// A count in thousands, millions, ….
fn count(n: u64) -> String {
    let (mut x, mut unit) = (n as f64, 0);
    while x >= 1000.0 && unit < 4 {
        x /= 1000.0;
        unit += 1;
    }
    if unit == 0 { n.to_string() } else { format!("{x:.2} {}", ["", "K", "M", "G", "T"][unit]) }
}

fn print_costs(c: &Value, nodes: bool) -> anyhow::Result<()> {
    let number = |k: &str| c[k].as_u64().unwrap_or(0);
    let mut notes = Vec::new();
    if number("unknown_nodes") > 0 {
        let symbols: Vec<&str> = c["unbound"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let how = if symbols.is_empty() { String::new() } else { format!(": give --dim {}=N", symbols.join("=N --dim ")) };
        let all = c["nodes"].as_array().map_or(0, Vec::len);
        notes.push(format!("{} of {all} nodes are not known{how}", number("unknown_nodes")));
    }
    if number("repeated_nodes") > 0 {
        notes.push(format!("{} nodes in loops counted once", number("repeated_nodes")));
    }
    let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
    output::line(format!(
        "cost        {}FLOP, {} read and written{notes}",
        count(number("flops")) + if number("flops") < 1000 { " " } else { "" },
        size::print(number("bytes"))
    ))?;
    if nodes {
        let known = |v: &Value, f: &dyn Fn(u64) -> String| v.as_u64().map_or("unknown".to_owned(), f);
        let cell = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let rows: Vec<Vec<String>> = (c["nodes"].as_array().into_iter().flatten())
            .map(|n| vec![cell(&n["node"]), cell(&n["op"]), known(&n["flops"], &count), known(&n["bytes"], &size::print)])
            .collect();
        output::table(&["node", "op", "FLOP", "bytes"], &[2, 3], &rows)?;
    }
    Ok(())
}

fn print(f: &Value, nodes: bool) -> anyhow::Result<()> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let map =
        |v: &Value| v.as_object().map(|m| m.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", ")).unwrap_or_default();
    if f["paddle"].is_object() {
        let p = &f["paddle"];
        let blocks = if p["blocks"] == 1 { "1 block".to_owned() } else { format!("{} blocks", p["blocks"]) };
        output::line(format!("format      {}, version {}, {blocks}", text(&f["format"]), text(&p["version"])))?;
        output::line(format!("program     {}", map(&p["ops"])))?;
        if p["op_versions"].as_object().is_some_and(|m| !m.is_empty()) {
            output::line(format!("op versions {}", map(&p["op_versions"])))?;
        }
        output::line(format!("translated  to opsets: {}", map(&f["opsets"])))?;
    } else {
        output::line(format!("format      {} (IR version {}), opsets: {}", text(&f["format"]), f["ir_version"], map(&f["opsets"])))?;
    }
    for (label, key) in [("input", "inputs"), ("output", "outputs")] {
        for v in f[key].as_array().into_iter().flatten() {
            output::line(format!("{label:<11} {}: {}", text(&v["name"]), text(&v["type"])))?;
        }
    }
    output::line(format!("nodes       {}: {}", f["nodes"], map(&f["ops"])))?;
    output::line(format!("parameters  {} ({})", f["parameters"], size::print(f["parameter_bytes"].as_u64().unwrap_or(0))))?;
    print_costs(&f["costs"], nodes)?;
    if let Some(id) = f.get("plan_id") {
        let replicas = f["replicas"].as_u64().filter(|r| *r > 1).map_or(String::new(), |r| format!(", each on {r} servers"));
        output::line(format!("plan        {} in {} shards{replicas}", text(id), f["shards"]))?;
    }
    let rows: Vec<Vec<String>> = f["tables"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|t| {
            let lookups = t["lookups"].as_array().map_or_else(String::new, |l| l.len().to_string());
            let state = match t["reason"].as_str() {
                Some(reason) => format!("stays: {reason}"),
                None => t["sharding"].as_str().map_or("remote".into(), |s| {
                    let keyed = if t["keyed"] == true { ", by key" } else { "" };
                    let stored = t["stored"]["dtype"].as_str();
                    let stored = stored.map_or(String::new(), |d| format!(", stored as {d} (error at most {})", t["stored"]["max_error"]));
                    format!("{s} x {}{keyed}{stored}", t["pieces"])
                }),
            };
            let bytes = t["bytes"].as_u64().map_or(String::new(), size::print);
            // What is computed has no shape before it runs.
            let (rows, row) = match t["rows"].as_u64() {
                Some(rows) => (rows.to_string(), format!("{}{}", text(&t["dtype"]), t["row_shape"])),
                None => ("?".into(), "?".into()),
            };
            vec![text(&t["name"]), rows, row, bytes, lookups, state]
        })
        .collect();
    if !rows.is_empty() {
        output::table(&["table", "rows", "row", "size", "lookups", ""], &[1, 3, 4], &rows)?;
    }
    Ok(())
}
