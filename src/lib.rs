#![doc = include_str!("ARCHITECTURE.md")]

pub mod cli;
pub mod comm;
pub mod data;
pub mod deploy;
pub mod exec;
pub mod files;
pub mod formats;
pub mod http;
pub mod ir;
pub mod job;
pub mod ops;
pub mod paddle;
pub mod passes;
pub mod plan;
pub mod serve;
pub mod store;
pub mod tensor;
pub mod view;
mod wire;
