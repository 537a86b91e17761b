//! Arithmetic of two tensors that broadcast.

use super::elementwise::{binary, infer_binary, map, same_dtype, zip};
use super::infer::{InferCtx, same};
use super::{Fact, Kernel, OpCtx, OpDef, OpError};
use crate::ir::Dim;
use crate::tensor::{DType, Float, Int, Number, Shape, Tensor, cast};
use crate::{dispatch_float, dispatch_int, dispatch_number, invalid};

/// A record of an op that could place its second operand by `axis` before opset 7.
const fn arithmetic(name: &'static str) -> OpDef {
    OpDef::new(name, &[1, 6, 7, 13, 14]).inputs(2, 2).attrs(&["axis", "broadcast", "consumed_inputs"]).infer(infer_arithmetic)
}

pub(super) const OPS: &[OpDef] = &[
    arithmetic("Add").kernel(add),
    OpDef::new("BitShift", &[11, 28]).inputs(2, 2).attrs(&["direction"]).infer(infer_binary).kernel(bit_shift),
    arithmetic("Div").kernel(div),
    OpDef::new("Mod", &[10, 13, 28]).inputs(2, 2).attrs(&["fmod"]).infer(infer_binary).kernel(modulo),
    arithmetic("Mul").kernel(mul),
    OpDef::new("PRelu", &[1, 6, 7, 9, 16]).inputs(2, 2).attrs(&["consumed_inputs"]).infer(same).kernel(prelu),
    OpDef::new("Pow", &[1, 7, 12, 13, 15]).inputs(2, 2).attrs(&["axis", "broadcast"]).infer(infer_binary).kernel(pow),
    arithmetic("Sub").kernel(sub),
];

fn no_number<T>(found: DType) -> Result<T, OpError> {
    invalid!("inputs must be numbers, found {found}")
}

fn add(cx: &OpCtx) -> Result<Kernel, OpError> {
    binary(cx, |a, b| dispatch_number!(same_dtype(&a, &b)?, T => zip::<T>(a, b, Number::add), other => no_number(other)))
}

fn sub(cx: &OpCtx) -> Result<Kernel, OpError> {
    binary(cx, |a, b| dispatch_number!(same_dtype(&a, &b)?, T => zip::<T>(a, b, Number::sub), other => no_number(other)))
}

fn mul(cx: &OpCtx) -> Result<Kernel, OpError> {
    binary(cx, |a, b| dispatch_number!(same_dtype(&a, &b)?, T => zip::<T>(a, b, Number::mul), other => no_number(other)))
}

fn div(cx: &OpCtx) -> Result<Kernel, OpError> {
    binary(cx, |a, b| {
        let dtype = same_dtype(&a, &b)?;
        if dtype.is_int() {
            refuse_zeros(&a, &b)?;
            if let Some((least, minus_one)) = extremes(dtype) {
                let has = |t: &Tensor, x: i64| t.to_i64s().is_ok_and(|v| v.contains(&x));
                // Only where both are there is it worth to see whether they meet.
                if has(&b, minus_one) && has(&a, least) {
                    return divide_checked(a, b);
                }
            }
        }
        dispatch_number!(dtype, T => zip::<T>(a, b, |x, y| Number::div(x, y).unwrap_or_default()), other => no_number(other))
    })
}

/// The least value of a signed integer type, and minus one: the quotient of the two has no place in it.
fn extremes(dtype: DType) -> Option<(i64, i64)> {
    let bits = dtype.bits() as u32;
    matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64).then(|| (i64::MIN >> (64 - bits), -1))
}

fn divide_checked(a: Tensor, b: Tensor) -> Result<Tensor, OpError> {
    let overflow = std::sync::atomic::AtomicBool::new(false);
    let out = dispatch_int!(a.dtype(), T => zip::<T>(a, b, |x, y| {
        if x == T::lowest() && y != T::ZERO && Number::add(y, T::ONE) == T::ZERO {
            overflow.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        Number::div(x, y).unwrap_or_default()
    }), other => no_number(other))?;
    if overflow.into_inner() {
        invalid!("integer overflow: the least value divided by -1");
    }
    Ok(out)
}

/// An integer divisor may hold no zero, unless nothing is divided.
fn refuse_zeros(a: &Tensor, b: &Tensor) -> Result<(), OpError> {
    let zero = dispatch_int!(b.dtype(), T => b.to_slice::<T>()?.contains(&T::ZERO), other => return no_number(other));
    if zero && !a.is_empty() {
        invalid!("integer division by zero");
    }
    Ok(())
}

fn modulo(cx: &OpCtx) -> Result<Kernel, OpError> {
    let truncate = match cx.attrs.int_or("fmod", 0)? {
        0 => false,
        1 => true,
        other => invalid!("attribute \"fmod\": expected 0 or 1, found {other}"),
    };
    binary(cx, move |a, b| {
        let dtype = same_dtype(&a, &b)?;
        if dtype.is_int() {
            refuse_zeros(&a, &b)?;
            return dispatch_int!(dtype, T => zip::<T>(a, b, |x, y| {
                let r = if y == T::ZERO { T::ZERO } else { x.wrapping_rem(y) };
                if !truncate && r != T::ZERO && (r < T::ZERO) != (y < T::ZERO) { Number::add(r, y) } else { r }
            }), other => no_number(other));
        }
        dispatch_float!(dtype, T => zip::<T>(a, b, |x, y| {
            let (x, y) = (x.widen(), y.widen());
            let r = x % y;
            T::narrow(match r == 0.0 {
                _ if truncate => r,
                true => r.copysign(y),
                false if (r < 0.0) != (y < 0.0) => r + y,
                false => r,
            })
        }), other => no_number(other))
    })
}

fn bit_shift(cx: &OpCtx) -> Result<Kernel, OpError> {
    let left = match cx.attrs.string("direction")? {
        Some("LEFT") => true,
        Some("RIGHT") => false,
        other => invalid!("attribute \"direction\": expected LEFT or RIGHT, found {}", other.unwrap_or("nothing")),
    };
    binary(cx, move |a, b| {
        dispatch_int!(same_dtype(&a, &b)?, T => zip::<T>(a, b, |x, y| {
            let by = y.to_i64();
            match (0..i64::from(T::BITS)).contains(&by) {
                true if left => x << by,
                true => x >> by,
                false if left || x >= T::ZERO => T::ZERO,
                // Only the sign is left.
                false => Number::sub(T::ZERO, T::ONE),
            }
        }), other => invalid!("inputs must be integers, found {other}"))
    })
}

fn pow(cx: &OpCtx) -> Result<Kernel, OpError> {
    binary(cx, |a, b| {
        let (base, exponent) = (a.dtype(), b.dtype());
        if b.len() == 1 && b.rank() <= a.rank() && base.is_float() && (exponent.is_int() || exponent.is_float()) {
            let x: f64 = cast(&b, DType::F64)?.item()?;
            if x == 1.0 || x == 2.0 || x == 0.5 || x == -1.0 {
                return simple_power(a, x);
            }
        }
        match (base, exponent) {
            _ if base.is_int() && exponent.is_int() => {
                let b = cast(&b, if exponent == DType::U64 { DType::U64 } else { DType::I64 })?;
                dispatch_int!(base, T => int_power::<T>(&a, &b), other => no_number(other))
            }
            _ if base == exponent => dispatch_float!(base, T => {
                zip::<T>(a, b, |x, y| T::narrow(x.widen().powf(y.widen())))
            }, other => no_number(other)),
            _ => {
                let (x, y) = (cast(&a, DType::F64)?, cast(&b, DType::F64)?);
                Ok(cast(&zip::<f64>(x, y, f64::powf)?, base)?)
            }
        }
    })
}

/// Powers that need no logarithm.
fn simple_power(a: Tensor, exponent: f64) -> Result<Tensor, OpError> {
    dispatch_float!(a.dtype(), T => match exponent {
        1.0 => Ok(a),
        2.0 => map::<T>(a, |x| Number::mul(x, x)),
        -1.0 => map::<T>(a, |x| T::ONE / x),
        // As powf has it: +0 of -0, and infinity of -infinity.
        _ => map::<T>(a, |x| T::narrow(x.widen().powf(0.5))),
    }, other => no_number(other))
}

/// Integer powers that wrap; `b` is `int64` or `uint64`.
fn int_power<T: Int>(a: &Tensor, b: &Tensor) -> Result<Tensor, OpError> {
    // In 64 bits, wrapping like the narrower type: its low bits are the same.
    let power = |mut x: i64, mut n: u64| {
        let mut y = 1i64;
        while n > 0 {
            if n & 1 == 1 {
                y = y.wrapping_mul(x);
            }
            x = x.wrapping_mul(x);
            n >>= 1;
        }
        y
    };
    let signed = |x: i64, n: i64| match (x, u64::try_from(n)) {
        (_, Ok(n)) => power(x, n),
        (1, _) => 1,
        (-1, _) => power(x, n.unsigned_abs()),
        _ => 0,
    };
    let x = cast(a, DType::I64)?;
    let out = if b.dtype() == DType::U64 {
        // The bits of the exponent, carried in an int64.
        let b = Tensor::new(b.shape(), b.to_slice::<u64>()?.iter().map(|&n| n as i64).collect())?;
        zip::<i64>(x, b, |x, n| power(x, n as u64))?
    } else {
        let negative = b.to_slice::<i64>()?.iter().any(|&n| n < 0);
        if negative && x.to_slice::<i64>()?.contains(&0) {
            invalid!("zero to a negative power");
        }
        zip::<i64>(x, b.clone(), signed)?
    };
    Ok(cast(&out, T::DTYPE)?)
}

fn prelu(cx: &OpCtx) -> Result<Kernel, OpError> {
    let per_channel = cx.version < 7;
    binary(cx, move |x, mut slope| {
        if per_channel && slope.len() > 1 && x.rank() > 1 {
            let dims = std::iter::once(slope.len()).chain(std::iter::repeat_n(1, x.rank() - 2));
            slope = slope.reshape(Shape::from_dims(dims))?;
        }
        if crate::tensor::broadcast_shapes(x.shape(), slope.shape()).as_ref() != Some(x.shape()) {
            invalid!("slope {} does not broadcast to {}", slope.shape(), x.shape());
        }
        dispatch_number!(same_dtype(&x, &slope)?, T => {
            zip::<T>(x, slope, |x, s| if x < T::ZERO { Number::mul(s, x) } else { x })
        }, other => no_number(other))
    })
}

/// As any binary op; and integer vectors that are dims are followed, for shapes are computed so.
fn infer_arithmetic(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let mut out = infer_binary(cx)?;
    let integers = matches!(cx.dtype(0), Some(DType::I64 | DType::I32));
    let rank = out[0].ty.as_ref().and_then(|t| t.shape()).map(<[Dim]>::len);
    if let (true, Some(a), Some(b), Some(0 | 1)) = (integers, cx.dims(0), cx.dims(1), rank) {
        // 0 against 1 is 0: an empty vector.
        let len = if a.len() == 1 { b.len() } else { a.len() };
        if b.len() == len || b.len() == 1 {
            let at = |d: &[Dim], i: usize| d[if d.len() == 1 { 0 } else { i }].clone();
            out[0].dims = Some((0..len).map(|i| combine(&cx.op.op.name, at(&a, i), at(&b, i))).collect());
        }
    }
    Ok(out)
}

/// A dim computed of two.
fn combine(op: &str, a: Dim, b: Dim) -> Dim {
    let known = |n: Option<usize>| n.map_or(Dim::Unknown, Dim::Known);
    match (op, a, b) {
        ("Add", Dim::Known(a), Dim::Known(b)) => known(a.checked_add(b)),
        ("Sub", Dim::Known(a), Dim::Known(b)) => known(a.checked_sub(b)),
        ("Mul", Dim::Known(a), Dim::Known(b)) => known(a.checked_mul(b)),
        ("Div", Dim::Known(a), Dim::Known(b)) => known(a.checked_div(b)),
        ("Add" | "Sub", x, Dim::Known(0)) | ("Add", Dim::Known(0), x) => x,
        ("Mul" | "Div", x, Dim::Known(1)) | ("Mul", Dim::Known(1), x) => x,
        _ => Dim::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;
    use crate::tensor::{Element, bf16, f16};

    fn check<T: Element>(op: &str, attrs: Attrs, a: Vec<T>, b: Vec<T>, expected: Vec<T>) {
        let found = run(op, 14, attrs, &[Tensor::vector(a), Tensor::vector(b)]).unwrap();
        assert_eq!(found, Tensor::vector(expected), "{op}");
    }

    fn error(op: &str, a: Tensor, b: Tensor) -> String {
        run(op, 14, Attrs::new(), &[a, b]).unwrap_err().to_string()
    }

    #[test]
    fn arithmetic_runs_in_each_kind_of_number() {
        check("Add", Attrs::new(), vec![1.5f32, 2.0], vec![1.0, -2.0], vec![2.5, 0.0]);
        check("Sub", Attrs::new(), vec![f16::from_f32(1.5)], vec![f16::ONE], vec![f16::from_f32(0.5)]);
        check("Mul", Attrs::new(), vec![bf16::from_f32(1.5)], vec![bf16::from_f32(3.0)], vec![bf16::from_f32(4.5)]);
        check("Add", Attrs::new(), vec![200u8], vec![100], vec![44]);
        check("Div", Attrs::new(), vec![-7i32, 7], vec![2, 2], vec![-3, 3]);
        check("Div", Attrs::new(), vec![1f64], vec![0.0], vec![f64::INFINITY]);
    }

    #[test]
    fn least_by_minus_one_wraps() {
        check("Div", Attrs::new(), vec![i32::MIN, 5], vec![1, -1], vec![i32::MIN, -5]);
        let least = error("Div", Tensor::vector(vec![i32::MIN, 1]), Tensor::scalar(-1i32));
        assert_eq!(least, "integer overflow: the least value divided by -1");
        check("Mod", Attrs::new(), vec![i64::MIN], vec![-1], vec![0]);
    }

    #[test]
    fn integer_division_by_zero_is_an_error() {
        let one = || Tensor::vector(vec![1i64]);
        assert_eq!(error("Div", one(), Tensor::vector(vec![0i64])), "integer division by zero");
        assert_eq!(error("Mod", one(), Tensor::vector(vec![0i64])), "integer division by zero");
        let none = Tensor::vector(Vec::<i64>::new());
        assert!(run("Div", 14, Attrs::new(), &[none, Tensor::scalar(0i64)]).unwrap().is_empty());
    }

    #[test]
    fn other_dtypes_are_refused() {
        assert_eq!(error("Add", Tensor::scalar(1f32), Tensor::scalar(1i64)), "inputs must have one dtype, found float32 and int64");
        assert_eq!(error("Add", Tensor::scalar(true), Tensor::scalar(true)), "inputs must be numbers, found bool");
    }

    #[test]
    fn modulo_has_the_sign_of_the_divisor_or_of_the_dividend() {
        let fmod = || Attrs::new().with("fmod", 1i64);
        check("Mod", Attrs::new(), vec![-4i64, 7, 5, 4, -7, 8], vec![2, -3, 8, -2, 3, 5], vec![0, -2, 5, 0, 2, 3]);
        check("Mod", fmod(), vec![-4i64, 7, 5, 4, -7, 8], vec![2, -3, 8, -2, 3, 5], vec![0, 1, 5, 0, -1, 3]);
        check("Mod", Attrs::new(), vec![250u8], vec![7], vec![5]);
        check("Mod", fmod(), vec![-4.5f32, 5.0], vec![2.0, -3.0], vec![-0.5, 2.0]);
        check("Mod", Attrs::new(), vec![-4.5f32, 1.0], vec![2.0, f32::NEG_INFINITY], vec![1.5, f32::NEG_INFINITY]);
    }

    #[test]
    fn shifts_past_the_width_leave_the_sign() {
        let to = |d: &str| Attrs::new().with("direction", d);
        check("BitShift", to("RIGHT"), vec![16u8, 4, 1], vec![1, 2, 9], vec![8, 1, 0]);
        check("BitShift", to("LEFT"), vec![200u8, 1], vec![1, 8], vec![144, 0]);
        check("BitShift", to("RIGHT"), vec![-8i32, -8, 8, -8], vec![1, 40, 40, -1], vec![-4, -1, 0, -1]);
        check("BitShift", to("LEFT"), vec![-1i8], vec![7], vec![i8::MIN]);
    }

    #[test]
    fn powers_of_mixed_dtypes_have_the_dtype_of_the_base() {
        check("Pow", Attrs::new(), vec![2i64, -1, 7, 3], vec![10, -3, -2, 0], vec![1024, -1, 0, 1]);
        check("Pow", Attrs::new(), vec![2f32, 9.0], vec![3.0, 0.5], vec![8.0, 3.0]);
        let pow = |a: Tensor, b: Tensor| run("Pow", 15, Attrs::new(), &[a, b]).unwrap();
        assert_eq!(pow(Tensor::vector(vec![1f32, 2.0]), Tensor::scalar(2i64)), Tensor::vector(vec![1f32, 4.0]));
        assert_eq!(pow(Tensor::vector(vec![1i32, 2]), Tensor::vector(vec![4f32, 0.5])), Tensor::vector(vec![1i32, 1]));
        assert_eq!(pow(Tensor::vector(vec![9f32]), Tensor::scalar(0.5f64)), Tensor::vector(vec![3f32]));
        assert_eq!(error("Pow", Tensor::scalar(0i32), Tensor::scalar(-1i32)), "zero to a negative power");
    }

    #[test]
    fn before_opset_7_an_axis_places_the_second_operand() {
        let a = Tensor::new([2, 3, 2], (0..12).map(|x| x as f32).collect::<Vec<_>>()).unwrap();
        let b = Tensor::vector(vec![0f32, 100.0, 200.0]);
        let attrs = Attrs::new().with("broadcast", 1i64).with("axis", 1i64);
        let found = run("Add", 6, attrs.clone(), &[a.clone(), b]).unwrap();
        let expected = vec![0f32, 1.0, 102.0, 103.0, 204.0, 205.0, 6.0, 7.0, 108.0, 109.0, 210.0, 211.0];
        assert_eq!(found, Tensor::new([2, 3, 2], expected).unwrap());
        let wrong = run("Add", 6, attrs, &[a, Tensor::vector(vec![1f32, 2.0])]).unwrap_err();
        assert_eq!(wrong.to_string(), "shapes [2,3,2] and [2,1] do not broadcast");
    }

    #[test]
    fn prelu_has_a_slope_per_channel() {
        let x = Tensor::new([1, 2, 2], vec![-1f32, 1.0, -2.0, 2.0]).unwrap();
        let expected = Tensor::new([1, 2, 2], vec![-0.5f32, 1.0, -0.5, 2.0]).unwrap();
        let slope = Tensor::vector(vec![0.5f32, 0.25]);
        assert_eq!(run("PRelu", 6, Attrs::new(), &[x.clone(), slope.clone()]).unwrap(), expected);
        assert_eq!(run("PRelu", 16, Attrs::new(), &[x, slope.reshape([2, 1]).unwrap()]).unwrap(), expected);
    }
}
