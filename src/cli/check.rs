//! `graphtool check`

use super::{exit_with, output};
use crate::exec::{Options, Session};
use crate::ir::Model;
use crate::passes::shape_faults;
use crate::{deploy, formats, ir};
use std::path::PathBuf;

/// Check a model (structure, ops, attributes), or every file of a deployment directory against its manifest
#[derive(clap::Args)]
pub(super) struct Args {
    /// A model file, or a deployment directory
    model: PathBuf,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    if deploy::is_deployment(&args.model) {
        let faults = deploy::check(&args.model)?;
        if let Some(first) = faults.first() {
            faults.iter().skip(1).try_for_each(output::line)?;
            return Err(exit_with(1, format!("{}: {first}{}", args.model.display(), more(faults.len() - 1))));
        }
        let (manifest, model) = deploy::open(&args.model)?;
        let faults = ir::verify(&model);
        if let Some(first) = faults.first() {
            return Err(exit_with(1, format!("{}: {first}", args.model.display())));
        }
        let narrowed = manifest.tables.iter().filter_map(|t| Some(t).zip(t.stored));
        for (t, s) in narrowed {
            let (name, dtype, form, error) = (&t.name, t.dtype, s.dtype.name(), s.max_error);
            output::line(format!(
                "table \"{name}\" ({dtype}) is stored as {form}: lookups give values at most {error:e} from the model's"
            ))?;
        }
        let pieces: usize = manifest.tables.iter().map(|t| t.pieces.len()).sum();
        output::line(format!("ok: {} tables, {pieces} shard files, {} shards", manifest.tables.len(), manifest.shards))?;
        return Ok(());
    }
    let model = match formats::load(&args.model) {
        Ok(m) => m,
        Err(e) => {
            e.more.iter().try_for_each(output::line)?;
            let more = more(e.more.len());
            return Err(exit_with(1, format!("{e}{more}")));
        }
    };
    let mut faults = faults(&model);
    if faults.is_empty()
        && let Err(e) = Session::new(&model, Options { threads: 1, ..Options::default() })
        && !model.graph.ops().iter().any(|&id| model.graph.node(id).op().is_some_and(|o| &*o.domain == crate::ops::remote::DOMAIN))
    {
        faults.push(e.to_string());
    }
    if let Some(first) = faults.first() {
        faults.iter().skip(1).try_for_each(output::line)?;
        return Err(exit_with(1, format!("{}: {first}{}", args.model.display(), more(faults.len() - 1))));
    }
    let kind = formats::paddle::facts(&args.model).map_or(String::new(), |p| format!("{}, ", p.format()));
    output::line(format!("ok: {kind}{} nodes, {} parameters", model.graph.ops().len(), model.graph.params().len()))?;
    Ok(())
}

/// What is wrong with a model and can be told without compiling it: structure, and what shape inference finds.
pub(super) fn faults(model: &Model) -> Vec<String> {
    let faults = ir::verify(model);
    if faults.is_empty() { shape_faults(model) } else { faults }
}

fn more(n: usize) -> String {
    if n == 0 { String::new() } else { format!(" (and {n} more)") }
}
