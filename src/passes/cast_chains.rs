//! `cast-chains`
//!
//! *What*: a Cast of a Cast reads the first one's operand, where the type between holds every value of the first.
//! *Why*: exporters widen, compute nothing, and narrow again.
//! *Before*:
//! ```text
//! graph g(x: int32[n]) -> (y) {
//!   wide = Cast(x) {to=7}
//!   y = Cast(wide) {to=1}
//! }
//! ```
//! *After*:
//! ```text
//! graph g(x: int32[n]) -> (y) {
//!   wide = Cast(x) {to=7}
//!   y = Cast(x) {to=1}
//! }
//! ```
//! *Needs*: the type of the first operand.
//! *Leaves alone*: types between that round or cut (float32 by way of float16), texts. The first Cast goes by `dead-code`.

use super::rules;
use super::{Changed, Pass, PassError, Report};
use crate::ir::Model;
use crate::tensor::DType;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct CastChains;

impl Pass for CastChains {
    fn name(&self) -> &'static str {
        "cast-chains"
    }

    fn source(&self) -> &'static str {
        include_str!("cast_chains.rs")
    }

    fn run(&self, model: &mut Model, _: &mut Report) -> Result<Changed, PassError> {
        rules::apply(model, self.name(), |b, id| {
            let middle = b.is(id, "Cast").then(|| b.node(id).input(0)).flatten()?;
            let x = b.node(b.by(middle, "Cast")?).input(0)?;
            if !holds(b.dtype(middle)?, b.dtype(x)?) {
                return None;
            }
            b.claim(&[id], [x])?;
            b.edit.set_operand(id, 0, Some(x));
            Some(())
        })
    }
}

/// Whether a type has each value of another, and a number of its own for each.
fn holds(wide: DType, narrow: DType) -> bool {
    use DType::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
    let list: &[DType] = match narrow {
        Bool => &[I8, I16, I32, I64, U8, U16, U32, U64, F16, BF16, F32, F64],
        I8 => &[I16, I32, I64, F16, BF16, F32, F64],
        U8 => &[I16, I32, I64, U16, U32, U64, F16, BF16, F32, F64],
        I16 => &[I32, I64, F32, F64],
        U16 => &[I32, I64, U32, U64, F32, F64],
        I32 => &[I64, F64],
        U32 => &[I64, U64, F64],
        F16 | BF16 => &[F32, F64],
        F32 => &[F64],
        _ => &[],
    };
    list.contains(&wide)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{parse_model, print_graph};

    #[test]
    fn a_type_between_that_rounds_stays() {
        for (from, between) in [("float32", 10), ("int64", 1), ("int32", 1), ("float16", 16), ("int32", 9), ("uint64", 7), ("int8", 13)] {
            let text = format!("graph g(x: {from}[n]) -> (y) {{\n  t = Cast(x) {{to={between}}}\n  y = Cast(t) {{to=11}}\n}}\n");
            let mut model = parse_model(&text).unwrap();
            assert_eq!(CastChains.run(&mut model, &mut Report::default()).unwrap(), Changed::No, "{}", print_graph(&model.graph));
        }
    }
}
