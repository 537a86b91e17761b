//! A product of one-hot rows and a table: a lookup in all but name, for which an id out of range is a row of zeros.

use super::source::{Source, const_ints, constant};
use super::{Found, How, Site, Verdict};
use crate::ir::{Type, ValueId};
use crate::ops::remote::Negative;
use crate::tensor::Tensor;

pub(super) fn find(site: &Site, operand: usize, source: &Source) -> Verdict {
    let node = site.graph.node(site.id);
    let op = node.op()?;
    if !(op.is("MatMul") || op.is("Gemm")) || operand != 1 {
        return None;
    }
    let hot = one_hot(site, node.input(0)?, 0)?;
    if !site.one_hot {
        return Some(Err("it is a product with one-hot rows: an id out of range is no error there, but a row of zeros".into()));
    }
    let rows = source.tensor.shape()[0];
    let stays = |why: &str| Some(Err(format!("it is a product with one-hot rows, {why}")));
    if op.is("Gemm") || source.tensor.rank() != 2 || hot.reshaped {
        return stays("which are not a table's rows alone");
    }
    if hot.depth != Some(rows) {
        return stays("whose depth is not the number of its rows");
    }
    if !hot.plain {
        return stays("whose values are not 0 and 1 along the last dim");
    }
    let int = |t: &Type| t.dtype().is_some_and(crate::tensor::DType::is_int);
    if !site.types.get(site.graph, hot.ids).is_some_and(int) {
        return stays("whose ids are not known to be integers");
    }
    let how = How::OneHot { lowest: if hot.wraps { -(rows as i64) } else { 0 } };
    Some(Ok(Found { ids: hot.ids, axis: 0, keys: 1, how, negative: Negative::Wrap, together: false, padding: Some(rows as i64) }))
}

/// Whether the product of a one-hot row and the table is the row, bit for bit, and that of zeros is zeros: of negative
/// numbers alone it would be negative zeros.
pub(super) fn is_exact(table: &Tensor) -> bool {
    let (dtype, size) = (table.dtype(), table.dtype().bits() / 8);
    let width = table.shape().get(1..).unwrap_or_default().iter().product::<usize>();
    let Some(bytes) = table.bytes().filter(|_| dtype.is_float() && size > 0 && width > 0) else { return false };
    let mut positive = vec![false; width];
    // Part by part, for a table may be larger than memory.
    let rows = ((1 << 18) / width).max(1);
    let fits = bytes.chunks(size * width * rows).all(|part| {
        let part = Tensor::from_bytes(dtype, [part.len() / size], part.to_vec()).and_then(|t| t.to_f32s());
        part.is_ok_and(|values| {
            values.chunks(width).for_each(|row| positive.iter_mut().zip(row).for_each(|(p, x)| *p |= *x >= 0.0));
            values.iter().all(|x| x.is_finite() && !(*x == 0.0 && x.is_sign_negative()))
        })
    });
    fits && positive.into_iter().all(|p| p)
}

struct OneHot {
    ids: ValueId,
    depth: Option<usize>,
    /// 0 and 1, along the last dim.
    plain: bool,
    /// Negative ids count from the end.
    wraps: bool,
    /// Something lies between it and the product that is no cast.
    reshaped: bool,
}

fn one_hot(site: &Site, v: ValueId, views: usize) -> Option<OneHot> {
    let (graph, node) = (site.graph, site.graph.node(v.node));
    let op = node.op().filter(|_| views < 16)?;
    let of = |reshaped: bool| {
        let hot = one_hot(site, node.input(0)?, views + 1)?;
        Some(OneHot { reshaped: hot.reshaped || reshaped, ..hot })
    };
    match &*op.name {
        _ if !op.domain.is_empty() => None,
        "Cast" | "Identity" => of(false),
        "Reshape" | "Flatten" => of(true),
        "OneHot" => {
            let ids = node.input(0)?;
            let depth = const_ints(graph, site.scope, node.input(1)?).and_then(|d| usize::try_from(*d.first()?).ok());
            let values = node.input(2).and_then(|v| constant(graph, site.scope, v)).and_then(|t| t.to_f32s().ok());
            let axis = node.attrs.int_or("axis", -1).ok()?;
            let last = axis == -1 || site.types.rank(graph, ids).is_some_and(|r| axis == r as i64);
            Some(OneHot { ids, depth, plain: last && values.as_deref() == Some(&[0.0, 1.0]), wraps: true, reshaped: false })
        }
        "Equal" => {
            let counts = |v: ValueId| {
                let t = constant(graph, site.scope, v)?;
                let last = t.shape().last().copied().filter(|&n| n == t.len() && t.dtype().is_int())?;
                t.to_i64s().ok()?.into_iter().eq(0..last as i64).then_some(last)
            };
            let (a, b) = (node.input(0)?, node.input(1)?);
            let (column, depth) = counts(b).map(|n| (a, n)).or_else(|| counts(a).map(|n| (b, n)))?;
            let unsqueeze = graph.node(column.node);
            let axes = match unsqueeze.op()?.is("Unsqueeze").then(|| unsqueeze.input(1))? {
                Some(a) => const_ints(graph, site.scope, a)?,
                None => unsqueeze.attrs.ints("axes").ok()??.to_vec(),
            };
            let ids = unsqueeze.input(0)?;
            let rank = site.types.rank(graph, ids)?;
            let last = axes == [-1] || axes == [rank as i64];
            // The numbers must not add dims of their own.
            let flat = [a, b].into_iter().all(|v| constant(graph, site.scope, v).is_none_or(|t| t.rank() <= rank + 1));
            Some(OneHot { ids, depth: Some(depth), plain: last && flat, wraps: false, reshaped: false })
        }
        _ => None,
    }
}
