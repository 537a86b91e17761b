//! Storage that tensors of floats leave behind, for the tensors that come: while a session is open, a run finds the memory
//! of the one before it, with its pages in place. What it finds holds old elements, which are never read: see [`room`].

use super::{DType, Element};
use std::any::Any;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Elements below which the allocator is as fast.
const LEAST: usize = 1 << 10;
/// Elements that are kept at most.
const KEPT: usize = 1 << 25;
/// Vectors that are kept at most.
const MOST: usize = 64;

static OPEN: AtomicUsize = AtomicUsize::new(0);
static SHELF: Mutex<Shelf> = Mutex::new(Shelf { vectors: Vec::new(), elements: 0 });

/// The vectors, those that came first in front.
struct Shelf {
    vectors: Vec<Vec<f32>>,
    elements: usize,
}

impl Shelf {
    /// The smallest vector that holds `len` elements and not much more.
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let fits = |v: &Vec<f32>| v.capacity() >= len && v.capacity() / 2 <= len;
        let best = (0..self.vectors.len()).filter(|&i| fits(&self.vectors[i])).min_by_key(|&i| self.vectors[i].capacity())?;
        let vector = self.vectors.remove(best);
        self.elements -= vector.capacity();
        Some(vector)
    }

    fn put(&mut self, vector: Vec<f32>) {
        self.elements += vector.capacity();
        self.vectors.push(vector);
        while self.elements > KEPT || self.vectors.len() > MOST {
            self.elements -= self.vectors.remove(0).capacity();
        }
    }
}

/// Keeps storage as long as it lives.
#[derive(Debug)]
pub struct Recycling(());

impl Recycling {
    /// Begins.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        OPEN.fetch_add(1, Relaxed);
        Self(())
    }
}

impl Drop for Recycling {
    fn drop(&mut self) {
        if OPEN.fetch_sub(1, Relaxed) == 1
            && let Ok(mut shelf) = SHELF.lock()
        {
            (shelf.vectors, shelf.elements) = (Vec::new(), 0);
        }
    }
}

/// A vector of `len` elements of any value, for a caller that writes them all; `None` where none is on the shelf.
pub fn room<T: Element>(len: usize) -> Option<Vec<T>> {
    if T::DTYPE != DType::F32 || len < LEAST || OPEN.load(Relaxed) == 0 {
        return None;
    }
    let mut vector = SHELF.lock().ok()?.take(len)?;
    vector.resize(len, 0.0);
    as_vec(vector)
}

/// A copy of the elements.
pub(super) fn copy<T: Element>(data: &[T]) -> Vec<T> {
    match room(data.len()) {
        Some(mut vector) => {
            vector.clone_from_slice(data);
            vector
        }
        None => data.to_vec(),
    }
}

/// Takes the storage of a tensor that is gone.
pub(super) fn give<T: Element>(vector: Vec<T>) {
    if T::DTYPE == DType::F32
        && (LEAST..=KEPT / 4).contains(&vector.capacity())
        && OPEN.load(Relaxed) > 0
        && let Some(vector) = as_vec(vector)
        && let Ok(mut shelf) = SHELF.lock()
    {
        shelf.put(vector);
    }
}

/// The vector itself, where both types are one.
fn as_vec<T: Element, U: Element>(mut vector: Vec<T>) -> Option<Vec<U>> {
    let any: &mut dyn Any = &mut vector;
    any.downcast_mut().map(std::mem::take)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf(capacities: &[usize]) -> Shelf {
        let mut shelf = Shelf { vectors: Vec::new(), elements: 0 };
        capacities.iter().for_each(|&n| shelf.put(Vec::with_capacity(n)));
        shelf
    }

    #[test]
    fn the_smallest_that_fits_is_taken() {
        let mut s = shelf(&[5000, 3000, 2000, 9000]);
        assert_eq!(s.take(2500).map(|v| v.capacity()), Some(3000));
        assert_eq!(s.take(2500).map(|v| v.capacity()), Some(5000));
        assert_eq!(s.take(2500), None, "9000 is far more than is asked for");
        assert_eq!(s.elements, 11_000);
    }

    #[test]
    fn what_came_first_goes_where_there_is_too_much() {
        let s = shelf(&[KEPT / 2, KEPT / 4, KEPT / 2]);
        assert_eq!(s.vectors.iter().map(Vec::capacity).collect::<Vec<_>>(), [KEPT / 4, KEPT / 2]);
        let s = shelf(&[2000; MOST + 3]);
        assert_eq!((s.vectors.len(), s.elements), (MOST, 2000 * MOST));
    }
}
