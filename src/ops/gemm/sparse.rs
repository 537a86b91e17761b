//! The `f32` product whose first operand has many zeros, such as Relu gives: they are left out. Each element stays one chain of
//! fused multiply-adds over `k` in its order, and a term of zero changes no bit of it as long as `B` is finite.
//!
//! A row of the result is computed in bands of as many columns as there are vectors to sum them in; of a band, a few rows of `B`
//! at a time stay in the nearest cache while they are multiplied with a row of `A` after the other.
#![allow(unsafe_code)]

use super::Matrix;
use super::kernel::{Out, WIDTH};
use super::vectors::{Ends, Finish, Vectors};
use std::cell::Cell;
use std::ops::Range;

/// Panels of `B` at least: with fewer, there are too few sums to keep the units busy.
const LEAST: usize = 4;
/// Bytes of `B` that stay in the nearest cache.
const NEAREST: usize = 26 << 10;
/// Panels of the widest band: the registers hold the sums of a row.
const MOST: usize = 13;
/// Rows of `A` that are multiplied with the same part of `B`.
const ROWS: usize = 128;

/// Sixteen elements where the caches have their lines.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([f32; WIDTH]);

thread_local! {
    static SUMS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Some panels of `B`.
#[derive(Debug, Clone, Copy)]
struct Band {
    first: usize,
    panels: usize,
}

/// `B`, `[k, n]`, laid out in bands: of each band one row after the other.
#[derive(Debug, Clone)]
pub(super) struct Bands {
    k: usize,
    n: usize,
    vectors: Vectors,
    lines: Vec<Line>,
}

/// Panels of the widest band.
fn widest(vectors: Vectors) -> usize {
    match vectors {
        Vectors::Avx2 => 6,
        Vectors::Avx512 => MOST,
    }
}

/// The bands of `n` columns, of about the same width.
fn bands(vectors: Vectors, n: usize) -> impl Iterator<Item = Band> {
    let panels = n.div_ceil(WIDTH);
    let count = panels.div_ceil(widest(vectors));
    (0..count).map(move |i| {
        let first = panels * i / count;
        Band { first, panels: panels * (i + 1) / count - first }
    })
}

/// Rows of `B` that are taken together: a bit of a word for each.
fn step(vectors: Vectors, n: usize) -> usize {
    let panels = n.div_ceil(WIDTH);
    let most = panels.div_ceil(panels.div_ceil(widest(vectors)));
    (NEAREST / (most * size_of::<Line>()) / 8 * 8).clamp(8, 64)
}

impl Bands {
    /// From panels of [`WIDTH`] columns; `None` if there are elements that are not finite, whose product with zero is no zero.
    pub(super) fn new(panels: &[f32], k: usize, n: usize) -> Option<Self> {
        Self::by(Vectors::widest()?, panels, k, n)
    }

    fn by(vectors: Vectors, panels: &[f32], k: usize, n: usize) -> Option<Self> {
        if !panels.iter().all(|x| x.is_finite()) {
            return None;
        }
        let mut lines = Vec::with_capacity(panels.len() / WIDTH);
        for band in bands(vectors, n) {
            for p in 0..k {
                let row = (band.first..band.first + band.panels).map(|j| (j * k + p) * WIDTH);
                lines.extend(row.map(|at| Line(std::array::from_fn(|i| panels[at + i]))));
            }
        }
        Some(Self { k, n, vectors, lines })
    }

    /// How many parts a row of the result is computed in.
    pub(super) fn count(&self) -> usize {
        bands(self.vectors, self.n).count()
    }
}

/// Where some rows of `A` are not zero: for each step of `k`, a word for each row.
#[derive(Debug)]
pub(super) struct Nonzero {
    rows: (usize, usize),
    words: Vec<u64>,
}

impl Nonzero {
    /// Of rows `rows.0..rows.0 + rows.1` of `a`, which starts at `start`; `None` if too few are zero for a product with `[k, n]`
    /// to be faster without them.
    pub(super) fn of(a: Matrix<f32>, start: usize, rows: (usize, usize), k: usize, n: usize) -> Option<Self> {
        Self::by(Vectors::widest()?, a, start, rows, k, n)
    }

    fn by(vectors: Vectors, a: Matrix<f32>, start: usize, rows: (usize, usize), k: usize, n: usize) -> Option<Self> {
        if n.div_ceil(WIDTH) < LEAST || k == 0 || rows.1 == 0 {
            return None;
        }
        let row = |r: usize| &a.data[start + (rows.0 + r) * a.row..][..k];
        // Sixteenths of the elements that may be there: each costs more than in a tile, whose rows share what is read.
        let most = match rows.1 {
            1 => 13,
            2..8 => 6,
            8..16 => 9,
            _ => 11,
        };
        // What has no zeros shall not be searched for them.
        let sample = [0, rows.1 / 2].map(|r| row(r).iter().filter(|x| **x != 0.0).count());
        if sample.iter().all(|count| count * 16 > k * (most + 2)) {
            return None;
        }
        let step = step(vectors, n);
        let mut words = vec![0; k.div_ceil(step) * rows.1];
        #[allow(unused_unsafe)]
        // SAFETY: the machine has the features.
        let count: usize = (0..rows.1).map(|r| unsafe { find(row(r), step, &mut words[r..], rows.1) }).sum();
        (count * 16 <= k * rows.1 * most).then_some(Self { rows, words })
    }
}

/// Notes where `row` is not zero, a word for each `step` elements, `apart` from each other; gives how many are not.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn find(row: &[f32], step: usize, words: &mut [u64], apart: usize) -> usize {
    use std::arch::x86_64::*;
    let mut count = 0;
    for (part, word) in row.chunks(step).zip(words.iter_mut().step_by(apart)) {
        let whole = part.chunks_exact(8);
        let rest = whole.remainder();
        let mut bits = 0;
        for (i, x) in rest.iter().enumerate() {
            bits |= u64::from(*x != 0.0) << (part.len() - rest.len() + i);
        }
        for (i, eight) in whole.enumerate() {
            // SAFETY: eight elements are there.
            let there = unsafe { _mm256_cmp_ps::<_CMP_NEQ_UQ>(_mm256_loadu_ps(eight.as_ptr()), _mm256_setzero_ps()) };
            bits |= u64::from(_mm256_movemask_ps(there) as u32) << (i * 8);
        }
        *word = bits;
        count += bits.count_ones() as usize;
    }
    count
}

#[cfg(not(target_arch = "x86_64"))]
fn find(_: &[f32], _: usize, _: &mut [u64], _: usize) -> usize {
    unreachable!("this machine has no such instructions");
}

/// Rows of one band times one step of `k`.
struct Step<'a> {
    rows: usize,
    a: *const f32,
    lda: usize,
    b: *const Line,
    nonzero: *const u64,
    /// The sums, row by row; empty before the first step.
    sums: *mut Line,
    first: bool,
    /// Where the result goes after the last step, the elements from a row to the next, and what is done to it.
    last: Option<(*mut f32, usize, &'a Ends)>,
}

#[cfg(target_arch = "x86_64")]
macro_rules! rows {
    ($name:ident, $of:ident, $features:literal) => {
        /// # Safety
        /// The features are there, and the pointers are good for the step.
        #[target_feature(enable = $features)]
        unsafe fn $name<const V: usize>(s: &Step) {
            use super::vectors::$of::*;
            // SAFETY: the caller's promise: `V` vectors make a row of the band.
            unsafe {
                for r in 0..s.rows {
                    let own = s.sums.cast::<f32>().add(r * V * LANES);
                    let mut sums: [Vector; V] = [zero(); V];
                    if !s.first {
                        sums = std::array::from_fn(|v| load(own.add(v * LANES)));
                    }
                    let a = s.a.add(r * s.lda);
                    let mut left = *s.nonzero.add(r);
                    while left != 0 {
                        let p = left.trailing_zeros() as usize;
                        left &= left - 1;
                        let (x, b) = (broadcast(*a.add(p)), s.b.cast::<f32>().add(p * V * LANES));
                        for v in 0..V {
                            sums[v] = fmadd(x, load(b.add(v * LANES)), sums[v]);
                        }
                    }
                    match s.last {
                        Some((out, ldo, ends)) => {
                            for v in 0..V {
                                store(out.add(r * ldo + v * LANES), finish(sums[v], v * LANES, ends));
                            }
                        }
                        None => {
                            for v in 0..V {
                                store(own.add(v * LANES), sums[v]);
                            }
                        }
                    }
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
rows!(rows_avx2, avx2, "avx2,fma,bmi1");
#[cfg(target_arch = "x86_64")]
rows!(rows_avx512, avx512, "avx512f,bmi1");

#[cfg(target_arch = "x86_64")]
unsafe fn multiply(vectors: Vectors, panels: usize, s: &Step) {
    macro_rules! by_panels {
        ($rows:ident, $per:literal, $($p:literal)*) => {
            match panels {
                $($p => $rows::<{ $p * $per }>(s),)*
                _ => unreachable!("a band of {panels} panels"),
            }
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        match vectors {
            Vectors::Avx2 => by_panels!(rows_avx2, 2, 1 2 3 4 5 6),
            Vectors::Avx512 => by_panels!(rows_avx512, 1, 1 2 3 4 5 6 7 8 9 10 11 12 13),
        }
    }
}

/// A product, of which [`Product::part`] computes a part.
pub(super) struct Product<'a> {
    pub(super) a: Matrix<'a, f32>,
    /// Where `a` starts.
    pub(super) start: usize,
    /// What was found in `a`.
    pub(super) nonzero: Nonzero,
    pub(super) b: &'a Bands,
    pub(super) out: Out,
    pub(super) finish: Finish<'a>,
}

impl Product<'_> {
    /// Computes some of the rows of [`Nonzero`] in some of the [`Bands`]; gives the columns.
    pub(super) fn part(&self, rows: Range<usize>, which: Range<usize>) -> Range<usize> {
        let (Bands { k, n, vectors, .. }, Nonzero { rows: (top, height), words }) = (self.b, &self.nonzero);
        let fits = self.a.col == 1 && self.a.holds(self.start + top * self.a.row, *height, *k) && rows.end <= *height;
        assert!(fits && words.len() == k.div_ceil(step(*vectors, *n)) * height && self.finish.bias.is_none_or(|b| b.len() >= *n));
        // Taken, not borrowed, as the scratch of panels.
        let mut sums = SUMS.take();
        let groups = rows.len().div_ceil(ROWS);
        let mut columns = 0..0;
        for band in bands(*vectors, *n).skip(which.start).take(which.len()) {
            sums.resize(sums.len().max(ROWS.min(rows.len()) * band.panels), Line([0.0; WIDTH]));
            for g in 0..groups {
                let end = |g| rows.start + rows.len() * g / groups;
                self.group(end(g)..end(g + 1), band, &mut sums);
            }
            let from = if columns.is_empty() { band.first * WIDTH } else { columns.start };
            columns = from..(*n).min((band.first + band.panels) * WIDTH);
        }
        SUMS.set(sums);
        columns
    }

    /// Rows that have room in `sums`, whose bounds [`Self::part`] has checked.
    #[cfg(target_arch = "x86_64")]
    fn group(&self, rows: Range<usize>, band: Band, sums: &mut [Line]) {
        let (Bands { k, n, vectors, lines }, Nonzero { rows: (top, height), words }) = (self.b, &self.nonzero);
        let (first, width) = (band.first * WIDTH, band.panels * WIDTH);
        let there = width.min(n - first);
        let step = step(*vectors, *n);
        let mut ends = self.finish.at(first);
        let mut bias = [0f32; MOST * WIDTH];
        let room = sums[..rows.len() * band.panels].as_mut_ptr();
        let (mut to, mut ldo) = self.out.part((top + rows.start, rows.len()), first);
        // Columns past the last are computed where nobody looks.
        if there < width {
            (to, ldo) = (room.cast(), width);
            if let Some(all) = self.finish.bias {
                bias[..there].copy_from_slice(&all[first..*n]);
                ends.bias = bias.as_ptr();
            }
        }
        for (i, from) in (0..*k).step_by(step).enumerate() {
            let b = &lines[band.first * k + from * band.panels..][..step.min(k - from) * band.panels];
            let nonzero = &words[i * height + rows.start..i * height + rows.end];
            let s = Step {
                rows: rows.len(),
                a: self.a.data[self.start + (top + rows.start) * self.a.row + from..].as_ptr(),
                lda: self.a.row,
                b: b.as_ptr(),
                nonzero: nonzero.as_ptr(),
                sums: room,
                first: from == 0,
                last: (from + step >= *k).then_some((to, ldo, &ends)),
            };
            // SAFETY: the words have a bit for each of the `b.len() / band.panels` rows of `b` at most, the rows of `a` are as long as
            // `k`, `out` and the bias have the columns of the band unless they were exchanged for such that have.
            unsafe { multiply(*vectors, band.panels, &s) };
        }
        if there < width {
            for (r, line) in sums.chunks(band.panels).take(rows.len()).enumerate() {
                let copy = |to: &mut [f32]| to.chunks_mut(WIDTH).zip(line).for_each(|(to, x)| to.copy_from_slice(&x.0[..to.len()]));
                self.out.row(top + rows.start + r, first, there, copy);
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn group(&self, _: Range<usize>, _: Band, _: &mut [Line]) {
        unreachable!("this machine has no such instructions");
    }
}

#[cfg(target_arch = "x86_64")]
#[cfg(test)]
mod tests {
    use super::super::kernel::{Panels, Part, part};
    use super::*;

    /// What is zero but for one element in so many.
    fn thin(len: usize, one_in: usize) -> Vec<f32> {
        let number = |i: usize| (i * 7919 % 1013) as f32 / 64.0 - 7.0;
        (0..len).map(|i| if i * 31 % 97 % one_in == 0 { number(i) } else { [0.0, -0.0][i % 2] }).collect()
    }

    fn tiles(a: &[f32], b: &[f32], m: usize, k: usize, n: usize, finish: Finish) -> Vec<f32> {
        let mut out = vec![f32::NAN; m * n];
        let (panels, whole) = (Panels { data: b, row: WIDTH, panel: k * WIDTH }, Part { rows: (0, m), panels: (0, n.div_ceil(WIDTH)) });
        part(k, Matrix::new(a, k, false), 0, panels, whole, Out::new(&mut out, n), finish);
        out
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn no_bit_depends_on_whether_zeros_are_left_out() {
        let Some(widest) = Vectors::widest() else { return println!("skipped: this machine has no AVX2") };
        for n in [49usize, 64, 100, 112, 200, 208, 209, 400, 431] {
            for (m, k, one_in) in [(1, 33, 2), (2, 7, 4), (9, 64, 2), (17, 65, 3), (130, 100, 2), (300, 31, 5)] {
                let (mut a, b) = (thin(m * k, one_in), thin(n.div_ceil(WIDTH) * WIDTH * k, 1));
                a[m * k / 2] = f32::INFINITY;
                let bias = thin(n, 1);
                let finish = Finish { alpha: 0.3, bias: Some(&bias), relu: m % 2 == 0 };
                let want = tiles(&a, &b, m, k, n, finish);
                for vectors in [Vectors::Avx2, widest] {
                    let at = Matrix::new(&a, k, false);
                    let bands = Bands::by(vectors, &b, k, n).expect("all is finite");
                    let nonzero = Nonzero::by(vectors, at, 0, (0, m), k, n).expect("most are zero");
                    let mut out = vec![f32::NAN; m * n];
                    let product = Product { a: at, start: 0, nonzero, b: &bands, out: Out::new(&mut out, n), finish };
                    let (half, mut columns) = (m / 2, 0);
                    for i in 0..bands.count() {
                        let top = product.part(0..half, i..i + 1);
                        assert_eq!(top, product.part(half..m, i..i + 1));
                        assert_eq!(top.start, columns);
                        columns = top.end;
                    }
                    assert_eq!(columns, n);
                    assert_eq!(bits(&out), bits(&want), "{vectors:?}: {m} {k} {n}");
                }
            }
        }
    }

    #[test]
    fn a_sum_too_small_for_a_number_is_the_same_zero() {
        let Some(bands) = Bands::new(&[1e-30; 8 * 64], 8, 64) else { return println!("skipped: this machine has no AVX2") };
        let a = [-1e-30, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0f32];
        let at = Matrix::new(&a[..], 8, false);
        let finish = Finish { alpha: 1.0, bias: None, relu: false };
        let mut out = [f32::NAN; 64];
        let nonzero = Nonzero::of(at, 0, (0, 1), 8, 64).expect("most are zero");
        Product { a: at, start: 0, nonzero, b: &bands, out: Out::new(&mut out, 64), finish }.part(0..1, 0..bands.count());
        assert_eq!(bits(&out), bits(&tiles(&a, &[1e-30; 8 * 64], 1, 8, 64, finish)));
        assert_eq!(bits(&out), [0; 64]);
    }

    #[test]
    fn what_must_not_or_need_not_be_left_out_is_not() {
        let mut b = vec![1.0; 64 * 4];
        b[7] = f32::INFINITY;
        assert!(Bands::new(&b, 4, 64).is_none());
        let dense = thin(40 * 100, 1);
        assert!(Nonzero::of(Matrix::new(&dense, 100, false), 0, (0, 40), 100, 400).is_none());
    }
}
