//! The matrix product that MatMul, Gemm, Einsum, Attention and the fused ops share: batches, strides, and an epilogue of
//! bias and activation. `f32` has kernels of its own where the machine has AVX2; the rest is the `gemm` crate's, cut into tiles
//! by shape alone. The number of threads never changes a bit of a result.
#![allow(unsafe_code)]

mod activation;
mod kernel;
mod packed;
mod sparse;
mod vectors;

pub use activation::{Activation, Real, sigmoid};
pub use packed::Packed;

use super::{OpError, threads};
use crate::invalid;
use rayon::prelude::*;

/// Multiply-adds below which a product stays on one thread.
const SERIAL: usize = 1 << 20;
/// Rows of a tile.
const TILE_ROWS: usize = 128;
/// Columns of a tile of a product with few rows.
const TILE_COLS: usize = 256;

/// A matrix of any strides; where it starts is said per batch.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Elements from a row to the next.
    pub row: usize,
    /// Elements from a column to the next.
    pub col: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix of `cols` columns, or its transpose.
    pub fn new(data: &'a [T], cols: usize, transposed: bool) -> Self {
        if transposed { Self { data, row: 1, col: cols } } else { Self { data, row: cols, col: 1 } }
    }

    fn holds(&self, at: usize, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || at + (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// What is added to a product before the activation.
#[derive(Debug, Clone, Copy)]
pub enum Bias<'a, T> {
    /// Nothing.
    None,
    /// One number.
    Scalar(T),
    /// One number per column.
    Row(&'a [T]),
    /// One number per row.
    Column(&'a [T]),
    /// A matrix of the result's shape (of one batch).
    Full(&'a [T]),
}

/// What happens to each tile once it is computed.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a, T> {
    /// Added first.
    pub bias: Bias<'a, T>,
    /// Applied last.
    pub activation: Activation,
}

impl<T> Epilogue<'_, T> {
    /// The bare product.
    pub const NONE: Self = Self { bias: Bias::None, activation: Activation::None };
}

impl<T: Real> Epilogue<'_, T> {
    fn apply(&self, n: usize, row: usize, col: usize, out: &mut [T]) {
        let add = |out: &mut [T], b: &[T]| out.iter_mut().zip(b).for_each(|(x, b)| *x = *x + *b);
        match self.bias {
            Bias::None => {}
            Bias::Scalar(b) => out.iter_mut().for_each(|x| *x = *x + b),
            Bias::Row(b) => add(out, &b[col..col + out.len()]),
            Bias::Column(b) => out.iter_mut().for_each(|x| *x = *x + b[row]),
            Bias::Full(b) => add(out, &b[row * n + col..row * n + col + out.len()]),
        }
        self.activation.apply(out);
    }

    fn fits(&self, m: usize, n: usize) -> bool {
        match self.bias {
            Bias::None | Bias::Scalar(_) => true,
            Bias::Row(b) => b.len() >= n,
            Bias::Column(b) => b.len() >= m,
            Bias::Full(b) => b.len() >= m * n,
        }
    }
}

/// Sizes of a product: `[m, k] x [k, n]`.
#[derive(Debug, Clone, Copy)]
pub struct Dims {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
}

/// A pointer to the result, of which each tile writes its own part.
struct Out<T>(*mut T);
// SAFETY: tiles write disjoint ranges, see `product`.
unsafe impl<T: Send> Send for Out<T> {}
unsafe impl<T: Send> Sync for Out<T> {}

/// `out[i] = act(alpha * a[starts[i].0..] x b[starts[i].1..] + bias)` for each batch `i`; `out` is dense and row-major.
///
/// # Errors
/// Operands too short for their dims.
pub fn product<T: Real>(
    dims: Dims,
    alpha: T,
    a: Matrix<T>,
    b: Matrix<T>,
    starts: &[(usize, usize)],
    out: &mut [T],
    epilogue: &Epilogue<T>,
) -> Result<(), OpError> {
    let Dims { m, n, k } = dims;
    let fits = starts.iter().all(|&(x, y)| a.holds(x, m, k) && b.holds(y, k, n));
    if !fits || starts.len().checked_mul(m * n) != Some(out.len()) || !epilogue.fits(m, n) {
        invalid!("operands do not hold {} products of [{m},{k}] and [{k},{n}]", starts.len());
    }
    if out.is_empty() || T::product(dims, alpha, a, b, starts, out, epilogue) {
        return Ok(());
    }
    let serial = starts.len() * m * n * k.max(1) <= SERIAL;
    let (rows, cols) = if serial {
        (m, n)
    } else if m >= 2 * TILE_ROWS {
        (TILE_ROWS, n)
    } else {
        (m, TILE_COLS.max(SERIAL / 4 / (m * k.max(1)) / 8 * 8))
    };
    let (down, across) = (m.div_ceil(rows), n.div_ceil(cols));
    let base = Out(out.as_mut_ptr());
    let tile = |t: usize| {
        let base = &base;
        let (batch, t) = (t / (down * across), t % (down * across));
        let (r, c) = (t / across * rows, t % across * cols);
        let (h, w) = (rows.min(m - r), cols.min(n - c));
        let (x, y) = (starts[batch].0 + r * a.row, starts[batch].1 + c * b.col);
        // SAFETY: the tile [r..r+h, c..c+w] of this batch lies in `out` (its length is batches * m * n) and no other tile
        // overlaps it; `holds` has shown that both operands reach as far as their dims and strides say.
        unsafe {
            let dst = base.0.add(batch * m * n + r * n + c);
            gemm::gemm(
                h,
                w,
                k,
                dst,
                1,
                n as isize,
                false,
                a.data.as_ptr().add(x),
                a.col as isize,
                a.row as isize,
                b.data.as_ptr().add(y),
                b.col as isize,
                b.row as isize,
                T::ZERO,
                alpha,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
            for i in 0..h {
                epilogue.apply(n, r + i, c, std::slice::from_raw_parts_mut(dst.add(i * n), w));
            }
        }
    };
    let tiles = starts.len() * down * across;
    if serial || tiles == 1 || !threads::shared() {
        (0..tiles).for_each(tile);
    } else {
        // Small products are grouped, by their size alone.
        let group = (SERIAL / (rows * cols * k.max(1))).max(1);
        (0..tiles).into_par_iter().with_min_len(group).for_each(tile);
    }
    Ok(())
}

/// As [`product`] for one batch, with a `B` that is laid out already: `a` starts at 0.
///
/// # Errors
/// As [`product`].
pub fn product_packed(m: usize, alpha: f32, a: Matrix<f32>, b: &Packed, out: &mut [f32], epilogue: &Epilogue<f32>) -> Result<(), OpError> {
    let (k, n) = b.dims();
    if !a.holds(0, m, k) || out.len() != m * n || !epilogue.fits(m, n) {
        invalid!("operands do not hold a product of [{m},{k}] and [{k},{n}]");
    }
    if m > 0 {
        packed::product(Dims { m, n, k }, alpha, a, packed::Rhs::Packed(b), &[(0, 0)], out, epilogue);
    }
    Ok(())
}

/// Products of integers of at most 9 bits (8-bit elements less their zero point), exact: `f32` sums of at most 256 terms
/// stay below 2^24, and the parts are added in `i32`. Operands are row-major.
///
/// # Errors
/// As [`product`].
pub fn product_i32(dims: Dims, a: &[f32], b: &[f32], starts: &[(usize, usize)], out: &mut [i32]) -> Result<(), OpError> {
    const PART: usize = 256;
    let Dims { m, n, k } = dims;
    let mut part = vec![0f32; out.len()];
    out.fill(0);
    for from in (0..k).step_by(PART) {
        let starts: Vec<(usize, usize)> = starts.iter().map(|&(x, y)| (x + from, y + from * n)).collect();
        let dims = Dims { m, n, k: PART.min(k - from) };
        product(dims, 1.0, Matrix::new(a, k, false), Matrix::new(b, n, false), &starts, &mut part, &Epilogue::NONE)?;
        out.iter_mut().zip(&part).for_each(|(o, p)| *o = o.wrapping_add(*p as i32));
    }
    Ok(())
}

/// The transpose of a row-major matrix, in blocks that fit the cache.
pub fn transpose<T: Copy + Default>(data: &[T], rows: usize, cols: usize) -> Vec<T> {
    const BLOCK: usize = 32;
    let mut out = vec![T::default(); data.len()];
    for r in (0..rows).step_by(BLOCK) {
        for c in (0..cols).step_by(BLOCK) {
            for i in r..rows.min(r + BLOCK) {
                for j in c..cols.min(c + BLOCK) {
                    out[j * rows + i] = data[i * cols + j];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(m: usize, n: usize, k: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                out[i * n + j] = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
            }
        }
        out
    }

    #[test]
    fn tiles_cover_the_product_whatever_its_form() {
        for (m, n, k) in [(1, 1000, 1100), (300, 70, 90), (65, 513, 100), (3, 2, 0), (260, 1, 5000)] {
            let a: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i % 5) as f32 - 2.0).collect();
            let want = naive(m, n, k, &a, &b);
            let mut out = vec![f32::NAN; m * n];
            let dims = Dims { m, n, k };
            product(dims, 1.0, Matrix::new(&a, k, false), Matrix::new(&b, n, false), &[(0, 0)], &mut out, &Epilogue::NONE).unwrap();
            assert_eq!(out, want);
            let t = transpose(&b, k, n);
            product(dims, 1.0, Matrix::new(&a, k, false), Matrix::new(&t, k, true), &[(0, 0)], &mut out, &Epilogue::NONE).unwrap();
            assert_eq!(out, want);
        }
    }

    #[test]
    fn bias_and_activation_come_after_the_product() {
        let mut out = [0f32; 4];
        let ep = Epilogue { bias: Bias::Row(&[-3.0, 1.0]), activation: Activation::Relu };
        let m = Matrix::new(&[1.0, 2.0, 3.0, 4.0][..], 2, false);
        let eye = Matrix::new(&[1.0, 0.0, 0.0, 1.0][..], 2, false);
        product(Dims { m: 2, n: 2, k: 2 }, 1.0, m, eye, &[(0, 0)], &mut out, &ep).unwrap();
        assert_eq!(out, [0.0, 3.0, 0.0, 5.0]);
    }

    #[test]
    fn integers_are_exact_beyond_the_range_of_f32() {
        let (a, b) = (vec![255f32; 1000], vec![-255f32; 1000]);
        let mut out = [0];
        product_i32(Dims { m: 1, n: 1, k: 1000 }, &a, &b, &[(0, 0)], &mut out).unwrap();
        assert_eq!(out, [-65_025_000]);
    }
}
