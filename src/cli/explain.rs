//! `graphtool explain`

use super::{output, usage};
use crate::ir::{OpName, normal_domain};
use crate::ops::{self, OpDef, Run};
use crate::passes::{catalogue, near, page, plain, with_settings};

/// Print the manual page of a graph pass, or what is known of an op
///
/// An op is named as in ONNX, one of another domain by `domain::Name`: `explain Gather`, `explain ai.onnx.ml::Scaler`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A pass or an op
    name: String,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let passes: Vec<_> = catalogue().into_iter().chain(with_settings()).collect();
    if let Some(pass) = passes.iter().find(|p| p.name() == args.name) {
        return Ok(output::line(plain(&page(pass.source())).trim_end())?);
    }
    let (domain, name) = args.name.rsplit_once("::").unwrap_or(("", &args.name));
    let all = ops::all();
    let mut found: Vec<&OpDef> = all.iter().copied().filter(|d| d.name == name && d.domain == normal_domain(domain)).collect();
    if found.is_empty() && !args.name.contains("::") {
        found = all.iter().copied().filter(|d| d.name == name).collect();
    }
    if found.is_empty() {
        let titles: Vec<String> = all.iter().map(|d| title(d)).collect();
        let names = passes.iter().map(|p| p.name()).chain(titles.iter().map(String::as_str)).chain(all.iter().map(|d| d.name));
        return Err(usage(format!("no pass and no op \"{}\"{}", args.name, near(&args.name, names))));
    }
    for (i, def) in found.iter().enumerate() {
        if i > 0 {
            output::line("")?;
        }
        op(def)?;
    }
    let others: Vec<String> =
        all.iter().filter(|d| d.name == name && found.iter().all(|f| f.domain != d.domain)).map(|d| title(d)).collect();
    if !others.is_empty() {
        output::line(format!("See also   {}", others.join(", ")))?;
    }
    Ok(())
}

fn title(def: &OpDef) -> String {
    OpName::new(def.domain, def.name).to_string()
}

fn op(def: &OpDef) -> anyhow::Result<()> {
    let name = OpName::new(def.domain, def.name);
    let latest = def.versions.last().copied().unwrap_or(1);
    let count = |(least, most): (usize, usize)| match most {
        usize::MAX => format!("{least} or more"),
        most if most == least => least.to_string(),
        most => format!("{least} to {most}"),
    };
    output::line(&name)?;
    output::line(format!("Domain     {}", if def.domain.is_empty() { "ai.onnx" } else { def.domain }))?;
    let versions: Vec<String> = def.versions.iter().map(ToString::to_string).collect();
    output::line(format!("Versions   {}", versions.join(", ")))?;
    output::line(format!("Inputs     {}", count(def.inputs)))?;
    output::line(format!("Outputs    {}", count(def.outputs)))?;
    for (i, attr) in def.attrs.iter().enumerate() {
        let default = ops::default_attr(&name, latest, attr).map_or_else(String::new, |d| format!(" = {d}"));
        output::line(format!("{:<11}{attr}{default}", if i == 0 { "Attributes" } else { "" }))?;
    }
    let (how, fold) = match (def.run, def.pure) {
        (Run::Kernel(_), true) => ("a kernel", "yes: equal operands give equal results; it is folded, merged and dropped"),
        (Run::Kernel(_), false) => ("a kernel", "no: it is never folded, merged or dropped"),
        (Run::Control, true) => ("its bodies are run", "yes: it is dropped where nobody reads it"),
        (Run::Control, false) => ("its bodies are run", "no: it is never folded, merged or dropped"),
        (Run::Host, _) => {
            ("it waits for stores or other ranks", if def.pure { "yes" } else { "no: it is never folded, merged or dropped" })
        }
    };
    output::line(format!("Runs by    {how}"))?;
    output::line(format!("Pure       {fold}"))?;
    Ok(())
}
