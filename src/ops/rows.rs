//! Loops over rows of numbers that many families share: folds in a fixed order, exponentials, softmax.

use super::gemm::Real;
use crate::tensor::Number;

/// Accumulators of a fold: wide enough for the widest vector registers, and fixed, so that sums are the same everywhere.
const LANES: usize = 16;
/// Elements that are folded before the result is merged into the total, which keeps `f32` sums near to exact.
const BLOCK: usize = 2048;

/// Folds a row: `combine(.., map(x))`, where `combine` is associative but for rounding and `init` its identity.
#[inline(always)]
pub fn fold<T: Number>(x: &[T], init: T, map: impl Fn(T) -> T, combine: impl Fn(T, T) -> T) -> T {
    let mut total = init;
    if x.len() < 2 * LANES {
        return x.iter().fold(init, |s, &v| combine(s, map(v)));
    }
    for block in x.chunks(BLOCK) {
        let mut lanes = [init; LANES];
        let chunks = block.chunks_exact(LANES);
        let rest = chunks.remainder();
        for c in chunks {
            for (l, &v) in lanes.iter_mut().zip(c) {
                *l = combine(*l, map(v));
            }
        }
        for (l, &v) in lanes.iter_mut().zip(rest) {
            *l = combine(*l, map(v));
        }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] = combine(lanes[i], lanes[i + width]);
            }
            width /= 2;
        }
        total = combine(total, lanes[0]);
    }
    total
}

/// Sum of a row.
#[inline(always)]
pub fn sum<T: Number>(x: &[T]) -> T {
    fold(x, T::ZERO, |v| v, T::add)
}

/// Sum of `map(x)` over a row.
#[inline(always)]
pub fn sum_by<T: Number>(x: &[T], map: impl Fn(T) -> T) -> T {
    fold(x, T::ZERO, map, T::add)
}

/// The greatest of a row; NaN if one is, the least value for an empty row.
#[inline(always)]
pub fn max<T: Number>(x: &[T]) -> T {
    fold(x, T::lowest(), |v| v, T::greater_of)
}

/// Mean and variance (of the population) of a row.
#[inline(always)]
pub fn moments<T: Real>(x: &[T]) -> (T, T) {
    let n = T::from_f64(x.len() as f64);
    let mean = sum(x) / n;
    (mean, sum_by(x, |v| (v - mean) * (v - mean)) / n)
}

/// `exp(x)` for `x <= 0`, in a form that compilers vectorise; within 2 units in the last place, 0 below -87.3.
#[inline(always)]
pub fn exp_neg_f32(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1) * r + 0.5;
    let y = p * r * r + r + 1.0;
    // The integer stands in the low bits; a cast that saturates would go number by number.
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let scale = f32::from_bits(power.wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { y * scale }
}

/// Runs a loop compiled for the widest vectors that the machine has. Nothing is fused or reordered, so the result is the
/// same as without.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the feature.
            #[allow(unsafe_code)]
            return unsafe { avx2(f) };
        }
    }
    f()
}

/// A long loop for [`simd_run`]: its body is marked to be put in place wherever it is called, which a closure cannot be, and
/// LLVM leaves long closures as functions of their own that have no wide vectors.
pub trait Body {
    /// What it gives.
    type Output;
    /// The loop; `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// As [`simd`].
#[inline(always)]
pub fn simd_run<B: Body>(body: B) -> B::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn avx2<B: Body>(body: B) -> B::Output {
            body.run()
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the feature.
            #[allow(unsafe_code)]
            return unsafe { avx2(body) };
        }
    }
    body.run()
}

/// What is subtracted from a row before its exponentials: its greatest value, or 0 where that is infinite.
#[inline(always)]
pub fn shift<T: Real>(max: T) -> T {
    if max == T::lowest() { T::ZERO } else { max }
}

/// Softmax of a row, in place; a row of nothing but negative infinity becomes zeros.
pub fn softmax<T: Real>(x: &mut [T]) {
    simd_run(Softmax(x));
}

struct Softmax<'a, T>(&'a mut [T]);

impl<T: Real> Body for Softmax<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let x = self.0;
        let top = shift(max(x));
        x.iter_mut().for_each(|v| *v = (*v - top).exp_neg());
        let total = sum(x);
        let scale = if total == T::ZERO { T::ZERO } else { T::ONE / total };
        x.iter_mut().for_each(|v| *v = *v * scale);
    }
}

/// Logarithm of the softmax of a row, in place.
pub fn log_softmax<T: Real>(x: &mut [T]) {
    simd(|| {
        let top = shift(max(x));
        let total = sum_by(x, |v| (v - top).exp_neg()).ln() + top;
        x.iter_mut().for_each(|v| *v = *v - total);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_neg_is_close_and_ends_in_zero() {
        for i in 0..8600 {
            let x = -(i as f32) / 100.0;
            let want = x.exp();
            assert!((exp_neg_f32(x) - want).abs() <= 3e-7 * want, "{x}: {} {want}", exp_neg_f32(x));
        }
        assert_eq!(exp_neg_f32(f32::NEG_INFINITY), 0.0);
        assert!(exp_neg_f32(f32::NAN).is_nan());
        assert_eq!(exp_neg_f32(0.0), 1.0);
    }

    #[test]
    fn sums_keep_their_precision() {
        let x = vec![0.1f32; 1_000_000];
        assert!((sum(&x) - 100_000.0).abs() < 1.0);
        assert!(max(&[1.0, f32::NAN, 2.0]).is_nan());
        assert_eq!(max::<f32>(&[]), f32::NEG_INFINITY);
    }
}
