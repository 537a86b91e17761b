//! Resampling: Resize and Upsample along axes, GridSample at given places, and the grids of AffineGrid.

mod attrs;
mod grid;
mod resample;

use super::OpDef;

const RESIZE_ATTRS: &[&str] = &[
    "antialias",
    "axes",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "keep_aspect_ratio_policy",
    "mode",
    "nearest_mode",
];

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("AffineGrid", &[20]).inputs(2, 2).attrs(&["align_corners"]).infer(grid::infer_affine).kernel(grid::build_affine),
    OpDef::new("GridSample", &[16, 20, 22])
        .inputs(2, 2)
        .attrs(&["align_corners", "mode", "padding_mode"])
        .infer(grid::infer_sample)
        .kernel(grid::build_sample),
    OpDef::new("Resize", &[10, 11, 13, 18, 19]).inputs(1, 4).attrs(RESIZE_ATTRS).infer(attrs::infer_resize).kernel(attrs::build_resize),
    OpDef::new("Upsample", &[1, 7, 9, 10])
        .inputs(1, 2)
        .attrs(&["height_scale", "mode", "scales", "width_scale"])
        .infer(attrs::infer_upsample)
        .kernel(attrs::build_upsample),
];
