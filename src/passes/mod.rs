//! Graph passes: the catalogue, the pipeline that runs them, and the report of what they did and why not.
//!
#![doc = include_str!("../PATTERNS.md")]

mod all_reduce;
mod cast_chains;
mod common_subexpressions;
mod constant_branches;
pub mod costs;
mod dead_code;
mod extract;
mod fold_constants;
mod fold_shapes;
mod fuse_activations;
mod fuse_attention;
mod fuse_batch_normalization;
mod fuse_gelu;
mod fuse_layer_normalization;
mod fuse_matmul;
mod fuse_skip_layer_normalization;
mod hoist_lookups;
mod infer_shapes;
mod inline_functions;
mod lift_constants;
mod merge_initializers;
mod merge_lookups;
mod near;
mod no_ops;
mod page;
mod partition_params;
mod pipeline;
mod remote_lookup;
mod report;
mod reshape_chains;
mod rules;
mod simplify_slices;
mod simplify_transposes;
mod split_slices;
mod standard_ops;
mod upgrade_opset;

pub use crate::ops::remote::DOMAIN;
pub use all_reduce::AllReduce;
pub use cast_chains::CastChains;
pub use common_subexpressions::CommonSubexpressions;
pub use constant_branches::ConstantBranches;
pub use dead_code::DeadCode;
pub use extract::{extract, frontier};
pub use fold_constants::FoldConstants;
pub use fold_shapes::FoldShapes;
pub use fuse_activations::FuseActivations;
pub use fuse_attention::FuseAttention;
pub use fuse_batch_normalization::FuseBatchNormalization;
pub use fuse_gelu::FuseGelu;
pub use fuse_layer_normalization::FuseLayerNormalization;
pub use fuse_matmul::FuseMatmul;
pub use fuse_skip_layer_normalization::FuseSkipLayerNormalization;
pub use hoist_lookups::HoistLookups;
pub use infer_shapes::{InferShapes, output_types, shape_faults, value_types};
pub use inline_functions::InlineFunctions;
pub use lift_constants::LiftConstants;
pub use merge_initializers::MergeInitializers;
pub use merge_lookups::MergeLookups;
pub use near::near;
pub use no_ops::NoOps;
pub use page::{example, page, plain, section, summary};
pub use partition_params::PartitionParams;
pub use pipeline::{FUSE, Pipeline, SIMPLIFY, optimize, parse_passes};
pub use remote_lookup::{NameFilter, RemoteLookup, Selection, hidden_in_functions};
pub use report::{LookupRemark, Report, Size, Step, TableTaken};
pub use reshape_chains::ReshapeChains;
pub use simplify_slices::SimplifySlices;
pub use simplify_transposes::SimplifyTransposes;
pub use split_slices::SplitSlices;
pub use standard_ops::StandardOps;
pub use upgrade_opset::UpgradeOpset;

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

    /// The text of its file, whose `//!` header is its manual page (see [`page`]).
    fn source(&self) -> &'static str {
        ""
    }

    /// Runs it on the main graph and all bodies and functions.
    ///
    /// # Errors
    /// Those of [`PassError`]; the model is then as the last commit left it.
    fn run(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError>;
}

/// The passes that need no settings, in alphabetical order.
pub fn catalogue() -> Vec<Box<dyn Pass>> {
    vec![
        Box::new(CastChains),
        Box::new(CommonSubexpressions),
        Box::new(ConstantBranches),
        Box::new(DeadCode),
        Box::new(FoldConstants { copies: false, ..FoldConstants::default() }),
        Box::new(FoldShapes),
        Box::new(FuseActivations),
        Box::new(FuseAttention),
        Box::new(FuseBatchNormalization),
        Box::new(FuseGelu),
        Box::new(FuseLayerNormalization),
        Box::new(FuseMatmul),
        Box::new(FuseSkipLayerNormalization),
        Box::new(HoistLookups),
        Box::new(InferShapes),
        Box::new(InlineFunctions),
        Box::new(LiftConstants),
        Box::new(MergeInitializers),
        Box::new(MergeLookups),
        Box::new(NoOps),
        Box::new(ReshapeChains),
        Box::new(SimplifySlices),
        Box::new(SimplifyTransposes),
        Box::new(SplitSlices),
        Box::new(StandardOps),
    ]
}

/// The passes that need settings, in alphabetical order, with settings that do nothing: for their pages.
pub fn with_settings() -> Vec<Box<dyn Pass>> {
    vec![Box::new(AllReduce::default()), Box::new(PartitionParams), Box::new(RemoteLookup::default()), Box::new(UpgradeOpset { to: 0 })]
}
