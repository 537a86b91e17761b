//! Vectors of `f32`: the instructions of each width under the same names, and what is done to sums before they are stored.
#![allow(unsafe_code)]

/// What is done to a sum before it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finish<'a> {
    pub(super) alpha: f32,
    /// One number for each column of the result.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) relu: bool,
}

impl Finish<'_> {
    /// For the columns from `col` on.
    pub(super) fn at(&self, col: usize) -> Ends {
        Ends { alpha: self.alpha, bias: self.bias.map_or(std::ptr::null(), |b| b[col..].as_ptr()), relu: self.relu }
    }
}

/// As [`Finish`], for some of the columns.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) alpha: f32,
    /// The bias of the first column, or null.
    pub(super) bias: *const f32,
    pub(super) relu: bool,
}

/// The vectors to compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vectors {
    Avx2,
    Avx512,
}

impl Vectors {
    /// The widest that this machine has; `None` where it has neither.
    pub(super) fn widest() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let least = has!("avx2") && has!("fma") && has!("bmi1") && has!("popcnt");
            least.then(|| if has!("avx512f") { Self::Avx512 } else { Self::Avx2 })
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! finish {
    ($features:literal) => {
        /// What becomes of the sums of the columns from `at` on.
        ///
        /// # Safety
        /// The features are there, and the bias has those columns.
        #[inline]
        #[target_feature(enable = $features)]
        pub(in super::super) unsafe fn finish(sums: Vector, at: usize, ends: &super::Ends) -> Vector {
            // A negative term too small for a number makes a sum of -0, which a term of 0 would end: whether zeros were added
            // or left out is not to be seen.
            let mut x = add(sums, zero());
            if ends.alpha != 1.0 {
                x = mul(x, broadcast(ends.alpha));
            }
            if !ends.bias.is_null() {
                // SAFETY: the caller's promise.
                x = add(x, unsafe { load(ends.bias.add(at)) });
            }
            // NaN stays, and so does the sign of a zero: the second operand is given back then.
            if ends.relu { max(zero(), x) } else { x }
        }
    };
}

/// Eight lanes.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    pub(in super::super) use std::arch::x86_64::{
        __m256 as Vector, _mm256_add_ps as add, _mm256_fmadd_ps as fmadd, _mm256_loadu_ps as load, _mm256_max_ps as max,
        _mm256_mul_ps as mul, _mm256_set1_ps as broadcast, _mm256_setzero_ps as zero, _mm256_storeu_ps as store,
    };
    pub(in super::super) const LANES: usize = 8;
    finish!("avx2,fma");
}

/// Sixteen lanes.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    pub(in super::super) use std::arch::x86_64::{
        __m512 as Vector, _mm512_add_ps as add, _mm512_fmadd_ps as fmadd, _mm512_loadu_ps as load, _mm512_max_ps as max,
        _mm512_mul_ps as mul, _mm512_set1_ps as broadcast, _mm512_setzero_ps as zero, _mm512_storeu_ps as store,
    };
    pub(in super::super) const LANES: usize = 16;
    finish!("avx512f");
}
