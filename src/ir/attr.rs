//! Attributes of nodes, and the constants that a file stores (initializers, tensor attributes).

use super::graph::Graph;
use super::types::Type;
use crate::tensor::Tensor;
use bytes::Bytes;

/// What a file format holds of an item and the IR does not model (doc strings, explicit zeros, annotations), kept
/// encoded so that writing the item back loses nothing. Only the format that made it can read it.
#[derive(Debug, Clone, Default)]
pub struct Residue(pub Option<Bytes>);

/// Where and how a file stores the elements of a constant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Little-endian bytes inside the model file.
    #[default]
    Raw,
    /// A field of the elements' own type inside the model file.
    Typed,
    /// Bytes in another file, with the keys and values that say where (ONNX: `location`, `offset`, `length`, …).
    External(Vec<(String, String)>),
}

/// A constant: elements, and how its file stores them.
#[derive(Debug, Clone, Default)]
pub struct Constant {
    /// The elements.
    pub tensor: Tensor,
    /// How the file stores them.
    pub encoding: Encoding,
    /// What else the file says of it.
    pub residue: Residue,
}

impl From<Tensor> for Constant {
    fn from(tensor: Tensor) -> Self {
        Self { tensor, ..Self::default() }
    }
}

/// Equal elements; how they are stored does not count.
impl PartialEq for Constant {
    fn eq(&self, other: &Self) -> bool {
        self.tensor == other.tensor
    }
}

/// A sparse constant in coordinate form, as ONNX's SparseTensorProto has it.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseConstant {
    /// The values that are not zero, `[nnz]`.
    pub values: Constant,
    /// Their places: linear `[nnz]` or coordinates `[nnz, rank]`.
    pub indices: Constant,
    /// Dims of the dense form.
    pub dims: Vec<usize>,
}

/// The value of an attribute.
#[derive(Debug, Clone)]
pub enum Attr {
    /// A number.
    Float(f32),
    /// An integer.
    Int(i64),
    /// Text or bytes.
    String(Bytes),
    /// A tensor.
    Tensor(Constant),
    /// A body.
    Graph(Box<Graph>),
    /// A sparse tensor.
    Sparse(Box<SparseConstant>),
    /// A type.
    Type(Type),
    /// Numbers.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Texts.
    Strings(Vec<Bytes>),
    /// Tensors.
    Tensors(Vec<Constant>),
    /// Bodies.
    Graphs(Vec<Graph>),
    /// Sparse tensors.
    Sparses(Vec<SparseConstant>),
    /// Types.
    Types(Vec<Type>),
    /// In a function's body: the attribute of that name of the call.
    Ref(String),
    /// No value: an attribute whose file gives neither type nor value.
    Undefined,
}

impl Attr {
    /// The kind, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Attr::Float(_) => "float",
            Attr::Int(_) => "int",
            Attr::String(_) => "string",
            Attr::Tensor(_) => "tensor",
            Attr::Graph(_) => "graph",
            Attr::Sparse(_) => "sparse tensor",
            Attr::Type(_) => "type",
            Attr::Floats(_) => "floats",
            Attr::Ints(_) => "ints",
            Attr::Strings(_) => "strings",
            Attr::Tensors(_) => "tensors",
            Attr::Graphs(_) => "graphs",
            Attr::Sparses(_) => "sparse tensors",
            Attr::Types(_) => "types",
            Attr::Ref(_) => "reference",
            Attr::Undefined => "undefined",
        }
    }

    /// The bodies inside.
    pub fn graphs(&self) -> &[Graph] {
        match self {
            Attr::Graph(g) => std::slice::from_ref(g),
            Attr::Graphs(g) => g,
            _ => &[],
        }
    }

    /// The bodies inside, to change.
    pub(super) fn graphs_mut(&mut self) -> &mut [Graph] {
        match self {
            Attr::Graph(g) => std::slice::from_mut(g),
            Attr::Graphs(g) => g,
            _ => &mut [],
        }
    }
}

impl From<i64> for Attr {
    fn from(x: i64) -> Self {
        Attr::Int(x)
    }
}

impl From<f32> for Attr {
    fn from(x: f32) -> Self {
        Attr::Float(x)
    }
}

impl From<&str> for Attr {
    fn from(x: &str) -> Self {
        Attr::String(Bytes::copy_from_slice(x.as_bytes()))
    }
}

impl From<Vec<i64>> for Attr {
    fn from(x: Vec<i64>) -> Self {
        Attr::Ints(x)
    }
}

impl From<Vec<String>> for Attr {
    fn from(x: Vec<String>) -> Self {
        Attr::Strings(x.into_iter().map(|s| Bytes::from(s.into_bytes())).collect())
    }
}

impl From<Tensor> for Attr {
    fn from(x: Tensor) -> Self {
        Attr::Tensor(x.into())
    }
}

/// An attribute has another kind than its reader needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("attribute \"{name}\": expected {expected}, found {found}")]
pub struct AttrError {
    /// The attribute.
    pub name: String,
    /// The kind that is needed.
    pub expected: &'static str,
    /// The kind that is there.
    pub found: &'static str,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) value: Attr,
    pub(crate) residue: Residue,
}

/// The attributes of a node, in the order of the file. Names are unique.
#[derive(Debug, Clone, Default)]
pub struct Attrs(pub(crate) Vec<Entry>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more attribute, for chaining.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> Self {
        self.set(name, value.into());
        self
    }

    /// Sets an attribute, in its place if it is there, else at the end.
    pub fn set(&mut self, name: &str, value: Attr) {
        match self.0.iter_mut().find(|e| e.name == name) {
            Some(entry) => entry.value = value,
            None => self.0.push(Entry { name: name.to_owned(), value, residue: Residue::default() }),
        }
    }

    /// Adds an attribute of a file with what else the file says of it.
    pub(crate) fn push(&mut self, name: String, value: Attr, residue: Residue) {
        self.0.push(Entry { name, value, residue });
    }

    /// Takes an attribute out.
    pub fn remove(&mut self, name: &str) -> Option<Attr> {
        let at = self.0.iter().position(|e| e.name == name)?;
        Some(self.0.remove(at).value)
    }

    /// The attribute of that name.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|e| e.name == name).map(|e| &e.value)
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attr)> {
        self.0.iter().map(|e| (e.name.as_str(), &e.value))
    }

    /// Names and values in order, to change.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Attr)> {
        self.0.iter_mut().map(|e| (e.name.as_str(), &mut e.value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn typed<'a, T>(&'a self, name: &str, expected: &'static str, get: impl Fn(&'a Attr) -> Option<T>) -> Result<Option<T>, AttrError> {
        match self.get(name) {
            None | Some(Attr::Undefined) => Ok(None),
            Some(a) => get(a).map(Some).ok_or_else(|| AttrError { name: name.to_owned(), expected, found: a.kind() }),
        }
    }

    /// An int.
    ///
    /// # Errors
    /// Another kind; so for each getter below.
    pub fn int(&self, name: &str) -> Result<Option<i64>, AttrError> {
        self.typed(name, "int", |a| if let Attr::Int(x) = a { Some(*x) } else { None })
    }

    /// An int, or its default.
    ///
    /// # Errors
    /// Another kind.
    pub fn int_or(&self, name: &str, default: i64) -> Result<i64, AttrError> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// A float.
    ///
    /// # Errors
    /// Another kind.
    pub fn float(&self, name: &str) -> Result<Option<f32>, AttrError> {
        self.typed(name, "float", |a| if let Attr::Float(x) = a { Some(*x) } else { None })
    }

    /// A float, or its default.
    ///
    /// # Errors
    /// Another kind.
    pub fn float_or(&self, name: &str, default: f32) -> Result<f32, AttrError> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    /// A string (that is UTF-8).
    ///
    /// # Errors
    /// Another kind, or bytes that are no text.
    pub fn string(&self, name: &str) -> Result<Option<&str>, AttrError> {
        self.typed(name, "string", |a| if let Attr::String(x) = a { std::str::from_utf8(x).ok() } else { None })
    }

    /// A string, or its default.
    ///
    /// # Errors
    /// Another kind.
    pub fn string_or<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str, AttrError> {
        Ok(self.string(name)?.unwrap_or(default))
    }

    /// Ints.
    ///
    /// # Errors
    /// Another kind.
    pub fn ints(&self, name: &str) -> Result<Option<&[i64]>, AttrError> {
        self.typed(name, "ints", |a| if let Attr::Ints(x) = a { Some(x.as_slice()) } else { None })
    }

    /// Floats.
    ///
    /// # Errors
    /// Another kind.
    pub fn floats(&self, name: &str) -> Result<Option<&[f32]>, AttrError> {
        self.typed(name, "floats", |a| if let Attr::Floats(x) = a { Some(x.as_slice()) } else { None })
    }

    /// Strings (that are UTF-8).
    ///
    /// # Errors
    /// Another kind, or bytes that are no text.
    pub fn strings(&self, name: &str) -> Result<Option<Vec<String>>, AttrError> {
        self.typed(name, "strings", |a| {
            let Attr::Strings(x) = a else { return None };
            x.iter().map(|s| std::str::from_utf8(s).ok().map(str::to_owned)).collect()
        })
    }

    /// A tensor.
    ///
    /// # Errors
    /// Another kind.
    pub fn tensor(&self, name: &str) -> Result<Option<&Tensor>, AttrError> {
        self.typed(name, "tensor", |a| if let Attr::Tensor(x) = a { Some(&x.tensor) } else { None })
    }

    /// A sparse tensor.
    ///
    /// # Errors
    /// Another kind.
    pub fn sparse(&self, name: &str) -> Result<Option<&SparseConstant>, AttrError> {
        self.typed(name, "sparse tensor", |a| if let Attr::Sparse(x) = a { Some(&**x) } else { None })
    }

    /// A body.
    ///
    /// # Errors
    /// Another kind.
    pub fn graph(&self, name: &str) -> Result<Option<&Graph>, AttrError> {
        self.typed(name, "graph", |a| if let Attr::Graph(x) = a { Some(&**x) } else { None })
    }

    /// A type.
    ///
    /// # Errors
    /// Another kind.
    pub fn type_(&self, name: &str) -> Result<Option<&Type>, AttrError> {
        self.typed(name, "type", |a| if let Attr::Type(x) = a { Some(x) } else { None })
    }
}
