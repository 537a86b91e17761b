//! Operators: one [`OpDef`] record and one kernel each, in the file of the op's family. Arity, attributes, shape inference
//! and execution all follow from the record.

mod args;
mod chain;
mod early;
pub mod elementwise;
pub(crate) mod fused;
mod gemm;
mod infer;
#[cfg(test)]
mod laws;
mod lookup_concat;
pub mod math;
mod mersenne;
mod movement;
mod pointwise;
mod rows;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod threads;
pub mod util;
mod window;

mod activation;
mod attention;
mod binary;
mod cast;
mod compare;
mod concat;
mod control;
mod conv;
mod cumulative;
mod defaults;
mod einsum;
mod flex_attention;
mod gather;
mod generate;
mod labels;
mod linear_attention;
mod loss;
mod matmul;
mod matmul_integer;
mod microsoft;
mod ml;
mod ngrams;
mod norm;
mod pad;
mod pool;
mod quant;
mod random;
mod reduce;
pub mod remote;
mod resize;
mod rnn;
mod row_ids;
mod scatter;
mod select;
mod sequence;
mod shape;
mod signal;
mod slice;
mod softmax;
mod sparse;
mod text;
mod training;
mod transpose;
mod unary;
mod unique;
mod variadic;
mod vision;

pub use args::{Args, OpCtx};
pub use defaults::{Default, default_attr};
pub use infer::{Fact, InferCtx, broadcast_dims};
pub use sparse::densify;

use crate::ir::{AttrError, OpName};
use crate::tensor::{TensorError, Value};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Why a kernel cannot be built or does not run. The caller adds the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// The model or its input is at fault.
    #[error("{0}")]
    Invalid(String),
    /// The model may be right, but this build cannot run it.
    #[error("{0}")]
    Unsupported(String),
}

impl From<TensorError> for OpError {
    fn from(e: TensorError) -> Self {
        OpError::Invalid(e.to_string())
    }
}

impl From<AttrError> for OpError {
    fn from(e: AttrError) -> Self {
        OpError::Invalid(e.to_string())
    }
}

/// Returns [`OpError::Invalid`] with a formatted message.
#[macro_export]
macro_rules! invalid {
    ($($t:tt)*) => { return Err($crate::ops::OpError::Invalid(format!($($t)*))) };
}

/// Returns [`OpError::Unsupported`] with a formatted message.
#[macro_export]
macro_rules! unsupported {
    ($($t:tt)*) => { return Err($crate::ops::OpError::Unsupported(format!($($t)*))) };
}

/// The values that a kernel makes, by slot.
pub type Outputs = SmallVec<[Value; 2]>;

/// What runs a node: a plain function of its inputs. It never waits and does no IO.
pub type Kernel = Box<dyn Fn(Args) -> Result<Outputs, OpError> + Send + Sync>;

/// Builds the kernel of a node: attributes are read and checked once, constants may be prepared.
pub type Build = fn(&OpCtx) -> Result<Kernel, OpError>;

/// Shape inference of a node: what is known of each output.
pub type Infer = fn(&InferCtx) -> Result<Vec<Fact>, OpError>;

/// How an op runs.
#[derive(Debug, Clone, Copy)]
pub enum Run {
    /// By a kernel.
    Kernel(Build),
    /// Its bodies are run by the executor.
    Control,
    /// By the executor, which waits for stores or other ranks.
    Host,
}

/// Everything that is known of one op.
#[derive(Debug, Clone, Copy)]
pub struct OpDef {
    /// Domain; `""` is ONNX's own.
    pub domain: &'static str,
    /// Name.
    pub name: &'static str,
    /// The opset versions of its domain in which it appeared or changed, ascending.
    pub versions: &'static [i64],
    /// Least and greatest number of inputs (`usize::MAX`: variadic).
    pub inputs: (usize, usize),
    /// Least and greatest number of outputs.
    pub outputs: (usize, usize),
    /// Names of its attributes, of any version.
    pub attrs: &'static [&'static str],
    /// Shape inference.
    pub infer: Infer,
    /// How it runs.
    pub run: Run,
    /// Whether equal inputs give equal outputs and nothing else happens: such nodes may be folded, merged or dropped.
    pub pure: bool,
}

impl OpDef {
    /// A record with one input and one output of unknown type; the chained calls say the rest.
    pub const fn new(name: &'static str, versions: &'static [i64]) -> Self {
        Self { domain: "", name, versions, inputs: (1, 1), outputs: (1, 1), attrs: &[], infer: infer::nothing, run: Run::Host, pure: true }
    }

    /// Of another domain.
    pub const fn domain(mut self, domain: &'static str) -> Self {
        self.domain = domain;
        self
    }

    /// From `min` to `max` inputs.
    pub const fn inputs(mut self, min: usize, max: usize) -> Self {
        self.inputs = (min, max);
        self
    }

    /// From `min` to `max` outputs.
    pub const fn outputs(mut self, min: usize, max: usize) -> Self {
        self.outputs = (min, max);
        self
    }

    /// With these attributes.
    pub const fn attrs(mut self, attrs: &'static [&'static str]) -> Self {
        self.attrs = attrs;
        self
    }

    /// Runs by this kernel.
    pub const fn kernel(mut self, build: Build) -> Self {
        self.run = Run::Kernel(build);
        self
    }

    /// Runs in this other way.
    pub const fn run(mut self, run: Run) -> Self {
        self.run = run;
        self
    }

    /// With this shape inference.
    pub const fn infer(mut self, infer: Infer) -> Self {
        self.infer = infer;
        self
    }

    /// Whether a node may have so many inputs and outputs.
    ///
    /// # Errors
    /// It may not: what is expected and what found.
    pub fn check_arity(&self, inputs: usize, outputs: usize) -> Result<(), String> {
        let range = |(lo, hi): (usize, usize)| match hi {
            usize::MAX => format!("at least {lo}"),
            _ if lo == hi => lo.to_string(),
            _ => format!("{lo} to {hi}"),
        };
        if inputs < self.inputs.0 || inputs > self.inputs.1 {
            return Err(format!("expected {} inputs, found {inputs}", range(self.inputs)));
        }
        if outputs > self.outputs.1 {
            return Err(format!("expected {} outputs, found {outputs}", range(self.outputs)));
        }
        Ok(())
    }

    /// Not a function of its inputs alone.
    pub const fn impure(mut self) -> Self {
        self.pure = false;
        self
    }
}

/// All families, in alphabetical order.
#[rustfmt::skip]
const FAMILIES: &[&[OpDef]] = &[
    activation::OPS,
    attention::OPS,
    binary::OPS,
    cast::OPS,
    compare::OPS,
    concat::OPS,
    control::OPS,
    conv::OPS,
    cumulative::OPS,
    einsum::OPS,
    flex_attention::OPS,
    gather::OPS,
    generate::OPS,
    labels::OPS,
    linear_attention::OPS,
    loss::OPS,
    matmul::OPS,
    matmul_integer::OPS,
    microsoft::attention::OPS,
    microsoft::blocks::OPS,
    microsoft::embed::OPS,
    microsoft::fused::OPS,
    microsoft::group_query::OPS,
    microsoft::qlinear::OPS,
    ml::OPS,
    ngrams::OPS,
    norm::OPS,
    pad::OPS,
    pool::OPS,
    quant::OPS,
    random::OPS,
    reduce::OPS,
    remote::OPS,
    resize::OPS,
    rnn::OPS,
    row_ids::OPS,
    scatter::OPS,
    select::OPS,
    sequence::OPS,
    shape::OPS,
    signal::OPS,
    slice::OPS,
    softmax::OPS,
    text::OPS,
    training::OPS,
    transpose::OPS,
    unary::OPS,
    unique::OPS,
    variadic::OPS,
    vision::OPS,
];

static REGISTRY: LazyLock<HashMap<(&'static str, &'static str), &'static OpDef>> =
    LazyLock::new(|| FAMILIES.iter().flat_map(|f| f.iter()).map(|d| ((d.domain, d.name), d)).collect());

/// The record of an op, if this build knows it.
pub fn find(op: &OpName) -> Option<&'static OpDef> {
    REGISTRY.get(&(&*op.domain, &*op.name)).copied()
}

/// All records, by domain and name.
pub fn all() -> Vec<&'static OpDef> {
    let mut all: Vec<&'static OpDef> = FAMILIES.iter().flat_map(|f| f.iter()).collect();
    all.sort_by_key(|d| (d.domain, d.name));
    all
}

/// Outputs of one value.
pub fn one(value: impl Into<Value>) -> Result<Outputs, OpError> {
    Ok(SmallVec::from_iter([value.into()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_op_has_one_record() {
        assert_eq!(REGISTRY.len(), all().len());
    }
}
