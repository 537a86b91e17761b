//! The `.npy` form of one array, versions 1 to 3.
//!
//! numpy has no name for some dtypes. They are written by their bits: bfloat16 as `<u2`, the float8 family as `|u1`, and the
//! packed 4- and 2-bit types with one element per byte, integers as `|i1` or `|u1` by value, float4 as `|u1` by its code.
//! Arrays of `|V1` and `<V2`, as ml_dtypes writes them, are read as `uint8` and `uint16`.

use crate::tensor::{DType, Shape, Tensor, cast, checked_len, unpack_bits};
use bytes::Bytes;

/// An element type of numpy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Descr {
    Plain {
        dtype: DType,
        big: bool,
    },
    /// UCS-4 characters per element, zeros at the end.
    Unicode {
        chars: usize,
        big: bool,
    },
    /// Bytes per element, zeros at the end.
    Text {
        bytes: usize,
    },
}

/// What stands before the elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpyHeader {
    descr: Descr,
    fortran: bool,
    /// The dims.
    pub shape: Shape,
    /// Where the elements start.
    pub start: usize,
}

/// Reads the header.
///
/// # Errors
/// Bytes that are no `.npy`, and element types that are no tensor's (objects, records, dates).
pub fn parse_header(bytes: &[u8]) -> Result<NpyHeader, String> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or("no .npy file: it does not start with \\x93NUMPY")?;
    let [major, _, rest @ ..] = rest else { return Err("the header is cut off".into()) };
    let (len, at) = match (major, rest) {
        (1, [a, b, ..]) => (usize::from(u16::from_le_bytes([*a, *b])), 10),
        (2 | 3, [a, b, c, d, ..]) => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
        (1..=3, _) => return Err("the header is cut off".into()),
        _ => return Err(format!(".npy version {major} is not 1 to 3")),
    };
    let text = bytes.get(at..).and_then(|b| b.get(..len)).ok_or("the header is cut off")?;
    let text = std::str::from_utf8(text).map_err(|_| "the header is not UTF-8")?;
    let mut words = Words(text);
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    words.expect("{")?;
    while !words.take("}") {
        let key = words.string()?;
        words.expect(":")?;
        match key {
            "descr" => descr = Some(parse_descr(words.string().map_err(|_| "records are no tensors")?)?),
            "fortran_order" => fortran = Some(words.boolean()?),
            "shape" => shape = Some(words.dims()?),
            _ => return Err(format!("the header has an unknown key {key:?}")),
        }
        words.take(",");
    }
    let lacks = |key: &str| format!("the header lacks {key:?}");
    Ok(NpyHeader {
        descr: descr.ok_or_else(|| lacks("descr"))?,
        fortran: fortran.ok_or_else(|| lacks("fortran_order"))?,
        shape: shape.ok_or_else(|| lacks("shape"))?,
        start: at + len,
    })
}

/// The rest of a header's text, a Python literal.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn take(&mut self, word: &str) -> bool {
        match self.0.trim_start().strip_prefix(word) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        if self.take(word) { Ok(()) } else { Err(format!("the header has no {word:?} where one belongs")) }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|&c| c == '\'' || c == '"').ok_or("the header has no string where one belongs")?;
        let (word, rest) = text[1..].split_once(quote).ok_or("the header has an endless string")?;
        self.0 = rest;
        Ok(word)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        if self.take("True") {
            return Ok(true);
        }
        self.expect("False").map(|()| false)
    }

    fn dims(&mut self) -> Result<Shape, String> {
        self.expect("(")?;
        let mut dims = Vec::new();
        while !self.take(")") {
            let text = self.0.trim_start();
            let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            dims.push(text[..digits].parse().map_err(|_| "the shape has a dim that is no number")?);
            self.0 = &text[digits..];
            self.take("L");
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(Shape::from(dims))
    }
}

fn parse_descr(text: &str) -> Result<Descr, String> {
    let unknown = || match text.trim_start_matches(['<', '>', '|', '=']).chars().next() {
        Some('O') => format!("dtype {text:?}: Python objects are no tensor; save it as numbers or as a string array"),
        _ => format!("dtype {text:?} is no tensor's"),
    };
    let (big, rest) = match text.as_bytes().first() {
        Some(b'<' | b'|' | b'=') => (false, &text[1..]),
        Some(b'>') => (true, &text[1..]),
        _ => (false, text),
    };
    let dtype = match rest {
        "b1" | "?" => DType::Bool,
        "i1" => DType::I8,
        "i2" => DType::I16,
        "i4" => DType::I32,
        "i8" => DType::I64,
        "u1" | "V1" => DType::U8,
        "u2" | "V2" => DType::U16,
        "u4" => DType::U32,
        "u8" => DType::U64,
        "f2" => DType::F16,
        "f4" => DType::F32,
        "f8" => DType::F64,
        "c8" => DType::C64,
        "c16" => DType::C128,
        _ => {
            let size = |text: &str| text.parse().map_err(|_| unknown());
            return match (rest.chars().next(), rest.get(1..)) {
                (Some('U'), Some(n)) => Ok(Descr::Unicode { chars: size(n)?, big }),
                (Some('S' | 'a'), Some(n)) => Ok(Descr::Text { bytes: size(n)? }),
                _ => Err(unknown()),
            };
        }
    };
    Ok(Descr::Plain { dtype, big })
}

impl NpyHeader {
    /// Bytes of an element.
    fn unit(&self) -> usize {
        match self.descr {
            Descr::Plain { dtype, .. } => dtype.size().unwrap_or(1),
            Descr::Unicode { chars, .. } => chars.saturating_mul(4),
            Descr::Text { bytes } => bytes,
        }
    }

    /// Bytes of all elements; `None` where it does not fit.
    pub fn byte_len(&self) -> Option<usize> {
        checked_len(&self.shape)?.checked_mul(self.unit())
    }
}

/// Reads an array; elements in this machine's order stay a view on the bytes.
///
/// # Errors
/// A broken header, or bytes that are fewer or more than the shape says.
pub fn read_npy(bytes: &Bytes) -> Result<Tensor, String> {
    let header = parse_header(bytes)?;
    let need = header.byte_len().ok_or_else(|| format!("the size of {} does not fit 64 bits", header.shape))?;
    let found = bytes.len() - header.start;
    if need != found {
        return Err(format!("shape {} needs {need} bytes, found {found}", header.shape));
    }
    let data = bytes.slice(header.start..);
    let unit = header.unit();
    let data = if header.fortran && header.shape.len() > 1 { from_fortran(&data, &header.shape, unit).into() } else { data };
    let shape = header.shape;
    match header.descr {
        Descr::Plain { dtype, big } => {
            let swap = match dtype {
                DType::C64 | DType::C128 => unit / 2,
                _ => unit,
            };
            let data: Bytes = if big && swap > 1 { data.chunks_exact(swap).flat_map(|c| c.iter().rev().copied()).collect() } else { data };
            if dtype == DType::Bool
                && let Some(i) = data.iter().position(|&b| b > 1)
            {
                return Err(format!("element {i} of bool must be 0 or 1, found {}", data[i]));
            }
            Tensor::from_bytes(dtype, shape, data).map_err(|e| e.to_string())
        }
        Descr::Unicode { big, .. } => strings(&data, unit, shape, |element| {
            let code =
                |c: &[u8]| if big { u32::from_be_bytes([c[0], c[1], c[2], c[3]]) } else { u32::from_le_bytes([c[0], c[1], c[2], c[3]]) };
            let text: Option<String> = element.chunks_exact(4).map(|c| char::from_u32(code(c))).collect();
            text.map(|t| t.trim_end_matches('\0').to_string())
        }),
        Descr::Text { .. } => strings(&data, unit, shape, |element| {
            let end = element.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
            String::from_utf8(element[..end].to_vec()).ok()
        }),
    }
}

fn strings(data: &[u8], unit: usize, shape: Shape, one: impl Fn(&[u8]) -> Option<String>) -> Result<Tensor, String> {
    let len = checked_len(&shape).unwrap_or(0);
    if unit == 0 {
        return Tensor::full(shape, String::new()).map_err(|e| e.to_string());
    }
    let texts = data.chunks_exact(unit).take(len).enumerate();
    let texts = texts.map(|(i, e)| one(e).ok_or_else(|| format!("element {i} is no text"))).collect::<Result<_, _>>()?;
    Tensor::new(shape, texts).map_err(|e| e.to_string())
}

/// Row-major elements of `unit` bytes from column-major ones.
fn from_fortran(data: &[u8], shape: &[usize], unit: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    // Strides in elements, the first axis fastest.
    let strides: Vec<usize> = shape.iter().scan(1usize, |n, &d| Some(std::mem::replace(n, n.saturating_mul(d)))).collect();
    let mut index = vec![0usize; shape.len()];
    while out.len() < data.len() {
        let at: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        out.extend_from_slice(&data[at * unit..(at + 1) * unit]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

/// The header for elements of a dtype, padded so that they start on 64 bytes. `chars` is the length of the longest string.
pub fn header(dtype: DType, shape: &[usize], chars: usize) -> Vec<u8> {
    let descr = match dtype {
        DType::Bool => "|b1".into(),
        DType::I8 | DType::I4 | DType::I2 => "|i1".into(),
        DType::I16 => "<i2".into(),
        DType::I32 => "<i4".into(),
        DType::I64 => "<i8".into(),
        DType::U16 | DType::BF16 => "<u2".into(),
        DType::U32 => "<u4".into(),
        DType::U64 => "<u8".into(),
        DType::F16 => "<f2".into(),
        DType::F32 => "<f4".into(),
        DType::F64 => "<f8".into(),
        DType::C64 => "<c8".into(),
        DType::C128 => "<c16".into(),
        DType::String => format!("<U{}", chars.max(1)),
        _ => "|u1".to_string(),
    };
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if dims.len() == 1 { "," } else { "" };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", dims.join(", "));
    // numpy leaves room for the first dim to grow in place.
    let digits = dims.first().map_or(0, |d| 21usize.saturating_sub(d.len()));
    text.push_str(&" ".repeat(digits));
    text.push_str(&" ".repeat(64 - (10 + text.len() + 1) % 64));
    text.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out
}

/// The elements as they stand in a file, little-endian, one per byte for packed dtypes; `None` for strings and stand-ins.
pub fn plain_bytes(tensor: &Tensor) -> Option<Bytes> {
    match tensor.dtype() {
        DType::I4 | DType::I2 => cast(tensor, DType::I8).ok()?.shared_bytes(),
        d if d.bits() == 4 || d.bits() == 2 => Some(unpack_bits(tensor.bytes()?, d.bits(), tensor.len()).into()),
        _ => tensor.shared_bytes(),
    }
}

/// Appends a string of at most `chars` characters in numpy's form.
pub fn put_text(out: &mut Vec<u8>, text: &str, chars: usize) {
    let end = out.len() + chars.max(1) * 4;
    out.extend(text.chars().take(chars).flat_map(|c| u32::from(c).to_le_bytes()));
    out.resize(end, 0);
}

/// The whole file of an array.
///
/// # Errors
/// A tensor whose elements were taken out.
pub fn write_npy(tensor: &Tensor) -> Result<Vec<u8>, crate::tensor::TensorError> {
    if let Ok(texts) = tensor.as_slice::<String>() {
        let chars = texts.iter().map(|t| t.chars().count()).max().unwrap_or(0);
        let mut out = header(DType::String, tensor.shape(), chars);
        texts.iter().for_each(|t| put_text(&mut out, t, chars));
        return Ok(out);
    }
    let mut out = header(tensor.dtype(), tensor.shape(), 0);
    out.extend_from_slice(&plain_bytes(tensor).ok_or(crate::tensor::TensorError::Absent)?);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that numpy writes: header text padded to 118 bytes, then the elements.
    fn npy(descr: &str, order: &str, shape: &str, data: &str) -> Bytes {
        let text = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
        let mut out = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        out.extend(format!("{text:<117}\n").bytes());
        out.extend((0..data.len()).step_by(2).map(|i| u8::from_str_radix(&data[i..i + 2], 16).unwrap()));
        out.into()
    }

    fn check(descr: &str, order: &str, shape: &str, data: &str, want: &str) -> Tensor {
        let t = read_npy(&npy(descr, order, shape, data)).unwrap();
        assert_eq!(format!("{t:?}"), want);
        t
    }

    #[test]
    fn the_files_of_numpy_are_read() {
        check("<f4", "False", "(2, 3)", "0000803f0000004000004040000080400000a0400000c040", "float32[2,3] [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]");
        check(">i4", "False", "(2,)", "00000001fffffffe", "int32[2] [1, -2]");
        check("<i2", "True", "(2, 3)", "010004000200050003000600", "int16[2,3] [1, 2, 3, 4, 5, 6]");
        check("|b1", "False", "(2,)", "0100", "bool[2] [1, 0]");
        check("<U2", "False", "(3,)", "6100000000000000e9000000620000000000000000000000", "string[3] [\"a\", \"éb\", \"\"]");
        check(">U2", "False", "(1,)", "0000006100000062", "string[1] [\"ab\"]");
        check("|S2", "False", "(2,)", "61626300", "string[2] [\"ab\", \"c\"]");
        check("<f2", "False", "()", "0038", "float16[] [0.5]");
        check("<V2", "False", "(2,)", "803e803f", "uint16[2] [16000, 16256]");
        check("<V1", "False", "(2,)", "2838", "uint8[2] [40, 56]");
        check("<i8", "False", "(0, 4)", "", "int64[0,4] []");
        let c = check("<c8", "False", "(1,)", "0000803f00000040", "complex64[1] []");
        assert_eq!(c.item::<crate::tensor::Complex32>().unwrap(), crate::tensor::Complex32::new(1.0, 2.0));
    }

    #[test]
    fn what_is_written_is_what_numpy_writes() {
        let t = Tensor::new([2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        assert_eq!(write_npy(&t).unwrap(), npy("<f4", "False", "(2, 3)", "0000803f0000004000004040000080400000a0400000c040"));
        let t = Tensor::vector(vec!["a".to_string(), "éb".into(), String::new()]);
        assert_eq!(write_npy(&t).unwrap(), npy("<U2", "False", "(3,)", "6100000000000000e9000000620000000000000000000000"));
        assert_eq!(write_npy(&Tensor::scalar(crate::tensor::f16::from_f32(0.5))).unwrap(), npy("<f2", "False", "()", "0038"));
        assert_eq!(write_npy(&Tensor::new([0, 4], Vec::<i64>::new()).unwrap()).unwrap(), npy("<i8", "False", "(0, 4)", ""));
    }

    #[test]
    fn dtypes_without_a_name_are_written_by_their_bits() {
        let t = Tensor::from_vec_as(DType::I4, [3], vec![0xf8u8, 0x07]).unwrap();
        assert_eq!(write_npy(&t).unwrap(), npy("|i1", "False", "(3,)", "f8ff07"));
        let t = Tensor::from_bytes(DType::BF16, [1], vec![0x80, 0x3e]).unwrap();
        assert_eq!(write_npy(&t).unwrap(), npy("<u2", "False", "(1,)", "803e"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let err = |descr, shape, data| read_npy(&npy(descr, "False", shape, data)).unwrap_err();
        assert_eq!(err("<f4", "(2,)", "0000803f"), "shape [2] needs 8 bytes, found 4");
        assert_eq!(err("<f16", "(1,)", ""), "dtype \"<f16\" is no tensor's");
        assert_eq!(err("<M8[ns]", "(1,)", ""), "dtype \"<M8[ns]\" is no tensor's");
        assert!(err("|O", "(1,)", "").contains("Python objects are no tensor"));
        assert_eq!(err("<f4", "(-1,)", ""), "the shape has a dim that is no number");
        assert!(err("<f8", "(4294967296, 4294967296)", "").contains("does not fit"));
        assert!(err("<U9223372036854775807", "(4,)", "").contains("does not fit"));
        assert_eq!(err("|b1", "(1,)", "02"), "element 0 of bool must be 0 or 1, found 2");
        assert!(read_npy(&Bytes::from_static(b"PK")).unwrap_err().starts_with("no .npy file"));
        let whole = npy("<f4", "False", "(1,)", "0000803f");
        for end in 0..whole.len() {
            assert!(read_npy(&whole.slice(..end)).is_err());
        }
    }
}
