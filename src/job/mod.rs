//! Batch prediction: roles, the split of samples, the order of outputs, metrics, the launcher.

mod ahead;
pub mod endpoints;
pub mod exposition;
pub mod launch;
pub mod metrics;
pub mod monitor;
mod parts;
mod predict;
mod record;
pub mod roles;
mod schedule;

pub use parts::{PartsOptions, parts_dir, remove_parts};
pub use predict::{DEFAULT_BATCH, DEFAULT_PREFETCH, Job, JobError, Summary, predict};
pub use record::Filled;
