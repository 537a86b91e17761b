//! What an attribute is where a node leaves it out, by op and version, as the standard's schemas state it
//! (`defaults.txt`: an op, the version from which on the line holds, the attributes with a default).

use crate::ir::{Attr, OpName};
use std::collections::HashMap;
use std::sync::LazyLock;

/// The default of an attribute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Default {
    /// An integer.
    Int(i64),
    /// A number.
    Float(f32),
    /// A text.
    Text(&'static str),
}

impl Default {
    /// Whether an attribute states just this, to the bit.
    pub fn is(&self, attr: &Attr) -> bool {
        match (self, attr) {
            (Default::Int(a), Attr::Int(b)) => a == b,
            (Default::Float(a), Attr::Float(b)) => a.to_bits() == b.to_bits(),
            (Default::Text(a), Attr::String(b)) => a.as_bytes() == &b[..],
            _ => false,
        }
    }

    fn parse(text: &'static str) -> Option<Default> {
        if let Some(text) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
            return Some(Default::Text(text));
        }
        text.parse().map(Default::Int).or_else(|_| text.parse().map(Default::Float)).ok()
    }
}

impl std::fmt::Display for Default {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Default::Int(x) => write!(f, "{x}"),
            Default::Float(x) => write!(f, "{x:?}"),
            Default::Text(x) => write!(f, "{x:?}"),
        }
    }
}

type Line = (i64, Vec<(&'static str, Default)>);

static TABLE: LazyLock<HashMap<&'static str, Vec<Line>>> = LazyLock::new(|| {
    let mut table: HashMap<&str, Vec<Line>> = HashMap::new();
    for line in include_str!("defaults.txt").lines() {
        let mut words = line.split(' ');
        let (Some(op), Some(Ok(version))) = (words.next(), words.next().map(str::parse)) else { continue };
        let attrs = words.filter_map(|w| w.split_once('=')).filter_map(|(name, value)| Some((name, Default::parse(value)?)));
        table.entry(op).or_default().push((version, attrs.collect()));
    }
    table
});

/// The default of an op's attribute at a version of its domain.
pub fn default_attr(op: &OpName, version: i64, attr: &str) -> Option<Default> {
    let lines = TABLE.get(&*op.to_string())?;
    let (_, attrs) = lines.iter().rev().find(|(since, _)| *since <= version)?;
    attrs.iter().find(|(name, _)| *name == attr).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;

    #[test]
    fn defaults_are_those_of_the_version() {
        let of = |op: &str, version, attr| default_attr(&OpName::onnx(op), version, attr);
        assert_eq!(of("Softmax", 11, "axis"), Some(Default::Int(1)));
        assert_eq!(of("Softmax", 13, "axis"), Some(Default::Int(-1)));
        assert_eq!(of("Gather", 1, "axis"), Some(Default::Int(0)));
        assert_eq!(of("Concat", 13, "axis"), None);
        assert_eq!(of("Resize", 19, "mode"), Some(Default::Text("nearest")));
        assert_eq!(of("BatchNormalization", 15, "epsilon"), Some(Default::Float(1e-5)));
    }

    #[test]
    fn each_line_is_of_an_op_and_an_attribute_that_is_known() {
        for (op, lines) in &*TABLE {
            let (domain, name) = op.split_once("::").unwrap_or(("", op));
            let Some(def) = ops::find(&OpName::new(domain, name)) else { continue };
            for (attr, _) in lines.iter().flat_map(|l| &l.1) {
                assert!(def.attrs.contains(attr), "{op} has no attribute {attr}");
            }
        }
    }
}
