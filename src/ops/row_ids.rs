//! Ops of the domain `graphtool`, version 1, that prepare lookups.
//!
//! `RowIds(indices) → ids` makes one row number out of the last dim of the indices, which address the leading `dims` of a
//! table; each counts from the end where it is negative, and is checked. `Positions(ids) → places` has the type and shape of
//! the ids and counts their elements.

use super::remote::DOMAIN;
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, infer, one};
use crate::invalid;
use crate::tensor::{DType, Tensor, cast};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Positions", &[1]).domain(DOMAIN).kernel(positions).infer(infer::same),
    OpDef::new("RowIds", &[1]).domain(DOMAIN).attrs(&["dims"]).kernel(row_ids).infer(infer_row_ids),
];

fn positions(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args: Args| {
        let ids = args.tensor(0)?;
        let places = Tensor::new(ids.shape().clone(), (0..ids.len() as i64).collect::<Vec<_>>())?;
        one(cast(&places, ids.dtype())?)
    }))
}

fn row_ids(cx: &OpCtx) -> Result<Kernel, OpError> {
    let Some(dims) = cx.attrs.ints("dims")?.map(<[i64]>::to_vec).filter(|d| !d.is_empty() && d.iter().all(|&d| d >= 0)) else {
        invalid!("attribute \"dims\" must have sizes");
    };
    Ok(Box::new(move |args: Args| {
        let indices = args.tensor(0)?;
        if indices.shape().last() != Some(&dims.len()) {
            invalid!("expected indices of {} parts, found shape {}", dims.len(), indices.shape());
        }
        let mut ids = Vec::with_capacity(indices.len() / dims.len());
        for index in indices.to_i64s()?.chunks_exact(dims.len()) {
            let mut id = 0;
            for (&i, &d) in index.iter().zip(&dims) {
                if !(-d..d).contains(&i) {
                    invalid!("index {index:?} is out of range for {dims:?}");
                }
                id = id * d + i.rem_euclid(d);
            }
            ids.push(id);
        }
        one(Tensor::new(&indices.shape()[..indices.rank() - 1], ids)?)
    }))
}

fn infer_row_ids(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(Some(DType::I64), cx.shape(0).and_then(|s| s.split_last()).map(|(_, s)| s.to_vec()))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;

    #[test]
    fn indices_in_several_dims_become_row_numbers() {
        let ids = Tensor::new([2, 2], vec![1i64, 2, -1, -3]).unwrap();
        let dims = || Attrs::new().with("dims", vec![2, 3]);
        assert_eq!(run("graphtool::RowIds", 1, dims(), &[ids]).unwrap(), Tensor::vector(vec![5i64, 3]));
        let error = run("graphtool::RowIds", 1, dims(), &[Tensor::vector(vec![0i64, 3])]).unwrap_err().to_string();
        assert_eq!(error, "index [0, 3] is out of range for [2, 3]");
    }

    #[test]
    fn positions_have_the_type_of_the_ids() {
        let ids = Tensor::new([2, 1], vec![7i32, 7]).unwrap();
        assert_eq!(run("graphtool::Positions", 1, Attrs::new(), &[ids]).unwrap(), Tensor::new([2, 1], vec![0i32, 1]).unwrap());
    }
}
