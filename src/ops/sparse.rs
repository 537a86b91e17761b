//! Sparse constants in dense form.

use super::OpError;
use crate::ir::SparseConstant;
use crate::tensor::{Element, Shape, Tensor, checked_len};
use crate::{dispatch, invalid};

/// Dense elements above this many are refused.
const MAX_ELEMENTS: usize = 1 << 31;

/// The dense tensor: zeros but for the values at their places (linear `[nnz]`, or coordinates `[nnz, rank]`).
///
/// # Errors
/// An index out of range, sizes that do not fit, a dense form of more than 2^31 elements.
pub fn densify(sparse: &SparseConstant) -> Result<Tensor, OpError> {
    let (values, indices) = (&sparse.values.tensor, sparse.indices.tensor.to_i64s()?);
    let dims = Shape::from(sparse.dims.as_slice());
    let Some(len) = checked_len(&dims).filter(|&n| n <= MAX_ELEMENTS) else { invalid!("its dense form {dims} is too large") };
    let (nnz, rank) = (values.len(), dims.len());
    let width = if sparse.indices.tensor.rank() == 2 { rank } else { 1 };
    if indices.len() != nnz * width {
        invalid!("{nnz} values with {} indices", indices.len());
    }
    let mut places = Vec::with_capacity(nnz);
    for i in 0..nnz {
        let entry = &indices[i * width..(i + 1) * width];
        let linear = if width == 1 && sparse.indices.tensor.rank() != 2 {
            usize::try_from(entry[0]).ok().filter(|&p| p < len)
        } else {
            entry.iter().zip(dims.iter()).try_fold(0usize, |at, (&x, &d)| usize::try_from(x).ok().filter(|&x| x < d).map(|x| at * d + x))
        };
        let Some(place) = linear else { invalid!("index {entry:?} is out of range for {dims}") };
        places.push(place);
    }
    fn fill<T: Element>(values: &Tensor, places: &[usize], dims: Shape) -> Result<Tensor, OpError> {
        let mut data = vec![T::default(); dims.iter().product()];
        for (place, v) in places.iter().zip(values.to_slice::<T>()?.iter()) {
            data[*place] = v.clone();
        }
        Ok(Tensor::new(dims, data)?)
    }
    dispatch!(values.dtype(), T => fill::<T>(values, &places, dims))
}
