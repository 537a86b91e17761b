//! The Mersenne Twister as numpy's `RandomState` seeds and reads it, so that a seeded op draws what the reference
//! implementation of ONNX draws. One stream is read in order: the number of threads changes nothing.

use std::hash::{BuildHasher, Hasher, RandomState};

const SIZE: usize = 624;

/// A stream of random numbers.
pub struct Mersenne {
    state: [u32; SIZE],
    next: usize,
    /// The second of a pair of normal numbers.
    spare: Option<f64>,
}

impl Mersenne {
    /// The stream of a seed, or one that nobody can foresee.
    pub fn new(seed: Option<u32>) -> Self {
        let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() as u32);
        let mut state = [seed; SIZE];
        for i in 1..SIZE {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: SIZE, spare: None }
    }

    fn refill(&mut self) {
        for i in 0..SIZE {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % SIZE] & 0x7fff_ffff);
            let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + 397) % SIZE] ^ (y >> 1) ^ twist;
        }
        self.next = 0;
    }

    fn bits(&mut self) -> u32 {
        if self.next == SIZE {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// From 0 up to but not 1.
    pub fn uniform(&mut self) -> f64 {
        let (high, low) = (self.bits() >> 5, self.bits() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// Of the standard normal distribution, by the polar method.
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (x, y) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let square = x * x + y * y;
            if square < 1.0 && square != 0.0 {
                let scale = (-2.0 * square.ln() / square).sqrt();
                self.spare = Some(scale * x);
                return scale * y;
            }
        }
    }

    /// Whether an event of probability `p` happens, by inversion of the binomial distribution.
    pub fn event(&mut self, p: f64) -> bool {
        if p.is_nan() {
            return false;
        }
        let rare = (if p <= 0.5 { p } else { 1.0 - p }).max(0.0);
        let none = (1.0 - rare).ln().exp();
        let happens = loop {
            let left = self.uniform() - none;
            if left <= 0.0 {
                break false;
            }
            // Rounding may leave a trace that neither outcome takes: drawn again.
            if left <= rare * none / (1.0 - rare) {
                break true;
            }
        };
        happens == (p <= 0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_that_of_numpy() {
        let mut r = Mersenne::new(Some(123_456_789));
        assert_eq!([r.bits(), r.bits(), r.bits()], [2_288_500_408, 4_254_805_660, 2_294_099_250]);
        let mut r = Mersenne::new(Some(7));
        assert_eq!([r.uniform(), r.uniform(), r.uniform()], [0.076_308_289_373_957_17, 0.779_918_792_240_114_6, 0.438_409_231_440_893_5]);
        let mut r = Mersenne::new(Some(7));
        let expected = [1.690_525_703_800_356, -0.465_937_370_540_832_8, 0.032_820_163_678_584_4, 0.407_516_282_996_507_83];
        assert_eq!([r.normal(), r.normal(), r.normal(), r.normal()], expected);
        let mut r = Mersenne::new(Some(7));
        let events = [0.2, 0.5, 0.8, 0.0, 1.0, 0.9, 0.3, 0.6].map(|p| r.event(p));
        assert_eq!(events, [false, true, true, false, true, true, false, true]);
    }
}
