#![doc = include_str!("ARCHITECTURE.md")]

pub mod comm;
pub mod exec;
pub mod formats;
pub mod ir;
pub mod ops;
pub mod plan;
pub mod store;
pub mod tensor;
