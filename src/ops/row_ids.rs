//! Ops of the domain `graphtool`, version 1, that prepare lookups.
//!
//! `RowIds(indices) → ids` makes one row number out of the last dim of the indices, which address the leading `dims` of a
//! table; each counts from the end where it is negative, and is checked. The first `batch_dims` of the `dims` count with
//! where an index stands, in the same dims of the indices. `Positions(ids) → places` has the type and shape of
//! the ids and counts their elements.

use super::remote::DOMAIN;
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, infer, one};
use crate::invalid;
use crate::tensor::{DType, Tensor, cast};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Positions", &[1]).domain(DOMAIN).kernel(positions).infer(infer::same),
    OpDef::new("RowIds", &[1]).domain(DOMAIN).attrs(&["batch_dims", "dims"]).kernel(row_ids).infer(infer_row_ids),
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
    let batch = cx.attrs.int_or("batch_dims", 0)?;
    let Some(batch) = usize::try_from(batch).ok().filter(|&b| b < dims.len()) else {
        invalid!("batch_dims {batch} of {} dims", dims.len())
    };
    Ok(Box::new(move |args: Args| {
        let indices = args.tensor(0)?;
        let (around, own) = dims.split_at(batch);
        if indices.shape().last() != Some(&own.len()) || indices.rank() <= batch {
            invalid!("expected indices of {} parts after {batch} batch dims, found shape {}", own.len(), indices.shape());
        }
        if indices.shape()[..batch].iter().zip(around).any(|(&a, &b)| a as i64 != b) {
            invalid!("the first dims of indices of shape {} are not {around:?}", indices.shape());
        }
        // Indices of one batch follow each other.
        let each = indices.shape()[batch..indices.rank() - 1].iter().product::<usize>().max(1);
        let mut ids = Vec::with_capacity(indices.len() / own.len());
        for (place, index) in indices.to_i64s()?.chunks_exact(own.len()).enumerate() {
            let mut id = (place / each) as i64;
            for (&i, &d) in index.iter().zip(own) {
                if !(-d..d).contains(&i) {
                    invalid!("index {index:?} is out of range for {own:?}");
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
    fn batch_dims_count_with_the_place_of_an_index() {
        let ids = Tensor::new([2, 2, 1], vec![1i64, -1, 0, 2]).unwrap();
        let attrs = |b: i64| Attrs::new().with("dims", vec![2, 3]).with("batch_dims", b);
        assert_eq!(run("graphtool::RowIds", 1, attrs(1), &[ids.clone()]).unwrap(), Tensor::new([2, 2], vec![1i64, 2, 3, 5]).unwrap());
        let wrong = Tensor::new([3, 1], vec![0i64; 3]).unwrap();
        let error = run("graphtool::RowIds", 1, attrs(1), &[wrong]).unwrap_err().to_string();
        assert_eq!(error, "the first dims of indices of shape [3,1] are not [2]");
        assert!(run("graphtool::RowIds", 1, attrs(2), &[ids]).is_err());
    }

    #[test]
    fn positions_have_the_type_of_the_ids() {
        let ids = Tensor::new([2, 1], vec![7i32, 7]).unwrap();
        assert_eq!(run("graphtool::Positions", 1, Attrs::new(), &[ids]).unwrap(), Tensor::new([2, 1], vec![0i32, 1]).unwrap());
    }
}
