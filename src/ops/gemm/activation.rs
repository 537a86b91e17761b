//! The functions that are applied to each element of a product, and the floats that products are computed in.

use super::{Dims, Epilogue, Matrix, packed};
use crate::invalid;
use crate::ops::{OpError, rows};
use crate::tensor::Float;

/// A float that is computed in as it is: `f32` or `f64`.
pub trait Real: Float<Wide = Self> + num_traits::Float {
    /// `exp(x)` for `x <= 0`; for `f32` in a form that is vectorised.
    fn exp_neg(self) -> Self;
    /// `x / 2 * (1 + erf(x / sqrt 2))`.
    fn gelu(self) -> Self;

    /// Computes [`super::product`], whose checks have been made, if there is a kernel for these floats.
    fn product(
        _: Dims,
        _alpha: Self,
        _a: Matrix<Self>,
        _b: Matrix<Self>,
        _starts: &[(usize, usize)],
        _out: &mut [Self],
        _: &Epilogue<Self>,
    ) -> bool {
        false
    }
}

impl Real for f32 {
    #[inline(always)]
    fn exp_neg(self) -> Self {
        rows::exp_neg_f32(self)
    }

    #[inline(always)]
    fn gelu(self) -> Self {
        let half = 0.5 * self * erfc_f32(self.abs() * std::f32::consts::FRAC_1_SQRT_2);
        if self < 0.0 { half } else { self - half }
    }

    fn product(
        dims: Dims,
        alpha: f32,
        a: Matrix<f32>,
        b: Matrix<f32>,
        starts: &[(usize, usize)],
        out: &mut [f32],
        epilogue: &Epilogue<f32>,
    ) -> bool {
        packed::product(dims, alpha, a, packed::Rhs::Plain(b), starts, out, epilogue)
    }
}

impl Real for f64 {
    fn exp_neg(self) -> Self {
        self.exp()
    }

    fn gelu(self) -> Self {
        0.5 * self * (1.0 + erf(self * std::f64::consts::FRAC_1_SQRT_2))
    }
}

/// `1 - erf(x)` for `x >= 0`, with a relative error below 1e-6 (a rational argument and a polynomial exponent).
#[inline(always)]
fn erfc_f32(x: f32) -> f32 {
    const POLY: [f32; 10] = [
        -1.265_512_2,
        1.000_023_7,
        0.374_091_96,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_204,
        1.488_515_9,
        -0.822_152_2,
        0.170_872_77,
    ];
    let t = 1.0 / (1.0 + 0.5 * x);
    let exponent = POLY.iter().rev().fold(0.0, |s, c| s * t + c);
    t * rows::exp_neg_f32(exponent - x * x)
}

/// The function that is applied to each element last.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Activation {
    /// None.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `x` above 0, else `alpha * x`.
    LeakyRelu(f32),
    /// `x` above 0, else `alpha * (exp(x) - 1)`.
    Elu(f32),
    /// `alpha * x + beta` clipped to 0..1.
    HardSigmoid(f32, f32),
    /// `ln(1 + exp(x))`.
    Softplus,
    /// `x / (1 + |x|)`.
    Softsign,
    /// `x / 2 * (1 + erf(x / sqrt 2))`.
    Gelu,
}

impl Activation {
    /// By ONNX's name, with the values of `activation_alpha` and `activation_beta`.
    pub fn parse(name: &str, alpha: Option<f32>, beta: Option<f32>) -> Result<Self, OpError> {
        Ok(match name {
            "" => Self::None,
            "Relu" => Self::Relu,
            "Sigmoid" => Self::Sigmoid,
            "Tanh" => Self::Tanh,
            "LeakyRelu" => Self::LeakyRelu(alpha.unwrap_or(0.01)),
            "Elu" => Self::Elu(alpha.unwrap_or(1.0)),
            "HardSigmoid" => Self::HardSigmoid(alpha.unwrap_or(0.2), beta.unwrap_or(0.5)),
            "Softplus" => Self::Softplus,
            "Softsign" => Self::Softsign,
            "Gelu" => Self::Gelu,
            other => invalid!("activation {other:?} is not known"),
        })
    }

    pub(super) fn apply<T: Real>(self, row: &mut [T]) {
        let c = |x: f32| T::from_f64(x.into());
        let (zero, one) = (T::ZERO, T::ONE);
        fn each<T: Real>(row: &mut [T], f: impl Fn(T) -> T) {
            rows::simd(|| row.iter_mut().for_each(|x| *x = f(*x)));
        }
        match self {
            Self::None => {}
            Self::Relu => each(row, |x| if x < zero { zero } else { x }),
            Self::Sigmoid => each(row, sigmoid),
            Self::Tanh => each(row, |x| x.tanh()),
            Self::LeakyRelu(alpha) => each(row, |x| if x < zero { x * c(alpha) } else { x }),
            Self::Elu(alpha) => each(row, |x| if x < zero { c(alpha) * x.exp_m1() } else { x }),
            Self::HardSigmoid(alpha, beta) => each(row, |x| (c(alpha) * x + c(beta)).max(zero).min(one)),
            Self::Softplus => each(row, |x| x.max(zero) + (-x.abs()).exp().ln_1p()),
            Self::Softsign => each(row, |x| x / (one + x.abs())),
            Self::Gelu => each(row, T::gelu),
        }
    }
}

/// `1 / (1 + exp(-x))`, without overflow on either side.
#[inline(always)]
pub fn sigmoid<T: Real>(x: T) -> T {
    let e = (-x.abs()).exp_neg();
    (if x < T::ZERO { e } else { T::ONE }) / (T::ONE + e)
}

/// The error function to about 1e-12: its Taylor series near 0, a continued fraction of erfc beyond.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() || a > 6.0 {
        return if a.is_nan() { x } else { x.signum() };
    }
    if a < 2.5 {
        let (mut term, mut sum, square) = (a, a, a * a);
        for n in 1..60 {
            term *= -square / f64::from(n);
            let step = term / f64::from(2 * n + 1);
            sum += step;
            if step.abs() < 1e-17 {
                break;
            }
        }
        return x.signum() * sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let mut fraction = 0.0;
    for n in (1..=50).rev() {
        fraction = f64::from(n) / 2.0 / (a + fraction);
    }
    x.signum() * (1.0 - (-a * a).exp() / ((a + fraction) * std::f64::consts::PI.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_keeps_its_relative_precision() {
        for i in -1000..=1000 {
            let x = i as f32 / 100.0;
            let want = if x < -5.0 { f64::NAN } else { f64::from(x).gelu() };
            let found = f64::from(x.gelu());
            assert!(want.is_nan() || (found - want).abs() <= 3e-6 * want.abs(), "{x}: {found} {want}");
        }
        assert!(f32::NAN.gelu().is_nan());
    }

    #[test]
    fn erf_matches_known_values() {
        for (x, want) in
            [(0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (2.0, 0.995_322_265_018_952_7), (3.0, 0.999_977_909_503_001_4)]
        {
            assert!((erf(x) - want).abs() < 1e-12 && (erf(-x) + want).abs() < 1e-12, "{x}: {}", erf(x));
        }
    }
}
