//! Ops that move, join, cut and make elements.

use super::{Done, Translate, Tx};
use crate::formats::paddle::proto::{OpDesc, dtype};
use crate::ir::{Attrs, OpName};
use crate::tensor::{DType, Tensor, cast};

#[rustfmt::skip]
pub(super) const OPS: &[(&str, Translate)] = &[
    ("assign", |tx, op| pass(tx, op, "Identity")),
    ("assign_value", assign_value),
    ("cast", to_dtype),
    ("concat", concat),
    ("expand", expand_times),
    ("expand_as", repeat_as),
    ("expand_as_v2", expand_as),
    ("expand_v2", expand),
    ("fill_any_like", fill_like),
    ("fill_constant", fill),
    ("fill_constant_batch_size_like", fill_batch),
    ("fill_zeros_like", fill_like),
    ("flatten", flatten),
    ("flatten2", flatten),
    ("flatten_contiguous_range", flatten_range),
    ("gather", gather),
    ("fill_zeros_like2", fill_like),
    ("gather_nd", |tx, op| { let (x, i) = (tx.input(op, "X")?, tx.input(op, "Index")?); let i = tx.cast(&i, DType::I64); tx.out(op, "Out", "GatherND", &[&x, &i], Attrs::new()) }),
    ("index_select", index_select),
    ("memcpy", |tx, op| pass(tx, op, "Identity")),
    ("memcpy_d2h", |tx, op| pass(tx, op, "Identity")),
    ("memcpy_h2d", |tx, op| pass(tx, op, "Identity")),
    ("one_hot", one_hot),
    ("one_hot_v2", one_hot),
    ("print", print),
    ("range", range),
    ("reshape", reshape),
    ("reshape2", reshape),
    ("shape", |tx, op| { let x = tx.input(op, "Input")?; let s = tx.node("Shape", &[&x], Attrs::new()); tx.out(op, "Out", "Cast", &[&s], Attrs::new().with("to", i64::from(DType::I32.to_onnx()))) }),
    ("share_data", |tx, op| pass(tx, op, "Identity")),
    ("size", |tx, op| { let x = tx.input(op, "Input")?; tx.out(op, "Out", "Size", &[&x], Attrs::new()) }),
    ("slice", slice),
    ("split", split),
    ("squeeze", squeeze),
    ("squeeze2", squeeze),
    ("stack", stack),
    ("strided_slice", slice),
    ("tile", tile),
    ("transpose", transpose),
    ("transpose2", transpose),
    ("unbind", |tx, op| unstack(tx, op, "Out")),
    ("unsqueeze", unsqueeze),
    ("unsqueeze2", unsqueeze),
    ("unstack", |tx, op| unstack(tx, op, "Y")),
    ("where", |tx, op| { let (c, x, y) = (tx.input(op, "Condition")?, tx.input(op, "X")?, tx.input(op, "Y")?); tx.out(op, "Out", "Where", &[&c, &x, &y], Attrs::new()) }),
];

fn pass(tx: &mut Tx, op: &OpDesc, onnx: &str) -> Done {
    let x = tx.input(op, "X")?;
    tx.out(op, "Out", onnx, &[&x], Attrs::new())
}

fn print(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "In")?;
    tx.out(op, "Out", "Identity", &[&x], Attrs::new())
}

/// A list that is one tensor, or a scalar tensor per entry, or an attribute.
pub(super) fn list(tx: &mut Tx, op: &OpDesc, one: &str, many: &str, attr: &str) -> Result<Option<String>, String> {
    if let Some(t) = tx.opt(op, one)? {
        return Ok(Some(tx.cast(&t, DType::I64)));
    }
    let parts = tx.inputs(op, many)?;
    if parts.is_empty() {
        return Ok(op.ints(attr).map(|v| tx.ints(&v)));
    }
    let single = tx.ints(&[1]);
    let mut joined = Vec::new();
    for p in parts {
        let p = tx.cast(&p, DType::I64);
        joined.push(tx.node("Reshape", &[&p, &single], Attrs::new()));
    }
    let joined: Vec<&str> = joined.iter().map(String::as_str).collect();
    Ok(Some(tx.node("Concat", &joined, Attrs::new().with("axis", 0))))
}

fn reshape(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let shape = list(tx, op, "Shape", "ShapeTensor", "shape")?.ok_or("it has no shape")?;
    tx.out(op, "Out", "Reshape", &[&x, &shape], Attrs::new())
}

fn flatten(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    tx.out(op, "Out", "Flatten", &[&x], Attrs::new().with("axis", op.int("axis", 1)))
}

fn flatten_range(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let dims = tx.dims_in(op, "X")?;
    let rank = dims.len() as i64;
    let at = |a: i64| usize::try_from(if a < 0 { a + rank } else { a }).ok().filter(|&a| a < dims.len().max(1));
    let (Some(start), Some(stop)) = (at(op.int("start_axis", 1)), at(op.int("stop_axis", -1))) else {
        return Err(format!("its axes are out of range for {rank} dims"));
    };
    if dims.is_empty() {
        let one = tx.ints(&[1]);
        return tx.out(op, "Out", "Reshape", &[&x, &one], Attrs::new());
    }
    // A product that is known leaves batches of no rows without a doubt.
    let middle = &dims[start..=stop.max(start)];
    let known = middle.iter().all(|&d| d >= 0);
    let middle = if known { middle.iter().try_fold(1i64, |n, &d| n.checked_mul(d)).ok_or("its dims have no product")? } else { -1 };
    let mut head = vec![0; start];
    head.push(middle);
    let head = tx.ints(&head);
    if stop + 1 == dims.len() {
        return tx.out(op, "Out", "Reshape", &[&x, &head], Attrs::new());
    }
    let tail = tx.node("Shape", &[&x], Attrs::new().with("start", stop as i64 + 1));
    let shape = tx.node("Concat", &[&head, &tail], Attrs::new().with("axis", 0));
    tx.out(op, "Out", "Reshape", &[&x, &shape], Attrs::new())
}

/// Squeezes the axes that are 1; others are left as they are.
fn squeeze(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let dims = tx.dims_in(op, "X")?;
    let rank = dims.len() as i64;
    let named = op.ints("axes").unwrap_or_default();
    let open = |a: &i64| dims.get(if *a < 0 { a + rank } else { *a } as usize).is_some_and(|&d| d < 0);
    if named.iter().any(open) {
        return squeeze_open(tx, op, &x, rank, &named);
    }
    let is_one = |a: i64| dims.get(if a < 0 { a + rank } else { a } as usize).is_some_and(|&d| d == 1);
    let axes: Vec<i64> = if named.is_empty() {
        (0..rank).filter(|&a| dims[a as usize] == 1).collect()
    } else {
        named.into_iter().filter(|&a| is_one(a)).collect()
    };
    if axes.is_empty() {
        return pass(tx, op, "Identity");
    }
    let axes = tx.ints(&axes);
    tx.out(op, "Out", "Squeeze", &[&x, &axes], Attrs::new())
}

/// Whether an open dim is 1 is seen when it runs.
fn squeeze_open(tx: &mut Tx, op: &OpDesc, x: &str, rank: i64, named: &[i64]) -> Done {
    let kept: Vec<bool> = (0..rank).map(|a| !named.contains(&a) && !named.contains(&(a - rank))).collect();
    let kept = tx.constant("kept", Tensor::vector(kept));
    let (shape, one) = (tx.plain("Shape", &[x]), tx.ints(&[1]));
    let unit = tx.plain("Equal", &[&shape, &one]);
    let wide = tx.plain("Not", &[&unit]);
    let stays = tx.plain("Or", &[&kept, &wide]);
    let shape = tx.node("Compress", &[&shape, &stays], Attrs::new().with("axis", 0));
    tx.out(op, "Out", "Reshape", &[x, &shape], Attrs::new())
}

fn unsqueeze(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let given = op.ints("axes").filter(|a| !a.is_empty() && op.ins("AxesTensor").is_empty() && op.ins("AxesTensorList").is_empty());
    let axes = match given {
        Some(axes) => {
            // Axes are put in one after the other, each moves those behind it.
            let mut dims = vec![false; tx.dims_in(op, "X")?.len()];
            for a in axes {
                let at = if a < 0 { a + dims.len() as i64 + 1 } else { a };
                let at = usize::try_from(at).ok().filter(|&at| at <= dims.len()).ok_or_else(|| format!("axis {a} is out of range"))?;
                dims.insert(at, true);
            }
            let places: Vec<i64> = (0..dims.len()).filter(|&i| dims[i]).map(|i| i as i64).collect();
            tx.ints(&places)
        }
        None => list(tx, op, "AxesTensor", "AxesTensorList", "axes")?.ok_or("it has no axes")?,
    };
    tx.out(op, "Out", "Unsqueeze", &[&x, &axes], Attrs::new())
}

fn transpose(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let rank = tx.dims_in(op, "X")?.len() as i64;
    let perm: Vec<i64> = op.ints("axis").unwrap_or_default().into_iter().map(|a| if a < 0 { a + rank } else { a }).collect();
    tx.out(op, "Out", "Transpose", &[&x], Attrs::new().with("perm", perm))
}

fn slice(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "Input")?;
    let axes = op.ints("axes").unwrap_or_default();
    let starts = list(tx, op, "StartsTensor", "StartsTensorList", "starts")?.ok_or("it has no starts")?;
    let ends = match backward_ends(tx, op, &axes)? {
        Some(ends) => tx.ints(&ends),
        None => list(tx, op, "EndsTensor", "EndsTensorList", "ends")?.ok_or("it has no ends")?,
    };
    let steps = list(tx, op, "StridesTensor", "StridesTensorList", "strides")?.unwrap_or_else(|| tx.ints(&vec![1; axes.len()]));
    let axes = tx.ints(&axes);
    let dropped = op.ints("decrease_axis").unwrap_or_default();
    if dropped.is_empty() {
        return tx.out(op, "Out", "Slice", &[&x, &starts, &ends, &axes, &steps], Attrs::new());
    }
    let cut = tx.node("Slice", &[&x, &starts, &ends, &axes, &steps], Attrs::new());
    let dropped = tx.ints(&dropped);
    tx.out(op, "Out", "Squeeze", &[&cut, &dropped], Attrs::new())
}

/// Ends of slices that go backward: −1 is before the first element, and what is further is the first.
fn backward_ends(tx: &Tx, op: &OpDesc, axes: &[i64]) -> Result<Option<Vec<i64>>, String> {
    let strides = op.ints("strides").unwrap_or_default();
    if strides.iter().all(|&s| s >= 0) || !op.ins("StridesTensor").is_empty() || !op.ins("StridesTensorList").is_empty() {
        return Ok(None);
    }
    if !op.ins("EndsTensor").is_empty() || !op.ins("EndsTensorList").is_empty() {
        return Err("ends that are tensors of a slice backward have no translation".into());
    }
    let dims = tx.dims_in(op, "Input")?;
    let mut ends = op.ints("ends").unwrap_or_default();
    for ((end, stride), axis) in ends.iter_mut().zip(&strides).zip(axes) {
        if *stride >= 0 || *end >= 0 {
            continue;
        }
        let size = usize::try_from(if *axis < 0 { axis + dims.len() as i64 } else { *axis }).ok().and_then(|a| dims.get(a).copied());
        match size {
            _ if *end == -1 => *end = i64::MIN + 1,
            Some(size) if size >= 0 => *end = (*end + size).max(0),
            _ => {}
        }
    }
    Ok(Some(ends))
}

fn split(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let axis = tx.int_or_tensor(op, "AxisTensor", "axis", 0)?;
    if !op.ins("SectionsTensorList").is_empty() {
        let sections = list(tx, op, "", "SectionsTensorList", "sections")?.ok_or("it has no sections")?;
        if op.ints("sections").unwrap_or_default().contains(&-1) {
            return Err("sections that are tensors beside one of -1 have no translation".into());
        }
        tx.out_all(op, "Out", "Split", &[&x, &sections], Attrs::new().with("axis", axis));
        return Ok(());
    }
    let mut sections = op.ints("sections").unwrap_or_default();
    if sections.is_empty() {
        let parts = op.outs("Out").len() as i64;
        tx.out_all(op, "Out", "Split", &[&x], Attrs::new().with("axis", axis).with("num_outputs", parts));
        return Ok(());
    }
    if sections.contains(&-1) {
        let dims = tx.dims_in(op, "X")?;
        let at = if axis < 0 { axis + dims.len() as i64 } else { axis } as usize;
        let whole = dims.get(at).copied().filter(|&d| d >= 0).ok_or("a section of -1 along an open dim has no translation")?;
        let stated = sections.iter().filter(|&&s| s != -1).try_fold(0i64, |n, &s| n.checked_add(s));
        let rest = stated.and_then(|n| whole.checked_sub(n)).ok_or("its sections have no sum")?;
        sections.iter_mut().filter(|s| **s == -1).for_each(|s| *s = rest);
    }
    let sections = tx.ints(&sections);
    tx.out_all(op, "Out", "Split", &[&x, &sections], Attrs::new().with("axis", axis));
    Ok(())
}

fn concat(tx: &mut Tx, op: &OpDesc) -> Done {
    let axis = tx.int_or_tensor(op, "AxisTensor", "axis", 0)?;
    let xs = tx.inputs(op, "X")?;
    let xs: Vec<&str> = xs.iter().map(String::as_str).collect();
    tx.out(op, "Out", "Concat", &xs, Attrs::new().with("axis", axis))
}

fn stack(tx: &mut Tx, op: &OpDesc) -> Done {
    let axis = op.int("axis", 0);
    let axes = tx.ints(&[axis]);
    let xs: Vec<String> = tx.inputs(op, "X")?.iter().map(|x| tx.node("Unsqueeze", &[x, &axes], Attrs::new())).collect();
    let xs: Vec<&str> = xs.iter().map(String::as_str).collect();
    tx.outs(op, &["Y"], OpName::onnx("Concat"), &xs, Attrs::new().with("axis", axis))
}

fn unstack(tx: &mut Tx, op: &OpDesc, parameter: &str) -> Done {
    let x = tx.input(op, "X")?;
    let axis = op.int("axis", 0);
    for (i, var) in op.outs(parameter).iter().enumerate() {
        let at = tx.constant("at", Tensor::scalar(i as i64));
        let one = OpDesc {
            outputs: vec![crate::formats::paddle::proto::Operand { parameter: Some("Out".into()), arguments: vec![var.clone()] }],
            ..OpDesc::default()
        };
        tx.out(&one, "Out", "Gather", &[&x, &at], Attrs::new().with("axis", axis))?;
    }
    Ok(())
}

fn gather(tx: &mut Tx, op: &OpDesc) -> Done {
    let axis = tx.int_or_tensor(op, "Axis", "axis", 0)?;
    let (x, mut index) = (tx.input(op, "X")?, tx.input(op, "Index")?);
    if tx.dims_in(op, "Index")?.len() == 2 {
        let flat = tx.ints(&[-1]);
        index = tx.node("Reshape", &[&index, &flat], Attrs::new());
    }
    tx.out(op, "Out", "Gather", &[&x, &index], Attrs::new().with("axis", axis))
}

fn index_select(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, index) = (tx.input(op, "X")?, tx.input(op, "Index")?);
    tx.out(op, "Out", "Gather", &[&x, &index], Attrs::new().with("axis", op.int("dim", 0)))
}

fn expand(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let shape = match list(tx, op, "Shape", "expand_shapes_tensor", "shape")? {
        Some(s) if op.ins("Shape").is_empty() && op.ins("expand_shapes_tensor").is_empty() => {
            let kept: Vec<i64> = op.ints("shape").unwrap_or_default().into_iter().map(|d| if d == -1 { 1 } else { d }).collect();
            let _ = s;
            tx.ints(&kept)
        }
        Some(s) => {
            let (keep, one) = (tx.ints(&[-1]), tx.ints(&[1]));
            let open = tx.node("Equal", &[&s, &keep], Attrs::new());
            tx.node("Where", &[&open, &one, &s], Attrs::new())
        }
        None => return Err("it has no shape".into()),
    };
    tx.out(op, "Out", "Expand", &[&x, &shape], Attrs::new())
}

fn expand_as(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let shape = match tx.opt(op, "Y")? {
        Some(y) => tx.node("Shape", &[&y], Attrs::new()),
        None => {
            let kept: Vec<i64> = op.ints("target_shape").unwrap_or_default().into_iter().map(|d| d.max(1)).collect();
            tx.ints(&kept)
        }
    };
    tx.out(op, "Out", "Expand", &[&x, &shape], Attrs::new())
}

/// Repeats to the shape of another, whose dims are multiples.
fn repeat_as(tx: &mut Tx, op: &OpDesc) -> Done {
    let (x, target) = (tx.input(op, "X")?, tx.input(op, "target_tensor")?);
    let (from, to) = (tx.plain("Shape", &[&x]), tx.plain("Shape", &[&target]));
    let times = tx.plain("Div", &[&to, &from]);
    tx.out(op, "Out", "Tile", &[&x, &times], Attrs::new())
}

fn expand_times(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let times = list(tx, op, "ExpandTimes", "expand_times_tensor", "expand_times")?.ok_or("it has no expand_times")?;
    tx.out(op, "Out", "Tile", &[&x, &times], Attrs::new())
}

fn tile(tx: &mut Tx, op: &OpDesc) -> Done {
    let mut x = tx.input(op, "X")?;
    let rank = tx.dims_in(op, "X")?.len();
    let given = match (op.ins("RepeatTimes").first(), op.ins("repeat_times_tensor").len()) {
        (Some(var), _) => {
            tx.dims(var)?.first().copied().filter(|n| (0..=64).contains(n)).ok_or("a number of repeats that is open has no translation")?
                as usize
        }
        (None, 0) => op.ints("repeat_times").unwrap_or_default().len(),
        (None, n) => n,
    };
    let mut times = list(tx, op, "RepeatTimes", "repeat_times_tensor", "repeat_times")?.ok_or("it has no repeat_times")?;
    if given < rank {
        let ones = tx.ints(&vec![1; rank - given]);
        times = tx.node("Concat", &[&ones, &times], Attrs::new().with("axis", 0));
    } else if given > rank {
        let axes = tx.ints(&(0..(given - rank) as i64).collect::<Vec<_>>());
        x = tx.plain("Unsqueeze", &[&x, &axes]);
    }
    tx.out(op, "Out", "Tile", &[&x, &times], Attrs::new())
}

fn to_dtype(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let code = op.int("out_dtype", 5) as i32;
    let to = dtype(code).ok_or_else(|| format!("dtype {code} does not exist"))?;
    tx.out(op, "Out", "Cast", &[&x], Attrs::new().with("to", i64::from(to.to_onnx())))
}

/// The number that fills: text, for it can be a large integer, or a float.
fn filling(tx: &mut Tx, op: &OpDesc, to: DType) -> Result<String, String> {
    let text = op.text("str_value", "");
    if let (Ok(i), true) = (text.parse::<i64>(), to.is_int()) {
        let t = cast(&Tensor::scalar(i), to).map_err(|e| e.to_string())?;
        return Ok(tx.constant("filling", t));
    }
    let value = text.parse::<f64>().unwrap_or_else(|_| op.float("value", 0.0).into());
    tx.number(to, value)
}

fn fill(tx: &mut Tx, op: &OpDesc) -> Done {
    let code = op.int("dtype", 5) as i32;
    let to = dtype(code).ok_or_else(|| format!("dtype {code} does not exist"))?;
    let value = match tx.opt(op, "ValueTensor")? {
        Some(v) => v,
        None => filling(tx, op, to)?,
    };
    let shape = list(tx, op, "ShapeTensor", "ShapeTensorList", "shape")?.ok_or("it has no shape")?;
    tx.out(op, "Out", "Expand", &[&value, &shape], Attrs::new())
}

fn fill_like(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "X")?;
    let to = match dtype(op.int("dtype", -1) as i32) {
        Some(to) => to,
        None => tx.dtype_in(op, "X")?,
    };
    let value = tx.number(to, op.float("value", 0.0).into())?;
    let shape = tx.node("Shape", &[&x], Attrs::new());
    tx.out(op, "Out", "Expand", &[&value, &shape], Attrs::new())
}

fn fill_batch(tx: &mut Tx, op: &OpDesc) -> Done {
    let x = tx.input(op, "Input")?;
    let code = op.int("dtype", 5) as i32;
    let to = dtype(code).ok_or_else(|| format!("dtype {code} does not exist"))?;
    let value = filling(tx, op, to)?;
    let shape = op.ints("shape").unwrap_or_default();
    let from = op.int("input_dim_idx", 0);
    let at = usize::try_from(op.int("output_dim_idx", 0)).ok().filter(|&a| a < shape.len()).ok_or("its output_dim_idx is out of range")?;
    let dim = tx.node("Shape", &[&x], Attrs::new().with("start", from).with("end", from.saturating_add(1)));
    let (head, tail) = (tx.ints(&shape[..at]), tx.ints(&shape[at + 1..]));
    let shape = tx.node("Concat", &[&head, &dim, &tail], Attrs::new().with("axis", 0));
    tx.out(op, "Out", "Expand", &[&value, &shape], Attrs::new())
}

/// The numbers that an op carries in its attributes.
pub(super) fn stored(op: &OpDesc, to: DType) -> Result<Tensor, String> {
    let shape: Vec<usize> = op.ints("shape").unwrap_or_default().iter().map(|&d| d.max(0) as usize).collect();
    let find = |name: &str| op.attrs.iter().find(|a| a.name() == name);
    let floats = find("fp32_values").map(|a| a.floats.clone()).filter(|v| !v.is_empty());
    let ints = ["int64_values", "int32_values", "bool_values", "int8_values"]
        .iter()
        .find_map(|n| op.ints(n).filter(|v| !v.is_empty()))
        .or_else(|| find("bool_values").map(|a| a.bools.iter().map(|&b| b.into()).collect::<Vec<i64>>()).filter(|v| !v.is_empty()));
    let values: Vec<f64> = match find("values") {
        Some(a) => a.scalars.iter().map(|s| s.r.or(s.i.map(|i| i as f64)).or(s.b.map(|b| f64::from(u8::from(b)))).unwrap_or(0.0)).collect(),
        None => vec![],
    };
    let tensor = match (floats, ints) {
        (Some(f), _) => Tensor::new(shape, f),
        (_, Some(i)) => Tensor::new(shape, i),
        _ => Tensor::new(shape, values),
    };
    tensor.and_then(|t| cast(&t, to)).map_err(|e| e.to_string())
}

fn assign_value(tx: &mut Tx, op: &OpDesc) -> Done {
    let code = op.int("dtype", 5) as i32;
    let to = dtype(code).ok_or_else(|| format!("dtype {code} does not exist"))?;
    let value = stored(op, to)?;
    let value = tx.constant("assigned", value);
    tx.out(op, "Out", "Identity", &[&value], Attrs::new())
}

fn one_hot(tx: &mut Tx, op: &OpDesc) -> Done {
    let mut x = tx.input(op, "X")?;
    if op.r#type() == "one_hot" && tx.dims_in(op, "X")?.last() == Some(&1) {
        let last = tx.ints(&[-1]);
        x = tx.node("Squeeze", &[&x, &last], Attrs::new());
    }
    let depth = match tx.opt(op, "depth_tensor")? {
        Some(depth) => {
            let scalar = tx.constant("scalar", Tensor::vector(Vec::<i64>::new()));
            let depth = tx.cast(&depth, DType::I64);
            tx.plain("Reshape", &[&depth, &scalar])
        }
        None => tx.constant("depth", Tensor::scalar(op.int("depth", 1))),
    };
    let x = tx.cast(&x, DType::I64);
    let values = tx.constant("off_on", Tensor::vector(vec![0f32, 1.0]));
    tx.out(op, "Out", "OneHot", &[&x, &depth, &values], Attrs::new())
}

fn range(tx: &mut Tx, op: &OpDesc) -> Done {
    let scalar = tx.constant("scalar", Tensor::vector(Vec::<i64>::new()));
    let mut ends = Vec::new();
    for parameter in ["Start", "End", "Step"] {
        let v = tx.input(op, parameter)?;
        ends.push(tx.node("Reshape", &[&v, &scalar], Attrs::new()));
    }
    tx.out(op, "Out", "Range", &[&ends[0], &ends[1], &ends[2]], Attrs::new())
}
