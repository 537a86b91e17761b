//! Whether the loops of kernels are shared among the threads of the pool. A short run stays on the thread that asks for it:
//! to wake another takes longer than many a model.

use std::cell::Cell;

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
