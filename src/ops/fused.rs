//! What the executor computes in one step: a product with what stands around it, and walks over elements. These are no ops
//! of a model; they give the bits of the nodes that they stand for.

pub(crate) use super::chain::{Layer, kernel as build_chain};
pub(crate) use super::early::kernel as build_early;
pub(crate) use super::lookup_concat::{Part, Source, kernel as build_lookup_concat};
pub(crate) use super::pointwise::{Op, Program};

use super::gemm::{Activation, Bias, Dims, Epilogue, Matrix, product};
use super::matmul::{self, PREPARED, Prepared};
use super::movement::{signed_strides, strided};
use super::transpose::permutation;
use super::{Args, Kernel, OpCtx, OpError, Outputs, one, util};
use crate::tensor::{DType, Number, Shape, Tensor, Value, cast};
use crate::{dispatch_wide, invalid};

/// Where a node of a step finds an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    /// The first result of an earlier node of the step.
    Step(usize),
    /// An input of the step.
    Input(usize),
    /// Nowhere: it is left out.
    None,
}

/// A node of a step, with its own kernel.
pub(crate) struct Node {
    pub(crate) kernel: Kernel,
    pub(crate) operands: Vec<Operand>,
    /// Its name and op, for errors.
    pub(crate) label: String,
}

/// The nodes of a step as they are, for operands that the step itself is not made for; the last one gives the result.
pub(crate) struct Sequence(pub(crate) Vec<Node>);

impl Sequence {
    /// Runs one node after the other.
    ///
    /// # Errors
    /// What a node says, with its label.
    pub(crate) fn run(&self, args: &Args) -> Result<Outputs, OpError> {
        Ok(self.run_some(args, self.0.len())?.pop().into_iter().collect())
    }

    /// What the last node would get as its first operand.
    ///
    /// # Errors
    /// As [`Sequence::run`].
    pub(super) fn before_last(&self, args: &Args) -> Result<Option<Value>, OpError> {
        let Some((last, before)) = self.0.split_last() else { return Ok(None) };
        let mut values = self.run_some(args, before.len())?;
        Ok(match last.operands.first() {
            Some(Operand::Step(s)) => Some(values.swap_remove(*s)),
            Some(Operand::Input(i)) => args.value(*i).cloned(),
            _ => None,
        })
    }

    fn run_some(&self, args: &Args, count: usize) -> Result<Vec<Value>, OpError> {
        let mut values: Vec<Value> = Vec::with_capacity(count);
        for node in &self.0[..count] {
            let inputs = node.operands.iter().map(|o| match *o {
                Operand::Step(s) => values.get(s).cloned(),
                Operand::Input(i) => args.value(i).cloned(),
                Operand::None => None,
            });
            let made = (node.kernel)(Args::new(inputs)).map_err(|e| OpError::Invalid(format!("in {}: {e}", node.label)))?;
            values.extend(made.into_iter().take(1));
        }
        Ok(values)
    }
}

/// What stands around a MatMul.
#[derive(Debug, Default)]
pub(crate) struct Around {
    /// The `perm` of the Transpose before each operand.
    pub(crate) perms: [Option<Vec<i64>>; 2],
    /// A number for each column, added to each row; only with a second operand that [`can_prepare`] takes.
    pub(crate) bias: Option<Tensor>,
    /// Whether a Relu comes last; only with such an operand.
    pub(crate) relu: bool,
}

impl Around {
    /// Nothing.
    pub(crate) fn is_bare(&self) -> bool {
        self.perms.iter().all(Option::is_none) && self.bias.is_none() && !self.relu
    }
}

/// Whether a constant second operand is laid out for products that add and activate.
pub(crate) fn can_prepare(b: &Tensor) -> bool {
    super::gemm::Packed::supported()
        && b.dtype() == DType::F32
        && b.rank() == 2
        && b.shape()[1] > 0
        && b.bytes().is_some_and(|b| b.len() <= PREPARED)
}

/// Whether a row of a product has the same bits whatever the rows beside it.
pub(crate) fn can_slice() -> bool {
    super::gemm::Packed::supported()
}

/// The kernel of a MatMul with what is around it; the context is that of the MatMul, its operands those before the Transposes.
pub(crate) fn build_product(cx: &OpCtx, around: Around) -> Result<Kernel, OpError> {
    let prepared = match cx.constant(1) {
        Some(b) if around.perms[1].is_none() => matmul::prepare(b, false),
        _ => None,
    };
    let bias = around.bias.as_ref().map(|b| b.to_f32s()).transpose()?;
    let Around { perms, relu, .. } = around;
    Ok(Box::new(move |args| {
        let (a, b) = (args.tensor(0)?, args.tensor(1)?);
        let bias = bias.as_deref().map_or(Bias::None, Bias::Row);
        let epilogue = Epilogue { bias, activation: if relu { Activation::Relu } else { Activation::None } };
        if let (Some(Prepared::Packed(packed)), true) = (&prepared, a.dtype() == b.dtype()) {
            let a = turned(a, perms[0].as_deref())?;
            if let Some(y) = matmul::prepared_matmul(&a, b, packed, &epilogue)? {
                return one(y);
            }
        }
        if !matches!(epilogue, Epilogue { bias: Bias::None, activation: Activation::None }) {
            invalid!("expected operands of one type, found {} and {}", a.dtype(), b.dtype());
        }
        if !a.dtype().is_float() || a.dtype() != b.dtype() || a.rank() < 2 || b.rank() < 2 {
            return one(matmul::matmul(&turned(a, perms[0].as_deref())?, &turned(b, perms[1].as_deref())?)?);
        }
        one(viewed(&View::new(a, perms[0].as_deref())?, &View::new(b, perms[1].as_deref())?)?)
    }))
}

/// A Gemm of a chain, and the Relu that follows it: `operands` are the step's inputs that are its `B` and `C`.
pub(crate) fn layer(cx: &OpCtx, relu: bool, operands: (usize, Option<usize>), label: String) -> Result<Layer, OpError> {
    let gemm = matmul::Gemm::new(cx, if relu { Activation::Relu } else { Activation::None })?;
    Ok(Layer::new(gemm, operands, label))
}

fn turned(t: &Tensor, perm: Option<&[i64]>) -> Result<Tensor, OpError> {
    let Some(perm) = perm else { return Ok(t.clone()) };
    let View { shape, strides, .. } = View::new(t, Some(perm))?;
    let strides: Vec<isize> = strides.iter().map(|&s| s as isize).collect();
    strided(t, 0, &shape, &strides)
}

/// A tensor seen with its axes in another order.
struct View<'a> {
    tensor: &'a Tensor,
    shape: Shape,
    strides: Vec<usize>,
}

impl<'a> View<'a> {
    fn new(tensor: &'a Tensor, perm: Option<&[i64]>) -> Result<Self, OpError> {
        let perm = match perm {
            Some(_) => permutation(perm, tensor.rank())?,
            None => (0..tensor.rank()).collect(),
        };
        let by = signed_strides(tensor.shape());
        let strides = perm.iter().map(|&p| by[p] as usize).collect();
        Ok(Self { tensor, shape: perm.iter().map(|&p| tensor.shape()[p]).collect(), strides })
    }

    /// The matrix of the last two axes.
    fn matrix<'d, T>(&self, data: &'d [T]) -> Matrix<'d, T> {
        let last = self.shape.len() - 1;
        Matrix { data, row: self.strides[last - 1], col: self.strides[last] }
    }

    /// Where batch `i` of `batch` starts; axes that this operand lacks or has once are not moved along.
    fn start(&self, mut i: usize, batch: &[usize]) -> usize {
        let own = self.shape.len() - 2;
        let mut at = 0;
        for (d, &size) in batch.iter().enumerate().rev() {
            let position = i % size;
            i /= size;
            if let Some(axis) = (d + own).checked_sub(batch.len()).filter(|&axis| self.shape[axis] != 1) {
                at += position * self.strides[axis];
            }
        }
        at
    }
}

fn viewed(a: &View, b: &View) -> Result<Tensor, OpError> {
    let ([batch_a @ .., m, k], [batch_b @ .., k2, n]) = (&a.shape[..], &b.shape[..]) else { invalid!("matmul of a scalar") };
    if k != k2 {
        invalid!("shapes {} and {} do not multiply: {k} and {k2}", a.shape, b.shape);
    }
    let batch = util::broadcast(&[batch_a, batch_b])?;
    let shape = Shape::from_dims(batch.iter().copied().chain([*m, *n]));
    let (x, y) = (util::widen(a.tensor)?, util::widen(b.tensor)?);
    let out = dispatch_wide!(x.dtype(), T => {
        let mut out = matmul::overwritten::<T>(&shape)?;
        if !out.is_empty() {
            let starts: Vec<(usize, usize)> = (0..util::product(&batch)).map(|i| (a.start(i, &batch), b.start(i, &batch))).collect();
            let (x, y) = (a.matrix(x.as_slice::<T>()?), b.matrix(y.as_slice::<T>()?));
            product(Dims { m: *m, n: *n, k: *k }, T::ONE, x, y, &starts, &mut out, &Epilogue::NONE)?;
        }
        Tensor::new(shape, out)?
    });
    Ok(cast(&out, a.tensor.dtype())?)
}
