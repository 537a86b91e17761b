//! The 8-bit and 4-bit floats of ONNX (float8 of Micikevicius et al. 2022 and the FNUZ variants; OCP MX for E8M0 and E2M1).

use bytemuck::{Pod, Zeroable};

/// A small float format: mantissa bits, exponent bias, the greatest finite value, and the codes of NaN (where
/// that is the sign bit, NaN has no sign) and infinity.
struct Format {
    mantissa: i32,
    bias: i32,
    max: f64,
    nan: u8,
    inf: Option<u8>,
    /// "finite, NaN, unsigned zero": one NaN at 0x80, no negative zero.
    fnuz: bool,
}

const E4M3FN: Format = Format { mantissa: 3, bias: 7, max: 448.0, nan: 0x7f, inf: None, fnuz: false };
const E4M3FNUZ: Format = Format { mantissa: 3, bias: 8, max: 240.0, nan: 0x80, inf: None, fnuz: true };
const E5M2: Format = Format { mantissa: 2, bias: 15, max: 57344.0, nan: 0x7e, inf: Some(0x7c), fnuz: false };
const E5M2FNUZ: Format = Format { mantissa: 2, bias: 16, max: 57344.0, nan: 0x80, inf: None, fnuz: true };
/// The 4-bit E2M1, sign in bit 3: no infinity (it saturates), no NaN (it becomes negative zero, as `ml_dtypes` has it).
const E2M1: Format = Format { mantissa: 1, bias: 1, max: 6.0, nan: 0x08, inf: None, fnuz: false };

impl Format {
    /// Rounds to nearest, ties to even. Past the greatest value: that value when `saturate`, else infinity or NaN.
    fn encode(&self, x: f64, sign_bit: u8, saturate: bool) -> u8 {
        let sign = if x.is_sign_negative() { sign_bit } else { 0 };
        if x.is_nan() {
            return self.nan | sign;
        }
        let one = 1u32 << self.mantissa;
        let a = x.abs();
        let mut exp = exponent(a).clamp(1 - self.bias, self.bias + 2);
        let mut q = (a * 2f64.powi(self.mantissa - exp)).round_ties_even();
        if q >= f64::from(2 * one) {
            exp += 1;
            q /= 2.0;
        }
        if q * 2f64.powi(exp - self.mantissa) > self.max {
            return match self.inf {
                _ if saturate => self.encode(self.max, sign_bit, true) | sign,
                Some(inf) => inf | sign,
                None => self.nan | sign,
            };
        }
        let q = q as u32;
        let code = if q < one { q } else { (((exp + self.bias) as u32) << self.mantissa) + (q - one) } as u8;
        if code == 0 && self.fnuz { 0 } else { code | sign }
    }

    fn decode(&self, code: u8, sign_bit: u8) -> f32 {
        let magnitude = code & (sign_bit - 1);
        if self.fnuz && code == self.nan {
            return f32::NAN;
        }
        let sign = if code & sign_bit != 0 { -1.0 } else { 1.0 };
        if let Some(inf) = self.inf {
            if magnitude == inf {
                return sign * f32::INFINITY;
            }
            if magnitude > inf {
                return f32::NAN;
            }
        } else if !self.fnuz && sign_bit == 0x80 && magnitude == self.nan {
            return f32::NAN;
        }
        let (exp, mant) = (i32::from(magnitude) >> self.mantissa, i32::from(magnitude) & ((1 << self.mantissa) - 1));
        let (exp, mant) = if exp == 0 { (1, mant) } else { (exp, mant + (1 << self.mantissa)) };
        sign * mant as f32 * 2f32.powi(exp - self.bias - self.mantissa)
    }
}

/// The exponent of a finite number's leading bit; for zero, subnormals and infinity one that is out of any small range.
fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

macro_rules! float8 {
    ($(#[$doc:meta] $name:ident, $format:ident;)*) => {$(
        #[$doc]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
        #[repr(transparent)]
        pub struct $name(pub u8);

        impl $name {
            /// Rounds to nearest, ties to even; past the greatest value it saturates, or else becomes infinity or NaN.
            pub fn from_f32(x: f32, saturate: bool) -> Self {
                Self::from_f64(x.into(), saturate)
            }
            /// As [`from_f32`](Self::from_f32).
            pub fn from_f64(x: f64, saturate: bool) -> Self {
                Self($format.encode(x, 0x80, saturate))
            }
            /// Exact.
            pub fn to_f32(self) -> f32 {
                $format.decode(self.0, 0x80)
            }
        }
    )*};
}
float8! {
    /// 4 exponent bits, 3 mantissa bits, no infinity.
    F8E4M3FN, E4M3FN;
    /// As E4M3FN, with bias 8, one NaN and no negative zero.
    F8E4M3FNUZ, E4M3FNUZ;
    /// 5 exponent bits, 2 mantissa bits, with infinities.
    F8E5M2, E5M2;
    /// As E5M2, with bias 16, one NaN, no infinity and no negative zero.
    F8E5M2FNUZ, E5M2FNUZ;
}

/// A power of two from 2^-127 to 2^127; the code 255 is NaN. It has no sign and no zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct F8E8M0(pub u8);

/// How a value between two powers of two is rounded to [`F8E8M0`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rounding {
    /// Away from zero.
    #[default]
    Up,
    /// Towards zero.
    Down,
    /// To the nearer; from the middle up.
    Nearest,
}

impl F8E8M0 {
    /// The power of two for `|x|`. Below the least and past the greatest: that power when `saturate`, else NaN.
    pub fn from_f64(x: f64, saturate: bool, rounding: Rounding) -> Self {
        if x.is_nan() {
            return Self(255);
        }
        let a = x.abs();
        let fraction = a.to_bits() & ((1 << 52) - 1);
        let up = match rounding {
            Rounding::Up => fraction != 0,
            Rounding::Down => false,
            Rounding::Nearest => fraction >> 51 != 0,
        };
        // Infinity rounds past the greatest, zero (with the exponent of a subnormal) below the least.
        let code = exponent(a) + 127 + i32::from(up);
        match u8::try_from(code) {
            Ok(code) if code < 255 => Self(code),
            _ if !saturate => Self(255),
            _ => Self(if code < 0 { 0 } else { 254 }),
        }
    }

    /// Exact (2^-127 is a subnormal `f32`).
    pub fn to_f32(self) -> f32 {
        match self.0 {
            255 => f32::NAN,
            0 => f32::from_bits(0x0040_0000),
            e => f32::from_bits(u32::from(e) << 23),
        }
    }
}

/// The 4-bit code of the nearest E2M1 value, ties to even, saturating.
pub fn f4e2m1_from_f32(x: f32) -> u8 {
    E2M1.encode(x.into(), 0x08, true)
}

/// The value of a 4-bit E2M1 code.
pub fn f4e2m1_to_f32(code: u8) -> f32 {
    E2M1.decode(code & 0x0f, 0x08)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_a_round_trip() {
        for code in 0..=255u8 {
            for (decoded, encoded) in [
                (F8E4M3FN(code).to_f32(), F8E4M3FN::from_f32(F8E4M3FN(code).to_f32(), false).0),
                (F8E4M3FNUZ(code).to_f32(), F8E4M3FNUZ::from_f32(F8E4M3FNUZ(code).to_f32(), false).0),
                (F8E5M2(code).to_f32(), F8E5M2::from_f32(F8E5M2(code).to_f32(), false).0),
                (F8E5M2FNUZ(code).to_f32(), F8E5M2FNUZ::from_f32(F8E5M2FNUZ(code).to_f32(), false).0),
            ] {
                assert!(decoded.is_nan() || encoded == code, "{code:#x} -> {decoded} -> {encoded:#x}");
            }
        }
        for code in 0..16u8 {
            assert_eq!(f4e2m1_from_f32(f4e2m1_to_f32(code)), code);
        }
    }

    #[test]
    fn known_values() {
        assert_eq!(F8E4M3FN(0x7e).to_f32(), 448.0);
        assert_eq!(F8E5M2(0x7b).to_f32(), 57344.0);
        assert_eq!(F8E4M3FNUZ(0x7f).to_f32(), 240.0);
        assert_eq!(F8E4M3FN::from_f32(1e9, true).0, 0x7e);
        assert_eq!(F8E4M3FN::from_f32(1e9, false).0, 0x7f);
        assert_eq!(F8E5M2::from_f32(-1e9, false).0, 0xfc);
        assert_eq!(F8E4M3FNUZ::from_f32(-0.0, true).0, 0);
        assert_eq!(F8E5M2::from_f32(f32::NAN, true).0, 0x7e);
        assert_eq!(F8E4M3FN::from_f64(f64::MAX, true).0, 0x7e);
        assert_eq!(F8E4M3FN::from_f64(f64::MIN_POSITIVE, true).0, 0);
        assert_eq!(f4e2m1_from_f32(f32::NAN), 8);
        assert_eq!(f4e2m1_from_f32(f32::NEG_INFINITY), 15);
        let values: Vec<f32> = (0..8).map(f4e2m1_to_f32).collect();
        assert_eq!(values, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
    }

    #[test]
    fn powers_of_two_round_three_ways() {
        let codes = |x: f64| [Rounding::Down, Rounding::Nearest, Rounding::Up].map(|r| F8E8M0::from_f64(x, true, r).0);
        assert_eq!(codes(1.0), [127, 127, 127]);
        assert_eq!(codes(1.1), [127, 127, 128]);
        assert_eq!(codes(1.5), [127, 128, 128]);
        assert_eq!(codes(0.0), [0, 0, 0]);
        assert_eq!(codes(f64::INFINITY), [254, 254, 254]);
        assert_eq!(codes(2f64.powi(-127)), [0, 0, 0]);
        assert_eq!(F8E8M0::from_f64(0.0, false, Rounding::Nearest).0, 255);
        assert_eq!(F8E8M0::from_f64(f64::INFINITY, false, Rounding::Nearest).0, 255);
        for code in 0..255 {
            assert_eq!(codes(F8E8M0(code).to_f32().into()), [code; 3]);
        }
    }
}
