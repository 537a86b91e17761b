//! Comparisons, logic, and operations on bits.

use super::elementwise::{binary, infer_binary, infer_compare, map, map_to, same_dtype, zip, zip_to};
use super::infer::{InferCtx, same};
use super::{Fact, Kernel, OpCtx, OpDef, OpError, one};
use crate::tensor::{DType, Float, Number, Tensor, cast};
use crate::{dispatch_float, dispatch_int, dispatch_number, invalid};

/// A record of an op of two inputs that gives bools; it could place its second operand by `axis` before opset 7.
const fn comparison(name: &'static str, versions: &'static [i64]) -> OpDef {
    OpDef::new(name, versions).inputs(2, 2).attrs(&["axis", "broadcast"]).infer(infer_compare)
}

const fn bitwise(name: &'static str) -> OpDef {
    OpDef::new(name, &[18]).inputs(2, 2).infer(infer_binary)
}

pub(super) const OPS: &[OpDef] = &[
    comparison("And", &[1, 7]).kernel(and),
    bitwise("BitwiseAnd").kernel(bitwise_and),
    OpDef::new("BitwiseNot", &[18]).infer(same).kernel(bitwise_not),
    bitwise("BitwiseOr").kernel(bitwise_or),
    bitwise("BitwiseXor").kernel(bitwise_xor),
    comparison("Equal", &[1, 7, 11, 13, 19]).kernel(equal),
    comparison("Greater", &[1, 7, 9, 13]).kernel(greater),
    comparison("GreaterOrEqual", &[12, 16]).kernel(greater_or_equal),
    OpDef::new("IsInf", &[10, 20]).attrs(&["detect_negative", "detect_positive"]).infer(infer_test).kernel(is_inf),
    OpDef::new("IsNaN", &[9, 13, 20]).infer(infer_test).kernel(is_nan),
    comparison("Less", &[1, 7, 9, 13]).kernel(less),
    comparison("LessOrEqual", &[12, 16]).kernel(less_or_equal),
    OpDef::new("Not", &[1]).infer(same).kernel(not),
    comparison("Or", &[1, 7]).kernel(or),
    comparison("Xor", &[1, 7]).kernel(xor),
];

fn equal(cx: &OpCtx) -> Result<Kernel, OpError> {
    binary(cx, |a, b| match same_dtype(&a, &b)? {
        DType::String => zip_to(&a, &b, |x: &String, y| x == y),
        DType::Bool => zip_to(&a, &b, |x: &bool, y| x == y),
        dtype => dispatch_number!(dtype, T => zip_to(&a, &b, |x: &T, y| x == y), other => {
            invalid!("inputs must be numbers, bools or strings, found {other}")
        }),
    })
}

/// The kernel that compares numbers by `$f`.
macro_rules! order {
    ($name:ident, $f:expr) => {
        fn $name(cx: &OpCtx) -> Result<Kernel, OpError> {
            binary(cx, |a, b| {
                dispatch_number!(same_dtype(&a, &b)?, T => zip_to::<T, bool>(&a, &b, $f), other => {
                    invalid!("inputs must be numbers, found {other}")
                })
            })
        }
    };
}
order!(less, PartialOrd::lt);
order!(less_or_equal, PartialOrd::le);
order!(greater, PartialOrd::gt);
order!(greater_or_equal, PartialOrd::ge);

fn logic(cx: &OpCtx, f: impl Fn(bool, bool) -> bool + Copy + Send + Sync + 'static) -> Result<Kernel, OpError> {
    binary(cx, move |a, b| match same_dtype(&a, &b)? {
        DType::Bool => zip::<bool>(a, b, f),
        other => invalid!("inputs must be bools, found {other}"),
    })
}

fn and(cx: &OpCtx) -> Result<Kernel, OpError> {
    logic(cx, |x, y| x & y)
}

fn or(cx: &OpCtx) -> Result<Kernel, OpError> {
    logic(cx, |x, y| x | y)
}

fn xor(cx: &OpCtx) -> Result<Kernel, OpError> {
    logic(cx, |x, y| x ^ y)
}

fn not(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| {
        let x = args.take(0)?;
        match x.dtype() {
            DType::Bool => one(map::<bool>(x, |x| !x)?),
            other => invalid!("input 0 must be bools, found {other}"),
        }
    }))
}

/// The kernel that computes each pair of integers by `$f`.
macro_rules! bits {
    ($name:ident, $x:ident $y:ident => $f:expr) => {
        fn $name(cx: &OpCtx) -> Result<Kernel, OpError> {
            binary(cx, |a, b| {
                dispatch_int!(same_dtype(&a, &b)?, T => zip::<T>(a, b, |$x, $y| $f), other => {
                    invalid!("inputs must be integers, found {other}")
                })
            })
        }
    };
}
bits!(bitwise_and, x y => x & y);
bits!(bitwise_or, x y => x | y);
bits!(bitwise_xor, x y => x ^ y);

fn bitwise_not(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| {
        let x = args.take(0)?;
        one(dispatch_int!(x.dtype(), T => map::<T>(x, |x| !x)?, other => invalid!("input 0 must be integers, found {other}")))
    }))
}

/// Of each float, whether `f` is true of it; small floats are tested by their values.
fn test(x: Tensor, f: impl Fn(f64) -> bool + Send + Sync) -> Result<Tensor, OpError> {
    let small = x.dtype().is_float() && x.dtype().bits() <= 8;
    let x = if small { cast(&x, DType::F32)? } else { x };
    dispatch_float!(x.dtype(), T => map_to::<T, bool>(&x, |x| f(Number::to_f64(x.widen()))), other => {
        invalid!("input 0 must be floats, found {other}")
    })
}

fn is_inf(cx: &OpCtx) -> Result<Kernel, OpError> {
    let negative = cx.attrs.int_or("detect_negative", 1)? != 0;
    let positive = cx.attrs.int_or("detect_positive", 1)? != 0;
    Ok(Box::new(move |mut args| one(test(args.take(0)?, |x| x == f64::INFINITY && positive || x == f64::NEG_INFINITY && negative)?)))
}

fn is_nan(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| one(test(args.take(0)?, f64::is_nan)?)))
}

/// A bool for each element of input 0.
fn infer_test(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(Some(DType::Bool), cx.shape(0).map(<[_]>::to_vec))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;
    use crate::tensor::{F8E5M2, f16};

    fn check(op: &str, version: i64, inputs: &[Tensor], expected: &[bool]) {
        let found = run(op, version, Attrs::new(), inputs).unwrap();
        assert_eq!(found, Tensor::vector(expected.to_vec()), "{op}");
    }

    #[test]
    fn comparisons_with_nan_are_false() {
        let (a, b) = (Tensor::vector(vec![1f32, 2.0, f32::NAN]), Tensor::vector(vec![1f32, 3.0, f32::NAN]));
        let inputs = [a, b];
        check("Equal", 13, &inputs, &[true, false, false]);
        check("Less", 13, &inputs, &[false, true, false]);
        check("LessOrEqual", 16, &inputs, &[true, true, false]);
        check("Greater", 13, &inputs, &[false, false, false]);
        check("GreaterOrEqual", 16, &inputs, &[true, false, false]);
    }

    #[test]
    fn every_allowed_dtype_compares() {
        let words = |w: &[&str]| Tensor::vector(w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        check("Equal", 19, &[words(&["a", "b"]), words(&["a"])], &[true, false]);
        check("Equal", 19, &[Tensor::vector(vec![true, false]), Tensor::scalar(false)], &[false, true]);
        check("Greater", 13, &[Tensor::vector(vec![u64::MAX, 0]), Tensor::scalar(1u64)], &[true, false]);
        check("Less", 13, &[Tensor::vector(vec![f16::ONE]), Tensor::scalar(f16::ZERO)], &[false]);
        let found = run("Less", 13, Attrs::new(), &[words(&["a"]), words(&["b"])]).unwrap_err();
        assert_eq!(found.to_string(), "inputs must be numbers, found string");
    }

    #[test]
    fn logic_broadcasts() {
        let (a, b) = (Tensor::vector(vec![true, false]), Tensor::scalar(true));
        check("And", 7, &[a.clone(), b.clone()], &[true, false]);
        check("Or", 7, &[a.clone(), b.clone()], &[true, true]);
        check("Xor", 7, &[a.clone(), b], &[false, true]);
        check("Not", 1, &[a], &[false, true]);
    }

    #[test]
    fn bits_are_combined() {
        let (a, b) = (Tensor::vector(vec![0b1100i8, -1]), Tensor::vector(vec![0b1010i8, 5]));
        let bits = |op: &str, inputs: &[Tensor]| run(op, 18, Attrs::new(), inputs).unwrap();
        assert_eq!(bits("BitwiseAnd", &[a.clone(), b.clone()]), Tensor::vector(vec![0b1000i8, 5]));
        assert_eq!(bits("BitwiseOr", &[a.clone(), b.clone()]), Tensor::vector(vec![0b1110i8, -1]));
        assert_eq!(bits("BitwiseXor", &[a.clone(), b]), Tensor::vector(vec![0b0110i8, -6]));
        assert_eq!(bits("BitwiseNot", &[a]), Tensor::vector(vec![-13i8, 0]));
    }

    #[test]
    fn infinities_are_told_by_sign() {
        let x = Tensor::vector(vec![1f32, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        check("IsInf", 20, std::slice::from_ref(&x), &[false, true, true, false]);
        check("IsNaN", 20, std::slice::from_ref(&x), &[false, false, false, true]);
        let attrs = Attrs::new().with("detect_negative", 0i64);
        assert_eq!(run("IsInf", 10, attrs, &[x]).unwrap(), Tensor::vector(vec![false, true, false, false]));
        check("IsInf", 20, &[Tensor::vector(vec![F8E5M2(0x7c), F8E5M2(0x7f)])], &[true, false]);
    }
}
