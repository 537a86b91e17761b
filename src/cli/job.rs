//! What `run` and `launch` share: the arguments of a job, its data, its progress, its summary.

use super::store_args::StoreArgs;
use super::{output, size, usage};
use crate::data::{self, Bind, InputSpec};
use crate::exec::Session;
use crate::formats::onnx::value::ValueKind;
use crate::ir::{Dim, Type};
use crate::job::metrics::{Figure, Report};
use crate::job::{DEFAULT_BATCH, DEFAULT_PREFETCH, Summary, parts_dir};
use crate::store::Cached;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What every form of a job takes.
#[derive(clap::Args, Clone)]
pub(super) struct JobArgs {
    /// Samples: .npz, .npy, .csv, .csv.gz, .multislot, .parquet, or a folder in the layout of ONNX's test data
    ///
    /// Several files, and patterns such as 'part-*.csv', are read as one, a pattern's files in the order of their names.
    #[arg(short, long, num_args = 1.., verbatim_doc_comment)]
    pub(super) input: Vec<PathBuf>,
    /// What the input files are, whatever their names
    #[arg(long, value_parser = data::FORMATS, value_name = "FORMAT")]
    pub(super) format: Option<String>,
    /// Names of the slots of a .multislot whose lines are `count value… count value…` [default: the model's inputs]
    #[arg(long, value_delimiter = ',', value_name = "SLOTS")]
    pub(super) slots: Vec<String>,
    /// Where outputs go: .npz, .csv, .parquet, or a folder
    #[arg(short, long)]
    pub(super) output: Option<PathBuf>,
    /// Columns of the input to write beside the outputs, as they stand
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    pub(super) keep: Vec<String>,
    /// Which columns make up an input: INPUT=COL[,COL…] or INPUT=A1..A9 (may be given several times)
    #[arg(long, value_name = "INPUT=COLS")]
    pub(super) bind: Vec<Bind>,
    /// What an empty cell of a .csv, or a null of a .parquet, stands for [default: it is an error]
    #[arg(long, value_name = "VALUE")]
    pub(super) empty: Option<String>,
    /// Column of labels (0 or 1): prints logloss, AUC and more over all samples
    #[arg(long, value_name = "COLUMN")]
    pub(super) label: Option<String>,
    /// Column of groups, such as users: prints the AUC within groups too, weighted by their samples
    #[arg(long, value_name = "COLUMN", requires = "label")]
    pub(super) group: Option<String>,
    /// The output that is the score [default: the first]
    #[arg(long, value_name = "OUTPUT")]
    pub(super) score: Option<String>,
    /// Samples in a batch; only equal batches give equal bits
    #[arg(short, long, default_value_t = DEFAULT_BATCH, value_parser = positive)]
    pub(super) batch_size: usize,
    /// Batches whose ids are sent to the pservers while another batch is computed; 0 for none. Results are the same
    #[arg(long, default_value_t = DEFAULT_PREFETCH, value_name = "BATCHES")]
    pub(super) prefetch: usize,
    /// Threads for kernels; 0 is one per core [default: 0, in a launched job the cores shared out]
    #[arg(short, long)]
    pub(super) threads: Option<usize>,
    #[command(flatten)]
    pub(super) stores: StoreArgs,
    /// Serve on an address that is not loopback without a token or certificates
    #[arg(long)]
    pub(super) insecure: bool,
    /// Go on with the batches that an earlier job put aside beside its output (OUTPUT.parts)
    #[arg(long)]
    pub(super) resume: bool,
    /// Write the metrics as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) metrics_out: Option<PathBuf>,
}

pub(super) fn positive(text: &str) -> Result<usize, String> {
    text.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(|| format!("\"{text}\" is no number above 0"))
}

impl JobArgs {
    /// Whether this process may listen where strangers could connect: they are kept out, or welcome.
    pub(super) fn open(&self) -> bool {
        self.stores.token_file.is_some() || self.stores.tls.given() || self.insecure
    }

    /// Opens the samples for a model's inputs.
    pub(super) fn source(&self, inputs: &[InputSpec]) -> anyhow::Result<Box<dyn data::Source>> {
        if self.input.is_empty() {
            return Err(usage("--input is missing"));
        }
        let options =
            data::Options { binds: self.bind.clone(), empty: self.empty.clone(), format: self.format.clone(), slots: self.slots.clone() };
        Ok(data::open_all(&data::expand(&self.input)?, inputs, &options)?)
    }

    /// The folder of finished batches.
    pub(super) fn parts(&self) -> Option<PathBuf> {
        self.output.as_deref().map(parts_dir)
    }

    /// The flags again, for a worker or a pserver of this job: all but secrets, threads, `--insecure` and the folder of parts.
    pub(super) fn flags(&self, worker: bool) -> Vec<String> {
        let mut out = Vec::new();
        if self.stores.tcp_only {
            out.push("--tcp-only".into());
        }
        // In one word: a value may begin with a hyphen.
        let mut flag = |name: &str, value: String| out.push(format!("{name}={value}"));
        flag("--max-frame", self.stores.max_frame.to_string());
        if !worker {
            flag("--verify", self.stores.verify.clone());
            return out;
        }
        flag("--batch-size", self.batch_size.to_string());
        flag("--prefetch", self.prefetch.to_string());
        flag("--connect-timeout", self.stores.connect_timeout.to_string());
        flag("--rpc-timeout", self.stores.rpc_timeout.to_string());
        flag("--on-unavailable", self.stores.on_unavailable.clone());
        self.input.iter().for_each(|p| flag("--input", p.display().to_string()));
        for (name, path) in [("--output", &self.output), ("--metrics-out", &self.metrics_out)] {
            if let Some(p) = path {
                flag(name, p.display().to_string());
            }
        }
        let texts = [
            ("--empty", &self.empty),
            ("--format", &self.format),
            ("--group", &self.group),
            ("--label", &self.label),
            ("--on-absent", &self.stores.on_absent),
            ("--score", &self.score),
        ];
        for (name, text) in texts {
            if let Some(t) = text {
                flag(name, t.clone());
            }
        }
        if let Some(size) = self.stores.cache {
            flag("--cache", size.to_string());
        }
        self.keep.iter().for_each(|k| flag("--keep", k.clone()));
        self.slots.iter().for_each(|s| flag("--slots", s.clone()));
        self.bind.iter().for_each(|b| flag("--bind", b.to_string()));
        if self.resume {
            out.push("--resume".into());
        }
        out
    }

    /// What must be the same for finished batches to count.
    pub(super) fn identity(&self, plan: &str, fingerprint: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let mut files = Vec::new();
        for path in data::expand(&self.input)? {
            let about = std::fs::metadata(&path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
            let time = about.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
            files.push(format!("{} of {} bytes from {}.{:09}", path.display(), about.len(), time.as_secs(), time.subsec_nanos()));
        }
        let binds: Vec<String> = self.bind.iter().map(ToString::to_string).collect();
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let all = [
            ("batch", self.batch_size.to_string()),
            ("bind", binds.join(" ")),
            ("empty", text(&self.empty)),
            ("format", text(&self.format)),
            ("group", text(&self.group)),
            ("input", files.join(", ")),
            ("keep", self.keep.join(",")),
            ("label", text(&self.label)),
            ("model", fingerprint.to_owned()),
            ("on_absent", text(&self.stores.on_absent)),
            ("on_unavailable", self.stores.on_unavailable.clone()),
            ("plan", plan.to_owned()),
            ("score", text(&self.score)),
            ("slots", self.slots.join(",")),
        ];
        Ok(all.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    }
}

/// What a session wants as inputs, as data readers take it.
pub(super) fn input_specs(session: &Session) -> Vec<InputSpec> {
    session
        .inputs()
        .into_iter()
        .map(|(name, ty, optional)| {
            let kind = match ty {
                Some(Type::Sequence(_)) => ValueKind::Sequence,
                Some(Type::Optional(_)) => ValueKind::Optional,
                Some(Type::Map { .. }) => ValueKind::Map,
                _ => ValueKind::Tensor,
            };
            let dtype = ty.and_then(Type::dtype).unwrap_or(crate::tensor::DType::F32);
            let dims = ty.and_then(Type::shape).map(|s| s.iter().map(Dim::known).collect());
            InputSpec { kind, optional, ..InputSpec::tensor(name, dtype, dims) }
        })
        .collect()
}

/// The progress of one process: a bar on a terminal, lines that its launcher reads, a line now and then, or nothing.
pub(super) struct Meter {
    bar: ProgressBar,
    total: usize,
    every: Option<Duration>,
    last: std::cell::Cell<Option<Instant>>,
}

impl Meter {
    /// For one of `workers`; `launched` says that a launcher reads what is printed.
    pub(super) fn new(samples: &data::Samples, workers: usize, launched: bool) -> Self {
        let total = match samples {
            data::Samples::Count(n) => *n,
            data::Samples::Whole(_) => 1,
        };
        let terminal = std::io::stderr().is_terminal() && !launched;
        let style =
            ProgressStyle::with_template("{bar:40} {pos}/{len} samples  {per_sec}  {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = if terminal { ProgressBar::new(total.div_ceil(workers) as u64).with_style(style) } else { ProgressBar::hidden() };
        Self { bar, total, every: launched.then_some(Duration::from_millis(200)), last: std::cell::Cell::new(None) }
    }

    /// `done` samples are done here; with `all` there will be no more.
    pub(super) fn set(&self, done: usize, all: bool) {
        self.bar.set_position(done as u64);
        if let Some(every) = self.every
            && (all || self.last.get().is_none_or(|last| last.elapsed() >= every))
        {
            self.last.set(Some(Instant::now()));
            output::note(format_args!("{}{done} of {}", crate::job::launch::PROGRESS, self.total));
        }
    }

    pub(super) fn done(&self) {
        self.bar.finish_and_clear();
    }
}

/// The lines that a job ends with; writes the metrics where they are wanted. `cache` is that of this process.
pub(super) fn summarise(args: &JobArgs, s: &Summary, samples: &data::Samples, cache: Option<&Cached>) -> anyhow::Result<Vec<String>> {
    let seconds = s.elapsed.as_secs_f64();
    let rate = s.samples.saturating_sub(s.before) as f64 / seconds.max(1e-9);
    let metrics = s.metrics.as_ref();
    if let Some(path) = &args.metrics_out {
        write_json(path, s, (seconds, rate), cache)?;
    }
    let mut lines = vec![match samples {
        data::Samples::Whole(_) => format!("one run in {seconds:.3} s"),
        data::Samples::Count(_) if s.before > 0 => {
            format!("{} samples; worker 0 had {} of them from before and took {seconds:.3} s", s.samples, s.before)
        }
        data::Samples::Count(_) => format!("{} samples in {seconds:.3} s: {rate:.0} samples/s", s.samples),
    }];
    if let Some(r) = metrics {
        let all: Vec<String> = figures(r).into_iter().map(|(name, f)| format!("{name} {f}")).collect();
        let groups = r.groups.map(|(all, both)| format!(" over {both} of {all} groups; {} have one class only", all - both));
        lines.push(format!("{}{}", all.join("  "), groups.unwrap_or_default()));
    }
    if let Some(cache) = cache {
        let ids = s.filled.cache_hits + s.filled.cache_misses;
        let share = 100.0 * s.filled.cache_hits as f64 / ids.max(1) as f64;
        lines.push(format!("cache: {share:.1} % of {ids} ids, {} of {}", size::print(cache.bytes()), size::print(cache.capacity())));
    }
    if s.filled.absent > 0 {
        lines.push(format!("{} ids were absent from their table and got its row for absent ids", s.filled.absent));
    }
    if s.filled.unavailable > 0 {
        lines.push(format!("{} ids got default rows because a server was unavailable", s.filled.unavailable));
    }
    Ok(lines)
}

fn write_json(path: &Path, s: &Summary, (seconds, rate): (f64, f64), cache: Option<&Cached>) -> anyhow::Result<()> {
    let mut json = s.metrics.as_ref().map_or_else(|| serde_json::json!({}), metrics_json);
    json["samples"] = s.samples.into();
    json["absent_ids"] = s.filled.absent.into();
    json["unavailable_ids"] = s.filled.unavailable.into();
    if let Some(cache) = cache {
        let (hits, misses) = (s.filled.cache_hits, s.filled.cache_misses);
        json["cache"] = serde_json::json!({ "hits": hits, "misses": misses, "bytes": cache.bytes(), "capacity": cache.capacity() });
    }
    json["seconds"] = seconds.into();
    json["samples_per_second"] = rate.into();
    let text = serde_json::to_string_pretty(&json)?;
    data::write_file(path, |f| {
        use std::io::Write;
        writeln!(f, "{text}").map_err(data::DataError::io(path))
    })?;
    Ok(())
}

/// Prints lines to stdout.
pub(super) fn print(lines: &[String]) -> anyhow::Result<()> {
    Ok(lines.iter().try_for_each(output::line)?)
}

fn figures(r: &Report) -> Vec<(&'static str, &Figure)> {
    let mut all = vec![
        ("logloss", &r.logloss),
        ("auc", &r.auc),
        ("accuracy", &r.accuracy),
        ("rmse", &r.rmse),
        ("mae", &r.mae),
        ("calibration", &r.calibration),
    ];
    all.extend(r.grouped_auc.as_ref().map(|g| ("grouped_auc", g)));
    all
}

fn metrics_json(r: &Report) -> serde_json::Value {
    let mut json = serde_json::json!({ "count": r.count });
    for (name, f) in figures(r) {
        json[name] = f.value().map_or_else(|| serde_json::json!({ "undefined": f.to_string() }), Into::into);
    }
    if let Some((all, both)) = r.groups {
        json["groups"] = serde_json::json!({ "all": all, "both_classes": both, "one_class": all - both });
    }
    json
}
