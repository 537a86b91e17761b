//! One table of translations: the name of a PaddlePaddle op and how it is said in ONNX.

mod activation;
mod array;
mod control;
mod image;
mod lookup;
mod loss;
mod math;
mod metric;
mod nn;
mod norm;
mod numbers;
mod product;
mod reduce;
mod rnn;
mod select;
mod sequence;
mod shape;

use super::program::Tx;
use super::proto::OpDesc;

/// Adds the nodes of an op.
pub(super) type Translate = for<'a> fn(&mut Tx<'a>, &'a OpDesc) -> Result<(), String>;

/// All families.
const FAMILIES: &[&[(&str, Translate)]] = &[
    activation::OPS,
    array::OPS,
    control::OPS,
    image::OPS,
    lookup::OPS,
    loss::OPS,
    math::OPS,
    metric::OPS,
    nn::OPS,
    norm::OPS,
    numbers::OPS,
    product::OPS,
    reduce::OPS,
    rnn::OPS,
    select::OPS,
    sequence::OPS,
    shape::OPS,
];

/// The names of all ops that are translated.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|f| f.iter()).map(|t| t.0)
}

/// The translation of an op, if there is one.
pub(super) fn find(name: &str) -> Option<Translate> {
    FAMILIES.iter().flat_map(|f| f.iter()).find(|t| t.0 == name).map(|t| t.1)
}

type Done = Result<(), String>;
