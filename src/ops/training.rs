//! Optimizer steps of `ai.onnx.preview.training`: Adagrad, Adam and Momentum.

use super::util::{Real, map};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs};
use crate::invalid;
use crate::tensor::{DType, Tensor, Value, cast};

const DOMAIN: &str = "ai.onnx.preview.training";

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Adagrad", &[1])
        .domain(DOMAIN)
        .inputs(3, usize::MAX)
        .outputs(1, usize::MAX)
        .attrs(&["decay_factor", "epsilon", "norm_coefficient"])
        .infer(|cx| infer(cx, 1))
        .kernel(build_adagrad),
    OpDef::new("Adam", &[1])
        .domain(DOMAIN)
        .inputs(3, usize::MAX)
        .outputs(1, usize::MAX)
        .attrs(&["alpha", "beta", "epsilon", "norm_coefficient", "norm_coefficient_post"])
        .infer(|cx| infer(cx, 2))
        .kernel(build_adam),
    OpDef::new("Momentum", &[1])
        .domain(DOMAIN)
        .inputs(3, usize::MAX)
        .outputs(1, usize::MAX)
        .attrs(&["alpha", "beta", "mode", "norm_coefficient"])
        .infer(|cx| infer(cx, 1))
        .kernel(build_momentum),
];

/// How many tensors are optimized, out of the number of inputs: rate, count, then tensors, gradients and `states` each.
fn tensors(inputs: usize, states: usize) -> Result<usize, OpError> {
    match inputs.checked_sub(2) {
        Some(n) if n > 0 && n.is_multiple_of(states + 2) => Ok(n / (states + 2)),
        _ => invalid!("{inputs} inputs are not 2 and a multiple of {}", states + 2),
    }
}

/// Outputs are the tensors and then their states.
fn infer(cx: &InferCtx, states: usize) -> Result<Vec<Fact>, OpError> {
    let n = tensors(cx.facts.len(), states)?;
    let source = |i: usize| if i < n { 2 + i } else { 2 + n + i };
    Ok((0..cx.op.outputs.len()).map(|i| Fact { ty: cx.ty(source(i)).cloned(), ..Fact::default() }).collect())
}

/// Steps each tensor: `step(rate, count, [x, gradient, states..])` gives the new element and states.
fn run<const S: usize>(args: &Args, step: impl Fn(f64, i64, [f64; 4]) -> [f64; 3] + Sync + Send + Copy) -> Result<Outputs, OpError> {
    let n = tensors(args.len(), S)?;
    let rate = args.tensor(0)?;
    if !matches!(rate.dtype(), DType::F32 | DType::F64) {
        invalid!("input 0: expected float32 or float64, found {}", rate.dtype());
    }
    let rate: f64 = cast(rate, DType::F64)?.item()?;
    let &[count] = &args.ints(1)?[..] else { invalid!("input 1: expected one number") };
    let mut out: Vec<Vec<Value>> = vec![Vec::new(); S + 1];
    for i in 0..n {
        let new = match args.tensor(2 + i)?.dtype() {
            DType::F32 => one_tensor::<f32, S>(args, n, i, |e| step(rate, count, e))?,
            DType::F64 => one_tensor::<f64, S>(args, n, i, |e| step(rate, count, e))?,
            other => invalid!("input {}: expected float32 or float64, found {other}", 2 + i),
        };
        out.iter_mut().zip(new).for_each(|(list, t)| list.push(Value::Tensor(t)));
    }
    Ok(out.into_iter().flatten().collect())
}

fn one_tensor<T: Real, const S: usize>(
    args: &Args,
    n: usize,
    i: usize,
    step: impl Fn([f64; 4]) -> [f64; 3] + Sync + Send,
) -> Result<Vec<Tensor>, OpError> {
    let shape = args.tensor(2 + i)?.shape();
    let mut parts = Vec::new();
    for k in 0..S + 2 {
        let at = 2 + k * n + i;
        if args.tensor(at)?.shape() != shape {
            invalid!("input {at}: expected shape {shape}, found {}", args.tensor(at)?.shape());
        }
        parts.push(args.slice::<T>(at)?);
    }
    let positions: Vec<usize> = (0..parts[0].len()).collect();
    let new = map(&positions, |&p| {
        let mut e = [0.0; 4];
        e.iter_mut().zip(&parts).for_each(|(e, part)| *e = part[p].wide());
        step(e)
    });
    (0..=S).map(|k| Ok(Tensor::new(shape, new.iter().map(|e| T::of(e[k])).collect())?)).collect()
}

fn build_adagrad(cx: &OpCtx) -> Result<Kernel, OpError> {
    let number = |name: &str, default: f32| cx.attrs.float_or(name, default).map(f64::from);
    let (decay, epsilon, norm) = (number("decay_factor", 0.0)?, number("epsilon", 1e-6)?, number("norm_coefficient", 0.0)?);
    Ok(Box::new(move |args| {
        run::<1>(&args, |rate, count, [x, g, h, _]| {
            let g = norm * x + g;
            let h = h + g * g;
            [x - rate / (1.0 + count as f64 * decay) * g / (h.sqrt() + epsilon), h, 0.0]
        })
    }))
}

fn build_adam(cx: &OpCtx) -> Result<Kernel, OpError> {
    let number = |name: &str, default: f32| cx.attrs.float_or(name, default).map(f64::from);
    let (alpha, beta, epsilon) = (number("alpha", 0.9)?, number("beta", 0.999)?, number("epsilon", 1e-6)?);
    let (norm, norm_post) = (number("norm_coefficient", 0.0)?, number("norm_coefficient_post", 0.0)?);
    Ok(Box::new(move |args| {
        run::<2>(&args, |rate, count, [x, g, v, h]| {
            let g = norm * x + g;
            let v = alpha * v + (1.0 - alpha) * g;
            let h = beta * h + (1.0 - beta) * g * g;
            let power = |base: f64| base.powf(count as f64);
            let rate = if count > 0 { rate * (1.0 - power(beta)).sqrt() / (1.0 - power(alpha)) } else { rate };
            [(1.0 - norm_post) * (x - rate * v / (h.sqrt() + epsilon)), v, h]
        })
    }))
}

fn build_momentum(cx: &OpCtx) -> Result<Kernel, OpError> {
    let number = |name: &str| match cx.attrs.float(name)? {
        Some(x) => Ok(f64::from(x)),
        None => invalid!("attribute \"{name}\" is missing"),
    };
    let (alpha, beta, norm) = (number("alpha")?, number("beta")?, number("norm_coefficient")?);
    let nesterov = match cx.attrs.string("mode")? {
        Some("nesterov") => true,
        Some("standard") => false,
        other => invalid!("attribute \"mode\": expected standard or nesterov, found \"{}\"", other.unwrap_or_default()),
    };
    Ok(Box::new(move |args| {
        run::<1>(&args, |rate, count, [x, g, v, _]| {
            let g = norm * x + g;
            let v = alpha * v + if count > 0 { beta } else { 1.0 } * g;
            [x - rate * if nesterov { g + alpha * v } else { v }, v, 0.0]
        })
    }))
}

#[cfg(test)]
mod tests {
    use crate::ir::Attrs;
    use crate::ops::testing::run_values;
    use crate::tensor::{Tensor, Value};

    #[test]
    fn momentum_takes_the_whole_gradient_first() {
        let attrs = Attrs::new().with("alpha", 0.5f32).with("beta", 0.1f32).with("norm_coefficient", 0.0f32).with("mode", "standard");
        let f = |x: f32| Some(Value::Tensor(Tensor::vector(vec![x])));
        let inputs = |t: i64| vec![Some(Tensor::scalar(0.5f32).into()), Some(Tensor::scalar(t).into()), f(1.0), f(2.0), f(4.0)];
        let values = |t: i64| {
            let out = run_values("ai.onnx.preview.training::Momentum", 1, attrs.clone(), inputs(t), 2).unwrap();
            out.iter().map(|v| v.as_tensor().unwrap().to_f32s().unwrap()[0]).collect::<Vec<_>>()
        };
        assert_eq!(values(0), [-1.0, 4.0]);
        assert_eq!(values(1), [-0.1, 2.2]);
    }
}
