//! Resampling along one axis after the other: each output position is a weighted sum of input positions.

use crate::ops::OpError;
use crate::ops::util::{Real, checked_product, filled, for_each_chunk};
use crate::tensor::{Element, Tensor};
use crate::{dispatch, invalid, unsupported};

/// How an output position maps to an input position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coordinates {
    /// Centres of pixels map to each other.
    HalfPixel,
    /// The same, and the centre of the input to that of the output.
    HalfPixelSymmetric,
    /// As half pixel, but one output alone reads position 0.
    PytorchHalfPixel,
    /// First and last pixels map to each other.
    AlignCorners,
    /// First pixels map to each other.
    Asymmetric,
    /// As half pixel, without half a pixel off at the end.
    TfHalfPixelForNn,
    /// The output shows a part of the input.
    TfCropAndResize,
}

/// What lies between two input positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Filter {
    /// The nearest; ties and direction are said by the rounding.
    Nearest(Rounding),
    /// A line.
    Linear,
    /// A cubic with this coefficient.
    Cubic(f64),
}

/// How a place becomes the position of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Nearest, ties down.
    PreferFloor,
    /// Nearest, ties up.
    PreferCeil,
    /// Down.
    Floor,
    /// Up.
    Ceil,
}

/// How to resample, the same for all axes.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// How positions map.
    pub coordinates: Coordinates,
    /// What lies between pixels.
    pub filter: Filter,
    /// Whether the filter grows with the pixels that an output covers.
    pub antialias: bool,
    /// Whether places outside weigh nothing; else the border pixel stands for them.
    pub exclude_outside: bool,
    /// What stands outside the crop.
    pub extrapolation: f64,
}

/// The sizes along one axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Along {
    /// Axis.
    pub axis: usize,
    /// Input positions.
    pub input: usize,
    /// Output positions.
    pub output: usize,
    /// Output over input, not rounded.
    pub scale: f64,
    /// The part of the input, in 0 to 1, that a crop shows.
    pub roi: (f64, f64),
}

impl Along {
    /// Whether the output is the input.
    fn identity(&self, method: &Method) -> bool {
        let whole = method.coordinates != Coordinates::TfCropAndResize || self.roi == (0.0, 1.0);
        let shifted = method.coordinates == Coordinates::TfHalfPixelForNn && !matches!(method.filter, Filter::Nearest(Rounding::Floor));
        self.input == self.output && (self.scale - 1.0).abs() < 1e-9 && whole && !shifted
    }

    /// The place in the input of output position `x`; `None` outside the input of a crop.
    fn place(&self, x: usize, method: &Method) -> Option<f64> {
        let (x, input, width) = (x as f64, self.input as f64, self.scale * self.input as f64);
        let half_pixel = (x + 0.5) / self.scale - 0.5;
        Some(match method.coordinates {
            Coordinates::HalfPixel => half_pixel,
            // In this order, so that places that are whole numbers come out whole.
            Coordinates::HalfPixelSymmetric => input / 2.0 * (1.0 - self.output as f64 / width) + (x + 0.5) / self.scale - 0.5,
            Coordinates::PytorchHalfPixel => {
                if self.output > 1 {
                    half_pixel
                } else {
                    0.0
                }
            }
            Coordinates::AlignCorners if width == 1.0 => 0.0,
            Coordinates::AlignCorners => x * (input - 1.0) / (width - 1.0),
            Coordinates::Asymmetric => x / self.scale,
            Coordinates::TfHalfPixelForNn => (x + 0.5) / self.scale,
            Coordinates::TfCropAndResize => {
                let (start, end) = self.roi;
                let place = start * (input - 1.0)
                    + if width == 1.0 { (end - start) * (input - 1.0) / 2.0 } else { x * (end - start) * (input - 1.0) / (width - 1.0) };
                return (0.0..=input - 1.0).contains(&place).then_some(place);
            }
        })
    }

    /// A position clamped to the input.
    fn clamp(&self, position: f64) -> usize {
        position.clamp(0.0, (self.input as f64 - 1.0).max(0.0)) as usize
    }
}

/// The input positions and their weights of each output position along an axis: `taps` of each.
struct Table {
    taps: usize,
    positions: Vec<usize>,
    weights: Vec<f64>,
    /// Whether an output position shows the extrapolation value.
    outside: Vec<bool>,
}

fn table(a: &Along, method: &Method) -> Result<Table, OpError> {
    let narrow = a.scale.min(1.0);
    let (first, taps) = match method.filter {
        Filter::Nearest(_) => (0.0, 1),
        Filter::Linear | Filter::Cubic(_) => {
            let reach = if matches!(method.filter, Filter::Linear) { 1.0 } else { 2.0 };
            let first = if method.antialias { (-reach / narrow).floor() + 1.0 } else { 1.0 - reach };
            (first, 2.0f64.mul_add(-first, 2.0) as usize)
        }
    };
    let Some(len) = a.output.checked_mul(taps) else { invalid!("scale {} along axis {} is too small", a.scale, a.axis) };
    let mut t = Table { taps, positions: filled(len, 0)?, weights: filled(len, 1.0)?, outside: filled(a.output, false)? };
    for o in 0..a.output {
        let Some(place) = a.place(o, method) else {
            t.outside[o] = true;
            continue;
        };
        let (positions, weights) = (&mut t.positions[o * taps..][..taps], &mut t.weights[o * taps..][..taps]);
        if let Filter::Nearest(rounding) = method.filter {
            positions[0] = a.clamp(match rounding {
                Rounding::PreferFloor => (place - 0.5).ceil(),
                Rounding::PreferCeil => (place + 0.5).floor(),
                Rounding::Floor => place.floor(),
                Rounding::Ceil => place.ceil(),
            });
            continue;
        }
        // The pixel on the left is preferred: a whole place lies one to the right of its base.
        let base = if place == place.floor() { place - 1.0 } else { place.floor() };
        let ratio = place - base;
        let stretch = if method.antialias { narrow } else { 1.0 };
        let mut sum = 0.0;
        for (i, (position, weight)) in positions.iter_mut().zip(weights.iter_mut()).enumerate() {
            let at = base + first + i as f64;
            *weight = kernel(method.filter, (first + i as f64 - ratio) * stretch);
            if method.exclude_outside && (at < 0.0 || at >= a.input as f64) {
                *weight = 0.0;
            }
            *position = a.clamp(at);
            sum += *weight;
        }
        if (method.antialias || method.exclude_outside) && sum != 0.0 {
            weights.iter_mut().for_each(|w| *w /= sum);
        }
    }
    Ok(t)
}

/// The weight of a pixel at a distance.
fn kernel(filter: Filter, distance: f64) -> f64 {
    let x = distance.abs();
    match filter {
        Filter::Nearest(_) => 1.0,
        Filter::Linear => (1.0 - x).max(0.0),
        Filter::Cubic(a) if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        Filter::Cubic(a) if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
        Filter::Cubic(_) => 0.0,
    }
}

/// Applies a table along an axis: `f(row of the output, input row of each tap)` for rows of `inner` elements, or, where
/// they are single elements, for each of them.
fn along<T: Element>(
    x: &[T],
    shape: &[usize],
    a: &Along,
    f: impl Fn(usize, &mut [T], &dyn Fn(usize) -> usize) + Sync + Send,
) -> Result<Vec<T>, OpError> {
    let inner = checked_product(&shape[a.axis + 1..])?;
    let outer = checked_product(&shape[..a.axis])?;
    let mut y = filled(checked_product(&[outer, a.output, inner])?, T::default())?;
    debug_assert_eq!(x.len(), outer * a.input * inner);
    let single = inner == 1;
    for_each_chunk(&mut y, if single { a.output } else { inner }, |i, row| {
        if single {
            for (o, y) in row.iter_mut().enumerate() {
                f(o, std::slice::from_mut(y), &|position| i * a.input + position);
            }
        } else {
            f(i % a.output, row, &|position| (i / a.output * a.input + position) * inner);
        }
    });
    Ok(y)
}

/// Resamples numbers.
pub fn interpolate<T: Real>(x: Vec<T>, shape: &[usize], axes: &[Along], method: &Method) -> Result<Vec<T>, OpError> {
    let (mut x, mut shape) = (x, shape.to_vec());
    for a in axes.iter().filter(|a| !a.identity(method)) {
        let t = table(a, method)?;
        x = along(&x, &shape, a, |o, row, at| {
            if t.outside[o] {
                row.fill(T::of(method.extrapolation));
                return;
            }
            let taps = o * t.taps..(o + 1) * t.taps;
            if let [y] = row {
                *y = T::of(taps.map(|i| t.weights[i] * x[at(t.positions[i])].wide()).sum());
                return;
            }
            for i in taps.filter(|&i| t.weights[i] != 0.0) {
                let weight = T::of(t.weights[i]);
                row.iter_mut().zip(&x[at(t.positions[i])..]).for_each(|(y, &x)| *y = *y + weight * x);
            }
        })?;
        shape[a.axis] = a.output;
    }
    Ok(x)
}

/// Resamples elements of any kind by taking the nearest; `outside` stands for what a crop does not have.
fn gather<T: Element>(x: &Tensor, axes: &[Along], method: &Method, outside: &T) -> Result<Tensor, OpError> {
    let mut shape = x.shape().to_vec();
    let mut data = x.to_slice::<T>()?.into_owned();
    for a in axes.iter().filter(|a| !a.identity(method)) {
        let t = table(a, method)?;
        data = along(&data, &shape, a, |o, row, at| {
            if t.outside[o] {
                row.fill(outside.clone());
            } else {
                row.clone_from_slice(&data[at(t.positions[o])..][..row.len()]);
            }
        })?;
        shape[a.axis] = a.output;
    }
    Ok(Tensor::new(shape, data)?)
}

/// Resamples a tensor of any dtype of whole bytes to the nearest.
pub fn nearest(x: &Tensor, axes: &[Along], method: &Method) -> Result<Tensor, OpError> {
    if !x.dtype().bits().is_multiple_of(8) {
        unsupported!("input 0 must be elements of whole bytes, found {}", x.dtype());
    }
    let outside = crate::tensor::cast(&Tensor::scalar(method.extrapolation), x.dtype());
    dispatch!(x.dtype(), T => {
        let outside = outside.ok().and_then(|v| v.item::<T>().ok()).unwrap_or_default();
        gather::<T>(x, axes, method, &outside)
    })
}
