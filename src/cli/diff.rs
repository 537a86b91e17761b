//! `graphtool diff`

use super::{exit_with, output};
use crate::ir::{Graph, Model, print_model};
use crate::{deploy, formats};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Show the structural difference of two models: interface, parameters by value, nodes and attributes
///
/// Nodes are aligned by what they make, not by their order. Ends with exit code 1 where the models differ.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The old model (or deployment directory: its rewritten graph)
    old: PathBuf,
    /// The new model
    new: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn load(path: &Path) -> anyhow::Result<Model> {
    let file = if deploy::is_deployment(path) { path.join(deploy::WORKER) } else { path.to_owned() };
    Ok(formats::load(&file)?)
}

/// Every item of a model by its kind and name, with the text that says what it is.
fn items(model: &Model) -> BTreeMap<(&'static str, String), String> {
    let mut all = BTreeMap::new();
    for o in &model.opset_imports {
        all.insert(("opset", o.domain.clone()), o.version.to_string());
    }
    for (k, v) in &model.metadata {
        all.insert(("metadata", k.clone()), v.clone());
    }
    graph(&model.graph, "", &mut all);
    for f in &model.functions {
        graph(&f.graph, &format!("{}::{}/", f.domain, f.name), &mut all);
    }
    all
}

fn graph(g: &Graph, place: &str, all: &mut BTreeMap<(&'static str, String), String>) {
    // A graph of one item prints as one line: the canonical text says what it is.
    let text = print_model(&Model { graph: g.clone(), ..Model::default() });
    let mut depth = 0;
    let mut item: Option<(&'static str, String, String)> = None;
    for line in text.lines().skip(1) {
        let trimmed = line.trim();
        let (opens, closes) = (trimmed.matches('{').count(), trimmed.matches('}').count());
        match (depth, &mut item) {
            (0, _) => {
                all.insert(("interface", format!("{place}{}", g.name)), trimmed.trim_end_matches(" {").to_owned());
            }
            (1, None) if trimmed != "}" => {
                let (kind, rest) = trimmed.strip_prefix("param ").map_or(("node", trimmed), |r| ("parameter", r));
                let name = rest.split([':', ',', ' ']).next().unwrap_or(rest).to_owned();
                item = Some((kind, format!("{place}{name}"), rest.to_owned()));
            }
            (_, Some((_, _, body))) => {
                body.push('\n');
                body.push_str(trimmed);
            }
            _ => {}
        }
        depth = (depth + opens).saturating_sub(closes);
        if depth == 1
            && let Some((kind, name, body)) = item.take()
        {
            all.insert((kind, name), body);
        }
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let (old, new) = (items(&load(&args.old)?), items(&load(&args.new)?));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let mut changes = Vec::new();
    for key in keys {
        let (a, b) = (old.get(key), new.get(key));
        if a != b {
            changes.push((key, a, b));
        }
    }
    if args.json {
        let list: Vec<_> =
            changes.iter().map(|((kind, name), a, b)| serde_json::json!({"kind": kind, "name": name, "old": a, "new": b})).collect();
        output::line(serde_json::to_string_pretty(&list)?)?;
    } else {
        for ((kind, name), a, b) in &changes {
            let sign = match (a, b) {
                (None, _) => "added",
                (_, None) => "removed",
                _ => "changed",
            };
            output::line(format!("{sign} {kind} {name}"))?;
            for (mark, text) in [('-', a), ('+', b)] {
                text.map_or(Ok(()), |t| t.lines().try_for_each(|l| output::line(format!("  {mark} {l}"))))?;
            }
        }
    }
    if changes.is_empty() { Ok(()) } else { Err(exit_with(1, format!("{} differences", changes.len()))) }
}
