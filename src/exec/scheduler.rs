//! Runs a plan. Pure steps run one after another on the session's thread pool; a host step is started when its inputs
//! exist and awaited by its first reader. This is the one bridge between the pool and the asynchronous runtime.

use super::ExecError;
use super::control;
use super::host::Host;
use super::plan::{Action, Body, Plan, Source, Step};
use super::profile::Profile;
use super::trace::{Event, Row, Trace, describe};
use crate::ops::{Args, OpError, Outputs, threads};
use crate::tensor::Value;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// Iterations of all loops of one run.
const MAX_ITERATIONS: u64 = 1 << 26;

/// What a host step will give, and when it was there.
pub(super) type Pending = Receiver<(Result<Vec<Value>, String>, Instant)>;

/// What the steps of one run share.
pub(super) struct Run<'a> {
    pub(super) host: &'a Host,
    pub(super) pool: &'a rayon::ThreadPool,
    pub(super) profile: Option<&'a Profile>,
    pub(super) iterations: AtomicU64,
    /// Whether all steps run on the thread that called.
    pub(super) alone: bool,
    /// Whether steps are taken to be long before they are seen.
    pub(super) long: bool,
    /// Where events go, and the number of the run.
    pub(super) trace: Option<(&'a Trace, u64)>,
}

impl Run<'_> {
    /// Counts an iteration of some loop.
    pub(super) fn tick(&self) -> Result<(), String> {
        if self.iterations.fetch_add(1, Ordering::Relaxed) >= MAX_ITERATIONS {
            return Err(format!("its loops ran more than {MAX_ITERATIONS} iterations"));
        }
        Ok(())
    }

    /// Runs a kernel on the pool. A plan that never waits is on it already; what is short stays where it is.
    fn kernel(&self, plan: &Plan, step: &Step, f: impl FnOnce() -> Result<Outputs, OpError> + Send) -> Result<Outputs, String> {
        let done = if !plan.waits || self.alone {
            f()
        } else if self.long || step.long.load(Ordering::Relaxed) {
            self.pool.install(f)
        } else {
            let (done, long) = threads::alone(f);
            if long {
                step.long.store(true, Ordering::Relaxed);
            }
            done
        };
        done.map_err(|e| e.to_string())
    }

    /// Notes what a step did from `start` on, if that is wanted.
    fn note(&self, step: &Step, row: Row, (start, end): (Instant, Instant), inputs: Vec<String>, made: &[Value]) {
        if let Some((trace, batch)) = self.trace {
            let (name, op, outputs) = (step.label.clone(), step.op.to_string(), describe(made.iter().map(Some)));
            trace.add(Event { row, name, op, batch, start, end, inputs, outputs });
        }
    }
}

/// A host step under way: its step, what it will give, when it was started and with what.
struct Waited {
    step: usize,
    pending: Pending,
    start: Instant,
    inputs: Vec<String>,
}

impl Waited {
    /// Waits for it.
    fn end(self, plan: &Plan, r: &Run) -> Result<Vec<Value>, ExecError> {
        let (step, asked) = (&plan.steps[self.step], Instant::now());
        let (done, end) = self.pending.recv().unwrap_or_else(|_| (Err("it was given up".into()), asked));
        let values = done.map_err(|e| at(step, e))?;
        r.note(step, Row::Host(step.label.clone()), (self.start, end), self.inputs, &values);
        r.note(step, Row::Waits, (asked, Instant::now()), Vec::new(), &[]);
        Ok(values)
    }
}

struct Env<'p> {
    plan: &'p Plan,
    slots: Vec<Option<Value>>,
    /// Host steps under way, and the slots that wait for one.
    pending: Vec<Waited>,
    waiting: Vec<Option<usize>>,
}

fn at(step: &Step, detail: impl ToString) -> ExecError {
    ExecError::Node { node: step.label.clone(), op: step.op.to_string(), detail: detail.to_string() }
}

impl Env<'_> {
    fn get(&self, source: Source) -> Option<Value> {
        match source {
            Source::Const(c) => Some(self.plan.constants[c].clone()),
            Source::Slot(s) => self.slots[s].clone(),
        }
    }

    /// Waits for the host step that makes a slot, if it is still under way.
    fn settle(&mut self, source: Source, r: &Run) -> Result<(), ExecError> {
        let Source::Slot(slot) = source else { return Ok(()) };
        let Some(step) = self.waiting.get(slot).copied().flatten() else { return Ok(()) };
        let Some(at_pending) = self.pending.iter().position(|p| p.step == step) else { return Ok(()) };
        let values = self.pending.swap_remove(at_pending).end(self.plan, r)?;
        self.store(step, values)
    }

    fn store(&mut self, step: usize, values: impl IntoIterator<Item = Value>) -> Result<(), ExecError> {
        let step = &self.plan.steps[step];
        let mut values = values.into_iter();
        for slot in &step.outputs {
            match (slot, values.next()) {
                (Some(s), Some(v)) => {
                    self.slots[*s] = Some(v);
                    self.waiting[*s] = None;
                }
                (Some(_), None) => return Err(at(step, "it made fewer outputs than the node has")),
                (None, _) => {}
            }
        }
        Ok(())
    }

    fn inputs(&mut self, index: usize) -> impl Iterator<Item = Option<Value>> {
        let plan = self.plan;
        let step = &plan.steps[index];
        step.inputs.iter().zip(&step.last).map(|(source, last)| match source {
            None => None,
            Some(Source::Slot(s)) if *last => self.slots[*s].take(),
            Some(source) => self.get(*source),
        })
    }
}

/// Runs `plan` on its inputs, then its captures.
pub(super) fn run(plan: &Plan, inputs: Vec<Option<Value>>, r: &Run) -> Result<Vec<Value>, ExecError> {
    let mut env = Env { plan, slots: vec![None; plan.slots], pending: Vec::new(), waiting: vec![None; plan.slots] };
    for (slot, value) in plan.inputs.iter().zip(inputs) {
        env.slots[*slot] = value;
    }
    for (index, step) in plan.steps.iter().enumerate() {
        if !env.pending.is_empty() {
            for source in step.inputs.iter().flatten().copied().chain(captures(step)) {
                env.settle(source, r)?;
            }
        }
        let tracing = r.trace.is_some();
        let start = (tracing || r.profile.is_some()).then(Instant::now);
        match &step.action {
            Action::Host(host) => {
                let inputs: Vec<Option<Value>> = env.inputs(index).collect();
                let given = if tracing { describe(inputs.iter().map(Option::as_ref)) } else { Vec::new() };
                let start = Instant::now();
                let pending = r.host.start(host, inputs).map_err(|e| at(step, e))?;
                step.outputs.iter().flatten().for_each(|&s| env.waiting[s] = Some(index));
                env.pending.push(Waited { step: index, pending, start, inputs: given });
            }
            Action::Kernel(kernel) => {
                let args = Args::new(env.inputs(index));
                let given = if tracing { describe((0..args.len()).map(|i| args.value(i))) } else { Vec::new() };
                let outputs = call(|| r.kernel(plan, step, || kernel(args))).map_err(|e| at(step, e))?;
                if let Some(start) = start.filter(|_| tracing) {
                    r.note(step, Row::Steps, (start, Instant::now()), given, &outputs);
                }
                env.store(index, outputs)?;
            }
            action => {
                let values: Vec<Option<Value>> = env.inputs(index).collect();
                let given = if tracing { describe(values.iter().map(Option::as_ref)) } else { Vec::new() };
                let outputs = control_step(action, step, values, &env, r)?;
                if let Some(start) = start.filter(|_| tracing) {
                    r.note(step, Row::Steps, (start, Instant::now()), given, &outputs);
                }
                env.store(index, outputs)?;
            }
        }
        if let (Some(profile), Some(start)) = (r.profile, start) {
            profile.add(&step.op.name, start.elapsed());
        }
        for &slot in &step.free {
            if env.waiting[slot].is_none() {
                env.slots[slot] = None;
            }
        }
    }
    for source in &plan.outputs {
        env.settle(*source, r)?;
    }
    // Steps whose values nobody read have still to be seen to the end.
    while let Some(waited) = env.pending.pop() {
        waited.end(plan, r)?;
    }
    let outputs = plan.outputs.iter().zip(&plan.output_names);
    outputs.map(|(&s, name)| env.get(s).ok_or_else(|| ExecError::Model(format!("output \"{name}\" was not made")))).collect()
}

/// Runs `f`, turning a panic into an error.
fn call(f: impl FnOnce() -> Result<Outputs, String>) -> Result<Outputs, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("internal error: {}", text.unwrap_or("a panic without a message")))
    })
}

fn captures(step: &Step) -> impl Iterator<Item = Source> {
    let list: &[&Body] = match &step.action {
        Action::If { then_branch, else_branch } => &[then_branch, else_branch],
        Action::Loop(b) | Action::SequenceMap(b) | Action::Scan { body: b, .. } => &[b],
        _ => &[],
    };
    list.iter().flat_map(|b| b.captures.iter().copied()).collect::<Vec<_>>().into_iter()
}

fn control_step(action: &Action, step: &Step, values: Vec<Option<Value>>, env: &Env, r: &Run) -> Result<Vec<Value>, ExecError> {
    let captured = |body: &Body| body.captures.iter().map(|&s| env.get(s)).collect::<Vec<_>>();
    let fail = |e: String| at(step, e);
    match action {
        Action::Call(plan) => {
            let mut inputs = values;
            inputs.resize(plan.inputs.len(), None);
            run(plan, inputs, r)
        }
        Action::If { then_branch, else_branch } => {
            let branch = if control::condition(&values, 0).map_err(fail)?.unwrap_or(false) { then_branch } else { else_branch };
            run(&branch.plan, captured(branch), r)
        }
        Action::Loop(body) => control::run_loop(body, &step_error(step), values, captured(body), r),
        Action::Scan { body, attrs } => control::run_scan(body, attrs, &step_error(step), values, captured(body), r),
        Action::SequenceMap(body) => control::run_sequence_map(body, &step_error(step), values, captured(body), r),
        Action::Kernel(_) | Action::Host(_) => Err(fail("not a control step".into())),
    }
}

fn step_error(step: &Step) -> impl Fn(String) -> ExecError + '_ {
    move |e| at(step, e)
}
