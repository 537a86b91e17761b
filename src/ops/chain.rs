//! Gemms one after the other: blocks of rows go through all of them, each on one thread, so that what is between two layers
//! stays in the cache and threads meet once. The bits are those of the layers on their own.

use super::gemm::{Bias, Epilogue, Matrix, Packed, product_packed};
use super::matmul::{Gemm, overwritten, run_gemm};
use super::{Args, Kernel, OpError, one, threads, util};
use crate::tensor::{DType, Shape, Tensor, Value};
use std::cell::Cell;

/// Multiply-adds below which a chain stays on one thread.
const SERIAL: usize = 1 << 21;
/// Bytes of the widest rows of a block.
const BLOCK: usize = 256 << 10;
/// Rows that the kernel of products takes at once.
const HEIGHT: usize = 6;

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A Gemm of a chain.
pub(crate) struct Layer {
    gemm: Gemm,
    /// Which inputs of the step are its `B` and `C`.
    operands: (usize, Option<usize>),
    /// Its name and op, for errors.
    label: String,
}

impl Layer {
    pub(super) fn new(gemm: Gemm, operands: (usize, Option<usize>), label: String) -> Self {
        Self { gemm, operands, label }
    }

    /// The constant operand and what comes after the product, if it is nothing out of the ordinary.
    fn ready<'a>(&'a self, args: &'a Args, k: usize) -> Option<(&'a Packed, Epilogue<'a, f32>)> {
        let packed = self.gemm.packed().filter(|p| p.dims().0 == k)?;
        args.tensor(self.operands.0).ok().filter(|b| b.dtype() == DType::F32)?;
        let bias = match self.operands.1 {
            None => Bias::None,
            Some(c) => {
                let c = args.tensor(c).ok().filter(|c| c.shape()[..] == [packed.dims().1])?;
                Bias::Row(c.as_slice::<f32>().ok()?)
            }
        };
        Some((packed, Epilogue { bias, activation: self.gemm.activation() }))
    }
}

/// The kernel of a chain; input 0 goes into the first layer.
pub(crate) fn kernel(layers: Vec<Layer>) -> Kernel {
    Box::new(move |args| match whole(&layers, &args)? {
        Some(y) => one(y),
        None => one(each(&layers, &args)?),
    })
}

/// One layer after the other.
fn each(layers: &[Layer], args: &Args) -> Result<Tensor, OpError> {
    let mut x = args.tensor(0)?.clone();
    for (i, layer) in layers.iter().enumerate() {
        let (b, c) = layer.operands;
        let own = Args::new([Some(Value::Tensor(x)), args.value(b).cloned(), c.and_then(|c| args.value(c).cloned())]);
        x = run_gemm(&layer.gemm, &own).map_err(|e| if i == 0 { e } else { OpError::Invalid(format!("in {}: {e}", layer.label)) })?;
    }
    Ok(x)
}

fn whole(layers: &[Layer], args: &Args) -> Result<Option<Tensor>, OpError> {
    let x = args.tensor(0)?;
    let &[m, width] = &x.shape()[..] else { return Ok(None) };
    if x.dtype() != DType::F32 || m == 0 {
        return Ok(None);
    }
    let mut k = width;
    let mut ready = Vec::with_capacity(layers.len());
    for layer in layers {
        let Some(found) = layer.ready(args, k) else { return Ok(None) };
        k = found.0.dims().1;
        ready.push(found);
    }
    let data = x.as_slice::<f32>()?;
    let widest = ready.iter().map(|(p, _)| p.dims().0.max(p.dims().1)).max().unwrap_or(1);
    let work = m * ready.iter().map(|(p, _)| p.dims().0 * p.dims().1).sum::<usize>();
    let parallel = work > SERIAL && threads::shared();
    let share = if parallel { m.div_ceil(threads::count()) } else { m };
    let rows = (BLOCK / 4 / widest.max(1) / HEIGHT * HEIGHT).max(8 * HEIGHT).min(share);
    let shape = Shape::from([m, k]);
    let mut out = overwritten::<f32>(&shape)?;
    let block = |i: usize, out: &mut [f32]| through(&ready, &data[i * rows * width..], out, widest);
    if parallel {
        util::chunks_in_parallel(&mut out, rows * k, 1, &|i, out| threads::alone(|| block(i, out)).0);
    } else {
        out.chunks_mut(rows * k).enumerate().for_each(|(i, out)| threads::alone(|| block(i, out)).0);
    }
    Ok(Some(Tensor::new(shape, out)?))
}

/// Takes the rows of a block through all layers. What the layers need has been checked.
fn through(layers: &[(&Packed, Epilogue<f32>)], x: &[f32], out: &mut [f32], widest: usize) {
    let last = layers.len() - 1;
    let m = out.len() / layers[last].0.dims().1;
    let mut scratch = SCRATCH.take();
    if scratch.len() < 2 * m * widest {
        scratch.resize(2 * m * widest, 0.0);
    }
    let (mut from, mut to) = scratch.split_at_mut(m * widest);
    for (i, (packed, epilogue)) in layers.iter().enumerate() {
        let (k, n) = packed.dims();
        let source = if i == 0 { &x[..m * k] } else { &from[..m * k] };
        let target = if i == last { &mut *out } else { &mut to[..m * n] };
        let done = product_packed(m, 1.0, Matrix::new(source, k, false), packed, target, epilogue);
        debug_assert!(done.is_ok());
        std::mem::swap(&mut from, &mut to);
    }
    SCRATCH.set(scratch);
}
