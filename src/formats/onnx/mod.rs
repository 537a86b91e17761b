//! ONNX files: models, and the tensors and values of test data.

pub mod external;
mod place;
pub mod proto;
pub mod read;
mod save;
pub mod sparse;
pub mod tensor;
pub mod unknown;
pub mod value;
pub mod write;

pub use save::{Beside, save, save_with};
