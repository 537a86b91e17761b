//! The elements of a tensor: out of JSON, flat or nested, and into it; and strings among binary data.

use crate::tensor::{DType, Element, Shape, Tensor, f16};
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An element in JSON.
trait Item: Element {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error>;
    fn write(&self, out: &mut Vec<u8>);
}

/// Anything that serde writes as JSON does.
fn put(out: &mut Vec<u8>, value: &impl Serialize) {
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(out, value);
}

macro_rules! ints {
    ($($t:ty),*) => {$(
        impl Item for $t {
            fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> { <$t>::deserialize(from) }
            fn write(&self, out: &mut Vec<u8>) { put(out, self) }
        }
    )*};
}
ints!(i8, i16, i32, i64, u8, u16, u32, u64);

/// A float that is none in strict JSON.
fn unusual(x: f64) -> Option<&'static [u8]> {
    match x {
        x if x.is_nan() => Some(b"NaN"),
        f64::INFINITY => Some(b"Infinity"),
        f64::NEG_INFINITY => Some(b"-Infinity"),
        _ => None,
    }
}

fn put_float(out: &mut Vec<u8>, wide: f64, value: &impl Serialize) {
    match unusual(wide) {
        Some(word) => out.extend_from_slice(word),
        None => put(out, value),
    }
}

fn finite<E: Error>(ok: bool, dtype: &str) -> Result<(), E> {
    if ok { Ok(()) } else { Err(E::custom(format_args!("the number is out of range for {dtype}"))) }
}

impl Item for f32 {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let x = f32::deserialize(from)?;
        finite(x.is_finite(), "FP32")?;
        Ok(x)
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_float(out, f64::from(*self), self);
    }
}

impl Item for f64 {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let x = f64::deserialize(from)?;
        finite(x.is_finite(), "FP64")?;
        Ok(x)
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_float(out, *self, self);
    }
}

impl Item for f16 {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let x = f16::from_f64(f64::deserialize(from)?);
        finite(x.is_finite(), "FP16")?;
        Ok(x)
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_float(out, self.to_f64(), &self.to_f32());
    }
}

impl Item for bool {
    /// As Triton, also 0 and 1.
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Truth;
        impl Visitor<'_> for Truth {
            type Value = bool;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, 1 or 0")
            }
            fn visit_bool<E: Error>(self, b: bool) -> Result<bool, E> {
                Ok(b)
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<bool, E> {
                if n < 2 { Ok(n == 1) } else { Err(E::invalid_value(serde::de::Unexpected::Unsigned(n), &self)) }
            }
        }
        from.deserialize_any(Truth)
    }

    fn write(&self, out: &mut Vec<u8>) {
        put(out, self);
    }
}

impl Item for String {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)
    }

    fn write(&self, out: &mut Vec<u8>) {
        put(out, self);
    }
}

/// Calls a generic function for the dtypes that have a form in JSON.
macro_rules! by_dtype {
    ($dtype:expr, $T:ident => $call:expr) => {
        match $dtype {
            DType::Bool => {
                type $T = bool;
                $call
            }
            DType::F16 => {
                type $T = f16;
                $call
            }
            DType::F32 => {
                type $T = f32;
                $call
            }
            DType::F64 => {
                type $T = f64;
                $call
            }
            DType::I8 => {
                type $T = i8;
                $call
            }
            DType::I16 => {
                type $T = i16;
                $call
            }
            DType::I32 => {
                type $T = i32;
                $call
            }
            DType::I64 => {
                type $T = i64;
                $call
            }
            DType::String => {
                type $T = String;
                $call
            }
            DType::U8 => {
                type $T = u8;
                $call
            }
            DType::U16 => {
                type $T = u16;
                $call
            }
            DType::U32 => {
                type $T = u32;
                $call
            }
            DType::U64 => {
                type $T = u64;
                $call
            }
            other => {
                Err(format!("{} has no form in JSON: it goes as binary data", super::interface::datatype(other).unwrap_or(other.name())))
            }
        }
    };
}

/// The tensor of a text like `[1,2,3]` or `[[1,2],[3,4]]`.
pub(super) fn from_json(text: &str, dtype: DType, shape: Shape) -> Result<Tensor, String> {
    let depth = text.bytes().filter(|b| !b.is_ascii_whitespace()).take_while(|b| *b == b'[').count();
    let len = crate::tensor::checked_len(&shape).ok_or_else(|| format!("shape {shape} is too large"))?;
    let flat = [len];
    let dims: &[usize] = match depth {
        0 if shape.is_empty() => &[],
        1 => &flat,
        // Where there are no elements, what is innermost is not seen.
        _ if depth == shape.len() || len == 0 && depth <= shape.len() => &shape[..depth],
        _ => return Err(format!("data of {depth} nested lists, expected one list or as many as shape {shape} has dims")),
    };
    by_dtype!(dtype, T => read_all::<T>(text, dims, shape.clone()))
}

fn read_all<T: Item>(text: &str, dims: &[usize], shape: Shape) -> Result<Tensor, String> {
    let room = crate::tensor::checked_len(&shape).unwrap_or(0).min(text.len() / 2 + 1);
    let mut out = Vec::<T>::with_capacity(room);
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = Level { out: &mut out, dims }.deserialize(&mut reader);
    read.map_err(|e| {
        // The line and column are those of this piece of the request alone.
        let text = e.to_string();
        format!("element {}: {}", out.len(), text.rsplit_once(" at line ").map_or(text.as_str(), |t| t.0))
    })?;
    Tensor::new(shape, out).map_err(|e| e.to_string())
}

/// A list of lists with these many entries.
struct Level<'a, T> {
    out: &'a mut Vec<T>,
    dims: &'a [usize],
}

impl<'de, T: Item> DeserializeSeed<'de> for Level<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        if self.dims.is_empty() {
            self.out.push(T::read(from)?);
            return Ok(());
        }
        from.deserialize_seq(self)
    }
}

impl<'de, T: Item> Visitor<'de> for Level<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.dims[0])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut found = 0;
        while seq.next_element_seed(Level { out: &mut *self.out, dims: &self.dims[1..] })?.is_some() {
            found += 1;
            if found > self.dims[0] {
                return Err(A::Error::custom(format_args!("expected a list of {}, found more", self.dims[0])));
            }
        }
        if found < self.dims[0] {
            return Err(A::Error::custom(format_args!("expected a list of {}, found {found}", self.dims[0])));
        }
        Ok(())
    }
}

/// Appends the elements as one flat list.
pub(super) fn to_json(tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), String> {
    fn all<T: Item>(tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), String> {
        out.push(b'[');
        for (i, x) in tensor.to_slice::<T>().map_err(|e| e.to_string())?.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            x.write(out);
        }
        out.push(b']');
        Ok(())
    }
    by_dtype!(tensor.dtype(), T => all::<T>(tensor, out))
}

/// Strings that each stand behind their length, four bytes.
pub(super) fn texts(mut bytes: &[u8], shape: Shape) -> Result<Tensor, String> {
    let mut texts = Vec::new();
    while !bytes.is_empty() {
        let at = texts.len();
        let cut = || format!("element {at}: the bytes end within it");
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(cut)?;
        texts.push(std::str::from_utf8(text).map_err(|_| format!("element {at} is not UTF-8"))?.to_owned());
        bytes = rest;
    }
    Tensor::new(shape, texts).map_err(|e| e.to_string())
}

/// The same the other way.
pub(super) fn text_bytes(texts: &[String]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(texts.iter().map(|t| t.len() + 4).sum());
    for text in texts {
        let len = u32::try_from(text.len()).map_err(|_| "a string is too long for the protocol".to_owned())?;
        out.extend(len.to_le_bytes());
        out.extend(text.bytes());
    }
    Ok(out)
}
