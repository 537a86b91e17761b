//! Loop, Scan and SequenceMap: bodies run once per iteration.

use super::ExecError;
use super::plan::{Body, Plan};
use super::scheduler::{Run, run};
use crate::dispatch;
use crate::ir::{AttrError, Attrs, Dim};
use crate::tensor::{Element, Shape, Tensor, Value};
use std::sync::Arc;

type Fail<'a> = &'a dyn Fn(String) -> ExecError;

/// A bool scalar (or one-element tensor) operand; `None` if it is left out.
pub(super) fn condition(values: &[Option<Value>], i: usize) -> Result<Option<bool>, String> {
    match values.get(i).and_then(Option::as_ref) {
        None => Ok(None),
        Some(Value::Tensor(t)) => t.item::<bool>().map(Some).map_err(|e| format!("condition: {e}")),
        Some(v) => Err(format!("condition: expected a bool, found {}", v.describe())),
    }
}

fn tensor(v: Option<Value>, what: &str) -> Result<Tensor, String> {
    match v {
        Some(Value::Tensor(t)) => Ok(t),
        Some(v) => Err(format!("{what}: expected a tensor, found {}", v.describe())),
        None => Err(format!("{what} is missing")),
    }
}

/// Iterations of a loop that only its condition ends, and the trip count above which it is one.
const MAX_UNBOUNDED: i64 = 1 << 20;
const MAX_BOUNDED: i64 = 1 << 26;

/// Loop (since opset 1): `M` and `cond` may be left out; the body gets the iteration and the condition first.
pub(super) fn run_loop(
    body: &Body,
    fail: Fail,
    mut values: Vec<Option<Value>>,
    captured: Vec<Option<Value>>,
    r: &Run,
) -> Result<Vec<Value>, ExecError> {
    let plan = &body.plan;
    let trips = match values.first_mut().and_then(Option::take) {
        None => i64::MAX,
        Some(v) => tensor(Some(v), "trip count")
            .and_then(|t| t.to_i64s().map_err(|e| e.to_string()))
            .and_then(|v| v.first().copied().ok_or_else(|| "an empty trip count".into()))
            .map_err(fail)?,
    };
    let mut go = condition(&values, 1).map_err(fail)?.unwrap_or(true);
    let mut carried: Vec<Option<Value>> = values.drain(2.min(values.len())..).collect();
    let own = plan.inputs.len() - captured.len();
    if own != carried.len() + 2 || plan.outputs.len() < carried.len() + 1 {
        return Err(fail(format!(
            "the body takes {own} inputs and gives {} outputs for {} carried values",
            plan.outputs.len(),
            carried.len()
        )));
    }
    let scans = plan.outputs.len() - 1 - carried.len();
    let mut collected: Vec<Vec<Tensor>> = vec![Vec::new(); scans];
    let mut i = 0;
    while i < trips && go {
        r.tick().map_err(fail)?;
        if i >= MAX_UNBOUNDED && trips > MAX_BOUNDED {
            return Err(fail(format!("it does not end: its condition still holds after {MAX_UNBOUNDED} iterations")));
        }
        let head = [Some(Value::Tensor(Tensor::scalar(i))), Some(Value::Tensor(Tensor::scalar(go)))];
        let n = carried.len();
        let inputs = head.into_iter().chain(carried.drain(..)).chain(captured.iter().cloned()).collect();
        let mut outputs = run(plan, inputs, r)?.into_iter().map(Some).collect::<Vec<_>>();
        go = condition(&outputs, 0).map_err(fail)?.unwrap_or(true);
        let tail = outputs.split_off(n + 1);
        carried = outputs.split_off(1);
        for (list, v) in collected.iter_mut().zip(tail) {
            list.push(tensor(v, "scan output").map_err(fail)?);
        }
        i += 1;
    }
    let mut results: Vec<Value> =
        carried.into_iter().map(|v| v.ok_or_else(|| fail("a carried value is missing".into()))).collect::<Result<_, _>>()?;
    let first = results.len() + 1;
    for (k, list) in collected.into_iter().enumerate() {
        results.push(stack(&list, 0, plan, first + k).map_err(fail)?.into());
    }
    Ok(results)
}

/// Joins tensors of one shape along a new axis. Of none, the empty tensor of the body's stated output type.
fn stack(list: &[Tensor], axis: usize, plan: &Plan, output: usize) -> Result<Tensor, String> {
    let Some(first) = list.first() else {
        let ty = plan.output_types.get(output).and_then(Option::as_ref);
        let dtype = ty.and_then(|t| t.dtype()).ok_or("no iterations, and the body does not state the type of its scan output")?;
        let mut shape: Shape =
            ty.and_then(|t| t.shape()).unwrap_or_default().iter().map(|d| if let Dim::Known(n) = d { *n } else { 0 }).collect();
        shape.insert(axis.min(shape.len()), 0);
        return dispatch!(dtype, T => Tensor::new(shape, Vec::<T>::new())).map_err(|e| e.to_string());
    };
    if let Some(other) = list.iter().find(|t| t.shape() != first.shape() || t.dtype() != first.dtype()) {
        return Err(format!("scan outputs of {}{} and {}{}", first.dtype(), first.shape(), other.dtype(), other.shape()));
    }
    dispatch!(first.dtype(), T => stack_as::<T>(list, axis))
}

fn stack_as<T: Element>(list: &[Tensor], axis: usize) -> Result<Tensor, String> {
    let shape = list[0].shape();
    if axis > shape.len() {
        return Err(format!("axis {axis} is out of range for rank {}", shape.len() + 1));
    }
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis..].iter().product();
    let slices = list.iter().map(|t| t.to_slice::<T>().map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()?;
    let mut data = Vec::with_capacity(outer * inner * list.len());
    for o in 0..outer {
        slices.iter().for_each(|s| data.extend_from_slice(&s[o * inner..(o + 1) * inner]));
    }
    let mut out = shape.clone();
    out.insert(axis, list.len());
    Tensor::new(out, data).map_err(|e| e.to_string())
}

/// Element `i` of `t` along `axis`, without that axis.
fn pick(t: &Tensor, axis: usize, i: usize) -> Result<Tensor, String> {
    fn pick_as<T: Element>(t: &Tensor, axis: usize, i: usize) -> Result<Tensor, String> {
        let shape = t.shape();
        let outer: usize = shape[..axis].iter().product();
        let inner: usize = shape[axis + 1..].iter().product();
        let s = t.to_slice::<T>().map_err(|e| e.to_string())?;
        let mut data = Vec::with_capacity(outer * inner);
        for o in 0..outer {
            let at = (o * shape[axis] + i) * inner;
            data.extend_from_slice(&s[at..at + inner]);
        }
        let mut out = shape.clone();
        out.remove(axis);
        Tensor::new(out, data).map_err(|e| e.to_string())
    }
    dispatch!(t.dtype(), T => pick_as::<T>(t, axis, i))
}

/// The attributes of Scan.
pub(super) struct ScanAttrs {
    scan_inputs: usize,
    input_axes: Vec<i64>,
    output_axes: Vec<i64>,
    input_backward: Vec<bool>,
    output_backward: Vec<bool>,
    /// Opset 8: a batch axis first, and sequence lengths as the first operand.
    batched: bool,
}

impl ScanAttrs {
    pub(super) fn read(attrs: &Attrs, version: i64) -> Result<Self, AttrError> {
        let list = |name: &str| attrs.ints(name).map(|v| v.unwrap_or_default().to_vec());
        let flags = |name: &str| list(name).map(|v| v.into_iter().map(|x| x != 0).collect::<Vec<_>>());
        Ok(Self {
            scan_inputs: attrs.int_or("num_scan_inputs", 0)?.max(0) as usize,
            input_axes: list("scan_input_axes")?,
            output_axes: list("scan_output_axes")?,
            input_backward: flags(if version < 9 { "directions" } else { "scan_input_directions" })?,
            output_backward: flags("scan_output_directions")?,
            batched: version < 9,
        })
    }
}

/// Scan (opset 8, and 9 and later).
pub(super) fn run_scan(
    body: &Body,
    attrs: &ScanAttrs,
    fail: Fail,
    mut values: Vec<Option<Value>>,
    captured: Vec<Option<Value>>,
    r: &Run,
) -> Result<Vec<Value>, ExecError> {
    if !attrs.batched {
        return scan_once(body, attrs, fail, values, None, &captured, r);
    }
    let lengths = values.first_mut().and_then(Option::take);
    let lengths = match lengths {
        Some(v) => Some(tensor(Some(v), "sequence_lens").and_then(|t| t.to_i64s().map_err(|e| e.to_string())).map_err(fail)?),
        None => None,
    };
    let operands = values.split_off(1.min(values.len()));
    let tensors: Vec<Tensor> = operands.into_iter().map(|v| tensor(v, "operand")).collect::<Result<_, _>>().map_err(fail)?;
    let batch = tensors.first().and_then(|t| t.shape().first().copied()).unwrap_or(0);
    if tensors.iter().any(|t| t.shape().first() != Some(&batch)) {
        return Err(fail("operands of different batch sizes".into()));
    }
    let mut columns: Vec<Vec<Tensor>> = vec![Vec::new(); body.plan.outputs.len()];
    for b in 0..batch {
        let inputs = tensors.iter().map(|t| pick(t, 0, b).map(|t| Some(Value::Tensor(t)))).collect::<Result<Vec<_>, _>>().map_err(fail)?;
        let limit = lengths.as_ref().map(|l| l.get(b).copied().unwrap_or(0).max(0) as usize);
        let outputs = scan_once(body, attrs, fail, inputs, limit, &captured, r)?;
        for (column, v) in columns.iter_mut().zip(outputs) {
            column.push(tensor(Some(v), "output").map_err(fail)?);
        }
    }
    columns.iter().enumerate().map(|(k, c)| stack(c, 0, &body.plan, k).map(Value::Tensor).map_err(fail)).collect()
}

fn scan_once(
    body: &Body,
    attrs: &ScanAttrs,
    fail: Fail,
    mut values: Vec<Option<Value>>,
    limit: Option<usize>,
    captured: &[Option<Value>],
    r: &Run,
) -> Result<Vec<Value>, ExecError> {
    let plan = &body.plan;
    let Some(states) = values.len().checked_sub(attrs.scan_inputs) else { return Err(fail("fewer operands than num_scan_inputs".into())) };
    let own = plan.inputs.len() - captured.len();
    if own != values.len() || plan.outputs.len() < states || attrs.scan_inputs == 0 {
        return Err(fail(format!("the body takes {own} inputs for {} operands", values.len())));
    }
    let scanned: Vec<Tensor> =
        values.split_off(states).into_iter().map(|v| tensor(v, "scan input")).collect::<Result<_, _>>().map_err(fail)?;
    let axis = |list: &[i64], k: usize, rank: usize| {
        crate::ops::util::axis(list.get(k).copied().unwrap_or(0), rank).map_err(|e| fail(e.to_string()))
    };
    let axes = scanned.iter().enumerate().map(|(k, t)| axis(&attrs.input_axes, k, t.rank())).collect::<Result<Vec<_>, _>>()?;
    let full = scanned[0].shape()[axes[0]];
    if scanned.iter().zip(&axes).any(|(t, &a)| t.shape()[a] != full) {
        return Err(fail("scan inputs of different lengths".into()));
    }
    let steps = limit.map_or(full, |l| l.min(full));
    let mut carried = values;
    let mut collected: Vec<Vec<Tensor>> = vec![Vec::new(); plan.outputs.len() - states];
    for i in 0..steps {
        r.tick().map_err(fail)?;
        let mut inputs: Vec<Option<Value>> = std::mem::take(&mut carried);
        for (k, t) in scanned.iter().enumerate() {
            let at = if attrs.input_backward.get(k).copied().unwrap_or(false) { steps - 1 - i } else { i };
            inputs.push(Some(pick(t, axes[k], at).map_err(fail)?.into()));
        }
        inputs.extend(captured.iter().cloned());
        let mut outputs = run(plan, inputs, r)?;
        let tail = outputs.split_off(states);
        carried = outputs.into_iter().map(Some).collect();
        for (list, v) in collected.iter_mut().zip(tail) {
            list.push(tensor(Some(v), "scan output").map_err(fail)?);
        }
    }
    let mut results: Vec<Value> = carried.into_iter().flatten().collect();
    for (k, mut list) in collected.into_iter().enumerate() {
        if attrs.output_backward.get(k).copied().unwrap_or(false) {
            list.reverse();
        }
        let rank = list.first().map_or(1, |t| t.rank() + 1);
        let axis = axis(&attrs.output_axes, k, rank)?;
        // Opset 8: what lies past a sequence's length is zero.
        if let (Some(first), true) = (list.first(), steps < full) {
            let zero = dispatch!(first.dtype(), T => Tensor::full(first.shape(), T::default())).map_err(|e| fail(e.to_string()))?;
            list.resize(full, zero);
        }
        results.push(stack(&list, axis, plan, states + k).map_err(fail)?.into());
    }
    Ok(results)
}

/// SequenceMap (opset 17): sequences are walked together, tensors are given to each call.
pub(super) fn run_sequence_map(
    body: &Body,
    fail: Fail,
    values: Vec<Option<Value>>,
    captured: Vec<Option<Value>>,
    r: &Run,
) -> Result<Vec<Value>, ExecError> {
    let Some(Some(Value::Sequence(first))) = values.first() else { return Err(fail("input 0: expected a sequence".into())) };
    let len = first.len();
    let mut outputs: Vec<Vec<Value>> = vec![Vec::with_capacity(len); body.plan.outputs.len()];
    for i in 0..len {
        r.tick().map_err(fail)?;
        let mut inputs = Vec::with_capacity(values.len() + captured.len());
        for v in &values {
            inputs.push(match v {
                Some(Value::Sequence(s)) => {
                    Some(s.get(i).cloned().ok_or_else(|| fail(format!("a sequence ends at {i}, input 0 has {len}")))?)
                }
                other => other.clone(),
            });
        }
        inputs.extend(captured.iter().cloned());
        for (list, v) in outputs.iter_mut().zip(run(&body.plan, inputs, r)?) {
            list.push(v);
        }
    }
    Ok(outputs.into_iter().map(|v| Value::Sequence(Arc::new(v))).collect())
}
