//! Model files: readers and writers, one module per format. Everything protobuf stays in here.

pub mod onnx;
