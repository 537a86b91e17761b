//! Fused and quantized ops of `com.microsoft`, as ONNX Runtime's optimizer and quantizer write them.

use super::OpDef;

pub(super) const OPS: &[OpDef] = &[];
