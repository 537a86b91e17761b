//! Resize and Upsample: what their attributes and inputs of each version mean.

use super::resample::{Along, Coordinates, Filter, Method, Rounding, interpolate, nearest};
use crate::ir::{Attrs, Dim};
use crate::ops::util::{Real, axis};
use crate::ops::{Fact, InferCtx, Kernel, OpCtx, OpError, one};
use crate::tensor::{DType, Tensor, cast};
use crate::{invalid, unsupported};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Stretch,
    NotLarger,
    NotSmaller,
}

struct Resize {
    method: Method,
    axes: Option<Vec<i64>>,
    policy: Policy,
}

/// What says how large the output is.
#[derive(Debug, Clone)]
enum Size {
    Scales(Vec<f32>),
    Sizes(Vec<i64>),
}

fn coordinates(name: &str) -> Result<Coordinates, OpError> {
    Ok(match name {
        "half_pixel" => Coordinates::HalfPixel,
        "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        "tf_half_pixel_for_nn" => Coordinates::TfHalfPixelForNn,
        "tf_crop_and_resize" => Coordinates::TfCropAndResize,
        other => invalid!("attribute \"coordinate_transformation_mode\": unknown value \"{other}\""),
    })
}

fn filter(attrs: &Attrs, rounding: Rounding) -> Result<Filter, OpError> {
    Ok(match attrs.string_or("mode", "nearest")? {
        "nearest" => Filter::Nearest(rounding),
        "linear" | "bilinear" => Filter::Linear,
        "cubic" => Filter::Cubic(attrs.float_or("cubic_coeff_a", -0.75)?.into()),
        other => invalid!("attribute \"mode\": expected nearest, linear or cubic, found \"{other}\""),
    })
}

impl Resize {
    fn read(attrs: &Attrs, version: i64) -> Result<Self, OpError> {
        if version < 11 {
            return Self::simple(attrs);
        }
        let rounding = match attrs.string_or("nearest_mode", "round_prefer_floor")? {
            "round_prefer_floor" | "" => Rounding::PreferFloor,
            "round_prefer_ceil" => Rounding::PreferCeil,
            "floor" => Rounding::Floor,
            "ceil" => Rounding::Ceil,
            other => invalid!("attribute \"nearest_mode\": unknown value \"{other}\""),
        };
        let filter = filter(attrs, rounding)?;
        Ok(Self {
            method: Method {
                coordinates: coordinates(attrs.string_or("coordinate_transformation_mode", "half_pixel")?)?,
                filter,
                antialias: attrs.int_or("antialias", 0)? != 0 && !matches!(filter, Filter::Nearest(_)),
                exclude_outside: attrs.int_or("exclude_outside", 0)? != 0,
                extrapolation: attrs.float_or("extrapolation_value", 0.0)?.into(),
            },
            axes: attrs.ints("axes")?.map(<[i64]>::to_vec),
            policy: match attrs.string_or("keep_aspect_ratio_policy", "stretch")? {
                "stretch" => Policy::Stretch,
                "not_larger" => Policy::NotLarger,
                "not_smaller" => Policy::NotSmaller,
                other => invalid!("attribute \"keep_aspect_ratio_policy\": unknown value \"{other}\""),
            },
        })
    }

    /// Upsample, and Resize of version 10: the first pixels map to each other, the nearest is the one before.
    fn simple(attrs: &Attrs) -> Result<Self, OpError> {
        let filter = filter(attrs, Rounding::Floor)?;
        let method = Method { coordinates: Coordinates::Asymmetric, filter, antialias: false, exclude_outside: false, extrapolation: 0.0 };
        Ok(Self { method, axes: None, policy: Policy::Stretch })
    }

    /// The axes that are resized.
    fn axes(&self, rank: usize) -> Result<Vec<usize>, OpError> {
        let axes = match &self.axes {
            Some(list) => list.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?,
            None => (0..rank).collect(),
        };
        if (1..axes.len()).any(|i| axes[..i].contains(&axes[i])) {
            invalid!("attribute \"axes\": an axis is repeated in {axes:?}");
        }
        Ok(axes)
    }

    /// The sizes along each resized axis of an input with these dims.
    fn along(&self, dims: &[usize], size: &Size, roi: Option<&[f64]>) -> Result<Vec<Along>, OpError> {
        let axes = self.axes(dims.len())?;
        let given = match size {
            Size::Scales(s) => s.len(),
            Size::Sizes(s) => s.len(),
        };
        if given != axes.len() {
            invalid!("expected {} scales or sizes, found {given}", axes.len());
        }
        let crop = self.method.coordinates == Coordinates::TfCropAndResize;
        let roi = match roi {
            Some(r) if r.len() == 2 * axes.len() => Some(r),
            Some(r) if crop => invalid!("input 1: expected {} values, found {}", 2 * axes.len(), r.len()),
            None if crop => invalid!("input 1 is missing: expected a value, found none"),
            _ => None,
        };
        let ratio = |i: usize, s: &[i64]| s[i] as f64 / dims[axes[i]] as f64;
        let shared = match (size, self.policy) {
            (Size::Sizes(s), Policy::NotLarger) => Some((0..axes.len()).map(|i| ratio(i, s)).fold(f64::INFINITY, f64::min)),
            (Size::Sizes(s), Policy::NotSmaller) => Some((0..axes.len()).map(|i| ratio(i, s)).fold(0.0, f64::max)),
            _ => None,
        };
        let one = |(i, &axis): (usize, &usize)| -> Result<Along, OpError> {
            let input = dims[axis];
            let (scale, output) = match size {
                // In float32, as the standard's own shape inference has it.
                Size::Scales(s) => (f64::from(s[i]), f64::from((s[i] * input as f32).floor())),
                Size::Sizes(s) => match shared {
                    Some(scale) => (scale, (scale * input as f64 + 0.5).floor()),
                    None => (ratio(i, s), s[i] as f64),
                },
            };
            if input == 0 && output == 0.0 {
                return Ok(Along { axis, input, output: 0, scale: 1.0, roi: (0.0, 1.0) });
            }
            if !(scale.is_finite() && scale >= 0.0 && (0.0..=1e12).contains(&output) && (scale > 0.0 || output == 0.0)) {
                invalid!("{input} positions along axis {axis} cannot be resized to {output}");
            }
            let roi = roi.map_or((0.0, 1.0), |r| (r[i], r[axes.len() + i]));
            Ok(Along { axis, input, output: output as usize, scale, roi })
        };
        axes.iter().enumerate().map(one).collect()
    }
}

/// Resamples a tensor.
fn resample(x: &Tensor, axes: &[Along], method: &Method) -> Result<Tensor, OpError> {
    if matches!(method.filter, Filter::Nearest(_)) {
        return nearest(x, axes, method);
    }
    match x.dtype() {
        DType::F64 | DType::I32 | DType::U32 | DType::I64 | DType::U64 => numbers::<f64>(x, axes, method),
        d if d.is_float() || d.is_int() => numbers::<f32>(x, axes, method),
        other => unsupported!("linear and cubic resampling need numbers, found {other}"),
    }
}

fn numbers<T: Real>(x: &Tensor, axes: &[Along], method: &Method) -> Result<Tensor, OpError> {
    let mut y = interpolate::<T>(cast(x, T::DTYPE)?.into_vec()?, x.shape(), axes, method)?;
    let mut shape = x.shape().clone();
    axes.iter().for_each(|a| shape[a.axis] = a.output);
    if x.dtype().is_int() {
        y.iter_mut().for_each(|v| *v = T::of(v.wide().round_ties_even()));
    }
    Ok(cast(&Tensor::new(shape, y)?, x.dtype())?)
}

pub(super) fn build_resize(cx: &OpCtx) -> Result<Kernel, OpError> {
    let resize = Resize::read(cx.attrs, cx.version)?;
    let old = cx.version < 11;
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        let floats = |i: usize| -> Result<Option<Vec<f32>>, OpError> {
            Ok(args.opt(i)?.map(Tensor::to_f32s).transpose()?.filter(|v| !v.is_empty()))
        };
        let scales = floats(if old { 1 } else { 2 })?;
        let sizes = if old { None } else { args.opt_ints(3)?.filter(|v| !v.is_empty()) };
        let size = match (scales, sizes) {
            (_, Some(s)) => Size::Sizes(s),
            (Some(s), None) => Size::Scales(s),
            // No axis is resized.
            (None, None) if resize.axes.as_ref().map_or(x.rank(), Vec::len) == 0 => Size::Sizes(Vec::new()),
            (None, None) => invalid!("expected scales or sizes, found neither"),
        };
        let roi: Option<Vec<f64>> = if old { None } else { args.opt(1)?.map(|t| cast(t, DType::F64)?.into_vec()).transpose()? };
        let axes = resize.along(x.shape(), &size, roi.as_deref())?;
        one(resample(x, &axes, &resize.method)?)
    }))
}

/// The scales that Upsample's attributes give, before version 9.
fn stated_scales(attrs: &Attrs, version: i64) -> Result<Option<Vec<f32>>, OpError> {
    if version >= 9 {
        return Ok(None);
    }
    if version >= 7 {
        return match attrs.floats("scales")? {
            Some(s) => Ok(Some(s.to_vec())),
            None => invalid!("attribute \"scales\" is missing"),
        };
    }
    match (attrs.float("height_scale")?, attrs.float("width_scale")?) {
        (Some(h), Some(w)) => Ok(Some(vec![1.0, 1.0, h, w])),
        _ => invalid!("attributes \"height_scale\" and \"width_scale\" are missing"),
    }
}

pub(super) fn build_upsample(cx: &OpCtx) -> Result<Kernel, OpError> {
    let resize = Resize::simple(cx.attrs)?;
    let stated = stated_scales(cx.attrs, cx.version)?;
    Ok(Box::new(move |args| {
        let x = args.tensor(0)?;
        let scales = match &stated {
            Some(s) => s.clone(),
            None => args.tensor(1)?.to_f32s()?,
        };
        let axes = resize.along(x.shape(), &Size::Scales(scales), None)?;
        one(resample(x, &axes, &resize.method)?)
    }))
}

/// The type of the output of input 0 under a size, if it is known.
fn infer(cx: &InferCtx, resize: &Resize, size: Option<Size>, sizes: Option<Vec<Dim>>) -> Result<Vec<Fact>, OpError> {
    let Some(x) = cx.shape(0) else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    let axes = resize.axes(x.len())?;
    let mut out: Vec<Dim> = x.iter().enumerate().map(|(i, d)| if axes.contains(&i) { Dim::Unknown } else { d.clone() }).collect();
    let known = |list: &[usize]| list.iter().all(|&i| x[i].known().is_some());
    match (size, sizes) {
        (Some(size), _) if known(&axes) => {
            let dims: Vec<usize> = x.iter().map(|d| d.known().unwrap_or(1)).collect();
            let roi = vec![0.0; 2 * axes.len()];
            resize.along(&dims, &size, Some(&roi))?.iter().for_each(|a| out[a.axis] = Dim::Known(a.output));
        }
        (Some(Size::Scales(scales)), _) if scales.len() == axes.len() => {
            for (&axis, &scale) in axes.iter().zip(&scales) {
                out[axis] = match &x[axis] {
                    d if scale == 1.0 => d.clone(),
                    Dim::Known(n) => Dim::Known((scale * *n as f32).floor().max(0.0) as usize),
                    _ => Dim::Unknown,
                };
            }
        }
        (_, Some(sizes)) if resize.policy == Policy::Stretch && sizes.len() == axes.len() => {
            axes.iter().zip(sizes).for_each(|(&axis, size)| out[axis] = size);
        }
        _ => {}
    }
    Ok(vec![Fact::partial(cx.dtype(0), Some(out))])
}

pub(super) fn infer_resize(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let resize = Resize::read(cx.op.attrs, cx.op.version)?;
    let old = cx.op.version < 11;
    let scales = cx.constant(if old { 1 } else { 2 }).and_then(|t| t.to_f32s().ok()).filter(|s| !s.is_empty());
    let ints = if old { None } else { cx.ints(3).filter(|s| !s.is_empty()) };
    let dims = if old { None } else { cx.dims(3).filter(|s| !s.is_empty()) };
    infer(cx, &resize, ints.map(Size::Sizes).or(scales.map(Size::Scales)), dims)
}

pub(super) fn infer_upsample(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let resize = Resize::simple(cx.op.attrs)?;
    let scales = stated_scales(cx.op.attrs, cx.op.version)?.or_else(|| cx.constant(1)?.to_f32s().ok());
    infer(cx, &resize, scales.map(Size::Scales), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::run_values;

    fn resize(version: i64, attrs: Attrs, x: Tensor, scales: Vec<f32>) -> Result<Vec<f32>, OpError> {
        let scales = Some(Tensor::vector(scales).into());
        let inputs = if version < 11 { vec![Some(x.into()), scales] } else { vec![Some(x.into()), None, scales] };
        Ok(run_values("Resize", version, attrs, inputs, 1)?[0].as_tensor().unwrap().to_f32s().unwrap())
    }

    fn row() -> Tensor {
        Tensor::vector(vec![1f32, 2.0, 3.0, 4.0])
    }

    #[test]
    fn version_10_takes_the_pixel_before() {
        // Element 1 comes from 1 / 0.6 = 1.67, from version 11 on from 1.5 / 0.6 - 0.5 = 2.
        assert_eq!(resize(10, Attrs::new(), row(), vec![0.6]).unwrap(), [1.0, 2.0]);
        assert_eq!(resize(11, Attrs::new(), row(), vec![0.6]).unwrap(), [1.0, 3.0]);
    }

    #[test]
    fn linear_reads_between_pixels() {
        let linear = Attrs::new().with("mode", "linear");
        assert_eq!(resize(11, linear.clone(), row(), vec![2.0]).unwrap(), [1.0, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.0]);
        let corners = linear.with("coordinate_transformation_mode", "align_corners");
        assert_eq!(resize(11, corners, row(), vec![1.75]).unwrap(), [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]);
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        assert!(resize(11, Attrs::new(), row(), vec![f32::NAN]).is_err());
        assert!(resize(11, Attrs::new(), row(), vec![-1.0]).is_err());
        assert!(resize(11, Attrs::new(), row(), vec![1e30]).is_err());
        assert_eq!(resize(11, Attrs::new(), row(), vec![0.1]).unwrap(), [0f32; 0]);
    }
}
