//! Attention whose scores and probabilities pass through bodies of the model.

use super::gemm::{Dims, Epilogue, Matrix, Real, product};
use super::matmul::new_out;
use super::{Args, Fact, InferCtx, Kernel, OpCtx, OpDef, OpError, Run, find, one, rows, util};
use crate::ir::{Dim, Graph, NodeId, ValueId};
use crate::tensor::{DType, Shape, Tensor, Value, cast};
use crate::{dispatch_wide, invalid, unsupported};
use std::collections::HashMap;

pub(super) const OPS: &[OpDef] = &[OpDef::new("FlexAttention", &[1])
    .domain("ai.onnx.preview")
    .inputs(3, 3)
    .attrs(&["prob_mod", "scale", "score_mod", "softmax_precision"])
    .infer(infer_flex)
    .kernel(build_flex)];

/// The opset whose ops a body is made of: the op's record does not say which the model imports.
const BODY_OPSET: i64 = 26;

/// A body of kernels alone: one tensor in, one out.
struct Body {
    constants: Vec<(ValueId, Value)>,
    input: ValueId,
    steps: Vec<Step>,
    output: ValueId,
}

struct Step {
    node: NodeId,
    kernel: Kernel,
    inputs: Vec<Option<ValueId>>,
}

impl Body {
    fn build(graph: &Graph) -> Result<Self, OpError> {
        let (&[input], [output]) = (graph.inputs(), graph.outputs()) else {
            invalid!("a modifier takes one tensor and gives one, found {} and {}", graph.inputs().len(), graph.outputs().len())
        };
        if !graph.captures().is_empty() {
            unsupported!("a modifier that reads values of the outer graph");
        }
        let order = graph.topological().map_err(|e| OpError::Invalid(e.to_string()))?;
        let constants: Vec<(ValueId, Value)> = graph
            .params()
            .iter()
            .filter_map(|id| Some((id.value(0), Value::Tensor(graph.constant(id.value(0))?.tensor.clone().aligned()))))
            .collect();
        let mut steps = Vec::new();
        for id in order {
            let node = graph.node(id);
            let Some(op) = node.op() else { continue };
            let Some(Run::Kernel(build)) = find(op).map(|d| d.run) else { unsupported!("a modifier that uses {op}") };
            let inputs = node.inputs().to_vec();
            let known: Vec<Option<&Tensor>> = inputs.iter().map(|v| graph.constant((*v)?).map(|c| &c.tensor)).collect();
            let outputs: Vec<bool> = node.outputs.iter().map(|o| !o.name.is_empty()).collect();
            let cx = OpCtx { op, attrs: &node.attrs, version: BODY_OPSET, inputs: inputs.len(), outputs: &outputs, constants: &known };
            steps.push(Step { node: id, kernel: build(&cx)?, inputs });
        }
        Ok(Self { constants, input: input.value(0), steps, output: output.value })
    }

    fn run(&self, x: Tensor) -> Result<Tensor, OpError> {
        let (dtype, shape) = (x.dtype(), x.shape().clone());
        let mut values: HashMap<ValueId, Value> = self.constants.iter().cloned().collect();
        values.insert(self.input, x.into());
        for step in &self.steps {
            let args = Args::new(step.inputs.iter().map(|v| v.and_then(|v| values.get(&v).cloned())));
            for (slot, value) in (step.kernel)(args)?.into_iter().enumerate() {
                values.insert(step.node.value(slot as u32), value);
            }
        }
        match values.remove(&self.output).and_then(Value::into_tensor) {
            Some(t) if t.dtype() == dtype && *t.shape() == shape => Ok(t),
            Some(t) => invalid!("a modifier gives {}{} for {dtype}{shape}", t.dtype(), t.shape()),
            None => invalid!("a modifier gives no tensor"),
        }
    }
}

fn infer_flex(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let shape = match (cx.shape(0), cx.shape(2)) {
        (Some([b, h, l, _]), Some([.., w])) => Some(vec![b.clone(), h.clone(), l.clone(), w.clone()]),
        (Some(s), _) if s.len() != 4 => invalid!("expected rank 4, found {}", s.len()),
        (None, _) => None,
        _ => Some(vec![Dim::Unknown; 4]),
    };
    Ok(vec![Fact::partial(cx.dtype(2), shape)])
}

/// The attributes.
struct Spec {
    scale: Option<f32>,
    precision: Option<DType>,
    score: Option<Body>,
    prob: Option<Body>,
}

fn build_flex(cx: &OpCtx) -> Result<Kernel, OpError> {
    let body = |name: &str| cx.attrs.graph(name)?.map(Body::build).transpose();
    let precision = match cx.attrs.int("softmax_precision")? {
        None => None,
        Some(code) => match i32::try_from(code).ok().and_then(DType::from_onnx).filter(|d| d.is_float() && d.bits() >= 16) {
            None => invalid!("softmax_precision {code} is no float type"),
            d => d,
        },
    };
    let spec = Spec { scale: cx.attrs.float("scale")?, precision, score: body("score_mod")?, prob: body("prob_mod")? };
    Ok(Box::new(move |args| {
        let wide = if args.tensor(0)?.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        one(dispatch_wide!(wide, T => run::<T>(&spec, &args)?))
    }))
}

fn run<T: Real>(spec: &Spec, args: &Args) -> Result<Tensor, OpError> {
    let (q, k, v) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let (&[b, h, l, e], &[bk, hk, s, ek], &[bv, hv, sv, w]) = (&q.shape()[..], &k.shape()[..], &v.shape()[..]) else {
        invalid!("expected rank 4, found shapes {}, {} and {}", q.shape(), k.shape(), v.shape())
    };
    if b != bk || b != bv || hk != hv || s != sv || e != ek || hk == 0 || !h.is_multiple_of(hk) {
        invalid!("queries {}, keys {} and values {} do not fit", q.shape(), k.shape(), v.shape());
    }
    let wide = |t: &Tensor| -> Result<Vec<T>, OpError> { Ok(cast(t, T::DTYPE)?.into_vec()?) };
    let (x, y, z) = (wide(q)?, wide(k)?, wide(v)?);
    let starts = |left: usize, right: usize| (0..b * h).map(|i| (i * left, (i / h * hk + i % h / (h / hk)) * right)).collect::<Vec<_>>();
    let scale = T::from_f64(spec.scale.map_or_else(|| 1.0 / (e as f64).sqrt(), f64::from));
    let shape = Shape::from([b, h, l, s]);
    let mut scores = new_out::<T>(&shape)?;
    let dims = Dims { m: l, n: s, k: e };
    product(dims, scale, Matrix::new(&x, e, false), Matrix::new(&y, e, true), &starts(l * e, s * e), &mut scores, &Epilogue::NONE)?;
    let precision = spec.precision.unwrap_or(T::DTYPE);
    let through = |body: &Option<Body>, data: Vec<T>| -> Result<Vec<T>, OpError> {
        match body {
            None => Ok(data),
            Some(body) => wide(&body.run(cast(&Tensor::new(&shape, data)?, precision)?)?),
        }
    };
    let mut probs = through(&spec.score, scores)?;
    util::for_each_chunk(&mut probs, s, |_, row| rows::softmax(row));
    let probs = through(&spec.prob, probs)?;
    let mut out = new_out::<T>(&Shape::from([b, h, l, w]))?;
    let dims = Dims { m: l, n: w, k: s };
    product(dims, T::ONE, Matrix::new(&probs, s, false), Matrix::new(&z, w, false), &starts(l * s, s * w), &mut out, &Epilogue::NONE)?;
    Ok(cast(&Tensor::new([b, h, l, w], out)?, v.dtype())?)
}
