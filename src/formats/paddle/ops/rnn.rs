//! Recurrent networks: `rnn` of padded batches, `gru` and `lstm` of sequences, single steps.

use super::sequence::{self, Offsets};
use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::{Attr, Attrs};
use crate::tensor::{DType, Tensor};

pub(super) const OPS: &[(&str, Translate)] = &[("dynamic_gru", gru), ("gru", gru), ("gru_unit", gru_unit), ("lstm", lstm), ("rnn", rnn)];

/// Blocks of rows in another order.
fn reorder(tx: &mut Tx, weight: &str, order: &[usize]) -> String {
    let parts = tx.several("Split", &[weight], order.len(), Attrs::new().with("axis", 0).with("num_outputs", order.len() as i64));
    let parts: Vec<&str> = order.iter().map(|&i| parts[i].as_str()).collect();
    tx.node("Concat", &parts, Attrs::new().with("axis", 0))
}

/// A cell: its name, its gates in the order that ONNX has them, its attributes.
fn cell(mode: &str) -> Result<(&'static str, &'static [usize], Attrs), String> {
    let tanh = |f: &str| Attrs::new().with("activations", Attr::Strings(vec![f.as_bytes().to_vec().into()]));
    Ok(match mode {
        // Input, forget, cell, output → input, output, forget, cell.
        "LSTM" => ("LSTM", &[0, 3, 1, 2], Attrs::new()),
        // Reset, update, new → update, reset, new.
        "GRU" => ("GRU", &[1, 0, 2], Attrs::new().with("linear_before_reset", 1)),
        "RNN_TANH" => ("RNN", &[0], tanh("Tanh")),
        "RNN_RELU" => ("RNN", &[0], tanh("Relu")),
        other => return Err(format!("mode {other} has no translation")),
    })
}

fn rnn(tx: &mut Tx, op: &OpDesc) -> Done {
    let (onnx, order, attrs) = cell(&op.text("mode", "LSTM"))?;
    let (layers, both) = (op.int("num_layers", 1).clamp(0, 1024) as usize, op.flag("is_bidirec", false));
    let ways = if both { 2 } else { 1 };
    let mut x = tx.input(op, "Input")?;
    let (states, weights) = (tx.inputs(op, "PreState")?, tx.inputs(op, "WeightList")?);
    if weights.len() != 4 * ways * layers {
        return Err(format!("expected {} weights for {layers} layers, found {}", 4 * ways * layers, weights.len()));
    }
    let lengths = match tx.opt(op, "SequenceLength")? {
        Some(n) => tx.cast(&n, DType::I32),
        None => String::new(),
    };
    let biases = &weights[2 * ways * layers..];
    let mut lasts: Vec<Vec<String>> = vec![Vec::new(); if onnx == "LSTM" { 2 } else { 1 }];
    for layer in 0..layers {
        let first = tx.ints(&[0]);
        let mut stacked = Vec::new();
        for (list, kind) in [(&weights[..], 0), (&weights[..], 1), (biases, 0), (biases, 1)] {
            let mut ways_of = Vec::new();
            for way in 0..ways {
                let w = reorder(tx, &list[2 * (layer * ways + way) + kind], order);
                ways_of.push(tx.plain("Unsqueeze", &[&w, &first]));
            }
            let ways_of: Vec<&str> = ways_of.iter().map(String::as_str).collect();
            stacked.push(tx.node("Concat", &ways_of, Attrs::new().with("axis", 0)));
        }
        let bias = tx.node("Concat", &[&stacked[2], &stacked[3]], Attrs::new().with("axis", 1));
        let (from, to) = (tx.ints(&[(layer * ways) as i64]), tx.ints(&[((layer + 1) * ways) as i64]));
        let begun: Vec<String> = states.iter().map(|s| tx.plain("Slice", &[s, &from, &to, &first])).collect();
        let mut inputs = vec![x.as_str(), &stacked[0], &stacked[1], &bias, &lengths];
        inputs.extend(begun.iter().map(String::as_str));
        let attrs = attrs.clone().with("hidden_size", op.int("hidden_size", 1));
        let attrs = if both { attrs.with("direction", "bidirectional") } else { attrs };
        // An activation is said once per direction.
        let attrs = match (onnx, both) {
            ("RNN", true) => {
                let name: bytes::Bytes = if op.text("mode", "") == "RNN_RELU" { "Relu".into() } else { "Tanh".into() };
                attrs.with("activations", Attr::Strings(vec![name.clone(), name]))
            }
            _ => attrs,
        };
        let outs = tx.several(onnx, &inputs, 1 + lasts.len(), attrs);
        let y = tx.node("Transpose", &[&outs[0]], Attrs::new().with("perm", vec![0, 2, 1, 3]));
        let shape = tx.ints(&[0, 0, -1]);
        x = tx.plain("Reshape", &[&y, &shape]);
        lasts.iter_mut().zip(&outs[1..]).for_each(|(all, last)| all.push(last.clone()));
    }
    tx.give(op, "Out", &x)?;
    for (all, var) in lasts.iter().zip(op.outs("State")) {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        tx.out_var(var, "Concat", &all, Attrs::new().with("axis", 0));
    }
    Ok(())
}

fn activation(name: &str) -> Result<&'static str, String> {
    Ok(match name {
        "sigmoid" => "Sigmoid",
        "tanh" => "Tanh",
        "relu" => "Relu",
        "identity" => "Affine",
        other => return Err(format!("activation {other} has no translation")),
    })
}

/// Rows of samples side by side, [longest, samples, width], with what is needed to go back.
struct Padded {
    values: String,
    places: String,
    lengths: String,
}

fn padded(tx: &mut Tx, x: &str, of: &Offsets, zero: &str) -> Padded {
    let first = tx.ints(&[0]);
    let longest = tx.node("ReduceMax", &[&of.lengths, &first], Attrs::new().with("keepdims", 1));
    let (rows, samples) = (sequence::row_numbers(tx, of), sequence::samples(tx, of));
    let from = sequence::at(tx, &of.starts, &samples);
    let step = tx.plain("Sub", &[&rows, &from]);
    let last = tx.ints(&[1]);
    let (a, b) = (tx.plain("Unsqueeze", &[&step, &last]), tx.plain("Unsqueeze", &[&samples, &last]));
    let places = tx.node("Concat", &[&a, &b], Attrs::new().with("axis", 1));
    let (count, tail) = (tx.plain("Shape", &[&of.lengths]), tx.node("Shape", &[x], Attrs::new().with("start", 1)));
    let shape = tx.node("Concat", &[&longest, &count, &tail], Attrs::new().with("axis", 0));
    let empty = tx.plain("Expand", &[zero, &shape]);
    let values = tx.plain("ScatterND", &[&empty, &places, x]);
    let lengths = tx.cast(&of.lengths, DType::I32);
    Padded { values, places, lengths }
}

/// Input weights of ONNX that give gate `g` the columns of block `from`, times ±1.
fn picks(tx: &mut Tx, op: &OpDesc, gates: &[(usize, f32)], size: usize) -> Result<String, String> {
    let wide = gates.len() * size;
    let mut w = vec![0f32; wide * wide];
    for (g, &(from, sign)) in gates.iter().enumerate() {
        for i in 0..size {
            w[(g * size + i) * wide + from * size + i] = sign;
        }
    }
    let dtype = tx.dtype_in(op, "Input")?;
    let w = Tensor::new([1, wide, wide], w).and_then(|t| crate::tensor::cast(&t, dtype)).map_err(|e| e.to_string())?;
    Ok(tx.constant("picks", w))
}

/// The width of a state, from the recurrent weight.
fn state_size(tx: &Tx, op: &OpDesc) -> Result<usize, String> {
    let rows = tx.dims_in(op, "Weight")?.first().copied().unwrap_or(-1);
    usize::try_from(rows).ok().filter(|n| (1..=2048).contains(n)).ok_or_else(|| format!("expected a state of 1 to 2048, found {rows}"))
}

/// Blocks of columns of [size, k·size] as rows of [1, k·size, size], each times ±1.
fn turned(tx: &mut Tx, op: &OpDesc, blocks: &[(String, f32)]) -> Result<String, String> {
    let mut rows = Vec::new();
    for (block, sign) in blocks {
        let t = tx.node("Transpose", &[block], Attrs::new().with("perm", vec![1, 0]));
        let sign = tx.like(op, "Input", f64::from(*sign))?;
        rows.push(tx.plain("Mul", &[&t, &sign]));
    }
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let all = tx.node("Concat", &rows, Attrs::new().with("axis", 0));
    let first = tx.ints(&[0]);
    Ok(tx.plain("Unsqueeze", &[&all, &first]))
}

/// A GRU over the rows of each sample, which are projected already: update, reset, candidate.
fn gru(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "Input")?;
    let of = sequence::offsets(tx, op.ins("Input").first().map_or("", String::as_str))?;
    let size = state_size(tx, op)?;
    // Its new state is (1 − u)·h + u·c, where ONNX has z·h + (1 − z)·c: z is the sigmoid of what is negated.
    let sign = if op.flag("origin_mode", false) { 1.0 } else { -1.0 };
    if op.text("gate_activation", "sigmoid") != "sigmoid" {
        return Err("gate activations but sigmoid have no translation".into());
    }
    let gates = [(0, sign), (1, 1.0), (2, 1.0)];
    let w = picks(tx, op, &gates, size)?;
    // The weight is two blocks in its memory: [size, 2·size], then [size, size].
    let weight = tx.input(op, "Weight")?;
    let (flat, k, n) = (tx.ints(&[-1]), tx.ints(&[(2 * size * size) as i64]), size as i64);
    let (zero, ahead) = (tx.ints(&[0]), tx.ints(&[i64::MAX]));
    let weight = tx.plain("Reshape", &[&weight, &flat]);
    let (gate, new) = (tx.plain("Slice", &[&weight, &zero, &k]), tx.plain("Slice", &[&weight, &k, &ahead]));
    let (wide, square) = (tx.ints(&[n, 2 * n]), tx.ints(&[n, n]));
    let (gate, new) = (tx.plain("Reshape", &[&gate, &wide]), tx.plain("Reshape", &[&new, &square]));
    let gate = tx.several("Split", &[&gate], 2, Attrs::new().with("axis", 1).with("num_outputs", 2));
    let r = turned(tx, op, &[(gate[0].clone(), sign), (gate[1].clone(), 1.0), (new, 1.0)])?;
    let mut bias = String::new();
    if let Some(b) = tx.opt(op, "Bias")? {
        let column = tx.ints(&[3 * n]);
        let b = tx.plain("Reshape", &[&b, &column]);
        let signs: Vec<f32> = [sign, 1.0, 1.0].iter().flat_map(|&s| std::iter::repeat_n(s, size)).collect();
        let signs = tx.constant("signs", Tensor::vector(signs));
        let b = tx.plain("Mul", &[&b, &signs]);
        let nothing = tx.constant("nothing", Tensor::vector(vec![0f32; 3 * size]));
        let b = tx.node("Concat", &[&b, &nothing], Attrs::new().with("axis", 0));
        bias = tx.plain("Unsqueeze", &[&b, &zero]);
    }
    let candidate = activation(&op.text("activation", "tanh"))?;
    let begun = begin(tx, op, "H0")?;
    let extra: Vec<&str> = begun.iter().map(String::as_str).collect();
    let attrs = Attrs::new().with("activations", Attr::Strings(vec!["Sigmoid".into(), candidate.into()]));
    run(tx, op, &x, &of, ("GRU", attrs, size), &[&w, &r, &bias], &extra, &["Hidden"])
}

fn begin(tx: &mut Tx, op: &OpDesc, parameter: &str) -> Result<Option<String>, String> {
    let Some(h) = tx.opt(op, parameter)? else { return Ok(None) };
    let first = tx.ints(&[0]);
    Ok(Some(tx.plain("Unsqueeze", &[&h, &first])))
}

/// The node over padded samples, and its states back in rows.
#[allow(clippy::too_many_arguments)]
fn run(
    tx: &mut Tx,
    op: &OpDesc,
    x: &str,
    of: &Offsets,
    (onnx, attrs, size): (&str, Attrs, usize),
    weights: &[&str; 3],
    extra: &[&str],
    outs: &[&str],
) -> Done {
    let zero = tx.like(op, "Input", 0.0)?;
    let x = padded(tx, x, of, &zero);
    let mut inputs = vec![x.values.as_str(), weights[0], weights[1], weights[2], &x.lengths];
    inputs.extend(extra);
    let way = if op.flag("is_reverse", false) { "reverse" } else { "forward" };
    let attrs = attrs.with("hidden_size", size as i64).with("direction", way);
    let made = tx.several(onnx, &inputs, 1, attrs);
    let one = tx.ints(&[1]);
    let y = tx.plain("Squeeze", &[&made[0], &one]);
    for out in outs {
        tx.out(op, out, "GatherND", &[&y, &x.places], Attrs::new())?;
    }
    Ok(())
}

/// An LSTM over the rows of each sample, which are projected already: candidate, input, forget, output.
fn lstm(tx: &mut Tx, op: &OpDesc) -> Done {
    if tx.is_read(op, "Cell") {
        return Err("its Cell has no translation".into());
    }
    let x = tx.input(op, "Input")?;
    let of = sequence::offsets(tx, op.ins("Input").first().map_or("", String::as_str))?;
    let size = state_size(tx, op)?;
    let n = size as i64;
    let order = [1, 3, 2, 0];
    let w = picks(tx, op, &order.map(|g| (g, 1.0)), size)?;
    let weight = tx.input(op, "Weight")?;
    let blocks = tx.several("Split", &[&weight], 4, Attrs::new().with("axis", 1).with("num_outputs", 4));
    let r = turned(tx, op, &order.map(|g| (blocks[g].clone(), 1.0)))?;
    let bias = tx.input(op, "Bias")?;
    let flat = tx.ints(&[-1]);
    let bias = tx.plain("Reshape", &[&bias, &flat]);
    let zero = tx.ints(&[0]);
    let part = |tx: &mut Tx, k: i64| {
        let (from, to) = (tx.ints(&[k * n]), tx.ints(&[(k + 1) * n]));
        tx.plain("Slice", &[&bias, &from, &to])
    };
    let mut parts: Vec<String> = order.iter().map(|&g| part(tx, g as i64)).collect();
    // Peepholes follow the bias: input, forget, output; ONNX has input, output, forget.
    let peepholes = op.flag("use_peepholes", true);
    let peeps: Vec<String> = if peepholes { [4, 6, 5].map(|k| part(tx, k)).to_vec() } else { Vec::new() };
    parts.push(tx.constant("nothing", Tensor::vector(vec![0f32; 4 * size])));
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let b = tx.node("Concat", &parts, Attrs::new().with("axis", 0));
    let b = tx.plain("Unsqueeze", &[&b, &zero]);
    let mut extra = vec![String::new(); 3];
    extra[0] = begin(tx, op, "H0")?.unwrap_or_default();
    extra[1] = begin(tx, op, "C0")?.unwrap_or_default();
    if peepholes {
        let peeps: Vec<&str> = peeps.iter().map(String::as_str).collect();
        let p = tx.node("Concat", &peeps, Attrs::new().with("axis", 0));
        extra[2] = tx.plain("Unsqueeze", &[&p, &zero]);
    }
    while extra.last().is_some_and(String::is_empty) {
        extra.pop();
    }
    let extra: Vec<&str> = extra.iter().map(String::as_str).collect();
    let names = [("gate_activation", "sigmoid"), ("candidate_activation", "tanh"), ("cell_activation", "tanh")];
    let mut acts: Vec<bytes::Bytes> = Vec::new();
    for (attr, default) in names {
        acts.push(activation(&op.text(attr, default))?.into());
    }
    let attrs = Attrs::new().with("activations", Attr::Strings(acts));
    run(tx, op, &x, &of, ("LSTM", attrs, size), &[&w, &r, &b], &extra, &["Hidden"])
}

/// One step of a GRU whose input is projected already.
fn gru_unit(tx: &mut Tx, op: &OpDesc) -> Done {
    if op.int("gate_activation", 1) != 1 || tx.is_read(op, "Gate") || tx.is_read(op, "ResetHiddenPrev") {
        return Err("its gates as outputs, or with other activations, have no translation".into());
    }
    let (mut x, h, weight) = (tx.input(op, "Input")?, tx.input(op, "HiddenPrev")?, tx.input(op, "Weight")?);
    let size = state_size(tx, op)? as i64;
    if let Some(b) = tx.opt(op, "Bias")? {
        x = tx.plain("Add", &[&x, &b]);
    }
    let (flat, k, zero, ahead) = (tx.ints(&[-1]), tx.ints(&[2 * size * size]), tx.ints(&[0]), tx.ints(&[i64::MAX]));
    let weight = tx.plain("Reshape", &[&weight, &flat]);
    let (gate, new) = (tx.plain("Slice", &[&weight, &zero, &k]), tx.plain("Slice", &[&weight, &k, &ahead]));
    let (wide, square) = (tx.ints(&[size, 2 * size]), tx.ints(&[size, size]));
    let (gate, new) = (tx.plain("Reshape", &[&gate, &wide]), tx.plain("Reshape", &[&new, &square]));
    let sizes = tx.ints(&[2 * size, size]);
    let x = tx.several("Split", &[&x, &sizes], 2, Attrs::new().with("axis", 1));
    let gates = tx.plain("MatMul", &[&h, &gate]);
    let gates = tx.plain("Add", &[&x[0], &gates]);
    let gates = tx.plain("Sigmoid", &[&gates]);
    let gates = tx.several("Split", &[&gates], 2, Attrs::new().with("axis", 1).with("num_outputs", 2));
    let reset = tx.plain("Mul", &[&gates[1], &h]);
    let c = tx.plain("MatMul", &[&reset, &new]);
    let c = tx.plain("Add", &[&x[1], &c]);
    let c = match op.int("activation", 2) {
        0 => c,
        1 => tx.plain("Sigmoid", &[&c]),
        2 => tx.plain("Tanh", &[&c]),
        3 => tx.plain("Relu", &[&c]),
        other => return Err(format!("activation {other} does not exist")),
    };
    let (from, to) = if op.flag("origin_mode", false) { (&c, &h) } else { (&h, &c) };
    let way = tx.plain("Sub", &[to, from]);
    let way = tx.plain("Mul", &[&gates[0], &way]);
    tx.out(op, "Hidden", "Add", &[from, &way], Attrs::new())
}
