//! The inner loops of the `f32` product, for AVX2 with FMA. Each element is one chain of fused multiply-adds over `k` in its
//! order, so that its bits depend neither on the rows beside it, nor on the tile it is in, nor on how `B` lies.
#![allow(unsafe_code)]

use super::Matrix;

/// Columns of a panel of `B`.
pub(super) const WIDTH: usize = 16;
/// Rows of the largest tile.
pub(super) const HEIGHT: usize = 6;

/// Whether this machine has the instructions.
pub(super) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `B` as panels of [`WIDTH`] columns: element `(p, j)` lies at `j / WIDTH * panel + p * row + j % WIDTH`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) data: &'a [f32],
    pub(super) row: usize,
    pub(super) panel: usize,
}

impl Panels<'_> {
    fn holds(&self, k: usize, panels: usize) -> bool {
        k == 0 || panels == 0 || (panels - 1) * self.panel + (k - 1) * self.row + WIDTH <= self.data.len()
    }
}

/// The part of the result that one call computes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// First row, and rows.
    pub(super) rows: (usize, usize),
    /// First panel, and panels.
    pub(super) panels: (usize, usize),
}

/// The result: dense rows of `n` columns, of which parts write what is theirs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    data: *mut f32,
    len: usize,
    n: usize,
}

// SAFETY: it is a place to write to; those who share it write disjoint parts (see `Out::new`).
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// A result of `n` columns in `data`, which it must not outlive. Calls at the same time must be for parts that do not
    /// overlap.
    pub(super) fn new(data: &mut [f32], n: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), n }
    }

    /// Calls `f` with elements `col..col + len` of a row.
    pub(super) fn row(self, row: usize, col: usize, len: usize, f: impl FnOnce(&mut [f32])) {
        let at = row * self.n + col;
        assert!(col + len <= self.n && at + len <= self.len);
        // SAFETY: in bounds by the assertion, and of the part that the caller computes.
        f(unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) });
    }
}

/// What is done to a tile before it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finish<'a> {
    pub(super) alpha: f32,
    /// One number for each column of the result.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) relu: bool,
}

/// A pointer to each operand of a tile, its strides, and what is done to it in the end.
#[cfg(target_arch = "x86_64")]
struct Tile {
    k: usize,
    a: *const f32,
    lda: usize,
    b: *const f32,
    row: usize,
    panel: usize,
    out: *mut f32,
    ldo: usize,
    alpha: f32,
    bias: *const f32,
    relu: bool,
}

/// `R` rows by `V` vectors of 8 columns, two to a panel.
///
/// # Safety
/// AVX2 and FMA are there, and the pointers are good for the tile.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const V: usize>(t: &Tile) {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_mul_ps, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_storeu_ps,
    };
    // SAFETY: the caller's promise; vectors `v` of a tile lie within its columns.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); V]; R];
        for p in 0..t.k {
            let b: [_; V] = std::array::from_fn(|v| _mm256_loadu_ps(t.b.add(v / 2 * t.panel + p * t.row + v % 2 * 8)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = _mm256_broadcast_ss(&*t.a.add(r * t.lda + p));
                for v in 0..V {
                    sums[v] = _mm256_fmadd_ps(a, b[v], sums[v]);
                }
            }
        }
        let (alpha, zero) = (_mm256_set1_ps(t.alpha), _mm256_setzero_ps());
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, mut x) in sums.into_iter().enumerate() {
                if t.alpha != 1.0 {
                    x = _mm256_mul_ps(x, alpha);
                }
                if !t.bias.is_null() {
                    x = _mm256_add_ps(x, _mm256_loadu_ps(t.bias.add(v * 8)));
                }
                if t.relu {
                    // NaN stays, and so does the sign of a zero: the second operand is given back then.
                    x = _mm256_max_ps(zero, x);
                }
                _mm256_storeu_ps(t.out.add(r * t.ldo + v * 8), x);
            }
        }
    }
}

/// Computes a part of `a x b`; `a` has columns side by side.
#[cfg(target_arch = "x86_64")]
pub(super) fn part(k: usize, a: Matrix<f32>, start: usize, b: Panels, part: Part, out: Out, finish: Finish) {
    let (n, full) = (out.n, out.n / WIDTH);
    let ((top, height), (left, across)) = (part.rows, part.panels);
    assert!(available() && a.col == 1 && a.holds(start + top * a.row, height, k) && b.holds(k, left + across));
    assert!((left + across - 1) * WIDTH < n && (top + height) * n <= out.len && finish.bias.is_none_or(|b| b.len() >= n));
    let width = n - full * WIDTH;
    let mut tail_bias = [0f32; WIDTH];
    if let (Some(bias), true) = (finish.bias, width > 0) {
        tail_bias[..width].copy_from_slice(&bias[full * WIDTH..n]);
    }
    let mut scratch = [0f32; HEIGHT * WIDTH];
    let mut j = left;
    while j < left + across {
        let tail = j >= full;
        let side_by_side = (left + across).min(full) - j.min(full);
        let mut row = 0;
        let mut step = 1;
        while row < height {
            let remaining = height - row;
            // Two halves are faster than a tall tile and a low one.
            let rows = if remaining > HEIGHT && remaining < 2 * HEIGHT { remaining.div_ceil(2) } else { remaining.min(HEIGHT) };
            // SAFETY: the assertions: rows `top..top + height` of `a`, panels `left..left + across` of `b` and those
            // columns of `out` and the bias are there; columns past `n` go to `scratch`.
            unsafe {
                let first = (top + row) * n + j * WIDTH;
                let mut t = Tile {
                    k,
                    a: a.data.as_ptr().add(if k == 0 { 0 } else { start + (top + row) * a.row }),
                    lda: a.row,
                    b: b.data.as_ptr().add(if k == 0 { 0 } else { j * b.panel }),
                    row: b.row,
                    panel: b.panel,
                    out: out.data.add(first),
                    ldo: n,
                    alpha: finish.alpha,
                    bias: finish.bias.map_or(std::ptr::null(), |b| b.as_ptr().add(j * WIDTH)),
                    relu: finish.relu,
                };
                if tail {
                    (t.out, t.ldo) = (scratch.as_mut_ptr(), WIDTH);
                    t.bias = finish.bias.map_or(std::ptr::null(), |_| tail_bias.as_ptr());
                    tail_tile(rows, width, &t);
                    for (r, line) in scratch.chunks(WIDTH).enumerate().take(rows) {
                        out.row(top + row + r, j * WIDTH, width, |to| to.copy_from_slice(&line[..width]));
                    }
                } else {
                    step = full_tile(rows, height, side_by_side, &t);
                }
            }
            row += rows;
        }
        j += step;
    }
}

/// Panels of the tile that was computed: several if all the rows of the part are few.
#[cfg(target_arch = "x86_64")]
unsafe fn full_tile(rows: usize, height: usize, side_by_side: usize, t: &Tile) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match (height, side_by_side) {
            (1, 4..) => (tile::<1, 8>(t), 4).1,
            (2, 2..) => (tile::<2, 4>(t), 2).1,
            (3, 2..) => (tile::<3, 4>(t), 2).1,
            _ => {
                match rows {
                    1 => tile::<1, 2>(t),
                    2 => tile::<2, 2>(t),
                    3 => tile::<3, 2>(t),
                    4 => tile::<4, 2>(t),
                    5 => tile::<5, 2>(t),
                    _ => tile::<6, 2>(t),
                }
                1
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn tail_tile(rows: usize, width: usize, t: &Tile) {
    // SAFETY: the caller's promise; a row of the scratch has room for both vectors.
    unsafe {
        match (rows, width <= 8) {
            (1, true) => tile_in::<1, 1>(t),
            (2, true) => tile_in::<2, 1>(t),
            (3, true) => tile_in::<3, 1>(t),
            (4, true) => tile_in::<4, 1>(t),
            (5, true) => tile_in::<5, 1>(t),
            (_, true) => tile_in::<6, 1>(t),
            (1, _) => tile_in::<1, 2>(t),
            (2, _) => tile_in::<2, 2>(t),
            (3, _) => tile_in::<3, 2>(t),
            (4, _) => tile_in::<4, 2>(t),
            (5, _) => tile_in::<5, 2>(t),
            _ => tile_in::<6, 2>(t),
        }
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn tile_in<const R: usize, const V: usize>(t: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { tile::<R, V>(t) }
}

/// `out[c] = a . b[c]` for columns that each lie together, `a.len()` apart: sums over 16 lanes, joined in one order.
#[cfg(target_arch = "x86_64")]
pub(super) fn dots(a: &[f32], b: &[f32], out: &mut [f32]) {
    assert!(available());
    for (x, b) in out.iter_mut().zip(b.chunks_exact(a.len().max(1))) {
        // SAFETY: the machine has the features.
        *x = unsafe { dot(a, b) };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 32;
    let mut sums = [0f32; LANES];
    let (x, y) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (rest_x, rest_y) = (x.remainder(), y.remainder());
    for (x, y) in x.zip(y) {
        for i in 0..LANES {
            sums[i] = x[i].mul_add(y[i], sums[i]);
        }
    }
    for (i, (x, y)) in rest_x.iter().zip(rest_y).enumerate() {
        sums[i] = x.mul_add(*y, sums[i]);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn part(_: usize, _: Matrix<f32>, _: usize, _: Panels, _: Part, _: Out, _: Finish) {
    unreachable!("this machine has no such instructions");
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn dots(_: &[f32], _: &[f32], _: &mut [f32]) {
    unreachable!("this machine has no such instructions");
}
