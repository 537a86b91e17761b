//! From ONNX messages to the IR. What the IR does not model stays in a residue: the message without the modelled fields.

use super::external::ExternalFiles;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto, TensorProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto::dimension,
};
use super::tensor::{self, Encoding};
use super::unknown::{WireError, check_fields};
use crate::ir::{
    self, Attr, Attrs, Constant, Dim, Function, Graph, GraphError, IR_VERSIONS, Kind, Model, NodeParts, OpName, OpsetImport, Output, Parts,
    Residue, SparseConstant, Type, defined_twice, normal_domain, opset_fault,
};
use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use prost::Message;
use std::collections::HashSet;

/// The key under which a writer says where the elements of a tensor are that it took out of the file.
pub(super) const PLACE_KEY: &str = "graphtool.place";

/// The key under which it says how they were stored: nothing, `typed`, or the external data pairs in JSON.
pub(super) const ENCODING_KEY: &str = "graphtool.encoding";

/// What is wrong with a model file: each fault on its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.first().map_or("", String::as_str))]
pub struct ReadError(pub Vec<String>);

impl From<Vec<GraphError>> for ReadError {
    fn from(faults: Vec<GraphError>) -> Self {
        ReadError(faults.into_iter().map(|f| f.0).collect())
    }
}

impl From<String> for ReadError {
    fn from(fault: String) -> Self {
        ReadError(vec![fault])
    }
}

type Result<T> = std::result::Result<T, ReadError>;

fn fail<T>(fault: String) -> Result<T> {
    Err(ReadError(vec![fault]))
}

/// A model from the bytes of its file. Elements stay views on the bytes, or on the external files.
///
/// # Errors
/// Bytes that are no ONNX model, and every fault of its structure.
pub fn read(bytes: Bytes, files: &ExternalFiles) -> Result<Model> {
    let unknown = match check_fields("ModelProto", &bytes) {
        Ok(()) => None,
        Err(WireError::Unknown(path)) => Some(path),
        Err(e) => return fail(format!("not an ONNX model: {e}")),
    };
    let proto = match ModelProto::decode(bytes) {
        Ok(p) => p,
        Err(e) => return fail(format!("not an ONNX model: {e}")),
    };
    let mut model = Reader { files }.model(proto)?;
    model.unknown_field = unknown;
    Ok(model)
}

pub(super) fn residue<M: Message + Default + PartialEq>(shell: &M) -> Residue {
    Residue((*shell != M::default()).then(|| shell.encode_to_vec().into()))
}

/// The value of a text field, leaving an explicit empty text behind.
fn take_text(field: &mut Option<String>) -> String {
    match field {
        Some(s) if !s.is_empty() => field.take().unwrap_or_default(),
        _ => String::new(),
    }
}

struct Reader<'a> {
    files: &'a ExternalFiles,
}

impl Reader<'_> {
    fn model(&self, mut p: ModelProto) -> Result<Model> {
        let Some(ir_version) = p.ir_version.take() else { return fail("not an ONNX model: it has no ir_version".into()) };
        if !IR_VERSIONS.contains(&ir_version) {
            return fail(format!("ir_version {ir_version} is not one that exists"));
        }
        let Some(graph) = p.graph.take() else { return fail("the model has no graph".into()) };
        let mut model = Model { ir_version, ..Model::default() };
        model.opset_imports = opsets(std::mem::take(&mut p.opset_import))?;
        model.metadata =
            std::mem::take(&mut p.metadata_props).into_iter().map(|e| (e.key.unwrap_or_default(), e.value.unwrap_or_default())).collect();
        for info in &p.training_info {
            model.pinned.extend(info.initialization_binding.iter().chain(&info.update_binding).map(|b| b.key().to_owned()));
        }
        model.functions = std::mem::take(&mut p.functions).into_iter().map(|f| self.function(f)).collect::<Result<_>>()?;
        defined_twice(&model.functions).map_or(Ok(()), fail)?;
        model.graph = self.graph(graph, false)?;
        model.residue = residue(&p);
        Ok(model)
    }

    fn function(&self, mut p: FunctionProto) -> Result<Function> {
        let name = take_text(&mut p.name);
        let at = |e: ReadError| ReadError(e.0.into_iter().map(|f| format!("function \"{name}\": {f}")).collect());
        let unnamed = |name: String| Output { name, ..Output::default() };
        let mut parts = Parts {
            name: name.clone(),
            inputs: std::mem::take(&mut p.input).into_iter().map(unnamed).collect(),
            outputs: std::mem::take(&mut p.output).into_iter().map(unnamed).collect(),
            ..Parts::default()
        };
        parts.nodes = self.nodes(std::mem::take(&mut p.node)).map_err(at)?;
        let odd = value_infos(&mut parts, std::mem::take(&mut p.value_info)).map_err(at)?;
        p.value_info = odd;
        let defaults = self.attrs(std::mem::take(&mut p.attribute_proto)).map_err(at)?;
        Ok(Function {
            domain: take_text(&mut p.domain),
            overload: take_text(&mut p.overload),
            attributes: std::mem::take(&mut p.attribute),
            defaults,
            opset_imports: opsets(std::mem::take(&mut p.opset_import)).map_err(at)?,
            graph: Graph::from_parts(parts, false).map_err(|e| at(e.into()))?,
            name: name.clone(),
            residue: residue(&p),
        })
    }

    fn graph(&self, mut p: GraphProto, body: bool) -> Result<Graph> {
        let mut parts = Parts { name: take_text(&mut p.name), ..Parts::default() };
        for v in std::mem::take(&mut p.input) {
            parts.inputs.push(value_info(v)?);
        }
        for mut t in std::mem::take(&mut p.initializer) {
            let name = take_text(&mut t.name);
            let constant = self.constant(t, &name)?;
            parts.params.push((name, Kind::Param(constant)));
        }
        for mut s in std::mem::take(&mut p.sparse_initializer) {
            let name = s.values.as_mut().map(|v| take_text(&mut v.name)).unwrap_or_default();
            parts.params.push((name.clone(), Kind::Sparse(Box::new(self.sparse(s, &name)?))));
        }
        parts.nodes = self.nodes(std::mem::take(&mut p.node))?;
        for v in std::mem::take(&mut p.output) {
            parts.outputs.push(value_info(v)?);
        }
        p.value_info = value_infos(&mut parts, std::mem::take(&mut p.value_info))?;
        parts.residue = residue(&p);
        Ok(Graph::from_parts(parts, body)?)
    }

    fn nodes(&self, protos: Vec<NodeProto>) -> Result<Vec<NodeParts>> {
        protos.into_iter().map(|p| self.node(p)).collect()
    }

    fn node(&self, mut p: NodeProto) -> Result<NodeParts> {
        let label = p.label();
        let Some(op_type) = p.op_type.take().filter(|t| !t.is_empty()) else { return fail(format!("node {label}: it has no op_type")) };
        let domain = p.domain.clone().unwrap_or_default();
        if !domain.is_empty() && normal_domain(&domain) == domain {
            p.domain = None;
        }
        let op = OpName { overload: take_text(&mut p.overload).into(), ..OpName::new(&domain, &op_type) };
        let attrs = self
            .attrs(std::mem::take(&mut p.attribute))
            .map_err(|e| ReadError(e.0.into_iter().map(|f| format!("node {label}: {f}")).collect()))?;
        let (inputs, outputs) = (std::mem::take(&mut p.input), std::mem::take(&mut p.output));
        Ok(NodeParts { name: take_text(&mut p.name), op, inputs, outputs, attrs, residue: residue(&p) })
    }

    fn attrs(&self, protos: Vec<AttributeProto>) -> Result<Attrs> {
        let mut attrs = Attrs::new();
        for mut p in protos {
            let name = p.name.take().unwrap_or_default();
            if attrs.get(&name).is_some() {
                return fail(format!("attribute \"{name}\" is given twice"));
            }
            let value =
                self.attr(&mut p).map_err(|e| ReadError(e.0.into_iter().map(|f| format!("attribute \"{name}\": {f}")).collect()))?;
            // The type alone, where it is the value's, is what a writer puts there anyway.
            let typed = AttributeProto { r#type: attr_type(&value).map(Into::into), ..AttributeProto::default() };
            let residue = if p == typed { Residue::default() } else { Residue(Some(p.encode_to_vec().into())) };
            attrs.push(name, value, residue);
        }
        Ok(attrs)
    }

    fn attr(&self, p: &mut AttributeProto) -> Result<Attr> {
        if let Some(name) = p.ref_attr_name.take() {
            return Ok(Attr::Ref(name));
        }
        let kind = match p.r#type {
            Some(t) => AttributeType::try_from(t).map_err(|_| format!("type {t} does not exist"))?,
            None => guess_type(p),
        };
        // A zero in what stays behind says that the file left the zero out.
        Ok(match kind {
            AttributeType::Undefined => Attr::Undefined,
            AttributeType::Float => Attr::Float(take_or_mark(&mut p.f)),
            AttributeType::Int => Attr::Int(take_or_mark(&mut p.i)),
            AttributeType::String => Attr::String(take_or_mark(&mut p.s)),
            AttributeType::Tensor => Attr::Tensor(self.constant(p.t.take().ok_or_else(|| "it has no tensor".to_owned())?, "")?),
            AttributeType::Graph => Attr::Graph(Box::new(self.graph(p.g.take().ok_or_else(|| "it has no graph".to_owned())?, true)?)),
            AttributeType::SparseTensor => {
                let sparse = p.sparse_tensor.take().ok_or_else(|| "it has no sparse tensor".to_owned())?;
                Attr::Sparse(Box::new(self.sparse(sparse, "")?))
            }
            AttributeType::TypeProto => {
                let tp = p.tp.clone().ok_or_else(|| "it has no type".to_owned())?;
                Attr::Type(type_of(&tp)?.ok_or_else(|| "it has no type".to_owned())?)
            }
            AttributeType::Floats => Attr::Floats(std::mem::take(&mut p.floats)),
            AttributeType::Ints => Attr::Ints(std::mem::take(&mut p.ints)),
            AttributeType::Strings => Attr::Strings(std::mem::take(&mut p.strings)),
            AttributeType::Tensors => {
                Attr::Tensors(std::mem::take(&mut p.tensors).into_iter().map(|t| self.constant(t, "")).collect::<Result<_>>()?)
            }
            AttributeType::Graphs => {
                Attr::Graphs(std::mem::take(&mut p.graphs).into_iter().map(|g| self.graph(g, true)).collect::<Result<_>>()?)
            }
            AttributeType::SparseTensors => {
                Attr::Sparses(std::mem::take(&mut p.sparse_tensors).into_iter().map(|s| self.sparse(s, "")).collect::<Result<_>>()?)
            }
            AttributeType::TypeProtos => {
                let types = p.type_protos.iter().map(|t| type_of(t).and_then(|t| t.ok_or_else(|| "a type is empty".to_owned().into())));
                Attr::Types(types.collect::<Result<_>>()?)
            }
        })
    }

    fn constant(&self, mut p: TensorProto, name: &str) -> Result<Constant> {
        let named = |e: tensor::TensorProtoError| if name.is_empty() { e.to_string() } else { format!("tensor {name:?}: {}", e.what) };
        if let Some(place) = p.metadata_props.iter().find(|m| m.key() == PLACE_KEY).map(|m| m.value().to_owned()) {
            let (dtype, shape) = tensor::declared(&p).map_err(named)?;
            let stored = p.metadata_props.iter().find(|m| m.key() == ENCODING_KEY).map(|m| m.value().to_owned());
            let encoding = match stored.as_deref() {
                None => ir::Encoding::Raw,
                Some("typed") => ir::Encoding::Typed,
                Some(json) => {
                    ir::Encoding::External(serde_json::from_str(json).map_err(|e| format!("tensor {name:?}: {ENCODING_KEY}: {e}"))?)
                }
            };
            p.metadata_props.retain(|m| m.key() != PLACE_KEY && m.key() != ENCODING_KEY);
            p.dims.clear();
            p.data_type = None;
            return Ok(Constant { tensor: Tensor::absent(dtype, shape, &place), encoding, residue: residue(&p) });
        }
        let (tensor, encoding) = tensor::decode(&mut p, self.files).map_err(named)?;
        let encoding = match encoding {
            Encoding::Raw => ir::Encoding::Raw,
            Encoding::Typed => ir::Encoding::Typed,
            Encoding::External(place) => ir::Encoding::External(place.entries),
        };
        Ok(Constant { tensor, encoding, residue: residue(&p) })
    }

    fn sparse(&self, p: SparseTensorProto, name: &str) -> Result<SparseConstant> {
        super::sparse::decode_sparse(&p, self.files)
            .map_err(|e| if name.is_empty() { e.to_string() } else { format!("sparse tensor {name:?}: {}", e.what) })?;
        let (Some(values), Some(indices)) = (p.values, p.indices) else {
            return fail(format!("sparse tensor {name:?} lacks values or indices"));
        };
        let dims = p.dims.iter().map(|&d| usize::try_from(d).map_err(|_| format!("sparse tensor {name:?}: dim {d} is negative")));
        let dims = dims.collect::<std::result::Result<_, _>>()?;
        Ok(SparseConstant { values: self.constant(values, name)?, indices: self.constant(indices, name)?, dims })
    }
}

/// The value of a field; one that is left out is zero and leaves a zero behind.
fn take_or_mark<T: Default>(field: &mut Option<T>) -> T {
    match field.take() {
        Some(x) => x,
        None => {
            *field = Some(T::default());
            T::default()
        }
    }
}

fn guess_type(p: &AttributeProto) -> AttributeType {
    let given = [
        (p.f.is_some(), AttributeType::Float),
        (p.i.is_some(), AttributeType::Int),
        (p.s.is_some(), AttributeType::String),
        (p.t.is_some(), AttributeType::Tensor),
        (p.g.is_some(), AttributeType::Graph),
        (p.sparse_tensor.is_some(), AttributeType::SparseTensor),
        (p.tp.is_some(), AttributeType::TypeProto),
        (!p.floats.is_empty(), AttributeType::Floats),
        (!p.ints.is_empty(), AttributeType::Ints),
        (!p.strings.is_empty(), AttributeType::Strings),
        (!p.tensors.is_empty(), AttributeType::Tensors),
        (!p.graphs.is_empty(), AttributeType::Graphs),
    ];
    given.into_iter().find(|g| g.0).map_or(AttributeType::Undefined, |g| g.1)
}

/// The type field that goes with a value; a reference's is in its residue.
pub(super) fn attr_type(value: &Attr) -> Option<AttributeType> {
    Some(match value {
        Attr::Float(_) => AttributeType::Float,
        Attr::Int(_) => AttributeType::Int,
        Attr::String(_) => AttributeType::String,
        Attr::Tensor(_) => AttributeType::Tensor,
        Attr::Graph(_) => AttributeType::Graph,
        Attr::Sparse(_) => AttributeType::SparseTensor,
        Attr::Type(_) => AttributeType::TypeProto,
        Attr::Floats(_) => AttributeType::Floats,
        Attr::Ints(_) => AttributeType::Ints,
        Attr::Strings(_) => AttributeType::Strings,
        Attr::Tensors(_) => AttributeType::Tensors,
        Attr::Graphs(_) => AttributeType::Graphs,
        Attr::Sparses(_) => AttributeType::SparseTensors,
        Attr::Types(_) => AttributeType::TypeProtos,
        Attr::Ref(_) | Attr::Undefined => return None,
    })
}

fn opsets(protos: Vec<OperatorSetIdProto>) -> Result<Vec<OpsetImport>> {
    let import = |mut p: OperatorSetIdProto| {
        let version = p.version.take().unwrap_or(0);
        let domain = take_text(&mut p.domain);
        OpsetImport { domain, version, residue: residue(&p) }
    };
    let imports: Vec<OpsetImport> = protos.into_iter().map(import).collect();
    opset_fault(&imports).map_or(Ok(imports), fail)
}

fn value_info(mut p: ValueInfoProto) -> Result<Output> {
    let name = p.name.take().unwrap_or_default();
    let ty = match &p.r#type {
        Some(t) => type_of(t).map_err(|e| ReadError(vec![format!("value \"{name}\": {e}")]))?,
        None => None,
    };
    Ok(Output { name, ty, info: Some(Residue(Some(p.encode_to_vec().into()))) })
}

/// Sorts the entries into those of values in between, and those that are odd (of no value, of an input or output, given
/// twice), which are given back. The order of all names stays in the parts.
fn value_infos(parts: &mut Parts, protos: Vec<ValueInfoProto>) -> Result<Vec<ValueInfoProto>> {
    let mut made: HashSet<&str> = parts.nodes.iter().flat_map(|n| n.outputs.iter().map(String::as_str)).collect();
    for o in parts.outputs.iter().chain(&parts.inputs) {
        made.remove(o.name.as_str());
    }
    let mut odd = Vec::new();
    let mut infos = Vec::new();
    for p in protos {
        if made.remove(p.name()) {
            infos.push(value_info(p)?);
        } else {
            infos.push(Output { name: p.name().to_owned(), ..Output::default() });
            odd.push(p);
        }
    }
    parts.value_info = infos;
    Ok(odd)
}

/// The IR's type for ONNX's; `None` if nothing is stated.
pub(super) fn type_of(p: &TypeProto) -> Result<Option<Type>> {
    if p.kinds() > 1 {
        return fail("a type of several kinds".into());
    }
    let inner = |t: &Option<Box<TypeProto>>| -> Result<Box<Type>> {
        Ok(Box::new(match t {
            Some(t) => type_of(t)?.unwrap_or(Type::Tensor { dtype: None, shape: None }),
            None => Type::Tensor { dtype: None, shape: None },
        }))
    };
    let dtype = |code: i32| match code {
        0 => Ok(None),
        c => DType::from_onnx(c).map(Some).ok_or_else(|| ReadError(vec![format!("element type {c} does not exist")])),
    };
    let shape = |s: &Option<super::proto::TensorShapeProto>| {
        s.as_ref().map(|s| {
            s.dim
                .iter()
                .map(|d| match &d.value {
                    Some(dimension::Value::DimValue(n)) => usize::try_from(*n).map_or(Dim::Unknown, Dim::Known),
                    Some(dimension::Value::DimParam(s)) if !s.is_empty() => Dim::Symbol(s.as_str().into()),
                    _ => Dim::Unknown,
                })
                .collect()
        })
    };
    Ok(Some(if let Some(t) = &p.tensor_type {
        Type::Tensor { dtype: dtype(t.elem_type())?, shape: shape(&t.shape) }
    } else if let Some(t) = &p.sparse_tensor_type {
        Type::Sparse { dtype: dtype(t.elem_type())?, shape: shape(&t.shape) }
    } else if let Some(t) = &p.sequence_type {
        Type::Sequence(inner(&t.elem_type)?)
    } else if let Some(t) = &p.optional_type {
        Type::Optional(inner(&t.elem_type)?)
    } else if let Some(t) = &p.map_type {
        let key = dtype(t.key_type())?.ok_or_else(|| "a map without a key type".to_owned())?;
        Type::Map { key, value: inner(&t.value_type)? }
    } else if let Some(t) = &p.opaque_type {
        Type::Opaque { domain: t.domain().to_owned(), name: t.name().to_owned() }
    } else {
        return Ok(None);
    }))
}
