//! ONNX files: models, and the tensors and values of test data.

pub mod proto;
pub mod unknown;
