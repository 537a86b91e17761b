//! Running sums and products along an axis.

use super::infer::same;
use super::util::{self, for_each_chunk};
use super::{Kernel, OpCtx, OpDef, OpError, one};
use crate::tensor::{DType, Number, Tensor, cast};
use crate::{dispatch_number, invalid};

const ATTRS: &[&str] = &["exclusive", "reverse"];

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("CumProd", &[26]).inputs(2, 2).attrs(ATTRS).infer(same).kernel(cum_prod),
    OpDef::new("CumSum", &[11, 14]).inputs(2, 2).attrs(ATTRS).infer(same).kernel(cum_sum),
];

/// In which direction, and whether each element counts for itself.
#[derive(Debug, Clone, Copy)]
struct Order {
    exclusive: bool,
    reverse: bool,
}

impl Order {
    fn of(cx: &OpCtx) -> Result<Self, OpError> {
        Ok(Self { exclusive: cx.attrs.int_or("exclusive", 0)? != 0, reverse: cx.attrs.int_or("reverse", 0)? != 0 })
    }
}

fn cum_sum(cx: &OpCtx) -> Result<Kernel, OpError> {
    let order = Order::of(cx)?;
    Ok(Box::new(move |args| {
        let (x, axis) = (args.tensor(0)?, args.ints(1)?);
        one(in_full(x, |x| dispatch_number!(x.dtype(), T => scan::<T>(x, &axis, order, T::ZERO, Number::add), other => no_number(other)))?)
    }))
}

fn cum_prod(cx: &OpCtx) -> Result<Kernel, OpError> {
    let order = Order::of(cx)?;
    Ok(Box::new(move |args| {
        let (x, axis) = (args.tensor(0)?, args.ints(1)?);
        one(in_full(x, |x| dispatch_number!(x.dtype(), T => scan::<T>(x, &axis, order, T::ONE, Number::mul), other => no_number(other)))?)
    }))
}

fn no_number<T>(found: DType) -> Result<T, OpError> {
    invalid!("input 0 must be numbers, found {found}")
}

/// Halves are carried in `f32`.
fn in_full(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor, OpError>) -> Result<Tensor, OpError> {
    if !matches!(x.dtype(), DType::F16 | DType::BF16) {
        return f(x);
    }
    Ok(cast(&f(&cast(x, DType::F32)?)?, x.dtype())?)
}

/// Each element joined by `f` with those before it along the axis, starting from `start`.
fn scan<T: Number>(x: &Tensor, axis: &[i64], order: Order, start: T, f: impl Fn(T, T) -> T + Sync) -> Result<Tensor, OpError> {
    let [axis] = axis else { invalid!("axis must be one number, found {}", axis.len()) };
    let axis = util::axis(*axis, x.rank())?;
    if x.is_empty() {
        return Ok(x.clone());
    }
    let shape = x.shape();
    let (len, inner): (usize, usize) = (shape[axis], shape[axis + 1..].iter().product());
    let mut out = x.to_slice::<T>()?.into_owned();
    for_each_chunk(&mut out, len * inner, |_, block| {
        let mut sums = vec![start; inner];
        for i in 0..len {
            let i = if order.reverse { len - 1 - i } else { i };
            for (o, sum) in block[i * inner..][..inner].iter_mut().zip(&mut sums) {
                let next = f(*sum, *o);
                *o = if order.exclusive { *sum } else { next };
                *sum = next;
            }
        }
    });
    Ok(Tensor::new(shape, out)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;
    use crate::tensor::{Element, f16};

    fn check<T: Element>(op: &str, x: Vec<T>, [exclusive, reverse]: [i64; 2], expected: Vec<T>) {
        let attrs = Attrs::new().with("exclusive", exclusive).with("reverse", reverse);
        let found = run(op, 26, attrs, &[Tensor::vector(x), Tensor::scalar(0i32)]).unwrap();
        assert_eq!(found, Tensor::vector(expected));
    }

    #[test]
    fn sums_and_products_run_in_both_directions() {
        check("CumSum", vec![1i64, 2, 3], [0, 0], vec![1, 3, 6]);
        check("CumSum", vec![1f64, 2.0, 3.0], [1, 0], vec![0.0, 1.0, 3.0]);
        check("CumSum", vec![1u32, 2, 3], [0, 1], vec![6, 5, 3]);
        check("CumSum", vec![1f32, 2.0, 3.0], [1, 1], vec![5.0, 3.0, 0.0]);
        check("CumProd", vec![1i32, 2, 3], [1, 0], vec![1, 1, 2]);
        check("CumProd", vec![1i32, 2, 3], [1, 1], vec![6, 3, 1]);
    }

    #[test]
    fn halves_do_not_lose_what_they_carry() {
        let half = |x: f32| f16::from_f32(x);
        check("CumSum", vec![half(2048.0), half(1.0), half(1.0)], [0, 0], vec![half(2048.0), half(2048.0), half(2050.0)]);
    }

    #[test]
    fn the_axis_may_be_negative_and_must_exist() {
        let x = Tensor::new([2, 2], vec![1i64, 2, 3, 4]).unwrap();
        let sum = |axis: i64| run("CumSum", 14, Attrs::new(), &[x.clone(), Tensor::scalar(axis)]);
        assert_eq!(sum(-2).unwrap(), Tensor::new([2, 2], vec![1i64, 2, 4, 6]).unwrap());
        assert_eq!(sum(1).unwrap(), Tensor::new([2, 2], vec![1i64, 3, 3, 7]).unwrap());
        assert_eq!(sum(2).unwrap_err().to_string(), "axis 2 is out of range for rank 2");
    }
}
