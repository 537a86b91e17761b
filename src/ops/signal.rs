//! Signals: DFT and STFT by a fast transform of any length, window functions, and the mel filter bank.

use super::util::{Real, axis, checked_product, filled, for_each_chunk, real_dtype};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, one};
use crate::invalid;
use crate::ir::{Attrs, Dim};
use crate::tensor::{Complex64, DType, Tensor, cast};
use std::f64::consts::PI;

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("BlackmanWindow", &[17])
        .attrs(&["output_datatype", "periodic"])
        .infer(infer_window)
        .kernel(|cx| build_window(cx, |x| 0.42 - 0.5 * (2.0 * PI * x).cos() + 0.08 * (4.0 * PI * x).cos())),
    OpDef::new("DFT", &[17, 20]).inputs(1, 3).attrs(&["axis", "inverse", "onesided"]).infer(infer_dft).kernel(build_dft),
    OpDef::new("HammingWindow", &[17])
        .attrs(&["output_datatype", "periodic"])
        .infer(infer_window)
        .kernel(|cx| build_window(cx, |x| 25.0 / 46.0 - 21.0 / 46.0 * (2.0 * PI * x).cos())),
    OpDef::new("HannWindow", &[17])
        .attrs(&["output_datatype", "periodic"])
        .infer(infer_window)
        .kernel(|cx| build_window(cx, |x| (PI * x).sin().powi(2))),
    OpDef::new("MelWeightMatrix", &[17]).inputs(5, 5).attrs(&["output_datatype"]).infer(infer_mel).kernel(build_mel),
    OpDef::new("STFT", &[17]).inputs(2, 4).attrs(&["onesided"]).infer(infer_stft).kernel(build_stft),
];

/// The dtype that an attribute asks for.
fn output_dtype(attrs: &Attrs) -> Result<DType, OpError> {
    let code = attrs.int_or("output_datatype", 1)?;
    let dtype = i32::try_from(code).ok().and_then(DType::from_onnx).filter(|d| d.is_float() || d.is_int());
    match dtype {
        Some(d) => Ok(d),
        None => invalid!("attribute \"output_datatype\": {code} is no number type"),
    }
}

/// The only element of an integer input, as a length.
fn length(args: &Args, i: usize) -> Result<usize, OpError> {
    let list = args.ints(i)?;
    match list[..] {
        [n] if (0..1 << 40).contains(&n) => Ok(n as usize),
        [n] => invalid!("input {i}: {n} is out of range"),
        _ => invalid!("input {i}: expected one number, found {}", list.len()),
    }
}

/// As [`length`], of an optional input.
fn opt_length(args: &Args, i: usize) -> Result<Option<usize>, OpError> {
    if args.value(i).is_none() { Ok(None) } else { length(args, i).map(Some) }
}

/// An optional length that may be a constant: known to be left out, known, or not known.
fn known_length(cx: &InferCtx, i: usize) -> Option<Option<usize>> {
    if !cx.has(i) {
        return Some(None);
    }
    cx.ints(i).and_then(|v| usize::try_from(*v.first()?).ok()).map(Some)
}

fn infer_window(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let size = known_length(cx, 0).flatten().map_or(Dim::Unknown, Dim::Known);
    Ok(vec![Fact::tensor(output_dtype(cx.op.attrs)?, [size])])
}

/// A window function over 0 to 1.
fn build_window(cx: &OpCtx, f: fn(f64) -> f64) -> Result<Kernel, OpError> {
    let dtype = output_dtype(cx.attrs)?;
    let periodic = cx.attrs.int_or("periodic", 1)? != 0;
    Ok(Box::new(move |args| {
        let size = length(&args, 0)?;
        let mut y = filled(size, 1.0)?;
        let steps = if periodic { size } else { size.saturating_sub(1) };
        // A symmetric window of one element is 1.
        if steps > 0 {
            y.iter_mut().enumerate().for_each(|(i, y)| *y = f(i as f64 / steps as f64));
        }
        one(cast(&Tensor::vector(y), dtype)?)
    }))
}

/// A discrete Fourier transform of one length, without scaling.
struct Transform {
    len: usize,
    /// e^(±2πik/len), for lengths that are powers of two.
    roots: Vec<Complex64>,
    /// For other lengths, Bluestein's: the chirp, and the transform of the filter that it is convolved with.
    chirp: Option<(Vec<Complex64>, Vec<Complex64>, Box<Transform>)>,
}

impl Transform {
    fn new(len: usize, inverse: bool) -> Result<Self, OpError> {
        let sign = if inverse { 2.0 } else { -2.0 };
        if len.is_power_of_two() || len == 0 {
            let mut roots = filled(len / 2, Complex64::default())?;
            roots.iter_mut().enumerate().for_each(|(k, r)| *r = Complex64::cis(sign * PI * k as f64 / len as f64));
            return Ok(Self { len, roots, chirp: None });
        }
        let inner = Transform::new((2 * len - 1).next_power_of_two(), false)?;
        let mut chirp = filled(len, Complex64::default())?;
        for (k, c) in chirp.iter_mut().enumerate() {
            // k² modulo 2·len, so that the angle keeps its digits.
            let square = (k as u128 * k as u128 % (2 * len as u128)) as f64;
            *c = Complex64::cis(sign / 2.0 * PI * square / len as f64);
        }
        let mut filter = filled(inner.len, Complex64::default())?;
        for (k, c) in chirp.iter().enumerate() {
            filter[k] = c.conj();
            filter[(inner.len - k) % inner.len] = c.conj();
        }
        inner.run(&mut filter);
        Ok(Self { len, roots: Vec::new(), chirp: Some((chirp, filter, Box::new(inner))) })
    }

    fn run(&self, x: &mut [Complex64]) {
        let Some((chirp, filter, inner)) = &self.chirp else { return self.radix2(x) };
        let mut a = vec![Complex64::default(); inner.len];
        a.iter_mut().zip(x.iter().zip(chirp)).for_each(|(a, (x, c))| *a = x * c);
        inner.run(&mut a);
        // The inverse transform is the conjugate of that of the conjugate.
        a.iter_mut().zip(filter).for_each(|(a, f)| *a = (*a * f).conj());
        inner.run(&mut a);
        let scale = 1.0 / inner.len as f64;
        x.iter_mut().zip(a.iter().zip(chirp)).for_each(|(x, (a, c))| *x = a.conj() * scale * c);
    }

    fn radix2(&self, x: &mut [Complex64]) {
        let n = self.len;
        if n < 2 {
            return;
        }
        let shift = usize::BITS - n.trailing_zeros();
        for i in 0..n {
            let j = i.reverse_bits() >> shift;
            if i < j {
                x.swap(i, j);
            }
        }
        let mut half = 1;
        while half < n {
            let step = n / (2 * half);
            for block in x.chunks_mut(2 * half) {
                let (low, high) = block.split_at_mut(half);
                for (k, (a, b)) in low.iter_mut().zip(high).enumerate() {
                    let t = *b * self.roots[k * step];
                    (*a, *b) = (*a + t, *a - t);
                }
            }
            half *= 2;
        }
    }
}

/// What a DFT gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spectrum {
    /// As many bins as samples.
    Full,
    /// The bins of a real signal that are not mirrored.
    Half,
    /// Real samples, out of such bins.
    RealInverse,
    /// Complex samples.
    Inverse,
}

impl Spectrum {
    fn new(inverse: bool, onesided: bool) -> Self {
        match (inverse, onesided) {
            (false, false) => Spectrum::Full,
            (false, true) => Spectrum::Half,
            (true, false) => Spectrum::Inverse,
            (true, true) => Spectrum::RealInverse,
        }
    }

    /// How many outputs a transform of `n` samples has along its axis.
    fn outputs(self, n: usize) -> usize {
        if self == Spectrum::Half { n / 2 + 1 } else { n }
    }

    /// How many numbers each output has.
    fn parts(self) -> usize {
        if self == Spectrum::RealInverse { 1 } else { 2 }
    }

    /// Samples where none are asked for.
    fn default_length(self, n: usize) -> usize {
        if self == Spectrum::RealInverse { 2 * n.saturating_sub(1) } else { n }
    }
}

/// Axis of a DFT: an attribute before version 20, an input after.
fn dft_axis(attrs: &Attrs, version: i64, given: Option<i64>, rank: usize) -> Result<usize, OpError> {
    let a = if version < 20 { attrs.int_or("axis", 1)? } else { given.unwrap_or(-2) };
    match axis(a, rank)? {
        a if a + 1 == rank => invalid!("axis {a} holds the parts of complex numbers"),
        a => Ok(a),
    }
}

fn infer_dft(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let spectrum = Spectrum::new(cx.op.attrs.int_or("inverse", 0)? != 0, cx.op.attrs.int_or("onesided", 0)? != 0);
    let Some(x) = cx.shape(0) else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    let mut out = x.to_vec();
    let Some(last) = out.last_mut() else { invalid!("input 0: expected rank 2 or more, found 0") };
    *last = Dim::Known(spectrum.parts());
    let given = if cx.op.version < 20 || !cx.has(2) { Some(None) } else { cx.ints(2).and_then(|v| v.first().copied()).map(Some) };
    match given {
        Some(given) => {
            let axis = dft_axis(cx.op.attrs, cx.op.version, given, x.len())?;
            out[axis] = match known_length(cx, 1) {
                Some(Some(n)) => Dim::Known(spectrum.outputs(n)),
                Some(None) => match &x[axis] {
                    Dim::Known(n) => Dim::Known(spectrum.outputs(spectrum.default_length(*n))),
                    d if matches!(spectrum, Spectrum::Full | Spectrum::Inverse) => d.clone(),
                    _ => Dim::Unknown,
                },
                None => Dim::Unknown,
            };
        }
        None => {
            let n = out.len() - 1;
            out[..n].fill(Dim::Unknown);
        }
    }
    Ok(vec![Fact::partial(cx.dtype(0), Some(out))])
}

fn build_dft(cx: &OpCtx) -> Result<Kernel, OpError> {
    let spectrum = Spectrum::new(cx.attrs.int_or("inverse", 0)? != 0, cx.attrs.int_or("onesided", 0)? != 0);
    let (attrs, version) = (cx.attrs.clone(), cx.version);
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        if x.rank() < 2 || !(1..=2).contains(&x.shape()[x.rank() - 1]) {
            invalid!("input 0: expected rank 2 or more and a last dim of 1 or 2, found {}", x.shape());
        }
        let given = if version < 20 { None } else { args.opt_ints(2)?.and_then(|v| v.first().copied()) };
        let axis = dft_axis(&attrs, version, given, x.rank())?;
        let n = opt_length(&args, 1)?.unwrap_or(spectrum.default_length(x.shape()[axis]));
        if n == 0 {
            invalid!("a transform of no samples");
        }
        match real_dtype(x.dtype())? {
            DType::F64 => dft::<f64>(x, axis, n, spectrum),
            _ => dft::<f32>(x, axis, n, spectrum),
        }
    }))
}

fn dft<T: Real>(x: &Tensor, axis: usize, n: usize, spectrum: Spectrum) -> Result<Outputs, OpError> {
    let rank = x.rank();
    let (samples, parts) = (x.shape()[axis], x.shape()[rank - 1]);
    let inner = checked_product(&x.shape()[axis + 1..rank - 1])?;
    let outer = checked_product(&x.shape()[..axis])?;
    let wide = cast(x, T::DTYPE)?;
    let xs = wide.to_slice::<T>()?;
    let transform = Transform::new(n, matches!(spectrum, Spectrum::Inverse | Spectrum::RealInverse))?;
    let (outputs, out_parts) = (spectrum.outputs(n), spectrum.parts());
    // One line after the other, each along the axis; brought into place below.
    let line = outputs * out_parts;
    let mut lines = filled(checked_product(&[outer, inner, outputs, out_parts])?, T::zero())?;
    filled(n, Complex64::default())?;
    for_each_chunk(&mut lines, line, |i, out| {
        let (o, k) = (i / inner, i % inner);
        let at = |s: usize| {
            let at = ((o * samples + s) * inner + k) * parts;
            Complex64::new(xs[at].wide(), if parts == 2 { xs[at + 1].wide() } else { 0.0 })
        };
        let mut buffer = vec![Complex64::default(); n];
        if spectrum == Spectrum::RealInverse {
            for s in 0..samples.min(n / 2 + 1) {
                // What has no mirror is real.
                let alone = s == 0 || 2 * s == n;
                buffer[s] = if alone { at(s).re.into() } else { at(s) };
                if !alone {
                    buffer[n - s] = at(s).conj();
                }
            }
        } else {
            buffer.iter_mut().enumerate().take(samples).for_each(|(s, b)| *b = at(s));
        }
        transform.run(&mut buffer);
        let scale = if matches!(spectrum, Spectrum::Inverse | Spectrum::RealInverse) { 1.0 / n as f64 } else { 1.0 };
        for (out, c) in out.chunks_mut(out_parts).zip(&buffer) {
            out[0] = T::of(c.re * scale);
            if let Some(im) = out.get_mut(1) {
                *im = T::of(c.im * scale);
            }
        }
    });
    let mut shape = x.shape().clone();
    (shape[axis], shape[rank - 1]) = (outputs, out_parts);
    let y = if inner == 1 {
        lines
    } else {
        let mut y = filled(lines.len(), T::zero())?;
        for (i, values) in lines.chunks(line).enumerate() {
            for (s, value) in values.chunks(out_parts).enumerate() {
                y[((i / inner * outputs + s) * inner + i % inner) * out_parts..][..out_parts].copy_from_slice(value);
            }
        }
        y
    };
    one(cast(&Tensor::new(shape, y)?, x.dtype())?)
}

fn infer_stft(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let Some(x) = cx.shape(0) else { return Ok(vec![Fact::partial(cx.dtype(0), Some(vec![Dim::Unknown; 4]))]) };
    let [batch, samples, ..] = x else { invalid!("input 0: expected rank 3, found {}", x.len()) };
    let onesided = cx.op.attrs.int_or("onesided", 1)? != 0;
    let window = if cx.has(2) { cx.shape(2).and_then(|w| w.first()?.known()).map(Some) } else { Some(None) };
    let frame = match (known_length(cx, 3), window) {
        (Some(Some(n)), _) => Some(n),
        (Some(None), Some(Some(n))) => Some(n),
        (Some(None), Some(None)) => samples.known(),
        _ => None,
    };
    let frames = match (frame, samples.known(), known_length(cx, 1).flatten()) {
        (Some(f), Some(s), Some(step @ 1..)) if s >= f => Dim::Known((s - f) / step + 1),
        _ => Dim::Unknown,
    };
    let bins = frame.map_or(Dim::Unknown, |f| Dim::Known(if onesided { f / 2 + 1 } else { f }));
    Ok(vec![Fact::partial(cx.dtype(0), Some(vec![batch.clone(), frames, bins, Dim::Known(2)]))])
}

fn build_stft(cx: &OpCtx) -> Result<Kernel, OpError> {
    let onesided = cx.attrs.int_or("onesided", 1)? != 0;
    Ok(Box::new(move |args| match real_dtype(args.tensor(0)?.dtype())? {
        DType::F64 => stft::<f64>(&args, onesided),
        _ => stft::<f32>(&args, onesided),
    }))
}

fn stft<T: Real>(args: &Args, onesided: bool) -> Result<Outputs, OpError> {
    let x = args.tensor(0)?;
    let (batch, samples, parts) = match x.shape()[..] {
        [b, s] => (b, s, 1),
        [b, s, p @ 1..=2] => (b, s, p),
        _ => invalid!("input 0: expected [batch, samples, 1 or 2], found {}", x.shape()),
    };
    let step = length(args, 1)?;
    let window: Option<Vec<T>> = args.opt(2)?.map(|w| cast(w, T::DTYPE)?.into_vec()).transpose()?;
    let n = match (opt_length(args, 3)?, &window) {
        (Some(n), _) => n,
        (None, Some(w)) => w.len(),
        (None, None) => samples,
    };
    if step == 0 || n == 0 || n > samples {
        invalid!("frames of {n} samples, {step} apart, do not fit {samples} samples");
    }
    if let Some(w) = window.as_ref().filter(|w| w.len() > n) {
        invalid!("a window of {} elements does not fit frames of {n}", w.len());
    }
    let frames = (samples - n) / step + 1;
    let spectrum = Spectrum::new(false, onesided);
    let bins = spectrum.outputs(n);
    let wide = cast(x, T::DTYPE)?;
    let xs = wide.to_slice::<T>()?;
    let transform = Transform::new(n, false)?;
    let shape = [batch, frames, bins, 2];
    let mut y = filled(checked_product(&shape)?, T::zero())?;
    for_each_chunk(&mut y, bins * 2, |i, out| {
        let from = (i / frames * samples + i % frames * step) * parts;
        let mut buffer = vec![Complex64::default(); n];
        for (s, b) in buffer.iter_mut().enumerate() {
            let weight = window.as_ref().map_or(1.0, |w| w.get(s).map_or(0.0, |w| w.wide()));
            let at = from + s * parts;
            *b = Complex64::new(xs[at].wide(), if parts == 2 { xs[at + 1].wide() } else { 0.0 }) * weight;
        }
        transform.run(&mut buffer);
        for (out, c) in out.chunks_mut(2).zip(&buffer) {
            (out[0], out[1]) = (T::of(c.re), T::of(c.im));
        }
    });
    one(cast(&Tensor::new(shape, y)?, x.dtype())?)
}

fn infer_mel(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dim = |i: usize| known_length(cx, i).flatten();
    let bins = dim(1).map_or(Dim::Unknown, |n| Dim::Known(n / 2 + 1));
    Ok(vec![Fact::tensor(output_dtype(cx.op.attrs)?, [bins, dim(0).map_or(Dim::Unknown, Dim::Known)])])
}

fn build_mel(cx: &OpCtx) -> Result<Kernel, OpError> {
    let dtype = output_dtype(cx.attrs)?;
    Ok(Box::new(move |args| {
        let (bands, n, rate) = (length(&args, 0)?, length(&args, 1)?, length(&args, 2)?);
        let hertz = |i: usize| -> Result<f64, OpError> { Ok(cast(args.tensor(i)?, DType::F64)?.item()?) };
        let mel = |f: f64| 2595.0 * (f / 700.0).ln_1p() / 10f64.ln();
        let (low, high) = (mel(hertz(3)?), mel(hertz(4)?));
        if rate == 0 || !low.is_finite() || !high.is_finite() {
            invalid!("a sample rate of {rate} and edges at {low} and {high} mel make no filters");
        }
        let bins = n / 2 + 1;
        let step = (high - low) / (bands as f64 + 2.0);
        // The bin in which each edge of a band lies.
        let edge = |i: usize| {
            let frequency = 700.0 * ((low + i as f64 * step) / 2595.0 * 10f64.ln()).exp_m1();
            (((n as f64 + 1.0) * frequency / rate as f64).floor().max(0.0)) as usize
        };
        let shape = [bins, bands];
        let mut y = filled(checked_product(&shape)?, 0.0)?;
        for band in 0..bands {
            let (lower, centre, upper) = (edge(band), edge(band + 1), edge(band + 2));
            for bin in lower.min(centre)..upper.max(centre + 1).min(bins) {
                let value = if bin < centre {
                    (bin - lower) as f64 / (centre - lower) as f64
                } else if upper > centre {
                    (upper - bin.min(upper)) as f64 / (upper - centre) as f64
                } else {
                    1.0
                };
                if bin <= centre || bin < upper {
                    y[bin * bands + band] = value;
                }
            }
        }
        one(cast(&Tensor::new(shape, y)?, dtype)?)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::run;

    fn direct(x: &[Complex64]) -> Vec<Complex64> {
        let n = x.len();
        let term = |k: usize, s: usize| x[s] * Complex64::cis(-2.0 * PI * (k * s % n) as f64 / n as f64);
        (0..n).map(|k| (0..n).map(|s| term(k, s)).sum()).collect()
    }

    #[test]
    fn transforms_of_any_length_equal_the_sum() {
        for n in [1, 2, 3, 5, 8, 12, 31, 64, 100] {
            let x: Vec<Complex64> = (0..n).map(|i| Complex64::new((i as f64).sin(), (i * i % 7) as f64)).collect();
            let mut y = x.clone();
            Transform::new(n, false).unwrap().run(&mut y);
            assert!(y.iter().zip(direct(&x)).all(|(a, b)| (a - b).norm() < 1e-9 * n as f64), "length {n}");
        }
    }

    #[test]
    fn the_real_inverse_undoes_the_half_spectrum() {
        for n in [5usize, 6] {
            let x = Tensor::new([1, n, 1], (0..n).map(|i| (i * i) as f64).collect()).unwrap();
            let half = run("DFT", 17, Attrs::new().with("onesided", 1), &[x.clone()]).unwrap();
            assert_eq!(half.shape()[..], [1, n / 2 + 1, 2]);
            let back = Attrs::new().with("onesided", 1).with("inverse", 1);
            let y = run("DFT", 17, back, &[half, Tensor::scalar(n as i64)]).unwrap();
            let (x, y) = (x.into_vec::<f64>().unwrap(), y.into_vec::<f64>().unwrap());
            assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-9), "{y:?}");
        }
    }

    #[test]
    fn windows_are_periodic_unless_told() {
        let hann = |periodic: i64| {
            run("HannWindow", 17, Attrs::new().with("periodic", periodic), &[Tensor::scalar(4i64)]).unwrap().to_f32s().unwrap()
        };
        assert!(hann(1).iter().zip([0.0, 0.5, 1.0, 0.5]).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6));
        assert!(hann(0).iter().zip([0.0, 0.75, 0.75, 0.0]).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6));
    }
}
