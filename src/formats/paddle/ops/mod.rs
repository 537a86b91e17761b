//! One table of translations: the name of a PaddlePaddle op and how it is said in ONNX.

mod control;
mod lookup;
mod loss;
mod math;
mod nn;
mod reduce;
mod shape;

use super::program::Tx;
use super::proto::OpDesc;

/// Adds the nodes of an op.
pub(super) type Translate = for<'a> fn(&mut Tx<'a>, &'a OpDesc) -> Result<(), String>;

/// All families.
const FAMILIES: &[&[(&str, Translate)]] = &[control::OPS, lookup::OPS, loss::OPS, math::OPS, nn::OPS, reduce::OPS, shape::OPS];

/// The translation of an op, if there is one.
pub(super) fn find(name: &str) -> Option<Translate> {
    FAMILIES.iter().flat_map(|f| f.iter()).find(|t| t.0 == name).map(|t| t.1)
}

type Done = Result<(), String>;
