//! Columns bound to a model's inputs: joins them, checks their types and dims, and cuts batches out of them.

use super::bind::Bind;
use super::error::DataError;
use super::{InputSpec, Samples, Source};
use crate::tensor::{DType, Shape, Tensor, TensorError, Value, cast};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// A file of named columns of any kind.
pub(super) trait Columns: Send + Sync {
    /// The file.
    fn path(&self) -> &Path;
    /// What there is.
    fn names(&self) -> Vec<String>;
    /// The first dim of each; `None` for one without dims.
    fn lengths(&self, names: &[&str]) -> Result<Vec<Option<usize>>, DataError>;
    /// The samples of a range, or all as they stand. A text file takes the dtype that is asked for, an array has its own.
    fn read(&self, names: &[(&str, Option<DType>)], range: Option<Range<usize>>) -> Result<Vec<Tensor>, DataError>;
}

/// The rows of a tensor, on their alignment; a view where they are.
///
/// # Errors
/// Rows that are not there, a scalar, and elements that fill no whole bytes.
pub fn rows(t: &Tensor, range: Range<usize>) -> Result<Tensor, TensorError> {
    let count = t.shape().first().copied().unwrap_or(0);
    if range.start > range.end || range.end > count {
        return Err(TensorError::Shape(format!("samples {range:?} of {count}")));
    }
    let mut shape = t.shape().clone();
    if shape.is_empty() {
        return Err(TensorError::Shape("a scalar has no samples".into()));
    }
    let row: usize = shape[1..].iter().product();
    shape[0] = range.len();
    if t.dtype() == DType::String {
        return Tensor::new(shape, t.as_slice::<String>()?[range.start * row..range.end * row].to_vec());
    }
    let size = t.dtype().size().ok_or_else(|| TensorError::Shape(format!("{} has no rows of whole bytes", t.dtype())))?;
    let bytes = t.shared_bytes().ok_or(TensorError::Absent)?;
    Ok(Tensor::from_bytes(t.dtype(), shape, bytes.slice(range.start * row * size..range.end * row * size))?.aligned())
}

/// An input with what it is made of.
struct Input {
    spec: InputSpec,
    columns: Vec<String>,
}

/// A [`Source`] over columns.
pub(super) struct Bound<C> {
    columns: C,
    inputs: Vec<Input>,
    samples: Samples,
}

/// A few names, for messages.
pub(super) fn listed(names: &[String]) -> String {
    let more = if names.len() > 12 { ", …" } else { "" };
    if names.is_empty() { "nothing".into() } else { format!("{}{more}", names[..names.len().min(12)].join(", ")) }
}

impl<C: Columns> Bound<C> {
    pub fn new(columns: C, specs: &[InputSpec], binds: &[Bind]) -> Result<Self, DataError> {
        let names = columns.names();
        let mut bound: HashMap<&str, &Bind> = HashMap::new();
        for bind in binds {
            if !specs.iter().any(|s| s.name == bind.input) {
                let inputs: Vec<_> = specs.iter().map(|s| s.name.clone()).collect();
                return Err(DataError::Bind(format!("binding of {:?}: the model has the inputs {}", bind.input, listed(&inputs))));
            }
            if bound.insert(&bind.input, bind).is_some() {
                return Err(DataError::Bind(format!("input {:?} is bound twice", bind.input)));
            }
        }
        let mut inputs = Vec::new();
        for spec in specs {
            let wanted = bound.get(spec.name.as_str()).map_or_else(|| vec![spec.name.clone()], |b| b.columns.clone());
            if let Some(missing) = wanted.iter().find(|c| !names.contains(c)) {
                if spec.optional && !bound.contains_key(spec.name.as_str()) {
                    continue;
                }
                let what = format!("no column {missing:?} in {}, which has {}", columns.path().display(), listed(&names));
                return Err(DataError::Input { input: spec.name.clone(), what });
            }
            inputs.push(Input { spec: spec.clone(), columns: wanted });
        }
        let used: Vec<&str> = inputs.iter().flat_map(|i| i.columns.iter().map(String::as_str)).collect();
        let samples = count(&used, &columns.lengths(&used)?);
        Ok(Self { columns, inputs, samples })
    }
}

/// How many samples columns of these lengths hold.
fn count(names: &[&str], lengths: &[Option<usize>]) -> Samples {
    let Some(&first) = lengths.first() else { return Samples::Count(0) };
    for (name, &length) in names.iter().zip(lengths) {
        match length {
            None => return Samples::Whole(format!("{name:?} has no sample axis")),
            _ if length != first => {
                let (a, b) = (first.unwrap_or(0), length.unwrap_or(0));
                return Samples::Whole(format!("the first axis of {:?} is {a}, that of {name:?} is {b}", names[0]));
            }
            _ => {}
        }
    }
    Samples::Count(first.unwrap_or(0))
}

impl<C: Columns> Source for Bound<C> {
    fn samples(&self) -> &Samples {
        &self.samples
    }

    fn read(&self, range: Range<usize>) -> Result<Vec<(String, Value)>, DataError> {
        let names = self.inputs.iter().flat_map(|i| i.columns.iter().map(|c| (c.as_str(), Some(i.spec.dtype))));
        let range = matches!(self.samples, Samples::Count(_)).then_some(range);
        let mut tensors = self.columns.read(&names.collect::<Vec<_>>(), range)?.into_iter();
        let one = |input: &Input| {
            let parts: Vec<Tensor> = tensors.by_ref().take(input.columns.len()).collect();
            let tensor = join(&input.spec, &input.columns, parts);
            let tensor =
                tensor.and_then(|t| fit(&input.spec, t)).map_err(|what| DataError::Input { input: input.spec.name.clone(), what })?;
            Ok((input.spec.name.clone(), tensor.into()))
        };
        self.inputs.iter().map(one).collect()
    }

    fn column(&self, name: &str, range: Range<usize>) -> Result<Vec<f64>, DataError> {
        let tensor = self.one(name, Some(DType::F64), range)?;
        let fault = |what: String| DataError::member(self.columns.path(), name, what);
        if tensor.shape()[1..].iter().any(|&d| d != 1) {
            return Err(fault(format!("expected one number per sample, found {}{}", tensor.dtype(), tensor.shape())));
        }
        cast(&tensor, DType::F64).and_then(Tensor::into_vec).map_err(|e| fault(e.to_string()))
    }

    fn tensor(&self, name: &str, range: Range<usize>) -> Result<Tensor, DataError> {
        self.one(name, None, range)
    }
}

impl<C: Columns> Bound<C> {
    /// A column that need not be an input; it has as many samples as they.
    fn one(&self, name: &str, dtype: Option<DType>, range: Range<usize>) -> Result<Tensor, DataError> {
        let fault = |what: String| DataError::member(self.columns.path(), name, what);
        let names = self.columns.names();
        if !names.iter().any(|n| n == name) {
            return Err(fault(format!("no such column, there is {}", listed(&names))));
        }
        let length = self.columns.lengths(&[name])?.into_iter().next().flatten();
        match (length, &self.samples) {
            (None, _) => return Err(fault("has no sample axis".into())),
            (Some(n), Samples::Count(samples)) if n != *samples => {
                return Err(fault(format!("has {n} samples, the inputs have {samples}")));
            }
            _ => {}
        }
        self.columns.read(&[(name, dtype)], Some(range))?.into_iter().next().ok_or_else(|| fault("no such column".into()))
    }
}

/// One tensor of all parts: a single one as it stands, several side by side.
fn join(spec: &InputSpec, names: &[String], mut parts: Vec<Tensor>) -> Result<Tensor, String> {
    if parts.len() == 1 {
        let t = parts.remove(0);
        let column = t.rank() == 1 && spec.dims.as_ref().is_some_and(|d| d.len() == 2);
        let shape = Shape::from_dims(t.shape().iter().copied().chain(column.then_some(1)));
        return t.reshape(shape).map_err(|e| e.to_string());
    }
    let (dtype, count) = parts.first().map(|t| (t.dtype(), t.shape().first().copied().unwrap_or(0))).ok_or("no columns")?;
    let mut widths = Vec::new();
    for (name, t) in names.iter().zip(&parts) {
        if t.dtype() != dtype {
            return Err(format!("columns of one type are needed, found {dtype} {:?} and {} {name:?}", names[0], t.dtype()));
        }
        match t.shape()[..] {
            [n] if n == count => widths.push(1),
            [n, k] if n == count => widths.push(k),
            _ => return Err(format!("column {name:?} of {}{} cannot be joined with others of {count} samples", t.dtype(), t.shape())),
        }
    }
    let shape = [count, widths.iter().sum()];
    if dtype == DType::String {
        let texts = parts.iter().map(|t| t.as_slice::<String>().map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()?;
        let row = |i: usize| texts.iter().zip(&widths).flat_map(move |(t, &w)| t[i * w..(i + 1) * w].iter().cloned());
        return Tensor::new(shape, (0..count).flat_map(row).collect()).map_err(|e| e.to_string());
    }
    let size = dtype.size().ok_or_else(|| format!("columns of {dtype} cannot be joined"))?;
    let bytes: Vec<_> = parts.iter().map(|t| t.bytes().unwrap_or_default()).collect();
    let mut all = Vec::with_capacity(bytes.iter().map(|b| b.len()).sum());
    for i in 0..count {
        for (b, w) in bytes.iter().zip(&widths) {
            all.extend_from_slice(&b[i * w * size..(i + 1) * w * size]);
        }
    }
    Tensor::from_bytes(dtype, shape, all).map(Tensor::aligned).map_err(|e| e.to_string())
}

/// The tensor in the input's dtype and with its dims. Integers become others that hold every value, floats and integers become
/// wider floats, and dtypes that numpy has no name for are taken from their bits.
pub(super) fn fit(spec: &InputSpec, t: Tensor) -> Result<Tensor, String> {
    let t = retype(t, spec.dtype)?;
    let Some(dims) = &spec.dims else { return Ok(t) };
    let shown = || {
        let dims: Vec<String> = dims.iter().map(|d| d.map_or("?".into(), |d| d.to_string())).collect();
        format!("{}[{}]", spec.dtype, dims.join(","))
    };
    // The first axis counts samples: a model that fixes it is told by the run, which knows the batch.
    let fits = dims.len() == t.rank() && dims.iter().zip(t.shape().iter()).skip(1).all(|(d, &n)| d.is_none_or(|d| d == n));
    if fits { Ok(t) } else { Err(format!("expected {}, found {}{}", shown(), t.dtype(), t.shape())) }
}

fn retype(t: Tensor, to: DType) -> Result<Tensor, String> {
    let from = t.dtype();
    if from == to {
        return Ok(t);
    }
    let refuse = || format!("expected {to}, found {from}{}", t.shape());
    let by_bits = matches!(
        (from, to),
        (DType::U16, DType::BF16) | (DType::U8, DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ | DType::F8E8M0)
    );
    if by_bits {
        let bytes = t.shared_bytes().ok_or_else(refuse)?;
        return Tensor::from_bytes(to, t.shape(), bytes).map_err(|e| e.to_string());
    }
    let integral = |d: DType| d.is_int() || d == DType::Bool;
    let wider = from.is_float() && to.is_float() && to.bits() > from.bits() || from.is_int() && matches!(to, DType::F32 | DType::F64);
    if !(wider || integral(from) && integral(to)) {
        return Err(refuse());
    }
    let out = cast(&t, to).map_err(|e| e.to_string())?;
    // Exact, or refused: an id that wraps would be another id.
    let back = cast(&out, from).map_err(|e| e.to_string())?;
    let same_sign = !(integral(from) && integral(to)) || signs(&t)? == signs(&out)?;
    if !same_sign || back.bytes() != t.bytes() && integral(from) {
        return Err(format!("{}: values do not fit", refuse()));
    }
    Ok(out)
}

/// Which of the integers are below zero.
fn signs(t: &Tensor) -> Result<Vec<bool>, String> {
    let signed = t.dtype().is_signed_int();
    Ok(t.to_i64s().map_err(|e| e.to_string())?.into_iter().map(|x| signed && x < 0).collect())
}
