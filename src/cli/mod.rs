//! The command line: one file per command. The only place that prints and reads the environment.

mod bench;
mod board;
mod chain;
mod check;
mod compare;
mod convert;
mod diff;
mod dump;
mod explain;
mod extract;
mod import_tables;
mod inspect;
mod job;
mod k8s;
mod launch;
mod load;
mod lookup;
mod merge;
mod monitor;
mod optimize;
mod output;
mod passes;
mod plan;
mod process;
mod reload;
mod reshard;
mod rewrite;
mod run;
mod save;
mod serve;
mod size;
mod store_args;
mod stores;
mod view;

use clap::{Parser, Subcommand};
use std::fmt;
use std::process::ExitCode;

/// Distributed inference for models whose embedding tables do not fit one machine.
///
/// Reads a model as its exporter wrote it, moves the embedding tables into shards, and runs the rewritten graph on workers
/// that pull rows from pservers, with the same answers as one machine.
///
/// Exit codes: 0 done · 1 the input (model, data, shards, peers) is at fault · 2 the call is wrong · 3 rewrite found nothing
/// to rewrite. Data goes to stdout or to the named file, logs (RUST_LOG) and errors to stderr.
#[derive(Parser)]
#[command(name = "graphtool", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Args),
    Check(check::Args),
    Compare(compare::Args),
    Convert(convert::Args),
    Diff(diff::Args),
    Dump(dump::Args),
    Explain(explain::Args),
    Extract(extract::Args),
    ImportTables(import_tables::Args),
    Inspect(inspect::Args),
    K8s(k8s::Args),
    Launch(launch::Args),
    Load(load::Args),
    Lookup(lookup::Args),
    Merge(merge::Args),
    Optimize(optimize::Args),
    Passes(passes::Args),
    Plan(plan::Args),
    Reload(reload::Args),
    Reshard(reshard::Args),
    Rewrite(rewrite::Args),
    Run(run::Args),
    Serve(serve::Args),
    View(view::Args),
}

/// An error with the exit code that goes with it.
#[derive(Debug)]
struct Exit {
    code: u8,
    message: String,
}

/// The call is wrong.
fn usage(message: impl fmt::Display) -> anyhow::Error {
    anyhow::Error::new(Exit { code: 2, message: message.to_string() })
}

/// Ends with this code and, if there is one, a message.
fn exit_with(code: u8, message: impl fmt::Display) -> anyhow::Error {
    anyhow::Error::new(Exit { code, message: message.to_string() })
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // What tarpc warns of is an error of ours, which says more.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn,tarpc=error".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        // It would panic where stderr takes nothing.
        .log_internal_errors(false)
        .init();
    // A panic is a fault of ours; it is still one line and an exit code.
    std::panic::set_hook(Box::new(|info| {
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            output::note(format_args!("{info}\n{}", std::backtrace::Backtrace::force_capture()));
        }
    }));
    // Deep bodies need more stack than a main thread may have.
    let run = std::thread::Builder::new().stack_size(256 << 20).spawn(move || run(cli));
    let result = match run.map(std::thread::JoinHandle::join) {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(anyhow::anyhow!("internal error: {}", text.unwrap_or_default()))
        }
        Err(e) => Err(e.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let code = e.downcast_ref::<Exit>().map_or(1, |x| x.code);
            let nobody_reads = e.downcast_ref::<output::Stdout>().is_some_and(output::Stdout::closed);
            let text = format!("{e:#}");
            if !nobody_reads && !text.is_empty() {
                output::note(format_args!("error: {}", text.lines().collect::<Vec<_>>().join(" ")));
            }
            ExitCode::from(code)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Bench(a) => bench::run(a),
        Command::Check(a) => check::run(a),
        Command::Compare(a) => compare::run(a),
        Command::Convert(a) => convert::run(a),
        Command::Diff(a) => diff::run(a),
        Command::Dump(a) => dump::run(a),
        Command::Explain(a) => explain::run(a),
        Command::Extract(a) => extract::run(a),
        Command::ImportTables(a) => import_tables::run(a),
        Command::Inspect(a) => inspect::run(a),
        Command::K8s(a) => k8s::run(a),
        Command::Launch(a) => launch::run(a),
        Command::Load(a) => load::run(a),
        Command::Lookup(a) => lookup::run(a),
        Command::Merge(a) => merge::run(a),
        Command::Optimize(a) => optimize::run(a),
        Command::Passes(a) => passes::run(a),
        Command::Plan(a) => plan::run(a),
        Command::Reload(a) => reload::run(a),
        Command::Reshard(a) => reshard::run(a),
        Command::Rewrite(a) => rewrite::run(a),
        Command::Run(a) => run::run(a),
        Command::Serve(a) => serve::run(a),
        Command::View(a) => view::run(a),
    }
}
