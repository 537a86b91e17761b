//! The inner loops of the `f32` product, for AVX2 with FMA and for AVX-512. Each element is one chain of fused multiply-adds over
//! `k` in its order, so that its bits depend neither on the rows beside it, nor on the tile it is in, nor on how `B` lies, nor on
//! the width of the vectors.
#![allow(unsafe_code)]

use super::Matrix;
use super::vectors::{Ends, Finish, Vectors};

/// Columns of a panel of `B`.
pub(super) const WIDTH: usize = 16;
/// Rows of the largest tile.
pub(super) const HEIGHT: usize = 12;

/// Whether this machine has instructions for it.
pub(super) fn available() -> bool {
    Vectors::widest().is_some()
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
    /// Where rows `rows.0..rows.0 + rows.1` of the result have column `col`, and the elements from a row to the next.
    pub(super) fn part(self, rows: (usize, usize), col: usize) -> (*mut f32, usize) {
        assert!(col < self.n && (rows.0 + rows.1) * self.n <= self.len);
        // SAFETY: in bounds by the assertion.
        (unsafe { self.data.add(rows.0 * self.n + col) }, self.n)
    }

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
    ends: Ends,
}

/// `R` rows by `V` vectors, whose columns are those of one panel after the other.
#[cfg(target_arch = "x86_64")]
macro_rules! tile {
    ($name:ident, $of:ident, $features:literal) => {
        /// # Safety
        /// The features are there, and the pointers are good for the tile.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const V: usize>(t: &Tile) {
            use super::vectors::$of::*;
            // SAFETY: the caller's promise; vectors `v` of a tile lie within its columns.
            unsafe {
                let mut sums = [[zero(); V]; R];
                for p in 0..t.k {
                    let at = |v: usize| v * LANES / WIDTH * t.panel + p * t.row + v * LANES % WIDTH;
                    let b: [Vector; V] = std::array::from_fn(|v| load(t.b.add(at(v))));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let a = broadcast(*t.a.add(r * t.lda + p));
                        for v in 0..V {
                            sums[v] = fmadd(a, b[v], sums[v]);
                        }
                    }
                }
                for (r, sums) in sums.into_iter().enumerate() {
                    for (v, x) in sums.into_iter().enumerate() {
                        store(t.out.add(r * t.ldo + v * LANES), finish(x, v * LANES, &t.ends));
                    }
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
tile!(tile_avx2, avx2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
tile!(tile_avx512, avx512, "avx512f");

#[cfg(target_arch = "x86_64")]
impl Vectors {
    /// Rows of the largest tile.
    fn rows(self) -> usize {
        match self {
            Self::Avx2 => 6,
            Self::Avx512 => HEIGHT,
        }
    }
}

/// Computes a part of `a x b`; `a` has columns side by side.
#[cfg(target_arch = "x86_64")]
pub(super) fn part(k: usize, a: Matrix<f32>, start: usize, b: Panels, part: Part, out: Out, finish: Finish) {
    part_by(Vectors::widest().unwrap_or(Vectors::Avx2), k, a, start, b, part, out, finish);
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::too_many_arguments)]
fn part_by(widest: Vectors, k: usize, a: Matrix<f32>, start: usize, b: Panels, part: Part, out: Out, finish: Finish) {
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
        // Half a panel is one of the short ones.
        let vectors = if tail && width <= WIDTH / 2 { Vectors::Avx2 } else { widest };
        let tallest = vectors.rows();
        let mut row = 0;
        let mut step = 1;
        while row < height {
            let remaining = height - row;
            // Two halves are faster than a tall tile and a low one.
            let rows = if remaining > tallest && remaining < 2 * tallest { remaining.div_ceil(2) } else { remaining.min(tallest) };
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
                    ends: finish.at(j * WIDTH),
                };
                if tail {
                    (t.out, t.ldo) = (scratch.as_mut_ptr(), WIDTH);
                    t.ends.bias = finish.bias.map_or(std::ptr::null(), |_| tail_bias.as_ptr());
                    match vectors {
                        Vectors::Avx2 => tail_tile(rows, width, &t),
                        Vectors::Avx512 => wide_panel(rows, &t),
                    }
                    for (r, line) in scratch.chunks(WIDTH).enumerate().take(rows) {
                        out.row(top + row + r, j * WIDTH, width, |to| to.copy_from_slice(&line[..width]));
                    }
                } else {
                    step = match vectors {
                        Vectors::Avx2 => full_tile(rows, height, side_by_side, &t),
                        Vectors::Avx512 => wide_tile(rows, height, side_by_side, &t),
                    };
                }
            }
            row += rows;
        }
        j += step;
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($tile:ident, $v:literal, $rows:expr, $t:expr, $($r:literal)* | $most:literal) => {
        match $rows {
            $($r => $tile::<$r, $v>($t),)*
            _ => $tile::<$most, $v>($t),
        }
    };
}

/// Panels of the tile that was computed: several if all the rows of the part are few.
#[cfg(target_arch = "x86_64")]
unsafe fn full_tile(rows: usize, height: usize, side_by_side: usize, t: &Tile) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match (height, side_by_side) {
            (1, 4..) => (tile_avx2::<1, 8>(t), 4).1,
            (2, 2..) => (tile_avx2::<2, 4>(t), 2).1,
            _ => (by_rows!(tile_avx2, 2, rows, t, 1 2 3 4 5 | 6), 1).1,
        }
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn tail_tile(rows: usize, width: usize, t: &Tile) {
    // SAFETY: the caller's promise; a row of the scratch has room for both vectors.
    unsafe {
        match width <= 8 {
            true => by_rows!(tile_avx2, 1, rows, t, 1 2 3 4 5 | 6),
            false => by_rows!(tile_avx2, 2, rows, t, 1 2 3 4 5 | 6),
        }
    }
}

/// As [`full_tile`], in vectors of a panel each.
#[cfg(target_arch = "x86_64")]
unsafe fn wide_tile(rows: usize, height: usize, side_by_side: usize, t: &Tile) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match (height, side_by_side) {
            (1, 8..) => (tile_avx512::<1, 8>(t), 8).1,
            (1..=3, 4..) => (by_rows!(tile_avx512, 4, rows, t, 1 2 | 3), 4).1,
            (_, 2..) => (by_rows!(tile_avx512, 2, rows, t, 1 2 3 4 5 6 7 8 9 10 11 | 12), 2).1,
            _ => (wide_panel(rows, t), 1).1,
        }
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn wide_panel(rows: usize, t: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { by_rows!(tile_avx512, 1, rows, t, 1 2 3 4 5 6 7 8 9 10 11 | 12) }
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

#[cfg(target_arch = "x86_64")]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bit_depends_on_the_vectors() {
        if Vectors::widest() != Some(Vectors::Avx512) {
            println!("skipped: this machine has no AVX-512");
            return;
        }
        let number = |i: usize| (i * 7919 % 1013) as f32 / 64.0 - 7.0;
        for n in [4usize, 8, 9, 16, 17, 40, 63, 128, 150, 200] {
            for (m, k) in [(1, 33), (2, 5), (3, 40), (4, 7), (6, 31), (11, 8), (13, 20), (23, 3), (25, 64), (50, 0)] {
                let a: Vec<f32> = (0..m * k).map(number).collect();
                let b: Vec<f32> = (0..n.div_ceil(WIDTH) * WIDTH * k).map(|i| number(i + 5)).collect();
                let bias: Vec<f32> = (0..n).map(|i| number(i + 9)).collect();
                let panels = Panels { data: &b, row: WIDTH, panel: k * WIDTH };
                let whole = Part { rows: (0, m), panels: (0, n.div_ceil(WIDTH)) };
                let finish = Finish { alpha: 0.3, bias: Some(&bias), relu: true };
                let by = |vectors| {
                    let mut out = vec![f32::NAN; m * n];
                    part_by(vectors, k, Matrix::new(&a, k, false), 0, panels, whole, Out::new(&mut out, n), finish);
                    out
                };
                assert_eq!(by(Vectors::Avx2), by(Vectors::Avx512), "{m} {n} {k}");
            }
        }
    }
}
