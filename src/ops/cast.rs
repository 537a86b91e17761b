//! Conversion between dtypes.

use super::infer::InferCtx;
use super::{Fact, Kernel, OpCtx, OpDef, OpError, one};
use crate::ir::{Attr, Dim};
use crate::tensor::{CastMode, DType, Element, Rounding, Tensor, bf16, cast, cast_with, f16};
use crate::{dispatch, invalid};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("BitCast", &[26]).attrs(&["to"]).infer(infer_cast).kernel(bit_cast),
    OpDef::new("Cast", &[1, 6, 9, 13, 19, 21, 23, 24, 25, 28]).attrs(&["round_mode", "saturate", "to"]).infer(infer_cast).kernel(cast_to),
    OpDef::new("CastLike", &[15, 19, 21, 23, 24, 25])
        .inputs(2, 2)
        .attrs(&["round_mode", "saturate"])
        .infer(infer_cast_like)
        .kernel(cast_like),
];

/// The dtype that attribute `to` names: by number, or before opset 6 by name.
fn target(cx: &OpCtx) -> Result<DType, OpError> {
    let found = match cx.attrs.get("to") {
        Some(Attr::Int(code)) => i32::try_from(*code).ok().and_then(DType::from_onnx),
        Some(Attr::String(name)) => match std::str::from_utf8(name).unwrap_or_default().to_ascii_lowercase().as_str() {
            "float" => Some(DType::F32),
            "double" => Some(DType::F64),
            name => DType::from_name(name),
        },
        _ => None,
    };
    match found {
        Some(to) => Ok(to),
        None => invalid!("attribute \"to\" names no dtype that is known"),
    }
}

fn mode(cx: &OpCtx) -> Result<CastMode, OpError> {
    let rounding = match cx.attrs.string_or("round_mode", "up")? {
        "up" => Rounding::Up,
        "down" => Rounding::Down,
        "nearest" => Rounding::Nearest,
        other => invalid!("attribute \"round_mode\": expected up, down or nearest, found {other}"),
    };
    Ok(CastMode { saturate: cx.attrs.int_or("saturate", 1)? != 0, rounding })
}

fn cast_to(cx: &OpCtx) -> Result<Kernel, OpError> {
    let (to, mode) = (target(cx)?, mode(cx)?);
    Ok(Box::new(move |mut args| one(convert(args.take(0)?, to, mode)?)))
}

fn cast_like(cx: &OpCtx) -> Result<Kernel, OpError> {
    let mode = mode(cx)?;
    Ok(Box::new(move |mut args| {
        let to = args.tensor(1)?.dtype();
        one(convert(args.take(0)?, to, mode)?)
    }))
}

fn convert(t: Tensor, to: DType, mode: CastMode) -> Result<Tensor, OpError> {
    match (t.dtype(), to) {
        (from, to) if from == to => Ok(t),
        (DType::String, to) => parse(&t, to, mode),
        (_, DType::String) => print(&t),
        _ => Ok(cast_with(&t, to, mode)?),
    }
}

/// Reads strings as numbers. White space around them does not count; infinity and NaN may be written in any case.
fn parse(t: &Tensor, to: DType, mode: CastMode) -> Result<Tensor, OpError> {
    let texts = t.to_slice::<String>()?;
    let shape = t.shape();
    let each = |s: &String| float(s, to);
    match to {
        DType::F32 => {
            let parsed: Result<Vec<f32>, _> = texts.iter().map(|s| s.trim().parse().map_err(|_| unreadable(s, to))).collect();
            Ok(Tensor::new(shape, parsed?)?)
        }
        DType::Bool => Ok(Tensor::new(shape, texts.iter().map(|s| truth(s)).collect::<Result<Vec<bool>, _>>()?)?),
        to if to.is_int() => {
            let parsed: Result<Vec<i64>, _> = texts.iter().map(|s| integer(s, to)).collect();
            Ok(cast(&Tensor::new(shape, parsed?)?, to)?)
        }
        to => Ok(cast_with(&Tensor::new(shape, texts.iter().map(each).collect::<Result<Vec<f64>, _>>()?)?, to, mode)?),
    }
}

fn unreadable(s: &str, to: DType) -> OpError {
    OpError::Invalid(format!("cannot read {s:?} as {to}"))
}

fn float(s: &str, to: DType) -> Result<f64, OpError> {
    s.trim().parse().map_err(|_| unreadable(s, to))
}

/// The low 64 bits of an integer; a fraction is cut off.
fn integer(s: &str, to: DType) -> Result<i64, OpError> {
    match s.trim().parse::<i128>() {
        Ok(x) => Ok(x as i64),
        Err(_) => float(s, to).map(|x| x as i128 as i64),
    }
}

/// `true`, `false`, or whether a number is not zero.
fn truth(s: &str) -> Result<bool, OpError> {
    match s.trim() {
        s if s.eq_ignore_ascii_case("true") => Ok(true),
        s if s.eq_ignore_ascii_case("false") => Ok(false),
        s => float(s, DType::Bool).map(|x| x != 0.0),
    }
}

/// Prints numbers as numpy does: floats with the fewest digits that tell them apart.
fn print(t: &Tensor) -> Result<Tensor, OpError> {
    let texts: Vec<String> = match t.dtype() {
        DType::Bool => t.to_slice::<bool>()?.iter().map(|x| if *x { "True" } else { "False" }.to_owned()).collect(),
        DType::U64 => t.to_slice::<u64>()?.iter().map(u64::to_string).collect(),
        DType::F64 => t.to_slice::<f64>()?.iter().map(|x| decimal(&format!("{x:e}"))).collect(),
        DType::F16 => t.to_slice::<f16>()?.iter().map(|x| half(x.to_f64(), |y| f16::from_f64(y) == *x)).collect(),
        DType::BF16 => t.to_slice::<bf16>()?.iter().map(|x| half(x.to_f64(), |y| bf16::from_f64(y) == *x)).collect(),
        d if d.is_int() => t.to_i64s()?.iter().map(i64::to_string).collect(),
        _ => t.to_f32s()?.iter().map(|x| decimal(&format!("{x:e}"))).collect(),
    };
    Ok(Tensor::new(t.shape(), texts)?)
}

/// The shortest decimal that `is_same` takes for `x`.
fn half(x: f64, is_same: impl Fn(f64) -> bool) -> String {
    let candidates = (0..9).map(|digits| format!("{x:.digits$e}"));
    let shortest = candidates.into_iter().find(|s| s.parse().is_ok_and(&is_same));
    decimal(&shortest.unwrap_or_else(|| format!("{x:e}")))
}

/// `1.5e-7` as numpy writes it: plain between 1e-4 and 1e16, else with an exponent of two digits.
fn decimal(scientific: &str) -> String {
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        // NaN, inf.
        return scientific.to_ascii_lowercase();
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |m| ("-", m));
    let zero = mantissa.bytes().all(|b| matches!(b, b'0' | b'.'));
    if !zero && !(-4..16).contains(&exponent) {
        let mark = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{mantissa}e{mark}{:02}", exponent.unsigned_abs());
    }
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    if exponent < 0 {
        return format!("{sign}0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize - 1));
    }
    let whole = exponent as usize + 1;
    let digits = format!("{digits:0<whole$}");
    let (whole, rest) = digits.split_at(whole);
    format!("{sign}{whole}.{}", if rest.is_empty() { "0" } else { rest })
}

fn bit_cast(cx: &OpCtx) -> Result<Kernel, OpError> {
    let to = target(cx)?;
    Ok(Box::new(move |mut args| one(reinterpret(args.take(0)?, to)?)))
}

/// The same bits as another dtype of the same width.
fn reinterpret(t: Tensor, to: DType) -> Result<Tensor, OpError> {
    let from = t.dtype();
    if from.bits() != to.bits() || from == DType::String {
        invalid!("cannot take the bits of {from} for {to}");
    }
    if from == to {
        return Ok(t);
    }
    let Some(bytes) = t.shared_bytes() else { invalid!("the elements of input 0 are not here") };
    if to == DType::Bool && bytes.iter().any(|b| *b > 1) {
        invalid!("cannot take the bits of {from} for bool: not all are 0 or 1");
    }
    if to.bits() >= 8 {
        // Owned where it can be, so that its reader may re-use the storage.
        if let Some(owned) = dispatch!(to, T => T::vec_from_bytes(&bytes).map(|v| Tensor::new(t.shape(), v))) {
            return Ok(owned?);
        }
    }
    Ok(Tensor::from_bytes(to, t.shape(), bytes)?)
}

/// The target dtype in the shape of input 0. Integers that are dims stay known.
fn infer_as(cx: &InferCtx, to: Option<DType>) -> Result<Vec<Fact>, OpError> {
    let mut out = Fact::partial(to, cx.shape(0).map(<[Dim]>::to_vec));
    let wide = |d: Option<DType>| matches!(d, Some(DType::I64 | DType::I32));
    if wide(to) && wide(cx.dtype(0)) {
        out.dims = cx.dims(0);
    }
    Ok(vec![out])
}

fn infer_cast(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    let mut facts = infer_as(cx, Some(target(&cx.op)?))?;
    if &*cx.op.op.name == "BitCast" {
        facts[0].dims = None;
    }
    Ok(facts)
}

fn infer_cast_like(cx: &InferCtx) -> Result<Vec<Fact>, OpError> {
    infer_as(cx, cx.dtype(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attrs;
    use crate::ops::testing::run;
    use crate::tensor::{F8E4M3FN, F8E8M0};

    fn to(dtype: DType) -> Attrs {
        Attrs::new().with("to", i64::from(dtype.to_onnx()))
    }

    fn words(list: &[&str]) -> Tensor {
        Tensor::vector(list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    fn reads<T: Element>(list: &[&str], expected: Vec<T>) {
        assert_eq!(run("Cast", 13, to(T::DTYPE), &[words(list)]).unwrap(), Tensor::vector(expected));
    }

    fn prints<T: Element>(list: Vec<T>, expected: &[&str]) {
        assert_eq!(run("Cast", 13, to(DType::String), &[Tensor::vector(list)]).unwrap(), words(expected));
    }

    #[test]
    fn strings_are_read_as_numbers() {
        reads("0.1 1e-5 1E8 +INF -inf nan".split(' ').collect::<Vec<_>>().as_slice(), {
            vec![0.1f32, 1e-5, 1e8, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]
        });
        reads(&[" 0.1 "], vec![f16::from_f32(0.1)]);
        reads(&["100.5", "-7", "1e3"], vec![100i32, -7, 1000]);
        reads(&["18446744073709551615"], vec![u64::MAX]);
        reads(&["True", "0", "0.5", "false"], vec![true, false, true, false]);
        let found = run("Cast", 13, to(DType::F32), &[words(&["Hello World!"])]).unwrap_err();
        assert_eq!(found.to_string(), "cannot read \"Hello World!\" as float32");
    }

    #[test]
    fn numbers_are_printed_as_numpy_does() {
        prints(vec![0.478_925_47f32, 1.0, 1e-5, 1.5e20, 123_456_789.0], &["0.47892547", "1.0", "1e-05", "1.5e+20", "123456790.0"]);
        prints(vec![0.0001f64, 1e16, -0.0, 1e15, -2.5e-7], &["0.0001", "1e+16", "-0.0", "1000000000000000.0", "-2.5e-07"]);
        prints(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY], &["nan", "inf", "-inf"]);
        prints(vec![f16::from_f32(0.1), f16::MAX, f16::ZERO], &["0.1", "65500.0", "0.0"]);
        prints(vec![bf16::from_f32(0.1)], &["0.1"]);
        prints(vec![true, false], &["True", "False"]);
        prints(vec![u64::MAX], &["18446744073709551615"]);
        prints(vec![i8::MIN], &["-128"]);
    }

    #[test]
    fn before_opset_6_the_dtype_is_a_name() {
        let x = Tensor::vector(vec![1.7f32, -1.7]);
        let found = run("Cast", 1, Attrs::new().with("to", "INT32"), std::slice::from_ref(&x)).unwrap();
        assert_eq!(found, Tensor::vector(vec![1i32, -1]));
        let found = run("Cast", 1, Attrs::new().with("to", "DOUBLE"), &[found]).unwrap();
        assert_eq!(found, Tensor::vector(vec![1f64, -1.0]));
        let found = run("Cast", 13, Attrs::new().with("to", 99i64), &[x]).unwrap_err();
        assert_eq!(found.to_string(), "attribute \"to\" names no dtype that is known");
    }

    #[test]
    fn small_floats_saturate_if_told() {
        let x = Tensor::vector(vec![1e6f32, f32::NEG_INFINITY, 1.0]);
        let saturated = run("Cast", 19, to(DType::F8E4M3FN), std::slice::from_ref(&x)).unwrap();
        assert_eq!(saturated, Tensor::vector(vec![F8E4M3FN(0x7e), F8E4M3FN(0xfe), F8E4M3FN(0x38)]));
        let attrs = Attrs::new().with("saturate", 0i64);
        let like = Tensor::scalar(F8E4M3FN(0));
        let not = run("CastLike", 19, attrs, &[x, like]).unwrap();
        assert_eq!(not, Tensor::vector(vec![F8E4M3FN(0x7f), F8E4M3FN(0xff), F8E4M3FN(0x38)]));
        let attrs = to(DType::F8E8M0).with("round_mode", "down");
        assert_eq!(run("Cast", 24, attrs, &[Tensor::scalar(3f32)]).unwrap(), Tensor::scalar(F8E8M0(128)));
    }

    #[test]
    fn bits_keep_their_places() {
        let bits = |x: Tensor, d| run("BitCast", 26, to(d), &[x]);
        assert_eq!(bits(Tensor::vector(vec![1f32, -2.0]), DType::I32).unwrap(), Tensor::vector(vec![0x3f80_0000i32, -0x4000_0000]));
        assert_eq!(bits(Tensor::scalar(0xbff0_0000_0000_0000u64), DType::F64).unwrap(), Tensor::scalar(-1f64));
        let nibbles = Tensor::from_vec_as(DType::I4, [2], vec![0xf1u8]).unwrap();
        assert_eq!(bits(nibbles, DType::U4).unwrap().to_i64s().unwrap(), [1, 15]);
        let wrong = bits(Tensor::scalar(1f32), DType::I64).unwrap_err();
        assert_eq!(wrong.to_string(), "cannot take the bits of float32 for int64");
        assert!(bits(Tensor::scalar(2u8), DType::Bool).is_err());
    }
}
