//! Reads the text form back. Constants that are written as a digest come back without elements.

use super::attr::{Attr, Attrs, Constant, SparseConstant};
use super::graph::Graph;
use super::model::{Function, Model, OpsetImport};
use super::node::{Kind, OpName, Output};
use super::parts::{NodeParts, Parts};
use super::print::is_bare_name;
use super::types::{Dim, Type};
use crate::tensor::{DType, Shape, Tensor, cast};
use bytes::Bytes;
use std::collections::HashMap;

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {detail}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// What was expected and found.
    pub detail: String,
}

type Result<T> = std::result::Result<T, ParseError>;

/// Bodies inside bodies, at most.
const MAX_DEPTH: usize = 64;

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
}

/// A model from its text.
///
/// # Errors
/// The first place where the text is no model, or a fault of its graph.
pub fn parse_model(text: &str) -> Result<Model> {
    let mut p = Parser { text, at: 0, depth: 0 };
    let mut m = Model { ir_version: 10, ..Model::default() };
    if p.word("model") {
        p.expect("ir_version=")?;
        m.ir_version = p.int()?;
        p.expect("opset=")?;
        m.opset_imports = p.opsets()?;
    } else {
        m.import_opset("", 20);
    }
    while p.word("metadata") {
        let key = p.string()?;
        p.expect("=")?;
        m.metadata.push((key, p.string()?));
    }
    while p.word("function") {
        m.functions.push(p.function()?);
    }
    if !p.word("graph") {
        return p.fail("expected \"graph\"");
    }
    m.graph = p.graph(false)?;
    p.skip();
    if p.at < text.len() { p.fail("expected the end of the text") } else { Ok(m) }
}

impl Parser<'_> {
    fn fail<T>(&self, detail: impl Into<String>) -> Result<T> {
        let line = self.text[..self.at].matches('\n').count() + 1;
        let rest: String = self.text[self.at..].chars().take(20).take_while(|c| *c != '\n').collect();
        Err(ParseError { line, detail: format!("{}, found \"{rest}\"", detail.into()) })
    }

    fn skip(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn peek(&mut self) -> Option<char> {
        self.skip();
        self.text[self.at..].chars().next()
    }

    /// Takes a mark if it is next.
    fn mark(&mut self, mark: &str) -> bool {
        self.skip();
        let found = self.text[self.at..].starts_with(mark);
        if found {
            self.at += mark.len();
        }
        found
    }

    /// Takes a word if it is next and ends there.
    fn word(&mut self, word: &str) -> bool {
        self.skip();
        let Some(after) = self.text[self.at..].strip_prefix(word) else { return false };
        let ends = after.chars().next().is_none_or(|c| !is_bare_name(c.encode_utf8(&mut [0; 4])) && c != '_');
        ends && self.mark(word)
    }

    fn expect(&mut self, mark: &str) -> Result<()> {
        if self.mark(mark) { Ok(()) } else { self.fail(format!("expected \"{mark}\"")) }
    }

    fn bare(&mut self) -> &str {
        self.skip();
        let rest = &self.text[self.at..];
        let len = rest.bytes().take_while(|c| c.is_ascii_alphanumeric() || b"_.:/-".contains(c)).count();
        // "a: type": the colon that a blank follows is no part of the name.
        let len = if rest[..len].ends_with(':') && rest[len..].starts_with(' ') { len - 1 } else { len };
        self.at += len;
        &rest[..len]
    }

    fn string(&mut self) -> Result<String> {
        self.skip();
        let rest = &self.text[self.at..];
        if !rest.starts_with('"') {
            return self.fail("expected a quoted text");
        }
        let mut out = String::new();
        let mut chars = rest.char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|x| x.1) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('0') => out.push('\0'),
                    Some('u') => {
                        let hex: String = chars.by_ref().map(|x| x.1).skip_while(|c| *c == '{').take_while(|c| *c != '}').collect();
                        match u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32) {
                            Some(c) => out.push(c),
                            None => return self.fail("a bad escape in a text"),
                        }
                    }
                    Some(c) => out.push(c),
                    None => break,
                },
                c => out.push(c),
            }
        }
        self.fail("a text without an end")
    }

    /// A name, quoted or not; `_` is the empty one.
    fn name(&mut self) -> Result<String> {
        if self.peek() == Some('"') {
            return self.string();
        }
        match self.bare() {
            "" => self.fail("expected a name"),
            "_" => Ok(String::new()),
            s => Ok(s.to_owned()),
        }
    }

    fn number(&mut self) -> Result<String> {
        self.skip();
        let rest = &self.text[self.at..];
        let len = rest.bytes().take_while(|c| c.is_ascii_alphanumeric() || b"+-.".contains(c)).count();
        if len == 0 {
            return self.fail("expected a number");
        }
        self.at += len;
        Ok(rest[..len].to_owned())
    }

    fn int(&mut self) -> Result<i64> {
        let text = self.number()?;
        text.parse().or_else(|_| self.fail(format!("\"{text}\" is no integer")))
    }

    fn list<T>(&mut self, open: &str, close: &str, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.expect(open)?;
        let mut out = Vec::new();
        while !self.mark(close) {
            if !out.is_empty() {
                self.expect(",")?;
            }
            out.push(item(self)?);
        }
        Ok(out)
    }

    fn opsets(&mut self) -> Result<Vec<OpsetImport>> {
        self.list("[", "]", |p| {
            let domain = p.string()?;
            p.expect("=")?;
            Ok(OpsetImport { domain, version: p.int()?, residue: Default::default() })
        })
    }

    fn dtype(&mut self) -> Result<Option<DType>> {
        if self.mark("?") {
            return Ok(None);
        }
        let word = self.bare().to_owned();
        match DType::from_name(&word) {
            Some(d) => Ok(Some(d)),
            None => self.fail(format!("\"{word}\" is no dtype")),
        }
    }

    fn dim(&mut self) -> Result<Dim> {
        if self.mark("?") {
            return Ok(Dim::Unknown);
        }
        if self.peek().is_some_and(|c| c.is_ascii_digit()) {
            return Ok(Dim::Known(self.int()?.max(0) as usize));
        }
        Ok(Dim::Symbol(self.name()?.into()))
    }

    fn type_(&mut self) -> Result<Type> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail("nested too deeply");
        }
        let ty = if self.mark("sequence(") {
            Type::Sequence(Box::new(self.type_()?))
        } else if self.mark("optional(") {
            Type::Optional(Box::new(self.type_()?))
        } else if self.mark("map(") {
            let Some(key) = self.dtype()? else { return self.fail("expected a key type") };
            self.expect(",")?;
            Type::Map { key, value: Box::new(self.type_()?) }
        } else if self.mark("opaque(") {
            let domain = self.string()?;
            self.expect(",")?;
            Type::Opaque { domain, name: self.string()? }
        } else {
            self.depth -= 1;
            let sparse = self.mark("sparse ");
            let dtype = self.dtype()?;
            let shape = if self.text[self.at..].starts_with('[') { Some(self.list("[", "]", Self::dim)?) } else { None };
            return Ok(if sparse { Type::Sparse { dtype, shape } } else { Type::Tensor { dtype, shape } });
        };
        self.depth -= 1;
        self.expect(")")?;
        Ok(ty)
    }

    fn elements(&mut self, dtype: DType, shape: Shape) -> Result<Tensor> {
        if self.mark("#") {
            let digest = format!("#{}", self.bare());
            return Ok(Tensor::absent(dtype, shape, &digest));
        }
        if self.mark("@") {
            let place = self.string()?;
            return Ok(Tensor::absent(dtype, shape, &place));
        }
        let made = match dtype {
            DType::String => Tensor::new(shape, self.list("[", "]", Self::string)?),
            DType::Bool => Tensor::new(shape, self.list("[", "]", |p| Ok(p.number()? == "true"))?),
            DType::U64 => {
                let v = self.list("[", "]", |p| p.number()?.parse::<u64>().or_else(|e| p.fail(e.to_string())))?;
                Tensor::new(shape, v)
            }
            d if d.is_int() => {
                let v = self.list("[", "]", Self::int)?;
                Tensor::new(shape, v).and_then(|t| cast(&t, d))
            }
            DType::F32 => Tensor::new(shape, self.list("[", "]", |p| p.number()?.parse::<f32>().or_else(|e| p.fail(e.to_string())))?),
            d => {
                let v = self.list("[", "]", |p| p.number()?.parse::<f64>().or_else(|e| p.fail(e.to_string())))?;
                Tensor::new(shape, v).and_then(|t| cast(&t, d))
            }
        };
        made.or_else(|e| self.fail(e.to_string()))
    }

    fn tensor(&mut self) -> Result<Tensor> {
        let (dtype, shape) = self.tensor_type()?;
        self.elements(dtype, shape)
    }

    fn tensor_type(&mut self) -> Result<(DType, Shape)> {
        let Type::Tensor { dtype: Some(dtype), shape: Some(dims) } = self.type_()? else { return self.fail("expected a tensor type") };
        match dims.iter().map(Dim::known).collect::<Option<Shape>>() {
            Some(shape) => Ok((dtype, shape)),
            None => self.fail("expected known dims"),
        }
    }

    fn sparse(&mut self) -> Result<SparseConstant> {
        let dims = self.list("[", "]", |p| Ok(p.int()?.max(0) as usize))?;
        let values = self.tensor()?.into();
        if !self.word("at") {
            return self.fail("expected \"at\"");
        }
        Ok(SparseConstant { values, indices: self.tensor()?.into(), dims })
    }

    fn bytes(&mut self) -> Result<Bytes> {
        if self.mark("bytes\"") {
            let hex = self.bare().to_owned();
            self.expect("\"")?;
            let bytes =
                (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16)).collect::<std::result::Result<Vec<_>, _>>();
            return bytes.map(Bytes::from).or_else(|e| self.fail(e.to_string()));
        }
        Ok(Bytes::from(self.string()?.into_bytes()))
    }

    fn attr(&mut self) -> Result<Attr> {
        if self.mark("floats[]") {
            return Ok(Attr::Floats(Vec::new()));
        }
        if self.mark("ints[]") {
            return Ok(Attr::Ints(Vec::new()));
        }
        if self.mark("strings[]") {
            return Ok(Attr::Strings(Vec::new()));
        }
        if self.mark("$") {
            return Ok(Attr::Ref(self.name()?));
        }
        if self.mark("tensors") {
            return Ok(Attr::Tensors(self.list("[", "]", |p| Ok(Constant::from(p.tensor()?)))?));
        }
        if self.mark("graphs") {
            return Ok(Attr::Graphs(self.list(
                "[",
                "]",
                |p| if p.word("graph") { p.graph(true) } else { p.fail("expected \"graph\"") },
            )?));
        }
        if self.mark("sparses") {
            return Ok(Attr::Sparses(self.list("[", "]", Self::sparse)?));
        }
        if self.mark("types") {
            return Ok(Attr::Types(self.list("[", "]", Self::type_)?));
        }
        if self.word("undefined") {
            return Ok(Attr::Undefined);
        }
        if self.word("graph") {
            return Ok(Attr::Graph(Box::new(self.graph(true)?)));
        }
        if self.word("type") {
            return Ok(Attr::Type(self.type_()?));
        }
        if self.word("sparse") {
            return Ok(Attr::Sparse(Box::new(self.sparse()?)));
        }
        match self.peek() {
            Some('"') => Ok(Attr::String(self.bytes()?)),
            Some('b') if self.text[self.at..].starts_with("bytes\"") => Ok(Attr::String(self.bytes()?)),
            Some('[') => self.attr_list(),
            Some(c)
                if c.is_ascii_digit() || c == '-' || self.text[self.at..].starts_with("inf") || self.text[self.at..].starts_with("NaN") =>
            {
                let text = self.number()?;
                match text.parse::<i64>() {
                    Ok(x) => Ok(Attr::Int(x)),
                    Err(_) => text.parse().map(Attr::Float).or_else(|_| self.fail(format!("\"{text}\" is no number"))),
                }
            }
            _ => Ok(Attr::Tensor(self.tensor()?.into())),
        }
    }

    fn attr_list(&mut self) -> Result<Attr> {
        let start = self.at;
        self.expect("[")?;
        if matches!(self.peek(), Some('"' | 'b')) {
            self.at = start;
            return Ok(Attr::Strings(self.list("[", "]", Self::bytes)?));
        }
        self.at = start;
        let texts = self.list("[", "]", Self::number)?;
        if let Ok(ints) = texts.iter().map(|t| t.parse::<i64>()).collect::<std::result::Result<Vec<_>, _>>() {
            return Ok(Attr::Ints(ints));
        }
        let floats = texts.iter().map(|t| t.parse::<f32>()).collect::<std::result::Result<Vec<_>, _>>();
        floats.map(Attr::Floats).or_else(|_| self.fail("a list of neither ints nor floats"))
    }

    fn attrs(&mut self) -> Result<Attrs> {
        let mut attrs = Attrs::new();
        for (name, value) in self.list("{", "}", |p| {
            let name = p.name()?;
            p.expect("=")?;
            Ok((name, p.attr()?))
        })? {
            attrs.set(&name, value);
        }
        Ok(attrs)
    }

    fn typed(&mut self) -> Result<Output> {
        let name = self.name()?;
        let ty = if self.mark(":") { Some(self.type_()?) } else { None };
        Ok(Output::new(name, ty))
    }

    fn function(&mut self) -> Result<Function> {
        let mut f = Function::default();
        self.expect("domain=")?;
        f.domain = self.string()?;
        if self.mark("overload=") {
            f.overload = self.string()?;
        }
        self.expect("opset=")?;
        f.opset_imports = self.opsets()?;
        self.expect("attributes=")?;
        f.attributes = self.list("[", "]", Self::name)?;
        self.expect("defaults=")?;
        f.defaults = self.attrs()?;
        f.graph = self.graph(false)?;
        f.name = f.graph.name.clone();
        Ok(f)
    }

    /// A graph after its keyword.
    fn graph(&mut self, body: bool) -> Result<Graph> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail("nested too deeply");
        }
        let mut parts = Parts::default();
        if self.peek() != Some('(') {
            parts.name = self.name()?;
        }
        let mut params = Vec::new();
        parts.inputs = self.list("(", ")", |p| {
            let input = p.typed()?;
            if p.mark("=") {
                let shape = input.ty.as_ref().and_then(|t| t.shape()?.iter().map(Dim::known).collect::<Option<Shape>>());
                let (Some(dtype), Some(shape)) = (input.ty.as_ref().and_then(Type::dtype), shape) else {
                    return p.fail("a default needs a whole type");
                };
                params.push((input.name.clone(), Kind::Param(p.elements(dtype, shape)?.into())));
            }
            Ok(input)
        })?;
        parts.params = params;
        self.expect("->")?;
        parts.outputs = self.list("(", ")", Self::typed)?;
        let stated: HashMap<String, Type> = parts.outputs.iter().filter_map(|o| Some((o.name.clone(), o.ty.clone()?))).collect();
        self.expect("{")?;
        while !self.mark("}") {
            if self.word("param") {
                let name = self.name()?;
                let kind = if self.mark(":") {
                    let (dtype, shape) = self.tensor_type()?;
                    self.expect("=")?;
                    Kind::Param(self.elements(dtype, shape)?.into())
                } else {
                    self.expect("=")?;
                    if !self.word("sparse") {
                        return self.fail("expected \"sparse\"");
                    }
                    Kind::Sparse(Box::new(self.sparse()?))
                };
                parts.params.push((name, kind));
            } else {
                self.peek();
                let start = self.at;
                let (node, types) = self.node()?;
                types.iter().try_for_each(|made| self.agree(start, stated.get(&made.name), made))?;
                parts.nodes.push(node);
                parts.value_info.extend(types);
            }
        }
        self.depth -= 1;
        let line = self.text[..self.at].matches('\n').count() + 1;
        Graph::from_parts(parts, body).map_err(|e| ParseError { line, detail: e.into_iter().next().map(|e| e.0).unwrap_or_default() })
    }

    /// That an output of the graph has one type, in the interface and where it is made.
    fn agree(&self, start: usize, stated: Option<&Type>, made: &Output) -> Result<()> {
        match (stated, &made.ty) {
            (Some(outside), Some(here)) if outside != here => {
                let line = self.text[..start].matches('\n').count() + 1;
                Err(ParseError { line, detail: format!("output \"{}\" is {outside} in the interface, {here} where it is made", made.name) })
            }
            _ => Ok(()),
        }
    }

    fn node(&mut self) -> Result<(NodeParts, Vec<Output>)> {
        let start = self.at;
        let mut outputs = Vec::new();
        // A node without outputs starts with its op; only an "=" tells.
        loop {
            match self.typed() {
                Ok(o) => outputs.push(o),
                Err(_) => break,
            }
            if !self.mark(",") {
                break;
            }
        }
        if !self.mark("=") {
            self.at = start;
            outputs.clear();
        }
        let op = self.name()?;
        let (domain, op_type) = op.rsplit_once("::").unwrap_or(("", &op));
        let op = OpName::new(domain, op_type);
        let op = match op_type.split_once(':') {
            Some((n, overload)) => OpName { overload: overload.into(), ..OpName::new(domain, n) },
            None => op,
        };
        let inputs = self.list("(", ")", Self::name)?;
        let attrs = if self.peek() == Some('{') { self.attrs()? } else { Attrs::new() };
        let name = if self.mark("# ") { self.name()? } else { String::new() };
        let names = outputs.iter().map(|o| o.name.clone()).collect();
        let types = outputs.into_iter().filter(|o| o.ty.is_some()).collect();
        Ok((NodeParts { name, op, inputs, outputs: names, attrs, residue: Default::default() }, types))
    }
}

#[cfg(test)]
mod tests {
    use super::super::print::print_model;
    use super::*;

    #[test]
    fn what_is_printed_parses_to_the_same_text() {
        let text = r#"model ir_version=8 opset=[""=17, "graphtool"=1]
metadata "a"="b \"c\""
function domain="my" opset=[""=17] attributes=[k] defaults={eps=1e-5} Emb(W, ids) -> (y) {
  y = Gather(W, ids) {axis=$k}
}
graph g(x: float32[batch,?], "odd name": int64[2] = [1, 2], cond: bool[]) -> (y: float32[batch,3], z) {
  param W: float32[100,3] = #00ff00ff00ff00ff00ff00ff00ff00ff
  param s: int64[] = [-1]
  param sp = sparse [4] float32[1] [2.5] at int64[1] [3]
  t: float32[batch,3], _ = my::Op:o(x, _, s) {alpha=0.5, body=graph b(i: int64[]) -> (o) {
      o = Add(i, s)
    }, empty=ints[], list=[1, 2], mode="sum", names=["a", "b"], t=float32[2] [1.0, -2.5]} # n1
  y: float32[batch,3] = Identity(t) # "the \"last\""
  z = If(cond) {else_branch=graph e() -> (p) {
      p = Neg(t)
    }, then_branch=graph _() -> (q) {
      q = Identity(t)
    }}
  Print(y)
}
"#;
        assert_eq!(print_model(&parse_model(text).unwrap()), text);
    }

    #[test]
    fn a_fault_names_its_line() {
        let error = parse_model("graph g() -> (y) {\n  y = Neg(x)\n}").unwrap_err();
        assert_eq!(error.to_string(), "line 3: node \"y\" (Neg): input \"x\" is made by nobody");
        let error = parse_model("graph g(x: float32[2]) -> (y: float32[2]) {\n  y: float32[n] = Neg(x)\n}").unwrap_err();
        assert_eq!(error.to_string(), "line 2: output \"y\" is float32[2] in the interface, float32[n] where it is made");
        // A letter of several bytes where a word might end.
        let error = parse_model("model ir_version=8 opset=[]\nmetadat\u{7e3}").unwrap_err();
        assert!(error.to_string().starts_with("line 2: expected \"graph\""), "{error}");
    }
}
