//! A compiled model that runs on any number of inputs, from any thread.

use super::ExecError;
use super::compile::Compiler;
use super::host::Host;
use super::plan::{Action, Body, Plan};
use super::profile::Profile;
use super::scheduler::{Env, Run};
use super::trace::{Trace, describe};
use crate::comm::Comm;
use crate::ir::{Model, Type};
use crate::ops::threads;
use crate::store::{Store, Tally};
use crate::tensor::{Frequented, Recycling, Tensor, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

/// Bytes of stack of a pool thread: bodies may be nested.
const STACK: usize = 16 << 20;

/// Elements of inputs from which on a run is taken to be long before it is seen.
const LONG: usize = 1 << 16;

/// What a session runs with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Threads of the pool; 0 for one per core. The number never changes a result.
    pub threads: usize,
    /// The store that remote lookups ask.
    pub store: Option<Arc<dyn Store>>,
    /// The group in which collectives run; without one there is one rank.
    pub comm: Option<Arc<dyn Comm>>,
    /// The runtime that waits for them.
    pub runtime: Option<tokio::runtime::Handle>,
    /// Whether to collect time per op.
    pub profile: bool,
    /// Where each step's time goes, one by one.
    pub trace: Option<Arc<Trace>>,
    /// Whether each node is a step of its own, which takes longer and gives the same bits.
    pub unfused: bool,
}

/// A compiled model.
pub struct Session {
    plan: Plan,
    host: Host,
    pool: rayon::ThreadPool,
    profile: Option<Profile>,
    trace: Option<Arc<Trace>>,
    /// Whether no step has a plan of its own, which wants the stack of a pool's thread.
    flat: bool,
    /// Elements of all inputs from which on a run has loops for more than one thread, as far as is known.
    long: AtomicUsize,
    /// Tables that are constants of the plan.
    tables: Frequented,
    /// A run uses the memory of the one before.
    _recycling: Recycling,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("steps", &self.plan.steps.len()).finish_non_exhaustive()
    }
}

impl Session {
    /// Compiles a model: attributes are read, kernels built, constants prepared.
    ///
    /// # Errors
    /// An op that this build cannot run or that is wrong, named with its node; a remote table that the store does not
    /// serve as the model has it.
    pub fn new(model: &Model, options: Options) -> Result<Self, ExecError> {
        let plan = Compiler::new(model, options.unfused).main()?;
        let host = Host::new(options.store, options.comm, options.runtime);
        check_tables(&plan, &host)?;
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(options.threads).stack_size(STACK).thread_name(|i| format!("worker-{i}")).build();
        let pool = pool.map_err(|e| ExecError::Model(format!("no threads: {e}")))?;
        let flat = plan.is_flat();
        Ok(Self {
            flat,
            tables: Frequented::new(plan.table_bytes()),
            plan,
            host,
            pool,
            profile: options.profile.then(Profile::default),
            trace: options.trace,
            long: AtomicUsize::new(LONG),
            _recycling: Recycling::new(),
        })
    }

    /// Moves tables that are constants of the model into large pages, where the system gives them. A session that is used long does so
    /// by itself; who knows that it will be spares the first runs the work beside them.
    pub fn settle(&self) {
        self.tables.settle();
    }

    /// Names and stated types of the inputs, in order; those with a default are marked.
    pub fn inputs(&self) -> Vec<(&str, Option<&Type>, bool)> {
        let p = &self.plan;
        p.input_names.iter().zip(&p.input_types).zip(&p.defaults).map(|((n, t), d)| (n.as_str(), t.as_ref(), d.is_some())).collect()
    }

    /// Names of the outputs, in order.
    pub fn output_names(&self) -> &[String] {
        &self.plan.output_names
    }

    /// Time per op, if it was asked for.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// Runs the model on inputs given by name, in any order.
    ///
    /// # Errors
    /// A missing or unknown input, one of another type than the model states, and whatever a node says.
    pub fn run(&self, inputs: Vec<(String, Value)>) -> Result<Vec<(String, Value)>, ExecError> {
        self.start(inputs)?.finish()
    }

    /// Begins a run: sends the ids of the lookups that wait for no other, and comes back before they are answered.
    ///
    /// # Errors
    /// As [`Session::run`], of what is done so far.
    pub fn begin(&self, inputs: Vec<(String, Value)>) -> Result<Begun<'_>, ExecError> {
        let mut begun = self.start(inputs)?;
        begun.on_its_threads(|env, run| env.advance(self.plan.ahead, run))?;
        Ok(begun)
    }

    /// A run before its first step.
    fn start(&self, inputs: Vec<(String, Value)>) -> Result<Begun<'_>, ExecError> {
        let values = self.values(inputs)?;
        let elements = values.iter().flatten().filter_map(|v| v.as_tensor().map(Tensor::len)).sum();
        let given = self.trace.as_ref().map(|_| describe(values.iter().map(Option::as_ref))).unwrap_or_default();
        let alone = self.flat && (self.pool.current_num_threads() == 1 || elements < self.long.load(Relaxed));
        let run = Run {
            host: &self.host,
            pool: &self.pool,
            profile: self.profile.as_ref(),
            iterations: AtomicU64::new(0),
            alone,
            long: elements >= LONG,
            trace: self.trace.as_deref().map(|t| (t, t.batch())),
            tally: Arc::default(),
            tables: &self.tables,
        };
        Ok(Begun { session: self, env: Env::new(&self.plan, values), run, elements, start: Instant::now(), given })
    }

    /// The inputs in the plan's order, checked.
    fn values(&self, inputs: Vec<(String, Value)>) -> Result<Vec<Option<Value>>, ExecError> {
        let plan = &self.plan;
        let mut values: Vec<Option<Value>> = vec![None; plan.inputs.len()];
        for (name, value) in inputs {
            let Some(i) = plan.input_names.iter().position(|n| *n == name) else {
                let detail = format!("the model has no such input; it has \"{}\"", plan.input_names.join("\", \""));
                return Err(ExecError::Input { name, detail });
            };
            if let Some(ty) = &plan.input_types[i]
                && !ty.admits(&value)
            {
                let detail = format!("expected {ty}, found {}", value.describe());
                return Err(ExecError::Input { name, detail });
            }
            values[i] = Some(match value {
                Value::Tensor(t) => Value::Tensor(t.aligned()),
                other => other,
            });
        }
        for (i, value) in values.iter_mut().enumerate().filter(|(_, v)| v.is_none()) {
            *value = plan.defaults[i].clone();
            if value.is_none() {
                let detail = match &plan.input_types[i] {
                    Some(t) => format!("it is missing, expected {t}"),
                    None => "it is missing".into(),
                };
                return Err(ExecError::Input { name: plan.input_names[i].clone(), detail });
            }
        }
        Ok(values)
    }
}

/// A run whose first lookups are under way.
pub struct Begun<'s> {
    session: &'s Session,
    env: Env<'s>,
    run: Run<'s>,
    /// Of all inputs.
    elements: usize,
    start: Instant,
    /// The inputs, described for a trace.
    given: Vec<String>,
}

impl<'s> Begun<'s> {
    /// Runs the rest.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn finish(mut self) -> Result<Vec<(String, Value)>, ExecError> {
        let plan = &self.session.plan;
        let results = self.on_its_threads(|env, run| env.finish(run))?;
        if let Some((trace, batch)) = self.run.trace {
            trace.batch_done(batch, self.start, self.given, &results);
        }
        Ok(plan.output_names.iter().cloned().zip(results).collect())
    }

    /// What becomes of the ids that this run looks up.
    pub fn tally(&self) -> Arc<Tally> {
        self.run.tally.clone()
    }

    /// Runs steps; where all are to stay on this thread, sees whether they had loops for more.
    fn on_its_threads<T>(&mut self, steps: impl FnOnce(&mut Env<'s>, &Run<'s>) -> T) -> T {
        let (env, run) = (&mut self.env, &self.run);
        if !run.alone {
            return steps(env, run);
        }
        let (results, long) = threads::alone(|| steps(env, run));
        if long && self.session.pool.current_num_threads() > 1 {
            self.session.long.fetch_min(self.elements, Relaxed);
        }
        results
    }
}

fn check_tables(plan: &Plan, host: &Host) -> Result<(), ExecError> {
    for step in &plan.steps {
        let bodies: &[&Body] = match &step.action {
            Action::Host(h) => {
                host.check(h).map_err(|detail| ExecError::Node { node: step.label.clone(), op: step.op.to_string(), detail })?;
                &[]
            }
            Action::Call(plan) => {
                check_tables(plan, host)?;
                &[]
            }
            Action::If { then_branch, else_branch } => &[then_branch, else_branch],
            Action::Loop(b) | Action::SequenceMap(b) | Action::Scan { body: b, .. } => &[b],
            Action::Kernel(_) => &[],
        };
        bodies.iter().try_for_each(|b| check_tables(&b.plan, host))?;
    }
    Ok(())
}
