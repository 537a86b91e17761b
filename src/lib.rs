#![doc = include_str!("ARCHITECTURE.md")]

pub mod comm;
pub mod data;
pub mod formats;
pub mod job;
pub mod plan;
pub mod store;
pub mod tensor;
