//! Watches the children: takes note of their progress, starts those again that were killed, finds who was the first to fail.

use super::child::{Child, Family};
use super::log::{Tail, last_error};
use super::{LaunchError, LaunchOptions};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Time from one look to the next.
const TICK: Duration = Duration::from_millis(10);
/// Time in which the one who was killed may turn up, when another has failed because of it.
const CAUSE: Duration = Duration::from_millis(400);
/// The wait before a process is started again, doubled each time.
const PAUSE: Duration = Duration::from_millis(50);

/// Where a worker is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// `worker 1`.
    pub name: String,
    /// Samples that it has done.
    pub done: u64,
    /// Samples of the job, if it has said so.
    pub total: u64,
    /// How often it was started again.
    pub restarts: usize,
    /// Whether it has ended well.
    pub ended: bool,
}

/// What the launcher tells its caller while a job runs.
pub trait Watcher {
    /// Whether the caller wants to stop.
    fn stopped(&mut self) -> bool;

    /// Where the workers of this machine are; called several times a second.
    fn progress(&mut self, workers: &[Progress]);

    /// Something that a person would want to know, in one line.
    fn notice(&mut self, text: &str);
}

/// Waits for the workers; where there are none, for the pservers.
pub(super) fn watch(family: &mut Family, options: &LaunchOptions, watcher: &mut dyn Watcher) -> Result<(), LaunchError> {
    let mut tails: Vec<Tail> = family.children.iter().map(|_| Tail::default()).collect();
    let mut seen: Vec<Progress> = family.children.iter().map(|c| Progress { name: c.name.clone(), ..Progress::default() }).collect();
    let has_workers = family.children.iter().any(|c| c.is_worker);
    let mut ticks = 0u32;
    while family.children.iter().any(|c| c.ended.is_none() && (c.is_worker || !has_workers)) {
        if watcher.stopped() {
            return Err(LaunchError::Interrupted);
        }
        for i in 0..family.children.len() {
            if family.children[i].due.is_some_and(|due| Instant::now() >= due) {
                family.start(i)?;
            }
            let Some(status) = family.children[i].poll() else { continue };
            family.children[i].ended = Some(status);
            if is_well(&family.children[i], status, options, has_workers) {
                continue;
            }
            // When one worker ended well, the output stands, and nobody else is missed.
            if family.children.iter().any(|c| c.is_worker && c.ended.is_some_and(|s| s.success())) {
                continue;
            }
            let child = &mut family.children[i];
            let killed = killed(child, status);
            if !killed || child.restarts >= options.max_restart {
                return Err(root(family, options, i));
            }
            child.ended = None;
            child.due = Some(Instant::now() + PAUSE * (1 << child.restarts.min(6)));
            child.restarts += 1;
            let times = format!("restart {} of {}", child.restarts, options.max_restart);
            watcher.notice(&format!("{} {}; {times}", child.name, describe(status).0));
        }
        if ticks.is_multiple_of(10) {
            let hangs = report(family, &mut tails, &mut seen, watcher);
            // Killed, it is started again as any other that was.
            let again = |c: &&mut Child| c.is_worker && hangs.contains(&c.index) && c.restarts < options.max_restart;
            for child in family.children.iter_mut().filter(again) {
                if child.kill_if_old() {
                    watcher.notice(&format!("{} gives no sign of life and is killed", child.name));
                }
            }
        }
        ticks = ticks.wrapping_add(1);
        std::thread::sleep(TICK);
    }
    report(family, &mut tails, &mut seen, watcher);
    Ok(())
}

/// Tells where the workers are; gives those that hang, as others say.
fn report(family: &Family, tails: &mut [Tail], seen: &mut [Progress], watcher: &mut dyn Watcher) -> Vec<usize> {
    let mut hangs = Vec::new();
    for (i, child) in family.children.iter().enumerate().filter(|(_, c)| c.is_worker) {
        let news = tails[i].news(&child.log);
        if let Some((done, total)) = news.progress {
            (seen[i].done, seen[i].total) = (done, total);
        }
        hangs.extend(news.hangs);
        seen[i].restarts = child.restarts;
        seen[i].ended = child.ended.is_some_and(|s| s.success());
    }
    let workers: Vec<Progress> = family.children.iter().zip(seen).filter(|(c, _)| c.is_worker).map(|(_, p)| p.clone()).collect();
    watcher.progress(&workers);
    hangs
}

/// Whether this is the end that was to come: of a worker that is done, or of a pserver that was told to stop by the workers
/// of another machine.
fn is_well(child: &Child, status: ExitStatus, options: &LaunchOptions, has_workers: bool) -> bool {
    status.success() && (child.is_worker || !has_workers || options.has_others())
}

/// Whether something from outside ended it: who says by an exit code of ours what is wrong would say the same again.
fn killed(child: &Child, status: ExitStatus) -> bool {
    match status.code() {
        None => true,
        Some(0) => !child.is_worker,
        Some(code) => !(1..=3).contains(&code),
    }
}

/// The failure to name: a process that was killed rather than one that misses it.
fn root(family: &mut Family, options: &LaunchOptions, first: usize) -> LaunchError {
    let until = Instant::now() + CAUSE;
    let is_killed = |c: &Child| c.ended.is_some_and(|s| killed(c, s));
    while !family.children.iter().any(is_killed) && Instant::now() < until {
        for c in family.children.iter_mut().filter(|c| c.ended.is_none()) {
            c.ended = c.poll();
        }
        std::thread::sleep(TICK);
    }
    let failed = |c: &&Child| c.ended.is_some_and(|s| !s.success());
    let speaks_of_another = |c: &Child| {
        let line = last_error(&c.log);
        line.contains(" lost: ") || line.contains("is unavailable")
    };
    let children = &family.children;
    let one = children.iter().find(|c| is_killed(c)).or_else(|| children.iter().filter(failed).find(|c| !speaks_of_another(c)));
    let c = one.unwrap_or(&children[first]);
    let (mut how, code) = c.ended.map_or(("failed".into(), 1), describe);
    if options.max_restart > 0 && is_killed(c) {
        how.push_str(&format!(" after {} restarts", c.restarts));
    }
    LaunchError::Failed { name: c.name.clone(), how, line: last_error(&c.log), log: c.log.clone(), code }
}

/// How it ended, and the code to end with.
fn describe(status: ExitStatus) -> (String, i32) {
    let name = |signal| match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    };
    match (status.code(), status.signal()) {
        (Some(0), _) => ("ended before the workers were done".into(), 1),
        (Some(code), _) => (format!("failed with exit code {code}"), code),
        (None, Some(signal)) => (format!("was killed by signal {signal}{}", name(signal)), 1),
        _ => ("failed".into(), 1),
    }
}
