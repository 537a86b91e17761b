//! The plan of a graph: steps in the order in which they start, over numbered slots. Lookups and what they need come first, what
//! depends on them last, so that they overlap the rest.

use super::host::HostStep;
use crate::ir::{OpName, Type};
use crate::ops::Kernel;
use crate::tensor::Value;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Where a step finds an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// A constant of the plan.
    Const(usize),
    /// A slot of the run.
    Slot(usize),
}

pub(super) enum Action {
    /// A pure step.
    Kernel(Kernel),
    If {
        then_branch: Body,
        else_branch: Body,
    },
    Loop(Body),
    Scan {
        body: Body,
        attrs: super::control::ScanAttrs,
    },
    SequenceMap(Body),
    /// A call of a function of the model.
    Call(Arc<Plan>),
    /// A lookup or a collective.
    Host(HostStep),
}

/// A body with what it reads of the graphs around it.
pub(super) struct Body {
    pub(super) plan: Plan,
    /// Where the captured values are in the plan around it; they follow the body's own inputs.
    pub(super) captures: Vec<Source>,
}

pub(super) struct Step {
    pub(super) action: Action,
    pub(super) label: String,
    pub(super) op: OpName,
    pub(super) inputs: Vec<Option<Source>>,
    pub(super) outputs: Vec<Option<usize>>,
    /// Operand positions whose slot no later step reads: the value is moved, not shared.
    pub(super) last: Vec<bool>,
    /// Slots that are dead after this step.
    pub(super) free: Vec<usize>,
    /// Whether it has been seen to have a loop for several threads.
    pub(super) long: AtomicBool,
    /// Whether it reads rows of the plan's tables.
    pub(super) looks_up: bool,
}

/// A compiled graph.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) constants: Vec<Value>,
    /// Which constants are tables that only lookups read, as they lie.
    pub(super) tables: Vec<usize>,
    pub(super) slots: usize,
    /// Slots of the inputs, then of the captures.
    pub(super) inputs: Vec<usize>,
    pub(super) input_names: Vec<String>,
    pub(super) input_types: Vec<Option<Type>>,
    /// Defaults of inputs that the caller may leave out.
    pub(super) defaults: Vec<Option<Value>>,
    pub(super) outputs: Vec<Source>,
    pub(super) output_names: Vec<String>,
    pub(super) output_types: Vec<Option<Type>>,
    /// Whether some step, here or within, waits for a store or for other ranks.
    pub(super) waits: bool,
    /// Steps at the front that make ids and start lookups; none of them waits.
    pub(super) ahead: usize,
}

impl Plan {
    /// Whether no step has a plan of its own.
    pub(super) fn is_flat(&self) -> bool {
        self.steps.iter().all(|s| matches!(s.action, Action::Kernel(_) | Action::Host(_)))
    }

    /// Appends a step.
    pub(super) fn push(&mut self, mut step: Step) {
        step.looks_up = step.inputs.iter().flatten().any(|s| matches!(s, Source::Const(c) if self.tables.contains(c)));
        self.steps.push(step);
    }

    /// The tables' bytes.
    pub(super) fn table_bytes(&self) -> Vec<Bytes> {
        self.tables.iter().filter_map(|&c| self.constants[c].as_tensor()?.shared_bytes()).collect()
    }

    /// Finds the last reader of each slot.
    pub(super) fn mark_last_uses(&mut self) {
        let mut seen = vec![false; self.slots];
        for source in &self.outputs {
            if let Source::Slot(s) = source {
                seen[*s] = true;
            }
        }
        for step in self.steps.iter_mut().rev() {
            for captured in step.captures().collect::<Vec<_>>() {
                if let Source::Slot(s) = captured
                    && !seen[s]
                {
                    seen[s] = true;
                    step.free.push(s);
                }
            }
            for i in (0..step.inputs.len()).rev() {
                let Some(Source::Slot(s)) = step.inputs[i] else { continue };
                // Moved only where no body of the step reads it too.
                if !seen[s] {
                    seen[s] = true;
                    step.last[i] = true;
                }
            }
            for s in step.outputs.iter().flatten() {
                if !seen[*s] {
                    step.free.push(*s);
                }
            }
        }
    }

    /// Finds the steps that can be done before the rest.
    pub(super) fn mark_ahead(&mut self) {
        let mut late = vec![false; self.slots];
        for (i, step) in self.steps.iter().enumerate() {
            let waits = step.sources().any(|s| matches!(s, Source::Slot(s) if late[s]));
            let lookup = matches!(&step.action, Action::Host(host) if host.is_lookup());
            if waits || step.action.waits() && !lookup {
                return;
            }
            if lookup {
                step.outputs.iter().flatten().for_each(|&s| late[s] = true);
                self.ahead = i + 1;
            }
        }
    }
}

impl Action {
    /// Whether it waits for a store or for other ranks.
    pub(super) fn waits(&self) -> bool {
        match self {
            Action::Kernel(_) => false,
            Action::Host(_) => true,
            Action::Call(plan) => plan.waits,
            Action::If { then_branch, else_branch } => then_branch.plan.waits || else_branch.plan.waits,
            Action::Loop(b) | Action::SequenceMap(b) | Action::Scan { body: b, .. } => b.plan.waits,
        }
    }
}

impl Step {
    pub(super) fn new(action: Action, label: &str, op: OpName, inputs: Vec<Option<Source>>, outputs: Vec<Option<usize>>) -> Self {
        let last = vec![false; inputs.len()];
        let (free, long) = (Vec::new(), AtomicBool::new(false));
        Self { action, label: label.to_owned(), op, inputs, outputs, last, free, long, looks_up: false }
    }

    /// What its bodies read of the plan around them.
    pub(super) fn captures(&self) -> impl Iterator<Item = Source> + '_ {
        let bodies = match &self.action {
            Action::If { then_branch, else_branch } => [Some(then_branch), Some(else_branch)],
            Action::Loop(b) | Action::SequenceMap(b) | Action::Scan { body: b, .. } => [Some(b), None],
            _ => [None, None],
        };
        bodies.into_iter().flatten().flat_map(|b| b.captures.iter().copied())
    }

    /// All that it reads.
    pub(super) fn sources(&self) -> impl Iterator<Item = Source> + '_ {
        self.inputs.iter().flatten().copied().chain(self.captures())
    }
}
