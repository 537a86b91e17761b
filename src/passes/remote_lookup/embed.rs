//! `com.microsoft::EmbedLayerNormalization`, plain and quantized: its word, position and segment tables.

use super::source::Source;
use super::{Found, How, Site, Verdict};
use crate::ops::remote::Negative;

pub(super) fn find(site: &Site, operand: usize, source: &Source) -> Verdict {
    let node = site.graph.node(site.id);
    let op = node.op()?;
    let quantized = &*op.name == "QEmbedLayerNormalization";
    if &*op.domain != "com.microsoft" || !(quantized || &*op.name == "EmbedLayerNormalization") || source.tensor.rank() != 2 {
        return None;
    }
    let operand_of_ids = match operand {
        2 => 0,
        4 => 1,
        3 if quantized || node.input(8).is_none() => {
            return Some(Err("its rows are read by position; there are no ids".into()));
        }
        3 => 8,
        _ => return None,
    };
    let scale = node.input(operand + 6).and_then(|v| super::source::source(site.graph, site.scope, v));
    if quantized && scale.is_none_or(|s| s.tensor.len() != 1) {
        return Some(Err("it has no single scale".into()));
    }
    let how = How::Compact { ids: operand_of_ids };
    Some(Ok(Found { ids: node.input(operand_of_ids)?, axis: 0, keys: 1, how, negative: Negative::Error, together: false, padding: None }))
}
