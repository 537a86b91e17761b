//! Activation functions of neural networks.

use super::elementwise::map;
use super::infer::same;
use super::math::Math;
use super::{Args, Kernel, OpCtx, OpDef, OpError, one};
use crate::tensor::{DType, Element, Float, Number, Tensor};
use crate::{dispatch_float, dispatch_number, invalid};

const fn activation(name: &'static str, versions: &'static [i64], attrs: &'static [&'static str]) -> OpDef {
    OpDef::new(name, versions).attrs(attrs).infer(same)
}

pub(super) const OPS: &[OpDef] = &[
    activation("Celu", &[12, 28], &["alpha"]).kernel(celu),
    activation("Clip", &[1, 6, 11, 12, 13], &["consumed_inputs", "max", "min"]).inputs(1, 3).kernel(clip),
    activation("Elu", &[1, 6, 22], &["alpha", "consumed_inputs"]).kernel(elu),
    activation("Gelu", &[20], &["approximate"]).kernel(gelu),
    activation("HardSigmoid", &[1, 6, 22], &["alpha", "beta", "consumed_inputs"]).kernel(hard_sigmoid),
    activation("HardSwish", &[14, 22], &[]).kernel(hard_swish),
    activation("LeakyRelu", &[1, 6, 16], &["alpha", "consumed_inputs"]).kernel(leaky_relu),
    activation("Mish", &[18, 22], &[]).kernel(mish),
    activation("Relu", &[1, 6, 13, 14], &["consumed_inputs"]).kernel(relu),
    activation("Selu", &[1, 6, 22], &["alpha", "consumed_inputs", "gamma"]).kernel(selu),
    activation("Shrink", &[9], &["bias", "lambd"]).kernel(shrink),
    activation("Sigmoid", &[1, 6, 13], &["consumed_inputs"]).kernel(sigmoid),
    activation("Softplus", &[1, 22], &[]).kernel(softplus),
    activation("Softsign", &[1, 22], &[]).kernel(softsign),
    activation("Swish", &[24], &["alpha"]).kernel(swish),
    activation("ThresholdedRelu", &[10, 22], &["alpha"]).kernel(thresholded_relu),
];

/// The kernel of a function of one float, computed in `f32` or `f64`; attributes are widened to that type.
macro_rules! float {
    ($x:ident $(, $a:ident)* => $f:expr) => {
        Ok(Box::new(move |mut args: Args| {
            let t = args.take(0)?;
            one(dispatch_float!(t.dtype(), T => {
                $(let $a = <T as Float>::Wide::from($a);)*
                map::<T>(t, move |x| {
                    let $x = x.widen();
                    T::narrow($f)
                })?
            }, other => invalid!("input 0 must be floats, found {other}")))
        }))
    };
}

fn celu(cx: &OpCtx) -> Result<Kernel, OpError> {
    let alpha = cx.attrs.float_or("alpha", 1.0)?;
    float!(x, alpha => if x < 0.0 { alpha * (x / alpha).exp_m1() } else { x })
}

fn elu(cx: &OpCtx) -> Result<Kernel, OpError> {
    let alpha = cx.attrs.float_or("alpha", 1.0)?;
    float!(x, alpha => if x < 0.0 { alpha * x.exp_m1() } else { x })
}

fn selu(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (alpha, gamma) = if cx.version < 6 { (1.6732, 1.0507) } else { (1.673_263_2, 1.050_701) };
    let (alpha, gamma) = (cx.attrs.float_or("alpha", alpha)?, cx.attrs.float_or("gamma", gamma)?);
    float!(x, alpha, gamma => gamma * (if x <= 0.0 { alpha * x.exp_m1() } else { x }))
}

fn gelu(cx: &OpCtx) -> Result<Kernel, OpError> {
    match cx.attrs.string_or("approximate", "none")? {
        "none" => float!(x => Math::gelu(x)),
        "tanh" => float!(x => Math::gelu_tanh(x)),
        other => invalid!("attribute \"approximate\": expected none or tanh, found {other}"),
    }
}

fn hard_sigmoid(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (alpha, beta) = (cx.attrs.float_or("alpha", 0.2)?, cx.attrs.float_or("beta", 0.5)?);
    float!(x, alpha, beta => Number::greater_of(Number::lesser_of(alpha * x + beta, 1.0), 0.0))
}

fn hard_swish(_: &OpCtx) -> Result<Kernel, OpError> {
    float!(x => x * Number::greater_of(Number::lesser_of(x / 6.0 + 0.5, 1.0), 0.0))
}

fn leaky_relu(cx: &OpCtx) -> Result<Kernel, OpError> {
    let alpha = cx.attrs.float_or("alpha", 0.01)?;
    float!(x, alpha => if x < 0.0 { alpha * x } else { x })
}

fn mish(_: &OpCtx) -> Result<Kernel, OpError> {
    float!(x => x * Math::tanh(Math::softplus(x)))
}

fn sigmoid(_: &OpCtx) -> Result<Kernel, OpError> {
    float!(x => Math::sigmoid(x))
}

fn softplus(_: &OpCtx) -> Result<Kernel, OpError> {
    float!(x => Math::softplus(x))
}

fn softsign(_: &OpCtx) -> Result<Kernel, OpError> {
    float!(x => x / (1.0 + x.abs()))
}

fn swish(cx: &OpCtx) -> Result<Kernel, OpError> {
    let alpha = cx.attrs.float_or("alpha", 1.0)?;
    float!(x, alpha => x * Math::sigmoid(alpha * x))
}

fn thresholded_relu(cx: &OpCtx) -> Result<Kernel, OpError> {
    let alpha = cx.attrs.float_or("alpha", 1.0)?;
    float!(x, alpha => if x > alpha { x } else { 0.0 })
}

fn no_number<T>(found: DType) -> Result<T, OpError> {
    invalid!("input 0 must be numbers, found {found}")
}

fn relu(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|mut args| {
        let t = args.take(0)?;
        one(dispatch_number!(t.dtype(), T => map::<T>(t, |x| Number::greater_of(x, T::ZERO))?, other => return no_number(other)))
    }))
}

fn shrink(cx: &OpCtx) -> Result<Kernel, OpError> {
    let bias = f64::from(cx.attrs.float_or("bias", 0.0)?);
    let lambd = f64::from(cx.attrs.float_or("lambd", 0.5)?);
    Ok(Box::new(move |mut args| {
        let t = args.take(0)?;
        one(dispatch_number!(t.dtype(), T => map::<T>(t, |x| {
            let wide = Number::to_f64(x);
            match (wide < -lambd, wide > lambd) {
                (true, _) => <T as Number>::from_f64(wide + bias),
                (_, true) => <T as Number>::from_f64(wide - bias),
                _ => T::ZERO,
            }
        })?, other => return no_number(other)))
    }))
}

fn clip(cx: &OpCtx) -> Result<Kernel, OpError> {
    if cx.version >= 11 {
        return Ok(Box::new(|mut args| {
            let t = args.take(0)?;
            one(dispatch_number!(t.dtype(), T => clamp::<T>(t, bound(&args, 1)?, bound(&args, 2)?)?, other => return no_number(other)))
        }));
    }
    // Version 1 has no defaults, version 6 the greatest finite numbers.
    let default = |x: f32| (cx.version >= 6).then_some(x);
    let min = cx.attrs.float("min")?.or(default(f32::MIN));
    let max = cx.attrs.float("max")?.or(default(f32::MAX));
    Ok(Box::new(move |mut args| {
        let t = args.take(0)?;
        // A half takes the greatest f32 as infinity, which bounds nothing.
        let wide = |x: Option<f32>| x.map(f64::from);
        one(dispatch_float!(t.dtype(), T => {
            clamp::<T>(t, wide(min).map(<T as Number>::from_f64), wide(max).map(<T as Number>::from_f64))?
        }, other => return no_number(other)))
    }))
}

/// The element of an optional one-element input.
fn bound<T: Element>(args: &Args, i: usize) -> Result<Option<T>, OpError> {
    match args.opt(i)? {
        None => Ok(None),
        Some(t) => t.item::<T>().map(Some).map_err(|e| OpError::Invalid(format!("input {i}: {e}"))),
    }
}

/// First not below `min`, then not above `max`; NaN stays.
fn clamp<T: Number>(t: Tensor, min: Option<T>, max: Option<T>) -> Result<Tensor, OpError> {
    let (min, max) = (min.unwrap_or(T::lowest()), max.unwrap_or(T::highest()));
    map::<T>(t, move |x| x.greater_of(min).lesser_of(max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::{run, run_values};
    use crate::tensor::{bf16, f16};

    fn check(op: &str, attrs: Attrs, x: &[f32], expected: &[f32]) {
        let version = crate::ops::find(&crate::ir::OpName::new("", op)).unwrap().versions.last().copied().unwrap();
        let found = run(op, version, attrs, &[Tensor::vector(x.to_vec())]).unwrap().into_vec::<f32>().unwrap();
        for (f, e) in found.iter().zip(expected) {
            assert!(f == e || (f - e).abs() <= 2e-6 * e.abs() || f.is_nan() && e.is_nan(), "{op}: {found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn activations_have_their_values() {
        let none = Attrs::new;
        let alpha = |x: f32| Attrs::new().with("alpha", x);
        check("Celu", alpha(2.0), &[-1.0, 1.0], &[-0.786_938_7, 1.0]);
        check("Elu", alpha(2.0), &[-1.0, 0.0, 1.0], &[-1.264_241_1, 0.0, 1.0]);
        check("Selu", none(), &[-1.0, 1.0], &[-1.111_330_7, 1.050_701]);
        check("Gelu", none(), &[-1.0, 0.0, 1.0], &[-0.158_655_25, 0.0, 0.841_344_7]);
        check("Gelu", Attrs::new().with("approximate", "tanh"), &[-1.0, 1.0], &[-0.158_808, 0.841_192]);
        check("HardSigmoid", none(), &[-3.0, 0.0, 1.0, 3.0], &[0.0, 0.5, 0.7, 1.0]);
        check("HardSwish", none(), &[-4.0, 1.0, 4.0], &[0.0, 0.666_666_7, 4.0]);
        check("LeakyRelu", alpha(0.1), &[-1.0, 2.0], &[-0.1, 2.0]);
        check("Mish", none(), &[1.0, -1.0], &[0.865_098_4, -0.303_401_46]);
        check("Relu", none(), &[-1.0, 2.0, f32::NAN], &[0.0, 2.0, f32::NAN]);
        check("Shrink", Attrs::new().with("lambd", 1.5f32).with("bias", 1.5f32), &[-2.0, 1.0, 2.0], &[-0.5, 0.0, 0.5]);
        check("Sigmoid", none(), &[0.0, 1.0, -1.0, 200.0, -200.0], &[0.5, 0.731_058_6, 0.268_941_43, 1.0, 0.0]);
        check("Softplus", none(), &[0.0, 1000.0, -200.0], &[std::f32::consts::LN_2, 1000.0, 0.0]);
        check("Softsign", none(), &[-1.0, 3.0], &[-0.5, 0.75]);
        check("Swish", alpha(2.0), &[1.0], &[0.880_797_1]);
        check("ThresholdedRelu", none(), &[0.5, 1.0, 2.0], &[0.0, 0.0, 2.0]);
    }

    #[test]
    fn halves_are_computed_in_single_precision() {
        let x = Tensor::vector(vec![f16::from_f32(1.0)]);
        assert_eq!(run("Sigmoid", 13, Attrs::new(), &[x]).unwrap(), Tensor::vector(vec![f16::from_f32(0.731_058_6)]));
        let x = Tensor::vector(vec![bf16::from_f32(-1.0)]);
        assert_eq!(run("Relu", 14, Attrs::new(), &[x]).unwrap(), Tensor::vector(vec![bf16::ZERO]));
    }

    #[test]
    fn integers_are_clipped_and_rectified() {
        assert_eq!(run("Relu", 14, Attrs::new(), &[Tensor::vector(vec![-5i8, 5])]).unwrap(), Tensor::vector(vec![0i8, 5]));
        let inputs = [Tensor::vector(vec![-5i64, 0, 5]), Tensor::scalar(-1i64), Tensor::scalar(2i64)];
        assert_eq!(run("Clip", 13, Attrs::new(), &inputs).unwrap(), Tensor::vector(vec![-1i64, 0, 2]));
        assert_eq!(run("Shrink", 9, Attrs::new(), &[Tensor::vector(vec![3u8, 0])]).unwrap(), Tensor::vector(vec![3u8, 0]));
    }

    #[test]
    fn clip_takes_bounds_from_attributes_or_inputs() {
        let x = Tensor::vector(vec![-2f32, 0.5, 2.0, f32::NAN]);
        let attrs = Attrs::new().with("min", -1f32).with("max", 1f32);
        let expected = Tensor::vector(vec![-1f32, 0.5, 1.0, f32::NAN]);
        assert_eq!(run("Clip", 6, attrs, std::slice::from_ref(&x)).unwrap(), expected);
        let inputs = vec![Some(x.into()), None, Some(Tensor::scalar(1f32).into())];
        let found = run_values("Clip", 11, Attrs::new(), inputs, 1).unwrap().remove(0);
        assert_eq!(found.into_tensor().unwrap(), Tensor::vector(vec![-2f32, 0.5, 1.0, f32::NAN]));
        // The upper bound wins.
        let inputs = [Tensor::scalar(0f32), Tensor::scalar(2f32), Tensor::scalar(1f32)];
        assert_eq!(run("Clip", 12, Attrs::new(), &inputs).unwrap(), Tensor::scalar(1f32));
        let wrong = run("Clip", 13, Attrs::new(), &[Tensor::scalar(0f32), Tensor::scalar(2i64)]).unwrap_err();
        assert_eq!(wrong.to_string(), "input 1: expected float32, found int64");
    }
}
