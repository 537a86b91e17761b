//! GridSample, which reads between pixels at given places, and AffineGrid, which makes such places.

use crate::ir::Dim;
use crate::ops::util::{Real, checked_product, filled, for_each_chunk, real_dtype, run_all, tiles};
use crate::ops::window::unravel;
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpError, Outputs, one};
use crate::tensor::{DType, Element, Shape, Tensor, cast, strides};
use crate::{dispatch, invalid, unsupported};
use ndarray::ArrayViewMut2;

/// Places in one task.
const BLOCK: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

#[derive(Debug, Clone, Copy)]
struct Sampler {
    mode: Mode,
    padding: Padding,
    align_corners: bool,
}

pub(super) fn infer_sample(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let (x, grid) = (cx.shape(0), cx.shape(1));
    if let (Some(x), Some(g)) = (x, grid)
        && (x.len() != g.len() || x.len() < 3)
    {
        invalid!("expected input and grid of one rank from 3 up, found ranks {} and {}", x.len(), g.len());
    }
    let rank = x.or(grid).map(<[Dim]>::len).filter(|&r| r >= 3);
    let shape = rank.map(|rank| {
        let front = (0..2).map(|i| x.map_or(Dim::Unknown, |x| x[i].clone()));
        front.chain((2..rank).map(|i| grid.map_or(Dim::Unknown, |g| g[i - 1].clone()))).collect()
    });
    Ok(vec![Fact::partial(cx.dtype(0), shape)])
}

pub(super) fn build_sample(cx: &OpCtx) -> Result<Kernel, OpError> {
    let sampler = Sampler {
        mode: match cx.attrs.string_or("mode", "linear")? {
            "nearest" => Mode::Nearest,
            "linear" | "bilinear" => Mode::Linear,
            "cubic" | "bicubic" => Mode::Cubic,
            other => invalid!("attribute \"mode\": expected nearest, linear or cubic, found \"{other}\""),
        },
        padding: match cx.attrs.string_or("padding_mode", "zeros")? {
            "zeros" => Padding::Zeros,
            "border" => Padding::Border,
            "reflection" => Padding::Reflection,
            other => invalid!("attribute \"padding_mode\": expected zeros, border or reflection, found \"{other}\""),
        },
        align_corners: cx.attrs.int_or("align_corners", 0)? != 0,
    };
    Ok(Box::new(move |args| run(sampler, &args)))
}

fn run(sampler: Sampler, args: &Args) -> Result<Outputs, OpError> {
    let (x, grid) = (args.tensor(0)?, args.tensor(1)?);
    let rank = x.rank();
    if !(3..=7).contains(&rank) || grid.rank() != rank || grid.shape()[rank - 1] != rank - 2 || grid.shape()[0] != x.shape()[0] {
        invalid!("an input of shape {} and a grid of shape {} do not fit", x.shape(), grid.shape());
    }
    // Places are reckoned in float32, as elsewhere, so that ties fall the same way.
    real_dtype(grid.dtype())?;
    let wide_grid = cast(grid, DType::F32)?;
    let grid = wide_grid.to_slice::<f32>()?;
    let mut shape = Shape::from(&x.shape()[..2]);
    wide_grid.shape()[1..rank - 1].iter().for_each(|&d| shape.push(d));
    if checked_product(&x.shape()[2..])? == 0 && checked_product(&shape)? > 0 && sampler.padding != Padding::Zeros {
        invalid!("an empty image has no border");
    }
    if sampler.mode == Mode::Nearest {
        if x.dtype().bits() % 8 != 0 {
            unsupported!("input 0 must be elements of whole bytes, found {}", x.dtype());
        }
        return dispatch!(x.dtype(), T => one(fill::<T>(sampler, x, &grid, shape, |plane, taps| match taps {
            [(at, _)] => plane[*at].clone(),
            _ => T::default(),
        })?));
    }
    let dtype = x.dtype();
    if !(dtype.is_float() || dtype.is_int()) {
        unsupported!("input 0 must be numbers to be sampled between pixels, found {dtype}");
    }
    let y = match dtype {
        DType::F64 | DType::I32 | DType::U32 | DType::I64 | DType::U64 => weigh::<f64>(sampler, x, &grid, shape)?,
        _ => weigh::<f32>(sampler, x, &grid, shape)?,
    };
    one(cast(&y, dtype)?)
}

fn weigh<T: Real>(sampler: Sampler, x: &Tensor, grid: &[f32], shape: Shape) -> Result<Tensor, OpError> {
    let wide = cast(x, T::DTYPE)?;
    fill::<T>(sampler, &wide, grid, shape, |plane, taps| taps.iter().map(|&(at, w)| plane[at] * T::of(w.into())).sum())
}

/// Fills an output with `value(plane of the input, positions and weights)` at each place of the grid.
fn fill<T: Element>(
    sampler: Sampler,
    x: &Tensor,
    grid: &[f32],
    shape: Shape,
    value: impl Fn(&[T], &[(usize, f32)]) -> T + Sync + Send,
) -> Result<Tensor, OpError> {
    let (channels, dims) = (shape[1], &x.shape()[2..]);
    let (plane, places) = (checked_product(dims)?, checked_product(&shape[2..])?);
    let plane_strides = strides(dims);
    let xs = x.to_slice::<T>()?;
    let mut y = filled(checked_product(&shape)?, T::default())?;
    let mut tasks = Vec::new();
    if !y.is_empty() {
        for (n, part) in y.chunks_mut(channels * places).enumerate() {
            let part = ArrayViewMut2::from_shape((channels, places), part).map_err(|e| OpError::Invalid(e.to_string()))?;
            tasks.extend(tiles(part, channels, BLOCK).into_iter().map(|t| (n, t)));
        }
    }
    run_all(tasks, |(n, (_, first, mut out))| {
        let mut taps = Vec::new();
        for j in 0..out.ncols() {
            let place = &grid[(n * places + first + j) * dims.len()..][..dims.len()];
            sampler.taps(place, dims, &plane_strides, &mut taps);
            for c in 0..channels {
                out[(c, j)] = value(&xs[(n * channels + c) * plane..][..plane], &taps);
            }
        }
        Ok(())
    })?;
    Ok(Tensor::new(shape, y)?)
}

impl Sampler {
    /// The positions that a place reads, and their weights.
    fn taps(&self, place: &[f32], dims: &[usize], strides: &[usize], taps: &mut Vec<(usize, f32)>) {
        taps.clear();
        taps.push((0, 1.0));
        for (d, &dim) in dims.iter().enumerate() {
            // The grid names the last axis first.
            let (positions, weights, n) = self.axis(place[dims.len() - 1 - d], dim);
            let before = std::mem::take(taps);
            for (at, weight) in before {
                for i in 0..n {
                    if let Some(p) = positions[i] {
                        taps.push((at + p * strides[d], weight * weights[i]));
                    }
                }
            }
        }
    }

    /// The positions along one axis, their weights and their number; `None` is a zero outside.
    fn axis(&self, place: f32, dim: usize) -> ([Option<usize>; 4], [f32; 4], usize) {
        let length = dim as f32;
        let mut x = if self.align_corners { (place + 1.0) / 2.0 * (length - 1.0) } else { ((place + 1.0) * length - 1.0) / 2.0 };
        if self.mode == Mode::Nearest {
            x = x.round_ties_even();
        }
        // A cubic reads around the place itself, wherever it lies; only its pixels are brought inside.
        x = match self.padding {
            _ if self.mode == Mode::Cubic => x,
            Padding::Zeros => x,
            Padding::Border => x.clamp(0.0, (length - 1.0).max(0.0)),
            Padding::Reflection => self.reflect(x, dim),
        };
        if self.mode == Mode::Nearest {
            return ([self.pixel(x, dim), None, None, None], [1.0; 4], 1);
        }
        let base = x.floor();
        let r = x - base;
        if self.mode == Mode::Linear {
            return ([self.pixel(base, dim), self.pixel(base + 1.0, dim), None, None], [1.0 - r, r, 0.0, 0.0], 2);
        }
        let positions = [-1.0, 0.0, 1.0, 2.0].map(|i| self.pixel(base + i, dim));
        (positions, [cubic(r + 1.0), cubic(r), cubic(1.0 - r), cubic(2.0 - r)], 4)
    }

    /// The pixel at a whole position.
    fn pixel(&self, x: f32, dim: usize) -> Option<usize> {
        let x = match self.padding {
            Padding::Zeros => return (x >= 0.0 && x < dim as f32).then_some(x as usize),
            Padding::Border => x,
            Padding::Reflection => self.reflect(x, dim),
        };
        // A place that is no number reads the first pixel.
        Some((x.max(0.0) as usize).min(dim.saturating_sub(1)))
    }

    /// A place mirrored at the borders until it lies between them.
    fn reflect(&self, x: f32, dim: usize) -> f32 {
        let (low, high) = if self.align_corners { (0.0, dim as f32 - 1.0) } else { (-0.5, dim as f32 - 0.5) };
        let range = high - low;
        let (over, from_low) = if x < low {
            (low - x, true)
        } else if x > high {
            (x - high, false)
        } else {
            return x;
        };
        if range <= 0.0 || !over.is_finite() {
            return low.max(0.0);
        }
        let turns = (over / range).trunc();
        let rest = over - turns * range;
        if (turns % 2.0 == 0.0) == from_low { low + rest } else { high - rest }
    }
}

/// Keys' cubic at a distance in 0 to 2.
fn cubic(x: f32) -> f32 {
    let a = -0.75;
    if x <= 1.0 { ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0 } else { ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a }
}

pub(super) fn infer_affine(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let Some(size) = cx.dims(1) else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    if !(4..=5).contains(&size.len()) {
        invalid!("input 1: expected 4 or 5 sizes, found {}", size.len());
    }
    let last = Dim::Known(size.len() - 2);
    Ok(vec![Fact::partial(
        cx.dtype(0),
        Some(size.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, d)| d.clone()).chain([last]).collect()),
    )])
}

pub(super) fn build_affine(cx: &OpCtx) -> Result<Kernel, OpError> {
    let align_corners = cx.attrs.int_or("align_corners", 0)? != 0;
    Ok(Box::new(move |args| match real_dtype(args.tensor(0)?.dtype())? {
        DType::F64 => affine::<f64>(&args, align_corners),
        _ => affine::<f32>(&args, align_corners),
    }))
}

fn affine<T: Real>(args: &Args, align_corners: bool) -> Result<Outputs, OpError> {
    let theta = args.tensor(0)?;
    let size = args.ints(1)?;
    let Some(size) = size.iter().map(|&s| usize::try_from(s).ok()).collect::<Option<Vec<_>>>().filter(|s| (4..=5).contains(&s.len()))
    else {
        invalid!("input 1: expected 4 or 5 sizes, found {size:?}");
    };
    let (batch, dims) = (size[0], &size[2..]);
    let n = dims.len();
    if theta.shape()[..] != [batch, n, n + 1] {
        invalid!("input 0: expected shape [{batch},{n},{}], found {}", n + 1, theta.shape());
    }
    let wide = cast(theta, T::DTYPE)?;
    let thetas = wide.to_slice::<T>()?;
    let mut shape = vec![batch];
    shape.extend(dims);
    shape.push(n);
    let mut y = filled(checked_product(&shape)?, T::zero())?;
    let plane = checked_product(dims)?;
    let coordinate = |i: usize, d: usize| match (align_corners, d) {
        (true, 1) => -1.0,
        (true, _) => -1.0 + i as f64 * (2.0 / (d as f64 - 1.0)),
        (false, _) => (2.0 * i as f64 + 1.0) / d as f64 - 1.0,
    };
    for_each_chunk(&mut y, n, |i, out| {
        let index = unravel(i % plane, dims);
        for (k, y) in out.iter_mut().enumerate() {
            let row = &thetas[(i / plane * n + k) * (n + 1)..][..n + 1];
            // Rows name the last axis first.
            let sum = (0..n).map(|j| row[j] * T::of(coordinate(index[n - 1 - j], dims[n - 1 - j]))).sum::<T>();
            *y = sum + row[n];
        }
    });
    one(cast(&Tensor::new(shape, y)?, theta.dtype())?)
}
