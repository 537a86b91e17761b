//! Matrix products and determinants.

use super::gemm::{Activation, Bias, Dims, Epilogue, Matrix, Packed, Real, product, product_packed, transpose};
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Outputs, broadcast_dims, one, util};
use crate::ir::Dim;
use crate::tensor::{DType, Int, Number, Shape, Tensor, cast, checked_len, fits_memory, room, strides};
use crate::{dispatch_int, dispatch_wide, invalid};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Det", &[11, 22]).infer(infer_det).kernel(build_det),
    OpDef::new("Gemm", &[1, 6, 7, 9, 11, 13])
        .inputs(2, 3)
        .attrs(&["alpha", "beta", "broadcast", "transA", "transB"])
        .infer(infer_gemm)
        .kernel(|cx| build_gemm(cx, Activation::None)),
    OpDef::new("MatMul", &[1, 9, 13]).inputs(2, 2).infer(|cx| infer_matmul(cx, 0, 1, cx.dtype(0))).kernel(build_matmul),
];

/// How two operands of numpy's `matmul` meet: dims of one product, where each batch starts, and the shape of the result.
pub(super) struct Plan {
    pub dims: Dims,
    pub starts: Vec<(usize, usize)>,
    pub shape: Shape,
}

/// Plans `matmul` of row-major operands; `trans` says which of them is transposed in its last two axes.
pub(super) fn plan(a: &[usize], b: &[usize], trans: (bool, bool)) -> Result<Plan, OpError> {
    if a.is_empty() || b.is_empty() {
        invalid!("matmul of a scalar: shapes {} and {}", Shape::from(a), Shape::from(b));
    }
    let (va, vb) = (a.len() == 1, b.len() == 1);
    let (batch_a, batch_b) = (&a[..a.len().saturating_sub(2)], &b[..b.len().saturating_sub(2)]);
    let (m, k) = match *a {
        [k] => (1, k),
        [.., k, m] if trans.0 => (m, k),
        [.., m, k] => (m, k),
        [] => (1, 1),
    };
    let (k2, n) = match *b {
        [k] => (k, 1),
        [.., n, k] if trans.1 => (k, n),
        [.., k, n] => (k, n),
        [] => (1, 1),
    };
    if k != k2 {
        invalid!("shapes {} and {} do not multiply: {k} and {k2}", Shape::from(a), Shape::from(b));
    }
    let batch = util::broadcast(&[batch_a, batch_b])?;
    let mut shape = batch.clone();
    if !va {
        shape.push(m);
    }
    if !vb {
        shape.push(n);
    }
    // Rows of all batches are one matrix where the second operand is the same for all.
    if batch_b.iter().all(|&d| d == 1) && !trans.0 && batch_b.len() <= batch_a.len() {
        let rows = batch_a.iter().product::<usize>() * m;
        return Ok(Plan { dims: Dims { m: rows, n, k }, starts: vec![(0, 0)], shape });
    }
    let (sa, sb) = (util::broadcast_strides(batch_a, &batch), util::broadcast_strides(batch_b, &batch));
    let at = strides(&batch);
    let Some(count) = checked_len(&batch).filter(|&n| fits_memory(n.saturating_mul(16))) else {
        invalid!("products of {batch} matrices do not fit memory");
    };
    let starts = (0..count)
        .map(|i| {
            let sum = |s: &[usize]| (0..batch.len()).map(|d| i / at[d] % batch[d] * s[d]).sum::<usize>();
            (sum(&sa) * m * k, sum(&sb) * k * n)
        })
        .collect();
    Ok(Plan { dims: Dims { m, n, k }, starts, shape })
}

/// Shape of `matmul` of inputs `a` and `b`.
pub(super) fn infer_matmul(cx: &InferCtx, a: usize, b: usize, dtype: Option<DType>) -> Result<Vec<Fact>, OpError> {
    let (Some(x), Some(y)) = (cx.shape(a), cx.shape(b)) else { return Ok(vec![Fact::partial(dtype, None)]) };
    Ok(vec![Fact::partial(dtype, Some(matmul_dims(x, y)?))])
}

/// Dims of `matmul`.
pub(super) fn matmul_dims(x: &[Dim], y: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let (Some(k), Some(k2)) = (x.last(), y.get(y.len().saturating_sub(2))) else { invalid!("matmul of a scalar") };
    if !k.compatible(k2) {
        invalid!("dims {k} and {k2} do not multiply");
    }
    let mut out = broadcast_dims(&x[..x.len().saturating_sub(2)], &y[..y.len().saturating_sub(2)])?;
    if x.len() > 1 {
        out.push(x[x.len() - 2].clone());
    }
    if y.len() > 1 {
        out.push(y[y.len() - 1].clone());
    }
    Ok(out)
}

/// `matmul` of floats or integers of any width.
pub(super) fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor, OpError> {
    if a.dtype() != b.dtype() {
        invalid!("expected operands of one type, found {} and {}", a.dtype(), b.dtype());
    }
    if !a.dtype().is_float() {
        return dispatch_int!(a.dtype(), T => matmul_int::<T>(a, b), other => invalid!("expected numbers, found {other}"));
    }
    scaled_matmul(a, b, (false, false), 1.0)
}

/// `alpha * a x b` of floats, either transposed in its last two axes.
pub(super) fn scaled_matmul(a: &Tensor, b: &Tensor, trans: (bool, bool), alpha: f32) -> Result<Tensor, OpError> {
    if a.dtype() != b.dtype() {
        invalid!("expected operands of one type, found {} and {}", a.dtype(), b.dtype());
    }
    let plan = plan(a.shape(), b.shape(), trans)?;
    let (x, y) = (util::widen(a)?, util::widen(b)?);
    let out = dispatch_wide!(x.dtype(), T => {
        let mut out = overwritten::<T>(&plan.shape)?;
        let (lda, ldb) = (last(a.shape()), last_or_one(b.shape()));
        product(plan.dims, T::from_f64(alpha.into()), Matrix::new(x.as_slice::<T>()?, lda, trans.0), Matrix::new(y.as_slice::<T>()?, ldb, trans.1), &plan.starts, &mut out, &Epilogue::NONE)?;
        Tensor::new(plan.shape, out)?
    });
    Ok(cast(&out, a.dtype())?)
}

pub(super) fn last(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// Columns of the second operand: a vector is a column.
pub(super) fn last_or_one(shape: &[usize]) -> usize {
    if shape.len() == 1 { 1 } else { last(shape) }
}

/// Zeros for a result of that shape.
pub(super) fn new_out<T: Number>(shape: &Shape) -> Result<Vec<T>, OpError> {
    Ok(Tensor::full(shape, T::ZERO)?.into_vec()?)
}

/// Elements of any value for a result of that shape, which a product overwrites.
pub(super) fn overwritten<T: Number>(shape: &Shape) -> Result<Vec<T>, OpError> {
    match checked_len(shape).and_then(room) {
        Some(found) => Ok(found),
        None => new_out(shape),
    }
}

fn matmul_int<T: Int>(a: &Tensor, b: &Tensor) -> Result<Tensor, OpError> {
    let plan = plan(a.shape(), b.shape(), (false, false))?;
    let Dims { m, n, k } = plan.dims;
    let (a, b) = (a.to_slice::<T>()?, b.to_slice::<T>()?);
    let mut out = new_out::<T>(&plan.shape)?;
    util::for_each_chunk(&mut out, n, |row, out| {
        let (x, y) = plan.starts[row / m];
        for (p, &f) in a[x + row % m * k..][..k].iter().enumerate() {
            out.iter_mut().zip(&b[y + p * n..][..n]).for_each(|(o, &g)| *o = o.add(f.mul(g)));
        }
    });
    Ok(Tensor::new(plan.shape, out)?)
}

/// Bytes up to which a constant operand is laid out anew.
pub(super) const PREPARED: usize = 1 << 28;

/// A constant second operand in the form that the product reads fastest.
pub(super) enum Prepared {
    /// In panels.
    Packed(Packed),
    /// As the wide row-major `[k, n]`.
    Wide(Tensor),
}

/// Lays a matrix out, if that pays; `transposed` says that it is `[n, k]`.
pub(super) fn prepare(b: &Tensor, transposed: bool) -> Option<Prepared> {
    let (&[rows, cols], size) = (b.shape().last_chunk::<2>()?, b.bytes()?.len());
    if !b.dtype().is_float() || size > PREPARED || b.len() != rows * cols {
        return None;
    }
    let wide = util::widen(b).ok()?;
    let (k, n) = if transposed { (cols, rows) } else { (rows, cols) };
    if let Ok(data) = wide.as_slice::<f32>()
        && let Some(packed) = Packed::new(Matrix::new(data, cols, transposed), 0, k, n)
    {
        return Some(Prepared::Packed(packed));
    }
    if !transposed {
        return (b.dtype().bits() == 16).then_some(Prepared::Wide(wide));
    }
    let turned = match wide.dtype() {
        DType::F32 => Tensor::new([k, n], transpose(wide.as_slice::<f32>().ok()?, rows, cols)),
        _ => Tensor::new([k, n], transpose(wide.as_slice::<f64>().ok()?, rows, cols)),
    };
    turned.ok().map(Prepared::Wide)
}

fn build_matmul(cx: &OpCtx) -> Result<Kernel, OpError> {
    let prepared = cx.constant(1).and_then(|b| prepare(b, false));
    Ok(Box::new(move |args| {
        let (a, b) = (args.tensor(0)?, args.tensor(1)?);
        one(match &prepared {
            Some(Prepared::Packed(packed)) if a.dtype() == b.dtype() => match prepared_matmul(a, b, packed, &Epilogue::NONE)? {
                Some(y) => y,
                None => matmul(a, b)?,
            },
            _ => matmul(a, b)?,
        })
    }))
}

/// `a x b` where `b` is laid out; `None` if the product has batches of its own.
pub(super) fn prepared_matmul(a: &Tensor, b: &Tensor, packed: &Packed, epilogue: &Epilogue<f32>) -> Result<Option<Tensor>, OpError> {
    let plan = plan(a.shape(), b.shape(), (false, false))?;
    if plan.starts.len() != 1 || (plan.dims.k, plan.dims.n) != packed.dims() {
        return Ok(None);
    }
    let x = util::widen(a)?;
    let mut out = overwritten::<f32>(&plan.shape)?;
    product_packed(plan.dims.m, 1.0, Matrix::new(x.as_slice::<f32>()?, last(a.shape()), false), packed, &mut out, epilogue)?;
    Ok(Some(cast(&Tensor::new(plan.shape, out)?, a.dtype())?))
}

/// The attributes of Gemm and its constant operand.
pub(super) struct Gemm {
    alpha: f32,
    beta: f32,
    trans: (bool, bool),
    activation: Activation,
    prepared: Option<Prepared>,
}

impl Gemm {
    /// Of a node, with the function that is applied last.
    ///
    /// # Errors
    /// Attributes of another kind.
    pub(super) fn new(cx: &OpCtx, activation: Activation) -> Result<Self, OpError> {
        let trans = (cx.attrs.int_or("transA", 0)? != 0, cx.attrs.int_or("transB", 0)? != 0);
        let prepared = cx.constant(1).filter(|b| b.rank() == 2).and_then(|b| prepare(b, trans.1));
        Ok(Self { alpha: cx.attrs.float_or("alpha", 1.0)?, beta: cx.attrs.float_or("beta", 1.0)?, trans, activation, prepared })
    }

    /// The constant operand, laid out, if nothing is scaled and the first operand is read as it lies.
    pub(super) fn packed(&self) -> Option<&Packed> {
        match &self.prepared {
            Some(Prepared::Packed(packed)) if self.alpha == 1.0 && self.beta == 1.0 && !self.trans.0 => Some(packed),
            _ => None,
        }
    }

    /// The function that is applied last.
    pub(super) fn activation(&self) -> Activation {
        self.activation
    }
}

/// Gemm, and the fused one with an activation.
pub(super) fn build_gemm(cx: &OpCtx, activation: Activation) -> Result<Kernel, OpError> {
    let gemm = Gemm::new(cx, activation)?;
    Ok(Box::new(move |args| one(run_gemm(&gemm, &args)?)))
}

/// Runs a Gemm.
///
/// # Errors
/// Operands that do not fit.
pub(super) fn run_gemm(gemm: &Gemm, args: &Args) -> Result<Tensor, OpError> {
    let (a, b, c) = (args.tensor(0)?, args.tensor(1)?, args.opt(2)?);
    if a.rank() != 2 || b.rank() != 2 {
        invalid!("expected matrices, found shapes {} and {}", a.shape(), b.shape());
    }
    if b.dtype() != a.dtype() || c.is_some_and(|c| c.dtype() != a.dtype()) {
        invalid!("expected operands of one type, found {}, {} and {}", a.dtype(), b.dtype(), c.map_or(a.dtype(), Tensor::dtype));
    }
    let plan = plan(a.shape(), b.shape(), gemm.trans)?;
    if let Some(c) = c
        && *util::broadcast(&[c.shape(), &plan.shape])? != *plan.shape
    {
        invalid!("shape {} of C does not broadcast to {}", c.shape(), plan.shape);
    }
    if !a.dtype().is_float() {
        return dispatch_int!(a.dtype(), T => gemm_int::<T>(gemm, a, b, c, &plan), other => invalid!("expected numbers, found {other}"));
    }
    let (x, c) = (util::widen(a)?, c.filter(|_| gemm.beta != 0.0).map(util::widen).transpose()?);
    let shape = plan.shape.clone();
    if let Some(Prepared::Packed(packed)) = &gemm.prepared {
        let mut scaled = Vec::new();
        let epilogue = Epilogue { bias: bias(c.as_ref(), gemm.beta, plan.dims, &mut scaled)?, activation: gemm.activation };
        let mut out = overwritten::<f32>(&shape)?;
        let x = Matrix::new(x.as_slice::<f32>()?, a.shape()[1], gemm.trans.0);
        product_packed(plan.dims.m, gemm.alpha, x, packed, &mut out, &epilogue)?;
        return Ok(cast(&Tensor::new(shape, out)?, a.dtype())?);
    }
    // Whether an operand is a constant must not change a bit: it is laid out alike.
    let late;
    let prepared = match &gemm.prepared {
        Some(prepared) => Some(prepared),
        None if b.dtype() != DType::F64 && Packed::supported() => None,
        None => {
            late = prepare(b, gemm.trans.1);
            late.as_ref()
        }
    };
    let wide;
    let (y, trans_b) = match prepared {
        Some(Prepared::Wide(b)) => (b, false),
        _ => {
            wide = util::widen(b)?;
            (&wide, gemm.trans.1)
        }
    };
    let out = dispatch_wide!(x.dtype(), T => gemm_float::<T>(gemm, &x, (y, trans_b), c.as_ref(), plan)?);
    Ok(cast(&out, a.dtype())?)
}

/// What a product adds: `beta * c`, with room for it in `scaled`.
fn bias<'a, T: Real>(c: Option<&'a Tensor>, beta: f32, dims: Dims, scaled: &'a mut Vec<T>) -> Result<Bias<'a, T>, OpError> {
    let Some(c) = c else { return Ok(Bias::None) };
    let mut data = c.as_slice::<T>()?;
    if beta != 1.0 {
        let beta = T::from_f64(beta.into());
        *scaled = data.iter().map(|&x| Number::mul(x, beta)).collect();
        data = scaled;
    }
    // A matrix with one row or column broadcasts as a vector.
    Ok(match **c.shape() {
        _ if data.len() == 1 => Bias::Scalar(data[0]),
        [rows, cols] if rows == dims.m && cols == dims.n => Bias::Full(data),
        [rows, 1] if rows == dims.m => Bias::Column(data),
        _ => Bias::Row(data),
    })
}

fn gemm_float<T: Real>(gemm: &Gemm, a: &Tensor, b: (&Tensor, bool), c: Option<&Tensor>, plan: Plan) -> Result<Tensor, OpError> {
    let mut scaled = Vec::new();
    let epilogue = Epilogue { bias: bias::<T>(c, gemm.beta, plan.dims, &mut scaled)?, activation: gemm.activation };
    let mut out = overwritten::<T>(&plan.shape)?;
    let (x, y) = (Matrix::new(a.as_slice::<T>()?, a.shape()[1], gemm.trans.0), Matrix::new(b.0.as_slice::<T>()?, b.0.shape()[1], b.1));
    product(plan.dims, T::from_f64(gemm.alpha.into()), x, y, &plan.starts, &mut out, &epilogue)?;
    Ok(Tensor::new(plan.shape, out)?)
}

fn gemm_int<T: Int>(gemm: &Gemm, a: &Tensor, b: &Tensor, c: Option<&Tensor>, plan: &Plan) -> Result<Tensor, OpError> {
    let Dims { m, n, k } = plan.dims;
    let (x, y) = (a.to_slice::<T>()?, b.to_slice::<T>()?);
    let (a, b) = (Matrix::new(&x, a.shape()[1], gemm.trans.0), Matrix::new(&y, b.shape()[1], gemm.trans.1));
    let c = c.map(|c| Ok::<_, OpError>((c.to_slice::<T>()?, util::broadcast_strides(c.shape(), &plan.shape)))).transpose()?;
    let scale = |x: T, f: f32| if f == 1.0 { x } else { T::from_f64(x.to_f64() * f64::from(f)) };
    let mut out = new_out::<T>(&plan.shape)?;
    for i in 0..m {
        for j in 0..n {
            let sum = (0..k).fold(T::ZERO, |s, p| s.add(a.data[i * a.row + p * a.col].mul(b.data[p * b.row + j * b.col])));
            let add = c.as_ref().map_or(T::ZERO, |(c, s)| scale(c[i * s[0] + j * s[1]], gemm.beta));
            out[i * n + j] = scale(sum, gemm.alpha).add(add);
        }
    }
    Ok(Tensor::new(&plan.shape, out)?)
}

/// Shape of Gemm.
pub(super) fn infer_gemm(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let side = |i: usize, name: &str, at: usize| -> Result<Dim, OpError> {
        let flip = usize::from(cx.op.attrs.int_or(name, 0)? != 0);
        match cx.shape(i) {
            None => Ok(Dim::Unknown),
            Some(s) if s.len() == 2 => Ok(s[at ^ flip].clone()),
            Some(s) => invalid!("input {i}: expected a matrix, found rank {}", s.len()),
        }
    };
    let (k, k2) = (side(0, "transA", 1)?, side(1, "transB", 0)?);
    if !k.compatible(&k2) {
        invalid!("dims {k} and {k2} do not multiply");
    }
    Ok(vec![Fact::partial(cx.dtype(0).or(cx.dtype(1)), Some(vec![side(0, "transA", 0)?, side(1, "transB", 1)?]))])
}

fn infer_det(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let shape = match cx.shape(0) {
        Some(s) if s.len() < 2 => invalid!("expected square matrices, found rank {}", s.len()),
        s => s.map(|s| s[..s.len() - 2].to_vec()),
    };
    Ok(vec![Fact::partial(cx.dtype(0), shape)])
}

fn build_det(_: &OpCtx) -> Result<Kernel, OpError> {
    Ok(Box::new(|args| -> Result<Outputs, OpError> {
        let t = args.tensor(0)?;
        let [batch @ .., rows, cols] = &**t.shape() else { invalid!("expected square matrices, found shape {}", t.shape()) };
        if rows != cols || !t.dtype().is_float() {
            invalid!("expected square matrices of floats, found {}{}", t.dtype(), t.shape());
        }
        let wide: Vec<f64> = cast(t, DType::F64)?.into_vec()?;
        let count = batch.iter().product();
        let out: Vec<f64> = (0..count).map(|i| determinant(wide[i * rows * rows..][..rows * rows].to_vec(), *rows)).collect();
        one(cast(&Tensor::new(batch, out)?, t.dtype())?)
    }))
}

/// By elimination with partial pivoting.
fn determinant(mut m: Vec<f64>, n: usize) -> f64 {
    let mut det = 1.0;
    for c in 0..n {
        let Some(pivot) = (c..n).max_by(|&i, &j| m[i * n + c].abs().total_cmp(&m[j * n + c].abs())) else { break };
        if m[pivot * n + c] == 0.0 {
            return 0.0;
        }
        if pivot != c {
            (0..n).for_each(|j| m.swap(pivot * n + j, c * n + j));
            det = -det;
        }
        det *= m[c * n + c];
        for i in c + 1..n {
            let f = m[i * n + c] / m[c * n + c];
            (c..n).for_each(|j| m[i * n + j] -= f * m[c * n + j]);
        }
    }
    det
}

#[cfg(test)]
mod tests {
    use super::super::testing::run;
    use super::*;
    use crate::ir::Attrs;

    fn t<T: crate::tensor::Element>(shape: &[usize], data: Vec<T>) -> Tensor {
        Tensor::new(shape, data).unwrap()
    }

    #[test]
    fn matmul_broadcasts_batches_and_takes_vectors() {
        let a = t(&[2, 1, 2], vec![1f32, 2.0, 3.0, 4.0]);
        let b = t(&[2, 2, 1], vec![1f32, 1.0, 2.0, 2.0]);
        assert_eq!(run("MatMul", 13, Attrs::new(), &[a.clone(), b]).unwrap(), t(&[2, 1, 1], vec![3f32, 14.0]));
        assert_eq!(run("MatMul", 13, Attrs::new(), &[a, t(&[2], vec![1f32, 1.0])]).unwrap(), t(&[2, 1], vec![3f32, 7.0]));
        let v = t(&[2], vec![3i64, 4]);
        assert_eq!(run("MatMul", 13, Attrs::new(), &[v.clone(), v]).unwrap(), t(&[], vec![25i64]));
        assert!(run("MatMul", 13, Attrs::new(), &[t(&[2, 3], vec![0f32; 6]), t(&[2, 3], vec![0f32; 6])]).is_err());
    }

    #[test]
    fn gemm_scales_and_adds() {
        let attrs = Attrs::new().with("alpha", 0.5f32).with("beta", 2f32).with("transB", 1i64);
        let a = t(&[2, 2], vec![1f32, 2.0, 3.0, 4.0]);
        let b = t(&[3, 2], vec![1f32, 0.0, 0.0, 1.0, 1.0, 1.0]);
        let want = t(&[2, 3], vec![2.5f32, 3.0, 3.5, 3.5, 4.0, 5.5]);
        assert_eq!(run("Gemm", 13, attrs.clone(), &[a.clone(), b.clone(), t(&[1, 3], vec![1f32; 3])]).unwrap(), want);
        assert_eq!(run("Gemm", 13, attrs, &[a, b, t(&[2, 1], vec![1f32; 2])]).unwrap(), want);
    }

    #[test]
    fn det_of_a_batch() {
        let m = t(&[2, 2, 2], vec![1f32, 2.0, 3.0, 4.0, 0.0, 1.0, 1.0, 0.0]);
        assert_eq!(run("Det", 11, Attrs::new(), &[m]).unwrap(), t(&[2], vec![-2f32, -1.0]));
    }
}
