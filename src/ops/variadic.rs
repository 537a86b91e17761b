//! Element-wise reductions of any number of tensors that broadcast.

use super::elementwise::{map, same_dtype, zip};
use super::infer::broadcast;
use super::{Args, Kernel, OpCtx, OpDef, OpError, one};
use crate::tensor::{DType, Float, Number, Tensor, cast};
use crate::{dispatch_float, dispatch_number, invalid};

const fn variadic(name: &'static str, versions: &'static [i64]) -> OpDef {
    OpDef::new(name, versions).inputs(1, usize::MAX).attrs(&["consumed_inputs"]).infer(broadcast)
}

pub(super) const OPS: &[OpDef] = &[
    variadic("Max", &[1, 6, 8, 12, 13]).kernel(max),
    variadic("Mean", &[1, 6, 8, 13]).kernel(mean),
    variadic("Min", &[1, 6, 8, 12, 13]).kernel(min),
    variadic("Sum", &[1, 6, 8, 13]).kernel(sum),
];

/// All inputs, joined two by two from the left.
fn fold(args: &mut Args, f: impl Fn(Tensor, Tensor) -> Result<Tensor, OpError>) -> Result<Tensor, OpError> {
    let first = args.take(0)?;
    (1..args.len()).try_fold(first, |a, i| {
        let b = args.take(i)?;
        same_dtype(&a, &b)?;
        f(a, b)
    })
}

fn no_number<T>(found: DType) -> Result<T, OpError> {
    invalid!("inputs must be numbers, found {found}")
}

fn max(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| {
        one(fold(&mut args, |a, b| dispatch_number!(a.dtype(), T => zip::<T>(a, b, Number::greater_of), other => no_number(other)))?)
    }))
}

fn min(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| {
        one(fold(&mut args, |a, b| dispatch_number!(a.dtype(), T => zip::<T>(a, b, Number::lesser_of), other => no_number(other)))?)
    }))
}

/// The sum, and the dtype to give it in: halves are added up in `f32`.
fn total(args: &mut Args) -> Result<(Tensor, DType), OpError> {
    let dtype = args.tensor(0)?.dtype();
    if !matches!(dtype, DType::F16 | DType::BF16) {
        let sum = fold(args, |a, b| dispatch_number!(a.dtype(), T => zip::<T>(a, b, Number::add), other => no_number(other)))?;
        return Ok((sum, dtype));
    }
    let mut sum = cast(&args.take(0)?, DType::F32)?;
    for i in 1..args.len() {
        let next = args.take(i)?;
        if next.dtype() != dtype {
            invalid!("inputs must have one dtype, found {dtype} and {}", next.dtype());
        }
        sum = zip::<f32>(sum, cast(&next, DType::F32)?, Number::add)?;
    }
    Ok((sum, dtype))
}

fn sum(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| {
        let (sum, dtype) = total(&mut args)?;
        one(cast(&sum, dtype)?)
    }))
}

fn mean(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| {
        let count = args.len() as f64;
        let (sum, dtype) = total(&mut args)?;
        let mean = dispatch_float!(sum.dtype(), T => {
            let count = <T as Number>::from_f64(count).widen();
            map::<T>(sum, |x| T::narrow(x.widen() / count))?
        }, other => invalid!("inputs must be floats, found {other}"));
        one(cast(&mean, dtype)?)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;
    use crate::tensor::bf16;

    fn check(op: &str, inputs: &[Tensor], expected: Tensor) {
        assert_eq!(run(op, 13, Attrs::new(), inputs).unwrap(), expected, "{op}");
    }

    #[test]
    fn inputs_broadcast() {
        let inputs = [Tensor::new([2, 1], vec![1f32, 4.0]).unwrap(), Tensor::vector(vec![2f32, 3.0]), Tensor::scalar(3f32)];
        let out = |x: [f32; 4]| Tensor::new([2, 2], x.to_vec()).unwrap();
        check("Max", &inputs, out([3.0, 3.0, 4.0, 4.0]));
        check("Min", &inputs, out([1.0, 1.0, 2.0, 3.0]));
        check("Sum", &inputs, out([6.0, 7.0, 9.0, 10.0]));
        check("Mean", &inputs, out([2.0, 7.0 / 3.0, 3.0, 10.0 / 3.0]));
    }

    #[test]
    fn nan_wins() {
        let inputs = [Tensor::vector(vec![f32::NAN, 1.0]), Tensor::vector(vec![1.0, f32::NAN])];
        for op in ["Max", "Min"] {
            let found = run(op, 13, Attrs::new(), &inputs).unwrap().into_vec::<f32>().unwrap();
            assert!(found.iter().all(|x| x.is_nan()), "{op}: {found:?}");
        }
    }

    #[test]
    fn halves_are_summed_in_single_precision() {
        let x = |x: f32| Tensor::scalar(bf16::from_f32(x));
        check("Sum", &[x(256.0), x(1.0), x(1.0)], x(258.0));
        check("Mean", &[x(256.0), x(1.0), x(1.0)], x(86.0));
    }

    #[test]
    fn integers_have_a_maximum_and_one_input_is_itself() {
        check("Max", &[Tensor::vector(vec![1u8, 255]), Tensor::scalar(7u8)], Tensor::vector(vec![7u8, 255]));
        check("Sum", &[Tensor::scalar(1f64)], Tensor::scalar(1f64));
        let wrong = run("Max", 13, Attrs::new(), &[Tensor::scalar(1f32), Tensor::scalar(1i32)]).unwrap_err();
        assert_eq!(wrong.to_string(), "inputs must have one dtype, found float32 and int32");
    }
}
