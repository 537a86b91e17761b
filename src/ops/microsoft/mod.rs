//! Ops of ONNX Runtime's `com.microsoft` domain, as its optimizer and quantizer write them.

pub(super) mod attention;
pub(super) mod blocks;
pub(super) mod embed;
pub(super) mod fused;
pub(super) mod group_query;
pub(super) mod qlinear;

use super::OpDef;

/// A record of this domain.
const fn op(name: &'static str) -> OpDef {
    OpDef::new(name, &[1]).domain("com.microsoft")
}
