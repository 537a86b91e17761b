//! Functions of one float that several ops share. The `f32` versions have no branches and call nothing, so that loops over
//! them become vector code and every machine computes the same bits.

/// A float that ops compute in.
pub trait Math: Copy {
    /// e to the power of `x`.
    fn exp(x: Self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(x: Self) -> Self;
    /// The error function.
    fn erf(x: Self) -> Self;
    /// `1 / (1 + exp(-x))`, accurate on both sides.
    fn sigmoid(x: Self) -> Self;
    /// `ln(1 + x)` for `x` from 0 to 1.
    fn ln_1p(x: Self) -> Self;
    /// `ln(1 + exp(x))`, without overflow.
    fn softplus(x: Self) -> Self;
    /// `x` times the normal distribution's cumulative function.
    fn gelu(x: Self) -> Self;
    /// [`Math::gelu`] as approximated by tanh.
    fn gelu_tanh(x: Self) -> Self;
}

macro_rules! derived {
    ($t:ty) => {
        #[inline]
        fn sigmoid(x: $t) -> $t {
            let e = <Self as Math>::exp(-x.abs());
            let numerator = if x < 0.0 { e } else { 1.0 };
            numerator / (1.0 + e)
        }
        #[inline]
        fn softplus(x: $t) -> $t {
            // Not `max`, which would lose NaN.
            let positive = if x < 0.0 { 0.0 } else { x };
            positive + <Self as Math>::ln_1p(<Self as Math>::exp(-x.abs()))
        }
        #[inline]
        fn gelu(x: $t) -> $t {
            0.5 * x * (1.0 + <Self as Math>::erf(x * (0.5 as $t).sqrt()))
        }
        #[inline]
        fn gelu_tanh(x: $t) -> $t {
            // sqrt(2 / pi)
            let scale = std::f64::consts::FRAC_2_SQRT_PI as $t * std::f64::consts::FRAC_1_SQRT_2 as $t;
            0.5 * x * (1.0 + <Self as Math>::tanh(scale * (x + 0.044_715 * x * x * x)))
        }
    };
}

impl Math for f64 {
    #[inline]
    fn exp(x: f64) -> f64 {
        x.exp()
    }
    #[inline]
    fn tanh(x: f64) -> f64 {
        x.tanh()
    }
    #[inline]
    fn erf(x: f64) -> f64 {
        libm::erf(x)
    }
    #[inline]
    fn ln_1p(x: f64) -> f64 {
        x.ln_1p()
    }
    derived!(f64);
}

/// A polynomial by Horner's rule, highest power first.
#[inline]
fn poly<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    coefficients.into_iter().fold(0.0, |y, c| y * x + c)
}

impl Math for f32 {
    /// Within 2 units in the last place. `exp(n ln 2 + r)`, with the power of two put in by its bits.
    #[inline]
    fn exp(x: f32) -> f32 {
        // Adding this rounds to an integer, which then stands in the low bits.
        const ROUND: f32 = 12_582_912.0;
        // Comparisons this way round keep NaN.
        let x = if x < -104.0 { -104.0 } else { x };
        let x = if x > 89.0 { 89.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let whole = shifted - ROUND;
        let r = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
        let p = poly(r, [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
        let y = p * r * r + r + 1.0;
        // In two steps: the power may be past the exponent's range where the product is not.
        let half = n >> 1;
        let power = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
        y * power(half) * power(n.wrapping_sub(half))
    }

    /// Within 2 units in the last place.
    #[inline]
    fn tanh(x: f32) -> f32 {
        let a = x.abs();
        let z = x * x;
        let small = poly(z, [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1]) * z * x + x;
        let large = (1.0 - 2.0 / (<Self as Math>::exp(2.0 * a) + 1.0)).copysign(x);
        if a < 0.625 { small } else { large }
    }

    /// Within 3 units in the last place: a polynomial near zero, else 1 less the exponential of one fitted to the
    /// logarithm of erfc.
    #[inline]
    fn erf(x: f32) -> f32 {
        let a = x.abs();
        let a = if a > 4.0 { 4.0 } else { a };
        let small =
            a * poly(a * a, [-5.881_64e-4, 4.971_958_7e-3, -2.675_242e-2, 1.128_143_7e-1, -3.761_246e-1, std::f32::consts::FRAC_2_SQRT_PI]);
        #[rustfmt::skip]
        let log = poly(a, [
            1.615_045e-6, -4.561_102e-5, 5.929_505_6e-4, -4.741_118e-3, 2.636_741_5e-2, -1.099_833e-1, -6.319_313_6e-1,
            -1.130_170_3, 3.041_767_6e-4,
        ]);
        let large = 1.0 - <Self as Math>::exp(log);
        (if a < 0.95 { small } else { large }).copysign(x)
    }

    /// Twice the series of the area tangent of `x / (2 + x)`, which is at most a third.
    #[inline]
    fn ln_1p(x: f32) -> f32 {
        let s = x / (2.0 + x);
        2.0 * s * poly(s * s, [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 0.2, 1.0 / 3.0, 1.0])
    }
    derived!(f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, f: fn(f32) -> f32, exact: fn(f64) -> f64, range: f32) {
        for i in -20_000..=20_000 {
            let x = range * i as f32 / 20_000.0;
            let (found, expected) = (f64::from(f(x)), exact(f64::from(x)));
            let tolerance = 5e-7 * expected.abs() + 1e-37;
            assert!((found - expected).abs() <= tolerance, "{name}({x}) = {found}, expected {expected}");
        }
    }

    #[test]
    fn single_precision_is_accurate() {
        check("exp", Math::exp, f64::exp, 87.0);
        check("tanh", Math::tanh, f64::tanh, 12.0);
        check("erf", Math::erf, libm::erf, 6.0);
        check("sigmoid", Math::sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 80.0);
        check("ln_1p", |x| Math::ln_1p(x.abs()), |x| x.abs().ln_1p(), 1.0);
        check("softplus", Math::softplus, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), 80.0);
    }

    #[test]
    fn the_ends_are_exact() {
        assert_eq!(<f32 as Math>::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(<f32 as Math>::exp(88.8), f32::INFINITY);
        assert_eq!(<f32 as Math>::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(<f32 as Math>::exp(0.0), 1.0);
        assert!((<f32 as Math>::exp(-100.0) - 3.78e-44).abs() < 2e-45);
        assert_eq!(<f32 as Math>::tanh(f32::NEG_INFINITY), -1.0);
        assert_eq!(<f32 as Math>::erf(f32::INFINITY), 1.0);
        assert_eq!(<f32 as Math>::sigmoid(-200.0), 0.0);
        assert_eq!(<f32 as Math>::softplus(1000.0), 1000.0);
        for f in [Math::exp, Math::tanh, Math::erf, Math::sigmoid, Math::softplus, Math::gelu] as [fn(f32) -> f32; 6] {
            assert!(f(f32::NAN).is_nan());
        }
    }
}
