//! Sums of products in Einstein's notation. Operands are taken in pairs; each pair is one batched matrix product.

use super::gemm::{Dims, Epilogue, Matrix, Real, product};
use super::matmul::new_out;
use super::{Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, one, util};
use crate::ir::Dim;
use crate::tensor::{Element, Int, Number, Shape, Tensor, cast, checked_len, strides};
use crate::{dispatch_int, dispatch_wide, invalid};
use ndarray::{ArrayD, Axis, Dimension, IxDyn};

pub(super) const OPS: &[OpDef] =
    &[OpDef::new("Einsum", &[12]).inputs(1, usize::MAX).attrs(&["equation"]).infer(infer_einsum).kernel(build_einsum)];

/// A subscript: a letter, or the position of an axis under the ellipsis counted from the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Dots(std::cmp::Reverse<usize>),
    Letter(char),
}

/// A parsed equation: terms as written, `None` where the output is implied.
#[derive(Debug, Clone)]
struct Equation {
    inputs: Vec<String>,
    output: Option<String>,
}

fn parse(cx: &OpCtx) -> Result<Equation, OpError> {
    let Some(text) = cx.attrs.string("equation")? else { invalid!("attribute \"equation\" is missing") };
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, output) = match text.split_once("->") {
        Some((l, r)) => (l.to_owned(), Some(r.to_owned())),
        None => (text.clone(), None),
    };
    let inputs: Vec<String> = left.split(',').map(str::to_owned).collect();
    for term in inputs.iter().chain(&output) {
        let letters = term.replacen("...", "", 1);
        if let Some(c) = letters.chars().find(|c| !c.is_ascii_alphabetic()) {
            invalid!("equation {text:?}: {c:?} is no subscript");
        }
    }
    if inputs.len() != cx.inputs {
        invalid!("equation {text:?} has {} terms, the node {} inputs", inputs.len(), cx.inputs);
    }
    Ok(Equation { inputs, output })
}

/// The labels of a term for an operand of that rank.
fn labels(term: &str, rank: usize) -> Result<Vec<Label>, OpError> {
    let letters = |s: &str| s.chars().map(Label::Letter).collect::<Vec<_>>();
    let named = term.chars().filter(|&c| c != '.').count();
    let fits = if term.contains('.') { named <= rank } else { named == rank };
    if !fits {
        invalid!("term {term:?} does not fit rank {rank}");
    }
    Ok(match term.split_once("...") {
        None => letters(term),
        Some((before, after)) => {
            let dots = (0..rank - named).rev().map(|i| Label::Dots(std::cmp::Reverse(i)));
            letters(before).into_iter().chain(dots).chain(letters(after)).collect()
        }
    })
}

/// The labels of the output.
fn output_labels(equation: &Equation, inputs: &[Vec<Label>]) -> Result<Vec<Label>, OpError> {
    let all: Vec<Label> = inputs.iter().flatten().copied().collect();
    let dots = all.iter().filter_map(|l| if let Label::Dots(i) = l { Some(i.0 + 1) } else { None }).max().unwrap_or(0);
    let out = match &equation.output {
        Some(term) => {
            let named = term.chars().filter(|&c| c != '.').count();
            labels(term, named + if term.contains('.') { dots } else { 0 })?
        }
        None => {
            let mut letters: Vec<Label> = all.iter().copied().filter(|l| all.iter().filter(|m| *m == l).count() == 1).collect();
            letters.retain(|l| matches!(l, Label::Letter(_)));
            letters.sort();
            (0..dots).rev().map(|i| Label::Dots(std::cmp::Reverse(i))).chain(letters).collect()
        }
    };
    for (i, l) in out.iter().enumerate() {
        if out[..i].contains(l) || !all.contains(l) {
            invalid!("the output repeats a subscript or names one that no input has");
        }
    }
    Ok(out)
}

fn infer_einsum(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let equation = parse(&cx.op)?;
    let Some(shapes) = (0..equation.inputs.len()).map(|i| cx.shape(i)).collect::<Option<Vec<_>>>() else {
        return Ok(vec![Fact::partial(cx.dtype(0), None)]);
    };
    let inputs = equation.inputs.iter().zip(&shapes).map(|(t, s)| labels(t, s.len())).collect::<Result<Vec<_>, _>>()?;
    let out = output_labels(&equation, &inputs)?;
    let dim = |l: &Label| {
        let mut found = Dim::Known(1);
        for (labels, shape) in inputs.iter().zip(&shapes) {
            for (_, d) in labels.iter().zip(shape.iter()).filter(|(m, _)| *m == l) {
                if found == Dim::Known(1) || d.known().is_some_and(|d| d != 1) {
                    found = d.clone();
                }
            }
        }
        found
    };
    Ok(vec![Fact::partial(cx.dtype(0), Some(out.iter().map(dim).collect()))])
}

fn build_einsum(cx: &OpCtx) -> Result<Kernel, OpError> {
    let equation = parse(cx)?;
    Ok(Box::new(move |args| {
        let tensors = args.tensors(0)?;
        let dtype = tensors[0].dtype();
        if let Some(t) = tensors.iter().find(|t| t.dtype() != dtype) {
            invalid!("expected operands of one type, found {dtype} and {}", t.dtype());
        }
        let wide = tensors.iter().map(|t| util::widen(t)).collect::<Result<Vec<_>, _>>()?;
        let out = match wide[0].dtype() {
            d if d.is_float() => dispatch_wide!(d, T => einsum::<T>(&equation, &wide, multiply_floats::<T>)?),
            d => {
                dispatch_int!(d, T => einsum::<T>(&equation, &wide, multiply_ints::<T>)?, other => invalid!("expected numbers, found {other}"))
            }
        };
        one(cast(&out, dtype)?)
    }))
}

/// Multiplies row-major batches `[b, m, k] x [b, k, n]`.
type Multiply<T> = fn(batch: usize, dims: Dims, a: &[T], b: &[T]) -> Result<Vec<T>, OpError>;

fn multiply_floats<T: Real>(batch: usize, dims: Dims, a: &[T], b: &[T]) -> Result<Vec<T>, OpError> {
    let Dims { m, n, k } = dims;
    let starts: Vec<(usize, usize)> = (0..batch).map(|i| (i * m * k, i * k * n)).collect();
    let mut out = new_out::<T>(&Shape::from([batch, m, n]))?;
    product(dims, T::ONE, Matrix::new(a, k, false), Matrix::new(b, n, false), &starts, &mut out, &Epilogue::NONE)?;
    Ok(out)
}

fn multiply_ints<T: Int>(batch: usize, dims: Dims, a: &[T], b: &[T]) -> Result<Vec<T>, OpError> {
    let Dims { m, n, k } = dims;
    let mut out = new_out::<T>(&Shape::from([batch, m, n]))?;
    util::for_each_chunk(&mut out, n, |row, out| {
        for p in 0..k {
            let f = a[row * k + p];
            out.iter_mut().zip(&b[(row / m * k + p) * n..][..n]).for_each(|(o, &g)| *o = o.add(f.mul(g)));
        }
    });
    Ok(out)
}

/// An operand whose axes carry labels, none of them twice.
struct Operand<T> {
    labels: Vec<Label>,
    array: ArrayD<T>,
}

/// Takes the diagonal of repeated labels, and sums over labels that nobody else needs.
fn simplify<T: Number>(mut labels: Vec<Label>, mut array: ArrayD<T>, needed: &dyn Fn(Label) -> bool) -> Result<Operand<T>, OpError> {
    let mut i = 0;
    while i < labels.len() {
        if let Some(j) = labels[i + 1..].iter().position(|l| *l == labels[i]).map(|j| i + 1 + j) {
            let n = array.shape()[i];
            if array.shape()[j] != n {
                invalid!("a repeated subscript has dims {n} and {}", array.shape()[j]);
            }
            let mut shape = array.shape().to_vec();
            shape.remove(j);
            array = ArrayD::from_shape_fn(IxDyn(&shape), |index| {
                let mut full: Vec<usize> = (0..index.ndim()).map(|d| index[d]).collect();
                full.insert(j, full[i]);
                array[IxDyn(&full)]
            });
            labels.remove(j);
        } else {
            i += 1;
        }
    }
    for i in (0..labels.len()).rev() {
        if !needed(labels[i]) {
            array = array.fold_axis(Axis(i), T::ZERO, |&s, &x| s.add(x));
            labels.remove(i);
        }
    }
    Ok(Operand { labels, array })
}

/// Row-major elements with the axes in this order; an axis that is not there, or is 1, is repeated to its dim.
fn arrange<T: Element + Copy>(x: &Operand<T>, order: &[(Label, usize)]) -> Result<Vec<T>, OpError> {
    let mut shape = Vec::with_capacity(order.len());
    let mut from = Vec::with_capacity(order.len());
    let own = strides(x.array.shape());
    for (l, d) in order {
        let at = x.labels.iter().position(|m| m == l);
        let have = at.map_or(1, |i| x.array.shape()[i]);
        if have != 1 && have != *d {
            invalid!("a subscript has dims {have} and {d}");
        }
        shape.push(*d);
        from.push(if have == 1 { 0 } else { at.map_or(0, |i| own[i]) });
    }
    let standard = x.array.as_standard_layout();
    let data = standard.as_slice().unwrap_or_default();
    let Some(len) = checked_len(&shape) else { invalid!("an operand of shape {shape:?} is too large") };
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(|_| OpError::Invalid(format!("an operand of shape {shape:?} does not fit memory")))?;
    let last = shape.last().copied().unwrap_or(1);
    let step = from.last().copied().unwrap_or(0);
    util::for_each_row(&shape, &[from], |_, at| out.extend((0..last).map(|i| data[at[0] + i * step])));
    Ok(out)
}

/// The dim of a label in either operand: the one that is not 1.
fn dim_of<T>(l: Label, operands: &[&Operand<T>]) -> usize {
    let dims = operands.iter().filter_map(|x| x.labels.iter().position(|m| *m == l).map(|i| x.array.shape()[i]));
    dims.fold(1, |d, e| if d == 1 { e } else { d })
}

fn einsum<T: Number>(equation: &Equation, tensors: &[Tensor], multiply: Multiply<T>) -> Result<Tensor, OpError> {
    let terms = equation.inputs.iter().zip(tensors).map(|(t, x)| labels(t, x.rank())).collect::<Result<Vec<_>, _>>()?;
    let output = output_labels(equation, &terms)?;
    let mut rest: Vec<Operand<T>> = Vec::new();
    for (i, (term, tensor)) in terms.iter().zip(tensors).enumerate() {
        let needed = |l: Label| output.contains(&l) || terms.iter().enumerate().any(|(j, t)| j != i && t.contains(&l));
        rest.push(simplify(term.clone(), tensor.view::<T>()?.to_owned(), &needed)?);
    }
    let mut left = rest.remove(0);
    while !rest.is_empty() {
        let right = rest.remove(0);
        let needed = |l: Label| output.contains(&l) || rest.iter().any(|x| x.labels.contains(&l));
        left = pair(&left, &right, &needed, multiply)?;
    }
    let order: Vec<(Label, usize)> = output.iter().map(|&l| (l, dim_of(l, &[&left]))).collect();
    let data = arrange(&left, &order)?;
    Ok(Tensor::new(order.iter().map(|o| o.1).collect::<Vec<_>>(), data)?)
}

fn pair<T: Number>(a: &Operand<T>, b: &Operand<T>, needed: &dyn Fn(Label) -> bool, multiply: Multiply<T>) -> Result<Operand<T>, OpError> {
    let both = |l: &Label| a.labels.contains(l) && b.labels.contains(l);
    let sized = |ls: Vec<Label>| ls.into_iter().map(|l| (l, dim_of(l, &[a, b]))).collect::<Vec<_>>();
    let batch = sized(a.labels.iter().copied().filter(|l| both(l) && needed(*l)).collect());
    let summed = sized(a.labels.iter().copied().filter(|l| both(l) && !needed(*l)).collect());
    let rows = sized(a.labels.iter().copied().filter(|l| !both(l)).collect());
    let cols = sized(b.labels.iter().copied().filter(|l| !both(l)).collect());
    let size = |ls: &[(Label, usize)]| ls.iter().map(|l| l.1).product::<usize>();
    let x = arrange(a, &[&batch[..], &rows, &summed].concat())?;
    let y = arrange(b, &[&batch[..], &summed, &cols].concat())?;
    let out = multiply(size(&batch), Dims { m: size(&rows), n: size(&cols), k: size(&summed) }, &x, &y)?;
    let order = [&batch[..], &rows, &cols].concat();
    let shape: Vec<usize> = order.iter().map(|l| l.1).collect();
    let array = ArrayD::from_shape_vec(IxDyn(&shape), out).map_err(|e| OpError::Invalid(e.to_string()))?;
    Ok(Operand { labels: order.into_iter().map(|l| l.0).collect(), array })
}

#[cfg(test)]
mod tests {
    use super::super::testing::run;
    use super::*;
    use crate::ir::Attrs;

    fn t(shape: &[usize]) -> Tensor {
        Tensor::new(shape, (0..shape.iter().product::<usize>()).map(|x| x as f32).collect()).unwrap()
    }

    fn check(equation: &str, inputs: &[Tensor], shape: &[usize], want: &[f32]) {
        let out = run("Einsum", 12, Attrs::new().with("equation", equation), inputs).unwrap();
        assert_eq!(out, Tensor::new(shape, want.to_vec()).unwrap(), "{equation}");
    }

    #[test]
    fn equations() {
        check("ij,jk", &[t(&[2, 2]), t(&[2, 2])], &[2, 2], &[2.0, 3.0, 6.0, 11.0]);
        check("ij->ji", &[t(&[2, 3])], &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        check("...ii ->...i", &[t(&[2, 2, 2])], &[2, 2], &[0.0, 3.0, 4.0, 7.0]);
        check("ii", &[t(&[3, 3])], &[], &[12.0]);
        check("i,i", &[t(&[3]), t(&[3])], &[], &[5.0]);
        check("b...k,kj->bj...", &[t(&[2, 1, 2]), t(&[2, 2])], &[2, 2, 1], &[2.0, 3.0, 6.0, 11.0]);
        check("i,j,k->", &[t(&[3]), t(&[3]), t(&[2])], &[], &[9.0]);
    }

    #[test]
    fn bad_equations_are_refused() {
        for equation in ["i,j", "ij->k", "i1", "ij->ii", "ijk", "i....j"] {
            assert!(run("Einsum", 12, Attrs::new().with("equation", equation), &[t(&[2, 2])]).is_err(), "{equation}");
        }
    }
}
