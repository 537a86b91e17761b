//! Products, activations and softmax fused with what stands around them.

use super::op;
use crate::ir::Dim;
use crate::ops::gemm::{Activation, Real, sigmoid};
use crate::ops::matmul::{build_gemm, infer_gemm, matmul_dims, scaled_matmul};
use crate::ops::softmax::softmax;
use crate::ops::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, infer, one, rows, util};
use crate::tensor::{DType, Shape, Tensor, cast};
use crate::{dispatch_wide, invalid};

const MATMUL_ATTRS: &[&str] = &["alpha", "transA", "transB", "transBatchA", "transBatchB"];

pub(in crate::ops) const OPS: &[OpDef] = &[
    op("BiasAdd").inputs(3, 3).infer(infer::same).kernel(|_| Ok(Box::new(|args| one(bias_add(&args)?)))),
    op("BiasGelu").inputs(2, 2).infer(infer::same).kernel(|_| Ok(Box::new(|args| one(activate(args, Real::gelu, Real::gelu)?)))),
    op("BiasSoftmax").inputs(2, 2).attrs(&["axis", "is_inner_broadcast"]).infer(infer::same).kernel(build_bias_softmax),
    op("BiasSplitGelu").inputs(2, 2).infer(infer_split).kernel(|_| Ok(Box::new(|args| one(bias_split_gelu(&args)?)))),
    op("ExpandDims").inputs(2, 2).infer(infer_expand).kernel(|_| Ok(Box::new(expand_dims))),
    op("FastGelu").inputs(1, 2).infer(infer::same).kernel(|_| Ok(Box::new(|args| one(activate(args, fast_gelu, fast_gelu)?)))),
    op("FusedGemm")
        .inputs(2, 3)
        .attrs(&["activation", "activation_alpha", "activation_beta", "activation_gamma", "alpha", "beta", "transA", "transB"])
        .infer(infer_gemm)
        .kernel(build_fused_gemm),
    op("FusedMatMul").inputs(2, 2).attrs(MATMUL_ATTRS).infer(infer_fused_matmul).kernel(build_fused_matmul),
    op("Gelu").infer(infer::same).kernel(|_| Ok(Box::new(|args| one(activate(args, Real::gelu, Real::gelu)?)))),
    op("Inverse").infer(infer::same).kernel(|_| Ok(Box::new(|args| one(inverse(args.tensor(0)?)?)))),
    op("QuickGelu").attrs(&["alpha"]).infer(infer::same).kernel(build_quick_gelu),
    op("TransposeMatMul").inputs(2, 2).attrs(MATMUL_ATTRS).infer(infer_fused_matmul).kernel(build_fused_matmul),
];

/// The tanh form of Gelu.
fn fast_gelu<T: Real>(x: T) -> T {
    let (b, c) = (T::from_f64(0.797_884_560_802_865_4), T::from_f64(0.035_677_408_136_300_125));
    T::from_f64(0.5) * x * (T::ONE + (x * (c * x * x + b)).tanh())
}

/// Applies a function to input 0 plus, where it is given, a vector of the last axis.
fn activate(
    mut args: Args,
    f32_fn: impl Fn(f32) -> f32 + Sync + Send,
    f64_fn: impl Fn(f64) -> f64 + Sync + Send,
) -> Result<Tensor, OpError> {
    let x = args.take(0)?;
    let (dtype, shape) = (x.dtype(), x.shape().clone());
    let wide = if dtype.bits() == 16 { util::widen(&x)? } else { x };
    let out = match wide.dtype() {
        DType::F64 => added(wide, &shape, args.opt(1)?, f64_fn)?,
        DType::F32 => added(wide, &shape, args.opt(1)?, f32_fn)?,
        other => invalid!("expected floating-point elements, found {other}"),
    };
    Ok(cast(&out, dtype)?)
}

/// Elements that one loop takes.
const CHUNK: usize = 4096;

fn added<T: Real>(x: Tensor, shape: &Shape, bias: Option<&Tensor>, f: impl Fn(T) -> T + Sync + Send) -> Result<Tensor, OpError> {
    let mut data = x.into_vec::<T>()?;
    match bias {
        None => util::for_each_chunk(&mut data, CHUNK, |_, row| rows::simd(|| row.iter_mut().for_each(|v| *v = f(*v)))),
        Some(bias) => {
            let bias = cast(bias, T::DTYPE)?.into_vec::<T>()?;
            if shape.last() != Some(&bias.len()) {
                invalid!("expected a bias for the last axis of {shape}, found {} elements", bias.len());
            }
            util::for_each_chunk(&mut data, bias.len(), |_, row| {
                rows::simd(|| row.iter_mut().zip(&bias).for_each(|(v, &b)| *v = f(*v + b)));
            });
        }
    }
    Ok(Tensor::new(shape, data)?)
}

fn build_quick_gelu(cx: &OpCtx) -> Result<Kernel, OpError> {
    let alpha = cx.attrs.float_or("alpha", 1.702)?;
    Ok(Box::new(move |args| one(activate(args, |x| x * sigmoid(alpha * x), |x| x * sigmoid(f64::from(alpha) * x))?)))
}

fn bias_add(args: &Args) -> Result<Tensor, OpError> {
    let (x, bias, skip) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    if x.shape() != skip.shape() || x.shape().last() != Some(&bias.len()) {
        invalid!("shapes {}, {} and {} do not fit", x.shape(), bias.shape(), skip.shape());
    }
    let wide = util::widen(x)?;
    let out = dispatch_wide!(wide.dtype(), T => {
        let mut data = wide.into_vec::<T>()?;
        let bias = cast(bias, x.dtype())?;
        let (bias, skip) = (util::widen(&bias)?, util::widen(skip)?);
        let (bias, skip) = (bias.as_slice::<T>()?, skip.as_slice::<T>()?);
        data.iter_mut().zip(skip).enumerate().for_each(|(i, (v, &s))| *v = *v + bias[i % bias.len()] + s);
        Tensor::new(x.shape(), data)?
    });
    Ok(cast(&out, x.dtype())?)
}

fn bias_split_gelu(args: &Args) -> Result<Tensor, OpError> {
    let (x, bias) = (args.tensor(0)?, args.tensor(1)?);
    let width = x.shape().last().copied().unwrap_or(0);
    if bias.len() != width || !width.is_multiple_of(2) || width == 0 {
        invalid!("shapes {} and {} do not fit", x.shape(), bias.shape());
    }
    let (data, bias) = (x.to_f32s()?, bias.to_f32s()?);
    let half = width / 2;
    let mut out = Vec::with_capacity(data.len() / 2);
    for row in data.chunks(width) {
        out.extend((0..half).map(|i| (row[i] + bias[i]) * (row[i + half] + bias[i + half]).gelu()));
    }
    let mut shape = x.shape().clone();
    let last = shape.len() - 1;
    shape[last] = half;
    Ok(cast(&Tensor::new(shape, out)?, x.dtype())?)
}

fn infer_split(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let shape = cx.shape(0).map(|s| {
        let mut s = s.to_vec();
        if let Some(d) = s.last_mut() {
            *d = d.known().map_or(Dim::Unknown, |d| Dim::Known(d / 2));
        }
        s
    });
    Ok(vec![Fact::partial(cx.dtype(0), shape)])
}

fn build_bias_softmax(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (axis, inner) = (cx.attrs.int_or("axis", 1)?, cx.attrs.int_or("is_inner_broadcast", 1)? != 0);
    Ok(Box::new(move |args| {
        let (x, bias) = (args.tensor(0)?, args.tensor(1)?);
        let at = util::axis(axis, x.rank())?;
        let len: usize = x.shape()[at..].iter().product();
        let wide = util::widen(x)?;
        let bias = util::widen(bias)?;
        if len == 0 || !bias.len().is_multiple_of(len) || bias.is_empty() || !(wide.len() / len).is_multiple_of(bias.len() / len) {
            invalid!("a bias of shape {} does not broadcast to {}", bias.shape(), x.shape());
        }
        let biases = bias.len() / len;
        // Inner: each row of the bias serves neighbouring rows; outer: the rows of the bias are repeated as a whole.
        let repeat = wide.len() / len / biases;
        let sums = dispatch_wide!(wide.dtype(), T => {
            let mut data = wide.into_vec::<T>()?;
            let bias = bias.as_slice::<T>()?;
            util::for_each_chunk(&mut data, len, |i, row| {
                let b = if inner { i / repeat } else { i % biases };
                row.iter_mut().zip(&bias[b * len..]).for_each(|(v, &b)| *v += b);
            });
            Tensor::new(x.shape(), data)?
        });
        one(cast(&softmax(sums, len, 1, false)?, x.dtype())?)
    }))
}

fn infer_expand(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let (Some(shape), Some(axis)) = (cx.shape(0), cx.ints(1)) else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    let [axis] = axis[..] else { invalid!("expected one axis, found {}", axis.len()) };
    let mut shape = shape.to_vec();
    shape.insert(util::axis(axis, shape.len() + 1)?, Dim::Known(1));
    Ok(vec![Fact::partial(cx.dtype(0), Some(shape))])
}

fn expand_dims(mut args: Args) -> Result<crate::ops::Outputs, OpError> {
    let axis = args.ints(1)?;
    let x = args.take(0)?;
    let [axis] = axis[..] else { invalid!("expected one axis, found {}", axis.len()) };
    let mut shape = x.shape().clone();
    shape.insert(util::axis(axis, shape.len() + 1)?, 1);
    one(x.reshape(shape)?)
}

fn build_fused_gemm(cx: &OpCtx) -> Result<Kernel, OpError> {
    let name = cx.attrs.string_or("activation", "")?;
    build_gemm(cx, Activation::parse(name, cx.attrs.float("activation_alpha")?, cx.attrs.float("activation_beta")?)?)
}

/// How an operand of FusedMatMul is turned: its last two axes, and its first axis before the second last.
#[derive(Clone, Copy)]
struct Turn {
    last: bool,
    batch: bool,
}

fn turns(cx: &OpCtx) -> Result<[Turn; 2], OpError> {
    let flag = |name| Ok::<bool, OpError>(cx.attrs.int_or(name, 0)? != 0);
    Ok([Turn { last: flag("transA")?, batch: flag("transBatchA")? }, Turn { last: flag("transB")?, batch: flag("transBatchB")? }])
}

/// The order of axes that moves the first axis before the last: `[d0, d1, .., dn]` to `[d1, .., d0, dn]`.
fn batch_order(rank: usize) -> Vec<usize> {
    (1..rank - 1).chain([0, rank - 1]).collect()
}

fn infer_fused_matmul(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let [a, b] = turns(&cx.op)?;
    let turned = |i: usize, t: Turn| {
        cx.shape(i).map(|s| {
            let mut s = s.to_vec();
            if t.batch && s.len() > 2 {
                s = batch_order(s.len()).into_iter().map(|d| s[d].clone()).collect();
            }
            if t.last && s.len() > 1 {
                let n = s.len();
                s.swap(n - 1, n - 2);
            }
            s
        })
    };
    let (Some(x), Some(y)) = (turned(0, a), turned(1, b)) else { return Ok(vec![Fact::partial(cx.dtype(0), None)]) };
    Ok(vec![Fact::partial(cx.dtype(0), Some(matmul_dims(&x, &y)?))])
}

fn build_fused_matmul(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (turns, alpha) = (turns(cx)?, cx.attrs.float_or("alpha", 1.0)?);
    Ok(Box::new(move |args| {
        let operand = |i: usize| -> Result<(Tensor, bool), OpError> {
            let (t, turn) = (args.tensor(i)?, turns[i]);
            let last = turn.last && t.rank() > 1;
            if !turn.batch || t.rank() < 3 {
                return Ok((t.clone(), last));
            }
            let wide = util::widen(t)?;
            let order = batch_order(t.rank());
            let moved = dispatch_wide!(wide.dtype(), T => Tensor::from_array(wide.view::<T>()?.permuted_axes(order).as_standard_layout().into_owned()));
            Ok((cast(&moved, t.dtype())?, last))
        };
        let ((a, ta), (b, tb)) = (operand(0)?, operand(1)?);
        one(scaled_matmul(&a, &b, (ta, tb), alpha)?)
    }))
}

/// The inverse of each matrix, by elimination with partial pivoting.
fn inverse(x: &Tensor) -> Result<Tensor, OpError> {
    let [.., n, cols] = x.shape()[..] else { invalid!("expected square matrices, found shape {}", x.shape()) };
    if n != cols || !x.dtype().is_float() {
        invalid!("expected square matrices of floats, found {}{}", x.dtype(), x.shape());
    }
    let mut data = cast(x, DType::F64)?.into_vec::<f64>()?;
    for m in data.chunks_mut((n * n).max(1)) {
        let mut work = m.to_vec();
        m.iter_mut().enumerate().for_each(|(i, v)| *v = if i / n == i % n { 1.0 } else { 0.0 });
        for c in 0..n {
            let pivot = (c..n).max_by(|&i, &j| work[i * n + c].abs().total_cmp(&work[j * n + c].abs())).unwrap_or(c);
            if work[pivot * n + c] == 0.0 {
                invalid!("a matrix has no inverse");
            }
            for j in 0..n {
                work.swap(pivot * n + j, c * n + j);
                m.swap(pivot * n + j, c * n + j);
            }
            let d = work[c * n + c];
            for j in 0..n {
                work[c * n + j] /= d;
                m[c * n + j] /= d;
            }
            for i in (0..n).filter(|&i| i != c) {
                let f = work[i * n + c];
                for j in 0..n {
                    work[i * n + j] -= f * work[c * n + j];
                    m[i * n + j] -= f * m[c * n + j];
                }
            }
        }
    }
    Ok(cast(&Tensor::new(x.shape(), data)?, x.dtype())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;

    fn t(shape: &[usize], data: &[f32]) -> Tensor {
        Tensor::new(shape, data.to_vec()).unwrap()
    }

    fn close(found: &Tensor, want: &[f32]) {
        let found = found.to_f32s().unwrap();
        assert!(found.len() == want.len() && found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}, expected {want:?}");
    }

    #[test]
    fn gelus() {
        let x = t(&[2], &[1.0, -1.0]);
        close(&run("com.microsoft::Gelu", 1, Attrs::new(), &[x.clone()]).unwrap(), &[0.841_345, -0.158_655]);
        close(&run("com.microsoft::FastGelu", 1, Attrs::new(), &[x.clone()]).unwrap(), &[0.841_192, -0.158_808]);
        close(&run("com.microsoft::BiasGelu", 1, Attrs::new(), &[x.clone(), t(&[2], &[0.0, 2.0])]).unwrap(), &[0.841_345, 0.841_345]);
        close(&run("com.microsoft::QuickGelu", 1, Attrs::new(), &[x]).unwrap(), &[0.845_795, -0.154_205]);
    }

    #[test]
    fn a_product_is_scaled_and_its_operands_turned() {
        let (a, b) = (t(&[1, 2], &[1.0, 2.0]), t(&[1, 2], &[3.0, 4.0]));
        let attrs = Attrs::new().with("alpha", 0.5f32).with("transB", 1i64);
        close(&run("com.microsoft::FusedMatMul", 1, attrs, &[a, b]).unwrap(), &[5.5]);
        let a = t(&[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
        let attrs = Attrs::new().with("transBatchA", 1i64);
        let out = run("com.microsoft::FusedMatMul", 1, attrs, &[a, t(&[2, 1], &[1.0, 10.0])]).unwrap();
        assert_eq!(**out.shape(), [1, 2, 1]);
        close(&out, &[21.0, 43.0]);
    }

    #[test]
    fn gemm_with_its_activation() {
        let attrs = Attrs::new().with("activation", "Relu");
        let out = run("com.microsoft::FusedGemm", 1, attrs, &[t(&[1, 1], &[2.0]), t(&[1, 2], &[1.0, -1.0]), t(&[2], &[1.0, 1.0])]).unwrap();
        close(&out, &[3.0, 0.0]);
        let attrs = Attrs::new().with("activation", "Nonsense");
        assert!(run("com.microsoft::FusedGemm", 1, attrs, &[t(&[1, 1], &[2.0]), t(&[1, 1], &[1.0])]).is_err());
    }

    #[test]
    fn an_inverse() {
        close(&run("com.microsoft::Inverse", 1, Attrs::new(), &[t(&[2, 2], &[0.0, 2.0, 4.0, 0.0])]).unwrap(), &[0.0, 0.25, 0.5, 0.0]);
        assert!(run("com.microsoft::Inverse", 1, Attrs::new(), &[t(&[2, 2], &[1.0; 4])]).is_err());
    }
}
