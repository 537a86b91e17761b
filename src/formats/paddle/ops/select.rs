//! Ops that pick, place, order and repeat elements.

use super::shape::list;
use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::{OpDesc, dtype};
use crate::ir::{Attrs, OpName};
use crate::tensor::{DType, Tensor};

#[rustfmt::skip]
pub(super) const OPS: &[(&str, Translate)] = &[
    ("crop_tensor", crop),
    ("diag_v2", diagonal),
    ("eye", eye),
    ("flip", flip),
    ("index_sample", |tx, op| along(tx, op, ("X", "Out"), 1)),
    ("linspace", linspace),
    ("masked_select", masked_select),
    ("meshgrid", meshgrid),
    ("multiplex", multiplex),
    ("partial_concat", partial_concat),
    ("partial_sum", partial_sum),
    ("put_along_axis", put_along),
    ("repeat_interleave", repeat),
    ("roll", roll),
    ("scatter", scatter),
    ("scatter_nd_add", scatter_nd_add),
    ("set_value", set_value),
    ("shard_index", shard_index),
    ("take_along_axis", |tx, op| { let a = op.int("Axis", 0); along(tx, op, ("Input", "Result"), a) }),
    ("tril_triu", triangle),
    ("unique", unique),
    ("unique_with_counts", unique),
    ("where_index", where_index),
];

fn along(tx: &mut Tx, op: &OpDesc, names: (&str, &str), axis: i64) -> Done {
    let (x, index) = (tx.input(op, names.0)?, tx.input(op, "Index")?);
    tx.outs(op, &[names.1], OpName::onnx("GatherElements"), &[&x, &index], Attrs::new().with("axis", axis))
}

fn put_along(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, index, value) = (tx.input(op, "Input")?, tx.input(op, "Index")?, tx.input(op, "Value")?);
    if !op.flag("Include_self", true) {
        return Err("a reduction without the element itself has no translation".into());
    }
    let how = match op.text("Reduce", "assign").as_str() {
        "assign" => "none",
        "add" => "add",
        "mul" | "multiply" => "mul",
        "amax" => "max",
        "amin" => "min",
        other => return Err(format!("reduction {other} has no translation")),
    };
    let attrs = Attrs::new().with("axis", op.int("Axis", 0)).with("reduction", how);
    tx.outs(op, &["Result"], OpName::onnx("ScatterElements"), &[&x, &index, &value], attrs)
}

/// Rows take the place of others; or the rows there become the sums of those that come.
fn scatter(tx: &mut Tx, op: &OpDesc) -> Done {
    let (mut x, ids, updates) = (tx.input(op, "X")?, tx.input(op, "Ids")?, tx.input(op, "Updates")?);
    let column = tx.ints(&[-1, 1]);
    let ids = tx.cast(&ids, DType::I64);
    let ids = tx.plain("Reshape", &[&ids, &column]);
    if op.flag("overwrite", true) {
        return tx.out(op, "Out", "ScatterND", &[&x, &ids, &updates], Attrs::new());
    }
    let zero = tx.like(op, "X", 0.0)?;
    let shape = tx.plain("Shape", &[&updates]);
    let nothing = tx.plain("Expand", &[&zero, &shape]);
    x = tx.plain("ScatterND", &[&x, &ids, &nothing]);
    tx.out(op, "Out", "ScatterND", &[&x, &ids, &updates], Attrs::new().with("reduction", "add"))
}

fn scatter_nd_add(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, index, updates) = (tx.input(op, "X")?, tx.input(op, "Index")?, tx.input(op, "Updates")?);
    let index = tx.cast(&index, DType::I64);
    tx.out(op, "Out", "ScatterND", &[&x, &index, &updates], Attrs::new().with("reduction", "add"))
}

/// The indices of all elements that are not zero, a row each.
fn where_index(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "Condition")?;
    let found = tx.plain("NonZero", &[&x]);
    tx.out(op, "Out", "Transpose", &[&found], Attrs::new().with("perm", vec![1, 0]))
}

fn masked_select(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, mask) = (tx.input(op, "X")?, tx.input(op, "Mask")?);
    let flat = tx.ints(&[-1]);
    let mask = tx.plain("Reshape", &[&mask, &flat]);
    tx.outs(op, &["Y"], OpName::onnx("Compress"), &[&x, &mask], Attrs::new())
}

fn flip(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let axes = op.ints("axis").unwrap_or_default();
    let (starts, ends) = (tx.ints(&vec![-1; axes.len()]), tx.ints(&vec![i64::MIN + 1; axes.len()]));
    let (steps, axes) = (tx.ints(&vec![-1; axes.len()]), tx.ints(&axes));
    tx.out(op, "Out", "Slice", &[&x, &starts, &ends, &axes, &steps], Attrs::new())
}

/// Moves elements along axes, those that fall off come in at the other end.
fn roll(tx: &mut Tx, op: &OpDesc) -> Done {
    let mut x = tx.input(op, "X")?;
    if !op.ins("ShiftsTensor").is_empty() {
        return Err("shifts that are tensors have no translation".into());
    }
    let (shifts, mut axes) = (op.ints("shifts").unwrap_or_default(), op.ints("axis").unwrap_or_default());
    let shape = tx.plain("Shape", &[&x]);
    let flat = axes.is_empty();
    if flat {
        let all = tx.ints(&[-1]);
        x = tx.plain("Reshape", &[&x, &all]);
        axes = vec![0];
    }
    for (shift, axis) in shifts.into_iter().zip(axes) {
        let (shift, at) = (tx.ints(&[shift]), tx.ints(&[axis]));
        let dims = tx.plain("Shape", &[&x]);
        let size = tx.node("Gather", &[&dims, &at], Attrs::new().with("axis", 0));
        let cut = tx.plain("Sub", &[&size, &shift]);
        let cut = tx.plain("Mod", &[&cut, &size]);
        let (zero, ahead) = (tx.ints(&[0]), tx.ints(&[i64::MAX]));
        let (head, tail) = (tx.plain("Slice", &[&x, &zero, &cut, &at]), tx.plain("Slice", &[&x, &cut, &ahead, &at]));
        x = tx.node("Concat", &[&tail, &head], Attrs::new().with("axis", axis));
    }
    if flat { tx.out(op, "Out", "Reshape", &[&x, &shape], Attrs::new()) } else { tx.give(op, "Out", &x) }
}

fn triangle(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let k = tx.constant("diagonal", Tensor::scalar(op.int("diagonal", 0)));
    // Truth values go by way of numbers: runtimes have no triangle of them.
    let truth = tx.dtype_in(op, "X")? == DType::Bool;
    let attrs = Attrs::new().with("upper", i64::from(!op.flag("lower", true)));
    if !truth {
        return tx.out(op, "Out", "Trilu", &[&x, &k], attrs);
    }
    let x = tx.cast(&x, DType::I64);
    let y = tx.node("Trilu", &[&x, &k], attrs);
    tx.out(op, "Out", "Cast", &[&y], Attrs::new().with("to", i64::from(DType::Bool.to_onnx())))
}

fn meshgrid(tx: &mut Tx, op: &OpDesc) -> Done {
    let xs = tx.inputs(op, "X")?;
    let mut sizes = Vec::new();
    for x in &xs {
        let size = tx.plain("Size", &[x]);
        let one = tx.ints(&[1]);
        sizes.push(tx.plain("Reshape", &[&size, &one]));
    }
    let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
    let shape = tx.node("Concat", &sizes, Attrs::new().with("axis", 0));
    for (i, (x, var)) in xs.iter().zip(op.outs("Out")).enumerate() {
        let dims: Vec<i64> = (0..xs.len()).map(|k| if k == i { -1 } else { 1 }).collect();
        let dims = tx.ints(&dims);
        let x = tx.plain("Reshape", &[x, &dims]);
        tx.out_var(var, "Expand", &[&x, &shape], Attrs::new());
    }
    Ok(())
}

fn scalar(tx: &mut Tx, value: &str) -> String {
    let shape = tx.constant("scalar", Tensor::vector(Vec::<i64>::new()));
    tx.plain("Reshape", &[value, &shape])
}

/// start + (stop − start)·i / (n − 1), counted from the nearer end.
fn linspace(tx: &mut Tx, op: &OpDesc) -> Done {
    let (start, stop, num) = (tx.input(op, "Start")?, tx.input(op, "Stop")?, tx.input(op, "Num")?);
    let code = op.int("dtype", 5) as i32;
    let to = dtype(code).ok_or_else(|| format!("dtype {code} does not exist"))?;
    let by = if to == DType::F32 { DType::F32 } else { DType::F64 };
    let (start, stop, num) = (scalar(tx, &start), scalar(tx, &stop), scalar(tx, &num));
    let (start, stop, num) = (tx.cast(&start, by), tx.cast(&stop, by), tx.cast(&num, DType::I64));
    let (zero, one) = (tx.constant("zero", Tensor::scalar(0i64)), tx.constant("one", Tensor::scalar(1i64)));
    let places = tx.plain("Range", &[&zero, &num, &one]);
    let steps = tx.plain("Sub", &[&num, &one]);
    let steps = tx.plain("Max", &[&steps, &one]);
    let width = tx.plain("Sub", &[&stop, &start]);
    let divisor = tx.cast(&steps, by);
    let step = tx.plain("Div", &[&width, &divisor]);
    let two = tx.constant("two", Tensor::scalar(2i64));
    let middle = tx.plain("Div", &[&num, &two]);
    let middle = tx.plain("Less", &[&places, &middle]);
    let (ahead, behind) = (tx.cast(&places, by), tx.plain("Sub", &[&steps, &places]));
    let behind = tx.cast(&behind, by);
    let (ahead, behind) = (tx.plain("Mul", &[&ahead, &step]), tx.plain("Mul", &[&behind, &step]));
    let (ahead, behind) = (tx.plain("Add", &[&start, &ahead]), tx.plain("Sub", &[&stop, &behind]));
    let value = tx.plain("Where", &[&middle, &ahead, &behind]);
    tx.out(op, "Out", "Cast", &[&value], Attrs::new().with("to", i64::from(to.to_onnx())))
}

fn eye(tx: &mut Tx, op: &OpDesc) -> Done {
    let code = op.int("dtype", 5) as i32;
    let to = dtype(code).ok_or_else(|| format!("dtype {code} does not exist"))?;
    let rows = op.int("num_rows", 1).max(0);
    let columns = match op.int("num_columns", -1) {
        n if n < 0 => rows,
        n => n,
    };
    let shape = tx.ints(&[rows, columns]);
    let zero = tx.number(to, 0.0)?;
    let zeros = tx.plain("Expand", &[&zero, &shape]);
    tx.out(op, "Out", "EyeLike", &[&zeros], Attrs::new().with("dtype", i64::from(to.to_onnx())))
}

/// A vector on a diagonal, or the diagonal of a matrix.
fn diagonal(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let rank = tx.dims_in(op, "X")?.len();
    if op.int("offset", 0) != 0 || rank > 2 {
        return Err("other diagonals have no translation".into());
    }
    if rank == 2 {
        let shape = tx.plain("Shape", &[&x]);
        let least = tx.node("ReduceMin", &[&shape], Attrs::new().with("keepdims", 0));
        let (zero, one) = (tx.constant("zero", Tensor::scalar(0i64)), tx.constant("one", Tensor::scalar(1i64)));
        let at = tx.plain("Range", &[&zero, &least, &one]);
        let last = tx.ints(&[1]);
        let at = tx.plain("Unsqueeze", &[&at, &last]);
        let at = tx.node("Concat", &[&at, &at], Attrs::new().with("axis", 1));
        return tx.out(op, "Out", "GatherND", &[&x, &at], Attrs::new());
    }
    let size = tx.plain("Shape", &[&x]);
    let square = tx.node("Concat", &[&size, &size], Attrs::new().with("axis", 0));
    let none = tx.constant("none", Tensor::scalar(0i64));
    let zeros = tx.plain("Expand", &[&none, &square]);
    let there = tx.node("EyeLike", &[&zeros], Attrs::new().with("dtype", i64::from(DType::I64.to_onnx())));
    let there = tx.cast(&there, DType::Bool);
    let around = tx.like(op, "X", op.float("padding_value", 0.0).into())?;
    tx.out(op, "Out", "Where", &[&there, &x, &around], Attrs::new())
}

fn multiplex(tx: &mut Tx, op: &OpDesc) -> Done {
    let (xs, ids) = (tx.inputs(op, "X")?, tx.input(op, "Ids")?);
    let first = tx.ints(&[0]);
    let stacked: Vec<String> = xs.iter().map(|x| tx.plain("Unsqueeze", &[x, &first])).collect();
    let stacked: Vec<&str> = stacked.iter().map(String::as_str).collect();
    let all = tx.node("Concat", &stacked, Attrs::new().with("axis", 0));
    let flat = tx.ints(&[-1]);
    let ids = tx.cast(&ids, DType::I64);
    let ids = tx.plain("Reshape", &[&ids, &flat]);
    let rows = tx.plain("Size", &[&ids]);
    let (zero, one) = (tx.constant("zero", Tensor::scalar(0i64)), tx.constant("one", Tensor::scalar(1i64)));
    let rows = tx.plain("Range", &[&zero, &rows, &one]);
    let last = tx.ints(&[1]);
    let (ids, rows) = (tx.plain("Unsqueeze", &[&ids, &last]), tx.plain("Unsqueeze", &[&rows, &last]));
    let at = tx.node("Concat", &[&ids, &rows], Attrs::new().with("axis", 1));
    tx.out(op, "Out", "GatherND", &[&all, &at], Attrs::new())
}

/// The same columns of several inputs.
fn columns(tx: &mut Tx, op: &OpDesc) -> Result<Vec<String>, String> {
    let (from, length) = (op.int("start_index", 0), op.int("length", -1));
    let to = if length < 0 { i64::MAX } else { from.saturating_add(length) };
    let (from, to, axis) = (tx.ints(&[from]), tx.ints(&[to]), tx.ints(&[1]));
    Ok(tx.inputs(op, "X")?.iter().map(|x| tx.plain("Slice", &[x, &from, &to, &axis])).collect())
}

fn partial_concat(tx: &mut Tx, op: &OpDesc) -> Done {
    let parts = columns(tx, op)?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    tx.out(op, "Out", "Concat", &parts, Attrs::new().with("axis", 1))
}

fn partial_sum(tx: &mut Tx, op: &OpDesc) -> Done {
    let parts = columns(tx, op)?;
    let sum = parts.into_iter().reduce(|a, b| tx.plain("Add", &[&a, &b])).ok_or("it has no X")?;
    tx.give(op, "Out", &sum)
}

/// Each element several times in a row.
fn repeat(tx: &mut Tx, op: &OpDesc) -> Done {
    if !op.ins("RepeatsTensor").is_empty() {
        return Err("repeats that are tensors have no translation".into());
    }
    let x = tx.input(op, "X")?;
    let rank = tx.dims_in(op, "X")?.len() as i64;
    let (axis, times) = (op.int("dim", 0), op.int("Repeats", 1));
    let axis = if axis < 0 { axis + rank } else { axis };
    let behind = tx.ints(&[axis.saturating_add(1)]);
    let wide = tx.plain("Unsqueeze", &[&x, &behind]);
    let counts: Vec<i64> = (0..=rank).map(|a| if a == axis.saturating_add(1) { times } else { 1 }).collect();
    let counts = tx.ints(&counts);
    let wide = tx.plain("Tile", &[&wide, &counts]);
    let head = tx.node("Shape", &[&x], Attrs::new().with("start", 0).with("end", axis));
    let tail = tx.node("Shape", &[&x], Attrs::new().with("start", axis.saturating_add(1)));
    let open = tx.ints(&[-1]);
    let shape = tx.node("Concat", &[&head, &open, &tail], Attrs::new().with("axis", 0));
    tx.out(op, "Out", "Reshape", &[&wide, &shape], Attrs::new())
}

fn crop(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let starts = list(tx, op, "Offsets", "OffsetsTensor", "offsets")?.ok_or("it has no offsets")?;
    let sizes = list(tx, op, "Shape", "ShapeTensor", "shape")?.ok_or("it has no shape")?;
    let (open, far) = (tx.ints(&[-1]), tx.ints(&[i64::from(i32::MAX)]));
    let to_end = tx.plain("Equal", &[&sizes, &open]);
    let ends = tx.plain("Add", &[&starts, &sizes]);
    let ends = tx.plain("Where", &[&to_end, &far, &ends]);
    tx.out(op, "Out", "Slice", &[&x, &starts, &ends], Attrs::new())
}

/// The id within a shard, another number for ids of other shards.
fn shard_index(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let (all, shards) = (op.int("index_num", 1), op.int("nshards", 1).max(1));
    let size = all.saturating_add(shards - 1) / shards;
    let size = tx.like(op, "X", size as f64)?;
    let (own, other) = (tx.like(op, "X", op.int("shard_id", 0) as f64)?, tx.like(op, "X", op.int("ignore_value", -1) as f64)?);
    let shard = tx.plain("Div", &[&x, &size]);
    let here = tx.plain("Equal", &[&shard, &own]);
    let within = tx.plain("Mod", &[&x, &size]);
    tx.out(op, "Out", "Where", &[&here, &within, &other], Attrs::new())
}

fn unique(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let mut attrs = Attrs::new().with("sorted", i64::from(op.flag("is_sorted", false)));
    if let Some(&axis) = op.ints("axis").unwrap_or_default().first() {
        attrs.set("axis", axis.into());
    }
    let found = tx.several("Unique", &[&x], 4, attrs);
    let to = dtype(op.int("dtype", 3) as i32).filter(|d| d.is_int()).unwrap_or(DType::I64);
    tx.give(op, "Out", &found[0])?;
    for (parameter, value) in [("Indices", &found[1]), ("Index", &found[2]), ("Counts", &found[3]), ("Count", &found[3])] {
        if tx.is_read(op, parameter) {
            tx.out(op, parameter, "Cast", &[value], Attrs::new().with("to", i64::from(to.to_onnx())))?;
        }
    }
    Ok(())
}

/// Writes into a slice of steps of 1.
fn set_value(tx: &mut Tx, op: &OpDesc) -> Done {
    let tensors = ["StartsTensorList", "EndsTensorList", "StepsTensorList"].iter().any(|p| !op.ins(p).is_empty());
    let steps = op.ints("steps").unwrap_or_default();
    if tensors || steps.iter().any(|&s| s != 1) || !op.ints("none_axes").unwrap_or_default().is_empty() {
        return Err("slices by tensors, by steps and with new axes have no translation".into());
    }
    let x = tx.input(op, "Input")?;
    let (axes, dropped) = (op.ints("axes").unwrap_or_default(), op.ints("decrease_axes").unwrap_or_default());
    let (starts, ends) = (op.ints("starts").unwrap_or_default(), op.ints("ends").unwrap_or_default());
    let rank = tx.dims_in(op, "Input")?.len();
    let dtype = tx.dtype_in(op, "Input")?;
    let mut value = match tx.opt(op, "ValueTensor")? {
        Some(v) => v,
        None => {
            let tensor = super::shape::stored(op, dtype)?;
            tx.constant("assigned", tensor)
        }
    };
    if !dropped.is_empty() {
        let value_rank =
            op.ins("ValueTensor").first().map_or(Ok(op.ints("shape").unwrap_or_default().len()), |v| tx.dims(v).map(<[i64]>::len))?;
        // The value has no axes that an index took away.
        if value_rank + dropped.len() >= rank && value_rank > 0 {
            let dropped = tx.ints(&dropped);
            let spread = value_rank + op.ints("decrease_axes").unwrap_or_default().len() == rank;
            if spread {
                value = tx.plain("Unsqueeze", &[&value, &dropped]);
            }
        }
    }
    // Where the numbers of the elements say, the value is taken.
    let shape = tx.plain("Shape", &[&x]);
    let size = tx.plain("Size", &[&x]);
    let (zero, one) = (tx.constant("zero", Tensor::scalar(0i64)), tx.constant("one", Tensor::scalar(1i64)));
    let numbers = tx.plain("Range", &[&zero, &size, &one]);
    let numbers = tx.plain("Reshape", &[&numbers, &shape]);
    let (starts, ends, axes) = (tx.ints(&starts), tx.ints(&ends), tx.ints(&axes));
    let places = tx.plain("Slice", &[&numbers, &starts, &ends, &axes]);
    let wanted = tx.plain("Shape", &[&places]);
    let flat = tx.ints(&[-1]);
    let value = tx.plain("Expand", &[&value, &wanted]);
    let (value, places) = (tx.plain("Reshape", &[&value, &flat]), tx.plain("Reshape", &[&places, &flat]));
    let whole = tx.plain("Reshape", &[&x, &flat]);
    let whole = tx.node("ScatterElements", &[&whole, &places, &value], Attrs::new().with("axis", 0));
    tx.out(op, "Out", "Reshape", &[&whole, &shape], Attrs::new())
}
