//! Runs a plan. Pure steps run one after another on the session's thread pool; a host step is started when its inputs
//! exist and awaited by its first reader. This is the one bridge between the pool and the asynchronous runtime. A run can be
//! left after the lookups that it begins with, for another to go on while they are answered.

use super::ExecError;
use super::control;
use super::host::{Host, HostError};
use super::plan::{Action, Body, Plan, Source, Step};
use super::profile::Profile;
use super::trace::{Event, Row, Trace, describe};
use crate::ops::{Args, Outputs, threads};
use crate::store::Tally;
use crate::tensor::{Frequented, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// Iterations of all loops of one run.
const MAX_ITERATIONS: u64 = 1 << 26;

/// What a host step will give, and when it was there.
pub(super) type Pending = Receiver<(Result<Vec<Value>, HostError>, Instant)>;

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
    /// What became of the ids that it looks up.
    pub(super) tally: Arc<Tally>,
    /// The tables of the plan.
    pub(super) tables: &'a Frequented,
}

impl Run<'_> {
    /// Counts an iteration of some loop.
    pub(super) fn tick(&self) -> Result<(), String> {
        if self.iterations.fetch_add(1, Ordering::Relaxed) >= MAX_ITERATIONS {
            return Err(format!("its loops ran more than {MAX_ITERATIONS} iterations"));
        }
        Ok(())
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
        let values = done.map_err(|e| match e {
            HostError::Step(detail) => at(step, detail),
            HostError::Rows { detail, later } => ExecError::Rows { node: step.label.clone(), op: step.op.to_string(), detail, later },
        })?;
        r.note(step, Row::Host(step.label.clone()), (self.start, end), self.inputs, &values);
        r.note(step, Row::Waits, (asked, Instant::now()), Vec::new(), &[]);
        Ok(values)
    }
}

/// A run of a plan, somewhere between its steps.
pub(super) struct Env<'p> {
    plan: &'p Plan,
    slots: Vec<Option<Value>>,
    /// The step that comes next.
    next: usize,
    /// Host steps under way, and the slots that wait for one.
    pending: Vec<Waited>,
    waiting: Vec<Option<usize>>,
}

fn at(step: &Step, detail: impl ToString) -> ExecError {
    ExecError::Node { node: step.label.clone(), op: step.op.to_string(), detail: detail.to_string() }
}

impl<'p> Env<'p> {
    /// A run on the plan's inputs, then its captures.
    pub(super) fn new(plan: &'p Plan, inputs: Vec<Option<Value>>) -> Self {
        let mut env = Self { plan, slots: vec![None; plan.slots], next: 0, pending: Vec::new(), waiting: vec![None; plan.slots] };
        for (slot, value) in plan.inputs.iter().zip(inputs) {
            env.slots[*slot] = value;
        }
        env
    }

    fn get(&self, source: Source) -> Option<Value> {
        match source {
            Source::Const(c) => Some(self.plan.constants[c].clone()),
            Source::Slot(s) => self.slots[s].clone(),
        }
    }

    /// The host step that a source waits for.
    fn awaited(&self, source: Source) -> Option<usize> {
        match source {
            Source::Const(_) => None,
            Source::Slot(slot) => self.waiting.get(slot).copied().flatten(),
        }
    }

    /// Waits for the host step that makes a slot, if it is still under way.
    fn settle(&mut self, source: Source, r: &Run) -> Result<(), ExecError> {
        let Some(step) = self.awaited(source) else { return Ok(()) };
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

    /// The end of the steps before `end` that come next and do not wait.
    fn stretch(&self, end: usize) -> usize {
        let waits = |step: &Step| step.action.waits() || !self.pending.is_empty() && step.sources().any(|s| self.awaited(s).is_some());
        self.plan.steps[self.next..end].iter().position(waits).map_or(end, |n| self.next + n)
    }

    /// Runs the steps before `end`: those that do not wait on the pool, one after another without a hop, the others here. A
    /// short run has them all here.
    pub(super) fn advance(&mut self, end: usize, r: &Run) -> Result<(), ExecError> {
        while self.next < end {
            let pure = if r.alone { self.next } else { self.stretch(end) };
            if pure > self.next {
                self.pure(pure, r)?;
                continue;
            }
            let step = &self.plan.steps[self.next];
            if !self.pending.is_empty() {
                step.sources().try_for_each(|source| self.settle(source, r))?;
            }
            if r.alone || step.action.waits() {
                self.step(r)?;
            }
        }
        Ok(())
    }

    /// Runs the steps before `end`, of which none waits: here as long as they are short, else on the pool.
    fn pure(&mut self, end: usize, r: &Run) -> Result<(), ExecError> {
        let plan = self.plan;
        let short = |step: &Step| matches!(step.action, Action::Kernel(_)) && !step.long.load(Ordering::Relaxed);
        if plan.waits && !r.long && plan.steps[self.next..end].iter().all(short) {
            while self.next < end {
                let step = &plan.steps[self.next];
                let (done, long) = threads::alone(|| self.step(r));
                step.long.fetch_or(long, Ordering::Relaxed);
                done?;
            }
            return Ok(());
        }
        let all = || (self.next..end).try_for_each(|_| self.step(r));
        if plan.waits || rayon::current_thread_index().is_some() { r.pool.install(all) } else { threads::awake(r.pool, all) }
    }

    /// Runs the next step, whose operands are there.
    fn step(&mut self, r: &Run) -> Result<(), ExecError> {
        let (index, plan) = (self.next, self.plan);
        let step = &plan.steps[index];
        let tracing = r.trace.is_some();
        let start = (tracing || r.profile.is_some()).then(Instant::now);
        match &step.action {
            Action::Host(host) => {
                let inputs: Vec<Option<Value>> = self.inputs(index).collect();
                let given = if tracing { describe(inputs.iter().map(Option::as_ref)) } else { Vec::new() };
                let start = Instant::now();
                let pending = r.host.start(host, inputs, &r.tally).map_err(|e| at(step, e))?;
                step.outputs.iter().flatten().for_each(|&s| self.waiting[s] = Some(index));
                self.pending.push(Waited { step: index, pending, start, inputs: given });
            }
            Action::Kernel(kernel) => {
                let args = Args::new(self.inputs(index));
                let given = if tracing { describe((0..args.len()).map(|i| args.value(i))) } else { Vec::new() };
                let outputs = call(|| kernel(args).map_err(|e| e.to_string())).map_err(|e| at(step, e))?;
                if let Some(start) = start.filter(|_| tracing) {
                    r.note(step, Row::Steps, (start, Instant::now()), given, &outputs);
                }
                if step.looks_up {
                    r.tables.read(outputs.iter().filter_map(|v| v.as_tensor()?.bytes()).map(<[u8]>::len).sum());
                }
                self.store(index, outputs)?;
            }
            action => {
                let values: Vec<Option<Value>> = self.inputs(index).collect();
                let given = if tracing { describe(values.iter().map(Option::as_ref)) } else { Vec::new() };
                let outputs = control_step(action, step, values, self, r)?;
                if let Some(start) = start.filter(|_| tracing) {
                    r.note(step, Row::Steps, (start, Instant::now()), given, &outputs);
                }
                self.store(index, outputs)?;
            }
        }
        if let (Some(profile), Some(start)) = (r.profile, start) {
            profile.add(&step.op.name, start.elapsed());
        }
        for &slot in &step.free {
            if self.waiting[slot].is_none() {
                self.slots[slot] = None;
            }
        }
        self.next += 1;
        Ok(())
    }

    /// Runs the steps that are left and gives the outputs.
    pub(super) fn finish(&mut self, r: &Run) -> Result<Vec<Value>, ExecError> {
        self.advance(self.plan.steps.len(), r)?;
        for source in &self.plan.outputs {
            self.settle(*source, r)?;
        }
        // Steps whose values nobody read have still to be seen to the end.
        while let Some(waited) = self.pending.pop() {
            waited.end(self.plan, r)?;
        }
        let outputs = self.plan.outputs.iter().zip(&self.plan.output_names);
        outputs.map(|(&s, name)| self.get(s).ok_or_else(|| ExecError::Model(format!("output \"{name}\" was not made")))).collect()
    }
}

/// Runs `plan` on its inputs, then its captures.
pub(super) fn run(plan: &Plan, inputs: Vec<Option<Value>>, r: &Run) -> Result<Vec<Value>, ExecError> {
    Env::new(plan, inputs).finish(r)
}

/// Runs `f`, turning a panic into an error.
fn call(f: impl FnOnce() -> Result<Outputs, String>) -> Result<Outputs, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("internal error: {}", text.unwrap_or("a panic without a message")))
    })
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
