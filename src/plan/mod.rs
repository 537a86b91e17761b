//! How tables are cut into shards: the planner that decides it, the plan, and the manifest that says what was done.

mod layout;
mod load;
mod manifest;
mod placement;
mod planner;
mod stats;
mod stored;

pub use layout::{Layout, TableLayout, TableSize, ranges};
pub use load::{ShardFigures, check_stats, figures, imbalance};
pub use manifest::{Absent, DenseInput, FORMAT_VERSION, Manifest, ManifestError, Piece, Sharding, TableEntry};
pub use placement::Placement;
pub use planner::{Mode, Wish, plan};
pub use stats::IdStats;
pub use stored::{StoreDtype, Stored};
