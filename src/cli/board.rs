//! What `launch` shows while a job runs: on a terminal a line per worker and a bar over all, elsewhere a line now and then.

use super::output;
use crate::job::launch::{Progress, Watcher};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time between lines where nobody looks at a bar.
const EVERY: Duration = Duration::from_secs(10);

/// The progress of a job.
pub(super) struct Board {
    stop: Arc<AtomicBool>,
    bars: Option<MultiProgress>,
    workers: Vec<ProgressBar>,
    all: Option<ProgressBar>,
    started: Instant,
    /// What was done when it was first heard of: not of this run.
    before: Option<u64>,
    printed: Instant,
}

impl Board {
    /// `stop` is set when the user wants to stop.
    pub(super) fn new(stop: Arc<AtomicBool>) -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        let now = Instant::now();
        Self { stop, bars, workers: Vec::new(), all: None, started: now, before: None, printed: now }
    }

    /// Takes all lines away.
    pub(super) fn clear(&mut self) {
        self.workers.drain(..).chain(self.all.take()).for_each(|bar| bar.finish_and_clear());
    }

    fn show(&mut self, workers: &[Progress], done: u64, total: u64) {
        let Some(bars) = &self.bars else { return };
        let plain = |text: &str| ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar());
        while self.workers.len() < workers.len() {
            self.workers.push(bars.add(ProgressBar::no_length().with_style(plain("{msg}"))));
        }
        let all = self.all.get_or_insert_with(|| {
            let style = plain("{bar:40} {pos}/{len} samples  {msg}");
            bars.add(ProgressBar::new(total).with_style(style))
        });
        for (bar, w) in self.workers.iter().zip(workers) {
            bar.set_message(row(w, self.started.elapsed()));
        }
        all.set_length(total);
        all.set_position(done);
        all.set_message(pace(done - self.before.unwrap_or(0).min(done), total.saturating_sub(done), self.started.elapsed()));
    }
}

/// A worker's line.
fn row(w: &Progress, elapsed: Duration) -> String {
    let restarts = match w.restarts {
        0 => String::new(),
        1 => "  started again once".into(),
        n => format!("  started again {n} times"),
    };
    let state = if w.ended { "  done" } else { "" };
    let rate = w.done as f64 / elapsed.as_secs_f64().max(1e-9);
    format!("{:<10} {:>12} samples {rate:>9.0}/s{restarts}{state}", w.name, w.done)
}

/// Rate and time left.
fn pace(done: u64, left: u64, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64().max(1e-9);
    if done == 0 {
        return "waiting for the first batch".into();
    }
    format!("{rate:.0}/s  {} left", indicatif::HumanDuration(Duration::from_secs_f64((left as f64 / rate).min(1e9))))
}

impl Watcher for Board {
    fn stopped(&mut self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn progress(&mut self, workers: &[Progress]) {
        let (done, total) = (workers.iter().map(|w| w.done).sum(), workers.iter().map(|w| w.total).max().unwrap_or(0));
        if self.before.is_none() && done > 0 {
            self.before = Some(done);
            self.started = Instant::now();
        }
        self.show(workers, done, total);
        if self.bars.is_none() && self.printed.elapsed() >= EVERY {
            self.printed = Instant::now();
            let each: Vec<String> = workers.iter().map(|w| format!("{} {}", w.name, w.done)).collect();
            let pace = pace(done - self.before.unwrap_or(0).min(done), total.saturating_sub(done), self.started.elapsed());
            output::note(format_args!("{done} of {total} samples  {pace}  ({})", each.join(", ")));
        }
    }

    fn notice(&mut self, text: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(text)),
            None => output::note(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_pace_read_well() {
        let w = Progress { name: "worker 1".into(), done: 2048, total: 9000, restarts: 1, ended: false };
        assert_eq!(row(&w, Duration::from_secs(2)), "worker 1           2048 samples      1024/s  started again once");
        assert_eq!(pace(1000, 3000, Duration::from_secs(2)), "500/s  6 seconds left");
        assert_eq!(pace(0, 3000, Duration::from_secs(2)), "waiting for the first batch");
    }
}
