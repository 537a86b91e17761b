//! A table that a Loop or Scan carries as a state, and looks up in its body.

use super::source::Source;
use super::{Site, Verdict};

pub(super) fn find(site: &Site, operand: usize, _: &Source) -> Verdict {
    let node = site.graph.node(site.id);
    let op = node.op()?;
    if !(op.is("Loop") || op.is("Scan")) {
        return None;
    }
    let body = node.attrs.graph("body").ok()??;
    let state = *body.inputs().get(operand)?;
    let looks_up = |u: &crate::ir::Use| {
        let reader = body.node(u.node).op();
        u.operand == Some(0) && ["Gather", "GatherND", "GatherElements"].iter().any(|n| reader.is_some_and(|o| o.is(n)))
    };
    let found = body.uses(state.value(0)).iter().any(looks_up);
    found.then(|| Err("the loop carries it as a state, which each step may change".into()))
}
