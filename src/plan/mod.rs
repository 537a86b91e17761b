//! How tables are cut into shards: the manifest that says so, and the planner that decides it.

mod manifest;
mod planner;

pub use manifest::{Absent, FORMAT_VERSION, Manifest, ManifestError, Piece, Sharding, TableEntry, assign_shards};
pub use planner::{Layout, Mode, TableLayout, TableSize, plan, ranges};
