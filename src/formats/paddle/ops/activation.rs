//! Activations, and the softmax family.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::Attrs;

#[rustfmt::skip]
pub(super) const OPS: &[(&str, Translate)] = &[
    ("brelu", |tx, op| clipped(tx, op, ("t_min", 0.0), ("t_max", 24.0))),
    ("celu", |tx, op| { let a = op.float("alpha", 1.0); with(tx, op, "Celu", Attrs::new().with("alpha", a)) }),
    ("elu", |tx, op| { let a = op.float("alpha", 1.0); with(tx, op, "Elu", Attrs::new().with("alpha", a)) }),
    ("gelu", |tx, op| { let a = if op.flag("approximate", false) { "tanh" } else { "none" }; with(tx, op, "Gelu", Attrs::new().with("approximate", a)) }),
    ("hard_shrink", hard_shrink),
    ("hard_sigmoid", hard_sigmoid),
    ("hard_swish", hard_swish),
    ("leaky_relu", |tx, op| { let a = op.float("alpha", 0.02); with(tx, op, "LeakyRelu", Attrs::new().with("alpha", a)) }),
    ("log_softmax", |tx, op| { let a = op.int("axis", -1); with(tx, op, "LogSoftmax", Attrs::new().with("axis", a)) }),
    ("logit", logit),
    ("logsigmoid", log_sigmoid),
    ("maxout", maxout),
    ("mish", mish),
    ("prelu", prelu),
    ("relu", |tx, op| with(tx, op, "Relu", Attrs::new())),
    ("relu6", |tx, op| clipped(tx, op, ("", 0.0), ("threshold", 6.0))),
    ("selu", |tx, op| { let a = Attrs::new().with("alpha", op.float("alpha", 1.673_263_2)).with("gamma", op.float("scale", 1.050_701)); with(tx, op, "Selu", a) }),
    ("sigmoid", |tx, op| with(tx, op, "Sigmoid", Attrs::new())),
    ("silu", silu),
    ("soft_relu", soft_relu),
    ("softmax", |tx, op| { let a = op.int("axis", -1); with(tx, op, "Softmax", Attrs::new().with("axis", a)) }),
    ("softplus", softplus),
    ("softshrink", soft_shrink),
    ("softsign", |tx, op| with(tx, op, "Softsign", Attrs::new())),
    ("stanh", stanh),
    ("swish", silu),
    ("tanh", |tx, op| with(tx, op, "Tanh", Attrs::new())),
    ("tanh_shrink", |tx, op| { let x = tx.input(op, "X")?; let t = tx.plain("Tanh", &[&x]); tx.out(op, "Out", "Sub", &[&x, &t], Attrs::new()) }),
    ("thresholded_relu", |tx, op| { let a = op.float("threshold", 1.0); with(tx, op, "ThresholdedRelu", Attrs::new().with("alpha", a)) }),
];

pub(super) fn with(tx: &mut Tx, op: &OpDesc, onnx: &str, attrs: Attrs) -> Done {
    let x = tx.input(op, "X")?;
    tx.out(op, "Out", onnx, &[&x], attrs)
}

/// Within two attributes, each with its default.
fn clipped(tx: &mut Tx, op: &OpDesc, low: (&str, f32), high: (&str, f32)) -> Done {
    let x = tx.input(op, "X")?;
    let (low, high) = tx.two(op, low, high)?;
    tx.out(op, "Out", "Clip", &[&x, &low, &high], Attrs::new())
}

fn hard_sigmoid(tx: &mut Tx, op: &OpDesc) -> Done {
    let attrs = Attrs::new().with("alpha", op.float("slope", 0.2)).with("beta", op.float("offset", 0.5));
    with(tx, op, "HardSigmoid", attrs)
}

fn hard_swish(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let dtype = tx.dtype_in(op, "X")?;
    let offset = tx.number(dtype, op.float("offset", 3.0).into())?;
    let (low, high) = (tx.number(dtype, 0.0)?, tx.number(dtype, op.float("threshold", 6.0).into())?);
    let gate = tx.plain("Add", &[&x, &offset]);
    let gate = tx.plain("Clip", &[&gate, &low, &high]);
    let product = tx.plain("Mul", &[&x, &gate]);
    let scale = tx.number(dtype, op.float("scale", 6.0).into())?;
    tx.out(op, "Out", "Div", &[&product, &scale], Attrs::new())
}

fn silu(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let beta = f64::from(op.float("beta", 1.0));
    let inner = if beta == 1.0 {
        x.clone()
    } else {
        let beta = tx.like(op, "X", beta)?;
        tx.plain("Mul", &[&x, &beta])
    };
    let gate = tx.plain("Sigmoid", &[&inner]);
    tx.out(op, "Out", "Mul", &[&x, &gate], Attrs::new())
}

fn mish(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let soft = tx.plain("Softplus", &[&x]);
    let gate = tx.plain("Tanh", &[&soft]);
    tx.out(op, "Out", "Mul", &[&x, &gate], Attrs::new())
}

/// log(1 + exp(β·x)) / β, and x itself where β·x is past the threshold.
fn softplus(tx: &mut Tx, op: &OpDesc) -> Done {
    let (beta, threshold) = (f64::from(op.float("beta", 1.0)), f64::from(op.float("threshold", 20.0)));
    if beta == 1.0 && threshold >= 20.0 {
        return with(tx, op, "Softplus", Attrs::new());
    }
    let x = tx.input(op, "X")?;
    let (beta, threshold) = (tx.like(op, "X", beta)?, tx.like(op, "X", threshold)?);
    let scaled = tx.plain("Mul", &[&x, &beta]);
    let far = tx.plain("Greater", &[&scaled, &threshold]);
    let soft = tx.plain("Softplus", &[&scaled]);
    let soft = tx.plain("Div", &[&soft, &beta]);
    tx.out(op, "Out", "Where", &[&far, &x, &soft], Attrs::new())
}

fn soft_relu(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let t = f64::from(op.float("threshold", 40.0));
    let (low, high) = (tx.like(op, "X", -t)?, tx.like(op, "X", t)?);
    let x = tx.plain("Clip", &[&x, &low, &high]);
    tx.out(op, "Out", "Softplus", &[&x], Attrs::new())
}

fn log_sigmoid(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let x = tx.plain("Neg", &[&x]);
    let x = tx.plain("Softplus", &[&x]);
    tx.out(op, "Out", "Neg", &[&x], Attrs::new())
}

fn stanh(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let (a, b) = tx.two(op, ("scale_a", 0.67), ("scale_b", 1.7159))?;
    let x = tx.plain("Mul", &[&x, &a]);
    let x = tx.plain("Tanh", &[&x]);
    tx.out(op, "Out", "Mul", &[&x, &b], Attrs::new())
}

/// Zero within the threshold, the number itself outside.
fn hard_shrink(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let (zero, t) = tx.two(op, ("", 0.0), ("threshold", 0.5))?;
    let size = tx.plain("Abs", &[&x]);
    let out = tx.plain("Greater", &[&size, &t]);
    tx.out(op, "Out", "Where", &[&out, &x, &zero], Attrs::new())
}

fn soft_shrink(tx: &mut Tx, op: &OpDesc) -> Done {
    let t = op.float("lambda", 0.5);
    with(tx, op, "Shrink", Attrs::new().with("bias", t).with("lambd", t))
}

fn logit(tx: &mut Tx, op: &OpDesc) -> Done {
    let mut x = tx.input(op, "X")?;
    let (e, one) = (f64::from(op.float("eps", 1e-6)), tx.like(op, "X", 1.0)?);
    if e > 0.0 {
        let (low, high) = (tx.like(op, "X", e)?, tx.like(op, "X", 1.0 - e)?);
        x = tx.plain("Clip", &[&x, &low, &high]);
    }
    let rest = tx.plain("Sub", &[&one, &x]);
    let odds = tx.plain("Div", &[&x, &rest]);
    tx.out(op, "Out", "Log", &[&odds], Attrs::new())
}

/// The greatest of each group of channels.
fn maxout(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let (groups, axis) = (op.int("groups", 1), op.int("axis", 1));
    let rank = tx.dims_in(op, "X")?.len() as i64;
    let axis = if axis < 0 { axis + rank } else { axis };
    let head = tx.node("Shape", &[&x], Attrs::new().with("start", 0).with("end", axis));
    let tail = tx.node("Shape", &[&x], Attrs::new().with("start", axis.saturating_add(1)));
    let middle = tx.ints(&[-1, groups]);
    let shape = tx.node("Concat", &[&head, &middle, &tail], Attrs::new().with("axis", 0));
    let x = tx.plain("Reshape", &[&x, &shape]);
    let axes = tx.ints(&[axis.saturating_add(1)]);
    tx.out(op, "Out", "ReduceMax", &[&x, &axes], Attrs::new().with("keepdims", 0))
}

/// One slope, one per channel, or one per element of a sample.
fn prelu(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, alpha) = (tx.input(op, "X")?, tx.input(op, "Alpha")?);
    let rank = tx.dims_in(op, "X")?.len();
    let slope = match op.text("mode", "all").as_str() {
        "element" => {
            let tail = tx.node("Shape", &[&x], Attrs::new().with("start", 1));
            tx.plain("Reshape", &[&alpha, &tail])
        }
        "channel" if op.text("data_format", "NCHW").ends_with('C') => alpha,
        "channel" => {
            let mut shape = vec![1; rank.saturating_sub(1)];
            shape.iter_mut().take(1).for_each(|d| *d = -1);
            let shape = tx.ints(&shape);
            tx.plain("Reshape", &[&alpha, &shape])
        }
        _ => {
            let one = tx.ints(&[1]);
            tx.plain("Reshape", &[&alpha, &one])
        }
    };
    tx.out(op, "Out", "PRelu", &[&x, &slope], Attrs::new())
}
