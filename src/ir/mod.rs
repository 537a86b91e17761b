//! The intermediate representation: graphs of nodes and values on petgraph, edits, the verifier and the text form.

mod attr;
mod edit;
mod graph;
mod model;
mod node;
mod parse;
mod parts;
mod print;
mod types;
mod verify;

pub use attr::{Attr, AttrError, Attrs, Constant, Encoding, Residue, SparseConstant};
pub use edit::{Edit, EditError};
pub use graph::{Graph, GraphError, GraphOutput, NodeId, ValueId};
pub use model::{Function, Model, Names, OpsetImport, Scope, opset_version};
pub use node::{Kind, Node, OpName, Output, Use, normal_domain};
pub use parse::{ParseError, parse_model};
pub use parts::{NodeParts, Parts};
pub use print::{digest, fingerprint, print_graph, print_model};
pub use types::{Dim, Type};
pub use verify::{IR_VERSIONS, MAX_EXPANSION, defined_twice, function_faults, opset_fault, verify};
