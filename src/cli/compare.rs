//! `graphtool compare`

use super::run::input_specs;
use super::{exit_with, output};
use crate::data::{self, Bind, Samples};
use crate::exec::{Options, Session};
use crate::job::DEFAULT_BATCH;
use crate::tensor::{DType, Tensor, Value, cast};
use crate::{deploy, formats, store};
use std::path::{Path, PathBuf};

/// Run two models (or deployment directories) on the same samples and print the largest difference of each output
///
/// Ends with exit code 1 where a difference is past the tolerance.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The one
    a: PathBuf,
    /// The other
    b: PathBuf,
    /// Samples, as for `run`
    #[arg(short, long)]
    input: PathBuf,
    /// Which columns make up an input, as for `run`
    #[arg(long, value_name = "INPUT=COLS")]
    bind: Vec<Bind>,
    /// Allowed difference, relative to the second's value
    #[arg(long, default_value_t = 1e-3)]
    rtol: f64,
    /// Allowed difference besides
    #[arg(long, default_value_t = 1e-5)]
    atol: f64,
    /// Samples in a batch
    #[arg(short, long, default_value_t = DEFAULT_BATCH)]
    batch_size: usize,
}

fn session(path: &Path) -> anyhow::Result<Session> {
    if deploy::is_deployment(path) {
        let (_, model) = deploy::open(path)?;
        return Ok(Session::new(&model, Options { store: Some(store::open_local(path)?), ..Options::default() })?);
    }
    Ok(Session::new(&formats::load(path)?, Options::default())?)
}

/// The largest difference of an output so far.
#[derive(Default)]
struct Difference {
    largest: f64,
    beyond: usize,
    elements: usize,
    fault: Option<String>,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let (a, b) = (session(&args.a)?, session(&args.b)?);
    let source = data::open(&args.input, &input_specs(&a), &data::Options { binds: args.bind.clone(), ..Default::default() })?;
    let n = match source.samples() {
        Samples::Count(n) => *n,
        Samples::Whole(_) => 1,
    };
    let step = if matches!(source.samples(), Samples::Whole(_)) { 1 } else { args.batch_size.max(1) };
    let mut names: Vec<String> = Vec::new();
    let mut found: Vec<Difference> = Vec::new();
    for start in (0..n.max(1)).step_by(step) {
        let inputs = source.read(start..(start + step).min(n))?;
        let (x, y) = (a.run(inputs.clone())?, b.run(inputs)?);
        if names.is_empty() {
            names = x.iter().map(|(n, _)| n.clone()).collect();
            found = names.iter().map(|_| Difference::default()).collect();
        }
        for (i, (name, v)) in x.iter().enumerate() {
            match y.iter().find(|(n, _)| n == name) {
                Some((_, w)) => found[i].add(v, w, args.rtol, args.atol),
                None => found[i].fault = Some("the second model does not give it".into()),
            }
        }
    }
    let mut rows = Vec::new();
    let mut bad = 0;
    for (name, d) in names.iter().zip(&found) {
        bad += usize::from(d.beyond > 0 || d.fault.is_some());
        let what = d
            .fault
            .clone()
            .unwrap_or_else(|| if d.beyond > 0 { format!("{} past the tolerance", d.beyond) } else { "equal enough".into() });
        rows.push(vec![name.clone(), d.elements.to_string(), format!("{:e}", d.largest), what]);
    }
    output::table(&["output", "elements", "largest difference", ""], &[1, 2], &rows)?;
    if bad > 0 { Err(exit_with(1, format!("{bad} of {} outputs differ", names.len()))) } else { Ok(()) }
}

impl Difference {
    fn add(&mut self, a: &Value, b: &Value, rtol: f64, atol: f64) {
        let (Some(x), Some(y)) = (a.as_tensor(), b.as_tensor()) else {
            if a != b {
                self.fault = Some(format!("{} and {}", a.describe(), b.describe()));
            }
            return;
        };
        if x.dtype() != y.dtype() || x.shape() != y.shape() {
            self.fault = Some(format!("{} and {}", a.describe(), b.describe()));
            return;
        }
        self.elements += x.len();
        let wide = |t: &Tensor| cast(t, DType::F64).and_then(Tensor::into_vec::<f64>);
        match (wide(x), wide(y)) {
            (Ok(x), Ok(y)) => {
                for (p, q) in x.iter().zip(&y) {
                    let difference = if p == q || (p.is_nan() && q.is_nan()) { 0.0 } else { (p - q).abs() };
                    self.largest = self.largest.max(if difference.is_nan() { f64::INFINITY } else { difference });
                    let within = difference <= atol + rtol * q.abs();
                    self.beyond += usize::from(!within);
                }
            }
            _ if x == y => {}
            _ => self.fault = Some("the elements differ".into()),
        }
    }
}
