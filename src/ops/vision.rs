//! Boxes and regions: NonMaxSuppression, RoiAlign and MaxRoiPool.

use super::util::{Real, checked_product, filled, for_each_chunk, real_dtype};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, one};
use crate::invalid;
use crate::ir::{Attrs, Dim};
use crate::tensor::{DType, Tensor, cast};

const ROI_ALIGN_ATTRS: &[&str] =
    &["coordinate_transformation_mode", "mode", "output_height", "output_width", "sampling_ratio", "spatial_scale"];

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("MaxRoiPool", &[1, 22]).inputs(2, 2).attrs(&["pooled_shape", "spatial_scale"]).infer(infer_roi_pool).kernel(build_roi_pool),
    OpDef::new("NonMaxSuppression", &[10, 11]).inputs(2, 5).attrs(&["center_point_box"]).infer(infer_nms).kernel(build_nms),
    OpDef::new("RoiAlign", &[10, 16, 22]).inputs(3, 3).attrs(ROI_ALIGN_ATTRS).infer(infer_roi_align).kernel(build_roi_align),
];

fn infer_nms(_: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::tensor(DType::I64, [Dim::Unknown, Dim::Known(3)])])
}

/// The ends of a box along x and along y.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    x: (f32, f32),
    y: (f32, f32),
}

impl Bounds {
    fn read(b: &[f32], from_centre: bool) -> Self {
        if from_centre {
            let (w, h) = (b[2] / 2.0, b[3] / 2.0);
            return Self { x: (b[0] - w, b[0] + w), y: (b[1] - h, b[1] + h) };
        }
        let sorted = |a: f32, b: f32| if a >= b { (b, a) } else { (a, b) };
        Self { x: sorted(b[1], b[3]), y: sorted(b[0], b[2]) }
    }

    fn area(&self) -> f32 {
        (self.x.1 - self.x.0) * (self.y.1 - self.y.0)
    }

    /// Whether the two share more of what they cover than `threshold`.
    fn overlaps(&self, other: &Self, threshold: f32) -> bool {
        let width = self.x.1.min(other.x.1) - self.x.0.max(other.x.0);
        let height = self.y.1.min(other.y.1) - self.y.0.max(other.y.0);
        let shared = width * height;
        if width <= 0.0 || height <= 0.0 || shared <= 0.0 || self.area() <= 0.0 || other.area() <= 0.0 {
            return false;
        }
        let union = self.area() + other.area() - shared;
        union > 0.0 && shared / union > threshold
    }
}

fn build_nms(cx: &OpCtx) -> Result<Kernel, OpError> {
    let from_centre = match cx.attrs.int_or("center_point_box", 0)? {
        0 => false,
        1 => true,
        other => invalid!("attribute \"center_point_box\": expected 0 or 1, found {other}"),
    };
    Ok(Box::new(move |args| {
        let (boxes, scores) = (args.tensor(0)?, args.tensor(1)?);
        let (&[batches, count, 4], &[score_batches, classes, score_count]) = (&boxes.shape()[..], &scores.shape()[..]) else {
            invalid!("expected boxes [batches, n, 4] and scores [batches, classes, n], found {} and {}", boxes.shape(), scores.shape());
        };
        if (batches, count) != (score_batches, score_count) {
            invalid!("boxes of shape {} and scores of shape {} do not fit", boxes.shape(), scores.shape());
        }
        let most = args.opt_ints(2)?.and_then(|m| m.first().copied()).unwrap_or(0);
        let most = usize::try_from(most).unwrap_or(0).min(count);
        let number = |i: usize| -> Result<Option<f32>, OpError> {
            Ok(args.opt(i)?.map(Tensor::to_f32s).transpose()?.and_then(|v| v.first().copied()))
        };
        let (threshold, least) = (number(3)?.unwrap_or(0.0), number(4)?);
        let (all_boxes, all_scores) = (args.slice::<f32>(0)?, args.slice::<f32>(1)?);
        let mut selected = Vec::new();
        for batch in 0..batches {
            let bounds: Vec<Bounds> = all_boxes[batch * count * 4..][..count * 4].chunks(4).map(|b| Bounds::read(b, from_centre)).collect();
            for class in 0..classes {
                let scores = &all_scores[(batch * classes + class) * count..][..count];
                for i in suppress(&bounds, scores, most, threshold, least) {
                    selected.extend([batch as i64, class as i64, i as i64]);
                }
            }
        }
        one(Tensor::new([selected.len() / 3, 3], selected)?)
    }))
}

/// The boxes that are kept, best first; of equal scores the first.
fn suppress(bounds: &[Bounds], scores: &[f32], most: usize, threshold: f32, least: Option<f32>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&i| least.is_none_or(|l| scores[i] > l)).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        if kept.len() >= most {
            break;
        }
        if !kept.iter().any(|&k| bounds[i].overlaps(&bounds[k], threshold)) {
            kept.push(i);
        }
    }
    kept
}

/// A size that an attribute gives.
fn size(attrs: &Attrs, name: &str) -> Result<usize, OpError> {
    match attrs.int_or(name, 1)? {
        n @ 1..=0x1_0000_0000 => Ok(n as usize),
        n => invalid!("attribute \"{name}\": {n} is out of range"),
    }
}

fn infer_rois(cx: &InferCtx, height: usize, width: usize) -> Vec<Fact> {
    let at = |input: usize, i: usize| cx.shape(input).and_then(|s| s.get(i).cloned()).unwrap_or(Dim::Unknown);
    vec![Fact::partial(cx.dtype(0), Some(vec![at(1, 0), at(0, 1), Dim::Known(height), Dim::Known(width)]))]
}

fn infer_roi_align(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(infer_rois(cx, size(cx.op.attrs, "output_height")?, size(cx.op.attrs, "output_width")?))
}

#[derive(Debug, Clone, Copy)]
struct Align {
    height: usize,
    width: usize,
    sampling: usize,
    scale: f64,
    half_pixel: bool,
    max: bool,
}

fn build_roi_align(cx: &OpCtx) -> Result<Kernel, OpError> {
    // Before version 16 there was no shift by half a pixel.
    let default = if cx.version < 16 { "output_half_pixel" } else { "half_pixel" };
    let align = Align {
        height: size(cx.attrs, "output_height")?,
        width: size(cx.attrs, "output_width")?,
        sampling: match cx.attrs.int_or("sampling_ratio", 0)? {
            n @ 0..=4096 => n as usize,
            n => invalid!("attribute \"sampling_ratio\": {n} is out of range"),
        },
        scale: cx.attrs.float_or("spatial_scale", 1.0)?.into(),
        half_pixel: match cx.attrs.string_or("coordinate_transformation_mode", default)? {
            "half_pixel" => true,
            "output_half_pixel" => false,
            other => invalid!("attribute \"coordinate_transformation_mode\": unknown value \"{other}\""),
        },
        max: match cx.attrs.string_or("mode", "avg")? {
            "avg" => false,
            "max" => true,
            other => invalid!("attribute \"mode\": expected avg or max, found \"{other}\""),
        },
    };
    Ok(Box::new(move |args| match real_dtype(args.tensor(0)?.dtype())? {
        DType::F64 => roi_align::<f64>(align, &args),
        _ => roi_align::<f32>(align, &args),
    }))
}

/// Image dims and the regions of each row of input 1, which has `columns` columns.
fn regions(args: &Args, columns: usize) -> Result<([usize; 4], Vec<f64>), OpError> {
    let (x, rois) = (args.tensor(0)?, args.tensor(1)?);
    let &[n, c, h, w] = &x.shape()[..] else { invalid!("input 0: expected rank 4, found {}", x.rank()) };
    if rois.rank() != 2 || rois.shape()[1] != columns {
        invalid!("input 1: expected shape [n,{columns}], found {}", rois.shape());
    }
    if rois.dtype() != x.dtype() {
        invalid!("input 1: expected {}, found {}", x.dtype(), rois.dtype());
    }
    let values: Vec<f64> = cast(rois, DType::F64)?.into_vec()?;
    match values.iter().find(|v| !v.is_finite()) {
        Some(v) => invalid!("input 1: {v} is no coordinate"),
        None => Ok(([n, c, h, w], values)),
    }
}

/// A place to read by two lines: four positions and their weights; weights of zero outside the image.
type Sample = [(usize, f64); 4];

fn sample(y: f64, x: f64, height: usize, width: usize) -> Sample {
    if y < -1.0 || y > height as f64 || x < -1.0 || x > width as f64 {
        return [(0, 0.0); 4];
    }
    let split = |v: f64, n: usize| {
        let v = v.max(0.0);
        let low = v as usize;
        if low + 1 >= n { (n - 1, n - 1, 0.0) } else { (low, low + 1, v - low as f64) }
    };
    let ((y0, y1, ly), (x0, x1, lx)) = (split(y, height), split(x, width));
    [
        (y0 * width + x0, (1.0 - ly) * (1.0 - lx)),
        (y0 * width + x1, (1.0 - ly) * lx),
        (y1 * width + x0, ly * (1.0 - lx)),
        (y1 * width + x1, ly * lx),
    ]
}

fn roi_align<T: Real>(a: Align, args: &Args) -> Result<Outputs, OpError> {
    let x = args.tensor(0)?;
    let ([batch, channels, height, width], rois) = regions(args, 4)?;
    let indices = args.ints(2)?;
    let count = rois.len() / 4;
    if indices.len() != count {
        invalid!("input 2: expected {count} indices, found {}", indices.len());
    }
    if let Some(i) = indices.iter().find(|&&i| usize::try_from(i).map_or(true, |i| i >= batch)) {
        invalid!("input 2: index {i} is out of range for {batch} images");
    }
    let shape = [count, channels, a.height, a.width];
    let mut y = filled(checked_product(&shape)?, T::zero())?;
    if height * width == 0 && !y.is_empty() {
        invalid!("input 0: an image of no pixels has no regions");
    }
    let grid = |extent: f64, cells: usize| if a.sampling > 0 { a.sampling as f64 } else { (extent / cells as f64).ceil().max(0.0) };
    let shift = if a.half_pixel { 0.5 } else { 0.0 };
    let place = |roi: usize| {
        let [left, top, right, bottom] = [0, 1, 2, 3].map(|i| rois[roi * 4 + i] * a.scale - shift);
        // Without the shift, regions are at least one pixel large.
        let extent = |from: f64, to: f64| if a.half_pixel { to - from } else { (to - from).max(1.0) };
        (left, top, extent(left, right), extent(top, bottom))
    };
    for roi in 0..count {
        let (_, _, w, h) = place(roi);
        if grid(w, a.width) * grid(h, a.height) > 1e6 {
            invalid!("region {roi} is too large");
        }
    }
    let wide = cast(x, T::DTYPE)?;
    let xs = wide.to_slice::<T>()?;
    let cells = a.height * a.width;
    for_each_chunk(&mut y, channels * cells, |roi, out| {
        let (left, top, w, h) = place(roi);
        let (cell_w, cell_h) = (w / a.width as f64, h / a.height as f64);
        let (nx, ny) = (grid(w, a.width) as usize, grid(h, a.height) as usize);
        for cell in 0..cells {
            let (row, column) = ((cell / a.width) as f64, (cell % a.width) as f64);
            let samples: Vec<Sample> = (0..nx * ny)
                .map(|i| {
                    let y = top + row * cell_h + ((i / nx) as f64 + 0.5) * cell_h / ny as f64;
                    let x = left + column * cell_w + ((i % nx) as f64 + 0.5) * cell_w / nx as f64;
                    sample(y, x, height, width)
                })
                .collect();
            for c in 0..channels {
                let plane = &xs[(indices[roi] as usize * channels + c) * height * width..][..height * width];
                let terms = samples.iter().map(|s| s.map(|(at, w)| plane[at].wide() * w));
                let value = if a.max {
                    terms.flatten().reduce(f64::max).unwrap_or(0.0)
                } else {
                    terms.map(|t| t.iter().sum::<f64>()).sum::<f64>() / samples.len().max(1) as f64
                };
                out[c * cells + cell] = T::of(value);
            }
        }
    });
    one(cast(&Tensor::new(shape, y)?, x.dtype())?)
}

fn pooled_shape(attrs: &Attrs) -> Result<[usize; 2], OpError> {
    match attrs.ints("pooled_shape")? {
        Some(&[h @ 1..=0x1_0000_0000, w @ 1..=0x1_0000_0000]) => Ok([h as usize, w as usize]),
        other => invalid!("attribute \"pooled_shape\": expected two sizes, found {:?}", other.unwrap_or_default()),
    }
}

fn infer_roi_pool(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let [height, width] = pooled_shape(cx.op.attrs)?;
    Ok(infer_rois(cx, height, width))
}

fn build_roi_pool(cx: &OpCtx) -> Result<Kernel, OpError> {
    let pooled = pooled_shape(cx.attrs)?;
    let scale = f64::from(cx.attrs.float_or("spatial_scale", 1.0)?);
    Ok(Box::new(move |args| match real_dtype(args.tensor(0)?.dtype())? {
        DType::F64 => roi_pool::<f64>(pooled, scale, &args),
        _ => roi_pool::<f32>(pooled, scale, &args),
    }))
}

fn roi_pool<T: Real>([rows, columns]: [usize; 2], scale: f64, args: &Args) -> Result<Outputs, OpError> {
    let x = args.tensor(0)?;
    let ([batch, channels, height, width], rois) = regions(args, 5)?;
    let count = rois.len() / 5;
    if let Some(r) = rois.chunks(5).find(|r| r[0] < 0.0 || r[0] >= batch as f64) {
        invalid!("input 1: index {} is out of range for {batch} images", r[0]);
    }
    let shape = [count, channels, rows, columns];
    let mut y = filled(checked_product(&shape)?, T::zero())?;
    let wide = cast(x, T::DTYPE)?;
    let xs = wide.to_slice::<T>()?;
    for_each_chunk(&mut y, rows * columns, |i, out| {
        let roi = &rois[i / channels * 5..][..5];
        let plane = &xs[(roi[0] as usize * channels + i % channels) * height * width..][..height * width];
        // Pixels from the rounded start to the rounded end, both counted; cells may share pixels.
        let range = |from: f64, to: f64, cell: usize, cells: usize, size: usize| {
            let (from, to) = ((from * scale).round(), (to * scale).round());
            let step = (to - from + 1.0).max(1.0) / cells as f64;
            let bound = |v: f64| (v + from).clamp(0.0, size as f64) as usize;
            bound((cell as f64 * step).floor())..bound(((cell + 1) as f64 * step).ceil())
        };
        for (cell, y) in out.iter_mut().enumerate() {
            let (h, w) = (range(roi[2], roi[4], cell / columns, rows, height), range(roi[1], roi[3], cell % columns, columns, width));
            let pixels = h.flat_map(|r| w.clone().map(move |c| plane[r * width + c]));
            *y = pixels.reduce(|a, b| if b > a { b } else { a }).unwrap_or_else(T::zero);
        }
    });
    one(cast(&Tensor::new(shape, y)?, x.dtype())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::run;

    #[test]
    fn the_better_of_two_boxes_stays() {
        let boxes = Tensor::new([1, 3, 4], vec![0f32, 0.0, 1.0, 1.0, 0.0, 0.1, 1.0, 1.1, 0.0, 10.0, 1.0, 11.0]).unwrap();
        let scores = Tensor::new([1, 1, 3], vec![0.75f32, 0.9, 0.5]).unwrap();
        let inputs = [boxes, scores, Tensor::scalar(3i64), Tensor::scalar(0.5f32)];
        let kept = run("NonMaxSuppression", 11, Attrs::new(), &inputs).unwrap();
        assert_eq!(kept.to_i64s().unwrap(), [0, 0, 1, 0, 0, 2]);
        let none = run("NonMaxSuppression", 11, Attrs::new(), &inputs[..2]).unwrap();
        assert_eq!(none.shape()[..], [0, 3]);
    }

    #[test]
    fn max_roi_pool_takes_the_greatest_of_each_cell() {
        let x = Tensor::new([1, 1, 4, 4], (0..16).map(|x| x as f32).collect()).unwrap();
        let rois = Tensor::new([1, 5], vec![0f32, 0.0, 0.0, 3.0, 3.0]).unwrap();
        let attrs = Attrs::new().with("pooled_shape", vec![2i64, 2]);
        assert_eq!(run("MaxRoiPool", 22, attrs, &[x, rois]).unwrap().to_f32s().unwrap(), [5.0, 7.0, 13.0, 15.0]);
    }
}
