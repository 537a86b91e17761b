//! One row of each sample, taken before the steps that work row by row and not behind them: classifiers and recommenders over
//! sequences read one position of the last layer alone. The bits are those of the nodes as they stand.

use super::fused::Sequence;
use super::gather::take;
use super::{Args, Kernel, OpError, Outputs, one, util};
use crate::invalid;
use crate::tensor::{Tensor, Value};

/// The kernel of nodes that work row by row on `[samples, rows, width]`, the last of which takes row `index` along axis 1;
/// `keep` says whether the axis stays, `varied` which inputs are no constants. Anything else goes the way of the nodes themselves.
pub(crate) fn kernel(nodes: Sequence, index: i64, keep: bool, varied: Vec<bool>) -> Kernel {
    Box::new(move |args| match early(&args, index, &varied)? {
        Some(rows) => last(&nodes, keep, &rows),
        None => nodes.run(&args),
    })
}

/// The inputs with the row alone; `None` if they are not all of one number of samples and rows.
fn early(args: &Args, index: i64, varied: &[bool]) -> Result<Option<Args>, OpError> {
    let mut dims = None;
    for i in (0..varied.len()).filter(|&i| varied[i]) {
        let Some(Value::Tensor(t)) = args.value(i) else { return Ok(None) };
        let &[samples, rows, _] = &t.shape()[..] else { return Ok(None) };
        if util::position(index, rows).is_none() || dims.is_some_and(|d| d != (samples, rows)) {
            return Ok(None);
        }
        dims = Some((samples, rows));
    }
    let index = Tensor::vector(vec![index]);
    let picked = (0..varied.len()).map(|i| match args.value(i) {
        Some(Value::Tensor(t)) if varied[i] => take(t, &index, 1).map(|t| Some(t.into())),
        other => Ok(other.cloned()),
    });
    Ok(Some(Args::new(picked.collect::<Result<Vec<_>, _>>()?)))
}

/// What the nodes before the last make of one row, in the form that the last gives it.
fn last(nodes: &Sequence, keep: bool, rows: &Args) -> Result<Outputs, OpError> {
    let Some(Value::Tensor(row)) = nodes.before_last(rows)? else { invalid!("expected a tensor") };
    let mut shape = row.shape().clone();
    if !keep {
        shape.remove(1);
    }
    one(row.reshape(shape)?)
}
