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
    use saphyr::{LoadableYamlNode, Scalar, Yaml};

    #[test]
    fn no_text_is_taken_for_something_else() {
        let texts = [
            "",
            " ",
            "a",
            "a b",
            "--bind",
            "dense=I1..I5",
            "7000",
            "1e3",
            "0x10",
            "0o17",
            "017",
            "1_000",
            "12:30",
            "2026-11-26",
            "yes",
            "no",
            "on",
            "Off",
            "y",
            "N",
            "true",
            "null",
            "~",
            "=",
            "<<",
            ".5",
            ".inf",
            "-",
            "- a",
            "? a",
            "a: b",
            "a:",
            ":a",
            "a #b",
            "#",
            "'",
            "\"",
            "a'b",
            "a\"b",
            "*",
            "&a",
            "!t",
            "%",
            "@",
            "`",
            "[a]",
            "{a}",
            "|",
            ">",
            "\\n",
            "a\nb",
            "a\n",
            "\ta",
            "é",
            "\u{2028}",
            "---",
            "...",
            "/data/part-*.csv",
            "$(POD_IP):9100",
            "nan",
            "INF",
            "trailing ",
            "\u{feff}x",
            "\u{85}",
        ];
        let long = "word ".repeat(60);
        let list: Vec<&str> = texts.iter().copied().chain([long.as_str()]).collect();
        let text = print(&[serde_json::json!({ "list": list, "map": { "k": "v" } })]).unwrap();
        let parsed = Yaml::load_from_str(&text).unwrap();
        let found = parsed[0]["list"].as_sequence().unwrap();
        assert_eq!(found.len(), list.len());
        for (found, expected) in found.iter().zip(&list) {
            assert!(matches!(found, Yaml::Value(Scalar::String(s)) if s == expected), "{found:?} for {expected:?} in\n{text}");
        }
    }

    #[test]
    fn what_only_yaml_1_1_takes_for_a_number_or_a_date_is_quoted() {
        let text = print(&[serde_json::json!(["12:30", "2026-11-26", "1_000", "yes", "-1", ".5", "=", "a", 7, true, null])]).unwrap();
        assert_eq!(
            text,
            "---\n- \"12:30\"\n- \"2026-11-26\"\n- \"1_000\"\n- \"yes\"\n- \"-1\"\n- \".5\"\n- \"=\"\n- a\n- 7\n- true\n- null\n"
        );
    }
}
