//! Random tensors, and dropout. Equal seeds give equal tensors, in each run; without a seed each run differs.

use super::infer::InferCtx;
use super::mersenne::Mersenne;
use super::util::zeros;
use super::{Args, Fact, Kernel, OpCtx, OpDef, OpError, Outputs, one};
use crate::ir::{Attr, Dim};
use crate::tensor::{DType, Float, Int, Number, Shape, Tensor, cast};
use crate::{dispatch_float, dispatch_int, invalid};

const NORMAL: &[&str] = &["dtype", "mean", "scale", "seed", "shape"];
const UNIFORM: &[&str] = &["dtype", "high", "low", "seed", "shape"];
const DROPOUT: &[&str] = &["consumed_inputs", "is_test", "ratio", "seed"];

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Bernoulli", &[15, 22]).attrs(&["dtype", "seed"]).infer(infer_like).kernel(bernoulli).impure(),
    OpDef::new("Dropout", &[1, 6, 7, 10, 12, 13, 22])
        .inputs(1, 3)
        .outputs(1, 2)
        .attrs(DROPOUT)
        .infer(infer_dropout)
        .kernel(dropout)
        .impure(),
    OpDef::new("Multinomial", &[7, 22]).attrs(&["dtype", "sample_size", "seed"]).infer(infer_multinomial).kernel(multinomial).impure(),
    OpDef::new("RandomNormal", &[1, 22]).inputs(0, 0).attrs(NORMAL).infer(infer_shaped).kernel(random_normal).impure(),
    OpDef::new("RandomNormalLike", &[1, 22]).attrs(NORMAL).infer(infer_like).kernel(random_normal).impure(),
    OpDef::new("RandomUniform", &[1, 22]).inputs(0, 0).attrs(UNIFORM).infer(infer_shaped).kernel(random_uniform).impure(),
    OpDef::new("RandomUniformLike", &[1, 22]).attrs(UNIFORM).infer(infer_like).kernel(random_uniform).impure(),
];

/// Attribute `seed`, a float (of Dropout: an int), in 32 bits.
fn seed(cx: &OpCtx) -> Result<Option<u32>, OpError> {
    Ok(match cx.attrs.get("seed") {
        Some(Attr::Int(x)) => Some(*x as u32),
        _ => cx.attrs.float("seed")?.filter(|x| !x.is_nan()).map(|x| x as i64 as u32),
    })
}

/// Attribute `dtype`.
fn dtype(cx: &OpCtx) -> Result<Option<DType>, OpError> {
    match cx.attrs.int("dtype")? {
        None => Ok(None),
        Some(code) => match i32::try_from(code).ok().and_then(DType::from_onnx) {
            Some(dtype) => Ok(Some(dtype)),
            None => invalid!("attribute \"dtype\" names no dtype that is known: {code}"),
        },
    }
}

/// Attribute `shape`.
fn shape(cx: &OpCtx) -> Result<Shape, OpError> {
    let Some(dims) = cx.attrs.ints("shape")? else { invalid!("attribute \"shape\" is missing") };
    dims.iter().map(|&d| usize::try_from(d).or_else(|_| invalid!("attribute \"shape\" has a negative dim: {d}"))).collect()
}

/// Where shape and dtype of a random tensor come from.
enum Form {
    Stated(DType, Shape),
    Like(Option<DType>),
}

impl Form {
    fn of(cx: &OpCtx) -> Result<Self, OpError> {
        Ok(match cx.inputs {
            0 => Form::Stated(dtype(cx)?.unwrap_or(DType::F32), shape(cx)?),
            _ => Form::Like(dtype(cx)?),
        })
    }

    fn get(&self, args: &Args) -> Result<(DType, Shape), OpError> {
        Ok(match self {
            Form::Stated(dtype, shape) => (*dtype, shape.clone()),
            Form::Like(dtype) => {
                let like = args.tensor(0)?;
                (dtype.unwrap_or(like.dtype()), like.shape().clone())
            }
        })
    }
}

/// The kernel of `draw * scale + shift`, each step in the tensor's dtype.
fn random(cx: &OpCtx, scale: f64, shift: f64, draw: fn(&mut Mersenne) -> f64) -> Result<Kernel, OpError> {
    let (form, seed) = (Form::of(cx)?, seed(cx)?);
    Ok(Box::new(move |args| {
        let (dtype, shape) = form.get(&args)?;
        let mut stream = Mersenne::new(seed);
        one(dispatch_float!(dtype, T => {
            let mut out = zeros::<T>(&shape)?;
            let [scale, shift] = [scale, shift].map(<T as Number>::from_f64);
            out.iter_mut().for_each(|x| *x = Number::add(Number::mul(Number::from_f64(draw(&mut stream)), scale), shift));
            Tensor::new(shape, out)?
        }, other => invalid!("random numbers must be floats, found {other}")))
    }))
}

fn random_normal(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (mean, scale) = (cx.attrs.float_or("mean", 0.0)?, cx.attrs.float_or("scale", 1.0)?);
    random(cx, scale.into(), mean.into(), Mersenne::normal)
}

fn random_uniform(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (low, high) = (f64::from(cx.attrs.float_or("low", 0.0)?), f64::from(cx.attrs.float_or("high", 1.0)?));
    random(cx, high - low, low, Mersenne::uniform)
}

/// The elements of a float tensor as `f64`.
fn floats(t: &Tensor) -> Result<Vec<f64>, OpError> {
    match t.dtype() {
        d if d.is_float() => Ok(cast(t, DType::F64)?.into_vec()?),
        other => invalid!("input 0 must be floats, found {other}"),
    }
}

fn bernoulli(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (to, seed) = (dtype(cx)?, seed(cx)?);
    Ok(Box::new(move |args| {
        let p = args.tensor(0)?;
        let mut stream = Mersenne::new(seed);
        let events: Vec<bool> = floats(p)?.into_iter().map(|p| stream.event(p)).collect();
        one(cast(&Tensor::new(p.shape(), events)?, to.unwrap_or(p.dtype()))?)
    }))
}

fn multinomial(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (to, seed) = (dtype(cx)?.unwrap_or(DType::I32), seed(cx)?);
    let Ok(samples) = usize::try_from(cx.attrs.int_or("sample_size", 1)?) else { invalid!("attribute \"sample_size\" is negative") };
    Ok(Box::new(move |args| {
        let logits = args.tensor(0)?;
        let [batch, classes] = **logits.shape() else { invalid!("input 0 must have 2 dims, found {}", logits.shape()) };
        if classes == 0 && batch > 0 && samples > 0 {
            invalid!("input 0 has no class to draw");
        }
        let mut stream = Mersenne::new(seed);
        let x = floats(logits)?;
        one(dispatch_int!(to, T => {
            let mut out = zeros::<T>(&[batch, samples])?;
            for (row, out) in x.chunks(classes.max(1)).zip(out.chunks_mut(samples.max(1))) {
                let sums = cumulated(row);
                for o in out {
                    let at = stream.uniform() * sums.last().copied().unwrap_or_default();
                    let class = sums.partition_point(|s| *s <= at).min(classes - 1);
                    *o = T::from_i64(class as i64);
                }
            }
            Tensor::new([batch, samples], out)?
        }, other => invalid!("attribute \"dtype\": expected int32 or int64, found {other}")))
    }))
}

/// Running sums of the exponentials of logarithms, the greatest of which counts 1.
fn cumulated(logs: &[f64]) -> Vec<f64> {
    let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    logs.iter()
        .map(|x| {
            sum += (x - top).exp();
            sum
        })
        .collect()
}

fn dropout(cx: &OpCtx) -> Result<Kernel, OpError> {
    let version = cx.version;
    let seed = seed(cx)?;
    let ratio = cx.attrs.float_or("ratio", 0.5)?;
    // Before opset 7 a model was for training unless it said otherwise, from 12 on only if it says so.
    let train = version < 7 && cx.attrs.int_or("is_test", 0)? == 0;
    let wants_mask = cx.wants(1);
    Ok(Box::new(move |mut args| {
        let x = args.take(0)?;
        let (mut ratio, mut train) = (f64::from(ratio), train);
        if version >= 12 {
            if let Some(t) = args.opt(1)? {
                ratio = cast(t, DType::F64)?.item()?;
            }
            if let Some(t) = args.opt(2)? {
                train = t.item::<bool>().map_err(|e| OpError::Invalid(format!("input 2: {e}")))?;
            }
        }
        let shape = x.shape().clone();
        let (out, mask) = if train && ratio != 0.0 { drop(x, ratio, seed)? } else { (x, None) };
        if !wants_mask {
            return one(out);
        }
        let mask = match mask {
            Some(mask) => Tensor::new(shape, mask)?,
            None => Tensor::full(shape, true)?,
        };
        let mask = if version < 10 { cast(&mask, out.dtype())? } else { mask };
        Ok(Outputs::from_iter([out.into(), mask.into()]))
    }))
}

/// Sets a part `ratio` of the elements to zero, scales the rest, and says which were kept.
fn drop(x: Tensor, ratio: f64, seed: Option<u32>) -> Result<(Tensor, Option<Vec<bool>>), OpError> {
    if !(0.0..1.0).contains(&ratio) {
        invalid!("ratio must be from 0 up to but not 1, found {ratio}");
    }
    let mut stream = Mersenne::new(seed);
    let mask: Vec<bool> = (0..x.len()).map(|_| stream.uniform() >= ratio).collect();
    let shape = x.shape().clone();
    let out = dispatch_float!(x.dtype(), T => {
        let scale = <T as Number>::from_f64(1.0 / (1.0 - ratio)).widen();
        let mut out = x.into_vec::<T>()?;
        out.iter_mut().zip(&mask).for_each(|(x, keep)| *x = if *keep { T::narrow(x.widen() * scale) } else { T::ZERO });
        Tensor::new(shape, out)?
    }, other => invalid!("input 0 must be floats, found {other}"));
    Ok((out, Some(mask)))
}

fn infer_shaped(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let dims = shape(&cx.op)?.iter().map(|&d| Dim::Known(d)).collect::<Vec<_>>();
    Ok(vec![Fact::tensor(dtype(&cx.op)?.unwrap_or(DType::F32), dims)])
}

/// In the shape of input 0, and of its dtype if no other is stated.
fn infer_like(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(dtype(&cx.op)?.or(cx.dtype(0)), cx.shape(0).map(<[Dim]>::to_vec))])
}

fn infer_multinomial(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let batch = cx.shape(0).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
    let samples = usize::try_from(cx.op.attrs.int_or("sample_size", 1)?).map_or(Dim::Unknown, Dim::Known);
    Ok(vec![Fact::tensor(dtype(&cx.op)?.unwrap_or(DType::I32), [batch, samples])])
}

fn infer_dropout(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let shape = cx.shape(0).map(<[Dim]>::to_vec);
    let mask = if cx.op.version < 10 { cx.dtype(0) } else { Some(DType::Bool) };
    let both = [Fact::partial(cx.dtype(0), shape.clone()), Fact::partial(mask, shape)];
    Ok(both.into_iter().take(cx.op.outputs.len().max(1)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::{run, run_values};

    fn seeded() -> Attrs {
        Attrs::new().with("seed", 7f32)
    }

    #[test]
    fn seeded_numbers_are_those_of_the_reference() {
        let attrs = seeded().with("shape", vec![3i64]);
        let uniform = run("RandomUniform", 22, attrs.clone().with("low", 1f32).with("high", 3f32), &[]).unwrap();
        assert_eq!(uniform, Tensor::vector(vec![1.152_616_6f32, 2.559_837_6, 1.876_818_4]));
        let normal = run("RandomNormal", 22, attrs.with("dtype", 11i64), &[]).unwrap();
        assert_eq!(normal, Tensor::vector(vec![1.690_525_703_800_356f64, -0.465_937_370_540_832_8, 0.032_820_163_678_584_4]));
        let p = Tensor::vector(vec![0.2f32, 0.5, 0.8, 0.0, 1.0, 0.9, 0.3, 0.6]);
        let events = run("Bernoulli", 15, seeded().with("dtype", 7i64), &[p]).unwrap();
        assert_eq!(events, Tensor::vector(vec![0i64, 1, 1, 0, 1, 1, 0, 1]));
    }

    #[test]
    fn shape_and_dtype_come_from_the_input_or_the_attribute() {
        let like = Tensor::full([2, 3], 0f64).unwrap();
        let x = run("RandomNormalLike", 1, Attrs::new(), &[like]).unwrap();
        assert_eq!((x.dtype(), &**x.shape()), (DType::F64, &[2, 3][..]));
        let like = Tensor::full([4], 0i64).unwrap();
        let x = run("RandomUniformLike", 1, Attrs::new().with("dtype", 10i64), std::slice::from_ref(&like)).unwrap();
        assert_eq!((x.dtype(), x.len()), (DType::F16, 4));
        let wrong = run("RandomUniformLike", 1, Attrs::new(), &[like]).unwrap_err();
        assert_eq!(wrong.to_string(), "random numbers must be floats, found int64");
        let wrong = run("RandomNormal", 1, Attrs::new().with("shape", vec![-1i64]), &[]).unwrap_err();
        assert_eq!(wrong.to_string(), "attribute \"shape\" has a negative dim: -1");
    }

    #[test]
    fn classes_are_drawn_by_their_weight() {
        let logits = Tensor::new([2, 3], vec![f32::NEG_INFINITY, 0.0, 0.0, 50.0, 0.0, 0.0]).unwrap();
        let drawn = run("Multinomial", 7, seeded().with("sample_size", 1000i64), &[logits]).unwrap();
        assert_eq!((drawn.dtype(), &**drawn.shape()), (DType::I32, &[2, 1000][..]));
        let drawn = drawn.into_vec::<i32>().unwrap();
        let ones = drawn[..1000].iter().filter(|c| **c == 1).count();
        assert!(!drawn[..1000].contains(&0) && (400..600).contains(&ones), "{ones}");
        assert!(drawn[1000..].iter().all(|c| *c == 0));
    }

    #[test]
    fn dropout_is_the_identity_unless_it_trains() {
        let x = || Some(Tensor::vector(vec![1f32, 2.0]).into());
        let both = |version, attrs, inputs| {
            let out = run_values("Dropout", version, attrs, inputs, 2).unwrap();
            out.into_iter().map(|v| v.into_tensor().unwrap()).collect::<Vec<_>>()
        };
        let kept = Tensor::vector(vec![1f32, 2.0]);
        assert_eq!(both(13, Attrs::new(), vec![x()]), [kept.clone(), Tensor::vector(vec![true, true])]);
        assert_eq!(both(6, Attrs::new().with("is_test", 1i64), vec![x()]), [kept.clone(), Tensor::vector(vec![1f32, 1.0])]);
        let training = vec![x(), Some(Tensor::scalar(0.5f32).into()), Some(Tensor::scalar(true).into())];
        // The stream of seed 7 starts 0.07, 0.77.
        let found = both(13, Attrs::new().with("seed", 7i64), training);
        assert_eq!(found, [Tensor::vector(vec![0f32, 4.0]), Tensor::vector(vec![false, true])]);
    }
}
