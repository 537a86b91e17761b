//! Passes on models: what must hold after one, and answers beside answers.
#![allow(dead_code)]

use graphtool::exec::{Options, Session};
use graphtool::ir::{Model, Type, print_model, verify};
use graphtool::passes::{Changed, FUSE, PassError};
use graphtool::tensor::{DType, Tensor, Value, cast};

/// Runs both on made inputs: numbers between -1 and 1, small integers, 3 for each dim that is a symbol.
pub fn same_answers(name: &str, plain: &Model, new: &Model) -> Result<(), String> {
    let inputs: Vec<Value> = plain.graph.inputs().iter().enumerate().map(|(k, &i)| made(k, plain.graph.type_of(i.value(0)))).collect();
    let (expected, found) = (run(plain, &inputs)?, run(new, &inputs)?);
    for ((output, a), (_, b)) in found.iter().zip(&expected) {
        let good = if exact(name) { (bits(a) == bits(b)).then_some(()).ok_or_else(|| "another bit".into()) } else { near(a, b) };
        good.map_err(|e| format!("{name}, output {output}: {e}"))?;
    }
    Ok(())
}

pub fn made(k: usize, ty: Option<&Type>) -> Value {
    let ty = ty.expect("a stated type");
    let dims: Vec<usize> = ty.shape().expect("dims").iter().map(|d| d.known().unwrap_or(3)).collect();
    let n = dims.iter().product::<usize>();
    let numbers = (0..n).map(|i| ((i * 37 + k * 11) % 41) as f32 / 20.5 - 1.0).collect();
    let dtype = ty.dtype().expect("a dtype");
    let scaled = if dtype.is_float() { 1f32 } else { 8.0 };
    let t =
        Tensor::new(dims, numbers).and_then(|t| cast(&Tensor::new(t.shape(), t.to_f32s()?.iter().map(|x| x * scaled).collect())?, dtype));
    Value::Tensor(t.expect("a tensor"))
}

/// The passes that keep every bit, and those that may round otherwise.
pub fn exact(pass: &str) -> bool {
    !FUSE.contains(&pass) || pass == "split-slices"
}

/// How far a fused result may be from the plain one: of the largest value of the tensor, 1e-5, or what half a unit in the last place
/// of its type is.
fn share(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 1e-2,
        _ => 1e-5,
    }
}

pub fn bits(v: &Value) -> String {
    match v {
        // Equality of floats would not tell -0 from 0, and NaN from itself.
        Value::Tensor(t) => format!("{}{} {}", t.dtype(), t.shape(), graphtool::ir::digest(t)),
        other => format!("{other:?}"),
    }
}

pub fn near(a: &Value, b: &Value) -> Result<(), String> {
    let (Value::Tensor(a), Value::Tensor(b)) = (a, b) else {
        return if a == b { Ok(()) } else { Err("other values".into()) };
    };
    if a.dtype() != b.dtype() || a.shape() != b.shape() {
        return Err(format!("expected {}{}, found {}{}", b.dtype(), b.shape(), a.dtype(), a.shape()));
    }
    if !a.dtype().is_float() {
        return if a == b { Ok(()) } else { Err("other elements".into()) };
    }
    let wide = |t: &Tensor| cast(t, DType::F64).and_then(Tensor::into_vec::<f64>).map_err(|e| e.to_string());
    let (x, y) = (wide(a)?, wide(b)?);
    let largest = y.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
    let limit = share(a.dtype()) * largest;
    match x.iter().zip(&y).position(|(x, y)| !(x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= limit)) {
        None => Ok(()),
        Some(i) => Err(format!("element {i}: expected {}, found {} (largest {largest})", y[i], x[i])),
    }
}

pub fn interface(model: &Model) -> String {
    let g = &model.graph;
    let inputs = g.inputs().iter().map(|&i| format!("{:?}", g.node(i).outputs[0].ty).to_owned() + g.name_of(i.value(0)));
    let outputs = g.outputs().iter().map(|o| format!("{:?}", o.ty) + g.name_of(o.value));
    inputs.chain(outputs).collect::<Vec<_>>().join("\n")
}

/// Runs a pass; the model is valid afterwards, its interface is kept, and a second run changes nothing.
pub fn apply(pass: &dyn Fn(&mut Model) -> Result<Changed, PassError>, model: &Model) -> Result<(Model, Changed), String> {
    let mut new = model.clone();
    let did = pass(&mut new).map_err(|e| e.to_string())?;
    if let Some(fault) = verify(&new).first() {
        return Err(format!("invalid: {fault}"));
    }
    if interface(&new) != interface(model) {
        return Err("the interface changed".into());
    }
    if did == Changed::No && print_model(&new) != print_model(model) {
        return Err("it changed something and says it did not".into());
    }
    let text = print_model(&new);
    if pass(&mut new).map_err(|e| e.to_string())? == Changed::Yes || print_model(&new) != text {
        return Err("a second run changes it".into());
    }
    Ok((new, did))
}

pub fn run(model: &Model, inputs: &[Value]) -> Result<Vec<(String, Value)>, String> {
    let session = Session::new(model, Options { threads: 1, ..Options::default() }).map_err(|e| e.to_string())?;
    let names: Vec<String> = session.inputs().iter().filter(|i| !i.2).map(|i| i.0.to_owned()).collect();
    let all: Vec<String> = session.inputs().iter().map(|i| i.0.to_owned()).collect();
    let names = if inputs.len() <= names.len() { names } else { all };
    session.run(names.into_iter().zip(inputs.iter().cloned()).collect()).map_err(|e| e.to_string())
}
