//! From the IR to ONNX messages, and to files. What a residue kept is put back where it was.

pub use super::place::{Elements, External};
use super::place::{Inside, Nowhere, Outside, Place, length, raw_data};
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};
use super::read::{ENCODING_KEY, PLACE_KEY, attr_type, type_of};
use super::tensor::{self, Encoding};
use crate::files::FileWriter;
use crate::ir::{
    self, Attr, Attrs, Constant, Dim, Function, Graph, Kind, Model, NodeId, Output, Residue, SparseConstant, Type, normal_domain,
};
use crate::tensor::Tensor;
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::path::Path;

/// Bytes of a model above which constants go to a file of their own: protobuf ends at 2 GiB.
pub const EXTERNAL_ABOVE: u64 = 1 << 30;
/// Constants below this many bytes always stay inside the model.
const SMALL: usize = 1024;

/// Why a model could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The model holds something that cannot be written.
    #[error("{0}")]
    Model(String),
    /// The system says no.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        error: io::Error,
    },
}

/// The model as bytes, with every constant inside.
///
/// # Errors
/// Constants without their elements (but for those that say where they are), fields that this build does not know.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>, WriteError> {
    let proto = message(model, &mut Inside)?;
    let mut out = Vec::with_capacity(proto.encoded_len());
    stream(&proto, &mut out).map_err(|error| WriteError::Io { path: "memory".into(), error })?;
    Ok(out)
}

/// Writes the model to `path`, and the constants that `external` says to the file `data_name` beside it. Returns the bytes
/// of that file, 0 if there is none.
///
/// The files are written in place: the caller writes to a temporary name and renames.
///
/// # Errors
/// As [`to_bytes`], and those of the system.
pub fn to_file(model: &Model, path: &Path, data_name: &str, external: External) -> Result<u64, WriteError> {
    to_file_with(model, path, data_name, external, &Nowhere)
}

/// As [`to_file`], with elements that the model does not hold.
///
/// # Errors
/// As [`to_file`], and those of `elements`, also if they are more or fewer than the constant's.
pub fn to_file_with(model: &Model, path: &Path, data_name: &str, external: External, elements: &dyn Elements) -> Result<u64, WriteError> {
    let (keep, above) = match external {
        External::Keep(above) => (true, above),
        External::Above(above) => (false, above),
        External::Each(_) => (false, u64::MAX),
    };
    let stays = |c: &Constant| {
        if keep && matches!(c.encoding, ir::Encoding::External(_)) { 0 } else { length(&c.tensor, elements) as u64 }
    };
    let graphs = model.graphs();
    let inside: u64 = graphs.iter().flat_map(|g| g.params().iter().filter_map(|&p| g.node(p).constant())).map(stays).sum();
    let least = match external {
        External::Each(least) => Some(usize::try_from(least).unwrap_or(usize::MAX)),
        _ => (inside > above).then_some(SMALL),
    };
    let mut outside = Outside::new(data_name, keep, least, elements);
    let proto = message(model, &mut outside)?;
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |error| WriteError::Io { path: path.clone(), error }
    };
    let mut file = FileWriter::create(path).map_err(io(path))?;
    stream(&proto, &mut file).and_then(|()| file.sync()).map_err(io(path))?;
    if outside.is_empty() {
        return Ok(0);
    }
    let data = path.with_file_name(data_name);
    let mut file = FileWriter::create(&data).map_err(io(&data))?;
    outside.write(&mut file).and_then(|()| file.sync()).map_err(io(&data))?;
    Ok(outside.end())
}

/// The message without copies of constants: their bytes are views.
fn message(model: &Model, place: &mut dyn Place) -> Result<ModelProto, WriteError> {
    if let Some(field) = &model.unknown_field {
        return Err(WriteError::Model(format!("the model has the field \"{field}\" of a newer format version, which would be lost")));
    }
    let mut p: ModelProto = shell(&model.residue);
    p.ir_version = Some(model.ir_version);
    p.opset_import = opsets(&model.opset_imports);
    p.metadata_props = pairs(&model.metadata);
    p.functions = model.functions.iter().map(|f| function(f, place)).collect::<Result<_, _>>()?;
    p.graph = Some(graph(&model.graph, place)?);
    Ok(p)
}

/// Encodes level by level, so that the bytes of constants go straight from their maps to the writer.
fn stream(p: &ModelProto, out: &mut impl Write) -> io::Result<()> {
    let head = ModelProto {
        graph: None,
        opset_import: Vec::new(),
        metadata_props: Vec::new(),
        training_info: Vec::new(),
        functions: Vec::new(),
        configuration: Vec::new(),
        ..p.clone_scalars()
    };
    out.write_all(&head.encode_to_vec())?;
    if let Some(g) = &p.graph {
        key(out, 7, g.encoded_len())?;
        stream_graph(g, out)?;
    }
    let tail = ModelProto {
        opset_import: p.opset_import.clone(),
        metadata_props: p.metadata_props.clone(),
        training_info: p.training_info.clone(),
        functions: p.functions.clone(),
        configuration: p.configuration.clone(),
        ..ModelProto::default()
    };
    out.write_all(&tail.encode_to_vec())
}

impl ModelProto {
    /// The fields before the graph.
    fn clone_scalars(&self) -> ModelProto {
        ModelProto {
            ir_version: self.ir_version,
            producer_name: self.producer_name.clone(),
            producer_version: self.producer_version.clone(),
            domain: self.domain.clone(),
            model_version: self.model_version,
            doc_string: self.doc_string.clone(),
            ..ModelProto::default()
        }
    }
}

fn stream_graph(g: &GraphProto, out: &mut impl Write) -> io::Result<()> {
    for node in &g.node {
        key(out, 1, node.encoded_len())?;
        out.write_all(&node.encode_to_vec())?;
    }
    out.write_all(&GraphProto { name: g.name.clone(), ..GraphProto::default() }.encode_to_vec())?;
    for t in &g.initializer {
        key(out, 5, t.encoded_len())?;
        let Some(raw) = &t.raw_data else {
            out.write_all(&t.encode_to_vec())?;
            continue;
        };
        let head = TensorProto {
            dims: t.dims.clone(),
            data_type: t.data_type,
            segment: t.segment,
            name: t.name.clone(),
            ..TensorProto::default()
        };
        let tail = TensorProto {
            doc_string: t.doc_string.clone(),
            external_data: t.external_data.clone(),
            data_location: t.data_location,
            metadata_props: t.metadata_props.clone(),
            ..TensorProto::default()
        };
        out.write_all(&head.encode_to_vec())?;
        key(out, 9, raw.len())?;
        raw_data(out, raw)?;
        out.write_all(&tail.encode_to_vec())?;
    }
    let tail = GraphProto {
        doc_string: g.doc_string.clone(),
        input: g.input.clone(),
        output: g.output.clone(),
        value_info: g.value_info.clone(),
        quantization_annotation: g.quantization_annotation.clone(),
        sparse_initializer: g.sparse_initializer.clone(),
        metadata_props: g.metadata_props.clone(),
        ..GraphProto::default()
    };
    out.write_all(&tail.encode_to_vec())
}

/// The key and length of a length-delimited field.
fn key(out: &mut impl Write, number: u32, len: usize) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(12);
    prost::encoding::encode_varint(u64::from(number << 3 | 2), &mut buffer);
    prost::encoding::encode_varint(len as u64, &mut buffer);
    out.write_all(&buffer)
}

fn shell<M: Message + Default>(residue: &Residue) -> M {
    residue.0.as_ref().and_then(|b| M::decode(b.clone()).ok()).unwrap_or_default()
}

/// A text field: the text, or the explicit empty one that the file had.
fn text(value: &str, kept: Option<String>) -> Option<String> {
    if value.is_empty() { kept.filter(String::is_empty) } else { Some(value.to_owned()) }
}

fn pairs(list: &[(String, String)]) -> Vec<StringStringEntryProto> {
    list.iter().map(|(k, v)| StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) }).collect()
}

fn opsets(list: &[ir::OpsetImport]) -> Vec<OperatorSetIdProto> {
    list.iter()
        .map(|o| {
            let kept: OperatorSetIdProto = shell(&o.residue);
            OperatorSetIdProto { domain: text(&o.domain, kept.domain), version: Some(o.version) }
        })
        .collect()
}

fn function(f: &Function, place: &mut dyn Place) -> Result<FunctionProto, WriteError> {
    let mut p: FunctionProto = shell(&f.residue);
    let names = |outputs: Vec<&Output>| outputs.into_iter().map(|o| o.name.clone()).collect();
    p.name = text(&f.name, p.name);
    p.domain = text(&f.domain, p.domain);
    p.overload = text(&f.overload, p.overload);
    p.attribute = f.attributes.clone();
    p.attribute_proto = attrs(&f.defaults, place)?;
    p.opset_import = opsets(&f.opset_imports);
    let g = &f.graph;
    p.input = names(g.inputs().iter().map(|&i| &g.node(i).outputs[0]).collect());
    p.output = names(g.outputs().iter().map(|o| g.output(o.value)).collect());
    p.node = nodes(g, place)?;
    p.value_info = value_infos(g, std::mem::take(&mut p.value_info));
    Ok(p)
}

fn graph(g: &Graph, place: &mut dyn Place) -> Result<GraphProto, WriteError> {
    let mut p: GraphProto = shell(&g.residue);
    p.name = text(&g.name, p.name);
    p.node = nodes(g, place)?;
    for &id in g.params() {
        let node = g.node(id);
        let name = &node.outputs[0].name;
        match &node.kind {
            Kind::Param(c) | Kind::Input(Some(c)) => p.initializer.push(constant(c, Some(name), place)?),
            Kind::Sparse(s) => p.sparse_initializer.push(sparse(s, Some(name), place)?),
            _ => {}
        }
    }
    p.input = g.inputs().iter().map(|&id| value_info(&g.node(id).outputs[0])).collect();
    p.output = g
        .outputs()
        .iter()
        .map(|o| value_info(&Output { name: g.name_of(o.value).to_owned(), ty: o.ty.clone(), info: Some(o.residue.clone()) }))
        .collect();
    p.value_info = value_infos(g, std::mem::take(&mut p.value_info));
    Ok(p)
}

/// Entries in the order of the file (the odd ones of the residue at their places), then those of new values.
fn value_infos(g: &Graph, odd: Vec<ValueInfoProto>) -> Vec<ValueInfoProto> {
    let mut odd_by_name: HashMap<String, Vec<ValueInfoProto>> = HashMap::new();
    for p in odd.into_iter().rev() {
        odd_by_name.entry(p.name().to_owned()).or_default().push(p);
    }
    let mut out = Vec::new();
    let mut listed = HashSet::new();
    let known: HashSet<&str> = g.value_info().iter().map(String::as_str).collect();
    for name in g.value_info() {
        let own = g.value(name).filter(|&v| g.node(v.node).op().is_some() && g.output(v).info.is_some() && !listed.contains(name));
        if let Some(p) = own.is_none().then(|| odd_by_name.get_mut(name).and_then(Vec::pop)).flatten() {
            out.push(p);
        } else if let Some(v) = own {
            out.push(value_info(g.output(v)));
            listed.insert(name.clone());
        }
    }
    for &id in g.ops() {
        for (slot, o) in g.node(id).outputs.iter().enumerate() {
            let fresh = o.ty.is_some() && o.info.is_some() && !known.contains(o.name.as_str());
            if fresh && !g.is_output(id.value(slot as u32)) {
                out.push(value_info(o));
            }
        }
    }
    out
}

fn value_info(o: &Output) -> ValueInfoProto {
    let mut p: ValueInfoProto = o.info.as_ref().map(shell).unwrap_or_default();
    p.name = Some(o.name.clone());
    let stated = p.r#type.as_ref().and_then(|t| type_of(t).ok().flatten());
    if stated != o.ty {
        p.r#type = o.ty.as_ref().map(to_type);
    }
    p
}

fn nodes(g: &Graph, place: &mut dyn Place) -> Result<Vec<NodeProto>, WriteError> {
    g.ops().iter().map(|&id| node(g, id, place)).collect()
}

fn node(g: &Graph, id: NodeId, place: &mut dyn Place) -> Result<NodeProto, WriteError> {
    let n = g.node(id);
    let mut p: NodeProto = shell(&n.residue);
    let Some(op) = n.op() else { return Ok(p) };
    p.input = n.inputs().iter().map(|v| v.map_or(String::new(), |v| g.name_of(v).to_owned())).collect();
    p.output = n.outputs.iter().map(|o| o.name.clone()).collect();
    p.name = text(&n.name, p.name);
    p.op_type = Some(op.name.to_string());
    p.domain = if op.domain.is_empty() { p.domain.filter(|d| normal_domain(d).is_empty()) } else { Some(op.domain.to_string()) };
    p.overload = text(&op.overload, p.overload);
    p.attribute = attrs(&n.attrs, place)?;
    Ok(p)
}

fn attrs(list: &Attrs, place: &mut dyn Place) -> Result<Vec<AttributeProto>, WriteError> {
    list.0.iter().map(|e| attr(&e.name, &e.value, &e.residue, place)).collect()
}

fn attr(name: &str, value: &Attr, residue: &Residue, place: &mut dyn Place) -> Result<AttributeProto, WriteError> {
    let mut p: AttributeProto = shell(residue);
    let had_type = residue.0.is_none() || p.r#type.is_some();
    p.name = Some(name.to_owned());
    if let Some(t) = attr_type(value) {
        p.r#type = had_type.then(|| t.into());
    }
    match value {
        // A zero in the residue says that the file left the zero out.
        Attr::Float(x) => p.f = if *x == 0.0 && p.f.is_some() { None } else { Some(*x) },
        Attr::Int(x) => p.i = if *x == 0 && p.i.is_some() { None } else { Some(*x) },
        Attr::String(x) => p.s = if x.is_empty() && p.s.is_some() { None } else { Some(x.clone()) },
        Attr::Tensor(c) => p.t = Some(constant(c, None, place)?),
        Attr::Graph(g) => p.g = Some(graph(g, place)?),
        Attr::Sparse(s) => p.sparse_tensor = Some(sparse(s, None, place)?),
        Attr::Type(t) => {
            let same = p.tp.as_ref().and_then(|x| type_of(x).ok().flatten()).as_ref() == Some(t);
            if !same {
                p.tp = Some(to_type(t));
            }
        }
        Attr::Floats(x) => p.floats = x.clone(),
        Attr::Ints(x) => p.ints = x.clone(),
        Attr::Strings(x) => p.strings = x.clone(),
        Attr::Tensors(x) => p.tensors = x.iter().map(|c| constant(c, None, place)).collect::<Result<_, _>>()?,
        Attr::Graphs(x) => p.graphs = x.iter().map(|g| graph(g, place)).collect::<Result<_, _>>()?,
        Attr::Sparses(x) => p.sparse_tensors = x.iter().map(|s| sparse(s, None, place)).collect::<Result<_, _>>()?,
        Attr::Types(x) => {
            let same = p.type_protos.iter().map(|t| type_of(t).ok().flatten()).eq(x.iter().cloned().map(Some));
            if !same {
                p.type_protos = x.iter().map(to_type).collect();
            }
        }
        Attr::Ref(to) => p.ref_attr_name = Some(to.clone()),
        Attr::Undefined => {
            if residue.0.is_none() {
                p.r#type = Some(AttributeType::Undefined.into());
            }
        }
    }
    Ok(p)
}

fn constant(c: &Constant, name: Option<&str>, place: &mut dyn Place) -> Result<TensorProto, WriteError> {
    let mut p: TensorProto = shell(&c.residue);
    if let Some(name) = name {
        p.name = text(name, p.name);
    }
    let at = place.place(c);
    let held = match c.tensor.absent_place() {
        Some(where_) if at.is_none() => place.bytes(where_).map_err(|error| WriteError::Io { path: where_.to_owned(), error })?,
        _ => None,
    };
    let held = held.map(|bytes| Tensor::from_bytes(c.tensor.dtype(), c.tensor.shape().clone(), bytes)).transpose();
    let held = held.map_err(|e| WriteError::Model(format!("tensor {:?}: {e}", p.name())))?;
    let tensor = held.as_ref().unwrap_or(&c.tensor);
    if let (None, Some(where_)) = (&at, tensor.absent_place()) {
        p.dims = c.tensor.shape().to_i64s();
        p.data_type = Some(c.tensor.dtype().to_onnx());
        let mut entry =
            |key: &str, value: String| p.metadata_props.push(StringStringEntryProto { key: Some(key.into()), value: Some(value) });
        entry(PLACE_KEY, where_.to_owned());
        match &c.encoding {
            ir::Encoding::Raw => {}
            ir::Encoding::Typed => entry(ENCODING_KEY, "typed".into()),
            ir::Encoding::External(pairs) => entry(ENCODING_KEY, serde_json::to_string(pairs).unwrap_or_default()),
        }
        return Ok(p);
    }
    let encoding = match (at, &c.encoding) {
        (Some(at), _) => Encoding::External(at),
        (None, ir::Encoding::Typed) => Encoding::Typed,
        _ => Encoding::Raw,
    };
    if !matches!(encoding, Encoding::External(_)) && matches!(c.encoding, ir::Encoding::External(_)) {
        p.data_location = None;
    }
    tensor::encode(&mut p, tensor, &encoding).map_err(|e| WriteError::Model(e.to_string()))?;
    Ok(p)
}

fn sparse(s: &SparseConstant, name: Option<&str>, place: &mut dyn Place) -> Result<SparseTensorProto, WriteError> {
    Ok(SparseTensorProto {
        values: Some(constant(&s.values, name, place)?),
        indices: Some(constant(&s.indices, None, place)?),
        dims: s.dims.iter().map(|&d| d as i64).collect(),
    })
}

fn to_shape(shape: &Option<Vec<Dim>>) -> Option<TensorShapeProto> {
    let dim = |d: &Dim| {
        let value = match d {
            Dim::Known(n) => Some(tensor_shape_proto::dimension::Value::DimValue(*n as i64)),
            Dim::Symbol(s) => Some(tensor_shape_proto::dimension::Value::DimParam(s.to_string())),
            Dim::Unknown => None,
        };
        tensor_shape_proto::Dimension { value, denotation: None }
    };
    shape.as_ref().map(|s| TensorShapeProto { dim: s.iter().map(dim).collect() })
}

fn to_type(t: &Type) -> TypeProto {
    let code = |d: &Option<crate::tensor::DType>| d.map(crate::tensor::DType::to_onnx);
    let mut p = TypeProto::default();
    match t {
        Type::Tensor { dtype, shape } => p.tensor_type = Some(type_proto::Tensor { elem_type: code(dtype), shape: to_shape(shape) }),
        Type::Sparse { dtype, shape } => {
            p.sparse_tensor_type = Some(type_proto::SparseTensor { elem_type: code(dtype), shape: to_shape(shape) });
        }
        Type::Sequence(t) => p.sequence_type = Some(Box::new(type_proto::Sequence { elem_type: Some(Box::new(to_type(t))) })),
        Type::Optional(t) => p.optional_type = Some(Box::new(type_proto::Optional { elem_type: Some(Box::new(to_type(t))) })),
        Type::Map { key, value } => {
            p.map_type = Some(Box::new(type_proto::Map { key_type: Some(key.to_onnx()), value_type: Some(Box::new(to_type(value))) }));
        }
        Type::Opaque { domain, name } => {
            p.opaque_type = Some(type_proto::Opaque { domain: Some(domain.clone()), name: Some(name.clone()) });
        }
    }
    p
}
