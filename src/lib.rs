#![doc = include_str!("ARCHITECTURE.md")]

pub mod comm;
pub mod plan;
pub mod store;
pub mod tensor;
mod wire;
