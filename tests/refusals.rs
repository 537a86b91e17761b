//! Every op on what it does not expect: wrong ranks, dtypes and kinds, inputs left out, empty and absurd shapes, negative dims
//! and odd attributes. It computes or it refuses; it never panics, and through a session the message names the node and op.
//!
//! `GRAPHTOOL_TRIES` is the number of calls of each op; `GRAPHTOOL_TRACE` prints each call first (with `--nocapture`), to find
//! one that ends the process.

use graphtool::exec::{ExecError, Options, Session};
use graphtool::ir::{Attr, Attrs, Graph, Kind, Model, NodeParts, OpName, Output, Parts, Residue, Type};
use graphtool::ops::{self, Args, Fact, InferCtx, OpCtx, OpDef, Run};
use graphtool::tensor::{DType, Tensor, Value};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    fn int(&mut self) -> i64 {
        match self.below(20) {
            0 => i64::MIN,
            1 => i64::MAX,
            2 => 1 << 40,
            3 => -(1 << 40),
            4 => 1 << 62,
            _ => self.below(9) as i64 - 4,
        }
    }

    fn ints(&mut self, most: usize) -> Vec<i64> {
        (0..self.below(most + 1)).map(|_| self.int()).collect()
    }

    fn tensor(&mut self) -> Tensor {
        let rank = self.below(6);
        let mut shape: Vec<usize> = (0..rank).map(|_| [0, 1, 2, 3, 4, 2, 3, 1][self.below(8)]).collect();
        if shape.contains(&0) && self.below(4) == 0 {
            shape.iter_mut().filter(|d| **d != 0).take(3).for_each(|d| *d = 1 << 20);
        }
        let n = if shape.contains(&0) { 0 } else { shape.iter().product() };
        if self.below(3) == 0 {
            return Tensor::new(shape, (0..n).map(|_| self.int()).collect()).unwrap();
        }
        if self.below(2) == 0 {
            return Tensor::new(shape, (0..n).map(|_| self.below(7) as f32 - 3.0).collect()).unwrap();
        }
        match DType::all().nth(self.below(26)).unwrap() {
            DType::String => Tensor::new(shape, (0..n).map(|i| ["a", "b c", "", "é"][i % 4].to_string()).collect()).unwrap(),
            DType::Bool => Tensor::new(shape, (0..n).map(|i| i % 2 == 0).collect()).unwrap(),
            d => {
                let bytes: Vec<u8> = (0..d.byte_len(&shape).unwrap()).map(|_| if d.is_int() { 0 } else { self.below(256) as u8 }).collect();
                Tensor::from_bytes(d, shape, bytes).unwrap().aligned()
            }
        }
    }

    fn value(&mut self) -> Option<Value> {
        match self.below(16) {
            0 => None,
            1 => Some(Value::Optional(None)),
            2 => Some(Value::Sequence(Arc::new(vec![self.tensor().into(), self.tensor().into()]))),
            3 => Some(Value::Sequence(Arc::new(vec![]))),
            4 => Some(Value::Optional(Some(Arc::new(self.tensor().into())))),
            5..8 => Some(Tensor::vector(self.ints(4)).into()),
            _ => Some(self.tensor().into()),
        }
    }

    fn attr(&mut self, name: &str) -> Attr {
        const TEXTS: [&[u8]; 12] =
            [b"constant", b"edge", b"reflect", b"CRD", b"add", b"mul", b"SAME_UPPER", b"linear", b"sum", b"bilinear", b"UPPER", b"i,j->ij"];
        let plural = name.ends_with('s') || matches!(name, "perm" | "split" | "kernel_shape" | "output_shape" | "output_padding");
        let text = matches!(
            name,
            "mode" | "reduction" | "auto_pad" | "equation" | "direction" | "approximate" | "padding_mode" | "post_transform"
        );
        match self.below(12) {
            0 => Attr::Int(self.int()),
            1 => Attr::Ints(self.ints(5)),
            2 => Attr::Float([1.5, f32::NAN, -1.0, 0.0][self.below(4)]),
            3 => Attr::Tensor(self.tensor().into()),
            4 => Attr::String(bytes::Bytes::from_static(TEXTS[self.below(12)])),
            5 => Attr::Floats((0..self.below(4)).map(|i| i as f32 - 1.0).collect()),
            6 => Attr::Strings(vec![bytes::Bytes::from_static(b"a"), bytes::Bytes::from_static(b"")]),
            _ if text => Attr::String(bytes::Bytes::from_static(TEXTS[self.below(12)])),
            _ if name.starts_with("value") => Attr::Tensor(self.tensor().into()),
            _ if plural => Attr::Ints(self.ints(5)),
            _ => Attr::Int(self.int()),
        }
    }

    fn call(&mut self, def: &OpDef) -> Call {
        let mut attrs = Attrs::new();
        for name in def.attrs {
            if self.below(3) == 0 {
                attrs.set(name, self.attr(name));
            }
        }
        let (least, most) = (def.inputs.0, def.inputs.1.min(def.inputs.0 + 4));
        let count = least + self.below(most - least + 1);
        let mut inputs: Vec<Option<Value>> = (0..count).map(|_| self.value()).collect();
        // Often of one dtype, so that more than the first check is reached.
        if self.below(2) == 0
            && let Some(first) = inputs.first().cloned()
        {
            inputs.iter_mut().skip(1).for_each(|v| {
                if self.below(2) == 0 {
                    v.clone_from(&first);
                }
            });
        }
        let version = def.versions[self.below(def.versions.len())];
        let outputs = def.outputs.0.max(1) + self.below(def.outputs.1.clamp(1, 4));
        Call { attrs, inputs, version, outputs: outputs.min(def.outputs.1) }
    }
}

#[derive(Debug)]
struct Call {
    attrs: Attrs,
    inputs: Vec<Option<Value>>,
    version: i64,
    outputs: usize,
}

fn fact(v: &Value, constant: bool) -> Fact {
    match v {
        Value::Tensor(t) => Fact { constant: constant.then(|| t.clone()), ..Type::of(t.dtype(), t.shape()).into() },
        Value::Sequence(_) => Type::Sequence(Box::new(Type::unranked(DType::F32))).into(),
        _ => Fact::unknown(),
    }
}

fn records() -> Vec<&'static OpDef> {
    ops::all().into_iter().filter(|d| matches!(d.run, Run::Kernel(_))).collect()
}

#[test]
fn no_record_panics() {
    let tries = std::env::var("GRAPHTOOL_TRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let trace = std::env::var_os("GRAPHTOOL_TRACE").is_some();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut bad: BTreeMap<String, String> = BTreeMap::new();
    for def in records() {
        let Run::Kernel(build) = def.run else { continue };
        let op = OpName::new(def.domain, def.name);
        for _ in 0..tries {
            let call = random.call(def);
            let constant = random.below(2) == 0;
            if trace {
                println!("TRY {op} {call:?}");
            }
            let facts: Vec<_> = call.inputs.iter().map(|v| v.as_ref().map(|v| fact(v, constant))).collect();
            let constants: Vec<_> = call.inputs.iter().map(|v| v.as_ref().filter(|_| constant)?.as_tensor()).collect();
            let wanted = vec![true; call.outputs];
            let (attrs, version, inputs) = (&call.attrs, call.version, call.inputs.len());
            let cx = OpCtx { op: &op, attrs, version, inputs, outputs: &wanted, constants: &constants };
            let infer = catch_unwind(AssertUnwindSafe(|| drop((def.infer)(&InferCtx { op: cx.clone(), facts: &facts }))));
            let run = catch_unwind(AssertUnwindSafe(|| drop(build(&cx).and_then(|k| k(Args::new(call.inputs.iter().cloned()))))));
            for (what, result) in [("inference", infer), ("kernel", run)] {
                if let Err(e) = result {
                    let text = e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(ToString::to_string));
                    let text = format!("{} for {call:?}", text.unwrap_or_default());
                    bad.entry(format!("{op} ({what})")).or_insert_with(|| text.chars().take(600).collect());
                }
            }
        }
    }
    assert!(bad.is_empty(), "{} panic: {bad:#?}", bad.len());
}

/// A model of one node whose inputs have no stated type.
fn model(def: &OpDef, call: &Call) -> Option<(Model, Vec<(String, Value)>)> {
    let name = |i: usize| format!("x{i}");
    let given: Vec<(String, Value)> = call.inputs.iter().enumerate().filter_map(|(i, v)| Some((name(i), v.clone()?))).collect();
    let unnamed = |name: String| Output { name, ..Output::default() };
    let node = NodeParts {
        name: "n".into(),
        op: OpName::new(def.domain, def.name),
        inputs: call.inputs.iter().enumerate().map(|(i, v)| if v.is_some() { name(i) } else { String::new() }).collect(),
        outputs: (0..call.outputs).map(|i| format!("y{i}")).collect(),
        attrs: call.attrs.clone(),
        residue: Residue::default(),
    };
    let parts = Parts {
        inputs: given.iter().map(|(n, _)| unnamed(n.clone())).collect(),
        outputs: node.outputs.iter().cloned().map(unnamed).collect(),
        nodes: vec![node],
        params: Vec::<(String, Kind)>::new(),
        ..Parts::default()
    };
    let mut model = Model { ir_version: 10, graph: Graph::from_parts(parts, false).ok()?, ..Model::default() };
    model.import_opset(def.domain, call.version);
    Some((model, given))
}

#[test]
fn through_a_session_the_message_names_node_and_op() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut bad: BTreeMap<String, String> = BTreeMap::new();
    for def in records() {
        let op = OpName::new(def.domain, def.name).to_string();
        for k in 0..6 {
            let mut call = random.call(def);
            if k == 0 && def.inputs.0 > 0 {
                call.inputs.truncate(def.inputs.0 - 1);
            }
            let Some((model, given)) = model(def, &call) else { continue };
            let result = catch_unwind(AssertUnwindSafe(|| {
                let session = Session::new(&model, Options { threads: 1, ..Options::default() })?;
                session.run(given).map(drop)
            }));
            let fault = match result {
                Err(_) => "a panic".to_owned(),
                Ok(Ok(())) if k == 0 && def.inputs.0 > 0 => "an input less is not an error".into(),
                Ok(Ok(())) => continue,
                Ok(Err(ExecError::Node { node, op: named, detail })) => match &*detail {
                    d if d.starts_with("internal error") || d.is_empty() || node != "n" || named != op => format!("{node} {named} {d}"),
                    d if k == 0 && def.inputs.0 > 0 && !(d.contains("expected") && d.contains("found")) => d.to_owned(),
                    _ => continue,
                },
                Ok(Err(other)) => other.to_string(),
            };
            bad.entry(op.clone()).or_insert_with(|| format!("{fault} for {call:?}").chars().take(600).collect());
        }
    }
    assert!(bad.is_empty(), "{} ops: {bad:#?}", bad.len());
}
