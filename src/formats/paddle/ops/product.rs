//! Products of matrices.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::OpDesc;
use crate::ir::Attrs;
use crate::tensor::DType;

#[rustfmt::skip]
pub(super) const OPS: &[(&str, Translate)] = &[
    ("addmm", addmm),
    ("bilinear_tensor_product", bilinear),
    ("bmm", matmul),
    ("dot", dot),
    ("einsum", einsum),
    ("fc", fc),
    ("matmul", matmul),
    ("matmul_v2", matmul),
    ("mul", mul),
    ("mv", |tx, op| { let (x, y) = (tx.input(op, "X")?, tx.input(op, "Vec")?); tx.out(op, "Out", "MatMul", &[&x, &y], Attrs::new()) }),
];

/// The product of two operands, each seen as a matrix: the first `at` dims are its rows.
fn flat_product(tx: &mut Tx, op: &OpDesc, names: (&str, &str), at: (i64, i64)) -> Result<(String, Option<String>), String> {
    let (x, y) = (tx.input(op, names.0)?, tx.input(op, names.1)?);
    let (a, b) = (tx.dims_in(op, names.0)?.len() as i64, tx.dims_in(op, names.1)?.len() as i64);
    let flat = |tx: &mut Tx, v: &str, rank: i64, at: i64| {
        if rank == 2 && at == 1 { v.to_owned() } else { tx.node("Flatten", &[v], Attrs::new().with("axis", at)) }
    };
    let (fx, fy) = (flat(tx, &x, a, at.0), flat(tx, &y, b, at.1));
    let product = tx.node("MatMul", &[&fx, &fy], Attrs::new());
    if (a, b, at) == (2, 2, (1, 1)) {
        return Ok((product, None));
    }
    let head = tx.node("Shape", &[&x], Attrs::new().with("end", at.0));
    let tail = tx.node("Shape", &[&y], Attrs::new().with("start", at.1));
    let shape = tx.node("Concat", &[&head, &tail], Attrs::new().with("axis", 0));
    Ok((product, Some(shape)))
}

fn mul(tx: &mut Tx, op: &OpDesc) -> Done {
    let at = (op.int("x_num_col_dims", 1), op.int("y_num_col_dims", 1));
    let (product, shape) = flat_product(tx, op, ("X", "Y"), at)?;
    finish(tx, op, &product, shape)
}

/// The last node of a product is the one that has the output's name.
fn finish(tx: &mut Tx, op: &OpDesc, product: &str, shape: Option<String>) -> Done {
    match shape {
        Some(shape) => tx.out(op, "Out", "Reshape", &[product, &shape], Attrs::new()),
        None => match tx.nodes.pop() {
            Some(node) => {
                let inputs: Vec<&str> = node.inputs.iter().map(String::as_str).collect();
                tx.out(op, "Out", &node.op.name, &inputs, node.attrs.clone())
            }
            None => Err("no product".into()),
        },
    }
}

fn fc(tx: &mut Tx, op: &OpDesc) -> Done {
    if op.flag("padding_weights", false) {
        return Err("padded weights have no translation".into());
    }
    let (mut product, shape) = flat_product(tx, op, ("Input", "W"), (op.int("in_num_col_dims", 1), 1))?;
    if let Some(bias) = tx.opt(op, "Bias")? {
        product = tx.node("Add", &[&product, &bias], Attrs::new());
    }
    match op.text("activation_type", "").as_str() {
        "" => {}
        "relu" => product = tx.node("Relu", &[&product], Attrs::new()),
        other => return Err(format!("activation {other} has no translation")),
    }
    finish(tx, op, &product, shape)
}

fn matmul(tx: &mut Tx, op: &OpDesc) -> Done {
    let (mut x, mut y) = (tx.input(op, "X")?, tx.input(op, "Y")?);
    for (v, parameter, flags) in [(&mut x, "X", ["trans_x", "transpose_X"]), (&mut y, "Y", ["trans_y", "transpose_Y"])] {
        let rank = tx.dims_in(op, parameter)?.len();
        if flags.iter().any(|f| op.flag(f, false)) && rank > 1 {
            let mut perm: Vec<i64> = (0..rank as i64).collect();
            perm.swap(rank - 1, rank - 2);
            *v = tx.node("Transpose", &[v.as_str()], Attrs::new().with("perm", perm));
        }
    }
    // Two vectors that the first version turns are a column and a row.
    let vectors = ["X", "Y"].iter().all(|p| tx.dims_in(op, p).is_ok_and(|d| d.len() == 1));
    if vectors && op.flag("transpose_X", false) && op.flag("transpose_Y", false) {
        let (column, row) = (tx.ints(&[1]), tx.ints(&[0]));
        (x, y) = (tx.plain("Unsqueeze", &[&x, &column]), tx.plain("Unsqueeze", &[&y, &row]));
    }
    let alpha = f64::from(op.float("alpha", 1.0));
    if alpha == 1.0 {
        return tx.out(op, "Out", "MatMul", &[&x, &y], Attrs::new());
    }
    let product = tx.node("MatMul", &[&x, &y], Attrs::new());
    let dtype: DType = tx.dtype_in(op, "X")?;
    let alpha = tx.number(dtype, alpha)?;
    tx.out(op, "Out", "Mul", &[&product, &alpha], Attrs::new())
}

/// The sum over the last axis of the products.
fn dot(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y) = (tx.input(op, "X")?, tx.input(op, "Y")?);
    let rank = tx.dims_in(op, "X")?.len();
    let product = tx.plain("Mul", &[&x, &y]);
    let last = tx.ints(&[-1]);
    // Older programs keep the axis of a matrix, newer ones do not.
    let kept = tx.dims(op.outs("Out").first().map_or("", String::as_str)).is_ok_and(|d| d.len() == rank);
    tx.out(op, "Out", "ReduceSum", &[&product, &last], Attrs::new().with("keepdims", i64::from(kept)))
}

fn addmm(tx: &mut Tx, op: &OpDesc) -> Done {
    let (c, x, y) = (tx.input(op, "Input")?, tx.input(op, "X")?, tx.input(op, "Y")?);
    let attrs = Attrs::new().with("alpha", op.float("Alpha", 1.0)).with("beta", op.float("Beta", 1.0));
    tx.out(op, "Out", "Gemm", &[&x, &y, &c], attrs)
}

fn einsum(tx: &mut Tx, op: &OpDesc) -> Done {
    let xs = tx.inputs(op, "Operands")?;
    let xs: Vec<&str> = xs.iter().map(String::as_str).collect();
    tx.out(op, "Out", "Einsum", &xs, Attrs::new().with("equation", op.text("equation", "").as_str()))
}

/// x·Wₖ·y for each matrix of the weight, and a bias.
fn bilinear(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, y, w) = (tx.input(op, "X")?, tx.input(op, "Y")?, tx.input(op, "Weight")?);
    let mut product = tx.node("Einsum", &[&x, &w, &y], Attrs::new().with("equation", "bi,kij,bj->bk"));
    if let Some(bias) = tx.opt(op, "Bias")? {
        product = tx.plain("Add", &[&product, &bias]);
    }
    tx.give(op, "Out", &product)
}
