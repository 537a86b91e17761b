//! Runs one op in a unit test: attributes and inputs in, values out.

use super::{Args, OpCtx, OpError, Run, find};
use crate::ir::{Attrs, OpName};
use crate::tensor::{Tensor, Value};

/// Runs `op` (`Name` or `domain::Name`) at `version` and gives back its `outputs` first outputs.
pub fn run_values(op: &str, version: i64, attrs: Attrs, inputs: Vec<Option<Value>>, outputs: usize) -> Result<Vec<Value>, OpError> {
    let (domain, name) = op.split_once("::").unwrap_or(("", op));
    let name = OpName::new(domain, name);
    let def = find(&name).unwrap_or_else(|| panic!("no record of {op}"));
    let Run::Kernel(build) = def.run else { panic!("{op} has no kernel") };
    let wanted = vec![true; outputs];
    let constants = vec![None; inputs.len()];
    let cx = OpCtx { op: &name, attrs: &attrs, version, inputs: inputs.len(), outputs: &wanted, constants: &constants };
    Ok(build(&cx)?(Args::new(inputs))?.into_vec())
}

/// As [`run_values`], for one tensor out of tensors.
pub fn run(op: &str, version: i64, attrs: Attrs, inputs: &[Tensor]) -> Result<Tensor, OpError> {
    let inputs = inputs.iter().map(|t| Some(Value::Tensor(t.clone()))).collect();
    Ok(run_values(op, version, attrs, inputs, 1)?.remove(0).into_tensor().expect("a tensor"))
}
