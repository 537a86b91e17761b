//! The messages of PaddlePaddle's programs, as `schema/framework.proto` has them, and how their parts are read.
#![allow(missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/paddle.rs"));

use crate::tensor::DType;

/// The dtype of PaddlePaddle's number.
pub fn dtype(code: i32) -> Option<DType> {
    Some(match code {
        0 => DType::Bool,
        1 => DType::I16,
        2 => DType::I32,
        3 => DType::I64,
        4 => DType::F16,
        5 => DType::F32,
        6 => DType::F64,
        19 => DType::U64,
        20 => DType::U8,
        21 => DType::I8,
        22 => DType::BF16,
        23 => DType::C64,
        24 => DType::C128,
        _ => return None,
    })
}

impl VarDesc {
    /// Whether it is kept in the parameter files: persistable and a tensor, not a list of feeds or a reader.
    pub fn is_stored(&self) -> bool {
        // 7 is a tensor with LoD, 8 selected rows (a table as a trainer sees it).
        self.persistable() && self.r#type.as_ref().is_some_and(|t| matches!(t.r#type(), 7 | 8))
    }

    /// The tensor, if it is one.
    pub fn tensor(&self) -> Option<&TensorDesc> {
        let ty = self.r#type.as_ref()?;
        ty.lod_tensor.as_ref().map_or(ty.selected_rows.as_ref(), |t| t.tensor.as_ref())
    }

    /// Levels of LoD.
    pub fn lod_level(&self) -> i32 {
        self.r#type.as_ref().and_then(|t| t.lod_tensor.as_ref()).map_or(0, |t| t.lod_level())
    }
}

impl OpDesc {
    /// The variables of an input parameter.
    pub fn ins(&self, parameter: &str) -> &[String] {
        self.inputs.iter().find(|p| p.parameter() == parameter).map_or(&[], |p| &p.arguments)
    }

    /// The variables of an output parameter.
    pub fn outs(&self, parameter: &str) -> &[String] {
        self.outputs.iter().find(|p| p.parameter() == parameter).map_or(&[], |p| &p.arguments)
    }

    fn attr(&self, name: &str) -> Option<&AttrDesc> {
        self.attrs.iter().find(|a| a.name() == name)
    }

    /// An integer, or its default.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        let Some(a) = self.attr(name) else { return default };
        a.i.map(i64::from)
            .or(a.l)
            .or(a.b.map(i64::from))
            .or(a.block_idx.map(i64::from))
            .or(a.scalar.as_ref().and_then(|s| s.i.or(s.r.map(|r| r as i64))))
            .unwrap_or(default)
    }

    /// Integers, if they are given.
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        let a = self.attr(name)?;
        if !a.longs.is_empty() {
            return Some(a.longs.clone());
        }
        match (a.i, a.l) {
            (Some(i), _) => Some(vec![i.into()]),
            (_, Some(l)) => Some(vec![l]),
            _ => Some(a.ints.iter().map(|&i| i.into()).collect()),
        }
    }

    /// A number, or its default.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        let Some(a) = self.attr(name) else { return default };
        a.f.or(a.float64.map(|x| x as f32))
            .or(a.scalar.as_ref().and_then(|s| s.r.or(s.i.map(|i| i as f64))).map(|x| x as f32))
            .or(a.i.map(|i| i as f32))
            .or(a.l.map(|i| i as f32))
            .unwrap_or(default)
    }

    /// Text, or its default.
    pub fn text(&self, name: &str, default: &str) -> String {
        self.attr(name).and_then(|a| a.s.as_ref()).map_or(default.to_owned(), |s| String::from_utf8_lossy(s).into_owned())
    }

    /// A truth value, or its default.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.attr(name).and_then(|a| a.b.or(a.i.map(|i| i != 0))).unwrap_or(default)
    }
}
