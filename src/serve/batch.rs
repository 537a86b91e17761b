//! Requests in a queue, and the threads that compute them: several in one run where the first axis counts samples. Whoever waits
//! while runs are under way forms the next one.
//!
//! A run of several that fails is done again for each apart, so that what is wrong with one is its own error. The first runs of
//! several are compared with the runs of each, and a model whose samples are not independent has them apart from then on.

use super::counts::Counts;
use super::protocol::Refusal;
use super::stack::{Named, alike, join, near, part, samples};
use crate::exec::{ExecError, Session};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Runs of several that are compared with runs of each.
const TRIALS: usize = 8;

/// Stack of a thread that computes: bodies may be nested.
const STACK: usize = 64 << 20;

/// How requests are put together.
#[derive(Debug, Clone, Copy)]
pub struct BatchOptions {
    /// The most samples of a run of several requests; 1 for none of them.
    pub samples: usize,
    /// How long a request may wait for others although nothing else is computed.
    pub delay: Duration,
    /// The most requests that wait.
    pub queue: usize,
    /// Runs at once.
    pub runs: usize,
}

/// A request that waits.
struct Ask {
    inputs: Named,
    /// Its samples, where it may be computed with others.
    samples: Option<usize>,
    reply: oneshot::Sender<Result<Named, Refusal>>,
    since: Instant,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Ask>,
    closed: bool,
}

/// The queue before a session.
pub struct Batcher {
    session: Session,
    options: BatchOptions,
    /// Whether several requests may be one run, as far as is known.
    batched: AtomicBool,
    trials: AtomicUsize,
    counts: Arc<Counts>,
    state: Mutex<State>,
    changed: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Batcher {
    /// A queue whose threads compute until it is closed.
    ///
    /// # Errors
    /// Those of the system.
    pub fn start(session: Session, batched: bool, options: BatchOptions, counts: Arc<Counts>) -> std::io::Result<Arc<Self>> {
        let batcher = Arc::new(Self {
            session,
            options,
            batched: AtomicBool::new(batched && options.samples > 1),
            trials: AtomicUsize::new(TRIALS),
            counts,
            state: Mutex::default(),
            changed: Condvar::new(),
            threads: Mutex::default(),
        });
        for i in 0..options.runs.max(1) {
            let own = batcher.clone();
            let thread = std::thread::Builder::new().name(format!("run-{i}")).stack_size(STACK);
            let thread = thread.spawn(move || {
                while let Some(asks) = own.take() {
                    // A fault of ours is the end of these requests alone; kernels are caught before.
                    let compute = std::panic::AssertUnwindSafe(|| own.compute(asks));
                    if std::panic::catch_unwind(compute).is_err() {
                        tracing::error!("internal error: a run ended in a panic");
                    }
                }
            })?;
            batcher.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(batcher)
    }

    /// The most samples of a run of several requests, if there are such runs.
    pub fn batch(&self) -> Option<usize> {
        self.batched.load(Relaxed).then_some(self.options.samples)
    }

    /// Requests that wait.
    pub fn queue(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Takes no more requests, and waits for those that are there.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        threads.into_iter().for_each(|t| drop(t.join()));
    }

    /// Computes the outputs of these inputs. Whoever no longer waits for them is not computed.
    ///
    /// # Errors
    /// What the model says; a queue that is full or closed.
    pub async fn run(&self, inputs: Named) -> Result<Named, Refusal> {
        let samples = self.batched.load(Relaxed).then(|| samples(&inputs)).flatten().filter(|n| *n > 0);
        let (reply, answer) = oneshot::channel();
        let ask = Ask { inputs, samples, reply, since: Instant::now() };
        {
            let mut state = self.lock();
            if state.closed {
                return Err(Refusal::Busy("the server is ending".into()));
            }
            if state.waiting.len() >= self.options.queue {
                state.waiting.retain(|a| !a.reply.is_closed());
            }
            if state.waiting.len() >= self.options.queue {
                return Err(Refusal::Busy(format!("{} requests are waiting already", state.waiting.len())));
            }
            state.waiting.push_back(ask);
        }
        self.changed.notify_one();
        answer.await.unwrap_or_else(|_| Err(Refusal::Ours("internal error: the run was given up".into())))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests of the next run; `None` at the end.
    fn take(&self) -> Option<Vec<Ask>> {
        let mut state = self.lock();
        loop {
            state.waiting.retain(|a| !a.reply.is_closed());
            let Some(first) = state.waiting.front() else {
                if state.closed {
                    return None;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = self.options.delay.saturating_sub(first.since.elapsed());
            let full = || state.waiting.iter().filter_map(|a| a.samples).sum::<usize>() >= self.options.samples;
            if left.is_zero() || state.closed || first.samples.is_none() || full() {
                return Some(self.form(&mut state.waiting));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The first request, and those behind it that fit.
    fn form(&self, waiting: &mut VecDeque<Ask>) -> Vec<Ask> {
        let Some(first) = waiting.pop_front() else { return Vec::new() };
        let Some(mut sum) = first.samples else { return vec![first] };
        let mut taken = vec![first];
        let mut rest = VecDeque::new();
        for ask in waiting.drain(..) {
            match ask.samples {
                Some(n) if sum + n <= self.options.samples && alike(&taken[0].inputs, &ask.inputs) => {
                    sum += n;
                    taken.push(ask);
                }
                _ => rest.push_back(ask),
            }
        }
        *waiting = rest;
        taken
    }

    fn compute(&self, asks: Vec<Ask>) {
        asks.iter().for_each(|a| self.counts.waited(a.since.elapsed()));
        let together = if asks.len() > 1 { self.together(&asks) } else { None };
        match together {
            Some(answers) => asks.into_iter().zip(answers).for_each(|(ask, answer)| drop(ask.reply.send(answer))),
            None => asks.into_iter().for_each(|ask| {
                let answer = self.alone(&ask);
                drop(ask.reply.send(answer));
            }),
        }
    }

    fn alone(&self, ask: &Ask) -> Result<Named, Refusal> {
        let start = Instant::now();
        let outputs = self.session.run(ask.inputs.clone()).map_err(refusal)?;
        self.counts.ran(samples(&ask.inputs).unwrap_or(1), 1, start.elapsed());
        Ok(outputs)
    }

    /// One run for all. `None` where each has to be computed apart.
    fn together(&self, asks: &[Ask]) -> Option<Vec<Result<Named, Refusal>>> {
        if !self.batched.load(Relaxed) {
            return None;
        }
        let start = Instant::now();
        let inputs = join(&asks.iter().map(|a| &a.inputs).collect::<Vec<_>>()).ok()?;
        let outputs = match self.session.run(inputs) {
            Ok(outputs) => outputs,
            Err(e @ ExecError::Rows { .. }) => return Some(vec![Err(refusal(e)); asks.len()]),
            Err(_) => return None,
        };
        let counts: Vec<usize> = asks.iter().filter_map(|a| a.samples).collect();
        let total = counts.iter().sum();
        let Some(parts) = Self::apart(&outputs, &counts, total) else {
            self.give_up(&format!("{total} samples gave outputs whose first axis does not count them"));
            return None;
        };
        self.counts.ran(total, asks.len(), start.elapsed());
        if self.trials.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_err() {
            return Some(parts.into_iter().map(Ok).collect());
        }
        let each: Vec<Result<Named, Refusal>> = asks.iter().map(|a| self.session.run(a.inputs.clone()).map_err(refusal)).collect();
        if each.iter().zip(&parts).any(|(each, part)| each.as_ref().is_ok_and(|e| !near(e, part))) {
            self.give_up("the answers of several requests in one run are not those of each");
        }
        Some(each)
    }

    fn apart(outputs: &Named, counts: &[usize], total: usize) -> Option<Vec<Named>> {
        if samples(outputs) != Some(total) {
            return None;
        }
        let mut start = 0;
        let one = |n: &usize| {
            start += n;
            part(outputs, start - n..start)
        };
        counts.iter().map(one).collect()
    }

    fn give_up(&self, why: &str) {
        if self.batched.swap(false, Relaxed) {
            tracing::warn!("each request is computed by itself from now on: {why}");
        }
    }
}

/// What a run says, by whose fault it is.
fn refusal(error: ExecError) -> Refusal {
    let text = error.to_string();
    match error {
        ExecError::Rows { later: true, .. } => Refusal::Busy(text),
        ExecError::Node { detail, .. } if detail.starts_with("internal error: ") => Refusal::Ours(text),
        ExecError::Rows { later: false, .. } | ExecError::Model(_) => Refusal::Ours(text),
        ExecError::Input { .. } | ExecError::Node { .. } => Refusal::Bad(text),
    }
}

#[cfg(test)]
mod tests;
