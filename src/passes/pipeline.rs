//! Runs passes one after another and checks the model after each.

use super::{Changed, Pass, PassError, Report, Size, catalogue};
use crate::ir::{Model, verify};

/// What `optimize` runs to a fixed point first: it computes nothing otherwise than the model does.
pub const SIMPLIFY: [&str; 13] = [
    "inline-functions",
    "lift-constants",
    "no-ops",
    "fold-constants",
    "fold-shapes",
    "constant-branches",
    "cast-chains",
    "reshape-chains",
    "simplify-transposes",
    "simplify-slices",
    "common-subexpressions",
    "merge-initializers",
    "dead-code",
];

/// What `optimize` runs then, with the others in between: larger patterns before the smaller ones they are made of.
pub const FUSE: [&str; 8] = [
    "fuse-batch-normalization",
    "fuse-layer-normalization",
    "fuse-gelu",
    "fuse-attention",
    "fuse-skip-layer-normalization",
    "fuse-matmul",
    "fuse-activations",
    "split-slices",
];

/// Rounds after which `optimize` stops.
const ROUNDS: usize = 50;

/// A list of passes.
#[derive(Default)]
pub struct Pipeline {
    passes: Vec<Box<dyn Pass>>,
}

impl Pipeline {
    /// No passes.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more pass at the end.
    #[must_use]
    pub fn with(mut self, pass: impl Pass + 'static) -> Self {
        self.passes.push(Box::new(pass));
        self
    }

    /// Runs them all.
    ///
    /// # Errors
    /// The first that a pass gives, or an invalid graph after a pass.
    pub fn run(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        for pass in &self.passes {
            let before = Size::of(model);
            let did = pass.run(model, report)?;
            if did == Changed::Yes {
                report.step(pass.name(), before, Size::of(model));
                if let Some(fault) = verify(model).into_iter().next() {
                    return Err(PassError::Invalid { pass: pass.name(), fault });
                }
            }
            changed = changed.or(did);
        }
        Ok(changed)
    }

    /// Runs them all again and again, until none changes anything.
    ///
    /// # Errors
    /// As [`Pipeline::run`].
    pub fn run_to_the_end(&self, model: &mut Model, report: &mut Report) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        for _ in 0..ROUNDS {
            if self.run(model, report)? == Changed::No {
                break;
            }
            changed = Changed::Yes;
        }
        Ok(changed)
    }
}

fn named(name: &str) -> Result<Box<dyn Pass>, PassError> {
    catalogue().into_iter().find(|p| p.name() == name).ok_or_else(|| {
        let known = super::near(name, catalogue().iter().map(|p| p.name()));
        PassError::Call(format!("no pass \"{name}\"{known} (`graphtool passes` lists them)"))
    })
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|n| !n.is_empty())
}

/// The passes of a text such as `fold-constants,dead-code`.
///
/// # Errors
/// A name that is not in the catalogue.
pub fn parse_passes(text: &str) -> Result<Pipeline, PassError> {
    Ok(Pipeline { passes: names(text).map(named).collect::<Result<_, _>>()? })
}

/// Runs all that makes a model smaller and faster and keeps its answers, but for the passes in `skip` (names with commas
/// between): [`SIMPLIFY`] until nothing changes, then [`FUSE`] as well.
///
/// # Errors
/// A name that is not in the catalogue; those of the passes.
pub fn optimize(model: &mut Model, skip: &str, report: &mut Report) -> Result<Changed, PassError> {
    let skip = names(skip).map(|n| named(n).map(|p| p.name())).collect::<Result<Vec<_>, _>>()?;
    let list = |groups: &[&[&str]]| -> Result<Pipeline, PassError> {
        let wanted = groups.iter().flat_map(|g| g.iter()).filter(|n| !skip.contains(n));
        Ok(Pipeline { passes: wanted.map(|n| named(n)).collect::<Result<_, _>>()? })
    };
    let simplified = list(&[&SIMPLIFY])?.run_to_the_end(model, report)?;
    Ok(list(&[&FUSE, &SIMPLIFY])?.run_to_the_end(model, report)?.or(simplified))
}
