//! The arithmetic of collectives, on whole tensors as bytes. Ranks are combined in their order, so that every run of the
//! same group gives the same bits; halves are summed in `float32` and rounded once.

use super::{CommError, ReduceOp};
use crate::tensor::{DType, Float, Number, bf16, f16};
use crate::wire::Pooled;
use bytes::Bytes;

/// Combines the contributions of the ranks (equal in length) element by element.
///
/// # Errors
/// A dtype without arithmetic.
pub(super) fn reduce(dtype: DType, op: ReduceOp, parts: &[Bytes]) -> Result<Bytes, CommError> {
    let no_arithmetic = || CommError::Invalid(format!("{dtype} has no arithmetic, a reduction needs numbers"));
    match (dtype, op) {
        (DType::F16, _) => Ok(halves::<f16>(op, parts)),
        (DType::BF16, _) => Ok(halves::<bf16>(op, parts)),
        (_, ReduceOp::Mean) if dtype.is_int() => {
            crate::dispatch_int!(dtype, T => Ok(int_mean::<T>(parts)), _other => Err(no_arithmetic()))
        }
        _ => crate::dispatch_number!(dtype, T => Ok(combine::<T>(op, parts)), _other => Err(no_arithmetic())),
    }
}

/// The elements of a contribution; its bytes may lie on any alignment.
fn elements<T: bytemuck::Pod>(bytes: &[u8]) -> impl Iterator<Item = T> + '_ {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned)
}

fn step<T: Number>(op: ReduceOp) -> fn(T, T) -> T {
    match op {
        ReduceOp::Sum | ReduceOp::Mean => T::add,
        ReduceOp::Max => T::greater_of,
        ReduceOp::Min => T::lesser_of,
    }
}

/// Writes `values` as bytes.
fn collect<T: bytemuck::Pod>(len: usize, values: impl Iterator<Item = T>) -> Bytes {
    let mut out = Pooled::take(len);
    for (place, value) in out.chunks_exact_mut(size_of::<T>()).zip(values) {
        place.copy_from_slice(bytemuck::bytes_of(&value));
    }
    out.freeze()
}

fn combine<T: Number + bytemuck::Pod>(op: ReduceOp, parts: &[Bytes]) -> Bytes {
    let Some((first, rest)) = parts.split_first() else { return Bytes::new() };
    let mut sum: Vec<T> = elements(first).collect();
    let step = step::<T>(op);
    for part in rest {
        sum.iter_mut().zip(elements(part)).for_each(|(a, b)| *a = step(*a, b));
    }
    if op == ReduceOp::Mean {
        let n = T::from_f64(parts.len() as f64);
        sum.iter_mut().for_each(|a| *a = a.div(n).unwrap_or(*a));
    }
    collect(first.len(), sum.into_iter())
}

fn halves<T: Float<Wide = f32> + bytemuck::Pod>(op: ReduceOp, parts: &[Bytes]) -> Bytes {
    let wide: Vec<Bytes> = parts.iter().map(|p| collect(p.len() * 2, elements::<T>(p).map(T::widen))).collect();
    let sum = combine::<f32>(op, &wide);
    collect(sum.len() / 2, elements::<f32>(&sum).map(T::narrow))
}

/// The mean of integers is computed without overflow and truncates towards zero.
fn int_mean<T: crate::tensor::Int + bytemuck::Pod>(parts: &[Bytes]) -> Bytes {
    let Some((first, rest)) = parts.split_first() else { return Bytes::new() };
    let wide = |x: T| if T::DTYPE == DType::U64 { i128::from(x.to_i64() as u64) } else { i128::from(x.to_i64()) };
    let mut sum: Vec<i128> = elements::<T>(first).map(wide).collect();
    for part in rest {
        sum.iter_mut().zip(elements::<T>(part)).for_each(|(a, b)| *a += wide(b));
    }
    collect(first.len(), sum.into_iter().map(|a| T::from_i64((a / parts.len() as i128) as i64)))
}

/// Concatenates tensors along an axis; each is its length along the axis, and its bytes. `outer` is the number of
/// elements before the axis, `inner` the bytes of one step along it.
pub(super) fn concat(outer: usize, inner: usize, parts: &[(usize, Bytes)]) -> Bytes {
    if let [(_, one)] = parts {
        return one.clone();
    }
    let along: usize = parts.iter().map(|p| p.0).sum();
    let mut out = Pooled::take(outer * along * inner);
    let mut at = 0;
    for o in 0..outer {
        for (len, bytes) in parts {
            let n = len * inner;
            out[at..at + n].copy_from_slice(&bytes[o * n..o * n + n]);
            at += n;
        }
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn bytes(t: &Tensor) -> Bytes {
        t.shared_bytes().unwrap()
    }

    fn check<T: crate::tensor::Element>(op: ReduceOp, parts: &[Vec<T>], want: Vec<T>) {
        let n = want.len();
        let parts: Vec<Bytes> = parts.iter().map(|p| bytes(&Tensor::vector(p.clone()))).collect();
        let got = Tensor::from_bytes(T::DTYPE, [n], reduce(T::DTYPE, op, &parts).unwrap()).unwrap();
        assert_eq!(got, Tensor::vector(want));
    }

    #[test]
    fn all_ops_on_floats_and_ints() {
        check(ReduceOp::Sum, &[vec![1f32, 2.0], vec![10.0, 20.0], vec![100.0, 200.0]], vec![111.0, 222.0]);
        check(ReduceOp::Mean, &[vec![1f64, 2.0], vec![2.0, 5.0]], vec![1.5, 3.5]);
        check(ReduceOp::Max, &[vec![1i32, -2], vec![-7, 4]], vec![1, 4]);
        check(ReduceOp::Min, &[vec![1u8, 200], vec![255, 4]], vec![1, 4]);
        check(ReduceOp::Sum, &[vec![200u8], vec![100]], vec![44]);
        check(ReduceOp::Mean, &[vec![120i8, -7], vec![121, 4]], vec![120, -1]);
        check(ReduceOp::Mean, &[vec![u64::MAX], vec![u64::MAX - 2]], vec![u64::MAX - 1]);
    }

    #[test]
    fn a_nan_wins() {
        let parts = [Tensor::vector(vec![1f32, f32::NAN]), Tensor::vector(vec![f32::NAN, 2.0])].map(|t| bytes(&t));
        for op in [ReduceOp::Max, ReduceOp::Min] {
            assert!(elements::<f32>(&reduce(DType::F32, op, &parts).unwrap()).all(f32::is_nan));
        }
    }

    #[test]
    fn halves_are_summed_in_float32() {
        // 2048 + 1 + 1 is 2048 when each sum is rounded to a half, and 2050 in float32.
        let parts: Vec<Vec<f16>> = [2048.0, 1.0, 1.0].iter().map(|&x| vec![f16::from_f32(x)]).collect();
        check(ReduceOp::Sum, &parts, vec![f16::from_f32(2050.0)]);
        let parts: Vec<Vec<bf16>> = [256.0, 1.0, 1.0].iter().map(|&x| vec![bf16::from_f32(x)]).collect();
        check(ReduceOp::Sum, &parts, vec![bf16::from_f32(258.0)]);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let error = reduce(DType::Bool, ReduceOp::Sum, &[Bytes::from_static(&[1])]).unwrap_err();
        assert_eq!(error.to_string(), "bool has no arithmetic, a reduction needs numbers");
    }

    #[test]
    fn parts_of_unequal_length_are_joined_along_an_inner_axis() {
        let parts = [(1, Bytes::from_static(&[1, 2])), (0, Bytes::new()), (2, Bytes::from_static(&[3, 4, 5, 6]))];
        assert_eq!(&concat(2, 1, &parts)[..], [1, 3, 4, 2, 5, 6]);
    }
}
