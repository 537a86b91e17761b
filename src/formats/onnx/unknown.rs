//! Finds what decoding would drop or report without a place: fields that the schema does not know (a newer writer's, or
//! garbage), names that are no UTF-8, lengths past the end, endless nesting.

use bytes::Bytes;

/// A message of the schema.
struct Message {
    name: &'static str,
    fields: &'static [Field],
}

/// A field of the schema.
struct Field {
    number: u32,
    name: &'static str,
    list: bool,
    kind: Kind,
}

/// What a field holds, as far as the walk cares.
enum Kind {
    /// Numbers or bytes.
    Plain,
    /// UTF-8.
    Text,
    /// The message at this place of the list.
    Message(usize),
}

static MESSAGES: &[Message] = include!(concat!(env!("OUT_DIR"), "/onnx_fields.rs"));

/// Messages inside messages, at most: the limit of the decoder.
const MAX_DEPTH: usize = 100;

/// What a walk over the wire bytes comes upon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that the schema does not have: `graph.node[3].field 99`.
    #[error("unknown field {0:?}, of a newer version of the format?")]
    Unknown(String),
    /// A name or another text that is no UTF-8: `graph.node[3].op_type`.
    #[error("{0:?} is not UTF-8")]
    Text(String),
    /// A field of another wire type than the schema's, in the decoder's words.
    #[error("{0}")]
    Decode(String),
    /// Bytes that are no protobuf message.
    #[error("broken at byte {at}{place}: {what}")]
    Broken {
        /// The byte from the start of the file.
        at: usize,
        /// The message, as ` in "graph.node[3]"`, or nothing for the outermost.
        place: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The name of a message that the schema does not have.
    #[error("the schema has no message {0:?}")]
    NoMessage(String),
}

/// A message that is being walked.
struct Frame {
    message: &'static Message,
    end: usize,
    /// The field by which it was reached and its place in the list.
    name: &'static str,
    index: Option<usize>,
    /// How often each of its own list fields was seen.
    seen: Vec<usize>,
}

impl Frame {
    fn new(message: &'static Message, end: usize, name: &'static str, index: Option<usize>) -> Self {
        Self { message, end, name, index, seen: vec![0; message.fields.len()] }
    }
}

/// Checks that every field of the message, and of the messages in it, is one that the schema knows.
///
/// `message` is the name in the schema, `ModelProto`. The walk keeps its own stack and reads each byte of the structure
/// once; the contents of strings and tensors are skipped.
///
/// # Errors
/// The first unknown field by its path, or the first place where the bytes are no message.
pub fn check_fields(message: &str, bytes: &[u8]) -> Result<(), WireError> {
    let root = MESSAGES.iter().find(|m| m.name == message).ok_or_else(|| WireError::NoMessage(message.into()))?;
    let mut stack = vec![Frame::new(root, bytes.len(), "", None)];
    let mut at = 0;
    while let Some(frame) = stack.last_mut() {
        if at == frame.end {
            stack.pop();
            continue;
        }
        match step(frame, bytes, at) {
            Ok(Step::Skip(next)) => at = next,
            Ok(Step::Enter(start, inner)) => {
                stack.push(inner);
                if stack.len() > MAX_DEPTH + 1 {
                    return Err(WireError::Broken { at, place: place(&stack), what: "messages are nested too deeply" });
                }
                at = start;
            }
            Err(Fault::Unknown(number)) => return Err(WireError::Unknown(path(&stack, &format!("field {number}")))),
            Err(Fault::Text(name)) => return Err(WireError::Text(path(&stack, name))),
            Err(Fault::Broken(what)) => return Err(WireError::Broken { at, place: place(&stack), what }),
        }
    }
    Ok(())
}

enum Step {
    Skip(usize),
    Enter(usize, Frame),
}

enum Fault {
    Unknown(u32),
    Text(&'static str),
    Broken(&'static str),
}

/// Takes one field of a message, which starts at `at`.
fn step(frame: &mut Frame, bytes: &[u8], at: usize) -> Result<Step, Fault> {
    let bytes = &bytes[..frame.end];
    let (key, at) = varint(bytes, at).map_err(Fault::Broken)?;
    let number = u32::try_from(key >> 3).map_err(|_| Fault::Broken("field number past 32 bits"))?;
    let wire = key & 7;
    if number == 0 {
        return Err(Fault::Broken("field number 0"));
    }
    let known = frame.message.fields.binary_search_by_key(&number, |f| f.number);
    let (place, field) = match known {
        Ok(i) => (i, &frame.message.fields[i]),
        Err(_) => return Err(Fault::Unknown(number)),
    };
    let (start, end) = match wire {
        0 => (at, varint(bytes, at).map_err(Fault::Broken)?.1),
        1 => (at, at.saturating_add(8)),
        2 => {
            let (len, start) = varint(bytes, at).map_err(Fault::Broken)?;
            let len = usize::try_from(len).map_err(|_| Fault::Broken("length past the end"))?;
            (start, start.checked_add(len).ok_or(Fault::Broken("length past the end"))?)
        }
        3 | 4 => return Err(Fault::Broken("a group, which the format does not use")),
        5 => (at, at.saturating_add(4)),
        _ => return Err(Fault::Broken("wire type 6 or 7")),
    };
    if end > bytes.len() {
        return Err(Fault::Broken("a field goes past the end of its message"));
    }
    match field.kind {
        Kind::Plain => Ok(Step::Skip(end)),
        Kind::Text if wire == 2 && std::str::from_utf8(&bytes[start..end]).is_err() => Err(Fault::Text(field.name)),
        Kind::Text => Ok(Step::Skip(end)),
        Kind::Message(_) if wire != 2 => Err(Fault::Broken("a message field that is no message")),
        Kind::Message(message) => {
            let index = field.list.then_some(frame.seen[place]);
            frame.seen[place] += 1;
            Ok(Step::Enter(start, Frame::new(&MESSAGES[message], end, field.name, index)))
        }
    }
}

/// A varint and the place after it.
fn varint(bytes: &[u8], at: usize) -> Result<(u64, usize), &'static str> {
    let mut value = 0u64;
    for (i, &b) in bytes[at..].iter().take(10).enumerate() {
        if i == 9 && b > 1 {
            return Err("a varint past 64 bits");
        }
        value |= u64::from(b & 0x7f) << (7 * i);
        if b < 0x80 {
            return Ok((value, at + i + 1));
        }
    }
    Err(if bytes.len() - at < 10 { "a varint is cut off" } else { "a varint of more than 10 bytes" })
}

/// The path of a field of the innermost message; an empty field gives the path of the message.
fn path(stack: &[Frame], field: &str) -> String {
    // The innermost parts tell most; the path of an endless nesting is cut.
    let from = if stack.len() > 24 { stack.len() - 10 } else { 1 };
    let cut = (from > 1).then(|| "…".to_string());
    let parts = stack.iter().skip(from).map(|f| match f.index {
        Some(i) => format!("{}[{i}]", f.name),
        None => f.name.to_string(),
    });
    let field = (!field.is_empty()).then(|| field.to_string());
    cut.into_iter().chain(parts).chain(field).collect::<Vec<_>>().join(".")
}

fn place(stack: &[Frame]) -> String {
    let path = path(stack, "");
    if path.is_empty() { path } else { format!(" in {path:?}") }
}

/// Decodes a message whose every field the schema knows; `bytes` fields are views on `bytes`.
///
/// # Errors
/// As [`check_fields`], and for a field of another wire type than the schema's.
pub fn decode<M: prost::Message + prost::Name + Default>(bytes: Bytes) -> Result<M, WireError> {
    check_fields(M::NAME, &bytes)?;
    M::decode(bytes).map_err(|e| WireError::Decode(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::onnx::proto::{GraphProto, ModelProto, NodeProto};
    use prost::Message as _;

    /// A length-delimited field.
    fn field(number: u8, body: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, body.len() as u8], body].concat()
    }

    fn check(bytes: &[u8]) -> String {
        check_fields("ModelProto", bytes).map_or_else(|e| e.to_string(), |()| "all known".into())
    }

    #[test]
    fn a_model_of_known_fields_passes() {
        let node = NodeProto { op_type: Some("Add".into()), ..Default::default() };
        let graph = GraphProto { node: vec![node.clone(), node], ..Default::default() };
        let model = ModelProto { ir_version: Some(0), graph: Some(graph), ..Default::default() };
        assert_eq!(check(&model.encode_to_vec()), "all known");
        assert_eq!(check(&[]), "all known");
    }

    #[test]
    fn an_unknown_field_is_named_by_its_path() {
        // Field 99 as a varint: key 99 << 3 = 792 = 0x98 0x06.
        let odd = [0x98, 0x06, 0x01];
        let graph = [field(1, &[]), field(1, &odd)].concat();
        assert_eq!(check(&field(7, &graph)), "unknown field \"graph.node[1].field 99\", of a newer version of the format?");
        assert_eq!(check(&odd), "unknown field \"field 99\", of a newer version of the format?");
    }

    #[test]
    fn garbage_is_an_error() {
        assert_eq!(check(&[0x08]), "broken at byte 0: a varint is cut off");
        assert_eq!(check(&[[0x08].as_slice(), &[0xff; 11]].concat()), "broken at byte 0: a varint past 64 bits");
        assert_eq!(check(&[0x00]), "broken at byte 0: field number 0");
        assert_eq!(check(&[0x0b; 50_000]), "broken at byte 0: a group, which the format does not use");
        assert_eq!(check(&[0x3a, 0x7f, 0x00]), "broken at byte 0: a field goes past the end of its message");
        assert_eq!(check(&field(7, &[0x0a, 0x05])), "broken at byte 2 in \"graph\": a field goes past the end of its message");
        assert_eq!(check(&[0x3d, 0, 0, 0, 0]), "broken at byte 0: a message field that is no message");
    }

    #[test]
    fn a_name_that_is_no_utf8_is_named_by_its_path() {
        let node = field(4, &[b'A', 0xff]);
        assert_eq!(check(&field(7, &field(1, &node))), "\"graph.node[0].op_type\" is not UTF-8");
    }

    #[test]
    fn decoding_takes_what_the_walk_lets_pass() {
        let err = |bytes: &[u8]| decode::<ModelProto>(Bytes::copy_from_slice(bytes)).err().map(|e| e.to_string());
        assert_eq!(err(&[0x08, 0x07]), None);
        assert!(err(&[0x0a, 0x00]).is_some_and(|e| e.contains("ir_version")));
        // Depths on both sides of the limit: a chain of sequence types in an input.
        let nested = |depth: usize| {
            let mut body = Vec::new();
            for i in 0..depth {
                let mut next = vec![[0x22, 0x0a][i % 2]];
                prost::encoding::encode_varint(body.len() as u64, &mut next);
                next.extend(body);
                body = next;
            }
            for key in [0x12, 0x5a, 0x3a] {
                let mut next = vec![key];
                prost::encoding::encode_varint(body.len() as u64, &mut next);
                next.extend(body);
                body = next;
            }
            err(&body)
        };
        assert_eq!(nested(97), None);
        assert!(nested(99).is_some_and(|e| e.contains("nested too deeply")));
    }

    #[test]
    fn nesting_is_bounded_and_not_recursive() {
        // graph.node[0].attribute[0].g.node[0] and so on, built from the inside out.
        let mut body = Vec::new();
        for i in 0..3000 {
            let mut next = vec![[0x32, 0x2a, 0x0a][i % 3]];
            prost::encoding::encode_varint(body.len() as u64, &mut next);
            next.extend(body);
            body = next;
        }
        let mut all = vec![0x3a];
        prost::encoding::encode_varint(body.len() as u64, &mut all);
        all.extend(body);
        assert!(check(&all).contains("nested too deeply"), "{}", check(&all));
    }

    #[test]
    fn no_single_byte_makes_it_panic() {
        let node = NodeProto { op_type: Some("Add".into()), input: vec!["x".into()], ..Default::default() };
        let graph = GraphProto { node: vec![node], name: Some("g".into()), ..Default::default() };
        let bytes = ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec();
        for i in 0..bytes.len() {
            for b in 0..=255 {
                let mut bad = bytes.clone();
                bad[i] = b;
                let _ = check(&bad);
                let _ = check(&bad[..i]);
            }
        }
    }
}
