//! Graph passes: the catalogue, the pipeline that runs them, and the report of what they did and why not.
//!
#![doc = include_str!("../PATTERNS.md")]

mod all_reduce;
pub mod costs;
mod dead_code;
mod fold_constants;
mod hoist_lookups;
mod infer_shapes;
mod inline_functions;
mod merge_lookups;
mod partition_params;
mod pipeline;
mod remote_lookup;
mod report;
mod standard_ops;

pub use all_reduce::AllReduce;
pub use dead_code::DeadCode;
pub use fold_constants::FoldConstants;
pub use hoist_lookups::HoistLookups;
pub use infer_shapes::{InferShapes, output_types, shape_faults};
pub use inline_functions::InlineFunctions;
pub use merge_lookups::MergeLookups;
pub use partition_params::PartitionParams;
pub use pipeline::{Pipeline, parse_passes};
pub use remote_lookup::{NameFilter, RemoteLookup, Selection, hidden_in_functions};
pub use report::{LookupRemark, Report, TableTaken};
pub use standard_ops::StandardOps;

use crate::ir::{EditError, Model};

/// Whether a pass changed the model; it tells the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// It did.
    Yes,
    /// The model is as it was.
    No,
}

impl Changed {
    /// Either of two.
    #[must_use]
    pub fn or(self, other: Changed) -> Changed {
        if self == Changed::Yes { self } else { other }
    }
}

impl From<bool> for Changed {
    fn from(b: bool) -> Self {
        if b { Changed::Yes } else { Changed::No }
    }
}

/// Why a pass could not be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// An edit was refused.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The call is wrong: a pass or an output that does not exist.
    #[error("{0}")]
    Call(String),
    /// A pass left an invalid graph behind: a fault of the pass.
    #[error("pass {pass} left an invalid graph: {fault}")]
    Invalid {
        /// The pass.
        pass: &'static str,
        /// The first fault.
        fault: String,
    },
}

/// A rewriting of a model. Inputs and outputs keep name and type; running it again changes nothing.
pub trait Pass {
    /// Its name in `--passes`.
    fn name(&self) -> &'static str;

    /// Runs it on the main graph and all bodies and functions.
    ///
    /// # Errors
    /// Those of [`PassError`]; the model is then as the last commit left it.
    fn run(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError>;
}

/// The passes that need no settings, in alphabetical order.
pub fn catalogue() -> Vec<Box<dyn Pass>> {
    vec![
        Box::new(DeadCode),
        Box::new(FoldConstants::default()),
        Box::new(HoistLookups),
        Box::new(InferShapes),
        Box::new(InlineFunctions),
        Box::new(MergeLookups),
        Box::new(StandardOps),
    ]
}
