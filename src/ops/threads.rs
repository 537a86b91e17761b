//! Whether the loops of kernels are shared among the threads of the pool. A short run stays on the thread that asks for it:
//! to wake another takes longer than many a model.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

thread_local! {
    /// While a run is alone: whether a loop was long enough to be shared.
    static ALONE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Whether a loop that is long enough is to be shared.
pub(crate) fn shared() -> bool {
    let alone = ALONE.get();
    if alone.is_some() {
        ALONE.set(Some(true));
    }
    alone.is_none()
}

/// Threads that share a loop.
pub(crate) fn count() -> usize {
    if shared() { rayon::current_num_threads() } else { 1 }
}

/// Runs `f` with all its loops on this thread, and says whether one of them was long enough to be shared.
pub(crate) fn alone<R>(f: impl FnOnce() -> R) -> (R, bool) {
    struct Restore(Option<bool>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _restore = Restore(ALONE.replace(Some(false)));
    let result = f();
    (result, ALONE.get() == Some(true))
}

/// How long a thread looks for work before it sleeps.
const IDLE: Duration = Duration::from_micros(100);

/// Runs `f` on the pool, whose other threads stay awake as long as there is work for them: to wake one takes as long as many a
/// loop.
pub(crate) fn awake<R: Send>(pool: &rayon::ThreadPool, f: impl FnOnce() -> R + Send) -> R {
    struct End(Arc<AtomicBool>);
    impl Drop for End {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    pool.install(|| {
        let end = End(Arc::default());
        let (own, ended) = (rayon::current_thread_index(), end.0.clone());
        rayon::spawn_broadcast(move |cx| {
            let mut last = Instant::now();
            while Some(cx.index()) != own && !ended.load(Relaxed) && last.elapsed() < IDLE {
                if rayon::yield_now() == Some(rayon::Yield::Executed) {
                    last = Instant::now();
                } else {
                    std::hint::spin_loop();
                }
            }
        });
        f()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_alone_notes_that_it_was_long() {
        assert!(shared());
        assert_eq!(alone(|| 1), (1, false));
        let (inner, outer) = alone(|| (alone(shared), count()));
        assert_eq!((inner, outer), (((false, true), 1), true));
        assert!(shared());
    }
}
