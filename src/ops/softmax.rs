//! Softmax and its logarithm.

use super::gemm::Real;
use super::{InferCtx, Kernel, OpCtx, OpDef, OpError, infer, one, rows, util};
use crate::dispatch_wide;
use crate::tensor::{Tensor, cast};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("LogSoftmax", &[1, 11, 13]).attrs(&["axis"]).infer(check).kernel(|cx| build(cx, true)),
    OpDef::new("Softmax", &[1, 11, 13]).attrs(&["axis"]).infer(check).kernel(|cx| build(cx, false)),
];

fn check(cx: &InferCtx) -> Result<Vec<super::Fact>, OpError> {
    infer::same(cx)
}

fn build(cx: &OpCtx, log: bool) -> Result<Kernel, OpError> {
    // Before version 13 the axes from `axis` on are one.
    let flat = cx.version < 13;
    let axis = cx.attrs.int_or("axis", if flat { 1 } else { -1 })?;
    Ok(Box::new(move |mut args| {
        let x = args.take(0)?;
        let rank = x.rank();
        let at = if rank == 0 || (flat && axis == rank as i64) { rank } else { util::axis(axis, rank)? };
        let end = if flat { rank } else { rank.min(at + 1) };
        let len = x.shape()[at..end].iter().product();
        let inner = x.shape()[end..].iter().product();
        one(softmax(x, len, inner, log)?)
    }))
}

/// Along the middle of `[outer, len, inner]`.
pub(super) fn softmax(x: Tensor, len: usize, inner: usize, log: bool) -> Result<Tensor, OpError> {
    let (dtype, shape) = (x.dtype(), x.shape().clone());
    let wide = if dtype.bits() == 16 { util::widen(&x)? } else { x };
    let out = dispatch_wide!(wide.dtype(), T => {
        let mut data = wide.into_vec::<T>()?;
        if inner == 1 {
            util::for_each_chunk(&mut data, len, |_, row| if log { rows::log_softmax(row) } else { rows::softmax(row) });
        } else {
            util::for_each_chunk(&mut data, len * inner, |_, block| rows::simd(|| columns(block, inner, log)));
        }
        Tensor::new(shape, data)?
    });
    Ok(cast(&out, dtype)?)
}

/// Softmax of each column of a `[len, inner]` block.
#[inline]
fn columns<T: Real>(block: &mut [T], inner: usize, log: bool) {
    let mut top = vec![T::lowest(); inner];
    for row in block.chunks(inner) {
        top.iter_mut().zip(row).for_each(|(t, &v)| *t = t.greater_of(v));
    }
    top.iter_mut().for_each(|t| *t = rows::shift(*t));
    let mut total = vec![T::ZERO; inner];
    for row in block.chunks_mut(inner) {
        for ((v, &t), s) in row.iter_mut().zip(&top).zip(&mut total) {
            *v = *v - t;
            let e = v.exp_neg();
            *s = *s + e;
            if !log {
                *v = e;
            }
        }
    }
    for row in block.chunks_mut(inner) {
        for (v, &s) in row.iter_mut().zip(&total) {
            *v = if log { *v - s.ln() } else { *v / s };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::run;
    use super::*;
    use crate::ir::Attrs;

    fn check(op: &str, version: i64, axis: i64, want: &[f32]) {
        let x = Tensor::new([2, 2], vec![0f32, 1.0, 2.0, 3.0]).unwrap();
        let out = run(op, version, Attrs::new().with("axis", axis), &[x]).unwrap().to_f32s().unwrap();
        assert!(out.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{op} {version} {axis}: {out:?}");
    }

    #[test]
    fn along_one_axis() {
        check("Softmax", 13, -1, &[0.268_941_4, 0.731_058_6, 0.268_941_4, 0.731_058_6]);
        check("Softmax", 13, 0, &[0.119_202_92, 0.119_202_92, 0.880_797_1, 0.880_797_1]);
        check("LogSoftmax", 13, 0, &[-2.126_928, -2.126_928, -0.126_928, -0.126_928]);
    }

    #[test]
    fn axes_are_one_before_version_13() {
        check("Softmax", 11, 0, &[0.032_058_6, 0.087_144_3, 0.236_882_8, 0.643_914_3]);
    }
}
