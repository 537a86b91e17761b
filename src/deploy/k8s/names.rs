//! Names that Kubernetes takes, and the endpoints that follow from them.

use super::Cluster;

/// The port at which pservers listen.
pub const PSERVER_PORT: u16 = 7000;
/// The port at which workers listen.
pub const WORKER_PORT: u16 = 8000;
/// The port of counters and probes.
pub const METRICS_PORT: u16 = 9100;

/// The longest name of a job: a StatefulSet's is at most 52, for a label of its pods holds it and a digest.
const LONGEST: usize = 52 - "-pserver".len();
/// The longest argument that Linux hands to a process.
const LONGEST_ARGUMENT: usize = (128 << 10) - 1;

/// That a text is a label as in DNS: lower-case letters, digits and inner hyphens.
///
/// # Errors
/// What is wrong with it.
pub fn label(text: &str, longest: usize) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > longest || !text.chars().all(fits) || text.starts_with('-') || text.ends_with('-') {
        return Err(format!("\"{text}\": expected 1 to {longest} of a-z, 0-9 and -, with no - at either end"));
    }
    Ok(())
}

/// That a text can be the name of a Secret or a claim: labels, joined by dots.
///
/// # Errors
/// What is wrong with it.
pub fn subdomain(text: &str) -> Result<(), String> {
    if text.len() > 253 || text.split('.').any(|part| label(part, 253).is_err()) {
        return Err(format!("\"{text}\": expected at most 253 of a-z, 0-9, - and ., with a letter or digit at both ends of each part"));
    }
    Ok(())
}

/// That objects can be named after this: a label that begins with a letter, for Services do.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    label(name, LONGEST)?;
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("\"{name}\": expected a letter first"));
    }
    Ok(())
}

/// The two kinds of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// Those that serve shards.
    Pserver,
    /// Those that compute.
    Worker,
}

impl Component {
    /// The word for it, in names and labels.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pserver => "pserver",
            Self::Worker => "worker",
        }
    }

    /// Where its pods listen.
    pub fn port(self) -> u16 {
        match self {
            Self::Pserver => PSERVER_PORT,
            Self::Worker => WORKER_PORT,
        }
    }
}

impl Cluster {
    /// The name of the object that has these pods, and of the Service before them.
    pub fn name_of(&self, part: Component) -> String {
        format!("{}-{}", self.name, part.word())
    }

    /// The endpoints of these pods, in order.
    pub fn endpoints(&self, part: Component) -> Vec<String> {
        let (service, port) = (self.name_of(part), part.port());
        let count = if part == Component::Pserver { self.pservers.count } else { self.workers.count };
        // Within one namespace the short name is enough.
        let domain = self.namespace.as_ref().map_or(String::new(), |n| format!(".{n}.svc"));
        (0..count).map(|i| format!("{service}-{i}.{service}{domain}:{port}")).collect()
    }

    /// That a process can be told all endpoints.
    ///
    /// # Errors
    /// Too many of a kind.
    pub fn check_lists(&self) -> Result<(), String> {
        for part in [Component::Pserver, Component::Worker] {
            let all = self.endpoints(part);
            let bytes = all.join(",").len();
            if bytes > LONGEST_ARGUMENT {
                let (count, word) = (all.len(), part.word());
                return Err(format!(
                    "{count} {word}s: the list of their endpoints has {bytes} bytes, an argument at most {LONGEST_ARGUMENT}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_services_and_stateful_sets_take() {
        for name in ["a", "wide-deep", "m2", &"x".repeat(44)] {
            check_name(name).unwrap();
        }
        for name in ["", "-a", "a-", "A", "a_b", "a.b", "ä", &"x".repeat(45)] {
            let error = check_name(name).unwrap_err();
            assert!(error.ends_with("expected 1 to 44 of a-z, 0-9 and -, with no - at either end"), "{error}");
        }
        assert_eq!(check_name("2m").unwrap_err(), "\"2m\": expected a letter first");
        label("2m", 63).unwrap();
        subdomain("my.claim-2").unwrap();
        for name in ["", "a..b", "a.-b", "A", ".a", &"x".repeat(254)] {
            assert!(subdomain(name).unwrap_err().contains("expected at most 253"));
        }
    }
}
