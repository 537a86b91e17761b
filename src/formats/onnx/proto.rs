//! The messages of ONNX files, as `schema/onnx.proto` and `schema/onnx_data.proto` have them.
//!
//! Decode from [`bytes::Bytes`], so that each `bytes` field is a view on the file and not a copy.
#![allow(missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/onnx.rs"));

impl TypeProto {
    /// The number of the type fields that are set; more than one is no valid type.
    pub fn kinds(&self) -> usize {
        usize::from(self.tensor_type.is_some())
            + usize::from(self.sequence_type.is_some())
            + usize::from(self.map_type.is_some())
            + usize::from(self.opaque_type.is_some())
            + usize::from(self.sparse_tensor_type.is_some())
            + usize::from(self.optional_type.is_some())
    }
}

impl NodeProto {
    /// For messages: the node's name, or its type and first output where it has none.
    pub fn label(&self) -> String {
        match (self.name(), self.op_type()) {
            ("", op) => format!("{op} of {:?}", self.output.first().map_or("", String::as_str)),
            (name, op) => format!("{name:?} ({op})"),
        }
    }
}
