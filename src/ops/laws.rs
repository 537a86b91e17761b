//! Laws of the element-wise ops, tried on every dtype and on odd shapes: nothing panics, and what inference says is so.

use super::{Args, Fact, InferCtx, OpCtx, OpDef, Run};
use crate::ir::{Attrs, OpName, Type};
use crate::tensor::{DType, Shape, Tensor, Value, cast};

const FAMILIES: &[&[OpDef]] = &[
    super::activation::OPS,
    super::binary::OPS,
    super::cast::OPS,
    super::compare::OPS,
    super::cumulative::OPS,
    super::random::OPS,
    super::unary::OPS,
    super::variadic::OPS,
];

/// Attributes without which an op cannot be built.
fn attrs(name: &str) -> Attrs {
    match name {
        "BitShift" => Attrs::new().with("direction", "LEFT"),
        "Cast" => Attrs::new().with("to", 24i64),
        "BitCast" => Attrs::new().with("to", 6i64),
        "RandomNormal" | "RandomUniform" => Attrs::new().with("shape", vec![2i64, 0]),
        _ => Attrs::new(),
    }
}

/// A tensor of a dtype with zeros, extremes and NaN.
fn tensor(dtype: DType, shape: &[usize]) -> Tensor {
    let values = [0.0, -1.0, f64::INFINITY, 3.0, f64::NAN, f64::NEG_INFINITY];
    let len: usize = shape.iter().product();
    let data: Vec<f64> = (0..len).map(|i| values[i % values.len()]).collect();
    match dtype {
        DType::String => Tensor::new(shape, data.iter().map(f64::to_string).collect()).unwrap(),
        _ => cast(&Tensor::new(shape, data).unwrap(), dtype).unwrap(),
    }
}

fn fact(t: &Tensor) -> Option<Fact> {
    Some(Type::of(t.dtype(), t.shape()).into())
}

/// Infers and runs; panics if the kernel does, or if they disagree.
fn check(def: &OpDef, version: i64, inputs: Vec<Tensor>) -> bool {
    let (op, attrs) = (OpName::new(def.domain, def.name), attrs(def.name));
    let (outputs, constants) = (vec![true; def.outputs.1], vec![None; inputs.len()]);
    let cx = OpCtx { op: &op, attrs: &attrs, version, inputs: inputs.len(), outputs: &outputs, constants: &constants };
    let facts: Vec<_> = inputs.iter().map(fact).collect();
    let inferred = (def.infer)(&InferCtx { op: cx.clone(), facts: &facts });
    let Run::Kernel(build) = def.run else { panic!("{} has no kernel", def.name) };
    let what = format!("{} {version} {inputs:?}", def.name);
    let Ok(kernel) = build(&cx) else { return false };
    let Ok(found) = kernel(Args::new(inputs.into_iter().map(|t| Some(t.into())))) else { return false };
    let inferred = inferred.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(inferred.len(), found.len(), "{what}");
    for (fact, value) in inferred.iter().zip(&found) {
        let Value::Tensor(t) = value else { panic!("{what}: no tensor") };
        assert_eq!(fact.ty, Some(Type::of(t.dtype(), t.shape())), "{what}");
    }
    true
}

#[test]
fn every_dtype_and_shape_is_computed_as_inferred_or_refused() {
    let shapes: [&[usize]; 7] = [&[], &[1], &[2, 3], &[6], &[2, 0], &[2, 1, 3], &[5]];
    for def in FAMILIES.iter().flat_map(|f| f.iter()) {
        let mut ran = false;
        for &version in def.versions {
            for dtype in DType::all() {
                for a in shapes {
                    let x = || tensor(dtype, a);
                    if def.inputs.0 == 0 {
                        ran |= check(def, version, vec![]);
                    } else if def.inputs.0 == 1 {
                        ran |= check(def, version, vec![x()]);
                    }
                    for b in shapes.iter().filter(|_| def.inputs.1 > 1) {
                        ran |= check(def, version, vec![x(), tensor(dtype, b)]);
                        ran |= check(def, version, vec![x(), tensor(DType::I64, b)]);
                    }
                }
            }
        }
        assert!(ran, "{} was never computed", def.name);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let len = 100_000;
    let x = Tensor::new([len], (0..len).map(|i| (i as f32 * 0.37).sin() * 5.0).collect()).unwrap();
    let threads = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let (one, three) = (threads(1), threads(3));
    for name in ["Add", "Gelu", "Less", "Max", "Pow", "Sigmoid", "Softplus"] {
        let def = FAMILIES.iter().flat_map(|f| f.iter()).find(|d| d.name == name).unwrap();
        let inputs = if def.inputs.1 == 1 { vec![x.clone()] } else { vec![x.clone(), x.clone().reshape(Shape::from([1, len])).unwrap()] };
        let run = || super::testing::run(name, 20, Attrs::new(), &inputs).unwrap();
        assert_eq!(one.install(run), three.install(run), "{name}");
    }
}
