//! Fast Fourier transforms of any length: mixed radix where the factors are small, Bluestein's convolution where not.

use crate::ops::OpError;
use crate::ops::util::{Real, filled};
use num_complex::Complex;
use std::f64::consts::PI;

/// Factors above this are left to the convolution.
const LARGEST: usize = 64;

/// A discrete Fourier transform of one length and direction, without scaling.
pub struct Transform<T> {
    len: usize,
    inverse: bool,
    /// e^(±2πik/len).
    roots: Vec<Complex<T>>,
    factors: Vec<usize>,
    chirp: Option<Box<Chirp>>,
}

/// What Bluestein's convolution needs: the chirp, and the transform of the filter.
struct Chirp {
    chirp: Vec<Complex<f64>>,
    filter: Vec<Complex<f64>>,
    inner: Transform<f64>,
}

/// Fours, then a two, which goes first, then odd numbers.
fn factors(mut n: usize) -> Vec<usize> {
    let mut out = Vec::new();
    while n > 0 && n.is_multiple_of(4) {
        out.push(4);
        n /= 4;
    }
    if n > 0 && n.is_multiple_of(2) {
        out.insert(0, 2);
        n /= 2;
    }
    let mut p = 3;
    while p * p <= n {
        while n.is_multiple_of(p) {
            out.push(p);
            n /= p;
        }
        p += 2;
    }
    if n > 1 {
        out.push(n);
    }
    out
}

impl<T: Real> Transform<T> {
    /// Prepares a transform.
    ///
    /// # Errors
    /// A length that does not fit memory.
    pub fn new(len: usize, inverse: bool) -> Result<Self, OpError> {
        let sign = if inverse { 2.0 } else { -2.0 };
        let factors = factors(len);
        if factors.iter().any(|&f| f > LARGEST) {
            let chirp = Some(Box::new(Chirp::new(len, sign)?));
            return Ok(Self { len, inverse, roots: Vec::new(), factors: Vec::new(), chirp });
        }
        let mut roots = filled(len, Complex::new(T::zero(), T::zero()))?;
        for (k, r) in roots.iter_mut().enumerate() {
            let c = Complex::cis(sign * PI * k as f64 / len as f64);
            *r = Complex::new(T::of(c.re), T::of(c.im));
        }
        Ok(Self { len, inverse, roots, factors, chirp: None })
    }

    /// Transforms in place.
    pub fn run(&self, x: &mut Vec<Complex<T>>) {
        if let Some(chirp) = &self.chirp {
            return chirp.run(x);
        }
        let mut other = x.clone();
        let mut done = 1;
        for &p in &self.factors {
            self.pass(p, done, x, &mut other);
            std::mem::swap(x, &mut other);
            done *= p;
        }
    }

    /// One factor: butterflies of `p` elements, each output but the first turned by its root.
    fn pass(&self, p: usize, done: usize, from: &[Complex<T>], to: &mut [Complex<T>]) {
        let inner = self.len / (done * p);
        let mut a = vec![Complex::new(T::zero(), T::zero()); p];
        let mut b = a.clone();
        for k in 0..done {
            for i in 0..inner {
                a.iter_mut().enumerate().for_each(|(j, a)| *a = from[i + inner * (j + p * k)]);
                self.butterfly(&a, &mut b);
                for (j, &b) in b.iter().enumerate() {
                    let turned = if i > 0 && j > 0 { b * self.roots[j * done * i] } else { b };
                    to[i + inner * (k + done * j)] = turned;
                }
            }
        }
    }

    /// The transform of a few elements.
    fn butterfly(&self, a: &[Complex<T>], b: &mut [Complex<T>]) {
        // A quarter turn in the direction of the transform.
        let turn = |c: Complex<T>| if self.inverse { Complex::new(-c.im, c.re) } else { Complex::new(c.im, -c.re) };
        match (a, b) {
            (&[a0, a1], [b0, b1]) => (*b0, *b1) = (a0 + a1, a0 - a1),
            (&[a0, a1, a2, a3], [b0, b1, b2, b3]) => {
                let ((s, d), (t, e)) = ((a0 + a2, a0 - a2), (a1 + a3, turn(a1 - a3)));
                (*b0, *b1, *b2, *b3) = (s + t, d + e, s - t, d - e);
            }
            (a, b) => self.odd(a, b),
        }
    }

    /// An odd number of elements: those that mirror each other share their products.
    fn odd(&self, a: &[Complex<T>], b: &mut [Complex<T>]) {
        let p = a.len();
        let root = |k: usize| self.roots[k % p * (self.len / p)];
        b[0] = (1..=p / 2).fold(a[0], |sum, j| sum + (a[j] + a[p - j]));
        for u in 1..=p / 2 {
            let mut even = a[0];
            let mut odd: Option<Complex<T>> = None;
            for j in 1..=p / 2 {
                let (w, s, d) = (root(u * j), a[j] + a[p - j], a[j] - a[p - j]);
                even = Complex::new(even.re + w.re * s.re, even.im + w.re * s.im);
                let part = Complex::new(w.im * d.im, w.im * d.re);
                odd = Some(odd.map_or(part, |o| o + part));
            }
            let odd = odd.unwrap_or(a[0]);
            b[u] = Complex::new(even.re - odd.re, even.im + odd.im);
            b[p - u] = Complex::new(even.re + odd.re, even.im - odd.im);
        }
    }
}

impl Chirp {
    fn new(len: usize, sign: f64) -> Result<Self, OpError> {
        let inner = Transform::new((2 * len - 1).next_power_of_two(), false)?;
        let mut chirp = filled(len, Complex::default())?;
        for (k, c) in chirp.iter_mut().enumerate() {
            // k² modulo 2·len, so that the angle keeps its digits.
            let square = (k as u128 * k as u128 % (2 * len as u128)) as f64;
            *c = Complex::cis(sign / 2.0 * PI * square / len as f64);
        }
        let mut filter = filled(inner.len, Complex::default())?;
        for (k, c) in chirp.iter().enumerate() {
            filter[k] = c.conj();
            filter[(inner.len - k) % inner.len] = c.conj();
        }
        inner.run(&mut filter);
        Ok(Self { chirp, filter, inner })
    }

    fn run<T: Real>(&self, x: &mut [Complex<T>]) {
        let mut a = vec![Complex::default(); self.inner.len];
        for (a, (x, c)) in a.iter_mut().zip(x.iter().zip(&self.chirp)) {
            *a = Complex::new(x.re.wide(), x.im.wide()) * c;
        }
        self.inner.run(&mut a);
        // The inverse transform is the conjugate of that of the conjugate.
        a.iter_mut().zip(&self.filter).for_each(|(a, f)| *a = (*a * f).conj());
        self.inner.run(&mut a);
        let scale = 1.0 / self.inner.len as f64;
        for (x, (a, c)) in x.iter_mut().zip(a.iter().zip(&self.chirp)) {
            let y = a.conj() * scale * c;
            *x = Complex::new(T::of(y.re), T::of(y.im));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(x: &[Complex<f64>]) -> Vec<Complex<f64>> {
        let n = x.len();
        let term = |k: usize, s: usize| x[s] * Complex::cis(-2.0 * PI * (k * s % n) as f64 / n as f64);
        (0..n).map(|k| (0..n).map(|s| term(k, s)).sum()).collect()
    }

    #[test]
    fn transforms_of_any_length_equal_the_sum() {
        for n in [1, 2, 3, 4, 5, 7, 8, 10, 12, 15, 31, 64, 67, 100, 134] {
            let x: Vec<Complex<f64>> = (0..n).map(|i| Complex::new((i as f64).sin(), (i * i % 7) as f64)).collect();
            let mut y = x.clone();
            Transform::new(n, false).unwrap().run(&mut y);
            assert!(y.iter().zip(direct(&x)).all(|(a, b)| (a - b).norm() < 1e-9 * n as f64), "length {n}");
            let back = Transform::<f64>::new(n, true).unwrap();
            back.run(&mut y);
            assert!(y.iter().zip(&x).all(|(a, b)| (a / n as f64 - b).norm() < 1e-9), "length {n}, inverse");
        }
    }
}
