//! Functions of one element.

use super::elementwise::map;
use super::infer::same;
use super::math::Math;
use super::{Kernel, OpCtx, OpDef, OpError, one};
use crate::tensor::{DType, Float, Number};
use crate::{dispatch_float, dispatch_number, invalid};

const fn unary(name: &'static str, versions: &'static [i64]) -> OpDef {
    OpDef::new(name, versions).attrs(&["consumed_inputs"]).infer(same)
}

pub(super) const OPS: &[OpDef] = &[
    unary("Abs", &[1, 6, 13]).kernel(abs),
    unary("Acos", &[7, 22]).kernel(acos),
    unary("Acosh", &[9, 22]).kernel(acosh),
    unary("Asin", &[7, 22]).kernel(asin),
    unary("Asinh", &[9, 22]).kernel(asinh),
    unary("Atan", &[7, 22]).kernel(atan),
    unary("Atanh", &[9, 22]).kernel(atanh),
    unary("Ceil", &[1, 6, 13]).kernel(ceil),
    unary("Cos", &[7, 22]).kernel(cos),
    unary("Cosh", &[9, 22]).kernel(cosh),
    unary("Erf", &[9, 13]).kernel(erf),
    unary("Exp", &[1, 6, 13]).kernel(exp),
    unary("Floor", &[1, 6, 13]).kernel(floor),
    unary("Log", &[1, 6, 13]).kernel(log),
    unary("Neg", &[1, 6, 13]).kernel(neg),
    unary("Reciprocal", &[1, 6, 13]).kernel(reciprocal),
    unary("Round", &[11, 22]).kernel(round),
    unary("Sign", &[9, 13]).kernel(sign),
    unary("Sin", &[7, 22]).kernel(sin),
    unary("Sinh", &[9, 22]).kernel(sinh),
    unary("Sqrt", &[1, 6, 13]).kernel(sqrt),
    unary("Tan", &[7, 22]).kernel(tan),
    unary("Tanh", &[1, 6, 13]).kernel(tanh),
];

/// The kernel of a function of one float, computed in `f32` or `f64`.
macro_rules! float {
    ($($name:ident: $x:ident => $f:expr;)*) => {$(
        fn $name(_: &OpCtx) -> Result<Kernel, OpError> {
            Ok(Box::new(|mut args| {
                let t = args.take(0)?;
                one(dispatch_float!(t.dtype(), T => map::<T>(t, |x| {
                    let $x = x.widen();
                    T::narrow($f)
                })?, other => return no_float(other)))
            }))
        }
    )*};
}
float! {
    acos: x => x.acos();
    acosh: x => x.acosh();
    asin: x => x.asin();
    asinh: x => x.asinh();
    atan: x => x.atan();
    atanh: x => x.atanh();
    ceil: x => x.ceil();
    cos: x => x.cos();
    cosh: x => x.cosh();
    erf: x => Math::erf(x);
    exp: x => Math::exp(x);
    floor: x => x.floor();
    log: x => x.ln();
    reciprocal: x => 1.0 / x;
    round: x => x.round_ties_even();
    sin: x => x.sin();
    sinh: x => x.sinh();
    sqrt: x => x.sqrt();
    tan: x => x.tan();
    tanh: x => Math::tanh(x);
}

fn no_float<T>(found: DType) -> Result<T, OpError> {
    invalid!("input 0 must be floats, found {found}")
}

fn no_number<T>(found: DType) -> Result<T, OpError> {
    invalid!("input 0 must be numbers, found {found}")
}

fn abs(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| {
        let t = args.take(0)?;
        one(match t.dtype() {
            d if d.is_float() => dispatch_float!(d, T => map::<T>(t, |x| T::narrow(x.widen().abs()))?, other => return no_number(other)),
            // The least integer is its own absolute value.
            d => dispatch_number!(d, T => map::<T>(t, |x| if x < T::ZERO { Number::sub(T::ZERO, x) } else { x })?, other => {
                return no_number(other)
            }),
        })
    }))
}

fn neg(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| {
        let t = args.take(0)?;
        one(match t.dtype() {
            d if d.is_float() => dispatch_float!(d, T => map::<T>(t, |x| -x)?, other => return no_number(other)),
            d => dispatch_number!(d, T => map::<T>(t, |x| Number::sub(T::ZERO, x))?, other => return no_number(other)),
        })
    }))
}

fn sign(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| {
        let t = args.take(0)?;
        one(dispatch_number!(t.dtype(), T => map::<T>(t, |x| match x.partial_cmp(&T::ZERO) {
            Some(std::cmp::Ordering::Less) => Number::sub(T::ZERO, T::ONE),
            Some(std::cmp::Ordering::Equal) => T::ZERO,
            Some(std::cmp::Ordering::Greater) => T::ONE,
            None => x,
        })?, other => return no_number(other)))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;
    use crate::tensor::{Element, Tensor, f16};

    fn check<T: Element>(op: &str, x: Vec<T>, expected: Vec<T>) {
        assert_eq!(run(op, 22, Attrs::new(), &[Tensor::vector(x)]).unwrap(), Tensor::vector(expected), "{op}");
    }

    /// Compares with the value in `f64`, for each float dtype.
    fn near(op: &str, x: f64, expected: f64) {
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14), (DType::F16, 2e-3), (DType::BF16, 2e-2)] {
            let t = crate::tensor::cast(&Tensor::scalar(x), dtype).unwrap();
            let found = run(op, 22, Attrs::new(), &[t]).unwrap();
            assert_eq!(found.dtype(), dtype);
            let found: f64 = crate::tensor::cast(&found, DType::F64).unwrap().item().unwrap();
            assert!((found - expected).abs() <= tolerance * expected.abs(), "{op}({x}) = {found} in {dtype}, expected {expected}");
        }
    }

    #[test]
    fn functions_have_their_values() {
        let ln_2 = std::f64::consts::LN_2;
        for (op, x, y) in [
            ("Acos", 0.5, std::f64::consts::FRAC_PI_3),
            ("Acosh", 1.25, ln_2),
            ("Asin", 0.5, std::f64::consts::FRAC_PI_6),
            ("Asinh", 0.75, ln_2),
            ("Atan", 1.0, std::f64::consts::FRAC_PI_4),
            ("Atanh", 0.625, 0.733_168_534_396_713_6),
            ("Cos", 0.5, 0.877_582_561_890_372_8),
            ("Cosh", 0.5, 1.127_625_965_206_380_7),
            ("Erf", 0.5, 0.520_499_877_813_046_5),
            ("Exp", 0.5, 1.648_721_270_700_128_2),
            ("Log", 2.0, ln_2),
            ("Reciprocal", 4.0, 0.25),
            ("Sin", 0.5, 0.479_425_538_604_203),
            ("Sinh", 0.75, 0.822_316_731_935_829_8),
            ("Sqrt", 2.25, 1.5),
            ("Tan", 0.5, 0.546_302_489_843_790_5),
            ("Tanh", 0.5, 0.462_117_157_260_009_8),
        ] {
            near(op, x, y);
        }
    }

    #[test]
    fn rounding_takes_ties_to_even() {
        check("Round", vec![0.5f32, 1.5, 2.5, -0.5, -1.2], vec![0.0, 2.0, 2.0, -0.0, -1.0]);
        check("Floor", vec![1.7f64, -1.2], vec![1.0, -2.0]);
        check("Ceil", vec![f16::from_f32(1.2)], vec![f16::from_f32(2.0)]);
    }

    #[test]
    fn signs_of_each_kind_of_number() {
        check("Abs", vec![i8::MIN, -3, 3], vec![i8::MIN, 3, 3]);
        check("Abs", vec![200u8], vec![200]);
        check("Abs", vec![-0.0f32, -2.0], vec![0.0, 2.0]);
        check("Neg", vec![i32::MIN, 5], vec![i32::MIN, -5]);
        check("Neg", vec![0.0f32, 1.0], vec![-0.0, -1.0]);
        check("Sign", vec![-5i64, 0, 5], vec![-1, 0, 1]);
        check("Sign", vec![-0.5f32, 0.0, f32::INFINITY], vec![-1.0, 0.0, 1.0]);
        check("Sign", vec![7u16, 0], vec![1, 0]);
    }

    #[test]
    fn integers_have_no_sine() {
        let found = run("Sin", 22, Attrs::new(), &[Tensor::scalar(1i64)]).unwrap_err();
        assert_eq!(found.to_string(), "input 0 must be floats, found int64");
    }
}
