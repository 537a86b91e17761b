//! Classical models and encoders of `ai.onnx.ml`.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
