//! Shape inference: what a record's `infer` is given, what it gives back, and the rules that many ops share.

use super::{OpCtx, OpError};
use crate::invalid;
use crate::ir::{Dim, Type};
use crate::tensor::{DType, Tensor};

/// What is known of a value before it is computed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fact {
    /// Its type.
    pub ty: Option<Type>,
    /// Its elements, if it is a constant.
    pub constant: Option<Tensor>,
    /// The elements of an integer scalar or vector, as far as they are known: shapes on their way to Reshape.
    pub dims: Option<Vec<Dim>>,
}

impl Fact {
    /// Nothing is known.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// A tensor with stated dims.
    pub fn tensor(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> Self {
        Type::tensor(dtype, shape).into()
    }

    /// A tensor of unknown rank.
    pub fn unranked(dtype: DType) -> Self {
        Type::unranked(dtype).into()
    }

    /// A tensor with element type and dims as far as they are known.
    pub fn partial(dtype: Option<DType>, shape: Option<Vec<Dim>>) -> Self {
        Type::Tensor { dtype, shape }.into()
    }

    /// With known integer elements.
    #[must_use]
    pub fn with_dims(mut self, dims: Vec<Dim>) -> Self {
        self.dims = Some(dims);
        self
    }
}

impl From<Type> for Fact {
    fn from(ty: Type) -> Self {
        Self { ty: Some(ty), ..Self::default() }
    }
}

/// What inference is given.
#[derive(Debug)]
pub struct InferCtx<'a> {
    /// Op, attributes, version, outputs.
    pub op: OpCtx<'a>,
    /// What is known of each input; `None` for one that is left out.
    pub facts: &'a [Option<Fact>],
}

impl InferCtx<'_> {
    /// What is known of input `i`.
    pub fn fact(&self, i: usize) -> Option<&Fact> {
        self.facts.get(i)?.as_ref()
    }

    /// Whether input `i` is given.
    pub fn has(&self, i: usize) -> bool {
        self.fact(i).is_some()
    }

    /// Type of input `i`.
    pub fn ty(&self, i: usize) -> Option<&Type> {
        self.fact(i)?.ty.as_ref()
    }

    /// Element type of input `i`.
    pub fn dtype(&self, i: usize) -> Option<DType> {
        self.ty(i)?.dtype()
    }

    /// Dims of input `i`.
    pub fn shape(&self, i: usize) -> Option<&[Dim]> {
        self.ty(i)?.shape()
    }

    /// Rank of input `i`.
    pub fn rank(&self, i: usize) -> Option<usize> {
        self.shape(i).map(<[Dim]>::len)
    }

    /// Constant at input `i`.
    pub fn constant(&self, i: usize) -> Option<&Tensor> {
        self.fact(i)?.constant.as_ref()
    }

    /// The elements of an integer input, each as far as it is known.
    pub fn dims(&self, i: usize) -> Option<Vec<Dim>> {
        let fact = self.fact(i)?;
        if let Some(ints) = fact.constant.as_ref().and_then(|c| c.to_i64s().ok()) {
            return Some(ints.into_iter().map(|x| usize::try_from(x).map_or(Dim::Unknown, Dim::Known)).collect());
        }
        fact.dims.clone()
    }

    /// The elements of an integer input if all are known: a constant, or dims that are numbers.
    pub fn known(&self, i: usize) -> Option<Vec<i64>> {
        self.ints(i).or_else(|| self.fact(i)?.dims.as_ref()?.iter().map(|d| d.known().map(|n| n as i64)).collect())
    }

    /// The number of elements of a vector input.
    pub fn vector_len(&self, i: usize) -> Option<usize> {
        match self.shape(i)? {
            [n] => n.known(),
            _ => None,
        }
    }

    /// The elements of an integer input that is constant.
    pub fn ints(&self, i: usize) -> Option<Vec<i64>> {
        self.constant(i)?.to_i64s().ok()
    }
}

/// A shape of which only the rank is known.
pub fn unknown_dims(rank: usize) -> Vec<Dim> {
    vec![Dim::Unknown; rank]
}

/// Two statements about the same dim, joined: the more exact one.
///
/// # Errors
/// Two numbers that differ.
pub fn same_dim(a: &Dim, b: &Dim) -> Result<Dim, OpError> {
    match (a, b) {
        (Dim::Known(x), Dim::Known(y)) if x != y => invalid!("dims {x} and {y} must be equal"),
        (Dim::Known(_), _) | (_, Dim::Unknown) => Ok(a.clone()),
        (_, Dim::Known(_)) | (Dim::Unknown, _) => Ok(b.clone()),
        _ => Ok(a.clone()),
    }
}

/// The number of elements of `of` over that of `by`, as far as it is known; symbols cancel.
pub fn quotient(of: &[Dim], by: &[Dim]) -> Dim {
    let split = |dims: &[Dim]| {
        let mut symbols = Vec::new();
        let mut n = Some(1usize);
        for d in dims {
            match d {
                Dim::Known(x) => n = n.and_then(|n| n.checked_mul(*x)),
                Dim::Symbol(_) => symbols.push(d.clone()),
                Dim::Unknown => n = None,
            }
        }
        n.map(|n| (n, symbols))
    };
    let (Some((n, mut symbols)), Some((m, less))) = (split(of), split(by)) else { return Dim::Unknown };
    for s in less {
        match symbols.iter().position(|x| *x == s) {
            Some(at) => symbols.swap_remove(at),
            None => return Dim::Unknown,
        };
    }
    match &symbols[..] {
        [] if m > 0 && n % m == 0 => Dim::Known(n / m),
        [s] if n == m && n > 0 => s.clone(),
        _ => Dim::Unknown,
    }
}

/// Nothing is known of any output.
pub fn nothing(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::unknown(); cx.op.outputs.len()])
}

/// The output has the type of input 0.
pub fn same(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact { ty: cx.ty(0).cloned(), ..Fact::default() }])
}

/// The output has the dtype of input 0 and the broadcast shape of all inputs.
pub fn broadcast(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    Ok(vec![Fact::partial(cx.dtype(0), broadcast_all(cx)?)])
}

/// The broadcast shape of all inputs.
pub fn broadcast_all(cx: &InferCtx) -> Result<Option<Vec<Dim>>, OpError> {
    let mut shape: Option<Vec<Dim>> = Some(Vec::new());
    for i in 0..cx.facts.len() {
        shape = match (shape, cx.shape(i)) {
            (Some(a), Some(b)) => Some(broadcast_dims(&a, b)?),
            _ => None,
        };
    }
    Ok(shape)
}

/// Numpy's broadcasting over dims that may be unknown.
///
/// # Errors
/// Two known dims that do not fit.
pub fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, OpError> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| if i + s.len() < rank { Dim::Known(1) } else { s[i + s.len() - rank].clone() };
    let mut out = Vec::with_capacity(rank);
    for i in 0..rank {
        out.push(match (at(a, i), at(b, i)) {
            (x, y) if x == y => x,
            (Dim::Known(1), y) => y,
            (x, Dim::Known(1)) => x,
            (Dim::Known(x), Dim::Known(y)) => invalid!("dims {x} and {y} do not broadcast"),
            // A known dim above 1 settles it: the other must be that or 1.
            (Dim::Known(x), _) | (_, Dim::Known(x)) => Dim::Known(x),
            _ => Dim::Unknown,
        });
    }
    Ok(out)
}
