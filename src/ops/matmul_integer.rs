//! Matrix products of 8-bit operands.

use super::gemm::{Epilogue, Matrix, product, product_i32};
use super::matmul::{PREPARED, infer_matmul, last, last_or_one, new_out, plan};
use super::{Args, Kernel, OpCtx, OpDef, OpError, one};
use crate::tensor::{DType, Number, Shape, Tensor, cast};
use crate::{dispatch_int, invalid};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("MatMulInteger", &[10]).inputs(2, 4).infer(|cx| infer_matmul(cx, 0, 1, Some(DType::I32))).kernel(build_matmul_integer),
    OpDef::new("QLinearMatMul", &[10, 21])
        .inputs(8, 8)
        .infer(|cx| infer_matmul(cx, 0, 3, cx.dtype(7)))
        .kernel(|_| Ok(Box::new(|args| one(qlinear_matmul(&args)?)))),
];

/// An 8-bit operand as exact `f32`s, less its zero point: a scalar, or one per row (`rows`) or column of the last two axes.
pub(super) fn centred(t: &Tensor, zero: Option<&Tensor>, rows: bool) -> Result<Vec<f32>, OpError> {
    if t.dtype().bits() != 8 {
        invalid!("expected 8-bit elements, found {}", t.dtype());
    }
    let mut out = t.to_f32s()?;
    if let Some(zero) = zero {
        let zeros = zero.to_f32s()?;
        spread(t.shape(), &zeros, rows, &mut out, |x, z| *x -= z)?;
    }
    Ok(out)
}

/// Calls `f` for each element and the parameter that applies to it: one for all, one per row or column of the last two
/// axes (of each batch, or of all).
fn spread<T: Copy, U>(shape: &[usize], params: &[T], rows: bool, data: &mut [U], f: impl Fn(&mut U, T)) -> Result<(), OpError> {
    if let [p] = params {
        data.iter_mut().for_each(|x| f(x, *p));
        return Ok(());
    }
    let cols = last(shape).max(1);
    let height = if shape.len() < 2 { 1 } else { shape[shape.len() - 2] };
    let unit = if rows { height } else { cols };
    if params.is_empty()
        || unit == 0
        || !params.len().is_multiple_of(unit)
        || !(data.len() / cols / height.max(1)).is_multiple_of(params.len() / unit)
    {
        invalid!("{} scales or zero points do not fit shape {}", params.len(), Shape::from(shape));
    }
    for (r, row) in data.chunks_mut(cols).enumerate() {
        let (batch, r) = (r / height, r % height);
        let group = &params[batch * unit % params.len()..][..unit];
        if rows {
            row.iter_mut().for_each(|x| f(x, group[r]));
        } else {
            row.iter_mut().zip(group).for_each(|(x, p)| f(x, *p));
        }
    }
    Ok(())
}

/// `i32` sums of 8-bit operands.
pub(super) fn integer_product(a: &Tensor, b: &Tensor, az: Option<&Tensor>, bz: Option<&Tensor>) -> Result<(Shape, Vec<i32>), OpError> {
    let plan = plan(a.shape(), b.shape(), (false, false))?;
    let (x, y) = (centred(a, az, true)?, centred(b, bz, false)?);
    let mut out = new_out::<i32>(&plan.shape)?;
    product_i32(plan.dims, &x, &y, &plan.starts, &mut out)?;
    Ok((plan.shape, out))
}

fn build_matmul_integer(cx: &OpCtx) -> Result<Kernel, OpError> {
    // A constant B with a constant (or no) zero point is converted once.
    let zero = cx.constant(3);
    let prepared = match cx.constant(1) {
        Some(b) if b.bytes().is_some_and(|x| x.len() <= PREPARED / 4) && (cx.inputs < 4 || zero.is_some()) => centred(b, zero, false).ok(),
        _ => None,
    };
    Ok(Box::new(move |args| {
        let (a, b, az) = (args.tensor(0)?, args.tensor(1)?, args.opt(2)?);
        let (shape, out) = match &prepared {
            None => integer_product(a, b, az, args.opt(3)?)?,
            Some(y) => {
                let plan = plan(a.shape(), b.shape(), (false, false))?;
                let mut out = new_out::<i32>(&plan.shape)?;
                product_i32(plan.dims, &centred(a, az, true)?, y, &plan.starts, &mut out)?;
                (plan.shape, out)
            }
        };
        one(Tensor::new(shape, out)?)
    }))
}

fn qlinear_matmul(args: &Args) -> Result<Tensor, OpError> {
    let [a, sa, za, b, sb, zb, sy, zy] =
        <[&Tensor; 8]>::try_from(args.tensors(0)?).map_err(|_| OpError::Invalid("expected 8 inputs".into()))?;
    let float8 = a.dtype().is_float();
    let (shape, mut out) = if float8 {
        let plan = plan(a.shape(), b.shape(), (false, false))?;
        let mut out = new_out::<f32>(&plan.shape)?;
        let (x, y) = (centred(a, None, true)?, centred(b, None, false)?);
        let (lda, ldb) = (last(a.shape()), last_or_one(b.shape()));
        product(plan.dims, 1.0, Matrix::new(&x, lda, false), Matrix::new(&y, ldb, false), &plan.starts, &mut out, &Epilogue::NONE)?;
        (plan.shape, out.into_iter().map(f64::from).collect::<Vec<f64>>())
    } else {
        let (shape, sums) = integer_product(a, b, Some(za), Some(zb))?;
        (shape, sums.into_iter().map(f64::from).collect())
    };
    let grid: Shape = if a.rank() == 1 || b.rank() == 1 { Shape::from([1, shape.iter().product()]) } else { shape.clone() };
    spread(&grid, &sa.to_f32s()?, true, &mut out, |x, s| *x *= f64::from(s))?;
    spread(&grid, &sb.to_f32s()?, false, &mut out, |x, s| *x *= f64::from(s))?;
    spread(&grid, &sy.to_f32s()?, true, &mut out, |x, s| *x /= f64::from(s))?;
    if float8 {
        return Ok(cast(&Tensor::new(shape, out)?, zy.dtype())?);
    }
    spread(&grid, &zy.to_f32s()?, true, &mut out, |x, z| *x = (*x as f32).round_ties_even() as f64 + f64::from(z))?;
    dispatch_int!(zy.dtype(), T => Ok(Tensor::new(shape, out.into_iter().map(T::from_f64).collect::<Vec<T>>())?), other => invalid!("expected an integer zero point, found {other}"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::run;
    use crate::ir::Attrs;
    use crate::tensor::{Element, Tensor};

    fn t<T: Element>(shape: &[usize], data: Vec<T>) -> Tensor {
        Tensor::new(shape, data).unwrap()
    }

    #[test]
    fn matmul_integer_takes_zero_points_per_column() {
        let a = t(&[1, 2], vec![11u8, 12]);
        let b = t(&[2, 2], vec![1i8, 2, 3, 4]);
        let out = run("MatMulInteger", 10, Attrs::new(), &[a, b, t(&[], vec![10u8]), t(&[2], vec![0i8, 1])]).unwrap();
        assert_eq!(out, t(&[1, 2], vec![7i32, 7]));
    }
}
