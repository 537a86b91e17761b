//! YAML as Kubernetes reads it, as far as manifests need it: what is quoted is text; what is not is a number, a truth value,
//! nothing, or text.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// The documents of a text.
pub fn documents(text: &str) -> Vec<Value> {
    let mut events = Parser::new_from_str(text).map(|e| e.expect("YAML").0);
    let mut all = Vec::new();
    while let Some(event) = events.next() {
        match event {
            Event::DocumentStart(_) => {
                let first = events.next().expect("a document");
                all.push(value(first, &mut events));
            }
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            other => panic!("{other:?}"),
        }
    }
    all
}

fn value<'a>(event: Event<'a>, events: &mut impl Iterator<Item = Event<'a>>) -> Value {
    match event {
        Event::Scalar(text, ScalarStyle::Plain, 0, None) => plain(&text),
        Event::Scalar(text, _, 0, None) => text.into_owned().into(),
        Event::SequenceStart(0, None) => {
            let mut all = Vec::new();
            loop {
                match events.next().expect("an element") {
                    Event::SequenceEnd => return all.into(),
                    event => all.push(value(event, events)),
                }
            }
        }
        Event::MappingStart(0, None) => {
            let mut all = Map::new();
            loop {
                let key = match events.next().expect("a key") {
                    Event::MappingEnd => return all.into(),
                    Event::Scalar(key, ..) => key.into_owned(),
                    other => panic!("{other:?}"),
                };
                let event = events.next().expect("a value");
                let twice = all.insert(key.clone(), value(event, events));
                assert!(twice.is_none(), "{key} is there twice");
            }
        }
        other => panic!("{other:?}"),
    }
}

/// What is not quoted. Spellings that only YAML 1.1 takes for something else are as wrong as none.
fn plain(text: &str) -> Value {
    let lower = text.to_ascii_lowercase();
    assert!(!["y", "n", "yes", "no", "on", "off", "=", "<<", ".inf", ".nan"].contains(&lower.as_str()), "{text:?} is not quoted");
    match text {
        "null" | "~" | "" => Value::Null,
        "true" => true.into(),
        "false" => false.into(),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && !text.starts_with("--") => {
            text.parse::<i64>().unwrap_or_else(|_| panic!("{text:?} is not quoted")).into()
        }
        _ => text.into(),
    }
}
