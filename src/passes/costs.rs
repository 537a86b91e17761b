//! What a run of a model costs: arithmetic and memory traffic of each node, as far as the dims are known.

use super::{InferShapes, Pass, Report, output_types};
use crate::ir::{Dim, Edit, Graph, Kind, Model, Names, NodeId, Type, ValueId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What one node costs each time it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// The bodies that it is in, and its name.
    pub node: String,
    /// Its op.
    pub op: String,
    /// Additions, products and function values of elements; nothing where a dim is not known, or the op.
    pub flops: Option<u64>,
    /// Bytes of all operands and results.
    pub bytes: Option<u64>,
    /// It is in a body that runs any number of times.
    pub repeated: bool,
}

/// The costs of all nodes of a model whose symbols stand for these numbers.
#[derive(Debug, Default)]
pub struct Costs {
    /// In the order of the graph, those in bodies after the node that runs them.
    pub nodes: Vec<Cost>,
    /// Symbols of the inputs that no number was given for.
    pub unbound: BTreeSet<String>,
    /// Symbols that were given and that no input has.
    pub unknown: BTreeSet<String>,
}

/// Counts what a run costs. `batch` stands for the outermost dim of each input where it is no number.
pub fn costs(model: &Model, symbols: &BTreeMap<String, usize>, batch: Option<usize>) -> Costs {
    let mut model = model.clone();
    let mut out = Costs { unknown: symbols.keys().cloned().collect(), ..Costs::default() };
    let symbols = bind(&mut model, symbols, batch, &mut out);
    let _ = InferShapes.run(&mut model, &mut Report::default());
    // Results are stated by the interface, in symbols of its own.
    let known = |t: Option<&Type>| t.and_then(Type::shape).is_some_and(|s| s.iter().all(|d| d.known().is_some()));
    let stated = model.graph.outputs().iter().all(|o| known(model.graph.type_of(o.value)));
    let results = if stated { Vec::new() } else { output_types(&model) };
    let mut edit = model.graph.edit("costs");
    let values: Vec<ValueId> = edit.graph().outputs().iter().map(|o| o.value).collect();
    for (v, ty) in values.into_iter().zip(results) {
        if let Some(ty) = ty.filter(|t| t.shape().is_some()) {
            edit.set_type(v, ty);
        }
    }
    let _ = edit.commit(&mut Names::default());
    // What the file states of a bound symbol is a fact as well.
    let bound = |d: &Dim| match d {
        Dim::Known(n) => Some(*n),
        Dim::Symbol(s) => symbols.get(&**s).copied(),
        Dim::Unknown => None,
    };
    graph(&model.graph, "", false, &bound, &HashMap::new(), &mut out.nodes);
    out
}

/// Puts numbers for symbols; all that have one.
fn bind(model: &mut Model, symbols: &BTreeMap<String, usize>, batch: Option<usize>, out: &mut Costs) -> BTreeMap<String, usize> {
    let mut names = Names::default();
    let mut given = symbols.clone();
    for &id in model.graph.inputs() {
        let dims = model.graph.type_of(id.value(0)).and_then(Type::shape).unwrap_or_default();
        if let (Some(Dim::Symbol(s)), Some(n)) = (dims.first(), batch) {
            given.entry(s.to_string()).or_insert(n);
        }
    }
    let mut edit: Edit = model.graph.edit("costs");
    for id in edit.graph().inputs().to_vec() {
        let Some(Type::Tensor { dtype, shape: Some(dims) }) = edit.graph().type_of(id.value(0)).cloned() else { continue };
        let mut bound = Vec::with_capacity(dims.len());
        for (i, d) in dims.into_iter().enumerate() {
            bound.push(match &d {
                Dim::Symbol(s) => {
                    out.unknown.remove(&**s);
                    match given.get(&**s) {
                        Some(&n) => Dim::Known(n),
                        None => {
                            out.unbound.insert(s.to_string());
                            d
                        }
                    }
                }
                Dim::Unknown if i == 0 && batch.is_some() => Dim::Known(batch.unwrap_or(1)),
                _ => d,
            });
        }
        edit.set_type(id.value(0), Type::Tensor { dtype, shape: Some(bound) });
    }
    let _ = edit.commit(&mut names);
    given
}

/// Dims and bits of an element.
type Size = (Vec<usize>, usize);

fn graph(
    g: &Graph,
    place: &str,
    repeated: bool,
    bound: &dyn Fn(&Dim) -> Option<usize>,
    around: &HashMap<String, Size>,
    out: &mut Vec<Cost>,
) {
    let size = |v: ValueId| -> Option<Size> {
        if matches!(g.node(v.node).kind, Kind::Capture) {
            return around.get(g.name_of(v)).cloned();
        }
        let ty = g.type_of(v)?;
        let dims = ty.shape()?.iter().map(bound).collect::<Option<Vec<_>>>()?;
        Some((dims, ty.dtype()?.bits()))
    };
    let mut inner: HashMap<String, Size> = around.clone();
    for id in g.nodes() {
        for slot in 0..g.node(id).outputs.len() as u32 {
            if let Some(s) = size(id.value(slot)) {
                inner.insert(g.name_of(id.value(slot)).to_owned(), s);
            }
        }
    }
    for &id in g.ops() {
        let node = g.node(id);
        let Some(op) = node.op() else { continue };
        let name = format!("{place}{}", node.label());
        let inputs: Vec<Option<Size>> = node.inputs().iter().map(|v| v.and_then(&size)).collect();
        let outputs: Vec<Option<Size>> = (0..node.outputs.len() as u32).map(|s| size(id.value(s))).collect();
        let given = node.inputs().iter().zip(&inputs).all(|(v, s)| v.is_none() || s.is_some());
        let made = node.outputs.iter().zip(&outputs).all(|(o, s)| o.name.is_empty() || s.is_some());
        let total = || inputs.iter().chain(&outputs).flatten().try_fold(0u64, |n, s| n.checked_add(bytes(s)?));
        let own = if &*op.name == "Constant" { Some(0) } else { (given && made).then(total).flatten() };
        let bodies = node.has_bodies();
        let flops = if bodies { None } else { flops(g, id, &inputs, &outputs) };
        // A lookup reads the rows that it gives, not the table.
        let own = match (&*op.name, &outputs[..], &inputs[..]) {
            ("Gather" | "GatherND" | "GatherElements" | "Lookup", [Some(o)], [_, Some(i), ..]) => {
                bytes(o).and_then(|b| b.checked_mul(2)?.checked_add(bytes(i)?))
            }
            _ => own,
        };
        out.push(Cost { node: name.clone(), op: op.to_string(), flops, bytes: own.filter(|_| !bodies), repeated });
        let again = repeated || matches!(&*op.name, "Loop" | "Scan" | "SequenceMap");
        for (attr, value) in node.attrs.iter() {
            value.graphs().iter().for_each(|b| graph(b, &format!("{name}.{attr}/"), again, bound, &inner, out));
        }
    }
}

fn bytes(s: &Size) -> Option<u64> {
    Some((elements(&s.0)?.checked_mul(s.1 as u64)?).div_ceil(8))
}

fn elements(dims: &[usize]) -> Option<u64> {
    dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))
}

/// Arithmetic on elements; moving them is none.
fn flops(g: &Graph, id: NodeId, inputs: &[Option<Size>], outputs: &[Option<Size>]) -> Option<u64> {
    let node = g.node(id);
    let op = node.op()?;
    let input = |i: usize| inputs.get(i)?.as_ref().map(|s| s.0.as_slice());
    let out = || outputs.first()?.as_ref().and_then(|s| elements(&s.0));
    let name = &*op.name;
    let twice = |n: u64, k: usize| n.checked_mul(2)?.checked_mul(k as u64);
    match name {
        _ if MOVES.contains(&name) => Some(0),
        "MatMul" | "MatMulInteger" | "FusedMatMul" | "QLinearMatMul" => twice(out()?, *input(0)?.last()?),
        "Gemm" | "FusedGemm" => {
            let a = input(0)?;
            let depth = if node.attrs.int_or("transA", 0).ok()? != 0 { a.first()? } else { a.last()? };
            let bias = if node.inputs().len() > 2 { out()? } else { 0 };
            twice(out()?, *depth)?.checked_add(bias)
        }
        "Conv" | "ConvInteger" | "QLinearConv" => {
            let kernel = input(if name == "QLinearConv" { 3 } else { 1 })?;
            let each = kernel.get(1..)?.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
            twice(out()?, each)
        }
        "ConvTranspose" => {
            let each = input(1)?.get(1..)?.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
            twice(elements(input(0)?)?, each)
        }
        "LSTM" | "GRU" | "RNN" => {
            let (x, w, r) = (input(0)?, input(1)?, input(2)?);
            let steps = elements(x.get(..2)?)?;
            let each = elements(w)?.checked_add(elements(r)?)?;
            steps.checked_mul(each)?.checked_mul(2)
        }
        "Softmax" | "LogSoftmax" => out()?.checked_mul(5),
        _ if name.contains("Normalization") => out()?.checked_mul(8),
        _ if name.starts_with("Reduce") || name.starts_with("Arg") || name == "GlobalAveragePool" => elements(input(0)?),
        "AveragePool" | "MaxPool" => {
            let kernel = node.attrs.ints("kernel_shape").ok()??;
            out()?.checked_mul(kernel.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))?)
        }
        "Sum" | "Mean" | "Max" | "Min" => out()?.checked_mul(node.inputs().len().saturating_sub(1) as u64),
        _ if op.domain.is_empty() && ELEMENTS.contains(&name) => out(),
        _ => None,
    }
}

/// Ops that only move elements, or look rows up.
const MOVES: &[&str] = &[
    "Barrier",
    "Broadcast",
    "Cast",
    "CastLike",
    "Compress",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "DepthToSpace",
    "EyeLike",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Lookup",
    "OneHot",
    "Pad",
    "Positions",
    "Range",
    "RemoteLookup",
    "Reshape",
    "ReverseSequence",
    "RowIds",
    "ScatterElements",
    "ScatterND",
    "Shape",
    "Size",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
];

/// Ops with one operation for each element of the result.
const ELEMENTS: &[&str] = &[
    "Abs",
    "Acos",
    "Add",
    "And",
    "Asin",
    "Atan",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "CumSum",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "QuantizeLinear",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Xor",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::parse_model;

    fn of(text: &str, symbols: &[(&str, usize)], batch: Option<usize>) -> Vec<(Option<u64>, Option<u64>)> {
        let symbols = symbols.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        costs(&parse_model(text).unwrap(), &symbols, batch).nodes.into_iter().map(|c| (c.flops, c.bytes)).collect()
    }

    const MODEL: &str = "model ir_version=8 opset=[\"\"=13]\ngraph g(x: float32[n,4], ids: int64[n]) -> (y) {\n  param W: float32[4,3] = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]\n  param T: float32[2,3] = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]\n  h = MatMul(x, W)\n  e = Gather(T, ids)\n  s = Add(h, e)\n  y = ReduceSum(s) {keepdims=0}\n}";

    #[test]
    fn products_sums_and_lookups_are_counted() {
        // 5 rows: 5·3 results of 4 products and sums; rows are read and written, their ids read; 15 sums; 15 sums.
        let right = [(120, 80 + 48 + 60), (0, 60 + 60 + 40), (15, 180), (15, 64)];
        for found in [of(MODEL, &[("n", 5)], None), of(MODEL, &[], Some(5))] {
            assert_eq!(found, right.map(|(f, b)| (Some(f), Some(b))));
        }
    }

    #[test]
    fn what_is_not_bound_is_not_known() {
        let found = of(MODEL, &[], None);
        assert_eq!(found[0], (None, None));
        assert_eq!(found[1].0, Some(0));
        let costs = costs(&parse_model(MODEL).unwrap(), &[("m".to_owned(), 3)].into(), None);
        assert_eq!(costs.unbound.into_iter().collect::<Vec<_>>(), ["n"]);
        assert_eq!(costs.unknown.into_iter().collect::<Vec<_>>(), ["m"]);
    }
}
