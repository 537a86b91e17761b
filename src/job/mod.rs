//! Batch prediction: roles, the split of samples, the order of outputs, metrics.

pub mod metrics;
