//! The `f32` product over panels of `B`: laid out once for a constant, or for the call. How work is cut among threads changes
//! no bit, for the kernel computes each element alike.

use super::kernel::{self, HEIGHT, Out, Panels, Part, WIDTH};
use super::sparse::{Bands, Nonzero, Product};
use super::vectors::Finish;
use super::{Activation, Bias, Dims, Epilogue, Matrix};
use crate::ops::threads;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

/// Multiply-adds below which a product stays on one thread.
const SERIAL: usize = 1 << 21;
/// Columns up to which `B` is kept as columns, and each element is a dot product.
const NARROW: usize = 3;
/// Rows up to which a `B` whose rows lie together is read as it lies.
const FEW: usize = 12;
/// Bytes of `A` that are multiplied with one panel after the other.
const BLOCK: usize = 256 << 10;
/// Rows of a task at least, where there are so many.
const LEAST_ROWS: usize = 48;
/// Tasks of each thread, where there is work enough.
const TASKS: usize = 4;
/// Elements of the buffer that a thread keeps for the next call.
const KEPT: usize = 1 << 20;

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `B` of a product, `[k, n]`, laid out for the kernel.
#[derive(Debug, Clone)]
pub struct Packed {
    k: usize,
    n: usize,
    data: Vec<f32>,
    /// Laid out for first operands with many zeros, once there is one; `None` if it must not be.
    bands: OnceLock<Option<Bands>>,
}

impl Packed {
    /// Lays out the matrix that starts at `start`; `None` where there is no kernel for it.
    pub fn new(b: Matrix<f32>, start: usize, k: usize, n: usize) -> Option<Self> {
        let mut data = Vec::new();
        if !kernel::available() || !b.holds(start, k, n) || n == 0 {
            return None;
        }
        pack(b, start, k, n, &mut data);
        Some(Self { k, n, data, bands: OnceLock::new() })
    }

    /// Whether this machine has a kernel for it.
    pub fn supported() -> bool {
        kernel::available()
    }

    fn bands(&self) -> Option<&Bands> {
        self.bands.get_or_init(|| Bands::new(&self.data, self.k, self.n)).as_ref()
    }

    /// Rows and columns.
    pub fn dims(&self) -> (usize, usize) {
        (self.k, self.n)
    }
}

/// As panels, or as columns if there are few.
fn pack(b: Matrix<f32>, start: usize, k: usize, n: usize, data: &mut Vec<f32>) {
    if n > NARROW {
        return pack_panels(b, start, k, n, data);
    }
    data.clear();
    data.extend((0..n).flat_map(|j| (0..k).map(move |p| b.data[start + p * b.row + j * b.col])));
}

fn pack_panels(b: Matrix<f32>, start: usize, k: usize, n: usize, data: &mut Vec<f32>) {
    data.clear();
    data.resize(n.div_ceil(WIDTH) * k * WIDTH, 0.0);
    for (panel, to) in data.chunks_exact_mut((k * WIDTH).max(1)).enumerate() {
        let (from, width) = (start + panel * WIDTH * b.col, WIDTH.min(n - panel * WIDTH));
        for (p, line) in to.chunks_exact_mut(WIDTH).enumerate() {
            let at = from + p * b.row;
            if b.col == 1 {
                line[..width].copy_from_slice(&b.data[at..at + width]);
            } else {
                line[..width].iter_mut().enumerate().for_each(|(j, x)| *x = b.data[at + j * b.col]);
            }
        }
    }
}

/// The second operand.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rhs<'a> {
    /// One matrix, laid out.
    Packed(&'a Packed),
    /// A matrix for each batch, as it lies.
    Plain(Matrix<'a, f32>),
}

/// As [`super::product`], whose checks have been made; false if there is no kernel for it.
pub(super) fn product(
    dims: Dims,
    alpha: f32,
    a: Matrix<f32>,
    b: Rhs,
    starts: &[(usize, usize)],
    out: &mut [f32],
    epilogue: &Epilogue<f32>,
) -> bool {
    if !kernel::available() {
        return false;
    }
    let Dims { m, n, k } = dims;
    let work = starts.len() * m * n * k.max(1);
    let one = |(start, out): (&(usize, usize), &mut [f32])| batch(dims, alpha, a, b, *start, out, epilogue, work > SERIAL);
    if work > SERIAL && starts.len() > 1 && threads::shared() {
        let group = (SERIAL / 2 / (m * n * k.max(1))).max(1);
        starts.par_iter().zip(out.par_chunks_mut(m * n)).with_min_len(group).for_each(one);
    } else {
        starts.iter().zip(out.chunks_mut(m * n)).for_each(one);
    }
    true
}

#[allow(clippy::too_many_arguments)]
fn batch(
    dims: Dims,
    alpha: f32,
    a: Matrix<f32>,
    b: Rhs,
    (at, start): (usize, usize),
    out: &mut [f32],
    epilogue: &Epilogue<f32>,
    parallel: bool,
) {
    let Dims { m, n, k } = dims;
    let rows: Vec<f32>;
    let (a, at) = if a.col == 1 {
        (a, at)
    } else {
        rows = (0..m).flat_map(|r| (0..k).map(move |p| a.data[at + r * a.row + p * a.col])).collect();
        (Matrix::new(&rows, k, false), 0)
    };
    let cut = Cut { dims, alpha, a, at, epilogue, parallel };
    // Taken, not borrowed: a thread that waits for others may compute another product meanwhile.
    let mut scratch = SCRATCH.take();
    let all = (0, n.div_ceil(WIDTH));
    match b {
        Rhs::Packed(p) if n <= NARROW => cut.columns(&p.data, out),
        Rhs::Packed(p) => cut.panels(laid(&p.data, k), Some(p), all, out),
        Rhs::Plain(b) if b.col == 1 && m <= FEW && n >= WIDTH => {
            let full = n / WIDTH;
            cut.panels(Panels { data: &b.data[start.min(b.data.len())..], row: b.row, panel: WIDTH }, None, (0, full), out);
            if n > full * WIDTH {
                pack_panels(b, start + full * WIDTH, k, n - full * WIDTH, &mut scratch);
                cut.panels(Panels { data: &scratch, row: WIDTH, panel: 0 }, None, (full, 1), out);
            }
        }
        Rhs::Plain(b) => {
            pack(b, start, k, n, &mut scratch);
            if n <= NARROW { cut.columns(&scratch, out) } else { cut.panels(laid(&scratch, k), None, all, out) }
        }
    }
    if scratch.capacity() <= KEPT {
        SCRATCH.set(scratch);
    }
}

fn laid(data: &[f32], k: usize) -> Panels<'_> {
    Panels { data, row: WIDTH, panel: k * WIDTH }
}

/// One product, to be cut among threads.
struct Cut<'a> {
    dims: Dims,
    alpha: f32,
    a: Matrix<'a, f32>,
    at: usize,
    epilogue: &'a Epilogue<'a, f32>,
    parallel: bool,
}

impl Cut<'_> {
    /// Rows of a task.
    fn rows(&self, threads: usize) -> usize {
        let m = self.dims.m;
        if threads == 1 || m < 2 * LEAST_ROWS { m } else { LEAST_ROWS.max(m.div_ceil(threads * TASKS).next_multiple_of(HEIGHT)) }
    }

    fn threads(&self) -> usize {
        if self.parallel { threads::count() } else { 1 }
    }

    /// What the kernels do themselves, and what is left to do.
    fn finish(&self) -> (Finish<'_>, Epilogue<'_, f32>) {
        let (bias, mut rest) = match self.epilogue.bias {
            Bias::None => (None, Epilogue { bias: Bias::None, ..*self.epilogue }),
            Bias::Row(b) => (Some(b), Epilogue { bias: Bias::None, ..*self.epilogue }),
            _ => (None, *self.epilogue),
        };
        let relu = matches!(rest.bias, Bias::None) && rest.activation == Activation::Relu;
        if relu {
            rest.activation = Activation::None;
        }
        (Finish { alpha: self.alpha, bias, relu }, rest)
    }

    /// Panels `first..first + count` of the result; `packed` is what they are of, if they are all of it.
    fn panels(&self, b: Panels, packed: Option<&Packed>, (first, count): (usize, usize), out: &mut [f32]) {
        let Dims { m, n, k } = self.dims;
        let threads = self.threads();
        let (finish, rest) = self.finish();
        let done = matches!(rest.bias, Bias::None) && rest.activation == Activation::None;
        let place = Out::new(out, n);
        let end = |rows: Range<usize>, columns: Range<usize>| {
            let line = |r| place.row(r, columns.start, columns.len(), |line| rest.apply(n, r, columns.start, line));
            rows.filter(|_| !done).for_each(line);
        };
        let sparse = |rows| {
            let packed = packed?;
            let nonzero = Nonzero::of(self.a, self.at, rows, k, n)?;
            Some(Product { a: self.a, start: self.at, nonzero, b: packed.bands()?, out: place, finish })
        };
        // Few rows are not cut: parts of `B` are as good a piece of work, and can be small enough for all threads to end at once.
        let few = m < threads * TASKS * LEAST_ROWS && count >= threads * 2;
        if threads > 1
            && few
            && let Some(product) = sparse((0, m))
        {
            let across = product.b.count();
            let down = (threads * 2).div_ceil(across).min(m.div_ceil(LEAST_ROWS));
            for_each(down * across, true, |t| {
                let rows = m * (t / across) / down..m * (t / across + 1) / down;
                end(rows.clone(), product.part(rows, t % across..t % across + 1));
            });
            return;
        }
        let rows = if few { m } else { self.rows(threads) };
        let across = if threads == 1 || rows < m { count } else { count.div_ceil(threads * TASKS) };
        let block = (BLOCK / (4 * k.max(1)) / HEIGHT * HEIGHT).clamp(LEAST_ROWS, 10 * LEAST_ROWS);
        let tiles = (m.div_ceil(rows), count.div_ceil(across));
        for_each(tiles.0 * tiles.1, threads > 1, |t| {
            let (top, left) = (t / tiles.1 * rows, first + t % tiles.1 * across);
            let (bottom, across) = (m.min(top + rows), across.min(first + count - left));
            for row in (top..bottom).step_by(block) {
                let height = block.min(bottom - row);
                let whole = across == count;
                let columns = match whole.then(|| sparse((row, height))).flatten() {
                    Some(product) => product.part(0..height, 0..product.b.count()),
                    None => {
                        kernel::part(k, self.a, self.at, b, Part { rows: (row, height), panels: (left, across) }, place, finish);
                        left * WIDTH..n.min((left + across) * WIDTH)
                    }
                };
                end(row..row + height, columns);
            }
        });
    }

    /// All columns of the result, each of which `data` has as a whole.
    fn columns(&self, data: &[f32], out: &mut [f32]) {
        let Dims { m, n, k } = self.dims;
        let threads = self.threads();
        let rows = self.rows(threads);
        let row = |r: usize, line: &mut [f32]| {
            let from = self.at + r * self.a.row;
            match k {
                0 => line.fill(0.0),
                _ => kernel::dots(&self.a.data[from..from + k], data, line),
            }
            line.iter_mut().filter(|_| self.alpha != 1.0).for_each(|x| *x *= self.alpha);
            self.epilogue.apply(n, r, 0, line);
        };
        let part = |(i, part): (usize, &mut [f32])| part.chunks_mut(n).enumerate().for_each(|(r, line)| row(i * rows + r, line));
        if threads > 1 {
            out.par_chunks_mut(rows.max(1) * n).enumerate().for_each(part);
        } else {
            part((0, out));
        }
        debug_assert!(m * n == out.len());
    }
}

fn for_each(count: usize, parallel: bool, f: impl Fn(usize) + Send + Sync) {
    if parallel && count > 1 {
        (0..count).into_par_iter().for_each(f);
    } else {
        (0..count).for_each(f);
    }
}

#[cfg(test)]
mod tests {
    use super::super::product_packed;
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
    }

    fn plain(dims: Dims, a: &[f32], b: Matrix<f32>, epilogue: &Epilogue<f32>) -> Vec<f32> {
        let mut out = vec![f32::NAN; dims.m * dims.n];
        super::super::product(dims, 1.0, Matrix::new(a, dims.k, false), b, &[(0, 0)], &mut out, epilogue).unwrap();
        out
    }

    #[test]
    fn no_bit_depends_on_the_rows_beside_the_layout_or_the_threads() {
        if !Packed::supported() {
            println!("skipped: this machine has no AVX2");
            return;
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let mut cases = vec![(300, 131, 90), (7, 2000, 200), (2500, 3, 400)];
        for n in [1, 3, 4, 8, 15, 16, 17, 33, 100] {
            for k in [0, 1, 31, 32, 33, 90] {
                cases.extend([1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 100].map(|m| (m, n, k)));
            }
        }
        for (m, n, k) in cases {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let rows = Matrix::new(&b, n, false);
            let mut turned = vec![0.0; k * n];
            (0..k * n).for_each(|i| turned[i % n * k + i / n] = b[i]);
            let packed = Packed::new(rows, 0, k, n).unwrap();
            let dims = Dims { m, n, k };
            let bias = numbers(n, 3);
            let epilogue = Epilogue { bias: Bias::Row(&bias), activation: Activation::Relu };
            let mut whole = vec![f32::NAN; m * n];
            pool.install(|| product_packed(m, 1.0, Matrix::new(&a, k, false), &packed, &mut whole, &epilogue)).unwrap();
            assert_eq!(whole, plain(dims, &a, rows, &epilogue), "as it lies: {m} {n} {k}");
            assert_eq!(whole, plain(dims, &a, Matrix::new(&turned, k, true), &epilogue), "turned: {m} {n} {k}");
            for r in [0, m - 1] {
                let one = plain(Dims { m: 1, n, k }, &a[r * k..(r + 1) * k], rows, &epilogue);
                assert_eq!(&whole[r * n..(r + 1) * n], one, "row {r} alone: {m} {n} {k}");
            }
            for (i, y) in whole.iter().enumerate() {
                let terms = (0..k).map(|p| f64::from(a[i / n * k + p]) * f64::from(b[p * n + i % n]));
                let exact = terms.sum::<f64>() + f64::from(bias[i % n]);
                assert!((f64::from(*y) - exact.max(0.0)).abs() < 1e-4, "{y} is not {exact}: {m} {n} {k}");
            }
        }
    }

    #[test]
    fn no_bit_depends_on_how_zeros_are_shared_among_threads() {
        if !Packed::supported() {
            println!("skipped: this machine has no AVX2");
            return;
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (m, n, k) in [(1, 700, 3100), (40, 300, 200), (200, 431, 130), (2000, 64, 90)] {
            let (mut a, b, bias) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 3));
            a.iter_mut().for_each(|x| *x = x.max(0.0));
            let rows = Matrix::new(&b, n, false);
            let packed = Packed::new(rows, 0, k, n).unwrap();
            for (activation, bias) in [(Activation::Sigmoid, Bias::Row(&bias)), (Activation::Relu, Bias::Scalar(0.25))] {
                let epilogue = Epilogue { bias, activation };
                let mut out = vec![f32::NAN; m * n];
                pool.install(|| product_packed(m, 1.0, Matrix::new(&a, k, false), &packed, &mut out, &epilogue)).unwrap();
                assert!(packed.bands.get().is_some_and(Option::is_some), "zeros were found: {m} {n} {k}");
                assert_eq!(out, plain(Dims { m, n, k }, &a, rows, &epilogue), "{m} {n} {k}");
            }
        }
        let packed = Packed::new(Matrix::new(&[f32::NAN; 64], 64, false), 0, 1, 64).unwrap();
        let mut out = [0.0; 64];
        product_packed(1, 1.0, Matrix::new(&[0.0], 1, false), &packed, &mut out, &Epilogue::NONE).unwrap();
        assert!(out.iter().all(|x| x.is_nan()), "a weight that is no number is not left out");
    }

    #[test]
    fn nan_and_the_sign_of_zero_go_through_relu() {
        let epilogue = Epilogue { bias: Bias::None, activation: Activation::Relu };
        let (a, b) = ([f32::NAN, -1.0, 1.0], [1.0f32; 16]);
        let out = plain(Dims { m: 3, n: 16, k: 1 }, &a, Matrix::new(&b, 16, false), &epilogue);
        assert!(out[0].is_nan() && out[16] == 0.0 && out[32] == 1.0);
    }
}
