//! Objects as YAML, one document each.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::Value;
use serde_saphyr::{DoubleQuoted, SerializerOptions, to_string_with_options};

/// A value whose texts no reader takes for something else.
struct Plain<'a>(&'a Value);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            // YAML 1.1 has numbers, dates and times that 1.2 does not have.
            Value::String(s) if !s.starts_with(|c: char| c.is_alphabetic() || c == '/') && !s.starts_with("--") => {
                DoubleQuoted(s.as_str()).serialize(serializer)
            }
            Value::Array(all) => {
                let mut seq = serializer.serialize_seq(Some(all.len()))?;
                all.iter().try_for_each(|v| seq.serialize_element(&Plain(v)))?;
                seq.end()
            }
            Value::Object(all) => {
                let mut map = serializer.serialize_map(Some(all.len()))?;
                all.iter().try_for_each(|(k, v)| map.serialize_entry(k, &Plain(v)))?;
                map.end()
            }
            other => other.serialize(serializer),
        }
    }
}

/// The text, each document after a line `---`.
///
/// # Errors
/// What the format cannot hold.
pub fn print(documents: &[Value]) -> Result<String, String> {
    let mut options = SerializerOptions::default();
    options.prefer_block_scalars = false;
    let mut text = String::new();
    for document in documents {
        text.push_str("---\n");
        text.push_str(&to_string_with_options(&Plain(document), options.clone()).map_err(|e| e.to_string())?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_yaml_1_1_takes_for_a_number_or_a_date_is_quoted() {
        let text = print(&[serde_json::json!(["12:30", "2026-11-26", "1_000", "yes", "-1", ".5", "=", "a", 7, true, null])]).unwrap();
        assert_eq!(
            text,
            "---\n- \"12:30\"\n- \"2026-11-26\"\n- \"1_000\"\n- \"yes\"\n- \"-1\"\n- \".5\"\n- \"=\"\n- a\n- 7\n- true\n- null\n"
        );
    }
}
