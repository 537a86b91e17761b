//! Ops whose bodies the executor runs.

use super::{OpDef, Run};

const CONTROL: &[i64] = &[1, 11, 13, 16, 19, 21, 23, 24, 25];
const SCAN: &[&str] =
    &["body", "directions", "num_scan_inputs", "scan_input_axes", "scan_input_directions", "scan_output_axes", "scan_output_directions"];

#[rustfmt::skip]
pub(super) const OPS: &[OpDef] = &[
    OpDef::new("If", CONTROL).outputs(1, usize::MAX).attrs(&["else_branch", "then_branch"]).run(Run::Control),
    OpDef::new("Loop", CONTROL).inputs(2, usize::MAX).outputs(1, usize::MAX).attrs(&["body"]).run(Run::Control),
    OpDef::new("Scan", &[8, 9, 11, 16, 19, 21, 23, 24, 25]).inputs(1, usize::MAX).outputs(1, usize::MAX).attrs(SCAN).run(Run::Control),
    OpDef::new("SequenceMap", &[17]).inputs(1, usize::MAX).outputs(1, usize::MAX).attrs(&["body"]).run(Run::Control),
];
