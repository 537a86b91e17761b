//! Several arithmetic ops in one walk over the elements: what is between them never leaves the cache. Each element goes
//! through the same operations as it would node by node, so the bits are the same.

use super::fused::{Operand, Sequence};
use super::math::Math;
use super::util::{self, GRAIN};
use super::{Args, Kernel, OpError, one, rows};
use crate::ir::OpName;
use crate::tensor::{DType, Number, Shape, Tensor, Value};

/// Elements that go through all operations before the next ones.
const BLOCK: usize = 512;

/// An operation on `f32`s that can be part of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Abs,
    Add,
    Div,
    Erf,
    Exp,
    Mul,
    Neg,
    Relu,
    Sigmoid,
    Sqrt,
    Sub,
    Tanh,
}

impl Op {
    /// The operation of an op of ONNX's own domain.
    pub(crate) fn of(op: &OpName) -> Option<Self> {
        if !op.domain.is_empty() {
            return None;
        }
        Some(match &*op.name {
            "Abs" => Self::Abs,
            "Add" => Self::Add,
            "Div" => Self::Div,
            "Erf" => Self::Erf,
            "Exp" => Self::Exp,
            "Mul" => Self::Mul,
            "Neg" => Self::Neg,
            "Relu" => Self::Relu,
            "Sigmoid" => Self::Sigmoid,
            "Sqrt" => Self::Sqrt,
            "Sub" => Self::Sub,
            "Tanh" => Self::Tanh,
            _ => return None,
        })
    }
}

/// Operations in their order; the last gives the result.
#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    pub(crate) steps: Vec<(Op, Vec<Operand>)>,
}

/// An operand within a block: a number for each element, or one for all.
#[derive(Clone, Copy)]
enum Block<'a> {
    Each(&'a [f32]),
    All(f32),
}

/// An input as the walk reads it.
enum Read<'a> {
    /// One number for each element of the result.
    Each(&'a [f32]),
    /// Again and again, along the last axes.
    Cycle(&'a [f32]),
    All(f32),
    /// The result's own storage.
    Own,
}

impl Program {
    /// The kernel of the program. Where operands are no `f32`s, or broadcast otherwise than along the last axes, `nodes` run
    /// one after the other.
    pub(crate) fn kernel(self, nodes: Sequence) -> Kernel {
        Box::new(move |mut args| match self.fast(&mut args)? {
            Some(y) => one(y),
            None => nodes.run(&args),
        })
    }

    fn fast(&self, args: &mut Args) -> Result<Option<Tensor>, OpError> {
        let count = 1 + self
            .steps
            .iter()
            .flat_map(|s| &s.1)
            .filter_map(|o| if let Operand::Input(i) = o { Some(*i) } else { None })
            .max()
            .unwrap_or(0);
        let mut shapes = Vec::with_capacity(count);
        for i in 0..count {
            match args.value(i) {
                Some(Value::Tensor(t)) if t.dtype() == DType::F32 => shapes.push(t.shape().clone()),
                _ => return Ok(None),
            }
        }
        let Ok(shape) = util::broadcast(&shapes.iter().map(|s| &s[..]).collect::<Vec<_>>()) else { return Ok(None) };
        let len = util::product(&shape);
        let suffix = |s: &Shape| shape.ends_with(&s[s.iter().take_while(|d| **d == 1).count()..]);
        if len == 0 || !shapes.iter().all(suffix) {
            return Ok(None);
        }
        // The storage of an operand that nobody else holds becomes the result's.
        let own = (0..count).find(|&i| shapes[i] == shape && args.tensor(i).is_ok_and(Tensor::is_unique));
        let mut out = match own {
            Some(i) => args.take(i)?.into_vec::<f32>()?,
            None => util::room::<f32>(&shape)?,
        };
        let reads = (0..count).map(|i| -> Result<Read, OpError> {
            if own == Some(i) {
                return Ok(Read::Own);
            }
            let data = args.slice::<f32>(i)?;
            Ok(if data.len() == len {
                Read::Each(data)
            } else if let [x] = data {
                Read::All(*x)
            } else {
                Read::Cycle(data)
            })
        });
        let reads = reads.collect::<Result<Vec<_>, _>>()?;
        util::for_each_chunk(&mut out, GRAIN, |chunk, part| {
            let mut scratch = vec![0f32; (self.steps.len() + count) * BLOCK];
            for (b, block) in part.chunks_mut(BLOCK).enumerate() {
                self.block(&reads, chunk * GRAIN + b * BLOCK, block, &mut scratch);
            }
        });
        Ok(Some(Tensor::new(shape, out)?))
    }

    /// The elements from `at` on: inputs that cannot be read where they lie are copied into the scratch first.
    fn block(&self, reads: &[Read], at: usize, out: &mut [f32], scratch: &mut [f32]) {
        let n = out.len();
        let (copies, results) = scratch.split_at_mut(reads.len() * BLOCK);
        for (read, copy) in reads.iter().zip(copies.chunks_exact_mut(BLOCK)) {
            match read {
                Read::Own => copy[..n].copy_from_slice(out),
                Read::Cycle(data) => {
                    let mut filled = 0;
                    while filled < n {
                        let from = (at + filled) % data.len();
                        let some = (data.len() - from).min(n - filled);
                        copy[filled..filled + some].copy_from_slice(&data[from..from + some]);
                        filled += some;
                    }
                }
                Read::Each(_) | Read::All(_) => {}
            }
        }
        let last = self.steps.len() - 1;
        for (s, (op, operands)) in self.steps.iter().enumerate() {
            let (before, own) = results.split_at_mut(s * BLOCK);
            let operand = |o: Operand| match o {
                Operand::Step(i) => Block::Each(&before[i * BLOCK..i * BLOCK + n]),
                Operand::None => Block::All(0.0),
                Operand::Input(i) => match reads[i] {
                    Read::Each(data) => Block::Each(&data[at..at + n]),
                    Read::All(x) => Block::All(x),
                    Read::Own | Read::Cycle(_) => Block::Each(&copies[i * BLOCK..i * BLOCK + n]),
                },
            };
            let to = if s == last { &mut *out } else { &mut own[..n] };
            let x = operand(operands[0]);
            apply(*op, x, operands.get(1).map_or(x, |&o| operand(o)), to);
        }
    }
}

fn apply(op: Op, x: Block, y: Block, out: &mut [f32]) {
    match op {
        Op::Add => binary(x, y, out, Number::add),
        Op::Sub => binary(x, y, out, Number::sub),
        Op::Mul => binary(x, y, out, Number::mul),
        Op::Div => binary(x, y, out, |a: f32, b: f32| Number::div(a, b).unwrap_or_default()),
        Op::Abs => unary(x, out, f32::abs),
        Op::Erf => unary(x, out, Math::erf),
        Op::Exp => unary(x, out, Math::exp),
        Op::Neg => unary(x, out, |a: f32| -a),
        Op::Relu => unary(x, out, |a: f32| if a < 0.0 { 0.0 } else { a }),
        Op::Sigmoid => unary(x, out, Math::sigmoid),
        Op::Sqrt => unary(x, out, f32::sqrt),
        Op::Tanh => unary(x, out, Math::tanh),
    }
}

#[inline(always)]
fn unary(x: Block, out: &mut [f32], f: impl Fn(f32) -> f32) {
    rows::simd(|| match x {
        Block::Each(x) => out.iter_mut().zip(x).for_each(|(o, x)| *o = f(*x)),
        Block::All(x) => out.fill(f(x)),
    });
}

#[inline(always)]
fn binary(x: Block, y: Block, out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    rows::simd(|| match (x, y) {
        (Block::Each(x), Block::Each(y)) => out.iter_mut().zip(x).zip(y).for_each(|((o, x), y)| *o = f(*x, *y)),
        (Block::Each(x), Block::All(y)) => out.iter_mut().zip(x).for_each(|(o, x)| *o = f(*x, y)),
        (Block::All(x), Block::Each(y)) => out.iter_mut().zip(y).for_each(|(o, y)| *o = f(x, *y)),
        (Block::All(x), Block::All(y)) => out.fill(f(x, y)),
    });
}
