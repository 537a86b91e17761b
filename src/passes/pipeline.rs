//! Runs passes one after another and checks the model after each.

use super::{Changed, Pass, PassError, Report, catalogue};
use crate::ir::{Model, verify};

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
            let did = pass.run(model, report)?;
            if did == Changed::Yes {
                report.changed.push(pass.name());
                if let Some(fault) = verify(model).into_iter().next() {
                    return Err(PassError::Invalid { pass: pass.name(), fault });
                }
            }
            changed = changed.or(did);
        }
        Ok(changed)
    }
}

/// The passes of a text such as `fold-constants,dead-code`.
///
/// # Errors
/// A name that is not in the catalogue.
pub fn parse_passes(text: &str) -> Result<Pipeline, PassError> {
    let mut pipeline = Pipeline::new();
    for name in text.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        let Some(pass) = catalogue().into_iter().find(|p| p.name() == name) else {
            let known: Vec<&str> = catalogue().iter().map(|p| p.name()).collect();
            return Err(PassError::Call(format!("no pass \"{name}\"; there are {}", known.join(", "))));
        };
        pipeline.passes.push(pass);
    }
    Ok(pipeline)
}
