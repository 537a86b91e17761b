//! Running graphs: a model is compiled once into a [`Session`], which then runs on any number of inputs.

mod bags;
mod compile;
mod control;
mod early;
mod fuse;
mod host;
mod order;
mod plan;
mod profile;
mod scheduler;
mod session;
mod trace;

pub use crate::store::Tally;
pub use profile::Profile;
pub use session::{Begun, Options, Session};
pub use trace::Trace;

/// Why a model cannot be run, or a run failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// A node of the model.
    #[error("node \"{node}\" ({op}): {detail}")]
    Node {
        /// Its name, or its first output's.
        node: String,
        /// Its op.
        op: String,
        /// What is wrong.
        detail: String,
    },
    /// Rows that could not be had, whatever the ids are.
    #[error("node \"{node}\" ({op}): {detail}")]
    Rows {
        /// The name of the node that asked for them, or its first output's.
        node: String,
        /// Its op.
        op: String,
        /// What the store says.
        detail: String,
        /// Whether a server is not there or late, so that the same may succeed later; else what it holds is at fault.
        later: bool,
    },
    /// The model as a whole.
    #[error("{0}")]
    Model(String),
    /// What the caller gave.
    #[error("input \"{name}\": {detail}")]
    Input {
        /// The input's name.
        name: String,
        /// What is wrong.
        detail: String,
    },
}
