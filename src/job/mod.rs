//! Batch prediction: roles, the split of samples, the order of outputs, metrics, the launcher.

pub mod launch;
pub mod metrics;
mod predict;
pub mod roles;

pub use predict::{DEFAULT_BATCH, Job, JobError, Summary, predict};
